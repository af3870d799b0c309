"""`radit checkpoints`: the checkpoints of a run, their sizes and figures, and whether each is what was saved."""

import dataclasses
import pathlib

from radit_jax.config import CheckpointsConfig
from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent
from radit_jax.training import manifests

FOLDER = "checkpoints"


@dataclasses.dataclass(frozen=True)
class CheckpointsResult:
  """What was found.

  Attributes:
    steps: of each directory of checkpoints, the oldest first.
    sizes: bytes below each step's directory, by its path.
    set_aside: damaged ones that a run has renamed.
  """

  steps: dict[str, list[manifests.Step]]
  sizes: dict[pathlib.Path, int]
  set_aside: tuple[pathlib.Path, ...]

  @property
  def failed(self) -> bool:
    """One is damaged; the command line exits with 1. One that a run is just writing, or was killed over, is not."""
    return any(s.problem and not s.unfinished for found in self.steps.values() for s in found)

  def summary(self) -> str:
    """A table of each directory, and a line for each one set aside."""
    parts = []
    for directory, found in self.steps.items():
      lines = [directory, f"{'step':>10}  {'MB':>10}  {'dev loss':>10}  state"]
      for step in found:
        loss = "" if step.dev_loss is None else f"{step.dev_loss:.4f}"
        state = "intact"
        if step.unfinished:
          state = "not finished: has no manifest yet, and the run will make it again"
        elif step.problem:
          state = f"DAMAGED: {step.problem}"
        lines.append(f"{step.number:>10}  {self.sizes[step.path] / 1e6:>10,.1f}  {loss:>10}  {state}")
      parts.append("\n".join(lines if found else [directory, "no checkpoint yet"]))
    parts += [f"{path}: was damaged, no run reads it; remove it when you have no use for it" for path in self.set_aside]
    return "\n".join(parts)


def checkpoints(config: CheckpointsConfig, *, progress: Progress = silent) -> CheckpointsResult:
  """Lists the checkpoints of a run and holds every file against the manifest of its step; changes nothing.

  Args:
    config: see :class:`radit_jax.config.CheckpointsConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: no such directory, or one without checkpoints.
  """
  root = pathlib.Path(config.run)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  inside = [root / FOLDER, *sorted(root.glob(f"train_*/{FOLDER}"))]  # a tuning's own, or those of a whole run
  places = [root] if root.name == FOLDER else [p for p in inside if p.is_dir()]
  if not places:
    raise UserError(f"{root}: no checkpoints here (neither {FOLDER}/ nor train_*/{FOLDER}/)")
  found = {}
  for number, place in enumerate(places, 1):
    found[str(place)] = manifests.steps(place, verify=config.verify)
    progress("check", number, len(places), "directories")
  every = [step.path for of in found.values() for step in of]
  aside = tuple(sorted(p for place in places for p in place.glob(f"{manifests.SET_ASIDE}*")))
  return CheckpointsResult(found, {path: _size(path) for path in every}, aside)


def _size(path: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
