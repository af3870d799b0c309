"""The BERT and RoBERTa families: hidden states of whole texts; layers stacked and scanned."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from radit_jax.config import Remat
from radit_jax.errors import UserError
from radit_jax.models.attention import attention, attention_keys_first, platform_in_force
from radit_jax.models.embedding import look_up
from radit_jax.models.kernels import project
from radit_jax.models.remat import rematerialized
from radit_jax.models.source import SourceFiles
from radit_jax.sharding import constrain_rows


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Shape of a BERT.

  Attributes:
    vocab_size: rows of the word embedding.
    hidden_size: width, also of the embedding that comes out.
    num_layers: encoder layers.
    num_heads: attention heads; divides hidden_size.
    intermediate_size: width of the feed-forward layer.
    max_positions: rows of the position embedding, a hard limit.
    type_vocab_size: rows of the token-type embedding; an encoder of single texts uses the first.
    layer_norm_eps: added to the variance in every norm.
    padding_position: RoBERTa: padding has this position, and real tokens are counted from the next one on. None: all
      tokens are counted from 0, padding included.
    pooler: the files hold BERT's own pooling layer. Nothing here uses it; it is carried so that it is saved again.
    source: files it was read from; None for a new model.
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  max_positions: int = 512
  type_vocab_size: int = 2
  layer_norm_eps: float = 1e-12
  padding_position: int | None = None
  pooler: bool = False
  source: SourceFiles | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if field.type in (int, float) and not getattr(self, field.name) > 0:
        raise UserError(f"BertConfig.{field.name} = {getattr(self, field.name)}: must be greater than 0")
    if self.hidden_size % self.num_heads:
      raise UserError(f"BertConfig: hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")

  @property
  def heads(self) -> dict[str, int]:
    """What a mesh must be able to spread, see :func:`radit_jax.sharding.check_heads`."""
    return {"num_heads": self.num_heads}

  @property
  def longest_row(self) -> int:
    """Tokens of the longest row that has a position for each."""
    return self.max_positions - (0 if self.padding_position is None else self.padding_position + 1)

  @classmethod
  def tiny(cls, vocab_size: int) -> Self:
    """Two layers of width 128: an encoder that trains within a minute on a CPU."""
    return cls(
      vocab_size=vocab_size, hidden_size=128, num_layers=2, num_heads=4, intermediate_size=384, max_positions=256
    )


class BertLayer(nnx.Module):
  """All encoder layers in one module: every parameter has a leading layer axis, which ``jax.lax.scan`` takes off."""

  def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
    num_layers, width, hidden = config.num_layers, config.hidden_size, config.intermediate_size

    def kernel(fan_in: int, fan_out: int, in_axis: str, out_axis: str) -> nnx.Param[Array]:
      value = 0.02 * jax.random.normal(rngs.params(), (num_layers, fan_in, fan_out))
      return nnx.Param(value, logical_axes=("layers", in_axis, out_axis))

    def vector(value: float, size: int, axis: str) -> nnx.Param[Array]:
      return nnx.Param(jnp.full((num_layers, size), value), logical_axes=("layers", axis))

    self.config = config
    self.q_kernel = kernel(width, width, "embed", "heads")
    self.q_bias = vector(0.0, width, "heads")
    self.k_kernel = kernel(width, width, "embed", "heads")
    self.k_bias = vector(0.0, width, "heads")
    self.v_kernel = kernel(width, width, "embed", "heads")
    self.v_bias = vector(0.0, width, "heads")
    self.o_kernel = kernel(width, width, "heads", "embed")
    self.o_bias = vector(0.0, width, "norm")
    self.attention_norm = vector(1.0, width, "norm")
    self.attention_norm_bias = vector(0.0, width, "norm")
    self.up_kernel = kernel(width, hidden, "embed", "mlp")
    self.up_bias = vector(0.0, hidden, "mlp")
    self.down_kernel = kernel(hidden, width, "mlp", "embed")
    self.down_bias = vector(0.0, width, "norm")
    self.mlp_norm = vector(1.0, width, "norm")
    self.mlp_norm_bias = vector(0.0, width, "norm")

  def __call__(self, x: Float[Array, "N T D"], mask: Bool[Array, "N T"]) -> Float[Array, "N T D"]:
    """One layer: each block's output is added to its input, and the sum normalised."""
    eps, heads = self.config.layer_norm_eps, (*x.shape[:2], self.config.num_heads, -1)
    flat = x.reshape(-1, x.shape[-1])  # a [N, T, D] operand makes XLA on CPU copy to transpose kernel gradients
    q = project(flat, self.q_kernel, self.q_bias).reshape(heads)
    k = project(flat, self.k_kernel, self.k_bias).reshape(heads)
    v = project(flat, self.v_kernel, self.v_bias).reshape(heads)
    if platform_in_force() == "cpu":
      attended = attention_keys_first(q, k, v, keys=mask)
    else:
      pairs = jnp.broadcast_to(mask[:, None, None, :], (len(x), 1, x.shape[1], x.shape[1]))
      attended = attention(q, k, v, mask=pairs)
    attended = attended.reshape(flat.shape)
    flat = flat + project(attended, self.o_kernel, self.o_bias)
    flat = _layer_norm(flat, self.attention_norm[...], self.attention_norm_bias[...], eps)
    h = jax.nn.gelu(project(flat, self.up_kernel, self.up_bias), approximate=False)
    flat = flat + project(h, self.down_kernel, self.down_bias)
    flat = _layer_norm(flat, self.mlp_norm[...], self.mlp_norm_bias[...], eps)
    return constrain_rows(flat.reshape(x.shape))


