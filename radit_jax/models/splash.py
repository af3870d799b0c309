"""Attention of whole rows on a TPU: JAX's splash kernel, which holds neither scores nor masks of T x T."""

from typing import Any

import jax
import jax.numpy as jnp
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

  def on_one_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
    kernel, ids = _kernel(q.shape[2], num_tokens, window, soft_cap, interpret)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # the kernel wants [H, T, d]
    return jax.vmap(kernel)(q, k, v, ids(segments, segments)).swapaxes(1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return on_one_device(scaled, k, v, segment_ids)
  check_heads(mesh, num_heads=heads, num_kv_heads=k.shape[2])
  check_rows(num_rows, mesh)
  rows = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names) or None
  spread = PartitionSpec(rows, None, "tensor" if "tensor" in mesh.axis_names else None, None)
  specs = (spread, spread, spread, PartitionSpec(rows, None))
  # check_vma=False: a Pallas kernel does not say over which axes its results vary.
  return jax.shard_map(on_one_device, in_specs=specs, out_specs=spread, check_vma=False)(scaled, k, v, segment_ids)


def _check_tokens(num_tokens: int) -> None:
  if num_tokens % BLOCK:
    up = -(-num_tokens // BLOCK) * BLOCK
    raise UserError(f"rows of {num_tokens} tokens: attention on a TPU takes multiples of {BLOCK}; pad them to {up}")


def _kernel(heads: int, num_tokens: int, window: int | None, soft_cap: float | None, interpret: bool) -> Any:
  """The kernel for one row and its pair of segment ids; masks are static, and blocks they empty are skipped."""
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
    residual_checkpoint_name=ATTENDED,
    interpret=interpret,
  )
  return kernel, splash.SegmentIds
