"""Causal attention for CPUs: the plain form without its copies, and without most of the upper half."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from radit_jax.models.remat import ATTENDED
from radit_jax.sharding import check_heads

# Queries go in so many groups, each with the keys up to its last query: 62 % of the work of all pairs. 8 groups would
# take 56 %, and each is compiled.
_MOST_BLOCKS = 4
_LEAST_BLOCK_TOKENS = 64

#: What the backward pass is given: inputs, output, and of each query the largest score and the sum of its softmax.
_Kept = tuple[Array, Array, Array, Array, Array, Array, Array]


def blocked_attention(
  q: Float[Array, "N T H d"],
  k: Float[Array, "N T Hkv d"],
  v: Float[Array, "N T Hkv d"],
  *,
  mask: Bool[Array, "N 1 T T"],
  scale: float | None = None,
  soft_cap: float | None = None,
) -> Float[Array, "N T H d"]:
  """What :func:`radit_jax.models.attention.attention` computes, where no query may look at a later key.

  With rows of 512 tokens and a width of 512 the plain form takes a third of a forward pass, much of it for copies
  between layouts and for passes over all pairs. Here the heads of a group lie behind one another from the start, the
  sum of the softmax is divided out of the mixed values, which are fewer than the pairs, and the backward pass computes
  the weights of all pairs again instead of keeping them: in a scan over layers each array that is kept is written into
  a stack and read from it.

  Args:
    q: queries of H heads.
    k: keys of Hkv heads, of the same tokens.
    v: values, like ``k``.
    mask: True where a query may look at a key, never above the diagonal; see the plain form for queries without a key.
    scale: by default ``d ** -0.5``.
    soft_cap: as in the plain form.

  Returns:
    The mixed values, in ``v``'s dtype.

  Raises:
    UserError: heads that ``tensor`` of the mesh in force does not divide.

  References:
    Dao et al., FlashAttention, section 3.1 (the backward pass).
  """
  check_heads(jax.sharding.get_abstract_mesh(), num_heads=q.shape[2], num_kv_heads=k.shape[2])
  n, tokens, heads, d = q.shape
  grouped = q.reshape(n, tokens, -1, heads // k.shape[2], d).transpose(0, 2, 3, 1, 4)
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  mixed = _attend(grouped, k, v, mask, d**-0.5 if scale is None else scale, soft_cap)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(n, tokens, heads, d)


def _spans(tokens: int) -> list[tuple[int, int]]:
  size = max(_LEAST_BLOCK_TOKENS, -(-tokens // _MOST_BLOCKS))
  return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _scores(
  q: Array, k: Array, mask: Array, span: tuple[int, int], scale: float, soft_cap: float | None
) -> tuple[Float[Array, "N Hkv G t S"], Array | None]:
  """Scores of a block's queries, and the slope of the soft cap there."""
  start, end = span
  n, kv_heads, groups, _, d = q.shape
  own = q[:, :, :, start:end].reshape(n, kv_heads, -1, d)
  scores = jnp.matmul(own, k[:, :, :end].swapaxes(2, 3), preferred_element_type=jnp.float32)
  scores = scores.reshape(n, kv_heads, groups, end - start, end) * scale
  slope = None
  if soft_cap is not None:
    bent = jnp.tanh(scores / soft_cap)
    scores, slope = soft_cap * bent, 1 - bent * bent
  return jnp.where(mask[:, :, None, start:end, :end], scores, 0.7 * jnp.finfo(jnp.float32).min), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
  q: Float[Array, "N Hkv G T d"],
  k: Float[Array, "N Hkv T d"],
  v: Float[Array, "N Hkv T d"],
  mask: Bool[Array, "N 1 T T"],
  scale: float,
  soft_cap: float | None,
) -> Float[Array, "N Hkv G T d"]:
  return _forward(q, k, v, mask, scale, soft_cap)[0]


def _forward(
  q: Array, k: Array, v: Array, mask: Array, scale: float, soft_cap: float | None
) -> tuple[Float[Array, "N Hkv G T d"], _Kept]:
  n, kv_heads, groups, tokens, d = q.shape
  blocks = []
  for start, end in _spans(tokens):
    scores, _ = _scores(q, k, mask, (start, end), scale, soft_cap)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.reshape(n, kv_heads, -1, end).astype(v.dtype)
    mixed = jnp.matmul(weights, v[:, :, :end], preferred_element_type=jnp.float32)
    blocks.append((mixed.reshape(n, kv_heads, groups, -1, d) / total, highest, total))
  mixed, highest, total = (jnp.concatenate(x, axis=3) for x in zip(*blocks, strict=True))
  mixed, highest, total = (checkpoint_name(x, ATTENDED) for x in (mixed.astype(v.dtype), highest, total))
  return mixed, (q, k, v, mask, mixed, highest, total)


def _backward(scale: float, soft_cap: float | None, kept: _Kept, g: Array) -> tuple[Array, Array, Array, None]:
  q, k, v, mask, mixed, highest, total = kept
  n, kv_heads, groups, tokens, d = q.shape
  # Sum over keys of weight times its gradient, without the weights.
  inner = jnp.sum(g.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
  dq = []
  dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for start, end in _spans(tokens):
    block, flat = jnp.s_[:, :, :, start:end], (n, kv_heads, groups * (end - start), -1)
    scores, slope = _scores(q, k, mask, (start, end), scale, soft_cap)
    weights = jnp.exp(scores - highest[block]) / total[block]
    own, got = q[block].reshape(flat), g[block].reshape(flat)
    dweights = jnp.matmul(got, v[:, :, :end].swapaxes(2, 3), preferred_element_type=jnp.float32)
    dscores = weights * (dweights.reshape(scores.shape) - inner[block])
    dscores = jnp.where(mask[:, :, None, start:end, :end], dscores if slope is None else dscores * slope, 0.0)
    dscores = (dscores * scale).astype(q.dtype).reshape(flat)
    weights = weights.astype(v.dtype).reshape(flat)
    dq.append(jnp.matmul(dscores, k[:, :, :end], preferred_element_type=jnp.float32))
    dk = dk.at[:, :, :end].add(jnp.matmul(dscores.swapaxes(2, 3), own, preferred_element_type=jnp.float32))
    dv = dv.at[:, :, :end].add(jnp.matmul(weights.swapaxes(2, 3), got, preferred_element_type=jnp.float32))
  dqueries = jnp.concatenate([x.reshape(n, kv_heads, groups, -1, d) for x in dq], axis=3)
  return dqueries.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
