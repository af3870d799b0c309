"""Microbatches one after another make the step of the whole batch, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from radit_jax import config as c
from radit_jax import sharding
from radit_jax.data.prompts import Rendered
from radit_jax.data.rows import packed_to_batch, rows_to_batch
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.parallel_context import LSRBatch
from radit_jax.training.step import (
  check_microbatches,
  init_state,
  lsr_objective,
  microbatches,
  ralt_objective,
  train_step,
)

# Plain momentum: Adam's first steps turn the rounding of a gradient near zero into a whole step.
SGD = optax.sgd(0.05, momentum=0.9)
LSR = functools.partial(
  lsr_objective, score_temperature=1.0, lm_temperature=1.0, score="token_prob", direction="retriever_to_lm"
)
B, K = 16, 3


def prompts(rng):
  """Uneven on purpose: answers of 1 to 5 tokens, a passage missing here and there, two examples without any."""
  table = []
  for b in range(B):
    answer = int(rng.integers(1, 6))
    row = []
    for j in range(K):
      ids = tuple(rng.integers(1, 32, int(rng.integers(answer + 1, 16))).tolist())
      absent = b in (5, 6) or (j == 2 and b % 4 == 0)
      row.append(None if absent else Rendered((), ids, len(ids) - answer, len(ids)))
    table.append(row)
  return table


@pytest.fixture(scope="module")
def padded():
  return rows_to_batch(prompts(np.random.default_rng(0)), num_tokens=16, num_answer_tokens=8)


@pytest.fixture(scope="module")
def packed():
  """Four parts of four examples, four rows each: example b lies in row b with all its prompts."""
  table = prompts(np.random.default_rng(0))
  rows = [[[(b * K + j, row)] for j, row in enumerate(own) if row is not None] for b, own in enumerate(table)]
  mask = np.array([[row is not None for row in own] for own in table])
  return packed_to_batch(rows, mask, num_tokens=48, num_answer_tokens=16)


@pytest.fixture(scope="module")
def lsr_batch():
  rng = np.random.default_rng(1)
  mask = rng.uniform(size=(B, K)) < 0.8
  mask[[3, 4]] = False
  return LSRBatch(
    query_tokens=rng.integers(1, 32, (B, 6)).astype(np.int32),
    query_mask=np.arange(6) < rng.integers(3, 7, (B, 1)),
    passage_embeddings=(rng.normal(size=(B, K, 16)) / 4).astype(np.float32),
    log_likelihood=-rng.uniform(1, 6, (B, K)).astype(np.float32),
    num_tokens=np.full((B, K), 4, np.int32),
    context_mask=mask,
  )


@pytest.fixture(scope="module")
def decoder():
  config = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8
  )
  return jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def encoder():
  config = BertConfig(vocab_size=32, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)
  return jax.jit(lambda: TextEncoder(Bert(config, rngs=nnx.Rngs(0)), EmbeddingConfig()))()


def run(model, objective, batch, mesh, accumulate):
  figures = []
  with jax.set_mesh(mesh):
    state, frozen = init_state(model, SGD, mesh)
    for _ in range(2):
      rows = sharding.place_rows(batch, mesh)
      state, out = train_step(state, frozen, rows, objective=objective, update=SGD.update, accumulate=accumulate)
      figures.append(jax.tree.map(np.asarray, out))
  return jax.tree.map(np.asarray, (state.model, figures, state.optimizer_state))


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), a, b)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_ralt_in_microbatches_is_the_step_of_the_whole_batch(request, decoder, mesh1, mesh8, layout, accumulate):
  batch = request.getfixturevalue(layout)
  parts = microbatches(jax.tree.map(jnp.asarray, batch), accumulate)
  counts = {int((slot >= 0).sum()) for slot in parts.answer_slot}
  assert len(counts) > 1  # or a mean of means would pass too
  whole = run(decoder, ralt_objective, batch, mesh1, 1)
  assert whole[1][0].gradient_norm > 0.1
  same(run(decoder, ralt_objective, batch, mesh1, accumulate), whole)
  same(run(decoder, ralt_objective, batch, mesh8, accumulate), whole)


def test_lsr_in_microbatches_is_the_step_of_the_whole_batch(encoder, lsr_batch, mesh1, mesh8):
  assert len(set(lsr_batch.context_mask.any(axis=1).reshape(4, -1).sum(axis=1).tolist())) > 1
  whole = run(encoder, LSR, lsr_batch, mesh1, 1)
  assert whole[1][0].gradient_norm > 0.1
  same(run(encoder, LSR, lsr_batch, mesh1, 4), whole)
  same(run(encoder, LSR, lsr_batch, mesh8, 4), whole)


def test_padded_and_packed_microbatches_are_one_step(decoder, padded, packed, mesh1):
  same(run(decoder, ralt_objective, padded, mesh1, 4), run(decoder, ralt_objective, packed, mesh1, 2))


def test_a_microbatch_is_a_batch_of_its_own(padded):
  """Against the batch made of those examples alone."""
  table = prompts(np.random.default_rng(0))
  parts = microbatches(jax.tree.map(jnp.asarray, padded), 4)
  for g in range(4):
    alone = rows_to_batch(table[g * 4 : (g + 1) * 4], num_tokens=16, num_answer_tokens=8)
    jax.tree.map(lambda a, b, g=g: np.testing.assert_array_equal(a[g], b), parts, alone)


def test_no_microbatches_is_the_program_without_them(decoder, padded, mesh1):
  with jax.set_mesh(mesh1):
    state, frozen = init_state(decoder, SGD, mesh1)
    rows = sharding.place_rows(padded, mesh1)
    options = {"objective": ralt_objective, "update": SGD.update}
    text = [train_step.lower(state, frozen, rows, **options, **more).as_text() for more in ({}, {"accumulate": 1})]
  assert text[0] == text[1]


def test_a_step_that_is_not_finite_is_left_out_of_microbatches_too(decoder, padded, mesh1):
  with jax.set_mesh(mesh1):
    state, frozen = init_state(decoder, SGD, mesh1)
    before = jax.tree.map(np.asarray, state.model)
    rows = sharding.place_rows(padded, mesh1)
    state, out = train_step(state, frozen, rows, objective=not_finite, update=SGD.update, accumulate=4)
  assert not out.finite
  assert out.nonfinite_steps == 1
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.model))


def not_finite(model, batch):
  """Infinite in one microbatch of the four only: in that of the examples without a passage."""
  total, count = ralt_objective(model, batch)
  return jnp.where(jnp.any(jnp.all(~batch.context_mask, axis=1)), jnp.inf, 1.0) * total, count


def test_what_does_not_split_is_refused(padded, packed):
  with pytest.raises(UserError, match="a batch of 48 rows does not split into accumulate 5 microbatches"):
    check_microbatches(padded, 5)
  stray = dataclasses.replace(packed, answer_slot=packed.answer_slot[::-1])
  with pytest.raises(ValueError, match="microbatch 0 has a row of slot 45, which lies in microbatch 3"):
    check_microbatches(stray, 4)
  check_microbatches(packed, 4)
  with pytest.raises(UserError, match=r"batch_size 10 does not split into accumulate 4 .*batch_size 12 would"):
    c.LoopConfig(batch_size=10, accumulate=4)
  with pytest.raises(UserError, match=r"loss contrastive are the whole batch; it cannot run with loop.accumulate 2"):
    c.TrainRetrieverConfig("w", "e", "r", "d", "i", loss="contrastive", loop=c.LoopConfig(accumulate=2))
