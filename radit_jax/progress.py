"""How long functions tell their caller how far they are; drawing it is the command line's work."""

from typing import Protocol


class Progress(Protocol):
  """Called as ``progress(stage, done, total, unit, **figures)``; ``done == total`` ends the stage.

  Args:
    stage: short name of the stage, e.g. ``"embed"``.
    done: units finished so far.
    total: units in all.
    unit: what is counted, e.g. ``"passages"``.
    figures: numbers worth showing beside the bar, e.g. ``loss=1.25``.
  """

  def __call__(self, stage: str, done: int, total: int, unit: str, /, **figures: float) -> None: ...


def silent(stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
  """Shows nothing: the default of every ``progress=``."""
