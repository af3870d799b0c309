"""Draws by weight: their proportions, and that they are a pure function of seed and epoch."""

import collections

import numpy as np
import pytest

from radit_jax.data.mixture import Mixture, kept, mixture_of
from radit_jax.data.packing import PackedPlan, Packing
from radit_jax.data.plan import RunPlan, permutation
from radit_jax.errors import UserError

SETS = Mixture(("text", "chat", "large", "small"), (700, 40, 7500, 300), (0.10, 0.05, 0.80, 0.05))


def drawn(mixture, seed, epochs):
  order = mixture.order(seed)
  return np.concatenate([order(epoch) for epoch in range(epochs)])


def sets_of(mixture, positions):
  return np.searchsorted(np.cumsum(mixture.counts), positions, side="right")


def slow(mixture, seed, epoch):
  """The same draws, one by one: the n-th draw of a set is the next example of its walk number n // size."""
  out, start = [], 0
  for s, (count, draws) in enumerate(zip(mixture.counts, mixture.draws, strict=True)):
    for n in range(epoch * draws, (epoch + 1) * draws):
      out.append(start + int(permutation(count, seed, n // count, s + 1)[n % count]))
    start += count
  return [out[i] for i in permutation(len(out), seed, 2 * epoch)]


def test_proportions_over_100k_draws():
  """Within half a percentage point of the weights; through the plan too, and over any stretch of it nearly so."""
  total = sum(SETS.counts)
  epochs = -(-100_000 // total)
  shares = np.bincount(sets_of(SETS, drawn(SETS, 0, epochs)[:100_000]), minlength=4) / 100_000
  assert np.abs(shares - SETS.weights).max() < 0.005
  plan = RunPlan(np.full(total, 20), batch_size=64, seed=0, epochs=epochs, order=SETS.order(0))
  planned = np.array([e for batch in plan for e in batch.examples][:100_000])
  assert np.abs(np.bincount(sets_of(SETS, planned), minlength=4) / 100_000 - SETS.weights).max() < 0.005
  stretch = planned[3_000:7_000]
  assert np.abs(np.bincount(sets_of(SETS, stretch), minlength=4) / 4_000 - SETS.weights).max() < 0.03


def test_without_weights_the_same_examples_come_in_other_proportions():
  """What the test above would see of a plan that knows no weights: it can fail."""
  plan = RunPlan(np.full(sum(SETS.counts), 20), batch_size=64, seed=0, epochs=2)
  shares = np.bincount(sets_of(SETS, [e for batch in plan for e in batch.examples]), minlength=4)
  assert abs(shares[2] / shares.sum() - 0.80) > 0.05


def test_a_set_is_walked_through_again_and_again():
  positions = drawn(SETS, 3, 4)
  for s, (count, draws) in enumerate(zip(SETS.counts, SETS.draws, strict=True)):
    times = collections.Counter(positions[sets_of(SETS, positions) == s].tolist())
    assert sum(times.values()) == 4 * draws
    assert {times.get(i, 0) for i in range(sum(SETS.counts[:s]), sum(SETS.counts[: s + 1]))} <= {
      4 * draws // count,
      -(-4 * draws // count),
    }


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_fast_equals_slow(epoch):
  mixture = Mixture(("a", "b", "c"), (3, 10, 1), (0.5, 0.2, 0.3))
  assert mixture.draws == (7, 3, 4)
  assert mixture.order(7)(epoch).tolist() == slow(mixture, 7, epoch)


def test_draws_know_no_history():
  """An epoch is the same whether or not others were asked for before; another seed or epoch is another order."""
  again = SETS.order(0)
  assert (again(3) == SETS.order(0)(3)).all()
  again(9)
  assert (again(3) == SETS.order(0)(3)).all()
  assert (again(3) != again(4)).any()
  assert (again(3) != SETS.order(1)(3)).any()


def test_every_epoch_has_as_many_batches_and_any_step_can_be_asked_for_first(rng):
  lengths = rng.integers(10, 200, sum(SETS.counts))
  plan = RunPlan(lengths, batch_size=128, seed=1, epochs=3, order=SETS.order(1))
  assert len(plan) == 3 * -(-sum(SETS.counts) // 128)
  for step in (0, 70, 140, 200):
    fresh = RunPlan(lengths, batch_size=128, seed=1, epochs=3, order=SETS.order(1))
    assert fresh[step] == plan[step]
  for batch in plan:
    assert lengths[list(batch.examples)].max() <= batch.bucket_tokens


def test_packed_rows_draw_by_weight_too(rng):
  mixture = Mixture(("few", "many"), (20, 300), (0.5, 0.5))
  packing = Packing(rng.integers(5, 60, (320, 2)), np.full(320, 4), 128, batch_size=16)
  plan = PackedPlan(packing, seed=0, epochs=2, order=mixture.order(0))
  seen = collections.Counter(sets_of(mixture, [e for batch in plan for e in batch.examples]).tolist())
  assert seen == {0: 320, 1: 320}
  for batch in plan:
    lengths = [sum(packing.each[batch.examples[b], j] for [(b, j)] in row) for row in batch.rows]
    assert max(lengths) <= 128
    assert sorted(p for row in batch.rows for [p] in row) == [
      (b, j) for b in range(len(batch.examples)) for j in (0, 1)
    ]


def test_a_manifest_keeps_it():
  assert mixture_of({"mixture": SETS.to_manifest()}) == SETS
  assert mixture_of({}) is None
  stated = SETS.to_manifest()
  assert kept(stated, ["text", "large", "large"], "q") == [["text", 1, 0.10], ["large", 2, 0.80]]
  with pytest.raises(UserError, match=r"q: set 'text' is not where its manifest says; run `radit prepare` again"):
    kept(stated, ["text", "large", "text"], "q")
  with pytest.raises(UserError, match="set 'other'"):
    kept(stated, ["other"], "q")


def test_what_makes_no_mixture_is_refused():
  with pytest.raises(ValueError, match="must be at least 1"):
    Mixture(("a",), (0,), (1.0,))
  with pytest.raises(ValueError, match="weights"):
    Mixture(("a", "b"), (1, 1), (1.0, 0.0))
