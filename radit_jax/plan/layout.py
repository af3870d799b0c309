"""The mesh of a run on a slice, and what of a run does not divide, told before anything is compiled."""

from jax.sharding import Mesh

from radit_jax.config import MeshConfig, PlanConfig
from radit_jax.errors import UserError
from radit_jax.models.bert import BertConfig
from radit_jax.plan.chips import Slice
from radit_jax.plan.programs import Models, rows_needed

#: A batch may have so many times the rows it needs, so that all row shards have equally many.
_PADDING = 1.25


def check(config: PlanConfig, models: Models) -> None:
  """Refuses prompts that the generator has no positions for.

  Raises:
    UserError: naming both numbers.
  """
  longest = models.generator.max_positions
  if config.prompt.max_tokens > longest:
    raise UserError(
      f"prompt.max_tokens {config.prompt.max_tokens}, but {config.generator} has positions for {longest}: "
      f"--prompt.max-tokens {longest} would do"
    )


def mesh_for(config: PlanConfig, models: Models, of: Slice) -> MeshConfig:
  """The axes asked for, or else: parameters and rows over all chips, or as many as rows divide and the rest `tensor`.

  Args:
    config: its ``mesh``, if it is not the default one, is taken as it is.
    models: whose heads and widths must divide.
    of: the slice.

  Raises:
    UserError: no such mesh, or one that was asked for and does not work; the numbers and the nearest that works named.
  """
  if config.mesh != MeshConfig():
    wrong = _misfit(config, models, of, config.mesh)
    if wrong is None:
      return config.mesh
    found = _first(config, models, of)
    raise UserError(wrong + ("" if found is None else f"; fsdp={found.fsdp} tensor={found.tensor} would do"))
  found = _first(config, models, of)
  if found is None:
    wrong = _misfit(config, models, of, MeshConfig(data=1, fsdp=of.chips))
    raise UserError(f"{of.name}: no mesh of its {of.chips} chips works; with fsdp={of.chips}: {wrong}")
  return found


def larger_tensor(config: PlanConfig, models: Models, of: Slice, mesh: MeshConfig) -> MeshConfig | None:
  """The mesh with twice the chips along ``tensor``, if everything divides."""
  wider = MeshConfig(data=mesh.data, fsdp=mesh.fsdp // 2, tensor=mesh.tensor * 2)
  return wider if mesh.fsdp % 2 == 0 and _misfit(config, models, of, wider) is None else None


def describe(mesh: Mesh) -> str:
  """The options that give a run this mesh."""
  return f"--mesh.fsdp {mesh.shape['fsdp']} --mesh.tensor {mesh.shape['tensor']}" + (
    f" --mesh.data {mesh.shape['data']}" if mesh.shape["data"] > 1 else ""
  )


def _first(config: PlanConfig, models: Models, of: Slice) -> MeshConfig | None:
  """The fewest chips along `tensor` for which everything divides, with full batches if that can be had."""
  working = []
  tensor = 1
  while tensor <= of.chips:
    mesh = MeshConfig(data=1, fsdp=of.chips // tensor, tensor=tensor)
    if of.chips % tensor == 0 and _misfit(config, models, of, mesh) is None:
      working.append(mesh)
    tensor *= 2
  return next((mesh for mesh in working if not _wasteful(config, mesh)), working[-1] if working else None)


def _wasteful(config: PlanConfig, mesh: MeshConfig) -> bool:
  loop = config.generator_tuning.loop
  needed = rows_needed(config, loop.batch_size, config.k_train)
  shards = mesh.fsdp * loop.accumulate
  return -(-needed // shards) * shards > _PADDING * needed


def _misfit(config: PlanConfig, models: Models, of: Slice, mesh: MeshConfig) -> str | None:
  """What does not divide, in one line; None if everything does."""
  inner = mesh.fsdp * mesh.tensor
  if of.chips % inner or (mesh.data != -1 and mesh.data * inner != of.chips):
    return (
      f"mesh data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} does not make the {of.chips} chips of {of.name}"
    )
  shards = of.chips // mesh.tensor
  for name, tuning in (("generator_tuning", config.generator_tuning), ("retriever_tuning", config.retriever_tuning)):
    size, parts = tuning.loop.batch_size, tuning.loop.accumulate
    if size % (parts * shards):
      up = -(-size // (parts * shards)) * parts * shards
      return (
        f"{name}.loop: batch_size {size} in accumulate {parts} over {shards} row shards: not divisible, "
        f"batch_size {up} is"
      )
  for role, shape in (("generator", models.generator), ("encoder", models.encoder)):
    kv_heads = shape.num_heads if isinstance(shape, BertConfig) else shape.num_kv_heads
    for what, size, axis, over in (
      ("hidden_size", shape.hidden_size, "fsdp", mesh.fsdp),
      ("num_heads", shape.num_heads, "tensor", mesh.tensor),
      ("num_kv_heads", kv_heads, "tensor", mesh.tensor),
      ("intermediate_size", shape.intermediate_size, "tensor", mesh.tensor),
      ("vocab_size", shape.vocab_size, "tensor", mesh.tensor),
    ):
      if size % over:
        return f"{role}: {what} {size} over {axis}={over}: not divisible"
  return None
