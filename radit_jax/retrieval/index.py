"""The index: one search contract over every backend, over stored embeddings and a manifest that is checked."""

import dataclasses
import os
import pathlib
import typing
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from radit_jax import files, versions
from radit_jax.config import Backend
from radit_jax.errors import UserError
from radit_jax.retrieval.amended import Amended, amended, held_rows, num_held, num_searched
from radit_jax.retrieval.device import DeviceCandidates
from radit_jax.retrieval.exact import Stored, exact_top, score_pairs
from radit_jax.retrieval.metadata import Allowed, MetadataFilter, Where
from radit_jax.retrieval.milvus import MilvusCandidates
from radit_jax.retrieval.rows import Rows, first_unusable
from radit_jax.retrieval.scann import ScannCandidates, Settings
from radit_jax.retrieval.shards import open_shards

METADATA = "metadata.jsonl"
#: Rows ``[Q, k]`` and their scores, best first.
_Ranked = tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]
BACKENDS: tuple[str, ...] = typing.get_args(Backend)


@dataclasses.dataclass(frozen=True, eq=False)
class SearchResult:
  """What a search found, best first; equal scores by lower row.

  Attributes:
    ids: ``[Q, k]`` int64 rows of the passage store, -1 where not valid.
    scores: ``[Q, k]`` float32 dot products with the stored embeddings, ``-inf`` where not valid.
    valid: ``[Q, k]`` bool; False only behind the last passage there is, or the last one that the filter allows.
  """

  ids: Int[np.ndarray, "Q k"]
  scores: Float[np.ndarray, "Q k"]
  valid: Bool[np.ndarray, "Q k"]


class Index(Protocol):
  """What every index does, wherever it lives."""

  manifest: dict[str, Any]

  def __len__(self) -> int: ...

  def search(self, queries: Float[np.ndarray, "Q E"], k: int, *, where: Where | None = None) -> SearchResult: ...

  def embeddings(self, ids: Int[np.ndarray, "..."]) -> Float[np.ndarray, "... E"]: ...


class Candidates(Protocol):
  """Where likely rows come from; the index scores them anew, whatever they were found by.

  What it returns is in no promised order, -1 stands for none, and fewer than k rows are a question that it cannot
  answer: the index then searches exactly. Several threads may call it at once.
  """

  def with_settings(self, settings: Settings) -> "Candidates":
    """The same, searching as thoroughly as these settings say."""

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """More than ``k`` likely rows of every query."""

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """Likely rows of a filtered search, others among them perhaps, and what no allowed row beyond them scores above.

    The index returns nothing that is not allowed, and searches exactly where a passage that was not named may be among
    the best k: so a bound that holds makes the search exact, and -inf makes it as good as the rows are.
    """


