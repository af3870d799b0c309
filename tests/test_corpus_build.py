"""The store of a large corpus, made by several processes and continued where killed, against all of it in memory."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radit_jax import files
from radit_jax.data.corpus import Limit, PassageStore, chunk, read_corpus
from radit_jax.data.corpus.build import Build, Counts
from radit_jax.data.corpus.scan import Wanted
from radit_jax.data.corpus.serialized import SHARD, describe, digest, example, feature
from radit_jax.data.policy import Skipped
from radit_jax.errors import UserError

#: Sizes that make many blocks, shards and ranges of a small corpus.
SMALL = {"block_bytes": 2000, "shard_bytes": 8000, "partition": 50, "processes": 1}
SENTENCES = ["A town.", "It lies by the sea.", "Ships come.", "Nobody knows why the harbour is closed.", "So!"]


def write_corpus(path, documents):
  path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")
  return path


def some_documents(count, seed=0):
  draw = random.Random(seed)
  for i in range(count):
    text = " ".join(draw.choices(SENTENCES, k=draw.randint(1, 9)))
    yield {"id": f"d{i}", "title": f"T{draw.randint(0, 3)}", "text": text, "metadata": {"n": i}}


def slow_store(corpus, limit, on_error="strict"):
  """Passages in order, duplicates left out, and the rows of each document: all in memory."""
  passages, rows, seen = [], {}, {}
  for document in read_corpus(corpus, format="jsonl", on_error=on_error):
    rows[document.id] = []
    for passage in chunk(document, limit):
      key = passage.full_text
      if key not in seen:
        seen[key] = len(passages)
        passages.append(passage)
      rows[document.id].append(seen[key])
  return passages, {name: tuple(dict.fromkeys(r)) for name, r in rows.items()}


def build(path, corpus, limit=Limit(8), **options):
  made = Build(path, corpus, format="jsonl", limit=limit, recipe={"a": 1}, **{**SMALL, **options})
  made.scan()
  return made, made.write({"recipe": {"a": 1}})


def content(path):
  return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_store_is_the_slow_one(tmp_path_factory, seed, count):
  root = tmp_path_factory.mktemp("build")
  corpus = write_corpus(root / "c.jsonl", some_documents(count, seed))
  made, counts = build(root / "p", corpus)
  passages, rows = slow_store(corpus, Limit(8))
  store = PassageStore(root / "p")
  assert list(store) == passages
  assert {name: store.rows_of_document(name) for name in rows} == rows
  cut = sum(1 for d in read_corpus(corpus, format="jsonl") for _ in chunk(d, Limit(8)))
  assert counts == Counts(count, len(passages), cut - len(passages))
  assert not made.work.exists()
  with pytest.raises(UserError, match="no document 'x'"):
    store.rows_of_document("x")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("corpus") / "c.jsonl", some_documents(200))


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp("reference") / "p"
  build(path, corpus)
  return content(path)


def test_the_corpus_has_duplicates_and_shards(reference, corpus):
  assert sum("array_record" in name for name in reference) > 3
  assert json.loads(reference["manifest.json"])["counts"]["duplicates"] > 100


def test_several_processes_write_the_same_bytes(tmp_path, corpus, reference):
  build(tmp_path / "p", corpus, processes=2)
  assert content(tmp_path / "p") == reference


def test_ranges_of_digests_change_nothing(tmp_path, corpus, reference):
  build(tmp_path / "p", corpus, partition=1 << 20)
  assert content(tmp_path / "p") == reference


def test_compressed_input_makes_the_same_store(tmp_path, corpus, reference):
  import bz2
  import gzip

  from backports import zstd

  for name, module in (("gz", gzip), ("bz2", bz2), ("zst", zstd)):
    packed = tmp_path / f"c.jsonl.{name}"
    packed.write_bytes(module.compress(corpus.read_bytes()))
    build(tmp_path / name, packed)
    assert content(tmp_path / name) == reference


def test_other_options_or_texts_make_other_stores(tmp_path, corpus, reference):
  build(tmp_path / "p", corpus, limit=Limit(9))
  assert content(tmp_path / "p") != reference
  fingerprints = {json.loads(reference["manifest.json"])["fingerprint"], PassageStore(tmp_path / "p").fingerprint}
  changed = write_corpus(tmp_path / "c.jsonl", [*some_documents(199), {"id": "last", "text": "Another."}])
  build(tmp_path / "q", changed)
  assert len(fingerprints | {PassageStore(tmp_path / "q").fingerprint}) == 3


class Killed(BaseException):
  pass


@pytest.mark.parametrize("after", [0, 2, 11, 12])
def test_a_call_that_was_stopped_is_continued(tmp_path, monkeypatch, corpus, reference, after):
  """Stopped at every kind of step, without a chance to clean up; what was finished is not done again."""
  steps = []

  def stop(stage, done, total, unit, **figures):
    steps.append(stage)
    if len(steps) == after + 1:
      raise Killed

  def run(progress):
    made = Build(tmp_path / "p", corpus, format="jsonl", limit=Limit(8), recipe={"a": 1}, **SMALL)
    made.scan(progress)
    made.write({"recipe": {"a": 1}}, progress)

  with pytest.raises(Killed):
    run(stop)
  assert not (tmp_path / "p").exists()
  work = tmp_path / ".p.work"
  finished = sorted(work.glob("blocks/*.json"))
  assert finished
  (work / "blocks" / f"{len(finished):07d}.records").write_bytes(b"half a file")  # of the block that was under way
  run(lambda *a, **k: None)
  assert content(tmp_path / "p") == reference
  assert not work.exists()


def test_what_another_call_left_is_not_mixed_in(tmp_path, corpus, reference):
  other = Build(tmp_path / "p", corpus, format="jsonl", limit=Limit(20), recipe={"a": 1}, **SMALL)
  other.scan()
  assert other.work.exists()
  build(tmp_path / "p", corpus)
  assert content(tmp_path / "p") == reference


@pytest.mark.parametrize("removes", ["write", "discard", "a call with other options"])
def test_a_removal_that_was_stopped_is_not_continued(tmp_path, monkeypatch, corpus, reference, removes):
  """Stopped where all that says "finished" is still there, and little of what it speaks of."""

  def stop(path, **options):
    for file in (p for p in pathlib.Path(path).rglob("*") if p.is_file() and p.suffix != ".json"):
      file.unlink()
    raise Killed

  made = Build(tmp_path / "p", corpus, format="jsonl", limit=Limit(8), recipe={"a": 1}, **SMALL)
  made.scan()
  other = Build(tmp_path / "p", corpus, format="jsonl", limit=Limit(20), recipe={"a": 1}, **SMALL)
  calls = {"write": lambda: made.write({"recipe": {"a": 1}}), "discard": made.discard}
  with monkeypatch.context() as patched:
    patched.setattr(shutil, "rmtree", stop)
    with pytest.raises(Killed):
      calls.get(removes, other.scan)()
  assert list(made.work.glob("blocks/*.json"))
  build(tmp_path / "p", corpus)
  assert content(tmp_path / "p") == reference
  assert not made.work.exists()


def test_a_killed_process_leaves_nothing_that_matters(tmp_path, corpus, reference):
  """SIGKILL at some moment of a real run with two processes, which end with it."""
  program = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_corpus_build import build
if __name__ == "__main__":
  build(pathlib.Path({str(tmp_path / "p")!r}), pathlib.Path({str(corpus)!r}), processes=2)
"""
  (tmp_path / "program.py").write_text(program)
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
  killed = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environment)
  blocks = tmp_path / ".p.work" / "blocks"
  deadline = time.monotonic() + 60
  while not (list(blocks.glob("*.json")) if blocks.exists() else []) and time.monotonic() < deadline:
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  assert not (tmp_path / "p").exists()
  subprocess.run([sys.executable, tmp_path / "program.py"], env=environment, check=True)
  assert content(tmp_path / "p") == reference


