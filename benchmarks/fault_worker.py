"""Run by itself, to be signalled: `radit` with one phase announced on stdout and made long.

python benchmarks/fault_worker.py PHASE VERB OPTIONS...
"""

import functools
import sys
import time
from typing import Any

import jax

from radit_jax import cli
from radit_jax.data import scored
from radit_jax.retrieval import embed, scann
from radit_jax.training import loop, manifests
from radit_jax.verbs import score

#: Seconds that a main thread in a compiler, or a save, is made to take: more than it is given.
LONG_S = 30.0


def announced(phase: str, function: Any, *, seconds: float, first: int = 1) -> Any:
  """The function, which from its ``first`` call on says that the phase has begun, and takes time."""
  calls = 0

  @functools.wraps(function)
  def slow(*args: Any, **kwargs: Any) -> Any:
    nonlocal calls
    calls += 1
    if calls >= first:
      if calls == first:
        sys.stdout.write(f"phase {phase}\n")
        sys.stdout.flush()
      time.sleep(seconds)
    return function(*args, **kwargs)

  return slow


def told(line: str, function: Any) -> Any:
  """The function, each call of which is a line."""

  @functools.wraps(function)
  def telling(*args: Any, **kwargs: Any) -> Any:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return function(*args, **kwargs)

  return telling


def hold(phase: str) -> None:
  """Puts the announcement where the phase is."""
  if phase == "compile":
    # The first program of a run that continues; sleeping, the main thread is as deaf as in the compiler.
    lowered = jax.stages.Lowered
    lowered.compile = announced(phase, lowered.compile, seconds=LONG_S)  # type: ignore[method-assign]
  elif phase == "step":
    loop.check_same_kind = announced(phase, loop.check_same_kind, seconds=0)  # the first one has begun
  elif phase == "evaluation":
    loop.evaluate_step = announced(phase, loop.evaluate_step, seconds=2, first=3)  # before step 1 there is one
  elif phase == "saving":
    manifests.write = announced(phase, manifests.write, seconds=2)
  elif phase == "scoring":
    score.score_step = announced(phase, score.score_step, seconds=2, first=3)
  elif phase == "long batch":
    score.score_step = announced(phase, score.score_step, seconds=LONG_S, first=3)
  elif phase == "parts":
    scored.EVERY_S = 0
    score.score_step = announced(phase, score.score_step, seconds=LONG_S, first=3)
  elif phase == "batches":  # not one that is held: each is told
    score.score_step = told("batch", score.score_step)
  elif phase == "encoding":
    embed.encode_batch = announced(phase, embed.encode_batch, seconds=2, first=2)
  elif phase == "index build":
    scann.EXACT_BELOW = 1
    scann.subprocess.Popen = announced(phase, scann.subprocess.Popen, seconds=0)  # type: ignore[misc]
  else:
    raise ValueError(phase)


if __name__ == "__main__":
  hold(sys.argv.pop(1))
  cli.program()
