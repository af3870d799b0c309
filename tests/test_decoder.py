"""The decoder against transformers on torch, and against itself: packed, padded, cached."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.pretrained import load_generator
from radit_jax.models.rotary import Rotary

VOCAB = 97
forward = jax.jit(lambda model, tokens, **kwargs: model(tokens, **kwargs))
head = jax.jit(lambda model, hidden: model.logits(hidden))


def _reference(tie: bool) -> transformers.LlamaForCausalLM:
  """Awkward on purpose: 3 query heads per key head, heads that do not add up to the width, weights far from 0.02."""
  config = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=60,
    intermediate_size=84,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=14,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=tie,
    max_position_embeddings=64,
    attn_implementation="eager",
  )
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(0.15 * torch.randn_like(p) + (p.ndim == 1))
  return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path_factory):
  reference = _reference(request.param)
  path = tmp_path_factory.mktemp("llama")
  reference.save_pretrained(path)
  return reference, load_generator(path)


@pytest.fixture(scope="module")
def model():
  return Decoder(
    dataclasses.replace(DecoderConfig.tiny(VOCAB), num_heads=6, rotary=Rotary(theta=300.0)), rngs=nnx.Rngs(1)
  )


def _tokens(rng, *shape):
  return rng.integers(1, VOCAB, shape).astype(np.int32)


def test_hidden_states_and_logits_equal_transformers(pair, rng):
  reference, generator = pair
  tokens = _tokens(rng, 3, 20)
  with torch.no_grad():
    out = reference(torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
  hidden = forward(generator, tokens)
  np.testing.assert_allclose(hidden, out.hidden_states[-1], atol=1e-4)
  np.testing.assert_allclose(head(generator, hidden), out.logits, atol=1e-4)


def test_right_padding_equals_transformers(pair, rng):
  reference, generator = pair
  tokens, lengths = _tokens(rng, 3, 20), np.array([20, 7, 13])
  real = np.arange(20) < lengths[:, None]
  with torch.no_grad():
    out = reference(torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(real, dtype=torch.long))
  logits = head(generator, forward(generator, tokens, segment_ids=real.astype(np.int32)))
  np.testing.assert_allclose(logits[real], out.logits.numpy()[real], atol=1e-4)


def test_gradients_equal_transformers(pair, rng):
  reference, generator = pair
  tokens = _tokens(rng, 2, 12)
  reference.zero_grad()
  t = torch.tensor(tokens, dtype=torch.long)
  torch.logsumexp(reference(t).logits, -1).sum().backward()
  gradient = jax.jit(jax.grad(lambda m: jnp.sum(jax.nn.logsumexp(m.logits(m(tokens)), axis=-1))))(generator)
  for ours, theirs in (
    (gradient.embedding[...], reference.model.embed_tokens.weight.grad),
    (gradient.layers.k_kernel[...][1], reference.model.layers[1].self_attn.k_proj.weight.grad.T),
    (gradient.layers.down_kernel[...][2], reference.model.layers[2].mlp.down_proj.weight.grad.T),
    (gradient.layers.attention_norm[...][0], reference.model.layers[0].input_layernorm.weight.grad),
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_packed_segments_equal_rows_of_their_own(model, rng):
  rows = [_tokens(rng, 1, n) for n in (7, 4, 9)]
  packed = np.concatenate([*rows, _tokens(rng, 1, 5)], axis=1)
  segments = np.repeat([1, 2, 3, 0], [7, 4, 9, 5])[None].astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in (7, 4, 9, 5)])[None].astype(np.int32)
  hidden = forward(model, packed, positions=positions, segment_ids=segments)
  alone = np.concatenate([forward(model, row) for row in rows], axis=1)
  np.testing.assert_allclose(hidden[:, :20], alone, atol=2e-5)


def test_positions_are_relative_within_a_segment(model, rng):
  tokens = _tokens(rng, 2, 9)
  moved = np.broadcast_to(np.arange(9) + 30, (2, 9))
  np.testing.assert_allclose(forward(model, tokens), forward(model, tokens, positions=moved), atol=5e-5)
  stretched = np.broadcast_to(2 * np.arange(9), (2, 9))
  assert np.abs(forward(model, tokens) - forward(model, tokens, positions=stretched)).max() > 1e-3


def test_padding_changes_nothing_wherever_it_stands(model, rng):
  tokens = _tokens(rng, 2, 6)
  plain = forward(model, tokens)
  padded = np.full((3, 11), 5, np.int32)  # one row of padding alone, and padding before and behind the tokens
  padded[:2, 2:8] = tokens
  segments = np.zeros((3, 11), np.int32)
  segments[:2, 2:8] = 1
  positions = np.broadcast_to(np.arange(11) - 2, (3, 11))
  hidden = forward(model, padded, positions=positions, segment_ids=segments)
  np.testing.assert_allclose(hidden[:2, 2:8], plain, atol=2e-5)
  assert np.isfinite(hidden).all()


def test_gradients_are_finite_and_blind_to_padding(model, rng):
  tokens = _tokens(rng, 3, 8)
  segments = (np.arange(8) < np.array([8, 3, 0])[:, None]).astype(np.int32)

  @jax.jit
  @jax.grad
  def gradient(model, tokens):
    hidden = model(tokens, segment_ids=segments)
    return jnp.sum(jnp.where(segments[..., None] > 0, hidden, 0.0) ** 3)

  first = jax.tree.leaves(gradient(model, tokens))
  second = jax.tree.leaves(gradient(model, np.where(segments > 0, tokens, 1)))
  assert all(np.isfinite(g).all() for g in first)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def _prefill_and_append(model, prompts, lengths, appended):
  """Hidden states of the appended tokens, one step after the other, in a loop that carries the cache."""
  width = prompts.shape[1]
  cache = model.init_cache(len(prompts), width + appended.shape[1], jnp.float32)
  real = (np.arange(width) < lengths[:, None]).astype(np.int32)
  _, cache = forward(model, prompts, segment_ids=real, cache=cache)

  def step(cache, xs):
    i, token = xs
    hidden, cache = model(token[:, None], positions=lengths[:, None] + i, cache=cache)
    return cache, hidden[:, 0]

  cache, hidden = jax.lax.scan(step, cache, (jnp.arange(appended.shape[1]), appended.T))
  return cache, hidden.swapaxes(0, 1)


def test_cached_steps_equal_whole_rows(model, rng):
  lengths = np.array([5, 9, 3])
  prompts, appended = _tokens(rng, 3, 9), _tokens(rng, 3, 4)
  _, hidden = _prefill_and_append(model, prompts, lengths, appended)
  for row, length in enumerate(lengths):
    whole = np.concatenate([prompts[row, :length], appended[row]])[None]
    np.testing.assert_allclose(hidden[row], forward(model, whole)[0, length:], atol=3e-5)


def test_cached_positions_are_counted_when_not_given(model, rng):
  lengths = np.array([5, 9])
  prompts, token = _tokens(rng, 2, 9), _tokens(rng, 2, 1)
  real = (np.arange(9) < lengths[:, None]).astype(np.int32)
  prefill, cache = forward(model, prompts, segment_ids=real, cache=model.init_cache(2, 10, jnp.float32))
  np.testing.assert_allclose(prefill[1], forward(model, prompts[1:])[0], atol=2e-5)
  counted, _ = forward(model, token, cache=cache)
  given, _ = forward(model, token, positions=lengths[:, None], cache=cache)
  np.testing.assert_array_equal(counted, given)


def test_a_finished_row_may_append_padding(model, rng):
  prompts, appended = _tokens(rng, 2, 5), _tokens(rng, 2, 3)
  cache = model.init_cache(2, 9, jnp.float32)
  _, cache = forward(model, prompts, cache=cache)
  # Row 1 has a pause in the middle: two tokens of padding between its first and its second appended token.
  _, cache = forward(model, appended[:, :1], cache=cache)
  _, cache = forward(model, np.full((2, 2), 9), segment_ids=np.array([[0, 0], [0, 0]]), cache=cache)
  hidden, _ = forward(model, appended[:, 1:2], cache=cache)
  whole = forward(model, np.concatenate([prompts, appended[:, :2]], axis=1))
  np.testing.assert_allclose(hidden[:, 0], whole[:, -1], atol=3e-5)


def test_a_slice_of_the_cache_can_be_kept_and_put_back(model, rng):
  prompts, token = _tokens(rng, 3, 6), _tokens(rng, 1, 1)
  _, cache = forward(model, prompts, cache=model.init_cache(3, 8, jnp.float32))
  kept = jax.tree.map(np.asarray, cache)
  fresh = model.init_cache(1, 12, jnp.float32)
  fresh = dataclasses.replace(
    fresh,
    k=fresh.k.at[:, 0, 3:9].set(kept.k[:, 1, :6]),  # other slots than it came from: keys know their position
    v=fresh.v.at[:, 0, 3:9].set(kept.v[:, 1, :6]),
    segment_ids=fresh.segment_ids.at[0, 3:9].set(kept.segment_ids[1, :6]),
    next_slot=jnp.int32(9),
  )
  hidden, _ = forward(model, token, cache=fresh)
  whole = forward(model, np.concatenate([prompts[1:2], token], axis=1))
  np.testing.assert_allclose(hidden[:, 0], whole[:, -1], atol=3e-5)


def test_cache_keeps_shapes_and_types(model, rng):
  cache = model.init_cache(2, 8, jnp.bfloat16)
  _, after = forward(model, _tokens(rng, 2, 3), cache=cache)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
  assert after.k.shape == (2, 2, 8, 2, 32)
  assert int(after.next_slot) == 3
  with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8 slots"):
    forward(model, _tokens(rng, 2, 9), cache=cache)


def test_vmap_over_rows_equals_the_batch(model, rng):
  tokens = _tokens(rng, 4, 6)
  rows = jax.jit(jax.vmap(lambda row: model(row[None])[0]))(tokens)
  np.testing.assert_allclose(rows, forward(model, tokens), atol=2e-5)


def test_bfloat16_computes_in_bfloat16_and_ends_in_float32(rng):
  config = DecoderConfig.tiny(VOCAB)
  full, half = (Decoder(config, rngs=nnx.Rngs(0), dtype=d) for d in (jnp.float32, jnp.bfloat16))
  tokens = _tokens(rng, 2, 16)
  hidden = forward(half, tokens)
  assert hidden.dtype == jnp.bfloat16
  assert half.embedding[...].dtype == jnp.float32
  logits = head(half, hidden)
  assert logits.dtype == jnp.float32
  exact = head(full, forward(full, tokens))
  assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_parameters_name_one_axis_per_dimension(model):
  leaves = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
  assert len(leaves) == 11
  assert all(len(p.logical_axes) == p.get_value().ndim for p in leaves)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("num_kv_heads", 3, "num_heads 4 is no multiple of num_kv_heads 3"),
    ("head_dim", 15, "head_dim 15 x partial 1.0: an even number"),
    ("vocab_size", 0, "vocab_size = 0: must be greater than 0"),
    ("max_positions", float("nan"), "max_positions = nan"),
  ],
)
def test_impossible_shapes_are_refused(field, value, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(DecoderConfig.tiny(VOCAB), **{field: value})
