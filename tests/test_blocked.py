"""Attention in blocks of queries against its plain twin: values, gradients, and that a model takes it on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from radit_jax.models.attention import attention
from radit_jax.models.blocked import blocked_attention
from radit_jax.models.decoder import Decoder, DecoderConfig


def inputs(rng, tokens, heads, kv_heads):
  """Three segments a row, the last of them padding."""
  q = rng.normal(size=(2, tokens, heads, 8))
  k, v = rng.normal(size=(2, 2, tokens, kv_heads, 8))
  segments = np.sort(rng.integers(0, 3, (2, tokens)), axis=1)[:, ::-1]
  mask = (segments[:, :, None] == segments[:, None]) & np.tri(tokens, dtype=bool)
  return (*map(jnp.float32, (q, k, v)), jnp.array(mask)[:, None])


# 5 tokens are one block, 65 two, 261 four, the last one shorter.
@pytest.mark.parametrize(
  ("tokens", "heads", "kv_heads", "soft_cap"), [(5, 3, 3, None), (65, 4, 1, 2.0), (261, 4, 2, None)]
)
def test_equals_the_plain_form(rng, tokens, heads, kv_heads, soft_cap):
  q, k, v, mask = inputs(rng, tokens, heads, kv_heads)

  @functools.partial(jax.jit, static_argnums=0)
  def run(form):
    f = lambda q, k, v: form(q, k, v, mask=mask, scale=0.3, soft_cap=soft_cap)  # noqa: E731
    return f(q, k, v), jax.grad(lambda *x: jnp.sum(f(*x) ** 2), argnums=(0, 1, 2))(q, k, v)

  for a, b in zip(jax.tree.leaves(run(blocked_attention)), jax.tree.leaves(run(attention)), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))


def test_bfloat16_keeps_the_softmax_in_float32():
  q = jnp.ones((1, 2, 1, 1), jnp.bfloat16)
  k = jnp.array([100.0, 100.5], jnp.bfloat16)[None, :, None, None]
  v = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None]
  out = blocked_attention(q, k, v, mask=jnp.tri(2, dtype=bool)[None, None], scale=0.5)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out[0, 1]).item(), 1 / (1 + np.exp(-0.25)), atol=3e-3)


def test_a_model_takes_it_on_a_cpu(mesh1):
  config = DecoderConfig.tiny(vocab_size=50)
  tokens = jnp.arange(2 * 80).reshape(2, 80) % 50
  chosen, plain = (Decoder(config, rngs=nnx.Rngs(0), kind=kind) for kind in (None, "plain"))
  with jax.set_mesh(mesh1):
    programs = [jax.jit(lambda m, t: m(t)).lower(m, tokens) for m in (chosen, plain)]
    np.testing.assert_allclose(chosen(tokens), plain(tokens), atol=1e-5)
  assert programs[0].as_text() != programs[1].as_text()
