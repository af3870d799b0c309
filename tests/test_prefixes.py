"""Prompts that share a copy of their passage against the same prompts each in a row of its own, and their plan."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from radit_jax import sharding
from radit_jax.data.groups import Prefixes
from radit_jax.data.prefixes import PromptTable, shared_plan
from radit_jax.data.prompts import Rendered
from radit_jax.data.rows import rows_to_batch, shared_to_batch
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.splash import splash_attention
from radit_jax.parallel_context import answer_log_likelihoods
from radit_jax.training.step import ralt_objective

TINY = DecoderConfig.tiny(vocab_size=50)
WINDOWED = dataclasses.replace(TINY, window=5, window_layers=(True, False))


def prompt(passage, rest, answer):
  tokens = (*passage, *rest, *answer)
  segments = (("passage", passage), ("question", rest), ("answer", answer))
  return Rendered(segments, tokens, len(passage) + len(rest), len(tokens))


@pytest.fixture
def groups(rng):
  """Eight rows of two groups: three prompts on one passage, and one prompt alone."""

  def ids(low, high):
    return tuple(rng.integers(1, 50, rng.integers(low, high)).tolist())

  def row():
    passage = ids(20, 40)
    return [[prompt(passage, ids(3, 9), ids(1, 5)) for _ in range(3)], [prompt(ids(5, 10), ids(3, 9), ids(1, 5))]]

  return [row() for _ in range(8)]


def alone(model, groups):
  """Each prompt in a row of its own, without a mesh: plain attention."""
  rows = [[p for group in row for p in group] for row in groups]
  return answer_log_likelihoods(model, rows_to_batch(rows, num_tokens=64, num_answer_tokens=4))


def together(groups):
  return shared_to_batch(list(enumerate(groups)), num_tokens=128, num_answer_tokens=16, num_prompts=4)


def check(out, expected):
  assert np.array(out.num_tokens).tolist() == np.array(expected.num_tokens).tolist()
  np.testing.assert_allclose(out.log_likelihood, expected.log_likelihood, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, WINDOWED], ids=["plain", "windows"])
@pytest.mark.parametrize("kind", ["plain", "blocked"])
def test_each_prompt_has_the_log_likelihood_it_has_alone(groups, config, kind):
  model = Decoder(config, rngs=nnx.Rngs(0), kind=kind)
  batch = together(groups)
  check(answer_log_likelihoods(model, batch), alone(model, groups))
  blind = answer_log_likelihoods(model, dataclasses.replace(batch, prefix_ids=None))
  assert np.abs(np.array(blind.log_likelihood - alone(model, groups).log_likelihood))[:, :3].min() > 1e-4


def loss_and_gradient(model, batch):
  return jax.jit(jax.value_and_grad(lambda m, b: ralt_objective(m, b)[0]))(model, batch)


def check_gradients(found, expected):
  """Relative to the largest entry of each parameter's gradient."""
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max()), rtol=0)


def padded(groups):
  return rows_to_batch([[p for group in row for p in group] for row in groups], num_tokens=64, num_answer_tokens=4)


@pytest.mark.parametrize(
  ("kind", "remat", "changes"),
  [
    ("plain", "none", {"window": 5, "window_layers": (True, False)}),
    ("blocked", "dots", {"window": 5, "window_layers": (True, False)}),
    ("blocked", "none", {"attention_soft_cap": 3.0}),
    ("splash", "dots", {}),
    ("splash", "none", {"attention_soft_cap": 3.0}),
  ],
)
def test_gradients_are_those_of_prompts_alone(groups, kind, remat, changes):
  config = dataclasses.replace(TINY, **changes)
  shared, alone = (Decoder(config, rngs=nnx.Rngs(0), kind=kind, remat=remat) for kind in (kind, "plain"))
  expected = loss_and_gradient(alone, padded(groups))
  assert float(np.abs(expected[1].layers.k_kernel[...]).max()) > 1e-2
  check_gradients(loss_and_gradient(shared, together(groups)), expected)


@pytest.mark.parametrize("kind", [None, "splash"])
def test_gradients_on_a_mesh(groups, mesh8, kind):
  expected = loss_and_gradient(Decoder(TINY, rngs=nnx.Rngs(0), kind="plain"), padded(groups))
  model = Decoder(TINY, rngs=nnx.Rngs(0), kind=kind)
  with jax.set_mesh(mesh8):
    placed = jax.device_put(model, sharding.parameter_shardings(model, mesh8))
    found = loss_and_gradient(placed, sharding.place_rows(together(groups), mesh8))
  check_gradients(found, expected)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_the_kernel_for_tpus_says_the_same(groups, mesh8, soft_cap):
  config = dataclasses.replace(TINY, attention_soft_cap=soft_cap)
  model = Decoder(config, rngs=nnx.Rngs(0), kind="splash")
  expected = alone(Decoder(config, rngs=nnx.Rngs(0), kind="plain"), groups)
  check(answer_log_likelihoods(model, together(groups)), expected)
  with jax.set_mesh(mesh8):
    placed = jax.device_put(model, sharding.parameter_shardings(model, mesh8))
    check(jax.jit(answer_log_likelihoods)(placed, sharding.place_rows(together(groups), mesh8)), expected)


