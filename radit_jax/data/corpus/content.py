"""What the rows of a passage store hold, as digests: record, what an encoder reads of it, id, document."""

import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int, UInt64

from radit_jax import files
from radit_jax.data.corpus.serialized import digest
from radit_jax.data.corpus.table import numbers, read_array

CONTENT = "content.bin"
#: Which digest of a row: each is two numbers.
RECORD, TEXT, NAME, OWNER = range(4)
#: Records read at once.
_RECORDS = 2**12


def content_of(records: Iterable[bytes]) -> UInt64[np.ndarray, "N 4 2"]:
  """Digests of records, as they lie in the store.

  Example:
    >>> from radit_jax.data.corpus.serialized import feature, passage
    >>> made = passage(b"a", feature("metadata", b"{}"), b"A text.", feature("title", b""))
    >>> content_of([made, made]).shape
    (2, 4, 2)
  """
  found: list[bytes] = []
  for record in records:
    fields = fields_of(record)
    metadata = json.loads(fields["metadata"])
    section, document = metadata.get("section"), metadata.get("document")
    heading = section if isinstance(section, str) else ""
    name, text = digest(fields["id"]), digest(b"\n".join((fields["title"], heading.encode(), fields["text"])))
    # Of the record not its bytes: TFDS writes fields in any order.
    found += (
      digest(name + text + fields["metadata"]),
      text,
      name,
      digest(str(document).encode()) if document else name,
    )
  return numbers(b"".join(found)).reshape(-1, 4, 2)


def fields_of(record: bytes) -> dict[str, bytes]:
  """Texts of a ``tf.train.Example`` by their names; each message is its length and what it holds."""
  found = {}
  at = _skip(record, 0)
  while at < len(record):
    size, at = _length(record, _skip(record, at) + 1)
    name = record[at : at + size].decode()
    at += size
    for _ in range(2):  # the feature, and its list of texts
      at = _skip(record, at)
    size, at = _length(record, at + 1)
    found[name] = record[at : at + size]
    at += size
  return found


def _skip(record: bytes, at: int) -> int:
  """Where a message begins, behind its tag and length."""
  return _length(record, at + 1)[1]


def _length(record: bytes, at: int) -> tuple[int, int]:
  """A number, and where it ends."""
  value = shift = 0
  while (byte := record[at]) >= 128:
    value |= (byte & 127) << shift
    shift += 7
    at += 1
  return value | byte << shift, at + 1


def stored_content(store: pathlib.Path, rows: int) -> UInt64[np.ndarray, "N 4 2"]:
  """Digests of all rows of a store: those that lie beside it, or made anew."""
  if (store / CONTENT).exists():
    return read_array(store / CONTENT, "<u8").reshape(-1, 4, 2)
  made = np.empty((rows, 4, 2), np.uint64)
  done = 0
  for records in _stored_records(store):
    made[done : done + len(records)] = content_of(records)
    done += len(records)
  return made


def _stored_records(store: pathlib.Path) -> Iterator[list[bytes]]:
  from array_record.python import array_record_module

  listed = files.read_manifest(store, "passages")["files"]
  for name in sorted(n for n in listed if ".array_record-" in n):
    reader = array_record_module.ArrayRecordReader(str(store / name))
    for first in range(0, reader.num_records(), _RECORDS):
      yield reader.read(first, min(first + _RECORDS, reader.num_records()))
    reader.close()


def match(wanted: UInt64[np.ndarray, "n 2"], known: UInt64[np.ndarray, "m 2"]) -> Int[np.ndarray, "n"]:
  """For each digest the first place in ``known`` that has the same, -1 for none.

  Example:
    >>> known = np.array([[1, 1], [1, 2], [1, 1]], np.uint64)
    >>> match(np.array([[1, 2], [2, 2], [1, 1]], np.uint64), known).tolist()
    [1, -1, 0]
  """
  both = np.concatenate([known, wanted])
  order = np.lexsort((both[:, 1], both[:, 0]))  # stable: of equal ones the known come first, and in their order
  ordered = both[order]
  begins = np.ones(len(order), bool)
  begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
  leader = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))] if len(order) else order
  place = np.empty(len(order), np.int64)
  place[order] = leader
  found = place[len(known) :]
  return np.where(found < len(known), found, -1)
