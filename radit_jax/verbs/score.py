"""`radit score`: the frozen teacher's log p(y | c_j ∘ x) of every retrieved passage, computed once and stored."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

import radit_jax
from radit_jax import hosts, preemption, runs, sharding
from radit_jax.config import ScoreConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import PassageScores, RetrievedStore, ScoreStore, write_scores
from radit_jax.data.plan import row_multiple
from radit_jax.data.prefixes import PromptTable, SharedPlan, prompt_table, shared_batches, shared_plan
from radit_jax.data.prompts import Prompt
from radit_jax.data.scored import ScoredParts
from radit_jax.errors import Preempted, UserError
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
  """Scores every retrieved passage, forward only. The same call again goes on with the batches that are missing.

  The store has the bytes that an uninterrupted call gives it. On another number of devices, or with another
  ``batch_size``, batches differ: likelihoods then agree to rounding.

  Args:
    config: see :class:`radit_jax.config.ScoreConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved; a score that is not finite (the question named).
    Preempted: a signal asked to stop; what was scored is kept.
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
  versions = {"radit_jax": radit_jax.__version__, "jax": jax.__version__}
  parts = ScoredParts(config.out, {**wanted, "options": {**wanted["options"], **versions}})
  if not runs.finished(config.out, "scores", wanted):
    mesh = sharding.make_mesh(config.mesh)
    generator = load_generator(config.generator, mesh=mesh, dtype=config.dtype, forward_only=True)
    prompt.check_positions(generator.config.max_positions)
    table = prompt_table(retrieved, passages, prompt, k=config.k)
    plan = scoring_plan(table, generator, batch_size=config.batch_size, pack_tokens=config.pack_tokens, mesh=mesh)
    records = _score(generator, retrieved, passages, prompt, table, plan, config, mesh, parts, progress)
    made_of = {"generator": inputs["generator"], "retrieved": inputs["retrieved"], "prompt": prompt.hash}
    cut = {"cut_passages": table.cut_passages, "cut_questions": table.cut_questions}
    fields = {"recipe": wanted, "k": config.k, **made_of, **cut, "shared": round(plan.shared, 3)}
    with hosts.one_writes() as mine:
      if mine:
        write_scores(records, config.out, manifest=fields)
  parts.remove()
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
  parts: ScoredParts,
  progress: Progress,
) -> Iterator[PassageScores]:
  """Log-likelihoods and tokens of each example of the store."""
  likelihoods = np.zeros(table.tokens.shape, np.float32)
  counts = np.zeros(table.tokens.shape, np.int32)
  known = np.zeros(table.tokens.shape, bool)
  earlier = parts.read()
  at = np.unravel_index(earlier["passage"], known.shape)
  likelihoods[at], counts[at], known[at] = earlier["log_likelihood"], earlier["num_tokens"], True
  # One process has read them, and all must leave out the same batches.
  bits, counts, known = sharding.total((likelihoods.view(np.int32), counts, known))
  likelihoods = bits.view(np.float32)
  steps = tuple(s for s in plan.steps if not all(known[i, j] for row in s.rows for group in row for i, j in group))
  missing = dataclasses.replace(plan, steps=steps)
  batches = shared_batches(retrieved, passages, prompt, missing, k=config.k, share=sharding.row_share(mesh))
  finished = len(plan.steps) - len(steps)
  done, prompts = int(np.count_nonzero(known)), int(np.count_nonzero(table.tokens))
  progress("score", done, prompts, "passages")

  def stopped_by(name: str) -> str:
    return f"stopped by {name} after {finished} of {len(plan.steps)} batches; the same command continues"

  def last_resort(name: str) -> str:
    parts.save()
    return stopped_by(name)

  with jax.set_mesh(mesh), preemption.deferred(last_resort) as stop_asked:
    try:
      for step, batch in zip(steps, batches, strict=True):
        likelihood, tokens, _ = sharding.gather(score_step(generator, sharding.place_rows(batch, mesh)))
        slots = [(r, m, i, j) for r, row in enumerate(step.rows) for m, (i, j) in enumerate(itertools.chain(*row))]
        r, m, i, j = np.asarray(slots).T
        finite = np.isfinite(likelihood[r, m])
        if not finite.all():
          question = retrieved[int(i[np.argmin(finite)])].id
          raise UserError(f"question {question}: a log-likelihood is not finite under {config.generator}")
        likelihoods[i, j], counts[i, j] = likelihood[r, m], tokens[r, m]
        done += int(np.count_nonzero(~known[i, j]))
        parts.add(np.ravel_multi_index((i, j), known.shape), likelihood[r, m], tokens[r, m])
        finished += 1
        progress("score", done, prompts, "passages")
        if (name := stop_asked()) is not None:
          raise Preempted(stopped_by(name), agreed=True)
    finally:
      parts.save()
  valid = table.tokens > 0
  return (PassageScores(example.id, likelihoods[i], counts[i], valid[i]) for i, example in enumerate(retrieved))
