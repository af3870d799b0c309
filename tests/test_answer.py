"""Answering by eq. 2 against the same thing done slowly: every prompt decoded alone, every answer weighed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radit_jax.config import PromptConfig
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage
from radit_jax.inference.answer import Query, answer_questions
from radit_jax.models.decoder import Decoder, DecoderConfig

WORDS = [
  "<pad>",
  "<bos>",
  "<eos>",
  "<unk>",
  "Background",
  "Q",
  "A",
  ":",
  "where",
  "who",
  "red",
  "blue",
  "green",
  "far",
  "near",
]
TEMPERATURE = 0.5
QUERIES = [
  Query(
    "one",
    "where red",
    tuple(Passage(str(i), "", t, {}) for i, t in enumerate(("red far", "blue near", "green"))),
    (1.0, 0.5, 0.2),
    "far",
  ),
  Query("two", "who blue near far", (Passage("3", "", "near near far", {}),), (0.3,), "near far"),
  Query("three", "where green"),
]


@pytest.fixture(scope="module")
def tokenizer():
  raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
  raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return PreTrainedTokenizerFast(
    tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
  )


@pytest.fixture(scope="module")
def generator():
  config = DecoderConfig(
    vocab_size=len(WORDS), hidden_size=24, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
  )
  return jax.tree.map(lambda x: 2.5 * x if x.ndim > 1 else x, Decoder(config, rngs=nnx.Rngs(7)))


@pytest.fixture(scope="module")
def prompt(tokenizer):
  return Prompt(tokenizer, PromptConfig(max_tokens=48, max_passage_tokens=8, max_answer_tokens=3))


@jax.jit
def all_log_probs(generator, row):
  return jax.nn.log_softmax(generator.logits(generator(row)[0]))


def log_prob_of(generator, prompt_ids, answer_ids):
  row = np.zeros((1, 64), np.int32)
  ids = [*prompt_ids, *answer_ids]
  row[0, : len(ids)] = ids
  table = np.asarray(all_log_probs(generator, row))
  return sum(table[len(prompt_ids) + i - 1, token] for i, token in enumerate(answer_ids))


def decode(generator, prompt_ids, end_ids, most):
  out = []
  while len(out) < most:
    row = np.zeros((1, 64), np.int32)
    ids = [*prompt_ids, *out]
    row[0, : len(ids)] = ids
    out.append(int(np.argmax(np.asarray(all_log_probs(generator, row))[len(ids) - 1])))
    if out[-1] in end_ids:
      break
  return out


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_answers_equal_the_slow_twin(generator, tokenizer, prompt, mesh1, batch_size):
  found = answer_questions(
    generator, tokenizer, prompt, QUERIES, score_temperature=TEMPERATURE, batch_size=batch_size, mesh=mesh1
  )
  assert [a.id for a in found] == ["one", "two", "three"]
  for query, answer in zip(QUERIES, found, strict=True):
    passages = query.passages or (None,)
    prompts = [prompt.render(query.question, p, None).tokens for p in passages]
    weights = np.asarray(jax.nn.softmax(jnp.asarray(query.scores or (0.0,)) / TEMPERATURE))
    texts = {}
    for ids in prompts:
      # The slots of an answer are rounded up to a multiple of 4: max_answer_tokens 3 and the end token.
      out = decode(generator, ids, prompt.end_ids, 4)
      texts.setdefault(tokenizer.decode(out, skip_special_tokens=True).strip(), out)
    mixture = {
      text: sum(w * np.exp(log_prob_of(generator, p, ids)) for w, p in zip(weights, prompts, strict=True))
      for text, ids in texts.items()
    }
    best = max(mixture, key=mixture.get)
    assert answer.text == best
    np.testing.assert_allclose(answer.log_likelihood, np.log(mixture[best]), atol=1e-4)
    assert {c.text for c in answer.candidates} == set(texts)
    if query.passages:
      share = [w * np.exp(log_prob_of(generator, p, texts[best])) for w, p in zip(weights, prompts, strict=True)]
      assert answer.passage == int(np.argmax(share))
    else:
      assert answer.passage is None
    if query.gold_answer:
      gold = prompt.render(query.question, None, query.gold_answer).answer_tokens
      by_hand = sum(w * np.exp(log_prob_of(generator, p, gold)) for w, p in zip(weights, prompts, strict=True))
      np.testing.assert_allclose(answer.gold_log_likelihood, np.log(by_hand), atol=1e-4)
    else:
      assert answer.gold_log_likelihood is None


def test_eight_devices_answer_as_one(generator, tokenizer, prompt, mesh1, mesh8):
  from radit_jax.sharding import parameter_shardings

  config = DecoderConfig(
    vocab_size=16, hidden_size=24, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8
  )
  model = jax.tree.map(lambda x: 2.5 * x if x.ndim > 1 else x, Decoder(config, rngs=nnx.Rngs(7)))
  answers = []
  for mesh in (mesh1, mesh8):
    placed = jax.device_put(model, parameter_shardings(model, mesh))
    answers.append(
      answer_questions(placed, tokenizer, prompt, QUERIES, score_temperature=TEMPERATURE, batch_size=4, mesh=mesh)
    )
  for one, eight in zip(*answers, strict=True):
    assert one.text == eight.text
    np.testing.assert_allclose(one.log_likelihood, eight.log_likelihood, atol=1e-4)
