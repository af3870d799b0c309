"""Compiles QLoRA of an 8B model for one 16-GB TPU chip, without the chip, and says what it would hold.

Needs `pip install "radit_jax[tpu]"` on any x86 Linux machine (libtpu's 700 MB are why this is no test), and minutes:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python scripts/check_qlora_fits.py
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from radit_jax.config import LoraConfig, OptimizerConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.lora import add_lora, quantize_base
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.sharding import make_mesh, parameter_shardings
from radit_jax.training.step import make_optimizer, new_state, partition, ralt_objective, train_step

#: Llama 3.1 8B.
CONFIG = DecoderConfig(
  vocab_size=128_256,
  hidden_size=4096,
  intermediate_size=14_336,
  num_layers=32,
  num_heads=32,
  num_kv_heads=8,
  head_dim=128,
  max_positions=8192,
)
ROWS, TOKENS, ANSWER_TOKENS, RANK = 4, 1024, 128, 16
HBM_BYTES = 15.75 * 2**30  # what the compiler leaves a program on v5e
TOPOLOGY = "v5e:2x2"


def main() -> int:
  devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[:1]
  mesh = make_mesh(devices=list(devices))
  optimizer = make_optimizer(OptimizerConfig(), 500)
  too_large = 0
  for form in ("nf4", "int8"):
    held = _step_bytes(form, mesh, optimizer)
    line = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in held.items())
    print(
      f"{form}: {line} GiB of {HBM_BYTES / 2**30:.2f} ({ROWS} x {TOKENS} tokens, rank {RANK}, one chip of {TOPOLOGY})"
    )
    too_large += held["together"] > HBM_BYTES
  return int(bool(too_large))


def _step_bytes(form, mesh, optimizer):
  def model():
    base = Decoder(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, remat="full")
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    return add_lora(quantize_base(base, form), LoraConfig(rank=RANK), rngs=nnx.Rngs(1))

  def state(trained):
    return new_state(trained, optimizer)

  def on_mesh(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

  trained, frozen = partition(nnx.eval_shape(model))
  trained_state = jax.eval_shape(state, trained)
  rows = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
  answers = jax.ShapeDtypeStruct((ROWS, ANSWER_TOKENS), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, ROWS), jnp.bool_)
  batch = ParallelContextBatch(rows, rows, rows, answers, answers, answers, mask)
  whole = NamedSharding(mesh, PartitionSpec())
  with jax.set_mesh(mesh):
    program = train_step.lower(
      on_mesh(trained_state, parameter_shardings(trained_state, mesh)),
      on_mesh(frozen, parameter_shardings(frozen, mesh)),
      on_mesh(batch, jax.tree.map(lambda _: whole, batch)),
      objective=ralt_objective,
      update=optimizer.update,
    ).compile()
  memory = program.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {"arguments": arguments, "temporaries": temporaries, "together": arguments + temporaries + new}


if __name__ == "__main__":
  sys.exit(main())
