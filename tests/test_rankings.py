"""Retrieval's measures against `ir-measures` and by hand, their files, and the verb that writes them."""

import dataclasses
import itertools
import json
import shutil

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, Rprec, nDCG

from radit_jax import config as c
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.evaluation import trec
from radit_jax.evaluation.metrics import has_answer
from radit_jax.evaluation.ranking import answer_in, paired_randomization, r_precision
from radit_jax.evaluation.rankings import Ranked, compare, measure, summarize
from radit_jax.verbs.evaluate_retrieval import evaluate_retrieval

THEIRS = {
  "recall@1": R @ 1,
  "recall@5": R @ 5,
  "recall@20": R @ 20,
  "mrr@10": RR @ 10,
  "ndcg@10": nDCG @ 10,
  "map": AP,
  "r_precision": Rprec,
}


def random_judged(seed, questions=40, passages=60, depth=25):
  """Graded judgements, some of them 0 or -1, and runs of every quality; a question may be found nothing for."""
  rng = np.random.default_rng(seed)
  qrels, run = {}, {}
  for q in range(questions):
    judged = rng.choice(passages, rng.integers(1, 12), replace=False)
    qrels[f"q{q}"] = {f"p{p}": int(rng.integers(-1, 4)) for p in judged}
    qrels[f"q{q}"][f"p{judged[0]}"] = 1
    found = rng.permutation(passages)[: rng.integers(0, depth)]
    run[f"q{q}"] = [(f"p{p}", float(100 - i)) for i, p in enumerate(found)]
  return qrels, run


@pytest.mark.parametrize("seed", range(5))
def test_every_measure_is_that_of_ir_measures(seed):
  qrels, run = random_judged(seed)
  expected = {q: dict.fromkeys(THEIRS, 0.0) for q in qrels}
  names = {str(measure): name for name, measure in THEIRS.items()}
  judged = [ir_measures.Qrel(q, p, r) for q, passages in qrels.items() for p, r in passages.items()]
  scored = [ir_measures.ScoredDoc(q, p, s) for q, passages in run.items() for p, s in passages]
  for m in ir_measures.iter_calc(list(THEIRS.values()), judged, scored):
    expected[m.query_id][names[str(m.measure)]] = m.value
  for q in qrels:
    ours = measure(Ranked([p for p, _ in run[q]], qrels[q]), depth=25)
    assert {name: ours[name] for name in THEIRS} == pytest.approx(expected[q], abs=1e-12)


def test_pages_count_once_and_nothing_is_said_of_what_is_not_known():
  pages = {"a1": "A", "a2": "A", "b1": "B", "c1": "C"}
  found = measure(Ranked(["a1", "a2", "b1"], {"a2": 1, "b1": 1}, pages=pages), depth=3)
  assert (found["r_precision"], found["page_r_precision"]) == (0.5, 1.0)
  assert measure(Ranked(["a1"], {"a1": 0}), depth=5) == {}
  assert measure(Ranked(["x", "y"], {}, answered=[False, True]), depth=5) == {"answer@1": 0.0, "answer@5": 1.0}
  assert measure(Ranked([], {"a": 1}), depth=1)["recall@1"] == 0.0
  assert r_precision([], {"a"}) == 0.0


@pytest.mark.parametrize(
  ("text", "answer", "found"),
  [
    ("He lives in Arlen.", "arlen", True),
    ("He lives in Arlenham.", "Arlen", False),
    ("Café Møller", "cafe\u0301 møller", True),  # one accent, written in two ways
    ("It cost $5,000 then", "$5,000", True),
    ("It cost $5,0001", "$5,000", False),
    ("the U.S. army", "U.S.", True),
    ("The Who", "Who The", False),
    ("anything", "", False),
    ("anything", " \n", False),
  ],
)
def test_answers_by_dprs_definition(text, answer, found):
  assert answer_in(text, ["no such thing", answer]) is found


def test_dprs_definition_is_another_one_than_squads():
  assert has_answer("a mill in Old Arlen", ["the Old, Arlen"])
  assert not answer_in("a mill in Old Arlen", ["the Old, Arlen"])


