"""`radit score`: the frozen teacher's log p(y | c_j ∘ x) of every retrieved passage, computed once and stored."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from radit_jax import hosts, runs, sharding
from radit_jax.config import ScoreConfig
from radit_jax.data.batches import parallel_context_batches, row_lengths
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import PassageScores, RetrievedStore, ScoreStore, write_scores
from radit_jax.data.packing import most_segments, packed_in_order
from radit_jax.data.plan import PlannedBatch, plan_in_order, row_multiple
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.pretrained import fingerprint, load_generator, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.training.step import score_step
from radit_jax.verbs import tuning


@dataclasses.dataclass(frozen=True)
class ScoreResult:
  """What was scored.

  Attributes:
    scores: score store.
    num_questions: questions in it.
    num_passages: passages scored, padding not counted.
    mean_log_likelihood: mean log-probability per answer token, in nats.
    cut_passages: passages scored that were cut to fit their row.
    cut_questions: rows whose question was cut to fit, or would be under the longest of the prompt's markers.
  """

  scores: str
  num_questions: int
  num_passages: int
  mean_log_likelihood: float
  cut_passages: int
  cut_questions: int

  def summary(self) -> str:
    """One line for the command line."""
    return (
      f"{self.num_passages} passages of {self.num_questions} questions scored, "
      f"mean log p per answer token {self.mean_log_likelihood:.3f}; "
      f"cut to fit: {self.cut_passages} passages, {self.cut_questions} questions: {self.scores}"
    )


def score(config: ScoreConfig, *, progress: Progress = silent) -> ScoreResult:
  """Scores every retrieved passage, forward only.

  Args:
    config: see :class:`radit_jax.config.ScoreConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved; a score that is not finite (the question named).
  """
  passages = PassageStore(config.passages)
  retrieved = RetrievedStore(config.retrieved)
  if config.k > retrieved.manifest["k"]:
    raise UserError(f"k = {config.k} passages to score, {config.retrieved} holds {retrieved.manifest['k']} each")
  tokenizer = load_tokenizer(config.generator)
  prompt = Prompt(tokenizer, config.prompt)
  inputs = {
    "prompt": prompt.hash,
    "generator": fingerprint(config.generator),
    "retrieved": retrieved.fingerprint,
    "passages": passages.fingerprint,
  }
  wanted = runs.recipe(config, inputs=inputs)
  if not runs.finished(config.out, "scores", wanted):
    mesh = sharding.make_mesh(config.mesh)
    generator = load_generator(config.generator, mesh=mesh, dtype=config.dtype)
    prompt.check_positions(generator.config.max_positions)
    lengths = row_lengths(retrieved, passages, prompt, k=config.k, with_passages=True)
    scored = _score(generator, retrieved, passages, prompt, lengths, config, mesh, progress)
    made_of = {"generator": inputs["generator"], "retrieved": inputs["retrieved"], "prompt": prompt.hash}
    cut = {"cut_passages": lengths.cut_passages, "cut_questions": lengths.cut_questions}
    fields = {"recipe": wanted, "k": config.k, **made_of, **cut}
    with hosts.one_writes() as mine:
      if mine:
        records = (PassageScores(example.id, *scored[i]) for i, example in enumerate(retrieved))
        write_scores(records, config.out, manifest=fields)
  store = ScoreStore(config.out, retrieved=retrieved)
  total = sum(float(s.log_likelihood[s.valid].sum()) for s in store)
  tokens = sum(int(s.num_tokens[s.valid].sum()) for s in store)
  real = sum(int(s.valid.sum()) for s in store)
  cuts = store.manifest["cut_passages"], store.manifest["cut_questions"]
  return ScoreResult(config.out, len(store), real, total / max(tokens, 1), *cuts)


def _score(generator, retrieved, passages, prompt, lengths, config, mesh, progress):  # type: ignore[no-untyped-def]
  """Log-likelihoods, tokens and mask of each example of the store."""
  batch_size = sharding.round_up_rows(config.batch_size, mesh)
  plan: Sequence[PlannedBatch]
  if config.pack_tokens is None:
    plan = plan_in_order(lengths.rows, batch_size=batch_size, bucket_multiple=row_multiple(jax.default_backend()))
  else:
    packed = packed_in_order(tuning.packing(lengths, config.pack_tokens, batch_size, mesh))
    plan, generator.max_segments = packed, most_segments(packed)
  found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
  batches = parallel_context_batches(
    retrieved,
    passages,
    prompt,
    plan,
    k=config.k,
    with_passages=True,
    batch_size=batch_size,
    answer_tokens=lengths.answer,
    share=sharding.row_share(mesh),
  )
  with jax.set_mesh(mesh):
    for planned, (_, batch) in zip(plan, batches, strict=True):
      likelihood, tokens, valid = sharding.gather(score_step(generator, sharding.place_rows(batch, mesh)))
      for i, row in enumerate(planned.examples):
        if not np.isfinite(likelihood[i][valid[i]]).all():
          raise UserError(f"question {retrieved[row].id}: a log-likelihood is not finite under {config.generator}")
        found[row] = likelihood[i], tokens[i], valid[i]
      progress("score", len(found), len(retrieved), "questions")
  return found
