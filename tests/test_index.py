"""What is one for all backends: exact search, what building refuses, what loading notices."""

import contextlib
import itertools
import json
import os
import pathlib
import pickle
import resource
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.retrieval import exact, scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import StoredIndex, load_index
from radit_jax.retrieval.shards import shard_name, write_rows
from radit_jax.retrieval.tuned import Wish, tune_index


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
  build_index(embeddings, tmp_path / "index", backend=backend, **kwargs)
  return load_index(tmp_path / "index")


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


@pytest.mark.parametrize("name", ["exact", "scann", "device", "milvus"])
def test_one_passage_of_one_number(tmp_path, name, request):
  uri = {"milvus_uri": request.getfixturevalue("milvus_uri")} if name == "milvus" else {}
  result = built(tmp_path, name, np.full((1, 1), 3, np.float32), **uri).search(np.full((1, 1), 2, np.float32), 2)
  np.testing.assert_array_equal(result.ids, [[0, -1]])
  np.testing.assert_array_equal(result.scores, [[6, -np.inf]])


def test_filters_that_cannot_be(tmp_path):
  stored = clustered(3, 8)
  index = built(tmp_path, "exact", stored, metadata=[{"year": 1}, {}, {"title": "x"}])
  with pytest.raises(UserError, match="no passage has the metadata field 'yaer'; there are: title, year"):
    index.search(stored, 1, where={"yaer": 1})
  with pytest.raises(UserError, match="year = None"):
    index.search(stored, 1, where={"year": [1, None]})
  build_index(stored, tmp_path / "index", backend="exact", metadata=[{"year": 2}] * 3)
  reopened = load_index(tmp_path / "index")
  build_index(stored, tmp_path / "index", backend="exact", metadata=[{"year": 3}] * 3)
  with pytest.raises(UserError, match=r"metadata.jsonl: changed since"):
    reopened.search(stored, 1, where={"year": 2})
  build_index(stored, tmp_path / "index", backend="exact")
  with pytest.raises(UserError, match="built without metadata"):
    load_index(tmp_path / "index").search(stored, 1, where={"year": 2})


@pytest.mark.parametrize("shape", [(0, 8), (8,), (3, 0), (2, 2, 2)])
def test_no_embeddings(tmp_path, shape):
  with pytest.raises(UserError, match="embeddings of shape"):
    build_index(np.ones(shape, np.float32), tmp_path / "index")
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
    build_index(clustered(5, 8), tmp_path / "index", backend="exact", metadata=metadata)
  assert list(tmp_path.iterdir()) == []


def test_of_two_builds_at_once_none_replaces_an_index_by_half_of_one(tmp_path):
  stored, paused, finished, said = clustered(9, 8), threading.Event(), threading.Event(), []

  def metadata():
    for row in range(len(stored)):
      if row == 5:
        paused.set()
        finished.wait()
      yield {"row": row}

  def slow():
    with pytest.raises(
      UserError, match=r"partial/embeddings-00000\.npy: removed while .* nothing was replaced"
    ) as error:
      build_index(stored, tmp_path / "index", backend="exact", metadata=metadata())
    said.append(str(error.value))

  other = threading.Thread(target=slow)
  other.start()
  paused.wait()
  fields = built(tmp_path, "exact", stored, metadata=[{"row": row} for row in range(9)]).manifest
  finished.set()
  other.join()
  assert len(said) == 1
  assert "\n" not in said[0]
  assert load_index(tmp_path / "index").manifest == fields
  assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_missing_index(tmp_path):
  with pytest.raises(UserError, match="no such directory"):
    load_index(tmp_path / "index")


@pytest.mark.parametrize(("field", "value"), [("count", 31), ("dim", 9), ("backend", "faiss"), ("dim", None)])
def test_manifest_that_does_not_fit(tmp_path, field, value):
  build_index(clustered(30, 8), tmp_path / "index", backend="exact")
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
  build_index(clustered(30, 8), tmp_path / "index", backend="scann")
  (tmp_path / "index" / "scann-00000" / "scann_docids.pkl").write_bytes(pickle.dumps(_Bomb()))
  with pytest.raises(UserError, match=r"scann_docids\.pkl: a pickle"):
    load_index(tmp_path / "index")
  build_index(clustered(30, 8), tmp_path / "index", backend="exact")
  np.save(tmp_path / "index" / "embeddings-00000.npy", np.array([_Bomb()], object), allow_pickle=True)
  recipe = {"backend": "exact", "count": 1, "dim": 1, "dtype": "float32", "shards": 1, "encoder_fingerprint": None}
  recipe |= {"parameters": {}, "index_shards": [[0, 1]], "search": {"leaves_to_search": None, "reorder": 100}}
  files.write_manifest(tmp_path / "index", "index", recipe)
  with pytest.raises(UserError, match=r"embeddings-00000.npy: cannot be read"):
    load_index(tmp_path / "index")


