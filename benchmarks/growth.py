"""How the cost of a RALT step grows with passages, row length, depth and vocabulary: time, memory, time to compile.

    python benchmarks/growth.py

Every point runs in a process of its own, so that its peak memory is its own.
"""

import dataclasses
import json
import math
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time
from typing import Literal

import jax
import numpy as np
import tyro
from page import table, write_section
from workload import Shape, machine, one_device

from radit_jax import sharding
from radit_jax.config import OptimizerConfig
from radit_jax.evaluation.charts import line_chart
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.process import keep_heap
from radit_jax.training.step import init_state, make_optimizer, ralt_objective, train_step

#: What grows, and from where to where; the other three stay at the first value of `BASE`.
SWEEPS = {
  "k": (1, 2, 4, 8, 16),
  "tokens": (128, 256, 512, 1024, 2048),
  "layers": (2, 4, 8, 16, 32),
  "vocabulary": (8_000, 16_000, 32_000, 64_000, 128_000),
}
TITLES = {"k": "k passages", "tokens": "T tokens a row", "layers": "layers", "vocabulary": "vocabulary"}
#: Figures of a point: title, unit, divisor.
FIGURES = {
  "step_s": ("step", "s", 1.0),
  "temporaries_bytes": ("temporaries", "MiB", 2**20),
  "peak_bytes": ("peak of the process", "MiB", 2**20),
  "compile_s": ("compile", "s", 1.0),
}
ANSWER_TOKENS = 16
_STYLE = """
text{font:11px sans-serif;fill:#5c6878}.mid{text-anchor:middle}.end{text-anchor:end}.grid{stroke:#e2e6ec}
.title{font-weight:600;fill:#1b2430}.line{fill:none;stroke-width:2}rect{fill:#fff}
.s0{stroke:#0f766e}.s1{stroke:#b45309}.s2{stroke:#4338ca}.s3{stroke:#9aa7b8}
.dot{stroke:none}.dot.s0{fill:#0f766e}.dot.s1{fill:#b45309}.dot.s2{fill:#4338ca}.dot.s3{fill:#9aa7b8}
"""


@dataclasses.dataclass(frozen=True)
class Point:
  """One step's size: a question with k passages in rows of T tokens, and the model's depth and vocabulary."""

  k: int = 4
  tokens: int = 256
  layers: int = 4
  vocabulary: int = 8_000
  width: int = 256


@dataclasses.dataclass(frozen=True)
class Config:
  """Growth of the cost of a RALT step.

  Attributes:
    only: one sweep instead of all.
    steps: steps timed at each point.
    write: page whose section is replaced by the result.
    chart: SVG file to write.
    point: measures this point in this process and prints JSON; what the command calls itself with.
  """

  only: Literal["k", "tokens", "layers", "vocabulary"] | None = None
  steps: int = 3
  write: str | None = None
  chart: str | None = None
  point: Point | None = None


def measure(point: Point, steps: int) -> dict[str, float]:
  """The figures of one point."""
  keep_heap()
  mesh = one_device()
  optimizer = make_optimizer(OptimizerConfig(), 1000)
  rng = np.random.default_rng(0)
  rows, tokens = point.k, point.tokens
  ids = rng.integers(0, point.vocabulary, (rows, tokens), dtype=np.int32)
  at = np.broadcast_to(np.arange(tokens - ANSWER_TOKENS - 1, tokens - 1, dtype=np.int32), (rows, ANSWER_TOKENS))
  batch = ParallelContextBatch(
    tokens=ids,
    positions=np.broadcast_to(np.arange(tokens, dtype=np.int32), ids.shape),
    segment_ids=np.ones_like(ids),
    answer_positions=at,
    answer_tokens=np.take_along_axis(ids, at + 1, axis=1),
    answer_slot=np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], at.shape),
    context_mask=np.ones((1, rows), bool),
  )
  shape = Shape(width=point.width, layers=point.layers, vocabulary=point.vocabulary)
  with jax.set_mesh(mesh):
    state, frozen = init_state(shape.decoder(), optimizer, mesh)
    placed = sharding.place_rows(batch, mesh)
    start = time.perf_counter()
    program = train_step.lower(state, frozen, placed, objective=ralt_objective, update=optimizer.update).compile()
    compile_s = time.perf_counter() - start
    taken = []
    for _ in range(steps + 1):
      start = time.perf_counter()
      state, _ = jax.block_until_ready(program(state, frozen, placed))
      taken.append(time.perf_counter() - start)
  return {
    "step_s": statistics.median(taken[1:]),
    "temporaries_bytes": program.memory_analysis().temp_size_in_bytes,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "compile_s": compile_s,
  }


