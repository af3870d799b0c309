"""What every tuning does around the loop: finds a finished run, plans batches, shows the first, writes the result."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from radit_jax import files, hosts, runs, sharding
from radit_jax.config import Dtype, LoopConfig, LoraConfig, TrainGeneratorConfig, TrainRetrieverConfig
from radit_jax.data.batches import RowLengths
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.mixture import Mixture
from radit_jax.data.packing import PackedPlan, Packing, most_segments, packed_in_order, tightest, with_prefixes
from radit_jax.data.plan import Order, PlannedBatch, RunPlan, epoch_order, plan_in_order, row_multiple
from radit_jax.errors import UserError
from radit_jax.models.attention import AttentionChoice, attention_choice
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.lora import add_lora, body_of, quantize_base, rebased
from radit_jax.models.peft_files import fused_targets, save_adapter
from radit_jax.plan.chips import peak_flops
from radit_jax.plan.flops import ADAPTED, TRAINED
from radit_jax.progress import Progress
from radit_jax.training.loop import Batch, train
from radit_jax.training.sinks import check_sinks
from radit_jax.training.step import Objective
from radit_jax.verbs.examine import Examine
from radit_jax.verbs.inspect import describe_batch
from radit_jax.verbs.live import LivePage, tuning_so_far

RESULT = "result.json"
#: What a tuning leaves beside its checkpoints; a kill meanwhile leaves a part of it under another name.
_EXPORTS = ("generator", "query_encoder", "adapter")
R = TypeVar("R")
TuningVerb = TrainGeneratorConfig | TrainRetrieverConfig


class Load(Protocol):
  """Reads a verb's model, onto a mesh or the default device, in one type or that of the files; or leaves it in them."""

  def __call__(self, *, mesh: Mesh | None, param_dtype: str | None, abstract: bool = False) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Plans:
  """Batches of a tuning, and of its dev set.

  Attributes:
    train: position is the step number.
    dev: every dev example once, in at most two row lengths.
    dev_size: examples of a dev batch over all hosts.
    segments: of the row that has most; of padded rows a prompt and its padding.
  """

  train: RunPlan | PackedPlan
  dev: Sequence[PlannedBatch]
  dev_size: int
  segments: int = 2


def passages_of(train: RetrievedStore, dev: RetrievedStore) -> str:
  """Fingerprint of the passages that training and dev examples were retrieved from.

  Raises:
    UserError: they are not the same.
  """
  one, other = train.manifest["passages"], dev.manifest["passages"]
  if one != other:
    raise UserError(
      f"{dev.path}: retrieved from the passages {other[:12]}, {train.path} from {one[:12]}; "
      "retrieve both with the same index"
    )
  return str(one)


def make_plans(
  lengths: Int[np.ndarray, "n"],
  dev_lengths: Int[np.ndarray, "m"],
  *,
  loop: LoopConfig,
  mesh: Mesh,
  mixture: Mixture | None = None,
) -> Plans:
  """Plans a tuning from the row lengths of its examples.

  Args:
    lengths: tokens of the longest row of each training example.
    dev_lengths: of each dev example.
    loop: steps, batch size and seed.
    mesh: its row axes divide every batch.
    mixture: of the training examples; None draws each once an epoch.
  """
  multiple = row_multiple(jax.default_backend())
  plan = RunPlan(
    lengths,
    batch_size=loop.batch_size,
    seed=loop.seed,
    num_steps=loop.steps,
    epochs=loop.epochs,
    bucket_multiple=multiple,
    order=None if mixture is None else mixture.order(loop.seed),
  )
  dev_size = _dev_size(loop, len(dev_lengths), mesh)
  dev = plan_in_order(dev_lengths, batch_size=dev_size, bucket_multiple=multiple, max_buckets=2)
  return Plans(plan, dev, dev_size)


