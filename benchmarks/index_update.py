"""What an update of a share of the passages costs against building anew, part by part, and how the index then searches.

Run: python benchmarks/index_update.py --page docs/retrieval.md
"""

import dataclasses
import json
import pathlib
import random
import tempfile
import time

import numpy as np
import tyro
from index_build import clustered
from page import table, write_section

from radit_jax import files
from radit_jax.data.corpus import Limit, PassageStore
from radit_jax.data.corpus.build import Build
from radit_jax.data.corpus.revision import Revision, copied_rows, revise
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.exact import exact_top
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.shards import Shards
from radit_jax.retrieval.tuned import Wish
from radit_jax.retrieval.update import update_index

_ROWS = 2**15
_LIMIT = Limit(100)
_FIELDS = {"encoder_fingerprint": "made up"}


@dataclasses.dataclass(frozen=True)
class Config:
  """What to build and change.

  Attributes:
    passages: of 100 words, five to a document.
    width: of their embeddings, which are made up: encoding is counted in passages.
    share: of the documents that change.
    rates: passages encoded a second, for the totals: MiniLM on two CPU cores, and a GPU.
    queries: in a batch of the search afterwards.
    rounds: batches; the median counts.
    page: Markdown file whose section "update" gets the figures; None prints them only.
  """

  passages: int = 200_000
  width: int = 384
  share: float = 0.01
  rates: tuple[int, ...] = (37, 1000)
  queries: int = 1000
  rounds: int = 5
  page: str | None = None


def write_corpus(path: pathlib.Path, documents: int, *, seed: int = 0, changed: frozenset[int] = frozenset()) -> None:
  """Documents of 500 words; those that have changed have others."""
  words = [f"word{i}" for i in range(20_000)]
  with open(path, "w", encoding="utf-8") as f:
    for i in range(documents):
      if seed == 0 or i in changed or path.name == "whole.jsonl":
        text = " ".join(random.Random(f"{i} {seed if i in changed else 0}").choices(words, k=500))
        f.write(json.dumps({"id": f"d{i}", "title": f"Title {i}", "text": text}) + "\n")


def clocked(seconds: dict[str, float], name: str, begin: float) -> None:
  seconds[name] = time.monotonic() - begin


def updated(root: pathlib.Path, base: PassageStore, name: str, fresh: np.ndarray, whole: bool) -> dict[str, float]:
  """Seconds of an update from a file, and how many passages it encodes."""
  seconds: dict[str, float] = {}
  corpus = root / name
  begin = time.monotonic()
  sources = [{"name": name, "sha256": files.sha256_file(corpus)}]
  revision = Revision(str(corpus), "jsonl", _LIMIT, "strict", sources, delete_missing=whole, processes=2)
  number = revise(base, revision)
  assert number is not None
  after = PassageStore(base.root, version=number)
  clocked(seconds, "cut", begin)
  begin = time.monotonic()
  manifest = files.read_manifest(root / "index", "index", verify="full")
  copied = copied_rows(base, after)
  rows = range(len(base), len(after))
  update_index(
    root / "index",
    manifest,
    root / f"index-{name}",
    copied=copied,
    encoded=fresh[: np.count_nonzero(copied < 0)],
    removed=after.removed,
    metadata=(p.metadata for i in range(0, len(rows), 256) for p in after.many(rows[i : i + 256])),
    fields={**_FIELDS, "passages_fingerprint": after.fingerprint},
    shard_passages=2_000_000,
    wish=Wish(),
  )
  clocked(seconds, "index", begin)
  return {**seconds, "encoded": int(np.count_nonzero(copied < 0))}


def searched(path: pathlib.Path, queries: np.ndarray, rounds: int) -> tuple[float, float, float]:
  """Queries a second, recall@10 against exact search, and the overlap it measured itself."""
  index = load_index(path)
  clocks = []
  for _ in range(rounds):
    begin = time.monotonic()
    found = index.search(queries, 10).ids
    clocks.append(time.monotonic() - begin)
  true = exact_top(index.stored, queries, 10, rows=index.live)
  recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)])
  return len(queries) / float(np.median(clocks)), float(recall), index.manifest["overlap"]["overlap"]


def main(config: Config) -> None:
  """Builds, updates twice from the same state, and prints."""
  documents = config.passages // 5
  changed = frozenset(random.Random(1).sample(range(documents), round(config.share * documents)))
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    write_corpus(root / "corpus.jsonl", documents)
    write_corpus(root / "changed.jsonl", documents, seed=1, changed=changed)
    write_corpus(root / "whole.jsonl", documents, seed=1, changed=changed)
    full: dict[str, float] = {}
    begin = time.monotonic()
    build = Build(root / "p", root / "corpus.jsonl", format="jsonl", limit=_LIMIT, recipe={}, processes=2)
    build.scan()
    build.write({"recipe": {}})
    base = PassageStore(root / "p")
    clocked(full, "cut", begin)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(base) // 400, config.width)).astype(np.float32)
    shards = Shards(root / "embeddings", _FIELDS, count=len(base), size=_ROWS)
    for number in range(len(shards)):
      shards.write(number, clustered(rng, centres, len(shards.rows(number))).astype(np.float32), cut=0)
    shards.finish({"count": len(base), **_FIELDS, "passages_fingerprint": base.fingerprint})
    begin = time.monotonic()
    build_index(root / "embeddings", root / "index", metadata=(passage.metadata for passage in base))
    clocked(full, "index", begin)
    full["encoded"] = len(base)
    fresh = clustered(rng, centres, 5 * len(changed)).astype(np.float32)
    kinds = {
      "all of it anew": full,
      "`--update`, the documents that changed": updated(root, base, "changed.jsonl", fresh, whole=False),
      "`--update --delete-missing`, the whole corpus": updated(root, base, "whole.jsonl", fresh, whole=True),
    }
    rows = []
    for kind, found in kinds.items():
      totals = []
      for rate in config.rates:
        whole, part = (x["cut"] + x["index"] + x["encoded"] / rate for x in (full, found))
        totals.append(f"{part:,.0f} ({part / whole:.1%})")
      built = f"{found['index']:.1f} ({found['index'] / full['index']:.0%})"
      rows.append([kind, f"{found['cut']:.1f}", f"{found['encoded']:,}", built, *totals])
    header = ["", "cutting, s", "passages encoded", "index, measured, s"]
    text = table([*header, *(f"s in all at {rate} passages/s" for rate in config.rates)], rows)
    queries = clustered(np.random.default_rng(1), centres, config.queries).astype(np.float32)
    rows = []
    for kind, path in (("as built", root / "index"), ("after the update", root / "index-changed.jsonl")):
      rate, recall, overlap = searched(path, queries, config.rounds)
      rows.append([kind, f"{rate:,.0f}", f"{recall:.4f}", f"{overlap:.4f}"])
    text += "\n\n" + table(["", "queries/s", "recall@10", "overlap@10 it measured itself"], rows)
    write_section(config.page, "update", text)


if __name__ == "__main__":
  main(tyro.cli(Config))
