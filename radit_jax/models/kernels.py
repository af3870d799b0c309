"""The product of activations with a kernel."""

from flax import nnx
from jaxtyping import Array, Float


def project(
  x: Float[Array, "N i"], kernel: nnx.Variable[Array], bias: nnx.Variable[Array] | None = None
) -> Float[Array, "N o"]:
  """``x @ kernel + bias`` in the type of ``x``.

  Args:
    x: tokens of all rows as one matrix: for a [N, T, D] operand XLA on CPU transposes the gradient of every kernel by
      copying it, and a training step of a 2-layer model takes 580 ms instead of 440.
    kernel: ``[in, out]``.
    bias: ``[out]``, or None.
  """
  y = x @ kernel[...].astype(x.dtype)
  return y if bias is None else y + bias[...].astype(x.dtype)
