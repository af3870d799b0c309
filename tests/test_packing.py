"""Rows that hold several prompts: whole examples, full rows, and the same likelihoods and gradients as padded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import K, equal, world  # noqa: F401

from radit_jax import sharding
from radit_jax.data.batches import row_lengths
from radit_jax.data.groups import Prefixes
from radit_jax.data.packing import PackedPlan, Packing, fill, packed_in_order, tightest, with_prefixes
from radit_jax.data.plan import RunPlan, epoch_order
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.parallel_context import answer_log_likelihoods
from radit_jax.sharding import RowShare
from radit_jax.training.step import check_microbatches, ralt_objective


def squad_like(count, k, seed=0):
  """Prompt and answer lengths as SQuAD's: passages of about 150 tokens, short questions, answers of 2 to 40."""
  rng = np.random.default_rng(seed)
  passage = np.clip(rng.lognormal(4.95, 0.45, (count, k)), 25, 400)
  question = np.clip(rng.normal(14, 4, (count, 1)), 5, 40)
  return (passage + question + 12).astype(int), np.clip(rng.geometric(0.22, count) + 1, 2, 40)


def check(packing, batches):
  """What every packed plan keeps, in plain loops."""
  prefixes = packing.prefixes
  seen = []
  share = packing.batch_size // packing.parts
  for batch in batches:
    seen += batch.examples
    assert len(batch.rows) % (packing.shards * packing.parts) == 0
    own_rows = len(batch.rows) // packing.parts
    placed = set()
    for r, groups in enumerate(batch.rows):
      row = [at for group in groups for at in group]
      tokens = sum(packing.each[batch.examples[b], j] for b, j in row)
      for group in groups:
        begins = [] if prefixes is None else [prefixes[batch.examples[b], j] for b, j in group]
        assert len(group) == 1 or (begins[0].tokens > 0 and len({int(p.keys) for p in begins}) == 1)
        tokens -= sum(int(p.tokens) for p in begins[1:])
      assert tokens <= packing.row_tokens
      assert sum(packing.answers[batch.examples[b]] for b, _ in row) <= batch.answer_tokens
      for b, j in row:
        assert b // share == r // own_rows  # an example and all its rows in one part
        assert (b, j) not in placed
        placed.add((b, j))
    assert placed == {(b, j) for b, e in enumerate(batch.examples) for j in np.flatnonzero(packing.each[e])}
  assert sorted(seen) == list(range(len(packing.each)))
  assert all(len(b.examples) == packing.batch_size for b in batches[:-1])
  assert len({b.answer_tokens for b in batches}) == 1


LENGTHS = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64), st.integers(1, 20)), min_size=1, max_size=60)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_whole_examples_once_an_epoch_in_rows_that_hold_them(lengths, share, parts, shards, epoch):
  table = np.array(lengths)
  packing = Packing(table[:, :2], table[:, 2], 64, batch_size=share * parts, shards=shards, parts=parts)
  check(packing, fill(packing, seed=1, epoch=epoch))
  check(packing, packed_in_order(packing))
  assert len({len(b.rows) for b in packed_in_order(packing)}) == 1