class Bert(nnx.Module):
  """A BERT.

  Args:
    config: shape of the model.
    rngs: keys of the random first parameters, which are float32.
    dtype: computation type. Parameters keep their own type and are cast where they are used; norms and softmax are
      float32 in any case.
    remat: what the backward pass computes again of each layer, see :func:`radit_jax.models.remat.rematerialized`.

  Example:
    >>> bert = Bert(BertConfig.tiny(vocab_size=50), rngs=nnx.Rngs(0))
    >>> tokens = jnp.array([[2, 7, 3, 0]])
    >>> bert(tokens, tokens != 0).shape
    (1, 4, 128)
  """

  def __init__(self, config: BertConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, remat: Remat = "none"):
    width = config.hidden_size

    def table(rows: int, axis: str | None) -> nnx.Param[Array]:
      return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)), logical_axes=(axis, "embed"))

    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.remat = remat
    self.word_embedding = table(config.vocab_size, "vocab")
    self.position_embedding = table(config.max_positions, "positions")
    self.type_embedding = table(config.type_vocab_size, None)
    self.embedding_norm = nnx.Param(jnp.ones(width), logical_axes=("norm",))
    self.embedding_norm_bias = nnx.Param(jnp.zeros(width), logical_axes=("norm",))
    self.layers = BertLayer(config, rngs=rngs)
    # Variables, not Params: no training step should count or decay what has no gradient.
    pooler = config.pooler
    self.pooler_kernel = nnx.Variable(jnp.zeros((width, width)), logical_axes=("embed", None)) if pooler else None
    self.pooler_bias = nnx.Variable(jnp.zeros(width), logical_axes=("norm",)) if pooler else None

  def __call__(
    self, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"], types: Int[Array, "N T"] | None = None
  ) -> Float[Array, "N T D"]:
    """Hidden states of the last layer, in the computation type.

    Args:
      tokens: token ids.
      mask: True for real tokens; padding is seen by nobody.
      types: 0 for tokens of a first text and 1 for those of a second one; None for a single text.

    Raises:
      ValueError: more tokens than there are positions.
    """
    config, num_tokens = self.config, tokens.shape[1]
    if num_tokens > config.longest_row:
      raise ValueError(f"{num_tokens} tokens, but the encoder has positions for {config.longest_row}")
    mask = mask.astype(bool)
    table = self.position_embedding[...]
    if config.padding_position is None:
      places = table[:num_tokens]
    else:
      places = table[jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32), 0) + config.padding_position]
    x = look_up(self.word_embedding, tokens, jnp.float32)
    x = x + places.astype(jnp.float32) + self.type_embedding[...][0 if types is None else types]
    x = _layer_norm(x, self.embedding_norm[...], self.embedding_norm_bias[...], config.layer_norm_eps)

    def layer_step(x: Array, layer: BertLayer) -> tuple[Array, None]:
      return layer(x, mask), None

    return jax.lax.scan(rematerialized(layer_step, self.remat), x.astype(self.dtype), self.layers)[0]


def _layer_norm(
  x: Float[Array, "*rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*rows D"]:
  h = x.astype(jnp.float32)
  h = h - jnp.mean(h, axis=-1, keepdims=True)
  h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps)
  return (h * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
