"""A Milvus server as a source of candidates. It is given row numbers, embeddings, and numbers in place of metadata."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.errors import UserError
from radit_jax.retrieval import milvus_client
from radit_jax.retrieval.metadata import Allowed
from radit_jax.retrieval.milvus_client import EVERYWHERE, ask, connect, field_name
from radit_jax.retrieval.milvus_fill import check
from radit_jax.retrieval.scann import Settings, num_candidates

#: Queries of one message at most.
_MESSAGE_QUERIES = 2**10
#: Candidates of a query at most: as many as a server returns. And of a message.
_MOST, _MOST_OF_MESSAGE = 2**14, 2**20
#: Values that a filter may name; with more, the allowed passages are compared here.
_MOST_VALUES = 2**13


class MilvusCandidates:
  """A collection that :func:`radit_jax.retrieval.milvus_fill.fill` made.

  Args:
    uri: of the server.
    parameters: what :func:`radit_jax.retrieval.milvus_fill.fill` returned.
    settings: ``reorder`` is the number of candidates at least.
    shape: ``(N, E)`` of the embeddings that it must hold; candidates are places among them.

  Raises:
    UserError: a server that does not answer, or a collection that is missing, is not this index's, or is not whole.
  """

  def __init__(
    self,
    uri: str,
    parameters: Mapping[str, Any],
    settings: Settings,
    shape: tuple[int, int],
  ):
    self._uri, self._parameters, self._settings, self._count = uri, parameters, settings, shape[0]
    self._client = connect(uri)
    check(uri, self._client, parameters, shape)

  def with_settings(self, settings: Settings) -> "MilvusCandidates":
    """The same collection under other settings."""
    other = object.__new__(MilvusCandidates)
    other.__dict__.update(self.__dict__, _settings=settings)
    return other

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """See :class:`radit_jax.retrieval.index.Candidates`."""
    return self._search(queries, k, self._settings.leaves_to_search, "")[0]

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """See :class:`radit_jax.retrieval.index.Candidates`; the server looks at every partition, so that the bound holds.

    Values are sent as the numbers that they have in the metadata, fields as their own: no text of a caller ever
    becomes part of an expression, and what is equal is decided in one place. A server that did not show that it looks
    everywhere, when its collection was filled, is not asked.
    """
    values = sum(map(len, allowed.codes.values()))
    if not self._parameters.get("everywhere") or values > _MOST_VALUES:
      return np.full((len(queries), k), -1, np.int64), np.full(len(queries), np.inf)
    numbers = {field: number for number, field in enumerate(self._parameters["fields"])}
    terms = [(field_name(numbers[field]), [int(code) for code in codes]) for field, codes in allowed.codes.items()]
    expression = " and ".join(f"{name} in {codes}" for name, codes in terms)
    ids, products = self._search(queries, k, EVERYWHERE, expression)
    # What float32 sums may be wrong by.
    length = np.linalg.norm(queries.astype(np.float64), axis=1)
    wrong = 4 * queries.shape[1] * np.finfo(np.float32).eps * length * self._parameters["longest"]
    # Behind a full list comes nothing better than its last. A short one is believed if it has every allowed row.
    short = (ids < 0).any(axis=1)
    has_all = (allowed.only(ids) >= 0).sum(axis=1) == len(allowed)
    least = products.min(axis=1, initial=np.inf) + wrong
    return ids, np.where(short, np.where(has_all, -np.inf, np.inf), least)

  def _search(
    self, queries: Float[np.ndarray, "Q E"], k: int, leaves: int | None, expression: str
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q C"]]:
    """Rows and products as the server has them; -1 and -inf where it names no more."""
    wanted = min(max(num_candidates(k), self._settings.reorder), self._count)
    if wanted > _MOST:
      return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), wanted), -1, np.int64)
    products = np.full((len(queries), wanted), -np.inf)
    fit = milvus_client.MESSAGE_BYTES // (4 * queries.shape[1])
    step = max(1, min(_MESSAGE_QUERIES, fit, _MOST_OF_MESSAGE // max(1, wanted)))
    for first in range(0, len(queries), step):
      part = queries[first : first + step]
      answers = ask(self._uri, self._client, self._parameters, part, wanted, leaves, expression)
      for query, answer in enumerate(answers, first):
        rows = np.array(answer.ids, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self._count):
          raise UserError(
            f"{self._uri}: the collection {self._parameters['collection']} names a row {rows.max()}, the "
            f"index has {self._count}; build the index again"
          )
        ids[query, : len(rows)] = rows
        products[query, : len(rows)] = answer.distances
    return ids, products