@st.composite
def alike(draw):
  """Lengths of prompts that begin with one of a few passages, or with none."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  shape = draw(st.integers(1, 60)), draw(st.integers(1, 3))
  keys = rng.integers(0, draw(st.integers(1, 40)), shape)
  prefixes = np.where(keys % 5 > 0, 10 + keys, 0)
  answers = rng.integers(1, 6, shape[0])
  each = prefixes + answers[:, None] + rng.integers(1, 10, shape)
  absent = rng.random(shape) < 0.2
  absent[0, 0] = False
  return np.where(absent, 0, each), answers, Prefixes(*(np.where(absent, 0, x) for x in (prefixes, keys)))


@settings(deadline=None)
@given(alike(), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_sharing_changes_rows_and_neither_steps_nor_examples(lengths, share, parts, shards, seed):
  each, answers, prefixes = lengths
  alone = Packing(each, answers, 80, batch_size=share * parts, shards=shards, parts=parts)
  shared = with_prefixes(alone, prefixes, epoch_order(len(each), seed))
  plans = [PackedPlan(packing, seed=seed, epochs=2) for packing in (alone, shared)]
  assert [b.examples for b in plans[0]] == [b.examples for b in plans[1]]
  for plan, packing in zip(plans, (alone, shared), strict=True):
    for epoch in range(2):
      check(packing, plan[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch])
    assert {len(b.rows) for b in plan} <= {*plan.row_counts}
    assert len(plan.row_counts) <= 4
    check(packing, packed_in_order(packing))
  assert plans[0].shared == 1
  assert {b.shares for b in plans[1]} == {shared is not alone}
  if shared is not alone:
    used = sum(
      prefixes[batch.examples[group[0][0]], group[0][1]].tokens
      + sum(each[batch.examples[b], j] - prefixes[batch.examples[b], j].tokens for b, j in group)
      for batch in plans[1][: plans[1].steps_per_epoch]
      for row in batch.rows
      for group in row
    )
    whole = sum(int(each[list(b.examples)].sum()) for b in plans[1][: plans[1].steps_per_epoch])
    assert plans[1].shared == pytest.approx(whole / used)


def test_sharing_saves_rows_where_a_step_has_few_passages_and_is_left_alone_where_it_saves_little():
  each, answers = squad_like(64, 3)
  prefixes = Prefixes(each - 20, np.arange(64 * 3).reshape(64, 3))
  packing = Packing(each, answers, 512, batch_size=16)
  assert with_prefixes(packing, prefixes, epoch_order(64, 0)) is packing
  one = np.repeat(each[::16], 16, axis=0)  # the same three passages for 16 questions in turn
  packing = Packing(one, answers, 512, batch_size=16)
  prefixes = Prefixes(one - 20, np.arange(64)[:, None] // 16 * 3 + np.arange(3))
  in_turn = with_prefixes(packing, prefixes, epoch_order(64, None))
  assert in_turn.computed < 0.35
  assert sum(len(b.rows) for b in packed_in_order(in_turn)) < 0.5 * sum(len(b.rows) for b in packed_in_order(packing))


def test_every_step_of_a_run_has_one_shape_and_is_found_by_its_number():
  each, answers = squad_like(500, 3)
  packing = Packing(each, answers, 512, batch_size=16, shards=4)
  plan = PackedPlan(packing, seed=3, epochs=3)
  steps = list(plan)
  assert plan.row_counts == (len(steps[0].rows),)
  assert {len(b.rows) for b in steps} == {*plan.row_counts}
  for epoch in range(3):
    own = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
    check(packing, own)
    assert {b.epoch for b in own} == {epoch}
  assert steps[0].examples != steps[plan.steps_per_epoch].examples
  for step in (95, 0, 33, 63):
    assert PackedPlan(packing, seed=3, epochs=3)[step % len(plan)] == steps[step % len(plan)]
  # Some rows fewer would not do.
  assert plan.row_counts[0] - 4 < max(len([r for r in b.rows if r]) for b in steps)


@pytest.mark.parametrize(("batch_size", "k", "shards"), [(64, 3, 1), (64, 3, 8), (16, 3, 1), (16, 10, 4)])
def test_rows_are_at_least_85_percent_full_on_squads_lengths(batch_size, k, shards):
  each, answers = squad_like(64 * 32, k)
  plan = PackedPlan(Packing(each, answers, 512, batch_size=batch_size, shards=shards), seed=0)
  used = sum(int(each[list(b.examples)].sum()) for b in plan)
  assert used / (512 * plan.row_counts[0] * len(plan)) == pytest.approx(1 - plan.padding)
  assert plan.padding <= 0.15


def test_how_a_step_is_split_does_not_change_which_examples_it_has():
  each, answers = squad_like(200, 3)
  whole, split = (
    PackedPlan(Packing(each, answers, 512, batch_size=32, parts=parts), seed=0, epochs=2) for parts in (1, 4)
  )
  assert [set(b.examples) for b in whole] == [set(b.examples) for b in split]


def test_lengths_that_cannot_be_packed_are_refused():
  with pytest.raises(UserError, match="example 1 has a prompt of 70 tokens, packed rows hold 64: pack_tokens 70 would"):
    Packing(np.array([[50, 30], [20, 70]]), np.array([3, 3]), 64, batch_size=2)
  with pytest.raises(UserError, match="batch_size 6 does not split into 4 microbatches"):
    Packing(np.array([[50]]), np.array([3]), 64, batch_size=6, parts=4)
  with pytest.raises(ValueError, match="nothing in it to pack"):
    Packing(np.zeros((2, 2), int), np.array([3, 3]), 64, batch_size=2)


# Through the stores, the prompts and the model.


@pytest.fixture(scope="module")
def lengths(world):  # noqa: F811
  return row_lengths(world.retrieved, world.passages, world.prompt, k=K, with_passages=True)


def packing_of(lengths, **changes):
  return Packing(lengths.each, lengths.answers, **{"row_tokens": 128, "batch_size": 4, **changes})


@pytest.fixture(scope="module")
def decoder():
  config = DecoderConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8
  )
  return jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))()


def by_example(model, batches):
  """Likelihoods and counts of each example, and the gradient of the whole loss."""

  def loss(m, batch):
    out = answer_log_likelihoods(m, batch)
    return jnp.sum(out.log_likelihood), out

  step = jax.jit(jax.grad(loss, has_aux=True))
  found, total = {}, None
  for ids, batch in batches:
    gradient, out = step(model, batch)
    for b, name in enumerate(ids):
      found[name] = (np.asarray(out.log_likelihood[b]), np.asarray(out.num_tokens[b]), batch.context_mask[b].tolist())
    total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
  return found, total


def test_packed_equals_padded_in_values_and_gradients(world, lengths, decoder):  # noqa: F811
  padded, wanted = by_example(decoder, world.stream(RunPlan(lengths.rows, batch_size=4, seed=0), seed=3))
  plan = PackedPlan(packing_of(lengths), seed=0)
  batches = list(world.stream(plan, seed=3))
  assert max(batch.segment_ids.max() for _, batch in batches) >= 3
  packed, gradient = by_example(decoder, batches)
  assert sorted(packed) == sorted(padded)
  assert len(packed) == len(world.retrieved)
  for name, (values, counts, mask) in padded.items():
    np.testing.assert_allclose(packed[name][0], values, rtol=1e-5, atol=1e-5)
    assert packed[name][1].tolist() == counts.tolist()
    assert packed[name][2] == mask
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient, wanted)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_shared_equals_padded_in_values_and_gradients(world, lengths, decoder, accumulate):  # noqa: F811
  """Markers are drawn anew for every example and epoch; what is shared was planned before."""
  padded, wanted = by_example(decoder, world.stream(RunPlan(lengths.rows, batch_size=8, seed=0), seed=3, batch_size=8))
  packing = packing_of(lengths, batch_size=8, parts=accumulate)
  plan = PackedPlan(with_prefixes(packing, lengths.prefixes, epoch_order(len(lengths.each), 0)), seed=0)
  assert plan.shared > 1.05
  batches = list(world.stream(plan, seed=3, batch_size=8))
  assert all(batch.prefix_ids.any() for _, batch in batches[:1])
  for _, batch in batches:
    check_microbatches(batch, accumulate)
  assert sum(np.count_nonzero(batch.segment_ids) for _, batch in batches) < lengths.each.sum() / 1.05
  shared, gradient = by_example(decoder, batches)
  assert sorted(shared) == sorted(padded)
  for name, (values, counts, mask) in padded.items():
    np.testing.assert_allclose(shared[name][0], values, rtol=1e-5, atol=1e-5)
    assert shared[name][1].tolist() == counts.tolist()
    assert shared[name][2] == mask
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradient, wanted)


def test_shared_streams_split_over_hosts(world, lengths):  # noqa: F811
  packing = with_prefixes(packing_of(lengths, batch_size=8, shards=2), lengths.prefixes, epoch_order(13, 0))
  plan = PackedPlan(packing, seed=0)
  whole = list(world.stream(plan, seed=3, batch_size=8))
  shares = [list(world.stream(plan, seed=3, batch_size=8, share=RowShare((i,), 2))) for i in range(2)]
  assert whole[0][1].prefix_ids.any()
  for (ids, batch), *parts in zip(whole, *shares, strict=True):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))
    assert equal((ids, joined), (ids, batch))


def test_closed_book_rows_are_packed_too(world, decoder):  # noqa: F811
  closed = row_lengths(world.retrieved, world.passages, world.prompt, k=1, with_passages=False)
  options = {"k": 1, "with_passages": False, "answer_tokens": closed.answer}
  padded, _ = by_example(decoder, world.stream(RunPlan(closed.rows, batch_size=4, seed=0), **options))
  packed, _ = by_example(decoder, world.stream(PackedPlan(packing_of(closed), seed=0), **options))
  assert sorted(packed) == sorted(padded)
  for name, (values, *_) in padded.items():
    np.testing.assert_allclose(packed[name][0], values, rtol=1e-5, atol=1e-5)


def test_packed_streams_resume_at_any_step_and_split_over_hosts(world, lengths):  # noqa: F811
  plan = PackedPlan(packing_of(lengths, shards=2), seed=0, epochs=2)
  whole = list(world.stream(plan, seed=3))
  assert len({tuple(x.shape for x in jax.tree.leaves(batch)) for _, batch in whole}) == 1
  for start in range(len(plan) + 1):
    rest = list(world.stream(PackedPlan(packing_of(lengths, shards=2), seed=0, epochs=2), seed=3, start=start))
    assert len(rest) == len(plan) - start
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))
  shares = [list(world.stream(plan, seed=3, share=RowShare((i,), 2))) for i in range(2)]
  for (ids, batch), *parts in zip(whole, *shares, strict=True):
    assert sum((p[0] for p in parts), ()) == ids
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))
    assert equal((ids, joined), (ids, batch))


def test_packed_rows_sharded_equal_one_device(world, lengths, decoder, mesh1, mesh8):  # noqa: F811
  [(_, batch), *_] = world.stream(PackedPlan(packing_of(lengths, shards=4), seed=0), seed=3)
  results = []
  for mesh in (mesh1, mesh8):
    with jax.set_mesh(mesh):
      model = jax.device_put(decoder, sharding.parameter_shardings(decoder, mesh))
      placed = sharding.place_rows(batch, mesh)
      results.append(jax.jit(jax.value_and_grad(lambda m, b: ralt_objective(m, b)[0]))(model, placed))
  assert placed.tokens.addressable_shards[0].data.shape[0] * 4 == batch.tokens.shape[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


def test_the_parts_of_a_packed_step_are_whole_batches(world, lengths):  # noqa: F811
  for _, batch in world.stream(PackedPlan(packing_of(lengths, parts=2), seed=0), seed=3):
    check_microbatches(batch, 2)
  [(_, batch), *_] = world.stream(PackedPlan(packing_of(lengths), seed=0), seed=3)
  with pytest.raises((UserError, ValueError), match="microbatch"):
    check_microbatches(batch, 2)


def test_the_tightest_rows_hold_the_same_with_less_padding():
  """Two prompts of 220 tokens fill rows of 448; with the bound on rows, of 512, 72 tokens would stay empty."""
  packing = Packing(np.full((8, 2), 220), np.full(8, 4), 512, batch_size=4)
  assert tightest(packing, 16).row_tokens == 448
  assert tightest(packing, 64).row_tokens == 448
  assert tightest(packing, 128).row_tokens == 512  # 384 would hold one prompt
  long = Packing(np.array([[500, 220]] * 8), np.full(8, 4), 512, batch_size=4)
  assert tightest(long, 16).row_tokens >= 500


def test_the_tightest_rows_are_those_of_what_is_drawn():
  """Of a mixture, not of the set that comes first: two prompts of 220 tokens want rows of 448, three of 170 of 512."""
  each = np.concatenate([np.full((64, 2), 220), np.full((64, 2), 170)])
  packing = Packing(each, np.full(128, 4), 512, batch_size=4)
  assert tightest(packing, 64).row_tokens == 448
  assert tightest(packing, 64, lambda epoch: np.arange(64, 128)).row_tokens == 512
