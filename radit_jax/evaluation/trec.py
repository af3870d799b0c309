"""TREC's run files and relevance judgements, read and written; BEIR's judgements are read too."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence

from radit_jax.errors import UserError
from radit_jax.files import write_atomic

#: Question id -> passages with their scores, best first.
Run = dict[str, list[tuple[str, float]]]
#: Question id -> passage id -> relevance; 0 and below is judged and not relevant.
Qrels = dict[str, dict[str, int]]


def read_run(path: str | os.PathLike[str]) -> Run:
  """Reads lines of ``question Q0 passage rank score name``.

  Passages of a question are in descending order of their scores, whatever their ranks say, as trec_eval has it; equal
  scores keep the order of the file.

  Raises:
    UserError: a line that is not one (named), or a passage twice for one question.
  """
  run: Run = {}
  for number, fields in _lines(path, (6, 5)):
    try:
      score = float(fields[4])
    except ValueError:
      score = math.nan
    if math.isnan(score):
      raise UserError(f"{path}:{number}: score {fields[4]!r} is not a number")
    run.setdefault(fields[0], []).append((fields[2], score))
  for question, found in run.items():
    if len({passage for passage, _ in found}) < len(found):
      seen: set[str] = set()
      twice = next(p for p, _ in found if p in seen or seen.add(p))  # type: ignore[func-returns-value]
      raise UserError(f"{path}: question {question!r} has passage {twice!r} twice")
    found.sort(key=lambda pair: -pair[1])
  if not run:
    raise UserError(f"{path}: no lines of a run")
  return run


def write_run(
  path: str | os.PathLike[str], run: Mapping[str, Sequence[tuple[str, float]]], *, name: str = "radit"
) -> None:
  """Writes a run; scores have all digits of a float32.

  Raises:
    UserError: an id with white space, which the format has no place for, or none.
  """
  lines = [
    f"{_id(path, question)} Q0 {_id(path, passage)} {rank} {score:.9g} {_id(path, name)}\n"
    for question, found in run.items()
    for rank, (passage, score) in enumerate(found, 1)
  ]
  write_atomic(path, "".join(lines))


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
  """Reads lines of ``question 0 passage relevance``, or BEIR's table of ``query-id corpus-id score``.

  Raises:
    UserError: a line that is neither (named), or a passage judged twice for one question.
  """
  qrels: Qrels = {}
  for number, fields in _lines(path, (4, 3)):
    if number == 1 and fields[0] == "query-id":
      continue
    question, passage, relevance = fields[0], fields[-2], fields[-1]
    try:
      judged = int(relevance)
    except ValueError:
      raise UserError(f"{path}:{number}: relevance {relevance!r} is not a whole number") from None
    if passage in qrels.setdefault(question, {}):
      raise UserError(f"{path}:{number}: question {question!r} judges passage {passage!r} twice")
    qrels[question][passage] = judged
  if not qrels:
    raise UserError(f"{path}: no judgements")
  return qrels


def write_qrels(path: str | os.PathLike[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
  """Writes judgements.

  Raises:
    UserError: an id with white space, or none.
  """
  lines = [
    f"{_id(path, question)} 0 {_id(path, passage)} {relevance}\n"
    for question, judged in qrels.items()
    for passage, relevance in judged.items()
  ]
  write_atomic(path, "".join(lines))


def _lines(path: str | os.PathLike[str], widths: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
  try:
    with open(path, encoding="utf-8") as lines:
      for number, line in enumerate(lines, 1):
        fields = line.split()
        if fields and len(fields) not in widths:
          raise UserError(f"{path}:{number}: {len(fields)} fields, {' or '.join(map(str, widths))} expected")
        if fields:
          yield number, fields
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except UnicodeDecodeError as e:
    raise UserError(f"{path}: not UTF-8 (byte {e.start})") from None


def _id(path: str | os.PathLike[str], name: str) -> str:
  if not name or name.split() != [name]:
    raise UserError(f"{path}: the id {name!r} is empty or holds white space, which a TREC file cannot hold")
  return name