def make_packed_plans(
  lengths: RowLengths,
  dev_lengths: RowLengths,
  row_tokens: int,
  *,
  loop: LoopConfig,
  mesh: Mesh,
  mixture: Mixture | None = None,
  share: bool = False,
) -> Plans:
  """Plans a tuning whose rows hold several prompts each, ``loop.batch_size`` examples a step as ever.

  Args:
    lengths: of the training examples.
    dev_lengths: of the dev examples.
    row_tokens: length of the rows, rounded up to what the device wants.
    loop: steps, batch size and seed.
    mesh: its row axes divide every batch.
    mixture: see :func:`make_plans`.
    share: prompts of a step that begin alike share a row, see :attr:`radit_jax.models.decoder.Decoder.shares_prefixes`.

  Raises:
    UserError: a prompt longer than a row.
  """
  order = epoch_order(len(lengths.each), loop.seed) if mixture is None else mixture.order(loop.seed)
  plan = PackedPlan(
    packing(lengths, row_tokens, loop.batch_size, mesh, order, parts=loop.accumulate, share=share),
    seed=loop.seed,
    num_steps=loop.steps,
    epochs=loop.epochs,
    order=order,
  )
  dev_size = _dev_size(loop, len(dev_lengths.each), mesh)
  as_stored = epoch_order(len(dev_lengths.each), None)
  dev = packed_in_order(packing(dev_lengths, row_tokens, dev_size, mesh, as_stored, share=share))
  return Plans(plan, dev, dev_size, max(plan.segments, most_segments(dev)))


