"""`radit retrieve` for any question, from anywhere; and what it leaves out, with others in the places."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from test_verbs import index_config, retrieve_config
from tiny import documents, write_lines

from radit_jax import cli, files
from radit_jax import config as c
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.evaluation.trec import read_run
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.dropping import search_without
from radit_jax.retrieval.index import load_index
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare, read_split
from radit_jax.verbs.retrieve import retrieve


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
  root = tmp_path_factory.mktemp("made")
  prepare(c.PrepareConfig(workdir=str(root), corpus=parts["corpus"], questions=parts["questions"]))
  index(index_config(root, parts))
  return root


def call(made, parts, *options):
  stores = ["--passages", f"{made}/passages", "--index", f"{made}/index", "--encoder", parts["encoder"]]
  return ["retrieve", *options, *stores, "--batch-size", "16"]


def asking(made, parts, **options):
  fields = {"questions": None, "out": None, **options}
  return retrieve(retrieve_config(made, parts, **fields))


def test_one_question_is_shown_with_its_passages(made, parts, capsys):
  assert cli.main(call(made, parts, "Where does person 3 live?", "--k", "4")) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  found = asking(made, parts, question="Where does person 3 live?", k=4)
  store = PassageStore(made / "passages")
  for line, (row, score, passage) in zip(lines, found.found[0], strict=True):
    assert line.split()[:2] == [f"{score:.3f}", f"[{row}]"]
    assert line.endswith(store[row].text)
    assert passage == store[row]


def test_a_file_and_stdin_give_what_a_split_gives(made, parts, tmp_path, capsys, monkeypatch):
  """Text, JSON and BEIR's names of fields; blank lines and the mark of a byte order are no questions."""
  retrieve(retrieve_config(made, parts, "test", out=f"{tmp_path}/out", write_run=f"{tmp_path}/out.run"))
  stored = {e.id: e for e in RetrievedStore(tmp_path / "out")}
  rows = read_split(f"{made}/split/test.jsonl")
  write_lines(tmp_path / "own.jsonl", [{"id": r["id"], "question": r["query"]} for r in rows])
  write_lines(tmp_path / "beir.jsonl", [{"_id": r["id"], "text": r["query"]} for r in rows])
  (tmp_path / "plain.txt").write_text("\ufeff" + "\n\n".join(r["query"] for r in rows) + "\n", encoding="utf-8")
  for name in (f"{made}/split/test.jsonl", f"{tmp_path}/own.jsonl", f"{tmp_path}/beir.jsonl"):
    assert cli.main(call(made, parts, "--questions", name, "--k", "5")) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in printed] == [r["id"] for r in rows]
    for one in printed:
      assert [p["row"] for p in one["passages"]] == stored[one["id"]].passage_rows.tolist()
      np.testing.assert_array_equal([np.float32(p["score"]) for p in one["passages"]], stored[one["id"]].scores)
  typed = io.TextIOWrapper(io.BytesIO((tmp_path / "plain.txt").read_bytes()))
  monkeypatch.setattr(sys, "stdin", typed)
  run = f"{tmp_path}/plain.run"
  assert cli.main(call(made, parts, "--questions", "-", "--k", "5", "--write-run", run)) == 0
  assert capsys.readouterr().out == f"{len(rows)} questions: {run}\n"
  plain, split = read_run(run), read_run(tmp_path / "out.run")
  assert list(split) == [r["id"] for r in rows]
  assert list(plain.values()) == list(split.values())
  assert [*plain] == [str(1 + 2 * i) for i in range(len(rows))]  # numbers of their lines


def test_a_store_that_is_there_still_writes_its_run(made, parts, tmp_path):
  config = retrieve_config(made, parts, "dev", out=f"{tmp_path}/out")
  retrieve(config)
  retrieve(dataclasses.replace(config, write_run=f"{tmp_path}/late.run"))
  assert read_run(tmp_path / "late.run")


def test_what_is_looked_for_in_passages_is_stored_and_counted(made, parts, tmp_path):
  """Of multiple-choice questions the text of the choice: its letter, here a word, stands in every passage."""
  rows = [
    {**row, "answers": ["person", text], "answer_texts": [text], "gold_rows": []}
    for row, text in zip(read_split(f"{made}/split/dev.jsonl"), ("Arlen", "no such town"), strict=False)
  ]
  write_lines(tmp_path / "dev.jsonl", rows)
  files.write_manifest(tmp_path, "split", {})
  result = retrieve(retrieve_config(made, parts, questions=f"{tmp_path}/dev.jsonl", out=f"{tmp_path}/out", k=40))
  assert [e.answer_texts for e in RetrievedStore(tmp_path / "out")] == [("Arlen",), ("no such town",)]
  hits = files.read_manifest(tmp_path / "out", "retrieved")["hits"]
  assert (hits[0] < 40, hits[1]) == (True, 40)
  assert result.mrr == pytest.approx(0.5 / (hits[0] + 1))


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ("", "no questions"),
    ("\n \n", "no questions"),
    ('{"question": ', r"q:1: not JSON"),
    ('Who?\n{"answers": ["x"]}', r"q:2: no text in 'query' or 'question' or 'text'"),
    ('{"question": 7}', r"q:1: no text"),
    ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', r"q:2: id 'a' has come before"),
    ('{"text": "x", "exclude_rows": "0"}', r"q:1: exclude_rows = '0'"),
    ('{"text": "x", "exclude_rows": [40]}', r"'1' excludes rows that .* does not have"),
    (b"\xff", r"q: not UTF-8 \(byte 0\)"),
  ],
)
def test_questions_that_cannot_be(made, parts, tmp_path, lines, message):
  (tmp_path / "q").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
  with pytest.raises(UserError, match=message):
    asking(made, parts, questions=f"{tmp_path}/q")


