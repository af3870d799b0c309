"""The stages of the recipe in chip-hours and money, from the times of its programs."""

import dataclasses
import math

from radit_jax.plan.survey import ANSWERS, Survey
from radit_jax.sharding import row_shards

#: Queries a second of one core against 200,000 vectors of width 768, measured (two cores: 5,000). A tree of sqrt(n)
#: leaves, of which a fixed number is searched, takes sqrt(n) times as long.
_QUERIES_PER_CORE, _OF_VECTORS = 2500.0, 200_000
#: Rows of the table that answer with passages: base, LM-ft, R-ft, both.
_ROWS_OF_TABLE = 4


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of the recipe. What a program that does not fit would take is None.

  Attributes:
    name: of the stage.
    calls: of its program, or queries.
    hours: on the slice.
    chip_hours: hours times chips.
    money: at the price given; None without one.
  """

  name: str
  calls: int
  hours: float | None
  chip_hours: float | None
  money: float | None


def stages(of: Survey) -> list[Stage]:
  """Encode, retrieve, RALT, score, R-ft and evaluate, and all of them together."""
  config = of.config
  shards = row_shards(of.mesh)
  seconds = {p.name: p.step_s if p.fits else None for p in of.programs}

  def batches(count: int, size: int) -> int:
    return math.ceil(count / (math.ceil(size / shards) * shards))

  tuning, retriever = config.generator_tuning.loop, config.retriever_tuning.loop
  ralt_steps = tuning.steps or math.ceil(tuning.epochs * config.tuning_examples / tuning.batch_size)
  lsr_steps = retriever.steps or math.ceil(retriever.epochs * config.tuning_examples / retriever.batch_size)
  queries = config.tuning_examples + ralt_steps * tuning.batch_size + 2 * config.evaluation_questions
  per_core = _QUERIES_PER_CORE * min(1.0, math.sqrt(_OF_VECTORS / config.corpus_passages))
  answering = [seconds[name] for name in ANSWERS]
  calls = [
    ("encode", batches(config.corpus_passages, config.encode_batch_size), seconds["encoding"]),
    ("retrieve", queries, 1.0 / (per_core * of.of.chip.vcpus * of.of.chips)),
    ("RALT", ralt_steps, seconds["RALT step"]),
    ("score", batches(config.tuning_examples, config.score_batch_size), seconds["scoring"]),
    ("R-ft", lsr_steps, seconds["LSR step"]),
    (
      "evaluate",
      _ROWS_OF_TABLE * batches(config.evaluation_questions, config.answer_batch_size),
      None if None in answering else sum(s for s in answering if s is not None),
    ),
  ]
  price = config.price_per_chip_hour
  out = []
  for name, number, each in calls:
    hours = None if each is None else number * each / 3600
    used = None if hours is None else hours * of.of.chips
    out.append(Stage(name, number, hours, used, None if used is None or price is None else used * price))
  return [*out, _total(out)]


def _total(of: list[Stage]) -> Stage:
  def added(name: str) -> float | None:
    values = [getattr(stage, name) for stage in of]
    return None if None in values else sum(values)

  return Stage("all", sum(stage.calls for stage in of), added("hours"), added("chip_hours"), added("money"))
