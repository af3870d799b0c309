"""Questions with their retrieved passages, and the teacher's scores of those: two stores, joined by id."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.data.readers.example import Category
from radit_jax.data.stores import Store, write_store
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievedExample:
  """A question and what was found for it.

  Attributes:
    id: of the question.
    question: the instruction ``x``.
    answers: the first one is trained on, all count in evaluation.
    query: what the retriever was asked.
    group: what is not shared between splits; None for none.
    gold_rows: rows of the passages known to hold the answer.
    passage_rows: ``[k]`` int64 rows of the passage store, best first; -1 where not valid, and for an own context.
    scores: ``[k]`` float32 dot products; -inf where not valid, 0 for an own context.
    valid: ``[k]`` bool.
    category: kind of task; it decides the prompt's markers. Of "text" the answer is all there is: a row of plain text.
    context: what stands in the first passage's place, nothing having been searched for; None elsewhere.
    answer_texts: answers worth looking for in a passage, see :class:`radit_jax.data.readers.example.Example`; none
      given takes all of them.
  """

  id: str
  question: str
  answers: tuple[str, ...]
  query: str
  group: str | None
  gold_rows: tuple[int, ...]
  passage_rows: Int[np.ndarray, "k"]
  scores: Float[np.ndarray, "k"]
  valid: Bool[np.ndarray, "k"]
  category: Category = "qa"
  context: str | None = None
  answer_texts: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    object.__setattr__(self, "answer_texts", self.answer_texts or self.answers)

  @property
  def searched(self) -> bool:
    """Whether its passages come from the store. Else only the first slot holds anything."""
    return self.context is None and self.category != "text"


@dataclasses.dataclass(frozen=True, eq=False)
class PassageScores:
  """What the teacher makes of a question's passages: sums and counts, never a finished softmax.

  Attributes:
    id: of the question.
    log_likelihood: ``[k]`` float32, log p(y | c_j ∘ x), summed over the answer's tokens.
    num_tokens: ``[k]`` int32, tokens in each sum.
    valid: ``[k]`` bool.
  """

  id: str
  log_likelihood: Float[np.ndarray, "k"]
  num_tokens: Int[np.ndarray, "k"]
  valid: Bool[np.ndarray, "k"]


def write_retrieved(
  records: Iterable[RetrievedExample], path: str | os.PathLike[str], *, manifest: Mapping[str, Any]
) -> None:
  """Writes a retrieved-example store.

  Args:
    records: in order.
    path: directory; replaced if it exists, absent if this fails.
    manifest: what the records were made from; at least ``k``, ``passages`` (fingerprint of the passage store) and
      ``score_temperature``.

  Raises:
    UserError: no records, two with one id, or one without an answer.
    ValueError: arrays that are not of length k.
  """

  def rows() -> Iterator[dict[str, Any]]:
    for r in records:
      if not r.answers:
        raise UserError(f"{path}: question {r.id!r} has no answer")
      yield {
        "id": r.id,
        "question": r.question,
        "query": r.query,
        "group": r.group or "",
        "category": r.category,
        "context": r.context or "",
        "answers": list(r.answers),
        "answer_texts": json.dumps(r.answer_texts, ensure_ascii=False),
        "gold_rows": np.asarray(r.gold_rows, np.int64),
        "passage_rows": _vector(r.passage_rows, np.int64, manifest["k"], r.id, "passage_rows"),
        "scores": _vector(r.scores, np.float32, manifest["k"], r.id, "scores"),
        "valid": _vector(r.valid, np.bool_, manifest["k"], r.id, "valid"),
      }

  write_store("retrieved", path, rows(), manifest)


def write_scores(
  records: Iterable[PassageScores], path: str | os.PathLike[str], *, manifest: Mapping[str, Any]
) -> None:
  """Writes a score store.

  Args:
    records: in the order of the retrieved examples.
    path: directory; replaced if it exists, absent if this fails.
    manifest: what the scores were made from; at least ``k`` and the fingerprints ``generator``, ``prompt`` and
      ``retrieved``.

  Raises:
    UserError: no records, or two with one id.
    ValueError: arrays that are not of length k.
  """
  k = manifest["k"]
  rows = (
    {
      "id": r.id,
      "log_likelihood": _vector(r.log_likelihood, np.float32, k, r.id, "log_likelihood"),
      "num_tokens": _vector(r.num_tokens, np.int32, k, r.id, "num_tokens"),
      "valid": _vector(r.valid, np.bool_, k, r.id, "valid"),
    }
    for r in records
  )
  write_store("scores", path, rows, manifest)


def _vector(value: Any, dtype: Any, k: int, name: str, field: str) -> np.ndarray:
  array = np.asarray(value, dtype)
  if array.shape != (k,):
    raise ValueError(f"question {name!r}: {field} has shape {array.shape}, the store's k is {k}")
  return array


class RetrievedStore(Store[RetrievedExample]):
  """Questions with their passages, by position."""

  kind = "retrieved"

  def _decode(self, record: dict[str, Any]) -> RetrievedExample:
    return RetrievedExample(
      id=record["id"].decode(),
      question=record["question"].decode(),
      answers=tuple(a.decode() for a in record["answers"]),
      query=record["query"].decode(),
      group=record["group"].decode() or None,
      category=record["category"].decode() if record["category"] else "qa",  # earlier stores have none
      context=record["context"].decode() or None if record["context"] else None,  # nor that
      answer_texts=tuple(json.loads(record["answer_texts"] or "[]")),  # earlier stores have none
      gold_rows=tuple(record["gold_rows"].tolist()),
      passage_rows=record["passage_rows"],
      scores=record["scores"],
      valid=record["valid"],
    )


class ScoreStore(Store[PassageScores]):
  """The teacher's scores, by position or by id of the question.

  Args:
    path: directory of the store.
    retrieved: the examples the scores must belong to; None checks nothing.

  Raises:
    UserError: no finished score store, or one that scores other examples.
  """

  kind = "scores"

  def __init__(self, path: str | os.PathLike[str], *, retrieved: RetrievedStore | None = None) -> None:
    super().__init__(path)
    self._positions: dict[str, int] | None = None
    if retrieved is not None and self.manifest.get("retrieved") != retrieved.fingerprint:
      raise UserError(
        f"{self.path}: scores of the retrieved examples {self.manifest.get('retrieved')}, but {retrieved.path} is "
        f"{retrieved.fingerprint}; run `radit score` again"
      )

  def _decode(self, record: dict[str, Any]) -> PassageScores:
    return PassageScores(record["id"].decode(), record["log_likelihood"], record["num_tokens"], record["valid"])

  def of(self, ids: Iterable[str]) -> list[PassageScores]:
    """Scores of each question.

    Raises:
      UserError: a question was not scored.
    """
    if self._positions is None:
      self._positions = {scores.id: row for row, scores in enumerate(self)}
    rows = []
    for name in ids:
      if name not in self._positions:
        raise UserError(f"{self.path}: no scores of question {name!r}; run `radit score` again")
      rows.append(self._positions[name])
    return self.many(rows)
