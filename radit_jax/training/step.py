"""One optimizer step for every tuning: an objective gives a sum and a count, the step normalises once and updates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from radit_jax import losses, sharding
from radit_jax.config import OptimizerConfig
from radit_jax.errors import UserError
from radit_jax.models.kernels import is_matrix
from radit_jax.parallel_context import Generator, LSRBatch, ParallelContextBatch, answer_log_likelihoods, row_axes
from radit_jax.training.diagnostics import lsr_figures
from radit_jax.training.rounding import apply_updates

#: Sums over the examples of a batch, by name: what is to be known of a step besides its loss.
Watched = dict[str, Array]
#: ``objective(model, batch) -> (sum, count)``, float32 scalars: the loss is sum / count over the global batch. It may
#: give a third, see :data:`Watched`, whose sums are divided by the same count.
Objective = Callable[[Any, Any], tuple[Array, Array] | tuple[Array, Array, Watched]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
  """Queries and their own passages: every other passage of the batch is a negative.

  Attributes:
    query_tokens: ``[B, T]`` int32.
    query_mask: ``[B, T]`` bool.
    passage_tokens: ``[B, S]`` int32.
    passage_mask: ``[B, S]`` bool.
  """

  query_tokens: Any
  query_mask: Any
  passage_tokens: Any
  passage_mask: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a checkpoint holds: only what is trained.

  Attributes:
    model: the trained part of the model, see :func:`partition`.
    optimizer_state: its moments.
    nonfinite_steps: int32, the steps that changed nothing else.
    nonfinite_in_a_row: int32, those since the last one that did: a run that is cut stops where it would have.
  """

  model: Any
  optimizer_state: Any
  nonfinite_steps: Any
  nonfinite_in_a_row: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepFigures:
  """Scalars of one step, still on the device.

  Attributes:
    loss_sum: float32, sum of the objective over the global batch.
    count: float32, what it is divided by (answer tokens, or questions).
    gradient_norm: float32, global norm before clipping.
    finite: bool; False means that the step was left out.
    nonfinite_steps: int32, such steps so far.
    nonfinite_in_a_row: int32, such steps since the last other one.
    tokens: int32, tokens of the global batch that are no padding; of a retriever's, those of its questions.
    watched: float32 sums over the global batch, see :data:`Watched`.
  """

  loss_sum: Any
  count: Any
  gradient_norm: Any
  finite: Any
  nonfinite_steps: Any
  nonfinite_in_a_row: Any
  tokens: Any
  watched: Any


def ralt_objective(generator: Generator, batch: ParallelContextBatch) -> tuple[Array, Array]:
  """Eq. 3 per answer token. On rows without passages it is plain instruction tuning, on plain text pre-training."""
  out = answer_log_likelihoods(generator, batch)
  nll, tokens = losses.ralt_loss(out.log_likelihood, out.num_tokens, where=batch.context_mask)
  return jnp.sum(nll), jnp.sum(tokens).astype(jnp.float32)


def _passage_scores(query_encoder: Callable[..., Array], batch: LSRBatch) -> Array:
  """s(q, c) of eq. 1 less its mean over the passages of q, ``[B, K]`` float32, 0 where there is no passage.

  p_R is the same for it. What a question's passages have in common is most of their scores, and would take the digits
  in which they differ. HIGHEST, or a TPU would multiply in bfloat16.
  """
  queries = query_encoder(batch.query_tokens, batch.query_mask).astype(jnp.float32)
  # Only the query encoder learns (the paper, section 2.3), even where the passages were encoded in the same graph.
  passages = jax.lax.stop_gradient(batch.passage_embeddings)
  real = batch.context_mask[..., None]
  common = jnp.mean(passages, axis=1, keepdims=True, where=real)
  apart = jnp.where(real, passages - common, 0.0)
  return jnp.einsum("be,bke->bk", queries, apart, precision=jax.lax.Precision.HIGHEST)


def lsr_objective(
  query_encoder: Callable[..., Array],
  batch: LSRBatch,
  *,
  score_temperature: float,
  lm_temperature: float,
  score: losses.LsrScore,
  direction: losses.LsrDirection,
) -> tuple[Array, Array]:
  """Eqs. 4-5 per question that has a passage."""
  total, count, _ = watched_lsr_objective(
    query_encoder,
    batch,
    score_temperature=score_temperature,
    lm_temperature=lm_temperature,
    score=score,
    direction=direction,
  )
  return total, count


