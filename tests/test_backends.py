"""The conformance suite: what `search` promises, held by every backend; and that no filter is ever got around."""

import dataclasses
import shutil
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_index import clustered, oracle

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.retrieval import index as index_module
from radit_jax.retrieval import milvus_fill, scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.tuned import Wish

#: Every backend; ScaNN once for each method it chooses by size, forced on small data, and in three shards; the device
#: in both types; Milvus comparing all, and in partitions.
BACKENDS = [
  *("exact", "scann_exact", "scann_quantized", "scann_tree", "scann_shards", "device_bfloat16", "device_float32"),
  *("milvus_flat", "milvus_partitions"),
]
#: Those that find, without a filter too, what exact search finds.
ALWAYS_EXACT = ("exact", "scann_exact", "device_bfloat16", "device_float32", "milvus_flat")


@dataclasses.dataclass(frozen=True)
class Backend:
  """One of them, as `build_index` is asked for it."""

  label: str
  options: Callable[[Any], dict[str, Any]]

  def build(self, embeddings, path, **kwargs):
    return build_index(embeddings, path, **self.options(embeddings), **kwargs)

  def built(self, tmp_path, embeddings, mesh=None, **kwargs):
    self.build(embeddings, tmp_path / "index", **kwargs)
    return load_index(tmp_path / "index", mesh=mesh)


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
  """A backend, with size limits lowered so that its method is the one asked for."""
  name, _, method = request.param.partition("_")
  options: dict[str, Any] = {"backend": name}
  if name == "scann":
    limits = {"exact": (20_000, 100_000), "quantized": (1, 100_000), "tree": (1, 1), "shards": (1, 100_000)}
    monkeypatch.setattr(scann, "EXACT_BELOW", limits[method][0])
    monkeypatch.setattr(scann, "TREE_FROM", limits[method][1])
  if name == "device":
    options["device_dtype"] = method
  if name == "milvus":
    options["milvus_uri"] = request.getfixturevalue("milvus_uri")
    if method == "partitions":
      chosen = lambda version, kind, count: {"index_type": "IVF_FLAT", "leaves": min(8, count)}  # noqa: E731
      monkeypatch.setattr(milvus_fill, "choose", chosen)

  def ask(embeddings):
    if method != "shards" or np.ndim(embeddings) != 2:
      return options
    return {**options, "shard_passages": max(32, -(-len(embeddings) // 3))}  # ScaNN needs 16

  return Backend(request.param, ask)


def test_shapes_dtypes_order_and_scores(tmp_path, backend):
  stored = clustered(600, 16, scale=20.0)
  noise = np.random.default_rng(1).normal(size=(30, 16))
  queries = (stored[:30] + noise).astype(np.float32)  # scores near 400
  index = backend.built(tmp_path, stored)
  result = index.search(queries, 10)
  assert (result.ids.dtype, result.scores.dtype, result.valid.dtype) == (np.int64, np.float32, np.bool_)
  assert result.ids.shape == result.scores.shape == result.valid.shape == (30, 10)
  assert result.valid.all()
  assert len(index) == 600
  products = np.einsum("qe,qke->qk", queries.astype(np.float64), stored[result.ids].astype(np.float64))
  np.testing.assert_array_equal(result.scores, products.astype(np.float32))
  assert (np.diff(result.scores, axis=1) <= 0).all()
  assert all(len(set(row)) == 10 for row in result.ids)
  true_ids, true_scores = oracle(stored, queries, 10)
  if backend.label in ALWAYS_EXACT:
    np.testing.assert_array_equal(result.ids, true_ids)
    np.testing.assert_array_equal(result.scores, true_scores)
  else:
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(result.ids, true_ids, strict=True)])
    assert found > 0.8  # the tree looks at 3 of 24 partitions


def test_same_passage_twice_has_one_score_and_the_lower_row_first(tmp_path, backend):
  stored = clustered(300, 24)
  stored[[5, 77, 150, 299]] = stored[5]
  result = backend.built(tmp_path, stored).search(stored[[5]], 4)
  np.testing.assert_array_equal(result.ids, [[5, 77, 150, 299]])
  assert len(set(result.scores[0])) == 1


def test_k_above_the_number_of_passages(tmp_path, backend):
  stored = clustered(30, 8)
  result = backend.built(tmp_path, stored).search(stored[:3], 35)
  assert result.valid[:, :30].all()
  assert not result.valid[:, 30:].any()
  assert (result.ids[:, 30:] == -1).all()
  assert (result.scores[:, 30:] == -np.inf).all()
  np.testing.assert_array_equal(np.sort(result.ids[:, :30], axis=1), np.tile(np.arange(30), (3, 1)))


def test_k_as_large_as_the_corpus_leaves_no_hole(tmp_path, backend):
  """A tree looks at an eighth of the passages; the rest must not be reported as absent."""
  stored = clustered(200, 8)
  result = backend.built(tmp_path, stored).search(stored[:2], 150)
  assert result.valid.all()
  np.testing.assert_array_equal(result.ids, oracle(stored, stored[:2], 150)[0])


def test_no_queries(tmp_path, backend):
  result = backend.built(tmp_path, clustered(30, 8)).search(np.empty((0, 8), np.float32), 5)
  assert result.ids.shape == result.scores.shape == result.valid.shape == (0, 5)


def test_queries_that_are_refused(tmp_path, backend):
  index = backend.built(tmp_path, clustered(30, 8))
  for bad in (np.nan, np.inf, -np.inf, 1e30):
    queries = clustered(4, 8)
    queries[2, 3] = bad
    with pytest.raises(UserError, match="query row 2 is not finite"):
      index.search(queries, 5)
  for queries, k, message in [
    (np.ones((1, 8)), 0, "k = 0"),
    (np.ones((1, 8)), -3, "k = -3"),
    (np.ones((1, 7)), 1, r"shape \(1, 7\).*width 8"),
    (np.ones(8), 1, r"shape \(8,\).*width 8"),
  ]:
    with pytest.raises(UserError, match=message):
      index.search(queries, k)


def test_filter_comes_before_top_k(tmp_path, backend):
  stored = clustered(120, 8)
  metadata = [{"language": "en" if row % 3 else "de", "year": 2000 + row % 4} for row in range(120)]
  index = backend.built(tmp_path, stored, metadata=metadata)
  queries = clustered(5, 8, seed=2)
  for where, allowed in [
    ({"language": "de"}, [r for r in range(120) if r % 3 == 0]),
    ({"year": [2001, 2003]}, [r for r in range(120) if r % 4 in (1, 3)]),
    ({"language": "en", "year": 2000}, [r for r in range(120) if r % 3 and r % 4 == 0]),
    ({}, list(range(120))),
  ]:
    ids, scores = oracle(stored[allowed], queries, 6)
    result = index.search(queries, 6, where=where)
    if where:
      np.testing.assert_array_equal(result.ids, np.array(allowed)[ids])
      np.testing.assert_array_equal(result.scores, scores)
    assert result.valid.all()
  nothing = index.search(queries, 6, where={"language": "fr"})
  assert not nothing.valid.any()
  assert (nothing.ids == -1).all()
  few = index.search(queries, 40, where={"language": "de", "year": 2000})
  assert few.valid.sum(axis=1).tolist() == [10] * 5


def test_stored_embeddings(tmp_path, backend):
  stored = clustered(30, 8)
  index = backend.built(tmp_path, stored)
  ids = np.array([[3, -1, 29], [0, 0, 7]])
  expected = stored[ids]
  expected[0, 1] = 0
  found = index.embeddings(ids)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.float32
  assert index.embeddings(np.empty((0, 4), np.int64)).shape == (0, 4, 8)
  for wrong in (30, -2):
    with pytest.raises(UserError, match=f"no row {wrong}; the index has 30"):
      index.embeddings([0, wrong])


def test_embedding_that_is_not_finite_is_named_before_any_backend_sees_it(tmp_path, backend):
  for bad in (np.nan, np.inf, 1e25):
    stored = clustered(70, 8)
    stored[41, 5] = bad
    with pytest.raises(UserError, match="passage row 41 is not finite"):
      backend.build(stored, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_index_can_be_moved(tmp_path, backend):
  stored = clustered(100, 8)
  before = backend.built(tmp_path, stored).search(stored[:5], 3)
  (tmp_path / "elsewhere").mkdir()
  shutil.move(tmp_path / "index", tmp_path / "elsewhere" / "moved")
  after = load_index(tmp_path / "elsewhere" / "moved").search(stored[:5], 3)
  np.testing.assert_array_equal(after.ids, before.ids)
  assert str(tmp_path).encode() not in b"".join(
    p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()
  )


def test_damage_is_noticed_and_the_file_named(tmp_path, backend):
  backend.build(clustered(100, 8), tmp_path / "good", metadata=[{"year": 1}] * 100)
  names = sorted(p.relative_to(tmp_path / "good") for p in (tmp_path / "good").rglob("*") if p.is_file())
  for name in names:
    shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
    damaged = tmp_path / "bad" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    if name.name != files.MANIFEST:
      with pytest.raises(UserError, match=f"{name.name}: SHA-256 differs"):
        load_index(tmp_path / "bad")
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name.name):
      load_index(tmp_path / "bad", verify="sizes")
    damaged.unlink()
    with pytest.raises(UserError, match=name.name):
      load_index(tmp_path / "bad", verify="sizes")


def test_fingerprint_names_what_a_search_depends_on(tmp_path, backend):
  def fingerprint(stored, **kwargs):
    return backend.build(stored, tmp_path / "index", **kwargs)["fingerprint"]

  stored = clustered(100, 8)
  first = fingerprint(stored, fields={"encoder_fingerprint": "e", "passages_fingerprint": "p"})
  assert load_index(tmp_path / "index").manifest["fingerprint"] == first
  assert fingerprint(stored, fields={"encoder_fingerprint": "e", "passages_fingerprint": "p"}) == first
  other = stored.copy()
  other[0, 0] += 1
  different = [
    fingerprint(other, fields={"encoder_fingerprint": "e", "passages_fingerprint": "p"}),
    fingerprint(stored, fields={"encoder_fingerprint": "f", "passages_fingerprint": "p"}),
    fingerprint(stored, fields={"encoder_fingerprint": "e", "passages_fingerprint": "q"}),
    fingerprint(stored, fields={"encoder_fingerprint": "e", "passages_fingerprint": "p"}, metadata=[{}] * 100),
  ]
  assert len({first, *different}) == 5


def test_duplicates_are_all_found(tmp_path, backend):
  """One passage many times over: as many as are asked for, each once, whatever the candidates were."""
  stored = clustered(300, 8)
  stored[::2] = stored[0]
  result = backend.built(tmp_path, stored).search(stored[:1], 40)
  assert len(set(result.ids[0].tolist())) == 40
  assert (result.scores[0] == result.scores[0, 0]).all()
  assert set(result.ids[0].tolist()) <= set(range(0, 300, 2))


def test_callers_at_once_find_what_one_finds(tmp_path, backend):
  """Eight threads, filtered searches among them, every field of the metadata read for the first time by them."""
  stored = clustered(400, 16)
  metadata = [{"year": row % 4, "language": "en" if row % 3 else "de"} for row in range(400)]
  backend.build(stored, tmp_path / "index", metadata=metadata)
  calls = [
    (clustered(1 + i % 3, 16, seed=i), 1 + i % 7, [None, {"year": i % 4}, {"language": "en"}][i % 3]) for i in range(24)
  ]
  serial = load_index(tmp_path / "index")
  expected = [serial.search(q, k, where=where) for q, k, where in calls]
  shared = load_index(tmp_path / "index")
  found = {}
  start = threading.Barrier(8)

  def caller(number):
    start.wait()
    for i in range(number, len(calls), 8):
      q, k, where = calls[i]
      found[i] = shared.search(q, k, where=where)

  threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for i, result in enumerate(expected):
    np.testing.assert_array_equal(found[i].ids, result.ids)
    np.testing.assert_array_equal(found[i].scores, result.scores)


def test_index_of_another_encoder_is_refused(tmp_path, backend):
  backend.build(clustered(40, 8), tmp_path / "index", fields={"encoder_fingerprint": "a" * 64})
  load_index(tmp_path / "index", encoder_fingerprint="a" * 64)
  with pytest.raises(UserError, match=f"built by the encoder {'a' * 12}, not by {'b' * 12}"):
    load_index(tmp_path / "index", encoder_fingerprint="b" * 64)


def confusable(count, width):
  """Passages that share a long common part, which queries do not see: rounded products order them wrongly."""
  rng = np.random.default_rng(0)
  stored = 30 * rng.normal(size=width) + 1e-4 * rng.normal(size=(count, width))
  queries = rng.normal(size=(9, width))
  queries -= np.outer(queries @ stored[0], stored[0]) / (stored[0] @ stored[0])
  return stored.astype(np.float32), queries.astype(np.float32)


def test_a_filtered_search_is_exact_where_products_are_not(tmp_path, backend):
  """What the backend's arithmetic cannot tell apart is compared again; ScaNN compares few passages in any case."""
  stored, queries = confusable(900, 64)
  index = backend.built(tmp_path, stored, metadata=[{"half": row % 2} for row in range(900)], wish=Wish(reorder=20))
  allowed = np.arange(1, 900, 2)
  ids, scores = oracle(stored[allowed], queries, 5)
  result = index.search(queries, 5, where={"half": 1})
  np.testing.assert_array_equal(result.ids, allowed[ids])
  np.testing.assert_array_equal(result.scores, scores)


@pytest.mark.parametrize("name", ["device", "milvus_flat"])
def test_exact_search_takes_over_only_where_it_must(name, tmp_path, monkeypatch, request):
  """Where products tell passages apart, no filtered search is done twice."""
  stored = clustered(900, 32)
  options = (
    {"backend": "device"}
    if name == "device"
    else {"backend": "milvus", "milvus_uri": request.getfixturevalue("milvus_uri")}
  )
  build_index(stored, tmp_path / "index", metadata=[{"half": r % 2} for r in range(900)], **options)
  index = load_index(tmp_path / "index")
  monkeypatch.setattr(index_module, "exact_top", lambda *a, **k: pytest.fail("searched exactly"))
  result = index.search(stored[:40], 5, where={"half": 1})
  assert (result.ids % 2 == 1).all()


def test_scann_looks_on_until_enough_are_allowed(tmp_path, monkeypatch):
  """Half of the passages is allowed, and none of those nearest to the query."""
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  monkeypatch.setattr(scann, "EXACT_WITHIN", 1)
  stored = clustered(2000, 16)
  allowed = np.random.default_rng(1).random(2000) < 0.5
  near = oracle(stored, stored[:1], 90)[0][0]
  allowed[near] = False
  build_index(stored, tmp_path / "index", metadata=[{"open": bool(a)} for a in allowed])
  index = load_index(tmp_path / "index")
  asked = []
  searched = type(index.candidates).__call__
  monkeypatch.setattr(type(index.candidates), "__call__", lambda s, q, k: asked.append(k) or searched(s, q, k))
  monkeypatch.setattr(index_module, "exact_top", lambda *a, **k: pytest.fail("searched exactly"))
  result = index.search(stored[:1], 8, where={"open": True})
  assert len(asked) > 1
  assert allowed[result.ids].all()
  expected = np.flatnonzero(allowed)[oracle(stored[allowed], stored[:1], 8)[0]]
  assert len(set(result.ids[0]) & set(expected[0])) >= 7


#: Sets of each backend: as many as take a few seconds.
PERMISSIONS = {"exact": 10_000, "scann_quantized": 10_000, "device_bfloat16": 10_000, "milvus_flat": 2_000}


@pytest.mark.parametrize("backend", list(PERMISSIONS), indirect=True)
def test_no_forbidden_passage_is_ever_returned(tmp_path, backend, mesh1, monkeypatch):
  """Random sets of groups, among them none, all, unknown ones, and names that would be expressions if they could."""
  monkeypatch.setattr(scann, "EXACT_WITHIN", 1)  # so that ScaNN looks at forbidden ones too
  rng = np.random.default_rng(0)
  names = [
    "a",
    "b c",
    'x" or row >= 0 or "" == "',
    "1] or row in [0",
    "ü",
    7,
    7.5,
    True,
    "True",
    "7",
    "",
    "%s",
    "{x}",
    "\\",
  ]
  group = rng.integers(len(names), size=300)
  metadata = [{"group": names[g]} for g in group]
  index = backend.built(tmp_path, clustered(300, 8), mesh=mesh1, metadata=metadata, wish=Wish(reorder=20))
  queries = clustered(64, 8, seed=3)
  for number in range(PERMISSIONS[backend.label]):
    chosen = np.flatnonzero(rng.random(len(names)) < rng.random())
    where = {"group": [*(names[g] for g in chosen), *(["nobody", 'z" or "" == "'] if number % 3 else [])]}
    result = index.search(queries[number % 64][None], 6, where=where)
    found = result.ids[result.valid]
    allowed = np.isin(group, chosen)
    assert allowed[found].all(), where
    assert len(found) == min(6, allowed.sum()), where


def test_rows_that_were_removed_are_never_found(tmp_path, backend):
  """Filtered or not, also where they are nearest, and most of what there is."""
  stored = clustered(400, 8)
  removed = np.sort(np.random.default_rng(1).choice(400, 150, replace=False))
  live = np.setdiff1d(np.arange(400), removed)
  metadata = [{"half": row % 2} for row in range(400)]
  index = backend.built(tmp_path, stored, metadata=metadata, removed=removed, wish=Wish(leaves_to_search=20))
  queries = stored[removed[:20]]
  result = index.search(queries, 6)
  assert result.valid.all()
  assert not np.isin(result.ids, removed).any()
  if backend.label in ALWAYS_EXACT:
    np.testing.assert_array_equal(result.ids, live[oracle(stored[live], queries, 6)[0]])
  odd = live[live % 2 == 1]
  ids, _ = oracle(stored[odd], queries, 6)
  np.testing.assert_array_equal(index.search(queries, 6, where={"half": 1}).ids, odd[ids])
