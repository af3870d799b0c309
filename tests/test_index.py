"""One suite over every backend: what `search` promises, what building refuses, what loading notices."""

import functools
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.retrieval import exact, scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import StoredIndex, load_index

#: Every backend; ScaNN once for each method it chooses by size, forced on small data, and in three shards.
BACKENDS = ["exact", "scann_exact", "scann_quantized", "scann_tree", "scann_shards"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
  """A backend's name for `build_index`, with ScaNN's size limits lowered so that its method is the one asked for."""
  name, _, method = request.param.partition("_")
  limits = {"": (0, 0), "exact": (20_000, 100_000), "quantized": (1, 100_000), "tree": (1, 1), "shards": (1, 100_000)}
  exact_below, tree_from = limits[method]
  monkeypatch.setattr(scann, "EXACT_BELOW", exact_below)
  monkeypatch.setattr(scann, "TREE_FROM", tree_from)
  if method == "shards":
    thirds = functools.partial(build, shard_passages=lambda count: max(32, -(-count // 3)))  # ScaNN needs 16
    monkeypatch.setattr(sys.modules[__name__], "build", thirds)
  return name


def build(embeddings, path, shard_passages=None, **kwargs):
  """`build_index`, with as many passages to a shard as the backend's fixture says."""
  if shard_passages is not None and np.ndim(embeddings) == 2:
    kwargs["shard_passages"] = shard_passages(max(1, len(embeddings)))
  return build_index(embeddings, path, **kwargs)


def clustered(count, width, *, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(20, width))
  x = centres[rng.integers(20, size=count)] + 0.5 * rng.normal(size=(count, width))
  return (scale * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def oracle(embeddings, queries, k):
  """Ids and scores by the plainest means: float64 products, rounded to float32, a stable sort."""
  scores = (queries.astype(np.float64) @ embeddings.astype(np.float64).T).astype(np.float32)
  ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return ids, np.take_along_axis(scores, ids, axis=1)


def built(tmp_path, backend, embeddings, **kwargs):
  build(embeddings, tmp_path / "index", backend=backend, **kwargs)
  return load_index(tmp_path / "index")


def test_shapes_dtypes_order_and_scores(tmp_path, backend):
  stored = clustered(600, 16, scale=20.0)
  noise = np.random.default_rng(1).normal(size=(30, 16))
  queries = (stored[:30] + noise).astype(np.float32)  # scores near 400
  index = built(tmp_path, backend, stored)
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
  if index.manifest["parameters"].get("method", "exact") == "exact":
    np.testing.assert_array_equal(result.ids, true_ids)
    np.testing.assert_array_equal(result.scores, true_scores)
  else:
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(result.ids, true_ids, strict=True)])
    assert found > 0.8  # the tree looks at 3 of 24 partitions


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_exact_search_is_exact_on_ties(data):
  """Small whole numbers, so equal scores are everywhere and the oracle is free of rounding."""
  count, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
  rng = np.random.default_rng(data.draw(st.integers(0, 999)))
  stored = rng.integers(-2, 3, size=(count, width)).astype(np.float32)
  queries = rng.integers(-2, 3, size=(3, width)).astype(np.float32)
  k = data.draw(st.integers(1, count + 3))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(exact, "_ROWS", data.draw(st.sampled_from([1, 3, 16, 2**14])))
    check_exact(stored, queries, k, rng)


def check_exact(stored, queries, k, rng):
  count = len(stored)
  np.testing.assert_array_equal(exact.exact_top(stored, queries, k), oracle(stored, queries, k)[0])
  rows = np.flatnonzero(rng.random(count) < 0.5)
  expected = rows[oracle(stored[rows], queries, k)[0]] if len(rows) else np.empty((3, 0), np.int64)
  np.testing.assert_array_equal(exact.exact_top(stored, queries, k, rows=rows), expected)


def test_exact_search_in_blocks(monkeypatch):
  stored, queries = clustered(500, 8), clustered(21, 8, seed=1)
  whole = exact.exact_top(stored, queries, 7)
  monkeypatch.setattr(exact, "_QUERIES", 2)
  monkeypatch.setattr(exact, "_ROWS", 64)
  monkeypatch.setattr(exact, "_PAIRS", 5)
  monkeypatch.setattr(exact, "_VALUES", 100)
  np.testing.assert_array_equal(exact.exact_top(stored, queries, 7), whole)
  np.testing.assert_array_equal(whole, oracle(stored, queries, 7)[0])


def test_same_passage_twice_has_one_score_and_the_lower_row_first(tmp_path, backend):
  stored = clustered(300, 24)
  stored[[5, 77, 150, 299]] = stored[5]
  result = built(tmp_path, backend, stored).search(stored[[5]], 4)
  np.testing.assert_array_equal(result.ids, [[5, 77, 150, 299]])
  assert len(set(result.scores[0])) == 1


def test_candidates_of_a_backend_are_ordered_anew(tmp_path):
  """Whatever order a backend returns, and wherever its holes are."""
  stored = np.array([[1, 0], [2, 0], [1, 0], [2, 0]], np.float32)
  index = StoredIndex(tmp_path, {"files": {}}, stored, lambda q, k: np.array([[3, -1, 2, 1, 0]]))
  result = index.search(np.array([[1, 0]], np.float32), 4)
  np.testing.assert_array_equal(result.ids, [[1, 3, 0, 2]])
  np.testing.assert_array_equal(result.scores, [[2, 2, 1, 1]])


def test_scores_that_a_float32_product_confuses():
  """Passages that share a long common part: a float32 matrix product orders most queries wrongly here."""
  rng = np.random.default_rng(0)
  stored = (30 * rng.normal(size=768) + 1e-5 * rng.normal(size=(200, 768))).astype(np.float32)
  queries = rng.normal(size=(20, 768))
  queries -= np.outer(queries @ stored[0], stored[0]) / (stored[0] @ stored[0])  # so the common part cancels
  queries = queries.astype(np.float32)
  plain = np.argsort(-(queries @ stored.T), axis=1, kind="stable")[:, :5]
  ids, _ = oracle(stored, queries, 5)
  assert not np.array_equal(plain, ids)
  np.testing.assert_array_equal(exact.exact_top(stored, queries, 5), ids)


def test_k_above_the_number_of_passages(tmp_path, backend):
  stored = clustered(30, 8)
  result = built(tmp_path, backend, stored).search(stored[:3], 35)
  assert result.valid[:, :30].all()
  assert not result.valid[:, 30:].any()
  assert (result.ids[:, 30:] == -1).all()
  assert (result.scores[:, 30:] == -np.inf).all()
  np.testing.assert_array_equal(np.sort(result.ids[:, :30], axis=1), np.tile(np.arange(30), (3, 1)))


def test_k_as_large_as_the_corpus_leaves_no_hole(tmp_path, backend):
  """A tree looks at an eighth of the passages; the rest must not be reported as absent."""
  stored = clustered(200, 8)
  result = built(tmp_path, backend, stored).search(stored[:2], 150)
  assert result.valid.all()
  np.testing.assert_array_equal(result.ids, oracle(stored, stored[:2], 150)[0])


@pytest.mark.parametrize("name", ["exact", "scann"])
def test_one_passage_of_one_number(tmp_path, name):
  result = built(tmp_path, name, np.full((1, 1), 3, np.float32)).search(np.full((1, 1), 2, np.float32), 2)
  np.testing.assert_array_equal(result.ids, [[0, -1]])
  np.testing.assert_array_equal(result.scores, [[6, -np.inf]])


def test_no_queries(tmp_path, backend):
  result = built(tmp_path, backend, clustered(30, 8)).search(np.empty((0, 8), np.float32), 5)
  assert result.ids.shape == result.scores.shape == result.valid.shape == (0, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_query_that_is_not_finite_is_named(tmp_path, backend, bad):
  index = built(tmp_path, backend, clustered(30, 8))
  queries = clustered(4, 8)
  queries[2, 3] = bad
  with pytest.raises(UserError, match="query row 2 is not finite"):
    index.search(queries, 5)


@pytest.mark.parametrize(
  ("queries", "k", "message"),
  [
    (np.ones((1, 8)), 0, "k = 0"),
    (np.ones((1, 8)), -3, "k = -3"),
    (np.ones((1, 7)), 1, r"shape \(1, 7\).*width 8"),
    (np.ones(8), 1, r"shape \(8,\).*width 8"),
  ],
)
def test_wrong_calls(tmp_path, backend, queries, k, message):
  with pytest.raises(UserError, match=message):
    built(tmp_path, backend, clustered(30, 8)).search(queries, k)


def test_filter_comes_before_top_k(tmp_path, backend):
  stored = clustered(120, 8)
  metadata = [{"language": "en" if row % 3 else "de", "year": 2000 + row % 4} for row in range(120)]
  index = built(tmp_path, backend, stored, metadata=metadata)
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


def test_filters_that_cannot_be(tmp_path):
  stored = clustered(3, 8)
  index = built(tmp_path, "exact", stored, metadata=[{"year": 1}, {}, {"title": "x"}])
  with pytest.raises(UserError, match="no passage has the metadata field 'yaer'; there are: title, year"):
    index.search(stored, 1, where={"yaer": 1})
  with pytest.raises(UserError, match="year = None"):
    index.search(stored, 1, where={"year": [1, None]})
  build(stored, tmp_path / "index", backend="exact", metadata=[{"year": 2}] * 3)
  reopened = load_index(tmp_path / "index")
  build(stored, tmp_path / "index", backend="exact", metadata=[{"year": 3}] * 3)
  with pytest.raises(UserError, match=r"metadata.jsonl: changed since"):
    reopened.search(stored, 1, where={"year": 2})
  build(stored, tmp_path / "index", backend="exact")
  with pytest.raises(UserError, match="built without metadata"):
    load_index(tmp_path / "index").search(stored, 1, where={"year": 2})


def test_stored_embeddings(tmp_path, backend):
  stored = clustered(30, 8)
  index = built(tmp_path, backend, stored)
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_embedding_that_is_not_finite_is_named_before_any_backend_sees_it(tmp_path, backend, bad):
  stored = clustered(70, 8)
  stored[41, 5] = bad
  with pytest.raises(UserError, match="passage row 41 is not finite"):
    build(stored, tmp_path / "index", backend=backend)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(0, 8), (8,), (3, 0), (2, 2, 2)])
def test_no_embeddings(tmp_path, shape):
  with pytest.raises(UserError, match="embeddings of shape"):
    build(np.ones(shape, np.float32), tmp_path / "index")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ([{}] * 4, "metadata of 4 passages against 5"),
    ([{}, {}, {"year": None}, {}, {}], "row 2: year = None"),
    ([{}, {}, {}, {"year": float("nan")}, {}], "row 3: year = nan"),
    ([{"tags": ["x"]}, {}, {}, {}, {}], "row 0: tags"),
  ],
)
def test_metadata_that_cannot_be(tmp_path, metadata, message):
  with pytest.raises(UserError, match=message):
    build(clustered(5, 8), tmp_path / "index", backend="exact", metadata=metadata)
  assert list(tmp_path.iterdir()) == []