def watched_lsr_objective(
  query_encoder: Callable[..., Array],
  batch: LSRBatch,
  *,
  score_temperature: float,
  lm_temperature: float,
  score: losses.LsrScore,
  direction: losses.LsrDirection,
) -> tuple[Array, Array, Watched]:
  """The same, with the figures of :func:`radit_jax.training.diagnostics.lsr_figures`."""
  targets = losses.lsr_log_targets(
    batch.log_likelihood, batch.num_tokens, temperature=lm_temperature, score=score, where=batch.context_mask
  )
  scores = _passage_scores(query_encoder, batch)
  values = losses.lsr_loss(
    scores, targets, where=batch.context_mask, temperature=score_temperature, direction=direction
  )
  figures = lsr_figures(
    scores,
    targets,
    batch.log_likelihood / jnp.maximum(batch.num_tokens, 1),
    batch.passage_embeddings,
    where=batch.context_mask,
    temperature=score_temperature,
  )
  count = jnp.sum(jnp.any(batch.context_mask, axis=-1)).astype(jnp.float32)
  return jnp.sum(values), count, {name: jnp.sum(value) for name, value in figures.items()}


def emdr2_objective(
  query_encoder: Callable[..., Array], batch: LSRBatch, *, score_temperature: float
) -> tuple[Array, Array]:
  """EMDR² per question that has a passage."""
  values = losses.emdr2_loss(
    _passage_scores(query_encoder, batch),
    batch.log_likelihood,
    where=batch.context_mask,
    temperature=score_temperature,
  )
  return jnp.sum(values), jnp.sum(jnp.any(batch.context_mask, axis=-1)).astype(jnp.float32)


def contrastive_objective(
  query_encoder: Callable[..., Array], batch: LSRBatch, *, score_temperature: float
) -> tuple[Array, Array]:
  """Gold passage against every passage of the batch; a copy of it in another question's list is no negative."""
  queries = query_encoder(batch.query_tokens, batch.query_mask).astype(jnp.float32)
  examples, k = batch.context_mask.shape
  candidates = jax.lax.stop_gradient(batch.passage_embeddings).reshape(examples * k, -1)
  scores = jnp.einsum("be,ne->bn", queries, candidates, precision=jax.lax.Precision.HIGHEST)
  rows = batch.passage_rows.reshape(-1)
  gold = jnp.where(batch.positive, batch.passage_rows, -1)  # [B, K]
  positive = jnp.any(gold[:, :, None] == rows[None, None, :], axis=1)  # [B, B*K]
  where = jnp.broadcast_to(batch.context_mask.reshape(1, -1), scores.shape)
  values = losses.contrastive_loss(scores, positive & where, where=where, temperature=score_temperature)
  return jnp.sum(values), jnp.sum(jnp.any(positive & where, axis=-1)).astype(jnp.float32)


def pair_objective(encoders: Any, batch: PairBatch) -> tuple[Array, Array]:
  """Contrastive warm start of both sides of a DualEncoder: passage b is positive for query b, negative for the rest."""
  queries = encoders.encode_queries(batch.query_tokens, batch.query_mask)
  passages = encoders.encode_passages(batch.passage_tokens, batch.passage_mask)
  scores = jnp.einsum("be,ne->bn", queries, passages, precision=jax.lax.Precision.HIGHEST)
  real = jnp.any(batch.query_mask, axis=-1)
  positive = jnp.eye(scores.shape[0], dtype=bool) & real[:, None]
  where = jnp.broadcast_to(real[None], scores.shape)
  values = losses.contrastive_loss(scores, positive, where=where, temperature=encoders.score_temperature)
  return jnp.sum(values), jnp.sum(real).astype(jnp.float32)


def partition(model: Any) -> tuple[Any, Any]:
  """A model's trained and its frozen part, each the whole model with None where the other has a leaf.

  A Variable that is no Param is frozen: what quantised or low-rank kernels stand on, or a BERT pooler that no
  embedding goes through. Leaves that are no Variables are trained.
  """

  def keep(trained: bool) -> Any:
    return jax.tree.map(lambda leaf: leaf if _is_trained(leaf) == trained else None, model, is_leaf=_is_variable)

  return keep(True), keep(False)


