"""The encoder against transformers on torch, and what padding may not do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.pretrained import load_encoder

EMBEDDING = EmbeddingConfig(normalize=True, max_tokens=256)

VOCAB = 83
encode = jax.jit(lambda encoder, tokens, mask: encoder(tokens, mask))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """A BERT far from its usual small weights, so that gelu, norms and biases all count."""
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=VOCAB,
    hidden_size=36,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=52,
    max_position_embeddings=40,
    layer_norm_eps=1e-5,
    attn_implementation="eager",
  )
  reference = transformers.BertModel(config).eval()
  with torch.no_grad():
    for p in reference.parameters():
      p.copy_(0.3 * torch.randn_like(p) + 0.5 * (p.ndim == 1))
  path = tmp_path_factory.mktemp("bert")
  reference.save_pretrained(path)
  (path / "radit.json").write_text(json.dumps({"pooling": "mean", "normalize": False}))
  return reference, load_encoder(path)


@pytest.fixture
def batch(rng):
  tokens = rng.integers(0, VOCAB, (4, 19)).astype(np.int32)
  mask = np.arange(19) < np.array([19, 3, 11, 1])[:, None]
  return tokens, mask


def test_hidden_states_equal_transformers(pair, batch):
  reference, encoder = pair
  tokens, mask = batch
  with torch.no_grad():
    out = reference(torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long))
  hidden = jax.jit(lambda e, t, m: e.body(t, m))(encoder, tokens, mask)
  np.testing.assert_allclose(hidden[mask], out.last_hidden_state.numpy()[mask], atol=1e-4)


def test_pooling_is_what_its_name_says(pair, batch):
  _, encoder = pair
  tokens, mask = batch
  hidden = np.asarray(jax.jit(lambda e, t, m: e.body(t, m))(encoder, tokens, mask))
  means = np.stack([row[real].mean(0) for row, real in zip(hidden, mask, strict=True)])
  for pooling, expected in (("mean", means), ("cls", hidden[:, 0])):
    for normalize in (False, True):
      encoder.config = dataclasses.replace(encoder.config, pooling=pooling, normalize=normalize)
      vectors = expected / np.linalg.norm(expected, axis=1, keepdims=True) if normalize else expected
      np.testing.assert_allclose(encode(encoder, tokens, mask), vectors, atol=1e-5)
  encoder.config = dataclasses.replace(encoder.config, pooling="mean", normalize=False)


def test_padding_changes_nothing(pair, batch):
  _, encoder = pair
  tokens, mask = batch
  vectors = encode(encoder, tokens, mask)
  np.testing.assert_array_equal(encode(encoder, np.where(mask, tokens, 7), mask), vectors)
  wider = np.pad(tokens, ((0, 0), (0, 13))), np.pad(mask, ((0, 0), (0, 13)))
  np.testing.assert_allclose(encode(encoder, *wider), vectors, atol=2e-5)
  alone = encode(encoder, tokens[1:2, :3], mask[1:2, :3])
  np.testing.assert_allclose(alone[0], vectors[1], atol=2e-5)


def test_a_row_without_tokens_is_finite_forward_and_backward(batch):
  tokens, mask = batch
  mask[2] = False
  encoder = TextEncoder(Bert(BertConfig.tiny(VOCAB), rngs=nnx.Rngs(0)), EMBEDDING)
  value, gradient = jax.jit(jax.value_and_grad(lambda e: jnp.sum(e(tokens, mask) ** 3)))(encoder)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  np.testing.assert_array_equal(encode(encoder, tokens, mask)[2], 0.0)


def test_vectors_are_float32_in_any_computation_type(batch):
  config = BertConfig.tiny(VOCAB)
  full, half = (
    encode(TextEncoder(Bert(config, rngs=nnx.Rngs(0), dtype=d), EMBEDDING), *batch) for d in (jnp.float32, jnp.bfloat16)
  )
  assert half.dtype == jnp.float32
  assert 0 < np.abs(full - half).max() < 0.05


def test_more_tokens_than_positions_are_refused(pair):
  tokens = np.zeros((1, 41), np.int32)
  with pytest.raises(ValueError, match="41 tokens, but the encoder has positions for 40"):
    pair[1](tokens, tokens == 0)


def test_parameters_name_one_axis_per_dimension(pair):
  leaves = jax.tree.leaves(pair[1], is_leaf=lambda x: isinstance(x, nnx.Variable))
  assert len(leaves) == 5 + 16 + 2  # embeddings, layers, and the pooler that is carried along
  assert all(len(p.logical_axes) == p.get_value().ndim for p in leaves)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("num_heads", 5, "hidden_size 128 is no multiple of num_heads 5"),
    ("num_layers", 0, "num_layers = 0: must be greater than 0"),
  ],
)
def test_impossible_shapes_are_refused(field, value, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(BertConfig.tiny(VOCAB), **{field: value})


def test_impossible_poolings_are_refused():
  bert = Bert(BertConfig.tiny(VOCAB), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="pooling = 'max': must be"):
    EmbeddingConfig("max")
  with pytest.raises(UserError, match="max_tokens = 300: the model has positions for 256"):
    TextEncoder(bert, EmbeddingConfig(max_tokens=300))
  with pytest.raises(UserError, match="dimensions = 129: the model is 128 wide"):
    TextEncoder(bert, EmbeddingConfig(max_tokens=256, dimensions=129))
