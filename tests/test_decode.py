"""Decoding and scoring from the cache, against the same generator run from scratch on every prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from radit_jax.inference.decode import greedy_decode, prefill, score_candidates
from radit_jax.models.decoder import Decoder, DecoderConfig

VOCAB, END = 37, 2
LENGTHS = np.array([9, 4, 7, 1], np.int32)


@pytest.fixture(scope="module")
def generator():
  config = DecoderConfig(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4
  )
  model = Decoder(config, rngs=nnx.Rngs(3))
  # Sharper than a fresh model, so that greedy choices differ and no two logits tie.
  return jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, model)


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(0)
  tokens = np.zeros((4, 12), np.int32)
  for row, length in enumerate(LENGTHS):
    tokens[row, :length] = rng.integers(3, VOCAB, length)
  return tokens


@jax.jit
def all_log_probs(generator, row):
  return jax.nn.log_softmax(generator.logits(generator(row)[0]))


def next_log_probs(generator, ids):
  """No cache: the whole prefix again for every token, at one fixed width so that it compiles once."""
  row = np.zeros((1, 24), np.int32)
  row[0, : len(ids)] = ids  # a causal model cannot see what stands behind
  return np.asarray(all_log_probs(generator, row))[len(ids) - 1]


def test_greedy_equals_choosing_one_token_at_a_time(generator, prompts):
  prefilled = prefill(generator, prompts, LENGTHS, max_new_tokens=6)
  out = np.asarray(greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=(END,)))
  for row, length in enumerate(LENGTHS):
    ids = prompts[row, :length].tolist()
    for step in range(6):
      expected = int(np.argmax(next_log_probs(generator, ids)))
      assert out[row, step] == expected, (row, step)
      if expected == END:
        break
      ids.append(expected)


def test_every_end_token_ends_a_row(generator, prompts):
  prefilled = prefill(generator, prompts, LENGTHS, max_new_tokens=6)
  free = np.asarray(greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=(VOCAB + 5,)))
  ends = (int(free[0, 1]), int(free[1, 2]))  # make two tokens that do come up end tokens
  out = np.asarray(greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=ends))
  for row in range(4):
    stop = next((i for i, t in enumerate(free[row]) if t in ends), 5)
    np.testing.assert_array_equal(out[row, : stop + 1], free[row, : stop + 1])


def test_candidates_score_as_from_scratch(generator, prompts):
  rng = np.random.default_rng(1)
  candidates = rng.integers(3, VOCAB, (2, 3, 4)).astype(np.int32)
  num_tokens = np.array([[4, 1, 2], [3, 0, 0]], np.int32)  # question 1 has one candidate
  prefilled = prefill(generator, prompts, LENGTHS, max_new_tokens=4)
  scores = np.asarray(score_candidates(generator, prefilled, candidates, num_tokens, jnp.asarray(3)))
  assert scores.shape == (2, 3, 2)
  for b in range(2):
    for c in range(3):
      for j in range(2):
        row = 2 * b + j
        ids = prompts[row, : LENGTHS[row]].tolist()
        total = 0.0
        for token in candidates[b, c, : num_tokens[b, c]]:
          total += next_log_probs(generator, ids)[token]
          ids.append(int(token))
        np.testing.assert_allclose(scores[b, c, j], total, atol=1e-4)


def test_columns_past_the_last_candidate_are_not_computed(generator, prompts):
  prefilled = prefill(generator, prompts, LENGTHS, max_new_tokens=4)
  candidates = np.full((2, 3, 4), 5, np.int32)
  scores = score_candidates(generator, prefilled, candidates, np.full((2, 3), 4, np.int32), jnp.asarray(1))
  assert (np.asarray(scores)[:, 0] < 0).all()
  assert (np.asarray(scores)[:, 1:] == 0).all()


def test_decoding_leaves_the_prefilled_prompts_as_they_were(generator, prompts):
  prefilled = prefill(generator, prompts, LENGTHS, max_new_tokens=6)
  once = greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=(END,))
  again = greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=(END,))
  np.testing.assert_array_equal(np.asarray(once), np.asarray(again))
