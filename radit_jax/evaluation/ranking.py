"""What a ranking is worth, question by question; means and their intervals are in :mod:`.rankings`."""

import math
import unicodedata
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

T = TypeVar("T", bound=Hashable)
#: Signs of a sign test drawn at once.
_SIGNS = 2**22


def recall(ranked: Sequence[T], relevant: Collection[T], k: int) -> float:
  """Share of the relevant that are among the first k.

  Args:
    ranked: ids, best first, none twice.
    relevant: at least one.
    k: how far to look.

  Example:
    >>> recall(["a", "x", "b"], {"a", "b", "c"}, 2)
    0.3333333333333333
  """
  return len(set(ranked[:k]) & set(relevant)) / len(set(relevant))


def reciprocal_rank(ranked: Sequence[T], relevant: Collection[T], k: int = 10) -> float:
  """1 over the rank of the first relevant one, 0 if it is not among the first k.

  Example:
    >>> reciprocal_rank(["x", "a", "b"], {"a", "b"})
    0.5
  """
  return next((1 / rank for rank, found in enumerate(ranked[:k], 1) if found in relevant), 0.0)


def average_precision(ranked: Sequence[T], relevant: Collection[T]) -> float:
  """Mean over the relevant of the precision at their ranks; one that was not found has precision 0.

  Example:
    >>> average_precision(["a", "x", "b"], {"a", "b"})  # 1/1 and 2/3
    0.8333333333333333
  """
  hits = [rank for rank, found in enumerate(ranked, 1) if found in relevant]
  return sum(number / rank for number, rank in enumerate(hits, 1)) / len(set(relevant))


def ndcg(ranked: Sequence[T], gains: Mapping[T, float], k: int = 10) -> float:
  """Gains of the first k, each divided by log2(rank + 1), over the same of the best ranking there is.

  Args:
    ranked: ids, best first.
    gains: of the judged ones, at least one above 0; negative ones count 0, as in trec_eval.
    k: how far to look.

  References:
    Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 20 (2002).

  Example:
    >>> round(ndcg(["x", "b", "a"], {"a": 1, "b": 2}), 4)
    0.6697
  """
  best = sorted(gains.values(), reverse=True)
  return _discounted(gains.get(found, 0) for found in ranked[:k]) / _discounted(best[:k])


def _discounted(gains: Iterable[float]) -> float:
  return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def r_precision(ranked: Sequence[T], relevant: Collection[T]) -> float:
  """Share of the first R that are relevant, R being the number of relevant ones.

  Pages instead of passages, as KILT has it, are ``r_precision(list(dict.fromkeys(map(page_of, ranked))), pages)``.

  References:
    Petroni et al., KILT, arXiv 2009.02252, section 4.

  Example:
    >>> r_precision(["a", "x", "b"], {"a", "b"})
    0.5
  """
  size = len(set(relevant))
  return len(set(ranked[:size]) & set(relevant)) / size


def answer_in(text: str, answers: Iterable[str]) -> bool:
  """Whether an answer's words stand in a text one behind the other, by DPR's definition.

  Words are runs of letters, digits and marks, or one other character that is neither space nor control, of the
  decomposed text in lower case. Unlike :func:`radit_jax.evaluation.metrics.has_answer`, articles and punctuation count.

  References:
    Karpukhin et al., Dense Passage Retrieval, arXiv 2004.04906; the tokenizer is DrQA's.

  Example:
    >>> answer_in("He lives in New-Arlen.", ["new-arlen"]), answer_in("He lives in Arlenham.", ["Arlen"])
    (True, False)
  """
  words = _words(text)
  return any(wanted in words for answer in answers if (wanted := _words(answer)) != "\0")


def _words(text: str) -> str:
  """Words between NUL characters, which are no part of any."""
  out = ["\0"]
  within = False
  for character in unicodedata.normalize("NFD", text).lower():
    kind = unicodedata.category(character)[0]
    if kind in "LNM":
      out.append(character)
      within = True
      continue
    if within:
      out.append("\0")
      within = False
    if kind not in "ZC":
      out += [character, "\0"]
  return "".join(out) + ("\0" if within else "")


def paired_randomization(
  a: Float[np.ndarray, "n"] | Sequence[float], b: Float[np.ndarray, "n"] | Sequence[float], *, samples: int, seed: int
) -> float:
  """Two-sided p-value of Fisher's paired randomisation test of a difference of means.

  Under the null hypothesis the two systems are the same, so each question's difference is as likely to have the other
  sign. The observed arrangement counts as one of the drawn ones, so that p is never 0.

  Args:
    a: ``[n]`` values of one system, question by question.
    b: ``[n]`` values of the other, in the same order.
    samples: arrangements drawn.
    seed: of the draw.

  Raises:
    ValueError: lengths that differ, or no values.

  References:
    Smucker, Allan and Carterette, A comparison of statistical significance tests for IR evaluation, CIKM 2007.

  Example:
    >>> paired_randomization([1.0] * 20, [0.0] * 20, samples=999, seed=0)
    0.001
  """
  first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if first.shape != second.shape or first.ndim != 1 or not first.size:
    raise ValueError(
      f"{first.shape} values against {second.shape}: the two must be of the same questions, at least one"
    )
  difference = first - second
  observed = abs(difference.sum())
  rng = np.random.default_rng(seed)
  block, extreme = max(1, _SIGNS // difference.size), 0
  for start in range(0, samples, block):
    signs = rng.integers(0, 2, size=(min(block, samples - start), difference.size), dtype=np.int8) * 2 - 1
    # Sums of the same numbers in another order differ by rounding alone; such a tie is no smaller difference.
    extreme += int((np.abs(signs @ difference) >= observed - 1e-12 * max(1.0, observed)).sum())
  return (extreme + 1) / (samples + 1)
