"""All programs of a run on one slice; what would make those fit that do not; and the smallest slice that fits all."""

import dataclasses
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from radit_jax.config import MeshConfig, PlanConfig
from radit_jax.errors import UserError
from radit_jax.plan import chips, flops, layout, programs
from radit_jax.plan.chips import Slice
from radit_jax.plan.measure import Measured, measure
from radit_jax.plan.programs import Models, Program
from radit_jax.progress import Progress, silent
from radit_jax.sharding import make_mesh, row_shards

#: Larger slices that are tried as a remedy.
_SLICES_TRIED = 2
_LORA_RANK = 16
ANSWERS = ("reading prompts", "decoding", "weighing answers")
NAMES = ("RALT step", "RALT dev loss", "scoring", "LSR step", "LSR dev loss", "encoding", *ANSWERS)
#: Of a tuning that has dev questions answered.
DEV_ANSWERS = tuple(f"dev: {name}" for name in ANSWERS)
_ONE: dict[str, Callable[[PlanConfig, Models, Mesh], Program]] = {
  "RALT step": programs.ralt,
  "RALT dev loss": programs.ralt_dev,
  "scoring": programs.score,
  "LSR step": programs.lsr,
  "LSR dev loss": programs.lsr_dev,
  "encoding": programs.encode,
}


@dataclasses.dataclass(frozen=True)
class Survey:
  """A run on a slice.

  Attributes:
    config: of the run; :func:`smallest` may have changed it.
    of: the slice.
    mesh: over its chips.
    programs: in the order of the table.
  """

  config: PlanConfig
  of: Slice
  mesh: Mesh
  programs: tuple[Measured, ...]

  @property
  def fits(self) -> bool:
    return all(p.fits for p in self.programs)


@dataclasses.dataclass(frozen=True)
class Remedy:
  """A change, compiled, under which a program fits that otherwise does not.

  Attributes:
    program: its name.
    change: options of `radit plan` (and of the run).
    together_bytes: what a chip then holds.
  """

  program: str
  change: str
  together_bytes: float


def names_of(config: PlanConfig) -> tuple[str, ...]:
  """The programs that a run has, in the order of the table."""
  return NAMES if config.generator_tuning.loop.asked_questions is None else (*NAMES, *DEV_ANSWERS)


def survey(
  config: PlanConfig, models: Models, of: Slice, *, names: tuple[str, ...] | None = None, progress: Progress = silent
) -> Survey:
  """Compiles the programs of a run for a slice, one after another.

  Args:
    config: of the run.
    models: its shapes.
    of: the slice.
    names: of :func:`names_of`, the ones wanted; None for all.
    progress: told after each program.

  Raises:
    UserError: a mesh that does not work, see :func:`radit_jax.plan.layout.mesh_for`.
  """
  mesh = make_mesh(layout.mesh_for(config, models, of), devices=chips.devices(of))
  names = names_of(config) if names is None else names
  found = []
  for program in _programs(config, models, mesh, names):
    found.append(measure(program, of, mesh, config.mfu))
    progress(f"compile for {of.name}", len(found), len(names), "programs")
  return Survey(config, of, mesh, tuple(found))


def _programs(config: PlanConfig, models: Models, mesh: Mesh, names: tuple[str, ...]) -> Iterator[Program]:
  for name in names:
    if name in _ONE:
      yield _ONE[name](config, models, mesh)
  if any(name in ANSWERS for name in names):
    yield from (p for p in programs.answers(config, models, mesh) if p.name in names)
  if any(name in DEV_ANSWERS for name in names):
    yield from (p for p in programs.dev_answers(config, models, mesh) if p.name in names)


def remedies(of: Survey, models: Models, *, progress: Progress = silent) -> list[Remedy]:
  """For each program that does not fit: the changes that would help, each compiled before it is named."""
  found: list[Remedy] = []
  for program in of.programs:
    if program.fits:
      continue
    helped: set[str] = set()
    for kind, change, config in _changes(of, models, program.name):
      if kind in helped:
        continue
      try:
        (tried,) = survey(config, models, chips.slice_named(config.topology), names=(program.name,)).programs
      except UserError:
        continue  # its mesh does not work
      progress("what would fit", len(found), len(found) + 1, change)
      if tried.fits:
        helped.add(kind)
        found.append(Remedy(program.name, change, tried.together_bytes))
  return found


