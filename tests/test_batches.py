"""Rows as arrays, streams by step number, and what the hosts of a run see."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from radit_jax.config import PromptConfig
from radit_jax.data.batches import (
  lsr_batches,
  parallel_context_batches,
  query_lengths,
  row_lengths,
  rows_to_batch,
  text_to_batch,
)
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.examples import (
  PassageScores,
  RetrievedExample,
  RetrievedStore,
  ScoreStore,
  write_retrieved,
  write_scores,
)
from radit_jax.data.plan import RunPlan, plan_in_order
from radit_jax.data.prefixes import prompt_table
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.parallel_context import answer_log_likelihoods
from radit_jax.sharding import RowShare

K, QUESTIONS, PASSAGES = 3, 13, 20


def tokenizer():
  words = ["Background:", "Q:", "Question:", "A:", "Answer:", "fact", "who", "is", "?", "[CLS]", "[SEP]"]
  words += [f"n{i}" for i in range(40)]
  vocab = {w: i for i, w in enumerate(["<unk>", "<bos>", "<eos>", "<pad>", *words])}
  backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token="<bos>",
    eos_token="<eos>",
    pad_token="<pad>",
    unk_token="<unk>",
    cls_token="[CLS]",
    sep_token="[SEP]",
  )


@dataclasses.dataclass
class World:
  passages: PassageStore
  retrieved: RetrievedStore
  scores: ScoreStore
  prompt: Prompt

  def stream(self, plan, **kwargs):
    options = {"k": K, "with_passages": True, "batch_size": 4, "answer_tokens": 8, **kwargs}
    return parallel_context_batches(self.retrieved, self.passages, self.prompt, plan, **options)

  def plan(self, **kwargs):
    lengths = row_lengths(self.retrieved, self.passages, self.prompt, k=K, with_passages=True)
    return RunPlan(lengths.rows, **{"batch_size": 4, "seed": 0, "epochs": 2, **kwargs})


class Index:
  def embeddings(self, ids):
    assert ids.min() >= 0
    return np.stack([ids, ids * 10 + 1], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  passages = [Passage(f"p{i}", "", " ".join(["fact", f"n{i}"] * (1 + i * 2))) for i in range(PASSAGES)]
  write_passages(passages, root / "passages")
  store = PassageStore(root / "passages")
  rng = np.random.default_rng(0)
  records = []
  for i in range(QUESTIONS):
    valid = np.arange(K) < (K if i % 4 else 2)
    rows = np.where(valid, rng.permutation(PASSAGES)[:K], -1)
    gold = (int(rows[1]),) if i % 3 == 0 else ((int(rng.integers(PASSAGES)),) if i % 3 == 1 else ())
    scores = np.where(valid, -np.arange(K), -np.inf).astype(np.float32)
    question = "who is " * (1 + i % 3) + f"n{i} ?"
    answers = (" ".join([f"n{i}"] * (1 + i % 5)), "other")
    records.append(RetrievedExample(f"q{i}", question, answers, f"who n{i}", None, gold, rows, scores, valid))
  manifest = {"k": K, "passages": store.fingerprint}
  write_retrieved(records, root / "retrieved", manifest=manifest)
  retrieved = RetrievedStore(root / "retrieved")
  teacher = [
    PassageScores(r.id, np.where(r.valid, -np.arange(K) - i * 10.0, 5), np.where(r.valid, 2 + np.arange(K), 5), r.valid)
    for i, r in enumerate(records)
  ]
  write_scores(teacher[::-1], root / "scores", manifest={"k": K, "retrieved": retrieved.fingerprint})
  prompt = Prompt(tokenizer(), PromptConfig(max_tokens=128, max_passage_tokens=40, max_answer_tokens=8))
  return World(store, retrieved, ScoreStore(root / "scores", retrieved=retrieved), prompt)


def equal(a, b):
  return a[0] == b[0] and all(
    np.array_equal(x, y) and x.dtype == y.dtype
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True)
  )


def test_rows_hold_what_was_rendered(world):
  passage = world.passages[0]
  row = world.prompt.render("who is n1 ?", passage, "n1 n2")
  short = world.prompt.render("who ?", None, "n3")
  batch = rows_to_batch([[row, None], [None, short]], num_tokens=32, num_answer_tokens=4)
  assert batch.tokens.dtype == batch.answer_slot.dtype == np.int32
  assert batch.context_mask.tolist() == [[True, False], [False, True]]
  for r, rendered in ((0, row), (3, short)):
    n, a = len(rendered.tokens), len(rendered.answer_tokens)
    assert tuple(batch.tokens[r, :n]) == rendered.tokens
    assert batch.positions[r, :n].tolist() == list(range(n))
    assert batch.segment_ids[r].tolist() == [1] * n + [0] * (32 - n)
    assert tuple(batch.answer_tokens[r, :a]) == rendered.answer_tokens
    assert batch.answer_slot[r].tolist() == [r] * a + [-1] * (4 - a)
    # the token before each answer token is the one that predicts it
    assert [int(batch.tokens[r, p + 1]) for p in batch.answer_positions[r, :a]] == list(rendered.answer_tokens)
  assert not batch.segment_ids[1:3].any()
  assert (batch.answer_slot[1:3] == -1).all()


def test_rows_that_do_not_fit_are_faults(world):
  row = world.prompt.render("who is n1 ?", None, "n1 n2")
  with pytest.raises(ValueError, match=f"row 0 has {len(row.tokens)} tokens, the batch holds 5"):
    rows_to_batch([[row]], num_tokens=5, num_answer_tokens=4)
  with pytest.raises(ValueError, match="row 0 has 3 answer tokens, the batch holds 2"):
    rows_to_batch([[row]], num_tokens=32, num_answer_tokens=2)
  with pytest.raises(ValueError, match="example 1 has 2 rows, example 0 has 1"):
    rows_to_batch([[row], [row, row]], num_tokens=32, num_answer_tokens=4)


class Bigram:
  """log p(t | previous) from a table: its likelihoods can be summed by hand."""

  def __init__(self, size):
    self.table = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (size, size)))

  def __call__(self, tokens, *, positions, segment_ids):
    return jax.nn.one_hot(tokens, len(self.table))

  def logits(self, hidden):
    return hidden @ self.table


def test_plain_text_is_all_answer():
  generator = Bigram(9)
  texts = [[1, 5, 3, 8], [4], [], [2, 2]]
  batch = text_to_batch(texts, 6)
  assert batch.context_mask[:, 0].tolist() == [True, False, False, True]
  out = answer_log_likelihoods(generator, jax.tree.map(jnp.asarray, batch))
  expected = [sum(float(generator.table[a, b]) for a, b in itertools.pairwise(t)) for t in texts]
  np.testing.assert_allclose(out.log_likelihood[:, 0], expected, rtol=1e-5)
  assert out.num_tokens[:, 0].tolist() == [3, 0, 0, 1]
  with pytest.raises(ValueError, match="row 0 has 7 tokens, the batch holds 6"):
    text_to_batch([[1] * 7], 6)


def test_a_stream_from_any_step_equals_skipping(world):
  plan = world.plan()
  whole = list(world.stream(plan, seed=3))
  assert len(whole) == len(plan)
  for start in range(len(plan) + 1):
    rest = list(world.stream(plan, seed=3, start=start))
    assert len(rest) == len(plan) - start
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_every_example_comes_once_an_epoch_with_its_own_passages(world):
  plan = world.plan()
  batches = list(world.stream(plan, seed=3))
  for epoch in range(2):
    part = batches[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
    assert sorted(i for ids, _ in part for i in ids) == sorted(e.id for e in world.retrieved)
  by_id = {e.id: e for e in world.retrieved}
  seen_markers = set()
  for (ids, batch), planned in zip(batches, plan, strict=True):
    assert batch.tokens.shape == (4 * K, planned.bucket_tokens)
    assert batch.answer_tokens.shape == (4 * K, 8)
    assert batch.context_mask.shape == (4, K)
    assert not batch.context_mask[len(ids) :].any()
    for b, name in enumerate(ids):
      example = by_id[name]
      assert batch.context_mask[b].tolist() == example.valid.tolist()
      for j in np.flatnonzero(example.valid):
        passage = world.passages[int(example.passage_rows[j])]
        row = world.prompt.render(
          example.question, passage, example.answers[0], marker_seed=(3, planned.epoch, example.id)
        )
        seen_markers.add(row.segments[2])
        r = b * K + j
        assert tuple(batch.tokens[r, : len(row.tokens)]) == row.tokens
        assert batch.segment_ids[r].sum() == len(row.tokens)
        assert set(batch.answer_slot[r]) <= {r, -1}
  assert len(seen_markers) > 1


def test_hosts_rows_make_up_the_global_batch(world):
  plan = world.plan()
  whole = list(world.stream(plan, seed=3, share=RowShare()))
  shares = [list(world.stream(plan, seed=3, share=RowShare((i,), 2))) for i in range(2)]
  for (ids, batch), *parts in zip(whole, *shares, strict=True):
    assert sum((p[0] for p in parts), ()) == ids
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))
    assert equal((ids, joined), (ids, batch))
  with pytest.raises(UserError, match="batch_size 4: must be a multiple of the 3 parts"):
    world.stream(plan, share=RowShare((0,), 3))


def test_lengths_fit_every_batch_and_count_what_was_cut(world):
  lengths = row_lengths(world.retrieved, world.passages, world.prompt, k=K, with_passages=True)
  assert lengths.answer == 8
  expected = np.zeros(QUESTIONS, int)
  cut = 0
  for i, e in enumerate(world.retrieved):
    for row in e.passage_rows[e.valid]:
      passage = world.passages[int(row)]
      drawn = [world.prompt.render(e.question, passage, e.answers[0], marker_seed=(s,)) for s in range(40)]
      expected[i] = max(expected[i], *(len(r.tokens) for r in drawn))
      cut += drawn[0].cut_passage_tokens > 0
  assert lengths.rows.tolist() == expected.tolist()
  assert (lengths.cut_passages, lengths.cut_questions) == (cut, 0)
  assert cut > 0
  closed = row_lengths(world.retrieved, world.passages, world.prompt, k=1, with_passages=False)
  assert closed.rows.tolist() == [len(e.question.split()) + len(e.answers[0].split()) + 4 for e in world.retrieved]
  assert closed.cut_passages == 0


def test_closed_book_batches_have_one_row_an_example(world):
  closed = row_lengths(world.retrieved, world.passages, world.prompt, k=1, with_passages=False)
  plan = plan_in_order(closed.rows, batch_size=4)
  for ids, batch in world.stream(plan, k=1, with_passages=False, answer_tokens=closed.answer):
    assert batch.context_mask[:, 0].tolist() == [True] * len(ids) + [False] * (4 - len(ids))
    for b, name in enumerate(ids):
      example = world.retrieved[int(name[1:])]
      row = world.prompt.render(example.question, None, example.answers[0])
      assert tuple(batch.tokens[b, : len(row.tokens)]) == row.tokens


def test_an_answer_too_long_names_its_question(world):
  prompt = Prompt(tokenizer(), PromptConfig(max_tokens=128, max_passage_tokens=40, max_answer_tokens=4))
  said = (
    r"question 'q4': answer 'n4 n4 n4 n4 n4' has 5 tokens, --prompt.max-answer-tokens is 4; 2 of 13 examples "
    r"have such answers, the longest has 5 tokens; --prompt.max-answer-tokens 5 takes all$"
  )
  for measure in (functools.partial(row_lengths, with_passages=True), prompt_table):
    with pytest.raises(UserError, match=said):
      measure(world.retrieved, world.passages, prompt, k=K)


def test_another_passage_store_and_a_larger_k_are_refused(world, tmp_path):
  write_passages([Passage("x", "", "fact")], tmp_path / "other")
  other = PassageStore(tmp_path / "other")
  with pytest.raises(UserError, match=f"{world.passages.fingerprint}.*{other.fingerprint}"):
    row_lengths(world.retrieved, other, world.prompt, k=K, with_passages=True)
  with pytest.raises(UserError, match="k = 4 passages per example"):
    world.stream(world.plan(), k=4)


def lsr(world, plan=None, **kwargs):
  lengths = query_lengths(world.retrieved, tokenizer(), max_tokens=8)
  assert set(lengths.tolist()) == {4}
  plan = plan or plan_in_order(lengths, batch_size=4)
  options = {"k": K, "max_tokens": 8, "batch_size": 4, **kwargs}
  return lsr_batches(world.retrieved, options.pop("scores", world.scores), Index(), tokenizer(), plan, **options)


def test_lsr_batches_join_queries_embeddings_and_scores(world):
  by_id = {e.id: (i, e) for i, e in enumerate(world.retrieved)}
  seen = []
  for ids, batch in lsr(world):
    seen += ids
    assert batch.query_tokens.shape == (4, 32)
    assert batch.passage_embeddings.dtype == np.float32
    for b, name in enumerate(ids):
      i, example = by_id[name]
      words = tokenizer().convert_ids_to_tokens(batch.query_tokens[b, batch.query_mask[b]])
      assert words == ["[CLS]", "who", f"n{i}", "[SEP]"]
      assert batch.context_mask[b].tolist() == example.valid.tolist()
      assert batch.passage_rows[b].tolist() == example.passage_rows.tolist()
      assert batch.positive[b].tolist() == [r in example.gold_rows for r in example.passage_rows.tolist()]
      rows = example.passage_rows[example.valid]
      expected = np.stack([rows, rows * 10 + 1], -1)
      assert batch.passage_embeddings[b, example.valid].tolist() == expected.tolist()
      real = np.arange(K)[example.valid]
      assert batch.log_likelihood[b, example.valid].tolist() == (-real - i * 10.0).tolist()
      assert batch.num_tokens[b, example.valid].tolist() == (2 + real).tolist()
      for field in (batch.passage_embeddings, batch.log_likelihood, batch.num_tokens):
        assert not field[b, ~example.valid].any()
    absent = slice(len(ids), None)
    assert not batch.context_mask[absent].any()
    assert batch.query_mask[absent].sum(axis=1).tolist() == [1] * (4 - len(ids))  # attention over nothing is NaN
  assert sorted(seen) == sorted(by_id)


def test_lsr_stream_resumes_and_splits_over_hosts(world):
  plan = RunPlan(query_lengths(world.retrieved, tokenizer(), max_tokens=8), batch_size=4, seed=1, epochs=2)
  whole = list(lsr(world, plan))
  assert all(equal(a, b) for a, b in zip(whole[5:], lsr(world, plan, start=5), strict=True))
  shares = [list(lsr(world, plan, share=RowShare((i,), 4))) for i in range(4)]
  for (ids, batch), *parts in zip(whole, *shares, strict=True):
    assert sum((p[0] for p in parts), ()) == ids
    assert equal((ids, jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))), (ids, batch))


def test_gold_first_gives_every_question_with_a_gold_passage_a_positive(world):
  for ids, batch in lsr(world, scores=None, gold_first=True):
    for b, name in enumerate(ids):
      example = world.retrieved[int(name[1:])]
      rows = batch.passage_rows[b].tolist()
      if example.gold_rows:
        assert rows[0] == example.gold_rows[0]
        assert batch.positive[b].tolist() == [True, False, False]
        others = [r for r in example.passage_rows.tolist() if r != rows[0]]
        assert rows[1:] == others[: K - 1]
      else:
        assert rows == example.passage_rows.tolist()
        assert not batch.positive[b].any()
      assert not batch.log_likelihood.any()
  with pytest.raises(ValueError, match="gold_first"):
    lsr(world, gold_first=True)


def test_shuffled_teacher_keeps_the_scores_of_each_question_and_moves_them(world):
  moved = 0
  again = list(lsr(world, shuffle_teacher=1))
  for (ids, plain), (_, shuffled), repeated in zip(lsr(world), lsr(world, shuffle_teacher=1), again, strict=True):
    assert equal((ids, shuffled), repeated)
    for b in range(len(ids)):
      pairs = [
        sorted(zip(x.log_likelihood[b].tolist(), x.num_tokens[b].tolist(), strict=True)) for x in (plain, shuffled)
      ]
      assert pairs[0] == pairs[1]
      moved += plain.log_likelihood[b].tolist() != shuffled.log_likelihood[b].tolist()
    assert np.array_equal(plain.passage_rows, shuffled.passage_rows)
    assert not shuffled.log_likelihood[~shuffled.context_mask].any()
  assert moved >= QUESTIONS // 2
  others = [batch.log_likelihood for _, batch in lsr(world, shuffle_teacher=2)]
  assert any(not np.array_equal(a, b.log_likelihood) for a, (_, b) in zip(others, again, strict=True))


def test_a_fault_while_loading_reaches_the_reader(world):
  plan = world.plan()
  with pytest.raises(ValueError, match="answer tokens, the batch holds 2"):
    list(world.stream(plan, answer_tokens=2))