def _figure(value: float) -> str:
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def chart(found: dict[str, list[tuple[int, dict[str, float]]]]) -> str:
  """Doublings of each figure against doublings of what grows, one panel each: a line along the diagonal is linear."""
  width, height, head = 370, 250, 40
  names = [name for name, _, _ in FIGURES.values()]
  parts = []
  for i, (sweep, points) in enumerate(found.items()):
    first, base = points[0]
    lines = [
      (title, [(math.log2(value / first), math.log2(figures[name] / base[name])) for value, figures in points])
      for name, (title, _, _) in FIGURES.items()
    ]
    label = f"doublings of {TITLES[sweep]}, from {first:,} to {points[-1][0]:,}"
    svg = line_chart(lines, x_label=label, y_label="doublings of the cost").split('<p class="legend"', 1)[0]
    svg = re.sub(r"<svg ", '<svg width="350" height="210" ', svg, count=1)
    x, y = i % 2 * width, head + i // 2 * height
    parts.append(f'<g transform="translate({x + 10},{y + 24})">{svg}</g>')
    parts.append(f'<text class="title" x="{x + 14}" y="{y + 14}">{TITLES[sweep]}: doublings of the cost</text>')
  for i, name in enumerate(names):
    parts.append(f'<circle class="dot s{i}" cx="{20 + 150 * i}" cy="18" r="5"/>')
    parts.append(f'<text x="{30 + 150 * i}" y="22">{name}</text>')
  size = f"{2 * width} {head + -(-len(found) // 2) * height}"
  inside = "\n".join(parts)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" '
    f'aria-label="Cost of a RALT step as it grows"><style>{_STYLE}</style>'
    f'<rect width="100%" height="100%"/>\n{inside}\n</svg>\n'
  )


def main(config: Config) -> None:
  """Runs every point, or the one given."""
  if config.point is not None:
    print(json.dumps(measure(config.point, config.steps)))
    return
  found: dict[str, list[tuple[int, dict[str, float]]]] = {}
  for sweep, values in SWEEPS.items():
    if config.only not in (None, sweep):
      continue
    found[sweep] = []
    for value in values:
      point = dataclasses.replace(Point(), **{sweep: value})
      options = [f"--point.{field}={number}" for field, number in dataclasses.asdict(point).items()]
      command = [sys.executable, __file__, f"--steps={config.steps}", "point:point", *options]
      out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
      found[sweep].append((value, json.loads(out.splitlines()[-1])))
      print(f"{sweep} = {value}: {found[sweep][-1][1]}", file=sys.stderr)
  rows = [
    [TITLES[sweep] if i == 0 else "", f"{value:,}", *(_figure(f[n] / d) for n, (_, _, d) in FIGURES.items())]
    for sweep, points in found.items()
    for i, (value, f) in enumerate(points)
  ]
  header = ["grows", "to", *(f"{title}, {unit}" for title, unit, _ in FIGURES.values())]
  base = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(Point()).items())
  note = f"The rest stays at {base}; {ANSWER_TOKENS} answer tokens a row, one question, float32. {machine()}."
  write_section(config.write, "growth", f"{table(header, rows)}\n\n{note}")
  if config.chart is not None:
    pathlib.Path(config.chart).write_text(chart(found), encoding="utf-8")


if __name__ == "__main__":
  main(tyro.cli(Config))
