"""`radit retrieve` without a store: passages for one question, a file of them, or stdin, shown or as a run."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from radit_jax.config import RetrieveConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.evaluation import trec

#: Where a line of JSON has what is asked, the first of these that it has; and its id. Split files, questions, BEIR's.
_TEXT, _ID = ("query", "question", "text"), ("id", "_id")


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question that need not have an answer.

  Attributes:
    id: of the question, or the number of its line.
    text: what is searched for.
    own_rows: rows that it must not find.
  """

  id: str
  text: str
  own_rows: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class FindResult:
  """What was found.

  Attributes:
    asked: the questions.
    found: of each, ``(row, score, passage)``, best first.
    run: TREC file that was written; None for none.
    dropped: why -> how many passages were dropped.
  """

  asked: tuple[Asked, ...]
  found: tuple[tuple[tuple[int, float, Passage], ...], ...]
  run: str | None
  dropped: dict[str, int]

  def summary(self) -> str:
    """The passages of one question; a line of JSON for each of several; or where the run file is."""
    if self.run is not None:
      drops = "".join(f", {count} dropped as {name}" for name, count in self.dropped.items() if count)
      return f"{len(self.asked)} questions{drops}: {self.run}"
    if len(self.asked) == 1:
      return "\n".join(
        f"{score:10.3f}  [{row}] {p.title + ': ' if p.title else ''}{p.text}" for row, score, p in self.found[0]
      )
    return "\n".join(
      json.dumps(
        {
          "id": question.id,
          "question": question.text,
          "passages": [
            {"id": p.id, "row": row, "score": score, "title": p.title, "text": p.text} for row, score, p in found
          ],
        },
        ensure_ascii=False,
      )
      for question, found in zip(self.asked, self.found, strict=True)
    )


def read_asked(config: RetrieveConfig) -> tuple[Asked, ...]:
  """The questions of a call: the one that was given, or those of a file or of stdin (``-``).

  Each line is a question, or an object of JSON with ``question`` (or ``query``, or ``text``) and perhaps ``id``. What a
  split says is not searched for is left out.

  Raises:
    UserError: no file, no question in it, or a line that is none (named).
  """
  if config.question is not None:
    return (Asked("question", config.question),)
  name = "stdin" if config.questions == "-" else str(config.questions)
  if config.questions == "-":
    content = sys.stdin.buffer.read()
  elif not pathlib.Path(name).is_file():
    raise UserError(f"{name}: no such file; give a file of questions, - for stdin, or --question")
  else:
    content = pathlib.Path(name).read_bytes()
  try:
    lines = content.decode("utf-8-sig").split("\n")
  except UnicodeDecodeError as e:
    raise UserError(f"{name}: not UTF-8 (byte {e.start})") from None
  asked: dict[str, Asked] = {}
  for number, line in enumerate(lines, 1):
    one = _asked(f"{name}:{number}", number, line.strip()) if line.strip() else None
    if one is None:
      continue
    if one.id in asked:
      raise UserError(f"{name}:{number}: id {one.id!r} has come before; every question needs its own")
    asked[one.id] = one
  if not asked:
    raise UserError(f"{name}: no questions")
  return tuple(asked.values())


def _asked(where: str, number: int, line: str) -> Asked | None:
  """One line's question; None where a split says that nothing is searched for."""
  if not line.startswith("{"):
    return Asked(str(number), line)
  try:
    row: dict[str, Any] = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{where}: not JSON ({e})") from None
  if row.get("context") is not None or row.get("category") == "text":
    return None
  text = next((row[field] for field in _TEXT if field in row), None)
  if not isinstance(text, str) or not text.strip():
    raise UserError(f"{where}: no text in {' or '.join(map(repr, _TEXT))}")
  name = next((row[field] for field in _ID if field in row), number)
  own = row.get("exclude_rows", [])
  if not isinstance(own, list) or not all(type(r) is int for r in own):
    raise UserError(f"{where}: exclude_rows = {own!r}: must be a list of row numbers")
  return Asked(str(name), text, tuple(own))


def write_run(
  path: str, questions: Sequence[str], found: Sequence[tuple[list[int], list[float]]], store: PassageStore
) -> None:
  """A TREC run of what was found.

  Args:
    path: the file.
    questions: ids.
    found: of each, rows and scores, best first.
    store: of the passages.
  """
  run = {
    name: list(zip([p.id for p in store.many(rows)], scores, strict=True))
    for name, (rows, scores) in zip(questions, found, strict=True)
  }
  trec.write_run(path, run)
