"""Re-ranking against one pair at a time, what it stores for eq. 2, and the losses that read it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from retrieved import make_retrieved

from radit_jax import config as c
from radit_jax import files
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import RetrievedStore, ScoreStore, write_retrieved
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.models.pretrained import load_encoder, load_tokenizer
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import load_index
from radit_jax.verbs.evaluate import evaluate
from radit_jax.verbs.rerank import rerank
from radit_jax.verbs.retrieve import retrieve
from radit_jax.verbs.score import score
from radit_jax.verbs.train_retriever import train_retriever

PROMPT = c.PromptConfig(max_tokens=96, max_passage_tokens=40, max_answer_tokens=8)
LOOP = c.LoopConfig(steps=2, batch_size=8, evaluate_every=2)
FOUND, KEPT = 12, 4


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
  """Stores of 12 passages a question, and a cross-encoder made by transformers that says more than its random start."""
  root = tmp_path_factory.mktemp("made")
  make_retrieved(root, parts, k=FOUND)
  tokenizer = transformers.AutoTokenizer.from_pretrained(parts["encoder"])
  torch.manual_seed(0)
  shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
  config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, num_labels=1, **shape)
  model = transformers.BertForSequenceClassification(config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(0.4 * torch.randn_like(p) + ("LayerNorm.weight" in name))
  model.save_pretrained(root / "cross")
  tokenizer.save_pretrained(root / "cross")
  return root


def rerank_config(made, out, split="train", **changes):
  fields = {
    "retrieved": f"{made}/retrieved/{split}",
    "passages": f"{made}/passages",
    "out": str(out),
    "cross_encoder": f"{made}/cross",
    "k": KEPT,
    "batch_size": 16,
  }
  return c.RerankConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def crossed(made):
  for split in ("train", "dev"):
    rerank(rerank_config(made, made / "crossed" / split, split))
  return made / "crossed"


def one_by_one(made, example):
  """The cross-encoder by torch, a pair at a time, with what its tokenizer makes of the two."""
  model = transformers.BertForSequenceClassification.from_pretrained(made / "cross").eval()
  tokenizer, store = transformers.AutoTokenizer.from_pretrained(made / "cross"), PassageStore(made / "passages")
  with torch.no_grad():
    return [
      float(model(**tokenizer([example.query], [store[int(row)].full_text], return_tensors="pt")).logits[0, 0])
      for row in example.passage_rows
    ]


def test_a_cross_encoders_order_is_that_of_its_scores_pair_by_pair(made, crossed):
  before, after = RetrievedStore(made / "retrieved/train"), RetrievedStore(crossed / "train")
  moved = 0
  for old, new in list(zip(before, after, strict=True))[:6]:
    scores = np.array(one_by_one(made, old))
    order = np.argsort(-scores, kind="stable")[:KEPT]
    assert new.passage_rows.tolist() == old.passage_rows[order].tolist()
    np.testing.assert_allclose(new.scores, scores[order], atol=1e-4)
    assert new.valid.all()
    for name in ("id", "question", "answers", "query", "group", "gold_rows", "category", "context"):
      assert getattr(new, name) == getattr(old, name)
    moved += new.passage_rows.tolist() != old.passage_rows[:KEPT].tolist()
  assert moved
  assert after.manifest["score_temperature"] == 1.0
  assert after.manifest["k"] == KEPT
  hits = [list(np.isin(e.passage_rows, e.gold_rows)) for e in after]
  assert after.manifest["hits"] == [hit.index(True) if any(hit) else KEPT for hit in hits]


def test_the_result_tells_recall_before_and_after(made, crossed):
  result = rerank(rerank_config(made, crossed / "train"))
  before, after = RetrievedStore(made / "retrieved/train"), RetrievedStore(crossed / "train")
  for found, recall in ((before, result.before), (after, result.recall)):
    assert set(recall) == {1}
    assert recall[1] == np.mean([e.passage_rows[0] in e.gold_rows for e in found])
  assert "recall@1" in result.summary()


def another_manifest(made, path, **changes):
  """A copy of the index with another manifest."""
  shutil.copytree(made / "index", path)
  files.write_json(path / files.MANIFEST, files.read_json(path / files.MANIFEST) | changes)
  return str(path)


def test_a_query_encoder_scores_by_the_stored_embeddings(made, parts, tmp_path):
  # Of the index nothing but its embeddings is read: where they are searched may be down.
  down = another_manifest(made, tmp_path / "index", backend="milvus", milvus_uri="http://127.0.0.1:9")
  tuned = train_retriever(
    c.TrainRetrieverConfig(
      workdir=f"{tmp_path}/run",
      encoder=parts["encoder"],
      retrieved=f"{made}/retrieved/train",
      dev_retrieved=f"{made}/retrieved/dev",
      index=down,
      loss="contrastive",
      optimizer=c.OptimizerConfig(peak_lr=1e-2, floor_lr=1e-3, warmup_steps=1),
      loop=LOOP,
    )
  ).query_encoder
  rerank(rerank_config(made, tmp_path / "new", cross_encoder=None, encoder=tuned, index=down))
  before, after = RetrievedStore(made / "retrieved/train"), RetrievedStore(tmp_path / "new")
  stored = load_index(made / "index")
  encoder = load_encoder(tuned)
  texts = [example.query for example in before]
  queries = embed_queries(encoder, load_tokenizer(tuned), texts, max_tokens=256, batch_size=16)
  for old, new, query in zip(before, after, queries, strict=True):
    scores = stored.embeddings(old.passage_rows).astype(np.float64) @ query.astype(np.float64)
    order = np.lexsort((old.passage_rows, -scores.astype(np.float32)))[:KEPT]
    assert new.passage_rows.tolist() == old.passage_rows[order].tolist()
    np.testing.assert_allclose(new.scores, scores[order], rtol=1e-6)
  assert after.manifest["score_temperature"] == before.manifest["score_temperature"] == 0.05
  # All passages that there are, re-ranked, are those that the encoder finds.
  everything = {"passages": f"{made}/passages", "index": f"{made}/index", "questions": f"{made}/split/dev.jsonl"}
  retrieve(c.RetrieveConfig(**everything, encoder=parts["encoder"], out=f"{tmp_path}/all", k=40))
  retrieve(c.RetrieveConfig(**everything, encoder=tuned, out=f"{tmp_path}/found", k=KEPT))
  fields = {"cross_encoder": None, "encoder": tuned, "index": f"{made}/index"}
  rerank(rerank_config(made, tmp_path / "again", **fields, retrieved=f"{tmp_path}/all"))
  for a, b in zip(RetrievedStore(tmp_path / "again"), RetrievedStore(tmp_path / "found"), strict=True):
    assert a.passage_rows.tolist() == b.passage_rows.tolist()
    assert a.scores.tolist() == b.scores.tolist()


def test_what_was_not_searched_for_stays_as_it_is(made, tmp_path):
  found = RetrievedStore(made / "retrieved/dev")
  k = found.manifest["k"]
  own = dataclasses.replace(
    found[0],
    context="Person 0 lives in Arlen.",
    passage_rows=np.full(k, -1),
    scores=np.where(np.arange(k) == 0, 0, -np.inf).astype(np.float32),
    valid=np.arange(k) == 0,
  )
  # A multiple-choice question of which no gold passage is known: its letter, here a word, stands in every passage.
  choice = {"answers": ("person", "no such town"), "answer_texts": ("no such town",), "gold_rows": ()}
  few = dataclasses.replace(found[1], valid=np.arange(k) < 2, **choice)
  fields = {name: found.manifest[name] for name in ("k", "passages", "score_temperature")}
  write_retrieved([own, few], tmp_path / "old", manifest={**fields, "hits": [k]})
  result = rerank(rerank_config(made, tmp_path / "new", retrieved=f"{tmp_path}/old"))
  assert (result.mrr, RetrievedStore(tmp_path / "new").manifest["hits"]) == (0.0, [KEPT])
  first, second = RetrievedStore(tmp_path / "new")
  assert second.answer_texts == few.answer_texts
  assert (first.context, first.valid.tolist(), first.scores[0]) == (own.context, [True, False, False, False], 0.0)
  assert second.valid.tolist() == [True, True, False, False]
  assert set(second.passage_rows[:2]) == set(few.passage_rows[:2])
  assert second.passage_rows[2:].tolist() == [-1, -1]
  assert np.all(np.isneginf(second.scores[2:]))


def test_the_mixture_answers_with_a_cross_encoders_scores(made, parts, crossed, tmp_path):
  """Eq. 2 with softmax of the logits in the place of s(q, c)."""
  stores = {"retrieved": f"{crossed}/dev", "passages": f"{made}/passages", "generator": parts["generator"]}
  score(c.ScoreConfig(**stores, out=f"{tmp_path}/scores", k=KEPT, prompt=PROMPT, batch_size=8))
  lines = evaluate(c.EvaluateConfig(**stores, out=f"{tmp_path}/row.json", k=KEPT, prompt=PROMPT, batch_size=4)).answers
  for example, scores, line in zip(
    RetrievedStore(crossed / "dev"), ScoreStore(tmp_path / "scores"), lines, strict=True
  ):
    weights = np.exp(example.scores.astype(np.float64))
    expected = np.log(np.sum(weights / weights.sum() * np.exp(scores.log_likelihood.astype(np.float64))))
    assert line["gold_log_likelihood"] == pytest.approx(expected, abs=1e-4)


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.sum(np.exp(x)))


@pytest.mark.parametrize("loss", ["distill", "emdr2"])
def test_the_losses_to_compare_with_train(made, parts, crossed, tmp_path, loss):
  """On the same passages: the cross-encoder's scores as the teacher, or the answer's likelihood under the mixture."""
  fields = {"workdir": f"{tmp_path}/run", "encoder": parts["encoder"], "index": f"{made}/index", "k": KEPT}
  if loss == "emdr2":
    stores = {"passages": f"{made}/passages", "generator": parts["generator"], "prompt": PROMPT, "batch_size": 8}
    for split, name in (("train", "scores"), ("dev", "dev_scores")):
      fields[name] = f"{tmp_path}/{split}"
      score(c.ScoreConfig(**stores, retrieved=f"{crossed}/{split}", out=fields[name], k=KEPT))
  config = c.TrainRetrieverConfig(
    **fields,
    retrieved=f"{crossed}/train",
    dev_retrieved=f"{crossed}/dev",
    loss=loss,
    optimizer=c.OptimizerConfig(peak_lr=3e-3, floor_lr=1e-3, warmup_steps=1),
    loop=c.LoopConfig(steps=8, batch_size=24, evaluate_every=1, log_every=1),
  )
  train_retriever(config)
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  dev = [line["dev_loss"] for line in lines if line.get("dev_loss") is not None]
  # Nothing has moved after the first step, as its rate is 0: the loss of the encoder that retrieved, by hand.
  expected, found = [], {e.id: e for e in RetrievedStore(made / "retrieved/dev")}
  for i, example in enumerate(RetrievedStore(crossed / "dev")):
    old = dict(zip(found[example.id].passage_rows, found[example.id].scores, strict=True))
    log_p = log_softmax([old[row] / 0.05 for row in example.passage_rows])
    if loss == "distill":
      expected.append(np.sum(np.exp(log_p) * (log_p - log_softmax(example.scores))))
    else:
      likelihood = ScoreStore(fields["dev_scores"])[i].log_likelihood.astype(np.float64)
      expected.append(-np.log(np.sum(np.exp(log_p + likelihood))))
  assert dev[0] == pytest.approx(np.mean(expected), rel=1e-4)
  losses = [line["loss"] for line in lines if line.get("loss") is not None]
  assert min(losses[4:]) < losses[0]
  recipe = files.read_json(tmp_path / "run/query_encoder/radit.json")["recipe"]
  assert recipe["lm_temperature"] is None  # that of LSR, which neither uses
  card = (tmp_path / "run/query_encoder/README.md").read_text()
  assert {"distill": "towards a cross-encoder's scores", "emdr2": "EMDR²"}[loss] in card


def test_what_cannot_be_is_told_in_one_line(made, parts, crossed, tmp_path):
  with pytest.raises(UserError, match=r"k = 13 passages to keep, .*/retrieved/train holds 12"):
    rerank(rerank_config(made, tmp_path / "x", k=13))
  with pytest.raises(UserError, match="give one of them"):
    rerank_config(made, tmp_path / "x", encoder=parts["encoder"])
  with pytest.raises(UserError, match="a query encoder needs the index"):
    rerank_config(made, tmp_path / "x", encoder=parts["encoder"], cross_encoder=None)
  with pytest.raises(UserError, match="not supported as a cross-encoder"):
    rerank(rerank_config(made, tmp_path / "x", cross_encoder=parts["encoder"]))
  fields = {"workdir": f"{tmp_path}/run", "encoder": parts["encoder"], "index": f"{made}/index", "k": KEPT}
  stores = {"retrieved": f"{crossed}/train", "dev_retrieved": f"{made}/retrieved/dev"}
  with pytest.raises(UserError, match="dev: its scores are a query encoder's, and no teacher"):
    train_retriever(c.TrainRetrieverConfig(**fields, **stores, loss="distill"))
  dev = RetrievedStore(crossed / "dev")
  fields_of = {name: dev.manifest[name] for name in ("k", "passages", "score_temperature", "cross_encoder", "hits")}
  stores["dev_retrieved"] = f"{tmp_path}/other"
  for name, value in (("cross_encoder", "0" * 64), ("score_temperature", 0.5)):
    write_retrieved(dev, stores["dev_retrieved"], manifest=fields_of | {name: value})
    with pytest.raises(UserError, match=rf"other: re-ranked with {name} {value}, .*train with .*re-rank both"):
      train_retriever(c.TrainRetrieverConfig(**fields, **stores, loss="distill"))
  with pytest.raises(UserError, match="loss emdr2 needs --scores and --dev-scores"):
    c.TrainRetrieverConfig(**fields, **stores, loss="emdr2")
  assert not (tmp_path / "x").exists()
  # The store has a version that was searched, and the index is of the one before.
  versions = tmp_path / "passages/versions/000001"
  shutil.copytree(made / "passages", tmp_path / "passages")
  write_passages([*PassageStore(made / "passages"), Passage("new", "", "A town.")], versions)
  (tmp_path / "passages/CURRENT").write_text("1")
  found = RetrievedStore(made / "retrieved/train")
  later = {
    "k": FOUND,
    "score_temperature": 1.0,
    "hits": [0] * len(found),
    "passages": PassageStore(versions).fingerprint,
  }
  write_retrieved(found, tmp_path / "later", manifest=later)
  by_encoder = {"cross_encoder": None, "encoder": parts["encoder"], "index": f"{made}/index"}
  changes = {"retrieved": f"{tmp_path}/later", "passages": f"{tmp_path}/passages", **by_encoder}
  with pytest.raises(
    UserError, match=rf"index: of the passages .*, and no version of it is of {later['passages'][:12]}, which was retr"
  ):
    rerank(rerank_config(made, tmp_path / "x", **changes))
