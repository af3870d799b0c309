"""How many programs an epoch over SQuAD compiles: distinct shapes of the batches the verbs plan, and what steps share.

python benchmarks/programs.py --squad dev-v1.1.json
"""

import dataclasses
import pathlib
import tempfile

import numpy as np
import tyro
from page import table, write_section
from workload import one_device, squad_workload

from radit_jax.config import LoopConfig
from radit_jax.data.batches import RowLengths
from radit_jax.data.packing import PackedBatch, PackedPlan
from radit_jax.data.plan import PlannedBatch, sample
from radit_jax.verbs import tuning


@dataclasses.dataclass(frozen=True)
class Config:
  """Programs per epoch over SQuAD.

  Attributes:
    squad: file of SQuAD 1.1.
    questions: drawn from it; a tenth are the dev set. None for all.
    batch_size: examples of a step.
    k: passages per question.
    pack_tokens: length of packed rows.
    sharing: batch sizes whose steps are asked how much of their prompts they share.
    write: page whose section is replaced by the result.
  """

  squad: str
  questions: int | None = None
  batch_size: int = 16
  k: int = 5
  pack_tokens: int = 640
  sharing: tuple[int, ...] = (16, 64, 256, 1024)
  write: str | None = None


def shapes(plan: list[PlannedBatch]) -> set[tuple[int, ...]]:
  """What the programs of a plan's batches differ in: T, and in packed rows R and A."""
  return {
    (len(b.rows), b.bucket_tokens, b.answer_tokens) if isinstance(b, PackedBatch) else (b.bucket_tokens,) for b in plan
  }


def main(config: Config) -> dict[str, int]:
  """Programs by kind of work."""
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    work = squad_workload(config.squad, root, questions=config.questions, k=config.k, vocabulary=8000)
    queries = [len(ids) for ids in work.tokenizer([e.query for e in work.retrieved])["input_ids"]]
  dev = np.zeros(len(work.lengths.rows), bool)
  dev[sample(len(dev), max(1, len(dev) // 10), seed=0)] = True
  mesh, loop = one_device(), LoopConfig(batch_size=config.batch_size)

  def part(of: np.ndarray) -> RowLengths:
    lengths = work.lengths
    assert lengths.prefixes is not None
    return dataclasses.replace(
      lengths, each=lengths.each[of], answers=lengths.answers[of], prefixes=lengths.prefixes[of]
    )

  padded = tuning.make_plans(work.lengths.rows[~dev], work.lengths.rows[dev], loop=loop, mesh=mesh)

  def packed_plans(batch_size: int) -> tuning.Plans:
    loop = LoopConfig(batch_size=batch_size)
    return tuning.make_packed_plans(part(~dev), part(dev), config.pack_tokens, loop=loop, mesh=mesh, share=True)

  packed = packed_plans(config.batch_size)
  asked = np.array(queries)
  lsr = tuning.make_plans(asked[~dev], asked[dev], loop=loop, mesh=mesh)
  found = {
    "RALT, padded rows": (shapes(list(padded.train)), shapes(list(padded.dev))),
    "RALT, packed rows": (shapes(list(packed.train)), shapes(list(packed.dev))),
    "LSR": (shapes(list(lsr.train)), shapes(list(lsr.dev))),
  }
  counts = {name: len(train) + len(other) for name, (train, other) in found.items()}
  rows = [
    [name, str(counts[name]), ", ".join("×".join(map(str, s)) for s in sorted(train)), _list(other)]
    for name, (train, other) in found.items()
  ]
  text = table(["", "programs", "shapes of steps", "shapes of dev batches"], rows)
  note = f"{len(dev)} questions, a tenth of them for dev losses, {config.batch_size} a step, k = {config.k}. "
  note += "Scoring is one program: all its rows are of one length."
  shares = []
  for size in config.sharing:
    plans = packed_plans(size)
    assert isinstance(plans.train, PackedPlan)
    found_shapes = shapes(list(plans.train)), shapes(list(plans.dev))
    shares.append(
      [str(size), f"{plans.train.shared:.2f}", f"{plans.train.padding:.0%}", str(sum(map(len, found_shapes)))]
    )
  header = ["questions a step", "tokens of prompts over those computed", "padding", "programs"]
  write_section(config.write, "programs", f"{text}\n\n{note}\n\n{table(header, shares)}")
  return counts


def _list(shapes_of: set[tuple[int, ...]]) -> str:
  return ", ".join("×".join(map(str, s)) for s in sorted(shapes_of)) or "–"


if __name__ == "__main__":
  main(tyro.cli(Config))
