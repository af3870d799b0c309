"""An index after its passages have changed: embeddings that are known are kept, searchers are amended or built anew."""

import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent
from radit_jax.retrieval import scann
from radit_jax.retrieval.amended import held_rows, num_searched
from radit_jax.retrieval.build import Before, build_index
from radit_jax.retrieval.exact import Stored
from radit_jax.retrieval.index import METADATA
from radit_jax.retrieval.metadata import Value
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.shards import open_shards, shard_name, write_rows
from radit_jax.retrieval.tuned import Wish

#: Searchers are built anew once more than this share of what they hold went, or as much came: both cost every search.
AMENDED = 0.1
#: Rows of a file of embeddings.
_ROWS = 2**15


def update_index(
  base: pathlib.Path,
  manifest: dict[str, Any],
  path: pathlib.Path,
  *,
  copied: Int[np.ndarray, "n"],
  encoded: Stored | None,
  removed: Int[np.ndarray, "M"],
  metadata: Iterable[Mapping[str, Value]],
  fields: Mapping[str, Any],
  shard_passages: int,
  wish: Wish,
  milvus_uri: str | None = None,
  progress: Progress = silent,
) -> dict[str, Any]:
  """Writes a version of an index, whole or not at all. Files that do not change are shared with the one before.

  Args:
    base: directory of the version before.
    manifest: its manifest, checked in full.
    path: directory of the new one; must not exist.
    copied: for each row that comes, one of the version before that has the same text, -1 for none.
    encoded: embeddings of those for which there is none, in their order; None if there are none such.
    removed: all rows that no search may find, ascending.
    metadata: of the rows that come.
    fields: kept in the manifest; ``encoder_fingerprint`` and ``passages_fingerprint`` among them.
    shard_passages: see :func:`radit_jax.retrieval.build.build_index`.
    wish: how thoroughly to search.
    milvus_uri: address of the server of the backend milvus.
    progress: told after every searcher and measurement.

  Returns:
    The new manifest's own fields.

  Raises:
    UserError: the disk has no room, or see :func:`radit_jax.retrieval.build.build_index`.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  count = manifest["count"] + len(copied)
  amend = _can_amend(base, manifest, count, removed)
  _check_space(path, manifest, len(copied), 0 if amend else min(count - len(removed), shard_passages))
  embeddings = path.parent / f".{path.name}.embeddings"
  files.remove_leftovers(embeddings)
  with files.atomic_directory(embeddings) as work:
    _write_embeddings(base, manifest, work, copied, encoded, fields)
  made = build_index(
    embeddings,
    path,
    backend=manifest["backend"],
    metadata=metadata if manifest["metadata_fingerprint"] else None,
    fields=fields,
    shard_passages=shard_passages,
    wish=wish,
    removed=removed,
    device_dtype=manifest["parameters"].get("dtype", "bfloat16"),
    milvus_uri=milvus_uri,
    before=Before(base, manifest, amend),
    progress=progress,
  )
  shutil.rmtree(embeddings)
  return made


def _check_space(path: pathlib.Path, manifest: dict[str, Any], rows: int, anew: int) -> None:
  """Refuses what the disk has no room for.

  Args:
    path: directory of the new version.
    manifest: of the one before.
    rows: whose embeddings come: these are written, and the metadata of all rows.
    anew: rows of the largest searcher that is built anew, which lie in a file of float32 meanwhile; 0 if none is. All
      searchers together are taken to be as large as those that are there.
  """
  needed = rows * manifest["dim"] * np.dtype(manifest["dtype"]).itemsize
  needed += sum(entry["bytes"] for name, entry in manifest["files"].items() if name == METADATA)
  if manifest["backend"] == "scann" and scann.choose(anew)["method"] != "exact":
    needed += sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("scann"))
    needed += anew * manifest["dim"] * np.dtype(np.float32).itemsize
  free = shutil.disk_usage(path.parent).free
  if needed > free:
    raise UserError(f"{path}: up to {needed:,} bytes are to be written, the disk has {free:,} free; make room")


def _can_amend(base: pathlib.Path, manifest: dict[str, Any], count: int, removed: Int[np.ndarray, "M"]) -> bool:
  """Whether there are searchers, or a collection, and they are still near enough to what there is."""
  if manifest["backend"] not in ("scann", "milvus") or manifest["parameters"]["method"] == "exact":
    return False
  searched = num_searched(manifest)
  known = held_rows(base, manifest)
  held = np.arange(searched) if known is None else known
  went = int(np.count_nonzero(np.isin(held, removed, assume_unique=True)))
  return max(went, count - searched) <= AMENDED * len(held)


def _write_embeddings(
  base: pathlib.Path,
  manifest: dict[str, Any],
  work: pathlib.Path,
  copied: Int[np.ndarray, "n"],
  encoded: Stored | None,
  fields: Mapping[str, Any],
) -> None:
  """A directory of embeddings as `embed_passages` makes them: the files that were there, and behind them what came."""
  known = {}
  for number in range(manifest["shards"]):
    name = shard_name(number)
    if files.link(base / name, work / name):
      known[name] = manifest["files"][name]["sha256"]
  before = Rows(open_shards(base, manifest))
  fresh = np.cumsum(copied < 0) - 1
  shards = manifest["shards"]
  for first in range(0, len(copied), _ROWS):
    rows = copied[first : first + _ROWS]
    values = before[np.maximum(rows, 0)]
    if encoded is not None:
      new = np.flatnonzero(rows < 0)
      values[new] = encoded[fresh[first + new]]
    write_rows(work / shard_name(shards), [values], values.shape, manifest["dtype"])
    shards += 1
  files.write_manifest(
    work,
    "embeddings",
    {
      "count": manifest["count"] + len(copied),
      "dim": manifest["dim"],
      "dtype": manifest["dtype"],
      "shards": shards,
      **{name: fields[name] for name in ("encoder_fingerprint", "passages_fingerprint")},
    },
    known=known,
  )
