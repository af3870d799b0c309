"""Hard negatives: by hand on a made-up ranking, the file, and a training that reads it."""

import json

import numpy as np
import pytest
from retrieved import make_retrieved

from radit_jax import config as c
from radit_jax.data.batches import lsr_batches
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.data.negatives import read_negatives
from radit_jax.data.plan import PlannedBatch
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.models.pretrained import load_tokenizer
from radit_jax.retrieval.index import load_index
from radit_jax.verbs.mine_negatives import mine_negatives
from radit_jax.verbs.train_retriever import train_retriever

TEXTS = {
  "gold": "The mill of Arlen opened in 1887.",
  "copy": "the Mill of Arlen, opened in 1887",
  "answer": "In 1887 it rained.",
  "titled": "Nothing happened.",  # its title holds the answer
  "near": "The mill of Borva burned down.",
  "twin": "The mill of  Borva burned down!",
  "far": "Weavers weave.",
}


def example(name, rows, gold, answers=("1887",), **changes):
  k = 7
  found = np.array([*rows, *[-1] * (k - len(rows))])
  fields = {"passage_rows": found, "scores": np.arange(k, 0, -1), "valid": found >= 0, "gold_rows": tuple(gold)}
  return RetrievedExample(name, "When?", tuple(answers), f"When, {name}?", None, **{**fields, **changes})


@pytest.fixture
def ranked(tmp_path):
  """A store of the passages above and of questions with every kind of ranking."""
  passages = [Passage(name, "1887" if name == "titled" else "", text) for name, text in TEXTS.items()]
  write_passages(passages, tmp_path / "passages")
  fingerprint = PassageStore(tmp_path / "passages").fingerprint
  row = {name: i for i, name in enumerate(TEXTS)}
  everything = [row[name] for name in ("answer", "near", "gold", "copy", "titled", "twin", "far")]
  examples = [
    example("all", everything, [row["gold"]]),
    example("few", [row["gold"], row["answer"], row["far"]], [row["gold"]]),
    example("nothing", [row["answer"], row["copy"]], [row["gold"]]),
    example("unknown", everything, []),
    example("own", [], [row["gold"]], context="It opened in 1887."),
    example("text", [], [], category="text"),
    example("another answer", everything, [row["near"]], answers=["burned down"]),
    example("a choice", [row["near"], row["far"]], [row["gold"]], ["mill", "1887"], answer_texts=("1887",)),
  ]
  fields = {"k": 7, "passages": fingerprint, "score_temperature": 1.0, "hits": [0] * 6}
  write_retrieved(examples, tmp_path / "retrieved", manifest=fields)
  return tmp_path


def mined(root, **changes):
  fields = {"retrieved": f"{root}/retrieved", "passages": f"{root}/passages", "out": f"{root}/negatives.jsonl"}
  return mine_negatives(c.MineNegativesConfig(**{**fields, "negatives": 3, **changes}))


def test_what_is_taken_and_what_is_passed_over_by_hand(ranked):
  result = mined(ranked)
  lines = [json.loads(line) for line in (ranked / "negatives.jsonl").read_text().splitlines()]
  assert {line["id"]: [n["id"] for n in line["negatives"]] for line in lines} == {
    "all": ["near", "far"],
    "few": ["far"],
    "another answer": ["answer", "gold", "titled"],
    "a choice": ["near", "far"],  # its letter, here a word, stands everywhere
  }
  assert [p["id"] for p in lines[0]["positives"]] == ["gold"]
  assert lines[0]["query"] == "When, all?"
  # all: answer, gold, copy, titled and twin; few: gold and answer; nothing: answer and copy;
  # another answer: near is gold, and copy is one of the passage taken before.
  assert (result.gold, result.copies, result.answers) == (3, 4, 4)
  assert (result.num_questions, result.num_negatives, result.short) == (4, 8, 3)
  assert (result.without_gold, result.without_negative, result.own) == (1, 1, 2)
  assert "4 copies, 4 with an answer" in result.summary()
  assert mined(ranked, negatives=1).num_negatives == 4
  names = list(TEXTS)
  for line in lines:
    assert all(names[n["row"]] == n["id"] for n in [*line["negatives"], *line["positives"]])


