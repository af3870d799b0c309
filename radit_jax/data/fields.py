"""Fields of one record, each of the type it must have; anything else is said in words."""

import itertools
import re
from typing import Any

from radit_jax.data.policy import BadRecord

# A table of thousands of columns must not become a line of thousands of names.
_NAMES_SHOWN = 12
_DIGITS = re.compile(r"-?[0-9]{1,18}")
_TYPES = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number", bool: "true or false"}


def type_name(value: object) -> str:
  """A JSON type in words."""
  return "null" if value is None else _TYPES.get(type(value), type(value).__name__)


def an_object(value: Any) -> dict[str, Any]:
  """``value``, which must be a JSON object."""
  if not isinstance(value, dict):
    raise BadRecord(f"{type_name(value)}, must be an object {{...}}")
  return value


def a_list(record: dict[str, Any], name: str) -> list[Any]:
  """A field that must be there and be a list."""
  value = field(record, name, list)
  if value is None:
    raise missing(record, name)
  return value


def text(record: dict[str, Any], name: str) -> str:
  """A field that must be there and hold more than white space."""
  value = field(record, name, str)
  if value is None:
    raise missing(record, name)
  if not value.strip():
    raise BadRecord(f"field {name!r} is empty")
  return value


def optional_text(record: dict[str, Any], name: str) -> str | None:
  """A text, or None where the field is missing, null or nothing but white space."""
  value = field(record, name, str)
  return value if value and value.strip() else None


def texts(record: dict[str, Any], name: str, *, required: bool) -> tuple[str, ...]:
  """A list of texts, none of them empty; ``required`` wants at least one."""
  values = field(record, name, list)
  if values is None and required:
    raise missing(record, name)
  for value in values or ():
    if not isinstance(value, str):
      raise BadRecord(f"field {name!r} holds {type_name(value)}, must be a list of text")
    if not _unicode(name, value).strip():
      raise BadRecord(f"field {name!r} holds an empty text")
  if required and not values:
    raise BadRecord(f"field {name!r} is an empty list; at least one is needed")
  return tuple(values or ())


def metadata(record: dict[str, Any]) -> dict[str, str | int | float]:
  """Field ``metadata``: name -> text or finite number."""
  values = field(record, "metadata", dict) or {}
  for name, value in values.items():
    _unicode("metadata", name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise BadRecord(
        f"metadata {name!r} is {type_name(value)}, must be text or a number", reason="metadata is no text or number"
      )
    if isinstance(value, str):
      _unicode("metadata", value)
    elif not abs(value) < float("inf"):
      raise BadRecord(f"metadata {name!r} is {value}, must be a finite number", reason="metadata is no finite number")
  return values


def missing(record: dict[str, Any], name: str) -> BadRecord:
  """What to say of a field that is not there."""
  found = ", ".join(map(repr, itertools.islice(record, _NAMES_SHOWN))) + (", ..." if len(record) > _NAMES_SHOWN else "")
  return BadRecord(f"field {name!r} is missing; found {found or 'none'}", reason=f"field {name!r} is missing")


def field(record: dict[str, Any], name: str, kind: type) -> Any:
  """A field that may be missing or null, which gives None, and is of this type if it is there."""
  value = record.get(name)
  if value is not None and not isinstance(value, kind):
    raise BadRecord(f"field {name!r} is {type_name(value)}, must be {_TYPES[kind]}")
  return _unicode(name, value) if isinstance(value, str) else value


def _unicode(name: str, value: str) -> str:
  try:
    if not value.isascii():  # which every string knows of itself
      value.encode("utf-16-le")  # fails for the same ones as UTF-8, in a third of the time
  except UnicodeEncodeError:  # valid JSON, but no store, tokenizer or terminal can take it
    raise BadRecord(f"field {name!r} holds half a surrogate pair (\\ud800-\\udfff), which is no character") from None
  if "\0" in value:
    raise BadRecord(f"field {name!r} holds a NUL character")
  return value


def integer(record: dict[str, Any], name: str) -> int:
  """A whole number, or a text of digits."""
  value = record.get(name)
  if value is None:
    raise missing(record, name)
  if isinstance(value, str) and _DIGITS.fullmatch(value):
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, int):
    raise BadRecord(f"field {name!r} is {type_name(value)}, must be a whole number")
  return value


def truth(record: dict[str, Any], name: str) -> bool:
  """A field that must be there and be true or false."""
  value = field(record, name, bool)
  if value is None:
    raise missing(record, name)
  return bool(value)


def an_object_at(record: dict[str, Any], name: str) -> dict[str, Any]:
  """A field that must be there and be an object."""
  value = field(record, name, dict)
  if value is None:
    raise missing(record, name)
  return value
