"""ScaNN as a source of candidates. It is given row numbers only, and what it returns is scored anew by the index."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import radit_jax
from radit_jax.errors import UserError
from radit_jax.retrieval.metadata import Allowed

#: Below this many passages all are compared: at 20,000 x 384 that takes a few milliseconds a query.
EXACT_BELOW = 20_000
#: From this many on, passages are partitioned; below, quantised scores of all of them are fast enough.
TREE_FROM = 100_000
#: Dimensions of a block of asymmetric hashing: with 200 candidates reordered, 3 finds as much in less time than 2 with
#: 100 (at 200,000 x 768, recall@10 of .980 with 7,600 and 6,000 queries a second), and its codes are a third smaller.
BLOCK = 3
#: Candidates reordered by bfloat16 products, by default.
REORDER = 200
#: Points that codebooks are trained on at most. Training holds about five float32 copies of them.
_TRAINING = 100_000
#: Fewer allowed passages than this, or a smaller share of all, and a filtered search compares all that are allowed.
EXACT_WITHIN, _LEAST_SHARE = 20_000, 1 / 16
#: Rows of a query that a filtered search asks for at most, before it compares all that are allowed.
_MOST_FILTERED = 4096
#: ScaNN's loader unpickles a file of this name if it finds one. We never write it, and never load a folder that has it.
PICKLED = "scann_docids.pkl"


@dataclasses.dataclass(frozen=True)
class Settings:
  """How thoroughly a search looks; may be changed without building anew.

  Attributes:
    leaves_to_search: partitions looked at, of those a shard has; None where there are none.
    reorder: candidates that are scored by better products than they were found by.
  """

  leaves_to_search: int | None
  reorder: int = REORDER


def choose(count: int) -> dict[str, Any]:
  """What to build for a number of passages.

  Under 20,000 nothing: the index compares all of them. Under 100,000 asymmetric hashing (3 dimensions a block,
  anisotropic threshold 0.2) with the best reordered by bfloat16 products; above, the same within the nearest of about
  √N partitions, each passage listed under a second one too (SOAR).

  Example:
    >>> choose(150_000)
    {'method': 'tree', 'training': 20000, 'leaves': 387, 'tree_training': 96750}
  """
  if count < EXACT_BELOW:
    return {"method": "exact"}
  quantized = {"method": "quantized", "training": min(_TRAINING, count, max(_TRAINING // 5, count // 12))}
  if count < TREE_FROM:
    return quantized
  leaves = math.isqrt(count)
  # 250 points a partition place its centre well; more only cost time. SOAR lifts recall@10 at 120,000 x 128 from .93 to
  # .98 at the cost of a third more time a query; looking at more partitions instead takes twice the time for the same.
  return {**quantized, "method": "tree", "leaves": leaves, "tree_training": min(count, 250 * leaves)}


def default_settings(parameters: dict[str, Any]) -> Settings:
  """Settings of a new index: an eighth of the partitions, and few candidates where products are not rounded."""
  plain = parameters.get("index_type") in ("FLAT", "IVF_FLAT")
  return Settings(math.ceil(parameters["leaves"] / 8) if "leaves" in parameters else None, 1 if plain else REORDER)


def num_candidates(k: int) -> int:
  """How many candidates a backend names for the k best: its products are rounded, bfloat16 orders rows to three digits.

  Example:
    >>> num_candidates(5), num_candidates(100)
    (15, 200)
  """
  return max(2 * k, k + 10)


def build_shard(
  sources: Sequence[tuple[pathlib.Path, int, int]], directory: pathlib.Path, parameters: dict[str, Any]
) -> dict[str, Any]:
  """Builds a searcher in a process of its own, which then reads it back and searches it once.

  Data that ScaNN cannot take kills the process it runs in; and what a build has held is given back in whole.

  Args:
    sources: ``(file, first, stop)``: the rows of ``.npy`` files that the shard is made of, in order; finite.
    directory: made here, whole or not at all.
    parameters: see :func:`choose`.

  Returns:
    ``seconds`` and ``peak_bytes`` of the process.

  Raises:
    UserError: ScaNN is not installed, or the process died.
  """
  require()
  with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
    out = pathlib.Path(temporary) / directory.name
    task = {
      "sources": [[str(path), first, stop] for path, first, stop in sources],
      "out": str(out),
      "parameters": parameters,
    }
    package = str(pathlib.Path(radit_jax.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with (
      open(out.with_name("said"), "w+") as said,
      subprocess.Popen(
        [sys.executable, "-m", "radit_jax.retrieval.scann_process"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
      ) as process,
    ):
      assert process.stdin is not None
      assert process.stdout is not None
      try:
        # Its input stays open: a parent that is killed closes it, and so ends the process.
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
      except BrokenPipeError:  # it has died already, and its status says how
        pass
      try:
        result = process.stdout.readline()
        status = process.wait()
      except (
        BaseException
      ):  # a signal that asks to stop: a build holds its interpreter, and would not see the input end
        process.kill()
        raise
      said.seek(0)
      lines = [line for line in said.read().splitlines() if line.strip()]
    if status or not result:
      how = f"signal {-status}" if status < 0 else f"status {status}"
      raise UserError(
        f"{directory}: the process that builds the ScaNN searcher ended with {how} "
        f"({lines[-1].strip()[:200] if lines else 'it said nothing'}); with signal 9 memory has run out: build smaller "
        "shards, or use the backend exact"
      )
    os.replace(out, directory)
  return json.loads(result)


class ScannCandidates:
  """Searchers read from disk, one per shard of the index, whose results are merged.

  Args:
    shards: directory of each, and its first row.
    settings: how thoroughly to look.
    resident: keep all searchers in memory. Otherwise each is read when its turn comes, at every search, so that there
      is never more than one.

  Raises:
    UserError: ScaNN is not installed, a folder holds a pickle, or ScaNN cannot read it.
  """

  def __init__(self, shards: Sequence[tuple[pathlib.Path, int]], settings: Settings, *, resident: bool = True):
    require()
    for directory, _ in shards:
      if (directory / PICKLED).exists():
        raise UserError(
          f"{directory / PICKLED}: a pickle, which loading would execute; delete it or build the index again"
        )
    self._shards = list(shards)
    self._settings = settings
    self._searchers = [load_searcher(directory) for directory, _ in shards] if resident else None

  def with_settings(self, settings: Settings) -> "ScannCandidates":
    """The same searchers under other settings."""
    other = object.__new__(ScannCandidates)
    other._shards, other._searchers, other._settings = self._shards, self._searchers, settings
    return other

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """More than ``k`` likely rows of every query, in no promised order.

    Args:
      queries: ``[Q, E]`` float32, finite, Q >= 1 (ScaNN raises on an empty batch).
      k: how many will be kept, at most the number of passages.

    Returns:
      ``[Q, C]`` int64 with C >= k; -1 where ScaNN found no more.
    """
    wanted = num_candidates(k)
    best = np.empty((len(queries), 0), np.int64)
    likeness = np.empty((len(queries), 0), np.float32)
    for number, (directory, first) in enumerate(self._shards):
      searcher = self._searchers[number] if self._searchers else load_searcher(directory)
      ids, products = searcher.search_batched_parallel(
        queries,
        final_num_neighbors=wanted,
        pre_reorder_num_neighbors=max(self._settings.reorder, 3 * wanted),
        leaves_to_search=self._settings.leaves_to_search,
      )
      del searcher  # before the next one is read
      # ScaNN fills short rows with id 0 and score NaN: taken at its word, passage 0 would follow every short result.
      missing = np.isnan(products)
      best = np.concatenate([best, np.where(missing, -1, ids.astype(np.int64) + first)], axis=1)
      likeness = np.concatenate([likeness, np.where(missing, -np.inf, products)], axis=1)
      if best.shape[1] > wanted:
        kept = np.argpartition(-likeness, wanted - 1, axis=1)[:, :wanted]
        best, likeness = np.take_along_axis(best, kept, axis=1), np.take_along_axis(likeness, kept, axis=1)
    return np.pad(best, ((0, 0), (0, wanted - best.shape[1])), constant_values=-1)

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """Ever more rows until k allowed ones are among them; none where comparing all allowed ones costs less."""
    share = len(allowed) / len(allowed.mask)
    found, nothing_known = np.full((len(queries), k), -1, np.int64), np.full(len(queries), -np.inf)
    if len(allowed) < EXACT_WITHIN or share < _LEAST_SHARE:
      return found, nothing_known
    wanted, short = math.ceil(2 * k / share), np.arange(len(queries))
    while len(short) and wanted <= max(_MOST_FILTERED, 4 * k):
      ids = allowed.only(self(queries[short], min(wanted, len(allowed.mask))))
      found = np.pad(found, ((0, 0), (0, max(0, ids.shape[1] - found.shape[1]))), constant_values=-1)
      found[short, : ids.shape[1]] = ids
      short = short[(ids >= 0).sum(axis=1) < k]
      wanted *= 4
    return found, nothing_known


def load_searcher(directory: pathlib.Path) -> Any:
  """Reads a searcher that :mod:`radit_jax.retrieval.scann_process` wrote.

  Raises:
    UserError: ScaNN cannot read it.
  """
  try:
    return require().scann_ops_pybind.load_searcher(str(directory), assets_backcompat_shim=False)
  except Exception as e:  # pybind turns every fault of the files into one of several exception types
    raise UserError(f"{directory}: ScaNN cannot read it ({str(e).splitlines()[0]}); build the index again") from e


def require() -> Any:
  """The library.

  Raises:
    UserError: it is not there.
  """
  try:
    import scann
  except ImportError as e:
    raise UserError(
      f"backend scann: ScaNN cannot be imported here ({e}); install it, or use the backend exact"
    ) from None
  return scann
