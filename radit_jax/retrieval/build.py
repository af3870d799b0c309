"""Building an index: embeddings taken over, one searcher per shard, measured, and a manifest of all of it."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax import files
from radit_jax.config import Backend, Dtype
from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent
from radit_jax.retrieval import scann
from radit_jax.retrieval.amended import HELD, num_searched
from radit_jax.retrieval.index import BACKENDS, METADATA, shard_directory
from radit_jax.retrieval.metadata import Value, write_metadata
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import Settings
from radit_jax.retrieval.shards import open_shards, shard_name, write_rows
from radit_jax.retrieval.tuned import Wish, collection, measured
from radit_jax.versions import REMOVED, ROW

#: Passages of one searcher at most: at a width of 768 it takes about 17 GB to build.
SHARD_PASSAGES = 2_000_000
_UNFINISHED = "unfinished index"
#: Rows copied at once.
_ROWS = 2**14


@dataclasses.dataclass(frozen=True)
class Before:
  """An index that another one begins from: its rows are the first ones of the other.

  Attributes:
    path: of the index.
    manifest: its manifest, checked in full.
    searchers: whether they are taken over; rows that came later are then compared one by one.
  """

  path: pathlib.Path
  manifest: dict[str, Any]
  searchers: bool


def build_index(
  embeddings: Float[np.ndarray, "N E"] | str | os.PathLike[str],
  path: str | os.PathLike[str],
  *,
  backend: Backend = "scann",
  metadata: Iterable[Mapping[str, Value]] | None = None,
  fields: Mapping[str, Any] | None = None,
  shard_passages: int = SHARD_PASSAGES,
  wish: Wish = Wish(),
  device_dtype: Dtype = "bfloat16",
  milvus_uri: str | None = None,
  removed: Int[np.ndarray, "M"] = np.empty(0, np.int64),
  before: Before | None = None,
  progress: Progress = silent,
) -> dict[str, Any]:
  """Builds an index and writes its directory, whole or not at all.

  The searchers of its shards are built one after the other, each in a process of its own, so that never more than one
  shard is in memory. Work lies in a hidden directory beside ``path``; built from a directory of embeddings, the same
  call again goes on after the searchers that are finished.

  Args:
    embeddings: ``[N, E]`` finite array, or a directory that ``embed_passages`` made: its fingerprints are taken over,
      and its files too, as second names of the same content where the file system can do that.
    path: the directory; one that exists is replaced.
    backend: ``"scann"``, ``"exact"`` which reads every embedding for every query, ``"device"``, or ``"milvus"``.
    metadata: one mapping per row, field -> string or number, for ``search(where=...)``; read once.
    fields: kept in the manifest. ``encoder_fingerprint`` and ``passages_fingerprint`` come from here if ``embeddings``
      is an array.
    shard_passages: passages of one searcher at most; all shards are about equally large.
    wish: how thoroughly to search.
    device_dtype: that the backend device holds the embeddings in.
    milvus_uri: address of the server of the backend milvus.
    removed: rows that no search may find, ascending.
    before: an index of the first rows; ``metadata`` is then of the others alone.
    progress: told after every shard and measurement.

  Returns:
    The manifest's own fields. ``fingerprint`` names what a search can depend on (two ScaNN builds of the same
    embeddings differ in bytes, and agree in it).

  Raises:
    UserError: no embeddings, one that is not finite (row named), metadata of another length or with other values, a
      build whose process died, or files that another build of this directory has removed.
  """
  if backend not in BACKENDS:
    raise UserError(f"backend = {backend!r}: must be one of {', '.join(map(repr, BACKENDS))}")
  if (milvus_uri is None) == (backend == "milvus"):
    raise UserError(f"milvus_uri = {milvus_uri!r}: the backend milvus needs it, and {backend!r} is asked for")
  final = pathlib.Path(path)
  work = final.parent / f".{final.name}.partial"
  try:
    with files.named(final):
      manifest = _build(
        embeddings,
        work,
        backend,
        metadata,
        fields or {},
        shard_passages,
        wish,
        device_dtype,
        milvus_uri,
        removed,
        before,
        progress,
      )
  except (UserError, OSError):
    if not any(work.glob(shard_directory(0)[:-1] + "*")):  # nothing that the next call could go on from
      shutil.rmtree(work, ignore_errors=True)
    raise
  files.replace_directory(work, final, durable=True)
  return manifest


def _build(
  embeddings: Any,
  work: pathlib.Path,
  backend: Backend,
  metadata: Iterable[Mapping[str, Value]] | None,
  fields: Mapping[str, Any],
  shard_passages: int,
  wish: Wish,
  device_dtype: Dtype,
  milvus_uri: str | None,
  removed: Int[np.ndarray, "M"],
  before: Before | None,
  progress: Progress,
) -> dict[str, Any]:
  """Fills the directory of the work."""
  source = _source(embeddings)
  state = _state(source, backend, shard_passages, removed)
  done = _resume(work, state)
  known = _take_over(embeddings, source, work)
  digest = _digest(work, source, before)  # before any backend sees them
  count, width = source["count"], source["dim"]
  amended: dict[str, Any] = {}
  if len(removed):
    files.write_atomic(work / REMOVED, removed.astype(ROW).data)
    amended = {"removed": len(removed), "removed_fingerprint": files.sha256_file(work / REMOVED)}
  if before is not None and before.searchers:
    known |= _take_searchers(before, work)
    parameters, versions = before.manifest["parameters"], before.manifest["versions"]
    index_shards = before.manifest["index_shards"]
    amended["searched"] = num_searched(before.manifest)
  else:
    size = count - len(removed)
    number = -(-size // shard_passages) if backend == "scann" else 1
    edges = [size * n // number for n in range(number + 1)]
    index_shards = [[first, stop - first] for first, stop in itertools.pairwise(edges)]
    parameters = scann.choose(-(-size // number)) if backend == "scann" else {}
    if backend == "device":
      parameters = {"method": "device", "dtype": device_dtype}
    versions = {"numpy": np.__version__, "radit_jax": _version("radit_jax")}
    if backend == "milvus":
      versions["pymilvus"] = _version("pymilvus")
    searchers = backend == "scann" and parameters["method"] != "exact"
    if len(removed) and (searchers or backend == "milvus"):
      files.write_atomic(work / HELD, np.delete(np.arange(count), removed).astype(ROW).data)
    if searchers:
      versions["scann"] = _version("scann")
      _build_searchers(work, source, index_shards, removed, parameters, state, done, progress)
      known |= {name: sha256 for entry in done.values() for name, sha256 in entry["files"].items()}
  if metadata is not None:
    described = write_metadata(work / METADATA, metadata, None if before is None else before.path / METADATA)
    if described != count - (before.manifest["count"] if before else 0):
      raise UserError(f"metadata of {described} passages against {count} embeddings: one mapping per row is needed")
  known |= {name: files.sha256_file(work / name) for name in (METADATA, REMOVED, HELD) if (work / name).exists()}
  manifest = {
    **fields,
    "backend": backend,
    "count": count,
    "dim": width,
    "dtype": source["dtype"],
    "shards": source["shards"],
    **{name: source.get(name) or fields.get(name) for name in ("encoder_fingerprint", "passages_fingerprint")},
    "embeddings_fingerprint": digest,
    "metadata_fingerprint": known.get(METADATA),
    "parameters": parameters,
    "milvus_uri": milvus_uri,
    "index_shards": index_shards,
    **amended,
    "versions": versions,
    "build": {
      "seconds": round(sum(entry["seconds"] for entry in done.values()), 2),
      "peak_bytes": max((entry["peak_bytes"] for entry in done.values()), default=0),
    },
  }
  manifest["files"] = {name: {"sha256": known[name]} for name in (METADATA, REMOVED, HELD) if name in known}
  if milvus_uri is not None and not (before and before.searchers):
    manifest["parameters"] = collection(work, manifest, milvus_uri, progress)
  begin = None
  if before is not None and before.searchers and before.manifest["wish"] == dataclasses.asdict(wish):
    begin = Settings(**before.manifest["search"])
  manifest = measured(work, manifest, wish, begin=begin, progress=progress)
  del manifest["files"]
  listed = files.described(work, "index", manifest, known=known)
  for name in (*(source["files"] or [shard_name(0)]), *known):
    if name not in listed["files"]:
      raise UserError(
        f"{work / name}: removed while the index was built, as by another process that builds the same one; nothing "
        "was replaced; run this again when that has ended"
      )
  files.write_json(work / files.MANIFEST, listed)
  return manifest


def _source(embeddings: Any) -> dict[str, Any]:
  """Manifest of a directory of embeddings, checked in full, or the like of an array."""
  if isinstance(embeddings, (str, os.PathLike)):
    return files.read_manifest(embeddings, "embeddings", verify="full")
  shape = np.shape(embeddings)
  if len(shape) != 2 or 0 in shape:
    raise UserError(f"embeddings of shape {shape}: an index needs [N, E] with at least one row")
  return {"count": shape[0], "dim": shape[1], "dtype": "float32", "shards": 1, "files": None}


def _take_over(embeddings: Any, source: dict[str, Any], work: pathlib.Path) -> dict[str, str]:
  """Puts the embeddings into the work, and returns the SHA-256 that are known."""
  known = {}
  if source["files"] is None:
    size = source["count"]
    with np.errstate(over="ignore"):
      blocks = (embeddings[first : first + _ROWS] for first in range(0, size, _ROWS))
      write_rows(work / shard_name(0), blocks, (size, source["dim"]))
    return {}
  for name, entry in source["files"].items():
    if files.link(pathlib.Path(embeddings) / name, work / name):
      known[name] = entry["sha256"]  # a copy is read back for its hash
  return known


def _digest(work: pathlib.Path, source: dict[str, Any], before: Before | None) -> str:
  """SHA-256 of all embeddings, those of the index before by what it says of them; each new one is looked at."""
  digest = hashlib.sha256()
  shards = open_shards(work, source)
  if before is not None:
    digest.update(before.manifest["embeddings_fingerprint"].encode())
    shards = shards[before.manifest["shards"] :]
  for _, block in Rows(shards, forget=True).blocks() if shards else ():
    digest.update(np.ascontiguousarray(block).data)
  return digest.hexdigest()


def _take_searchers(before: Before, work: pathlib.Path) -> dict[str, str]:
  """Puts the searchers of another index into the work, and returns the SHA-256 that are known."""
  listed = before.manifest["files"]
  names = [n for n in listed if n == HELD or n.startswith(shard_directory(0)[:-5])]
  return {n: listed[n]["sha256"] for n in names if files.link(before.path / n, work / n)}


def _build_searchers(
  work: pathlib.Path,
  source: dict[str, Any],
  index_shards: list[list[int]],
  removed: Int[np.ndarray, "M"],
  parameters: dict[str, Any],
  state: dict[str, Any],
  done: dict[int, dict[str, Any]],
  progress: Progress,
) -> None:
  """Builds those that are not done, of the rows that are not removed."""
  held = np.delete(np.arange(source["count"]), removed)
  for n, (first, size) in enumerate(index_shards):
    if n not in done:
      chosen = held[first : first + size]
      with _some_rows(work, source, chosen) if len(removed) else contextlib.nullcontext() as file:
        pieces = [(file, 0, size)] if file else _pieces(work, source, first, first + size)
        done[n] = scann.build_shard(pieces, work / shard_directory(n), parameters)
      done[n]["files"] = {
        p.relative_to(work).as_posix(): files.sha256_file(p) for p in sorted((work / shard_directory(n)).iterdir())
      }
      _list(work, state, done)
    progress("build", n + 1, len(index_shards), "shards")


@contextlib.contextmanager
def _some_rows(work: pathlib.Path, source: dict[str, Any], rows: Int[np.ndarray, "n"]) -> Iterator[pathlib.Path]:
  """A file of embeddings that lie apart, for as long as a searcher is built of it."""
  stored = Rows(open_shards(work, source), forget=True)
  file = work / "rows.npy"
  try:
    blocks = (stored[rows[first : first + _ROWS]] for first in range(0, len(rows), _ROWS))
    write_rows(file, blocks, (len(rows), source["dim"]))
    yield file
  finally:
    file.unlink(missing_ok=True)


def _pieces(work: pathlib.Path, source: dict[str, Any], first: int, stop: int) -> list[tuple[pathlib.Path, int, int]]:
  """Where the rows of an index shard lie in the files of embeddings."""
  out, start = [], 0
  for number, shard in enumerate(open_shards(work, source)):
    low, high = max(first - start, 0), min(stop - start, len(shard))
    if low < high:
      out.append((work / shard_name(number), low, high))
    start += len(shard)
  return out


def _state(
  source: dict[str, Any], backend: Backend, shard_passages: int, removed: Int[np.ndarray, "M"]
) -> dict[str, Any]:
  """What searchers are built from."""
  state = {"kind": _UNFINISHED, "source": source["files"], "backend": backend, "shard_passages": shard_passages}
  return {**state, "removed": hashlib.sha256(removed.astype(ROW).tobytes()).hexdigest()}


def _list(work: pathlib.Path, state: dict[str, Any], done: dict[int, dict[str, Any]]) -> None:
  listed = {str(n): entry for n, entry in done.items()}
  files.write_json(work / files.MANIFEST, {**state, "shards": listed})


def _resume(work: pathlib.Path, state: dict[str, Any]) -> dict[int, dict[str, Any]]:
  """Shards that an earlier call has finished on the same embeddings; whatever else is there is removed."""
  done: dict[int, dict[str, Any]] = {}
  try:
    there = files.read_json(work / files.MANIFEST)
    if state["source"] and all(there[n] == v for n, v in state.items()):
      done = {
        int(number): entry
        for number, entry in there["shards"].items()
        if all(files.sha256_file(work / name) == sha256 for name, sha256 in entry["files"].items())
      }
  except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError):
    done = {}
  work.mkdir(parents=True, exist_ok=True)
  kept = {shard_directory(n) for n in done}
  for path in work.iterdir():
    if path.name not in kept:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  _list(work, state, done)
  return done


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
