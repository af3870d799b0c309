"""Exact search, and the one definition of a score that every backend's result carries."""

import numpy as np
from jaxtyping import Float, Int

#: Scores held at once: 64 MiB of float32, whatever the number of queries and passages.
_SCORES = 2**24
#: Stored embeddings read at once; a filtered search copies this many rows at a time.
_ROWS = 2**14
#: Float64 values held at once while candidates are scored.
_VALUES = 2**22


def score_pairs(
  embeddings: Float[np.ndarray, "N E"], queries: Float[np.ndarray, "Q E"], ids: Int[np.ndarray, "Q C"]
) -> Float[np.ndarray, "Q C"]:
  """Dot products of each query with its own candidates: summed in float64, rounded once to float32.

  A score so depends on the two vectors alone. A float32 matrix product does not have this property: the same passage
  stored twice can get two scores there, by where it stands in a block, and ties would fall either way.

  Args:
    embeddings: ``[N, E]`` stored embeddings, float32, in memory or memory-mapped.
    queries: ``[Q, E]`` float32.
    ids: ``[Q, C]`` rows of ``embeddings``; a negative id scores ``-inf``.

  Returns:
    ``[Q, C]`` float32.

  Example:
    >>> stored = np.array([[1, 0], [0, 2]], np.float32)
    >>> score_pairs(stored, np.array([[3, 4]], np.float32), np.array([[1, 0, -1]]))
    array([[  8.,   3., -inf]], dtype=float32)
  """
  scores = np.full(ids.shape, -np.inf, np.float32)
  step = max(1, _VALUES // max(1, ids.shape[1] * embeddings.shape[1]))
  for start in range(0, len(ids), step):
    part = ids[start : start + step]
    candidates = embeddings[np.maximum(part, 0)].astype(np.float64)
    products = np.einsum("qe,qce->qc", queries[start : start + step].astype(np.float64), candidates)
    scores[start : start + step] = np.where(part >= 0, products, -np.inf)
  return scores


def exact_top(
  embeddings: Float[np.ndarray, "N E"],
  queries: Float[np.ndarray, "Q E"],
  k: int,
  *,
  rows: Int[np.ndarray, "M"] | None = None,
) -> Int[np.ndarray, "Q k"]:
  """The best rows of every query, without approximation.

  A float32 product finds every row that can be among the best, allowing for the most it can be wrong by; those few are
  scored by :func:`score_pairs`.

  Args:
    embeddings: ``[N, E]`` float32, finite.
    queries: ``[Q, E]`` float32, finite.
    k: how many, at least 1.
    rows: the rows to search, ascending; None searches all.

  Returns:
    ``[Q, min(k, M)]`` int64 row numbers, best first, equal scores by lower row.

  Example:
    >>> stored = np.array([[1, 0], [0, 2], [1, 0]], np.float32)
    >>> exact_top(stored, np.array([[1, 0]], np.float32), 2)
    array([[0, 2]])
  """
  count, width = len(embeddings) if rows is None else len(rows), embeddings.shape[1]
  k = min(k, count)
  best = np.empty((len(queries), k), np.int64)
  if k == 0:
    return best
  step = max(1, _SCORES // count)
  for start in range(0, len(queries), step):
    q = queries[start : start + step]
    scores = np.empty((len(q), count), np.float32)
    longest = 0.0
    for first in range(0, count, _ROWS):
      part = slice(first, first + _ROWS)
      block = embeddings[part] if rows is None else embeddings[rows[part]]
      scores[:, part] = q @ block.T
      longest = max(longest, float(np.linalg.norm(block, axis=1).max()))
    # Bound of the rounding error of a float32 dot product, once for the k-th best and once for its rival.
    slack = 2 * width * np.finfo(np.float32).eps * np.linalg.norm(q, axis=1).astype(np.float64) * longest
    threshold = np.partition(scores, count - k, axis=1)[:, count - k] - slack
    for i, row_scores in enumerate(scores):
      near = np.flatnonzero(row_scores >= threshold[i])
      ids = near if rows is None else rows[near]
      exact = score_pairs(embeddings, q[i : i + 1], ids[None])[0]
      best[start + i] = ids[np.lexsort((ids, -exact))[:k]]
  return best
