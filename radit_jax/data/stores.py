"""What all stores share: written whole or not at all, read at random by row number, known by a fingerprint."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

from radit_jax import files
from radit_jax.errors import UserError

T = TypeVar("T")

#: Kind of store, as its manifest says -> name of its builder.
KINDS = {"passages": "RaditPassages", "retrieved": "RaditRetrieved", "scores": "RaditScores"}

# Records kept decoded: a passage of 100 words takes about 1 KiB, so at most some 64 MiB. Decoding one takes 40-170 us.
CACHE_RECORDS = 65_536
_READ_AHEAD = 256


def write_store(
  kind: str,
  path: str | os.PathLike[str],
  records: Iterable[dict[str, Any]],
  manifest: Mapping[str, Any],
  *,
  beside: Callable[[pathlib.Path], None] | None = None,
) -> None:
  """Writes a store; row numbers are positions in ``records``.

  Args:
    kind: a key of :data:`radit_jax.data.stores.KINDS`.
    path: directory; replaced if it exists.
    records: dicts of the builder's features, each with an "id".
    manifest: what the rows were made from.
    beside: called with the store's directory after the last record, to lay files beside the rows.

  Raises:
    UserError: no records, or two with one id.
  """
  from radit_jax.data import builders

  digest = hashlib.sha256()
  fields = {name: value for name, value in manifest.items() if name != "recipe"}
  digest.update(json.dumps(fields, sort_keys=True).encode())
  ids: set[str] = set()

  def counted() -> Iterator[dict[str, Any]]:
    for record in records:
      if record["id"] in ids:
        raise UserError(f"{path}: two records have the id {record['id']!r}; ids must be unique")
      ids.add(record["id"])
      _digest(digest, record)
      yield record
    if not ids:
      raise UserError(f"{path}: no records to write")

  with files.atomic_directory(path) as directory:
    builders.write(getattr(builders, KINDS[kind]), directory, counted())
    if beside:
      beside(directory)
    files.write_manifest(directory, kind, {**manifest, "count": len(ids), "fingerprint": digest.hexdigest()})


def _digest(digest: Any, record: dict[str, Any]) -> None:
  for name in sorted(record):
    value = record[name]
    content = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode()
    digest.update(f"{name}:{len(content)}:".encode() + content)


class Store(Sequence[T], Generic[T]):
  """Records by row number. Decoded ones are kept, up to ``CACHE_RECORDS``, so a small store is decoded once.

  Args:
    path: directory of the store.

  Raises:
    UserError: not a finished store of this kind, or a damaged one.

  Attributes:
    path: as given.
    manifest: what the store was made from.
    fingerprint: hex digest of the records and what they were made from.
  """

  kind: str

  def __init__(self, path: str | os.PathLike[str]) -> None:
    self.path = pathlib.Path(path)
    self.manifest: dict[str, Any] = files.read_manifest(self.path, self.kind)
    self.fingerprint: str = self.manifest["fingerprint"]
    self._count: int = self.manifest["count"]
    self._cache: dict[int, T] = {}
    self._source: Any = None

  def _decode(self, record: dict[str, Any]) -> T:
    raise NotImplementedError

  def __len__(self) -> int:
    return self._count

  @overload
  def __getitem__(self, row: int) -> T: ...
  @overload
  def __getitem__(self, row: slice) -> list[T]: ...
  def __getitem__(self, row: int | slice) -> T | list[T]:
    if isinstance(row, slice):
      return self.many(range(*row.indices(len(self))))
    if not -len(self) <= row < len(self):
      raise IndexError(f"{self.path}: row {row} of {len(self)}")
    return self.many([row % len(self)])[0]

  def __iter__(self) -> Iterator[T]:
    for start in range(0, len(self), _READ_AHEAD):
      yield from self.many(range(start, min(start + _READ_AHEAD, len(self))))

  def many(self, rows: Iterable[int]) -> list[T]:
    """Records of several rows at once, in the order asked for.

    Args:
      rows: row numbers, each in ``[0, len)``.

    Raises:
      IndexError: a row is outside the store.
      UserError: a damaged file (named).
    """
    wanted = [int(row) for row in rows]
    found = {row: self._cache.get(row) for row in wanted}
    missing = [row for row, record in found.items() if record is None]
    if missing:
      for row in missing:
        if not 0 <= row < len(self):
          raise IndexError(f"{self.path}: row {row} of {len(self)}")
      if self._source is None:
        from radit_jax.data import builders

        self._source = builders.read(getattr(builders, KINDS[self.kind]), self.path)
      try:
        decoded = {row: self._decode(r) for row, r in zip(missing, self._source.__getitems__(missing), strict=True)}
      except Exception:  # array_record and TFDS raise what they like, and do not say of which file
        files.read_manifest(self.path, self.kind, verify="full")
        raise
      found.update(decoded)
      if len(self._cache) + len(decoded) > CACHE_RECORDS:
        self._cache = {}
      self._cache.update(decoded)
    return [found[row] for row in wanted]  # type: ignore[misc]