def test_the_mesh_makes_no_difference(groups, mesh8):
  model = Decoder(TINY, rngs=nnx.Rngs(0))
  expected = alone(model, groups)
  with jax.set_mesh(mesh8):
    placed = jax.device_put(model, sharding.parameter_shardings(model, mesh8))
    check(jax.jit(answer_log_likelihoods)(placed, sharding.place_rows(together(groups), mesh8)), expected)


def test_where_nothing_can_be_shared():
  tokens = jax.numpy.ones((1, 128), int)
  windowed = Decoder(WINDOWED, rngs=nnx.Rngs(0), kind="splash")
  assert not windowed.shares_prefixes
  with pytest.raises(ValueError, match=r"^prefix_ids: .*splash"):
    windowed(tokens, prefix_ids=tokens)
  model = Decoder(TINY, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="not with a cache"):
    model(tokens, prefix_ids=tokens, cache=model.init_cache(1, 128))
  q = jax.numpy.zeros((1, 128, 1, 4))
  with pytest.raises(ValueError, match="with a window"):
    splash_attention(q, q, q, segment_ids=tokens, prefix_ids=tokens, window=4, interpret=True)


def test_prompts_of_a_group_share_what_they_begin_with_and_no_more():
  group = [prompt((1, 2), (3,), (4,)), prompt((1, 5), (3,), (4,))]
  batch = shared_to_batch([(0, [group])], num_tokens=8, num_answer_tokens=4, num_prompts=2)
  assert batch.tokens[0].tolist() == [1, 2, 3, 4, 5, 3, 4, 0]
  assert batch.segment_ids[0].tolist() == [1, 2, 2, 2, 3, 3, 3, 0]
  assert batch.prefix_ids[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
  assert batch.positions[0].tolist() == [0, 1, 2, 3, 1, 2, 3, 0]
  with pytest.raises(ValueError, match="row 0 has 2 prompts, the batch holds 1"):
    shared_to_batch([(0, [group])], num_tokens=16, num_answer_tokens=4, num_prompts=1)


def test_a_passage_that_is_all_of_a_prompt_leaves_the_token_that_predicts():
  assert prompt((1, 2, 3), (), (4,)).context_end == 2
  assert prompt((), (1, 2), (4,)).context_end == 0


@st.composite
def tables(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  shape = draw(st.integers(1, 30)), draw(st.integers(1, 4))
  keys = rng.integers(0, draw(st.integers(1, 20)), shape)
  prefixes = 5 + 3 * keys  # one key, one prefix
  answers = rng.integers(1, 6, shape)
  tokens = prefixes + answers + rng.integers(1, 10, shape)
  absent = rng.random(shape) < 0.2
  absent[0, 0] = False
  tokens, answers, prefixes, keys = (np.where(absent, 0, x) for x in (tokens, answers, prefixes, keys))
  return PromptTable(tokens, answers, Prefixes(prefixes, keys), 0, 0)


@given(tables(), st.integers(0, 200), st.integers(1, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_prompt_stands_in_one_row_that_has_room(table, more, num_rows, share):
  row_tokens = table.longest + more
  plan = shared_plan(table, row_tokens=row_tokens, num_rows=num_rows, share=share)
  seen, used = [], 0
  for step in plan.steps:
    assert len(step.rows) == num_rows
    for row in step.rows:
      tokens = answers = 0
      for group in row:
        assert len({table.prefixes.keys[at] for at in group}) == 1
        assert share or len(group) == 1
        begin = table.prefixes.tokens
        tokens += begin[group[0]] + sum(table.tokens[at] - begin[at] for at in group)
        answers += sum(table.answers[at] for at in group)
        seen += group
      assert tokens <= row_tokens
      assert answers <= plan.answer_tokens
      assert sum(map(len, row)) <= plan.prompts
      used += tokens
  assert sorted(seen) == [tuple(at) for at in np.argwhere(table.tokens).tolist()]
  assert plan.shared == pytest.approx(table.tokens.sum() / used)
  assert plan.padding == pytest.approx(1 - used / (len(plan.steps) * num_rows * row_tokens))
  assert share or plan.shared == 1


def test_a_prompt_longer_than_the_rows():
  one = np.ones((1, 1), np.int64)
  table = PromptTable(9 * one, one, Prefixes(5 * one, one), 0, 0)
  with pytest.raises(UserError, match=r"^a prompt has 9 tokens, rows hold 8: pack_tokens 9 would do$"):
    shared_plan(table, row_tokens=8, num_rows=1)