def test_bad_documents_stop_or_are_counted(tmp_path):
  lines = [json.dumps(d) for d in some_documents(30)]
  lines[4] = "{broken"
  lines[9] = json.dumps({"id": "x", "text": " "})
  lines[10] = json.dumps({"id": "x", "text": 3})
  lines[20] = lines[3]
  lines[25] = lines[2]
  lines[26] = lines[2]
  path = tmp_path / "c.jsonl"
  path.write_text("\n".join(lines))
  made = Build(tmp_path / "p", path, format="jsonl", limit=Limit(8), recipe={}, **SMALL)
  with pytest.raises(UserError, match=rf"^{path}:5: not JSON .*--on-error skip"):
    made.scan()
  made.discard()
  assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]
  made, counts = build(tmp_path / "p", path, on_error="skip")
  expected = Skipped()
  list(read_corpus(path, format="jsonl", on_error="skip", skipped=expected))
  assert made.skipped == expected
  assert made.skipped.total() == 6
  passages, rows = slow_store(path, Limit(8), on_error="skip")
  store = PassageStore(tmp_path / "p")
  assert list(store) == passages
  assert {name: store.rows_of_document(name) for name in rows} == rows
  assert counts.documents == 24
  for n in (4, 9, 10):
    lines[n] = ""
  path.write_text("\n".join(lines))
  with pytest.raises(UserError, match=rf"^{path}:21: id 'd3' was already used at {path}:4; .*--on-error skip"):
    build(tmp_path / "q", path)


