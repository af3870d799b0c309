"""log p(y | c_j ∘ x) of k passages at once: against one token at a time, in every layout, on any model and mesh."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from radit_jax import parallel_context, sharding
from radit_jax.config import OptimizerConfig
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.dual_encoder import DualEncoder
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch, answer_log_likelihoods
from radit_jax.training.step import init_state, lsr_objective, make_optimizer, ralt_objective, train_step

VOCAB = 32  # what the mesh axis tensor=2 divides
B, K = 2, 3

#: A prompt and its answer; None for a passage that is not there.
Row = tuple[list[int], list[int]] | None


@pytest.fixture(scope="module")
def llama() -> Decoder:
  config = DecoderConfig(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4
  )
  return jax.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))()


@pytest.fixture
def rows(rng) -> list[Row]:
  """Rows b*K+j: prompts and answers of different lengths, and one passage missing."""
  out: list[Row] = []
  for b, j in itertools.product(range(B), range(K)):
    prompt, answer = rng.integers(1, VOCAB, 5 + j).tolist(), rng.integers(1, VOCAB, 2 + b).tolist()
    out.append((prompt, answer))
  out[4] = None
  return out


def pack(
  layout: list[list[tuple[int, list[int], list[int]]]], *, T: int, A: int, context_mask, R: int = 0, junk: int = 0
) -> ParallelContextBatch:
  """Rows of segments (slot, prompt, answer); padding holds ``junk``, so that a leak is seen."""
  R = max(R, len(layout))
  tokens, positions = np.full((2, R, T), junk, np.int32)
  segments = np.zeros((R, T), np.int32)
  answer_positions, answer_tokens = np.full((2, R, A), junk, np.int32)
  answer_slot = np.full((R, A), -1, np.int32)
  for r, row in enumerate(layout):
    t = a = 0
    for segment, (slot, prompt, answer) in enumerate(row, 1):
      ids = prompt + answer
      tokens[r, t : t + len(ids)] = ids
      positions[r, t : t + len(ids)] = range(len(ids))
      segments[r, t : t + len(ids)] = segment
      answer_positions[r, a : a + len(answer)] = t + len(prompt) - 1 + np.arange(len(answer))
      answer_tokens[r, a : a + len(answer)] = answer
      answer_slot[r, a : a + len(answer)] = slot
      t, a = t + len(ids), a + len(answer)
  return ParallelContextBatch(
    tokens, positions, segments, answer_positions, answer_tokens, answer_slot, np.asarray(context_mask, bool)
  )


def padded(rows: list[Row], *, examples: int = B, T: int = 14, A: int = 3, **kwargs: int) -> ParallelContextBatch:
  """One row per slot."""
  layout = [[] if row is None else [(slot, *row)] for slot, row in enumerate(rows)]
  mask = np.array([row is not None for row in rows] + [False] * (examples * K - len(rows)))
  return pack(layout, T=T, A=A, context_mask=mask.reshape(-1, K), R=examples * K, **kwargs)


scored = jax.jit(answer_log_likelihoods)


@jax.jit
def next_token_logits(generator: Any, ids: jax.Array) -> jax.Array:
  """Of one unpadded sequence ``[T]``."""
  hidden = generator(ids[None], positions=jnp.arange(ids.shape[0])[None], segment_ids=jnp.ones_like(ids)[None])
  return generator.logits(hidden[0, -1])


def one_at_a_time(generator: Any, row: Row) -> float:
  """The oracle: an unpadded run per answer token, its last hidden state, its softmax; float64 sum."""
  total = 0.0
  prompt, answer = row or ([], [])
  for i, target in enumerate(answer):
    logits = np.asarray(next_token_logits(generator, jnp.array(prompt + answer[:i])), np.float64)
    total += logits[target] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
  return total


@functools.partial(jax.jit, static_argnames="chunk")
def values_and_gradient(generator: Any, batch: ParallelContextBatch, weights: jax.Array, chunk: int = 0) -> Any:
  """All values, and the gradient of their weighted sum: different weights, so that slots cannot be exchanged.

  ``chunk`` only makes a program of its own for another HEAD_CHUNK_TOKENS.
  """

  def f(model: Any) -> tuple[jax.Array, Any]:
    out = answer_log_likelihoods(model, batch)
    return jnp.sum(out.log_likelihood * weights), out

  (_, out), gradient = jax.value_and_grad(f, has_aux=True)(generator)
  return out, gradient


def weights_of(examples: int = B) -> jax.Array:
  return jnp.arange(1.0, examples * K + 1).reshape(examples, K)


def assert_same(a: Any, b: Any, *, tolerance: float = 1e-5) -> None:
  """Two pytrees, leaf by leaf; rounding goes with the largest number of a leaf."""

  def check(x: Any, y: Any) -> None:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(y).max(initial=0.0)))

  jax.tree.map(check, a, b)


def test_equals_scoring_one_token_at_a_time(llama, rows):
  out = scored(llama, padded(rows))
  want = np.array([one_at_a_time(llama, row) for row in rows]).reshape(B, K)
  np.testing.assert_allclose(out.log_likelihood, want, rtol=1e-5, atol=1e-5)
  assert out.num_tokens.tolist() == [[2, 2, 2], [3, 0, 3]]
  assert out.log_likelihood.dtype == jnp.float32
  assert out.num_tokens.dtype == jnp.int32
  assert out.log_likelihood[1, 1] == 0.0  # the passage that is not there


def test_answer_logit_is_the_one_before_it():
  """A model whose next token depends on the last one alone: the sum can be read off a table."""
  table = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.4]]))

  class Bigram:
    def __call__(self, tokens, *, positions, segment_ids):
      return jax.nn.one_hot(tokens, 4)

    def logits(self, hidden):
      return hidden @ table

  batch = padded([([3, 1], [2, 0, 1])] + [None] * 5, T=8)
  out = answer_log_likelihoods(Bigram(), batch)
  # 1 -> 2, 2 -> 0, 0 -> 1; never 3 -> 1, and never the logits of the answer token itself.
  np.testing.assert_allclose(out.log_likelihood[0, 0], np.log(0.2 * 0.7 * 0.2), rtol=1e-6)


def test_permuting_the_passages_permutes_the_values(llama, rows):
  order = np.array([2, 0, 1])
  shuffled = [rows[b * K + j] for b in range(B) for j in order]
  out, gradient = values_and_gradient(llama, padded(rows), weights_of())
  moved, moved_gradient = values_and_gradient(llama, padded(shuffled), weights_of()[:, order])
  np.testing.assert_allclose(moved.log_likelihood, out.log_likelihood[:, order], rtol=1e-6, atol=1e-6)
  assert_same(gradient, moved_gradient)


def test_each_passage_alone_gives_the_same(llama, rows):
  together = scored(llama, padded(rows)).log_likelihood.reshape(-1)
  for slot, row in enumerate(rows):
    if row is not None:
      alone = pack([[(0, *row)]], T=14, A=3, context_mask=[[True]])
      np.testing.assert_allclose(scored(llama, alone).log_likelihood[0, 0], together[slot], atol=1e-5)


@pytest.mark.parametrize(
  "padding", [{"T": 23}, {"A": 7}, {"examples": B + 2}, {"T": 23, "A": 7, "examples": B + 2}], ids=str
)
def test_padding_changes_nothing(llama, rows, padding):
  """Longer rows, more answer columns, absent examples; the padding holds token 9, position 9 and slot -1."""
  out, gradient = values_and_gradient(llama, padded(rows), weights_of())
  batch = padded(rows, junk=9, **padding)
  more, more_gradient = values_and_gradient(llama, batch, weights_of(padding.get("examples", B)))
  assert_same(out, jax.tree.map(lambda x: x[:B], more))
  assert np.all(np.asarray(more.log_likelihood[B:]) == 0.0)
  assert np.all(np.asarray(more.num_tokens[B:]) == 0)
  assert_same(gradient, more_gradient)


def test_packed_equals_padded(llama, rows):
  """Three rows of several segments each, in no order, and an empty row."""
  slots = {s: (s, *row) for s, row in enumerate(rows) if row is not None}
  layout = [[slots[3], slots[0]], [slots[5]], [slots[1], slots[2]], []]
  packed = pack(
    layout, T=24, A=6, context_mask=[[row is not None for row in rows[b * K :][:K]] for b in range(B)], junk=9
  )
  assert_same(values_and_gradient(llama, packed, weights_of()), values_and_gradient(llama, padded(rows), weights_of()))


def test_an_answer_split_over_two_rows_is_summed(llama, rows):
  """A slot is where a token counts, not where it lies: one slot's answer twice gives twice the sum."""
  twice = pack([[(0, *rows[0])], [(0, *rows[0])]], T=14, A=3, context_mask=[[True]])
  once = scored(llama, padded(rows))
  out = scored(llama, twice)
  np.testing.assert_allclose(out.log_likelihood[0, 0], 2 * once.log_likelihood[0, 0], rtol=1e-5)
  assert out.num_tokens[0, 0] == 2 * once.num_tokens[0, 0]


