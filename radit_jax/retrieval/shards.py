"""Shards of embeddings on disk: listed once they are whole, continued after a kill, checked before use."""

import errno
import hashlib
import io
import json
import os
import pathlib
import resource
import shutil
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax import files, hosts
from radit_jax.config import StoredDtype
from radit_jax.errors import UserError

_UNFINISHED = "unfinished embeddings"


class Shards:
  """Embeddings that are being written, in a hidden directory beside the one they will have.

  A shard is written to a temporary file, synced and renamed, then listed with its SHA-256: process 0 lists in
  ``manifest.json``, process 3 in ``manifest-0003.json``. What is not listed, or is not what was listed, is made anew.

  Args:
    out: the final directory; must not exist.
    request: what the shards depend on. Work on another request is thrown away.
    count: rows in all.
    size: rows per shard.
    dtype: of the files.

  Attributes:
    finished: number of each shard that is there -> its entry.
  """

  def __init__(
    self, out: pathlib.Path, request: dict[str, Any], *, count: int, size: int, dtype: StoredDtype = "float32"
  ):
    self._final, self._work = out, out.parent / f".{out.name}.partial"
    self._count, self._size, self._dtype = count, size, np.dtype(dtype)
    self._request = {**request, "shard_size": size}
    self._list = self._work / (files.MANIFEST if hosts.is_first() else f"manifest-{hosts.index():04d}.json")
    hosts.meet()
    self.finished = self._checked(self._read())
    with hosts.one_writes() as mine:
      if mine:
        self._clear()
    self._own = dict(self.finished) if hosts.is_first() else {}

  def __len__(self) -> int:
    return -(-self._count // self._size)

  def rows(self, number: int) -> range:
    """Row numbers of a shard."""
    return range(number * self._size, min((number + 1) * self._size, self._count))

  def planned_bytes(self, width: int) -> int:
    """Bytes of all shards."""
    return self._count * width * self._dtype.itemsize

  def check_space(self, width: int) -> None:
    """Refuses work that the disk has no room for.

    Raises:
      UserError: bytes still to be written, and bytes free.
    """
    left = sum(len(self.rows(n)) for n in range(len(self)) if n not in self.finished) * width * self._dtype.itemsize
    free = shutil.disk_usage(self._work).free
    if left > free:
      raise UserError(
        f"{self._final}: {left:,} bytes of embeddings are still to be written, the disk has {free:,} free; "
        "make room, choose another directory, or store them as float16"
      )

  def write(self, number: int, embeddings: Float[np.ndarray, "n E"], *, cut: int) -> None:
    """Writes a shard and lists it; whoever calls this is the only one that writes this shard.

    Args:
      number: of the shard.
      embeddings: its rows.
      cut: how many of its passages were cut.

    Raises:
      UserError: a value that the type of the files cannot hold (row named).
    """
    with np.errstate(over="ignore"):
      stored = embeddings.astype(self._dtype)
    if not (finite := np.isfinite(stored).all(axis=1)).all():
      row = self.rows(number)[int(np.argmin(finite))]
      raise UserError(f"embedding of passage row {row} does not fit {self._dtype}; store float32")
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=False)
    content = buffer.getbuffer()
    files.write_atomic(self._work / shard_name(number), content, durable=True)
    self._own[number] = {"sha256": hashlib.sha256(content).hexdigest(), "cut_passages": cut, "dim": stored.shape[1]}
    listed = {str(n): entry for n, entry in sorted(self._own.items())}
    files.write_json(self._list, {"kind": _UNFINISHED, "request": self._request, "shards": listed}, durable=True)

  def finish(self, manifest: dict[str, Any]) -> None:
    """Gives the directory its name; all processes must come here with all shards written.

    Args:
      manifest: own fields; ``dim``, ``dtype``, ``shards`` and ``cut_passages`` are added.
    """
    with hosts.one_writes() as mine:
      if not mine:
        return
      entries = self._read()
      missing = next((n for n in range(len(self)) if n not in entries), None)
      assert missing is None, f"shard {missing} was written by nobody"
      for path in self._work.glob("manifest-*.json"):
        path.unlink()
      fields = {
        **manifest,
        "dim": entries[0]["dim"],
        "dtype": self._dtype.name,
        "shards": len(self),
        "cut_passages": sum(entry["cut_passages"] for entry in entries.values()),
      }
      known = {shard_name(n): entry["sha256"] for n, entry in entries.items()}
      files.write_manifest(self._work, "embeddings", fields, known=known, durable=True)
      os.replace(self._work, self._final)
      files.sync(self._final.parent)

  def _read(self) -> dict[int, dict[str, Any]]:
    """What the lists of all processes say, if they are of the same request."""
    entries: dict[int, dict[str, Any]] = {}
    for path in sorted(self._work.glob("manifest*.json")):
      try:
        state = files.read_json(path)
        if state["kind"] == _UNFINISHED and state["request"] == self._request:
          entries |= {int(number): entry for number, entry in state["shards"].items()}
      except (UserError, KeyError, TypeError, AttributeError, ValueError):  # a list that is damaged lists nothing
        continue
    return entries

  def _checked(self, entries: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Those whose files are what was listed. Each of several processes hashes its part, and tells the others."""
    numbers = sorted(n for n in entries if 0 <= n < len(self))
    own = [numbers[i] for i in hosts.part(len(numbers))]
    good = [n for n in own if _hash(self._work / shard_name(n)) == entries[n].get("sha256")]
    return {n: entries[n] for told in hosts.exchange(json.dumps(good)) for n in json.loads(told)}

  def _clear(self) -> None:
    """Leaves the finished shards and one list of them: no half-written file, and nothing of another request."""
    self._work.mkdir(parents=True, exist_ok=True)
    kept = {shard_name(n) for n in self.finished}
    for path in self._work.iterdir():
      if path.name not in kept:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    listed = {str(n): entry for n, entry in self.finished.items()}
    state = {"kind": _UNFINISHED, "request": self._request, "shards": listed}
    files.write_json(self._work / files.MANIFEST, state, durable=True)


def read_embeddings(path: str | os.PathLike[str], *, verify: str = "sizes") -> list[Float[np.ndarray, "n E"]]:
  """Opens the shards of a directory that :func:`radit_jax.retrieval.embed.embed_passages` made.

  Args:
    path: the directory.
    verify: ``"full"`` checks SHA-256, ``"sizes"`` only sizes.

  Returns:
    Memory-mapped ``[n, E]`` shards, float32 or float16; one behind the other they are the rows of the passage store.

  Raises:
    UserError: a missing or damaged file (named).
  """
  return open_shards(pathlib.Path(path), files.read_manifest(path, "embeddings", verify=verify))


def open_shards(root: pathlib.Path, manifest: dict[str, Any]) -> list[Float[np.ndarray, "n E"]]:
  """Memory-maps the shards that a manifest's ``count``, ``dim``, ``dtype`` and ``shards`` speak of.

  Raises:
    UserError: a file that cannot be read, or is not what the manifest says, or more files than may be open at once.
  """
  for field in ("count", "dim", "dtype", "shards"):
    if field not in manifest:
      raise UserError(f"{root / files.MANIFEST}: no field {field!r}; made by an earlier version, make it again")
  shards: list[np.ndarray] = []
  for number in range(manifest["shards"]):
    name = root / shard_name(number)
    try:
      shard = np.load(name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
      if isinstance(e, OSError) and e.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise UserError(
          f"{root}: {manifest['shards']} files of embeddings, and this process may have {limit} files open; allow it "
          f"more by `ulimit -n {2 * manifest['shards'] + limit}`"
        ) from None
      raise UserError(f"{name}: cannot be read ({e}); embed the passages again") from None
    if shard.dtype.name != manifest["dtype"] or shard.ndim != 2 or shard.shape[1] != manifest["dim"]:
      raise UserError(
        f"{name}: {shard.dtype} {shard.shape}, {files.MANIFEST} says {manifest['dtype']} of width {manifest['dim']}"
      )
    shards.append(shard)
  if sum(len(s) for s in shards) != manifest["count"]:
    raise UserError(f"{root}: {sum(len(s) for s in shards)} embeddings, {files.MANIFEST} says {manifest['count']}")
  return shards


def write_rows(
  path: pathlib.Path, blocks: Iterable[Float[np.ndarray, "n E"]], shape: tuple[int, int], dtype: str = "float32"
) -> None:
  """Writes embeddings that need not be in memory together into one file, as `numpy.save` does.

  Not through a mapping: on a disk without room the first write to a page that has none ends the process (SIGBUS). Nor
  by `ndarray.tofile`, whose error does not say that the disk is full.

  Args:
    path: the file.
    blocks: ``[N, E]`` in pieces.
    shape: ``(N, E)``.
    dtype: of the file.
  """
  header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
  with files.named(path), open(path, "wb") as f:
    np.lib.format.write_array_header_1_0(f, header)
    for block in blocks:
      f.write(np.ascontiguousarray(block, dtype).data)


def shard_name(number: int) -> str:
  """File of a shard."""
  return f"embeddings-{number:05d}.npy"


def _hash(path: pathlib.Path) -> str | None:
  try:
    return files.sha256_file(path)
  except OSError:
    return None
