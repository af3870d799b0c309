"""Passages that a question must not find, or not twice: so many more are searched for, and these dropped."""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from radit_jax.data.corpus import PassageStore
from radit_jax.retrieval.index import Index, SearchResult


def search_without(
  index: Index,
  queries: Float[np.ndarray, "Q E"],
  k: int,
  without: Sequence[Sequence[int]],
  *,
  store: PassageStore | None = None,
  duplicates: bool = False,
  same_document: bool = False,
) -> tuple[SearchResult, dict[str, int]]:
  """The k best passages for every query but those that are dropped; fewer only where no more remain.

  Args:
    index: to search.
    queries: ``[Q, E]``.
    k: passages for each.
    without: rows for each query that it must not find: what it was made of.
    store: of the passages; needed for the other two.
    duplicates: drop passages with the text of a better one, or of a row of ``without``.
    same_document: drop pieces of a document of which a better one was found, or of that of a row of ``without``.

  Returns:
    What was found, and how many passages better than the k-th were dropped: as ``own``, ``duplicates`` and
    ``same_document``, counted once, in this order.
  """
  dropped: collections.Counter[str] = collections.Counter(own=0, duplicates=0, same_document=0)
  ids = np.full((len(queries), k), -1, np.int64)
  scores = np.full((len(queries), k), -np.inf, np.float32)
  faces = _Faces(store, text=duplicates, document=same_document)
  left = np.arange(len(queries))
  wanted = k + max(map(len, without), default=0)
  while len(left):
    found = index.search(queries[left], min(wanted, len(index)))
    faces.read([*found.ids[found.valid].tolist(), *(row for q in left.tolist() for row in without[q])])
    short = []
    for number, query in enumerate(left.tolist()):
      kept, counts = faces.kept(found.ids[number][found.valid[number]].tolist(), k, without[query])
      if len(kept) < k and wanted < len(index):
        short.append(query)
        continue
      dropped.update(counts)
      ids[query, : len(kept)] = found.ids[number][kept]
      scores[query, : len(kept)] = found.scores[number][kept]
    left = np.array(short, np.int64)
    wanted *= 2
  return SearchResult(ids, scores, ids >= 0), dict(dropped)


class _Faces:
  """What of each passage decides whether it is dropped: digest of its text, name of its document."""

  def __init__(self, store: PassageStore | None, *, text: bool, document: bool):
    self._text, self._document, self._store = text, document, store
    self._known: dict[int, tuple[bytes, str]] = {}

  def read(self, rows: Sequence[int]) -> None:
    if self._store is None or not (self._text or self._document):
      return
    new = sorted(set(rows) - self._known.keys())
    for row, passage in zip(new, self._store.many(new), strict=True):
      digest = hashlib.blake2b(passage.text.encode(), digest_size=16).digest()
      self._known[row] = digest, str(passage.metadata.get("document", passage.id))

  def kept(self, rows: Sequence[int], k: int, own: Sequence[int]) -> tuple[list[int], collections.Counter[str]]:
    """Positions of the rows that stay, at most k, and why the others before the last of them went."""
    texts = {self._known[row][0] for row in own} if self._text else set()
    documents = {self._known[row][1] for row in own} if self._document else set()
    kept: list[int] = []
    why: collections.Counter[str] = collections.Counter()
    for at, row in enumerate(rows):
      if len(kept) == k:
        break
      if row in own:
        why["own"] += 1
      elif self._text and self._known[row][0] in texts:
        why["duplicates"] += 1
      elif self._document and self._known[row][1] in documents:
        why["same_document"] += 1
      else:
        kept.append(at)
        if self._text:
          texts.add(self._known[row][0])
        if self._document:
          documents.add(self._known[row][1])
    return kept, why
