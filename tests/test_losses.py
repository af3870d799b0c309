"""Eqs. 2-5 against closed forms, float64 twins written from the paper, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from radit_jax import losses

SCORES = ("prob", "token_prob", "log_prob", "token_log_prob")
DIRECTIONS = ("retriever_to_lm", "lm_to_retriever")
K = 5


# Twins: float64, one example, real passages only, written as the formulas stand in the paper.


def softmax64(x):
  e = np.exp(np.asarray(x, np.float64) - np.max(x))
  return e / e.sum()


def targets64(log_likelihoods, num_tokens, temperature, score):
  total = np.asarray(log_likelihoods, np.float64)
  mean = total / np.maximum(num_tokens, 1)
  value = {"prob": np.exp(total), "token_prob": np.exp(mean), "log_prob": total, "token_log_prob": mean}[score]
  return softmax64(value / temperature)


def kl64(p, q):
  return float(np.sum(p * (np.log(p) - np.log(q))))


def lsr64(scores, q, temperature, direction):
  p = softmax64(np.asarray(scores, np.float64) / temperature)
  return kl64(p, q) if direction == "retriever_to_lm" else kl64(q, p)


floats = st.floats(-8, 8, width=32)
vectors = hnp.arrays(np.float32, K, elements=floats)
nlls = hnp.arrays(np.float32, K, elements=st.floats(-40, 0, width=32))
counts = hnp.arrays(np.int32, K, elements=st.integers(0, 30))
masks = hnp.arrays(bool, K).filter(lambda m: m.any())


# Values.


def test_retriever_log_probs_by_hand():
  got = losses.retriever_log_probs(jnp.log(jnp.array([1.0, 2.0, 5.0])))
  np.testing.assert_allclose(np.exp(got), [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
  halved = losses.retriever_log_probs(jnp.log(jnp.array([1.0, 4.0, 25.0])), temperature=2.0)
  np.testing.assert_allclose(np.exp(halved), [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)


def test_normalised_cosines_need_their_temperature():
  """Ten cosines as MiniLM gives them: at temperature 1 the best of ten weighs hardly more than a tenth."""
  cosines = jnp.array([0.55] + [0.42] * 9)
  assert np.exp(losses.retriever_log_probs(cosines))[0] == pytest.approx(0.112, abs=5e-4)
  assert np.exp(losses.retriever_log_probs(cosines, temperature=0.05))[0] == pytest.approx(0.599, abs=5e-4)


@pytest.mark.parametrize(
  ("score", "temperature", "values"),
  [
    ("prob", 0.1, [0.5, 0.25, 0.125]),  # exp(l)
    ("token_prob", 0.1, [0.5**0.5, 0.5, 0.5**1.5]),  # exp(l / 2)
    ("log_prob", 1.0, np.log([0.5, 0.25, 0.125])),  # l
    ("token_log_prob", 1.0, np.log([0.5, 0.25, 0.125]) / 2),  # l / 2
  ],
)
def test_the_four_score_kinds_by_hand(score, temperature, values):
  log_likelihoods = jnp.log(jnp.array([0.5, 0.25, 0.125]))
  got = losses.lsr_log_targets(log_likelihoods, jnp.array([2, 2, 2]), temperature=temperature, score=score)
  np.testing.assert_allclose(np.exp(got), softmax64(np.asarray(values) / temperature), rtol=1e-5)


def test_log_prob_targets_at_temperature_one_are_the_likelihoods_normalised():
  got = losses.lsr_log_targets(jnp.log(jnp.array([0.1, 0.3])), jnp.array([4, 9]), temperature=1.0, score="log_prob")
  np.testing.assert_allclose(np.exp(got), [0.25, 0.75], rtol=1e-6)


def test_raw_probability_of_a_long_answer_is_uniform_and_token_probability_is_not():
  """50 tokens at 2 to 4 nats each: the reason for the default."""
  log_likelihoods, tokens = jnp.array([-110.0, -130.0, -200.0]), jnp.array([50, 50, 50])
  raw = np.exp(losses.lsr_log_targets(log_likelihoods, tokens, score="prob"))
  assert np.all(raw == raw[0])
  assert np.exp(losses.lsr_log_targets(log_likelihoods, tokens))[0] > 0.9


def test_kl_by_hand():
  """p uniform, q = (.9, .1)."""
  scores, log_q = jnp.zeros(2), jnp.log(jnp.array([0.9, 0.1]))
  assert losses.lsr_loss(scores, log_q) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-6)
  other = losses.lsr_loss(scores, log_q, direction="lm_to_retriever")
  assert other == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5), rel=1e-6)


def test_ralt_by_hand():
  where = jnp.array([[True, True, False], [False, False, False]])
  nll, tokens = losses.ralt_loss(jnp.full((2, 3), -2.0), jnp.full((2, 3), 7), where=where)
  assert nll.tolist() == [4.0, 0.0]
  assert tokens.tolist() == [14, 0]


def test_mixture_is_the_explicit_sum(rng):
  log_likelihoods, scores = rng.uniform(-6, 0, (4, 3, K)), rng.normal(size=(4, 3, K)) * 4
  got = losses.mixture_log_likelihood(jnp.asarray(log_likelihoods), jnp.asarray(scores), temperature=2.0)
  weights = np.apply_along_axis(softmax64, -1, scores / 2.0)
  np.testing.assert_allclose(got, np.log((np.exp(log_likelihoods) * weights).sum(-1)), rtol=1e-5)


def test_mixture_of_likelihoods_that_underflow():
  got = losses.mixture_log_likelihood(jnp.array([-900.0, -901.0]), jnp.array([0.0, 0.0]))
  assert got == pytest.approx(-900.0 + np.log(0.5 * (1 + np.exp(-1.0))), rel=1e-6)


def test_contrastive_by_hand():
  scores = jnp.log(jnp.array([2.0, 3.0, 5.0]))
  positive = jnp.array([True, False, False])
  assert losses.contrastive_loss(scores, positive) == pytest.approx(-np.log(0.2), rel=1e-6)
  assert losses.contrastive_loss(scores, jnp.array([True, True, False])) == pytest.approx(-np.log(0.5), rel=1e-6)


def test_a_copy_of_the_gold_passage_is_no_negative():
  """The gold passage twice among the candidates: marked twice it is right, unmarked it pushes against itself."""
  scores = jnp.array([30.0, 30.0, 0.0])
  marked = jnp.array([True, True, False])
  np.testing.assert_allclose(losses.contrastive_loss(scores, marked), 0.0, atol=1e-6)
  assert losses.contrastive_loss(scores, jnp.array([True, False, False])) == pytest.approx(np.log(2), rel=1e-6)
  np.testing.assert_allclose(jax.grad(losses.contrastive_loss)(scores, marked), np.zeros(3), atol=1e-6)


@given(scores=vectors, log_likelihoods=nlls, num_tokens=counts, mask=masks, score=st.sampled_from(SCORES))
@settings(max_examples=60, deadline=None)
def test_float64_twins(scores, log_likelihoods, num_tokens, mask, score):
  log_p = losses.retriever_log_probs(jnp.asarray(scores), where=jnp.asarray(mask), temperature=0.7)
  np.testing.assert_allclose(
    np.exp(log_p)[mask], softmax64(scores[mask].astype(np.float64) / 0.7), rtol=2e-5, atol=1e-7
  )
  assert np.all(np.asarray(log_p)[~mask] == -np.inf)
  log_q = losses.lsr_log_targets(
    jnp.asarray(log_likelihoods), jnp.asarray(num_tokens), temperature=0.5, score=score, where=jnp.asarray(mask)
  )
  q = targets64(log_likelihoods[mask], num_tokens[mask], 0.5, score)
  np.testing.assert_allclose(np.asarray(log_q)[mask], np.log(q), rtol=1e-5, atol=2e-5)
  assert np.all(np.asarray(log_q)[~mask] == -np.inf)
  for direction in DIRECTIONS:
    got = losses.lsr_loss(jnp.asarray(scores), log_q, where=jnp.asarray(mask), temperature=0.7, direction=direction)
    np.testing.assert_allclose(got, lsr64(scores[mask], q, 0.7, direction), rtol=2e-4, atol=1e-4)
    assert got >= -1e-5


# Gradients.


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_kl_gradients_match_the_closed_forms(rng, temperature):
  """KL(q||p): p - q. KL(p||q): p * ((log p - log q) - KL). Divided by the temperature, both sum to 0."""
  for _ in range(20):
    scores, log_q = rng.normal(size=K), np.log(softmax64(rng.normal(size=K)))
    p, q = softmax64(scores / temperature), np.exp(log_q)
    expected = {
      "lm_to_retriever": (p - q) / temperature,
      "retriever_to_lm": p * ((np.log(p) - log_q) - kl64(p, q)) / temperature,
    }
    for direction, want in expected.items():
      got = jax.grad(losses.lsr_loss)(
        jnp.asarray(scores, jnp.float32), jnp.asarray(log_q), temperature=temperature, direction=direction
      )
      np.testing.assert_allclose(got, want, atol=1e-6)
      assert abs(float(got.sum())) < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_vanishes_where_the_distributions_agree(direction):
  scores = jnp.array([0.3, -1.0, 2.0])
  log_q = losses.retriever_log_probs(scores)
  value, gradient = jax.value_and_grad(losses.lsr_loss)(scores, log_q, direction=direction)
  np.testing.assert_allclose(value, 0.0, atol=1e-6)
  np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("apart", [1e-3, 1e-2, 0.1, 1.0])
def test_a_divergence_has_its_digits_however_small_it_is(rng, direction, apart):
  """Of a retriever and a teacher that hardly tell passages apart: 1e-6 nats, where a log of 0.2 is known to 1e-7."""
  for _ in range(20):
    scores = jnp.asarray(apart * rng.normal(size=K), jnp.float32)
    log_q = jnp.asarray(np.log(softmax64(apart * rng.normal(size=K))), jnp.float32)
    value, gradient = jax.value_and_grad(losses.lsr_loss)(scores, log_q, direction=direction)
    p, q = softmax64(np.asarray(scores, np.float64)), softmax64(np.asarray(log_q, np.float64))
    np.testing.assert_allclose(value, kl64(p, q) if direction == "retriever_to_lm" else kl64(q, p), rtol=3e-5)
    want = p - q if direction == "lm_to_retriever" else p * (np.log(p / q) - kl64(p, q))
    np.testing.assert_allclose(gradient, want, rtol=3e-5, atol=3e-5 * np.abs(want).max())


def test_no_gradient_flows_into_the_targets():
  gradient = jax.grad(losses.lsr_loss, argnums=1)(jnp.array([0.3, -1.0]), jnp.log(jnp.array([0.9, 0.1])))
  assert gradient.tolist() == [0.0, 0.0]


def test_contrastive_gradient_is_softmax_minus_its_share_of_the_positives(rng):
  scores, positive = rng.normal(size=K), np.array([True, False, True, False, False])
  want = softmax64(scores) - np.where(positive, np.exp(scores), 0) / np.exp(scores[positive]).sum()
  got = jax.grad(losses.contrastive_loss)(jnp.asarray(scores, jnp.float32), jnp.asarray(positive))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_mixture_gradient_is_the_posterior(rng):
  log_likelihoods, scores = rng.uniform(-6, 0, K), rng.normal(size=K)
  joint = np.exp(log_likelihoods) * softmax64(scores)
  got = jax.grad(losses.mixture_log_likelihood)(jnp.asarray(log_likelihoods, jnp.float32), jnp.asarray(scores))
  np.testing.assert_allclose(got, joint / joint.sum(), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_emdr2_gradient_is_prior_minus_posterior(rng, temperature):
  """Derived by hand: dL/ds = (p - r) / T, r the passages' posterior; also for an answer that underflows float32."""
  for shift in (0.0, -300.0):
    log_likelihoods, scores = rng.uniform(-6, 0, K) + shift, rng.normal(size=K)
    prior = softmax64(scores / temperature)
    joint = prior * np.exp(log_likelihoods - shift)
    value, got = jax.value_and_grad(losses.emdr2_loss)(
      jnp.asarray(scores, jnp.float32), jnp.asarray(log_likelihoods, jnp.float32), temperature=temperature
    )
    np.testing.assert_allclose(value, -np.log(joint.sum()) - shift, rtol=1e-5)
    # A log-likelihood near -300 is a multiple of 3e-5 in float32, and the posterior no more exact than that.
    np.testing.assert_allclose(
      got, (prior - joint / joint.sum()) / temperature, atol=(2e-4 if shift else 1e-6) / temperature
    )
    assert abs(float(got.sum())) < 2e-6 / temperature


