"""Weights in bfloat16: small updates count in expectation, moments are float32, a continued run is the same run."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

from radit_jax import config as c
from radit_jax.data.prompts import Rendered
from radit_jax.data.rows import rows_to_batch
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.sharding import place_rows
from radit_jax.training.rounding import apply_updates, round_stochastically
from radit_jax.training.step import init_state, make_optimizer, ralt_objective, train_step


def rounded(x, key=0):
  return np.asarray(jax.jit(round_stochastically)(jnp.asarray(x, jnp.float32), jax.random.key(key)), np.float32)


def test_goes_to_a_neighbour_and_to_the_nearer_more_often(rng):
  x = np.concatenate([rng.normal(size=6), rng.normal(size=6) * 1e-12, [3e38, -1e-38, 0.1, 1.0 + 2**-9]])
  x = x.astype(np.float32)
  draws = rounded(np.broadcast_to(x, (20_000, len(x))))
  # Towards zero by cutting off: the neighbour below in magnitude. The one above has the next code.
  low = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
  high = ((x.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
  assert ((draws == low) | (draws == high)).all()
  share = (x - low) / (high - low)
  np.testing.assert_allclose((draws == high).mean(0), share, atol=5 * 0.5 / np.sqrt(len(draws)))
  assert (np.abs(share - 0.5) < 0.4).sum() > 5


def test_what_bfloat16_can_hold_stays(rng):
  exact = rng.normal(size=500).astype(ml_dtypes.bfloat16).astype(np.float32)
  special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
  np.testing.assert_array_equal(rounded(np.concatenate([exact, special])), np.concatenate([exact, special]))


def test_many_small_updates_add_up():
  """300 updates of 1e-5 move 1.0, whose neighbour is 0.0078 away, by 0.003: in the mean over many weights."""
  weights, steps, change = 40_000, 300, 1e-5

  def run(add):
    start = {"w": jnp.ones(weights, jnp.bfloat16)}
    updates = {"w": jnp.full(weights, change, jnp.float32)}
    final = jax.lax.fori_loop(0, steps, lambda i, w: add(w, updates, i), start)
    assert final["w"].dtype == jnp.bfloat16
    return np.asarray(final["w"], np.float32) - 1.0

  moved = jax.device_get(run(apply_updates))
  # Every step goes up by 2^-7 with probability change * 2^7.
  deviation = np.sqrt(steps * change * 2**7 / weights) * 2**-7
  assert abs(moved.mean() - steps * change) < 5 * deviation
  assert 5 * deviation < 0.1 * steps * change
  assert not run(lambda w, u, i: optax.apply_updates(w, u)).any()  # to the nearest, all are lost


def test_other_types_are_summed_as_they_are():
  params = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(3, jnp.float16), "none": None}
  updates = {"a": jnp.full(3, 1e-6), "b": jnp.full(3, 0.25), "none": None}
  new = apply_updates(params, updates, 7)
  np.testing.assert_array_equal(new["a"], np.float32(1) + np.float32(1e-6))
  assert new["b"].dtype == jnp.float16
  np.testing.assert_array_equal(new["b"], 1.25)


DECODER = DecoderConfig(
  vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8
)
ADAM = make_optimizer(c.OptimizerConfig(peak_lr=1e-3, floor_lr=1e-3, warmup_steps=0), 100)


def states(mesh, *, steps, dtype, first=0, state=None, accumulate=1, seed_steps=True, optimizer=ADAM):
  rng = np.random.default_rng(0)
  rows = [[Rendered((), tuple(rng.integers(1, 32, 12).tolist()), 8, 12)] for _ in range(8)]
  batch = rows_to_batch(rows, num_tokens=16, num_answer_tokens=4)
  model = jax.tree.map(lambda x: x.astype(dtype), jax.jit(lambda: Decoder(DECODER, rngs=nnx.Rngs(0)))())
  with jax.set_mesh(mesh):
    fresh, frozen = init_state(model, optimizer, mesh)
    state = fresh if state is None else state
    step = functools.partial(train_step, objective=ralt_objective, update=optimizer.update, accumulate=accumulate)
    for i in range(first, first + steps):
      state, figures = step(state, frozen, place_rows(batch, mesh), step=i if seed_steps else 0)
  return state, float(figures.loss_sum)


def test_moments_and_gradients_are_float32(mesh1):
  state, _ = states(mesh1, steps=1, dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(state.model)} == {jnp.dtype(jnp.bfloat16)}
  moments = [x for x in jax.tree.leaves(state.optimizer_state) if x.ndim]
  assert len(moments) == 2 * len(jax.tree.leaves(state.model))
  assert {x.dtype for x in moments} == {jnp.dtype(jnp.float32)}


def test_microbatches_are_summed_in_float32(mesh1):
  state, _ = states(mesh1, steps=1, dtype=jnp.bfloat16, accumulate=4, optimizer=optax.sgd(1.0, momentum=0.9))
  gradients = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.optimizer_state)])  # momentum of one step
  # Summed in bfloat16, each would be one of its numbers.
  assert (gradients.astype(ml_dtypes.bfloat16).astype(np.float32) != gradients)[gradients != 0].mean() > 0.5


def test_a_continued_run_rounds_alike(mesh1):
  whole, _ = states(mesh1, steps=4, dtype=jnp.bfloat16)
  half, _ = states(mesh1, steps=2, dtype=jnp.bfloat16)
  resumed, _ = states(mesh1, steps=2, first=2, state=half, dtype=jnp.bfloat16)
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  constant, _ = states(mesh1, steps=4, dtype=jnp.bfloat16, seed_steps=False)
  assert any(
    (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (constant, whole)), strict=True)
  )


def test_learns_as_float32_does(mesh1):
  """40 steps at a rate of which rounding to the nearest would lose most updates."""
  (_, first), (_, full), (_, half) = (
    states(mesh1, steps=n, dtype=d) for n, d in ((1, jnp.float32), (40, jnp.float32), (40, jnp.bfloat16))
  )
  assert full < 0.95 * first
  assert abs(half - full) < 0.1 * (first - full)


def test_any_mesh_rounds_alike(mesh8):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), jnp.float32)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"w": x, "v": x[0]})
  updates = {"w": x * 1e-3, "v": x[0] * 1e-3}
  spread = {
    "w": jax.NamedSharding(mesh8, jax.P("fsdp", "tensor")),
    "v": jax.NamedSharding(mesh8, jax.P()),
  }
  alone = jax.jit(apply_updates)(params, updates, 3)
  there = jax.jit(apply_updates)(jax.device_put(params, spread), jax.device_put(updates, spread), 3)
  assert there["w"].sharding.spec == jax.P("fsdp", "tensor")
  jax.tree.map(np.testing.assert_array_equal, there, alone)


def test_corrections_are_float32_in_any_case():
  options = {"optimizer": c.OptimizerConfig(master_dtype="bfloat16"), "lora": c.LoraConfig(rank=4)}
  with pytest.raises(UserError, match=r"lora.rank 4 trains corrections, which are float32; leave out optimizer.master"):
    c.TuningConfig(**options)