@pytest.mark.parametrize("tokens", [1, 12, 20])
def test_head_in_chunks_equals_head_at_once(llama, rows, monkeypatch, tokens):
  """Chunks of 1, 2 and 3 answer columns (6 rows); 7 columns, so the last chunk is short for 2 and 3."""
  batch = padded(rows, A=7)
  whole = values_and_gradient(llama, batch, weights_of())
  monkeypatch.setattr(parallel_context, "HEAD_CHUNK_TOKENS", tokens)
  assert_same(whole, values_and_gradient(llama, batch, weights_of(), chunk=tokens))


def shapes_in(jaxpr: Any) -> set[tuple[int, ...]]:
  """Shapes of every value of a program, inner programs included."""
  found = set()
  for equation in jaxpr.eqns:
    found |= {tuple(v.aval.shape) for v in equation.outvars}
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        found |= shapes_in(inner)
  return found


@pytest.mark.parametrize(("limit", "most"), [(1024, 6 * 7), (6, 6 * 1)])
def test_logits_exist_for_answer_tokens_only_and_for_a_chunk_of_them(llama, rows, monkeypatch, limit, most):
  monkeypatch.setattr(parallel_context, "HEAD_CHUNK_TOKENS", limit)
  batch = padded(rows, A=7)
  gradient = jax.grad(lambda m: jnp.sum(answer_log_likelihoods(m, batch).log_likelihood))
  shapes = shapes_in(jax.make_jaxpr(gradient)(llama).jaxpr)
  logits = {s for s in shapes if s and s[-1] == VOCAB and 16 not in s}  # 16 x 32 is the head itself
  assert logits
  assert max(int(np.prod(s[:-1])) for s in logits) == most


