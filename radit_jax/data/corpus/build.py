"""A corpus of any size made into a passage store: by several processes, in constant memory, and continued where killed.

1. Blocks of the corpus are read, cut into pieces and written down one by one (:mod:`.scan`).
2. Digests on disk tell which pieces and ids stood before (:mod:`.merge`).
3. The others go into the shards of the store, in their order.

All of it lies in a work directory beside the store until the store is whole. Every file there is whole or absent and
depends on the corpus and the options alone, so that a call that was killed is continued by the same one, and the store
has the same bytes whoever made it, in however many processes.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from radit_jax import files
from radit_jax.config import CorpusFormat, OnError
from radit_jax.data.corpus import formats
from radit_jax.data.corpus.chunks import Limit
from radit_jax.data.corpus.formats import Block
from radit_jax.data.corpus.merge import PARTITION, Merged, merge
from radit_jax.data.corpus.pool import Pool, available
from radit_jax.data.corpus.scan import Scanned, Scanner, Wanted, block_file, read_scanned
from radit_jax.data.corpus.serialized import SHARD, WRITER_OPTIONS, describe
from radit_jax.data.corpus.table import DOCUMENT, DOCUMENTS, KEPT, LEFT_OUT, ORDINAL, read_array
from radit_jax.data.policy import Skipped
from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent

#: Bytes of records in a shard, about: each ends with a block.
SHARD_BYTES = 64 << 20
_RECIPE = "recipe.json"
#: Directory of the store under way, in that of the work.
_STORE = "store"
#: What processes do: :class:`_Continued` and :class:`_Shards`.
_SCAN, _SHARDS = 0, 1


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of a corpus.

  Attributes:
    documents: that are in the store.
    passages: rows of the store.
    duplicates: passages left out, because one with the same title, section and text stood before.
  """

  documents: int
  passages: int
  duplicates: int


