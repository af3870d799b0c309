"""Attention of whole rows on an NVIDIA GPU: cuDNN's fused kernel over packed segments, which holds no scores."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from radit_jax.errors import UserError
from radit_jax.sharding import ROW_AXES, check_heads, check_rows

#: Hopper, the first whose packed layout cuDNN knows.
CAPABILITY = (9, 0)


def cudnn_attention(
  q: Float[Array, "N T H d"],
  k: Float[Array, "N T Hkv d"],
  v: Float[Array, "N T Hkv d"],
  *,
  segment_ids: Int[Array, "N T"],
  max_segments: int,
  scale: float | None = None,
) -> Float[Array, "N T H d"]:
  """What :func:`radit_jax.models.attention.attention` computes for causal rows, in one kernel.

  Token t sees tokens of its own segment up to itself. A segment is one run of tokens of one id; padding (id 0) is one
  like any other, so that every token has a finite result.

  Runs over the mesh in force (``jax.set_mesh``) like splash attention: rows over ``data`` and ``fsdp``, heads over
  ``tensor``.

  Args:
    q: queries of H heads, bfloat16 or float16.
    k: keys of Hkv heads, which divides H.
    v: values, like ``k``.
    segment_ids: of each token.
    max_segments: runs in a row, at most; the kernel keeps ``N * max_segments * H * T`` float32 for the backward pass.
      A row that has more becomes NaN, and the step that it is in is left out.
    scale: scores are multiplied by it; by default 1 / sqrt(d).

  Raises:
    UserError: what :func:`why_not` says, or the mesh does not divide rows or heads.
  """
  num_rows, _, heads, head_dim = q.shape
  reason = why_not(dtype=q.dtype, head_dim=head_dim, capability=capability())
  if reason is not None:
    raise UserError(f"attention cudnn: {reason}; use plain")
  scale = head_dim**-0.5 if scale is None else scale

  def on_one_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
    return _packed(q, k, v, segments, max_segments, scale)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return on_one_device(q, k, v, segment_ids)
  check_heads(mesh, num_heads=heads, num_kv_heads=k.shape[2])
  check_rows(num_rows, mesh)
  rows = tuple(axis for axis in ROW_AXES if axis in mesh.axis_names) or None
  spread = PartitionSpec(rows, None, "tensor" if "tensor" in mesh.axis_names else None, None)
  specs = (spread, spread, spread, PartitionSpec(rows, None))
  return jax.shard_map(on_one_device, in_specs=specs, out_specs=spread, check_vma=False)(q, k, v, segment_ids)


def _packed(q: Array, k: Array, v: Array, segments: Array, max_segments: int, scale: float) -> Array:
  # A private module: jax.nn.dot_product_attention takes lengths of rows, and no segments.
  from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

  # Keys are repeated for each head of their group: jax 0.10 finds a packed segment's keys by the width of the queries,
  # and reads those of other tokens where the heads differ in number (jax-ml/jax#39521, repaired after 0.10.2).
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  lengths, offsets, fits = runs_of(segments, max_segments)
  out = dot_product_attention(
    q,
    k,
    v,
    q_seqlen=lengths,
    kv_seqlen=lengths,
    q_offsets=offsets,
    kv_offsets=offsets,
    scale=scale,
    mask_type=MaskType.PADDING_CAUSAL,
  )
  return jnp.where(fits[:, None, None, None], out, jnp.nan)


def runs_of(
  segment_ids: Int[Array, "N T"], max_segments: int
) -> tuple[Int[Array, "N M"], Int[Array, "N M+1"], Bool[Array, " N"]]:
  """Runs of one id in each row, as cuDNN reads them.

  Args:
    segment_ids: of each token.
    max_segments: M.

  Returns:
    Their lengths, -1 behind the last; where they begin, -1 behind the last; and whether a row has no more than M.

  Example:
    >>> lengths, offsets, fits = runs_of(jnp.array([[1, 1, 1, 2, 2, 0]]), 4)
    >>> lengths.tolist(), offsets.tolist(), fits.tolist()
    ([[3, 2, 1, -1]], [[0, 3, 5, -1, -1]], [True])
  """
  begins = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  run = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1  # [N, T]
  before = jnp.sum(run[:, None] < jnp.arange(max_segments + 1)[:, None], axis=2, dtype=jnp.int32)  # tokens before run m
  lengths = jnp.diff(before, axis=1)
  exists = lengths > 0
  offsets = jnp.where(exists, before[:, :-1], -1)
  return (
    jnp.where(exists, lengths, -1),
    jnp.pad(offsets, ((0, 0), (0, 1)), constant_values=-1),
    run[:, -1] < max_segments,
  )


def why_not(*, dtype: DTypeLike, head_dim: int, capability: tuple[int, int] | None) -> str | None:
  """Why the kernel cannot run; None if it can.

  Args:
    dtype: of computation.
    head_dim: d.
    capability: of the GPU; None for no NVIDIA GPU.

  Example:
    >>> why_not(dtype=jnp.float32, head_dim=128, capability=(9, 0))
    'it computes in bfloat16 or float16, and this is float32'
  """
  if capability is None:
    return "it needs an NVIDIA GPU"
  if capability < CAPABILITY:
    have, need = (".".join(map(str, x)) for x in (capability, CAPABILITY))
    return f"packed segments need compute capability {need} (Hopper), this GPU has {have}"
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f"it computes in bfloat16 or float16, and this is {jnp.dtype(dtype)}"
  if head_dim % 8 or head_dim > 256:
    return f"it takes heads of a multiple of 8 up to 256, and these are of {head_dim}"
  return None


def capability() -> tuple[int, int] | None:
  """Compute capability of this process's GPUs; None where there is no NVIDIA GPU."""
  if jax.default_backend() != "gpu":
    return None
  found: Any = getattr(jax.local_devices()[0], "compute_capability", "")
  major, _, minor = str(found).partition(".")
  return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None  # AMD: "gfx90a"
