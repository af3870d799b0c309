"""What the TPU compiler makes of a step: FLOPs over model FLOPs, and memory as the vocabulary grows. Needs no TPU.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/compiled.py --write docs/performance.md

Needs the extra `tpu` on an x86 Linux machine. The programs are those of `radit plan`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from page import table, write_section

from radit_jax import parallel_context
from radit_jax.config import LoopConfig, MeshConfig, PlanConfig, PromptConfig, Remat, TuningConfig
from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.plan import chips, flops, programs
from radit_jax.sharding import make_mesh

LLAMA = DecoderConfig(
  vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_layers=2, num_heads=16, num_kv_heads=16, head_dim=128
)
TOKENS = 1024
RUN = PlanConfig(
  topology="v5e:2x4",
  generator="Llama of width 2048",
  encoder="none",
  k=1,
  k_train=2,
  pack_tokens=TOKENS,
  prompt=PromptConfig(max_tokens=TOKENS),
)


#: Llama, whose gradient does not read the last product of a layer, and the same with what Gemma 2 and 3 have behind it.
SHAPES = {
  "Llama": LLAMA,
  "Llama, with norms behind attention and feed-forward": dataclasses.replace(LLAMA, post_norms=True),
}
REMATS: tuple[Remat, ...] = ("none", "full")


@dataclasses.dataclass(frozen=True)
class Config:
  """FLOPs and memory of compiled steps.

  Attributes:
    write: page whose sections are replaced by the results.
  """

  write: str | None = None


def tuning(rows: int, remat: Remat) -> TuningConfig:
  """RALT over that many rows."""
  return TuningConfig(remat=remat, loop=LoopConfig(steps=5, batch_size=rows))


def models(generator: DecoderConfig) -> programs.Models:
  """The generator alone: no program here has an encoder."""
  encoder = BertConfig(vocab_size=1024, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=512)
  return programs.Models(generator, encoder, EmbeddingConfig(pooling="cls"))


def flops_rows() -> Iterator[list[str]]:
  """Everything unrolled, as the compiler counts the body of a loop once, and plain attention, which reads T x T."""
  scan, checkpoint = jax.lax.scan, jax.checkpoint
  mesh = make_mesh(MeshConfig(), devices=chips.devices(chips.slice_named("v5e:2x2"))[:1])
  rows = 4
  down = 2.0 * rows * TOKENS * LLAMA.num_layers * LLAMA.hidden_size * LLAMA.intermediate_size

  def again(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Without a loop between them, barriers keep what is computed again apart from the first time."""
    return checkpoint(f, **options | {"prevent_cse": True})

  for (name, shape), remat in itertools.product(SHAPES.items(), REMATS):
    config = dataclasses.replace(RUN, prompt_tokens=TOKENS // 2, generator_tuning=tuning(rows, remat))
    with (
      mock.patch.object(jax.lax, "scan", functools.partial(scan, unroll=True)),
      mock.patch.object(jax, "checkpoint", again),
      mock.patch.object(parallel_context, "HEAD_CHUNK_TOKENS", 2**20),
      mock.patch.object(programs, "Decoder", functools.partial(Decoder, kind="plain")),
      jax.set_mesh(mesh),
    ):
      program = programs.ralt(config, models(shape), mesh)
      counted = program.compile().cost_analysis()["flops"]
    # The plan counts keys up to a mean prompt; plain attention reads the whole row.
    head = program.flops / 3 - flops.body_flops(shape, rows * TOKENS, TOKENS // 4)
    body = flops.body_flops(shape, rows * TOKENS, TOKENS)
    model = 3 * (body + head)
    again_too = 0.0 if remat == "none" else body if shape.post_norms else body - down
    ratios = [counted / model, counted / (model + again_too)]
    yield [name, remat, f"{model / 1e12:.3f}", f"{counted / 1e12:.3f}", *(f"{x:.3f}" for x in ratios)]


def full_logits(generator: Decoder, batch: ParallelContextBatch) -> tuple[jax.Array, jax.Array]:
  """What most do: logits of every token of every row, of which the answers' are picked."""
  hidden = generator(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
  logits = generator.logits(hidden)
  rows = jnp.arange(len(logits))[:, None]
  picked = logits[rows, batch.answer_positions, batch.answer_tokens]
  picked = picked - jax.nn.logsumexp(logits, axis=-1)[rows, batch.answer_positions]
  slot = jnp.where(batch.answer_slot >= 0, batch.answer_slot, batch.context_mask.size)
  zeros = jnp.zeros(batch.context_mask.size, jnp.float32)
  return zeros.at[slot].add(picked, mode="drop"), zeros.at[slot].add(1.0, mode="drop")


def full_objective(generator: Decoder, batch: ParallelContextBatch) -> tuple[jax.Array, jax.Array]:
  """The RALT objective on full logits."""
  total, counts = full_logits(generator, batch)
  return -jnp.sum(total), jnp.sum(counts)


def vocabulary_rows() -> Iterator[list[str]]:
  """Temporaries per chip of 8, 64 rows of 1,024 tokens, 4 layers; of a step, without its head's gradient."""
  mesh = make_mesh(MeshConfig(fsdp=8), devices=chips.devices(chips.slice_named("v5e:2x4")))
  config = dataclasses.replace(
    RUN, k_train=1, prompt_tokens=TOKENS, generator_tuning=tuning(64, "full"), score_batch_size=64
  )
  for name, make in (("RALT", programs.ralt), ("scoring", programs.score)):
    for head in ("answers, in chunks", "every token"):
      held = []
      for words in (32_000, 128_000):
        generator = dataclasses.replace(LLAMA, vocab_size=words, num_layers=4)
        with mock.patch.multiple(
          programs,
          ralt_objective=programs.ralt_objective if head.startswith("answers") else full_objective,
          score_step=programs.score_step if head.startswith("answers") else jax.jit(full_logits),
        ):
          program = make(config, models(generator), mesh)
          with jax.set_mesh(mesh):
            temporaries = program.compile().memory_analysis().temp_size_in_bytes
        held.append(temporaries - (words * LLAMA.hidden_size * 4 / 8 if name == "RALT" else 0))
      yield [name, head, *(f"{x / 2**20:,.0f}" for x in held), f"{100 * (held[1] / held[0] - 1):+.1f} %"]


def main() -> None:
  config = tyro.cli(Config)
  header = ["shape", "remat", "model TFLOP", "compiled TFLOP", "ratio", "over what remat must compute"]
  write_section(config.write, "flops", table(header, list(flops_rows())))
  header = ["program", "logits of", "32k words, MiB", "128k words, MiB", "growth"]
  write_section(config.write, "vocabulary", table(header, list(vocabulary_rows())))


if __name__ == "__main__":
  main()
