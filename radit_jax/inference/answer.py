"""Answering by eq. 2: decode every prompt alone, weigh every distinct answer under every prompt, the best one wins."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from radit_jax import sharding
from radit_jax.data.plan import bucket_lengths, row_multiple
from radit_jax.data.prompts import Prompt, Request
from radit_jax.data.readers.example import Category
from radit_jax.data.sources import Passage
from radit_jax.data.templates import markers_of
from radit_jax.inference.decode import greedy_decode, prefill, score_candidates
from radit_jax.losses import mixture_log_likelihood, retriever_log_probs
from radit_jax.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class Query:
  """A question with the passages it may be answered from.

  Attributes:
    id: of the example.
    question: the instruction ``x``.
    passages: best first; empty for a closed-book answer.
    scores: the retriever's dot products, one per passage.
    gold_answer: answer whose likelihood is wanted too; None for none.
    category: kind of task; it decides the prompt's markers.
  """

  id: str
  question: str
  passages: tuple[Passage, ...] = ()
  scores: tuple[float, ...] = ()
  gold_answer: str | None = None
  category: Category = "qa"


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One distinct answer: its text, log of eq. 2, and log p(y | c_k ∘ x) under each passage."""

  text: str
  log_likelihood: float
  passage_log_likelihoods: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What came of a question.

  Attributes:
    id: of the example.
    text: the best answer.
    log_likelihood: its log eq. 2.
    passage: position in the query's passages that carries most of it; None for a closed-book answer.
    candidates: all distinct answers, best first.
    gold_log_likelihood: log eq. 2 of the gold answer; None without one.
  """

  id: str
  text: str
  log_likelihood: float
  passage: int | None
  candidates: tuple[Candidate, ...]
  gold_log_likelihood: float | None


def answer_questions(
  generator: Any,
  tokenizer: Any,
  prompt: Prompt,
  queries: Sequence[Query],
  *,
  score_temperature: float,
  batch_size: int,
  mesh: Mesh,
  stage: str = "answer",
  progress: Progress = silent,
) -> list[Answer]:
  r"""Answers every question by the mixture over its passages.

  .. math:: \hat y = \arg\max_y \sum_k p_{LM}(y \mid c_k \circ x) \, p_R(c_k \mid x)

  Each prompt is read once; decoding and the weighing of all candidates continue from its key-value cache.

  Args:
    generator: on ``mesh``.
    tokenizer: the generator's.
    prompt: renders each passage and question; its ``max_answer_tokens`` bounds the answers.
    queries: in any order.
    score_temperature: temperature of ``p_R``.
    batch_size: questions per step; rounded up to what the mesh's row axes divide.
    mesh: from :func:`radit_jax.sharding.make_mesh`.
    stage: name shown in the progress.
    progress: see :class:`radit_jax.progress.Progress`.

  Returns:
    One :class:`Answer` per query, in order.

  References:
    Lin et al., RA-DIT, eq. (2) and section 2.4.
  """
  batch_size = sharding.round_up_rows(min(batch_size, max(len(queries), 1)), mesh)
  k = max((len(q.passages) for q in queries), default=1) or 1
  rendered = _render(prompt, queries)
  # Room for an answer of any candidate: what is decoded, and the gold answers.
  longest = max([prompt.config.max_answer_tokens + 1, *(len(gold) for _, gold in rendered)])
  room = -(-longest // 4) * 4
  # Sorted by length: few questions wait for a longer one's decoding, and padding is small.
  lengths = [max(len(r) for r in prompts) for prompts, _ in rendered]
  buckets = bucket_lengths(lengths, bucket_multiple=row_multiple(jax.default_backend()))
  order = sorted(range(len(queries)), key=lambda i: lengths[i])
  answers: dict[int, Answer] = {}
  with jax.set_mesh(mesh):
    for batch in _batches(order, batch_size):
      found = _answer_batch(
        generator,
        tokenizer,
        prompt,
        [(queries[i], *rendered[i]) for i in batch],
        k,
        room,
        buckets,
        score_temperature,
        batch_size,
        mesh,
      )
      answers.update(zip(batch, found, strict=True))
      progress(stage, len(answers), len(queries), "questions")
  return [answers[i] for i in range(len(queries))]


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
  for start in range(0, len(order), size):
    yield order[start : start + size]


def _render(prompt: Prompt, queries: Sequence[Query]) -> list[tuple[list[list[int]], list[int]]]:
  """Per query: the token ids of each prompt, and of the gold answer (empty without one)."""
  requests: list[Request] = []
  spans = []
  for q in queries:
    passages = q.passages or (None,)
    spans.append((len(requests), len(passages)))
    requests += [(q.question, p, None, markers_of(q.category)) for p in passages]
  prompts = prompt.render_many(requests)
  gold = prompt.render_many([(q.question, None, q.gold_answer, markers_of(q.category)) for q in queries])
  out = []
  for (start, count), g in zip(spans, gold, strict=True):
    out.append(([list(r.tokens) for r in prompts[start : start + count]], list(g.answer_tokens)))
  return out


def _trim(ids: Sequence[int], end_ids: tuple[int, ...]) -> list[int]:
  """Up to and including the first end token."""
  for i, token in enumerate(ids):
    if token in end_ids:
      return list(ids[: i + 1])
  return list(ids)


def _answer_batch(
  generator: Any,
  tokenizer: Any,
  prompt: Prompt,
  batch: list[tuple[Query, list[list[int]], list[int]]],
  k: int,
  room: int,
  buckets: tuple[int, ...],
  score_temperature: float,
  size: int,
  mesh: Mesh,
) -> list[Answer]:
  longest = max(len(p) for _, prompts, _ in batch for p in prompts)
  width = next(b for b in buckets if b >= longest)
  tokens = np.zeros((size * k, width), np.int32)
  lengths = np.ones(size * k, np.int32)  # an absent passage is a prompt of one padding token, masked out of p_R
  where = np.zeros((size, k), bool)
  scores = np.zeros((size, k), np.float32)
  for b, (query, prompts, _) in enumerate(batch):
    for j, ids in enumerate(prompts):
      tokens[b * k + j, : len(ids)] = ids
      lengths[b * k + j] = len(ids)
      where[b, j] = True
    scores[b, : len(query.scores)] = query.scores
  prefilled = prefill(generator, *sharding.place_rows((tokens, lengths), mesh, whole=True), max_new_tokens=room)
  decoded = sharding.gather(greedy_decode(generator, prefilled, max_new_tokens=room, end_ids=prompt.end_ids))

  # Distinct answers by their text; the gold answer is weighed alongside, in the last used column.
  texts: list[list[str]] = []
  columns: list[list[list[int]]] = []
  for b, (_, prompts, gold) in enumerate(batch):
    distinct: dict[str, list[int]] = {}
    for j in range(len(prompts)):
      ids = _trim(decoded[b * k + j].tolist(), prompt.end_ids)
      words = [i for i in ids if i not in prompt.end_ids]  # an end token need not be special to the tokenizer
      distinct.setdefault(tokenizer.decode(words, skip_special_tokens=True).strip(), ids)
    texts.append(list(distinct))
    columns.append([*distinct.values(), *([gold] if gold else [])])
  used = max(len(c) for c in columns)
  candidates = np.zeros((size, k + 1, room), np.int32)
  num_tokens = np.zeros((size, k + 1), np.int32)
  for b, ids_of in enumerate(columns):
    for c, ids in enumerate(ids_of):
      candidates[b, c, : len(ids)] = ids
      num_tokens[b, c] = len(ids)
  placed = sharding.place_rows((candidates, num_tokens), mesh, whole=True)
  likelihoods = score_candidates(generator, prefilled, *placed, np.int32(used))
  likelihoods, mixture, joint = sharding.gather(
    (likelihoods, *_mixed(likelihoods, scores, where, np.float32(score_temperature)))
  )
  out = []
  for b, (query, prompts, gold) in enumerate(batch):
    ranked = sorted(range(len(texts[b])), key=lambda c: -mixture[b, c])
    best = ranked[0]
    out.append(
      Answer(
        id=query.id,
        text=texts[b][best],
        log_likelihood=float(mixture[b, best]),
        passage=int(np.argmax(joint[b, best])) if query.passages else None,
        candidates=tuple(
          Candidate(texts[b][c], float(mixture[b, c]), tuple(likelihoods[b, c, : len(prompts)].tolist()))
          for c in ranked
        ),
        gold_log_likelihood=float(mixture[b, len(texts[b])]) if gold else None,
      )
    )
  return out


@jax.jit
def _mixed(
  likelihoods: Float[Array, "B C K"],
  scores: Float[Array, "B K"],
  where: Bool[Array, "B K"],
  temperature: Any,
) -> tuple[Float[Array, "B C"], Float[Array, "B C K"]]:
  """Eq. 2 of every candidate, and its terms, which say which passage carries it."""
  weights = retriever_log_probs(scores, where=where, temperature=temperature)
  mixture = mixture_log_likelihood(likelihoods, scores[:, None, :], where=where[:, None, :], temperature=temperature)
  return mixture, weights[:, None, :] + likelihoods