# Nobody's model: what the step asks of a generator and of an encoder is two methods and one.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnGenerator:
  embed: jax.Array
  mix: jax.Array
  head: jax.Array

  def __call__(self, tokens, *, positions, segment_ids):
    x = self.embed[tokens] + jnp.sin(positions[..., None] / 3.0)
    sees = jnp.tril(segment_ids[:, :, None] == segment_ids[:, None, :])
    weights = sees / jnp.sum(sees, axis=-1, keepdims=True)
    return jnp.tanh(x + weights @ x @ self.mix)

  def logits(self, hidden):
    return hidden @ self.head


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnEncoder:
  table: jax.Array

  def __call__(self, tokens, mask):
    return jnp.sum(self.table[tokens] * mask[..., None], axis=1)


def own_generator(width: int = 12) -> OwnGenerator:
  a, b, c = jax.random.split(jax.random.key(0), 3)
  return OwnGenerator(
    jax.random.normal(a, (VOCAB, width)),
    jax.random.normal(b, (width, width)) / width**0.5,
    jax.random.normal(c, (width, VOCAB)) / width**0.5,
  )


ADAM = make_optimizer(OptimizerConfig(peak_lr=0.02, floor_lr=0.02, warmup_steps=0, weight_decay=0.0), 100)


def steps(model: Any, batch: Any, objective: Any, mesh: Any, count: int, make: Any = ADAM) -> tuple[Any, list[Any]]:
  """State and figures after ``count`` steps on one batch."""
  with jax.set_mesh(mesh):
    (state, frozen), figures = init_state(model, make, mesh), []
    for _ in range(count):
      state, figure = train_step(
        state, frozen, sharding.place_rows(batch, mesh), objective=objective, update=make.update
      )
      figures.append(figure)
  return state, figures


