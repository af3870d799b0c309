"""What a tuning measures on its dev questions beside the dev loss: answers of a generator, rankings of a retriever."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from radit_jax import hosts, sharding
from radit_jax.config import TrainGeneratorConfig, TrainRetrieverConfig
from radit_jax.config.shared import DEV_QUESTIONS, DEV_QUESTIONS_AT_ONCE
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedExample, RetrievedStore
from radit_jax.data.plan import sample
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import exact_match, first_hit
from radit_jax.inference.answer import answer_questions
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import StoredIndex
from radit_jax.training.diagnostics import moved
from radit_jax.training.loop import Measured
from radit_jax.verbs.evaluate import make_query

#: Rows that are encoded at once.
_ENCODED_AT_ONCE = 64

Examine = Callable[[Any], Callable[[Any], Measured]]


def answering(
  config: TrainGeneratorConfig, dev: RetrievedStore, passages: PassageStore, prompt: Prompt, tokenizer: Any, mesh: Mesh
) -> Examine | None:
  """Exact match and log-likelihood of answers to dev questions by eq. 2; None where no answers are asked for.

  Questions are answered as the tuning trains: from k passages, or from none.

  Args:
    config: of the verb.
    dev: its dev examples.
    passages: their passages.
    prompt: that the tuning trains on.
    tokenizer: the generator's.
    mesh: the generator lies on it.

  Raises:
    UserError: answers are asked for, and all that was drawn of the dev examples is plain text.
  """
  number = config.loop.asked_questions
  if number is None:
    return None
  drawn = dev.many(sample(len(dev), number, config.loop.seed))
  examples = [e for e in drawn if e.category != "text"]
  if not examples:
    raise UserError(
      f"{config.dev_retrieved}: plain text is all that was drawn ({len(drawn)} of {len(dev)} examples), so "
      f"--loop.dev-questions and --loop.select {config.loop.select} have no question to answer; "
      "draw more, or leave both out"
    )
  mode = "retrieval" if config.method == "ralt" else "closed_book"
  queries = [make_query(e, passages, mode=mode, k=config.k) for e in examples]

  def measure(generator: Any) -> Measured:
    answers = answer_questions(
      generator,
      tokenizer,
      prompt,
      queries,
      score_temperature=dev.manifest["score_temperature"],
      batch_size=DEV_QUESTIONS_AT_ONCE,
      mesh=mesh,
    )
    matches = [exact_match(a.text, e.answers) for a, e in zip(answers, examples, strict=True)]
    likelihoods = [a.gold_log_likelihood for a in answers if a.gold_log_likelihood is not None]
    return {"exact_match": float(np.mean(matches)), "answer_log_likelihood": float(np.mean(likelihoods))}

  return lambda _: measure


def searching(
  config: TrainRetrieverConfig,
  dev: RetrievedStore,
  index: StoredIndex,
  passages: PassageStore | None,
  tokenizer: Any,
  mesh: Mesh,
  *,
  max_tokens: int,
  query_prompt: str,
) -> Examine:
  """How far the query encoder has moved; and MRR and recall of dev questions in the whole index, if asked for.

  Args:
    config: of the verb.
    dev: its dev examples.
    index: of the passages; opened to be searched where rankings are asked for.
    passages: those of the index; None where only gold passages are right.
    tokenizer: the encoder's.
    mesh: the encoder lies on it.
    max_tokens: longest query.
    query_prompt: put in front of every query.

  Raises:
    UserError: rankings are asked for, and which passages are right can be known of no question.
  """
  number = config.loop.asked_questions
  drawn = dev.many(sample(len(dev), number or DEV_QUESTIONS, config.loop.seed))
  examples = [e for e in drawn if e.searched] or drawn
  right = None if number is None else _judged(config, examples, passages)

  def embed(encoder: Any) -> np.ndarray:
    return embed_queries(
      encoder,
      tokenizer,
      [e.query for e in examples],
      max_tokens=max_tokens,
      prompt=query_prompt,
      batch_size=sharding.round_up_rows(min(_ENCODED_AT_ONCE, len(examples)), mesh),
      mesh=mesh,
    )

  def examine(before: Any) -> Callable[[Any], Measured]:
    start = embed(before)

    def measure(encoder: Any) -> Measured:
      now = embed(encoder)
      out = {"moved": float(moved(jnp.asarray(now), jnp.asarray(start), jnp.ones(len(now), bool)))}
      if right is not None:
        out |= _rankings(right, index, now, config.k)
      return out

    return measure

  return examine


Judge = Callable[[Sequence[int]], int]


def _judged(
  config: TrainRetrieverConfig, examples: Sequence[RetrievedExample], store: PassageStore | None
) -> list[Judge | None]:
  """For each question what tells how many passages stand before the first right one; None where that cannot be told."""

  def judge(e: RetrievedExample) -> Judge | None:
    if not e.searched or not (e.gold_rows or store):
      return None
    return lambda rows: first_hit(e.gold_rows, e.answer_texts, rows, lambda row: store[row].text if store else "")

  found = [judge(e) for e in examples]
  if not any(found):
    raise UserError(
      f"{config.dev_retrieved}: no question names its gold passage, so --loop.dev-questions and --loop.select "
      f"{config.loop.select} need --passages, to look for answers in what is found"
    )
  return found


def _rankings(right: Sequence[Judge | None], index: StoredIndex, queries: np.ndarray, k: int) -> Measured:
  """MRR and recall at k, the same in every process: approximate searches need not agree to the last bit.

  One process searches, unless the rows of the index lie with all of them.
  """
  kept = [i for i, judge in enumerate(right) if judge is not None]
  told = ""
  if hosts.is_first() or index.together:
    found = index.search(queries[kept], k).ids
    ranks = [judge(rows.tolist()) for i, rows in zip(kept, found, strict=True) if (judge := right[i]) is not None]
    told = " ".join(map(str, ranks))
  rank = np.array(hosts.exchange(told)[0].split(), int)
  return {"mrr": float(np.mean(np.where(rank < k, 1 / (rank + 1), 0.0))), "recall": float(np.mean(rank < k))}
