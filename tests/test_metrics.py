"""Metrics against constants worked out by hand, and intervals against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radit_jax.evaluation import metrics


@pytest.mark.parametrize(
  ("text", "normal"),
  [
    ("The Cat", "cat"),
    ("a cat, an owl; the fox.", "cat owl fox"),
    ("U.S.A.", "usa"),
    ("  many \t spaces\n", "many spaces"),
    ("then another theory", "then another theory"),  # articles are whole words
    ("the", ""),
    ("?!", ""),
    ("Zoë–Łódź", "zoë–łódź"),  # only ASCII punctuation goes, as in the reference rules
    ("3,000", "3000"),
  ],
)
def test_normalize_answer(text, normal):
  assert metrics.normalize_answer(text) == normal


@given(st.text(max_size=40))
def test_normalisation_is_idempotent(text):
  once = metrics.normalize_answer(text)
  assert metrics.normalize_answer(once) == once


@pytest.mark.parametrize(
  ("prediction", "answers", "em", "f1"),
  [
    ("Kelwick", ["Kelwick"], 1, 1),
    ("the kelwick!", ["Kelwick"], 1, 1),
    ("Kelwick", ["Orsa", "Kelwick"], 1, 1),
    ("Orsa", ["Kelwick"], 0, 0),
    ("", ["Kelwick"], 0, 0),
    ("the", ["a"], 0, 0),  # an answer that is an article is one, such as the letter of a choice
    ("", ["A", "Arlen"], 0, 0),
    ("A.", ["A", "Arlen"], 1, 1),
    ("", ["?!"], 1, 1),  # nothing is left on either side
    ("old Kelwick town", ["Kelwick"], 0, 0.5),  # 2 * 1 / (3 + 1)
    ("new new york", ["new york city"], 0, 2 / 3),  # one "new" and "york" are common: 2 * 2 / (3 + 3)
    ("x y", ["x z", "y x"], 0, 1),  # best answer counts; order does not
  ],
)
def test_exact_match_and_f1(prediction, answers, em, f1):
  assert metrics.exact_match(prediction, answers) == em
  assert metrics.f1(prediction, answers) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("answers", [[], (), "Kelwick"])
def test_answers_must_be_a_sequence_of_answers(answers):
  with pytest.raises(ValueError, match="at least one"):
    metrics.exact_match("Kelwick", answers)
  with pytest.raises(ValueError, match="at least one"):
    metrics.f1("Kelwick", answers)


@pytest.mark.parametrize(
  ("text", "answers", "found"),
  [
    ("Its capital is Kelwick.", ["Kelwick"], True),
    ("Its capital is Kelwickham.", ["Kelwick"], False),
    ("Its capital, the Old Kelwick, grew.", ["old kelwick"], True),
    ("Old is Kelwick", ["old kelwick"], False),
    ("anything", ["the"], False),  # an answer without words is in no passage
    ("anything", [], False),
    ("b", ["c", "b"], True),
  ],
)
def test_has_answer(text, answers, found):
  assert metrics.has_answer(text, answers) is found


def test_first_hit():
  rows = np.array([4, 9, 2, -1, -1])

  def unread(row):
    raise AssertionError("a known gold passage is found by its row")

  assert metrics.first_hit([2], ["x"], rows, unread) == 2
  assert metrics.first_hit([100, 9], ["x"], rows, unread) == 1  # one gold passage is enough
  assert metrics.first_hit([8], ["x"], rows, unread) == 5
  assert metrics.first_hit([-1], ["x"], rows, unread) == 5  # padding is never a hit


def test_first_hit_without_gold_passages_looks_for_an_answer():
  texts = {4: "the old mill", 9: "a town called Kelwick", 2: "Kelwick"}
  assert metrics.first_hit([], ["kelwick"], [4, 9, 2, -1], texts.__getitem__) == 1
  assert metrics.first_hit([], ["Borva"], [4, 9, 2, -1], texts.__getitem__) == 4


def test_bootstrap_interval_matches_the_normal_approximation():
  # 1,000 zeros and ones, 300 of them ones: standard error sqrt(.3 * .7 / 1000) = .014491
  values = np.repeat([1.0, 0.0], [300, 700])
  low, high = metrics.bootstrap_interval(values, samples=20_000, seed=1)
  assert low == pytest.approx(0.3 - 1.96 * 0.014491, abs=0.0015)
  assert high == pytest.approx(0.3 + 1.96 * 0.014491, abs=0.0015)
  narrow = metrics.bootstrap_interval(values, samples=20_000, seed=1, level=0.5)
  assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * 0.014491, abs=0.0015)


def test_bootstrap_is_a_function_of_its_seed():
  values = np.random.default_rng(0).random(57)
  first = metrics.bootstrap_interval(values, samples=200, seed=3)
  assert first == metrics.bootstrap_interval(values, samples=200, seed=3)
  assert first != metrics.bootstrap_interval(values, samples=200, seed=4)
  assert metrics.bootstrap_interval([0.25], samples=10, seed=0) == (0.25, 0.25)


def test_paired_bootstrap_is_narrower_than_unpaired():
  rng = np.random.default_rng(0)
  difficulty = rng.normal(size=400)
  a, b = difficulty + 0.1 + 0.05 * rng.normal(size=400), difficulty
  mean, low, high = metrics.paired_bootstrap(a, b, samples=1000, seed=0)
  assert mean == pytest.approx(np.mean(a - b))
  assert 0.08 < low < mean < high < 0.12
  alone = metrics.bootstrap_interval(a, samples=1000, seed=0)
  assert high - low < (alone[1] - alone[0]) / 5
  swapped = metrics.paired_bootstrap(b, a, samples=1000, seed=0)
  assert swapped[0] == pytest.approx(-mean)
  assert swapped[1] == pytest.approx(-high)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: metrics.bootstrap_interval([], samples=10, seed=0), "at least one question"),
    (lambda: metrics.bootstrap_interval([[1.0]], samples=10, seed=0), "shape"),
    (lambda: metrics.bootstrap_interval([1.0, np.nan], samples=10, seed=0), r"values\[1\] is not finite"),
    (lambda: metrics.bootstrap_interval([1.0], samples=0, seed=0), "samples = 0"),
    (lambda: metrics.bootstrap_interval([1.0], samples=1, seed=0, level=1.0), "level = 1.0"),
    (lambda: metrics.paired_bootstrap([1.0], [1.0, 2.0], samples=1, seed=0), "1 values against 2"),
  ],
)
def test_bootstrap_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()
