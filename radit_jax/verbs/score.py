"""`radit score`: the frozen teacher's log p(y | c_j ∘ x) of every retrieved passage, computed once and stored."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from radit_jax import hosts, runs, sharding
from radit_jax.config import ScoreConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import PassageScores, RetrievedStore, ScoreStore, write_scores
from radit_jax.data.plan import row_multiple
from radit_jax.data.prefixes import PromptTable, SharedPlan, prompt_table, shared_batches, shared_plan
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder
from radit_jax.models.pretrained import fingerprint, load_generator, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.training.step import score_step


@dataclasses.dataclass(frozen=True)
class ScoreResult:
  """What was scored.

  Attributes:
    scores: score store.
    num_questions: questions in it.
    num_passages: passages scored, padding not counted.
    mean_log_likelihood: mean log-probability per answer token, in nats.
    cut_passages: passages scored that were cut to fit their row.
    cut_questions: prompts whose question was cut to fit.
    shared: tokens of all prompts over those computed: a passage is computed once for questions in one row.
  """

  scores: str
  num_questions: int
  num_passages: int
  mean_log_likelihood: float
  cut_passages: int
  cut_questions: int
  shared: float

  def summary(self) -> str:
    """One line for the command line."""
    return (
      f"{self.num_passages} passages of {self.num_questions} questions scored, "
      f"mean log p per answer token {self.mean_log_likelihood:.3f}; "
      f"cut to fit: {self.cut_passages} passages, {self.cut_questions} questions; "
      f"tokens of all prompts over those computed: {self.shared:.1f}: {self.scores}"
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
  passages = version_of(retrieved.manifest["passages"], passages, config.retrieved)
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
    table = prompt_table(retrieved, passages, prompt, k=config.k)
    plan = scoring_plan(table, generator, batch_size=config.batch_size, pack_tokens=config.pack_tokens, mesh=mesh)
    records = _score(generator, retrieved, passages, prompt, table, plan, config, mesh, progress)
    made_of = {"generator": inputs["generator"], "retrieved": inputs["retrieved"], "prompt": prompt.hash}
    cut = {"cut_passages": table.cut_passages, "cut_questions": table.cut_questions}
    fields = {"recipe": wanted, "k": config.k, **made_of, **cut, "shared": round(plan.shared, 3)}
    with hosts.one_writes() as mine:
      if mine:
        write_scores(records, config.out, manifest=fields)
  store = ScoreStore(config.out, retrieved=retrieved)
  total = sum(float(s.log_likelihood[s.valid].sum()) for s in store)
  tokens = sum(int(s.num_tokens[s.valid].sum()) for s in store)
  real = sum(int(s.valid.sum()) for s in store)
  manifest = store.manifest
  cuts = manifest["cut_passages"], manifest["cut_questions"]
  shared = manifest.get("shared", 1.0)  # scores of an earlier version have none
  return ScoreResult(config.out, len(store), real, total / max(tokens, 1), *cuts, shared)


def scoring_plan(
  table: PromptTable, generator: Decoder, *, batch_size: int, pack_tokens: int | None, mesh: Mesh, share: bool = True
) -> SharedPlan:
  """Steps of about as many tokens as the prompts of ``batch_size`` questions have.

  Args:
    table: see :func:`radit_jax.data.prefixes.prompt_table`.
    generator: only where its attention allows it do prompts share their passages.
    batch_size: questions.
    pack_tokens: length of rows; None for twice the longest prompt.
    mesh: its devices share the rows.
    share: False computes a passage for each of its questions, for comparison.
  """
  multiple = row_multiple(jax.default_backend())
  row_tokens = -(-(pack_tokens or 2 * table.longest) // multiple) * multiple
  tokens = int(table.tokens.sum()) * batch_size // len(table.tokens)
  num_rows = sharding.round_up_rows(max(1, -(-tokens // row_tokens)), mesh)
  with jax.set_mesh(mesh):
    share = share and generator.shares_prefixes
  plan = shared_plan(table, row_tokens=row_tokens, num_rows=num_rows, share=share)
  generator.max_segments = 1 + plan.prompts
  return plan


def _score(
  generator: Decoder,
  retrieved: RetrievedStore,
  passages: PassageStore,
  prompt: Prompt,
  table: PromptTable,
  plan: SharedPlan,
  config: ScoreConfig,
  mesh: Mesh,
  progress: Progress,
) -> Iterator[PassageScores]:
  """Log-likelihoods and tokens of each example of the store."""
  likelihoods = np.zeros(table.tokens.shape, np.float32)
  counts = np.zeros(table.tokens.shape, np.int32)
  batches = shared_batches(retrieved, passages, prompt, plan, k=config.k, share=sharding.row_share(mesh))
  done, prompts = 0, int(np.count_nonzero(table.tokens))
  with jax.set_mesh(mesh):
    for step, batch in zip(plan.steps, batches, strict=True):
      likelihood, tokens, _ = sharding.gather(score_step(generator, sharding.place_rows(batch, mesh)))
      for r, row in enumerate(step.rows):
        for m, (i, j) in enumerate(itertools.chain.from_iterable(row)):
          if not np.isfinite(likelihood[r, m]):
            raise UserError(f"question {retrieved[i].id}: a log-likelihood is not finite under {config.generator}")
          likelihoods[i, j], counts[i, j] = likelihood[r, m], tokens[r, m]
          done += 1
      progress("score", done, prompts, "passages")
  valid = table.tokens > 0
  return (PassageScores(example.id, likelihoods[i], counts[i], valid[i]) for i, example in enumerate(retrieved))
