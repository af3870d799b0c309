"""Where the metrics of a run go besides ``metrics.jsonl``: TensorBoard, and Weights & Biases without its servers."""

import contextlib
import hashlib
import importlib.util
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from radit_jax import files, hosts
from radit_jax.config import LoopConfig
from radit_jax.errors import UserError


class MetricSink(Protocol):
  """Takes the figures of a step; several lines may have one step, such as its loss and its dev loss."""

  def write(self, step: int, **figures: Any) -> None:
    """Takes a line; values are numbers, texts, None, or mappings of them."""

  def close(self) -> None:
    """Returns when every line is where it belongs."""


class Sinks:
  """Several sinks as one.

  Args:
    each: in order.
  """

  def __init__(self, *each: MetricSink):
    self._each = each

  def write(self, step: int, **figures: Any) -> None:
    for sink in self._each:
      sink.write(step, **figures)

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # one that fails keeps no other from closing
      for sink in self._each:
        stack.callback(sink.close)


def check_sinks(loop: LoopConfig, workdir: str | os.PathLike[str]) -> None:
  """Finds out whether :func:`chosen_sinks` can do what is asked.

  Raises:
    UserError: an extra that is not installed, or a work directory in a bucket.
  """
  for name, package, wanted in (("tensorboard", "tensorboardX", loop.tensorboard), ("wandb", "wandb", loop.wandb)):
    if wanted and files.in_bucket(workdir):
      raise UserError(f"loop.{name}: cannot write to {workdir}; leave it out, metrics.jsonl there has the same figures")
    if wanted and importlib.util.find_spec(package) is None:
      raise UserError(f'loop.{name}: needs the extra {name}: pip install "radit_jax[{name}]"')


def chosen_sinks(loop: LoopConfig, workdir: str | os.PathLike[str], *, resume_step: int) -> list[MetricSink]:
  """What ``loop.tensorboard`` and ``loop.wandb`` ask for; none in any process but the first.

  Args:
    loop: of the run.
    workdir: of the run; gets ``tensorboard/`` and ``wandb/``.
    resume_step: lines of later steps are about to be written again.
  """
  if not hosts.is_first():
    return []
  root = pathlib.Path(workdir)
  out: list[MetricSink] = []
  if loop.tensorboard:
    out.append(TensorBoardSink(root / "tensorboard", resume_step=resume_step))
  if loop.wandb:
    out.append(WandbSink(root))
  return out


class TensorBoardSink:
  """Event files that TensorBoard reads; written without TensorFlow.

  Args:
    directory: of the event files; made if missing.
    resume_step: TensorBoard forgets what earlier files say of later steps; of all, where the run begins anew.
  """

  def __init__(self, directory: pathlib.Path, *, resume_step: int = 0):
    import tensorboardX

    purge = {"purge_step": resume_step + 1 if resume_step else 0} if directory.exists() else {}
    self._writer = tensorboardX.SummaryWriter(str(directory), **purge)

  def write(self, step: int, **figures: Any) -> None:
    for name, value in _numbers(figures):
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    self._writer.close()


class WandbSink:
  """A run of Weights & Biases in ``wandb/`` of the work directory, for ``wandb sync`` to send: nothing is sent here.

  What it would note of its own accord (code, packages, git, console, the machine) is turned off.

  Args:
    workdir: of the run; one that is continued keeps its id, so that ``wandb sync --append`` joins the parts.
  """

  def __init__(self, workdir: pathlib.Path):
    import wandb

    name = str(workdir.resolve())
    quiet = wandb.Settings(
      mode="offline",
      console="off",
      silent=True,
      save_code=False,
      disable_code=True,
      disable_git=True,
      disable_job_creation=True,
      x_disable_meta=True,
      x_disable_machine_info=True,
      x_disable_stats=True,
      x_save_requirements=False,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(name.encode()).hexdigest()[:12]
    self._run = wandb.init(dir=str(workdir), project="radit_jax", id=identity, name=workdir.name, settings=quiet)

  def write(self, step: int, **figures: Any) -> None:
    self._run.log(dict(_numbers(figures)), step=step)

  def close(self) -> None:
    import wandb

    self._run.finish()
    wandb.teardown()  # only then is everything in the file


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
  """Every finite number, those of a mapping as ``outer/inner``."""
  for name, value in figures.items():
    if isinstance(value, Mapping):
      yield from _numbers(value, f"{prefix}{name}/")
    elif isinstance(value, (int, float)) and math.isfinite(value):
      yield f"{prefix}{name}", float(value)
