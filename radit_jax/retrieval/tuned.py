"""How thoroughly an index is searched: what its user wishes, what that finds, and what is noted of both."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax import files, hosts
from radit_jax.progress import Progress, silent
from radit_jax.retrieval import milvus_fill, scann
from radit_jax.retrieval.amended import HELD, held_rows, num_held, num_searched
from radit_jax.retrieval.index import METADATA, open_index
from radit_jax.retrieval.metadata import MetadataFilter
from radit_jax.retrieval.recall import tune
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import Settings
from radit_jax.retrieval.shards import open_shards

log = logging.getLogger("radit_jax")


@dataclasses.dataclass(frozen=True)
class Wish:
  """How thoroughly a search is to look, as the user says it.

  Attributes:
    leaves_to_search: partitions looked at; None takes an eighth of them, or fewer where they find as much, see
      :func:`radit_jax.retrieval.recall.tune`.
    reorder: candidates reordered; None takes 200.
    target_recall: overlap@10 with exact search that the two are raised for; None leaves them.
  """

  leaves_to_search: int | None = None
  reorder: int | None = None
  target_recall: float | None = None


def tune_index(
  path: str | os.PathLike[str], wish: Wish, *, milvus_uri: str | None = None, progress: Progress = silent
) -> None:
  """Changes how thoroughly an index searches, measures it, and notes both; no searcher is built anew.

  Args:
    path: of the index.
    wish: how thoroughly to search.
    milvus_uri: where its collection is to be: a server that does not have it whole is given it. None for other
      backends.
    progress: told after every measurement, and every message to the server.

  Raises:
    UserError: a damaged index, or a server that does not answer.
  """
  root = pathlib.Path(path)
  manifest = files.read_manifest(root, "index", verify="full")
  kind, moved = manifest.pop("kind"), {}
  if milvus_uri is not None:
    moved = {"milvus_uri": milvus_uri, "parameters": _there(root, manifest, milvus_uri, progress)}
  listed = manifest["files"]
  manifest = measured(root, {**manifest, **moved}, wish, progress=progress)
  files.write_json(root / files.MANIFEST, {"kind": kind, **manifest, "files": listed}, durable=True)


def collection(root: pathlib.Path, manifest: dict[str, Any], milvus_uri: str, progress: Progress) -> dict[str, Any]:
  """Has a server hold the rows that are searched there; returns what :func:`radit_jax.retrieval.milvus_fill.fill` does.

  Args:
    root: of the index.
    manifest: its fields, as far as they say what the collection holds; ``files`` with the SHA-256 of rows and metadata.
    milvus_uri: of the server.
    progress: told after every message.
  """
  listed = manifest["files"]
  content = [manifest["embeddings_fingerprint"], *(listed[n]["sha256"] for n in (METADATA, HELD) if n in listed)]
  return milvus_fill.fill(
    milvus_uri,
    *_searched(root, manifest),
    " ".join(content),
    MetadataFilter(root / METADATA, listed[METADATA]["sha256"], manifest["count"]) if METADATA in listed else None,
    progress=progress,
  )


def _there(root: pathlib.Path, manifest: dict[str, Any], milvus_uri: str, progress: Progress) -> dict[str, Any]:
  """Parameters of an index's collection on a server, which is filled only where it is not there whole.

  A version shares the collection of the one it was made from, whose name follows from the content of that one: it would
  be filled again under another name.
  """
  if not has_collection(root, manifest, milvus_uri):
    return collection(root, manifest, milvus_uri, progress)
  parameters = manifest["parameters"]
  if milvus_uri == manifest["milvus_uri"]:
    return parameters
  everywhere = milvus_fill.looks_everywhere(milvus_uri, parameters, *_searched(root, manifest))
  return {**parameters, "everywhere": everywhere}


def _searched(root: pathlib.Path, manifest: dict[str, Any]) -> tuple[Rows, Int[np.ndarray, "H"]]:
  """Embeddings of an index, and the rows of them that its collection holds."""
  held = held_rows(root, manifest)
  rows = Rows(open_shards(root, manifest), forget=True)
  return rows, np.arange(num_searched(manifest)) if held is None else held


def has_collection(root: pathlib.Path, manifest: dict[str, Any], milvus_uri: str) -> bool:
  """Whether a server has the collection that an index is searched in, and all of it.

  Raises:
    UserError: it does not answer.
  """
  return milvus_fill.is_whole(milvus_uri, manifest["parameters"], (num_held(root, manifest), manifest["dim"]))


def measured(
  root: pathlib.Path,
  manifest: dict[str, Any],
  wish: Wish,
  *,
  begin: Settings | None = None,
  progress: Progress = silent,
) -> dict[str, Any]:
  """The manifest with settings, what was measured under them, and the fingerprint that follows.

  Args:
    root: of the index.
    manifest: its fields; ``files`` with the SHA-256 of rows and metadata.
    wish: how thoroughly to search.
    begin: settings that were found for the same wish and the same searchers, before some passages came and went.
    progress: told after every measurement.
  """
  parameters = manifest["parameters"]
  settings = scann.default_settings(parameters)
  if wish.leaves_to_search is not None:
    leaves = parameters.get("leaves", 0)
    if wish.leaves_to_search > leaves and begin is None:
      has = f"only {leaves} partitions, and all are looked at" if leaves else "no partitions, so this changes nothing"
      log.warning("leaves_to_search = %d: the %s index has %s", wish.leaves_to_search, manifest["backend"], has)
    if leaves:
      settings = dataclasses.replace(settings, leaves_to_search=min(wish.leaves_to_search, leaves))
  settings = begin or dataclasses.replace(settings, reorder=wish.reorder or settings.reorder)
  manifest = {**manifest, "search": dataclasses.asdict(settings), "wish": dataclasses.asdict(wish), "overlap": None}
  # Several processes hold the rows of one search on devices; here is only the first of them. And one passage has no
  # other that it could find.
  alone = manifest["count"] - manifest.get("removed", 0) < 2
  here = manifest["backend"] != "device" or hosts.count() == 1
  if parameters.get("method", "exact") != "exact" and here and not alone:
    index = open_index(root, manifest, resident=len(manifest["index_shards"]) == 1, forget=True)
    fewer = begin is None and wish.leaves_to_search is None
    settings, overlap = tune(index, parameters, settings, wish.target_recall, fewer=fewer, progress=progress)
    manifest |= {"search": dataclasses.asdict(settings), "overlap": dataclasses.asdict(overlap)}
  names = (
    *("backend", "count", "dim", "dtype", "encoder_fingerprint", "passages_fingerprint", "embeddings_fingerprint"),
    *("metadata_fingerprint", "parameters", "index_shards", "search", "removed_fingerprint", "searched"),
  )
  named = json.dumps({name: manifest[name] for name in names if name in manifest}, sort_keys=True)
  return {**manifest, "fingerprint": hashlib.sha256(named.encode()).hexdigest()}
