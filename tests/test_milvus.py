"""A Milvus that is down, slow, gone halfway, or holds something else: one line, and nothing half-written."""

import os
import signal
import socket
import sys
import time
import types

import numpy as np
import pytest
from milvus_server import running
from processes import free_port
from test_index import clustered, oracle

from radit_jax import cli, files
from radit_jax.config import IndexConfig, RunConfig
from radit_jax.errors import UserError
from radit_jax.retrieval import milvus, milvus_client, milvus_fill
from radit_jax.retrieval.amended import Amended
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import StoredIndex, load_index
from radit_jax.retrieval.tuned import Wish, has_collection, tune_index

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed")


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(milvus_client, "CONNECT_S", 1.0)
  monkeypatch.setattr(milvus_client, "ANSWER_S", 2.0)


def built(tmp_path, uri, stored, **options):
  build_index(stored, tmp_path / "index", backend="milvus", milvus_uri=uri, **options)
  return load_index(tmp_path / "index")


def one_line(error) -> str:
  message = str(error.value)
  assert "\n" not in message
  return message


def test_a_server_that_is_down(tmp_path, impatient, monkeypatch):
  monkeypatch.setenv(milvus_client.TOKEN, "secret-token")
  uri = f"http://127.0.0.1:{free_port()}"
  with pytest.raises(UserError, match="cannot be reached") as error:
    built(tmp_path, uri, clustered(40, 8))
  assert uri in one_line(error)
  assert "secret" not in one_line(error)
  assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing(tmp_path, impatient):
  with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
      built(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", clustered(40, 8))
    assert time.monotonic() - start < 30
  assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_answering_and_one_that_dies_halfway(tmp_path, impatient, monkeypatch):
  """Then, with the server there again, the same call finds what it left behind, and builds the index."""
  monkeypatch.setattr(milvus_fill, "_MESSAGE_ROWS", 50)
  stored, other = clustered(300, 8), clustered(300, 8, seed=5)
  (tmp_path / "server").mkdir()
  with running(tmp_path / "server") as server:
    index = built(tmp_path, server.uri, stored)
    before = index.search(stored[:4], 3)
    os.kill(server.process.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="did not search") as error:
      index.search(stored[:4], 3)
    assert server.uri in one_line(error)
    os.kill(server.process.pid, signal.SIGCONT)
    np.testing.assert_array_equal(index.search(stored[:4], 3).ids, before.ids)

    def kill(stage, done, total, unit, **figures):
      if stage == "fill" and done >= 150:
        server.process.kill()
        server.process.wait()

    with pytest.raises(UserError, match=r"did not take rows 1\d\d") as error:
      build_index(other, tmp_path / "index", backend="milvus", milvus_uri=server.uri, progress=kill)
    one_line(error)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "server"]
  with pytest.raises(UserError, match="cannot be reached"):
    load_index(tmp_path / "index")
  with running(tmp_path / "server", server.port):
    # The index that was there before is whole, and so is what is built in its place.
    np.testing.assert_array_equal(load_index(tmp_path / "index").search(stored[:4], 3).ids, before.ids)
    result = built(tmp_path, server.uri, other).search(other[:4], 3)
    np.testing.assert_array_equal(result.ids, oracle(other, other[:4], 3)[0])


