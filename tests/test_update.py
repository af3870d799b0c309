"""An index that is updated: what it finds is what an index built anew finds, whatever came, went and was killed."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privileges import held_to_modes
from test_revision import first_store, revised
from test_verbs import generator_config, index_config, retrieve_config, retriever_config
from tiny import documents, questions, write_lines

from radit_jax import cli, files, versions
from radit_jax import config as c
from radit_jax.data.corpus import PassageStore
from radit_jax.data.corpus.revision import copied_rows
from radit_jax.data.examples import RetrievedStore
from radit_jax.errors import UserError
from radit_jax.retrieval import scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.tuned import Wish
from radit_jax.retrieval.update import update_index
from radit_jax.verbs import update as verb
from radit_jax.verbs.ask import ask
from radit_jax.verbs.bm25 import bm25
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare, read_split
from radit_jax.verbs.retrieve import retrieve
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
  root = tmp_path_factory.mktemp("whole")
  prepare(c.PrepareConfig(workdir=str(root), corpus=parts["corpus"], questions=parts["questions"]))
  index(index_config(root, parts))
  return root


@pytest.fixture
def root(whole, tmp_path):
  """A copy that a test may change."""
  return shutil.copytree(whole, tmp_path / "work")


def changed_corpus(path):
  """Of the 40 documents one goes, one changes and one comes; one changes its metadata only."""
  lines = [d for d in documents() if d["id"] != "d5"]
  lines[0] = {**lines[0], "text": "Person 0 has moved to Farrow. Person 0 is a mason."}
  lines[1] = {**lines[1], "metadata": {"year": 2024}}
  return write_lines(path, [*lines, {"id": "d40", "title": "Person 40", "text": "Person 40 lives in Istra."}])


def test_an_update_encodes_what_is_new_and_finds_what_an_index_built_anew_finds(root, parts, tmp_path):
  corpus = changed_corpus(tmp_path / "changed.jsonl")
  encoded = []

  def note(stage, done, total, unit, /, **figures):
    if stage == "embed":
      encoded.append(total)

  result = index(index_config(root, parts, update=corpus, delete_missing=True), progress=note)
  assert set(encoded) == {2}
  assert (result.version, result.made, result.failed) == (1, 1, False)
  assert result.documents == {"new": 1, "changed": 2, "removed": 1}
  assert (result.rows_added, result.rows_encoded, result.rows_removed, result.num_passages) == (3, 2, 3, 40)
  assert "documents: 1 new, 2 changed, 1 removed; passages: 3 came (2 encoded), 3 went" in result.summary()
  assert sorted(p.name for p in (root / "index/versions").iterdir()) == ["000001"]
  fresh = tmp_path / "fresh"
  prepare(c.PrepareConfig(workdir=str(fresh), corpus=corpus, questions=_without_d5(tmp_path)))
  index(index_config(fresh, parts))
  queries = load_index(fresh / "index").stored[:]
  ours, theirs = (_found(r / "index", PassageStore(r / "passages"), queries, 40) for r in (root, fresh))
  assert [sorted(row) for row in ours[0]] == [sorted(row) for row in theirs[0]]
  np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)  # a text is encoded among others, and rounded as they are
  assert [row[:3] for row in ours[0]] == [row[:3] for row in theirs[0]]
  # Nothing else has to be told of it: the same options retrieve, and gold passages are the rows they were.
  result = retrieve(retrieve_config(root, parts, k=40))
  found = RetrievedStore(root / "retrieved/train")
  assert found.manifest["passages"] == PassageStore(root / "passages").fingerprint
  assert not np.isin(found[0].passage_rows, PassageStore(root / "passages").removed).any()
  # Rows that are gone are nobody's gold passage any more.
  gone = PassageStore(root / "passages").removed
  gold = [q["gold_rows"] for q in read_split(f"{root}/split/train.jsonl")]
  lost = int(np.isin(np.concatenate(gold), gone).sum())
  assert lost > 0
  assert [list(e.gold_rows) for e in found] == [np.setdiff1d(rows, gone).tolist() for rows in gold]
  assert f"{lost} gold passages left out as an update removed them" in result.summary()
  with pytest.raises(UserError, match=r"k = 41 passages asked for, .* holds 40"):
    retrieve(retrieve_config(root, parts, k=41))
  # The same call again changes nothing, nor does that which built the index.
  again = index(index_config(root, parts, update=corpus, delete_missing=True))
  assert again.summary() == f"nothing has changed: version 1 of {root}/index stays"
  assert index(index_config(root, parts)).num_passages == 40


def _without_d5(tmp_path):
  return write_lines(tmp_path / "asked.jsonl", (q for q in questions() if q["passage_ids"] != ["d5"]))


def test_rollback_reads_the_version_before_and_the_same_update_only_swaps(root, parts, tmp_path):
  corpus = changed_corpus(tmp_path / "changed.jsonl")
  config = index_config(root, parts, update=corpus, delete_missing=True)
  first = load_index(root / "index").manifest["fingerprint"]
  with pytest.raises(UserError, match="version 0 is the first one"):
    index(index_config(root, parts, rollback=True))
  index(config)
  second = load_index(root / "index").manifest["fingerprint"]
  back = index(index_config(root, parts, rollback=True))
  assert (back.before, back.version, back.num_passages) == (1, 0, 40)
  assert load_index(root / "index").manifest["fingerprint"] == first
  assert PassageStore(root / "passages").version == 0
  before = {p: p.stat().st_mtime_ns for p in (root / "index/versions").rglob("*")}
  assert index(config).version == 1
  assert load_index(root / "index").manifest["fingerprint"] == second
  assert {p: p.stat().st_mtime_ns for p in (root / "index/versions").rglob("*")} == before
  index(index_config(root, parts, rollback=True))
  other = write_lines(tmp_path / "other.jsonl", [{"id": "x", "text": "Another one."}])
  assert index(index_config(root, parts, update=other)).version == 2
  assert load_index(root / "index").manifest["base"] == 0
  (versions.directory(root / "index", 2) / "metadata.jsonl").unlink()  # a reason to go back, and nothing in the way
  assert index(index_config(root, parts, rollback=True)).version == 0


def test_passages_that_another_call_updates_are_left_alone(root, parts, tmp_path):
  corpus = changed_corpus(tmp_path / "changed.jsonl")
  lock = {"host": "another", "pid": 1, "boot": "x", "began": "1"}
  (root / "passages/run.lock").write_text(json.dumps(lock))
  with pytest.raises(UserError, match=r"passages/run\.lock.*another"):
    index(index_config(root, parts, update=corpus))
  (root / "passages/run.lock").unlink()


def test_of_two_indexes_of_one_store_the_one_that_lags_holds_nobody_back(root, parts, tmp_path):
  second = index_config(root, parts, index=f"{tmp_path}/second")
  index(second)
  updates = [write_lines(tmp_path / f"{n}.jsonl", [{"id": f"x{n}", "text": f"Text {n}."}]) for n in range(2)]
  for corpus in updates:
    index(index_config(root, parts, update=corpus))
  fingerprint = PassageStore(root / "passages").fingerprint
  known = write_lines(tmp_path / "known.jsonl", list(documents())[:1])
  there = {p: p.stat().st_mtime_ns for p in (tmp_path / "second").rglob("*")}
  for _ in range(2):
    assert index(dataclasses.replace(second, update=known)).made is None
    assert versions.current_number(root / "passages") == 2
    result = index(second)
    assert (result.num_passages, result.behind) == (40, (0, 2))
    assert "\nof version 0 of the passages, not 2: the updates that made it" in result.summary()
    assert index(index_config(root, parts)).behind is None
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / "second").rglob("*")} == there
  for number, corpus in enumerate(updates, 1):
    assert index(dataclasses.replace(second, update=corpus)).made == number
    assert versions.current_number(root / "passages") == 2
  assert load_index(tmp_path / "second").manifest["passages_fingerprint"] == fingerprint
  assert versions.numbers(root / "passages") == [0, 1, 2]
  assert index(second).behind is None
  index(dataclasses.replace(second, rollback=True))
  assert versions.current_number(root / "passages") == 1
  assert index(index_config(root, parts)).num_passages == 42  # of passages that are newer than those that are read
  other = write_lines(tmp_path / "other.jsonl", [{"id": "d0", "text": "Another corpus."}])
  prepare(c.PrepareConfig(workdir=f"{tmp_path}/other", corpus=other, questions=None))
  with pytest.raises(UserError, match=r"second: made from the passage store .{12}, but .* is .{12}"):
    index(dataclasses.replace(second, passages=f"{tmp_path}/other/passages"))


def test_what_is_asked_of_an_index_is_held_against_the_passages_that_it_is_of(root, parts, tmp_path):
  older = f"{tmp_path}/older"
  index(index_config(root, parts, index=older))
  index(index_config(root, parts, update=write_lines(tmp_path / "u.jsonl", [{"id": "x", "text": "New."}])))

  def find(k, *, exclude=(), path=older, **options):
    lines = [{"id": "q", "question": "Who?", "exclude_rows": list(exclude)}]
    asked = write_lines(tmp_path / "q.jsonl", lines)
    config = retrieve_config(root, parts, index=path, questions=asked, out=None, k=k, **options)
    return [len(rows) for rows in retrieve(config).found]

  newest = f"{root}/index"
  assert find(41, path=newest) == [41]
  made = files.read_manifest(root / "split", "split")
  write_lines(root / "split/dev.jsonl", [{**q, "exclude_rows": [40]} for q in read_split(f"{root}/split/dev.jsonl")])
  files.write_manifest(root / "split", "split", {n: v for n, v in made.items() if n not in ("kind", "files")})
  stored = retrieve_config(root, parts, "dev", index=older, k=3)
  ask_config = c.AskConfig("Who?", parts["generator"], parts["encoder"], older, f"{root}/passages", k=41)
  for call, message in [
    (lambda: find(41), r"k = 41 passages asked for, .*older holds 40"),
    (lambda: retrieve(dataclasses.replace(stored, k=41)), r"k = 41 passages asked for, .*older holds 40"),
    (lambda: ask(ask_config), r"k = 41 passages asked for, .*older holds 40"),
    (lambda: find(3, exclude=[40]), "'q' excludes rows that .*older does not have"),
    (lambda: find(3, exclude=[40], drop_duplicates=True), "'q' excludes rows that .*older does not have"),
    (lambda: retrieve(dataclasses.replace(stored, drop_duplicates=True)), "excludes rows that .* does not have"),
  ]:
    with pytest.raises(UserError, match=message):
      call()
  assert find(3, exclude=[40], path=newest, drop_duplicates=True) == [3]
  few = write_lines(tmp_path / "few.jsonl", list(documents())[:20])
  index(index_config(root, parts, update=few, delete_missing=True))
  assert find(40) == [40]  # none of which has gone from its passages
  with pytest.raises(UserError, match=r"k = 21 passages asked for, .*index holds 20"):
    find(21, path=newest)


def test_one_call_at_a_time_works_on_an_index(root, parts, tmp_path):
  new = {name: f"{tmp_path}/new/{name}" for name in ("index", "embeddings")}
  build, other = index_config(root, parts, **new), {**new, "index": f"{tmp_path}/other"}
  change = index_config(root, parts, update=changed_corpus(tmp_path / "changed.jsonl"))
  for config, refused in [
    (build, {build: "new/.index.lock", index_config(root, parts, **other): "new/.embeddings.lock"}),
    (
      change,
      dict.fromkeys((change, index_config(root, parts), index_config(root, parts, rollback=True)), "/.index.lock"),
    ),
  ]:
    said = []

    def try_others(stage, done, total, unit, /, *, refused=refused, said=said, **figures):
      for one in refused if stage == "embed" and not said else ():
        with pytest.raises(UserError) as error:
          index(one)
        said.append(str(error.value))

    index(config, progress=try_others)
    assert len(said) == len(refused)
    for line, lock in zip(said, refused.values(), strict=True):
      assert f"{lock}: process {os.getpid()} on this machine holds this lock; wait for it" in line
      assert "workdir" not in line
  assert len(load_index(new["index"])) == 40
  assert not [p for place in (root, tmp_path) for p in place.rglob("*.lock")]


def test_a_version_that_is_read_and_not_there_is_named_before_anything_is_built(root, parts, tmp_path):
  index(index_config(root, parts, update=changed_corpus(tmp_path / "changed.jsonl")))
  (root / "index/versions/000001/manifest.json").unlink()
  with pytest.raises(UserError, match=r"versions/000001: missing or not whole.*into .*CURRENT \(0\)"):
    index(index_config(root, parts))
  assert (root / "index/CURRENT").read_text() == "1\n"


def test_old_versions_are_removed_and_counted(root, parts, tmp_path):
  for n in range(4):
    corpus = write_lines(tmp_path / "u.jsonl", [{"id": "x", "text": f"Text {n}."}])
    if n == 3:  # as a call leaves it that was killed while it removed
      (root / "index/versions/000001/left").mkdir(parents=True)
      for left in (".000003.encoded", "..000003.embeddings.part", ".000002.embeddings"):
        (root / "index/versions" / left).mkdir()
    result = index(index_config(root, parts, update=corpus, keep_versions=2))
  assert (result.version, result.pruned) == (4, (2,))
  assert result.summary().endswith("1 old versions removed: 2")
  assert versions.numbers(root / "index") == [0, 3, 4]
  assert sorted(p.name for p in (root / "index/versions").iterdir()) == ["000003", "000004"]
  assert versions.numbers(root / "passages") == [0, 1, 2, 3, 4]  # others may have been retrieved from
  assert index(index_config(root, parts, rollback=True)).version == 3
  with pytest.raises(UserError, match="version 2, which 3 was made from, was removed"):
    index(index_config(root, parts, rollback=True))


def test_golden_questions_decide_whether_a_version_is_read(root, parts, tmp_path, capsys):
  corpus = write_lines(tmp_path / "u.jsonl", [{"id": "d0", "title": "Person 0", "text": "Nothing is known of them."}])
  asked = write_lines(tmp_path / "golden.jsonl", _by_answer())
  arguments = [f"--{name}={getattr(index_config(root, parts), name)}" for name in ("passages", "encoder", "embeddings")]
  arguments += [f"--index={root}/index", "--backend=exact", "--batch-size=16", f"--update={corpus}"]
  golden = [*arguments, f"--golden={asked}", "--golden-k=40"]
  assert cli.main(["index", *golden, "--golden-min=1.0"]) == 1
  said = capsys.readouterr().out
  assert "90.0% of 10 golden questions found among 40 passages (version 0: 100.0%), 100.0% wanted: too few" in said
  assert "version 1 is not read; version 0 stays" in said
  assert versions.current_number(root / "index") == versions.current_number(root / "passages") == 0
  made = (root / "index/versions/000001/manifest.json").stat().st_mtime_ns
  assert cli.main(["index", *golden, "--golden-min=0.9"]) == 0
  assert (root / "index/versions/000001/manifest.json").stat().st_mtime_ns == made  # only asked again
  assert versions.current_number(root / "index") == 1


def test_a_version_that_found_too_little_is_asked_again_under_other_settings(root, parts, tmp_path, monkeypatch):
  wishes, ask = [], verb.golden

  def golden(*arguments, **options):
    wishes.append(files.read_manifest(root / "index/versions/000001", "index")["wish"])
    return ask(*arguments, **options)

  monkeypatch.setattr(verb, "golden", golden)
  corpus = write_lines(tmp_path / "u.jsonl", [{"id": "x", "text": "Nobody knows."}])
  asked = write_lines(tmp_path / "golden.jsonl", [{"id": "q", "question": "Who?", "answers": ["no such town"]}])
  config = index_config(root, parts, update=corpus, golden=asked, golden_min=1.0)
  for options in ({}, {"reorder": 300, "target_recall": 0.97}, {}, {"reorder": 400}):
    result = index(dataclasses.replace(config, **options))
    assert (result.made, result.failed) == (1, True)
  plain = dataclasses.asdict(Wish())
  tuned = {**plain, "reorder": 300, "target_recall": 0.97}
  assert wishes == [plain, tuned, tuned, {**plain, "reorder": 400}]
  assert versions.numbers(root / "index") == [0, 1]


def _by_answer():
  for i in range(10):
    yield {"id": f"q{i}", "question": "Who lives where?", "answers": [f"Person {i} lives in"]}


def test_golden_questions_by_document(root, parts, tmp_path):
  asked = write_lines(tmp_path / "golden.jsonl", list(questions())[4:6])  # d5 goes, and is found no more
  corpus = changed_corpus(tmp_path / "changed.jsonl")
  config = index_config(root, parts, update=corpus, delete_missing=True, golden=asked, golden_min=0.6, golden_k=40)
  result = index(config)
  assert (result.golden.shares, result.failed) == ({0: 1.0, 1: 0.5}, True)


def refused(config, message):
  there = sorted(config.index + str(p) for p in pathlib.Path(config.index).rglob("*"))
  with pytest.raises(UserError, match=message) as error:
    index(config)
  assert "\n" not in str(error.value)
  assert sorted(config.index + str(p) for p in pathlib.Path(config.index).rglob("*")) == there


def test_what_is_refused(root, parts, tmp_path):
  corpus = write_lines(tmp_path / "u.jsonl", [{"id": "x", "text": "New."}])
  config = index_config(root, parts, update=corpus)
  other = shutil.copytree(parts["encoder"], tmp_path / "encoder")
  settings = json.loads((other / "config.json").read_text())
  (other / "config.json").write_text(json.dumps(settings, indent=1))
  refused(dataclasses.replace(config, encoder=str(other)), "built by the encoder .{12}, .* is .{12}; update it with")
  refused(dataclasses.replace(config, backend="scann"), "made with backend = 'exact', this call has 'scann'")
  (tmp_path / "other").mkdir()
  first_store(tmp_path / "other", [{"id": "a", "text": "A."}])
  refused(dataclasses.replace(config, passages=f"{tmp_path}/other/passages"), "made from the passage store .{12}, but")
  refused(dataclasses.replace(config, update=str(tmp_path / "none.jsonl")), "none.jsonl: no such file")
  (tmp_path / "empty.jsonl").write_text("")
  refused(dataclasses.replace(config, update=f"{tmp_path}/empty.jsonl", delete_missing=True), "no documents")
  refused(dataclasses.replace(config, delete_missing=True), "has none of the 40 documents")
  (tmp_path / "golden.jsonl").write_text('{"id": "q", "question": "Who?", "answers": []}\n')
  golden = {"golden": f"{tmp_path}/golden.jsonl", "golden_min": 0.5}
  refused(dataclasses.replace(config, **golden), "golden.jsonl")
  with pytest.raises(UserError, match=r"nowhere: no such directory; `radit index` without --update makes"):
    index(dataclasses.replace(config, index=f"{tmp_path}/nowhere"))
  shard = root / "index/embeddings-00000.npy"
  content = bytearray(shard.read_bytes())
  content[-1] ^= 1
  shard.unlink()
  shard.write_bytes(content)
  refused(config, r"embeddings-00000.npy: SHA-256 differs")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"delete_missing": True}, "delete_missing = True without update"),
    ({"golden": "g", "golden_min": 0.5}, "golden = g without update"),
    ({"update": "u", "golden": "g"}, "belong together"),
    ({"update": "u", "golden_k": 5}, "golden_k = 5 without golden"),
    ({"golden_encoder": "e"}, "golden_encoder = e without golden"),
    ({"update": "u", "golden": "g", "golden_min": 1.5}, "golden_min = 1.5"),
    ({"update": "u", "rollback": True}, "give one of them"),
    ({"update": "u", "keep_versions": 0}, "keep_versions = 0"),
  ],
)
def test_options_that_do_not_fit(tmp_path, parts, options, message):
  with pytest.raises(UserError, match=message):
    index_config(tmp_path, parts, **options)


@pytest.mark.parametrize("name", ["passages", "index"])
def test_a_directory_that_cannot_be_written(root, parts, tmp_path, capsys, name):
  (root / name).chmod(0o555)
  corpus = write_lines(tmp_path / "u.jsonl", [{"id": "x", "text": "New."}])
  given = {n: f"{root}/{n}" for n in ("passages", "embeddings", "index")} | {"encoder": parts["encoder"]}
  call = [
    "index",
    "--backend=exact",
    f"--update={corpus}",
    "--batch-size=16",
    *(f"--{n}={v}" for n, v in given.items()),
  ]
  with held_to_modes():
    assert cli.main(call) == 2
  said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("radit: error")]
  assert len(said) == 1
  assert f"{root}/{name}" in said[0]
  assert "Permission denied" in said[0]
  (root / name).chmod(0o755)
  assert versions.current_number(root / "index") == 0
  assert index(index_config(root, parts, update=corpus)).version == 1


def test_an_index_is_read_in_the_version_of_the_passages_that_are_meant(root, parts, tmp_path):
  first = load_index(root / "index").manifest
  index(index_config(root, parts, update=changed_corpus(tmp_path / "c.jsonl"), delete_missing=True))
  second = load_index(root / "index").manifest
  for manifest in (first, second):
    found = load_index(root / "index", passages_fingerprint=manifest["passages_fingerprint"])
    assert found.manifest["fingerprint"] == manifest["fingerprint"]
  with pytest.raises(
    UserError, match=rf"of the passages {second['passages_fingerprint'][:12]}, and no version .* cccccc"
  ):
    load_index(root / "index", passages_fingerprint="c" * 64)


@pytest.mark.parametrize("damage", ["a file", "manifest"])
def test_a_damaged_version_is_in_the_way_of_those_only_that_need_it(root, parts, tmp_path, damage):
  fingerprints = [load_index(root / "index").manifest["passages_fingerprint"]]
  for n in range(2):
    index(index_config(root, parts, update=write_lines(tmp_path / f"{n}.jsonl", [{"id": "x", "text": f"Text {n}."}])))
    fingerprints.append(load_index(root / "index").manifest["passages_fingerprint"])
  version = root / "index/versions/000001"
  if damage == "manifest":
    (version / "manifest.json").write_text("{")
  else:
    (version / "metadata.jsonl").unlink()
  for wanted in (fingerprints[0], fingerprints[2]):
    assert load_index(root / "index", passages_fingerprint=wanted).manifest["passages_fingerprint"] == wanted
  with pytest.raises(UserError, match="metadata.jsonl: missing" if damage == "a file" else "no version of it is of"):
    load_index(root / "index", passages_fingerprint=fingerprints[1])
  again = write_lines(tmp_path / "again.jsonl", [{"id": "x", "text": "Text 3."}])
  assert index(index_config(root, parts, update=again)).version == 3
  if damage == "a file":  # the version that is needed is checked before anything is swapped
    versions.make_current(root / "index", 0)
    versions.make_current(root / "passages", 0)
    with pytest.raises(UserError, match=r"000001/metadata\.jsonl: missing"):
      index(index_config(root, parts, update=f"{tmp_path}/0.jsonl"))
    assert versions.current_number(root / "index") == versions.current_number(root / "passages") == 0


def test_a_retriever_is_tuned_on_what_was_retrieved_before_the_corpus_changed(root, parts, tmp_path):
  for split in ("train", "dev"):
    retrieve(retrieve_config(root, parts, split=split, k=8))
  before = load_index(root / "index").manifest["fingerprint"]
  index(index_config(root, parts, update=changed_corpus(tmp_path / "c.jsonl"), delete_missing=True))
  train_retriever(retriever_config(root, parts, tmp_path / "run", loss="contrastive", scores=None, dev_scores=None))
  assert files.read_json(tmp_path / "run/run.json")["recipe"]["inputs"]["index"] == before


@pytest.mark.parametrize(
  ("tune", "config", "changes"),
  [
    (train_generator, generator_config, {"method": "ralt"}),
    (train_generator, generator_config, {"method": "it"}),
    (train_retriever, retriever_config, {"loss": "contrastive", "scores": None, "dev_scores": None}),
  ],
)
def test_a_tuning_reads_one_version_of_the_passages(root, parts, tmp_path, tune, config, changes):
  retrieve(retrieve_config(root, parts, split="dev", k=8))
  index(index_config(root, parts, update=changed_corpus(tmp_path / "c.jsonl"), delete_missing=True))
  retrieve(retrieve_config(root, parts, k=8))
  old, new = (RetrievedStore(root / "retrieved" / split).manifest["passages"][:12] for split in ("dev", "train"))
  with pytest.raises(UserError, match=rf"dev: .* {old}, .*train from {new}; retrieve both with the same index"):
    tune(config(root, parts, tmp_path / "run", **changes))


def test_bm25_does_not_find_what_went(root, parts, tmp_path):
  index(index_config(root, parts, update=changed_corpus(tmp_path / "c.jsonl"), delete_missing=True))
  for part in ("train", "dev", "test"):
    out = tmp_path / f"{part}.run"
    bm25(c.Bm25Config(questions=f"{root}/split/{part}.jsonl", passages=f"{root}/passages", out=str(out), k=40))
    assert " d5 " not in out.read_text()
    assert " d6 " in out.read_text()


# Searchers, on embeddings that are made of the texts.


def vector(text, width=16):
  rng = np.random.default_rng(int.from_bytes(text.encode()[-8:], "little"))
  x = rng.normal(size=width)
  return (x / np.linalg.norm(x)).astype(np.float32)


def numbered(numbers):
  return [{"id": f"d{i}", "text": f"Text number {i}."} for i in numbers]


class Small:
  """A store and an index of made-up embeddings, updated as the verb does it."""

  def __init__(self, root, numbers, backend, milvus_uri=None, given=None):
    self.root, self.milvus_uri = root, milvus_uri
    self.store = first_store(root, numbered(numbers) if given is None else given)
    build_index(
      np.stack([vector(p.full_text) for p in self.store]),
      root / "index",
      backend=backend,
      milvus_uri=milvus_uri,
      metadata=[{"row": row} for row in range(len(self.store))],
      fields={"passages_fingerprint": self.store.fingerprint, "encoder_fingerprint": "e"},
    )
    self.versions = [(root / "index", self.store)]

  def update(self, given, **options):
    base, before = self.versions[-1]
    after = revised(before, self.root, given, **options)
    if after is before:
      return self.manifest
    copied = copied_rows(before, after)
    texts = [after[len(before) + i].full_text for i in np.flatnonzero(copied < 0)]
    path = self.root / f"v{after.version}"
    if path.exists():  # the same update of the same version was made before, and gone back from
      self.versions.append((path, after))
      return self.manifest
    update_index(
      base,
      files.read_manifest(base, "index", verify="full"),
      path,
      copied=copied,
      encoded=np.stack([vector(t) for t in texts]) if texts else None,
      removed=after.removed,
      metadata=[{"row": row} for row in range(len(before), len(after))],
      fields={"passages_fingerprint": after.fingerprint, "encoder_fingerprint": "e"},
      shard_passages=2_000_000,
      wish=Wish(),
      milvus_uri=self.milvus_uri,
    )
    self.versions.append((path, after))
    return self.manifest

  @property
  def manifest(self):
    return files.read_manifest(self.versions[-1][0], "index", verify="full")

  def check(self, queries, k, *, exact):
    """Against every passage there is, compared one by one."""
    path, store = self.versions[-1]
    live = np.setdiff1d(np.arange(len(store)), store.removed)
    stored = np.stack([vector(p.full_text) for p in store.many(live)])
    true = live[np.argsort(-(queries @ stored.T), axis=1, kind="stable")[:, :k]]
    found = load_index(path).search(queries, k)
    assert found.valid[:, : min(k, len(live))].all()
    assert not np.isin(found.ids, store.removed).any()
    if exact:
      np.testing.assert_array_equal(found.ids[:, : len(live)], true)
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.ids.tolist(), true.tolist(), strict=True)])


@pytest.mark.parametrize(("backend", "seed"), [*(("exact", n) for n in range(6)), *(("milvus", n) for n in range(3))])
def test_any_sequence_of_updates_and_rollbacks_is_exact(tmp_path, backend, seed, request):
  rng = np.random.default_rng(seed)
  live = set(range(30))
  small = Small(tmp_path, sorted(live), backend, request.getfixturevalue("milvus_uri") if backend == "milvus" else None)
  states = [set(live)]
  queries = np.stack([vector(f"{seed} {n}") for n in range(9)])
  for _ in range(4):
    kind = rng.integers(4)
    if kind == 0 and len(states) > 1:
      small.versions.pop()
      states.pop()
    elif kind == 1:
      kept = set(rng.choice(sorted(states[-1]), len(states[-1]) // 2, replace=False).tolist())
      small.update(numbered(sorted(kept)), delete_missing=True)
      states.append(kept)
    else:
      came = set(rng.integers(100, size=6).tolist())
      small.update(numbered(sorted(came)), restore=True)
      states.append(states[-1] | came)
    assert {p.id for p in small.versions[-1][1].many(_live(small))} == {f"d{i}" for i in states[-1]}
    for k in (3, 200):
      small.check(queries, k, exact=True)


def _live(small):
  store = small.versions[-1][1]
  return np.setdiff1d(np.arange(len(store)), store.removed)


def written(model):
  """Documents of two passages each, by number and by how often they have changed."""
  kinds = ("Some words of document number", "Some others of the document")
  for number, change in sorted(model.items()):
    yield {"id": f"d{number}", "text": " ".join(f"{kind} {number} {change}{n}." for n, kind in enumerate(kinds))}


_CHANGES = st.dictionaries(st.integers(0, 11), st.integers(0, 2), min_size=1, max_size=6)


@given(
  st.dictionaries(st.integers(0, 11), st.integers(0, 2), min_size=3),
  st.lists(st.tuples(st.sampled_from(["give", "whole", "back"]), _CHANGES), min_size=1, max_size=5),
)
@settings(max_examples=15, deadline=None)
def test_after_any_updates_an_index_finds_id_for_id_what_one_built_anew_finds(tmp_path_factory, model, steps):
  root = tmp_path_factory.mktemp("updates")
  small, models = Small(root, (), "exact", given=list(written(model))), [model]
  for kind, changes in steps:
    if kind == "back" and len(models) > 1:
      small.versions.pop()
      models.pop()
    elif kind == "give" or (kind == "whole" and changes.keys() & models[-1].keys()):
      before = len(small.versions)
      small.update(list(written(changes)), restore=True, delete_missing=kind == "whole")
      if len(small.versions) > before:
        models.append(changes if kind == "whole" else {**models[-1], **changes})
  (root / "anew").mkdir()
  anew = Small(root / "anew", (), "exact", given=list(written(models[-1])))
  queries = np.stack([vector(f"query {n}") for n in range(7)])
  for k in (3, 30):
    (ours, ours_scores), (theirs, their_scores) = (
      _found(s.versions[-1][0], s.versions[-1][1], queries, k) for s in (small, anew)
    )
    assert ours == theirs
    np.testing.assert_array_equal(ours_scores, their_scores)


def _found(path, store, queries, k):
  found = load_index(path).search(queries, k)
  return [[store[row].id for row in rows[rows >= 0].tolist()] for rows in found.ids], found.scores


def test_searchers_are_amended_and_built_anew_when_much_has_changed(tmp_path, monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 100)
  monkeypatch.setattr(scann, "TREE_FROM", 1)
  small = Small(tmp_path, range(1000), "scann")
  queries = np.stack([vector(f"q{n}") for n in range(50)])
  first = small.manifest
  made = small.update(numbered([*range(40, 1000), *range(2000, 2050)]), delete_missing=True)
  assert (made["searched"], made["count"], made["removed"]) == (1000, 1050, 40)
  assert {n: e["sha256"] for n, e in made["files"].items() if n.startswith("scann")} == {
    n: e["sha256"] for n, e in first["files"].items() if n.startswith("scann")
  }
  assert made["overlap"]["queries"] == 1000
  assert made["overlap"]["overlap"] > first["overlap"]["overlap"] - 0.05
  assert small.check(queries, 10, exact=False) > 0.6
  index = load_index(small.versions[-1][0])
  newest = index.search(index.embeddings(np.arange(1000, 1050)), 1)
  np.testing.assert_array_equal(newest.ids[:, 0], np.arange(1000, 1050))
  np.testing.assert_array_equal(index.search(queries[:1], 2, where={"row": [3, 1040]}).ids, [[1040, -1]])
  anew = small.update(numbered(range(200, 1000)), delete_missing=True)
  assert "searched" not in anew
  assert sum(size for _, size in anew["index_shards"]) == 800
  assert "held.bin" in anew["files"]
  assert small.check(queries, 10, exact=False) > 0.6
  later = small.update(numbered(range(3000, 3010)))
  assert (later["searched"], later["files"]["held.bin"]) == (1050, anew["files"]["held.bin"])
  assert later["search"] == anew["search"]  # as thoroughly as was found right when the searchers were built
  assert small.check(queries, 10, exact=False) > 0.6


def test_as_many_are_found_where_all_that_was_near_went(tmp_path, monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 100)
  small = Small(tmp_path, range(1000), "scann")
  query = vector("Text number 7.")[None]
  near = load_index(tmp_path / "index").search(query, 60).ids[0]
  gone = {int(small.store[row].id[1:]) for row in near.tolist()}
  made = small.update(numbered(n for n in range(1000) if n not in gone), delete_missing=True)
  assert made["searched"] == 1000
  assert small.check(query, 30, exact=True) == 1.0


@pytest.mark.parametrize("backend", ["exact", "scann", "device", "milvus"])
def test_no_backend_finds_what_went(tmp_path, monkeypatch, backend, request):
  monkeypatch.setattr(scann, "EXACT_BELOW", 100)
  small = Small(tmp_path, range(400), backend, request.getfixturevalue("milvus_uri") if backend == "milvus" else None)
  queries = np.stack([vector(f"Text number {n}.") for n in range(12)])
  small.update(numbered([*range(6, 400), 500]), delete_missing=True)
  assert small.manifest["backend"] == backend
  assert small.check(queries, 20, exact=backend != "scann") > 0.8
  found = load_index(small.versions[-1][0]).search(queries, 20, where={"row": list(range(12))})
  np.testing.assert_array_equal(np.sort(found.ids, axis=1)[:, -6:], np.tile(np.arange(6, 12), (12, 1)))
  assert (found.valid.sum(axis=1) == 6).all()


@pytest.mark.parametrize("backend", ["device", "milvus"])
def test_an_update_may_leave_one_passage(tmp_path, backend, request):
  uri = request.getfixturevalue("milvus_uri") if backend == "milvus" else None
  small = Small(tmp_path, range(40, 60), backend, uri)
  assert small.update(numbered([47]), delete_missing=True)["overlap"] is None
  small.check(vector("q")[None], 1, exact=True)


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
  small = Small(tmp_path, range(20), "exact")
  monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
  needed = 64 + (tmp_path / "index/metadata.jsonl").stat().st_size
  with pytest.raises(UserError, match=rf"v1: up to {needed} bytes are to be written, the disk has 10 free; make room"):
    small.update(numbered([50]))
  assert not [p for p in tmp_path.iterdir() if "v1" in p.name]


@pytest.mark.parametrize("kept", [120, 190])
def test_room_is_needed_for_what_a_searcher_is_built_of(tmp_path, monkeypatch, kept):
  """And not where the searchers are amended."""
  monkeypatch.setattr(scann, "EXACT_BELOW", 100)
  small = Small(tmp_path, range(200), "scann")
  sizes = {name: entry["bytes"] for name, entry in small.manifest["files"].items()}
  needed = sizes["metadata.jsonl"]
  if kept == 120:
    needed += sum(size for name, size in sizes.items() if name.startswith("scann")) + 120 * 16 * 4
  monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=needed - 1))
  with pytest.raises(UserError, match=f"up to {needed:,} bytes are to be written"):
    small.update(numbered(range(kept)), delete_missing=True)


def test_an_index_that_grows_gets_searchers(tmp_path, monkeypatch):
  monkeypatch.setattr(scann, "EXACT_BELOW", 300)
  small = Small(tmp_path, range(200), "scann")
  assert small.manifest["parameters"]["method"] == "exact"
  assert small.update(numbered(range(200, 250)))["parameters"]["method"] == "exact"
  grown = small.update(numbered(range(250, 400)))
  assert grown["parameters"]["method"] == "quantized"
  assert small.check(np.stack([vector(f"q{n}") for n in range(20)]), 10, exact=False) > 0.9


# Killed.

WORKER = """
import os, signal, sys
from radit_jax import versions
from radit_jax.config import IndexConfig
from radit_jax.retrieval import update as amending
from radit_jax.verbs import update as verb
from radit_jax.verbs.index import index

