"""Exact search, and the one definition of a score that every backend's result carries."""

import numpy as np
from jaxtyping import Float, Int

from radit_jax.retrieval.rows import Rows

#: Embeddings ``[N, E]``: in memory, memory-mapped, or in several files.
Stored = Float[np.ndarray, "N E"] | Rows
#: Queries and stored embeddings multiplied at once: 64 MiB of scores, whatever the number of passages.
_QUERIES, _ROWS = 2**10, 2**14
#: Pairs of a query and a candidate scored at once.
_PAIRS = 2**13
#: Float64 values held at once while candidates are scored: 2 MiB, which stay in a core's cache.
_VALUES = 2**18


def score_pairs(
  embeddings: Stored, queries: Float[np.ndarray, "Q E"], ids: Int[np.ndarray, "Q C"]
) -> Float[np.ndarray, "Q C"]:
  """Dot products of each query with its own candidates: summed in float64, rounded once to float32.

  A score so depends on the two vectors alone. A float32 matrix product does not have this property: the same passage
  stored twice can get two scores there, by where it stands in a block, and ties would fall either way.

  Args:
    embeddings: ``[N, E]`` stored embeddings.
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
    products = np.vecdot(candidates, queries[start : start + step, None].astype(np.float64))
    scores[start : start + step] = np.where(part >= 0, products, -np.inf)
  return scores


def exact_top(
  embeddings: Stored,
  queries: Float[np.ndarray, "Q E"],
  k: int,
  *,
  rows: Int[np.ndarray, "M"] | None = None,
) -> Int[np.ndarray, "Q k"]:
  """The best rows of every query, without approximation.

  A float32 product finds every row that can be among the best, allowing for the most it can be wrong by; those few are
  scored by :func:`score_pairs`. Stored embeddings are read once for every 1,024 queries.

  Args:
    embeddings: ``[N, E]``, finite.
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
  count = len(embeddings) if rows is None else len(rows)
  best = np.empty((len(queries), min(k, count)), np.int64)
  if count:
    for start in range(0, len(queries), _QUERIES):
      part = slice(start, start + _QUERIES)
      best[part] = _top(embeddings, queries[part], min(k, count), rows)
  return best


def _top(
  embeddings: Stored, q: Float[np.ndarray, "Q E"], k: int, rows: Int[np.ndarray, "M"] | None
) -> Int[np.ndarray, "Q k"]:
  """:func:`exact_top` of queries whose scores against a block of rows fit in memory."""
  count = len(embeddings) if rows is None else len(rows)
  unit = embeddings.shape[1] * np.finfo(np.float32).eps * np.linalg.norm(q.astype(np.float64), axis=1)
  ids, scores = np.empty((len(q), 0), np.int64), np.empty((len(q), 0), np.float32)
  for first in range(0, count, _ROWS):
    part = slice(first, min(first + _ROWS, count))
    block = embeddings[part] if rows is None else embeddings[rows[part]]
    products = q @ block.T
    # Bound of the rounding error of a float32 dot product, once for the k-th best and once for its rival.
    slack = 2 * unit * float(np.linalg.norm(block, axis=1).max())
    if ids.shape[1] == k:
      worst = scores[:, -1].astype(np.float64)
      threshold = worst - slack - np.finfo(np.float32).eps * np.abs(worst)
    elif len(block) > k:
      threshold = np.partition(products, len(block) - k, axis=1)[:, len(block) - k] - slack
    else:
      threshold = np.full(len(q), -np.inf)
    number, near = np.nonzero(products >= threshold[:, None])
    found = np.empty(len(near), np.float32)
    for some in range(0, len(near), _PAIRS):
      pairs = slice(some, some + _PAIRS)
      found[pairs] = score_pairs(block, q[number[pairs]], near[pairs, None])[:, 0]
    near = near + first if rows is None else rows[near + first]
    ids, scores = _merged(len(q), k, ids, scores, number, near, found)
  return ids


def _merged(
  queries: int,
  k: int,
  ids: Int[np.ndarray, "Q j"],
  scores: Float[np.ndarray, "Q j"],
  number: Int[np.ndarray, "n"],
  new_ids: Int[np.ndarray, "n"],
  new_scores: Float[np.ndarray, "n"],
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
  """The best k of each query among what was kept and new pairs; every query has at least as many as are kept of all."""
  owner = np.concatenate([np.repeat(np.arange(queries), ids.shape[1]), number])
  all_ids, all_scores = np.concatenate([ids.ravel(), new_ids]), np.concatenate([scores.ravel(), new_scores])
  order = np.lexsort((all_ids, -all_scores, owner))
  counts = np.bincount(owner, minlength=queries)
  rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
  kept = order[rank < min(k, int(counts.min()))]
  return all_ids[kept].reshape(queries, -1), all_scores[kept].reshape(queries, -1)
