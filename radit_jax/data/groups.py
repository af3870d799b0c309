"""Prompts that begin alike, gathered into groups that share one copy of their beginning, and fitted into rows."""

import bisect
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Int

#: Prompts of one prefix that stand in one row, ``(example, passage)`` each.
Group = tuple[tuple[int, int], ...]
#: Groups of one row; a row without any is padding.
Row = tuple[Group, ...]


class Bundle(NamedTuple):
  """A group, and what it takes of a row: tokens with its prefix counted once, and answer tokens."""

  tokens: int
  answers: int
  group: Group


@dataclasses.dataclass(frozen=True)
class Prefixes:
  """How prompts begin; ``[n, K]`` each.

  Attributes:
    tokens: int64, up to the end of the passage; 0 where nothing can be shared.
    keys: int64, alike where those tokens are.
  """

  tokens: Int[np.ndarray, "n K"]
  keys: Int[np.ndarray, "n K"]

  def __getitem__(self, examples: Any) -> Self:
    return dataclasses.replace(self, tokens=self.tokens[examples], keys=self.keys[examples])


def prefix_key(ids: Sequence[int]) -> int:
  """62 bits of a hash, the same on every machine."""
  digest = hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=8).digest()
  return int.from_bytes(digest, "little") >> 2


def common_prefix(of: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """What all begin with.

  Example:
    >>> common_prefix([(1, 2, 3), (1, 2), (1, 2, 4)])
    (1, 2)
  """
  low, high = min(of), max(of)  # no other one differs from either earlier than they do from one another
  if low == high:
    return low
  same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
  return low[:same]


def halves(keys: Int[np.ndarray, "n K"]) -> tuple[Int[np.ndarray, "n K"], Int[np.ndarray, "n K"]]:
  """Keys as two arrays of numbers below 2^31, which processes can add up; see :func:`whole`."""
  return keys >> 31, keys & (2**31 - 1)


def whole(high: Int[np.ndarray, "n K"], low: Int[np.ndarray, "n K"]) -> Int[np.ndarray, "n K"]:
  """Keys from their halves."""
  return high << 31 | low


def bundles(
  prompts: Int[np.ndarray, "m 2"],
  tokens: Int[np.ndarray, "m"],
  answers: Int[np.ndarray, "m"],
  prefixes: Prefixes | None,
  *,
  row_tokens: int,
  most_answers: int,
) -> list[Bundle]:
  """Prompts in groups of one prefix, as large as a row holds.

  Args:
    prompts: ``(example, passage)`` each.
    tokens: of each prompt with its answer.
    answers: answer tokens of each.
    prefixes: of each, ``[m]``; None leaves every prompt alone.
    row_tokens: T.
    most_answers: A.

  Returns:
    Groups of one prefix behind one another, in the order of their first prompts.

  Example:
    >>> of = np.array([[0, 0], [1, 0], [2, 0]])
    >>> alike = Prefixes(np.array([20, 20, 30]), np.array([7, 7, 8]))
    >>> for bundle in bundles(of, np.array([25, 26, 35]), np.array([2, 3, 2]), alike, row_tokens=64, most_answers=8):
    ...   print(*bundle)
    31 5 ((0, 0), (1, 0))
    35 2 ((2, 0),)
  """
  count = len(prompts)
  if prefixes is None:
    return [Bundle(int(tokens[n]), int(answers[n]), (_pair(prompts[n]),)) for n in range(count)]
  # What begins with nothing is alone, under a number that is no key.
  keys = np.where(prefixes.tokens > 0, prefixes.keys, -1 - np.arange(count))
  _, first, of_group = np.unique(keys, return_index=True, return_inverse=True)
  out: list[Bundle] = []
  last, used, answered, group = -1, 0, 0, list[tuple[int, int]]()
  for n in np.lexsort((np.arange(count), first[of_group])).tolist():
    prefix, answer = int(prefixes.tokens[n]), int(answers[n])
    own = int(tokens[n]) - prefix
    if of_group[n] != last or used + own > row_tokens or answered + answer > most_answers:
      if group:
        out.append(Bundle(used, answered, tuple(group)))
      last, used, answered, group = int(of_group[n]), prefix, 0, []
    used, answered = used + own, answered + answer
    group.append(_pair(prompts[n]))
  return [*out, Bundle(used, answered, tuple(group))] if group else out


def best_fit(of: Sequence[Bundle], row_tokens: int, most_answers: int) -> list[Row]:
  """Longest first, each into the row it leaves the least room in; a row has room for tokens and for answers."""
  rows: list[list[Group]] = []
  open_rows: list[tuple[int, int, int]] = []  # (room for tokens, row, room for answers), ascending
  for tokens, answers, group in sorted(of, key=lambda b: -b.tokens):
    place = bisect.bisect_left(open_rows, (tokens, -1, -1))
    while place < len(open_rows) and open_rows[place][2] < answers:
      place += 1
    if place < len(open_rows):
      room, row, answer_room = open_rows.pop(place)
    else:
      room, row, answer_room = row_tokens, len(rows), most_answers
      rows.append([])
    rows[row].append(group)
    bisect.insort(open_rows, (room - tokens, row, answer_room - answers))
  return list(map(tuple, rows))


def _pair(prompt: Int[np.ndarray, "2"]) -> tuple[int, int]:
  return int(prompt[0]), int(prompt[1])