def die(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)

def at(moment, root, **options):
  def say(stage, done, total, unit, /, **figures):
    if stage == moment:
      die()
  if moment == "write":
    verb.revise.__globals__["_write_shards"] = die
  if moment == "save":
    amending.write_rows = die
  if moment == "assemble":
    amending.build_index = die
  if moment == "swap":
    versions.make_current = die
  if moment == "point":
    make = versions.make_current
    versions.make_current = lambda path, n: make(path, n) if str(path).endswith("index") else die()
  index(IndexConfig(**options), progress=say)

root, moments, encoder = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
names = {name: f"{root}/{name}" for name in ("passages", "embeddings", "index")}
for moment in moments:
  child = os.fork()
  if not child:
    try:
      at(moment, root, update=f"{root}/changed.jsonl", delete_missing=True, encoder=encoder, backend="exact",
         batch_size=16, **names)
    finally:
      os._exit(3)
  status = os.waitpid(child, 0)[1]
  print(moment, -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
  print(versions.current_number(names["index"]), versions.current_number(names["passages"]), flush=True)
"""


def test_killed_anywhere_the_old_version_is_read_and_the_same_call_goes_on(root, parts, tmp_path):
  changed_corpus(root / "changed.jsonl")
  moments = ["write", "embed", "save", "save", "assemble", "swap", "point"]
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
  (tmp_path / "worker.py").write_text(WORKER)
  said = subprocess.run(
    [sys.executable, tmp_path / "worker.py", root, ",".join(moments), parts["encoder"]],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
    timeout=600,
  ).stdout.splitlines()
  status = {moment: "1 0" if moment == "point" else "0 0" for moment in moments}
  assert said == [line for moment in moments for line in (f"{moment} -9", status[moment])]
  before = load_index(root / "index").manifest["fingerprint"]
  result = index(index_config(root, parts, update=f"{root}/changed.jsonl", delete_missing=True))
  assert result.summary().startswith("nothing has changed: version 1")
  assert versions.current_number(root / "passages") == 1
  assert load_index(root / "index").manifest["fingerprint"] == before
  left = [p for name in ("index", "passages") for p in (root / name / "versions").iterdir()]
  assert sorted(p.name for p in left) == ["000001", "000001"]
  uninterrupted = tmp_path / "whole"
  shutil.copytree(root, uninterrupted)
  for name in ("index", "passages"):
    shutil.rmtree(uninterrupted / name / "versions")
    (uninterrupted / name / "CURRENT").unlink()
  index(index_config(uninterrupted, parts, update=f"{root}/changed.jsonl", delete_missing=True))
  assert load_index(uninterrupted / "index").manifest["fingerprint"] == before
