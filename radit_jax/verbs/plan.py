"""`radit plan`: does a run fit a TPU slice, how long does it take, and what does it cost; asked of the compiler."""

import dataclasses
import json
from typing import Any

from radit_jax.config import PlanConfig
from radit_jax.errors import UserError
from radit_jax.plan import chips, layout
from radit_jax.plan.bill import Stage, stages
from radit_jax.plan.programs import Models
from radit_jax.plan.shapes import encoder_shape, generator_shape
from radit_jax.plan.survey import Remedy, Survey, remedies, smallest, survey
from radit_jax.plan.tables import as_text
from radit_jax.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class PlanResult:
  """What the compiler said.

  Attributes:
    survey: the programs on the slice.
    stages: of the recipe, and their sum.
    remedies: compiled changes under which programs fit that do not.
    tried: with `fit`, a line on each slice that is too small.
  """

  survey: Survey
  stages: list[Stage]
  remedies: list[Remedy]
  tried: list[str]

  @property
  def failed(self) -> bool:
    """Something does not fit; the command line exits with 1."""
    return not self.survey.fits

  def summary(self) -> str:
    """The tables, or all of it as JSON."""
    if self.survey.config.json:
      return json.dumps(self.as_json(), indent=2)
    return as_text(self.survey, self.stages, self.remedies, self.tried)

  def as_json(self) -> dict[str, Any]:
    """Everything, in bytes, seconds and FLOPs."""
    of = self.survey
    return {
      "topology": of.of.name,
      "chips": of.of.chips,
      "mesh": dict(of.mesh.shape),
      "fits": of.fits,
      "programs": [dataclasses.asdict(p) | {"fits": p.fits, "step_s": p.step_s, "bound": p.bound} for p in of.programs],
      "stages": [dataclasses.asdict(stage) for stage in self.stages],
      "remedies": [dataclasses.asdict(remedy) for remedy in self.remedies],
      "smaller_slices": self.tried,
      "config": dataclasses.asdict(of.config),
    }


def plan(config: PlanConfig, *, progress: Progress = silent) -> PlanResult:
  """Compiles every program of a run for a slice, without TPUs and without weights.

  Args:
    config: see :class:`radit_jax.config.PlanConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: an unknown slice or model, a mesh that does not divide, prompts longer than the model's positions, no TPU
      compiler; with `fit`, no slice that fits.
  """
  of = chips.slice_named(config.topology)
  models = Models(generator_shape(config.generator), *encoder_shape(config.encoder, config.embedding))
  layout.check(config, models)
  if config.fit:
    found, tried = smallest(config, models, progress=progress)
    if found is None:
      raise UserError(f"no slice of {config.topology.partition(':')[0]} fits: {'; '.join(tried)}")
    return PlanResult(found, stages(found), [], tried)
  found = survey(config, models, of, progress=progress)
  return PlanResult(found, stages(found), remedies(found, models, progress=progress), [])
