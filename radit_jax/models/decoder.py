"""The decoder of every family: grouped-query attention, rotary positions, gated feed-forward; layers scanned."""

import dataclasses
from collections.abc import Callable
from typing import Literal, Self, TypeVar, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from radit_jax.config import Remat
from radit_jax.errors import UserError
from radit_jax.models import cudnn
from radit_jax.models.attention import AttentionChoice, AttentionKind, attention, attention_choice, platform_in_force
from radit_jax.models.blocked import blocked_attention
from radit_jax.models.embedding import look_up
from radit_jax.models.kernels import project
from radit_jax.models.remat import rematerialized
from radit_jax.models.rotary import Rotary, turn, turns
from radit_jax.models.source import SourceFiles
from radit_jax.models.splash import splash_attention
from radit_jax.sharding import constrain_rows

_T = TypeVar("_T")
Activation = Literal["silu", "gelu", "gelu_tanh"]
_ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape of a decoder, and what its family does differently. The defaults are Llama's.

  Attributes:
    vocab_size: rows of the embedding, never padded.
    hidden_size: width D of the residual stream.
    intermediate_size: width of the feed-forward layer.
    num_layers: layers.
    num_heads: query heads.
    num_kv_heads: key and value heads; divides num_heads.
    head_dim: width of one head.
    rotary: positions.
    rms_norm_eps: added to the mean square in every norm.
    tie_word_embeddings: the output head is the embedding (or nobody needs one).
    max_positions: longest row the model was trained for.
    window: in layers with a window, a token sees keys less than this many positions away; None for no such layers.
    window_layers: which layers have the window; empty for all of them.
    window_rotary: positions of the layers with a window; None for the same as the others'.
    qkv_bias: queries, keys and values have biases (Qwen 2).
    o_bias: so has the attention's output (Llama with attention_bias).
    qk_norm: heads of queries and keys are normalised before they are turned (Qwen 3, Gemma 3).
    activation: of the gate.
    norm_offset: norms multiply by 1 + weight (Gemma).
    post_norms: the outputs of attention and feed-forward are normalised too before they are added (Gemma 2, 3).
    embedding_scale: embeddings are multiplied by it (Gemma).
    attention_scale: scores are multiplied by it; None for head_dim ** -0.5.
    attention_soft_cap: see :func:`radit_jax.models.attention.attention`.
    logit_soft_cap: the same for the logits of the output head.
    causal: a token sees earlier ones only; False for an encoder of this build (ModernBERT).
    layer_norm: norms take the mean away (ModernBERT).
    embedding_norm: embeddings are normalised, and the first layer's attention reads them as they are (ModernBERT).
    fused: the files hold queries, keys and values in one tensor, and gate and up in another (Phi-3).
    source: files it was read from; None for a new model.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rotary: Rotary = Rotary()
  rms_norm_eps: float = 1e-5
  tie_word_embeddings: bool = False
  max_positions: int = 2048
  window: int | None = None
  window_layers: tuple[bool, ...] = ()
  window_rotary: Rotary | None = None
  qkv_bias: bool = False
  o_bias: bool = False
  qk_norm: bool = False
  activation: Activation = "silu"
  norm_offset: bool = False
  post_norms: bool = False
  embedding_scale: float = 1.0
  attention_scale: float | None = None
  attention_soft_cap: float | None = None
  logit_soft_cap: float | None = None
  causal: bool = True
  layer_norm: bool = False
  embedding_norm: bool = False
  fused: bool = False
  source: SourceFiles | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if type(value) in (int, float) and not value > 0:
        raise UserError(f"DecoderConfig.{field.name} = {value}: must be greater than 0")
    if self.num_heads % self.num_kv_heads:
      raise UserError(f"DecoderConfig: num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
    self.rotary.frequencies(self.head_dim)
    if self.window_layers and (self.window is None or len(self.window_layers) != self.num_layers):
      raise UserError(
        f"DecoderConfig: {len(self.window_layers)} window_layers and window {self.window}: "
        f"needs {self.num_layers} and a number"
      )
    if self.activation not in _ACTIVATIONS:
      raise UserError(f"DecoderConfig.activation = {self.activation!r}: must be one of {', '.join(_ACTIVATIONS)}")

  @property
  def heads(self) -> dict[str, int]:
    """What a mesh must be able to spread, see :func:`radit_jax.sharding.check_heads`."""
    return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}

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
    positions: position of each slot's token; a window counts in these.
    next_slot: scalar, the first free slot. A write past the last slot is not noticed under ``jit``: size the cache
      for the prompt and everything that is to be appended.
  """

  k: Float[Array, "L N S Hkv d"]
  v: Float[Array, "L N S Hkv d"]
  segment_ids: Int[Array, "N S"]
  positions: Int[Array, "N S"]
  next_slot: Int[Array, ""]


class DecoderLayer(nnx.Module):
  """All layers in one module: every parameter has a leading layer axis, which ``jax.lax.scan`` takes off."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    num_layers, width, hidden = config.num_layers, config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def kernel(fan_in: int, fan_out: int, in_axis: str, out_axis: str, scale: float = 1.0) -> nnx.Param[Array]:
      value = jax.random.normal(rngs.params(), (num_layers, fan_in, fan_out)) * (scale / fan_in**0.5)
      return nnx.Param(value, logical_axes=("layers", in_axis, out_axis))

    def bias(size: int, axis: str, wanted: bool) -> nnx.Param[Array] | None:
      return nnx.Param(jnp.zeros((num_layers, size)), logical_axes=("layers", axis)) if wanted else None

    def norm(size: int = width, axis: str = "norm", wanted: bool = True) -> nnx.Param[Array] | None:
      value = jnp.full((num_layers, size), 0.0 if config.norm_offset else 1.0)
      return nnx.Param(value, logical_axes=("layers", axis)) if wanted else None

    # What is added to the residual stream starts small, or the variance of the stream would grow with the depth.
    residual = (2 * num_layers) ** -0.5
    self.config = config
    self.attention_norm = norm()
    self.q_kernel = kernel(width, q_width, "embed", "heads")
    self.q_bias = bias(q_width, "heads", config.qkv_bias)
    self.k_kernel = kernel(width, kv_width, "embed", "kv_heads")
    self.k_bias = bias(kv_width, "kv_heads", config.qkv_bias)
    self.v_kernel = kernel(width, kv_width, "embed", "kv_heads")
    self.v_bias = bias(kv_width, "kv_heads", config.qkv_bias)
    self.q_norm = norm(config.head_dim, "head_dim", config.qk_norm)
    self.k_norm = norm(config.head_dim, "head_dim", config.qk_norm)
    self.o_kernel = kernel(q_width, width, "heads", "embed", residual)
    self.o_bias = bias(width, "norm", config.o_bias)
    self.attention_out_norm = norm(wanted=config.post_norms)
    self.mlp_norm = norm()
    self.gate_kernel = kernel(width, hidden, "embed", "mlp")
    self.up_kernel = kernel(width, hidden, "embed", "mlp")
    self.down_kernel = kernel(hidden, width, "mlp", "embed", residual)
    self.mlp_out_norm = norm(wanted=config.post_norms)

  def queries_keys_values(
    self, x: Float[Array, "N T D"], rotary: tuple[Float[Array, "N T 1 r"], Float[Array, "N T 1 r"]], is_first: Array
  ) -> tuple[Float[Array, "N T H d"], Float[Array, "N T Hkv d"], Float[Array, "N T Hkv d"]]:
    """Queries and keys turned to their positions, and values, of one layer."""
    flat = x.reshape(-1, x.shape[-1])
    normed = _norm(flat, self.attention_norm, self.config)
    flat = jnp.where(is_first, flat, normed) if self.config.embedding_norm else normed
    q, k, v = (
      project(flat, kernel, bias).reshape(*x.shape[:2], -1, self.config.head_dim)
      for kernel, bias in (
        (self.q_kernel, self.q_bias),
        (self.k_kernel, self.k_bias),
        (self.v_kernel, self.v_bias),
      )
    )
    q, k = _norm(q, self.q_norm, self.config), _norm(k, self.k_norm, self.config)
    return turn(q, rotary), turn(k, rotary), v

  def add_attention_and_mlp(self, x: Float[Array, "N T D"], attended: Float[Array, "N T H d"]) -> Float[Array, "N T D"]:
    """The residual stream after one layer, given what its heads read."""
    config = self.config
    flat = x.reshape(-1, x.shape[-1])
    read = project(attended.reshape(len(flat), -1), self.o_kernel, self.o_bias)
    flat = flat + _norm(read, self.attention_out_norm, config)
    h = _norm(flat, self.mlp_norm, config)
    h = _ACTIVATIONS[config.activation](project(h, self.gate_kernel)) * project(h, self.up_kernel)
    out = flat + _norm(project(h, self.down_kernel), self.mlp_out_norm, config)
    return constrain_rows(out.reshape(x.shape))


