"""A folder of BEIR's format in, TREC files out, and the figures that ir-measures finds in them."""

import json

import ir_measures
import pytest
from ir_measures import AP, RR, R, nDCG

from radit_jax import cli
from radit_jax.data.corpus import PassageStore


def lines(records):
  return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def beir(parts, tmp_path):
  """The made-up corpus as BEIR keeps one: graded judgements, a query that nobody judged, and answers as an extra."""
  with open(parts["corpus"]) as corpus, open(parts["questions"]) as questions:
    documents = [json.loads(line) for line in corpus]
    asked = [json.loads(line) for line in questions]
  root = tmp_path / "beir"
  (root / "qrels").mkdir(parents=True)
  (root / "corpus.jsonl").write_text(lines({"_id": d["id"], "title": d["title"], "text": d["text"]} for d in documents))
  queries = [{"_id": q["id"], "text": q["question"], "answers": q["answers"]} for q in asked]
  (root / "queries.jsonl").write_text(lines([*queries, {"_id": "unjudged", "text": "Who?"}]))
  judged = [f"{q['id']}\t{q['passage_ids'][0]}\t2\n{q['id']}\td{(i + 10) % 40}\t1\n" for i, q in enumerate(asked)]
  (root / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
  return root


def radit(*args):
  assert cli.main([str(a) for a in args]) == 0


def test_a_beir_folder_to_trec_files(beir, parts, tmp_path, capsys):
  w = tmp_path / "w"
  files = ["--corpus", beir, "--corpus-format", "beir", "--questions", beir, "--questions-format", "beir"]
  radit("prepare", "--workdir", w, *files, "--test-fraction", 0.5)
  stores = ["--passages", w / "passages", "--encoder", parts["encoder"], "--index", w / "index"]
  radit("index", *stores, "--embeddings", w / "embeddings", "--backend", "exact")
  radit("retrieve", *stores, "--questions", w / "split/test.jsonl", "--out", w / "found", "--k", 20)
  written = ["--write-run", w / "run", "--write-qrels", w / "qrels"]
  radit("evaluate-retrieval", "--retrieved", w / "found", "--passages", w / "passages", "--out", w / "a.json", *written)
  run = list(ir_measures.read_trec_run(str(w / "run")))
  qrels = list(ir_measures.read_trec_qrels(str(w / "qrels")))
  assert {j.doc_id for j in qrels} <= {p.id for p in PassageStore(w / "passages")}
  names = {
    R @ 1: "recall@1",
    R @ 5: "recall@5",
    R @ 20: "recall@20",
    RR @ 10: "mrr@10",
    AP: "map",
    nDCG @ 10: "ndcg@10",
  }
  theirs = ir_measures.calc_aggregate(list(names), qrels, run)
  ours = json.loads((w / "a.json").read_text())["measures"]
  for measure, name in names.items():
    assert ours[name]["mean"] == pytest.approx(theirs[measure], abs=1e-9), name
    assert ours[name]["n"] == len({j.query_id for j in qrels})
  assert 0 < ours["recall@20"]["mean"] < 1

  # The run file with BEIR's own judgements: graded, and of questions that were not searched for too.
  found = {r.query_id for r in run}
  judgements = [line for line in (beir / "qrels/test.tsv").read_text().splitlines() if line.split("\t")[0] in found]
  (w / "judged.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judgements) + "\n")
  radit("evaluate-retrieval", "--retrieved", w / "run", "--qrels", w / "judged.tsv", "--out", w / "b.json")
  graded = [ir_measures.Qrel(q, d, int(s)) for q, d, s in (line.split("\t") for line in judgements)]
  theirs = ir_measures.calc_aggregate(list(names), graded, run)
  ours = json.loads((w / "b.json").read_text())["measures"]
  for measure, name in names.items():
    assert ours[name]["mean"] == pytest.approx(theirs[measure], abs=1e-9), name


def test_a_corpus_alone_becomes_a_store_to_search(beir, tmp_path, capsys):
  w = tmp_path / "w"
  radit("prepare", "--workdir", w, "--corpus", beir, "--corpus-format", "beir")
  out = capsys.readouterr().out
  assert "40 passages of 40 documents" in out
  assert "questions" not in out
  assert [p.id for p in PassageStore(w / "passages")] == [f"d{i}" for i in range(40)]
  radit("prepare", "--workdir", w, "--corpus", beir, "--corpus-format", "beir")  # kept
  assert cli.main(["retrieve", "--questions", f"{w}/split/test.jsonl", "--passages", f"{w}/passages"]) == 2