class StoredIndex:
  """An index in a directory; made by :func:`load_index`. Several threads may search it at once.

  Args:
    path: the directory.
    manifest: its manifest, checked.
    stored: ``[N, E]`` embeddings.
    candidates: ``(queries, k)`` -> ``[Q, C]`` rows, -1 for none, see :class:`Candidates`; None searches exactly.
    removed: ``[M]`` rows that no search may find, ascending.

  Attributes:
    manifest: as given.
    stored: as given.
    candidates: as given.
    live: ``[L]`` rows that a search may find, ascending; None for all.
  """

  def __init__(
    self,
    path: pathlib.Path,
    manifest: dict[str, Any],
    stored: Stored,
    candidates: Candidates | None,
    removed: Int[np.ndarray, "M"] = np.empty(0, np.int64),
  ):
    self.manifest = manifest
    self._path = path
    self.stored = stored
    self.candidates = candidates
    entry = manifest["files"].get(METADATA)
    self._removed = removed
    self.live = np.delete(np.arange(len(stored)), removed) if len(removed) else None
    self._filter = None if entry is None else MetadataFilter(path / METADATA, entry["sha256"], len(stored))

  def __len__(self) -> int:
    return len(self.stored)

  @property
  def together(self) -> bool:
    """Whether all processes of the run must search, each with the same queries: its rows lie with all of them."""
    searchers = self.candidates.searchers if isinstance(self.candidates, Amended) else self.candidates
    return isinstance(searchers, DeviceCandidates) and searchers.together

  def embeddings(self, ids: Int[np.ndarray, "..."]) -> Float[np.ndarray, "... E"]:
    """Stored embeddings of rows.

    Args:
      ids: ``[...]`` rows; -1, the padding of a search result, gives zeros.

    Returns:
      ``[..., E]`` float32, a copy.

    Raises:
      UserError: a row that does not exist.
    """
    rows = np.asarray(ids, np.int64)
    if rows.size and not (rows.min() >= -1 and rows.max() < len(self)):
      wrong = rows.max() if rows.max() >= len(self) else rows.min()
      raise UserError(f"{self._path}: no row {wrong}; the index has {len(self)} passages")
    return np.where(rows[..., None] >= 0, self.stored[np.maximum(rows, 0)], np.float32(0))

  def search(self, queries: Float[np.ndarray, "Q E"], k: int, *, where: Where | None = None) -> SearchResult:
    """The passages with the largest dot product for every query.

    Args:
      queries: ``[Q, E]`` float32; Q may be 0.
      k: passages per query; those that do not exist are padding.
      where: only passages whose metadata fields have these values; the filter comes before the top k. Exact on the
        backends exact, device and milvus; scann looks at ever more passages until k allowed ones are found.

    Returns:
      ``[Q, k]`` each.

    Raises:
      UserError: k below 1, a shape that does not fit, a query that is not finite, or a field no passage has.
    """
    if k < 1:
      raise UserError(f"k = {k}: must be at least 1")
    q = np.asarray(queries, np.float32)
    width = self.stored.shape[1]
    if q.ndim != 2 or q.shape[1] != width:
      raise UserError(f"queries of shape {q.shape}: the index {self._path} has embeddings of width {width}")
    if (row := first_unusable(q)) is not None:
      raise UserError(f"query row {row} is not finite (NaN, infinity, or longer than 1e19)")
    if not len(q):
      best, scores = np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    elif where:
      if self._filter is None:
        raise UserError(f"{self._path}: built without metadata, so it cannot be filtered; build it again with metadata")
      allowed = self._filter.allowed(where)
      if len(self._removed):
        allowed.mask[self._removed] = False
      best, scores = self._within(q, k, allowed)
    else:
      best, scores = self._best(q, min(k, len(self if self.live is None else self.live)))
    missing = ((0, 0), (0, k - best.shape[1]))
    ids = np.pad(best, missing, constant_values=-1)
    return SearchResult(ids, np.pad(scores, missing, constant_values=-np.inf), ids >= 0)

  def _best(self, q: Float[np.ndarray, "Q E"], k: int) -> _Ranked:
    if self.candidates is None:
      return self._exact(q, k, self.live)
    ids, scores = self._ranked(q, self.candidates(q, k), k)
    # The partitions looked at can hold fewer than k passages. A hole would read as "no such passage", so look at all.
    short = (ids < 0).any(axis=1)
    if short.any():
      ids[short], scores[short] = self._exact(q[short], k, self.live)
    return ids, scores

  def _within(self, q: Float[np.ndarray, "Q E"], k: int, allowed: Allowed) -> _Ranked:
    k = min(k, len(allowed))
    if self.candidates is None or k == 0:
      return self._exact(q, max(k, 1), allowed.rows)
    found, beyond = self.candidates.within(q, k, allowed)
    ids, scores = self._ranked(q, allowed.only(found), k)
    unsure = (ids < 0).any(axis=1) | (scores[:, -1] <= beyond)
    if unsure.any():
      ids[unsure], scores[unsure] = self._exact(q[unsure], k, allowed.rows)
    return ids, scores

  def _exact(self, q: Float[np.ndarray, "Q E"], k: int, rows: Int[np.ndarray, "M"] | None) -> _Ranked:
    ids = exact_top(self.stored, q, k, rows=rows)
    return ids, score_pairs(self.stored, q, ids)

  def _ranked(self, q: Float[np.ndarray, "Q E"], ids: Int[np.ndarray, "Q C"], k: int) -> _Ranked:
    """The k best of candidates, -1 where there are fewer."""
    ids = np.pad(ids, ((0, 0), (0, max(0, k - ids.shape[1]))), constant_values=-1)
    scores = score_pairs(self.stored, q, ids)
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def load_index(
  path: str | os.PathLike[str],
  *,
  verify: str = "full",
  encoder_fingerprint: str | None = None,
  passages_fingerprint: str | None = None,
  resident: bool = True,
  mesh: Mesh | None = None,
  searched: bool = True,
) -> StoredIndex:
  """Opens an index. Nothing in its files is executed or unpickled.

  Args:
    path: directory made by :func:`radit_jax.retrieval.build.build_index`; of one that has been updated, the version
      that it names as its current one.
    verify: ``"full"`` checks SHA-256 of every file, ``"sizes"`` only that each is there with its size.
    encoder_fingerprint: of the passage encoder that queries are to be held against.
    passages_fingerprint: of the passages whose rows are meant: of an index that has been updated since, the version
      that is of these; None takes the current one.
    resident: keep ScaNN's searchers of all shards in memory; otherwise every search reads one after the other.
    mesh: that the backend device spreads its rows over; None takes all devices.
    searched: False opens the stored embeddings alone, which needs neither accelerators nor a server: any search of them
      is exact.

  Raises:
    UserError: a damaged or missing file (named), an index that another encoder built, or one of which no version is of
      the passages (both fingerprints named), or a Milvus that does not answer, or whose collection is not this index's.
  """
  root = versions.current(path)
  if passages_fingerprint is not None:
    root = _version_of(path, passages_fingerprint)
  manifest = files.read_manifest(root, "index", verify=verify)
  for field in ("backend", "count", "dim", "encoder_fingerprint", "parameters", "index_shards", "search"):
    if field not in manifest:
      raise UserError(f"{root / files.MANIFEST}: no field {field!r}; build the index again")
  built_by = manifest["encoder_fingerprint"]
  if encoder_fingerprint is not None and built_by != encoder_fingerprint:
    raise UserError(
      f"{root}: built by the encoder {(built_by or 'unknown')[:12]}, not by {encoder_fingerprint[:12]}; "
      "build the index again with this encoder, or use the encoder it was built by"
    )
  if not searched:
    return StoredIndex(root, manifest, Rows(open_shards(root, manifest)), None, versions.removed_rows(root, manifest))
  return open_index(root, manifest, resident=resident, mesh=mesh)


