"""RALT, LoRA, scoring, LSR and encoding over four meshes: the numbers of one device, parameters spread, rows never
brought together. Each program is compiled once per mesh, run, and read."""

import dataclasses
import functools
import types

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from radit_jax import sharding
from radit_jax.collectives import activations_of_other_rows, collectives
from radit_jax.config import LoraConfig, MeshConfig
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.lora import add_lora
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch
from radit_jax.retrieval import embed
from radit_jax.training.step import init_state, lsr_objective, ralt_objective, score_step, train_step

# Widths are powers of two and rows multiples of three, so that sizes tell activations from parameters.
ROWS, TOKENS, ANSWERS, WIDTH, VOCAB, K = 24, 10, 7, 32, 128, 3
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x2x4": (1, 2, 4)}
DECODER = DecoderConfig(
  vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=4
)
BERT = BertConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_layers=2, num_heads=4, intermediate_size=64)
LSR = functools.partial(
  lsr_objective, score_temperature=1.0, lm_temperature=0.5, score="token_prob", direction="retriever_to_lm"
)
# Its moments are the first step's gradients, and it does not divide by them, which would make steps of rounding.
SGD = optax.sgd(0.05, momentum=0.9)

#: Axis of each dimension, written down apart from the table.
WHERE = {
  "embedding": ("tensor", "fsdp"),
  "word_embedding": ("tensor", "fsdp"),
  "head": ("fsdp", "tensor"),
  **dict.fromkeys(("q_kernel", "k_kernel", "v_kernel", "gate_kernel", "up_kernel"), (None, "fsdp", "tensor")),
  **dict.fromkeys(("o_kernel", "down_kernel"), (None, "tensor", "fsdp")),
  **dict.fromkeys(("q_bias", "k_bias", "v_bias", "up_bias"), (None, "tensor")),
  **dict.fromkeys(("attention_norm", "mlp_norm", "o_bias", "down_bias"), (None, None)),
  "final_norm": (None,),
}
KERNELS = {name for name in WHERE if name.endswith("_kernel")}
TRAINED = {
  "ralt": KERNELS | {"embedding", "head", "attention_norm", "mlp_norm", "final_norm"},
  "lora": {f"{name}.{part}" for name in KERNELS for part in "ab"},
  "lsr": set(WHERE) - {"embedding", "head", "final_norm", "gate_kernel"},
}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a program gave, and its text."""

  out: object
  hlo: str


def packed(rng):
  """Two prompts a row, of 4 and 5 tokens, then padding: 48 slots of 16 examples; answers of 2 to 4 tokens."""
  segments = np.tile(np.array([1] * 4 + [2] * 5 + [0]), (ROWS, 1)).astype(np.int32)
  positions = np.tile(np.array([*range(4), *range(5), 0]), (ROWS, 1)).astype(np.int32)
  tokens = np.where(segments > 0, rng.integers(1, VOCAB, (ROWS, TOKENS)), 0).astype(np.int32)
  at = np.tile(np.array([0, 1, 2, 4, 5, 6, 7]), (ROWS, 1)).astype(np.int32)
  slot = np.arange(ROWS)[:, None] * 2 + np.array([0, 0, 0, 1, 1, 1, 1])
  slot[::3, 1] = slot[::4, 6] = -1
  mask = np.ones((2 * ROWS // K, K), bool)
  mask[3, 2] = False
  answers = np.take_along_axis(tokens, at + 1, axis=1)
  return ParallelContextBatch(tokens, positions, segments, at, answers, slot.astype(np.int32), mask)


def padded(rng):
  """A prompt a row, of 6 to 10 tokens: 8 examples of 3 passages; the last 2 tokens are the answer."""
  lengths = rng.integers(6, TOKENS + 1, (ROWS, 1))
  places = np.arange(TOKENS)[None]
  segments = (places < lengths).astype(np.int32)
  tokens = np.where(segments > 0, rng.integers(1, VOCAB, (ROWS, TOKENS)), 0).astype(np.int32)
  at = np.concatenate([lengths - 3, lengths - 2, np.zeros((ROWS, ANSWERS - 2), int)], axis=1).astype(np.int32)
  answers = np.take_along_axis(tokens, at + 1, axis=1)
  slot = np.where(np.arange(ANSWERS) < 2, np.arange(ROWS)[:, None], -1).astype(np.int32)
  positions = np.broadcast_to(places, (ROWS, TOKENS)).astype(np.int32)
  return ParallelContextBatch(tokens, positions, segments, at, answers, slot, np.ones((ROWS // K, K), bool))


def queries(rng):
  mask = np.arange(TOKENS) < rng.integers(3, TOKENS + 1, (ROWS, 1))
  return LSRBatch(
    query_tokens=rng.integers(1, VOCAB, (ROWS, TOKENS)).astype(np.int32),
    query_mask=mask,
    passage_embeddings=rng.normal(size=(ROWS, K, WIDTH)).astype(np.float32),
    log_likelihood=rng.normal(-4, 1, (ROWS, K)).astype(np.float32),
    num_tokens=np.full((ROWS, K), 2, np.int32),
    context_mask=np.ones((ROWS, K), bool),
  )


@functools.cache
def model(name):
  if name == "bert":
    return jax.jit(lambda: TextEncoder(Bert(BERT, rngs=nnx.Rngs(0)), EmbeddingConfig(max_tokens=TOKENS)))()
  tied = dataclasses.replace(DECODER, tie_word_embeddings=name != "decoder")
  plain = jax.jit(lambda: Decoder(tied, rngs=nnx.Rngs(0)))()
  return add_lora(plain, LoraConfig(rank=8), rngs=nnx.Rngs(1)) if name == "lora" else plain


def step(name, objective, batch, mesh):
  with jax.set_mesh(mesh):
    state, frozen = init_state(model(name), SGD, mesh)
    rows = sharding.place_rows(batch, mesh)
    compiled = train_step.lower(state, frozen, rows, objective=objective, update=SGD.update).compile()
    return Run(compiled(state, frozen, rows), compiled.as_text())


def scoring(mesh):
  generator = jax.device_put(model("tied"), sharding.parameter_shardings(model("tied"), mesh))
  with jax.set_mesh(mesh):
    batch = packed(np.random.default_rng(1))
    shared = dataclasses.replace(batch, prefix_ids=np.where(batch.segment_ids > 1, 1, 0).astype(np.int32))
    batch = sharding.place_rows(shared, mesh)
    compiled = score_step.lower(generator, batch).compile()
    return Run(compiled(generator, batch), compiled.as_text())


def encoding(mesh):
  encoder = jax.device_put(model("bert"), sharding.parameter_shardings(model("bert"), mesh))
  rng = np.random.default_rng(2)
  ids = [rng.integers(1, VOCAB, n).tolist() for n in rng.integers(2, TOKENS + 1, ROWS)]
  texts = []

  def watched(*arguments):
    compiled = watched.real.lower(*arguments).compile()
    texts.append(compiled.as_text())
    return compiled(*arguments)

  with pytest.MonkeyPatch.context() as patch:
    watched.real = embed.encode_batch
    patch.setattr(embed, "encode_batch", watched)
    no_padding = types.SimpleNamespace(pad_token_id=0)
    out = embed._encode_all(
      encoder, no_padding, ids, TOKENS, ROWS, mesh, lambda done: None, first_row=0, what="passage row"
    )
  (text,) = texts
  return Run(out, text)


PROGRAMS = {
  "ralt": lambda mesh: step("decoder", ralt_objective, packed(np.random.default_rng(0)), mesh),
  "lora": lambda mesh: step("lora", ralt_objective, padded(np.random.default_rng(0)), mesh),
  "lsr": lambda mesh: step("bert", LSR, queries(np.random.default_rng(0)), mesh),
  "score": scoring,
  "encode": encoding,
}


@functools.cache
def on_one_device(program):
  return PROGRAMS[program](sharding.make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])).out


def check_spread(state, mesh):
  """Every tensor of `WHERE` in a state, its moment and its correction too; returns which were there."""
  seen = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    name = next((n for n in names if n in WHERE), None)
    if name is None:
      continue
    part, axes = names[names.index(name) + 1], WHERE[name]
    axes = {"a": (*axes[:2], None), "b": (axes[0], None, *axes[2:])}.get(part, axes)
    wanted = tuple(n // (1 if a is None else mesh.shape[a]) for n, a in zip(leaf.shape, axes, strict=True))
    assert {s.data.shape for s in leaf.addressable_shards} == {wanted}, names
    assert len(leaf.addressable_shards) == 8
    seen.setdefault("trace" in names, set()).add(name if part == "value" else f"{name}.{part}")
  assert seen[True] == seen[False]  # moments like parameters
  return seen[True]


@pytest.mark.parametrize("mesh_name", MESHES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mesh_computes_what_one_device_does_and_brings_no_rows_together(program, mesh_name):
  mesh = sharding.make_mesh(MeshConfig(*MESHES[mesh_name]))
  run = PROGRAMS[program](mesh)
  widths = {"lsr": (TOKENS, WIDTH), "encode": (TOKENS, WIDTH)}.get(program, (TOKENS, ANSWERS))
  shards = sharding.row_shards(mesh)
  assert activations_of_other_rows(run.hlo, num_rows=ROWS, shards=shards, widths=widths) == []
  gathered = [c for c in collectives(run.hlo) if c.kind == "all-gather" and c.dtype == "f32"]
  if mesh.shape["fsdp"] > 1:  # kernels are what travels
    assert gathered
  if mesh.shape["tensor"] > 1:  # and no device holds the whole vocabulary
    assert not [c for c in gathered if VOCAB in c.shape]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5),
    run.out,
    on_one_device(program),
  )
  if program in TRAINED:
    state, figures = run.out
    assert bool(figures.finite)
    assert float(figures.gradient_norm) > 1e-2
    assert check_spread(state, mesh) == TRAINED[program]


def test_a_gather_of_rows_is_seen():
  text = """
  %a = (f32[1,10,32]{2,1,0}, f32[24,10,32]{2,1,0}) all-gather-start(%x), dimensions={0}
  %b = f32[120,32]{1,0} all-reduce(%y), to_apply=%add
  %c = (f32[3,10,4]{2,1,0}, f32[3,10,4]{2,1,0}) all-to-all(%z), dimensions={0}
  %d = s32[24,10]{1,0} all-gather(%tokens), dimensions={0}
  %e = f32[32,64]{1,0} all-gather(%kernel), dimensions={0}
  %f = f32[24]{0} all-gather(%sums), dimensions={0}
  """
  found = activations_of_other_rows(text, num_rows=24, shards=8, widths=(10, 5))
  assert [(c.kind, c.dtype, c.shape) for c in found] == [
    ("all-gather", "f32", (24, 10, 32)),
    ("all-reduce", "f32", (120, 32)),
  ]
  assert len(collectives(text)) == 6
