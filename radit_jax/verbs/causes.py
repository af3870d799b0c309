"""Why a loss stays flat: what the figures of a tuning say, as sentences that name the cause and what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Share of the questions from which on something is so "nearly everywhere".
MOST = 0.9
#: A dev loss that never gets lower than this share of its first value is flat.
FLAT = 0.98
#: Below this an order says nothing of another one, averaged over dev questions.
NO_CORRELATION = 0.15
#: A teacher whose likelihoods per token differ by less, in nats, does not look at its passages.
NO_DIFFERENCE = 1e-3
#: A query encoder whose embeddings have turned by less, as 1 minus their cosine, has hardly moved.
NOT_MOVED = 1e-4

Line = Mapping[str, Any]


def causes(
  lines: Sequence[Line], options: Mapping[str, Any], *, right: Sequence[float | None] = (), cut: float | None = None
) -> list[str]:
  """What is wrong with a tuning, by its figures, the likeliest cause first.

  Args:
    lines: of its ``metrics.jsonl``.
    options: of its recipe, dotted names.
    right: shares of the training and of the dev questions with a right passage among those they are given.
    cut: share of the rows of a generator whose passage was cut.

  Returns:
    A sentence for each; none for a run without findings.

  Example:
    >>> causes([{"step": 1, "loss": 2.0, "nonfinite_steps": 1}], {})
    ['1 of 1 steps were left out as their loss or gradient was not finite: look at the examples that the warnings name']
  """
  train = [line for line in lines if line.get("loss") is not None or "nonfinite_steps" in line]
  dev = [line for line in lines if "dev_loss" in line]
  out = []
  if train and (left_out := train[-1].get("nonfinite_steps", 0)):
    out.append(
      f"{left_out} of {train[-1]['step']} steps were left out as their loss or gradient was not finite: look at the "
      "examples that the warnings name"
    )
  flat = is_flat(dev)
  out += _of_data(train, right, cut)
  out += _of_teacher(train, options, flat=flat)
  out += _of_retriever(train, options, flat=flat)
  if not out and flat:
    out += _of_order(dev, options) or _of_rate(train, dev, options)
  return out


def is_flat(dev: Sequence[Line]) -> bool:
  """Whether no dev loss of a run is lower than its first one, but for a fiftieth of it."""
  losses = [line["dev_loss"] for line in dev if line["dev_loss"] is not None]
  return len(losses) >= 2 and min(losses[1:]) > losses[0] - (1 - FLAT) * abs(losses[0])


def _mean(lines: Sequence[Line], name: str) -> float | None:
  """Over the lines that have it; None where none has."""
  values = [line[name] for line in lines if line.get(name) is not None]
  return float(np.mean(values)) if values else None


def _most(lines: Sequence[Line], name: str) -> bool:
  value = _mean(lines, name)
  return value is not None and value >= MOST


def _of_data(train: Sequence[Line], right: Sequence[float | None], cut: float | None) -> list[str]:
  out = []
  for share, name in zip(right, ("training", "dev"), strict=False):
    if share is not None and share <= 1 - MOST:
      out.append(
        f"the answer is in no passage of {1 - share:.0%} of the {name} questions: the corpus does not hold it, or the "
        "retriever does not find it; look at `radit inspect ranking`, and at the recall that `radit retrieve` told"
      )
      break
  if _most(train, "single"):
    out.append("nearly every question has one passage only, so there is nothing to choose from: raise --k")
  if _most(train, "alike"):
    out.append(
      "the passages of nearly every question have one and the same embedding: the corpus repeats itself, or the "
      "passages were embedded by an encoder that does not read them"
    )
  if cut is not None and cut >= 0.5:
    out.append(f"the passage was cut in {cut:.0%} of the rows: raise --prompt.max-passage-tokens, or make them shorter")
  return out


def _of_teacher(train: Sequence[Line], options: Mapping[str, Any], *, flat: bool) -> list[str]:
  difference = _mean(train, "teacher_range")
  if difference is None or _most(train, "single"):
    return []
  if difference < NO_DIFFERENCE:
    return [
      "the teacher finds the answer equally likely whatever the passage is: the scores are of a generator, or of a "
      "prompt, that does not read the passage"
    ]
  if _most(train, "uniform_teacher"):
    if options.get("score") == "prob":
      return [
        "the teacher's targets are uniform: probabilities of whole answers underflow with --score prob; leave it out"
      ]
    return [f"the teacher's targets are uniform: --lm-temperature {options.get('lm_temperature')} is too high"]
  if flat and _most(train, "one_hot_teacher"):
    return [
      f"the teacher's targets are one-hot: --lm-temperature {options.get('lm_temperature')} is too low, and all "
      "passages but one are equally wrong"
    ]
  return []


def _of_retriever(train: Sequence[Line], options: Mapping[str, Any], *, flat: bool) -> list[str]:
  if _most(train, "alike") or _most(train, "single"):
    return []
  if _most(train, "uniform_retriever"):
    return [
      "p_R is uniform: the score temperature in the encoder's radit.json is far above the differences of its scores "
      f"({_mean(train, 'score_range'):.3g} between the best and the worst passage)"
    ]
  if flat and _most(train, "one_hot_retriever"):
    return [
      "p_R has settled on one passage of nearly every question, where the divergence has no gradient: lower "
      "--optimizer.peak-lr, or raise the score temperature in the encoder's radit.json"
    ]
  return []


def _moved(dev: Sequence[Line]) -> float | None:
  """The furthest that the query encoder ever was from where it began; None of another kind of tuning."""
  moved = (line.get("dev", {}).get("moved") for line in dev)
  return max((value for value in moved if value is not None), default=None)  # null where it was not finite


def _of_order(dev: Sequence[Line], options: Mapping[str, Any]) -> list[str]:
  """Of a retriever that has learnt something, which is nothing that its teacher says of other questions."""
  moved, correlation = _moved(dev), _mean([line["dev"] for line in dev[1:] if "dev" in line], "rank_correlation")
  if moved is None or moved < NOT_MOVED or correlation is None or abs(correlation) >= NO_CORRELATION:
    return []
  shuffled = ", as --shuffle-teacher makes them" if options.get("shuffle_teacher") else ""
  return [
    f"the teacher's order of the passages has nothing to do with the retriever's (rank correlation {correlation:.2f} "
    f"on dev questions): scores of other passages or questions{shuffled}, or a generator that cannot answer"
  ]


def _of_rate(train: Sequence[Line], dev: Sequence[Line], options: Mapping[str, Any]) -> list[str]:
  losses = [line["loss"] for line in train if line.get("loss") is not None]
  rates = [line["lr"] for line in train if line.get("lr") is not None]
  top = f"--optimizer.peak-lr {options.get('optimizer.peak_lr')}"
  moved = _moved(dev)
  tenth = max(len(losses) // 10, 1)
  first, last = (float(np.mean(part)) if part else 0.0 for part in (losses[:tenth], losses[-tenth:]))
  if losses and last < first - 0.1 * abs(first):
    return [
      f"the training loss falls ({first:.4g} to {last:.4g}) and the dev loss does not: the tuning learns its examples "
      f"by heart, or they are of another kind than the dev set; train less, or lower {top}"
    ]
  if losses and last > first + 0.1 * abs(first):
    return [f"the training loss rises ({first:.4g} to {last:.4g}): {top} is too high"]
  if moved is not None and moved < NOT_MOVED:
    return [
      f"the query encoder has hardly moved (1 - cosine {moved:.1e}): {top} is too low, or the run too short "
      f"(the highest rate so far was {max(rates, default=0):.1e})"
    ]
  return [
    f"neither the training nor the dev loss moves: {top} is too low, or the run too short (the highest rate so far was "
    f"{max(rates, default=0):.1e})"
  ]
