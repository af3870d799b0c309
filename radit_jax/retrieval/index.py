"""The index: one search contract over every backend, over stored embeddings and a manifest that is checked."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax import files
from radit_jax.config import Backend
from radit_jax.errors import UserError
from radit_jax.retrieval.shards import read_embeddings
from radit_jax.retrieval.exact import exact_top, score_pairs
from radit_jax.retrieval.metadata import MetadataFilter, Value, Where, write_metadata
from radit_jax.retrieval.scann import ScannCandidates, build_scann

EMBEDDINGS, METADATA, SCANN = "embeddings.npy", "metadata.json", "scann"
#: Rows checked and copied at once while an index is built.
_ROWS = 2**15


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


class StoredIndex:
  """An index in a directory; made by :func:`load_index`.

  Args:
    path: the directory.
    manifest: its manifest, checked.
    stored: ``[N, E]`` float32, memory-mapped.
    candidates: ``(queries, k)`` -> ``[Q, C]`` rows, -1 for none; None searches exactly.
  """

  def __init__(
    self,
    path: pathlib.Path,
    manifest: dict[str, Any],
    stored: Float[np.ndarray, "N E"],
    candidates: Callable[[np.ndarray, int], np.ndarray] | None,
  ):
    self.manifest = manifest
    self._path = path
    self._stored = stored
    self._candidates = candidates
    entry = manifest["files"].get(METADATA)
    self._filter = None if entry is None else MetadataFilter(path / METADATA, entry["sha256"], len(stored))

  def __len__(self) -> int:
    return len(self._stored)

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
    return np.where(rows[..., None] >= 0, self._stored[np.maximum(rows, 0)], np.float32(0))

  def search(self, queries: Float[np.ndarray, "Q E"], k: int, *, where: Where | None = None) -> SearchResult:
    """The passages with the largest dot product for every query.

    Args:
      queries: ``[Q, E]`` float32; Q may be 0.
      k: passages per query; those that do not exist are padding.
      where: only passages whose metadata fields have these values; the filter comes before the top k, and a filtered
        search is exact.

    Returns:
      ``[Q, k]`` each.

    Raises:
      UserError: k below 1, a shape that does not fit, a query that is not finite, or a field no passage has.
    """
    if k < 1:
      raise UserError(f"k = {k}: must be at least 1")
    q = np.asarray(queries, np.float32)
    width = self._stored.shape[1]
    if q.ndim != 2 or q.shape[1] != width:
      raise UserError(f"queries of shape {q.shape}: the index {self._path} has embeddings of width {width}")
    if (row := _first_unusable(q)) is not None:
      raise UserError(f"query row {row} is not finite (NaN, infinity, or longer than 1e19)")
    if not len(q):
      best = np.empty((0, k), np.int64)
    elif where:
      if self._filter is None:
        raise UserError(f"{self._path}: built without metadata, so it cannot be filtered; build it again with metadata")
      best = exact_top(self._stored, q, k, rows=self._filter.rows(where))
    else:
      best = self._best(q, min(k, len(self)))
    ids = np.full((len(q), k), -1, np.int64)
    ids[:, : best.shape[1]] = best
    return SearchResult(ids, score_pairs(self._stored, q, ids), ids >= 0)

  def _best(self, q: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q k"]:
    if self._candidates is None:
      return exact_top(self._stored, q, k)
    ids = self._candidates(q, k)
    scores = score_pairs(self._stored, q, ids)
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    ids = np.take_along_axis(ids, order, axis=1)
    # The partitions looked at can hold fewer than k passages. A hole would read as "no such passage", so look at all.
    short = (ids < 0).any(axis=1)
    if short.any():
      ids[short] = exact_top(self._stored, q[short], k)
    return ids


def build_index(
  embeddings: Float[np.ndarray, "N E"] | str | os.PathLike[str],
  path: str | os.PathLike[str],
  *,
  backend: Backend = "scann",
  metadata: Sequence[Mapping[str, Value]] | None = None,
  fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Builds an index and writes its directory, whole or not at all.

  Args:
    embeddings: ``[N, E]`` finite array, or a directory that ``embed_passages`` made (its fingerprints are taken over).
    path: the directory; one that exists is replaced.
    backend: ``"scann"``, or ``"exact"`` which reads every embedding for every query.
    metadata: one mapping per row, field -> string or number, for ``search(where=...)``.
    fields: kept in the manifest. ``encoder_fingerprint`` and ``passages_fingerprint`` come from here if ``embeddings``
      is an array.

  Returns:
    The manifest's own fields. ``fingerprint`` names what a search can depend on (two ScaNN builds of the same
    embeddings differ in bytes, and agree in it).

  Raises:
    UserError: no embeddings, one that is not finite (row named), metadata of another length or with other values.
  """
  shards, source = _sources(embeddings)
  source = {**(fields or {}), **source}
  fingerprints = {name: source.get(name) for name in ("encoder_fingerprint", "passages_fingerprint")}
  count, width = sum(len(s) for s in shards), shards[0].shape[1]
  if metadata is not None and len(metadata) != count:
    raise UserError(f"metadata of {len(metadata)} passages against {count} embeddings: one mapping per row is needed")
  with files.atomic_directory(path) as directory:
    stored = np.lib.format.open_memmap(directory / EMBEDDINGS, mode="w+", dtype=np.float32, shape=(count, width))
    for first, rows in _blocks(shards):
      stored[first : first + len(rows)] = rows
    stored.flush()
    versions = {"numpy": np.__version__, "radit_jax": _version("radit_jax")}
    parameters: dict[str, Any] = {}
    if backend == "scann":
      parameters = build_scann(stored, directory / SCANN)
      versions["scann"] = _version("scann")
    elif backend != "exact":
      raise UserError(f'backend = {backend!r}: must be "scann" or "exact"')
    if metadata is not None:
      write_metadata(directory / METADATA, metadata)
    manifest = {
      "backend": backend,
      "count": count,
      "dim": width,
      **fingerprints,
      "embeddings_fingerprint": files.sha256_file(directory / EMBEDDINGS),
      "metadata_fingerprint": None if metadata is None else files.sha256_file(directory / METADATA),
    }
    manifest["fingerprint"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    manifest |= {"parameters": parameters, "versions": versions}
    manifest = {**(fields or {}), **manifest}
    files.write_manifest(directory, "index", manifest)
  return manifest


def load_index(
  path: str | os.PathLike[str], *, verify: str = "full", encoder_fingerprint: str | None = None
) -> StoredIndex:
  """Opens an index. Nothing in its files is executed or unpickled.

  Args:
    path: directory made by :func:`build_index`.
    verify: ``"full"`` checks SHA-256 of every file, ``"sizes"`` only that each is there with its size.
    encoder_fingerprint: of the passage encoder that queries are to be held against.

  Raises:
    UserError: a damaged or missing file (named), or an index that another encoder built (both fingerprints named).
  """
  root = pathlib.Path(path)
  manifest = files.read_manifest(root, "index", verify=verify)
  for field in ("backend", "count", "dim", "encoder_fingerprint"):
    if field not in manifest:
      raise UserError(f"{root / files.MANIFEST}: no field {field!r}; build the index again")
  built_by = manifest["encoder_fingerprint"]
  if encoder_fingerprint is not None and built_by != encoder_fingerprint:
    raise UserError(
      f"{root}: built by the encoder {(built_by or 'unknown')[:12]}, not by {encoder_fingerprint[:12]}; "
      "build the index again with this encoder, or use the encoder it was built by"
    )
  try:
    stored = np.load(root / EMBEDDINGS, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f"{root / EMBEDDINGS}: cannot be read ({e}); build the index again") from None
  if stored.dtype != np.float32 or stored.shape != (manifest["count"], manifest["dim"]):
    raise UserError(
      f"{root / EMBEDDINGS}: {stored.dtype} {stored.shape}, {files.MANIFEST} says float32 "
      f"{(manifest['count'], manifest['dim'])}; build the index again"
    )
  if manifest["backend"] not in ("scann", "exact"):
    raise UserError(f'{root / files.MANIFEST}: backend {manifest["backend"]!r}; this version knows "scann" and "exact"')
  return StoredIndex(root, manifest, stored, ScannCandidates(root / SCANN) if manifest["backend"] == "scann" else None)


def _sources(embeddings: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
  if isinstance(embeddings, (str, os.PathLike)):
    manifest = files.read_manifest(embeddings, "embeddings", verify="full")
    return read_embeddings(embeddings), manifest
  array = np.asarray(embeddings)
  if array.ndim != 2 or 0 in array.shape:
    raise UserError(f"embeddings of shape {array.shape}: an index needs [N, E] with at least one row")
  return [array], {}


def _blocks(shards: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
  """Float32 blocks of rows with their first row number, each checked before any backend sees it."""
  first = 0
  for shard in shards:
    for start in range(0, len(shard), _ROWS):
      rows = np.asarray(shard[start : start + _ROWS], np.float32)
      if (row := _first_unusable(rows)) is not None:
        raise UserError(
          f"embedding of passage row {first + row} is not finite (NaN, infinity, or longer than 1e19); "
          "the encoder is broken, or the row's text breaks it"
        )
      yield first, rows
      first += len(rows)


def _first_unusable(rows: Float[np.ndarray, "N E"]) -> int | None:
  """First row whose squared length is not a float32 number: then every dot product of two others is one."""
  with np.errstate(over="ignore", invalid="ignore"):
    usable = np.isfinite(np.einsum("ne,ne->n", rows, rows))
  return None if usable.all() else int(np.argmin(usable))


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
