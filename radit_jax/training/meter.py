"""Where the time of a run goes, how fast it trains, and what memory it took at most."""

import contextlib
import functools
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax
import numpy as np

from radit_jax.parallel_context import LSRBatch, ParallelContextBatch
from radit_jax.training.step import PairBatch

#: What a run can be at; the rest of its time is idle.
Phase = Literal["data", "compile", "step", "evaluate", "checkpoint"]
PHASES: tuple[Phase, ...] = get_args(Phase)

#: JAX's name of the time the compiler took, a program from the cache on disk included.
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Meter:
  """Seconds of each phase, and work done, between two lines of the metrics.

  Seconds are those of the host, as it waits: for batches, for the compiler, for a step. Devices work while it prepares
  the next batch, so a short wait for data costs nothing and is seen nowhere.

  Args:
    peak_flops: of all devices of the run together, per second; None where it is not known.
    now: the clock, in seconds.
  """

  def __init__(self, peak_flops: float | None = None, now: Callable[[], float] = time.monotonic):
    self._peak, self._now = peak_flops, now
    self._open: list[_Span] = []
    self._reset()

  def _reset(self) -> None:
    self._began = self._now()
    self._seconds = dict.fromkeys(PHASES, 0.0)
    self._steps = self._tokens = self._padded = 0
    self._flops = 0.0

  @contextlib.contextmanager
  def __call__(self, phase: Phase) -> Iterator[None]:
    """Around what belongs to a phase. A phase inside of another one is no part of it, nor is compiling."""
    span = _Span(self._now(), _compile_seconds())
    self._open.append(span)
    try:
      yield
    finally:
      self._open.pop()
      elapsed = self._now() - span.began
      compiled = min(_compile_seconds() - span.compiled_before, elapsed) - span.compiled_inside
      self._seconds["compile"] += compiled
      self._seconds[phase] += elapsed - span.inside - compiled
      if self._open:
        self._open[-1].inside += elapsed
        self._open[-1].compiled_inside += compiled + span.compiled_inside

  def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; waiting for one is "data"."""
    while True:
      with self("data"):
        batch = next(batches, None)
      if batch is None:
        return
      yield batch

  def did(self, *, tokens: int, padded_tokens: int, flops: float) -> None:
    """Counts a step.

    Args:
      tokens: of the batch, over all processes, without padding.
      padded_tokens: with it.
      flops: model FLOPs of the step, see :mod:`radit_jax.plan.flops`; 0 where they are not known.
    """
    self._steps += 1
    self._tokens += tokens
    self._padded += padded_tokens
    self._flops += flops

  def line(self) -> dict[str, float]:
    """The figures since the last line, which begin anew.

    Speeds are those of training: of the time that went into neither compiling, evaluating nor checkpoints. ``goodput``
    is the share of all time that went into steps.
    """
    wall = max(self._now() - self._began, 1e-9)
    seconds = self._seconds
    training = max(wall - seconds["compile"] - seconds["evaluate"] - seconds["checkpoint"], 1e-9)
    out = {
      "steps_per_s": self._steps / training,
      "tokens_per_s": self._tokens / training,
      "padded_tokens_per_s": self._padded / training,
    }
    if self._peak and self._flops:
      out["mfu"] = self._flops / training / self._peak
    out |= {f"{phase}_s": seconds[phase] for phase in PHASES}
    out |= {"idle_s": max(wall - sum(seconds.values()), 0.0), "goodput": min(seconds["step"] / wall, 1.0)}
    out = {name: float(f"{value:.4g}") for name, value in out.items()}
    self._reset()
    return out | memory()


class _Span:
  """A phase that is not over."""

  def __init__(self, began: float, compiled_before: float):
    self.began, self.compiled_before = began, compiled_before
    self.inside = self.compiled_inside = 0.0


def memory() -> dict[str, int]:
  """The most that this process took so far: of host memory, and of the fullest of its devices where they tell."""
  out = {"host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
  peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
  known = [int(p) for p in peaks if p is not None]
  return out | ({"device_memory_bytes": max(known)} if known else {})


def real_tokens(batch: Any) -> int:
  """Tokens of a batch of NumPy arrays without padding, as :class:`radit_jax.training.step.StepFigures` counts them."""
  if isinstance(batch, ParallelContextBatch):
    return int(np.count_nonzero(batch.segment_ids > 0))
  if isinstance(batch, LSRBatch | PairBatch):
    return int(np.count_nonzero(batch.query_mask))
  return 0


def padded_tokens(batch: Any) -> int:
  """Tokens of a batch, padding included; of a retriever's those of its questions; of a batch that is none of ours 0."""
  if isinstance(batch, ParallelContextBatch):
    return int(batch.tokens.size)
  if isinstance(batch, LSRBatch | PairBatch):
    return int(batch.query_tokens.size)
  return 0


@functools.cache
def _compiling() -> list[float]:
  """Seconds the compiler took in this process, in the one place of a list, from the first call on."""
  total = [0.0]

  def add(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED:
      total[0] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(add)
  return total


def _compile_seconds() -> float:
  return _compiling()[0]