def test_randomisation_test_is_the_enumeration_of_all_signs(rng):
  a, b = rng.random(10), rng.random(10) - 0.2
  difference = a - b
  sums = [abs(np.dot(signs, difference)) for signs in itertools.product([-1, 1], repeat=10)]
  exact = np.mean(np.array(sums) >= abs(difference.sum()) - 1e-12)
  assert 0.02 < exact < 0.9
  assert paired_randomization(a, b, samples=40_000, seed=0) == pytest.approx(exact, abs=0.01)
  assert paired_randomization(a, a, samples=99, seed=0) == 1.0
  with pytest.raises(ValueError, match="same questions"):
    paired_randomization(a, b[:3], samples=10, seed=0)


def test_comparison_counts_and_refuses_other_questions():
  after, before = {"q1": {"map": 1.0}, "q2": {"map": 0.5}}, {"q1": {"map": 0.5}, "q2": {"map": 0.5}}
  found = compare(after, before, samples=100, seed=0)["map"]
  assert (found["difference"], found["better"], found["worse"], found["n"]) == (0.25, 1, 0, 2)
  with pytest.raises(UserError, match="question 'q3' is in one ranking only"):
    compare(after, {**before, "q3": {"map": 1.0}}, samples=100, seed=0)
  summary = summarize(after, samples=100, seed=0)
  assert (summary["map"]["mean"], summary["map"]["n"]) == (0.75, 2)


