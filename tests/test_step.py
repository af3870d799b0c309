"""Objectives, optimizer and state: who gets a gradient, who decays, what the rates are, where the arrays lie."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from radit_jax import losses
from radit_jax.config import MeshConfig, OptimizerConfig
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.dual_encoder import DualEncoder
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.parallel_context import LSRBatch
from radit_jax.sharding import make_mesh, place_rows
from radit_jax.training.step import (
  PairBatch,
  contrastive_objective,
  evaluate_step,
  init_state,
  learning_rate,
  lsr_objective,
  make_optimizer,
  pair_objective,
  train_step,
)

B, K, T = 8, 4, 6
LSR = functools.partial(
  lsr_objective, score_temperature=0.05, lm_temperature=0.1, score="token_prob", direction="retriever_to_lm"
)
BERT = BertConfig(
  vocab_size=32,
  hidden_size=16,
  num_layers=2,
  num_heads=2,
  intermediate_size=32,
  max_positions=16,
  type_vocab_size=1,
  layer_norm_eps=1e-12,
)
EMBEDDING = EmbeddingConfig(pooling="mean", normalize=True, max_tokens=16)


@pytest.fixture(scope="module")
def encoders():
  return DualEncoder(
    TextEncoder(Bert(BERT, rngs=nnx.Rngs(0)), EMBEDDING), TextEncoder(Bert(BERT, rngs=nnx.Rngs(1)), EMBEDDING), 0.05
  )


@pytest.fixture(scope="module")
def passages():
  rng = np.random.default_rng(1)
  return rng.integers(5, 32, (B * K, T)).astype(np.int32), np.ones((B * K, T), bool)


@pytest.fixture(scope="module")
def batch(encoders, passages):
  rng = np.random.default_rng(0)
  embeddings = np.asarray(encoders.encode_passages(*passages)).reshape(B, K, -1)
  mask = np.ones((B, K), bool)
  mask[2, 3] = False  # a question with three passages
  mask[5] = False  # and one without any
  return LSRBatch(
    query_tokens=rng.integers(5, 32, (B, T)).astype(np.int32),
    query_mask=np.ones((B, T), bool),
    passage_embeddings=embeddings,
    log_likelihood=rng.normal(-3, 1, (B, K)).astype(np.float32),
    num_tokens=np.full((B, K), 2, np.int32),
    context_mask=mask,
    positive=np.eye(B, K, dtype=bool) & mask,
    passage_rows=np.arange(B * K, dtype=np.int32).reshape(B, K),
  )


@pytest.mark.parametrize(
  "objective", [LSR, functools.partial(contrastive_objective, score_temperature=0.05)], ids=["lsr", "contrastive"]
)
def test_passage_encoder_in_the_graph_gets_exactly_no_gradient(encoders, passages, batch, objective):
  def through_both(both):
    embeddings = both.encode_passages(*passages).reshape(B, K, -1)
    return objective(both.query_encoder, dataclasses.replace(batch, passage_embeddings=embeddings))[0]

  together = jax.jit(jax.grad(through_both))(encoders)
  alone = jax.jit(jax.grad(lambda q: objective(q, batch)[0]))(encoders.query_encoder)
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(together.passage_encoder))
  assert any(np.asarray(g).any() for g in jax.tree.leaves(alone))
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(alone))  # about 15
  for a, b in zip(jax.tree.leaves(together.query_encoder), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6 * largest, rtol=0)


def test_lsr_objective_is_the_sum_of_its_questions(encoders, batch):
  total, count, _ = evaluate_step(encoders.query_encoder, batch, objective=LSR)
  assert float(count) == B - 1  # the question without a passage is not counted
  expected = 0.0
  for b in range(B):
    real = batch.context_mask[b]
    if not real.any():
      continue
    query = np.asarray(encoders.encode_queries(batch.query_tokens[b : b + 1], batch.query_mask[b : b + 1]))[0]
    scores = batch.passage_embeddings[b][real] @ query
    targets = losses.lsr_log_targets(batch.log_likelihood[b][real], batch.num_tokens[b][real], temperature=0.1)
    expected += float(losses.lsr_loss(scores, targets, temperature=0.05))
  np.testing.assert_allclose(float(total), expected, rtol=1e-4)


def test_what_all_passages_have_in_common_is_nothing_to_lsr(encoders, batch):
  """Embeddings of any language model share most of their length: a score then has few digits for what differs."""
  # In steps of 1/1024, of which float32 holds the sums with 64 exactly.
  embeddings = np.round(batch.passage_embeddings * 1024) / 1024
  plain, shifted = (
    dataclasses.replace(batch, passage_embeddings=np.asarray(x, np.float32)) for x in (embeddings, embeddings + 64)
  )

  def loss(encoder, batch):
    return LSR(encoder, batch)[0]

  one, other = (jax.jit(jax.value_and_grad(loss))(encoders.query_encoder, b) for b in (plain, shifted))
  np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one[1]))
  for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * largest, rtol=0)


def test_a_gold_passage_in_another_list_is_no_negative(encoders, batch):
  """Question 0's gold passage also stands in question 1's list: the copy must not be pushed away."""
  rows = batch.passage_rows.copy()
  rows[1, 3] = rows[0, 0]
  embeddings = batch.passage_embeddings.copy()
  embeddings[1, 3] = embeddings[0, 0]
  shared = dataclasses.replace(batch, passage_rows=rows, passage_embeddings=embeddings)
  objective = functools.partial(contrastive_objective, score_temperature=1.0)
  queries = np.asarray(encoders.encode_queries(batch.query_tokens, batch.query_mask))
  scores = queries @ embeddings.reshape(B * K, -1).T
  real = batch.context_mask.reshape(-1)
  expected = 0.0
  for b in range(B):
    gold = set(rows[b][batch.positive[b]].tolist())
    if gold:
      hit = real & np.isin(rows.reshape(-1), list(gold))
      expected += np.log(np.exp(scores[b][real]).sum() / np.exp(scores[b][hit]).sum())
  total, count = objective(encoders.query_encoder, shared)
  np.testing.assert_allclose(float(total), expected, rtol=1e-4)
  assert int(count) == int(batch.positive.any(-1).sum())


def test_warm_start_teaches_both_encoders(encoders):
  rng = np.random.default_rng(3)
  words = rng.integers(5, 32, (B, T)).astype(np.int32)
  pairs = PairBatch(words, np.ones((B, T), bool), words[:, ::-1].copy(), np.ones((B, T), bool))
  gradients = jax.grad(lambda e: pair_objective(e, pairs)[0])(encoders)
  for side in (gradients.query_encoder, gradients.passage_encoder):
    assert any(np.asarray(g).any() for g in jax.tree.leaves(side))


def test_learning_rate_meets_its_corners():
  schedule = learning_rate(OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=200), 500)
  np.testing.assert_allclose([schedule(s) for s in (0, 100, 200, 350, 500)], [0, 5e-6, 1e-5, 5.05e-6, 1e-7], rtol=1e-5)
  short = learning_rate(OptimizerConfig(peak_lr=1.0, floor_lr=0.1, warmup_steps=200), 3)
  assert float(short(2)) == pytest.approx(1.0)  # a run shorter than the warm-up still reaches the peak


def test_norms_and_biases_do_not_decay():
  model = TextEncoder(Bert(BERT, rngs=nnx.Rngs(0)), EMBEDDING)
  optimizer = make_optimizer(OptimizerConfig(peak_lr=0.1, floor_lr=0.1, warmup_steps=0, weight_decay=0.5), 10)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, model), optimizer.init(model), model)
  flat = jax.tree_util.tree_flatten_with_path(updates)[0]
  moved = {jax.tree_util.keystr(path) for path, u in flat if np.asarray(u).any()}
  assert any("kernel" in name for name in moved)
  assert any("embedding" in name for name in moved)
  assert not [name for name in moved if "bias" in name or "norm" in name]


def test_state_is_sharded_like_its_model(mesh8):
  config = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4
  )
  state, _ = init_state(Decoder(config, rngs=nnx.Rngs(0)), make_optimizer(OptimizerConfig(), 10), mesh8)
  assert state.model.layers.gate_kernel[...].sharding.spec == P(None, "fsdp", "tensor")
  specs = [
    (jax.tree_util.keystr(path), leaf.sharding.spec)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.optimizer_state)[0]
    if "gate_kernel" in jax.tree_util.keystr(path)
  ]
  assert len(specs) == 2  # both moments
  assert all(spec == P(None, "fsdp", "tensor") for _, spec in specs)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 1, 1)])
def test_a_mesh_with_axes_of_size_1_runs_one_program(encoders, batch, axes):
  """Shardings come back from jit without such axes; handed in with them, every program would be compiled twice."""
  config = MeshConfig(*axes)
  mesh = make_mesh(config, devices=jax.devices()[: math.prod(axes)])
  optimizer = make_optimizer(OptimizerConfig(), 10)
  before = train_step._cache_size()
  with jax.set_mesh(mesh):
    state, frozen = init_state(encoders.query_encoder, optimizer, mesh)
    first = [x.sharding for x in jax.tree.leaves(state)]
    for _ in range(3):
      state, _ = train_step(state, frozen, place_rows(batch, mesh), objective=LSR, update=optimizer.update)
  assert train_step._cache_size() == before + 1
  assert [x.sharding for x in jax.tree.leaves(state)] == first


def test_lsr_step_on_eight_devices_equals_one(encoders, batch, mesh1, mesh8):
  after = []
  for mesh in (mesh1, mesh8):
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-2, floor_lr=1e-3, warmup_steps=0), 10)
    state, frozen = init_state(encoders.query_encoder, optimizer, mesh)
    with jax.set_mesh(mesh):
      for _ in range(2):
        state, figures = train_step(state, frozen, place_rows(batch, mesh), objective=LSR, update=optimizer.update)
    after.append((jax.tree.map(np.asarray, state.model), float(figures.loss_sum)))
  (one, loss_one), (eight, loss_eight) = after
  np.testing.assert_allclose(loss_one, loss_eight, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
