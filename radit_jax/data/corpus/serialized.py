"""The store as TFDS would write it: records in a twentieth of its time, descriptions without loading it."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from json.encoder import encode_basestring as _quoted

from radit_jax.data.sources import Metadata

#: Files of the store, as TFDS names them.
SHARD = "radit_passages/1.0.0/radit_passages-rows.array_record-{:05d}-of-{:05d}"
#: One record in a group, as TFDS wants it for reading at random. Not compressed: a passage alone shrinks by a fourth,
#: and would take twice the time of everything else.
WRITER_OPTIONS = "group_size:1,uncompressed"
#: What stands behind the id of a document in the ids of its pieces; grows with the longest document.
_SUFFIXES: list[bytes] = []


def describe(store: pathlib.Path, shard_rows: Sequence[int], num_bytes: int) -> None:
  """Writes what TFDS wants to know of the shards of a store.

  Args:
    store: its directory.
    shard_rows: records of each shard.
    num_bytes: of all records.
  """
  split = {
    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    "name": "rows",
    "numBytes": str(num_bytes),
    "shardLengths": [str(rows) for rows in shard_rows],
  }
  info = {
    "disableShuffling": True,
    "fileFormat": "array_record",
    "moduleName": "radit_jax.data.builders",
    "name": "radit_passages",
    "splits": [split],
    "version": "1.0.0",
  }
  features = "tensorflow_datasets.core.features"
  text = {"pythonClassName": f"{features}.text_feature.Text", "text": {}}
  kinds = {
    "featuresDict": {"features": dict.fromkeys(("id", "metadata", "text", "title"), text)},
    "pythonClassName": f"{features}.features_dict.FeaturesDict",
  }
  directory = (store / SHARD).parent
  (directory / "dataset_info.json").write_text(json.dumps(info, indent=2))
  (directory / "features.json").write_text(json.dumps(kinds, indent=4))


def digest(text: bytes) -> bytes:
  """16 bytes that stand for a text: two that differ have the same with a probability of 2 ** -128."""
  return digesting(text).digest()


def digesting(text: bytes) -> "hashlib.blake2b":
  """:func:`digest` of a text under way, to which more can be added."""
  return hashlib.blake2b(text, digest_size=16)


def feature(name: str, value: bytes) -> bytes:
  """One text of a ``tf.train.Example``, as an entry of its map."""
  return _head(name, len(value)) + value


def example(*features: bytes) -> bytes:
  """A ``tf.train.Example``; features in the order of their names."""
  joined = b"".join(features)
  return _example_head(len(joined)) + joined


def passage(name: bytes, metadata: bytes, text: bytes, title: bytes) -> bytes:
  """A record of the store: id, metadata and title of a text; the last two are features already."""
  return example(feature("id", name), metadata, feature("text", text), title)


class Records:
  """Records of the store, one behind the other: each as :func:`passage` makes it, many times as fast.

  Attributes:
    lengths: of each record.
  """

  def __init__(self) -> None:
    self._parts: list[bytes] = []
    self.lengths: list[int] = []

  def add(self, names: Sequence[bytes], metadata: bytes, texts: Sequence[bytes], title: bytes) -> None:
    """Adds passages that differ in their ids and texts; metadata and title are features already."""
    same = len(metadata) + len(title)
    for name, text in zip(names, texts, strict=True):
      id_head, text_head = _head("id", len(name)), _head("text", len(text))
      size = len(id_head) + len(name) + len(text_head) + len(text) + same
      head = _example_head(size)
      self._parts += (head, id_head, name, metadata, text_head, text, title)
      self.lengths.append(len(head) + size)

  def joined(self) -> bytes:
    """All of them."""
    return b"".join(self._parts)


def metadata_text(metadata: Metadata) -> bytes:
  """Metadata as the store has it."""
  pairs = [f"{_quoted(name)}: {_quoted(value)}" for name, value in metadata.items() if isinstance(value, str)]
  if len(pairs) == len(metadata):  # nearly always, and without an encoder made anew
    return f"{{{', '.join(pairs)}}}".encode()
  return json.dumps(dict(metadata), ensure_ascii=False).encode()


def piece_names(identifier: bytes, count: int) -> list[bytes]:
  """Ids of the pieces of a document: its own where there is one only."""
  if count == 1:
    return [identifier]
  while len(_SUFFIXES) < count:
    _SUFFIXES.append(b"/%d" % len(_SUFFIXES))
  return [identifier + suffix for suffix in _SUFFIXES[:count]]


@functools.lru_cache(maxsize=1 << 16)
def _head(name: str, length: int) -> bytes:
  """What stands before a text of so many bytes: each message around it with its length, and the key."""
  value = b"\n" + _varint(length)
  values = b"\n" + _varint(len(value) + length) + value
  key = name.encode()
  entry = b"\n" + _varint(len(key)) + key + b"\x12" + _varint(len(values) + length) + values
  return b"\n" + _varint(len(entry) + length) + entry


@functools.lru_cache(maxsize=1 << 16)
def _example_head(size: int) -> bytes:
  return b"\n" + _varint(size)


def _varint(n: int) -> bytes:
  out = bytearray()
  while n >= 128:
    out.append(n & 127 | 128)
    n >>= 7
  out.append(n)
  return bytes(out)
