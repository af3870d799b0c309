"""Greedy decoding and scoring of continuations from one prefilled key-value cache.

Legend: N rows, T prompt tokens, A answer tokens, B questions, K passages per question (N = B*K), C candidate answers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
  """Prompts read once, ready to be continued any number of times.

  Attributes:
    cache: the generator's cache with T of T + A slots filled.
    hidden: ``[N, D]`` hidden state of each prompt's last token: it predicts the first answer token.
    lengths: ``[N]`` int32 tokens of each prompt.
  """

  cache: Any
  hidden: Any
  lengths: Any


@functools.partial(jax.jit, static_argnames="max_new_tokens")
def prefill(generator: Any, tokens: Int[Array, "N T"], lengths: Int[Array, "N"], *, max_new_tokens: int) -> Prefilled:
  """Runs right-padded prompts through the generator once.

  Args:
    generator: a :class:`radit_jax.models.decoder.Decoder`.
    tokens: ``[N, T]`` int32, prompts padded on the right.
    lengths: ``[N]`` int32, at least 1.
    max_new_tokens: A, room left in the cache.
  """
  rows, width = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (rows, width))
  segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
  cache = generator.init_cache(rows, width + max_new_tokens, generator.dtype)
  hidden, cache = generator(tokens, positions=positions, segment_ids=segment_ids, cache=cache)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
  return Prefilled(cache, last, lengths)


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "end_ids"))
def greedy_decode(
  generator: Any, prefilled: Prefilled, *, max_new_tokens: int, end_ids: tuple[int, ...]
) -> Int[Array, "N A"]:
  """The likeliest token each time, until every row has ended.

  Args:
    generator: the one that prefilled.
    prefilled: from :func:`prefill`; left as it is.
    max_new_tokens: A.
    end_ids: any of these ends a row.

  Returns:
    ``[N, A]`` int32, the end token included; what follows a row's first end token means nothing.
  """
  rows = prefilled.lengths.shape[0]
  ends = jnp.asarray(end_ids, jnp.int32)
  first = jnp.argmax(generator.logits(prefilled.hidden), axis=-1).astype(jnp.int32)
  out = jnp.full((rows, max_new_tokens), ends[0], jnp.int32).at[:, 0].set(first)
  ones = jnp.ones((rows, 1), jnp.int32)

  def unfinished(carry: tuple[Array, Array, Array, Array, Any]) -> Array:
    step, _, done, _, _ = carry
    return (step < max_new_tokens) & ~jnp.all(done)

  def advance(carry: tuple[Array, Array, Array, Array, Any]) -> tuple[Array, Array, Array, Array, Any]:
    step, token, done, out, cache = carry
    positions = (prefilled.lengths + step - 1)[:, None]
    hidden, cache = generator(token[:, None], positions=positions, segment_ids=ones, cache=cache)
    following = jnp.argmax(generator.logits(hidden[:, 0]), axis=-1).astype(jnp.int32)
    return step + 1, following, done | jnp.isin(following, ends), out.at[:, step].set(following), cache

  carry = (jnp.asarray(1, jnp.int32), first, jnp.isin(first, ends), out, prefilled.cache)
  return jax.lax.while_loop(unfinished, advance, carry)[3]


@jax.jit
def score_candidates(
  generator: Any,
  prefilled: Prefilled,
  candidates: Int[Array, "B C A"],
  num_tokens: Int[Array, "B C"],
  num_candidates: Int[Array, ""],
) -> Float[Array, "B C K"]:
  """Log-likelihood of every candidate answer after every prompt of its question, from the cache.

  Args:
    generator: the one that prefilled.
    prefilled: N = B*K prompts, row b*K+j; left as it is.
    candidates: ``[B, C, A]`` int32 answer tokens, end token included, padded on the right.
    num_tokens: ``[B, C]`` int32 tokens of each candidate; 0 for an absent one.
    num_candidates: most candidates any question of this batch has; later columns are not computed.

  Returns:
    ``[B, C, K]`` float32 sums in nats; 0 for absent candidates.
  """
  questions, count, width = candidates.shape
  k = prefilled.lengths.shape[0] // questions
  first = jax.nn.log_softmax(generator.logits(prefilled.hidden).astype(jnp.float32), axis=-1)
  offsets = jnp.arange(width, dtype=jnp.int32)

  def score(c: Array, out: Array) -> Array:
    tokens = jnp.repeat(candidates[:, c], k, axis=0)  # [N, A]
    real = offsets < jnp.repeat(num_tokens[:, c], k)[:, None]
    log_prob = jnp.take_along_axis(first, tokens[:, :1], axis=-1)
    if width > 1:
      inputs = tokens[:, :-1]
      positions = prefilled.lengths[:, None] + offsets[:-1]
      segment_ids = real[:, :-1].astype(jnp.int32)
      hidden, _ = generator(inputs, positions=positions, segment_ids=segment_ids, cache=prefilled.cache)
      logits = generator.logits(hidden).astype(jnp.float32)
      picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
      log_prob = jnp.concatenate([log_prob, picked - jax.nn.logsumexp(logits, axis=-1)], axis=1)
    return out.at[:, c].set(jnp.sum(log_prob, axis=1, where=real).reshape(questions, k))

  start = jnp.zeros((questions, count, k), jnp.float32)
  return jax.lax.fori_loop(0, num_candidates, score, start)
