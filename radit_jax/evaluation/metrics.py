"""What an answer and a ranking are worth: exact match, F1, recall, reciprocal rank, and how sure the figures are.

Every metric is of one question; the mean over questions, with its bootstrap interval, is the caller's.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: Draws held at once by the bootstrap: 16 MiB of indices, whatever the number of questions and samples.
_DRAWS = 2**21


def normalize_answer(text: str) -> str:
  """Text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces.

  Args:
    text: an answer or a passage.

  Returns:
    The words that are left, joined by single spaces; "" if none is.

  References:
    Rajpurkar et al., SQuAD, arXiv 1606.05250, section 6.1.

  Example:
    >>> normalize_answer("The  Eiffel-Tower, in a park!")
    'eiffeltower in park'
  """
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _compared(prediction: str, answer: str) -> tuple[str, str]:
  """Both normalised. Articles stay where the answer is nothing else: "A" of four choices is no empty answer."""
  if wanted := normalize_answer(answer):
    return normalize_answer(prediction), wanted
  given, wanted = (" ".join(text.lower().translate(_PUNCTUATION).split()) for text in (prediction, answer))
  return given, wanted


def exact_match(prediction: str, answers: Sequence[str]) -> float:
  """1.0 if the prediction equals one of the answers after normalisation, else 0.0.

  Articles count where an answer is nothing else, such as the letter of a choice.

  Args:
    prediction: the model's answer.
    answers: every accepted answer, at least one.

  Raises:
    ValueError: no answers.

  Example:
    >>> exact_match("the Kelwick.", ["Orsa", "Kelwick"])
    1.0
  """
  _need_answers(answers)
  compared = (_compared(prediction, answer) for answer in answers)
  return float(any(given == wanted for given, wanted in compared))


def f1(prediction: str, answers: Sequence[str]) -> float:
  """Best F1 of the prediction's words against an answer's, words counted as often as they occur.

  Where either side has no words left, the score is 1.0 if neither has and 0.0 otherwise.

  Args:
    prediction: the model's answer.
    answers: every accepted answer, at least one.

  Returns:
    In [0, 1].

  Raises:
    ValueError: no answers.

  Example:
    >>> f1("in old Kelwick", ["Kelwick"])  # precision 1/3, recall 1
    0.5
  """
  _need_answers(answers)
  compared = (_compared(prediction, answer) for answer in answers)
  return max(_f1(given.split(), wanted.split()) for given, wanted in compared)


def _f1(prediction: list[str], answer: list[str]) -> float:
  if not prediction or not answer:
    return float(prediction == answer)
  common = (collections.Counter(prediction) & collections.Counter(answer)).total()
  return 2 * common / (len(prediction) + len(answer))


def _need_answers(answers: Sequence[str]) -> None:
  if not answers or isinstance(answers, str):
    raise ValueError(f"answers = {answers!r}: must be a sequence of at least one accepted answer")


def has_answer(passage_text: str, answers: Sequence[str]) -> bool:
  """Whether an answer stands in the passage, word for word after normalisation.

  This is what counts as a relevant passage where questions name no gold passage. An answer without words is in none.

  Args:
    passage_text: the passage.
    answers: every accepted answer.

  Example:
    >>> has_answer("Its capital is Old Kelwick.", ["old kelwick"])
    True
    >>> has_answer("Its capital is Kelwickham.", ["Kelwick"])  # whole words only
    False
  """
  text = f" {normalize_answer(passage_text)} "
  wanted = (normalize_answer(answer) for answer in answers)
  return any(f" {answer} " in text for answer in wanted if answer)


def first_hit(
  gold_rows: Sequence[int], answers: Sequence[str], passage_rows: Sequence[int], text_of: Callable[[int], str]
) -> int:
  """How many passages stand before the first right one: recall@k is the share of questions where this is below k.

  Args:
    gold_rows: rows of the passages known to answer the question; without any, a passage that holds an answer is right.
    answers: gold answers.
    passage_rows: retrieved rows, best first; negative ones are padding.
    text_of: text of a row; asked only where no gold passage is known.

  Returns:
    0 for a hit at the top; ``len(passage_rows)`` for none.

  Example:
    >>> first_hit([5, 7], ["a town"], [3, 7, 5], text_of=str), first_hit([], ["5"], [3, 7, 5], text_of=str)
    (1, 2)
  """
  gold = {int(row) for row in gold_rows}

  def right(row: int) -> bool:
    return row >= 0 and (row in gold if gold else has_answer(text_of(row), answers))

  return next((rank for rank, row in enumerate(map(int, passage_rows)) if right(row)), len(passage_rows))


def hit_figures(hits: Sequence[int], k: int) -> tuple[dict[int, float], float]:
  """recall@1, @5 and @10, as far as k goes, and the mean reciprocal rank of hits among the first k.

  Args:
    hits: of every question, see :func:`first_hit`; there may be none.
    k: passages that count.

  Example:
    >>> hit_figures([0, 3, 1], 2)
    ({1: 0.3333333333333333}, 0.5)
  """
  rank = np.asarray(hits)
  recall = {cut: float(np.mean(rank < cut)) if len(rank) else 0.0 for cut in (1, 5, 10) if cut <= k}
  return recall, float(np.mean(np.where(rank < k, 1 / (rank + 1), 0))) if len(rank) else 0.0


def bootstrap_interval(
  values: Float[np.ndarray, "n"] | Sequence[float], *, samples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean of per-question values.

  Args:
    values: ``[n]`` one value per question, finite.
    samples: resamples of n questions drawn with replacement.
    seed: of the draw; the same seed gives the same interval.
    level: coverage, in (0, 1).

  Returns:
    ``(low, high)``.

  Raises:
    ValueError: no value, one that is not finite, ``samples`` below 1, or ``level`` outside (0, 1).

  References:
    Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.

  Example:
    >>> low, high = bootstrap_interval([0.0, 1.0] * 50, samples=1000, seed=0)
    >>> 0.35 < low < 0.45, 0.55 < high < 0.65
    (True, True)
  """
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or x.size == 0:
    raise ValueError(f"values of shape {x.shape}: one value per question, and at least one question")
  if not np.isfinite(x).all():
    raise ValueError(f"values[{int(np.argmin(np.isfinite(x)))}] is not finite")
  if samples < 1 or not 0 < level < 1:
    raise ValueError(f"samples = {samples}, level = {level}: need samples >= 1 and 0 < level < 1")
  rng = np.random.default_rng(seed)
  means = np.empty(samples)
  block = max(1, _DRAWS // x.size)
  for start in range(0, samples, block):
    drawn = rng.integers(x.size, size=(min(block, samples - start), x.size))
    means[start : start + block] = x[drawn].mean(axis=1)
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def paired_bootstrap(
  a: Float[np.ndarray, "n"] | Sequence[float],
  b: Float[np.ndarray, "n"] | Sequence[float],
  *,
  samples: int,
  seed: int,
  level: float = 0.95,
) -> tuple[float, float, float]:
  """Mean of ``a - b`` over the same questions, with its bootstrap interval: does ``a`` beat ``b``, and by how much?

  Pairing takes the difficulty of a question out of the comparison, so the interval is far narrower than the two
  intervals of ``a`` and of ``b`` suggest.

  Args:
    a: ``[n]`` values of one system, question by question.
    b: ``[n]`` values of the other, in the same order.
    samples: resamples.
    seed: of the draw.
    level: coverage.

  Returns:
    ``(mean difference, low, high)``.

  Raises:
    ValueError: lengths that differ, or anything :func:`bootstrap_interval` refuses.

  Example:
    >>> paired_bootstrap([1.0, 1.0, 0.5], [0.5, 0.5, 0.0], samples=100, seed=0)  # half a point on every question
    (0.5, 0.5, 0.5)
  """
  first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if first.shape != second.shape:
    raise ValueError(f"{first.size} values against {second.size}: the two must be of the same questions, in one order")
  difference = first - second
  low, high = bootstrap_interval(difference, samples=samples, seed=seed, level=level)
  return float(difference.mean()), low, high
