"""What `radit inspect` shows is what the arrays hold and what the losses compute."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radit_jax.config import InspectConfig, MeshConfig, PromptConfig
from radit_jax.data.batches import parallel_context_batches, row_lengths
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import PassageScores, RetrievedExample, RetrievedStore, write_retrieved, write_scores
from radit_jax.data.mixture import Mixture
from radit_jax.data.plan import RunPlan
from radit_jax.data.prompts import Prompt
from radit_jax.data.rows import text_to_batch
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.pretrained import load_generator, load_tokenizer, save_generator
from radit_jax.parallel_context import LSRBatch, answer_log_likelihoods
from radit_jax.training.step import PairBatch
from radit_jax.verbs import inspect as verb
from radit_jax.verbs.inspect import describe_batch, inspect

WORDS = ["Background:", "Q:", "Question:", "A:", "Answer:", "who", "is", "?", *(f"n{i}" for i in range(20))]
PROMPT = PromptConfig(max_tokens=64, max_passage_tokens=5, max_answer_tokens=4)
GREEN = "\x1b["


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Paths of a generator, passages, retrieved examples and scores: q1 has one passage less, its first one is long."""
  root = tmp_path_factory.mktemp("inspect")
  vocab = {w: i for i, w in enumerate(["<unk>", "<bos>", "<eos>", *WORDS])}
  backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
  shape = DecoderConfig(
    vocab_size=len(vocab), hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4
  )
  save_generator(jax.jit(lambda: Decoder(shape, rngs=nnx.Rngs(0)))(), tokenizer, root / "generator")
  texts = ["n1 n2", "n3 n4 n5 n6 n7 n8 n9", "n10", "n11 n12"]
  write_passages([Passage(f"p{i}", "", text) for i, text in enumerate(texts)], root / "passages")
  rows = np.array([[0, 2, 3], [1, 2, -1]])
  records = [
    RetrievedExample(
      f"q{i}",
      f"who is n{i} ?",
      (("n2", "n1 n2"), ("n9 n8",))[i],
      f"who n{i}",
      None,
      ((2,), ())[i],
      rows[i],
      np.where(rows[i] >= 0, np.array([1.5, 0.5, -0.5]), -np.inf).astype(np.float32),
      rows[i] >= 0,
    )
    for i in range(2)
  ]
  manifest = {"k": 3, "passages": PassageStore(root / "passages").fingerprint, "score_temperature": 0.5}
  write_retrieved(records, root / "retrieved", manifest=manifest)
  teacher = [PassageScores(f"q{i}", np.array([-4.0, -1.0, -3.0]), np.array([2, 2, 2]), rows[i] >= 0) for i in range(2)]
  made_of = {"k": 3, "generator": "abc", "prompt": "x", "retrieved": RetrievedStore(root / "retrieved").fingerprint}
  write_scores(teacher, root / "scores", manifest=made_of)
  return root


def config(files, what, **kwargs):
  return InspectConfig(
    what=what,
    retrieved=str(files / "retrieved"),
    passages=str(files / "passages"),
    generator=str(files / "generator"),
    **{"k": 3, "prompt": PROMPT, **kwargs},
  )


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


def test_ranking_from_stored_scores_by_hand(files):
  """p_R of scores 1.5, .5, -.5 at temperature .5; p_LSR of exp(l / 2) at temperature .1."""
  result = inspect(config(files, "ranking", scores=str(files / "scores"), lm_temperature=0.1))
  passages = result.data["passages"]
  p_r, p_lsr = softmax(np.array([3.0, 1.0, -1.0])), softmax(np.exp([-2.0, -0.5, -1.5]) / 0.1)
  np.testing.assert_allclose([p["p_r"] for p in passages], p_r, rtol=1e-5)
  np.testing.assert_allclose([p["p_lsr"] for p in passages], p_lsr, rtol=1e-5)
  assert result.data["lsr_loss"] == pytest.approx(np.sum(p_r * np.log(p_r / p_lsr)), rel=1e-4)
  assert [p["log_likelihood"] for p in passages] == [-4.0, -1.0, -3.0]
  assert [(p["rank"], p["row"], p["gold"]) for p in passages] == [(1, 0, False), (2, 2, True), (3, 3, False)]
  assert result.data["teacher"] == "abc"
  line = result.text().splitlines()[6]
  assert line.split()[:6] == ["2", "2", "0.5000", f"{p_r[1]:.4f}", f"{p_lsr[1]:.4f}", "-1.000"]
  assert "⟦[gold] n10⟧" in line  # what the language model would rather have


