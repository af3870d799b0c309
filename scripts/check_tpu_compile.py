"""Compiles the RALT step for TPU slices, without a TPU, with plain and with splash attention, and says what it holds.

Needs `pip install "radit_jax[tpu]"` on any x86 Linux machine (libtpu's 700 MB are why this is no test):

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python scripts/check_tpu_compile.py           # a small Llama, minutes
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python scripts/check_tpu_compile.py llama2_7b # 64 rows of 2048 on v5e:4x4

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python scripts/check_tpu_compile.py slices    # the small one over two slices

Exits with 1 if activations of other rows are gathered or summed, or if splash attention does not fit or holds more
than plain attention.
"""

import argparse
import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from radit_jax.collectives import activations_of_other_rows, collectives
from radit_jax.config import MeshConfig, OptimizerConfig, Remat
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.sharding import make_mesh, parameter_shardings, row_sharding
from radit_jax.training.step import make_optimizer, new_state, partition, ralt_objective, train_step

HBM_BYTES = 15.75 * 2**30  # what the compiler leaves a program on v5e
ANSWER_TOKENS = 96  # so that rows times this is no width of a model


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, the slice it is compiled for, and its batch: ``rows`` rows of ``tokens`` tokens.

  Attributes:
    slices: so many of them, ``data`` across.
    kinds: forms of attention.
    remats: what is computed again in the backward pass, see `Decoder`.
  """

  config: DecoderConfig
  topology: str
  mesh: MeshConfig
  rows: int
  tokens: int
  slices: int = 1
  kinds: tuple[str, ...] = ("plain", "splash")
  remats: tuple[Remat, ...] = ("none", "dots", "full")


# Rows are a multiple of three, and parameters are not: so sizes tell them apart.
_SMALL = Case(
  DecoderConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=64,
  ),
  topology="v5e:2x4",
  mesh=MeshConfig(fsdp=4, tensor=2),
  rows=24,
  tokens=1024,
)
CASES = {
  "small": _SMALL,
  "slices": dataclasses.replace(_SMALL, slices=2, kinds=("splash",), remats=("full",)),
  "llama2_7b": Case(
    DecoderConfig(
      vocab_size=32_000,
      hidden_size=4096,
      intermediate_size=11_008,
      num_layers=32,
      num_heads=32,
      num_kv_heads=32,
      head_dim=128,
      max_positions=4096,
    ),
    topology="v5e:4x4",
    mesh=MeshConfig(fsdp=16),
    rows=64,
    tokens=2048,
    kinds=("splash",),
    remats=("full",),
  ),
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("case", nargs="?", default="small", choices=CASES)
  case = CASES[parser.parse_args().case]
  failures = 0
  mesh = f"fsdp {case.mesh.fsdp} x tensor {case.mesh.tensor}"
  print(f"{case.rows} rows of {case.tokens} tokens, {case.slices} x {case.topology}, {mesh}")
  print("attention remat | GiB per chip: arguments temporaries together | all-gathers, of rows | kernels | compiled in")
  for remat in case.remats:
    temporaries = {}
    for kind in case.kinds:
      start = time.monotonic()
      program = _compiled(case, kind, remat)
      memory, text = program.memory_analysis(), program.as_text()
      new = memory.output_size_in_bytes - memory.alias_size_in_bytes
      arguments, temporaries[kind] = memory.argument_size_in_bytes, memory.temp_size_in_bytes
      together = arguments + temporaries[kind] + new
      gathers = [c for c in collectives(text) if c.kind == "all-gather"]
      shards = case.slices * case.mesh.fsdp
      of_rows = activations_of_other_rows(text, num_rows=case.rows, shards=shards, widths=(case.tokens, ANSWER_TOKENS))
      held = " ".join(f"{size / 2**30:.3f}" for size in (arguments, temporaries[kind], together))
      print(
        f"{kind} {remat} | {held} | {len(gathers)}, {len(of_rows)} | "
        f"{text.count('tpu_custom_call')} | {time.monotonic() - start:.0f} s",
        flush=True,
      )
      failures += bool(of_rows) or (kind == "splash" and together > HBM_BYTES)
    failures += temporaries["splash"] > temporaries.get("plain", float("inf"))
  return int(bool(failures))


def _compiled(case, kind, remat):
  several = {"num_slices": case.slices} if case.slices > 1 else {}
  devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology, **several).devices
  mesh = make_mesh(case.mesh, devices=list(devices))
  optimizer = make_optimizer(OptimizerConfig(), 500)

  def state(trained):
    return new_state(trained, optimizer)

  def on_mesh(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

  model = nnx.eval_shape(lambda: Decoder(case.config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, remat=remat, kind=kind))
  trained, frozen = partition(model)
  trained_state = jax.eval_shape(state, trained)
  rows = jax.ShapeDtypeStruct((case.rows, case.tokens), jnp.int32)
  answers = jax.ShapeDtypeStruct((case.rows, ANSWER_TOKENS), jnp.int32)
  mask = jax.ShapeDtypeStruct((case.rows, 1), jnp.bool_)
  batch = ParallelContextBatch(rows, rows, rows, answers, answers, answers, mask)
  with jax.set_mesh(mesh):
    return train_step.lower(
      on_mesh(trained_state, parameter_shardings(trained_state, mesh)),
      on_mesh(frozen, parameter_shardings(frozen, mesh)),
      on_mesh(batch, jax.tree.map(lambda _: row_sharding(mesh), batch)),
      objective=ralt_objective,
      update=optimizer.update,
    ).compile()


if __name__ == "__main__":
  sys.exit(main())