def test_index_can_be_moved(tmp_path, backend):
  stored = clustered(100, 8)
  before = built(tmp_path, backend, stored).search(stored[:5], 3)
  (tmp_path / "elsewhere").mkdir()
  shutil.move(tmp_path / "index", tmp_path / "elsewhere" / "moved")
  after = load_index(tmp_path / "elsewhere" / "moved").search(stored[:5], 3)
  np.testing.assert_array_equal(after.ids, before.ids)
  assert str(tmp_path).encode() not in b"".join(
    p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()
  )


def test_damage_is_noticed_and_the_file_named(tmp_path, backend):
  build(clustered(100, 8), tmp_path / "good", backend=backend, metadata=[{"year": 1}] * 100)
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


def test_missing_index(tmp_path):
  with pytest.raises(UserError, match="no such directory"):
    load_index(tmp_path / "index")


@pytest.mark.parametrize(("field", "value"), [("count", 31), ("dim", 9), ("backend", "faiss"), ("dim", None)])
def test_manifest_that_does_not_fit(tmp_path, field, value):
  build(clustered(30, 8), tmp_path / "index", backend="exact")
  manifest = json.loads((tmp_path / "index" / files.MANIFEST).read_text())
  manifest[field] = value
  if value is None:
    del manifest[field]
  (tmp_path / "index" / files.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=str(value) if value else "no field 'dim'"):
    load_index(tmp_path / "index")


