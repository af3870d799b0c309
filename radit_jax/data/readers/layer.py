"""What a reader is made of: where a file's records lie, and the mapping that makes an example of one."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from radit_jax.data import records
from radit_jax.data.policy import BadRecord, Located
from radit_jax.data.readers.example import Example
from radit_jax.errors import UserError

#: From the record's parts to an example; an id of "" is replaced by the record's place.
Mapping = Callable[..., Example]


@dataclasses.dataclass(frozen=True)
class Reader:
  """How one format is read.

  Attributes:
    records: from path and split to located tuples, the arguments of ``make``.
    make: the mapping; raises :class:`radit_jax.data.policy.BadRecord` or ``Unused``.
    files: pattern of the files of a folder, which are read one behind the other; "" for a path that is one input.
    splits: whether a split can be asked for.
    prepared: the mapping of a record that TFDS has prepared, where it knows the set.
  """

  records: Callable[[pathlib.Path, str | None], Iterator[Located]]
  make: Mapping
  files: str = ""
  splits: bool = False
  prepared: Mapping | None = None

  def located(self, path: pathlib.Path, split: str | None) -> Iterator[Located]:
    """Records of a file, or of all files of a folder in the order of their names."""
    if not (self.files and path.is_dir()):
      yield from self.records(path, split)
      return
    # Hidden files, such as those that macOS writes beside each file, are no data.
    found = sorted(p for p in path.rglob(self.files) if p.is_file() and not p.name.startswith("."))
    if not found:
      raise UserError(f"{path}: no {self.files} in this folder")
    for file in found:
      yield from self.records(file, split)


def lines(make: Mapping, files: str = "*.jsonl*", *, prepared: Mapping | None = None) -> Reader:
  """One JSON object on each line."""
  return Reader(lambda path, _: alone(records.read_lines(path)), make, files, prepared=prepared)


def tree(steps: str, make: Mapping, files: str = "", *, prepared: Mapping | None = None) -> Reader:
  """A JSON file; for the steps see :func:`radit_jax.data.records.read_tree`."""
  return Reader(lambda path, _: records.read_tree(path, steps), make, files, prepared=prepared)


def labelled(make: Callable[[dict[str, Any], str], Example], suffix: str = "-labels.lst") -> Reader:
  """Lines of JSON, whose right answers stand line by line in a file of their own beside it."""

  def read(path: pathlib.Path, _: str | None) -> Iterator[Located]:
    labels = path.with_name(path.name.split(".")[0] + suffix)
    right = dict(records.read_text_lines(labels))
    number = 0
    for place, record in records.read_lines(path):
      number = int(place.rpartition(":")[2])
      label = right.get(number, BadRecord(f"no line {number} in {labels}", reason="no label"))
      yield place, next((x for x in (record, label) if isinstance(x, BadRecord)), (record, label))
    extra = [n for n, label in right.items() if n > number and not (isinstance(label, str) and not label.strip())]
    if extra:
      yield f"{labels}:{extra[0]}", BadRecord(f"{len(extra)} labels more than lines", reason="labels without a line")

  return Reader(read, make)


def alone(located: Iterator[Located]) -> Iterator[Located]:
  """Each record as the only argument of its mapping."""
  for place, record in located:
    yield place, record if isinstance(record, BadRecord) else (record,)


def first_byte(path: pathlib.Path) -> bytes:
  """The first byte that is neither white space nor a byte order mark, for formats of several forms; b"" for none."""
  try:
    with records.open_input(path) as f:
      return f.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
  except records.broken_archive() as e:
    raise UserError(f"{path}: the compressed file is cut off or damaged ({e})") from None


def prepared_records(path: pathlib.Path, split: str | None) -> Iterator[Located]:
  """Records of a folder that TFDS has prepared in ArrayRecord; read without TensorFlow.

  Raises:
    UserError: not such a folder, another file format, or no such split (those there are named).
  """
  import numpy as np

  from radit_jax.data import builders  # TFDS takes a second to import

  split, source = builders.read_prepared(path, split)

  def plain(value: Any) -> Any:
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    if isinstance(value, bytes):
      return value.decode()
    if isinstance(value, np.ndarray | list | tuple):
      return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value

  for i in range(len(source)):
    place = f"{path}#{split}[{i}]"
    try:
      record = plain(source[i])
    except Exception as e:
      yield place, BadRecord(f"cannot be read ({_one_line(e)})", reason="cannot be read")
    else:
      yield place, (record,)


def _one_line(e: Exception) -> str:
  text = " ".join(str(e).split())
  return text if len(text) <= 200 else text[:197] + "..."