def combine(trained: Any, frozen: Any) -> Any:
  """The whole model again."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None or _is_variable(x)
  )


def _is_variable(leaf: Any) -> bool:
  return isinstance(leaf, nnx.Variable)


def _is_trained(leaf: Any) -> bool:
  return isinstance(leaf, nnx.Param) or not _is_variable(leaf)


def _decays(leaf: Any) -> bool:
  """Weight decay is for matrices."""
  if getattr(leaf, "logical_axes", None) is None:
    return getattr(leaf, "ndim", 0) >= 2
  return is_matrix(leaf)


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Linear warm-up from 0 to ``peak_lr``, cosine to ``floor_lr`` at the last step.

  Example:
    >>> schedule = learning_rate(OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=200), 500)
    >>> [float(f"{schedule(s):.1e}") for s in (0, 200, 500)]
    [0.0, 1e-05, 1e-07]
  """
  warmup = min(config.warmup_steps, max(total_steps - 1, 0))
  cosine = optax.cosine_decay_schedule(config.peak_lr, max(total_steps - warmup, 1), config.floor_lr / config.peak_lr)
  if not warmup:
    return cosine
  return optax.join_schedules([optax.linear_schedule(0.0, config.peak_lr, warmup), cosine], [warmup])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """AdamW with clipping, the schedule of :func:`learning_rate`, and decay of matrices only."""
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      learning_rate(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=lambda tree: jax.tree.map(_decays, tree, is_leaf=_is_variable),
    ),
  )


