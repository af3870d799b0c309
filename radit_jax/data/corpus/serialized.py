"""Passages as records of the store: the bytes that TFDS would make of them, 20 times as fast."""

import functools
import hashlib
import json

from radit_jax.data.sources import Metadata

#: Files of the store, as TFDS names them.
SHARD = "radit_passages/1.0.0/radit_passages-rows.array_record-{:05d}-of-{:05d}"
#: One record in a group, as TFDS wants it for reading at random. Not compressed: a passage alone shrinks by a fourth,
#: and would take twice the time of everything else.
WRITER_OPTIONS = "group_size:1,uncompressed"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def digest(text: bytes) -> bytes:
  """16 bytes that stand for a text: two that differ have the same with a probability of 2 ** -128."""
  return hashlib.blake2b(text, digest_size=16).digest()


def feature(name: str, value: bytes) -> bytes:
  """One text of a ``tf.train.Example``, as an entry of its map."""
  return _head(name, len(value)) + value


def example(*features: bytes) -> bytes:
  """A ``tf.train.Example``; features in the order of their names."""
  joined = b"".join(features)
  return b"\n" + _varint(len(joined)) + joined


def metadata_text(metadata: Metadata) -> bytes:
  """Metadata as the store has it."""
  return _encode(dict(metadata)).encode()


@functools.lru_cache(maxsize=1 << 16)
def _head(name: str, length: int) -> bytes:
  """What stands before a text of so many bytes: each message around it with its length, and the key."""
  value = b"\n" + _varint(length)
  values = b"\n" + _varint(len(value) + length) + value
  key = name.encode()
  entry = b"\n" + _varint(len(key)) + key + b"\x12" + _varint(len(values) + length) + values
  return b"\n" + _varint(len(entry) + length) + entry


@functools.lru_cache(maxsize=1 << 16)
def _varint(n: int) -> bytes:
  out = bytearray()
  while n >= 128:
    out.append(n & 127 | 128)
    n >>= 7
  out.append(n)
  return bytes(out)