def test_ranking_over_fewer_passages_is_over_those(files):
  result = inspect(config(files, "ranking", k=2, scores=str(files / "scores")))
  np.testing.assert_allclose([p["p_r"] for p in result.data["passages"]], softmax(np.array([3.0, 1.0])), rtol=1e-5)


def test_ranking_leaves_out_a_passage_that_is_not_there(files):
  result = inspect(config(files, "ranking", example="q1", scores=str(files / "scores")))
  assert [p["row"] for p in result.data["passages"]] == [1, 2]
  assert sum(p["p_lsr"] for p in result.data["passages"]) == pytest.approx(1.0, rel=1e-5)


def test_ranking_computes_the_scores_it_is_not_given(files):
  """The same numbers as the training step's, with the markers of the first epoch."""
  data = inspect(config(files, "ranking")).data
  retrieved, passages = RetrievedStore(files / "retrieved"), PassageStore(files / "passages")
  prompt = Prompt(load_tokenizer(files / "generator"), PROMPT)
  plan = RunPlan([30, 30], batch_size=2, seed=0)
  ids, batch = next(
    iter(
      parallel_context_batches(
        retrieved, passages, prompt, plan, k=3, with_passages=True, batch_size=2, answer_tokens=4, seed=0
      )
    )
  )
  want = answer_log_likelihoods(load_generator(files / "generator"), batch)
  b = ids.index("q0")
  np.testing.assert_allclose([p["log_likelihood"] for p in data["passages"]], want.log_likelihood[b], rtol=1e-5)
  assert [p["num_tokens"] for p in data["passages"]] == want.num_tokens[b].tolist()


def test_ranking_over_a_mesh_is_the_same(files, monkeypatch):
  """A generator that no single device could hold lies over all of them."""
  alone = inspect(config(files, "ranking", mesh=MeshConfig(data=8))).data["passages"]
  loaded = []

  def load(*args, **kwargs):
    loaded.append(load_generator(*args, **kwargs))
    return loaded[0]

  monkeypatch.setattr(verb, "load_generator", load)
  spread = inspect(config(files, "ranking", mesh=MeshConfig(data=1, fsdp=8))).data["passages"]
  for name in ("log_likelihood", "p_lsr"):
    np.testing.assert_allclose([p[name] for p in spread], [p[name] for p in alone], rtol=1e-5)
  assert loaded[0].layers.q_kernel[...].sharding.spec == PartitionSpec(None, "fsdp")


def test_example_shows_segments_ids_answer_and_what_was_cut(files):
  result = inspect(config(files, "example", example="q1"))
  first, second = result.data["passages"]
  row = first["prompt"]
  tokenizer = load_tokenizer(files / "generator")
  assert tokenizer.convert_ids_to_tokens(row["tokens"])[-3:] == ["n9", "n8", "<eos>"]
  assert row["answer_mask"] == [0] * (len(row["tokens"]) - 3) + [1] * 3
  assert row["cut_passage_tokens"] == 2  # seven tokens, five fit
  assert second["prompt"]["cut_passage_tokens"] == 0
  names = [s["name"] for s in row["segments"]]
  assert [n for n in names if n in ("passage", "question", "answer", "end")] == ["passage", "question", "answer", "end"]
  assert [t for s in row["segments"] for t in s["tokens"]] == row["tokens"]
  text = result.text()
  assert "cut: 2 tokens of the passage, 0 of the question" in text
  assert "⟦n9 n8 <eos>⟧" in text


def test_colour_marks_exactly_the_answer(files):
  result = inspect(config(files, "example"))
  coloured, plain = result.text(colour=True), result.text()
  assert GREEN not in plain
  assert coloured.replace("\x1b[1;32m", "⟦").replace("\x1b[0m", "⟧") == plain
  assert "\x1b[1;32mn2 <eos>\x1b[0m" in coloured


