"""What an approximate index finds of what exact search finds, and the settings that make it find more."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.progress import Progress, silent
from radit_jax.retrieval.exact import Stored, exact_top, score_pairs
from radit_jax.retrieval.index import StoredIndex
from radit_jax.retrieval.scann import Settings

#: Passages that are searched with, and how many of their neighbours are compared.
QUERIES, NEIGHBOURS = 1000, 10
#: Overlap that a build should have if its user names none.
WANTED = 0.95
#: What fewer partitions may find less, to be said to find as much.
_AS_MUCH = 0.002
#: A row that no search names, and the least length that is divided by.
_NO_ROW, _TINY = -2, 1e-30
#: Beyond this many reordered candidates, exact search is the better choice.
_MOST_REORDERED = 10_000


@dataclasses.dataclass(frozen=True)
class Overlap:
  """What a build measured of itself.

  Attributes:
    overlap: share of the 10 best passages that the index finds too.
    queries: how many passages were searched with.
    wanted: what it should be.
    advice: which setting to raise; "" where the overlap is reached.
  """

  overlap: float
  queries: int
  wanted: float
  advice: str = ""


def tune(
  index: StoredIndex,
  parameters: dict[str, Any],
  settings: Settings,
  target: float | None,
  *,
  fewer: bool = False,
  progress: Progress = silent,
) -> tuple[Settings, Overlap]:
  """Measures an approximate index, and raises its settings where that is asked for.

  Passages find each other in fewer partitions than questions find them. So the number looked at is halved only as long
  as half of what is left still finds as much for passages that are blurred, see :class:`Sample`; the last factor of two
  is for what even these do not show. Measured with SQuAD's sentences and questions by benchmarks/index_questions.py.

  Args:
    index: to be measured.
    parameters: what it was built with.
    settings: to begin with.
    target: overlap to reach by raising settings; None measures, and only says what to raise.
    fewer: look at fewer partitions where that finds as much.
    progress: told after every measurement.

  Returns:
    The settings, and what was measured under them.
  """
  plain = Sample(index.stored, live=index.live)
  searchers = index.candidates
  assert searchers is not None
  measured = 0

  def overlap(asked: Settings, sample: Sample = plain) -> float:
    nonlocal measured
    found = sample.overlap(lambda q, k: ranked(index.stored, q, searchers.with_settings(asked)(q, k)))
    measured += 1
    progress("measure", measured, measured, "settings", overlap=found)
    return found

  wanted = WANTED if target is None else target
  reached = overlap(settings)
  if fewer and settings.leaves_to_search is not None:
    blurred = Sample(index.stored, live=index.live, blurred=True)
    as_much, least = [settings], overlap(settings, blurred) - _AS_MUCH
    while (leaves := as_much[-1].leaves_to_search or 1) > 1:
      half = dataclasses.replace(settings, leaves_to_search=-(-leaves // 2))
      if overlap(half, blurred) < least:
        break
      as_much.append(half)
    if len(as_much) > 2:
      settings = as_much[-2]
      reached = overlap(settings)
  while reached < wanted:
    tried = {name: (overlap(raised), raised) for name, raised in _raised(settings, parameters).items()}
    if not tried:
      advice = "no setting can be raised further; --backend exact finds all"
      return settings, Overlap(reached, len(plain), wanted, advice)
    name, (better, raised) = max(tried.items(), key=lambda item: item[1][0])
    if target is None:
      option = name.replace("_", "-")
      advice = (
        f"--{option} {getattr(raised, name)} has {better:.3f}; --target-recall {wanted:g} raises it as far as needed"
      )
      return settings, Overlap(reached, len(plain), wanted, advice)
    reached, settings = better, raised
  return settings, Overlap(reached, len(plain), wanted)


def _raised(settings: Settings, parameters: dict[str, Any]) -> dict[str, Settings]:
  """The settings with one of them doubled, by its name."""
  out = {}
  leaves = parameters.get("leaves", 0)
  if settings.leaves_to_search is not None and settings.leaves_to_search < leaves:
    out["leaves_to_search"] = dataclasses.replace(settings, leaves_to_search=min(2 * settings.leaves_to_search, leaves))
  if settings.reorder < _MOST_REORDERED:
    out["reorder"] = dataclasses.replace(settings, reorder=min(2 * settings.reorder, _MOST_REORDERED))
  return out


def ranked(stored: Stored, queries: Float[np.ndarray, "Q E"], ids: Int[np.ndarray, "Q C"]) -> Int[np.ndarray, "Q C"]:
  """Candidates by their exact scores, best first, equal scores by lower row."""
  order = np.lexsort((ids, -score_pairs(stored, queries, ids)), axis=-1)
  return np.take_along_axis(ids, order, axis=1)


class Sample:
  """Passages drawn to be searched with, and their true neighbours, themselves left out.

  Args:
    stored: ``[N, E]`` embeddings, two at least.
    live: rows that a search may find; None for all.
    blurred: to each passage, a random mixture of those drawn is added that is as long as itself: what results lies as
      far from the passage as a question does (a cosine of .71; SQuAD's questions and what they find first, by MiniLM:
      .66), in the directions in which passages differ. The passage is then one of those to be found.
    seed: of the draw.
  """

  def __init__(self, stored: Stored, *, live: Int[np.ndarray, "L"] | None = None, blurred: bool = False, seed: int = 0):
    rng = np.random.default_rng(seed)
    count = len(stored) if live is None else len(live)
    self._stored = stored
    drawn = np.sort(rng.choice(count, min(QUERIES, count), replace=False))
    self._rows = drawn if live is None else live[drawn]
    self._queries, self._left_out = stored[self._rows], self._rows
    if blurred:
      mixed = rng.normal(size=(len(drawn), len(drawn))) @ (self._queries - self._queries.mean(axis=0))
      length, of_mixed = (np.linalg.norm(x, axis=1, keepdims=True) for x in (self._queries, mixed))
      self._queries = (self._queries + mixed * (length / np.maximum(of_mixed, _TINY))).astype(np.float32)
      self._left_out = np.full(len(drawn), _NO_ROW)
    self._k = min(NEIGHBOURS, count - 1)
    true = self._others(exact_top(stored, self._queries, self._k + 1, rows=live))
    self._worst = score_pairs(stored, self._queries, true)[:, -1]

  def __len__(self) -> int:
    return len(self._rows)

  def overlap(self, search: Callable[[np.ndarray, int], np.ndarray]) -> float:
    """Share of the neighbours that ``search(queries, k)`` finds: passages that score no less than the last true one.

    So a passage that is stored many times over counts as found under any of its rows.
    """
    found = self._others(search(self._queries, self._k + 1))
    scores = score_pairs(self._stored, self._queries, found)
    return float((scores >= self._worst[:, None]).mean())

  def _others(self, ids: Int[np.ndarray, "Q C"]) -> Int[np.ndarray, "Q k"]:
    """The first k without what is left out, or without the last where it is not among them."""
    order = np.argsort(ids == self._left_out[:, None], axis=1, kind="stable")
    own_last = np.take_along_axis(ids, order, axis=1)
    own_last[own_last == self._left_out[:, None]] = -1
    return own_last[:, : self._k]