def test_ralt_tunes_a_model_that_is_not_ours(rows, mesh1):
  first = scored(own_generator(), padded(rows)).log_likelihood[0, 0]
  np.testing.assert_allclose(first, one_at_a_time(own_generator(), rows[0]), rtol=1e-5)
  _, figures = steps(own_generator(), padded(rows), ralt_objective, mesh1, 60)
  assert all(f.count == 2 * 3 + 3 * 2 for f in figures)
  assert figures[-1].loss_sum < 0.2 * figures[0].loss_sum


def lsr_batch(rng, *, examples: int = 4, width: int = 8) -> LSRBatch:
  mask = np.ones((examples, K), bool)
  mask[-1, -1] = False
  return LSRBatch(
    query_tokens=rng.integers(1, VOCAB, (examples, 6)).astype(np.int32),
    query_mask=np.arange(6) < rng.integers(3, 7, (examples, 1)),
    passage_embeddings=rng.normal(size=(examples, K, width)).astype(np.float32),
    log_likelihood=-rng.uniform(1, 6, (examples, K)).astype(np.float32),
    num_tokens=np.full((examples, K), 4, np.int32),
    context_mask=mask,
    positive=np.zeros((examples, K), bool),
    passage_rows=np.arange(examples * K, dtype=np.int32).reshape(examples, K),
  )


LSR = functools.partial(
  lsr_objective, score_temperature=1.0, lm_temperature=0.1, score="token_prob", direction="retriever_to_lm"
)


def test_lsr_tunes_an_encoder_that_is_not_ours(rng, mesh1):
  batch = lsr_batch(rng)
  before = OwnEncoder(jax.random.normal(jax.random.key(0), (VOCAB, 8)) / 10)
  state, figures = steps(before, batch, LSR, mesh1, 80)
  assert figures[0].gradient_norm > 0
  assert figures[-1].loss_sum < 0.2 * figures[0].loss_sum
  moved = np.any(np.asarray(state.model.table) != np.asarray(before.table), axis=-1)
  used = np.isin(np.arange(VOCAB), batch.query_tokens[batch.query_mask])
  assert np.array_equal(moved, used)  # every token of a query moved, and no other


def test_lsr_with_the_passage_encoder_in_the_graph(rng):
  """The same query gradient as from stored embeddings, and a passage gradient of exactly zero."""
  config = BertConfig(vocab_size=VOCAB, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16)
  one, other = (
    jax.jit(lambda seed=seed: TextEncoder(Bert(config, rngs=nnx.Rngs(seed)), EmbeddingConfig()))() for seed in (0, 1)
  )
  encoders = DualEncoder(one, other, 1.0)
  tokens = jnp.asarray(rng.integers(1, VOCAB, (4 * K, 7)))
  mask = jnp.arange(7) < jnp.asarray(rng.integers(2, 8, (4 * K, 1)))
  stored = jax.jit(DualEncoder.encode_passages)(encoders, tokens, mask).reshape(4, K, 8)
  batch = lsr_batch(rng)

  def from_stored(query_encoder):
    return LSR(query_encoder, dataclasses.replace(batch, passage_embeddings=stored))[0]

  def in_the_graph(both):
    # The frozen encoder: computed here and now, held constant.
    embeddings = jax.lax.stop_gradient(both.encode_passages(tokens, mask)).reshape(4, K, 8)
    return LSR(both.query_encoder, dataclasses.replace(batch, passage_embeddings=embeddings))[0]

  wanted, gradient = jax.jit(jax.grad(from_stored))(encoders.query_encoder), jax.jit(jax.grad(in_the_graph))(encoders)
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 1e-3
  assert_same(gradient.query_encoder, wanted)
  assert all(np.all(np.asarray(g) == 0.0) for g in jax.tree.leaves(gradient.passage_encoder))


# Eight simulated devices. Plain momentum: Adam divides by the gradient's size, so its first steps turn the rounding of
# a gradient near zero into a whole step.
SGD = optax.sgd(0.05, momentum=0.9)


def spec_of(array: jax.Array) -> PartitionSpec:
  assert isinstance(array.sharding, NamedSharding)
  return array.sharding.spec


