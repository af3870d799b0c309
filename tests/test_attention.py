"""Attention against a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.models.attention import attention, attention_keys_first


def _oracle(q, k, v, mask):
  """One query, one head at a time."""
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for n, t, h in np.ndindex(q.shape[:3]):
    seen = mask[n, 0, t]
    scores = k[n, seen, h // group] @ q[n, t, h] / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[n, t, h] = weights / weights.sum() @ v[n, seen, h // group]
  return out


def _inputs(rng, heads, kv_heads):
  q = rng.normal(size=(2, 5, heads, 8))
  k, v = rng.normal(size=(2, 2, 7, kv_heads, 8))
  mask = rng.random((2, 1, 5, 7)) < 0.5
  mask[..., 0] = True
  return q, k, v, mask


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 1), (4, 4)])
def test_equals_one_head_at_a_time(rng, heads, kv_heads):
  q, k, v, mask = _inputs(rng, heads, kv_heads)
  out = attention(*map(jnp.float32, (q, k, v)), mask=jnp.array(mask))
  np.testing.assert_allclose(out, _oracle(q, k, v, mask), atol=2e-6)


def test_softmax_is_float32_for_bfloat16_inputs():
  # 256 keys of weight 1/256: summed in bfloat16 the weights would stop growing at 1/256 * 256 = well below 1.
  q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 300, 1, 8), jnp.bfloat16)
  v = jnp.ones((1, 300, 1, 8), jnp.bfloat16)
  out = attention(q, k, v, mask=jnp.ones((1, 1, 1, 300), bool))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out), 1.0, atol=4e-3)
  # Scores of 100.0 and 100.25 are one number in bfloat16; the weights must still differ.
  q = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16)
  k = jnp.array([100.0, 100.5], jnp.bfloat16)[None, :, None, None]
  v = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None]
  out = attention(q * 1.0, k, v, mask=jnp.ones((1, 1, 1, 2), bool))
  np.testing.assert_allclose(np.float32(out).item(), 1 / (1 + np.exp(-0.5)), atol=3e-3)


def test_masked_keys_do_not_matter(rng):
  q, k, v, mask = _inputs(rng, 6, 2)
  mask[..., 3] = False
  base = attention(*map(jnp.float32, (q, k, v)), mask=jnp.array(mask))
  k[:, 3], v[:, 3] = 1e4, -1e4
  np.testing.assert_array_equal(base, attention(*map(jnp.float32, (q, k, v)), mask=jnp.array(mask)))


def test_query_without_a_key_is_finite_forward_and_backward(rng):
  q, k, v, mask = _inputs(rng, 6, 2)
  mask[1] = False
  f = lambda q, k, v: jnp.sum(attention(q, k, v, mask=jnp.array(mask)) ** 2)  # noqa: E731
  value, gradients = jax.value_and_grad(f, argnums=(0, 1, 2))(*map(jnp.float32, (q, k, v)))
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradients)


def test_keys_first_is_the_plain_form_with_its_gradients(rng):
  """The form that encoders take on a CPU, also for a text without a visible token and in bfloat16."""
  q, k, v, g = (jnp.asarray(rng.normal(size=(3, 7, 2, 4)), jnp.float32) for _ in range(4))
  keys = jnp.arange(7) < jnp.array([7, 3, 0])[:, None]
  mask = jnp.broadcast_to(keys[:, None, None, :], (3, 1, 7, 7))

  def both(q, k, v):
    return (
      jax.vjp(lambda *x: attention_keys_first(*x, keys=keys), q, k, v),
      jax.vjp(lambda *x: attention(*x, mask=mask), q, k, v),
    )

  (ours, our_gradients), (plain, plain_gradients) = both(q, k, v)
  np.testing.assert_allclose(ours, plain, atol=1e-6)
  for a, b in zip(our_gradients(g), plain_gradients(g), strict=True):
    np.testing.assert_allclose(a[:2], b[:2], atol=1e-5)
    assert np.isfinite(a).all()
  (ours, _), (plain, _) = both(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(ours.astype(jnp.float32), plain.astype(jnp.float32), atol=2e-2)