def test_a_collection_that_is_not_this_indexs(tmp_path, milvus_uri):
  stored = clustered(60, 8)
  name = built(tmp_path, milvus_uri, stored).manifest["parameters"]["collection"]
  vectors = f"embedding_{name.removeprefix('radit_')}"
  client = pymilvus.MilvusClient(milvus_uri)

  def collection(field, width, rows):
    client.drop_collection(name)
    schema = client.create_schema()
    schema.add_field("row", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field(field, pymilvus.DataType.FLOAT_VECTOR, dim=width)
    params = client.prepare_index_params()
    params.add_index(field, index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=params)
    client.insert(name, [{"row": i, field: np.ones(width, np.float32)} for i in range(rows)])

  for arguments, message in [
    ((vectors, 4, 60), "embeddings of width 4, the index 8"),
    (("embedding", 8, 60), "is not this index's"),
    ((vectors, 8, 59), "has 59 rows, the index 60"),
    ((vectors, 8, 61), "has 61 rows, the index 60"),
  ]:
    collection(*arguments)
    with pytest.raises(UserError, match=message) as error:
      load_index(tmp_path / "index")
    assert name in one_line(error)
  client.drop_collection(name)
  with pytest.raises(UserError, match=f"no collection {name}"):
    load_index(tmp_path / "index")
  collection(vectors, 4, 60)
  result = built(tmp_path, milvus_uri, stored).search(stored[:4], 3)  # made again, as it is not whole
  np.testing.assert_array_equal(result.ids, oracle(stored, stored[:4], 3)[0])


@pytest.mark.parametrize("call", ["has_collection", "describe_collection", "load_collection", "query"])
def test_a_server_that_is_too_busy_to_answer_keeps_its_collection(tmp_path, milvus_uri, monkeypatch, call):
  stored = clustered(60, 8)
  manifest = built(tmp_path, milvus_uri, stored).manifest

  def busy(*arguments, **options):
    raise pymilvus.MilvusException(message="deadline exceeded")

  with monkeypatch.context() as patch:
    patch.setattr(pymilvus.MilvusClient, call, busy)
    patch.setattr(pymilvus.MilvusClient, "drop_collection", lambda *a, **k: pytest.fail("dropped"))
    for asked in (
      lambda: has_collection(tmp_path / "index", manifest, milvus_uri),
      lambda: tune_index(tmp_path / "index", Wish(), milvus_uri=milvus_uri),
      lambda: build_index(stored, tmp_path / "index", backend="milvus", milvus_uri=milvus_uri),
    ):
      with pytest.raises(UserError, match="deadline exceeded"):
        asked()
  assert has_collection(tmp_path / "index", manifest, milvus_uri)


def test_a_collection_whose_fill_was_killed_is_not_whole_and_is_filled_again(tmp_path, milvus_uri, monkeypatch):
  """All rows, and no index yet: Lite searches it all the same, servers do not even read it into memory."""
  stored = clustered(60, 8, seed=11)
  with monkeypatch.context() as patch:
    patch.setattr(milvus_fill, "_finish", lambda *a: pytest.fail("killed"))
    patch.setattr(pymilvus.MilvusClient, "drop_collection", lambda *a, **k: None)
    with pytest.raises(pytest.fail.Exception, match="killed"):
      built(tmp_path, milvus_uri, stored)
  index = built(tmp_path, milvus_uri, stored)
  np.testing.assert_array_equal(index.search(stored[:4], 3).ids, oracle(stored, stored[:4], 3)[0])
  assert pymilvus.MilvusClient(milvus_uri).list_indexes(index.manifest["parameters"]["collection"])


def test_a_row_that_the_index_does_not_have_is_not_returned(tmp_path, milvus_uri):
  stored = clustered(60, 8)
  index = built(tmp_path, milvus_uri, stored)
  parameters = index.manifest["parameters"]
  client = pymilvus.MilvusClient(milvus_uri)
  client.insert(parameters["collection"], [{"row": 60, parameters["vectors"]: 100 * np.ones(8, np.float32)}])
  with pytest.raises(UserError, match="names a row 60, the index has 60"):
    index.search(np.ones((1, 8), np.float32), 3)


def test_a_collection_is_filled_once(tmp_path, milvus_uri, monkeypatch):
  """The same content has the same name, and is taken as it is; other content, or other metadata, is another one."""
  stored = clustered(60, 8)
  first = built(tmp_path, milvus_uri, stored, metadata=[{"a": 1}] * 60).manifest["parameters"]["collection"]
  names = {
    built(tmp_path, milvus_uri, 2 * stored, metadata=[{"a": 1}] * 60).manifest["parameters"]["collection"],
    built(tmp_path, milvus_uri, stored, metadata=[{"a": 2}] * 60).manifest["parameters"]["collection"],
    first,
  }
  assert len(names) == 3
  monkeypatch.setattr(milvus_fill, "_insert", lambda *a: pytest.fail("filled again"))
  assert built(tmp_path, milvus_uri, stored, metadata=[{"a": 1}] * 60).manifest["parameters"]["collection"] == first


def test_a_server_that_has_moved(tmp_path, milvus_uri, impatient):
  stored = clustered(60, 8)
  built(tmp_path, milvus_uri, stored)
  elsewhere = milvus_uri.replace("127.0.0.1", "localhost")
  tune_index(tmp_path / "index", Wish(), milvus_uri=elsewhere)
  assert load_index(tmp_path / "index").manifest["milvus_uri"] == elsewhere
  with pytest.raises(UserError, match="cannot be reached"):
    tune_index(tmp_path / "index", Wish(), milvus_uri=f"http://127.0.0.1:{free_port()}")
  assert load_index(tmp_path / "index").manifest["milvus_uri"] == elsewhere


def test_messages_are_split(tmp_path, milvus_uri, monkeypatch):
  stored, queries = clustered(300, 8), clustered(50, 8, seed=1)
  monkeypatch.setattr(milvus_client, "MESSAGE_BYTES", 512)
  monkeypatch.setattr(milvus_fill, "_MESSAGE_ROWS", 7)
  monkeypatch.setattr(milvus, "_MOST_OF_MESSAGE", 64)
  index = built(tmp_path, milvus_uri, stored)
  sent = []
  search = index.candidates._client.search
  monkeypatch.setattr(
    index.candidates._client, "search", lambda *a, **k: sent.append(len(k["data"])) or search(*a, **k)
  )
  np.testing.assert_array_equal(index.search(queries, 3).ids, oracle(stored, queries, 3)[0])
  assert max(sent) <= 4
  assert sum(sent) == 50
  monkeypatch.setattr(milvus, "_MOST", 40)  # more than a server returns
  np.testing.assert_array_equal(index.search(queries, 200).ids, oracle(stored, queries, 200)[0])


def test_a_filter_of_very_many_values_is_not_sent(tmp_path, milvus_uri, monkeypatch):
  stored = clustered(300, 8)
  index = built(tmp_path, milvus_uri, stored, metadata=[{"id": str(i)} for i in range(300)])
  monkeypatch.setattr(milvus, "_MOST_VALUES", 100)
  monkeypatch.setattr(index.candidates._client, "search", lambda *a, **k: pytest.fail("sent"))
  allowed = np.arange(0, 300, 2)
  result = index.search(stored[:4], 3, where={"id": [str(i) for i in allowed]})
  np.testing.assert_array_equal(result.ids, allowed[oracle(stored[allowed], stored[:4], 3)[0]])


def test_more_fields_than_a_collection_holds(tmp_path, milvus_uri):
  with pytest.raises(UserError, match="metadata has 61 fields, a Milvus collection holds 60"):
    built(tmp_path, milvus_uri, clustered(20, 8), metadata=[{f"f{i}": i for i in range(61)}] * 20)
  assert list(tmp_path.iterdir()) == []


def test_where_a_service_chooses_its_index_filtered_searches_are_exact_here(tmp_path, milvus_uri, monkeypatch):
  stored = clustered(300, 8)
  monkeypatch.setattr(milvus_fill, "choose", lambda *a: {"index_type": "AUTOINDEX"})
  index = built(tmp_path, milvus_uri, stored, metadata=[{"half": i % 2} for i in range(300)])
  assert index.manifest["overlap"]["overlap"] > 0.95
  monkeypatch.setattr(index.candidates._client, "search", lambda *a, **k: pytest.fail("sent"))
  allowed = np.arange(1, 300, 2)
  result = index.search(stored[:4], 3, where={"half": 1})
  np.testing.assert_array_equal(result.ids, allowed[oracle(stored[allowed], stored[:4], 3)[0]])


def partitions(monkeypatch, **chosen):
  """Has Lite build partitions, which it is not asked for otherwise."""
  monkeypatch.setattr(milvus_fill, "choose", lambda *a: {"index_type": "IVF_FLAT", **chosen})


def test_partitions_are_as_many_as_was_asked_for(tmp_path, milvus_uri, monkeypatch):
  partitions(monkeypatch, leaves=8)
  parameters = built(tmp_path, milvus_uri, clustered(400, 8)).manifest["parameters"]
  assert (parameters["leaves"], parameters["everywhere"]) == (8, True)
  client = pymilvus.MilvusClient(milvus_uri)
  described = client.describe_index(parameters["collection"], parameters["vectors"])
  assert described["params"] == {"nlist": 8}


@pytest.mark.parametrize("seed", range(5))
def test_a_filter_finds_what_lies_in_partitions_that_nobody_knows_of(tmp_path, milvus_uri, monkeypatch, seed):
  """The server has made 128 of the 8 that it was told, as servers of other versions might."""
  partitions(monkeypatch, leaves=8)
  prepare = pymilvus.milvus_client.index.IndexParams.add_index
  monkeypatch.setattr(
    pymilvus.milvus_client.index.IndexParams,
    "add_index",
    lambda self, *a, **options: prepare(self, *a, **{**options, "params": {"params": {"nlist": 128}}}),
  )
  stored = clustered(400, 8, seed=seed)
  index = built(tmp_path, milvus_uri, stored, metadata=[{"half": row % 2} for row in range(400)])
  assert index.manifest["parameters"]["everywhere"]
  allowed = np.arange(1, 400, 2)
  result = index.search(stored[:20], 6, where={"half": 1})
  np.testing.assert_array_equal(result.ids, allowed[oracle(stored[allowed], stored[:20], 6)[0]])


def test_a_server_that_does_not_look_everywhere_is_not_asked_for_filtered_searches(tmp_path, milvus_uri, monkeypatch):
  """It cannot be told to, as it knows nothing of how many partitions to look at."""
  partitions(monkeypatch)
  stored = clustered(400, 8)
  index = built(tmp_path, milvus_uri, stored, metadata=[{"half": row % 2} for row in range(400)])
  assert not index.manifest["parameters"]["everywhere"]
  monkeypatch.setattr(index.candidates._client, "search", lambda *a, **k: pytest.fail("sent"))
  allowed = np.arange(1, 400, 2)
  result = index.search(stored[:20], 6, where={"half": 1})
  np.testing.assert_array_equal(result.ids, allowed[oracle(stored[allowed], stored[:20], 6)[0]])


def test_a_server_that_names_too_few_is_not_believed(tmp_path, milvus_uri, monkeypatch):
  """Of 8 allowed passages and 4 that went it names 9, which is more than 8, and not all 8."""
  stored = clustered(60, 8)
  removed = np.array([1, 3, 5, 7])
  metadata = [{"few": row < 24 and row % 2 == 1} for row in range(60)]
  built(tmp_path, milvus_uri, stored, metadata=metadata)
  manifest = files.read_manifest(tmp_path / "index", "index")
  inner = load_index(tmp_path / "index").candidates
  index = StoredIndex(tmp_path / "index", manifest, stored, Amended(inner, stored, None, removed, 60), removed)
  search = inner._client.search

  def short(*a, **k):
    return [types.SimpleNamespace(ids=hits.ids[3:], distances=hits.distances[3:]) for hits in search(*a, **k)]

  monkeypatch.setattr(inner._client, "search", short)
  allowed = np.arange(9, 24, 2)
  result = index.search(stored[allowed], 5, where={"few": True})
  np.testing.assert_array_equal(result.ids, allowed[oracle(stored[allowed], stored[allowed], 5)[0]])


def test_addresses_that_cannot_be():
  paths = {"passages": "p", "encoder": "e", "embeddings": "m", "index": "i"}
  with pytest.raises(UserError, match="the backend milvus needs it"):
    IndexConfig(**paths, backend="milvus")
  with pytest.raises(UserError, match="no other has one"):
    IndexConfig(**paths, milvus_uri="http://localhost:19530")
  for uri in ("http://root:pass@localhost:19530", "https://pass@localhost"):
    with pytest.raises(UserError, match="MILVUS_TOKEN") as error:
      IndexConfig(**paths, backend="milvus", milvus_uri=uri)
    assert "pass@" not in str(error.value)
  for uri in ("localhost:19530", "milvus.db", "http://", "ftp://x"):
    with pytest.raises(UserError, match="must be http://HOST:PORT"):
      IndexConfig(**paths, backend="milvus", milvus_uri=uri)
  with pytest.raises(UserError, match="the backend milvus needs it"):
    RunConfig(workdir="w", corpus="c", generator="g", encoder="e", questions="q", backend="milvus")


def test_without_the_library(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pymilvus", None)
  with pytest.raises(UserError, match=r"pip install \"radit_jax\[milvus\]\""):
    built(tmp_path, "http://localhost:19530", clustered(20, 8))
  assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_it_in_one_line(parts, tmp_path, capsys, impatient):
  from radit_jax.config import PrepareConfig
  from radit_jax.verbs.prepare import prepare

  prepare(PrepareConfig(workdir=str(tmp_path), corpus=parts["corpus"], questions=parts["questions"]))
  call = ["index", "--backend", "milvus", "--milvus-uri", f"http://127.0.0.1:{free_port()}"]
  call += ["--passages", f"{tmp_path}/passages", "--encoder", parts["encoder"]]
  assert cli.main([*call, "--embeddings", f"{tmp_path}/embeddings", "--index", f"{tmp_path}/index"]) == 2
  said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("radit: error")]
  assert len(said) == 1
  assert "cannot be reached" in said[0]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["passages", "split"]  # nothing was encoded in vain
