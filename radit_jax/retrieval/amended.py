"""Searchers that were built before passages came and went: what went is left out, what came is compared one by one."""

import math
import pathlib
import typing
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.retrieval.exact import Stored, exact_top
from radit_jax.retrieval.metadata import Allowed
from radit_jax.retrieval.scann import Settings
from radit_jax.versions import ROW

if typing.TYPE_CHECKING:
  from radit_jax.retrieval.index import Candidates

#: Rows that the searchers hold, where these are not simply the first ones: ascending numbers.
HELD = "held.bin"


class Amended:
  """Candidates of searchers, corrected for what has changed since they were built.

  Args:
    searchers: their candidates are places in ``held``.
    stored: ``[N, E]`` embeddings of all rows.
    held: rows that the searchers hold, ascending; None for the first ``searched``.
    removed: rows that no search may find, ascending.
    searched: rows from this one on came after the searchers were built.

  Attributes:
    searchers: as given.
  """

  def __init__(
    self,
    searchers: "Candidates",
    stored: Stored,
    held: Int[np.ndarray, "H"] | None,
    removed: Int[np.ndarray, "M"],
    searched: int,
  ):
    self.searchers, self._stored, self._held, self._searched = searchers, stored, held, searched
    self._gone = np.zeros(len(stored), bool)
    self._gone[removed] = True
    self._later = searched + np.flatnonzero(~self._gone[searched:])
    # So many more are asked for that what went leaves enough, if it is spread evenly; else the index searches exactly.
    went = self._of_held(self._gone)
    self._size = len(went)
    self._spare = self._size / max(1, self._size - int(np.count_nonzero(went)))

  def with_settings(self, settings: Settings) -> "Amended":
    """The same under other settings."""
    other = object.__new__(Amended)
    other.__dict__.update(self.__dict__, searchers=self.searchers.with_settings(settings))
    return other

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """See :class:`radit_jax.retrieval.index.Candidates`; -1 also for what went."""
    ids = self._rows(self.searchers(queries, min(math.ceil(k * self._spare), self._size)))
    ids[(ids >= 0) & self._gone[ids]] = -1
    return self._with_later(queries, k, ids, self._later)

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """See :class:`radit_jax.retrieval.index.Candidates`; nothing that went is allowed."""
    ids = np.empty((len(queries), 0), np.int64)
    beyond = np.full(len(queries), -np.inf)
    held = Allowed(self._of_held(allowed.mask), allowed.codes)
    if len(held):
      ids, beyond = self.searchers.within(queries, min(k, len(held)), held)
    return self._with_later(queries, k, self._rows(ids), self._later[allowed.mask[self._later]]), beyond

  def _of_held(self, mask: np.ndarray) -> np.ndarray:
    return mask[: self._searched] if self._held is None else mask[self._held]

  def _rows(self, places: Int[np.ndarray, "Q C"]) -> Int[np.ndarray, "Q C"]:
    return places if self._held is None else np.where(places < 0, -1, self._held[places])

  def _with_later(
    self, queries: Float[np.ndarray, "Q E"], k: int, ids: Int[np.ndarray, "Q C"], later: Int[np.ndarray, "l"]
  ) -> Int[np.ndarray, "Q C"]:
    """Candidates, and the best of what came later."""
    if not len(later):
      return ids
    return np.concatenate([ids, exact_top(self._stored, queries, k, rows=later)], axis=1)


def held_rows(root: pathlib.Path, manifest: dict[str, Any]) -> Int[np.ndarray, "H"] | None:
  """Rows that the searchers of an index hold; None for the first ones, as many as :func:`num_searched` says."""
  return np.fromfile(root / HELD, ROW).astype(np.int64) if HELD in manifest["files"] else None


def num_searched(manifest: dict[str, Any]) -> int:
  """Rows that were there when the searchers of an index were built."""
  return int(manifest.get("searched", manifest["count"]))


def num_held(root: pathlib.Path, manifest: dict[str, Any]) -> int:
  """Rows that the searchers of an index hold."""
  return (root / HELD).stat().st_size // ROW.itemsize if HELD in manifest["files"] else num_searched(manifest)


def amended(
  searchers: "Candidates",
  stored: Stored,
  held: Int[np.ndarray, "H"] | None,
  removed: Int[np.ndarray, "M"],
  searched: int,
) -> "Candidates":
  """Searchers as they are, where nothing has changed since they were built; the rest is as in :class:`Amended`."""
  if searched == len(stored) and not len(removed):
    return searchers
  return Amended(searchers, stored, held, removed, searched)
