"""Stored embeddings that lie in several files, read as one array."""

import mmap
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from radit_jax.errors import UserError

#: Rows read at once by whoever walks over all of them.
_ROWS = 2**14


class Rows:
  """Embeddings in shards as one array of float32, of which only what is asked for is read.

  Args:
    shards: ``[n, E]`` each, float32 or float16, memory-mapped or in memory; at least one.
    forget: a memory-mapped shard no longer counts as memory of this process once its last row has been read in a range,
      or any of its rows by number (a row drags 64 kB around it into memory). It is read anew if it is asked for again:
      for whoever walks over all rows once.

  Attributes:
    shape: ``(N, E)``.

  Example:
    >>> rows = Rows([np.array([[1, 2], [3, 4]], np.float16), np.array([[5, 6]], np.float32)])
    >>> rows.shape, rows[np.array([2, 0])]
    ((3, 2), array([[5., 6.],
           [1., 2.]], dtype=float32))
  """

  def __init__(self, shards: Sequence[Float[np.ndarray, "n E"]], *, forget: bool = False):
    self._forget = forget
    self._shards = list(shards)
    self._arrays = [np.asarray(shard) for shard in shards]  # the same, without what a mapped array does at every access
    self._ends = np.cumsum([len(shard) for shard in shards])
    self.shape = (int(self._ends[-1]), int(shards[0].shape[1]))

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, where: slice | Int[np.ndarray, "..."]) -> Float[np.ndarray, "... E"]:
    """Rows of a range, or of row numbers in any shape; a range within one float32 shard is not copied."""
    if isinstance(where, slice):
      start, stop, _ = where.indices(len(self))
      parts = [
        shard[max(start - end + len(shard), 0) : max(stop - end + len(shard), 0)]
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True)
        if end > start and end - len(shard) < stop
      ]
      if self._forget:
        parts = [np.array(part) for part in parts]
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
          if start < end <= stop:
            _forget(shard)
      whole = parts[0] if len(parts) == 1 else np.concatenate(parts or [self._shards[0][:0]])
      return np.asarray(whole, np.float32)
    rows = np.asarray(where, np.int64)
    flat = rows.reshape(-1)
    out = np.empty((flat.size, self.shape[1]), np.float32)
    number = np.searchsorted(self._ends, flat, side="right")
    for shard in np.unique(number):
      here = np.flatnonzero(number == shard)
      first = self._ends[shard] - len(self._shards[shard])
      out[here] = self._arrays[shard][flat[here] - first]
      if self._forget:
        _forget(self._shards[shard])
    return out.reshape(*rows.shape, self.shape[1])

  def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "n E"]]]:
    """All rows in float32 blocks, each with the number of its first row.

    Raises:
      UserError: a row that no search can use (see :func:`first_unusable`), named.
    """
    for first in range(0, len(self), _ROWS):
      block = self[first : first + _ROWS]
      if (row := first_unusable(block)) is not None:
        raise UserError(
          f"embedding of passage row {first + row} is not finite (NaN, infinity, or longer than 1e19); "
          "the encoder is broken, or the row's text breaks it"
        )
      yield first, block


def _forget(shard: np.ndarray) -> None:
  mapped = getattr(shard, "_mmap", None)
  if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
    mapped.madvise(mmap.MADV_DONTNEED)


def first_unusable(rows: Float[np.ndarray, "N E"]) -> int | None:
  """First row whose squared length is not a float32 number: of all others, every dot product of two is one."""
  with np.errstate(over="ignore", invalid="ignore"):
    usable = np.isfinite(np.einsum("ne,ne->n", rows, rows))
  return None if usable.all() else int(np.argmin(usable))