def test_summary_has_colour_on_a_terminal_only(files, monkeypatch):
  result = inspect(config(files, "example"))
  monkeypatch.delenv("NO_COLOR", raising=False)
  monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
  assert GREEN not in result.summary()
  monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
  assert GREEN in result.summary()
  monkeypatch.setenv("NO_COLOR", "1")
  assert GREEN not in result.summary()


@pytest.mark.parametrize("what", ["batch", "example", "ranking"])
def test_json_is_the_data(files, what):
  result = inspect(config(files, what, json=True))
  assert json.loads(result.summary()) == json.loads(json.dumps(result.data))


def test_batch_is_the_first_one_of_training(files):
  """The same seed, k and batch size: ids, tokens and answers of `train-generator`'s first step."""
  data = inspect(config(files, "batch", batch_size=2, seed=7)).data
  retrieved, passages = RetrievedStore(files / "retrieved"), PassageStore(files / "passages")
  prompt = Prompt(load_tokenizer(files / "generator"), PROMPT)
  lengths = row_lengths(retrieved, passages, prompt, k=3, with_passages=True)
  plan = RunPlan(lengths.rows, batch_size=2, seed=7, num_steps=50)
  options = {"k": 3, "with_passages": True, "batch_size": 2, "answer_tokens": lengths.answer, "seed": 7}
  ids, batch = next(iter(parallel_context_batches(retrieved, passages, prompt, plan, **options)))
  assert [e["id"] for e in data["examples"]] == list(ids)
  for b, example in enumerate(data["examples"]):
    for j, row in enumerate(example["rows"]):
      if row is None:
        assert not batch.context_mask[b, j]
        continue
      r = b * 3 + j
      assert row["tokens"] == batch.tokens[r][batch.segment_ids[r] != 0].tolist()
      answer = [t for t, m in zip(row["tokens"], row["answer_mask"], strict=True) if m]
      assert answer == batch.answer_tokens[r][batch.answer_slot[r] >= 0].tolist()
  assert data["cut_in_the_whole_store"] == {"rows": 6, "passages": 1, "questions": 0}
  assert data["answer_tokens"] == 3 * 2 + 2 * 3


def test_batch_of_a_mix_is_drawn_as_training_draws(files, tmp_path):
  store = RetrievedStore(files / "retrieved")
  fields = {name: store.manifest[name] for name in ("k", "passages", "score_temperature")}
  mixture = [["rare", 1, 0.1], ["usual", 1, 0.9]]
  write_retrieved(list(store), tmp_path / "mix", manifest={**fields, "mixture": mixture})
  for seed in range(4):
    asked = dataclasses.replace(config(files, "batch", batch_size=8, seed=seed), retrieved=f"{tmp_path}/mix")
    data = inspect(asked).data
    drawn = Mixture(("rare", "usual"), (1, 1), (0.1, 0.9)).order(seed)
    plan = RunPlan(np.full(2, 16), batch_size=8, seed=seed, num_steps=1, order=drawn)
    assert [e["id"] for e in data["examples"]] == [f"q{i}" for i in next(iter(plan)).examples]


def test_a_training_run_writes_its_first_batch_this_way(files, tmp_path):
  retrieved, passages = RetrievedStore(files / "retrieved"), PassageStore(files / "passages")
  tokenizer = load_tokenizer(files / "generator")
  prompt, plan = Prompt(tokenizer, PROMPT), RunPlan([30, 30], batch_size=4, seed=0)
  options = {"k": 3, "with_passages": True, "batch_size": 4, "answer_tokens": 4}
  ids, batch = next(iter(parallel_context_batches(retrieved, passages, prompt, plan, **options)))
  describe_batch(ids, batch, tokenizer, tmp_path / "first_batch")
  data = json.loads((tmp_path / "first_batch.json").read_text())
  assert data["rows"] == 12
  assert [e["id"] for e in data["examples"]] == list(ids)  # the two absent examples are not shown
  text = (tmp_path / "first_batch.txt").read_text()
  assert GREEN not in text
  assert "⟦n9 n8 <eos>⟧" in text
  assert "q1 · passage 3: none" in text


