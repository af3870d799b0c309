"""A Milvus index whose corpus changes: its collection stays until much has changed, and old versions are read."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from milvus_server import running
from test_update import Small, _live, numbered, vector
from test_verbs import index_config
from tiny import write_lines

from radit_jax import config as c
from radit_jax import files, versions
from radit_jax.errors import UserError
from radit_jax.retrieval import milvus_fill
from radit_jax.retrieval.exact import exact_top
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.tuned import Wish, tune_index
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed")


def collection_of(manifest):
  return manifest["parameters"]["collection"]


def test_a_collection_stays_until_much_has_changed(tmp_path, milvus_uri, monkeypatch):
  small = Small(tmp_path, range(1000), "milvus", milvus_uri)
  queries = np.stack([vector(f"q{n}") for n in range(20)])
  first = small.manifest
  with monkeypatch.context() as patch:
    patch.setattr(milvus_fill, "fill", lambda *a, **k: pytest.fail("filled"))
    made = small.update(numbered([*range(40, 1000), *range(2000, 2050)]), delete_missing=True)
  assert (made["searched"], made["count"], made["removed"]) == (1000, 1050, 40)
  assert collection_of(made) == collection_of(first)
  small.check(queries, 10, exact=True)
  found = load_index(small.versions[-1][0]).search(queries, 4, where={"row": [3, 50, 1040]})
  assert {50, 1040} == set(found.ids[found.valid].tolist())
  anew = small.update(numbered(range(200, 1000)), delete_missing=True)
  assert "searched" not in anew
  assert collection_of(anew) != collection_of(first)
  client = pymilvus.MilvusClient(milvus_uri)
  assert client.query(collection_of(anew), filter="", output_fields=["count(*)"])[0]["count(*)"] == 800  # live ones
  small.check(queries, 10, exact=True)
  found = load_index(small.versions[-1][0]).search(queries, 4, where={"row": [3, 250, 1040]})
  assert set(found.ids[found.valid].tolist()) == {250}
  later = small.update(numbered(range(3000, 3010)))
  assert (later["searched"], collection_of(later)) == (1050, collection_of(anew))
  small.check(queries, 10, exact=True)
  # Every version before is read as it was.
  for path, store in small.versions[:-1]:
    small.versions.append((path, store))
    small.check(queries, 10, exact=True)
    small.versions.pop()


def test_an_updated_version_is_tuned_in_the_collection_it_shares(tmp_path, milvus_uri, monkeypatch):
  small = Small(tmp_path, range(1000, 1300), "milvus", milvus_uri)
  made = small.update(numbered(range(1300, 1310)))
  path, other = small.versions[-1][0], milvus_uri.replace("127.0.0.1", "localhost")
  before = pymilvus.MilvusClient(milvus_uri).list_collections()
  for uri, wish in ((milvus_uri, Wish(reorder=300)), (other, Wish(reorder=400))):
    tune_index(path, wish, milvus_uri=uri)
    tuned = files.read_manifest(path, "index")
    assert (tuned["parameters"], tuned["milvus_uri"]) == (made["parameters"], uri)
    assert tuned["search"]["reorder"] == wish.reorder
  assert pymilvus.MilvusClient(milvus_uri).list_collections() == before
  # Another server under that address, which leaves out partitions: filtered searches of it are not believed.
  monkeypatch.setattr(milvus_fill, "_looks_everywhere", lambda *a: False)
  tune_index(path, Wish(reorder=400), milvus_uri=milvus_uri)
  assert files.read_manifest(path, "index")["parameters"] == {**made["parameters"], "everywhere": False}


def test_metadata_that_the_collection_has_never_seen(tmp_path, milvus_uri):
  """A field, and a value of an old field, that came later; the collection is asked for neither."""
  small = Small(tmp_path, range(100), "milvus", milvus_uri)
  small.update(numbered(range(200, 205)))
  index = load_index(small.versions[-1][0])
  assert index.search(vector("q")[None], 3, where={"row": 102}).ids.tolist() == [[102, -1, -1]]
  assert set(index.search(vector("q")[None], 2, where={"row": [102, 7]}).ids[0].tolist()) == {102, 7}
  assert len(_live(small)) == 105


@pytest.fixture
def root(parts, tmp_path):
  prepare(c.PrepareConfig(workdir=str(tmp_path / "work"), corpus=parts["corpus"], questions=parts["questions"]))
  return tmp_path / "work"


def test_the_verb_updates_goes_back_and_fills_anew_what_a_server_has_lost(root, parts, tmp_path):
  (tmp_path / "server").mkdir()
  config = {"backend": "milvus"}
  with running(tmp_path / "server") as server:
    config["milvus_uri"] = server.uri
    index(index_config(root, parts, **config))
    exact = tmp_path / "exact"
    index(index_config(root, parts, index=str(exact), backend="exact"))
    queries = load_index(exact).stored[:]
    came = write_lines(tmp_path / "came.jsonl", [{"id": "d40", "title": "Person 40", "text": "Person 40 is a mason."}])
    result = index(index_config(root, parts, update=came, **config))
    assert (result.version, result.rows_encoded, result.num_passages) == (1, 1, 41)
    assert index(index_config(root, parts, index=str(exact), backend="exact", update=came)).version == 1
    after = load_index(exact)

    def agrees(number):
      assert versions.current_number(root / "index") == number
      want, got = after.search(queries, 41), load_index(root / "index").search(queries, 41)
      if number == 1:
        np.testing.assert_array_equal(got.ids, want.ids)
        np.testing.assert_array_equal(got.scores, want.scores)
      else:
        assert sorted(got.ids[0].tolist()) == [-1, *range(40)]

    agrees(1)
    assert index(index_config(root, parts, rollback=True, **config)).version == 0
    agrees(0)
    assert index(index_config(root, parts, update=came, **config)).version == 1
    agrees(1)
    # The server has lost it: nothing is cut or encoded for an index that cannot be read, and one call mends it.
    name = files.read_manifest(root / "index/versions/000001", "index")["parameters"]["collection"]
    client = pymilvus.MilvusClient(server.uri)
    client.drop_collection(name)
    more = write_lines(tmp_path / "more.jsonl", [{"id": "d41", "text": "One more."}])
    with pytest.raises(UserError, match=f"no whole collection {name}.*the same call without --update fills it"):
      index(index_config(root, parts, update=more, **config))
    assert not list((root / "passages/versions").glob("000002*"))
    index(index_config(root, parts, **config))
    agrees(1)
    assert index(index_config(root, parts, update=more, **config)).version == 2
  with pytest.raises(UserError, match="cannot be reached"):
    index(index_config(root, parts, update=came, **config))


WORKER = """
import os, signal, sys
from radit_jax.config import IndexConfig
from radit_jax.retrieval import milvus_fill
from radit_jax.verbs.index import index

