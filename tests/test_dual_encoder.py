"""Two encoders that share nothing, and their temperature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.dual_encoder import DualEncoder, default_temperature
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder

EMBEDDING = EmbeddingConfig(normalize=True, max_tokens=256)

CONFIG = BertConfig.tiny(vocab_size=31)


@pytest.fixture(scope="module")
def dual():
  return DualEncoder(
    TextEncoder(Bert(CONFIG, rngs=nnx.Rngs(0)), EMBEDDING), TextEncoder(Bert(CONFIG, rngs=nnx.Rngs(1)), EMBEDDING), 0.05
  )


def test_queries_and_passages_go_to_their_own_encoder(dual, rng):
  tokens = rng.integers(0, 31, (2, 6))
  mask = np.ones((2, 6), bool)
  queries, passages = jax.jit(lambda d: (d.encode_queries(tokens, mask), d.encode_passages(tokens, mask)))(dual)
  alone = jax.jit(lambda d: (d.query_encoder(tokens, mask), d.passage_encoder(tokens, mask)))(dual)
  np.testing.assert_allclose(queries, alone[0], atol=1e-6)
  np.testing.assert_allclose(passages, alone[1], atol=1e-6)
  assert np.abs(queries - passages).max() > 0.01


def test_a_gradient_of_queries_leaves_the_passage_encoder_alone(dual, rng):
  tokens = rng.integers(0, 31, (2, 6))
  mask = np.ones((2, 6), bool)
  gradient = jax.jit(jax.grad(lambda d: jnp.sum(d.encode_queries(tokens, mask) ** 3)))(dual)
  assert gradient.score_temperature == 0.05
  assert any(np.any(g) for g in jax.tree.leaves(gradient.query_encoder))
  assert not any(np.any(g) for g in jax.tree.leaves(gradient.passage_encoder))


def test_default_temperature():
  assert default_temperature(normalize=False) == 1.0
  assert default_temperature(normalize=True) == 0.05


def test_what_cannot_be_is_refused(dual):
  wide = TextEncoder(Bert(dataclasses.replace(CONFIG, hidden_size=64), rngs=nnx.Rngs(0)), EMBEDDING)
  with pytest.raises(UserError, match="width 64, passage encoder of width 128"):
    DualEncoder(wide, dual.passage_encoder, 1.0)
  for temperature in (0.0, -1.0, float("nan")):
    with pytest.raises(UserError, match="score_temperature"):
      DualEncoder(dual.query_encoder, dual.passage_encoder, temperature)
