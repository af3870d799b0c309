"""BM25 against its formula, fusion by hand, and the verb's run file."""

import collections
import math
import re
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radit_jax import config as c
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.errors import UserError
from radit_jax.evaluation import trec
from radit_jax.retrieval.bm25 import K1, B, Bm25, fuse
from radit_jax.verbs.bm25 import bm25
from radit_jax.verbs.prepare import prepare, read_split


def words(text):
  return re.findall(r"\b\w\w+\b", text.lower())


def formula(texts, query):
  """Robertson's formula with Lucene's idf, passage by passage."""
  documents = [collections.Counter(words(t)) for t in texts]
  mean = sum(d.total() for d in documents) / len(documents)
  out = []
  for d in documents:
    score = 0.0
    for word in words(query):
      holding = sum(word in other for other in documents)
      idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
      score += idf * d[word] / (d[word] + K1 * (1 - B + B * d.total() / mean))
    out.append(score)
  return np.array(out)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_scores_are_the_formula(data):
  word = st.sampled_from(["ox", "hen", "cow", "ram", "ewe", "sow", "kid", "ass", "x"])
  texts = data.draw(st.lists(st.lists(word, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=12))
  query, k = " ".join(data.draw(st.lists(word, max_size=4))) + " unheard", data.draw(st.integers(1, 14))
  expected = formula(texts, query)
  found = Bm25(texts).search(query, k)
  assert len(found) == min(k, int((expected > 0).sum()))
  np.testing.assert_allclose([s for _, s in found], np.sort(expected)[::-1][: len(found)], rtol=1e-5)
  for row, score in found:
    assert score == pytest.approx(expected[row], rel=1e-5)
  assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))


class Text(str):
  """One that can be watched."""


def test_no_text_is_held():
  given = []

  def texts():
    for n in range(50):
      assert sum(text() is not None for text in given) <= 2  # the last one, and the one that is being made
      text = Text(f"word{n} and word{n + 1}")
      given.append(weakref.ref(text))
      yield text

  index = Bm25(texts())
  assert [row for row, _ in index.search("word7", 9)] == [6, 7]


def test_fusion_by_hand():
  found = dict(fuse([[3, 1, 2], [2, 9]], 10))
  assert found == {2: 1 / 63 + 1 / 61, 3: 1 / 61, 1: 1 / 62, 9: 1 / 62}
  assert [row for row, _ in fuse([[3, 1, 2], [2, 9]], 3)] == [2, 3, 1]
  assert fuse([[], []], 3) == []


def test_without_bm25s_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "bm25s", None)
  with pytest.raises(UserError, match=r"radit_jax\[bm25\]"):
    Bm25(["text"])


def test_the_verb_writes_what_both_found(parts, tmp_path):
  prepare(c.PrepareConfig(workdir=str(tmp_path), corpus=parts["corpus"], questions=parts["questions"]))
  split, passages = f"{tmp_path}/split/test.jsonl", f"{tmp_path}/passages"
  rng, k = np.random.default_rng(0), 5
  records = [
    RetrievedExample(
      id=q["id"],
      question=q["question"],
      answers=tuple(q["answers"]),
      query=q["query"],
      group=q["group"],
      gold_rows=tuple(q["gold_rows"]),
      passage_rows=rng.permutation(40)[:k],
      scores=np.arange(k, 0, -1),
      valid=np.ones(k, bool),
    )
    for q in read_split(split)
  ]
  fields = {"k": k, "passages": PassageStore(passages).fingerprint, "score_temperature": 1.0}
  write_retrieved(records, tmp_path / "retrieved/test", manifest=fields)
  alone = bm25(c.Bm25Config(split, passages, f"{tmp_path}/bm25.run", k=4))
  store, questions = PassageStore(passages), read_split(split)
  run = trec.read_run(tmp_path / "bm25.run")
  assert alone.num_questions == len(run) == len(questions)
  texts = [passage.full_text for passage in store]
  for q in questions:
    best = np.argsort(-formula(texts, q["query"]), kind="stable")[:4]
    assert [p for p, _ in run[q["id"]]] == [store[int(row)].id for row in best]

  bm25(c.Bm25Config(split, passages, f"{tmp_path}/rrf.run", k=4, fuse=f"{tmp_path}/retrieved/test"))
  fused = trec.read_run(tmp_path / "rrf.run")
  for example in RetrievedStore(f"{tmp_path}/retrieved/test"):
    dense = [store[int(row)].id for row in example.passage_rows]
    expected = fuse([dense, [p for p, _ in run[example.id]]], 4)
    assert {p for p, _ in fused[example.id]} == {p for p, _ in expected}
  with pytest.raises(UserError, match="nothing retrieved for question"):
    bm25(c.Bm25Config(f"{tmp_path}/split/dev.jsonl", passages, "x", fuse=f"{tmp_path}/retrieved/test"))
