"""`report.html` of a run that has not ended: where it is, its losses so far, and where its time goes."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from radit_jax import files, hosts
from radit_jax.evaluation.report import write_report_html
from radit_jax.progress import Progress
from radit_jax.training.meter import PHASES
from radit_jax.training.metrics import read_metrics

PAGE = "report.html"
#: Seconds between two states of the page.
EVERY_S = 20.0


class LivePage:
  """A :class:`radit_jax.progress.Progress` that hands on what it is told, and refreshes a page now and then.

  The first of several processes writes it, whole or not at all.

  Args:
    root: directory of the run.
    title: heading of the page.
    progress: told everything.
    so_far: further parts of the page, see :func:`radit_jax.evaluation.report.write_report_html`.
  """

  def __init__(self, root: Any, title: str, progress: Progress, so_far: Callable[[], Mapping[str, Any]]):
    self._root, self._title, self._progress, self._so_far = files.location(root), title, progress, so_far
    self._began = self._written = time.monotonic()

  def __call__(self, stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
    self._progress(stage, done, total, unit, **figures)
    if hosts.is_first() and time.monotonic() - self._written >= EVERY_S:
      self.write(f"This run goes on. {stage[:1].upper()}{stage[1:]}: {done:,} of {total:,} {unit}.")

  def write(self, note: str) -> None:
    """Writes the page now."""
    so_far = self._so_far()
    report = {"rows": {}, "wall_s": time.monotonic() - self._began, **so_far, "title": self._title}
    write_report_html({**report, "notes": [note, *so_far.get("notes", ())]}, self._root / PAGE)
    self._written = time.monotonic()


def tuning_so_far(root: Any, name: str) -> dict[str, Any]:
  """Curves of a tuning, and in words what its last line says.

  Args:
    root: its work directory.
    name: of the curve.
  """
  path = files.location(root) / "metrics.jsonl"
  timings = [line["timing"] for line in read_metrics(path) if "timing" in line]
  out: dict[str, Any] = {"curves": {name: curve(path)}}
  if timings:
    seconds = {n: sum(t.get(f"{n}_s", 0.0) for t in timings) for n in (*PHASES, "idle")}
    goodput = seconds["step"] / max(sum(seconds.values()), 1e-9)
    last = timings[-1]
    mfu = f", {last['mfu']:.1%} of the chips' peak" if "mfu" in last else ""
    told = f"{last['tokens_per_s']:,.0f} tokens a second ({last['padded_tokens_per_s']:,.0f} with padding){mfu}"
    out |= {"stages": seconds, "notes": [f"{told}. Steps took {goodput:.0%} of the time."]}
  return out


def curve(path: pathlib.Path) -> dict[str, list[float]]:
  """Training and dev losses of a metrics file."""
  lines = read_metrics(path)
  return {
    "steps": [line["step"] for line in lines if line.get("loss") is not None],
    "loss": [line["loss"] for line in lines if line.get("loss") is not None],
    "dev_steps": [line["step"] for line in lines if line.get("dev_loss") is not None],
    "dev_loss": [line["dev_loss"] for line in lines if line.get("dev_loss") is not None],
  }
