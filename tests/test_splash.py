"""Splash attention, interpreted on the CPU, against plain attention: values, gradients, whole models, a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from radit_jax.errors import UserError
from radit_jax.models.attention import attention, attention_choice, platform_in_force
from radit_jax.models.decoder import Decoder, DecoderConfig, _visible
from radit_jax.models.splash import splash_attention
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.sharding import parameter_shardings, place_rows
from radit_jax.training.step import ralt_objective

#: Three blocks of 128.
TOKENS = 384
#: Packed, with a segment that begins and ends inside blocks; right-padded; one segment that is all there is.
SEGMENTS = np.stack(
  [
    np.repeat([1, 2, 3, 0], [100, 180, 70, 34]),
    np.repeat([1, 0], [150, 234]),
    np.ones(TOKENS, int),
  ]
).astype(np.int32)
POSITIONS = np.stack(
  [
    np.concatenate([np.arange(n) for n in (100, 180, 70, 34)]),
    np.concatenate([np.arange(n) for n in (150, 234)]),
    np.arange(TOKENS),
  ]
).astype(np.int32)


def _plain(q, k, v, *, segment_ids, window, scale, soft_cap):
  mask = _visible(segment_ids, segment_ids, 0, causal=True)
  if window is not None:
    near = jnp.abs(POSITIONS[:, :, None] - POSITIONS[:, None]) < window
    mask &= near[:, None]
  return attention(q, k, v, mask=mask, scale=scale, soft_cap=soft_cap)


def _value_and_gradients(f, arrays, weights, real):
  def total(*arrays):
    out = f(*arrays)
    return jnp.sum(jnp.where(real[..., None, None], out.astype(jnp.float32) * weights, 0.0)), out

  (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
  return np.where(real[..., None, None], np.float32(out), 0.0), [np.float32(g) for g in gradients]


@pytest.mark.parametrize(
  ("heads", "kv_heads", "head_dim", "options"),
  [
    (4, 4, 16, {}),
    (6, 2, 64, {"scale": 0.31}),  # groups of 3
    (3, 1, 80, {"window": 33}),  # a window across blocks; 80 is no multiple of 128
    (5, 1, 16, {"window": 1}),  # itself only
    (2, 1, 16, {"soft_cap": 1.5}),
    (6, 2, 16, {"soft_cap": 2.0, "window": 200, "scale": 0.5}),  # a window longer than a block
  ],
)
def test_equals_plain_in_values_and_gradients(rng, heads, kv_heads, head_dim, options):
  options = {"window": None, "scale": None, "soft_cap": None} | options
  q, weights = rng.normal(size=(2, 3, TOKENS, heads, head_dim)).astype(np.float32)
  k, v = rng.normal(size=(2, 3, TOKENS, kv_heads, head_dim)).astype(np.float32)
  real = SEGMENTS != 0
  ids = jnp.asarray(SEGMENTS)
  plain = functools.partial(_plain, segment_ids=ids, **options)
  splash = functools.partial(splash_attention, segment_ids=ids, interpret=True, **options)
  value, gradients = _value_and_gradients(plain, (q, k, v), weights, real)
  value_s, gradients_s = _value_and_gradients(splash, (q, k, v), weights, real)
  np.testing.assert_allclose(value_s, value, atol=2e-5)
  for g_s, g in zip(gradients_s, gradients, strict=True):
    np.testing.assert_allclose(g_s, g, atol=1e-5 * max(1.0, np.abs(g).max()))


def test_padding_is_finite_forward_and_backward(rng):
  q, k, v = jnp.asarray(rng.normal(size=(3, 1, 256, 2, 16)), jnp.float32)
  ids = jnp.zeros((1, 256), jnp.int32)
  f = lambda *x: jnp.sum(splash_attention(*x, segment_ids=ids, window=5, interpret=True) ** 2)  # noqa: E731
  value, gradients = jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_is_as_near_to_float32_as_plain_is(rng):
  """Both round their inputs' products somewhere: splash may be at most half as far again from float32 as plain."""
  options = {"window": None, "scale": None, "soft_cap": None}
  q, k, v = rng.normal(size=(3, 3, TOKENS, 2, 64)).astype(jnp.bfloat16)
  ids, real = jnp.asarray(SEGMENTS), SEGMENTS != 0
  exact = _plain(*(x.astype(np.float32) for x in (q, k, v)), segment_ids=ids, **options)
  plain = _plain(*map(jnp.asarray, (q, k, v)), segment_ids=ids, **options)
  splash = splash_attention(*map(jnp.asarray, (q, k, v)), segment_ids=ids, interpret=True)
  assert splash.dtype == jnp.bfloat16
  distance = lambda x: np.sqrt(np.mean(np.square(np.float32(x) - exact)[real]))  # noqa: E731
  assert distance(splash) < 1.5 * distance(plain)
  assert distance(splash) < 4e-3


