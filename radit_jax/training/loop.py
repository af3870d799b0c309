"""The one loop: RALT, plain instruction tuning, LSR, contrastive and pre-training all run here."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from radit_jax import files, hosts, preemption, sharding
from radit_jax.config import LoopConfig, OptimizerConfig
from radit_jax.errors import Preempted, TrainingError, UserError
from radit_jax.progress import Progress, silent
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.meter import Meter, padded_tokens, real_tokens
from radit_jax.training.metrics import MetricsWriter
from radit_jax.training.sinks import Sinks, chosen_sinks
from radit_jax.training.step import (
  Objective,
  StepFigures,
  check_microbatches,
  combine,
  described,
  evaluate_step,
  init_state,
  learning_rate,
  make_optimizer,
  train_step,
)

log = logging.getLogger("radit_jax")

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


#: What is measured of a model beside its dev loss, by name.
Measured = dict[str, float]


def mean_loss(
  model: Any, batches: Iterable[Batch], objective: Objective, mesh: Mesh, stop_point: Callable[[], None] = lambda: None
) -> tuple[float, Measured]:
  """Objective over all batches, one sum over one count, and what it watches; ``stop_point`` is called after each."""
  sums = []
  for _, batch in batches:
    sums.append(evaluate_step(model, sharding.place_rows(batch, mesh), objective=objective))
    stop_point()
  total = count = 0.0
  seen: Measured = {}
  for part, number, watched in sums:
    total, count = total + float(part), count + float(number)
    seen = {name: seen.get(name, 0.0) + float(value) for name, value in watched.items()}
    stop_point()
  if not count:
    raise UserError("the dev set has nothing to score: no example with an answer and a real passage")
  return total / count, {name: value / count for name, value in seen.items()}


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
  examine: Callable[[Any], Callable[[Any], Measured]] | None = None,
  flops: Callable[[Any], float] | None = None,
  peak_flops: float | None = None,
  stage: str = "train",
  progress: Progress = silent,
) -> TrainResult:
  """Trains a model, and continues the run found in ``workdir``.

  The state of the data is the step number: ``batches(s)`` gives the same batches as skipping ``s`` of ``batches(0)``
  would, so a resumed run equals an uninterrupted one.

  Args:
    model: any pytree of float arrays that ``objective`` understands; Variables in it that are no Params stay as they
      are, and out of the checkpoints. What is trained of it is given away: its arrays may be deleted.
    objective: see :data:`radit_jax.training.step.Objective`.
    batches: from a start step, ``(example ids, batch)`` of this process's rows.
    total_steps: steps of the whole run; sets the schedule.
    loop: logging, checkpoints, patience.
    optimizer: learning rates.
    mesh: from :func:`radit_jax.sharding.make_mesh`.
    workdir: gets ``metrics.jsonl`` and ``checkpoints/``.
    dev_batches: batches to pick the best checkpoint on; None keeps the last.
    examine: is given the model before any training, and gives what measures a later one beside each dev loss.
    flops: model FLOPs of this process's rows of a batch, the backward pass included.
    peak_flops: of all devices of the mesh together, per second.
    stage: name shown in the progress.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    TrainingError: ``loop.max_nonfinite_steps`` non-finite steps in a row, with the ids of the last one's examples; a
      checkpoint that cannot be written.
    UserError: a batch without anything to train on; a checkpoint of another model.
    Preempted: a signal asked to stop; the state is saved.
  """
  meter = Meter(peak_flops)
  root = files.location(workdir)
  make = make_optimizer(optimizer, total_steps)
  # On the host, all at once: computed when it is logged, a rate would queue behind the step that has just started.
  rates = np.asarray(jax.vmap(learning_rate(optimizer, total_steps))(jnp.arange(total_steps)))
  with meter("compile"):
    state, frozen = init_state(model, make, mesh, donate=True)
  measure = None if examine is None or dev_batches is None else examine(combine(state.model, frozen))
  data = {"total_steps": total_steps, "batch_size": loop.batch_size, "seed": loop.seed}
  checkpoints = Checkpoints(root / "checkpoints", keep=loop.keep, data=data, select=loop.select)
  try:
    start = 0
    if checkpoints.newest() is not None:
      like = described(state)
      del state  # what is restored takes its place on the devices
      with meter("checkpoint"):
        start, state = checkpoints.resume(like)
    step = saved = start
    # A run that was stopped while it evaluated has saved that step without its dev loss, and one that is continued with
    # another `select` without that.
    unrated = dev_batches is not None and start > 0 and _is_rated(start, total_steps, loop)
    unrated = unrated and not checkpoints.is_rated(start)
    lines = MetricsWriter(root / "metrics.jsonl", resume_step=start, rated=not unrated)
    writer = Sinks(lines, *chosen_sinks(loop, workdir, resume_step=start))
    # Held while the state is replaced, and while it is saved: what is to end this thread saves the state too.
    held = threading.RLock()

    def save() -> None:
      nonlocal saved
      with held, meter("checkpoint"):
        if saved != step:
          lines.keep()
          checkpoints.save(step, state)
          saved = step

    def stopped_by(name: str) -> str:
      return f"stopped by {name} after step {step} of {total_steps}; the same command continues"

    pending: _Started | None = None

    def settle() -> None:
      """Waits for the step that was started last, and logs it."""
      with held:  # or the thread that ends this one could find nothing to log, and end it before it has
        _settle()

    def _settle() -> None:
      nonlocal pending
      done, pending = pending, None
      if done is None:
        return
      checkpoints.check()
      with meter("step"):
        _check(done, loop)
      figures, count = done.figures, max(float(done.figures.count), 1.0)
      meter.did(
        tokens=int(figures.tokens), padded_tokens=done.padded_tokens, flops=done.flops_a_token * int(figures.tokens)
      )
      if done.step % loop.log_every == 0 or done.step >= total_steps:
        loss = float(figures.loss_sum) / count
        writer.write(
          done.step,
          loss=loss,
          grad_norm=float(figures.gradient_norm),
          lr=float(rates[done.step - 1]),
          tokens=int(figures.tokens),
          batch_ids_hash=_ids_hash(done.ids),
          nonfinite_steps=int(figures.nonfinite_steps),
          **{name: float(value) / count for name, value in figures.watched.items()},
          timing=meter.line(),
        )
        progress(stage, done.step, total_steps, "steps", loss=loss)

    def last_resort(name: str) -> str:
      if hosts.count() > 1:  # which would all have to come here to save
        with held:
          checkpoints.wait()  # of a save that all have begun
        return (
          f"stopped by {name} between step {step} and the next; the same command continues from the last checkpoint"
        )
      with held:
        settle()  # whoever continues from this step does not write its line again
        save()
        checkpoints.wait()
        writer.close()
        return stopped_by(name)

    with contextlib.closing(writer), jax.set_mesh(mesh), preemption.deferred(last_resort) as stop_asked:

      def stop_point() -> None:
        name = stop_asked()
        if name is not None:
          settle()
          save()
          checkpoints.wait()
          raise Preempted(stopped_by(name), agreed=True)

      def rate() -> Measured | None:
        """Measures the model on the dev set, and logs that; None where there is none, or no finite loss."""
        if dev_batches is None:
          return None
        with meter("evaluate"):
          whole = combine(state.model, frozen)
          loss, seen = mean_loss(whole, dev_batches(), objective, mesh, stop_point)
          found = {} if measure is None else measure(whole)
        writer.write(step, dev_loss=loss, **({"dev": {**seen, **found}} if seen or found else {}))
        # A checkpoint without a finite loss may be continued, but it is never the best one.
        finite = {name: value for name, value in found.items() if math.isfinite(value)}
        return {**finite, "dev_loss": loss} if math.isfinite(loss) else None

      if start == 0:
        rate()
      if unrated and (measured := rate()) is not None:
        checkpoints.rate(start, **measured)
      best = checkpoints.best_rating()
      since_best = _steps_without_improvement(checkpoints, start, loop)
      finished = start >= total_steps or (loop.patience is not None and since_best >= loop.patience)
      source = meter.waiting(iter(()) if finished else iter(batches(start)))
      known: set[Any] = set()
      options = {"objective": objective, "update": make.update, "accumulate": loop.accumulate}
      for ids, batch in source:
        if loop.accumulate > 1 and hosts.count() == 1:  # one process's share says nothing about whole microbatches
          check_microbatches(batch, loop.accumulate)
        rows = sharding.place_rows(batch, mesh)
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
        if shapes not in known:
          # For minutes, maybe, in which the state can be saved; the call below finds it done.
          with meter("compile"):
            train_step.lower(state, frozen, rows, step=step, **options).compile()
        before = state
        with held, meter("step"):
          state, figures = train_step(state, frozen, rows, step=step, **options)
          step += 1
        if shapes not in known:
          check_same_kind(before, state)
          known.add(shapes)
        # The last step is waited for once this one has started: the device has work while the host prepares the next
        # batch, and never more than two steps of it.
        settle()
        work = 0.0 if flops is None else flops(batch) / max(real_tokens(batch), 1)
        pending = _Started(step, ids, figures, padded_tokens(rows), work)
        last = step >= total_steps
        if _is_rated(step, total_steps, loop):
          settle()
          # Written while the dev set is measured, and waited for before the next step: no kill costs more than the
          # steps since the save before, and the state is not held a second time by a step that replaces it.
          save()
          measured = rate()
          with held, meter("checkpoint"):
            checkpoints.wait()
            if measured is not None:
              checkpoints.rate(step, **measured)
          if dev_batches is not None:
            rating = None if measured is None else checkpoints.rating(measured)
            if rating is not None and (best is None or rating < best):
              best, since_best = rating, -1
            since_best += 1
        if last or (loop.patience is not None and since_best >= loop.patience):
          break
        stop_point()
      settle()  # batches that end early leave a step
      checkpoints.wait()
      progress(stage, total_steps, total_steps, "steps")
    best_step = checkpoints.best() if dev_batches is not None else step
    if best_step is None:
      raise TrainingError(f"{root}: no checkpoint with a finite dev loss after {step} steps")
    nonfinite_steps = int(state.nonfinite_steps)
    if best_step != step:
      like = described(state)
      del state
      state = checkpoints.restore(best_step, like)
    return TrainResult(
      model=combine(state.model, frozen),
      steps=step,
      best_step=best_step,
      best_dev_loss=checkpoints.dev_loss(best_step) if dev_batches is not None else None,
      nonfinite_steps=nonfinite_steps,
    )
  finally:
    checkpoints.close()


@dataclasses.dataclass(frozen=True)
class _Started:
  """A step that the device may still be at work on."""

  step: int
  ids: tuple[str, ...]
  figures: StepFigures
  padded_tokens: int
  flops_a_token: float


def _check(done: _Started, loop: LoopConfig) -> None:
  """Stops the run for a batch that cannot be trained on."""
  step, ids, figures = done.step, done.ids, done.figures
  named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
  if float(figures.count) == 0:
    raise UserError(f"step {step}: nothing to train on (no answer token, or no real passage) in examples {named}")
  if bool(figures.finite):
    return
  problem = f"step {step}: loss {float(figures.loss_sum)} or gradient norm {float(figures.gradient_norm)} is not finite"
  if int(figures.nonfinite_in_a_row) >= loop.max_nonfinite_steps:
    raise TrainingError(
      f"{problem}, the step of {int(figures.nonfinite_in_a_row)} in a row that are left out (limit "
      f"{loop.max_nonfinite_steps}); examples {named}"
    )
  log.warning("%s: it changes nothing; examples %s", problem, named)


def _is_rated(step: int, total_steps: int, loop: LoopConfig) -> bool:
  """Whether a dev loss belongs to a step, and a checkpoint."""
  return step % loop.evaluate_every == 0 or step >= total_steps


def _ids_hash(ids: tuple[str, ...]) -> str:
  """Names the examples of a batch, those of all processes, whichever of them has which."""
  if hosts.count() > 1:
    ids = tuple(i for part in hosts.exchange(json.dumps(ids)) for i in json.loads(part))
  return hashlib.sha256("\n".join(sorted(set(ids))).encode()).hexdigest()[:16]


def check_same_kind(before: Any, after: Any) -> None:
  """Asserts that a step has kept type and sharding of each array of its state: another kind would be another program.

  Raises:
    RuntimeError: naming the array and both.
  """

  def kind(x: Any) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.weak_type

  for (path, old), new in zip(jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True):
    if kind(old) != kind(new) or not old.sharding.is_equivalent_to(new.sharding, old.ndim):
      raise RuntimeError(
        f"{jax.tree_util.keystr(path)} was {old.dtype} {old.shape} on {old.sharding} before a step, and is {new.dtype} "
        f"{new.shape} on {new.sharding} after it"
      )


def _steps_without_improvement(checkpoints: Checkpoints, start: int, loop: LoopConfig) -> int:
  """Dev losses since the best one, so that patience survives a restart."""
  return (start - (checkpoints.best() or 0)) // loop.evaluate_every