milvus_fill._finish = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
root, uri, encoder = sys.argv[1:]
names = {name: f"{root}/{name}" for name in ("passages", "embeddings", "index")}
config = {"encoder": encoder, "backend": "milvus", "milvus_uri": uri, "batch_size": 16}
index(IndexConfig(**names, **config, update=f"{root}/came.jsonl"))
"""


def test_killed_while_a_new_collection_is_filled(root, parts, milvus_uri):
  config = {"backend": "milvus", "milvus_uri": milvus_uri}
  index(index_config(root, parts, **config))
  queries = load_index(root / "index").stored[:]
  before = load_index(root / "index").search(queries, 5)
  texts = [{"id": f"d{n}", "title": f"Person {n}", "text": f"Person {n} has moved to Farrow."} for n in range(20)]
  came = write_lines(root / "came.jsonl", texts)  # half of all: too much for the collection that is there
  (root / "worker.py").write_text(WORKER)
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
  killed = [sys.executable, str(root / "worker.py"), str(root), milvus_uri, parts["encoder"]]
  assert subprocess.run(killed, env=environment, timeout=300, check=False).returncode == -9
  assert versions.current_number(root / "index") == 0
  np.testing.assert_array_equal(load_index(root / "index").search(queries, 5).ids, before.ids)
  result = index(index_config(root, parts, update=came, **config))
  assert (result.version, result.rows_encoded) == (1, 20)
  after = load_index(root / "index")
  assert "searched" not in after.manifest
  true = exact_top(after.stored, queries, 40, rows=after.live)
  np.testing.assert_array_equal(after.search(queries, 40).ids, true)
  assert index(index_config(root, parts, rollback=True, **config)).version == 0
  np.testing.assert_array_equal(load_index(root / "index").search(queries, 5).ids, before.ids)
