"""What building an index takes as it grows with shards of one size, and how fast and how well it is then searched.

Run: python benchmarks/index_build.py --page docs/retrieval.md
"""

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tyro
from page import table, write_section

from radit_jax.retrieval.build import SHARD_PASSAGES, build_index
from radit_jax.retrieval.cost import plan_index
from radit_jax.retrieval.exact import exact_top
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.shards import Shards

_ROWS = 2**15


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes to build.

  Attributes:
    counts: passages of the indexes whose memory is measured.
    width: of their embeddings.
    shard_passages: of each of their shards.
    searched: passages of the index that is searched; 0 leaves it out.
    searched_width: of its embeddings.
    queries: in a batch.
    rounds: batches of each kind, in turns; the median counts.
    page: Markdown file whose sections "build" and "search" get the figures; None prints them only.
    one: used by the program itself, which measures each size in a process of its own.
  """

  counts: tuple[int, ...] = (500_000, 1_000_000, 2_000_000)
  width: int = 256
  shard_passages: int = 250_000
  searched: int = 200_000
  searched_width: int = 768
  queries: int = 1000
  rounds: int = 5
  page: str | None = None
  one: int | None = None


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
  """Vectors of length 1 around centres."""
  x = centres[rng.integers(len(centres), size=count)]
  x = x + 0.7 * rng.normal(size=x.shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def write(path: pathlib.Path, count: int, width: int) -> np.ndarray:
  """A directory of clustered embeddings, 400 to a cluster, and the centres."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(count // 400, width)).astype(np.float32)
  shards = Shards(path, {"made": "up"}, count=count, size=_ROWS)
  for number in range(len(shards)):
    shards.write(number, clustered(rng, centres, len(shards.rows(number))).astype(np.float32), cut=0)
  shards.finish({"count": count})
  return centres


def memory(count: int, config: Config) -> dict[str, float]:
  """Peaks of a build, in this process and in that of the searchers."""
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    write(root / "embeddings", count, config.width)
    begin = time.monotonic()
    manifest = build_index(root / "embeddings", root / "index", shard_passages=config.shard_passages)
    seconds = time.monotonic() - begin
    disk = sum(p.stat().st_size for p in (root / "index").rglob("*") if p.is_file() and "scann" in p.parent.name)
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {
    "seconds": seconds,
    "own": own,
    "child": manifest["build"]["peak_bytes"],
    "disk": disk,
    "overlap": manifest["overlap"]["overlap"],
  }


def search(config: Config) -> dict[str, float]:
  """Recall@10 against exact search, and queries a second of both."""
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    centres = write(root / "embeddings", config.searched, config.searched_width)
    begin = time.monotonic()
    manifest = build_index(root / "embeddings", root / "index", shard_passages=SHARD_PASSAGES)
    seconds = time.monotonic() - begin
    index = load_index(root / "index")
    queries = clustered(np.random.default_rng(1), centres, config.queries).astype(np.float32)
    found = index.search(queries, 10).ids
    true = exact_top(index.stored, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)])
    clocks: dict[str, list[float]] = {"scann": [], "exact": []}
    for _ in range(config.rounds):
      for kind, run in (
        ("scann", lambda: index.search(queries, 10)),
        ("exact", lambda: exact_top(index.stored, queries, 10)),
      ):
        begin = time.monotonic()
        run()
        clocks[kind].append(time.monotonic() - begin)
    rates = {kind: config.queries / float(np.median(times)) for kind, times in clocks.items()}
  return {"seconds": seconds, "recall": float(recall), "overlap": manifest["overlap"]["overlap"], **rates}


def main(config: Config) -> None:
  """Measures and prints; each size in a process of its own, whose peak is its own."""
  if config.one is not None:
    print(json.dumps(search(config) if config.one == 0 else memory(config.one, config)))
    return
  rows = []
  for count in config.counts:
    found = _alone(config, count)
    shard = config.shard_passages * config.width * 4
    plan = plan_index(count, config.width, shard_passages=config.shard_passages)
    rows.append(
      [
        f"{count:,}",
        f"{found['seconds']:.0f}",
        f"{found['child'] / 1e6:.0f} ({found['child'] / shard:.2f})",
        f"{plan.build_bytes / 1e6:.0f} ({100 * (plan.build_bytes / found['child'] - 1):+.0f} %)",
        f"{found['own'] / 1e6:.0f}",
        f"{found['disk'] / 1e6:.0f} / {plan.searcher_bytes / 1e6:.0f}",
        f"{found['overlap']:.3f}",
      ]
    )
  header = ["passages", "s", "peak of a searcher's process, MB (shards)", "planned, MB", "peak of the caller, MB"]
  if rows:
    write_section(config.page, "build", table([*header, "searchers on disk / planned, MB", "overlap@10"], rows))
  if config.searched:
    found = _alone(config, 0)
    row = [f"{config.searched:,} x {config.searched_width}", f"{found['seconds']:.0f}", f"{found['recall']:.4f}"]
    row += [f"{found['overlap']:.4f}", f"{found['scann']:.0f}", f"{found['exact']:.0f}"]
    row.append(f"{found['scann'] / found['exact']:.1f}")
    header = ["passages", "s to build", "recall@10", "overlap@10 it measured itself", "queries/s", "exact", "ratio"]
    write_section(config.page, "search", table(header, [row]))


def _alone(config: Config, one: int) -> dict[str, float]:
  options = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in _NUMBERS]
  done = subprocess.run(
    [sys.executable, __file__, f"--one={one}", *options], capture_output=True, text=True, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


_NUMBERS = ("width", "shard_passages", "searched", "searched_width", "queries", "rounds")

if __name__ == "__main__":
  main(tyro.cli(Config))