def _version_of(path: str | os.PathLike[str], passages: str) -> pathlib.Path:
  """The version of an index that is of some passages; the current one, if it is."""
  current = versions.current_number(path)
  number = versions.first_of(path, (current, *versions.numbers(path)[::-1]), passages_fingerprint=passages)
  if number is not None:
    return versions.directory(path, number)
  there = files.read_manifest(versions.directory(path, current), "index").get("passages_fingerprint")
  raise UserError(
    f"{path}: of the passages {str(there)[:12]}, and no version of it is of {passages[:12]}, which was retrieved from; "
    "run `radit retrieve` again with this index"
  )


def open_index(
  root: pathlib.Path, manifest: dict[str, Any], *, resident: bool, forget: bool = False, mesh: Mesh | None = None
) -> StoredIndex:
  """The index of a manifest that has been checked; ``forget`` is for :class:`radit_jax.retrieval.rows.Rows`."""
  stored = Rows(open_shards(root, manifest), forget=forget)
  backend, parameters, settings = manifest["backend"], manifest["parameters"], Settings(**manifest["search"])
  if backend not in BACKENDS:
    known = ", ".join(map(repr, BACKENDS))
    raise UserError(f"{root / files.MANIFEST}: backend {backend!r}; this version knows {known}")
  candidates: Candidates | None = None
  held, searched = held_rows(root, manifest), num_searched(manifest)
  if backend == "device":
    candidates = DeviceCandidates(stored, parameters["dtype"], settings, mesh=mesh)
  elif backend == "milvus":
    shape = num_held(root, manifest), stored.shape[1]
    candidates = MilvusCandidates(manifest["milvus_uri"], parameters, settings, shape)
  elif parameters.get("method", "exact") != "exact":
    shards = [(root / shard_directory(n), first) for n, (first, _) in enumerate(manifest["index_shards"])]
    candidates = ScannCandidates(shards, settings, resident=resident)
  removed = versions.removed_rows(root, manifest)
  if candidates is not None:
    candidates = amended(candidates, stored, held, removed, searched)
  return StoredIndex(root, manifest, stored, candidates, removed)


def shard_directory(number: int) -> str:
  """Directory of a shard's searcher within an index."""
  return f"scann-{number:05d}"