LLAMA = DecoderConfig(
  vocab_size=50,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=6,
  num_kv_heads=2,
  head_dim=8,
)
FAMILIES = {
  "llama": LLAMA,
  "mistral": dataclasses.replace(LLAMA, window=30),
  "gemma2": dataclasses.replace(
    LLAMA,
    num_layers=3,
    window=30,
    window_layers=(True, False, True),
    attention_soft_cap=2.0,
    logit_soft_cap=3.0,
    attention_scale=0.4,
    post_norms=True,
    norm_offset=True,
    activation="gelu_tanh",
    embedding_scale=5.0,
  ),
  "qwen3": dataclasses.replace(LLAMA, head_dim=20, qk_norm=True),
}


def _batch(rng, rows=3):
  tokens = rng.integers(1, 50, size=(rows, TOKENS)).astype(np.int32)
  segments, positions = np.resize(SEGMENTS, (rows, TOKENS)), np.resize(POSITIONS, (rows, TOKENS))
  at = np.tile(np.array([5, 98, 120, 149], np.int32), (rows, 1))
  slot = np.tile(np.arange(rows, dtype=np.int32)[:, None], (1, 4))
  answers = np.take_along_axis(tokens, at + 1, axis=1)
  return ParallelContextBatch(tokens, positions, segments, at, answers, slot, np.ones((rows, 1), bool))


def _loss_and_gradients(model, batch):
  loss = lambda model, batch: ralt_objective(model, batch)[0]  # noqa: E731
  return jax.jit(jax.value_and_grad(loss))(model, batch)


def _with(model, **attributes):
  graph, state = nnx.split(model)
  model = nnx.merge(graph, state)
  for name, value in attributes.items():
    setattr(model, name, value)
  return model


def _assert_same(a, b):
  (loss_a, gradients_a), (loss_b, gradients_b) = a, b
  np.testing.assert_allclose(loss_a, loss_b, rtol=1e-5)
  for g_a, g_b in zip(jax.tree.leaves(gradients_a), jax.tree.leaves(gradients_b), strict=True):
    np.testing.assert_allclose(g_a, g_b, atol=1e-5 * max(1.0, np.abs(g_b).max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_of_each_kind_equals_plain(rng, family):
  model = Decoder(FAMILIES[family], rngs=nnx.Rngs(0), remat="full" if family == "gemma2" else "dots")
  model.layers.q_kernel[...] *= 4.0  # attention that is far from a mean
  batch = _batch(rng)
  splash = _with(model, kind="splash")
  real = batch.segment_ids != 0
  hidden = [m(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)[real] for m in (splash, model)]
  np.testing.assert_allclose(*hidden, atol=1e-4)
  _assert_same(_loss_and_gradients(splash, batch), _loss_and_gradients(model, batch))


def test_sharded_equals_one_device(rng, mesh8):
  model = Decoder(dataclasses.replace(FAMILIES["gemma2"], num_heads=4), rngs=nnx.Rngs(0), kind="splash", remat="full")
  batch = _batch(rng, rows=8)
  alone = _loss_and_gradients(model, batch)
  with jax.set_mesh(mesh8):
    assert platform_in_force() == "cpu"
    spread = jax.device_put(model, parameter_shardings(model, mesh8))
    placed = dataclasses.replace(
      place_rows(dataclasses.replace(batch, context_mask=None), mesh8), context_mask=batch.context_mask
    )
    _assert_same(_loss_and_gradients(spread, placed), alone)


def test_which_form_runs_where():
  assert attention_choice("tpu").kind == "splash"
  assert attention_choice("cpu").kind == "blocked"
  for platform, causal in (("cpu", False), ("gpu", True), (None, True), ("tpu", False)):
    assert attention_choice(platform, causal=causal).kind == "plain"
  assert platform_in_force() is None


def test_model_that_sees_later_tokens_is_refused():
  model = Decoder(dataclasses.replace(LLAMA, causal=False), rngs=nnx.Rngs(0), kind="splash")
  with pytest.raises(ValueError, match="this one sees later ones too"):
    model(jnp.ones((1, 128), jnp.int32))


def test_rows_of_an_odd_length_are_refused():
  q = jnp.zeros((1, 200, 2, 8))
  with pytest.raises(UserError, match=r"^rows of 200 tokens: .* multiples of 128; pad them to 256$"):
    splash_attention(q, q, q, segment_ids=jnp.ones((1, 200), jnp.int32))


@pytest.mark.parametrize(
  ("heads", "kv_heads", "rows", "message"),
  [
    (6, 3, 4, r"^num_kv_heads 3 over mesh axis tensor=2: not divisible; data=4 fsdp=2 tensor=1 is$"),
    (3, 1, 4, r"^num_heads 3 over mesh axis tensor=2"),
    (2, 2, 6, r"^batch of 6 rows over data=2 x fsdp=2: choose a batch size that is a multiple of 4, such as 8$"),
  ],
)
def test_what_the_mesh_does_not_divide_is_refused(mesh8, heads, kv_heads, rows, message):
  q, k = (jnp.zeros((rows, 128, h, 8)) for h in (heads, kv_heads))
  with jax.set_mesh(mesh8), pytest.raises(UserError, match=message):
    splash_attention(q, k, k, segment_ids=jnp.ones((rows, 128), jnp.int32))