def _dev_size(loop: LoopConfig, count: int, mesh: Mesh) -> int:
  """Examples of a dev batch: a microbatch's, as it goes through the model whole while weights and moments stay."""
  return sharding.round_up_rows(min(loop.batch_size // loop.accumulate, count), mesh)


def packing(
  lengths: RowLengths,
  row_tokens: int,
  batch_size: int,
  mesh: Mesh,
  order: Order,
  *,
  parts: int = 1,
  share: bool = False,
) -> Packing:
  """How a verb's examples are packed in the order given, see :class:`radit_jax.data.packing.Packing`.

  Rows hold up to ``row_tokens``: exactly as many on a TPU, whose attention takes large blocks of one size.
  """
  multiple = row_multiple(jax.default_backend())
  packing = Packing(
    lengths.each,
    lengths.answers,
    -(-row_tokens // multiple) * multiple,
    batch_size,
    shards=sharding.row_shards(mesh),
    parts=parts,
  )
  if share and lengths.prefixes is not None:
    packing = with_prefixes(packing, lengths.prefixes, order)
  return packing if jax.default_backend() == "tpu" else tightest(packing, multiple, order)


def check_batch(loop: LoopConfig, mesh: Mesh) -> None:
  """Refuses a batch that the row axes do not divide, or whose microbatches they do not.

  Raises:
    UserError: naming both numbers.
  """
  sharding.check_rows(loop.batch_size, mesh)
  shards = sharding.row_shards(mesh)
  if loop.batch_size // loop.accumulate % shards:
    raise UserError(
      f"microbatches of {loop.batch_size // loop.accumulate} examples (batch_size {loop.batch_size} in accumulate "
      f"{loop.accumulate}) over {shards} shards of rows: choose a batch size that is a multiple of "
      f"{loop.accumulate * shards}"
    )


def finished_result(
  kind: type[R], export: str, workdir: str, verb: str, wanted: dict[str, Any], loop: LoopConfig
) -> R | None:
  """The result of the run in ``workdir`` if it got to the end of this loop; None if there is anything left to do.

  Args:
    kind: dataclass of the result.
    export: its field that names the exported model, and the name of that directory in ``workdir``.
    workdir: of the run.
    verb: see :func:`radit_jax.runs.open_run`.
    wanted: recipe of the call.
    loop: more or fewer steps than those of the finished run continue it.

  Raises:
    UserError: the directory belongs to another verb or recipe, or one of several processes does not see it.
  """
  root = files.location(workdir)
  hosts.check_shared(root)
  if not (root / RESULT).exists():
    return None
  runs.open_run(root, verb, wanted)
  stored = files.read_json(root / RESULT)
  if stored["loop"] != dataclasses.asdict(loop):
    return None
  fields = stored["result"]
  # The directory may have been moved since; JSON has no tuples.
  return kind(**{**fields, export: str(root / export), "programs": tuple(fields["programs"])})


def card_figures(figures: dict[str, Any]) -> list[tuple[str, str]]:
  """The loop's figures as a model card names them."""
  return [
    ("optimizer steps", str(figures["steps"])),
    ("step exported", str(figures["best_step"])),
    ("dev loss, nats", f"{figures['best_dev_loss']:.4f}"),
    ("steps left out as not finite", str(figures["nonfinite_steps"])),
  ]


def write_result(workdir: str, loop: LoopConfig, result: Any) -> None:
  """Records that the run got to the end of this loop, for :func:`finished_result`."""
  with hosts.one_writes() as mine:
    if mine:
      done = {"loop": dataclasses.asdict(loop), "result": dataclasses.asdict(result)}
      files.write_json(files.location(workdir) / RESULT, done)


def write_first_batch(workdir: str | pathlib.Path, first_batch: Callable[[], Batch], tokenizer: Any) -> None:
  """Writes ``first_batch.json`` and ``first_batch.txt`` into ``workdir``, unless an earlier call did.

  Args:
    workdir: of the run.
    first_batch: gives it, the rows of all processes.
    tokenizer: the one the batches were made with.
  """
  stem = files.location(workdir) / "first_batch"
  with hosts.one_writes() as mine:
    if mine and not stem.with_suffix(".json").exists():
      describe_batch(*first_batch(), tokenizer, stem)


def load_for_tuning(load: Load, lora: LoraConfig, *, mesh: Mesh, seed: int, master_dtype: Dtype = "float32") -> Any:
  """The model to train: the whole one in ``master_dtype``, or a frozen one with trained corrections beside its kernels.

  Args:
    load: gives the model of the files.
    lora: rank 0 for the whole model.
    mesh: what is trained, and a base in floats, are placed on it; a base to be quantised stays on the host until then,
      as it may be larger than the devices.
    seed: of the random A.
    master_dtype: of the whole model; corrections are float32.

  Raises:
    UserError: see :func:`radit_jax.models.lora.add_lora`; or heads that the mesh does not divide.
  """
  if not lora.rank:
    return load(mesh=mesh, param_dtype=master_dtype)
  if lora.base == "float":
    base = load(mesh=mesh, param_dtype=None)
  else:
    with jax.default_device(_host()):
      plain = load(mesh=None, param_dtype=None)
      sharding.check_heads(mesh, **body_of(plain).config.heads)
      base = quantize_base(plain, lora.base)
  return add_lora(base, lora, rngs=nnx.Rngs(seed))


def check_lora(config: DecoderConfig | BertConfig, lora: LoraConfig) -> None:
  """Finds out before anything is read or trained whether a model of this shape can be adapted like this.

  Raises:
    UserError: as in :func:`load_for_tuning`.
  """

  def adapt() -> Any:
    rngs = nnx.Rngs(0)
    body = Bert(config, rngs=rngs) if isinstance(config, BertConfig) else Decoder(config, rngs=rngs)
    return add_lora(body if lora.base == "float" else quantize_base(body, lora.base), lora, rngs=rngs)

  if lora.rank:
    nnx.eval_shape(adapt)


def export_tuned(model: Any, load: Load, config: TuningVerb, *, base: str) -> Any:
  """The model to save, which merges its corrections; they alone are written to ``adapter/`` in the work directory if
  PEFT can hold them.

  Args:
    model: what training left.
    load: as in :func:`load_for_tuning`; what corrected a quantised base is merged into the weights of the files.
    config: of the verb.
    base: name of the model that was adapted.
  """
  if not config.lora.rank:
    return model
  if not fused_targets(model):
    save_adapter(model, files.location(config.workdir) / "adapter", base=base)
  if config.lora.base == "float":
    return model
  return rebased(model, load(mesh=None, param_dtype=None, abstract=True))


def _attention(model: Any) -> AttentionChoice:
  """What a generator or an encoder attends with on the mesh in force."""
  body = getattr(model, "body", model)
  return body.attention() if isinstance(body, Decoder) else attention_choice(None, causal=False)


def _host() -> jax.Device:
  return jax.local_devices(backend="cpu")[0]


def tune(
  model: Any,
  objective: Objective,
  batches: Callable[[int], Iterator[Batch]],
  dev_batches: Callable[[], Iterable[Batch]],
  *,
  first_batch: Callable[[], Batch],
  config: TuningVerb,
  verb: str,
  wanted: dict[str, Any],
  total_steps: int,
  tokenizer: Any,
  mesh: Mesh,
  stage: str,
  progress: Progress,
  forward_flops: Callable[[Any], float] | None = None,
  examine: Examine | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Takes the directory, writes the first batch, and trains.

  Args:
    model: from :func:`load_for_tuning`.
    objective: see :data:`radit_jax.training.step.Objective`.
    batches: from a start step; see :func:`radit_jax.training.loop.train`.
    dev_batches: to pick the best checkpoint on.
    first_batch: the first one of ``batches``, with the rows of all processes.
    config: of the verb: its ``workdir``, ``loop`` and ``optimizer``.
    verb: see :func:`radit_jax.runs.open_run`.
    wanted: recipe of the call.
    total_steps: steps of the whole run.
    tokenizer: the one the batches were made with.
    mesh: the model lies on it.
    stage: name shown in the progress.
    progress: see :class:`radit_jax.progress.Progress`.
    forward_flops: model FLOPs of a batch of NumPy arrays, forward only.
    examine: see :func:`radit_jax.training.loop.train`.

  Returns:
    The model of the best checkpoint, and the fields that every tuning's result has.

  Raises:
    UserError: the directory belongs to another verb or recipe.
    TrainingError: repeated non-finite steps.
    Preempted: SIGTERM; the state is saved.
  """
  with jax.set_mesh(mesh):
    choice = _attention(model)
  check_sinks(config.loop, config.workdir)
  runs.open_run(config.workdir, verb, wanted, config=config, attention=dataclasses.asdict(choice))
  with hosts.one_writes() as mine:
    if mine and not files.in_bucket(config.workdir):
      for export in _EXPORTS:
        files.remove_leftovers(pathlib.Path(config.workdir) / export)
  if not config.redact:
    write_first_batch(config.workdir, first_batch, tokenizer)
  page = LivePage(config.workdir, verb, progress, lambda: tuning_so_far(config.workdir, stage))
  turns = ADAPTED if config.lora.rank else TRAINED
  flops = None if forward_flops is None else lambda batch: turns * forward_flops(batch)
  peak = peak_flops(jax.devices()[0].device_kind)
  trained = train(
    model,
    objective,
    batches,
    total_steps=total_steps,
    loop=config.loop,
    optimizer=config.optimizer,
    mesh=mesh,
    workdir=config.workdir,
    dev_batches=dev_batches,
    examine=examine,
    flops=flops,
    peak_flops=None if peak is None else peak * mesh.size,
    stage=stage,
    progress=page,
  )
  assert trained.best_dev_loss is not None
  if hosts.is_first():
    page.write(f"{trained.steps:,} steps; step {trained.best_step:,} was the best one.")
  figures = {f.name: getattr(trained, f.name) for f in dataclasses.fields(trained) if f.name != "model"}
  return trained.model, figures
