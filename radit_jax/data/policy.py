"""What happens to a record that is no good: the reading stops there, or it is counted; never less."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from radit_jax.config import OnError
from radit_jax.errors import UserError

T = TypeVar("T")

_EXAMPLES_KEPT = 5
_LONGEST = 500


class BadRecord(Exception):
  """One record is no good; the message says why, the place comes with the record.

  Attributes:
    reason: what it is counted under: the message without what is peculiar to this record.
  """

  def __init__(self, message: str, *, reason: str | None = None) -> None:
    super().__init__(_one_line(message))
    self.reason = _one_line(reason or message)


def _one_line(message: str) -> str:
  """Names and values of a file may hold line breaks, and be of any length."""
  line = " ".join(message.split())
  return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


class Unused(Exception):
  """A sound record that makes no example by what its format means, e.g. a question nobody answered: counted always."""


#: Where it stands (``"<file>:<line>"`` or ``"<file>#<path in it>"``), and the record or what is wrong with it.
Located = tuple[str, Any]


@dataclasses.dataclass
class Skipped:
  """What was left out: how many records for each reason, and the first five of each.

  Attributes:
    counts: records by reason.
    examples: ``"<place>: <message>"`` of the first five records of each reason.

  Example:
    >>> skipped = Skipped()
    >>> skipped.add("a.jsonl:3", BadRecord("not UTF-8 (byte 7)", reason="not UTF-8"))
    >>> skipped.lines()
    ['1 left out: not UTF-8', '  a.jsonl:3: not UTF-8 (byte 7)']
  """

  counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def add(self, place: str, problem: BadRecord | Unused) -> None:
    """Counts one record."""
    reason = problem.reason if isinstance(problem, BadRecord) else str(problem)
    self.counts[reason] += 1
    kept = self.examples.setdefault(reason, [])
    if len(kept) < _EXAMPLES_KEPT:
      kept.append(f"{place}: {problem}")

  def total(self) -> int:
    """Records left out, whatever the reason."""
    return self.counts.total()

  def lines(self) -> list[str]:
    """For the command line: each reason with its count, then its first five records."""
    return [
      line
      for reason, count in self.counts.most_common()
      for line in (f"{count} left out: {reason}", *(f"  {example}" for example in self.examples[reason]))
    ]


def accepted(
  located: Iterable[Located], make: Callable[[Any], T], on_error: OnError, skipped: Skipped | None = None
) -> Iterator[tuple[str, T]]:
  """What ``make`` makes of each record that is good, with its place.

  Args:
    located: records.
    make: raises :class:`BadRecord` or :class:`Unused` for what it cannot take.
    on_error: "strict" stops at the first bad record; "skip" leaves it out.
    skipped: counts what was left out.

  Raises:
    UserError: a bad record, under "strict".
  """
  for place, record in located:
    try:
      if isinstance(record, BadRecord):
        raise record
      made = make(record)
    except (BadRecord, Unused) as e:
      if isinstance(e, BadRecord) and on_error == "strict":
        raise UserError(f"{place}: {e}; correct it, or leave such records out with --on-error skip") from None
      if skipped is not None:
        skipped.add(place, e)
      continue
    yield place, made
