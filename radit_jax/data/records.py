"""Files as located records: lines, tables, JSON and XML, compressed or not, and where in them a record stands.

Nothing here knows a data set. What cannot be read comes as a :class:`radit_jax.data.policy.BadRecord` at its place.
"""

import bz2
import csv
import gzip
import io
import json
import os
import pathlib
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from typing import IO, Any

from radit_jax.data.fields import a_list, an_object, an_object_at, type_name
from radit_jax.data.policy import BadRecord, Located
from radit_jax.errors import UserError

_DECODER = json.JSONDecoder()
#: A longer line is refused: it is held in memory whole, and one that is longer is a file without line breaks.
MAX_LINE_BYTES = 100_000_000
_BOM = b"\xef\xbb\xbf"


def open_input(path: str | os.PathLike[str]) -> IO[bytes]:
  """Opens a file for reading; gzip, bzip2 and Zstandard are told by their first bytes and read as what they hold.

  Raises:
    UserError: no such file, a folder, not readable, or a zip archive.
  """
  p = pathlib.Path(path)
  try:
    with open(p, "rb") as f:
      magic = f.read(4)
  except IsADirectoryError:
    raise UserError(f"{p}: a folder, must be a file") from None
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"{p}: no such file") from None
  except OSError as e:
    raise UserError(f"{p}: cannot be read ({e.strerror})") from None
  if magic[:2] == b"\x1f\x8b":
    return io.BufferedReader(gzip.open(p), 1 << 20)  # type: ignore[arg-type]
  if magic[:3] == b"BZh":
    return io.BufferedReader(bz2.open(p), 1 << 20)  # type: ignore[arg-type]
  if magic == b"\x28\xb5\x2f\xfd":
    from backports import zstd  # Python 3.14 has it as compression.zstd

    return io.BufferedReader(zstd.open(p), 1 << 20)
  if magic == b"PK\x03\x04":
    raise UserError(f"{p}: a zip archive; unpack it and name the file or folder inside")
  return open(p, "rb", buffering=1 << 20)


def broken_archive() -> tuple[type[Exception], ...]:
  """What reading a compressed file raises where it is cut off or damaged."""
  from backports import zstd

  return EOFError, OSError, zlib.error, zstd.ZstdError


def read_text_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str | BadRecord]]:
  r"""Lines with their numbers from 1, without the line break (``\n`` or ``\r\n``) and without a byte order mark.

  Blank lines come too. At most one line is held in memory.

  Yields:
    ``(number, text)``; or what is wrong with that line: not UTF-8, NUL bytes, 100 MB or more, or a compressed file that
    ends or is damaged there, which ends the reading.

  Raises:
    UserError: see :func:`open_input`.
  """
  with open_input(path) as f:
    number = 0
    broken = broken_archive()
    while True:
      number += 1
      try:
        line = f.readline(MAX_LINE_BYTES)
        if not line:
          return
        if len(line) == MAX_LINE_BYTES:
          while rest := f.readline(1 << 20):
            if rest.endswith(b"\n"):
              break
          yield number, BadRecord(f"a line of {MAX_LINE_BYTES} bytes or more; does the file have line breaks?")
          continue
      except broken as e:
        yield number, BadRecord(f"the compressed file is cut off or damaged ({e})", reason="compressed file damaged")
        return
      yield number, decode_line(line, first=number == 1)


def decode_line(line: bytes, *, first: bool) -> str | BadRecord:
  """Text of a line without its line break, or what is wrong with it; a file's first may have a byte order mark."""
  try:
    text = (line.removeprefix(_BOM) if first else line).decode()
  except UnicodeDecodeError as e:
    return BadRecord(f"not UTF-8 (byte {e.start} of the line)", reason="not UTF-8")
  if "\0" in text:
    return BadRecord("NUL bytes; is this text, and in UTF-8?")
  if text.endswith("\n"):
    return text[:-2] if text.endswith("\r\n") else text[:-1]
  return text


