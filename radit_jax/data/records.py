"""Reading a file record by record, and a record field by field, with everything that is wrong given its place."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from radit_jax.errors import UserError


class BadRecord(Exception):
  """One record is no good; the message says why, the place comes with the record."""


#: Where it stands (``"<file>:<line>"`` for lines), and the record or what is wrong with it.
Located = tuple[str, Any]


def read_lines(path: str | os.PathLike[str]) -> Iterator[Located]:
  """JSON objects of a file, one on each line; blank lines say nothing.

  Raises:
    UserError: no such file.
  """
  p = pathlib.Path(path)
  if not p.is_file():
    raise UserError(f"{p}: no such file")
  with open(p, "rb") as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      record: Any
      try:
        record = an_object(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")))
      except UnicodeDecodeError as e:
        record = BadRecord(f"not UTF-8 (byte {e.start} of the line)")
      except (json.JSONDecodeError, RecursionError) as e:
        record = BadRecord(f"not JSON ({e})")
      except BadRecord as e:
        record = e
      yield f"{p}:{number}", record


def read_json(path: str | os.PathLike[str]) -> Any:
  """A whole file as JSON; None if it is empty.

  Raises:
    UserError: no such file, not UTF-8, not JSON (line named).
  """
  p = pathlib.Path(path)
  if not p.is_file():
    raise UserError(f"{p}: no such file")
  raw = p.read_bytes()
  try:
    text = raw.decode("utf-8-sig")
    return json.loads(text) if text.strip() else None
  except UnicodeDecodeError as e:
    line = raw.count(b"\n", 0, e.start) + 1
    raise UserError(f"{p}:{line}: not UTF-8 (byte {e.start} of the file)") from None
  except json.JSONDecodeError as e:
    raise UserError(f"{p}:{e.lineno}: not JSON ({e.msg})") from None


_TYPES = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number", bool: "true or false"}


def _type(value: object) -> str:
  return "null" if value is None else _TYPES.get(type(value), type(value).__name__)


def an_object(value: Any) -> dict[str, Any]:
  """``value``, which must be a JSON object."""
  if not isinstance(value, dict):
    raise BadRecord(f"{_type(value)}, must be an object {{...}}")
  return value


def a_list(record: dict[str, Any], name: str) -> list[Any]:
  """A field that must be there and be a list."""
  value = _field(record, name, list)
  if value is None:
    raise _missing(record, name)
  return value


def text(record: dict[str, Any], name: str) -> str:
  """A field that must be there and hold more than white space."""
  value = _field(record, name, str)
  if value is None:
    raise _missing(record, name)
  if not value.strip():
    raise BadRecord(f"field {name!r} is empty")
  return value


def optional_text(record: dict[str, Any], name: str) -> str | None:
  """A text, or None where the field is missing, null or nothing but white space."""
  value = _field(record, name, str)
  return value if value and value.strip() else None


def texts(record: dict[str, Any], name: str, *, required: bool) -> tuple[str, ...]:
  """A list of texts, none of them empty; ``required`` wants at least one."""
  values = _field(record, name, list)
  if values is None and required:
    raise _missing(record, name)
  for value in values or ():
    if not isinstance(value, str):
      raise BadRecord(f"field {name!r} holds {_type(value)}, must be a list of text")
    if not _unicode(name, value).strip():
      raise BadRecord(f"field {name!r} holds an empty text")
  if required and not values:
    raise BadRecord(f"field {name!r} is an empty list; at least one is needed")
  return tuple(values or ())


def metadata(record: dict[str, Any]) -> dict[str, str | int | float]:
  """Field ``metadata``: name -> text or finite number."""
  values = _field(record, "metadata", dict) or {}
  for name, value in values.items():
    _unicode("metadata", name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise BadRecord(f"metadata {name!r} is {_type(value)}, must be text or a number")
    if isinstance(value, str):
      _unicode(f"metadata.{name}", value)
    elif not abs(value) < float("inf"):
      raise BadRecord(f"metadata {name!r} is {value}, must be a finite number")
  return values


def _missing(record: dict[str, Any], name: str) -> BadRecord:
  return BadRecord(f"field {name!r} is missing; found {', '.join(map(repr, record)) or 'none'}")


def _field(record: dict[str, Any], name: str, kind: type) -> Any:
  value = record.get(name)
  if value is not None and not isinstance(value, kind):
    raise BadRecord(f"field {name!r} is {_type(value)}, must be {_TYPES[kind]}")
  return _unicode(name, value) if isinstance(value, str) else value


def _unicode(name: str, value: str) -> str:
  try:
    value.encode()
  except UnicodeEncodeError:  # valid JSON, but no store, tokenizer or terminal can take it
    raise BadRecord(f"field {name!r} holds half a surrogate pair (\\ud800-\\udfff), which is no character") from None
  return value
