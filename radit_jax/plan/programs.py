"""The programs of a run with the shapes they would have on a slice: the verbs' own functions, given no weights."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from radit_jax.config import PlanConfig, Remat, TuningConfig
from radit_jax.config.shared import DEV_QUESTIONS_AT_ONCE
from radit_jax.inference.decode import greedy_decode, prefill, score_candidates
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.hf_weights import held_dtype
from radit_jax.models.lora import add_lora, quantize_base
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch
from radit_jax.plan import flops
from radit_jax.retrieval.embed import encode_batch
from radit_jax.sharding import parameter_shardings, row_sharding, row_shards
from radit_jax.training.step import (
  Objective,
  TrainState,
  combine,
  evaluate_step,
  lsr_objective,
  make_optimizer,
  microbatches,
  new_state,
  partition,
  ralt_objective,
  score_step,
  train_step,
)

#: Rows on a TPU are a multiple of this long, as :func:`radit_jax.data.plan.row_multiple` has it there.
ROW_MULTIPLE = 128
_PASSAGE_MULTIPLE = 32  # of the encoder's rows
#: Type of weights in published files.
FILE_DTYPE = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Models:
  """Shapes of the two models."""

  generator: DecoderConfig
  encoder: BertConfig | DecoderConfig
  embedding: EmbeddingConfig


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a run.

  Attributes:
    name: as the table shows it.
    compile: makes the executable, with the mesh in force.
    parameters: shapes with shardings: weights, trained and frozen.
    optimizer: the same, moments.
    flops: model FLOPs of a call, all chips together.
    passes: times the weights are read in a call.
    tokens: of all rows, padding included.
    activations_bytes: what the forward pass keeps for the backward pass, per chip and microbatch, before the compiler;
      part of the temporaries.
    update_bytes: what the optimizer reads and writes, per chip.
    beside: those of parameters and optimizer that the program is not given, and that lie on the chip meanwhile.
  """

  name: str
  compile: Callable[[], Any]
  parameters: Any
  optimizer: Any
  flops: float
  passes: int
  tokens: int
  activations_bytes: float = 0.0
  update_bytes: float = 0.0
  beside: Any = ()