class Decoder(nnx.Module):
  """A decoder-only language model.

  Args:
    config: shape of the model.
    rngs: keys of the random first parameters, which are float32.
    dtype: computation type. Parameters keep their own type and are cast where they are used; norms, softmax, rotary
      angles and logits are float32 in any case.
    remat: what the backward pass computes again of each layer, see :func:`radit_jax.models.remat.rematerialized`.
    kind: form of attention without a cache; None for :func:`radit_jax.models.attention.attention_choice`'s on the
      mesh in force. "splash" on other platforms than TPUs is interpreted: right and slow, for tests.
    max_segments: segments in a row, padding among them, that attention "cudnn" makes room for: 2 for padded rows.

  Example:
    >>> generator = Decoder(DecoderConfig.tiny(vocab_size=50), rngs=nnx.Rngs(0))
    >>> hidden = generator(jnp.array([[3, 4, 5]]))
    >>> generator.logits(hidden).shape
    (1, 3, 50)
  """

  def __init__(
    self,
    config: DecoderConfig,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    kind: AttentionKind | None = None,
    max_segments: int = 2,
  ):
    vocab, width = config.vocab_size, config.hidden_size
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.remat = remat
    self.kind = kind
    self.max_segments = max_segments
    self.embedding = nnx.Param(
      jax.random.normal(rngs.params(), (vocab, width)) / width**0.5, logical_axes=("vocab", "embed")
    )
    one = 0.0 if config.norm_offset else 1.0
    self.embedding_norm = nnx.Param(jnp.full(width, one), logical_axes=("norm",)) if config.embedding_norm else None
    self.layers = DecoderLayer(config, rngs=rngs)
    self.final_norm = nnx.Param(jnp.full(width, one), logical_axes=("norm",))
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
    prefix_ids: Int[Array, "N T"] | None = None,
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
    prefix_ids: Int[Array, "N T"] | None = None,
    cache: KeyValueCache | None = None,
  ) -> Float[Array, "N T D"] | tuple[Float[Array, "N T D"], KeyValueCache]:
    """Hidden states after the final norm.

    Args:
      tokens: token ids.
      positions: rotary position of each token; by default the number of tokens before it, in the row and (with a
        cache) among the row's written slots that are no padding.
      segment_ids: a token sees earlier tokens of its own segment only; segment 0 is padding, which no real token
        sees. By default all tokens are of segment 1. Hidden states of padding are finite and mean nothing.
      prefix_ids: an earlier segment of the row that a token sees too, whole; 0 for none. Positions of its tokens count
        on from that segment's. Not with a cache, and only where :attr:`shares_prefixes`.
      cache: keys and values of earlier tokens of the same rows, from `init_cache` or an earlier call.

    Returns:
      Hidden states in the computation type; with a cache, they and the cache that holds these tokens too.

    Raises:
      ValueError: more tokens than the cache has slots, or prefixes where they cannot be shared.
    """
    num_rows, num_tokens = tokens.shape
    if prefix_ids is not None and (cache is not None or not self.shares_prefixes):
      raise ValueError(f"prefix_ids: not with a cache, and not with {self.attention().kind} attention of this model")
    if segment_ids is None:
      segment_ids = jnp.ones((num_rows, num_tokens), jnp.int32)
    if positions is None:
      seen = 0 if cache is None else jnp.sum(cache.segment_ids != 0, axis=1, keepdims=True, dtype=jnp.int32)
      positions = seen + jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (num_rows, num_tokens))
    config = self.config
    x = look_up(self.embedding, tokens, self.dtype) * jnp.asarray(config.embedding_scale, self.dtype)
    x = _norm(x, self.embedding_norm, config)

    if cache is None:
      kind = self.attention().kind
      attend, rotary_of = _without_cache(config, kind, self.max_segments, positions, segment_ids, prefix_ids)

      def layer_step(x: Array, scanned: tuple[DecoderLayer, Array]) -> tuple[Array, None]:
        layer, i = scanned
        q, k, v = layer.queries_keys_values(x, rotary_of(i), i == 0)
        return layer.add_attention_and_mlp(x, attend(i, q, k, v)), None

      x, _ = jax.lax.scan(rematerialized(layer_step, self.remat), x, (self.layers, jnp.arange(config.num_layers)))
      return _norm(x, self.final_norm, config)

    slot, num_slots = cache.next_slot, cache.segment_ids.shape[1]
    if num_tokens > num_slots:
      raise ValueError(f"{num_tokens} tokens do not fit a cache of {num_slots} slots")
    if not config.causal:
      raise ValueError("a cache is for models that see earlier tokens only; this one sees later ones too")

    def written(slots: Array, new: Array) -> Array:
      return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), (0, slot))

    cached_segments, cached_positions = written(cache.segment_ids, segment_ids), written(cache.positions, positions)
    mask_of = _masks(config, positions, segment_ids, cached_segments, cached_positions, slot)
    rotary_of = _rotaries(config, positions)

    # The cache is carried, not scanned over: a carried buffer is written in place, a scanned one is copied whole.
    def cached_step(
      carry: tuple[Array, Array, Array], scanned: tuple[DecoderLayer, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
      x, all_k, all_v = carry
      layer, i = scanned
      q, k, v = layer.queries_keys_values(x, rotary_of(i), i == 0)
      all_k = jax.lax.dynamic_update_slice(all_k, k[None].astype(all_k.dtype), (i, 0, slot, 0, 0))
      all_v = jax.lax.dynamic_update_slice(all_v, v[None].astype(all_v.dtype), (i, 0, slot, 0, 0))
      attended = _attend(config, q, all_k[i].astype(q.dtype), all_v[i].astype(q.dtype), mask_of(i))
      return (layer.add_attention_and_mlp(x, attended), all_k, all_v), None

    (x, k, v), _ = jax.lax.scan(cached_step, (x, cache.k, cache.v), (self.layers, jnp.arange(config.num_layers)))
    x = _norm(x, self.final_norm, config)
    return x, KeyValueCache(k, v, cached_segments, cached_positions, slot + num_tokens)

  def attention(self) -> AttentionChoice:
    """The form of attention of whole rows on the mesh in force.

    Raises:
      UserError: "cudnn" was asked for where it cannot run.
    """
    config = self.config
    choice = attention_choice(
      "gpu" if self.kind == "cudnn" else platform_in_force(),
      causal=config.causal,
      windows=config.window is not None,
      soft_cap=config.attention_soft_cap,
      dtype=self.dtype,
      head_dim=config.head_dim,
      capability=cudnn.capability(),
    )
    if self.kind == "cudnn" and choice.kind != "cudnn":
      raise UserError(f"attention cudnn: {choice.reason}; use plain")
    return choice if self.kind is None else AttentionChoice(self.kind, "asked for")

  @property
  def shares_prefixes(self) -> bool:
    """Whether tokens can see a segment besides their own, with the form of attention on the mesh in force.

    The kernel for TPUs measures windows in slots of a row, and between a prefix and what shares it lie others.
    """
    kind = self.attention().kind
    return self.config.causal and (kind in ("plain", "blocked") or (kind == "splash" and self.config.window is None))

  def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Logits of the next token, float32; apart from the hidden states, so that no caller has to hold [T, V]."""
    hidden = hidden.astype(self.dtype)
    if self.head is None:
      w, spec = self.embedding[...], "...d,vd->...v"
    else:
      w, spec = self.head[...], "...d,dv->...v"
    logits = jnp.einsum(spec, hidden, w.astype(self.dtype), preferred_element_type=jnp.float32)
    cap = self.config.logit_soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  def init_cache(self, num_rows: int, max_tokens: int, dtype: DTypeLike = jnp.float32) -> KeyValueCache:
    """An empty cache of ``max_tokens`` slots per row, prompt padding included."""
    shape = (self.config.num_layers, num_rows, max_tokens, self.config.num_kv_heads, self.config.head_dim)
    return KeyValueCache(
      k=jnp.zeros(shape, dtype),
      v=jnp.zeros(shape, dtype),
      segment_ids=jnp.zeros((num_rows, max_tokens), jnp.int32),
      positions=jnp.zeros((num_rows, max_tokens), jnp.int32),
      next_slot=jnp.zeros((), jnp.int32),
    )


def _norm(
  x: Float[Array, "*rows D"], weight: nnx.Variable[Array] | None, config: DecoderConfig
) -> Float[Array, "*rows D"]:
  """Normalised in float32; as it is where a family has no such norm."""
  if weight is None:
    return x
  h = x.astype(jnp.float32)
  if config.layer_norm:
    h = h - jnp.mean(h, axis=-1, keepdims=True)
  h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + config.rms_norm_eps)
  if config.norm_offset:  # 1 + weight would be rounded in bfloat16
    return (h * (1.0 + weight[...].astype(jnp.float32))).astype(x.dtype)
  return h.astype(x.dtype) * weight[...].astype(x.dtype)


def _attend(
  config: DecoderConfig, q: Array, k: Array, v: Array, mask: Array, form: Callable[..., Array] = attention
) -> Array:
  return form(q, k, v, mask=mask, scale=config.attention_scale, soft_cap=config.attention_soft_cap)


def _by_layer(config: DecoderConfig, i: Array, near: Callable[[], _T], full: Callable[[], _T]) -> _T:
  """``near()`` for a layer with a window, ``full()`` for another, by the layer's number inside the scan."""
  if config.window is None or not any(config.window_layers or [True]):
    return full()
  if all(config.window_layers):
    return near()
  return jax.lax.cond(jnp.asarray(config.window_layers)[i], near, full)


def _rotaries(config: DecoderConfig, positions: Int[Array, "N T"]) -> Callable[[Array], tuple[Array, Array]]:
  """Rotary positions of each layer; made once, outside the scan."""
  full = turns(positions, config.rotary, config.head_dim)
  near = full if config.window_rotary is None else turns(positions, config.window_rotary, config.head_dim)
  return lambda i: _by_layer(config, i, lambda: near, lambda: full)


def _masks(
  config: DecoderConfig,
  positions: Int[Array, "N T"],
  queries: Int[Array, "N T"],
  keys: Int[Array, "N S"],
  key_positions: Int[Array, "N S"],
  first_slot: int | Int[Array, ""],
  prefixes: Int[Array, "N T"] | None = None,
) -> Callable[[Array], Array]:
  """What each layer's queries see; made once, outside the scan."""
  full = _visible(queries, keys, first_slot, prefixes, causal=config.causal)
  if config.window is None:
    return lambda i: full
  near = full & (jnp.abs(positions[:, :, None] - key_positions[:, None, :]) < config.window)[:, None]
  return lambda i: _by_layer(config, i, lambda: near, lambda: full)


def _without_cache(
  config: DecoderConfig,
  kind: AttentionKind,
  max_segments: int,
  positions: Int[Array, "N T"],
  segment_ids: Int[Array, "N T"],
  prefix_ids: Int[Array, "N T"] | None,
) -> tuple[Callable[[Array, Array, Array, Array], Array], Callable[[Array], tuple[Array, Array]]]:
  """Attention ``(i, q, k, v) -> attended`` and rotary positions of each layer, for rows that are seen whole."""
  rotary_of = _rotaries(config, positions)
  if kind != "plain" and not config.causal:
    raise ValueError(f"{kind} attention is for models that see earlier tokens only; this one sees later ones too")
  if kind in ("plain", "blocked"):
    mask_of = _masks(config, positions, segment_ids, segment_ids, positions, 0, prefix_ids)
    form = attention if kind == "plain" else blocked_attention
    return lambda i, q, k, v: _attend(config, q, k, v, mask_of(i), form), rotary_of
  if kind == "cudnn":

    def fused(i: Array, q: Array, k: Array, v: Array) -> Array:
      scale = config.attention_scale
      return cudnn.cudnn_attention(q, k, v, segment_ids=segment_ids, max_segments=max_segments, scale=scale)

    return fused, rotary_of

  def splash(q: Array, k: Array, v: Array, window: int | None) -> Array:
    return splash_attention(
      q,
      k,
      v,
      segment_ids=segment_ids,
      prefix_ids=prefix_ids,
      window=window,
      scale=config.attention_scale,
      soft_cap=config.attention_soft_cap,
      interpret=platform_in_force() != "tpu",
    )

  def attend(i: Array, q: Array, k: Array, v: Array) -> Array:
    return _by_layer(config, i, lambda: splash(q, k, v, config.window), lambda: splash(q, k, v, None))

  return attend, rotary_of


def _visible(
  queries: Int[Array, "N T"],
  keys: Int[Array, "N S"],
  first_slot: int | Int[Array, ""],
  prefixes: Int[Array, "N T"] | None = None,
  *,
  causal: bool,
) -> Bool[Array, "N 1 T S"]:
  """Query t, which stands in slot first_slot + t, sees the slots of its own segment and prefix (that are not later).

  Padding sees padding, so that every query sees a key, if only itself, and no softmax is over nothing.
  """
  same = queries[:, :, None] == keys[:, None, :]
  if prefixes is not None:
    same |= (prefixes[:, :, None] == keys[:, None, :]) & (prefixes != 0)[:, :, None]
  if causal:
    query_slots = first_slot + jnp.arange(queries.shape[1])
    same &= query_slots[:, None] >= jnp.arange(keys.shape[1])
  return same[:, None]
