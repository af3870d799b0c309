"""The step everything runs on: ``log p(y | c_j ∘ x)`` of k passages at once, from one layout of rows.

Legend: B examples, K passages per example, R rows, T tokens, A answer tokens per row, D model width, V vocabulary,
E embedding width.
"""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Answer tokens whose logits exist at once: 1,024 x 128k x 4 bytes is 0.5 GiB over all devices, where the logits of all
# tokens of 64 rows of 2,048 would be 62 GiB. Up to this many, one product without recomputation. As many again for each
# 8 parts that rows are split into, so that each device has a matrix to multiply.
HEAD_CHUNK_TOKENS = 1024


class Generator(Protocol):
  """A causal language model as the step sees it: any JAX pytree with these two methods, ours or not."""

  def __call__(self, tokens: Array, *, positions: Array, segment_ids: Array) -> Array:
    """``[N, T]`` int32 each -> ``[N, T, D]`` hidden states; a token sees its own segment up to itself.

    Only batches with prefix_ids, of rows that share passages, need a fourth argument of that name.
    """

  def logits(self, hidden: Array) -> Array:
    """``[..., D]`` -> ``[..., V]`` float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ParallelContextBatch:
  """One layout for padded rows (R = B*K, row b*K+j), packed rows, preference pairs and plain text.

  Attributes:
    tokens: ``[R, T]`` int32.
    positions: ``[R, T]`` int32, counted from 0 within each segment.
    segment_ids: ``[R, T]`` int32; 0 is padding.
    answer_positions: ``[R, A]`` int32, index of the token *before* each answer token: the one that predicts it.
    answer_tokens: ``[R, A]`` int32.
    answer_slot: ``[R, A]`` int32, the slot b*K+j the answer token counts for; -1 is padding.
    context_mask: ``[B, K]`` bool, True for real passages.
    prefix_ids: ``[R, T]`` int32, the segment that a token sees besides its own, 0 for none: prompts that begin alike
      share one copy of what they begin with. None where nothing is shared.

  Example:
    The answer "8 9" after the prompts "5 6" and "7", one row each; a row may as well hold both, as two segments.

    >>> import numpy as np
    >>> batch = ParallelContextBatch(
    ...   tokens=np.array([[5, 6, 8, 9], [7, 8, 9, 0]]),
    ...   positions=np.array([[0, 1, 2, 3], [0, 1, 2, 0]]),
    ...   segment_ids=np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
    ...   answer_positions=np.array([[1, 2], [0, 1]]),
    ...   answer_tokens=np.array([[8, 9], [8, 9]]),
    ...   answer_slot=np.array([[0, 0], [1, 1]]),
    ...   context_mask=np.array([[True, True]]),
    ... )
    >>> np.take_along_axis(batch.tokens, batch.answer_positions + 1, axis=1).tolist()  # what each position predicts
    [[8, 9], [8, 9]]
  """

  tokens: Any
  positions: Any
  segment_ids: Any
  answer_positions: Any
  answer_tokens: Any
  answer_slot: Any
  context_mask: Any
  prefix_ids: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LSRBatch:
  """What retriever tuning reads: queries, their passages' stored embeddings, and the teacher's scores.

  Attributes:
    query_tokens: ``[B, T]`` int32.
    query_mask: ``[B, T]`` bool, True for real tokens.
    passage_embeddings: ``[B, K, E]`` float32, from the index; the passage encoder is frozen.
    log_likelihood: ``[B, K]`` float32, sums over the answer's tokens; zeros where the loss needs no teacher.
    num_tokens: ``[B, K]`` int32.
    context_mask: ``[B, K]`` bool, True for real passages.
    positive: ``[B, K]`` bool, True for gold passages; only the contrastive loss reads it.
    passage_rows: ``[B, K]`` int32, rows of the passage store, for that loss: two slots with one row are one passage.

  Example:
    >>> import jax.numpy as jnp
    >>> from radit_jax.losses import lsr_log_targets
    >>> batch = LSRBatch(  # one query with two passages; under the second one the answer is likelier
    ...   query_tokens=jnp.array([[2, 7, 3]]), query_mask=jnp.ones((1, 3), bool),
    ...   passage_embeddings=jnp.array([[[1.0, 0.0], [0.0, 1.0]]]),
    ...   log_likelihood=jnp.array([[-6.0, -2.0]]), num_tokens=jnp.array([[2, 2]]),
    ...   context_mask=jnp.ones((1, 2), bool))
    >>> targets = lsr_log_targets(batch.log_likelihood, batch.num_tokens, temperature=0.1, where=batch.context_mask)
    >>> print(jnp.exp(targets).round(2))
    [[0.04 0.96]]
  """

  query_tokens: Any
  query_mask: Any
  passage_embeddings: Any
  log_likelihood: Any
  num_tokens: Any
  context_mask: Any
  positive: Any = None
  passage_rows: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnswerLogLikelihoods:
  """Sums, never means.

  Attributes:
    log_likelihood: ``[B, K]`` float32, log p(y | c_j ∘ x) in nats; 0 for an empty slot.
    num_tokens: ``[B, K]`` int32, answer tokens in each sum.

  Example:
    >>> import jax.numpy as jnp
    >>> out = AnswerLogLikelihoods(jnp.array([[-3.0, -1.0]]), jnp.array([[2, 2]]))
    >>> print(out.log_likelihood.sum() / out.num_tokens.sum())  # per answer token, whatever the batches were
    -1.0
  """

  log_likelihood: Any
  num_tokens: Any


def row_axes() -> tuple[str, ...] | None:
  """Mesh axes the rows are sharded over, from the mesh in force (``jax.set_mesh``); None without one."""
  names = jax.sharding.get_abstract_mesh().axis_names
  return tuple(n for n in ("data", "fsdp") if n in names) or None


def _token_log_probs(
  generator: Generator, hidden: Float[Array, "R A D"], targets: Int[Array, "R A"]
) -> Float[Array, "R A"]:
  """Log-probability of each target under the hidden state that predicts it, logits made a chunk of A at a time."""

  def chunk(h: Array, t: Array) -> Array:
    with jax.named_scope("answer_head"):
      logits = generator.logits(h).astype(jnp.float32)
      picked = jnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0]
      return picked - jax.nn.logsumexp(logits, axis=-1)

  rows, answers = targets.shape
  mesh = jax.sharding.get_abstract_mesh()
  shards = math.prod(mesh.shape[axis] for axis in row_axes() or ())
  size = max(1, HEAD_CHUNK_TOKENS * max(1, shards // 8) // rows)
  if answers <= size:
    return chunk(hidden, targets)
  count = -(-answers // size)
  pad = count * size - answers
  # Chunks are cut along A, so that a sharded R stays where it is. jax.checkpoint: the backward pass makes each chunk's
  # logits again instead of keeping them all.
  hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(rows, count, size, -1).swapaxes(0, 1)
  padded = jnp.pad(targets, ((0, 0), (0, pad))).reshape(rows, count, size).swapaxes(0, 1)
  out = jax.lax.map(lambda xs: jax.checkpoint(chunk)(*xs), (hidden, padded))
  return out.swapaxes(0, 1).reshape(rows, count * size)[:, :answers]


def answer_log_likelihoods(generator: Generator, batch: ParallelContextBatch) -> AnswerLogLikelihoods:
  r"""Log-likelihood of every example's answer under each of its passages alone.

  .. math:: \log p_{LM}(y \mid c_j \circ x) = \sum_t \log p_{LM}(y_t \mid c_j \circ x, y_{<t})

  The generator runs once over all rows; only hidden states that predict an answer token meet the output head.
  Values and gradients depend neither on padding nor on which row a passage lies in.

  Args:
    generator: see :class:`Generator`.
    batch: see :class:`ParallelContextBatch`.

  Returns:
    See :class:`AnswerLogLikelihoods`.

  References:
    Lin et al., RA-DIT, the likelihood in eqs. (2)-(4).

  Example:
    >>> import jax, jax.numpy as jnp
    >>> class Bigram:  # any object with these two methods will do
    ...   def __call__(self, tokens, *, positions, segment_ids):
    ...     return jax.nn.one_hot(tokens, 4)
    ...   def logits(self, hidden):
    ...     return hidden @ jnp.log(jnp.full((4, 4), 0.25))
    >>> ids = jnp.array([[1, 2, 3]])
    >>> batch = ParallelContextBatch(
    ...   tokens=ids, positions=jnp.arange(3)[None], segment_ids=jnp.ones((1, 3), int),
    ...   answer_positions=jnp.array([[0, 1]]), answer_tokens=ids[:, 1:], answer_slot=jnp.array([[0, 0]]),
    ...   context_mask=jnp.array([[True]]))
    >>> out = answer_log_likelihoods(Bigram(), batch)
    >>> print(jnp.exp(out.log_likelihood), out.num_tokens)  # 1/4 * 1/4
    [[0.0625]] [[2]]
  """

  # The generator maps over rows itself. jax.vmap around it says the same, but XLA then copies the gradient of every
  # kernel on a CPU (a 2-layer training step: 0.85 s against 0.66 s), and a shard_map inside would gather all rows.
  shared = {} if batch.prefix_ids is None else {"prefix_ids": batch.prefix_ids}
  hidden = generator(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, **shared)
  # Only answer positions go on, [R, A, D]: [R, T, V] logits never exist. The name of the sharded axis keeps rows apart.
  hidden = jax.vmap(lambda row, at: row[at], spmd_axis_name=row_axes())(hidden, batch.answer_positions)
  real = batch.answer_slot >= 0
  log_probs = jnp.where(real, _token_log_probs(generator, hidden, batch.answer_tokens), 0.0)
  slots = batch.context_mask.size
  slot = jnp.where(real, batch.answer_slot, slots)  # one past the end: dropped
  shape = batch.context_mask.shape
  return AnswerLogLikelihoods(
    log_likelihood=jnp.zeros(slots, jnp.float32).at[slot].add(log_probs, mode="drop").reshape(shape),
    num_tokens=jnp.zeros(slots, jnp.int32).at[slot].add(real.astype(jnp.int32), mode="drop").reshape(shape),
  )