def read_lines(path: str | os.PathLike[str]) -> Iterator[Located]:
  """JSON objects of a file, one on each line; blank lines say nothing.

  Raises:
    UserError: see :func:`open_input`.
  """
  for number, line in read_text_lines(path):
    if isinstance(line, str) and not line.strip():
      continue
    record: Any = line
    if isinstance(line, str):
      try:
        record = json_object(line)
      except BadRecord as e:
        record = e
    yield f"{path}:{number}", record


def json_object(line: str) -> dict[str, Any]:
  """The JSON object that a line holds.

  Raises:
    BadRecord: it holds none.
  """
  try:
    try:
      value, end = _DECODER.raw_decode(line)  # `json.loads` looks for white space around it, for a third of the time
    except ValueError:
      end = -1
    return an_object(value if end == len(line) else json.loads(line))
  except (ValueError, RecursionError) as e:  # ValueError: also a number of more than 4,300 digits
    raise BadRecord(f"not JSON ({_reason(e)})", reason="not JSON") from None


def _reason(e: Exception) -> str:
  if isinstance(e, json.JSONDecodeError):
    cut_off = e.pos >= len(e.doc.rstrip()) or e.msg.startswith("Unterminated string")
    return f"column {e.colno}: " + ("it ends too early: " if cut_off else "") + e.msg
  return "nested too deep" if isinstance(e, RecursionError) else "a number of thousands of digits"


def read_json(path: str | os.PathLike[str]) -> Any:
  """A whole file as JSON; None if it is empty.

  Raises:
    UserError: see :func:`open_input`; not UTF-8, not JSON (line named), a compressed file that is damaged.
  """
  try:
    with open_input(path) as f:
      raw = f.read()
  except broken_archive() as e:
    raise UserError(f"{path}: the compressed file is cut off or damaged ({e})") from None
  try:
    text = raw.decode("utf-8-sig")
    return json.loads(text) if text.strip() else None
  except UnicodeDecodeError as e:
    line = raw.count(b"\n", 0, e.start) + 1
    raise UserError(f"{path}:{line}: not UTF-8 (byte {e.start} of the file)") from None
  except json.JSONDecodeError as e:
    raise UserError(f"{path}:{e.lineno}: not JSON ({_reason(e)})") from None
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: not JSON ({_reason(e)})") from None


_STEP = re.compile(r"(\w*)(\[\]|\{\})?")


def read_tree(path: str | os.PathLike[str], steps: str) -> Iterator[Located]:
  """What lies at the end of a path through a JSON file, with the objects it passes.

  Args:
    path: the file; it is read whole.
    steps: names joined by ``.``; behind a name, or alone at the front, ``[]`` walks a list and ``{}`` the values of an
      object.

  Yields:
    The chain of objects, outermost first: one for each ``[]``, and for each ``{}`` the key and then the value. The file
    ``{"data": [{"qas": [{"id": 1}, {"id": 2}]}]}`` with ``"data[].qas[]"`` gives ``({"qas": ...}, {"id": 1})`` at
    ``file#data[0].qas[0]``, and the next.

  Raises:
    UserError: see :func:`read_json`; nothing of that kind where the path begins.
  """
  content = read_json(path)
  if content is None:
    return
  names = [_STEP.fullmatch(step) for step in steps.split(".")]
  assert all(names), steps
  parsed = [(m[1], m[2]) for m in names if m]
  try:
    _inside(content, *parsed[0])
  except BadRecord as e:
    raise UserError(f"{path}: not a file of this format: {e}") from None
  yield from _walk(f"{path}#", content, (), parsed)


def _inside(value: Any, name: str, kind: str | None) -> Any:
  """The list or object that a step walks."""
  if name:
    value = a_list(an_object(value), name) if kind == "[]" else an_object_at(an_object(value), name)
  elif kind == "[]" and not isinstance(value, list):
    raise BadRecord(f"{type_name(value)}, must be a list [...]")
  return value if kind == "[]" else an_object(value)