def ralt(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """The step of generator tuning."""
  tuning = config.generator_tuning
  batch = _contexts(config, mesh, tuning.loop.batch_size, config.k_train, tuning.loop.accumulate)
  model, count = _generator(config, models), _context_flops(config, models, batch)
  return _tuning("RALT step", model, tuning, batch, ralt_objective, count, batch.tokens.size, mesh)


def ralt_dev(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """The loss of a dev batch, which has as many examples as a microbatch, beside all that the tuning holds."""
  loop = config.generator_tuning.loop
  batch = _contexts(config, mesh, loop.batch_size // loop.accumulate, config.k_train)
  model, count = _generator(config, models), _context_flops(config, models, batch)
  return _dev_loss(
    "RALT dev loss", model, config.generator_tuning, batch, ralt_objective, count, batch.tokens.size, mesh
  )


def score(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """The forward pass that scores k passages of each question, as if no two questions had one in common."""
  generator = _read_only(models.generator, config, mesh)
  length = _up(config.pack_tokens or 2 * config.prompt.max_tokens, ROW_MULTIPLE)
  rows = _up(math.ceil(config.score_batch_size * config.k * config.prompt_tokens / length), row_shards(mesh))
  room = _up(config.prompt.max_answer_tokens + config.answer_tokens * length // config.prompt_tokens, 4)
  whole, answer = _rows(mesh, (rows, length)), _rows(mesh, (rows, room))
  prompts = _rows(mesh, (rows, -(-length // config.prompt_tokens)), jnp.bool_)
  shared = whole if models.generator.window is None else None
  batch = ParallelContextBatch(whole, whole, whole, answer, answer, answer, prompts, shared)
  count = flops.body_flops(models.generator, rows * length, _keys(config))
  count += flops.head_flops(models.generator, batch.answer_tokens.size)
  return Program(
    "scoring", lambda: score_step.lower(generator, batch).compile(), generator, (), count, 1, rows * length
  )


def lsr(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """The step of retriever tuning."""
  tuning = config.retriever_tuning
  batch, count = _queries(config, models, mesh, tuning.loop.batch_size)
  model = functools.partial(_encoder, models, remat=tuning.remat)
  return _tuning("LSR step", model, tuning, batch, _lsr_objective(), count, batch.query_tokens.size, mesh)


def lsr_dev(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """As :func:`ralt_dev`, of retriever tuning."""
  tuning = config.retriever_tuning
  batch, count = _queries(config, models, mesh, tuning.loop.batch_size // tuning.loop.accumulate)
  model = functools.partial(_encoder, models, remat=tuning.remat)
  return _dev_loss("LSR dev loss", model, tuning, batch, _lsr_objective(), count, batch.query_tokens.size, mesh)


def _queries(config: PlanConfig, models: Models, mesh: Mesh, size: int) -> tuple[LSRBatch, float]:
  """Shapes of a batch of so many questions, and the FLOPs of its forward pass."""
  width = models.embedding.dimensions or models.encoder.hidden_size
  length = _length(config.query_tokens, models)
  batch = LSRBatch(
    query_tokens=_rows(mesh, (size, length)),
    query_mask=_rows(mesh, (size, length), jnp.bool_),
    passage_embeddings=_rows(mesh, (size, config.k, width), jnp.float32),
    log_likelihood=_rows(mesh, (size, config.k), jnp.float32),
    num_tokens=_rows(mesh, (size, config.k)),
    context_mask=_rows(mesh, (size, config.k), jnp.bool_),
    positive=_rows(mesh, (size, config.k), jnp.bool_),
    passage_rows=_rows(mesh, (size, config.k)),
  )
  return batch, flops.body_flops(models.encoder, size * length, length)


def _lsr_objective() -> Objective:
  return functools.partial(
    lsr_objective, score_temperature=1.0, lm_temperature=0.01, score="token_prob", direction="retriever_to_lm"
  )


def encode(config: PlanConfig, models: Models, mesh: Mesh) -> Program:
  """One call of the passage encoder."""
  encoder = _on_mesh(nnx.eval_shape(functools.partial(_encoder, models)), mesh)
  size = _up(config.encode_batch_size, row_shards(mesh))
  length = min(models.embedding.max_tokens, _up(config.passage_tokens, _PASSAGE_MULTIPLE))
  batch = _rows(mesh, (size, length)), _rows(mesh, (size, length), jnp.bool_)
  count = flops.body_flops(models.encoder, size * length, length)
  return Program(
    "encoding", lambda: encode_batch.lower(encoder, *batch).compile(), encoder, (), count, 1, size * length
  )


def answers(config: PlanConfig, models: Models, mesh: Mesh) -> list[Program]:
  """What answers a batch of questions: prompts read once, decoded, and every candidate weighed."""
  generator = _read_only(models.generator, config, mesh)
  return _answering(config, models.generator, generator, mesh, questions=config.answer_batch_size, k=config.k)


def dev_answers(config: PlanConfig, models: Models, mesh: Mesh) -> list[Program]:
  """The same for dev questions, from as many passages as the tuning trains on, beside all that it holds."""
  _, state, frozen = _held(_generator(config, models), config.generator_tuning, mesh)
  questions = min(DEV_QUESTIONS_AT_ONCE, config.generator_tuning.loop.asked_questions or DEV_QUESTIONS_AT_ONCE)
  made = _answering(config, models.generator, combine(state.model, frozen), mesh, questions=questions, k=config.k_train)
  moments = state.optimizer_state
  return [dataclasses.replace(p, name=f"dev: {p.name}", optimizer=moments, beside=(p.beside, moments)) for p in made]


def _answering(
  config: PlanConfig, shape: DecoderConfig, generator: Any, mesh: Mesh, *, questions: int, k: int
) -> list[Program]:
  questions = _up(questions, row_shards(mesh))
  rows, length = questions * k, _up(config.prompt.max_tokens, ROW_MULTIPLE)
  room = _up(config.prompt.max_answer_tokens + 1, 4)
  tokens, lengths = _rows(mesh, (rows, length)), _rows(mesh, (rows,))
  candidates, counts = _rows(mesh, (questions, k + 1, room)), _rows(mesh, (questions, k + 1))

  read = flops.body_flops(shape, rows * length, length / 2) + flops.head_flops(shape, rows)
  again = flops.body_flops(shape, rows * room, length) + flops.head_flops(shape, rows * room)

  @functools.cache
  def reading() -> Any:
    return prefill.lower(generator, tokens, lengths, max_new_tokens=room).compile()

  def prefilled() -> Any:
    # As the first program leaves the cache on the slice, the other two take it.
    shapes = jax.eval_shape(functools.partial(prefill, max_new_tokens=room), generator, tokens, lengths)
    return jax.tree.map(_placed, shapes, reading().output_shardings)

  def decoding() -> Any:
    return greedy_decode.lower(generator, prefilled(), max_new_tokens=room, end_ids=(2,)).compile()

  def weighing() -> Any:
    used = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return score_candidates.lower(generator, prefilled(), candidates, counts, used).compile()

  return [
    Program("reading prompts", reading, generator, (), read, 1, rows * length, beside=generator.head),
    Program("decoding", decoding, generator, (), again, room, rows * room),
    # Nearly every passage may bring an answer of its own.
    Program("weighing answers", weighing, generator, (), again * k, k, rows * room * k),
  ]


def rows_needed(config: PlanConfig, examples: int, k: int) -> int:
  """Rows that so many examples of the mean length fill, before rounding to what the mesh divides."""
  return (
    examples * k if config.pack_tokens is None else math.ceil(examples * k * config.prompt_tokens / row_tokens(config))
  )


def row_tokens(config: PlanConfig) -> int:
  """Length of the generator's rows on a TPU."""
  return _up(config.pack_tokens or config.prompt.max_tokens, ROW_MULTIPLE)


def _tuning(
  name: str,
  model: Callable[[], Any],
  tuning: TuningConfig,
  batch: Any,
  objective: Objective,
  forward_flops: float,
  tokens: int,
  mesh: Mesh,
) -> Program:
  optimizer, state, frozen = _held(model, tuning, mesh)
  passes = 2 if tuning.remat == "none" else 3

  def compiled() -> Any:
    update, parts = optimizer.update, tuning.loop.accumulate
    return train_step.lower(state, frozen, batch, objective=objective, update=update, accumulate=parts).compile()

  return Program(
    name,
    compiled,
    (state.model, frozen),
    state.optimizer_state,
    forward_flops * (flops.ADAPTED if tuning.lora.rank else flops.TRAINED),
    passes * tuning.loop.accumulate,
    tokens,
    activations_bytes=_kept_bytes(state.model, frozen, batch, objective, tuning.loop.accumulate, mesh),
    update_bytes=2.0 * (chip_bytes(state.optimizer_state) + chip_bytes(state.model)),
  )


def _dev_loss(
  name: str,
  model: Callable[[], Any],
  tuning: TuningConfig,
  batch: Any,
  objective: Objective,
  forward_flops: float,
  tokens: int,
  mesh: Mesh,
) -> Program:
  _, state, frozen = _held(model, tuning, mesh)
  whole, moments = combine(state.model, frozen), state.optimizer_state
  return Program(
    name,
    lambda: evaluate_step.lower(whole, batch, objective=objective).compile(),
    whole,
    moments,
    forward_flops,
    1,
    tokens,
    beside=moments,
  )


def _held(
  model: Callable[[], Any], tuning: TuningConfig, mesh: Mesh
) -> tuple[optax.GradientTransformation, TrainState, Any]:
  """What a tuning holds all the time: its state, and the frozen part of the model."""
  optimizer = make_optimizer(tuning.optimizer, tuning.loop.steps or 1000)
  trained, frozen = partition(nnx.eval_shape(lambda: _for_tuning(model, tuning)))
  state = jax.eval_shape(functools.partial(new_state, optimizer=optimizer), trained)
  return optimizer, _on_mesh(state, mesh), _on_mesh(frozen, mesh)


def _for_tuning(model: Callable[[], Any], tuning: TuningConfig) -> Any:
  """As ``radit_jax.verbs.tuning.load_for_tuning`` makes it: masters of their type, or a frozen base in the files'."""
  made, lora = model(), tuning.lora
  base = jax.tree.map(lambda x: x.astype(_files_dtype(tuning)), made)
  if not lora.rank:
    return base
  return add_lora(base if lora.base == "float" else quantize_base(base, lora.base), lora, rngs=nnx.Rngs(1))


def _kept_bytes(trained: Any, frozen: Any, batch: Any, objective: Objective, accumulate: int, mesh: Mesh) -> float:
  """Residuals of one microbatch that are not weights, spread over the row axes."""

  def kept(trained: Any, frozen: Any, batch: Any) -> Any:
    part = jax.tree.map(lambda x: x[0], microbatches(batch, accumulate))
    return jax.vjp(lambda t: objective(combine(t, frozen), part)[0], trained)[1]

  with jax.set_mesh(mesh):
    residuals = jax.tree.leaves(jax.eval_shape(kept, trained, frozen, batch))
  weights = Counter((x.shape, x.dtype) for x in jax.tree.leaves((trained, frozen)))
  total = 0.0
  for x in residuals:
    if weights[(x.shape, x.dtype)]:
      weights[(x.shape, x.dtype)] -= 1
    else:
      total += _bytes(x.size, x.dtype)
  return total / row_shards(mesh)


def _generator(config: PlanConfig, models: Models) -> Callable[[], Decoder]:
  dtype, remat = jnp.dtype(config.dtype), config.generator_tuning.remat
  return lambda: Decoder(models.generator, rngs=nnx.Rngs(0), dtype=dtype, remat=remat)


def _encoder(models: Models, *, remat: Remat = "none") -> TextEncoder:
  body = models.encoder
  kind = Bert if isinstance(body, BertConfig) else Decoder
  return TextEncoder(kind(body, rngs=nnx.Rngs(0), remat=remat), models.embedding)  # type: ignore[arg-type]


def _read_only(shape: DecoderConfig, config: PlanConfig, mesh: Mesh) -> Any:
  """As ``load_generator(..., forward_only=True)`` reads what the tuning left."""
  model = nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0), dtype=jnp.dtype(config.dtype)))
  left = jnp.dtype(_files_dtype(config.generator_tuning))

  def read(x: nnx.Variable[Any]) -> nnx.Variable[Any]:
    return x.replace(jax.ShapeDtypeStruct(x.shape, held_dtype(x, left, config.dtype)))

  return _on_mesh(jax.tree.map(read, model, is_leaf=lambda x: isinstance(x, nnx.Variable)), mesh)


def _files_dtype(tuning: TuningConfig) -> Any:
  """Of the model that a tuning holds and leaves: that of its masters, or that of the files with corrections merged."""
  return FILE_DTYPE if tuning.lora.rank else tuning.optimizer.master_dtype


def _contexts(config: PlanConfig, mesh: Mesh, examples: int, k: int, accumulate: int = 1) -> ParallelContextBatch:
  """Shapes of a batch of examples with k passages each, packed if the run packs."""
  length = row_tokens(config)
  rows = _up(rows_needed(config, examples, k), row_shards(mesh) * accumulate)
  if config.pack_tokens is None:
    room = config.prompt.max_answer_tokens
  else:  # as Packing has it: the longest answer beside those of an average row
    room = _up(config.prompt.max_answer_tokens + config.answer_tokens * length // config.prompt_tokens, 4)
  whole, answer = _rows(mesh, (rows, length)), _rows(mesh, (rows, room))
  return ParallelContextBatch(whole, whole, whole, answer, answer, answer, _rows(mesh, (examples, k), jnp.bool_))


def _context_flops(config: PlanConfig, models: Models, batch: ParallelContextBatch) -> float:
  """Forward pass over a batch of :func:`_contexts`."""
  count = flops.body_flops(models.generator, batch.tokens.size, _keys(config))
  return count + flops.head_flops(models.generator, batch.answer_tokens.size)


def _keys(config: PlanConfig) -> float:
  """Keys a token reads on average: half of its own prompt."""
  return config.prompt_tokens / 2


def _length(tokens: int, models: Models) -> int:
  return min(models.embedding.max_tokens, _up(tokens, ROW_MULTIPLE))


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))


def _on_mesh(tree: Any, mesh: Mesh) -> Any:
  return jax.tree.map(_placed, tree, parameter_shardings(tree, mesh))


def _placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _up(number: int, multiple: int) -> int:
  return -(-number // multiple) * multiple


def chip_bytes(tree: Any) -> float:
  """Bytes of a tree on one chip, without the padding of tiles."""
  return sum(_bytes(math.prod(x.sharding.shard_shape(x.shape)), x.dtype) for x in jax.tree.leaves(tree))


def _bytes(count: int, dtype: Any) -> float:
  """Of so many numbers: chips pack two of 4 bits into the byte that each takes in NumPy."""
  return count * jax.dtypes.itemsize_bits(dtype) / 8
