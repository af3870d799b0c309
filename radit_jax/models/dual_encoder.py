"""Two encoders and the temperature their dot products are read at."""

from typing import Protocol

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from radit_jax.errors import UserError
from radit_jax.models.encoder import TextEncoder


class Encoder(Protocol):
  """A pytree (an NNX module, a registered dataclass, ``jax.tree_util.Partial``) that pools token ids into vectors."""

  def __call__(self, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"], /) -> Float[Array, "N E"]: ...


def default_temperature(*, normalize: bool) -> float:
  """Temperature of a retriever whose files name none: 0.05 for vectors of length 1, else 1.

  Cosines at temperature 1 are no distribution: MiniLM gives the best of ten passages the weight 0.113.

  Example:
    >>> default_temperature(normalize=True)
    0.05
  """
  return 0.05 if normalize else 1.0


class DualEncoder(nnx.Module):
  r"""A retriever: :math:`s(q, c) = E_q(q) \cdot E_d(c)`, read as a distribution at ``score_temperature``.

  The two encoders never share an array, so tuning one leaves the other as it was.

  Args:
    query_encoder: encodes questions; the one that is tuned.
    passage_encoder: encodes passages; frozen, so that the index stays valid.
    score_temperature: divides the scores in eq. 2, in LSR and in evaluation alike; greater than 0.

  Raises:
    UserError: widths that differ, or a temperature that is not above 0.

  References:
    Lin et al., RA-DIT, eq. (1).
  """

  def __init__(self, query_encoder: TextEncoder, passage_encoder: TextEncoder, score_temperature: float):
    widths = query_encoder.dimensions, passage_encoder.dimensions
    if widths[0] != widths[1]:
      raise UserError(f"query encoder of width {widths[0]}, passage encoder of width {widths[1]}: they must agree")
    if not score_temperature > 0:
      raise UserError(f"score_temperature = {score_temperature}: must be greater than 0")
    self.query_encoder = query_encoder
    self.passage_encoder = passage_encoder
    self.score_temperature = score_temperature

  def encode_queries(self, tokens: Int[Array, "Q T"], mask: Bool[Array, "Q T"]) -> Float[Array, "Q E"]:
    """Float32 vectors of queries; ``mask`` is True for real tokens."""
    return self.query_encoder(tokens, mask)

  def encode_passages(self, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"]) -> Float[Array, "N E"]:
    """Float32 vectors of passages; ``mask`` is True for real tokens."""
    return self.passage_encoder(tokens, mask)