def _changes(of: Survey, models: Models, name: str) -> Iterator[tuple[str, str, PlanConfig]]:
  """Kind of change, its options, and the run with it; of one kind the smallest change first."""
  config = of.config
  shards = row_shards(of.mesh)
  if name in ("RALT step", "RALT dev loss", "LSR step", "LSR dev loss", *DEV_ANSWERS):
    field = "retriever_tuning" if name.startswith("LSR") else "generator_tuning"
    option, tuning = "--" + field.replace("_", "-"), getattr(config, field)
    remat = f"{option}.remat full " if name.endswith(" step") and tuning.remat != "full" else ""
    if remat:
      for kept in ("dots", "full") if tuning.remat == "none" else ("full",):
        tuning = dataclasses.replace(tuning, remat=kept)
        yield "remat", f"{option}.remat {kept}", dataclasses.replace(config, **{field: tuning})
    parts = tuning.loop.accumulate * 2
    while name not in DEV_ANSWERS and parts * shards <= tuning.loop.batch_size:
      if tuning.loop.batch_size % (parts * shards) == 0:
        loop = dataclasses.replace(tuning.loop, accumulate=parts)
        split = dataclasses.replace(tuning, loop=loop)
        yield "batch", f"{remat}{option}.loop.accumulate {parts}", dataclasses.replace(config, **{field: split})
      parts *= 2
  else:
    field = {"scoring": "score_batch_size", "encoding": "encode_batch_size"}.get(name, "answer_batch_size")
    size = -(-getattr(config, field) // shards) * shards // 2
    while size >= shards:
      if size % shards == 0:
        yield "batch", f"--{field.replace('_', '-')} {size}", dataclasses.replace(config, **{field: size})
      size //= 2
  shape = of.mesh.shape
  wider = layout.larger_tensor(config, models, of.of, MeshConfig(shape["data"], shape["fsdp"], shape["tensor"]))
  if wider is not None:
    change = f"--mesh.fsdp {wider.fsdp} --mesh.tensor {wider.tensor}"
    yield "mesh", change, dataclasses.replace(config, mesh=wider)
  kind = of.of.name.partition(":")[0]
  larger = [s for s in chips.slices(kind) if s.chips > of.of.chips][:_SLICES_TRIED]
  for one in larger:
    yield "slice", f"--topology {one.name}", dataclasses.replace(config, topology=one.name, mesh=MeshConfig())
  if field.endswith("_tuning") and not getattr(config, field).lora.rank:
    lora = dataclasses.replace(tuning.lora, rank=_LORA_RANK)
    adapted = dataclasses.replace(tuning, lora=lora)
    yield "lora", f"{remat}{option}.lora.rank {_LORA_RANK}", dataclasses.replace(config, **{field: adapted})


def smallest(config: PlanConfig, models: Models, *, progress: Progress = silent) -> tuple[Survey | None, list[str]]:
  """The smallest slice of the topology's generation that all programs fit, each as configured or with `remat`.

  Returns:
    It, or None; and a line on each slice before it.
  """
  why = []
  for one in chips.slices(config.topology.partition(":")[0]):
    held = _least_bytes(config, models) / one.chips
    if held > one.chip.hbm_bytes:
      why.append(f"{one.name}: weights and moments alone are {held / chips.GIB:.1f} GiB a chip")
      continue
    for tried in _with_remat(dataclasses.replace(config, topology=one.name, mesh=MeshConfig())):
      try:
        step = survey(tried, models, one, names=("RALT step",), progress=progress)
      except UserError as e:
        why.append(str(e))
        break
      if not step.fits:
        why.append(_short(one, step.programs[0], tried))
        continue
      rest = survey(tried, models, one, names=names_of(tried)[1:], progress=progress)
      whole = dataclasses.replace(rest, programs=step.programs + rest.programs)
      if whole.fits:
        return whole, why
      why += [_short(one, p, tried) for p in whole.programs if not p.fits]
      break
  return None, why


def _short(one: Slice, program: Measured, config: PlanConfig) -> str:
  needed, remat = program.together_bytes / chips.GIB, config.generator_tuning.remat
  return f"{one.name}: {program.name} with remat {remat} needs {needed:.1f} GiB a chip"


def _with_remat(config: PlanConfig) -> Iterator[PlanConfig]:
  tuning = config.generator_tuning
  yield config
  if tuning.remat != "full":
    yield dataclasses.replace(config, generator_tuning=dataclasses.replace(tuning, remat="full"))


def _least_bytes(config: PlanConfig, models: Models) -> float:
  """Of weights, and of moments if all of them are trained: float32 and twice that, else what files hold or less."""
  lora = config.generator_tuning.lora
  each = (
    (12.0 if config.generator_tuning.optimizer.master_dtype == "float32" else 10.0)
    if not lora.rank
    else {"float": 2.0, "int8": 1.0, "nf4": 0.5}[lora.base]
  )
  return each * flops.all_parameters(models.generator)
