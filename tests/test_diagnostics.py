"""Figures of retriever tuning against plain loops in NumPy, and against cases whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.losses import lsr_log_targets
from radit_jax.training.diagnostics import lsr_figures, moved, rank_correlation


def slow_figures(scores, log_targets, token_log_probs, embeddings, where, temperature):
  """One question at a time, in float64."""
  names = ("entropy", "uniform", "one_hot")
  out = {
    **{f"{n}_{of}" if n != "entropy" else f"{of}_{n}": [] for of in ("retriever", "teacher") for n in names},
    **{"single": [], "alike": [], "rank_correlation": [], "score_range": [], "teacher_range": []},
  }
  for s, t, a, e, w in zip(scores, log_targets, token_log_probs, embeddings, where, strict=True):
    s, t, e = np.asarray(s, np.float64)[w], np.asarray(t, np.float64)[w], e[w]
    n = len(s)
    for of, logits in (("retriever", s / temperature), ("teacher", t)):
      p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() if n else np.zeros(0)
      entropy = -sum(x * np.log(x) for x in p if x > 0)
      out[f"{of}_entropy"].append(entropy)
      out[f"uniform_{of}"].append(n > 1 and entropy >= 0.999 * np.log(n))
      out[f"one_hot_{of}"].append(n > 1 and p.max() >= 0.999)
    out["single"].append(n == 1)
    out["alike"].append(n > 1 and all((row == e[0]).all() for row in e))
    out["rank_correlation"].append(spearman(s, t))
    out["score_range"].append(s.max() - s.min() if n else 0)
    out["teacher_range"].append(a[w].max() - a[w].min() if n else 0)
  return {name: np.asarray(values, np.float64) for name, values in out.items()}


def spearman(a, b):
  if len(a) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
    return 0.0
  one, other = ([np.mean([k for k, y in enumerate(sorted(x)) if y == value]) for value in x] for x in (a, b))
  return np.corrcoef(one, other)[0, 1]


@pytest.mark.parametrize("score", ["token_prob", "prob", "log_prob"])
def test_figures_are_those_of_plain_loops(rng, score):
  b, k = 64, 7
  where = rng.random((b, k)) < 0.8
  where[:3] = [[False] * k, [True] + [False] * (k - 1), [True] * k]
  scores = np.where(where, rng.normal(size=(b, k)) * rng.choice([0.001, 1, 100], size=(b, 1)), np.nan)
  scores[5] = np.where(where[5], 2.0, np.nan)  # no order
  scores[6, :3] = 1.0  # ties
  totals = -np.abs(rng.normal(size=(b, k)) * rng.choice([0.01, 1, 50], size=(b, 1)) - 5).astype(np.float32)
  log_targets = lsr_log_targets(totals, np.full((b, k), 4), temperature=0.05, score=score, where=where)
  embeddings = rng.normal(size=(b, k, 3)).astype(np.float32)
  embeddings[8:16] = embeddings[8:16, :1]
  fast = lsr_figures(
    jnp.asarray(scores, jnp.float32), log_targets, totals / 4, embeddings, where=where, temperature=0.7
  )
  slow = slow_figures(np.asarray(scores, np.float32), np.asarray(log_targets), totals / 4, embeddings, where, 0.7)
  assert fast.keys() == slow.keys()
  for name, values in slow.items():
    np.testing.assert_allclose(fast[name], values, rtol=2e-5, atol=2e-5, err_msg=name)
  for name in ("uniform_retriever", "one_hot_retriever", "one_hot_teacher", "alike", "single"):
    assert 0 < np.mean(slow[name]) < 1, f"{name} is the same everywhere: the test shows nothing"


def test_orders_that_are_known():
  everywhere = jnp.ones(5, bool)
  x = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
  assert float(rank_correlation(x, x**3, where=everywhere)) == pytest.approx(1)
  assert float(rank_correlation(x, -x, where=everywhere)) == pytest.approx(-1)
  assert float(rank_correlation(x, jnp.ones(5), where=everywhere)) == 0
  # 1 - 6 * sum of squared differences / (n (n² - 1)), the textbook's formula without ties.
  y = jnp.array([2.0, 1.0, 4.0, 3.0, 5.0])
  assert float(rank_correlation(x, y, where=everywhere)) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_no_gradient_comes_of_watching():
  def loss(scores):
    figures = lsr_figures(
      scores, jnp.log(jnp.array([0.6, 0.4])), scores, jnp.eye(2), where=jnp.ones(2, bool), temperature=1.0
    )
    return sum(figures.values())

  np.testing.assert_array_equal(jax.grad(loss)(jnp.array([1.0, 2.0])), [0, 0])


def test_how_far_embeddings_have_turned():
  start = jnp.array([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
  real = jnp.array([True, True, False])
  assert float(moved(3 * start, start, real)) == pytest.approx(0, abs=1e-6)
  turned = jnp.array([[0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])  # a right angle, none, and one that does not count
  assert float(moved(turned, start, real)) == pytest.approx(0.5)
