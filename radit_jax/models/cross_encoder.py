"""A BERT that reads question and passage together, and says with one number how well they fit."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from radit_jax.models.bert import Bert, BertConfig


class CrossEncoder(nnx.Module):
  """A BERT or RoBERTa with the head of `...ForSequenceClassification` for one label.

  Args:
    body: without a pooling layer of its own: that layer is the first one of the head here, in BERT too.
    rngs: keys of the random first parameters.

  Example:
    >>> model = CrossEncoder(Bert(BertConfig.tiny(vocab_size=50), rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    >>> tokens = jnp.array([[2, 7, 3, 9, 3, 0]])
    >>> model(tokens, tokens != 0, jnp.array([3])).shape
    (1,)
  """

  def __init__(self, body: Bert, *, rngs: nnx.Rngs):
    width = body.config.hidden_size
    self.body = body
    self.dense_kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width, width)), logical_axes=("embed", None))
    self.dense_bias = nnx.Param(jnp.zeros(width), logical_axes=("norm",))
    self.out_kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width, 1)), logical_axes=("embed", None))
    self.out_bias = nnx.Param(jnp.zeros(1), logical_axes=(None,))

  @property
  def config(self) -> BertConfig:
    """Of the body."""
    return self.body.config

  def __call__(
    self, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"], passage_starts: Int[Array, "N"]
  ) -> Float[Array, "N"]:
    """Logits in float32, before any sigmoid.

    Args:
      tokens: token ids of a question and a passage; the first one is what is pooled.
      mask: True for real tokens.
      passage_starts: position from which tokens have type 1; a family with one type reads none.

    Raises:
      ValueError: more tokens than there are positions.
    """
    types = None
    if self.config.type_vocab_size > 1:
      types = (jnp.arange(tokens.shape[1]) >= passage_starts[:, None]).astype(jnp.int32)
    first = self.body(tokens, mask, types)[:, 0].astype(jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    pooled = jnp.tanh(jnp.matmul(first, self.dense_kernel[...], precision=highest) + self.dense_bias[...])
    return (jnp.matmul(pooled, self.out_kernel[...], precision=highest) + self.out_bias[...])[:, 0]