def test_a_text_is_one_row_and_all_but_its_first_token_is_learnt(files, tmp_path):
  describe_batch(
    ("text-0", "text-1"), text_to_batch([[1, 9, 10, 2], [1]], 6), load_tokenizer(files / "generator"), tmp_path / "b"
  )
  (first,), (second,) = [e["rows"] for e in json.loads((tmp_path / "b.json").read_text())["examples"]]
  assert first["tokens"] == [1, 9, 10, 2]
  assert first["answer_mask"] == [0, 1, 1, 1]
  assert second is None  # nothing to predict in a single token
  text = (tmp_path / "b.txt").read_text()
  assert "text-0: 4 tokens, 3 of them answer\n  <bos>⟦" in text
  assert "text-1: none" in text


def test_a_warm_starts_pairs(files, tmp_path):
  batch = PairBatch(
    query_tokens=np.array([[8, 9, 0], [10, 0, 0]], np.int32),
    query_mask=np.array([[True, True, False], [True, False, False]]),
    passage_tokens=np.array([[11, 12], [13, 0]], np.int32),
    passage_mask=np.array([[True, True], [True, False]]),
  )
  describe_batch(("pair-0", "pair-1"), batch, load_tokenizer(files / "generator"), tmp_path / "first_batch")
  data = json.loads((tmp_path / "first_batch.json").read_text())
  assert (data["pairs"], data["tokens_per_query"], data["tokens_per_passage"]) == (2, 3, 2)
  assert data["examples"][0]["query"] == {"tokens": [8, 9], "text": "who is"}
  assert data["examples"][1]["passage"]["tokens"] == [13]
  assert "pair-0 · passage: ⟦n0 n1⟧\n  ids 11 12" in (tmp_path / "first_batch.txt").read_text()


def test_a_retrievers_first_batch(files, tmp_path, rng):
  batch = LSRBatch(
    query_tokens=np.array([[8, 9, 0], [8, 0, 0]], np.int32),
    query_mask=np.array([[True, True, False], [True, False, False]]),
    passage_embeddings=rng.normal(size=(2, 2, 4)).astype(np.float32),
    log_likelihood=np.array([[-1.5, -2.0], [0.0, 0.0]], np.float32),
    num_tokens=np.array([[3, 3], [0, 0]], np.int32),
    context_mask=np.array([[True, True], [False, False]]),
    positive=np.array([[False, True], [False, False]]),
    passage_rows=np.array([[4, 7], [-1, -1]], np.int32),
  )
  describe_batch(("q0",), batch, load_tokenizer(files / "generator"), tmp_path / "first_batch")
  data = json.loads((tmp_path / "first_batch.json").read_text())
  (example,) = data["examples"]
  assert example["query"] == {"tokens": [8, 9], "text": "who is"}
  assert example["passages"][1] == {"row": 7, "gold": True, "log_likelihood": -2.0, "num_tokens": 3}
  assert "⟦row 7 · gold⟧: log p(y) -2.000 of 3 tokens" in (tmp_path / "first_batch.txt").read_text()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"k": 4}, "k = 4 passages, .* holds 3"),
    ({"example": "q9"}, "no example 'q9'; the nearest id is 'q"),
    ({"prompt": dataclasses.replace(PROMPT, max_answer_tokens=1)}, "question 'q0': answer 'n2'|'n9 n8'"),
    ({"retrieved": "nowhere"}, "nowhere: no such directory"),
  ],
)
def test_wrong_calls_are_named(files, change, message):
  example = {"example": "q1"} if "prompt" in change else {}
  with pytest.raises(UserError, match=message):
    inspect(dataclasses.replace(config(files, "ranking", **example), **change))


def test_more_passages_than_were_scored_are_refused(files, tmp_path):
  store = RetrievedStore(files / "retrieved")
  few = [PassageScores(f"q{i}", np.zeros(1), np.ones(1), np.ones(1, bool)) for i in range(2)]
  made_of = {"k": 1, "generator": "abc", "prompt": "x", "retrieved": store.fingerprint}
  write_scores(few, tmp_path / "scores", manifest=made_of)
  with pytest.raises(UserError, match="holds scores of 1; lower --k"):
    inspect(config(files, "ranking", scores=str(tmp_path / "scores")))