def test_calls_that_cannot_be(made, parts, tmp_path):
  for options, message in [
    ({}, "give one"),
    ({"question": "x", "questions": "y"}, "give one"),
    ({"question": " "}, "is empty"),
    ({"question": "x", "out": f"{tmp_path}/o"}, "leave out --out"),
    ({"questions": "-", "out": f"{tmp_path}/o"}, "leave out --out"),
    ({"questions": f"{tmp_path}/none"}, "no such file"),
  ]:
    with pytest.raises(UserError, match=message):
      asking(made, parts, **options)


def world(tmp_path, count, seed=0):
  """Passages of few texts in few documents, with embeddings to which texts mean nothing."""
  rng = np.random.default_rng(seed)
  pages = np.sort(rng.integers(count // 3, size=count))
  texts = [f"text {t}" for t in rng.integers(count // 2, size=count)]
  passages = [Passage(f"p{i}", "", texts[i], {"document": f"d{pages[i]}"}) for i in range(count)]
  write_passages(passages, tmp_path / "passages")
  build_index(rng.normal(size=(count, 8)).astype(np.float32), tmp_path / "index", backend="exact")
  return PassageStore(tmp_path / "passages"), load_index(tmp_path / "index"), texts, pages


@pytest.mark.parametrize(("duplicates", "same_document"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_dropped_is_what_a_walk_over_all_drops(tmp_path, rng, duplicates, same_document):
  store, opened, texts, pages = world(tmp_path, 60)
  queries = rng.normal(size=(30, 8)).astype(np.float32)
  without = [rng.choice(60, size=i % 3, replace=False).tolist() for i in range(30)]
  for k in (1, 5, 40):
    found, dropped = search_without(
      opened, queries, k, without, store=store, duplicates=duplicates, same_document=same_document
    )
    counts = {"own": 0, "duplicates": 0, "same_document": 0}
    every = opened.search(queries, 60)
    for q in range(30):
      kept = []
      seen_texts, seen_documents = {texts[r] for r in without[q]}, {pages[r] for r in without[q]}
      for row in every.ids[q].tolist():
        if len(kept) == k:
          break
        if row in without[q]:
          counts["own"] += 1
        elif duplicates and texts[row] in seen_texts:
          counts["duplicates"] += 1
        elif same_document and pages[row] in seen_documents:
          counts["same_document"] += 1
        else:
          kept.append(row)
          seen_texts.add(texts[row])
          seen_documents.add(pages[row])
      assert found.ids[q].tolist() == kept + [-1] * (k - len(kept))
      assert found.valid[q].sum() == len(kept)
      np.testing.assert_array_equal(found.scores[q, : len(kept)], every.scores[q][np.isin(every.ids[q], kept)])
    assert dropped == counts


def test_drops_are_counted_and_part_of_the_recipe(parts, tmp_path):
  """Every document twice, under two titles (of equal ones `prepare` keeps one)."""
  lines = list(documents())
  copies = ({**line, "id": f"{line['id']}b", "title": f"{line['title']}b"} for line in lines)
  twice = write_lines(tmp_path / "corpus.jsonl", [*lines, *copies])
  prepare(c.PrepareConfig(workdir=str(tmp_path), corpus=twice, questions=parts["questions"]))
  index(index_config(tmp_path, parts))
  plain = retrieve(retrieve_config(tmp_path, parts, "test", k=10))
  assert plain.dropped == {"own": 0, "duplicates": 0, "same_document": 0}
  with pytest.raises(UserError, match="drop_duplicates"):
    retrieve(retrieve_config(tmp_path, parts, "test", k=10, drop_duplicates=True))
  out = f"{tmp_path}/dropped"
  result = retrieve(retrieve_config(tmp_path, parts, "test", k=10, drop_duplicates=True, out=out))
  assert result.dropped["duplicates"] > result.num_questions
  assert f"{result.dropped['duplicates']} dropped as duplicates" in result.summary()
  assert files.read_manifest(out, "retrieved")["dropped"] == result.dropped
  store = PassageStore(tmp_path / "passages")
  for example in RetrievedStore(out):
    assert example.valid.all()
    assert len({p.text for p in store.many(example.passage_rows)}) == 10
  assert retrieve(retrieve_config(tmp_path, parts, "test", k=10, drop_duplicates=True, out=out)) == result
