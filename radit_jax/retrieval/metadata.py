"""Passage metadata beside an index: which rows a filter allows."""

import array
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from radit_jax import files
from radit_jax.errors import UserError

Value = str | int | float | bool
#: Field of the passage metadata -> the value it must have, or the values it may have.
Where = Mapping[str, Value | Sequence[Value]]


def write_metadata(path: pathlib.Path, metadata: Iterable[Mapping[str, Value]]) -> int:
  """Writes one mapping per row, a line of JSON each, and returns how many.

  Raises:
    UserError: a value that is neither a string nor a finite number (row and field named).
  """
  count = 0
  with open(path, "w", encoding="utf-8") as lines:
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
    self._fields: dict[str, dict[Value, np.ndarray]] = {}

  def rows(self, where: Where) -> Int[np.ndarray, "M"]:
    """Rows that agree with every field of the filter, ascending; none if no row does.

    Raises:
      UserError: a field that no row has, a value that is neither string nor number, or a file that has changed.
    """
    allowed = np.ones(self._count, bool)
    for field, wanted in where.items():
      values = [wanted] if isinstance(wanted, (str, int, float)) else list(wanted)
      if bad := [v for v in values if not isinstance(v, (str, int, float))]:
        raise UserError(f"where: {field} = {bad[0]!r}; compare with a string, a number, or a list of them")
      by_value = self._field(field)
      matches = np.zeros(self._count, bool)
      for value in values:
        matches[by_value.get(value, np.empty(0, np.int64))] = True
      allowed &= matches
    return np.flatnonzero(allowed)

  def _field(self, field: str) -> dict[Value, np.ndarray]:
    if field not in self._fields:
      rows: dict[Value, array.array[int]] = {}
      others: set[str] = set()
      for row, entry in enumerate(self._read()):
        others.update(entry)
        if field in entry:
          rows.setdefault(entry[field], array.array("q")).append(row)
      if not rows:
        known = sorted(others)
        raise UserError(f"where: no passage has the metadata field {field!r}; there are: {', '.join(known) or 'none'}")
      self._fields[field] = {value: np.array(r, np.int64) for value, r in rows.items()}
    return self._fields[field]

  def _read(self) -> Iterator[dict[str, Value]]:
    if not self._path.is_file() or files.sha256_file(self._path) != self._sha256:
      raise UserError(f"{self._path}: changed since the index was opened; open it again")
    with open(self._path, encoding="utf-8") as lines:
      yield from map(json.loads, lines)
