"""Attention with grouped keys and values: the plain form, right on every platform, and which form runs where."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

AttentionKind = Literal["plain", "splash"]


def attention_kind(platform: str | None, *, causal: bool = True, cached: bool = False) -> AttentionKind:
  """Which form of attention a model takes.

  Args:
    platform: of the devices, as of :func:`platform_in_force`.
    causal: whether a token sees earlier ones only.
    cached: whether keys are read from a cache.

  Returns:
    "splash" (:func:`radit_jax.models.splash.splash_attention`) for whole rows of a causal model on a TPU, which is
    training and scoring; "plain" (:func:`attention`) for everything else.

  Example:
    >>> attention_kind("tpu"), attention_kind("tpu", cached=True), attention_kind("cpu")
    ('splash', 'plain', 'plain')
  """
  return "splash" if platform == "tpu" and causal and not cached else "plain"


def platform_in_force() -> str | None:
  """Platform of the mesh in force (``jax.set_mesh``), also where it is only compiled for; None without a mesh.

  Without one nobody can tell how arrays are spread, and a TPU kernel must be told; the plain form need not.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return None if device is None else device.platform


def attention(
  q: Float[Array, "N T H d"],
  k: Float[Array, "N S Hkv d"],
  v: Float[Array, "N S Hkv d"],
  *,
  mask: Bool[Array, "N 1 T S"],
  scale: float | None = None,
  soft_cap: float | None = None,
) -> Float[Array, "N T H d"]:
  r"""Softmax attention, :math:`\operatorname{softmax}(q k^\top s)\, v`, softmax in float32.

  Args:
    q: queries of H heads.
    k: keys of Hkv heads; H is a multiple of Hkv, and query head h reads key head h // (H / Hkv). They are never
      repeated in memory.
    v: values, like ``k``.
    mask: True where a query may look at a key. A query that may look at none (padding) gets the plain mean of the
      values: useless, but finite, forward and backward.
    scale: s; by default :math:`1/\sqrt d`.
    soft_cap: scores x become ``soft_cap * tanh(x / soft_cap)`` before the softmax (Gemma 2).

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
  if soft_cap is None:
    # implementation="xla" is pinned: left to itself JAX may choose another kernel without saying so. It masks with a
    # large finite number, so a row without a key stays finite, and takes the softmax in float32 for any input dtype.
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")
  # jax.nn.dot_product_attention has no soft cap.
  n, t, heads, d = q.shape
  grouped = q.reshape(n, t, k.shape[2], heads // k.shape[2], d)
  scores = jnp.einsum("ntkgd,nskd->nkgts", grouped, k, preferred_element_type=jnp.float32)
  scores = soft_cap * jnp.tanh(scores * (d**-0.5 if scale is None else scale) / soft_cap)
  scores = jnp.where(mask[:, :, None], scores, 0.7 * jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("nkgts,nskd->ntkgd", weights, v).reshape(n, t, heads, d)
