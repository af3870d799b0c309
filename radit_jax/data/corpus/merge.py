"""Which documents and pieces of a scanned corpus stood before: found on disk, a range of digests at a time.

Peak memory is some 100 bytes for each of ``PARTITION`` entries, whatever the corpus has.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from radit_jax.data.corpus.scan import BLOCK_DOCUMENT, NUMBERED, PIECE, block_file
from radit_jax.data.corpus.table import DOCUMENT, DOCUMENTS, KEPT, LEFT_OUT, by_digest, raw, read_array

#: Digests that are sorted at a time.
PARTITION = 1 << 20
#: A document whose id another one had before, or has a piece of: numbers of both, and the pieces that go with it.
_REPEATED = np.dtype([("number", "<u8"), ("earlier", "<u8"), ("first", "<u8"), ("count", "<u4")])
#: A document called as a piece of another one, and the number of that one.
_NAMED = np.dtype([("number", "<u8"), ("document", "<u8")])
_PAIR = np.dtype([("ordinal", "<u8"), ("kept", "<u8")])


@dataclasses.dataclass(frozen=True)
class Merged:
  """What is left out.

  Attributes:
    repeated: ``(number, number of the other)`` of the first documents whose id another one had before, or a piece of
      another one has.
    num_repeated: how many there are.
    num_named: of these, how many are called as a piece of another one.
    num_duplicates: pieces that stood before, those documents aside.
    left_out: ordinals left out of each block.
  """

  repeated: list[tuple[int, int]]
  num_repeated: int
  num_named: int
  num_duplicates: int
  left_out: list[int]


def merge(
  work: pathlib.Path,
  out: pathlib.Path,
  pieces: Sequence[int],
  documents: Sequence[int],
  numbered: Sequence[int],
  *,
  partition: int = PARTITION,
  examples: int = 5,
) -> Merged:
  """Writes the tables of a store, see :mod:`radit_jax.data.corpus.table`.

  Args:
    work: directory of the scan.
    out: directory of the tables.
    pieces: of each block.
    documents: of each block.
    numbered: documents of each block whose id a piece may have.
    partition: entries sorted at a time, about.
    examples: how many repeated documents are named.
  """
  first_piece = list(itertools.accumulate(pieces, initial=0))
  first_document = list(itertools.accumulate(documents, initial=0))
  runs = work / "runs"
  runs.mkdir(exist_ok=True)
  named = _named_as_pieces(work, documents, numbered, first_document, partition)
  num_named = 0
  repeated_runs = []
  with open(out / DOCUMENTS, "wb") as f:
    for n, entries in enumerate(
      _partitions(work, "documents", BLOCK_DOCUMENT, documents, _ranges(documents, partition))
    ):
      number = np.concatenate([part["number"] + np.uint64(first_document[i]) for i, part in entries])
      first = np.concatenate([part["first"] + np.uint64(first_piece[i]) for i, part in entries])
      rest = np.concatenate([part for _, part in entries])
      order = by_digest(rest["high"], rest["low"])
      table = np.empty(len(order), DOCUMENT)
      table["first"] = first[order]
      for name in ("high", "low", "count"):
        table[name] = rest[name][order]
      leaders = _leaders(table["high"], table["low"])
      again = leaders != np.arange(len(order))
      earlier = number[order][leaders]
      if len(named):
        place = np.minimum(np.searchsorted(named["number"], number[order]), len(named) - 1)
        other = (named["number"][place] == number[order]) & ~again
        earlier[other] = named["document"][place][other]
        again |= other
        num_named += int(np.count_nonzero(other))
      f.write(raw(table[~again]))
      found = np.empty(np.count_nonzero(again), _REPEATED)
      found["number"], found["earlier"] = number[order][again], earlier[again]
      found["first"], found["count"] = table["first"][again], table["count"][again]
      repeated_runs.append(_save(runs / f"documents-{n:05d}", np.sort(found, order="number")))
  # In the order of the documents, and so of their pieces.
  repeated_path = runs / "documents"
  with open(repeated_path, "wb") as f:
    reader = _Runs(repeated_runs, _REPEATED, "number")
    for stop in first_document[1:]:
      f.write(raw(reader.below(stop)))
  repeated = read_array(repeated_path, _REPEATED)
  starts = np.ascontiguousarray(repeated["first"])
  counts = np.ascontiguousarray(repeated["count"])

  piece_runs = []
  for n, entries in enumerate(_partitions(work, "pieces", PIECE, pieces, _ranges(pieces, partition))):
    ordinal = np.concatenate([part["number"] + np.uint64(first_piece[i]) for i, part in entries])
    rest = np.concatenate([part for _, part in entries])
    if len(starts):
      place = np.maximum(np.searchsorted(starts, ordinal, "right").astype(np.int64) - 1, 0)
      gone = (ordinal >= starts[place]) & (ordinal < starts[place] + counts[place])
      ordinal, rest = ordinal[~gone], rest[~gone]
    order = by_digest(rest["high"], rest["low"])
    ordinal = ordinal[order]
    leaders = _leaders(rest["high"][order], rest["low"][order])
    again = leaders != np.arange(len(order))
    pairs = np.empty(np.count_nonzero(again), _PAIR)
    pairs["ordinal"], pairs["kept"] = ordinal[again], ordinal[leaders[again]]
    piece_runs.append(_save(runs / f"pieces-{n:05d}", np.sort(pairs, order="ordinal")))

  left_out: list[int] = []
  num_duplicates = 0
  reader = _Runs(piece_runs, _PAIR, "ordinal")
  next_repeated = 0
  with open(out / LEFT_OUT, "wb") as ordinals, open(out / KEPT, "wb") as kept:
    for stop in first_piece[1:]:
      found = reader.below(stop)
      num_duplicates += len(found)
      parts = [found]
      while next_repeated < len(starts) and starts[next_repeated] < stop:
        own = np.arange(starts[next_repeated], starts[next_repeated] + counts[next_repeated], dtype=np.uint64)
        pairs = np.empty(len(own), _PAIR)
        pairs["ordinal"] = pairs["kept"] = own
        parts.append(pairs)
        next_repeated += 1
      found = np.sort(np.concatenate(parts), order="ordinal")
      ordinals.write(raw(found["ordinal"]))
      kept.write(raw(found["kept"]))
      left_out.append(len(found))
  shown = [(int(r["number"]), int(r["earlier"])) for r in repeated[:examples]]
  return Merged(shown, len(repeated), num_named, num_duplicates, left_out)


def _named_as_pieces(
  work: pathlib.Path,
  documents: Sequence[int],
  numbered: Sequence[int],
  first_document: Sequence[int],
  partition: int,
) -> np.ndarray:
  """Documents called as a piece of another one is, with the number of that one; sorted by their own."""
  parts = [np.empty(0, _NAMED)]
  if sum(numbered):
    ranges = _ranges(documents, partition)
    of_documents = _partitions(work, "documents", BLOCK_DOCUMENT, documents, ranges)
    of_numbered = _partitions(work, "numbered", NUMBERED, numbered, ranges)
    for entries, asked in zip(of_documents, of_numbered, strict=True):
      owner = np.concatenate([part["number"] + np.uint64(first_document[i]) for i, part in entries])
      owners = np.concatenate([part for _, part in entries])
      number = np.concatenate([part["number"] + np.uint64(first_document[i]) for i, part in asked])
      ask = np.concatenate([part for _, part in asked])
      # Both in one order: the documents with an id, the first one in front, and behind them who is called as a piece.
      high, low = (np.concatenate([owners[name], ask[name]]) for name in ("high", "low"))
      is_ask = np.concatenate([np.zeros(len(owners), bool), np.ones(len(ask), bool)])
      order = np.lexsort((np.concatenate([owner, number]), is_ask, low, high))
      leader = order[_leaders(high[order], low[order])]
      wanted = is_ask[order] & (leader < len(owners))
      mine, theirs = order[wanted] - len(owners), leader[wanted]
      count = owners["count"][theirs]
      clash = (count > 1) & (ask["piece"][mine] < count)
      found = np.empty(np.count_nonzero(clash), _NAMED)
      found["number"], found["document"] = number[mine[clash]], owner[theirs[clash]]
      parts.append(found)
  return np.sort(np.concatenate(parts), order="number")


def _ranges(counts: Sequence[int], partition: int) -> int:
  """How many ranges of digests there are, so that each has about so many entries."""
  return max(1, -(-sum(counts) // partition))


def _partitions(
  work: pathlib.Path, kind: str, dtype: np.dtype, counts: Sequence[int], ranges: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
  """Entries of all blocks, range of digests by range; digests are spread evenly, so are the ranges."""
  bounds = [n * 2**64 // ranges for n in range(ranges)]
  for low, high in itertools.zip_longest(bounds, bounds[1:]):
    out = []
    for i in range(len(counts)):
      entries = read_array(block_file(work, i, kind), dtype)
      a = np.searchsorted(entries["high"], np.uint64(low)) if low else 0
      b = np.searchsorted(entries["high"], np.uint64(high)) if high is not None else len(entries)
      out.append((i, np.array(entries[a:b])))
    yield out


def _leaders(high: np.ndarray, low: np.ndarray) -> np.ndarray:
  """For each entry of a sorted array, the place of the first one that equals it."""
  places = np.arange(len(high))
  new = np.ones(len(high), bool)
  new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
  return np.maximum.accumulate(np.where(new, places, 0)) if len(high) else places


def _save(path: pathlib.Path, entries: np.ndarray) -> pathlib.Path:
  path.write_bytes(raw(entries))
  return path


class _Runs:
  """Sorted arrays on disk, read together from the front."""

  def __init__(self, paths: Sequence[pathlib.Path], dtype: np.dtype, key: str):
    self._runs = [read_array(path, dtype) for path in paths]
    self._places = [0] * len(paths)
    self._dtype, self._key = dtype, key
    self._before = 0

  def below(self, stop: int) -> np.ndarray:
    """Entries that were not read yet, up to ``stop``; keys are unique, so no run has more than there are keys."""
    found = [np.empty(0, self._dtype)]
    most = stop - self._before
    for i, run in enumerate(self._runs):
      ahead = run[self._places[i] : self._places[i] + most]
      count = int(np.searchsorted(np.ascontiguousarray(ahead[self._key]), np.uint64(stop)))
      found.append(np.array(ahead[:count]))
      self._places[i] += count
    self._before = stop
    return np.sort(np.concatenate(found), order=self._key)
