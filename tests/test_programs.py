"""Programs that an epoch compiles: a step is compiled once for each shape of its batches, so shapes must stay few."""

import dataclasses

import numpy as np
import pytest
from test_packing import squad_like

from radit_jax.config import LoopConfig
from radit_jax.data.batches import RowLengths
from radit_jax.data.groups import Prefixes
from radit_jax.data.packing import PackedBatch
from radit_jax.verbs import tuning

MOST = 6
K = 5
LOOP = LoopConfig(batch_size=16, epochs=2)


def shapes(*plans):
  """(R, T, A) of every batch; A of padded rows is one number for the whole run, R that of a full batch."""
  return {
    (i, len(b.rows), b.bucket_tokens, b.answer_tokens) if isinstance(b, PackedBatch) else (i, b.bucket_tokens)
    for i, plan in enumerate(plans)
    for b in plan
  }


def lengths(count, seed):
  each, answers = squad_like(count, K, seed)
  return RowLengths(each, answers, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_of_ralt_with_its_dev_losses(seed, mesh1):
  train, dev = lengths(3000, seed), lengths(200, seed + 10)
  plans = tuning.make_plans(train.rows, dev.rows, loop=LOOP, mesh=mesh1)
  assert 1 < len(shapes(plans.train, plans.dev)) <= MOST
  packed = tuning.make_packed_plans(train, dev, 640, loop=LOOP, mesh=mesh1)
  assert len(shapes(packed.train, packed.dev)) == 2


def test_dev_batches_are_as_large_as_microbatches(mesh8):
  """They go through the model whole, beside weights and moments."""
  train, dev = lengths(600, 0), lengths(200, 10)
  loop = dataclasses.replace(LOOP, batch_size=64, accumulate=4)
  plans = tuning.make_plans(train.rows, dev.rows, loop=loop, mesh=mesh8)
  assert plans.dev_size == 16
  assert max(len(b.examples) for b in plans.dev) == 16
  packed = tuning.make_packed_plans(train, dev, 640, loop=loop, mesh=mesh8)
  assert packed.dev_size == 16
  assert max(len(b.rows) for b in packed.dev) <= max(len(b.rows) for b in packed.train) / 4
  for made in (plans, packed):
    assert sorted(i for b in made.dev for i in b.examples) == list(range(200))
  few = tuning.make_plans(train.rows, dev.rows[:5], loop=loop, mesh=mesh8)
  assert few.dev_size == 8  # no more than there are, rounded up to the row shards


@pytest.mark.parametrize("asked", [1, 5, 40])
def test_an_epoch_of_ralt_on_shared_rows(asked, mesh1):
  """Paragraphs of a data set, each asked about so often; what a step shares is left to chance, and steps differ."""
  passages, answers = squad_like(600, 1)
  paragraph = np.arange(600) // asked
  found = (paragraph[:, None] + np.arange(K)) % (600 // asked)
  each = passages[:, 0][found] + 20
  train = RowLengths(each, answers, 0, 0, Prefixes(passages[:, 0][found], found))
  plans = tuning.make_packed_plans(train, train, 640, loop=LOOP, mesh=mesh1, share=True)
  assert plans.train.shared == pytest.approx({1: 1, 5: 1.3, 40: 3.6}[asked], rel=0.05)
  assert len(shapes(plans.train, plans.dev)) <= MOST
  assert plans.train.padding < 0.15


def test_an_epoch_of_lsr(rng, mesh1):
  queries = np.clip(rng.normal(14, 4, 3000), 5, 40).astype(int)
  plans = tuning.make_plans(queries, queries[:200], loop=LOOP, mesh=mesh1)
  assert 1 <= len(shapes(plans.train, plans.dev)) <= MOST
