"""The batch plan: every example once, few buckets, the same everywhere."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radit_jax.data.plan import RunPlan, batch_plan, bucket_lengths, plan_in_order, sample

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=60)


def padded(lengths, buckets):
  return sum(min(b for b in buckets if b >= n) for n in lengths)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
def test_every_example_once_and_in_a_row_it_fits(lengths, batch_size, seed, epoch, max_buckets):
  plan = batch_plan(lengths, batch_size=batch_size, seed=seed, epoch=epoch, max_buckets=max_buckets)
  assert sorted(i for batch in plan for i in batch.examples) == list(range(len(lengths)))
  assert all(lengths[i] <= batch.bucket_tokens for batch in plan for i in batch.examples)
  assert all(1 <= len(batch.examples) <= batch_size for batch in plan)
  assert sum(len(batch.examples) < batch_size for batch in plan) <= 1
  assert len(plan) == -(-len(lengths) // batch_size)
  assert {batch.epoch for batch in plan} == {epoch}
  buckets = {batch.bucket_tokens for batch in plan}
  assert len(buckets) <= max_buckets
  assert all(b % 32 == 0 for b in buckets)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_buckets_are_within_five_percent_of_the_best(lengths, max_buckets):
  lengths = [n // 4 + 1 for n in lengths]  # at most 6 multiples of 32, so all choices can be tried
  buckets = bucket_lengths(lengths, max_buckets=max_buckets)
  needed = sorted({-(-n // 32) * 32 for n in lengths})
  best = {}
  for size in range(1, max_buckets + 1):
    choices = (c for c in itertools.combinations(needed, min(size, len(needed))) if c[-1] == needed[-1])
    best[size] = min(padded(lengths, c) for c in choices)
  least = min(best.values())
  assert padded(lengths, buckets) <= least * 1.05
  assert len(buckets) == min(n for n, total in best.items() if total <= least * 1.05)
  assert padded(lengths, buckets) == best[len(buckets)]


def test_buckets_by_hand():
  assert bucket_lengths([40, 50, 60]) == (64,)
  assert bucket_lengths([10] * 50 + [100] * 50) == (32, 128)
  assert bucket_lengths([10] * 50 + [100] * 50, max_buckets=1) == (128,)
  assert bucket_lengths([10] * 50 + [100] * 50, bucket_multiple=128) == (128,)
  assert bucket_lengths([64, 65], bucket_multiple=64) == (64, 128)


def test_epochs_differ_in_order_and_agree_in_shape():
  lengths = np.random.default_rng(0).integers(5, 300, 101)
  plans = [batch_plan(lengths, batch_size=8, seed=0, epoch=e) for e in range(3)]
  shapes = [sorted((b.bucket_tokens, len(b.examples)) for b in plan) for plan in plans]
  assert shapes[0] == shapes[1] == shapes[2]
  assert (
    len({frozenset(frozenset(b.examples) for b in plan) for plan in plans}) == 3
  )  # other batches, not only reordered
  assert len({tuple(b.bucket_tokens for b in plan) for plan in plans}) == 3
  # shuffled: batches are neither in order of length nor of position
  assert [b.bucket_tokens for b in plans[0]] != sorted(b.bucket_tokens for b in plans[0])
  assert batch_plan(lengths, batch_size=8, seed=1, epoch=0) != plans[0]
  assert plans[0] == batch_plan(list(lengths), batch_size=8, seed=0, epoch=0)


def test_another_process_makes_the_same_plan():
  program = (
    "from radit_jax.data.plan import batch_plan\nprint(batch_plan(range(1, 90), batch_size=7, seed=5, epoch=2), end='')"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout == str(batch_plan(range(1, 90), batch_size=7, seed=5, epoch=2))


def test_the_order_is_pinned():
  # A run that is continued after an upgrade must see the same batches: these values may not change.
  assert [b.examples for b in batch_plan([3] * 6, batch_size=2, seed=0, epoch=0)] == [(1, 0), (4, 5), (3, 2)]


def test_run_plan_is_the_epochs_one_behind_the_other():
  lengths = np.random.default_rng(0).integers(5, 300, 50)
  plan = RunPlan(lengths, batch_size=8, seed=3, num_steps=17)
  expected = [b for epoch in range(3) for b in batch_plan(lengths, batch_size=8, seed=3, epoch=epoch)][:17]
  assert (len(plan), plan.steps_per_epoch) == (17, 7)
  assert list(plan) == expected
  assert [plan[i] for i in (16, 0, 8, -1, 7)] == [expected[i] for i in (16, 0, 8, 16, 7)]
  assert plan[5:9] == expected[5:9]
  assert plan.buckets == tuple(sorted({b.bucket_tokens for b in expected[:7]}))
  tokens = sum(b.bucket_tokens * len(b.examples) for b in expected[:7])
  assert plan.padding == pytest.approx(1 - lengths.sum() / tokens)
  for step in (17, -18):
    with pytest.raises(IndexError, match=f"step {step} of a run of 17"):
      plan[step]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 7), (2.5, 18), (0.01, 1)])
def test_run_plan_counts_epochs(epochs, steps):
  assert len(RunPlan([10] * 50, batch_size=8, seed=0, epochs=epochs)) == steps


def test_plan_in_order_is_sorted_and_whole():
  lengths = np.random.default_rng(0).integers(5, 300, 50)
  plan = plan_in_order(lengths, batch_size=8)
  order = [i for b in plan for i in b.examples]
  assert sorted(order) == list(range(50))
  assert lengths[order].tolist() == sorted(lengths.tolist())
  assert [len(b.examples) for b in plan] == [8] * 6 + [2]
  buckets = bucket_lengths(lengths)
  for batch in plan:
    longest = max(lengths[list(batch.examples)])
    assert batch.bucket_tokens == min(b for b in buckets if b >= longest)


def test_sample_is_ascending_distinct_and_seeded():
  assert sample(4, None, 0) == sample(4, 9, 0) == [0, 1, 2, 3]
  drawn = sample(1000, 30, 0)
  assert drawn == sorted(set(drawn))
  assert len(drawn) == 30
  assert drawn == sample(1000, 30, 0) != sample(1000, 30, 1)
  assert set(sample(1000, 20, 0)) < set(drawn)


def test_no_examples_and_empty_rows_are_faults():
  with pytest.raises(ValueError, match="at least one"):
    batch_plan([], batch_size=2, seed=0, epoch=0)
  with pytest.raises(ValueError, match="example 1 has a row of 0 tokens"):
    batch_plan([3, 0], batch_size=2, seed=0, epoch=0)
