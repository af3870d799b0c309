"""`radit evaluate`: every question of a store is answered and measured."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from radit_jax import files, hosts, runs
from radit_jax.config import EvaluateConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedExample, RetrievedStore
from radit_jax.data.plan import sample
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import bootstrap_interval, exact_match, f1, hit_figures
from radit_jax.inference.answer import Answer, Query, answer_questions
from radit_jax.models.pretrained import fingerprint, load_end_ids, load_generator, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.sharding import make_mesh
from radit_jax.verbs import cards


@dataclasses.dataclass(frozen=True)
class EvaluateResult:
  """Figures of one row of the table, and the answers behind them.

  Attributes:
    out: JSON file that holds all of this.
    exact_match: share of the questions answered exactly (SQuAD normalisation, best of the gold answers).
    exact_match_ci: bootstrap interval of it, 95 %.
    f1: mean token F1.
    recall: k -> share of the questions with a right passage among the first k; None where no passage was retrieved.
    answer_log_likelihood: mean log-probability (nats) of the first gold answer under eq. 2.
    n: questions.
    answers: per question: id, question, answers, prediction, exact_match, f1, gold_log_likelihood, passage_row; without
      the texts where they are not to be told.
  """

  out: str
  exact_match: float
  exact_match_ci: tuple[float, float]
  f1: float
  recall: dict[str, float | None]
  answer_log_likelihood: float
  n: int
  answers: list[dict[str, Any]]

  def row(self) -> dict[str, Any]:
    """The row as `report.json` holds it."""
    return {
      "exact_match": self.exact_match,
      "exact_match_ci": list(self.exact_match_ci),
      "f1": self.f1,
      **self.recall,
      "answer_log_likelihood": self.answer_log_likelihood,
      "n": self.n,
    }

  def summary(self) -> str:
    """One line for the command line."""
    low, high = self.exact_match_ci
    return (
      f"exact match {self.exact_match:.1%} [{low:.1%}, {high:.1%}], F1 {self.f1:.1%}, "
      f"log p(answer) {self.answer_log_likelihood:.2f}, {self.n} questions: {self.out}"
    )


#: What of an answer is text of the data, or about it.
_TEXTS = ("question", "answers", "prediction")


def evaluate(config: EvaluateConfig, *, progress: Progress = silent) -> EvaluateResult:
  """Answers the questions of a retrieved-example store by eq. 2 and measures the answers.

  Args:
    config: see :class:`radit_jax.config.EvaluateConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved; "gold" without a known gold passage; a log-likelihood that is not finite
      (the question named); an ``out`` that holds something else.
  """
  passages = PassageStore(config.passages)
  retrieved = RetrievedStore(config.retrieved)
  if config.mode == "retrieval" and config.k > retrieved.manifest["k"]:
    raise UserError(f"k = {config.k} passages to mix, {config.retrieved} holds {retrieved.manifest['k']} per question")
  passages = version_of(retrieved.manifest["passages"], passages, config.retrieved)
  tokenizer = load_tokenizer(config.generator)
  prompt = Prompt(tokenizer, config.prompt, end_ids=load_end_ids(config.generator))
  inputs = {
    "prompt": prompt.hash,
    "generator": fingerprint(config.generator),
    "retrieved": retrieved.fingerprint,
    "passages": passages.fingerprint,
  }
  wanted = runs.recipe(config, inputs=inputs)
  out = pathlib.Path(config.out)
  hosts.check_shared(out)
  if files.written(out, "evaluation", ("recipe", "result")):
    stored = files.read_json(out)
    runs.check_same(out, stored["recipe"], wanted)
    return EvaluateResult(**{**stored["result"], "exact_match_ci": tuple(stored["result"]["exact_match_ci"])})
  files.check_writable(out)

  mesh = make_mesh(config.mesh)
  cards.warn_of_difference(config.generator, prompt, config.k if config.mode == "retrieval" else None)
  generator = load_generator(config.generator, mesh=mesh, dtype=config.dtype, forward_only=True)
  prompt.check_positions(generator.config.max_positions)
  examples = [retrieved[i] for i in sample(len(retrieved), config.limit, config.seed)]
  answers = answer_questions(
    generator,
    tokenizer,
    prompt,
    [make_query(e, passages, mode=config.mode, k=config.k) for e in examples],
    score_temperature=retrieved.manifest["score_temperature"],
    batch_size=config.batch_size,
    mesh=mesh,
    stage=f"answer ({out.stem})",
    progress=progress,
  )
  for example, answer in zip(examples, answers, strict=True):
    if answer.gold_log_likelihood is not None and not math.isfinite(answer.gold_log_likelihood):
      raise UserError(f"question {example.id}: a log-likelihood is not finite under {config.generator}")
  lines = [_line(e, a, config.mode) for e, a in zip(examples, answers, strict=True)]
  if config.redact:
    lines = [{name: value for name, value in line.items() if name not in _TEXTS} for line in lines]
  matches = [line["exact_match"] for line in lines]
  interval = bootstrap_interval(matches, samples=config.bootstrap_samples, seed=config.seed)
  result = EvaluateResult(
    out=str(out),
    exact_match=float(np.mean(matches)),
    exact_match_ci=(float(interval[0]), float(interval[1])),
    f1=float(np.mean([line["f1"] for line in lines])),
    recall=recall_columns(retrieved.manifest["hits"], config.k if config.mode == "retrieval" else 0),
    answer_log_likelihood=float(np.mean([line["gold_log_likelihood"] for line in lines])),
    n=len(lines),
    answers=lines,
  )
  with hosts.one_writes() as mine:
    if mine:
      files.write_json(out, {"recipe": wanted, "result": dataclasses.asdict(result)})
  return result


def recall_columns(hits: list[int], k: int) -> dict[str, float | None]:
  """recall@1, @5, @10 as the report names them; None beyond the passages used, and where nothing was searched for."""
  recall = hit_figures(hits, k)[0] if hits else {}
  return {f"recall@{cut}": recall.get(cut) for cut in (1, 5, 10)}


def make_query(example: RetrievedExample, passages: PassageStore, *, mode: str, k: int) -> Query:
  """The question with the passages the mode gives it; with its own context, if it has one, in every mode.

  Raises:
    UserError: "gold" for an example whose gold passage is not known.
  """
  rows: list[int] = []
  scores: list[float] = []
  if example.context is not None:
    scores = [0.0]
  elif mode == "gold":
    if not example.gold_rows:
      raise UserError(f"question {example.id}: no gold passage is known, so --mode gold cannot answer it")
    rows, scores = [example.gold_rows[0]], [0.0]
  elif mode == "retrieval":
    kept = [j for j in range(k) if example.valid[j]]
    rows, scores = [int(example.passage_rows[j]) for j in kept], [float(example.scores[j]) for j in kept]
  return Query(
    id=example.id,
    question=example.question,
    category=example.category,
    passages=(Passage("", "", example.context),) if example.context else tuple(passages[row] for row in rows),
    scores=tuple(scores),
    gold_answer=example.answers[0],
  )


def _line(example: RetrievedExample, answer: Answer, mode: str) -> dict[str, Any]:
  row = None
  if answer.passage is not None and example.context is None:
    row = example.gold_rows[0] if mode == "gold" else int(example.passage_rows[answer.passage])
  return {
    "id": example.id,
    "question": example.question,
    "answers": list(example.answers),
    "prediction": answer.text,
    "exact_match": float(exact_match(answer.text, example.answers)),
    "f1": float(f1(answer.text, example.answers)),
    "gold_log_likelihood": answer.gold_log_likelihood,
    "passage_row": row,
  }
