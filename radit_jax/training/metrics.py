"""``metrics.jsonl``: one JSON object per line, in step order, whole lines only."""

import json
import math
import os
import pathlib
from typing import Any

from radit_jax import files, hosts


class MetricsWriter:
  """Appends lines, in the first of several processes; on a resume, drops the lines of steps that will be run again.

  Args:
    path: the file.
    resume_step: lines of later steps are removed.
  """

  def __init__(self, path: str | os.PathLike[str], *, resume_step: int = 0):
    self._path = pathlib.Path(path)
    kept = [line for line in read_metrics(self._path) if line["step"] <= resume_step] if resume_step else []
    with hosts.one_writes() as mine:
      if mine:
        files.write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))

  def write(self, step: int, **figures: Any) -> None:
    """Adds a line; a number that JSON cannot hold (NaN, infinity) is written as null."""
    if not hosts.is_first():
      return
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
    with open(self._path, "a", encoding="utf-8") as f:
      f.write(json.dumps({"step": step, **clean}) + "\n")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Lines of a metrics file; a last line cut short by a kill is left out, a missing file has none."""
  p = pathlib.Path(path)
  if not p.exists():
    return []
  out = []
  for line in p.read_text(encoding="utf-8").split("\n")[:-1]:
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return out
