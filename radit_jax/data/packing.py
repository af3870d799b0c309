"""Which row of a batch each prompt lies in, where rows hold several: a pure function, like the plan it refines.

Prompts of one step that begin with the same passage may share one copy of it in a row. That changes in how many rows a
step's prompts lie, and neither which examples it has nor their likelihoods.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from radit_jax.data.groups import Prefixes, Row, best_fit, bundles
from radit_jax.data.plan import EpochPlan, Order, PlannedBatch, bucket_lengths, epoch_order
from radit_jax.errors import UserError

# Examples are dealt out within so many steps: enough for steps of one size, few enough for each epoch to differ.
_WINDOW_STEPS = 16

# Each number of rows is a program to compile.
_MOST_ROW_COUNTS, _MOST_DEV_ROW_COUNTS = 4, 2

# Steps that share need rows in various numbers, each another program, and a TPU's attention runs twice: it must save at
# least this share of all tokens.
_WORTH_SHARING = 0.05


@dataclasses.dataclass(frozen=True)
class PackedBatch(PlannedBatch):
  """One step's examples, and where their prompts lie; ``bucket_tokens`` is T.

  Attributes:
    rows: of each of R rows its groups of prompts, which are (position in the step's examples, passage); those without
      any are padding. R is one of few numbers in a plan.
    answer_tokens: A, of all prompts of a row together.
    shares: prompts of a group share what they begin with; else each is alone in its group.
  """

  rows: tuple[Row, ...] = ()
  answer_tokens: int = 0
  shares: bool = False


@dataclasses.dataclass(frozen=True)
class Packing:
  """Lengths of all prompts, and the shape of the rows they share.

  Attributes:
    each: ``[n, K]`` tokens of each prompt; 0 for a passage that is not there.
    answers: ``[n]`` answer tokens of each example.
    row_tokens: T.
    batch_size: examples of a step, over all hosts.
    shards: a step's rows are a multiple of this.
    parts: a step's batch is so many batches behind one another, each with rows and slots of its own: microbatches.
    prefixes: what prompts of one part share where it is the same; None for nothing, see :func:`with_prefixes`.
    computed: share of the prompts' tokens that is computed, about.

  Raises:
    UserError: a prompt that is longer than a row (both lengths named), a batch size that ``parts`` does not divide.

  Example:
    >>> packing = Packing(np.array([[50, 30], [20, 60]]), np.array([3, 3]), 64, batch_size=2)
    >>> [batch] = fill(packing, seed=None)
    >>> len(batch.rows), batch.examples  # 160 tokens in 3 rows of 64
    (3, (0, 1))
  """

  each: Int[np.ndarray, "n K"]
  answers: Int[np.ndarray, "n"]
  row_tokens: int
  batch_size: int
  shards: int = 1
  parts: int = 1
  prefixes: Prefixes | None = None
  computed: float = 1.0

  def __post_init__(self) -> None:
    if not self.each.size or not self.each.any():
      raise ValueError(f"each has shape {self.each.shape} and nothing in it to pack")
    longest = int(self.each.max())
    if longest > self.row_tokens:
      example = int(self.each.max(axis=1).argmax())
      raise UserError(
        f"example {example} has a prompt of {longest} tokens, packed rows hold {self.row_tokens}: "
        f"pack_tokens {longest} would do"
      )
    if self.batch_size % self.parts:
      raise UserError(f"batch_size {self.batch_size} does not split into {self.parts} microbatches of one size")

  @functools.cached_property
  def answer_tokens(self) -> int:
    """A: room for the longest answer beside those of an average row, rounded up to a multiple of 4.

    More would be work in the output head; with less, one long answer takes K rows for itself.
    """
    prompts = np.count_nonzero(self.each, axis=1)
    mean = int((self.answers * prompts).sum()) * self.row_tokens // round(int(self.each.sum()) * self.computed)
    return -(-(int(self.answers.max()) + mean) // 4) * 4


def fill(packing: Packing, *, seed: int | None, epoch: int = 0, order: Order | None = None) -> list[PackedBatch]:
  """Batches of one epoch: every example once, all its prompts in one step, no more rows in a step than it needs.

  A step has exactly ``batch_size`` examples, but for the last one of the epoch. They are dealt out so that steps have
  about equally many tokens, and so fill equally many rows.

  Args:
    packing: see :class:`Packing`.
    seed: of the order; None keeps that of the store, for scores and dev losses.
    epoch: of the order.
    order: see :func:`radit_jax.data.plan.batch_plan`; in place of ``seed``.

  Returns:
    Steps whose rows differ in number; see :func:`same_rows`.
  """
  order = order or epoch_order(len(packing.each), seed)
  return [_packed(packing, step, epoch) for step in _steps(packing, order(epoch))]


def _steps(packing: Packing, drawn: Int[np.ndarray, "n"]) -> list[list[int]]:
  """Examples of each step of an epoch, those of a part behind one another."""
  size, tokens = packing.batch_size, packing.each.sum(axis=1)
  count = len(drawn)
  full = count // size
  steps: list[list[int]] = []
  for start in range(0, full, _WINDOW_STEPS):
    stop = min(start + _WINDOW_STEPS, full)
    steps += _deal(drawn[start * size : stop * size], tokens, stop - start)
  # Parts of one size too, for the same reason. Which examples a step has does not depend on them.
  steps = [[e for part in _deal(np.array(step), tokens, packing.parts) for e in part] for step in steps]
  if full * size < count:
    steps.append(drawn[full * size :].tolist())
  return steps


def with_prefixes(packing: Packing, prefixes: Prefixes, order: Order) -> Packing:
  """The same with prefixes that prompts of one part share, where that leaves enough out of the first epoch.

  Args:
    packing: shares nothing.
    prefixes: of its prompts.
    order: of the examples, see :func:`radit_jax.data.plan.batch_plan`.
  """
  own = np.where(packing.each > 0, packing.each - prefixes.tokens, 0)
  computed = 0
  tokens = 0
  for step in _steps(packing, order(0)):
    for part in _parts(packing, step):
      examples = step[part.start : part.stop]
      _, first = np.unique(prefixes.keys[examples], return_index=True)
      computed += int(own[examples].sum() + prefixes.tokens[examples].ravel()[first].sum())
      tokens += int(packing.each[examples].sum())
  if computed > (1 - _WORTH_SHARING) * tokens:
    return packing
  return dataclasses.replace(packing, prefixes=prefixes, computed=computed / tokens)


def same_rows(batches: Sequence[PackedBatch], packing: Packing, row_counts: Sequence[int]) -> list[PackedBatch]:
  """The same steps with the next of ``row_counts`` rows each, those missing in a part added behind its own, empty."""
  out = []
  for batch in batches:
    own = len(batch.rows) // packing.parts
    share = min(count for count in row_counts if count >= len(batch.rows)) // packing.parts
    parts = [batch.rows[i * own : (i + 1) * own] + ((),) * (share - own) for i in range(packing.parts)]
    out.append(dataclasses.replace(batch, rows=sum(parts, ())))
  return out


def row_counts(counts: Sequence[int], packing: Packing, most: int = _MOST_ROW_COUNTS) -> tuple[int, ...]:
  """Numbers of rows to fill steps up to: the most that any needs, and where prompts share prefixes a few smaller ones.

  Args:
    counts: rows that each step needs.
    packing: of the steps.
    most: each number is a program to compile.
  """
  return bucket_lengths(counts, bucket_multiple=1, max_buckets=1 if packing.prefixes is None else most)


def tightest(packing: Packing, multiple: int, order: Order | None = None) -> Packing:
  """The same with rows of the length that leaves least padding, down to three quarters of those given.

  Prompts of 220 tokens fill rows of 448, and leave 72 of 512 empty. Looked at is what comes first in the store,
  or in the order given: sets of a mixture lie one behind the other.

  Args:
    packing: its rows are the longest allowed.
    multiple: of which a row's length is one.
    order: see :func:`radit_jax.data.plan.batch_plan`.
  """
  drawn = np.arange(len(packing.each)) if order is None else order(0)
  first = drawn[: _WINDOW_STEPS * packing.batch_size]
  prefixes = None if packing.prefixes is None else packing.prefixes[first]
  head = dataclasses.replace(packing, each=packing.each[first], answers=packing.answers[first], prefixes=prefixes)
  longest = max(int(packing.each.max()), 3 * packing.row_tokens // 4)

  def slots(row_tokens: int) -> int:
    tried = dataclasses.replace(head, row_tokens=row_tokens)
    batches = fill(tried, seed=None)
    counts = row_counts([len(batch.rows) for batch in batches], tried)
    return row_tokens * sum(len(batch.rows) for batch in same_rows(batches, tried, counts))

  lengths = range(packing.row_tokens, longest - 1, -multiple)
  return dataclasses.replace(packing, row_tokens=min(lengths, key=slots))


def packed_in_order(packing: Packing) -> list[PackedBatch]:
  """Every example once in the order of the store, all steps of one shape, or of two where prompts share: for losses."""
  batches = fill(packing, seed=None)
  counts = row_counts([len(batch.rows) for batch in batches], packing, _MOST_DEV_ROW_COUNTS)
  return same_rows(batches, packing, counts)


def most_segments(batches: Sequence[PackedBatch]) -> int:
  """Segments of the row that has most, the padding behind its prompts among them, and prefixes that are shared."""
  return 1 + max(sum(len(g) + (len(g) > 1) for g in row) for batch in batches for row in batch.rows)


class PackedPlan(EpochPlan[PackedBatch]):
  """A run in packed rows; position is the step number.

  R is the smallest number of rows that holds every step of the run, so that all of them are one program. Where prompts
  share prefixes steps need fewer rows or more, and are filled up to one of a few numbers.

  Args:
    packing: see :class:`Packing`.
    seed: of the order.
    num_steps: steps of the run; None for ``epochs`` of the data.
    epochs: passes over the data where ``num_steps`` is None.
    order: see :func:`radit_jax.data.plan.batch_plan`.

  Attributes:
    row_counts: every R, ascending.
    segments: see :func:`most_segments`.
    buckets: T alone, see :class:`radit_jax.data.plan.RunPlan`.
    padding: share of the tokens of the first epoch's rows that is padding.
    shared: tokens of all its prompts over those computed, 1 where nothing is shared.
  """

  def __init__(
    self,
    packing: Packing,
    *,
    seed: int,
    num_steps: int | None = None,
    epochs: float = 1.0,
    order: Order | None = None,
  ) -> None:
    filled = {0: fill(packing, seed=seed, epoch=0, order=order)}
    steps = max(1, round(epochs * len(filled[0]))) if num_steps is None else num_steps
    counts: list[int] = []
    self.segments = 0
    for epoch in range(-(-steps // len(filled[0]))):
      batches = filled.get(epoch) or fill(packing, seed=seed, epoch=epoch, order=order)
      counts += [len(batch.rows) for batch in batches]
      self.segments = max(self.segments, most_segments(batches))
    self.row_counts = row_counts(counts, packing)

    def make(epoch: int) -> list[PackedBatch]:
      batches = filled.pop(epoch, []) or fill(packing, seed=seed, epoch=epoch, order=order)
      return same_rows(batches, packing, self.row_counts)

    super().__init__(make, num_steps=steps, epochs=epochs)
    first = self._epoch(0)
    self.buckets = (packing.row_tokens,)
    real = sum(_computed_tokens(packing, batch) for batch in first)
    self.padding = 1 - real / (sum(len(batch.rows) for batch in first) * packing.row_tokens)
    self.shared = sum(int(packing.each[list(batch.examples)].sum()) for batch in first) / real


def _deal(examples: Int[np.ndarray, "n"], tokens: Int[np.ndarray, "N"], hands: int) -> list[list[int]]:
  """Equally many examples for each, one round after another: the longest of a round to who has the fewest tokens."""
  dealt: list[list[int]] = [[] for _ in range(hands)]
  held = np.zeros(hands, np.int64)
  for turn in examples.reshape(-1, hands):
    longest_first = turn[np.argsort(-tokens[turn], kind="stable")]
    poorest_first = np.argsort(held, kind="stable")
    held[poorest_first] += tokens[longest_first]
    for hand, example in zip(poorest_first.tolist(), longest_first.tolist(), strict=True):
      dealt[hand].append(example)
  return dealt


def _parts(packing: Packing, examples: Sequence[int]) -> list[range]:
  """Positions in a step's examples of those of each part."""
  size = packing.batch_size // packing.parts
  return [range(min(i * size, len(examples)), min((i + 1) * size, len(examples))) for i in range(packing.parts)]


def _packed(packing: Packing, examples: list[int], epoch: int) -> PackedBatch:
  parts = [_rows(packing, part, np.array(examples)) for part in _parts(packing, examples)]
  share = -(-max(1, *map(len, parts)) // packing.shards) * packing.shards
  rows = sum((tuple(part) + ((),) * (share - len(part)) for part in parts), ())
  shares = packing.prefixes is not None
  return PackedBatch(packing.row_tokens, tuple(examples), epoch, rows, packing.answer_tokens, shares)


def _rows(packing: Packing, part: range, examples: Int[np.ndarray, "B"]) -> list[Row]:
  """Rows of the prompts of a part of a step's examples."""
  own = examples[part.start : part.stop]
  b, j = np.nonzero(packing.each[own])
  gathered = bundles(
    np.stack([b + part.start, j], axis=1),
    packing.each[own[b], j],
    packing.answers[own[b]],
    None if packing.prefixes is None else packing.prefixes[own[b], j],
    row_tokens=packing.row_tokens,
    most_answers=packing.answer_tokens,
  )
  return best_fit(gathered, packing.row_tokens, packing.answer_tokens)


def _computed_tokens(packing: Packing, batch: PackedBatch) -> int:
  """Tokens of a step's rows that are no padding."""
  each, prefixes = packing.each[list(batch.examples)], packing.prefixes
  shared = 0
  if prefixes is not None:
    begins = prefixes.tokens[list(batch.examples)]
    shared = sum((len(group) - 1) * int(begins[group[0]]) for row in batch.rows for group in row)
  return int(each.sum()) - shared
