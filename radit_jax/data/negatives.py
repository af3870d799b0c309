"""Hard negatives: which retrieved passages are taken for wrong, and the JSONL file that holds them."""

import collections
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from radit_jax.data.fields import a_list, an_object, integer, text
from radit_jax.data.policy import BadRecord
from radit_jax.data.records import read_lines
from radit_jax.errors import UserError

#: Digits of the passage store's fingerprint that stand in every line.
_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A retrieved passage.

  Attributes:
    row: of the passage store.
    words: its text, normalised: passages with the same words are copies.
    answers: whether it holds an answer.
  """

  row: int
  words: str
  answers: bool


def choose(
  candidates: Sequence[Candidate], gold: Sequence[Candidate], count: int, dropped: collections.Counter[str]
) -> list[int]:
  """Rows of the first candidates that are neither gold, nor a copy of what stands before, nor hold an answer.

  Args:
    candidates: best first.
    gold: the question's gold passages.
    count: at most so many.
    dropped: counts what was passed over, by reason.

  Example:
    >>> dropped = collections.Counter()
    >>> candidates = [Candidate(4, "a", False), Candidate(7, "b", True), Candidate(2, "c", False)]
    >>> choose(candidates, [Candidate(9, "a", True)], 5, dropped), dict(dropped)
    ([2], {'copy': 1, 'answer': 1})
  """
  rows, seen = {c.row for c in gold}, {c.words for c in gold}
  chosen: list[int] = []
  for candidate in candidates:
    if len(chosen) == count:
      break
    if candidate.row in rows:
      dropped["gold"] += 1
    elif candidate.words in seen:
      dropped["copy"] += 1
    elif candidate.answers:
      dropped["answer"] += 1
    else:
      chosen.append(candidate.row)
      seen.add(candidate.words)
  return chosen


def record(
  question: str,
  query: str,
  positives: Sequence[int],
  negatives: Sequence[int],
  name: Callable[[int], str],
  passages: str,
) -> dict[str, Any]:
  """A line of the file, as JSON values.

  Args:
    question: its id.
    query: its text.
    positives: rows of its gold passages.
    negatives: rows, best first.
    name: id of a row's passage.
    passages: fingerprint of the passage store.
  """

  def named(rows: Sequence[int]) -> list[dict[str, Any]]:
    return [{"row": row, "id": name(row)} for row in rows]

  return {
    "id": question,
    "query": query,
    "positives": named(positives),
    "negatives": named(negatives),
    "passages": passages[:_DIGITS],
  }


def read_negatives(path: str | os.PathLike[str], passages: str) -> dict[str, tuple[int, ...]]:
  """Rows of the negatives of each question, by its id. Lines may have been left out, sorted, or shortened.

  Args:
    path: JSONL file that `radit mine-negatives` wrote.
    passages: fingerprint of the passage store that the rows must be of.

  Raises:
    UserError: no lines; a line that is not one of these, is of another passage store, or repeats a question (named).
  """
  found: dict[str, tuple[int, ...]] = {}
  for place, line in read_lines(path):
    try:
      if isinstance(line, BadRecord):
        raise line
      question = text(line, "id")
      if (store := text(line, "passages")) != passages[:_DIGITS]:
        raise BadRecord(f"made from the passage store {store}, the index holds {passages[:_DIGITS]}; mine again")
      if question in found:
        raise BadRecord(f"question {question!r} stands in an earlier line")
      rows = [integer(an_object(negative), "row") for negative in a_list(line, "negatives")]
      if rows and min(rows) < 0:
        raise BadRecord(f"row {min(rows)}: must be at least 0")
      found[question] = tuple(rows)
    except BadRecord as e:
      raise UserError(f"{place}: {e}") from None
  if not found:
    raise UserError(f"{path}: no lines of negatives")
  return found
