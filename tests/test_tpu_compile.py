"""Programs for TPU slices, compiled with the TPU compiler and without a TPU: memory, and what chips exchange.

One process compiles one program at a time, in seconds; programs are shared between tests.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from radit_jax.collectives import activations_of_other_rows
from radit_jax.config import LoopConfig, MeshConfig, PlanConfig, PromptConfig, TuningConfig
from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig
from radit_jax.models.splash import splash_attention
from radit_jax.plan import chips, flops, programs
from radit_jax.plan.survey import NAMES, survey
from radit_jax.retrieval.device import best_rows
from radit_jax.sharding import make_mesh, row_sharding

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")

LLAMA = DecoderConfig(
  vocab_size=32_000, hidden_size=512, intermediate_size=1408, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=128
)
BERT = BertConfig(vocab_size=1024, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=512)
#: Rows of 512 tokens, as many as there are row shards or twice that; 16 examples of one prompt that fills a row.
CONFIG = PlanConfig(
  topology="v5e:2x4",
  generator="a small Llama",
  encoder="a small BERT",
  k=2,
  k_train=1,
  pack_tokens=512,
  prompt_tokens=512,
  prompt=PromptConfig(max_tokens=512),
  generator_tuning=TuningConfig(remat="full", loop=LoopConfig(steps=5, batch_size=16)),
  retriever_tuning=TuningConfig(loop=LoopConfig(steps=5, batch_size=16)),
  encode_batch_size=64,
  score_batch_size=16,
  answer_batch_size=8,
)


def models(generator):
  return programs.Models(generator, BERT, EmbeddingConfig(pooling="cls"))


def on(topology, mesh):
  return make_mesh(mesh, devices=chips.devices(chips.slice_named(topology)))


def compiled(program, mesh):
  with jax.set_mesh(mesh):
    return program.compile()


@pytest.fixture(scope="module")
def small():
  """All programs of a small run on 8 chips."""
  return survey(CONFIG, models(LLAMA), chips.slice_named("v5e:2x4"))


def test_every_program_of_a_run_compiles_and_is_measured(small):
  assert [p.name for p in small.programs] == list(NAMES)
  assert dict(small.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
  assert small.fits
  by = {p.name: p for p in small.programs}
  size = sum(x.size for x in jax.tree.leaves(nnx.eval_shape(lambda: Decoder(LLAMA, rngs=nnx.Rngs(0)))))
  # Nearly all of a model is spread over 8 chips: float32 weights and twice that in moments, or 2 bytes each.
  assert by["RALT step"].parameters_bytes == pytest.approx(4 * size / 8, rel=0.01)
  assert by["RALT step"].optimizer_bytes == pytest.approx(8 * size / 8, rel=0.01)
  assert by["scoring"].parameters_bytes == pytest.approx(2 * size / 8, rel=0.01)
  # Of each of two layers, what went into it: 16 rows of 512 by 512 in bfloat16, over 8 chips; and a little more.
  kept = 2 * 16 * 512 * 512 * 2 / 8
  assert kept <= by["RALT step"].activations_bytes <= by["RALT step"].temporaries_bytes
  # The cache of both layers: keys and values of 2 heads of 128, for 16 rows of 512 + 68 slots.
  cache = 2 * 2 * 16 * (512 + 68) * 2 * 128 * 2 / 8
  # Beside a dev batch weights and moments stay, and nothing is kept for a backward pass.
  step, dev = by["RALT step"], by["RALT dev loss"]
  assert (dev.parameters_bytes, dev.optimizer_bytes) == (step.parameters_bytes, step.optimizer_bytes)
  assert dev.parameters_bytes + dev.optimizer_bytes < dev.together_bytes < step.together_bytes
  assert 0 < dev.batch_bytes < 2**20
  step, dev = by["LSR step"], by["LSR dev loss"]
  assert (dev.parameters_bytes, dev.optimizer_bytes) == (step.parameters_bytes, step.optimizer_bytes)
  assert dev.parameters_bytes + dev.optimizer_bytes < dev.together_bytes
  # Prompts are read without the head, which lies on the chip all the same.
  prompts, head = by["reading prompts"], 2 * 32_000 * 512 / 8
  assert 0 < prompts.batch_bytes < 2**17
  held = prompts.parameters_bytes + prompts.batch_bytes + prompts.temporaries_bytes
  assert held + cache <= prompts.together_bytes < held + cache + head / 2
  assert by["decoding"].batch_bytes == pytest.approx(cache, rel=0.05)


def test_a_step_gathers_each_weight_about_once_a_pass(small):
  """Three passes with remat, in bfloat16; every chip receives the 7/8 it does not hold."""
  step = small.programs[0]
  weights = 2.0 * flops.all_parameters(LLAMA) * 7 / 8
  received = sum(
    c["sent_bytes"] for kind, c in step.collectives.items() if kind in ("all-gather", "collective-permute")
  )
  assert 0.5 * weights < received < 5 * weights


def test_a_slice_of_256_chips():
  """One row a chip, parameters over all of them; no activation is ever brought together."""
  generator = dataclasses.replace(LLAMA, vocab_size=2048)
  tuning = TuningConfig(remat="full", loop=LoopConfig(steps=5, batch_size=256))
  # Rows of 640, as parameters have dimensions of 512: activations are told by their sizes.
  config = dataclasses.replace(
    CONFIG,
    topology="v5e:16x16",
    generator_tuning=tuning,
    answer_tokens=32,
    pack_tokens=640,
    prompt_tokens=640,
    prompt=PromptConfig(max_tokens=640),
  )
  mesh = on("v5e:16x16", MeshConfig(fsdp=256))
  program = programs.ralt(config, models(generator), mesh)
  ready = compiled(program, mesh)
  assert not activations_of_other_rows(ready.as_text(), num_rows=256, shards=256, widths=(640,))
  assert ready.memory_analysis().argument_size_in_bytes < 12.5 * flops.all_parameters(generator) / 256 + 2**20


def test_a_search_of_21_million_passages_on_8_chips():
  """Every Wikipedia passage of DPR, 768 wide in bfloat16: held once over all chips, and never brought together."""
  mesh = on("v5e:2x4", MeshConfig())
  count, width, block = 21_015_324, 768, 2**14
  held = -(-count // (8 * block)) * 8 * block
  rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  ready = best_rows.lower(
    jax.ShapeDtypeStruct((held, width), jnp.bfloat16, sharding=rows),
    jax.ShapeDtypeStruct((256, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())),
    None,
    mesh=mesh,
    count=count,
    wanted=100,
    block=block,
  ).compile()
  memory = ready.memory_analysis()
  taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  assert held * width * 2 / 8 < taken < held * width * 2 / 8 + 2**28 < chips.CHIPS["v5e"].hbm_bytes
  text = ready.as_text()
  assert "PartialReduce" in text  # approx_max_k as the hardware does it, not a sort
  gathered = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* all-gather", text)
  assert gathered
  assert all(math.prod(map(int, shape.split(","))) <= 256 * 8 * 100 for _, shape in gathered)


def test_attention_over_shared_passages_has_its_backward_pass():
  """Over own segment and prefix, forward and backward, each chip on its rows alone; nothing of T x T is held."""
  tokens, heads, kv_heads, width = 2048, 4, 2, 128
  mesh = on("v5e:2x4", MeshConfig(fsdp=8))

  def rows(*shape, dtype):
    return jax.ShapeDtypeStruct((16, tokens, *shape), dtype, sharding=row_sharding(mesh))

  def total(q, k, v, segments, prefixes):
    return jnp.sum(splash_attention(q, k, v, segment_ids=segments, prefix_ids=prefixes).astype(jnp.float32) ** 2)

  q, k = rows(heads, width, dtype=jnp.bfloat16), rows(kv_heads, width, dtype=jnp.bfloat16)
  ids = rows(dtype=jnp.int32)
  with jax.set_mesh(mesh):
    ready = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k, ids, ids).compile()
  text = ready.as_text()
  calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
  assert len(calls) == 2 * 3  # forward, gradient of queries, of keys and values
  assert not activations_of_other_rows(text, num_rows=16, shards=8, widths=(tokens,))
  assert ready.memory_analysis().temp_size_in_bytes < 16 // 8 * heads * tokens * tokens * 4
