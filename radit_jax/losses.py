"""The equations of RA-DIT as pure functions of arrays (Lin et al., ICLR 2024, arXiv 2310.01352, eqs. 2-5).

Every function returns per-example values, leaves the reduction to the caller, and computes in float32 whatever comes
in. All take ``where``: True for real passages. What a padding slot holds, even NaN, reaches neither a value nor a
gradient. A row without a real passage has value 0 and gradient 0: count such rows with ``where.any(-1)``.

Shapes: ``...`` any leading dimensions, usually B examples; K passages per example; N candidates.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LsrScore = Literal["prob", "token_prob", "log_prob", "token_log_prob"]
LsrDirection = Literal["retriever_to_lm", "lm_to_retriever"]


def _masked_max(x: Float[Array, "... K"], where: Bool[Array, "... K"]) -> Float[Array, "... 1"]:
  """A constant to keep exp in range: the largest real entry, or 0 for a row without one. No gradient."""
  top = jnp.max(jnp.where(where, x, -jnp.inf), axis=-1, keepdims=True)
  return jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))


def _masked_log_sum_exp(x: Float[Array, "... K"], where: Bool[Array, "... K"]) -> Float[Array, "... 1"]:
  """log sum exp over the real entries, 0 for a row without one; finite gradients everywhere."""
  top = _masked_max(x, where)
  # The inner where keeps a padding slot's value out of exp, so that 0 * inf never meets in the gradient.
  total = jnp.sum(jnp.where(where, jnp.exp(jnp.where(where, x - top, 0.0)), 0.0), axis=-1, keepdims=True)
  real = jnp.any(where, axis=-1, keepdims=True)
  return jnp.where(real, jnp.log(jnp.where(real, total, 1.0)) + top, 0.0)


def _masked_log_softmax(x: Float[Array, "... K"], where: Bool[Array, "... K"] | None) -> Float[Array, "... K"]:
  if where is None:
    return jax.nn.log_softmax(x, axis=-1)
  return jnp.where(where, jnp.where(where, x, 0.0) - _masked_log_sum_exp(x, where), -jnp.inf)


def _check_temperature(temperature: float | Array) -> None:
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f"temperature = {temperature}: must be greater than 0")


def retriever_log_probs(
  scores: Float[Array, "... K"],
  *,
  where: Bool[Array, "... K"] | None = None,
  temperature: float = 1.0,
) -> Float[Array, "... K"]:
  r"""Log-probabilities of the retriever over the passages it returned.

  .. math:: \log p_R(c \mid x) = \log \operatorname{softmax}_k\bigl(s(x, c) / T\bigr)

  Args:
    scores: ``[..., K]`` dot products, float32 (they reach 400: bfloat16 cannot separate them).
    where: ``[..., K]`` bool, True for real passages.
    temperature: softmax temperature ``T`` > 0; a dual encoder's ``score_temperature``.

  Returns:
    ``[..., K]`` float32; exactly ``-inf`` where ``where`` is False.

  References:
    Lin et al., RA-DIT, eq. (2).

  Example:
    >>> import jax.numpy as jnp
    >>> print(retriever_log_probs(jnp.array([400.0, 399.0])).round(2))
    [-0.31 -1.31]
  """
  _check_temperature(temperature)
  return _masked_log_softmax(jnp.asarray(scores, jnp.float32) / temperature, where)


def lsr_log_targets(
  log_likelihoods: Float[Array, "... K"],
  num_tokens: Int[Array, "... K"],
  *,
  temperature: float = 0.01,
  score: LsrScore = "token_prob",
  where: Bool[Array, "... K"] | None = None,
) -> Float[Array, "... K"]:
  r"""What the language model would rather have retrieved: the target of retriever tuning.

  .. math:: \log p_{LSR}(c \mid x, y) = \log \mathrm{softmax}_k(g(\log p_{LM}(y \mid c \circ x)) / \tau)

  The paper does not say which likelihood eq. (4) means. ``"prob"`` is the formula as printed, ``g = exp``: the
  probability of a 50-token answer underflows float32, and the target is then exactly uniform. The default
  ``"token_prob"`` is the geometric mean per token, ``g(l) = exp(l / n)``, in (0, 1] for answers of any length.

  Args:
    log_likelihoods: ``[..., K]`` sums of answer-token log-probabilities, in nats.
    num_tokens: ``[..., K]`` number of answer tokens in each sum; 0 counts as likelihood 1.
    temperature: ``tau`` > 0.
    score: ``"prob"`` exp(l) | ``"token_prob"`` exp(l/n) | ``"log_prob"`` l | ``"token_log_prob"`` l/n.
    where: ``[..., K]`` bool, True for real passages.

  Returns:
    ``[..., K]`` float32 log-probabilities; exactly ``-inf`` where ``where`` is False.

  Raises:
    ValueError: an unknown ``score``, or a temperature that is not positive.

  References:
    Lin et al., RA-DIT, eq. (4).

  Example:
    >>> import jax.numpy as jnp
    >>> log_targets = lsr_log_targets(jnp.array([-1.0, -1.02, -9.0]), jnp.array([2, 2, 2]))
    >>> print(jnp.exp(log_targets).round(3))
    [0.646 0.354 0.   ]
  """
  _check_temperature(temperature)
  total = jnp.asarray(log_likelihoods, jnp.float32)
  if where is not None:
    total = jnp.where(where, total, 0.0)
  mean = total / jnp.maximum(jnp.asarray(num_tokens), 1).astype(jnp.float32)
  if score == "prob":
    value = jnp.exp(total)
  elif score == "token_prob":
    value = jnp.exp(mean)
  elif score == "log_prob":
    value = total
  elif score == "token_log_prob":
    value = mean
  else:
    raise ValueError(f'score = {score!r}: must be "prob", "token_prob", "log_prob" or "token_log_prob"')
  return _masked_log_softmax(value / temperature, where)


def _log_ratio(
  logits: Float[Array, "... K"], log_p: Float[Array, "... K"], log_q: Float[Array, "... K"], where: Bool[Array, "... K"]
) -> Float[Array, "... K"]:
  """log(q/p), p the softmax of the logits, to more digits than log_q - log_p has where p and q are alike.

  What all entries have in common is taken out first, as it would take the digits in which they differ.
  """
  ratio = (log_q - _masked_max(log_q, where)) - (logits - _masked_max(logits, where))
  return ratio - _masked_log_sum_exp(log_p + ratio, where)


def _divergence_terms(
  p: Float[Array, "... K"], q: Float[Array, "... K"], log_ratio: Float[Array, "... K"]
) -> Float[Array, "... K"]:
  """p log(p/q) - p + q: over two distributions it sums to KL(p || q), and no term is negative.

  The terms p log(p/q) of distributions that are alike have both signs and a hundred times their sum, which then is
  float32's rounding; and tuning begins with a retriever and a generator that hardly tell passages apart.
  """
  near = jnp.abs(log_ratio) < 1.0
  small, large = jnp.where(near, log_ratio, 0.0), jnp.where(near, 0.0, log_ratio)
  series = jnp.ones_like(small)  # of exp(x) - 1 - x = x^2/2 (1 + x/3 (1 + x/4 (...))), to float32's last digit at 1
  for n in range(11, 2, -1):
    series = 1.0 + small / n * series
  return jnp.where(near, p * (small * small / 2.0) * series, q - p - p * large)


def lsr_loss(
  scores: Float[Array, "... K"],
  log_targets: Float[Array, "... K"],
  *,
  where: Bool[Array, "... K"] | None = None,
  temperature: float = 1.0,
  direction: LsrDirection = "retriever_to_lm",
) -> Float[Array, "..."]:
  r"""Divergence between the retriever's distribution and the language model's.

  .. math:: L = \mathrm{KL}\bigl(p_R(c \mid x) \,\|\, p_{LSR}(c \mid x, y)\bigr)

  Args:
    scores: ``[..., K]`` dot products of the query with each passage; the gradient flows through them.
    log_targets: ``[..., K]`` log-probabilities, which :func:`lsr_log_targets` makes with the same ``where``; no
      gradient flows into them.
    where: ``[..., K]`` bool, True for real passages.
    temperature: softmax temperature of ``p_R`` > 0.
    direction: ``"retriever_to_lm"`` is KL(p_R || p_LSR), the paper's; ``"lm_to_retriever"`` is KL(p_LSR || p_R).

  Returns:
    ``[...]`` float32, at least 0 up to rounding; 0 for a row without a real passage.

  Raises:
    ValueError: an unknown ``direction``, or a temperature that is not positive.

  References:
    Lin et al., RA-DIT, eq. (5).

  Example:
    >>> import jax, jax.numpy as jnp
    >>> log_targets = jnp.log(jnp.array([0.9, 0.1]))
    >>> loss, gradient = jax.value_and_grad(lsr_loss)(jnp.array([0.0, 0.0]), log_targets)
    >>> print(loss.round(4), gradient.round(4))  # a step down the gradient raises the first score
    0.5108 [-0.5493  0.5493]
  """
  log_p = retriever_log_probs(scores, where=where, temperature=temperature)
  log_q = jax.lax.stop_gradient(jnp.asarray(log_targets, jnp.float32))
  real = jnp.ones(log_p.shape, bool) if where is None else where
  # -inf minus -inf would be NaN in the gradient even where the product is masked
  logits, log_p, log_q = (
    jnp.where(real, x, 0.0) for x in (jnp.asarray(scores, jnp.float32) / temperature, log_p, log_q)
  )
  log_ratio = _log_ratio(logits, log_p, log_q, real)
  if direction == "retriever_to_lm":
    terms = _divergence_terms(jnp.exp(log_p), jnp.exp(log_q), log_ratio)
  elif direction == "lm_to_retriever":
    terms = _divergence_terms(jnp.exp(log_q), jnp.exp(log_p), -log_ratio)
  else:
    raise ValueError(f'direction = {direction!r}: must be "retriever_to_lm" or "lm_to_retriever"')
  return jnp.sum(terms, axis=-1, where=where)


def emdr2_loss(
  scores: Float[Array, "... K"],
  log_likelihoods: Float[Array, "... K"],
  *,
  where: Bool[Array, "... K"] | None = None,
  temperature: float = 1.0,
) -> Float[Array, "..."]:
  r"""EMDR²: the passage is a latent variable, and the retriever alone is tuned to make the answer likely.

  .. math:: L = -\log \sum_k p_{LM}(y \mid c_k \circ x) \, p_R(c_k \mid x)

  That is the mixture of eq. (2) with a gradient in the scores only, :math:`\partial L / \partial s_k = (p_k - r_k)/T`,
  :math:`r_k \propto p_{LM}(y \mid c_k \circ x) \, p_k` being the posterior of the passages. Atlas's code mixes the
  passages anew for each answer token; here, as in its formula, the likelihood is the whole answer's.

  Args:
    scores: ``[..., K]`` dot products of the query with each passage; the gradient flows through them.
    log_likelihoods: ``[..., K]`` sums of answer-token log-probabilities, in nats; no gradient flows into them. There is
      no target of its own that a temperature could sharpen, and none that could underflow.
    where: ``[..., K]`` bool, True for real passages.
    temperature: softmax temperature of ``p_R`` > 0.

  Returns:
    ``[...]`` float32; 0 for a row without a real passage.

  References:
    Singh et al., End-to-end training of multi-document reader and retriever, arXiv 2106.05346; Izacard et al., Atlas,
    arXiv 2208.03299, section 2.2.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> loss, gradient = jax.value_and_grad(emdr2_loss)(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.75, 0.25])))
    >>> print(loss.round(4), gradient.round(4))  # prior .5 .5, posterior .75 .25
    0.6931 [-0.25  0.25]
  """
  return -mixture_log_likelihood(
    jax.lax.stop_gradient(jnp.asarray(log_likelihoods, jnp.float32)), scores, where=where, temperature=temperature
  )


def ralt_loss(
  log_likelihoods: Float[Array, "... K"],
  num_tokens: Int[Array, "... K"],
  *,
  where: Bool[Array, "... K"] | None = None,
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
  r"""Retrieval-augmented language-model tuning: every passage's answer counts alike.

  .. math:: L = -\sum_j \log p_{LM}(y \mid c_j \circ x)

  Args:
    log_likelihoods: ``[..., K]`` sums of answer-token log-probabilities, in nats.
    num_tokens: ``[..., K]`` number of answer tokens in each sum.
    where: ``[..., K]`` bool, True for real passages.

  Returns:
    ``(nll, tokens)``, both ``[...]``: float32 sum over the passages, and the number of tokens in it. Divide the sum of
    the one by the sum of the other once, over the global batch: never take means of means.

  References:
    Lin et al., RA-DIT, eq. (3).

  Example:
    >>> import jax.numpy as jnp
    >>> nll, tokens = ralt_loss(jnp.array([-3.0, -5.0]), jnp.array([2, 2]))
    >>> print(nll, tokens)
    8.0 4
  """
  total, tokens = jnp.asarray(log_likelihoods, jnp.float32), jnp.asarray(num_tokens)
  return -jnp.sum(total, axis=-1, where=where), jnp.sum(tokens, axis=-1, where=where)


def mixture_log_likelihood(
  log_likelihoods: Float[Array, "... K"],
  scores: Float[Array, "... K"],
  *,
  where: Bool[Array, "... K"] | None = None,
  temperature: float = 1.0,
) -> Float[Array, "..."]:
  r"""Log-likelihood of an answer under all passages at once, weighed by the retriever.

  .. math:: \log p(y \mid x) = \log \sum_k p_{LM}(y \mid c_k \circ x) \, p_R(c_k \mid x)

  Args:
    log_likelihoods: ``[..., K]`` log p(y | c_k ∘ x), summed over the answer's tokens, in nats.
    scores: ``[..., K]`` the retriever's dot products.
    where: ``[..., K]`` bool, True for real passages.
    temperature: softmax temperature of ``p_R`` > 0.

  Returns:
    ``[...]`` float32; 0 for a row without a real passage, so that it adds nothing to a sum.

  References:
    Lin et al., RA-DIT, eq. (2).

  Example:
    >>> import jax.numpy as jnp
    >>> print(jnp.exp(mixture_log_likelihood(jnp.log(jnp.array([0.8, 0.2])), jnp.array([1.0, 1.0]))).round(4))
    0.5
  """
  log_p = retriever_log_probs(scores, where=where, temperature=temperature)
  joint = log_p + jnp.asarray(log_likelihoods, jnp.float32)
  mask = jnp.ones(joint.shape, bool) if where is None else where
  return _masked_log_sum_exp(joint, mask)[..., 0]


def contrastive_loss(
  scores: Float[Array, "... N"],
  positive: Bool[Array, "... N"],
  *,
  where: Bool[Array, "... N"] | None = None,
  temperature: float = 1.0,
) -> Float[Array, "..."]:
  r"""Negative log-probability of the gold passages among all candidates, in-batch negatives included.

  .. math:: L = -\log \frac{\sum_{c \in C^+} e^{s(x, c)/T}}{\sum_{c \in C} e^{s(x, c)/T}}

  The baseline that retriever tuning must be held against, and the warm start of a new encoder. Mark a gold passage as
  positive wherever it stands among the candidates: a second copy of it is not a negative.

  Args:
    scores: ``[..., N]`` dot products of each query with every candidate of the batch.
    positive: ``[..., N]`` bool, True for the query's own gold passages.
    where: ``[..., N]`` bool, True for real candidates.
    temperature: softmax temperature ``T`` > 0.

  Returns:
    ``[...]`` float32; 0 for a row without a positive.

  Example:
    >>> import jax.numpy as jnp
    >>> print(contrastive_loss(jnp.zeros((2, 4)), jnp.eye(2, 4, dtype=bool)).round(4))  # log 4
    [1.3863 1.3863]
  """
  _check_temperature(temperature)
  logits = jnp.asarray(scores, jnp.float32) / temperature
  real = jnp.ones(logits.shape, bool) if where is None else where
  hit = positive & real
  loss = (_masked_log_sum_exp(logits, real) - _masked_log_sum_exp(logits, hit))[..., 0]
  return jnp.where(jnp.any(hit, axis=-1), loss, 0.0)
