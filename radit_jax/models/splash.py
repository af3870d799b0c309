"""Attention of whole rows on a TPU: JAX's splash kernel, which holds neither scores nor masks of T x T."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from radit_jax.errors import UserError
from radit_jax.models.remat import ATTENDED
from radit_jax.sharding import ROW_AXES, check_heads, check_rows

#: The kernel reads keys in blocks of a multiple of this many.
BLOCK = 128


def splash_attention(
  q: Float[Array, "N T H d"],
  k: Float[Array, "N T Hkv d"],
  v: Float[Array, "N T Hkv d"],
  *,
  segment_ids: Int[Array, "N T"],
  prefix_ids: Int[Array, "N T"] | None = None,
  window: int | None = None,
  scale: float | None = None,
  soft_cap: float | None = None,
  interpret: bool = False,
) -> Float[Array, "N T H d"]:
  """What :func:`radit_jax.models.attention.attention` computes for causal rows, block by block in one kernel.

  Token t sees tokens of its own segment up to itself, and with a window only those less than ``window`` slots away.
  Slots, where the plain form counts positions: the same wherever positions count up by one within a segment. Padding
  (segment 0) sees padding, itself at least.

  Runs over the mesh in force (``jax.set_mesh``): rows over ``data`` and ``fsdp``, heads over ``tensor``, each device
  on its own part without communication.

  Args:
    q: queries of H heads; any d (80 and 96 as well as 64, 128, 256).
    k: keys of Hkv heads, which divides H; never repeated in memory.
    v: values, like ``k``.
    segment_ids: of each token.
    prefix_ids: a segment that a token sees besides its own, 0 for none, in a second call of the kernel. Not with a
      window, which would be counted in slots.
    window: see above.
    scale: scores are multiplied by it; by default 1 / sqrt(d).
    soft_cap: see :func:`radit_jax.models.attention.attention`.
    interpret: runs the kernel step by step on any platform: for tests.

  Raises:
    UserError: T is no multiple of 128, or the mesh does not divide rows or heads.

  Example:
    >>> q, k = jnp.zeros((1, 128, 2, 4)), jnp.zeros((1, 128, 1, 4))
    >>> v = jnp.arange(128.0)[None, :, None, None] * jnp.ones((1, 128, 1, 4))
    >>> out = splash_attention(q, k, v, segment_ids=jnp.ones((1, 128), int), interpret=True)
    >>> print(out[0, :4, 0, 0])  # means of 0; 0, 1; 0, 1, 2; ...
    [0.  0.5 1.  1.5]
  """
  num_rows, num_tokens, heads, head_dim = q.shape
  _check_tokens(num_tokens)
  scaled = (q.astype(jnp.float32) * (head_dim**-0.5 if scale is None else scale)).astype(q.dtype)

  if prefix_ids is not None and window is not None:
    raise ValueError("prefix_ids with a window, which this form counts in slots of the row")
  inputs = (scaled, k, v, segment_ids) if prefix_ids is None else (scaled, k, v, segment_ids, prefix_ids)

  def on_one_device(q: Array, k: Array, v: Array, segments: Array, prefixes: Array | None = None) -> Array:
    kernel, ids = _kernel(q.shape[2], num_tokens, window, soft_cap, interpret, sums=prefixes is not None)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # the kernel wants [H, T, d]
    if prefixes is None:
      return jax.vmap(kernel)(q, k, v, ids(segments, segments)).swapaxes(1, 2)
    rows = (q, k, v, jnp.asarray(segments), jnp.asarray(prefixes))
    return jax.vmap(_own_and_prefix, in_axes=(None, *[0] * len(rows)))(kernel, *rows).swapaxes(1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return on_one_device(*inputs)
  check_heads(mesh, num_heads=heads, num_kv_heads=k.shape[2])
  check_rows(num_rows, mesh)
  rows = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names) or None
  spread = PartitionSpec(rows, None, "tensor" if "tensor" in mesh.axis_names else None, None)
  specs = (spread, spread, spread, *[PartitionSpec(rows, None)] * (len(inputs) - 3))
  # check_vma=False: a Pallas kernel does not say over which axes its results vary.
  return jax.shard_map(on_one_device, in_specs=specs, out_specs=spread, check_vma=False)(*inputs)


def _pairs(segments: Array, prefixes: Array) -> tuple[Any, Any]:
  """Segment ids of queries and keys for each of the two calls."""
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  # No key is of segment -1. A query that sees none gets what the mask's value makes of it: a sum of next to nothing.
  return SegmentIds(segments, segments), SegmentIds(jnp.where(prefixes == 0, -1, prefixes), segments)


@jax.custom_vjp
def _own_and_prefix(kernel: Any, q: Array, k: Array, v: Array, segments: Array, prefixes: Array) -> Array:
  """One row: attention over a token's own segment and over its prefix, merged by the logarithms of their sums."""
  return _forward(kernel, q, k, v, segments, prefixes)[0]


def _forward(
  kernel: Any, q: Array, k: Array, v: Array, segments: Array, prefixes: Array
) -> tuple[Float[Array, "H T d"], tuple[Any, ...]]:
  parts = [kernel(q, k, v, ids) for ids in _pairs(segments, prefixes)]
  sums = jnp.stack([total for _, (total,) in parts])
  total = jax.nn.logsumexp(sums, axis=0)
  shares = jnp.exp(sums - total)[..., None]
  mixed = sum(share * out.astype(jnp.float32) for share, (out, _) in zip(shares, parts, strict=True))
  out, total = (checkpoint_name(x, ATTENDED) for x in (jnp.asarray(mixed).astype(v.dtype), total))
  return out, (kernel, q, k, v, segments, prefixes, out, total)


def _backward(kept: tuple[Any, ...], g: Float[Array, "H T d"]) -> tuple[Any, ...]:
  """The kernel's own backward pass for each set of keys, told the sum and the output of both.

  A key's weight is exp(score - sum), and its score's gradient weight * (g v - g out), so with those of the whole each
  call gives its keys' part of the whole.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library

  kernel, q, k, v, segments, prefixes, out, total = kept
  options = {name: value for name, value in kernel.kwargs.items() if name != "save_residuals"}
  parts = []
  for ids in _pairs(segments, prefixes):
    residuals = (q, k, v, ids, None, out, total, kernel.dq_mask_info, kernel.dkv_mask_info)
    parts.append(library._splash_attention_bwd(save_residuals=False, **options, res=residuals, do=g)[3:6])
  summed = [
    (own.astype(jnp.float32) + prefix.astype(jnp.float32)).astype(own.dtype) for own, prefix in zip(*parts, strict=True)
  ]
  return None, *summed, None, None


_own_and_prefix.defvjp(_forward, _backward)


def _check_tokens(num_tokens: int) -> None:
  if num_tokens % BLOCK:
    up = -(-num_tokens // BLOCK) * BLOCK
    raise UserError(f"rows of {num_tokens} tokens: attention on a TPU takes multiples of {BLOCK}; pad them to {up}")


def _kernel(
  heads: int, num_tokens: int, window: int | None, soft_cap: float | None, interpret: bool, *, sums: bool
) -> Any:
  """The kernel for one row and its pair of segment ids; masks are static, and blocks they empty are skipped.

  With ``sums`` it returns the logarithm of each query's sum of weights too, and has no backward pass of its own.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  shape = (num_tokens, num_tokens)
  one = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
  block = next(size for size in (512, 256, 128) if num_tokens % size == 0)
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([one] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=soft_cap,
    residual_checkpoint_name=None if sums else ATTENDED,
    save_residuals=sums,
    interpret=interpret,
  )
  return kernel, splash.SegmentIds
