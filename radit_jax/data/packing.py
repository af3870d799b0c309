"""Which row of a batch each prompt lies in, where rows hold several: a pure function, like the plan it refines."""

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from radit_jax.data.plan import EpochPlan, Order, PlannedBatch, permutation
from radit_jax.errors import UserError

# Examples are dealt out within so many steps: enough for steps of one size, few enough for each epoch to differ.
_WINDOW_STEPS = 16

#: Prompts of one row, as (position in the batch's examples, passage).
Row = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class PackedBatch(PlannedBatch):
  """One step's examples, and where their prompts lie; ``bucket_tokens`` is T.

  Attributes:
    rows: prompts of each of R rows, equally many rows in all steps of a plan; rows without any are padding.
    answer_tokens: A, of all prompts of a row together.
  """

  rows: tuple[Row, ...] = ()
  answer_tokens: int = 0


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
    mean = int((self.answers * prompts).sum()) * self.row_tokens // int(self.each.sum())
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
  each, size = packing.each, packing.batch_size
  if order is not None:
    drawn = order(epoch)
  else:
    drawn = np.arange(len(each)) if seed is None else permutation(len(each), seed, 2 * epoch)
  count = len(drawn)
  tokens = each.sum(axis=1)
  full = count // size
  steps: list[list[int]] = []
  for start in range(0, full, _WINDOW_STEPS):
    stop = min(start + _WINDOW_STEPS, full)
    steps += _deal(drawn[start * size : stop * size], tokens, stop - start)
  # Parts of one size too, for the same reason. Which examples a step has does not depend on them.
  steps = [[e for part in _deal(np.array(step), tokens, packing.parts) for e in part] for step in steps]
  if full * size < count:
    steps.append(drawn[full * size :].tolist())
  return [_packed(packing, step, epoch) for step in steps]


def same_rows(batches: Sequence[PackedBatch], packing: Packing, num_rows: int) -> list[PackedBatch]:
  """The same steps with ``num_rows`` rows each, those that are missing in a part added behind its own, empty."""
  share = num_rows // packing.parts
  out = []
  for batch in batches:
    own = len(batch.rows) // packing.parts
    parts = [batch.rows[i * own : (i + 1) * own] + ((),) * (share - own) for i in range(packing.parts)]
    out.append(dataclasses.replace(batch, rows=sum(parts, ())))
  return out


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
  head = dataclasses.replace(packing, each=packing.each[first], answers=packing.answers[first])
  longest = max(int(packing.each.max()), 3 * packing.row_tokens // 4)

  def slots(row_tokens: int) -> int:
    return row_tokens * max(
      len(batch.rows) for batch in fill(dataclasses.replace(head, row_tokens=row_tokens), seed=None)
    )

  lengths = range(packing.row_tokens, longest - 1, -multiple)
  return dataclasses.replace(packing, row_tokens=min(lengths, key=slots))


def packed_in_order(packing: Packing) -> list[PackedBatch]:
  """Every example once in the order of the store, all steps of one shape: for scoring and dev losses."""
  batches = fill(packing, seed=None)
  return same_rows(batches, packing, max(len(batch.rows) for batch in batches))


def most_segments(batches: Sequence[PackedBatch]) -> int:
  """Segments of the row that has most, the padding behind its prompts among them."""
  return 1 + max(len(row) for batch in batches for row in batch.rows)


class PackedPlan(EpochPlan[PackedBatch]):
  """A run in packed rows; position is the step number.

  R is the smallest number of rows that holds every step of the run, so that all of them are one program.

  Args:
    packing: see :class:`Packing`.
    seed: of the order.
    num_steps: steps of the run; None for ``epochs`` of the data.
    epochs: passes over the data where ``num_steps`` is None.
    order: see :func:`radit_jax.data.plan.batch_plan`.

  Attributes:
    num_rows: R.
    segments: see :func:`most_segments`.
    buckets: T alone, see :class:`radit_jax.data.plan.RunPlan`.
    padding: share of the tokens of the first epoch's rows that is padding.
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
    real = sum(int(packing.each[list(batch.examples)].sum()) for batch in filled[0])
    steps = max(1, round(epochs * len(filled[0]))) if num_steps is None else num_steps
    self.num_rows, self.segments = 0, 0
    for epoch in range(-(-steps // len(filled[0]))):
      batches = filled.get(epoch) or fill(packing, seed=seed, epoch=epoch, order=order)
      self.num_rows = max(self.num_rows, *(len(batch.rows) for batch in batches))
      self.segments = max(self.segments, most_segments(batches))
    rows = self.num_rows

    def make(epoch: int) -> list[PackedBatch]:
      batches = filled.pop(epoch, []) or fill(packing, seed=seed, epoch=epoch, order=order)
      return same_rows(batches, packing, rows)

    super().__init__(make, num_steps=steps, epochs=epochs)
    self.buckets = (packing.row_tokens,)
    self.padding = 1 - real / (self.steps_per_epoch * rows * packing.row_tokens)


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


def _packed(packing: Packing, examples: list[int], epoch: int) -> PackedBatch:
  size = packing.batch_size // packing.parts
  parts = [
    _best_fit(packing, range(i * size, min((i + 1) * size, len(examples))), examples) for i in range(packing.parts)
  ]
  share = -(-max(1, *map(len, parts)) // packing.shards) * packing.shards
  rows = sum((tuple(map(tuple, part)) + ((),) * (share - len(part)) for part in parts), ())
  return PackedBatch(packing.row_tokens, tuple(examples), epoch, rows, packing.answer_tokens)


def _best_fit(packing: Packing, slots: range, examples: list[int]) -> list[list[tuple[int, int]]]:
  """Longest prompts first, each into the row it leaves the least room in; a row has room for tokens and for answers."""
  prompts = [
    (int(n), int(packing.answers[examples[b]]), b, j)
    for b in slots
    for j, n in enumerate(packing.each[examples[b]])
    if n
  ]
  prompts.sort(key=lambda p: (-p[0], p[2], p[3]))
  rows: list[list[tuple[int, int]]] = []
  open_rows: list[tuple[int, int, int]] = []  # (room for tokens, row, room for answers), ascending
  for n, a, b, j in prompts:
    place = bisect.bisect_left(open_rows, (n, -1, -1))
    while place < len(open_rows) and open_rows[place][2] < a:
      place += 1
    if place < len(open_rows):
      room, row, answer_room = open_rows.pop(place)
    else:
      room, row, answer_room = packing.row_tokens, len(rows), packing.answer_tokens
      rows.append([])
    rows[row].append((b, j))
    bisect.insort(open_rows, (room - n, row, answer_room - a))
  return rows