def _walk(place: str, value: Any, chain: tuple[Any, ...], steps: list[tuple[str, str | None]]) -> Iterator[Located]:
  if not steps:
    yield place, chain
    return
  (name, kind), rest = steps[0], steps[1:]
  here = place + ("." if name and not place.endswith("#") else "") + name
  try:
    inside = _inside(value, name, kind)
  except BadRecord as e:
    yield place, e
    return
  items = enumerate(inside) if kind == "[]" else inside.items()
  for key, item in items:
    at = f"{here}[{key if kind == '[]' else json.dumps(key)}]"
    if not isinstance(item, dict):
      yield at, BadRecord(f"{type_name(item)}, must be an object {{...}}")
      continue
    yield from _walk(at, item, (*chain, item) if kind == "[]" else (*chain, key, item), rest)


def read_table(
  path: str | os.PathLike[str], *, delimiter: str, columns: tuple[str, ...] = (), quoted: bool = True
) -> Iterator[Located]:
  """Rows of a table as objects of texts; a row's place is the line it begins on.

  Args:
    path: the file.
    delimiter: between two cells.
    columns: their names; none given takes them from the first row.
    quoted: cells may stand between double quotes, and hold delimiters and line breaks then.

  Raises:
    UserError: see :func:`open_input`; a first row that cannot be read.
  """
  line = 0
  problem: BadRecord | None = None

  def lines() -> Iterator[str]:
    nonlocal line, problem
    for number, value in read_text_lines(path):
      line = number
      if isinstance(value, BadRecord):
        problem, value = value, ""  # said when the row that it stands in is complete
      yield value + "\n"

  rows = csv.reader(
    lines(), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
  )
  while True:
    start = line + 1
    record: Any
    try:
      cells = next(rows)
      blank = not cells or (len(cells) == 1 and not cells[0].strip())
      record = problem or _row([] if blank else cells, columns)
    except StopIteration:
      return
    except csv.Error as e:
      record = BadRecord(f"not a row of cells ({e}), up to line {line}", reason="not a row of cells")
    except BadRecord as e:
      record = e
    else:
      if not isinstance(record, BadRecord) and (blank or not columns):
        columns = columns or (() if blank else tuple(cells))
        continue
    problem = None
    if not columns:
      raise UserError(f"{path}:{start}: no line of column names: {record}")
    yield f"{path}:{start}", record


def _row(cells: list[str], columns: tuple[str, ...]) -> dict[str, str]:
  if cells and columns and len(cells) != len(columns):
    raise BadRecord(
      f"{len(cells)} cells, must be {len(columns)} ({', '.join(columns)})", reason=f"not {len(columns)} cells"
    )
  return dict(zip(columns, cells, strict=False))


def read_xml(path: str | os.PathLike[str], element: str) -> Iterator[Located]:
  """Every ``element`` of an XML file as an object: text by name of the child, a list of texts where it has children.

  At most one element is held in memory. Entities that blow up are refused by the parser (expat) itself.

  Raises:
    UserError: see :func:`open_input`; not XML.
  """
  number = 0
  with open_input(path) as f:
    try:
      events = ET.iterparse(f, events=("start", "end"))
      _, root = next(events)
      for event, node in events:
        if event == "end" and node.tag == element:
          fields = {c.tag: [x.text or "" for x in c] if len(c) else c.text or "" for c in node}
          yield f"{path}#{element}[{number}]", fields
          number += 1
          root.clear()
    except StopIteration:
      return
    except ET.ParseError as e:
      raise UserError(f"{path}:{e.position[0]}: not XML ({e})") from None
    except ValueError as e:
      raise UserError(f"{path}: not XML ({e})") from None
    except broken_archive() as e:
      raise UserError(f"{path}: the compressed file is cut off or damaged ({e})") from None
