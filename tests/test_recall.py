"""A build measures itself, says what to raise or raises it, costs what was planned, and dies in its own process."""

import types

import numpy as np
import pytest
from test_verbs import index_config

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.retrieval import scann, tuned
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.cost import plan_index
from radit_jax.retrieval.exact import exact_top
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.recall import Sample, tune
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import Settings
from radit_jax.retrieval.tuned import Wish, tune_index
from radit_jax.verbs.index import index


def scattered(count, width, seed=0):
  """Unclustered: the worst case of a tree."""
  return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.fixture
def tree(monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  monkeypatch.setattr(scann, "TREE_FROM", 1)


def test_rows_in_shards_are_one_array(tmp_path):
  stored = scattered(50, 3)
  edges = [0, 1, 17, 30, 50]
  paths = [tmp_path / f"{a}.npy" for a in edges[:-1]]
  for path, a, b in zip(paths, edges, edges[1:], strict=False):
    np.save(path, stored[a:b])
  for forget in (False, True):
    rows = Rows([np.load(p, mmap_mode="r") for p in paths], forget=forget)
    assert (len(rows), rows.shape) == (50, (50, 3))
    for a in range(0, 50, 3):
      for b in range(a, 50, 5):
        np.testing.assert_array_equal(rows[a:b], stored[a:b])
    ids = np.random.default_rng(0).integers(50, size=(4, 7))
    np.testing.assert_array_equal(rows[ids], stored[ids])
    np.testing.assert_array_equal(np.concatenate([block for _, block in rows.blocks()]), stored)
    np.testing.assert_array_equal(exact_top(rows, stored[:5], 6), exact_top(stored, stored[:5], 6))


def test_overlap_is_of_the_others_and_counts_equal_passages_as_found():
  stored = scattered(40, 4)
  sample = Sample(stored)
  assert len(sample) == 40
  assert sample.overlap(lambda q, k: exact_top(stored, q, k)) == 1.0
  assert sample.overlap(lambda q, k: exact_top(stored, q, k - 1)) == pytest.approx(0.9, abs=0.03)
  assert sample.overlap(lambda q, k: np.full((len(q), k), -1)) == 0.0
  # Every passage three times over: a search that returns the other copies has found as much.
  copies = np.concatenate([stored] * 3)
  true = exact_top(copies, copies, 30)
  assert Sample(copies).overlap(lambda q, k: true[:, ::-1][:, -k - 1 :]) > 0.6
  assert Sample(copies).overlap(lambda q, k: np.where(true < 40, true + 80, true % 40)[:, :k]) > 0.9


def test_a_build_below_what_is_wanted_says_what_to_raise_and_a_target_raises_it(tmp_path, tree):
  stored = scattered(3000, 16)
  poor = build_index(stored, tmp_path / "index", wish=Wish(leaves_to_search=1))
  assert poor["overlap"]["overlap"] < 0.6
  assert poor["overlap"]["advice"].startswith("--leaves-to-search 2 has 0.")
  assert poor["overlap"]["advice"].endswith("--target-recall 0.95 raises it as far as needed")
  assert poor["search"] == {"leaves_to_search": 1, "reorder": 200}
  queries = scattered(50, 16, seed=1)
  true = exact_top(stored, queries, 10)

  def recall():
    found = load_index(tmp_path / "index").search(queries, 10).ids
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)])

  before = recall()
  built = files.read_manifest(tmp_path / "index", "index")
  tune_index(tmp_path / "index", Wish(leaves_to_search=1, target_recall=0.97))
  after = files.read_manifest(tmp_path / "index", "index", verify="full")
  assert after["overlap"]["overlap"] >= 0.97
  assert after["overlap"]["advice"] == ""
  assert after["search"]["leaves_to_search"] > 8
  assert (after["files"], after["versions"]) == (built["files"], built["versions"])  # nothing was built
  assert after["fingerprint"] != built["fingerprint"]  # and what is retrieved is something else
  assert before < 0.6 < 0.93 < recall()


