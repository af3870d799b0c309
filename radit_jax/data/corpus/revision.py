"""A version of a passage store that differs from another one by the documents that have changed.

Every row keeps its number: what came stands behind what was there, in files of its own, what went is listed, and the
files of the version before are shared. So what names rows of an earlier version names the same passages in this one.
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from radit_jax import files, versions
from radit_jax.config import CorpusFormat, OnError
from radit_jax.data.corpus.build import SHARD_BYTES, Build
from radit_jax.data.corpus.changes import Changes, Pieces, compare
from radit_jax.data.corpus.chunks import Limit
from radit_jax.data.corpus.content import CONTENT, RECORD, TEXT, content_of, fields_of, match, stored_content
from radit_jax.data.corpus.serialized import SHARD, WRITER_OPTIONS, describe
from radit_jax.data.corpus.store import PassageStore
from radit_jax.data.corpus.table import DOCUMENT, DOCUMENTS, KEPT, LEFT_OUT, ORDINAL, raw, read_array
from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent

#: Digests of the ids of documents that were removed: they do not come back unless the user says so.
LOST = "removed_documents.bin"


@dataclasses.dataclass(frozen=True)
class Revision:
  """What an update of a passage store is asked for.

  Attributes:
    corpus: file or folder of documents that are new, or take the place of those of the same ids.
    format: of the corpus.
    limit: of a passage.
    on_error: see :class:`radit_jax.data.corpus.build.Build`.
    sources: files of the corpus with their hashes.
    delete_missing: documents that the corpus does not have go.
    restore: documents that were removed by an earlier update may come back.
    processes: that read the corpus.
  """

  corpus: str
  format: CorpusFormat
  limit: Limit
  on_error: OnError
  sources: Sequence[dict[str, Any]]
  delete_missing: bool = False
  restore: bool = False
  processes: int | None = None


def revise(base: PassageStore, revision: Revision, *, progress: Progress = silent) -> int | None:
  """Makes a version of a store, and returns its number; nothing reads it before it is made the current one.

  A call that was killed is continued by the same one.

  Args:
    base: the version that it begins from.
    revision: what is to change.
    progress: told of the corpus.

  Returns:
    None where nothing changes.

  Raises:
    UserError: a damaged base, a bad corpus, one without documents or without any of the store's (where all would go),
      the id of a document that was removed, or a passage that another document shares with one that changes.
  """
  files.read_manifest(base.path, "passages", verify="full")
  versions.remove_leftovers(base.root)  # a call that was killed at its very end does not come back to its own
  there = versions.numbers(base.root)
  path = versions.directory(base.root, there[-1] + 1)
  asked = {k: v for k, v in vars(revision).items() if k in ("corpus", "format", "on_error", "sources")}
  build = Build(
    path,
    revision.corpus,
    format=revision.format,
    limit=revision.limit,
    recipe={"base": base.fingerprint, **asked},
    on_error=revision.on_error,
    processes=revision.processes,
  )
  try:
    build.scan(progress)
    before, (given, records) = _pieces_of(base), _given(build)
    changes = compare(before, given, records, base.removed, delete_missing=revision.delete_missing)
    lost = _lost(base, changes, given)
    _check(base, build, revision, changes, given)
    if not len(changes.removed) and not len(changes.added) and np.array_equal(changes.documents, before.documents):
      build.discard()
      return None
  except UserError:
    build.discard()
    raise
  finally:
    build.close()
  fingerprint = _fingerprint(base, changes, given, lost)
  for number in there:
    manifest = files.read_json(versions.directory(base.root, number) / files.MANIFEST)
    if manifest["fingerprint"] == fingerprint:
      build.discard()
      return number
  _write(base, build, changes, before, given, lost, {"fingerprint": fingerprint, "sources": list(revision.sources)})
  return there[-1] + 1


def copied_rows(base: PassageStore, version: PassageStore) -> Int[np.ndarray, "a"]:
  """For each row that a version has and the one before has not: a row there of the same text, -1 for none."""
  content = stored_content(version.path, len(version))
  return match(content[len(base) :, TEXT], content[: len(base), TEXT])


def _pieces_of(store: PassageStore) -> Pieces:
  left_out, kept = (read_array(store.path / name, ORDINAL).astype(np.int64) for name in (LEFT_OUT, KEPT))
  return Pieces(read_array(store.path / DOCUMENTS, DOCUMENT), left_out, kept, stored_content(store.path, len(store)))


def _given(build: Build) -> tuple[Pieces, UInt64[np.ndarray, "O 2"]]:
  """What an update has, and the digests of all its records."""
  documents, *tables = build.pieces()
  left_out, kept = (table.astype(np.int64) for table in tables)
  content = np.concatenate([content_of(records) for records in build.records()])
  return Pieces(documents, left_out, kept, np.delete(content, left_out, axis=0)), content[:, RECORD]


def _lost(base: PassageStore, changes: Changes, given: Pieces) -> UInt64[np.ndarray, "d 2"]:
  """Digests of ids that must not come back."""
  before = _lost_before(base)
  ids = np.stack([given.documents["high"], given.documents["low"]], axis=1)
  return np.concatenate([before[match(before, ids) < 0], changes.lost])


def _lost_before(base: PassageStore) -> UInt64[np.ndarray, "d 2"]:
  path = base.path / LOST
  return read_array(path, "<u8").reshape(-1, 2) if path.exists() else np.empty((0, 2), np.uint64)


def _check(base: PassageStore, build: Build, revision: Revision, changes: Changes, given: Pieces) -> None:
  """What an update must not do.

  Raises:
    UserError: the first of it.
  """
  corpus = revision.corpus
  if revision.delete_missing and build.skipped.total():
    raise UserError(
      f"{corpus}: {build.skipped.total()} records cannot be used ({build.skipped.lines()[0].strip()}), and "
      "--delete-missing would remove their documents; correct them first"
    )
  if revision.delete_missing and changes.counts["new"] == len(given.documents):
    raise UserError(
      f"{corpus}: has none of the {changes.counts['removed']} documents of {base.root}, and --delete-missing would "
      "remove all of them; is it the right file? A new corpus is made by `radit prepare`"
    )
  if len(changes.orphans):
    name = base[int(changes.orphans[0])].id
    raise UserError(
      f"{corpus}: changes or removes passage {name!r} of {base.root}, which another document has word by word and so "
      "has no passage of its own; give that document too, or the whole corpus with --delete-missing"
    )
  ids = np.stack([given.documents["high"], given.documents["low"]], axis=1)
  again = np.flatnonzero(match(ids, _lost_before(base)) >= 0)
  if len(again) and not revision.restore:
    name = _name(build, int(given.documents["first"][again[0]]))
    raise UserError(
      f"{corpus}: passage {name!r} is of a document that an earlier update of {base.root} removed; "
      "leave it out, or let removed documents come back with --restore"
    )
  if len(changes.clashes):
    name = _name(build, int(given.ordinals()[changes.added[changes.clashes[0]]]))
    raise UserError(
      f"{corpus}: {name!r} is also called a passage of another document of {base.root}; rename the document"
    )


def _name(build: Build, piece: int) -> str:
  """Id of a piece, by its ordinal."""
  for records in build.records():
    if piece < len(records):
      return fields_of(records[piece])["id"].decode()
    piece -= len(records)
  raise AssertionError("the corpus has this piece")


def _fingerprint(base: PassageStore, changes: Changes, given: Pieces, lost: UInt64[np.ndarray, "d 2"]) -> str:
  digest = hashlib.sha256(base.fingerprint.encode())
  arrays = (changes.removed, given.content[changes.added], changes.documents, changes.left_out, changes.kept, lost)
  for array in arrays:
    digest.update(f"{len(array)}:".encode() + np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _write(
  base: PassageStore,
  build: Build,
  changes: Changes,
  before: Pieces,
  given: Pieces,
  lost: UInt64[np.ndarray, "d 2"],
  fields: dict[str, Any],
) -> None:
  """Writes the version into the work directory, and gives it its name."""
  from radit_jax.data import builders

  out = build.work / "version"
  shutil.rmtree(out, ignore_errors=True)
  old = builders.split_info(builders.RaditPassages, base.path)
  sizes, num_bytes = list(old.shard_lengths), int(old.num_bytes)  # which prints itself as "5 KiB"
  (out / SHARD).parent.mkdir(parents=True)
  written = _write_shards(out, build, given.ordinals()[changes.added], len(sizes))
  total = len(sizes) + len(written)
  known = {}
  listed = base.manifest["files"]
  for n in range(len(sizes)):
    was, name = SHARD.format(n, len(sizes)), SHARD.format(n, total)
    if files.link(base.path / was, out / name):
      known[name] = listed[was]["sha256"]
  for n, (path, _, _) in enumerate(written, len(sizes)):
    path.rename(out / SHARD.format(n, total))
  sizes += [rows for _, rows, _ in written]
  describe(out, sizes, num_bytes + sum(size for _, _, size in written))
  removed = np.union1d(base.removed, changes.removed)
  (out / versions.REMOVED).write_bytes(raw(removed.astype(versions.ROW)))
  (out / DOCUMENTS).write_bytes(raw(changes.documents))
  for name, old_part, new_part in (
    (LEFT_OUT, before.left_out, changes.left_out),
    (KEPT, before.kept, changes.kept),
    (CONTENT, before.content, given.content[changes.added]),
    (LOST, lost[:0], lost),
  ):
    with open(out / name, "wb") as f:
      for part in (old_part, new_part):
        f.write(raw(np.asarray(part, "<u8")))
  rows = len(before.content) + len(changes.added)
  counts = {"documents": len(changes.documents), "passages": rows - len(removed)}
  kept = {name: value for name, value in base.manifest.items() if name in ("recipe", "skipped")}
  counts["duplicates"] = base.manifest.get("counts", {}).get("duplicates", 0)
  files.write_manifest(
    out,
    "passages",
    {
      **kept,
      **fields,
      "base": base.fingerprint,
      "changes": {**changes.counts, "rows_added": len(changes.added), "rows_removed": len(changes.removed)},
      "count": rows,
      "removed": len(removed),
      "counts": counts,
    },
    known=known,
    durable=True,
  )
  files.replace_directory(out, build.path)
  build.discard()


def _write_shards(
  out: pathlib.Path, build: Build, pieces: Int[np.ndarray, "a"], first: int
) -> list[tuple[pathlib.Path, int, int]]:
  """Writes records into shards; path, rows and bytes of each."""
  from array_record.python import array_record_module

  written: list[tuple[pathlib.Path, int, int]] = []
  writer: Any = None
  rows = size = 0
  for record in _chosen(build, pieces):
    if writer is None:
      path = out / SHARD.format(first + len(written), 0)
      writer, rows, size = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS), 0, 0
    writer.write(record)
    rows, size = rows + 1, size + len(record)
    if size >= SHARD_BYTES:
      writer.close()
      written.append((path, rows, size))
      writer = None
  if writer is not None:
    writer.close()
    written.append((path, rows, size))
  return written


def _chosen(build: Build, pieces: Int[np.ndarray, "a"]) -> Iterator[bytes]:
  """Records of pieces by their ordinals, ascending."""
  done = 0
  for records in build.records():
    here = pieces[np.searchsorted(pieces, done) : np.searchsorted(pieces, done + len(records))]
    yield from (records[i - done] for i in here.tolist())
    done += len(records)