class _Bomb:
  def __reduce__(self):
    return (pytest.fail, ("a pickle was executed",))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  build(clustered(30, 8), tmp_path / "index", backend="scann")
  (tmp_path / "index" / "scann-00000" / "scann_docids.pkl").write_bytes(pickle.dumps(_Bomb()))
  with pytest.raises(UserError, match=r"scann_docids\.pkl: a pickle"):
    load_index(tmp_path / "index")
  build(clustered(30, 8), tmp_path / "index", backend="exact")
  np.save(tmp_path / "index" / "embeddings-00000.npy", np.array([_Bomb()], object), allow_pickle=True)
  recipe = {"backend": "exact", "count": 1, "dim": 1, "dtype": "float32", "shards": 1, "encoder_fingerprint": None}
  recipe |= {"parameters": {}, "index_shards": [[0, 1]], "search": {"leaves_to_search": None, "reorder": 100}}
  files.write_manifest(tmp_path / "index", "index", recipe)
  with pytest.raises(UserError, match=r"embeddings-00000.npy: cannot be read"):
    load_index(tmp_path / "index")


def test_index_of_another_encoder_is_refused(tmp_path):
  build(clustered(30, 8), tmp_path / "index", backend="exact", fields={"encoder_fingerprint": "a" * 64})
  load_index(tmp_path / "index", encoder_fingerprint="a" * 64)
  with pytest.raises(UserError, match=f"built by the encoder {'a' * 12}, not by {'b' * 12}"):
    load_index(tmp_path / "index", encoder_fingerprint="b" * 64)
  build(clustered(30, 8), tmp_path / "index", backend="exact")
  with pytest.raises(UserError, match="built by the encoder unknown"):
    load_index(tmp_path / "index", encoder_fingerprint="b" * 64)


def test_fingerprint_names_what_a_search_depends_on(tmp_path, backend):
  def fingerprint(stored, **kwargs):
    return build(stored, tmp_path / "index", backend=backend, **kwargs)["fingerprint"]

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


def test_unknown_backend_and_missing_scann(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="backend = 'faiss'"):
    build(clustered(3, 8), tmp_path / "index", backend="faiss")
  monkeypatch.setitem(sys.modules, "scann", None)
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  with pytest.raises(UserError, match="use the backend exact"):
    build(clustered(3, 8), tmp_path / "index", backend="scann")
  assert list(tmp_path.iterdir()) == []


def test_other_float_types_are_stored_as_float32(tmp_path):
  stored = clustered(30, 8).astype(np.float64)
  index = built(tmp_path, "exact", stored)
  np.testing.assert_array_equal(index.embeddings(np.arange(30)), stored.astype(np.float32))