def new_state(trained: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step; its moments are float32, whatever is trained."""
  # A weak type would end with the first step.
  trained = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), trained)
  moments = optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), trained))
  none = jnp.zeros((), jnp.int32)
  return TrainState(trained, moments, none, jnp.zeros_like(none))


def init_state(
  model: Any, optimizer: optax.GradientTransformation, mesh: Mesh, *, donate: bool = False
) -> tuple[TrainState, Any]:
  """A state on the mesh, parameters and moments sharded alike, and the frozen part of the model.

  Args:
    model: a frozen part that lies on the mesh already is shared with it, not copied.
    optimizer: gives the moments.
    mesh: what the model need not lie on yet.
    donate: what is trained of the model and lies on the mesh already becomes the state's, and the caller's arrays are
      deleted; else the devices hold it twice for as long as the caller keeps the model.
  """

  def make(trained: Any) -> TrainState:
    return new_state(trained, optimizer)

  # Placed before jit: a model on one device must not fix the program to that device.
  trained, frozen = partition(sharding.place(model, sharding.parameter_shardings(model, mesh)))
  shardings = sharding.parameter_shardings(jax.eval_shape(make, trained), mesh)
  return jax.jit(make, out_shardings=shardings, donate_argnums=0 if donate else ())(trained), frozen


def described(state: Any) -> Any:
  """Shapes, types and shardings of a state, for one that is to be restored in its place."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def microbatches(batch: Any, count: int) -> Any:
  """A batch as ``count`` batches behind one another, ``[N, ...]`` -> ``[count, N / count, ...]`` in every leaf.

  The g-th holds the g-th part of the rows and the g-th part of the examples. In a ParallelContextBatch the slots of a
  part's answers are counted from its first example, so an example must lie in one part with all its rows: padded rows
  do, packed ones are planned so, and :func:`check_microbatches` sees to it.

  Args:
    batch: whatever an objective reads.
    count: microbatches; it divides the first dimension of every leaf.
  """
  axes = row_axes()

  def split(x: Array) -> Array:
    parts = x.reshape(count, x.shape[0] // count, *x.shape[1:])
    return parts if axes is None else jax.lax.with_sharding_constraint(parts, PartitionSpec(None, axes))

  out = jax.tree.map(split, batch)
  if isinstance(out, ParallelContextBatch):
    first = jnp.arange(count)[:, None, None] * out.context_mask[0].size
    out = dataclasses.replace(out, answer_slot=jnp.where(out.answer_slot < 0, -1, out.answer_slot - first))
  return out


def check_microbatches(batch: Any, count: int) -> None:
  """Refuses a batch that is not ``count`` whole batches behind one another.

  Args:
    batch: NumPy arrays, of all hosts.
    count: microbatches.

  Raises:
    UserError: a dimension that ``count`` does not divide, both numbers named.
    ValueError: an answer that counts for an example of another microbatch than its row's.
  """
  for leaf in jax.tree.leaves(batch):
    if leaf.shape[0] % count:
      raise UserError(
        f"a batch of {leaf.shape[0]} rows does not split into accumulate {count} microbatches of one size"
      )
  if isinstance(batch, ParallelContextBatch):
    slot = batch.answer_slot.reshape(count, -1)
    part = np.where(slot < 0, np.arange(count)[:, None], slot // (batch.context_mask.size // count))
    stray = np.argwhere(part != np.arange(count)[:, None])
    if stray.size:
      own, at = stray[0]
      raise ValueError(f"microbatch {own} has a row of slot {slot[own, at]}, which lies in microbatch {part[own, at]}")


@functools.partial(jax.jit, static_argnames=("objective", "update", "accumulate"), donate_argnames="state")
def train_step(
  state: TrainState,
  frozen: Any,
  batch: Any,
  *,
  objective: Objective,
  update: Callable[..., Any],
  accumulate: int = 1,
  step: int | Array = 0,
) -> tuple[TrainState, StepFigures]:
  """One step. A non-finite loss or gradient leaves model and optimizer as they were, and is counted.

  Args:
    state: donated.
    frozen: the frozen part of the model: an argument, so that the program holds no copy of it, and never donated.
    batch: whatever the objective reads.
    objective: see :data:`Objective`; a function of module level or a cached partial, as it is a compilation key.
    update: ``optimizer.update``.
    accumulate: microbatches the batch goes through in, see :func:`microbatches`: for objectives that are sums over
      examples, the same step in less memory.
    step: number of this step; see :func:`radit_jax.training.rounding.apply_updates`. Without weights in bfloat16
      it is not read.

  Returns:
    The next state, and the figures of the step.
  """

  def mean_loss(trained: Any) -> tuple[Array, tuple[Array, Array, Watched]]:
    total, count, watched = _sums(objective, combine(trained, frozen), batch)
    return total / jnp.maximum(count, 1.0), (total, count, watched)

  mesh = jax.sharding.get_abstract_mesh()
  if accumulate == 1:
    (_, (total, count, watched)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.model)
  else:
    total, count, watched, gradients = _accumulated(state.model, frozen, batch, objective, accumulate)
  gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
  norm = optax.tree.norm(gradients)
  finite = jnp.isfinite(total) & jnp.isfinite(norm)
  updates, optimizer_state = update(gradients, state.optimizer_state, state.model)
  model = apply_updates(state.model, updates, step)
  keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
  bad = state.nonfinite_steps + (~finite).astype(jnp.int32)
  in_a_row = jnp.where(finite, 0, state.nonfinite_in_a_row + 1)
  new = TrainState(keep(model, state.model), keep(optimizer_state, state.optimizer_state), bad, in_a_row)
  if not mesh.empty:  # left to the compiler, norms would come back sharded: another program for the second step
    new = jax.lax.with_sharding_constraint(new, sharding.parameter_shardings(new, mesh))
  return new, StepFigures(total, count, norm, finite, bad, in_a_row, _real_tokens(batch), watched)


def _real_tokens(batch: Any) -> Array:
  """Tokens that are no padding; of a batch that is none of ours 0."""
  if isinstance(batch, ParallelContextBatch):
    return jnp.sum(batch.segment_ids > 0, dtype=jnp.int32)
  if isinstance(batch, LSRBatch | PairBatch):
    return jnp.sum(batch.query_mask, dtype=jnp.int32)
  return jnp.zeros((), jnp.int32)


def _sums(objective: Objective, model: Any, batch: Any) -> tuple[Array, Array, Watched]:
  total, count, *watched = objective(model, batch)
  return total, count, watched[0] if watched else {}


def _accumulated(
  trained: Any, frozen: Any, batch: Any, objective: Objective, count: int
) -> tuple[Array, Array, Watched, Any]:
  """Sum, count, watched sums, and gradient of sum / count over all microbatches: summed in float32, divided once."""
  parts = microbatches(batch, count)

  def total(model: Any, part: Any) -> tuple[Array, tuple[Array, Watched]]:
    value, number, watched = _sums(objective, combine(model, frozen), part)
    return value, (number, watched)

  def add(carry: Any, part: Any) -> tuple[Any, None]:
    (value, rest), gradients = jax.value_and_grad(total, has_aux=True)(trained, part)
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry, (value, rest, gradients)), None

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    zeros = jax.lax.with_sharding_constraint(zeros, sharding.parameter_shardings(zeros, mesh))
  scalars = jax.eval_shape(total, trained, jax.tree.map(lambda x: x[0], parts))
  none = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), scalars)
  (value, (number, watched), gradients), _ = jax.lax.scan(add, (*none, zeros), parts)
  return value, number, watched, jax.tree.map(lambda g: g / jnp.maximum(number, 1.0), gradients)


@functools.partial(jax.jit, static_argnames="objective")
def evaluate_step(model: Any, batch: Any, *, objective: Objective) -> tuple[Array, Array, Watched]:
  """Sum, count and watched sums of the objective, without gradients."""
  return _sums(objective, model, batch)


@jax.jit
def score_step(generator: Generator, batch: ParallelContextBatch) -> tuple[Array, Array, Array]:
  """Log-likelihoods, answer tokens and real passages, each ``[B, K]``: the LSR teacher's forward pass."""
  out = answer_log_likelihoods(generator, batch)
  return out.log_likelihood, out.num_tokens, batch.context_mask
