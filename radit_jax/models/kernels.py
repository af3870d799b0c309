"""The one product of activations with a kernel, whatever the kernel is stored as: floats, adapted, or quantised."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from radit_jax.errors import UserError

QuantizedFormat = Literal["int8", "nf4"]

#: Rows of a kernel that share one nf4 scale.
NF4_BLOCK = 64
#: The sixteen values of nf4: quantiles of a normal distribution, scaled to [-1, 1], one of them 0.
NF4_VALUES = (
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
)


class QuantizedKernel(nnx.Module):
  """A frozen kernel in 8 or 4 bits: ``value = level(code) * scale``.

  int8 has one scale for each output column. nf4 has one for each block of 64 input rows of a column, so a block of
  it costs 4.5 bits a number.

  Args:
    codes: ``[L, in, out]`` int8, or uint4 for nf4.
    scales: ``[L, 1, out]`` float32, or ``[L, in / 64, out]`` for nf4.
    logical_axes: of the kernel; codes and scales are spread over the mesh as it is.

  References:
    Dettmers et al., QLoRA, appendix E (nf4).
  """

  def __init__(self, codes: Array, scales: Array, logical_axes: tuple[str | None, ...]):
    layers, in_axis, out_axis = logical_axes
    self.codes = nnx.Variable(codes, logical_axes=logical_axes)
    blocks = in_axis if codes.dtype == jnp.uint4 else None
    self.scales = nnx.Variable(scales, logical_axes=(layers, blocks, out_axis))


class LoraKernel(nnx.Module):
  """A frozen kernel with a trained correction of low rank: ``W + (alpha / rank) A B``, never formed in training.

  Args:
    base: W, ``[L, in, out]``.
    a: A, ``[L, in, rank]``.
    b: B, ``[L, rank, out]``.
    scale: alpha / rank.
  """

  def __init__(
    self,
    base: "nnx.Variable[Array] | QuantizedKernel",
    a: nnx.Param[Array],
    b: nnx.Param[Array],
    scale: float,
  ):
    self.base = base
    self.a = a
    self.b = b
    self.scale = scale


#: What `project` multiplies with; inside the scan over layers, so without the leading layer axis.
Kernel = nnx.Variable[Array] | LoraKernel | QuantizedKernel


def is_matrix(parameter: "nnx.Variable[Array]") -> bool:
  """Whether it is a kernel, an embedding or a head: norms and biases, stacked or not, have one dimension."""
  return len([axis for axis in parameter.logical_axes if axis != "layers"]) >= 2


def project(x: Float[Array, "N i"], kernel: Kernel, bias: nnx.Variable[Array] | None = None) -> Float[Array, "N o"]:
  """``x @ kernel (+ bias)`` in the type of x.

  Args:
    x: tokens of all rows as one matrix: for a [N, T, D] operand XLA on CPU transposes the gradient of every kernel by
      copying it, and a training step of a 2-layer model takes 580 ms instead of 440.
    kernel: of one layer.
    bias: of one layer, ``[out]``, or None.

  Example:
    >>> project(jnp.ones((1, 2)), nnx.Param(jnp.ones((2, 3)))).tolist()
    [[2.0, 2.0, 2.0]]
  """
  y = _project(x, kernel)
  return y if bias is None else y + bias[...].astype(x.dtype)


def _project(x: Array, kernel: Kernel) -> Array:
  if isinstance(kernel, LoraKernel):
    low_rank = x @ kernel.a[...].astype(x.dtype) @ kernel.b[...].astype(x.dtype)
    return _project(x, kernel.base) + kernel.scale * low_rank
  if isinstance(kernel, QuantizedKernel):
    # What the backward pass needs is made from the codes again: kept from the forward pass, the float kernels of all
    # layers would stand in memory side by side. Without a barrier against CSE, which the scan makes unnecessary.
    multiply = jax.checkpoint(lambda x, codes, scales: x @ _levels(codes, scales, x.dtype), prevent_cse=False)
    return multiply(x, kernel.codes[...], kernel.scales[...])
  return x @ kernel[...].astype(x.dtype)


@jax.jit
def merged(w: Float[Array, "i o"], a: Float[Array, "i r"], b: Float[Array, "r o"], scale: float) -> Float[Array, "i o"]:
  """``W + scale A B`` of one layer, added in float32, in the type of W."""
  product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  return (w.astype(jnp.float32) + scale * product).astype(w.dtype)


# Not qwix (0.1.8), whose int8 does the same: its nf4 look-up flattens the codes, so that XLA gathers every sharded
# kernel whole in every layer (seen in the compiled program), and reads a table of 16 once per number.
def quantize(
  kernel: Float[Array, "L i o"], logical_axes: tuple[str | None, ...], form: QuantizedFormat
) -> QuantizedKernel:
  """Rounds a stacked kernel to the nearest code, layer by layer, so that one layer at a time is held in float32.

  Args:
    kernel: floats.
    logical_axes: of its three dimensions.
    form: "int8" or "nf4".

  Raises:
    UserError: for nf4, a number of rows that 64 does not divide.
  """
  if form == "nf4" and kernel.shape[1] % NF4_BLOCK:
    raise UserError(f"nf4 needs kernels of a multiple of {NF4_BLOCK} rows, this one has {kernel.shape[1]}; use int8")
  codes, scales = jax.lax.map(_int8_codes if form == "int8" else _nf4_codes, kernel)
  return QuantizedKernel(codes, scales, logical_axes)


def dequantize(kernel: QuantizedKernel, dtype: DTypeLike = jnp.float32) -> Array:
  """The numbers the codes stand for, ``[in, out]`` or ``[L, in, out]``."""
  return _levels(kernel.codes[...], kernel.scales[...], dtype)


def _int8_codes(w: Float[Array, "i o"]) -> tuple[Array, Array]:
  w = w.astype(jnp.float32)
  scales = _nonzero(jnp.max(jnp.abs(w), axis=0, keepdims=True)) / 127
  return jnp.round(w / scales).astype(jnp.int8), scales


def _nf4_codes(w: Float[Array, "i o"]) -> tuple[Array, Array]:
  blocks = w.astype(jnp.float32).reshape(-1, NF4_BLOCK, w.shape[1])
  scales = _nonzero(jnp.max(jnp.abs(blocks), axis=1))
  unit = blocks / scales[:, None]
  # The nearest value: one step up for every midpoint passed. Additions fuse, an argmin over [..., 16] need not.
  middles = np.convolve(np.array(NF4_VALUES), [0.5, 0.5], "valid").astype(np.float32)
  codes = sum((unit > m).astype(jnp.int8) for m in middles)
  return codes.reshape(w.shape).astype(jnp.uint4), scales


def _nonzero(largest: Array) -> Array:
  """Scale of numbers whose largest is this: where all are 0, any scale will do but 0."""
  return jnp.where(largest > 0, largest, 1.0)


def _levels(codes: Array, scales: Array, dtype: DTypeLike) -> Array:
  if codes.dtype == jnp.int8:
    return (codes.astype(jnp.float32) * scales).astype(dtype)
  *layers, rows, columns = codes.shape
  blocks = _nf4_values(codes.astype(jnp.int32)).reshape(*layers, rows // NF4_BLOCK, NF4_BLOCK, columns)
  return (blocks * scales[..., None, :]).reshape(codes.shape).astype(dtype)


def _nf4_values(codes: Array) -> Array:
  """Looks codes up by their bits: fifteen selections, which fuse with the product; a gather does not."""
  values: list[Array | float] = list(NF4_VALUES)
  for bit in range(4):
    odd = (codes >> bit) & 1 == 1
    values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
  (out,) = values
  return jnp.asarray(out, jnp.float32)
