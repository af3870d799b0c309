"""The default index against `faiss` on the same vectors, in one run: batches of questions a second at equal recall.

    pip install faiss-cpu
    python benchmarks/against_faiss.py --page docs/retrieval.md

Two of faiss's indexes are measured, HNSW and IVF-PQ with fast scan and reordering. Their settings are raised in steps
until they find what ours finds; where a step finds more, that is what is measured. Ours is measured as it is built, and
with no more partitions than that takes, which is what theirs are.
"""

import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable

import faiss
import numpy as np
import tyro
from index_build import clustered, write
from page import table, write_section

from radit_jax.retrieval.build import SHARD_PASSAGES, build_index
from radit_jax.retrieval.exact import exact_top
from radit_jax.retrieval.index import StoredIndex, load_index
from radit_jax.retrieval.scann import Settings

Search = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is searched.

  Attributes:
    count: vectors, 400 to a cluster.
    width: of each.
    queries: in a batch.
    rounds: batches of each kind, in turns; the median counts.
    page: Markdown file whose section "faiss" gets the figures; None prints them only.
  """

  count: int = 200_000
  width: int = 768
  queries: int = 1000
  rounds: int = 7
  page: str | None = None


def hnsw(vectors: np.ndarray) -> Iterable[tuple[str, Search]]:
  """A graph of 32 neighbours; ``efSearch`` is raised."""
  index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
  index.hnsw.efConstruction = 80
  index.add(vectors)
  for ef in (16, 32, 64, 128, 256, 512, 1024):
    index.hnsw.efSearch = ef
    yield f"faiss HNSW 32, efSearch {ef}", lambda q: index.search(q, 10)[1]


def ivf_pq(vectors: np.ndarray) -> Iterable[tuple[str, Search]]:
  """√N lists, 4-bit codes of 2 dimensions, reordered by the vectors; lists looked at and candidates are raised."""
  count, width = vectors.shape
  lists = round(count**0.5)
  index = faiss.index_factory(width, f"IVF{lists},PQ{width // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
  index.train(vectors[:: max(1, count // 100_000)])
  index.add(vectors)
  base = faiss.extract_index_ivf(index.base_index)
  for probes, candidates in itertools.product((lists // 64, lists // 32, lists // 16, lists // 8), (10, 25, 50)):
    base.nprobe, index.k_factor = max(1, probes), candidates
    yield (
      f"faiss IVF{lists} PQ fast scan, {base.nprobe} lists, {10 * candidates} reordered",
      lambda q: index.search(q, 10)[1],
    )


def fewer_leaves(index: StoredIndex) -> Iterable[tuple[str, Search]]:
  """The default index, with ``leaves_to_search`` raised from few."""
  searchers, built = index.candidates, Settings(**index.manifest["search"])
  assert searchers is not None
  assert built.leaves_to_search is not None
  for leaves in sorted({max(1, built.leaves_to_search // n) for n in (32, 16, 8, 4, 2, 1)}):
    settings = dataclasses.replace(built, leaves_to_search=leaves)
    fewer = StoredIndex(pathlib.Path(), index.manifest, index.stored, searchers.with_settings(settings))
    yield f"`--backend scann --leaves-to-search {leaves}`", _ids(fewer)


def _ids(index: StoredIndex) -> Search:
  return lambda q: index.search(q, 10).ids


def recall(found: np.ndarray, true: np.ndarray) -> float:
  """Share of the true 10 that were found."""
  return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


def main(config: Config) -> None:
  """Builds all, finds settings of equal recall, and takes turns."""
  rng = np.random.default_rng(1)
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    centres = write(root / "embeddings", config.count, config.width)
    queries = clustered(rng, centres, config.queries).astype(np.float32)
    builds: dict[str, float] = {"exact": 0.0, "fewer": 0.0}
    begin = time.monotonic()
    build_index(root / "embeddings", root / "index", shard_passages=SHARD_PASSAGES)
    builds["scann"] = time.monotonic() - begin
    index = load_index(root / "index")
    vectors = index.stored[:]
    true = exact_top(vectors, queries, 10)
    searches: dict[str, Search] = {
      "exact": lambda q: exact_top(vectors, q, 10),
      "scann": _ids(index),
    }
    wanted = recall(searches["scann"](queries), true)
    labels = {"exact": "`--backend exact`", "scann": "`--backend scann`, as built by default"}
    for kind, candidates in (("fewer", fewer_leaves(index)), ("hnsw", hnsw(vectors)), ("ivf_pq", ivf_pq(vectors))):
      begin = time.monotonic()
      for label, search in candidates:
        builds.setdefault(kind, time.monotonic() - begin)
        labels[kind], searches[kind] = label, search
        if recall(search(queries), true) >= wanted - 0.001:
          break
    clocks: dict[str, list[float]] = {kind: [] for kind in searches}
    for _ in range(config.rounds):
      for kind, search in searches.items():
        begin = time.monotonic()
        search(queries)
        clocks[kind].append(time.monotonic() - begin)
    exact = float(np.median(clocks["exact"]))
    rows = []
    for kind, search in searches.items():
      median = float(np.median(clocks[kind]))
      rows.append(
        [
          labels[kind],
          f"{builds[kind]:.0f}",
          f"{recall(search(queries), true):.4f}",
          f"{config.queries / median:,.0f}",
          f"{exact / median:.1f}",
        ]
      )
  heading = f"{config.count:,} x {config.width}, batches of {config.queries:,}"
  write_section(config.page, "faiss", table([heading, "s to build", "recall@10", "queries/s", "of exact"], rows))


if __name__ == "__main__":
  main(tyro.cli(Config))