def test_where_nothing_can_be_raised_exact_search_is_named(tmp_path, tree, monkeypatch):
  monkeypatch.setattr("radit_jax.retrieval.recall._MOST_REORDERED", 20)
  manifest = build_index(scattered(900, 16), tmp_path / "index", wish=Wish(30, 20, target_recall=1.0))
  assert manifest["search"] == {"leaves_to_search": 30, "reorder": 20}
  assert manifest["overlap"]["overlap"] < 1
  assert manifest["overlap"]["advice"] == "no setting can be raised further; --backend exact finds all"


def test_small_indexes_are_exact_without_scann(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "scann", None)
  manifest = build_index(scattered(50, 4), tmp_path / "index", backend="scann")
  assert (manifest["parameters"], manifest["overlap"]) == ({"method": "exact"}, None)
  assert len(load_index(tmp_path / "index").search(scattered(2, 4), 5).ids) == 2


def test_a_process_that_dies_is_one_line_and_leaves_nothing(tmp_path, tree):
  stored = scattered(2000, 8)
  stored[7] = np.nan  # one NaN ends the process it is in, if a tree is built
  np.save(tmp_path / "rows.npy", stored)
  with pytest.raises(UserError, match=r"searcher ended with (signal|status) \d+ \(.*\); with signal 9 memory") as error:
    scann.build_shard([(tmp_path / "rows.npy", 0, 2000)], tmp_path / "scann", scann.choose(2000))
  assert "\n" not in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]


def test_what_is_planned_is_what_it_takes(tmp_path):
  stored = scattered(24_000, 64)
  build_index(stored, tmp_path / "index")
  manifest = files.read_manifest(tmp_path / "index", "index")
  plan = plan_index(24_000, 64, shard_passages=2_000_000, rate=100)
  assert plan.method == manifest["parameters"]["method"] == "quantized"
  sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
  assert plan.embedding_bytes == sizes["embeddings-00000.npy"] - 128
  assert plan.searcher_bytes == pytest.approx(sum(s for n, s in sizes.items() if n.startswith("scann")), rel=0.2)
  assert plan.build_bytes == pytest.approx(manifest["build"]["peak_bytes"], rel=0.3)
  assert plan.hours == pytest.approx(24_000 / 100 / 3600)


def test_the_verb_plans_without_a_store_and_writes_nothing(parts, tmp_path):
  config = index_config(tmp_path, parts, backend="scann", plan=True, plan_passages=21_000_000, plan_rate=500)
  plan = index(config)
  assert (plan.count, plan.dimension, plan.method, plan.shards) == (21_000_000, 16, "tree", 11)
  assert plan.hours == pytest.approx(11.67, abs=0.01)
  assert "11.7 hours" in plan.summary()
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(UserError, match=r"plan_rate = 5\.0 without plan"):
    index_config(tmp_path, parts, plan_rate=5.0)


class Partitioned:
  """Candidates all right for .99 of the queries; for a share of blurred ones, by how many partitions are looked at."""

  def __init__(self, stored, shares, leaves=None):
    self.stored, self.shares, self.leaves = stored, shares, leaves

  def with_settings(self, settings):
    return Partitioned(self.stored, self.shares, settings.leaves_to_search)

  def __call__(self, queries, k):
    blurred = not (queries[0] == self.stored).all(axis=1).any()
    ids = exact_top(self.stored, queries, k)
    ids[round((self.shares[self.leaves] if blurred else 0.99) * len(ids)) :] = -1
    return ids


def test_blurred_passages_lie_as_far_from_passages_as_they_are_long():
  stored = scattered(500, 64)
  stored = 3 * stored / np.linalg.norm(stored, axis=1, keepdims=True)
  asked = []
  sample = Sample(stored, blurred=True)
  assert sample.overlap(lambda q, k: asked.append(q) or exact_top(stored, q, k)) == 1.0
  np.testing.assert_allclose(np.linalg.norm(asked[0] - stored, axis=1), 3, rtol=1e-5)
  cosines = np.einsum("qe,qe->q", asked[0], stored) / np.linalg.norm(asked[0], axis=1) / 3
  assert np.mean(cosines) == pytest.approx(0.5**0.5, abs=0.02)
  # What a passage was blurred from is found too, unlike the passage that another sample searches with.
  assert sample.overlap(lambda q, k: np.arange(500)[:, None].repeat(k, axis=1)) > 0.9
  # All alike, nothing can be mixed.
  assert Sample(np.ones((20, 4), np.float32), blurred=True).overlap(lambda q, k: np.zeros((20, k), np.int64)) == 1.0


