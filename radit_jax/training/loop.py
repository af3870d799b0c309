"""The one loop: RALT, plain instruction tuning, LSR, contrastive and pre-training all run here."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from radit_jax import files, hosts, sharding
from radit_jax.config import LoopConfig, OptimizerConfig
from radit_jax.errors import Preempted, TrainingError, UserError
from radit_jax.progress import Progress, silent
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.metrics import MetricsWriter
from radit_jax.training.step import (
  Objective,
  StepFigures,
  check_microbatches,
  combine,
  evaluate_step,
  init_state,
  learning_rate,
  make_optimizer,
  train_step,
)

#: Example ids and the batch of arrays made of them.
Batch = tuple[tuple[str, ...], Any]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a run leaves.

  Attributes:
    model: the whole model of the best dev loss (the last one without dev batches), on the mesh.
    steps: optimizer steps run, earlier sessions of the run included.
    best_step: step whose model is returned.
    best_dev_loss: its dev loss; None without dev batches.
    nonfinite_steps: steps left out.
  """

  model: Any
  steps: int
  best_step: int
  best_dev_loss: float | None
  nonfinite_steps: int


@contextlib.contextmanager
def _stop_asked() -> Iterator[Callable[[int], bool]]:
  """Whether to stop after a step, as SIGTERM asks. JAX sees it only under jax.distributed, so one process needs this.

  Several processes must all ask after every step: one that got SIGTERM sees to it that all stop after the same one.
  """
  if hosts.count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  flag = threading.Event()
  if threading.current_thread() is not threading.main_thread():  # only the main thread may install a handler
    yield lambda step: flag.is_set()
    return
  before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
  try:
    yield lambda step: flag.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


def mean_loss(model: Any, batches: Iterable[Batch], objective: Objective, mesh: Mesh) -> float:
  """Objective over all batches: one sum over one count."""
  sums = [evaluate_step(model, sharding.place_rows(batch, mesh), objective=objective) for _, batch in batches]
  total = sum(float(s) for s, _ in sums)
  count = sum(float(c) for _, c in sums)
  if not count:
    raise UserError("the dev set has nothing to score: no example with an answer and a real passage")
  return total / count