LONG = "One two three four. Five six seven eight. Nine ten eleven twelve. "  # two pieces of at most 8 words


@pytest.mark.parametrize("partition", [1, 3, 1 << 20])
def test_a_document_called_as_a_piece_of_another_one_is_told(tmp_path, partition):
  """The store of the rest is the one that is made without such documents; they may stand before or behind the other."""
  documents = [
    {"id": "z/1", "text": "Called as a piece of what stands behind it."},
    *({"id": f"d{n}", "text": f"{LONG}{n}"} for n in range(30)),
    {"id": "z", "text": LONG},
    {"id": "z/2", "text": "The other one has only two pieces."},
    {"id": "z/01", "text": "No piece is called so."},
    {"id": "single", "text": "One piece."},
    {"id": "single/0", "text": "The only piece of a document has its name."},
    *({"id": f"d{n}/0", "text": f"{LONG} again {n}"} for n in range(9)),
    {"id": "d3/0/1", "text": "The other one is left out itself, and yet this is, too."},
    {"id": "none/0", "text": "Nothing is called none."},
  ]
  bad = {"z/1", *(f"d{n}/0" for n in range(9)), "d3/0/1"}
  path = write_corpus(tmp_path / "c.jsonl", documents)
  with pytest.raises(UserError, match=rf"^{path}:1: id 'z/1' is that of a piece of the document at {path}:32; correct"):
    build(tmp_path / "p", path, partition=partition)
  made, counts = build(tmp_path / "p", path, on_error="skip", partition=partition)
  assert made.skipped.counts == {"an id that a piece of another document has": len(bad)}
  assert len(made.skipped.examples["an id that a piece of another document has"]) == 5
  good = [document for document in documents if document["id"] not in bad]
  build(tmp_path / "q", write_corpus(tmp_path / "good.jsonl", good))
  store, expected = PassageStore(tmp_path / "p"), PassageStore(tmp_path / "q")
  assert list(store) == list(expected)
  assert len({passage.id for passage in store}) == len(store)
  assert counts.documents == len(good)
  for document in good:
    assert store.rows_of_document(document["id"]) == expected.rows_of_document(document["id"])
  for name in bad:
    with pytest.raises(UserError, match="no document"):
      store.rows_of_document(name)


def test_nothing_left_is_an_error(tmp_path):
  path = tmp_path / "c.jsonl"
  path.write_text("{broken\n")
  with pytest.raises(UserError, match=r"no documents in it \(1 bad lines left out\)"):
    build(tmp_path / "p", path, on_error="skip")


