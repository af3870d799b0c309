"""Attention with grouped keys and values: the plain form, right on every platform."""

import jax
from jaxtyping import Array, Bool, Float


def attention(
  q: Float[Array, "N T H d"],
  k: Float[Array, "N S Hkv d"],
  v: Float[Array, "N S Hkv d"],
  *,
  mask: Bool[Array, "N 1 T S"],
) -> Float[Array, "N T H d"]:
  r"""Softmax attention, :math:`\operatorname{softmax}(q k^\top / \sqrt d)\, v`, softmax in float32.

  Args:
    q: queries of H heads.
    k: keys of Hkv heads; H is a multiple of Hkv, and query head h reads key head h // (H / Hkv). They are never
      repeated in memory.
    v: values, like ``k``.
    mask: True where a query may look at a key. A query that may look at none (padding) gets the plain mean of the
      values: useless, but finite, forward and backward.

  Returns:
    The mixed values, in ``v``'s dtype.

  Example:
    >>> import jax.numpy as jnp
    >>> q, k = jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 3, 1, 4))
    >>> v = jnp.arange(3.0)[None, :, None, None] * jnp.ones((1, 3, 1, 4))
    >>> mask = jnp.array([True, True, False])[None, None, None]
    >>> attention(q, k, v, mask=mask)[0, 0, :, 0].tolist()   # mean of 0 and 1, for both query heads
    [0.5, 0.5]
  """
  # implementation="xla" is pinned: left to itself JAX may choose another kernel without saying so. It masks with a
  # large finite number, so a row without a key stays finite, and takes the softmax in float32 for any input dtype.
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
