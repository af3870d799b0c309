"""Rankings of many questions: every measure with its interval, and one system against another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radit_jax.errors import UserError
from radit_jax.evaluation import ranking
from radit_jax.evaluation.metrics import bootstrap_interval, paired_bootstrap

#: Depths of recall@k and answer@k.
DEPTHS = (1, 5, 10, 20, 50, 100)
#: Depth of reciprocal rank and nDCG.
CUT = 10


@dataclasses.dataclass(frozen=True)
class Ranked:
  """What was found for a question, and what is known of it.

  Attributes:
    passages: ids, best first, none twice.
    judged: passage id -> relevance; {} where nothing is known.
    pages: passage id -> its page, of all above; None where pages are unknown.
    answered: of each of ``passages``, whether it holds an answer; None where there are no answers or no texts.
  """

  passages: Sequence[str]
  judged: Mapping[str, int]
  pages: Mapping[str, str] | None = None
  answered: Sequence[bool] | None = None


def measure(found: Ranked, *, depth: int) -> dict[str, float]:
  """Every measure of one question; those that nothing is known for are left out.

  Args:
    found: the question.
    depth: passages that were asked for; nothing is said of more.

  Returns:
    ``recall@k``, ``mrr@10``, ``ndcg@10``, ``map`` and ``r_precision`` where a relevant passage is known,
    ``page_r_precision`` where its page is, ``answer@k`` where there are answers.

  Example:
    >>> sorted(measure(Ranked(["a", "b"], {"b": 1}), depth=2).items())
    [('map', 0.5), ('mrr@10', 0.5), ('ndcg@10', 0.6309297535714575), ('r_precision', 0.0), ('recall@1', 0.0)]
  """
  out: dict[str, float] = {}
  depths = [k for k in DEPTHS if k <= depth]
  relevant = {passage for passage, relevance in found.judged.items() if relevance > 0}
  if relevant:
    out = {f"recall@{k}": ranking.recall(found.passages, relevant, k) for k in depths}
    out[f"mrr@{CUT}"] = ranking.reciprocal_rank(found.passages, relevant, CUT)
    out[f"ndcg@{CUT}"] = ranking.ndcg(found.passages, found.judged, CUT)
    out["map"] = ranking.average_precision(found.passages, relevant)
    out["r_precision"] = ranking.r_precision(found.passages, relevant)
    if found.pages is not None:
      pages = list(dict.fromkeys(found.pages[passage] for passage in found.passages))
      out["page_r_precision"] = ranking.r_precision(pages, {found.pages[passage] for passage in relevant})
  if found.answered is not None:
    out |= {f"answer@{k}": float(any(found.answered[:k])) for k in depths}
  return out


def summarize(questions: Mapping[str, Mapping[str, float]], *, samples: int, seed: int) -> dict[str, Any]:
  """Means over the questions that have a measure, with 95 % bootstrap intervals.

  Args:
    questions: id -> its measures.
    samples: resamples.
    seed: of the draw.

  Returns:
    Measure -> ``mean``, ``ci`` and ``n``.
  """
  out = {}
  for name in dict.fromkeys(name for measures in questions.values() for name in measures):
    values = [measures[name] for measures in questions.values() if name in measures]
    interval = bootstrap_interval(values, samples=samples, seed=seed)
    out[name] = {"mean": float(np.mean(values)), "ci": list(interval), "n": len(values)}
  return out


def compare(
  after: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]], *, samples: int, seed: int
) -> dict[str, Any]:
  """Differences of means over the same questions, with 95 % paired bootstrap intervals and p-values.

  Args:
    after: id -> its measures.
    before: the same questions.
    samples: resamples of the interval; the test draws ten times as many.
    seed: of the draws.

  Returns:
    Measure -> ``difference``, ``ci``, ``p`` (two-sided paired randomisation test), ``better``, ``worse`` and ``n``.

  Raises:
    UserError: other questions (the first one that differs is named).
  """
  if other := sorted(set(after) ^ set(before)):
    raise UserError(
      f"question {other[0]!r} is in one ranking only ({len(after)} questions against {len(before)}): "
      "a comparison needs the same questions"
    )
  out = {}
  for name in dict.fromkeys(name for measures in after.values() for name in measures):
    pairs = [(after[q][name], before[q][name]) for q in after if name in after[q] and name in before[q]]
    if not pairs:
      continue
    a, b = np.array(pairs).T
    difference, low, high = paired_bootstrap(a, b, samples=samples, seed=seed)
    p = ranking.paired_randomization(a, b, samples=10 * samples, seed=seed)
    counts = {"better": int((a > b).sum()), "worse": int((a < b).sum()), "n": len(pairs)}
    out[name] = {"difference": difference, "ci": [low, high], "p": p, **counts}
  return out
