"""Llama-family decoder: grouped-query attention, rotary positions, RMSNorm, SwiGLU; layers stacked and scanned."""

import dataclasses
from typing import Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from radit_jax.errors import UserError
from radit_jax.models.attention import attention


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Shape of a Llama-family decoder.

  Attributes:
    vocab_size: rows of the embedding, never padded.
    hidden_size: width D of the residual stream.
    intermediate_size: width of the feed-forward layer.
    num_layers: decoder layers.
    num_heads: query heads.
    num_kv_heads: key and value heads; divides num_heads.
    head_dim: width of one head; even, since rotary positions turn pairs.
    rope_theta: base of the rotary wavelengths.
    rms_norm_eps: added to the mean square in every norm.
    tie_word_embeddings: the output head is the embedding.
    max_positions: longest row the model was trained for.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float = 10_000.0
  rms_norm_eps: float = 1e-5
  tie_word_embeddings: bool = False
  max_positions: int = 2048

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if field.type is not bool and not getattr(self, field.name) > 0:
        raise UserError(f"LlamaConfig.{field.name} = {getattr(self, field.name)}: must be greater than 0")
    if self.num_heads % self.num_kv_heads:
      raise UserError(f"LlamaConfig: num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
    if self.head_dim % 2:
      raise UserError(f"LlamaConfig.head_dim = {self.head_dim}: must be even")

  @classmethod
  def tiny(cls, vocab_size: int) -> Self:
    """Two layers of width 128: learns to read invented facts within minutes on a CPU."""
    return cls(
      vocab_size=vocab_size,
      hidden_size=128,
      intermediate_size=384,
      num_layers=2,
      num_heads=4,
      num_kv_heads=2,
      head_dim=32,
      tie_word_embeddings=True,
      max_positions=1024,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValueCache:
  """Keys and values of the tokens seen so far; a pytree of fixed shapes, so it can be carried through a loop.

  Every call writes its T tokens into slots ``next_slot : next_slot + T`` of every row. Padding of a right-padded
  prompt takes slots too, which stay masked: the position of a token is given by the caller and has nothing to do
  with its slot. Keys are stored turned to their position, so a row's slice may be kept and put back in any slots.

  Attributes:
    k: keys of every layer.
    v: values of every layer.
    segment_ids: segment of each slot, 0 for padding and for slots not written yet.
    next_slot: scalar, the first free slot. A write past the last slot is not noticed under ``jit``: size the cache
      for the prompt and everything that is to be appended.
  """

  k: Float[Array, "L N S Hkv d"]
  v: Float[Array, "L N S Hkv d"]
  segment_ids: Int[Array, "N S"]
  next_slot: Int[Array, ""]


class LlamaLayer(nnx.Module):
  """All decoder layers in one module: every parameter has a leading layer axis, which ``jax.lax.scan`` takes off."""

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
    num_layers, width, hidden = config.num_layers, config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def kernel(fan_in: int, fan_out: int, in_axis: str, out_axis: str, scale: float = 1.0) -> nnx.Param[Array]:
      value = jax.random.normal(rngs.params(), (num_layers, fan_in, fan_out)) * (scale / fan_in**0.5)
      return nnx.Param(value, logical_axes=("layers", in_axis, out_axis))

    # What is added to the residual stream starts small, or the variance of the stream would grow with the depth.
    residual = (2 * num_layers) ** -0.5
    self.config = config
    self.attention_norm = nnx.Param(jnp.ones((num_layers, width)), logical_axes=("layers", "norm"))
    self.q_kernel = kernel(width, q_width, "embed", "heads")
    self.k_kernel = kernel(width, kv_width, "embed", "kv_heads")
    self.v_kernel = kernel(width, kv_width, "embed", "kv_heads")
    self.o_kernel = kernel(q_width, width, "heads", "embed", residual)
    self.mlp_norm = nnx.Param(jnp.ones((num_layers, width)), logical_axes=("layers", "norm"))
    self.gate_kernel = kernel(width, hidden, "embed", "mlp")
    self.up_kernel = kernel(width, hidden, "embed", "mlp")
    self.down_kernel = kernel(hidden, width, "mlp", "embed", residual)

  def queries_keys_values(
    self, x: Float[Array, "N T D"], rotary: tuple[Float[Array, "N T 1 r"], Float[Array, "N T 1 r"]]
  ) -> tuple[Float[Array, "N T H d"], Float[Array, "N T Hkv d"], Float[Array, "N T Hkv d"]]:
    """Queries and keys turned to their positions, and values, of one layer."""
    flat = _rms_norm(_flat(x), self.attention_norm[...], self.config.rms_norm_eps)
    q, k, v = (
      (flat @ w[...].astype(x.dtype)).reshape(*x.shape[:2], -1, self.config.head_dim)
      for w in (self.q_kernel, self.k_kernel, self.v_kernel)
    )
    return _rotate(q, rotary), _rotate(k, rotary), v

  def add_attention_and_mlp(self, x: Float[Array, "N T D"], attended: Float[Array, "N T H d"]) -> Float[Array, "N T D"]:
    """The residual stream after one layer, given what its heads read."""
    flat = _flat(x)
    flat = flat + attended.reshape(len(flat), -1) @ self.o_kernel[...].astype(x.dtype)
    h = _rms_norm(flat, self.mlp_norm[...], self.config.rms_norm_eps)
    h = jax.nn.silu(h @ self.gate_kernel[...].astype(x.dtype)) * (h @ self.up_kernel[...].astype(x.dtype))
    return (flat + h @ self.down_kernel[...].astype(x.dtype)).reshape(x.shape)


class Llama(nnx.Module):
  """A Llama-family decoder.

  Args:
    config: shape of the model.
    rngs: keys of the random first parameters, which are float32.
    dtype: computation type. Parameters keep their own type and are cast where they are used; norms, softmax, rotary
      angles and logits are float32 in any case.

  Example:
    >>> generator = Llama(LlamaConfig.tiny(vocab_size=50), rngs=nnx.Rngs(0))
    >>> hidden = generator(jnp.array([[3, 4, 5]]))
    >>> generator.logits(hidden).shape
    (1, 3, 50)
  """

  def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
    vocab, width = config.vocab_size, config.hidden_size
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.embedding = nnx.Param(
      jax.random.normal(rngs.params(), (vocab, width)) / width**0.5, logical_axes=("vocab", "embed")
    )
    self.layers = LlamaLayer(config, rngs=rngs)
    self.final_norm = nnx.Param(jnp.ones(width), logical_axes=("norm",))
    self.head = (
      None
      if config.tie_word_embeddings
      else nnx.Param(jax.random.normal(rngs.params(), (width, vocab)) / width**0.5, logical_axes=("embed", "vocab"))
    )

  @overload
  def __call__(
    self,
    tokens: Int[Array, "N T"],
    *,
    positions: Int[Array, "N T"] | None = None,
    segment_ids: Int[Array, "N T"] | None = None,
    cache: None = None,
  ) -> Float[Array, "N T D"]: ...

  @overload
  def __call__(
    self,
    tokens: Int[Array, "N T"],
    *,
    positions: Int[Array, "N T"] | None = None,
    segment_ids: Int[Array, "N T"] | None = None,
    cache: KeyValueCache,
  ) -> tuple[Float[Array, "N T D"], KeyValueCache]: ...

  def __call__(
    self,
    tokens: Int[Array, "N T"],
    *,
    positions: Int[Array, "N T"] | None = None,
    segment_ids: Int[Array, "N T"] | None = None,
    cache: KeyValueCache | None = None,
  ) -> Float[Array, "N T D"] | tuple[Float[Array, "N T D"], KeyValueCache]:
    """Hidden states after the final norm.

    Args:
      tokens: token ids.
      positions: rotary position of each token; by default the number of tokens before it, in the row and (with a
        cache) among the row's written slots that are no padding.
      segment_ids: a token sees earlier tokens of its own segment only; segment 0 is padding, which no real token
        sees. By default all tokens are of segment 1. Hidden states of padding are finite and mean nothing.
      cache: keys and values of earlier tokens of the same rows, from `init_cache` or an earlier call.

    Returns:
      Hidden states in the computation type; with a cache, they and the cache that holds these tokens too.

    Raises:
      ValueError: more tokens than the cache has slots.
    """
    num_rows, num_tokens = tokens.shape
    if segment_ids is None:
      segment_ids = jnp.ones((num_rows, num_tokens), jnp.int32)
    if positions is None:
      seen = 0 if cache is None else jnp.sum(cache.segment_ids != 0, axis=1, keepdims=True, dtype=jnp.int32)
      positions = seen + jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (num_rows, num_tokens))
    rotary = _rotary(positions, self.config)
    x = self.embedding[...][tokens].astype(self.dtype)

    if cache is None:
      mask = _visible(segment_ids, segment_ids, 0)

      def layer_step(x: Array, layer: LlamaLayer) -> tuple[Array, None]:
        q, k, v = layer.queries_keys_values(x, rotary)
        return layer.add_attention_and_mlp(x, attention(q, k, v, mask=mask)), None

      x, _ = jax.lax.scan(layer_step, x, self.layers)
      return _rms_norm(x, self.final_norm[...], self.config.rms_norm_eps)

    slot, num_slots = cache.next_slot, cache.segment_ids.shape[1]
    if num_tokens > num_slots:
      raise ValueError(f"{num_tokens} tokens do not fit a cache of {num_slots} slots")
    cached_segments = jax.lax.dynamic_update_slice(
      cache.segment_ids, segment_ids.astype(cache.segment_ids.dtype), (0, slot)
    )
    mask = _visible(segment_ids, cached_segments, slot)

    # The cache is carried, not scanned over: a carried buffer is written in place, a scanned one is copied whole.
    def cached_step(
      carry: tuple[Array, Array, Array], scanned: tuple[LlamaLayer, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
      x, all_k, all_v = carry
      layer, i = scanned
      q, k, v = layer.queries_keys_values(x, rotary)
      all_k = jax.lax.dynamic_update_slice(all_k, k[None].astype(all_k.dtype), (i, 0, slot, 0, 0))
      all_v = jax.lax.dynamic_update_slice(all_v, v[None].astype(all_v.dtype), (i, 0, slot, 0, 0))
      attended = attention(q, all_k[i].astype(q.dtype), all_v[i].astype(q.dtype), mask=mask)
      return (layer.add_attention_and_mlp(x, attended), all_k, all_v), None

    indices = jnp.arange(self.config.num_layers)
    (x, k, v), _ = jax.lax.scan(cached_step, (x, cache.k, cache.v), (self.layers, indices))
    x = _rms_norm(x, self.final_norm[...], self.config.rms_norm_eps)
    return x, KeyValueCache(k, v, cached_segments, slot + num_tokens)

  def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Logits of the next token, float32; apart from the hidden states, so that no caller has to hold [T, V]."""
    hidden = hidden.astype(self.dtype)
    if self.head is None:
      w, spec = self.embedding[...], "...d,vd->...v"
    else:
      w, spec = self.head[...], "...d,dv->...v"
    return jnp.einsum(spec, hidden, w.astype(self.dtype), preferred_element_type=jnp.float32)

  def init_cache(self, num_rows: int, max_tokens: int, dtype: DTypeLike = jnp.float32) -> KeyValueCache:
    """An empty cache of ``max_tokens`` slots per row, prompt padding included."""
    shape = (self.config.num_layers, num_rows, max_tokens, self.config.num_kv_heads, self.config.head_dim)
    return KeyValueCache(
      k=jnp.zeros(shape, dtype),
      v=jnp.zeros(shape, dtype),
      segment_ids=jnp.zeros((num_rows, max_tokens), jnp.int32),
      next_slot=jnp.zeros((), jnp.int32),
    )


def _flat(x: Float[Array, "N T D"]) -> Float[Array, "NT D"]:
  """Tokens of all rows as one matrix: for a [N, T, D] operand XLA on CPU transposes the gradient of every kernel by
  copying it, and a training step of a 2-layer model takes 580 ms instead of 440."""
  return x.reshape(-1, x.shape[-1])


def _rms_norm(x: Float[Array, "*rows D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
  h = x.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps)
  return h.astype(x.dtype) * weight.astype(x.dtype)


def _rotary(positions: Int[Array, "N T"], config: LlamaConfig) -> tuple[Array, Array]:
  """Cosine and sine of every pair's angle, float32 [N, T, 1, head_dim / 2]: position 1,000 is past bfloat16's steps."""
  exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
  angles = positions[..., None, None].astype(jnp.float32) * (1.0 / config.rope_theta**exponents)
  return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Float[Array, "N T h d"], rotary: tuple[Array, Array]) -> Float[Array, "N T h d"]:
  """Turns each pair (i, i + d/2) by its angle: the rotate-half layout of Hugging Face files."""
  cos, sin = rotary
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _visible(
  queries: Int[Array, "N T"], keys: Int[Array, "N S"], first_slot: int | Int[Array, ""]
) -> Bool[Array, "N 1 T S"]:
  """Query t, which stands in slot first_slot + t, sees the slots of its own segment that are not later.

  Padding sees padding, so that every query sees a key, if only itself, and no softmax is over nothing.
  """
  query_slots = first_slot + jnp.arange(queries.shape[1])
  causal = query_slots[:, None] >= jnp.arange(keys.shape[1])
  same = queries[:, :, None] == keys[:, None, :]
  return (causal & same)[:, None]
