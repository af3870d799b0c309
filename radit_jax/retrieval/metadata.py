"""Passage metadata beside an index: which rows a filter allows."""

import array
import dataclasses
import functools
import json
import math
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from radit_jax import files
from radit_jax.errors import UserError

Value = str | int | float | bool
#: Field of the passage metadata -> the value it must have, or the values it may have.
Where = Mapping[str, Value | Sequence[Value]]


@dataclasses.dataclass(frozen=True, eq=False)
class Allowed:
  """What a filtered search may return.

  Attributes:
    mask: ``[N]`` bool, True for a row that it may.
    codes: field -> numbers of the values that it may have there, see :meth:`MetadataFilter.codes`.
  """

  mask: Bool[np.ndarray, "N"]
  codes: Mapping[str, Sequence[int]]

  @functools.cached_property
  def rows(self) -> Int[np.ndarray, "M"]:
    """The rows, ascending."""
    return np.flatnonzero(self.mask)

  def __len__(self) -> int:
    return len(self.rows)

  def only(self, ids: Int[np.ndarray, "Q C"]) -> Int[np.ndarray, "Q C"]:
    """The ids with -1 in place of those that are not allowed."""
    return np.where((ids >= 0) & self.mask[np.maximum(ids, 0)], ids, -1)


def write_metadata(
  path: pathlib.Path, metadata: Iterable[Mapping[str, Value]], before: pathlib.Path | None = None
) -> int:
  """Writes one mapping per row, a line of JSON each, and returns how many.

  Args:
    path: the file.
    metadata: of each row.
    before: a file of the rows before them; its lines come first.

  Raises:
    UserError: a value that is neither a string nor a finite number (row and field named).
  """
  count = 0
  if before is not None:
    files.copy(before, path)
  with files.named(path), open(path, "w" if before is None else "a", encoding="utf-8") as lines:
    for row, entry in enumerate(metadata):
      for field, value in entry.items():
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
          raise UserError(f"metadata of row {row}: {field} = {value!r}; values are strings and finite numbers")
      lines.write(json.dumps(dict(entry), ensure_ascii=False) + "\n")
      count = row + 1
  return count


class MetadataFilter:
  """Rows by the value of a field, each field read on its first use.

  Args:
    path: file written by :func:`write_metadata`. Read when a field is first asked for, line by line: most searches have
      no filter, and a large corpus has gigabytes of it. What is kept is rows by value, of the fields asked for.
    sha256: of the file when the index was opened; the directory may be replaced by another index in between.
    count: number of rows.
  """

  def __init__(self, path: str | os.PathLike[str], sha256: str, count: int):
    self._path = pathlib.Path(path)
    self._sha256 = sha256
    self._count = count
    self._fields: dict[str, dict[Value, tuple[int, np.ndarray]]] = {}
    self._lock = threading.Lock()

  def allowed(self, where: Where) -> Allowed:
    """Rows that agree with every field of the filter; none if no row does.

    Raises:
      UserError: a field that no row has, a value that is neither string nor number, or a file that has changed.
    """
    mask = np.ones(self._count, bool)
    codes = {}
    for field, wanted in where.items():
      values = [wanted] if isinstance(wanted, (str, int, float)) else list(wanted)
      if bad := [v for v in values if not isinstance(v, (str, int, float))]:
        raise UserError(f"where: {field} = {bad[0]!r}; compare with a string, a number, or a list of them")
      by_value = self._field(field)
      matches = np.zeros(self._count, bool)
      codes[field] = sorted({by_value[value][0] for value in values if value in by_value})
      for value in values:
        if value in by_value:
          matches[by_value[value][1]] = True
      mask &= matches
    return Allowed(mask, codes)

  @functools.cached_property
  def fields(self) -> tuple[str, ...]:
    """Every field that a row has, in alphabetical order."""
    return tuple(sorted({field for entry in self._read() for field in entry}))

  def codes(self, field: str) -> Int[np.ndarray, "N"]:
    """The field's value in each row as a number: values are counted in the order of their first rows; -1 for none."""
    out = np.full(self._count, -1, np.int64)
    for code, rows in self._field(field).values():
      out[rows] = code
    return out

  def _field(self, field: str) -> dict[Value, tuple[int, np.ndarray]]:
    """Value -> its number and its rows."""
    with self._lock:  # of several callers, one reads the file
      if field not in self._fields:
        rows: dict[Value, array.array[int]] = {}
        others: set[str] = set()
        for row, entry in enumerate(self._read()):
          others.update(entry)
          if field in entry:
            rows.setdefault(entry[field], array.array("q")).append(row)
        if not rows:
          known = ", ".join(sorted(others)) or "none"
          raise UserError(f"where: no passage has the metadata field {field!r}; there are: {known}")
        numbered = enumerate(rows.items())
        self._fields[field] = {value: (code, np.array(at, np.int64)) for code, (value, at) in numbered}
      return self._fields[field]

  def _read(self) -> Iterator[dict[str, Value]]:
    if not self._path.is_file() or files.sha256_file(self._path) != self._sha256:
      raise UserError(f"{self._path}: changed since the index was opened; open it again")
    with open(self._path, encoding="utf-8") as lines:
      yield from map(json.loads, lines)
