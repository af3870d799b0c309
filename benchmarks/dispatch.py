"""What the host does for one training step, apart from the computation: how long the call takes to return.

    python benchmarks/dispatch.py

The model is 32 layers deep and very narrow. Its layers are stacked arrays, so the step has few leaves whatever the
depth; with a list of layers the host would handle each layer's arrays in every call.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
import tyro
from page import table, write_section
from workload import Shape, machine, one_device

from radit_jax import sharding
from radit_jax.config import OptimizerConfig
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.training.step import init_state, make_optimizer, ralt_objective, train_step


@dataclasses.dataclass(frozen=True)
class Config:
  """Milliseconds of the host per training step.

  Attributes:
    layers: depth of the model.
    width: of the model.
    steps: calls that are timed.
    write: page whose section is replaced by the result.
  """

  layers: int = 32
  width: int = 64
  steps: int = 100
  write: str | None = None


def main(config: Config) -> float:
  """Median milliseconds until the call returns; each step is waited for, outside of the clock."""
  mesh = one_device()
  optimizer = make_optimizer(OptimizerConfig(), 1000)
  rows, tokens, answers = 4, 32, 4
  counted = np.broadcast_to(np.arange(tokens, dtype=np.int32), (rows, tokens))
  ones = np.ones((rows, tokens), np.int32)
  batch = ParallelContextBatch(
    tokens=counted,
    positions=counted,
    segment_ids=ones,
    answer_positions=counted[:, -answers - 1 : -1],
    answer_tokens=counted[:, -answers:],
    answer_slot=np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], (rows, answers)),
    context_mask=np.ones((1, rows), bool),
  )
  with jax.set_mesh(mesh):
    shape = Shape(width=config.width, layers=config.layers, vocabulary=256, head_dim=16)
    state, frozen = init_state(shape.decoder(), optimizer, mesh)
    placed = sharding.place_rows(batch, mesh)
    taken, whole = [], []
    for step in range(config.steps + 5):
      jax.block_until_ready(state)
      start = time.perf_counter()
      state, figures = train_step(state, frozen, placed, objective=ralt_objective, update=optimizer.update)
      returned = time.perf_counter()
      jax.block_until_ready((state, figures))
      if step >= 5:
        taken.append(1e3 * (returned - start))
        whole.append(1e3 * (time.perf_counter() - start))
  leaves = len(jax.tree.leaves((state, frozen, placed)))
  median = statistics.median(taken)
  rows_of_table = [
    [str(config.layers), str(leaves), f"{median:.2f}", f"{min(taken):.2f}", f"{statistics.median(whole):.1f}"]
  ]
  header = ["layers", "arrays handed over", "host per step, ms (median)", "least, ms", "whole step, ms (median)"]
  text = f"{table(header, rows_of_table)}\n\n{config.steps} steps; {machine()}."
  write_section(config.write, "dispatch", text)
  return median


if __name__ == "__main__":
  main(tyro.cli(Config))
