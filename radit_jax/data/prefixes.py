"""Rows for scoring in which prompts that begin alike share one copy of what they begin with.

A prompt begins with its passage, and a corpus has fewer passages than a data set has pairs of question and passage. A
row is ``[passage][question 1, answer 1][question 2, answer 2]...``: every question sees the passage and itself, at the
positions it has in a row of its own, so that its log-likelihood is the same to rounding, and the passage's hidden
states are computed once for all of them.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from radit_jax import hosts
from radit_jax.data.batches import ahead, check_passages, contexts_of, with_names
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedExample, RetrievedStore
from radit_jax.data.groups import Prefixes, Row, best_fit, bundles, halves, prefix_key, whole
from radit_jax.data.prompts import Prompt, Rendered
from radit_jax.data.rows import shared_to_batch
from radit_jax.errors import UserError
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.sharding import RowShare, total

# Examples rendered at once when only their lengths are wanted, and groups of prompts looked at together for one row.
_MEASURED_AT_ONCE, _FITTED_AT_ONCE = 1024, 1024


@dataclasses.dataclass(frozen=True)
class PromptTable:
  """Every prompt of a store, as a plan needs it; ``[n, K]`` each.

  Attributes:
    tokens: int64, of the prompt with its answer; 0 for a passage that is not there.
    answers: int64, of the answer with its end token.
    prefixes: see :class:`radit_jax.data.groups.Prefixes`.
    cut_passages: prompts whose passage block was cut.
    cut_questions: prompts whose question was cut.
  """

  tokens: Int[np.ndarray, "n K"]
  answers: Int[np.ndarray, "n K"]
  prefixes: Prefixes
  cut_passages: int
  cut_questions: int

  @property
  def longest(self) -> int:
    """Tokens of the longest prompt, at least 1."""
    return max(1, int(self.tokens.max(initial=0)))


@dataclasses.dataclass(frozen=True)
class SharedRows:
  """A step of a scoring plan.

  Attributes:
    rows: groups of each row; a row without any is padding.
  """

  rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class SharedPlan:
  """Every prompt once, all steps of one shape.

  Attributes:
    steps: each with R rows.
    row_tokens: T.
    answer_tokens: A.
    prompts: M, of the row that has most.
    padding: share of the tokens of all rows that is padding.
    shared: tokens of all prompts over those computed, 1 where nothing is shared.
  """

  steps: tuple[SharedRows, ...]
  row_tokens: int
  answer_tokens: int
  prompts: int
  padding: float
  shared: float


def prompt_table(retrieved: RetrievedStore, passages: PassageStore, prompt: Prompt, *, k: int) -> PromptTable:
  """Renders every prompt once, for its lengths. Each of several processes reads its part of the examples.

  Args:
    retrieved: examples.
    passages: the store their rows refer to.
    prompt: renders them, with the fixed markers of evaluation.
    k: passages per example, the best ones first.

  Raises:
    UserError: an answer that is too long (its example named), or a passage store that is not the examples'.
  """
  check_passages(retrieved, passages, k, with_passages=True)
  tokens, answers, prefixes, keys = np.zeros((4, len(retrieved), k), np.int64)
  cuts = np.zeros(2, np.int64)
  own = hosts.part(len(retrieved))
  for start in own[::_MEASURED_AT_ONCE]:
    examples = retrieved.many(range(start, min(start + _MEASURED_AT_ONCE, own.stop)))
    for i, rows in enumerate(_rendered(retrieved, examples, passages, prompt, k), start):
      for j, row in enumerate(rows):
        if row is not None:
          tokens[i, j], answers[i, j], prefixes[i, j] = len(row.tokens), len(row.answer_tokens), row.context_end
          keys[i, j] = prefix_key(row.context)
          cuts += bool(row.cut_passage_tokens), bool(row.cut_question_tokens)
  tokens, answers, prefixes, parts, cuts = total((tokens, answers, prefixes, halves(keys), cuts))
  return PromptTable(tokens, answers, Prefixes(prefixes, whole(*parts)), *map(int, cuts))


def shared_plan(table: PromptTable, *, row_tokens: int, num_rows: int, share: bool = True) -> SharedPlan:
  """Groups of prompts with one prefix, as large as a row holds, and several groups in a row where there is room.

  Args:
    table: see :func:`prompt_table`.
    row_tokens: T; the longest prompt fits.
    num_rows: R, of a step.
    share: False gives every prompt a prefix of its own: plain packed rows.

  Raises:
    UserError: a prompt longer than ``row_tokens``.
  """
  if table.longest > row_tokens:
    raise UserError(
      f"a prompt has {table.longest} tokens, rows hold {row_tokens}: pack_tokens {table.longest} would do"
    )
  at = np.argwhere(table.tokens)
  b, j = at.T
  tokens, answers, prefixes = table.tokens[b, j], table.answers[b, j], table.prefixes[b, j]
  suffixes = tokens - prefixes.tokens
  # Room for the longest answer beside those of a row full of average questions: more would be work in the output head.
  most_answers = int(answers.max(initial=1)) + int(answers.sum()) * row_tokens // max(1, int(suffixes.sum()))
  most_answers = -(-most_answers // 4) * 4
  gathered = bundles(at, tokens, answers, prefixes if share else None, row_tokens=row_tokens, most_answers=most_answers)
  rows: list[Row] = []
  for start in range(0, len(gathered), _FITTED_AT_ONCE):
    rows += best_fit(gathered[start : start + _FITTED_AT_ONCE], row_tokens, most_answers)
  steps = [rows[i : i + num_rows] for i in range(0, len(rows), num_rows)]
  computed = sum(bundle.tokens for bundle in gathered)
  return SharedPlan(
    steps=tuple(SharedRows((*step, *[()] * (num_rows - len(step)))) for step in steps),
    row_tokens=row_tokens,
    answer_tokens=most_answers,
    prompts=max((sum(map(len, row)) for row in rows), default=1),
    padding=1 - computed / max(1, len(steps) * num_rows * row_tokens),
    shared=int(table.tokens.sum()) / max(1, computed),
  )


def shared_batches(
  retrieved: RetrievedStore,
  passages: PassageStore,
  prompt: Prompt,
  plan: SharedPlan,
  *,
  k: int,
  share: RowShare = RowShare(),
) -> Iterable[ParallelContextBatch]:
  """Batches of a plan: the M-th prompt of row R counts for slot ``[R, M]``.

  Args:
    retrieved: examples.
    passages: the store their rows refer to.
    prompt: as for :func:`prompt_table`.
    plan: made from them.
    k: passages per example, the best ones first.
    share: rows of this process, see :func:`radit_jax.sharding.row_share`; by default all.

  Raises:
    ValueError: prompts of one group do not begin alike.
  """

  def load(step: SharedRows) -> ParallelContextBatch:
    spans = share.ranges(len(step.rows))
    own = [(r, row) for span in spans for r, row in zip(span, step.rows[span.start : span.stop], strict=True)]
    names = sorted({i for _, row in own for group in row for i, _ in group})
    rendered = dict(zip(names, _rendered(retrieved, retrieved.many(names), passages, prompt, k), strict=True))
    rows = [(r, [[_present(rendered[i][j]) for i, j in group] for group in row]) for r, row in own]
    return shared_to_batch(
      rows,
      num_tokens=plan.row_tokens,
      num_answer_tokens=plan.answer_tokens,
      num_prompts=plan.prompts,
      share=plan.shared > 1,
    )

  return ahead(plan.steps, load)


def _present(row: Rendered | None) -> Rendered:
  assert row is not None
  return row


def _rendered(
  retrieved: RetrievedStore, examples: Sequence[RetrievedExample], passages: PassageStore, prompt: Prompt, k: int
) -> list[list[Rendered | None]]:
  requests = contexts_of(examples, passages, k)
  out = iter(with_names(prompt, prompt.render_many, requests, examples, retrieved))
  return [[None if request is None else next(out) for request in rows] for rows in requests]
