"""What a person sees on stderr while a verb runs: progress, and silence of the libraries underneath."""

import collections
import glob
import logging
import os
import sys
import time
from typing import Any, Self

#: Seconds between two lines of one stage where stderr is no terminal.
LINE_EVERY_S = 2.0
#: Seconds a rate is taken over: the first steps compile, and would slow an average for minutes.
RATE_OVER_S = 20.0


def quiet_libraries() -> None:
  """Silences what other libraries say about themselves; a variable that the user has set is left alone."""
  for name, value in {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "GRPC_VERBOSITY": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    # Where the TPU compiler is installed and no TPU is, it complains that it was not told these.
    **({} if _has_tpu() else {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}),
  }.items():
    os.environ.setdefault(name, value)
  for name in ("absl", "orbax", "tensorflow_datasets", "grain"):
    # Orbax logs with its traceback what it raises too, and one line tells that.
    logging.getLogger(name).setLevel(logging.CRITICAL if name == "absl" else logging.ERROR)
  own = logging.getLogger("radit_jax")
  if not any(isinstance(handler, _OneLine) for handler in own.handlers):
    own.addHandler(_OneLine())
    own.propagate = False  # absl, once imported, would tell it again


class _OneLine(logging.Handler):
  """Warnings as the command line tells its errors."""

  def emit(self, record: logging.LogRecord) -> None:
    print("radit: warning: " + " ".join(record.getMessage().split()), file=sys.stderr)


def _has_tpu() -> bool:
  return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def duration(seconds: float) -> str:
  """Time for people.

  Example:
    >>> duration(7.4), duration(118), duration(7500)
    ('7s', '1m58s', '2h05m')
  """
  s = round(seconds)
  return f"{s}s" if s < 60 else f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


class Display:
  """A :class:`radit_jax.progress.Progress`: a bar per stage on a terminal, a line every two seconds elsewhere.

  A finished stage leaves one line, with the time it took, in both. Use as a context manager, so that an exception finds
  no bar in its way.
  """

  def __init__(self) -> None:
    self._stage: str | None = None
    self._ended: tuple[str, int] | None = None
    self._figures: dict[str, float] = {}
    self._last_event = self._began = self._drawn = time.monotonic()
    self._recent: collections.deque[tuple[float, int]] = collections.deque()
    self._bar: Any = None
    self._task: Any = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._close_bar()

  def __call__(self, stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
    now = time.monotonic()
    if self._stage != stage:
      if (stage, total) == self._ended and done >= total:  # told already
        self._last_event = now
        return
      self._close_bar()
      # A stage is first heard of when some of it is done, so it began where the last event was; its rate, which must
      # not count what an earlier session did, is taken from here on.
      self._stage, self._began = stage, self._last_event
      self._figures, self._drawn = {}, now - LINE_EVERY_S
      self._recent.clear()
    self._figures |= figures
    self._last_event = now
    shown = "".join(f", {name} {value:.4g}" for name, value in self._figures.items())
    if done >= total:
      self._close_bar()
      self._write(f"{stage}: {done:,}/{total:,} {unit} in {duration(now - self._began)}{shown}")
      self._stage, self._ended = None, (stage, total)
      return
    self._recent.append((now, done))
    while len(self._recent) > 2 and now - self._recent[1][0] >= RATE_OVER_S:
      self._recent.popleft()
    then, before = self._recent[0]
    rate = (done - before) / (now - then) if now > then else 0.0
    speed = f", {rate:.3g} {unit}/s, {duration((total - done) / rate)} left" if rate > 0 else ""
    if sys.stderr.isatty():
      self._draw_bar(stage, done, total, f"{done:,}/{total:,} {unit}{speed}{shown}")
    elif now - self._drawn >= LINE_EVERY_S:
      self._drawn = now
      self._write(f"{stage}: {done:,}/{total:,} {unit} ({100 * done // total} %){speed}{shown}")

  def _write(self, line: str) -> None:
    print(line, file=sys.stderr, flush=True)

  def _draw_bar(self, stage: str, done: int, total: int, text: str) -> None:
    from rich import progress
    from rich.console import Console

    if self._bar is None:
      self._bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        transient=True,
      )
      self._task = self._bar.add_task(stage, total=total, text=text)
      self._bar.start()
    self._bar.update(self._task, completed=done, total=total, text=text)

  def _close_bar(self) -> None:
    if self._bar is not None:
      self._bar.stop()
      self._bar = None