class Build:
  """A passage store under way. :meth:`scan` reads the corpus; :meth:`write` makes the store.

  Args:
    path: directory of the store.
    corpus: file or folder.
    format: see :func:`radit_jax.data.corpus.formats.read_corpus`.
    limit: of a passage.
    recipe: what the store is made from; what another one left in the work directory is dropped.
    on_error: "strict" stops at the first bad document, "skip" counts and leaves out bad ones.
    wanted: ids and texts of documents that questions name.
    processes: that read and write, this one included; None takes one for each CPU. The others are started anew
      (spawned), so a script that calls this on a large corpus needs ``if __name__ == "__main__":``.
    block_bytes: see :data:`radit_jax.data.corpus.formats.BLOCK_BYTES`; changes the order of nothing.
    shard_bytes: see :data:`SHARD_BYTES`.
    partition: see :data:`radit_jax.data.corpus.merge.PARTITION`.

  Attributes:
    skipped: what was left out.
    titles: of wanted documents, by id.
    texts: digest of a wanted text, as hex -> id of the first document that has it.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    corpus: str | os.PathLike[str],
    *,
    format: CorpusFormat,
    limit: Limit,
    recipe: Mapping[str, Any],
    on_error: OnError = "strict",
    wanted: Wanted | None = None,
    processes: int | None = None,
    block_bytes: int = formats.BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
    partition: int = PARTITION,
  ):
    self.path = pathlib.Path(path)
    self.corpus, self.format, self.on_error = pathlib.Path(corpus), format, on_error
    self.work = self.path.parent / f".{self.path.name}.work"
    self.skipped = Skipped()
    self.titles: dict[str, str] = {}
    self.texts: dict[str, str] = {}
    wanted = wanted or Wanted()
    self._scanner = Scanner(self.work, format, limit, wanted)
    self._pool = Pool((_Continued(self._scanner), _Shards(self.work)), processes or available())
    names = json.dumps([sorted(wanted.ids), sorted(t.hex() for t in wanted.texts)]).encode()
    self._recipe = {
      "recipe": dict(recipe),
      "limit": [limit.size, limit.unit],
      "wanted": hashlib.sha256(names).hexdigest(),
      "sizes": [block_bytes, shard_bytes],
      "files": 3,  # how blocks are kept and put into shards; another way must not be continued
    }
    self._block_bytes, self._shard_bytes, self._partition = block_bytes, shard_bytes, partition
    self._scanned: list[Scanned] = []
    self._total = 0
    self._merged: Merged | None = None
    self._created = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]

  def scan(self, progress: Progress = silent) -> None:
    """Reads the corpus, or what is left of it.

    Raises:
      UserError: no such file, a bad document or two with one id under "strict", or no good one.
    """
    try:
      self._scan(progress)
    except BaseException:
      self._pool.close()
      raise

  def _scan(self, progress: Progress) -> None:
    total = sum(f.stat().st_size for f in formats.files_of(self.corpus, self.format))
    self._open()
    done: list[int] = []

    def blocks() -> Iterator[tuple[int, Block]]:
      for index, block in enumerate(formats.blocks(self.corpus, self.format, block_bytes=self._block_bytes)):
        done.append(block.done)
        yield index, block

    for index, scanned in enumerate(self._pool.in_order(_SCAN, blocks())):
      for reason, examples in scanned.skipped.examples.items():
        if self.on_error == "strict":
          raise UserError(f"{examples[0]}; correct it, or leave such records out with --on-error skip")
        kept = self.skipped.examples.setdefault(reason, [])
        kept += examples[: 5 - len(kept)]
      self.skipped.counts.update(scanned.skipped.counts)
      self.titles = scanned.titles | self.titles
      self.texts = scanned.texts | self.texts
      self._scanned.append(dataclasses.replace(scanned, skipped=Skipped(), titles={}, texts={}))
      if index:  # what is over at once needs no bar, and an error in it comes alone
        progress("corpus", min(done[index], total - 1), total, "bytes")
    self._total = total
    if not sum(s.documents for s in self._scanned):
      raise formats.no_documents(self.corpus, self.skipped.total())
    out = self.work / _STORE
    out.mkdir(exist_ok=True)
    counts = ([getattr(s, name) for s in self._scanned] for name in ("pieces", "documents", "numbered"))
    self._merged = merge(self.work, out, *counts, partition=self._partition)
    self._say_repeated(self._merged)

  def _open(self) -> None:
    recipe = self.work / _RECIPE
    if self.work.exists() and (not recipe.exists() or files.read_json(recipe) != self._recipe):
      self._remove()
    (self.work / "blocks").mkdir(parents=True, exist_ok=True)
    files.write_json(recipe, self._recipe)

  def write(self, manifest: Mapping[str, Any], progress: Progress = silent) -> Counts:
    """Writes the store, and removes the work directory.

    Args:
      manifest: what the passages were made from.
      progress: told of the shards.
    """
    try:
      return self._write(manifest, progress)
    finally:
      self._pool.close()

  def _write(self, manifest: Mapping[str, Any], progress: Progress) -> Counts:
    progress("corpus", self._total, self._total, "bytes")  # the end of a stage is shown, and errors come alone
    out = self.work / _STORE
    (out / SHARD).parent.mkdir(parents=True, exist_ok=True)
    pieces = [s.pieces for s in self._scanned]
    merged = self._merged
    assert merged is not None
    shards = self._shards(merged)
    ordinals = list(itertools.accumulate(pieces, initial=0))
    tasks = [
      (out / SHARD.format(n, len(shards)), [(i, ordinals[i], *starts) for i, starts in shard])
      for n, shard in enumerate(shards)
    ]
    record_bytes = 0
    known = {}
    for n, (size, sha256) in enumerate(self._pool.in_order(_SHARDS, tasks), 1):
      record_bytes += size
      known[tasks[n - 1][0].relative_to(out).as_posix()] = sha256
      progress("shards", n, len(shards), "files")
    rows = [sum(pieces[i] - (stop - start) for i, (start, stop) in shard) for shard in shards]
    describe(out, rows, record_bytes)
    documents = sum(s.documents for s in self._scanned) - merged.num_repeated
    counts = Counts(documents, sum(rows), merged.num_duplicates)
    fields = {name: value for name, value in manifest.items() if name != "recipe"}
    content = [json.dumps(fields, sort_keys=True), *(s.digest for s in self._scanned)]
    fingerprint = hashlib.sha256("\n".join(content).encode()).hexdigest()
    files.write_manifest(
      out,
      "passages",
      {**manifest, "count": counts.passages, "fingerprint": fingerprint, "counts": dataclasses.asdict(counts)},
      known=known,
    )
    files.replace_directory(out, self.path)
    self._remove()
    return counts

  def pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables of a scanned corpus: documents, what is left out, and what stands for it."""
    named = ((DOCUMENTS, DOCUMENT), (LEFT_OUT, ORDINAL), (KEPT, ORDINAL))
    documents, left_out, kept = (read_array(self.work / _STORE / name, dtype) for name, dtype in named)
    return documents, left_out, kept

  def records(self) -> Iterator[list[bytes]]:
    """Records of all pieces of a scanned corpus, block by block."""
    for index in range(len(self._scanned)):
      yield _records(self.work, index)

  def close(self) -> None:
    """Ends the processes, for whoever does not :meth:`write` the store."""
    self._pool.close()

  def discard(self) -> None:
    """Removes the work directory, and the directories above it that were made for it."""
    self.close()
    with contextlib.suppress(OSError):
      self._remove(ignore_errors=True)
    for directory in self._created:
      if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()

  def _remove(self, *, ignore_errors: bool = False) -> None:
    """Removes the work directory. Without its recipe nobody continues what a signal or a kill leaves of it."""
    (self.work / _RECIPE).unlink(missing_ok=True)
    shutil.rmtree(self.work, ignore_errors=ignore_errors)

  def _shards(self, merged: Merged) -> list[list[tuple[int, tuple[int, int]]]]:
    """Blocks of each shard, with the places of what they leave out in the list of that; no shard without a row."""
    total = sum(s.record_bytes for s in self._scanned)
    # As few as their size allows, and of the same size, so that processes are done with them at the same time.
    number = max(1, -(-total // self._shard_bytes))
    shards: list[list[tuple[int, tuple[int, int]]]] = [[] for _ in range(number)]
    places = list(itertools.accumulate(merged.left_out, initial=0))
    before = 0
    for i, scanned in enumerate(self._scanned):
      if scanned.pieces > merged.left_out[i]:
        shards[before * number // total].append((i, (places[i], places[i + 1])))
      before += scanned.record_bytes
    return [shard for shard in shards if shard]

  def _say_repeated(self, merged: Merged) -> None:
    """Names documents whose id another one had, or a piece of another one, which is known only after all of them."""
    first = list(itertools.accumulate((s.documents for s in self._scanned), initial=0))
    wanted = sorted({n for pair in merged.repeated for n in pair})
    found: dict[int, tuple[str, str]] = {}
    indexes = {bisect.bisect_right(first, n) - 1 for n in wanted}
    for index, block in enumerate(formats.blocks(self.corpus, self.format, block_bytes=self._block_bytes)):
      if not indexes or index > max(indexes):
        break
      if index in indexes:
        good = enumerate(self._scanner.documents(block, Skipped()), first[index])
        found |= {n: (place, document.id) for n, (place, document, _) in good if n in wanted}
    untold = {False: merged.num_repeated - merged.num_named, True: merged.num_named}
    for n, earlier in merged.repeated:
      place, name = found[n]
      other_place, other = found[earlier]
      by_a_piece = other != name
      problem = (formats.used_by_a_piece if by_a_piece else formats.already_used)(name, other_place)
      untold[by_a_piece] -= 1
      if self.on_error == "strict":
        raise UserError(f"{place}: {problem}; correct it, or leave such records out with --on-error skip")
      self.skipped.add(place, problem)
    for by_a_piece, problem in ((False, formats.already_used("", "")), (True, formats.used_by_a_piece("", ""))):
      if untold[by_a_piece]:
        self.skipped.counts[problem.reason] += untold[by_a_piece]


@dataclasses.dataclass(frozen=True)
class _Continued:
  """Scans a block, if no earlier call has."""

  scanner: Scanner

  def __call__(self, index: int, block: Block) -> Scanned:
    return read_scanned(self.scanner.work, index) or self.scanner(index, block)


@dataclasses.dataclass(frozen=True)
class _Shards:
  """Writes shards.

  Attributes:
    work: directory of the scan, in which that of the store lies.
  """

  work: pathlib.Path

  def __call__(self, path: pathlib.Path, blocks: Sequence[tuple[int, int, int, int]]) -> tuple[int, str]:
    """Bytes of the records of a shard, and the SHA-256 of its file.

    Args:
      path: of the file.
      blocks: numbers, each with its first ordinal and the range of what it leaves out.
    """
    from array_record.python import array_record_module

    size = 0
    part = path.with_name(path.name + ".part")
    finished = path.exists()
    writer = None if finished else array_record_module.ArrayRecordWriter(str(part), WRITER_OPTIONS)
    left_out = np.fromfile(self.work / _STORE / LEFT_OUT, ORDINAL, *_range(blocks))
    for index, ordinal, start, stop in blocks:
      own = left_out[start - blocks[0][2] : stop - blocks[0][2]].astype(np.int64) - ordinal
      for record in _records(self.work, index, own):
        size += len(record)
        if writer is not None:
          writer.write(record)
    if writer is not None:
      writer.close()
      os.replace(part, path)
    return size, files.sha256_file(path)


def _records(work: pathlib.Path, index: int, left_out: Sequence[int] | np.ndarray = ()) -> list[bytes]:
  """Records of a block but those whose numbers within it are left out."""
  lengths = np.fromfile(block_file(work, index, "lengths"), "<u4").astype(np.int64)
  keep = np.ones(len(lengths), bool)
  keep[np.asarray(left_out, np.int64)] = False
  ends = np.cumsum(lengths)
  records = block_file(work, index, "records").read_bytes()
  return [records[a:b] for a, b in zip((ends - lengths)[keep].tolist(), ends[keep].tolist(), strict=True)]


def _range(blocks: Sequence[tuple[int, int, int, int]]) -> tuple[int, str, int]:
  """Arguments of :func:`numpy.fromfile`: how many entries, no separator, and bytes to leave out."""
  start, stop = blocks[0][2], blocks[-1][3]
  return stop - start, "", start * ORDINAL.itemsize
