"""A baseline without a model: BM25 over the passages' words, and the fusion of rankings by rank."""

import array
import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from radit_jax.errors import UserError

T = TypeVar("T", bound=Hashable)
#: Pyserini's values for passages, as in the BEIR and DPR baselines.
K1, B = 0.9, 0.4


class Bm25:
  """An index of words, in memory: about 10 bytes for each different word of each passage, and 50 while it is made.

  Words are runs of two letters or digits and more, in lower case; none is left out or shortened.

  Args:
    texts: one per row of the passage store, read once.

  Raises:
    UserError: no texts, or `bm25s` is not installed.

  Example:
    >>> found = Bm25(["a cat sat", "the dog sat", "birds"]).search("the cat", 5)
    >>> [row for row, _ in found]
    [0, 1]
  """

  def __init__(self, texts: Iterable[str]):
    try:
      import bm25s
    except ImportError:
      raise UserError('BM25 needs the extra bm25: pip install "radit_jax[bm25]"') from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # imported, it has set itself to say everything
    # One by one, so that no text is held: as arrays, for a list takes twice as much for each word.
    tokenizer = bm25s.tokenization.Tokenizer(stopwords=None)
    ids = [array.array("i", found) for found in tokenizer.streaming_tokenize(texts, allow_empty=False)]
    if not ids:
      raise UserError("BM25: no passages to index")
    self._count = len(ids)
    self._index: Any = None
    if words := tokenizer.get_vocab_dict():
      self._index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
      self._index.index((ids, words), show_progress=False)

  def __len__(self) -> int:
    return self._count

  def search(self, query: str, k: int) -> list[tuple[int, float]]:
    """The best rows that share a word with the query, with their scores; equal scores by lower row."""
    import bm25s

    words = bm25s.tokenize([query], stopwords=None, return_ids=False, show_progress=False)[0]
    if self._index is None or not words:
      return []
    scores = self._index.get_scores(words)
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
      worst = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
      rows = rows[scores[rows] >= worst]
    best = rows[np.lexsort((rows, -scores[rows]))[:k]]
    return [(int(row), float(scores[row])) for row in best]


def fuse(rankings: Sequence[Sequence[T]], k: int, *, constant: int = 60) -> list[tuple[T, float]]:
  """Reciprocal-rank fusion: each ranking gives what it holds ``1 / (constant + rank)``.

  Args:
    rankings: ids, best first, none twice in one of them.
    k: how many to return.
    constant: the larger, the less the first ranks count above the next.

  Returns:
    Ids with their sums, best first; equal sums in the order of the first ranking that holds them.

  References:
    Cormack, Clarke and Büttcher, Reciprocal rank fusion outperforms Condorcet, SIGIR 2009.

  Example:
    >>> [found for found, _ in fuse([["a", "b"], ["b", "c"]], 3)]
    ['b', 'a', 'c']
  """
  sums: dict[T, float] = {}
  for ranking in rankings:
    for rank, found in enumerate(ranking, 1):
      sums[found] = sums.get(found, 0.0) + 1 / (constant + rank)
  return sorted(sums.items(), key=lambda item: -item[1])[:k]