def test_nothing_to_mine_is_an_error_with_the_reasons(ranked):
  store = RetrievedStore(ranked / "retrieved")
  fields = {name: store.manifest[name] for name in ("k", "passages", "score_temperature", "hits")}
  write_retrieved([e for e in store if e.id in ("unknown", "nothing")], ranked / "retrieved", manifest=fields)
  with pytest.raises(UserError, match="of 2 questions 1 have no known gold passage, 1 no passage that is wrong"):
    mined(ranked)
  assert not (ranked / "negatives.jsonl").exists()


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "negatives.jsonl:2: not JSON"),
    ('{"id": "a", "passages": "0123456789ab"}', "negatives.jsonl:2: field 'negatives'"),
    ('{"id": "a", "passages": "0123456789ab", "negatives": [{"id": "x"}]}', "field 'row' is missing"),
    ('{"id": "a", "passages": "0123456789ab", "negatives": [{"row": -1}]}', "row -1: must be at least 0"),
    ('{"id": "q", "passages": "0123456789ab", "negatives": []}', "question 'q' stands in an earlier line"),
    ('{"id": "a", "passages": "ba9876543210", "negatives": []}', "passage store ba9876543210, the index holds 0123"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  good = '{"id": "q", "passages": "0123456789ab", "negatives": [{"row": 3}, {"row": 1}]}\n'
  (tmp_path / "negatives.jsonl").write_text(good)
  assert read_negatives(tmp_path / "negatives.jsonl", "0123456789abcdef") == {"q": (3, 1)}
  (tmp_path / "negatives.jsonl").write_text(good + line + "\n")
  with pytest.raises(UserError, match=message):
    read_negatives(tmp_path / "negatives.jsonl", "0123456789abcdef")
  (tmp_path / "negatives.jsonl").write_text("\n")
  with pytest.raises(UserError, match="no lines of negatives"):
    read_negatives(tmp_path / "negatives.jsonl", "0123456789abcdef")


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
  root = tmp_path_factory.mktemp("made")
  make_retrieved(root, parts, k=12)
  stores = {"retrieved": f"{root}/retrieved/train", "passages": f"{root}/passages"}
  mine_negatives(c.MineNegativesConfig(**stores, out=f"{root}/negatives.jsonl", negatives=4))
  return root


def train_config(made, parts, workdir, **changes):
  fields = {
    "workdir": str(workdir),
    "encoder": parts["encoder"],
    "retrieved": f"{made}/retrieved/train",
    "dev_retrieved": f"{made}/retrieved/dev",
    "index": f"{made}/index",
    "loss": "contrastive",
    "negatives": f"{made}/negatives.jsonl",
    "k": 5,
    "optimizer": c.OptimizerConfig(peak_lr=3e-3, floor_lr=1e-3, warmup_steps=1),
    "loop": c.LoopConfig(steps=4, batch_size=16, evaluate_every=4),
  }
  return c.TrainRetrieverConfig(**{**fields, **changes})


def test_a_batch_holds_the_gold_passage_and_the_mined_ones(made, parts):
  store, k = RetrievedStore(made / "retrieved/train"), 5
  negatives = read_negatives(made / "negatives.jsonl", store.manifest["passages"])
  short = store[0].id
  negatives[short] = negatives[short][:2]
  del negatives[store[1].id]
  plan = [PlannedBatch(examples=(0, 1, 2), bucket_tokens=32, epoch=0)]
  tokenizer = load_tokenizer(parts["encoder"])
  options = {"k": k, "max_tokens": 32, "batch_size": 3, "gold_first": True, "negatives": negatives}
  ((_, batch),) = lsr_batches(store, None, load_index(made / "index"), tokenizer, plan, **options)
  gold = [e.gold_rows[0] for e in store[:3]]
  assert batch.passage_rows[0].tolist() == [gold[0], *negatives[short], -1, -1]
  assert batch.passage_rows[1].tolist() == [gold[1], -1, -1, -1, -1]
  assert batch.passage_rows[2].tolist() == [gold[2], *negatives[store[2].id]]
  assert batch.positive.tolist() == [[True, *[False] * 4]] * 3
  assert batch.context_mask.tolist() == (batch.passage_rows >= 0).tolist()
  passages = PassageStore(made / "passages")
  for e in store[:3]:
    assert not any(e.answers[0] in passages[row].text for row in negatives.get(e.id, ()))


def test_the_mined_file_trains(made, parts, tmp_path):
  result = train_retriever(train_config(made, parts, tmp_path / "mined"))
  plain = train_retriever(train_config(made, parts, tmp_path / "plain", negatives=None))
  assert np.isfinite(result.best_dev_loss)
  assert result.best_dev_loss != plain.best_dev_loss
  inputs = json.loads((tmp_path / "mined/run.json").read_text())["recipe"]["inputs"]
  assert len(inputs["negatives"]) == 64
  assert train_retriever(train_config(made, parts, tmp_path / "mined")) == result


def test_negatives_of_another_run_are_refused(made, parts, tmp_path):
  lines = (made / "negatives.jsonl").read_text().splitlines()
  other = tmp_path / "other.jsonl"
  for field, value, message in (
    ("id", "q999", "question 'q999' is not among the"),
    ("negatives", [{"row": 40}], "row 40, but .*index holds 40 passages"),
  ):
    other.write_text("\n".join([*lines[1:], json.dumps({**json.loads(lines[0]), field: value})]))
    with pytest.raises(UserError, match=message):
      train_retriever(train_config(made, parts, tmp_path / "run", negatives=str(other)))
  with pytest.raises(UserError, match="negatives say nothing to loss emdr2"):
    train_config(made, parts, tmp_path / "run", loss="emdr2", scores="a", dev_scores="b")
  assert not (tmp_path / "run").exists()