@pytest.mark.parametrize(
  ("shares", "chosen"),
  [
    ({56: 1.0, 28: 1.0, 14: 1.0, 7: 1.0, 4: 1.0, 2: 1.0, 1: 0.96}, 4),  # and 2 would do for blurred ones
    ({56: 0.99, 28: 0.97}, 56),
    ({56: 1.0, 28: 1.0, 14: 0.99}, 56),
    ({56: 0.97, 28: 0.969, 14: 0.968, 7: 0.967}, 28),  # of the eighth's .97, and not of the step before
    ({8: 1.0, 4: 1.0, 2: 1.0, 1: 1.0}, 2),
    ({1: 1.0}, 1),
  ],
)
def test_partitions_are_halved_as_long_as_half_of_them_finds_as_much(shares, chosen):
  stored = scattered(1000, 8)
  index = types.SimpleNamespace(stored=stored, live=None, candidates=Partitioned(stored, shares))
  settings, overlap = tune(index, {"leaves": 447}, Settings(max(shares)), None, fewer=True)
  assert settings == Settings(chosen)
  assert overlap.overlap == pytest.approx(0.99)
  assert tune(index, {"leaves": 447}, Settings(max(shares)), None)[0] == Settings(max(shares))


def test_an_eighth_of_the_partitions_is_looked_at_where_fewer_find_less(tmp_path, tree):
  manifest = build_index(scattered(3000, 16), tmp_path / "index")
  assert manifest["search"]["leaves_to_search"] == -(-manifest["parameters"]["leaves"] // 8)
  tune_index(tmp_path / "index", Wish(leaves_to_search=3))
  assert files.read_manifest(tmp_path / "index", "index")["search"]["leaves_to_search"] == 3


def test_partitions_that_there_are_not_are_told(tmp_path, tree, monkeypatch, parts):
  """And no option is taken that can have no meaning."""
  told = []
  monkeypatch.setattr(tuned.log, "warning", lambda text, *values: told.append(text % values))
  made = build_index(scattered(900, 8), tmp_path / "index", wish=Wish(leaves_to_search=31))
  assert (made["search"]["leaves_to_search"], made["parameters"]["leaves"]) == (30, 30)
  tune_index(tmp_path / "index", Wish(leaves_to_search=30))
  assert told == ["leaves_to_search = 31: the scann index has only 30 partitions, and all are looked at"]
  monkeypatch.setattr(scann, "TREE_FROM", 10**6)
  assert build_index(scattered(900, 8), tmp_path / "index", wish=Wish(leaves_to_search=3))["search"] == {
    "leaves_to_search": None,
    "reorder": 200,
  }
  assert told[1:] == ["leaves_to_search = 3: the scann index has no partitions, so this changes nothing"]
  for backend in ("exact", "device"):
    with pytest.raises(UserError, match=f"leaves_to_search = 3 with backend = '{backend}', which has no partitions"):
      index_config(tmp_path, parts, backend=backend, leaves_to_search=3)


def test_plans_of_backends_that_hold_the_embeddings_elsewhere():
  plan = plan_index(21_000_000, 768, backend="device", shard_passages=2_000_000)
  assert (plan.method, plan.shards, plan.search_bytes) == ("device", 0, 21_000_000 * 768 * 2)
  assert "memory of devices" in plan.summary()
  plan = plan_index(1000, 8, backend="device", device_dtype="float32", shard_passages=2_000_000)
  assert plan.search_bytes == 32_000
  plan = plan_index(1000, 8, backend="milvus", shard_passages=2_000_000)
  assert (plan.method, plan.search_bytes, plan.searcher_bytes, plan.build_bytes) == ("milvus", 32_000, 0, 0)