def test_files_of_trec_come_back_and_are_those_of_ir_measures(tmp_path):
  qrels, run = random_judged(0)
  trec.write_qrels(tmp_path / "qrels", qrels)
  trec.write_run(tmp_path / "run", run)
  assert trec.read_qrels(tmp_path / "qrels") == qrels
  assert trec.read_run(tmp_path / "run") == {q: found for q, found in run.items() if found}
  theirs = list(ir_measures.read_trec_run(str(tmp_path / "run")))
  assert [(d.query_id, d.doc_id, d.score) for d in theirs] == [(q, p, s) for q in run for p, s in run[q]]
  assert {(j.query_id, j.doc_id, j.relevance) for j in ir_measures.read_trec_qrels(str(tmp_path / "qrels"))} == {
    (q, p, r) for q in qrels for p, r in qrels[q].items()
  }
  (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n\nq1\td2\t0\n")
  assert trec.read_qrels(tmp_path / "beir.tsv") == {"q1": {"d1": 2, "d2": 0}}
  (tmp_path / "ranks").write_text("q Q0 a 1 0.5 x\nq Q0 b 2 0.75 x\nq Q0 c 3 0.75 x\n")
  assert [p for p, _ in trec.read_run(tmp_path / "ranks")["q"]] == ["b", "c", "a"]


@pytest.mark.parametrize(
  ("read", "text", "message"),
  [
    (trec.read_run, "q Q0 a 1 0.5 x\nq Q0 b\n", r"file:2: 3 fields, 6 or 5 expected"),
    (trec.read_run, "q Q0 a 1 high x\n", "file:1: score 'high' is not a number"),
    (trec.read_run, "q Q0 a 1 nan x\n", "file:1: score 'nan'"),
    (trec.read_run, "q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "question 'q' has passage 'a' twice"),
    (trec.read_run, "\n", "no lines of a run"),
    (trec.read_qrels, "q 0 a yes\n", "file:1: relevance 'yes'"),
    (trec.read_qrels, "q 0 a 1\nq 0 a 0\n", "file:2: question 'q' judges passage 'a' twice"),
    (trec.read_qrels, "", "no judgements"),
  ],
)
def test_lines_that_cannot_be_are_named(tmp_path, read, text, message):
  (tmp_path / "file").write_text(text)
  with pytest.raises(UserError, match=message):
    read(tmp_path / "file")
  with pytest.raises(UserError, match="no such file"):
    read(tmp_path / "nowhere")


def test_an_id_with_a_space_is_not_written(tmp_path):
  with pytest.raises(UserError, match="'a b' is empty or holds white space"):
    trec.write_run(tmp_path / "run", {"q": [("a b", 1.0)]})
  assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  """Twelve passages of six documents, and ten questions retrieved by a good and by a bad encoder."""
  root = tmp_path_factory.mktemp("stores")
  texts = [f"Passage {i} speaks of town{i}." for i in range(12)]
  metadata = [{"document": f"d{i // 2}"} for i in range(12)]
  write_passages([Passage(f"p{i}", "", texts[i], metadata[i]) for i in range(12)], root / "passages")
  fingerprint = json.loads((root / "passages/manifest.json").read_text())["fingerprint"]
  for name, shift in (("good", 0), ("bad", 3)):
    records = [
      RetrievedExample(
        id=f"q{i}",
        question=f"Where is {i}?",
        answers=("passage", f"town{i}"),  # of which the first stands everywhere, as a choice's letter would
        answer_texts=(f"town{i}",),
        query=f"Where is {i}?",
        group=None,
        gold_rows=(i,) if i < 8 else (),  # of two questions only the answer is known
        passage_rows=np.array([*(np.arange(i + shift, i + shift - 5, -1) % 12), -1], np.int64),
        scores=np.array([5, 4, 3, 2, 1, -np.inf], np.float32),
        valid=np.array([True] * 5 + [False]),
      )
      for i in range(10)
    ]
    write_retrieved(records, root / name, manifest={"k": 6, "passages": fingerprint, "score_temperature": 1.0})
  return root


def verb(stores, tmp_path, **changes):
  fields = {"retrieved": f"{stores}/good", "passages": f"{stores}/passages", "out": f"{tmp_path}/report.json"}
  return evaluate_retrieval(c.EvaluateRetrievalConfig(**{**fields, **changes}))


def test_the_verb_measures_stores_and_compares_them(stores, tmp_path):
  result = verb(
    stores, tmp_path, baseline=f"{stores}/bad", write_run=f"{tmp_path}/run", write_qrels=f"{tmp_path}/qrels"
  )
  measures = result.measures
  assert (measures["recall@1"]["mean"], measures["recall@1"]["n"]) == (1.0, 8)
  assert (measures["answer@1"]["mean"], measures["answer@1"]["n"]) == (1.0, 10)
  assert measures["page_r_precision"]["mean"] == 1.0
  assert "recall@10" not in measures  # six were asked for
  comparison = result.comparison
  assert comparison["mrr@10"]["difference"] == pytest.approx(1 - 1 / 4)
  assert (comparison["answer@1"]["better"], comparison["answer@1"]["worse"]) == (10, 0)
  assert comparison["recall@1"]["p"] < 0.02
  assert comparison["recall@5"]["p"] == 1.0
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["per_question"]["q9"] == {"answer@1": 1.0, "answer@5": 1.0}
  assert "Against the baseline" in (tmp_path / "report.html").read_text()
  assert "mrr@10" in result.summary()

  # The run file and the judgements alone say the same of the rankings.
  again = verb(
    stores,
    tmp_path,
    retrieved=f"{tmp_path}/run",
    qrels=f"{tmp_path}/qrels",
    passages=None,
    out=f"{tmp_path}/again.json",
  )
  for name in ("recall@5", "mrr@10", "ndcg@10", "map", "r_precision"):
    assert again.measures[name] == measures[name]


def test_a_baseline_of_another_version_is_read_in_its_own_passages(stores, tmp_path):
  shutil.copytree(stores / "passages", tmp_path / "passages")
  version = tmp_path / "passages/versions/000001"
  write_passages([*PassageStore(stores / "passages"), Passage("p12", "", "More.", {"document": "d6"})], version)
  later = {"k": 6, "score_temperature": 1.0, "passages": PassageStore(version).fingerprint}
  found = [
    dataclasses.replace(e, passage_rows=np.array([12, *e.passage_rows[:5]])) for e in RetrievedStore(stores / "good")
  ]
  write_retrieved(found, tmp_path / "later", manifest=later)
  comparison = verb(stores, tmp_path, passages=f"{tmp_path}/passages", baseline=f"{tmp_path}/later").comparison
  assert comparison["recall@1"]["difference"] == 1.0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"passages": None}, "give --passages"),
    ({"retrieved": "run"}, "no such file"),
    ({"qrels": "qrels"}, "no such file"),
  ],
)
def test_what_the_verb_refuses(stores, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    verb(stores, tmp_path, **changes)
  assert list(tmp_path.iterdir()) == []


def test_a_run_needs_judgements_and_its_own_passages(stores, tmp_path):
  (tmp_path / "run").write_text("q1 Q0 p1 1 0.5 x\nq1 Q0 elsewhere 2 0.25 x\n")
  (tmp_path / "qrels").write_text("q1 0 p1 1\n")
  with pytest.raises(UserError, match="give --qrels"):
    verb(stores, tmp_path, retrieved=f"{tmp_path}/run")
  with pytest.raises(UserError, match="no passage 'elsewhere' in this passage store"):
    verb(stores, tmp_path, retrieved=f"{tmp_path}/run", qrels=f"{tmp_path}/qrels")