def test_emdr2_leaves_the_likelihoods_alone_and_rests_where_all_passages_are_alike():
  args = jnp.array([0.3, -1.0]), jnp.log(jnp.array([0.9, 0.1]))
  assert jax.grad(losses.emdr2_loss, argnums=1)(*args).tolist() == [0.0, 0.0]
  alike = jax.grad(losses.emdr2_loss)(jnp.array([0.3, -1.0, 2.0]), jnp.full(3, -7.0))
  np.testing.assert_allclose(alike, np.zeros(3), atol=1e-6)


# Masks. Each function as one of (first argument to differentiate by, the rest), reduced to a scalar.


def ralt(x, y, where):
  return losses.ralt_loss(x, jnp.ones(x.shape, int), where=where)[0]


MASKED = {
  "retriever": lambda x, y, where: jnp.sum(losses.retriever_log_probs(x, where=where) * y, where=where, axis=-1),
  "targets": lambda x, y, where: jnp.sum(
    losses.lsr_log_targets(x, jnp.ones(x.shape, int), temperature=0.5, where=where) * y, where=where, axis=-1
  ),
  "kl": lambda x, y, where: losses.lsr_loss(x, losses.retriever_log_probs(y, where=where), where=where),
  "kl_other": lambda x, y, where: losses.lsr_loss(
    x, losses.retriever_log_probs(y, where=where), where=where, direction="lm_to_retriever"
  ),
  "ralt": ralt,
  "mixture": lambda x, y, where: losses.mixture_log_likelihood(x, y, where=where),
  "mixture_scores": lambda x, y, where: losses.mixture_log_likelihood(y, x, where=where),
  "emdr2": lambda x, y, where: losses.emdr2_loss(x, y, where=where),
  "contrastive": lambda x, y, where: losses.contrastive_loss(x, jnp.arange(x.shape[-1]) == 0, where=where),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("filling", [0.0, 1e30, np.nan, np.inf, -np.inf])
def test_masked_equals_dropped(rng, name, filling):
  """Value and gradient, whatever stands in the masked slots; and the masked slots' own gradient is 0."""
  x, y = rng.normal(size=(2, K)).astype(np.float32)
  keep = np.array([True, False, True, True, False])
  full_x, full_y = np.where(keep, x, filling), np.where(keep, y, filling)
  f = MASKED[name]
  value, gradient = jax.value_and_grad(f)(jnp.asarray(full_x), jnp.asarray(full_y), jnp.asarray(keep))
  short, short_gradient = jax.value_and_grad(f)(jnp.asarray(x[keep]), jnp.asarray(y[keep]), None)
  np.testing.assert_allclose(value, short, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(gradient[keep], short_gradient, rtol=1e-5, atol=1e-6)
  assert np.all(np.asarray(gradient)[~keep] == 0.0)


@pytest.mark.parametrize("name", MASKED)
def test_a_row_without_a_passage_is_zero_and_leaves_its_neighbour_alone(rng, name):
  x, y = rng.normal(size=(2, 2, K)).astype(np.float32)
  x[0], y[0] = np.nan, np.inf
  where = jnp.array([[False] * K, [True] * K])

  def total(z):
    return jnp.sum(MASKED[name](z, jnp.asarray(y), where))

  values = MASKED[name](jnp.asarray(x), jnp.asarray(y), where)
  gradient = jax.grad(total)(jnp.asarray(x))
  alone = jax.value_and_grad(lambda z: MASKED[name](z, jnp.asarray(y[1]), None))(jnp.asarray(x[1]))
  assert values[0] == 0.0
  assert np.all(np.asarray(gradient[0]) == 0.0)
  np.testing.assert_allclose(values[1], alone[0], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(gradient[1], alone[1], rtol=1e-5, atol=1e-6)


def test_log_probs_of_a_row_without_a_passage_are_minus_infinity():
  none = jnp.zeros(3, bool)
  assert np.all(losses.retriever_log_probs(jnp.zeros(3), where=none) == -jnp.inf)
  assert np.all(losses.lsr_log_targets(jnp.zeros(3), jnp.ones(3, int), where=none) == -jnp.inf)


def test_a_row_without_a_positive_has_contrastive_loss_zero():
  scores = jnp.array([1.0, 2.0])
  value, gradient = jax.value_and_grad(losses.contrastive_loss)(scores, jnp.zeros(2, bool))
  assert value == 0.0
  assert gradient.tolist() == [0.0, 0.0]
  masked_positive = losses.contrastive_loss(scores, jnp.array([True, False]), where=jnp.array([False, True]))
  assert masked_positive == 0.0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_real_passage_has_nothing_to_learn(direction):
  where = jnp.array([False, True, False])
  log_q = losses.lsr_log_targets(jnp.array([-1.0, -3.0, -2.0]), jnp.array([1, 1, 1]), where=where)
  value, gradient = jax.value_and_grad(losses.lsr_loss)(
    jnp.array([5.0, -7.0, 1.0]), log_q, where=where, direction=direction
  )
  assert value == 0.0
  assert gradient.tolist() == [0.0, 0.0, 0.0]


# Extremes and types.


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_scores_of_a_thousand(direction):
  scores, log_q = jnp.array([1000.0, -1000.0, 999.0]), jnp.log(jnp.array([0.2, 0.3, 0.5]))
  value, gradient = jax.value_and_grad(losses.lsr_loss)(scores, log_q, direction=direction)
  p = softmax64(scores)
  # exp(-2000) is 0 even in float64; its log is not.
  log_p = np.asarray(scores, np.float64) - 1000 - np.log1p(np.exp(-1.0))
  q = np.exp(np.asarray(log_q, np.float64))
  want = np.sum(p * (log_p - np.log(q))) if direction == "retriever_to_lm" else np.sum(q * (np.log(q) - log_p))
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("score", SCORES)
def test_targets_at_the_papers_temperature_stay_finite(score):
  log_likelihoods, tokens = jnp.array([-1e-6, -80.0, -1000.0]), jnp.array([1, 20, 50])
  log_q = losses.lsr_log_targets(log_likelihoods, tokens, score=score)
  assert np.all(np.isfinite(log_q))
  value, gradient = jax.value_and_grad(losses.lsr_loss)(jnp.array([400.0, 399.0, 380.0]), log_q)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("score", SCORES)
def test_no_answer_token_counts_as_likelihood_one(score):
  got = losses.lsr_log_targets(jnp.array([0.0, 0.0]), jnp.array([0, 3]), score=score)
  np.testing.assert_allclose(np.exp(got), [0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_input_is_computed_in_float32(rng, dtype):
  """The result equals that of the same (already rounded) numbers in float32, to the last bit."""
  x = jnp.asarray(rng.normal(size=(3, K)), dtype)
  y = jnp.asarray(-rng.uniform(1, 30, (3, K)), dtype)
  wide_x, wide_y = x.astype(jnp.float32), y.astype(jnp.float32)
  tokens = jnp.full((3, K), 7)
  for f in (
    lambda a, b: losses.retriever_log_probs(a),
    lambda a, b: losses.lsr_log_targets(b, tokens),
    lambda a, b: losses.lsr_loss(a, b),
    lambda a, b: losses.ralt_loss(b, tokens)[0],
    lambda a, b: losses.mixture_log_likelihood(b, a),
    lambda a, b: losses.contrastive_loss(a, tokens == 7),
  ):
    got = f(x, y)
    assert got.dtype == jnp.float32
    assert np.array_equal(got, f(wide_x, wide_y))


def test_scores_that_bfloat16_cannot_separate():
  """Near 400 it steps by 2: the caller must keep scores in float32, and then one more is told apart."""
  assert np.exp(losses.retriever_log_probs(jnp.array([401.0, 400.0])))[0] == pytest.approx(0.7311, abs=1e-4)


# What must not matter.


@given(scores=vectors, shift=st.floats(-500, 500, width=32), log_q=vectors, mask=masks)
@settings(max_examples=40, deadline=None)
def test_a_shift_of_all_scores_changes_nothing(scores, shift, log_q, mask):
  where, log_q = jnp.asarray(mask), losses.retriever_log_probs(jnp.asarray(log_q), where=jnp.asarray(mask))
  moved = jnp.asarray(scores.astype(np.float64) + shift, jnp.float32)
  for direction in DIRECTIONS:
    a = losses.lsr_loss(jnp.asarray(scores), log_q, where=where, direction=direction)
    b = losses.lsr_loss(moved, log_q, where=where, direction=direction)
    # A float32 near 500 is known to 3e-5, and the KL's slope is at most the spread of the logs.
    np.testing.assert_allclose(a, b, atol=2e-3)


@given(log_likelihoods=nlls, shift=st.floats(-30, 0, width=32))
@settings(max_examples=40, deadline=None)
def test_a_shift_of_all_log_likelihoods_changes_no_log_score_target(log_likelihoods, shift):
  tokens = jnp.full(K, 4)
  for score in ("log_prob", "token_log_prob"):
    a = losses.lsr_log_targets(jnp.asarray(log_likelihoods), tokens, temperature=1.0, score=score)
    b = losses.lsr_log_targets(jnp.asarray(log_likelihoods + shift), tokens, temperature=1.0, score=score)
    np.testing.assert_allclose(a, b, atol=1e-4)


@given(scores=vectors, log_likelihoods=nlls, mask=masks, order=st.permutations(range(K)))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_passages_does_not_matter(scores, log_likelihoods, mask, order):
  order, tokens = np.array(order), jnp.full(K, 4)

  def values(i):
    s, ll, where = jnp.asarray(scores[i]), jnp.asarray(log_likelihoods[i]), jnp.asarray(mask[i])
    log_q = losses.lsr_log_targets(ll, tokens, temperature=0.5, where=where)
    return [losses.lsr_loss(s, log_q, where=where), losses.mixture_log_likelihood(ll, s, where=where)]

  np.testing.assert_allclose(values(np.arange(K)), values(order), rtol=1e-4, atol=1e-5)


@given(scores=vectors, log_likelihoods=nlls, mask=masks)
@settings(max_examples=40, deadline=None)
def test_a_mixture_lies_between_its_parts(scores, log_likelihoods, mask):
  got = losses.mixture_log_likelihood(jnp.asarray(log_likelihoods), jnp.asarray(scores), where=jnp.asarray(mask))
  assert log_likelihoods[mask].min() - 1e-4 <= got <= log_likelihoods[mask].max() + 1e-4


def test_batched_equals_single(rng):
  x, y = rng.normal(size=(2, 4, 3, K)).astype(np.float32)
  where = rng.random((4, 3, K)) < 0.6
  for f in MASKED.values():
    batched = f(jnp.asarray(x), jnp.asarray(y), jnp.asarray(where))
    singles = [
      [f(jnp.asarray(x[i, j]), jnp.asarray(y[i, j]), jnp.asarray(where[i, j])) for j in range(3)] for i in range(4)
    ]
    assert batched.shape == (4, 3)
    np.testing.assert_allclose(batched, np.array(singles), rtol=1e-5, atol=1e-6)


# Wrong calls.


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
  x = jnp.zeros(2)
  for call in (
    lambda: losses.retriever_log_probs(x, temperature=temperature),
    lambda: losses.lsr_log_targets(x, jnp.ones(2, int), temperature=temperature),
    lambda: losses.lsr_loss(x, x, temperature=temperature),
    lambda: losses.mixture_log_likelihood(x, x, temperature=temperature),
    lambda: losses.contrastive_loss(x, jnp.ones(2, bool), temperature=temperature),
  ):
    with pytest.raises(ValueError, match="temperature"):
      call()


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match='"token_prob"'):
    losses.lsr_log_targets(jnp.zeros(2), jnp.ones(2, int), score="probability")
  with pytest.raises(ValueError, match='"lm_to_retriever"'):
    losses.lsr_loss(jnp.zeros(2), jnp.zeros(2), direction="forward")
