"""Attention with grouped keys and values: the plain form, right on every platform, and which form runs where."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

from radit_jax.models.cudnn import why_not
from radit_jax.sharding import check_heads

AttentionKind = Literal["plain", "blocked", "splash", "cudnn"]


@dataclasses.dataclass(frozen=True)
class AttentionChoice:
  """A form of attention, and why it was chosen."""

  kind: AttentionKind
  reason: str


def attention_choice(
  platform: str | None,
  *,
  causal: bool = True,
  windows: bool = False,
  soft_cap: float | None = None,
  dtype: DTypeLike = jnp.float32,
  head_dim: int = 128,
  capability: tuple[int, int] | None = None,
) -> AttentionChoice:
  """Which form of attention a model takes.

  Args:
    platform: of the devices, as of :func:`platform_in_force`.
    causal: whether a token sees earlier ones only.
    windows: whether any layer has a window.
    soft_cap: of the scores.
    dtype: of computation.
    head_dim: width of one head.
    capability: of the GPU, see :func:`radit_jax.models.cudnn.capability`.

  Returns:
    For whole rows of a causal model, which is training and scoring, "splash"
    (:func:`radit_jax.models.splash.splash_attention`) on a TPU, "blocked"
    (:func:`radit_jax.models.blocked.blocked_attention`) on a CPU, and "cudnn"
    (:func:`radit_jax.models.cudnn.cudnn_attention`) on a GPU where it can run; "plain" (:func:`attention`) for
    everything else.

  Example:
    >>> attention_choice("tpu").kind, attention_choice("tpu", causal=False).kind, attention_choice("cpu").kind
    ('splash', 'plain', 'blocked')
    >>> attention_choice("gpu", dtype=jnp.bfloat16, capability=(8, 0)).reason
    'packed segments need compute capability 9.0 (Hopper), this GPU has 8.0'
  """
  if not causal:
    return AttentionChoice("plain", "the model sees later tokens too")
  if platform == "tpu":
    return AttentionChoice("splash", "whole rows on a TPU")
  if platform == "cpu":
    return AttentionChoice("blocked", "whole rows on a CPU")
  if platform != "gpu":
    return AttentionChoice("plain", f"the platform is {platform or 'not known without a mesh'}")
  if windows or soft_cap is not None:
    return AttentionChoice("plain", f"cudnn is used without {'windows' if windows else 'soft caps'} only")
  reason = why_not(dtype=dtype, head_dim=head_dim, capability=capability)
  return AttentionChoice("cudnn", "whole rows on a GPU") if reason is None else AttentionChoice("plain", reason)


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

  Raises:
    UserError: heads that ``tensor`` of the mesh in force does not divide.

  Example:
    >>> import jax.numpy as jnp
    >>> q, k = jnp.zeros((1, 1, 2, 4)), jnp.zeros((1, 3, 1, 4))
    >>> v = jnp.arange(3.0)[None, :, None, None] * jnp.ones((1, 3, 1, 4))
    >>> mask = jnp.array([True, True, False])[None, None, None]
    >>> attention(q, k, v, mask=mask)[0, 0, :, 0].tolist()   # mean of 0 and 1, for both query heads
    [0.5, 0.5]
  """
  check_heads(jax.sharding.get_abstract_mesh(), num_heads=q.shape[2], num_kv_heads=k.shape[2])
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


def attention_keys_first(
  q: Float[Array, "N T H d"], k: Float[Array, "N T H d"], v: Float[Array, "N T H d"], *, keys: Bool[Array, "N T"]
) -> Float[Array, "N T H d"]:
  """:func:`attention` of a whole text to itself, for CPUs: scores lie with their keys in front.

  XLA's sums and maxima over the last dimension are not vectorised on a CPU, those over an earlier one are; and the sum
  of the softmax is divided out of the mixed values, which are fewer than the pairs. A forward pass of MiniLM over rows
  of 160 tokens takes 889 ms in place of 1,017.

  Args:
    q: queries.
    k: keys.
    v: values.
    keys: True for those that may be looked at. A text without any gets the plain mean of the values.

  Returns:
    The mixed values, in ``v``'s dtype.

  Raises:
    UserError: heads that ``tensor`` of the mesh in force does not divide.
  """
  check_heads(jax.sharding.get_abstract_mesh(), num_heads=q.shape[2])
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
  scores = jnp.einsum("nhsd,nhtd->nhst", k, q * q.shape[-1] ** -0.5, preferred_element_type=jnp.float32)
  scores = jnp.where(keys[:, None, :, None], scores, 0.7 * jnp.finfo(jnp.float32).min)
  weights = jnp.exp(scores - jnp.max(scores, axis=2, keepdims=True))
  total = jnp.sum(weights, axis=2)
  mixed = jnp.einsum("nhsd,nhst->nhdt", v, weights.astype(v.dtype), preferred_element_type=jnp.float32)
  return (mixed / total[:, :, None]).astype(v.dtype).transpose(0, 3, 1, 2)
