"""Which rows are a document's: a table on disk that is searched where it lies, whatever the number of documents.

Pieces are numbered as they were cut ("ordinals"). What was left out afterwards, because the same piece stood before or
the document's id did, is listed by ordinal; the row of any other is its ordinal less the number of those before it.
"""

import bisect
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from radit_jax.data.corpus.serialized import digest

#: A document: the digest of its id as two numbers, ordinal of its first piece, number of pieces. Sorted by digest.
DOCUMENT = np.dtype([("high", "<u8"), ("low", "<u8"), ("first", "<u8"), ("count", "<u4")])
ORDINAL = np.dtype("<u8")
DOCUMENTS, LEFT_OUT, KEPT = "documents.bin", "left_out.bin", "kept.bin"


def numbers(digests: bytes) -> np.ndarray:
  """Digests as ``[N, 2]`` numbers that sort as they do."""
  return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def by_digest(high: UInt64[np.ndarray, "N"], low: UInt64[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
  """The order of digests; those that are the same keep theirs."""
  order = np.argsort(high, kind="stable")  # a tenth of the time of both, more so of runs that are in order
  ordered = high[order]
  same = np.flatnonzero(ordered[1:] == ordered[:-1])
  if (low[order[same]] != low[order[same + 1]]).any():
    return np.lexsort((low, high))
  return order


def read_array(path: str | os.PathLike[str], dtype: Any) -> np.ndarray:
  """An array on disk, read where it is touched."""
  if os.stat(path).st_size == 0:  # nothing can be mapped
    return np.empty(0, dtype)
  return np.memmap(path, dtype, mode="r")


def raw(array: np.ndarray) -> memoryview:
  """The bytes of an array, for a file: the error of `ndarray.tofile` does not say that the disk is full."""
  return np.ascontiguousarray(array).view(np.uint8).data


def write_table(directory: pathlib.Path, documents: Iterable[tuple[str, int, int]]) -> None:
  """Writes the table of a store that leaves nothing out; ``documents`` are id, first row and number of rows."""
  entries = np.array([(*numbers(digest(name.encode()))[0], first, count) for name, first, count in documents], DOCUMENT)
  (directory / DOCUMENTS).write_bytes(raw(np.sort(entries, order=("high", "low"))))
  for name in (LEFT_OUT, KEPT):
    (directory / name).write_bytes(b"")


class DocumentTable:
  """Rows of documents.

  Args:
    directory: of the store.
  """

  def __init__(self, directory: pathlib.Path):
    self._documents = read_array(directory / DOCUMENTS, DOCUMENT)
    self._left_out = read_array(directory / LEFT_OUT, ORDINAL)
    self._kept = read_array(directory / KEPT, ORDINAL)

  def rows(self, document: str) -> tuple[int, ...] | None:
    """Rows of a document's pieces, of the same ones elsewhere where they were left out; None if there is none."""
    high, low = (int(n) for n in numbers(digest(document.encode()))[0])
    place = bisect.bisect_left(
      range(len(self._documents)),
      (high, low),
      key=lambda i: (int(self._documents[i]["high"]), int(self._documents[i]["low"])),
    )
    if place == len(self._documents):
      return None
    found = self._documents[place]
    if (int(found["high"]), int(found["low"])) != (high, low):
      return None
    first = int(found["first"])
    return tuple(dict.fromkeys(self._row(ordinal) for ordinal in range(first, first + int(found["count"]))))

  def _row(self, ordinal: int) -> int:
    place = bisect.bisect_left(self._left_out, ordinal)
    if place < len(self._left_out) and int(self._left_out[place]) == ordinal:
      ordinal = int(self._kept[place])
      place = bisect.bisect_left(self._left_out, ordinal)
    return ordinal - place