def test_wanted_documents_are_found(tmp_path):
  documents = [
    {"id": "a", "title": "A", "text": " Same. "},
    {"id": "b", "text": "Same."},
    {"id": "c", "text": "Other."},
  ]
  path = write_corpus(tmp_path / "c.jsonl", documents)
  wanted = Wanted(frozenset({"c", "none"}), frozenset({digest(b"Same."), digest(b"None.")}))
  made, _ = build(tmp_path / "p", path, wanted=wanted, block_bytes=1)
  assert made.titles == {"a": "A", "b": "", "c": ""}
  assert made.texts == {digest(b"Same.").hex(): "a"}


@pytest.mark.parametrize("text", ["", "Tü", "x" * 127, "x" * 128, "猫" * 50_000])
def test_records_are_those_that_tfds_writes(tmp_path, text):
  """But for the order of their fields, which differs from process to process there."""
  from array_record.python import array_record_module

  from radit_jax.data import builders

  record = {"id": "i", "title": text[:9], "text": text, "metadata": '{"a": 1}'}
  builders.write(builders.RaditPassages, tmp_path, [record])
  (path,) = tmp_path.rglob("*.array_record*")
  (written,) = array_record_module.ArrayRecordReader(str(path)).read_all()
  features = {name: feature(name, value.encode()) for name, value in record.items()}
  ours = example(*features.values())
  head = len(ours) - sum(map(len, features.values()))
  assert len(written) == len(ours)
  assert written[:head] == ours[:head]
  rest = written[head:]
  while rest:
    name = next(n for n in features if rest.startswith(features[n]))
    rest = rest[len(features.pop(name)) :]
  assert not features


def test_descriptions_are_those_that_tfds_writes(tmp_path):
  from array_record.python import array_record_module

  from radit_jax.data import builders

  records = [{"id": str(n), "title": "", "text": "A text.", "metadata": "{}"} for n in range(9)]
  builders.write(builders.RaditPassages, tmp_path / "theirs", records)
  (path,) = (tmp_path / "theirs").rglob("*.array_record*")
  size = sum(map(len, array_record_module.ArrayRecordReader(str(path)).read_all()))
  (tmp_path / "ours" / SHARD).parent.mkdir(parents=True)
  describe(tmp_path / "ours", [9], size)
  written = content(tmp_path / "ours")
  assert len(written) == 2
  assert written == {name: raw for name, raw in content(tmp_path / "theirs").items() if name.endswith(".json")}


def test_the_store_is_a_tfds_data_set(tmp_path, corpus):
  import tensorflow_datasets as tfds

  build(tmp_path / "p", corpus)
  store = PassageStore(tmp_path / "p")
  builder = tfds.builder_from_directory(tmp_path / "p/radit_passages/1.0.0")
  source = builder.as_data_source(split="rows")
  assert len(source) == len(store) == builder.info.splits["rows"].num_examples
  for row in (0, 17, len(store) - 1):
    assert source[row]["text"].decode() == store[row].text
  assert files.read_manifest(tmp_path / "p", "passages", verify="full")


def test_memory_does_not_grow_with_the_corpus(tmp_path):
  """Peak of a process over a corpus, and over one four times as long: less than a tenth of what was added."""
  program = """
import json, pathlib, random, resource, sys
from radit_jax.data.corpus import Limit
from radit_jax.data.corpus.build import Build
root, megabytes = pathlib.Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
words = ["town", "sea", "harbour", "ships", "closed", "nobody", "knows", "why.", "It", "lies"]
with open(root / "c.jsonl", "w") as f:
  for i in range(megabytes * 100):
    f.write(json.dumps({"id": str(i), "text": " ".join(draw.choices(words, k=1700))}) + "\\n")
made = Build(root / "p", root / "c.jsonl", format="jsonl", limit=Limit(100), recipe={}, processes=1,
  block_bytes=1 << 20, shard_bytes=1 << 20, partition=1 << 12)
made.scan()
made.write({})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
  peaks = []
  for megabytes in (4, 16):
    root = tmp_path / str(megabytes)
    root.mkdir()
    done = subprocess.run(
      [sys.executable, "-c", program, root, str(megabytes)], capture_output=True, text=True, check=True
    )
    peaks.append(int(done.stdout))
  assert peaks[1] - peaks[0] < 0.1 * 12 + 4, peaks
