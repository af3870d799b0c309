"""What retriever and teacher make of a batch, as figures by which a flat loss can be explained."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

#: A distribution counts as uniform from this share of the largest entropy on, and as one-hot from this probability on.
UNIFORM, ONE_HOT = 0.999, 0.999


def lsr_figures(
  scores: Float[Array, "... K"],
  log_targets: Float[Array, "... K"],
  token_log_probs: Float[Array, "... K"],
  embeddings: Float[Array, "... K E"],
  *,
  where: Bool[Array, "... K"],
  temperature: float,
) -> dict[str, Float[Array, "..."]]:
  """Figures of retriever tuning, one value per question, all 0 for a question without a real passage.

  Args:
    scores: ``[..., K]`` dot products of the query with each passage.
    log_targets: ``[..., K]`` from :func:`radit_jax.losses.lsr_log_targets`.
    token_log_probs: ``[..., K]`` the teacher's log-likelihood of the answer per token.
    embeddings: ``[..., K, E]`` of the passages.
    where: ``[..., K]`` True for real passages.
    temperature: of ``p_R``.

  Returns:
    ``[...]`` float32 each. ``retriever_entropy`` and ``teacher_entropy`` in nats. Shares to be, 0 or 1: ``uniform_``
    and ``one_hot_`` ``retriever`` and ``teacher``; ``single`` with one passage, where there is nothing to learn;
    ``alike`` where all passages have one embedding. ``rank_correlation`` of the scores with the targets (Spearman's;
    0 where one of them has no order). ``score_range`` and ``teacher_range``, the best score and the best
    log-likelihood per token minus the worst.

  Example:
    >>> ours, theirs = jnp.array([3.0, 2.0, 1.0]), jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> figures = lsr_figures(ours, theirs, theirs, jnp.eye(3), where=jnp.ones(3, bool), temperature=1.0)
    >>> float(figures["rank_correlation"]), float(figures["score_range"]), float(figures["uniform_teacher"])
    (1.0, 2.0, 0.0)
  """
  scores = jax.lax.stop_gradient(jnp.asarray(scores, jnp.float32))
  number = jnp.sum(where, axis=-1)
  several = number >= 2
  out = {}
  for name, logits in (("retriever", scores / temperature), ("teacher", jax.lax.stop_gradient(log_targets))):
    log_p = jax.nn.log_softmax(jnp.where(where, logits, -jnp.inf), axis=-1)
    log_p = jnp.where(where, log_p, 0.0)
    p = jnp.where(where, jnp.exp(log_p), 0.0)
    entropy = jnp.maximum(-jnp.sum(p * log_p, axis=-1), 0.0)
    out[f"{name}_entropy"] = entropy
    out[f"uniform_{name}"] = several & (entropy >= UNIFORM * jnp.log(jnp.maximum(number, 2).astype(jnp.float32)))
    out[f"one_hot_{name}"] = several & (jnp.max(p, axis=-1) >= ONE_HOT)
  first = jnp.take_along_axis(embeddings, jnp.argmax(where, axis=-1)[..., None, None], axis=-2)
  out |= {
    "single": number == 1,
    "alike": several & jnp.all(jnp.all(embeddings == first, axis=-1) | ~where, axis=-1),
    "rank_correlation": rank_correlation(scores, log_targets, where=where),
    "score_range": _range(scores, where),
    "teacher_range": _range(jax.lax.stop_gradient(jnp.asarray(token_log_probs, jnp.float32)), where),
  }
  return {name: jnp.where(number > 0, value, 0).astype(jnp.float32) for name, value in out.items()}


def _range(x: Float[Array, "... K"], where: Bool[Array, "... K"]) -> Float[Array, "..."]:
  most, least = jnp.max(x, axis=-1, where=where, initial=-jnp.inf), jnp.min(x, axis=-1, where=where, initial=jnp.inf)
  return most - least


def rank_correlation(
  a: Float[Array, "... K"], b: Float[Array, "... K"], *, where: Bool[Array, "... K"]
) -> Float[Array, "..."]:
  """Spearman's correlation of two orders; equal values share their mean rank. 0 where either has no order.

  Args:
    a: ``[..., K]``.
    b: ``[..., K]``.
    where: ``[..., K]`` True for what counts.

  Example:
    >>> x, y = jnp.array([1.0, 2.0, 3.0, 9.0]), jnp.array([5.0, 7.0, 6.0, 0.0])
    >>> float(rank_correlation(x, y, where=jnp.array([True, True, True, False])))
    0.5
  """
  x, y = (_centred_ranks(jax.lax.stop_gradient(v), where) for v in (a, b))
  scale = jnp.sqrt(jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1))
  return jnp.where(scale > 0, jnp.sum(x * y, axis=-1) / jnp.where(scale > 0, scale, 1.0), 0.0)


def _centred_ranks(x: Float[Array, "... K"], where: Bool[Array, "... K"]) -> Float[Array, "... K"]:
  """Mean ranks minus their mean; 0 for what does not count."""
  one, other = x[..., :, None], x[..., None, :]
  below = jnp.sum(other < one, axis=-1, where=where[..., None, :])
  equal = jnp.sum(other == one, axis=-1, where=where[..., None, :])
  ranks = below + (equal + 1) / 2
  mean = jnp.sum(ranks, axis=-1, where=where, keepdims=True) / jnp.maximum(jnp.sum(where, axis=-1, keepdims=True), 1)
  return jnp.where(where, ranks - mean, 0.0)


def moved(now: Float[Array, "B E"], start: Float[Array, "B E"], where: Bool[Array, "B"]) -> Float[Array, ""]:
  """How far embeddings of the same questions have turned: 1 minus their mean cosine, 0 before any training.

  Args:
    now: ``[B, E]``.
    start: ``[B, E]`` of the encoder that training began with.
    where: ``[B]`` True for real questions.
  """
  now, start = now.astype(jnp.float32), start.astype(jnp.float32)
  scale = jnp.linalg.norm(now, axis=-1) * jnp.linalg.norm(start, axis=-1)
  cosine = jnp.sum(now * start, axis=-1) / jnp.maximum(scale, 1e-30)
  return 1.0 - jnp.sum(cosine, where=where) / jnp.maximum(jnp.sum(where), 1)