def test_ralt_sharded_equals_single_device(llama, rows, mesh1, mesh8):
  """data 2 x fsdp 2 x tensor 2: four shards of rows, parameters spread over the other two axes."""
  batch = padded([*rows, *rows])  # 12 rows, B = 4
  batch = dataclasses.replace(batch, context_mask=np.concatenate([padded(rows).context_mask] * 2))
  batch = dataclasses.replace(batch, answer_slot=np.where(batch.answer_slot < 0, -1, np.arange(12)[:, None]))
  one, one_figures = steps(llama, batch, ralt_objective, mesh1, 3, SGD)
  eight, eight_figures = steps(llama, batch, ralt_objective, mesh8, 3, SGD)
  assert spec_of(eight.model.layers.q_kernel.get_value()) == PartitionSpec(None, "fsdp", "tensor")
  assert spec_of(eight.model.embedding.get_value()) == PartitionSpec("tensor", "fsdp")
  assert eight.model.layers.q_kernel.get_value().addressable_shards[0].data.shape == (2, 8, 8)
  moments = [x for x in jax.tree.leaves(eight.optimizer_state) if x.shape == (2, 16, 16)]
  assert moments
  assert any(spec_of(m) == PartitionSpec(None, "fsdp", "tensor") for m in moments)
  for a, b in zip(one_figures, eight_figures, strict=True):
    assert_same(a, b)
  assert_same(one.model, eight.model)


def test_rows_stay_sharded_in_the_compiled_step(llama, rows, mesh8):
  """No device ever holds all rows of hidden states."""
  batch = dataclasses.replace(padded([*rows, *rows]), context_mask=np.ones((4, K), bool))
  with jax.set_mesh(mesh8):
    model = jax.device_put(llama, sharding.parameter_shardings(llama, mesh8))
    placed = sharding.place_rows(batch, mesh8)
    assert spec_of(placed.tokens) == PartitionSpec(("data", "fsdp"))
    assert placed.tokens.addressable_shards[0].data.shape == (3, 14)
    text = jax.jit(answer_log_likelihoods).lower(model, placed).compile().as_text()
  assert "f32[3,14,16]" in text  # hidden states of the 12 / 4 rows of one device
  assert "f32[12,14,16]" not in text


def test_every_step_is_one_program_and_keeps_the_shardings(rng, mesh8):
  """What a step returns looks to jit as what it took: shardings of the table, and no weak types."""
  config = BertConfig(vocab_size=VOCAB, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16)
  encoder = jax.jit(lambda: TextEncoder(Bert(config, rngs=nnx.Rngs(0)), EmbeddingConfig()))()
  before = train_step._cache_size()
  state, _ = steps(encoder, lsr_batch(rng), LSR, mesh8, 3)
  assert train_step._cache_size() == before + 1
  wanted = sharding.parameter_shardings(state, mesh8)
  jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} is not {s}"), state, wanted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mapped(OwnGenerator):
  """A generator with a shard_map over rows inside, as an attention kernel has."""

  def __call__(self, tokens, *, positions, segment_ids):
    hidden = super().__call__(tokens, positions=positions, segment_ids=segment_ids)
    spec = PartitionSpec(parallel_context.row_axes())
    return jax.shard_map(jnp.tanh, in_specs=spec, out_specs=spec)(hidden)


def test_a_shard_map_inside_the_generator_gathers_nothing(rows, mesh8):
  model = Mapped(*jax.tree.leaves(own_generator()))
  batch = dataclasses.replace(padded([*rows, *rows]), context_mask=np.ones((4, K), bool))
  with jax.set_mesh(mesh8):
    placed = sharding.place_rows(batch, mesh8)
    compiled = jax.jit(answer_log_likelihoods).lower(model, placed).compile()
  assert "all-gather" not in compiled.as_text()


def test_lsr_sharded_equals_single_device(rng, mesh1, mesh8):
  config = BertConfig(vocab_size=VOCAB, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16)
  encoder = jax.jit(lambda: TextEncoder(Bert(config, rngs=nnx.Rngs(0)), EmbeddingConfig()))()
  batch = lsr_batch(rng)
  one, one_figures = steps(encoder, batch, LSR, mesh1, 3, SGD)
  eight, eight_figures = steps(encoder, batch, LSR, mesh8, 3, SGD)
  assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(eight.model))
  for a, b in zip(one_figures, eight_figures, strict=True):
    assert_same(a, b)
  assert_same(one.model, eight.model)
