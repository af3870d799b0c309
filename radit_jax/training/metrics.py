"""``metrics.jsonl``: one JSON object per line, in step order, whole lines only."""

import json
import math
import os
import time
from typing import Any

from radit_jax import files, hosts
from radit_jax.errors import TrainingError

#: Seconds between two copies of the file to a bucket, which takes one a second of each object.
_COPY_EVERY_S = 20.0


class MetricsWriter:
  """Appends lines, in the first of several processes; on a resume, drops the lines of steps that will be run again.

  Objects in a bucket cannot be appended to: there the whole file is written anew, before each checkpoint and with each
  dev loss (its manifest follows), else every 20 seconds at most, and when the writer is closed.

  Args:
    path: the file.
    resume_step: lines of later steps are removed.
    rated: False removes that step's dev loss too, which is about to be measured again.
  """

  def __init__(self, path: str | os.PathLike[str], *, resume_step: int = 0, rated: bool = True):
    self._path = files.location(path)
    kept = [line for line in read_metrics(self._path) if line["step"] <= resume_step] if resume_step else []
    kept = [line for line in kept if rated or line["step"] < resume_step or "dev_loss" not in line]
    self._text = "".join(json.dumps(line) + "\n" for line in kept)  # of a file in a bucket
    with hosts.one_writes() as mine:
      if mine:
        self._copy()

  def write(self, step: int, **figures: Any) -> None:
    """Adds a line; a number that JSON cannot hold (NaN, infinity) is written as null."""
    if not hosts.is_first():
      return
    line = json.dumps({"step": step, **_in_json(figures)}, allow_nan=False) + "\n"
    if files.in_bucket(self._path):
      self._text += line
      if "dev_loss" in figures or time.monotonic() - self._copied > _COPY_EVERY_S:
        self._copy()
      return
    try:
      with open(self._path, "a", encoding="utf-8") as f:
        f.write(line)
    except OSError as e:
      raise TrainingError(
        f"{self._path}: cannot be written ({e.strerror}); the same command continues from the newest checkpoint"
      ) from e

  def close(self) -> None:
    """Leaves every line in the file."""
    self.keep()

  def keep(self) -> None:
    """Has every line in the file: whoever continues from a checkpoint that is made now does not write them again."""
    if files.in_bucket(self._path) and hosts.is_first():
      self._copy()

  def _copy(self) -> None:
    files.write_atomic(self._path, self._text)
    self._copied = time.monotonic()


def _in_json(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _in_json(part) for name, part in value.items()}
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Lines of a metrics file; a last line cut short by a kill is left out, a missing file has none."""
  p = files.location(path)
  if not p.exists():
    return []
  out = []
  for line in p.read_text(encoding="utf-8").split("\n")[:-1]:
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return out