def train(
  model: Any,
  objective: Objective,
  batches: Callable[[int], Iterator[Batch]],
  *,
  total_steps: int,
  loop: LoopConfig,
  optimizer: OptimizerConfig,
  mesh: Mesh,
  workdir: str | os.PathLike[str],
  dev_batches: Callable[[], Iterable[Batch]] | None = None,
  stage: str = "train",
  progress: Progress = silent,
) -> TrainResult:
  """Trains a model, and continues the run found in ``workdir``.

  The state of the data is the step number: ``batches(s)`` gives the same batches as skipping ``s`` of ``batches(0)``
  would, so a resumed run equals an uninterrupted one.

  Args:
    model: any pytree of float arrays that ``objective`` understands; Variables in it that are no Params stay as they
      are, and out of the checkpoints.
    objective: see :data:`radit_jax.training.step.Objective`.
    batches: from a start step, ``(example ids, batch)`` of this process's rows.
    total_steps: steps of the whole run; sets the schedule.
    loop: logging, checkpoints, patience.
    optimizer: learning rates.
    mesh: from :func:`radit_jax.sharding.make_mesh`.
    workdir: gets ``metrics.jsonl`` and ``checkpoints/``.
    dev_batches: batches to pick the best checkpoint on; None keeps the last.
    stage: name shown in the progress.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    TrainingError: ``loop.max_nonfinite_steps`` non-finite steps, with the ids of the last one's examples.
    UserError: a batch without anything to train on; a checkpoint of another model.
    Preempted: SIGTERM came; the state is saved.
  """
  root = files.location(workdir)
  make = make_optimizer(optimizer, total_steps)
  # On the host, all at once: computed when it is logged, a rate would queue behind the step that has just started.
  rates = np.asarray(jax.vmap(learning_rate(optimizer, total_steps))(jnp.arange(total_steps)))
  state, frozen = init_state(model, make, mesh)
  data = {"total_steps": total_steps, "batch_size": loop.batch_size, "seed": loop.seed}
  checkpoints = Checkpoints(root / "checkpoints", keep=loop.keep, data=data)
  try:
    start, state = checkpoints.resume(state)
    writer = MetricsWriter(root / "metrics.jsonl", resume_step=start)
    with contextlib.closing(writer), jax.set_mesh(mesh), _stop_asked() as stop_asked:

      def dev_loss() -> float | None:
        return None if dev_batches is None else mean_loss(combine(state.model, frozen), dev_batches(), objective, mesh)

      if start == 0 and dev_batches is not None:
        writer.write(0, dev_loss=dev_loss())
      step = saved = start
      since, clock = 0, time.monotonic()
      pending: _Started | None = None
      best = checkpoints.best_loss()
      since_best = _steps_without_improvement(checkpoints, start, loop)

      def settle() -> None:
        """Waits for the step that was started last, and logs it."""
        nonlocal pending, since, clock
        done, pending = pending, None
        if done is None:
          return
        _check(done, loop)
        since += 1
        if done.step % loop.log_every == 0 or done.step >= total_steps:
          figures = done.figures
          loss = float(figures.loss_sum) / max(float(figures.count), 1.0)
          rate = since / (time.monotonic() - clock)
          writer.write(
            done.step,
            loss=loss,
            gradient_norm=float(figures.gradient_norm),
            learning_rate=float(rates[done.step - 1]),
            steps_per_s=round(rate, 3),
            nonfinite_steps=int(figures.nonfinite_steps),
          )
          progress(stage, done.step, total_steps, "steps", loss=loss)
          since, clock = 0, time.monotonic()

      finished = start >= total_steps or (loop.patience is not None and since_best >= loop.patience)
      source = iter(()) if finished else batches(start)
      for ids, batch in source:
        if loop.accumulate > 1 and hosts.count() == 1:  # one process's share says nothing about whole microbatches
          check_microbatches(batch, loop.accumulate)
        rows = sharding.place_rows(batch, mesh)
        state, figures = train_step(
          state, frozen, rows, objective=objective, update=make.update, accumulate=loop.accumulate, step=step
        )
        step += 1
        # The last step is waited for once this one has started: the device has work while the host prepares the next
        # batch, and never more than two steps of it.
        settle()
        pending = _Started(step, ids, figures)
        last = step >= total_steps
        if step % loop.evaluate_every == 0 or last:
          settle()
          paused = time.monotonic()
          value = dev_loss()
          if value is not None:
            writer.write(step, dev_loss=value)
            if not math.isfinite(value):
              value = None  # such a checkpoint may be continued, but it is never the best one
            elif best is None or value < best:
              best, since_best = value, -1
            since_best += 1
          checkpoints.save(step, state, dev_loss=value)
          saved = step
          clock += time.monotonic() - paused
        if last or (loop.patience is not None and since_best >= loop.patience):
          break
        if stop_asked(step):
          settle()
          if saved != step:
            checkpoints.save(step, state, dev_loss=None)
          checkpoints.wait()
          raise Preempted(f"stopped by SIGTERM after step {step} of {total_steps}; the same command continues")
      settle()  # batches that end early leave a step
      checkpoints.wait()
      progress(stage, total_steps, total_steps, "steps")
    best_step = checkpoints.best() if dev_batches is not None else step
    if best_step is None:
      raise TrainingError(f"{root}: no checkpoint with a finite dev loss after {step} steps")
    if best_step != step:
      state = checkpoints.restore(best_step, state)
    return TrainResult(
      model=combine(state.model, frozen),
      steps=step,
      best_step=best_step,
      best_dev_loss=checkpoints.best_loss() if dev_batches is not None else None,
      nonfinite_steps=int(state.nonfinite_steps),
    )
  finally:
    checkpoints.close()


@dataclasses.dataclass(frozen=True)
class _Started:
  """A step that the device may still be at work on."""

  step: int
  ids: tuple[str, ...]
  figures: StepFigures


def _check(done: _Started, loop: LoopConfig) -> None:
  """Stops the run for a batch that cannot be trained on."""
  step, ids, figures = done.step, done.ids, done.figures
  named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
  if float(figures.count) == 0:
    raise UserError(f"step {step}: nothing to train on (no answer token, or no real passage) in examples {named}")
  if not bool(figures.finite) and int(figures.nonfinite_steps) >= loop.max_nonfinite_steps:
    raise TrainingError(
      f"step {step}: loss {float(figures.loss_sum)} or gradient norm {float(figures.gradient_norm)} is not finite, "
      f"{int(figures.nonfinite_steps)} steps left out so far (limit {loop.max_nonfinite_steps}); examples {named}"
    )


def _steps_without_improvement(checkpoints: Checkpoints, start: int, loop: LoopConfig) -> int:
  """Dev losses since the best one, so that patience survives a restart."""
  best = checkpoints.best()
  return 0 if best is None else math.floor((start - best) / loop.evaluate_every)
