"""Where a text is cut: as few pieces below a limit as its parts allow, and of about equal size."""

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

#: A text of more limits than this goes alone: those that are looked at together take as many steps as the longest.
_LONGEST = 32


def choose(begin: Sequence[int], end: Sequence[int], size: int) -> list[int]:
  """First part of each piece of one text.

  Filling every piece from the front gives the fewest pieces, and the latest place of each cut; filling them from the
  back gives the earliest. Any cut between the two, within the limit of the one before, can be continued.

  Args:
    begin: what the text has before each part.
    end: what it has up to the end of each part; no part is above the limit.
    size: limit of a piece.

  Example:
    >>> choose([0, 2, 5], [2, 5, 6], 5)
    [0, 1]
  """
  count = len(begin)
  latest = [0]
  while (following := bisect.bisect_right(end, begin[latest[-1]] + size)) < count:
    latest.append(max(following, latest[-1] + 1))
  pieces = len(latest)
  if pieces == 1:
    return latest
  earliest = [0] * pieces
  last = count
  for i in range(pieces - 1, 0, -1):
    last = min(bisect.bisect_left(begin, end[last - 1] - size), last - 1)
    earliest[i] = last
  chosen = [0]
  for i in range(1, pieces):
    before = chosen[-1]
    low = max(earliest[i], before + 1)
    high = max(bisect.bisect_right(end, begin[before] + size, low), low)
    # Where the pieces that are left would have equal sizes.
    target = begin[before] + (end[-1] - begin[before]) / (pieces - i + 1)
    place = bisect.bisect_left(end, target, low - 1, high - 1)
    if place >= low and target - end[place - 1] <= end[place] - target:
      place -= 1
    chosen.append(place + 1)
  return chosen


def choose_all(
  words: Float[np.ndarray, "P"], first: Int[np.ndarray, "N"], last: Int[np.ndarray, "N"], size: int
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "N"]]:
  """What :func:`choose` makes of many texts, in a few steps for all of them.

  Args:
    words: in all texts together before each place where one of them may be cut.
    first: the place where each text begins; texts follow one another.
    last: the place where it ends.
    size: limit of a piece.

  Returns:
    The place where each piece begins, text by text, and how many pieces each text has.
  """
  lone = words[last] - words[first] > _LONGEST * size
  together = np.flatnonzero(~lone)
  counts = np.empty(len(first), np.int64)
  chosen, counts[together] = _choose_together(words, first[together], last[together], size)
  alone = []
  for text in np.flatnonzero(lone).tolist():
    a, b = int(first[text]), int(last[text])
    own = words[a : b + 1].tolist()
    alone.append(np.array(choose(own[:-1], own[1:], size)) + a)
    counts[text] = len(alone[-1])
  places = np.empty(counts.sum(), np.int64)
  is_lone = np.repeat(lone, counts)
  places[~is_lone] = chosen
  if alone:
    places[is_lone] = np.concatenate(alone)
  return places, counts


def _choose_together(
  words: Float[np.ndarray, "P"], first: Int[np.ndarray, "N"], last: Int[np.ndarray, "N"], size: int
) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "N"]]:
  """The steps of :func:`choose`, each for all texts that have so many pieces; names are the same.

  ``words`` never falls, also from text to text, so that a search in it is one in the text, held within its bounds.
  """
  pieces = np.ones(len(first), np.int64)
  going = np.arange(len(first))
  place = first
  while len(going):
    following = np.clip(np.searchsorted(words, words[place] + size, "right") - 1, first[going], last[going])
    goes_on = following < last[going]
    going, place = going[goes_on], following[goes_on]
    pieces[going] += 1
  # Those with the most pieces in front, so that each step takes a number of them from there.
  order = np.argsort(-pieces, kind="stable")
  pieces, first, last = pieces[order], first[order], last[order]
  most = int(pieces[0]) if len(pieces) else 0
  having = [int(np.searchsorted(-pieces, -i)) for i in range(most + 1)]  # more than i pieces
  earliest = np.zeros((most + 1, len(pieces)), np.int64)
  place = last
  for back in range(1, most):
    place = place[: having[back]]
    a, b = first[: len(place)], last[: len(place)]
    place = np.minimum(np.clip(np.searchsorted(words, words[place] - size), a, b), place - 1)
    earliest[pieces[: len(place)] - back, np.arange(len(place))] = place
  chosen = np.zeros((most + 1, len(pieces)), np.int64)
  chosen[0] = first
  for i in range(1, most):
    number = having[i]
    a, b, before = first[:number], last[:number], chosen[i - 1, :number]
    low = np.maximum(earliest[i, :number], before + 1)
    high = np.clip(np.searchsorted(words, words[before] + size, "right") - 1, low, b)
    target = words[before] + (words[b] - words[before]) / (pieces[:number] - i + 1)
    place = np.clip(np.searchsorted(words, target) - 1, low - 1, high - 1)
    nearer = (place >= low) & (target - words[place] <= words[place + 1] - target)
    chosen[i, :number] = place - nearer + 1
  in_order = np.empty_like(order)
  in_order[order] = np.arange(len(order))
  pieces = pieces[in_order]
  return chosen[:, in_order].T[np.arange(most + 1) < pieces[:, None]], pieces