def test_index_of_another_encoder_is_refused(tmp_path):
  build_index(clustered(30, 8), tmp_path / "index", backend="exact", fields={"encoder_fingerprint": "a" * 64})
  load_index(tmp_path / "index", encoder_fingerprint="a" * 64)
  with pytest.raises(UserError, match=f"built by the encoder {'a' * 12}, not by {'b' * 12}"):
    load_index(tmp_path / "index", encoder_fingerprint="b" * 64)
  build_index(clustered(30, 8), tmp_path / "index", backend="exact")
  with pytest.raises(UserError, match="built by the encoder unknown"):
    load_index(tmp_path / "index", encoder_fingerprint="b" * 64)


def test_unknown_backend_and_missing_scann(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="backend = 'faiss'"):
    build_index(clustered(3, 8), tmp_path / "index", backend="faiss")
  monkeypatch.setitem(sys.modules, "scann", None)
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  with pytest.raises(UserError, match="use the backend exact"):
    build_index(clustered(3, 8), tmp_path / "index", backend="scann")
  assert list(tmp_path.iterdir()) == []


def test_what_was_built_or_tuned_has_reached_the_disk(tmp_path, monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 1)
  synced, fsync, replace = set(), os.fsync, os.replace

  def note(handle):
    synced.add(os.fstat(handle).st_ino)
    fsync(handle)

  def check(source, target):
    if str(target).endswith(("/index", "/index/manifest.json")):
      made = [p for path in (pathlib.Path(source),) for p in (path, *path.rglob("*"))]
      assert {p.stat().st_ino for p in made} <= synced
    replace(source, target)

  monkeypatch.setattr(os, "fsync", note)
  monkeypatch.setattr(os, "replace", check)
  build_index(clustered(300, 8), tmp_path / "index", metadata=[{}] * 300, removed=np.arange(3))
  assert len(list((tmp_path / "index").rglob("*"))) > 8
  assert tmp_path.stat().st_ino in synced
  synced.clear()
  tune_index(tmp_path / "index", Wish(reorder=300))
  assert (tmp_path / "index").stat().st_ino in synced


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_written_as_numpy_writes_them(tmp_path, dtype):
  stored = clustered(50, 8).astype(dtype)
  np.save(tmp_path / "numpy.npy", stored)
  write_rows(tmp_path / "rows.npy", (stored[n : n + 7].T.copy().T for n in range(0, 50, 7)), (50, 8), dtype)
  assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@contextlib.contextmanager
def room_for(number):
  """The process may open so many files more."""
  there = {int(name) for name in os.listdir("/proc/self/fd")}
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  limit = next(n for n in itertools.count(number) if n - sum(fd < n for fd in there) == number)
  resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
  try:
    yield limit
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
@pytest.mark.parametrize("backend", ["exact", "device"])
def test_a_build_has_each_shard_open_once_and_says_where_too_few_may_be(tmp_path, backend):
  stored = clustered(80, 8)
  shards = tmp_path / "embeddings"
  shards.mkdir()
  for number in range(40):
    np.save(shards / shard_name(number), stored[2 * number : 2 * number + 2])
  recipe = {"count": 80, "dim": 8, "dtype": "float32", "shards": 40}
  files.write_manifest(shards, "embeddings", recipe)
  build_index(shards, tmp_path / "first", backend=backend)  # what it imports and compiles opens files too
  with room_for(60):
    build_index(shards, tmp_path / "index", backend=backend)
    result = load_index(tmp_path / "index").search(stored[:5], 3)
  np.testing.assert_array_equal(result.ids, oracle(stored, stored[:5], 3)[0])
  with (
    room_for(30) as limit,
    pytest.raises(UserError, match=rf"40 files of embeddings, and .* may have {limit} files.*ulimit -n"),
  ):
    load_index(tmp_path / "index")


def test_other_float_types_are_stored_as_float32(tmp_path):
  stored = clustered(30, 8).astype(np.float64)
  index = built(tmp_path, "exact", stored)
  np.testing.assert_array_equal(index.embeddings(np.arange(30)), stored.astype(np.float32))
