"""A body and a pooling: text in, one vector out."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from radit_jax.config import Pooling
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
  """How a text becomes one vector.

  Attributes:
    pooling: hidden state of the first token ("cls") or of the last real one ("last"), or the mean over the real ones.
    normalize: the vector is scaled to length 1.
    max_tokens: texts are cut to this many tokens, prompt and special tokens included.
    query_prompt: put in front of every question, such as "query: ".
    passage_prompt: put in front of every passage.
    dimensions: only so many first values of the vector are kept (Matryoshka), before it is scaled; None for all.
  """

  pooling: Pooling = "mean"
  normalize: bool = False
  max_tokens: int = 512
  query_prompt: str = ""
  passage_prompt: str = ""
  dimensions: int | None = None

  def __post_init__(self) -> None:
    if self.pooling not in ("cls", "mean", "last"):
      raise UserError(f'EmbeddingConfig.pooling = {self.pooling!r}: must be "cls", "mean" or "last"')
    for name in ("max_tokens", "dimensions"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise UserError(f"EmbeddingConfig.{name} = {value}: must be greater than 0")


class TextEncoder(nnx.Module):
  """A transformer and the pooling of its hidden states.

  Args:
    body: a :class:`Bert`, or a :class:`Decoder` (Qwen3-Embedding, E5-Mistral; ModernBERT is one that is not causal).
    config: the pooling.

  Raises:
    UserError: more tokens than the body has positions for, or more dimensions than it is wide.

  Example:
    >>> from radit_jax.models.bert import BertConfig
    >>> encoder = TextEncoder(Bert(BertConfig.tiny(vocab_size=50), rngs=nnx.Rngs(0)), EmbeddingConfig(max_tokens=64))
    >>> tokens = jnp.array([[2, 7, 3, 0]])
    >>> encoder(tokens, tokens != 0).shape
    (1, 128)
  """

  def __init__(self, body: Bert | Decoder, config: EmbeddingConfig):
    longest = body.config.longest_row if isinstance(body, Bert) else body.config.max_positions
    if config.max_tokens > longest:
      raise UserError(f"EmbeddingConfig.max_tokens = {config.max_tokens}: the model has positions for {longest}")
    if (config.dimensions or 1) > body.config.hidden_size:
      raise UserError(f"EmbeddingConfig.dimensions = {config.dimensions}: the model is {body.config.hidden_size} wide")
    self.body = body
    self.config = config

  @property
  def dimensions(self) -> int:
    """Width E of the vectors."""
    return self.config.dimensions or self.body.config.hidden_size

  def __call__(self, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"]) -> Float[Array, "N E"]:
    """One float32 vector per row; a row without a real token gives a finite one, without gradients that are not.

    Args:
      tokens: token ids.
      mask: True for real tokens.

    Raises:
      ValueError: more tokens than there are positions.
    """
    if isinstance(self.body, Bert):
      hidden = self.body(tokens, mask)
    else:
      hidden = self.body(tokens, segment_ids=mask.astype(jnp.int32))
    if self.config.pooling == "cls":
      pooled = jnp.take_along_axis(hidden, jnp.argmax(mask, axis=1)[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    elif self.config.pooling == "last":
      last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
      pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    else:
      weights = mask.astype(jnp.float32)[..., None]
      total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
      pooled = total / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    pooled = pooled[:, : self.dimensions]
    if self.config.normalize:
      # The maximum stands inside the root: the gradient of a norm at 0 would be NaN.
      pooled = pooled * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(pooled), axis=-1, keepdims=True), 1e-24))
    return pooled
