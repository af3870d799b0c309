"""Which examples make which batch: a pure function of lengths, seed and epoch, the same on every host."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np
from jaxtyping import Int

# Another bucket means another program to compile; it must save at least this share of all tokens.
_WORTH_A_BUCKET = 0.05


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
  """One step's examples.

  Attributes:
    bucket_tokens: T, length the rows are padded to.
    examples: positions in the store; the last batch of an epoch may hold fewer than the batch size.
    epoch: pass over the data this batch belongs to.
  """

  bucket_tokens: int
  examples: tuple[int, ...]
  epoch: int = 0


P = TypeVar("P", bound=PlannedBatch)
#: Epoch -> positions of its examples in their order, equally many in each epoch; one may come several times, or never.
Order = Callable[[int], Int[np.ndarray, "m"]]


def sample(count: int, limit: int | None, seed: int) -> list[int]:
  """Positions of at most ``limit`` of ``count`` things, drawn without repetition and in ascending order.

  Example:
    >>> sample(5, None, seed=0), len(sample(100, 3, seed=0))
    ([0, 1, 2, 3, 4], 3)
  """
  if limit is None or limit >= count:
    return list(range(count))
  return sorted(permutation(count, seed, 0)[:limit].tolist())


def row_multiple(platform: str) -> int:
  """Rows are padded to multiples of this: what a TPU's kernels want, and elsewhere what wastes little.

  Args:
    platform: ``jax.default_backend()``.

  Example:
    >>> row_multiple("tpu"), row_multiple("cpu")  # a row of 33 tokens in 48, not in 64
    (128, 16)
  """
  return 128 if platform == "tpu" else 16


def bucket_lengths(
  row_lengths: Int[np.ndarray, "n"] | Sequence[int], *, bucket_multiple: int = 32, max_buckets: int = 4
) -> tuple[int, ...]:
  """Row lengths to pad to: the fewest that come within 5 % of the least padding ``max_buckets`` allow.

  Args:
    row_lengths: tokens of the longest row of each example.
    bucket_multiple: every bucket is a multiple of this, see :func:`row_multiple`.
    max_buckets: each bucket is one program to compile.

  Returns:
    Ascending; the last one holds the longest row.

  Example:
    >>> bucket_lengths([20, 30, 31, 60, 200])
    (32, 64, 224)
  """
  lengths = _checked(row_lengths)
  needed, counts = np.unique(-(-lengths // bucket_multiple) * bucket_multiple, return_counts=True)
  size = len(needed)
  below = np.concatenate([[0], np.cumsum(counts)])
  # cost[j]: padded tokens of the j shortest candidate lengths with the buckets so far, the last of them needed[j - 1].
  cost = np.concatenate([[0.0], needed * below[1:].astype(float)])
  cuts: list[np.ndarray] = []
  totals = [cost[size]]
  for _ in range(min(max_buckets, size) - 1):
    table = np.where(
      np.arange(size + 1)[:, None] < np.arange(1, size + 1)[None],
      cost[:, None] + (below[1:][None] - below[:, None]) * needed[None],
      np.inf,
    )
    cuts.append(np.argmin(table, axis=0))
    cost = np.concatenate([[0.0], table.min(axis=0)])
    totals.append(cost[size])
  buckets = next(n for n, total in enumerate(totals) if total <= min(totals) * (1 + _WORTH_A_BUCKET))
  ends = [size]
  for cut in reversed(cuts[:buckets]):
    if ends[-1]:
      ends.append(int(cut[ends[-1] - 1]))
  return tuple(int(needed[end - 1]) for end in reversed(ends) if end)


def batch_plan(
  row_lengths: Int[np.ndarray, "n"] | Sequence[int],
  *,
  batch_size: int,
  seed: int,
  epoch: int,
  bucket_multiple: int = 32,
  max_buckets: int = 4,
  order: Order | None = None,
) -> list[PlannedBatch]:
  """Batches of one epoch: every example once, in a new order, in batches of like length.

  What does not fill a batch of its bucket moves up into the next longer one, so at most one batch of the epoch is
  short. The number of batches and their lengths are the same in every epoch.

  Args:
    row_lengths: tokens of the longest row of each example.
    batch_size: examples of a batch, over all hosts.
    seed: of the order.
    epoch: of the order.
    bucket_multiple: see :func:`bucket_lengths`.
    max_buckets: see :func:`bucket_lengths`.
    order: examples of each epoch, in place of every one once, see :meth:`radit_jax.data.mixture.Mixture.order`.

  Raises:
    ValueError: no examples, or a length below 1.

  Example:
    >>> plan = batch_plan([20, 30, 31, 60, 200], batch_size=2, seed=0, epoch=0)
    >>> sorted(i for batch in plan for i in batch.examples)
    [0, 1, 2, 3, 4]
  """
  lengths = _checked(row_lengths)
  buckets = bucket_lengths(lengths, bucket_multiple=bucket_multiple, max_buckets=max_buckets)
  bucket_of = np.searchsorted(buckets, lengths)
  drawn = (order or epoch_order(len(lengths), seed))(epoch)
  batches: list[PlannedBatch] = []
  waiting: list[int] = []
  for i, tokens in enumerate(buckets):
    waiting += drawn[bucket_of[drawn] == i].tolist()
    full = len(waiting) // batch_size * batch_size
    end = len(waiting) if i == len(buckets) - 1 else full
    batches += [
      PlannedBatch(tokens, tuple(waiting[s : min(s + batch_size, end)]), epoch) for s in range(0, end, batch_size)
    ]
    waiting = waiting[end:]
  return [batches[i] for i in permutation(len(batches), seed, 2 * epoch + 1)]


def plan_in_order(
  row_lengths: Int[np.ndarray, "n"] | Sequence[int],
  *,
  batch_size: int,
  bucket_multiple: int = 32,
  max_buckets: int = 4,
) -> list[PlannedBatch]:
  """Every example once, shortest rows first: for scoring and dev losses, where the order changes nothing.

  Args:
    row_lengths: tokens of the longest row of each example.
    batch_size: examples of a batch, over all hosts; only the last batch is short.
    bucket_multiple: see :func:`bucket_lengths`.
    max_buckets: see :func:`bucket_lengths`.

  Example:
    >>> [b.examples for b in plan_in_order([200, 30, 31, 60, 20], batch_size=2)]
    [(4, 1), (2, 3), (0,)]
  """
  lengths = _checked(row_lengths)
  buckets = bucket_lengths(lengths, bucket_multiple=bucket_multiple, max_buckets=max_buckets)
  order = np.argsort(lengths, kind="stable").tolist()
  groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
  return [PlannedBatch(buckets[np.searchsorted(buckets, lengths[g[-1]])], tuple(g)) for g in groups]


class EpochPlan(Sequence[P]):
  """Batches of a run of ``num_steps`` steps, epoch after epoch; position is the step number.

  Args:
    make: epoch -> its batches, equally many in each.
    num_steps: steps of the run; None for ``epochs`` of the data.
    epochs: passes over the data where ``num_steps`` is None.

  Attributes:
    steps_per_epoch: batches of one pass.
  """

  def __init__(self, make: Callable[[int], list[P]], *, num_steps: int | None, epochs: float) -> None:
    self._make, self._epochs = make, dict[int, list[P]]()
    self.steps_per_epoch = len(self._epoch(0))
    self._num_steps = max(1, round(epochs * self.steps_per_epoch)) if num_steps is None else num_steps

  def __len__(self) -> int:
    return self._num_steps

  @overload
  def __getitem__(self, step: int) -> P: ...
  @overload
  def __getitem__(self, step: slice) -> list[P]: ...
  def __getitem__(self, step: int | slice) -> P | list[P]:
    if isinstance(step, slice):
      return [self[i] for i in range(*step.indices(len(self)))]
    if not -len(self) <= step < len(self):
      raise IndexError(f"step {step} of a run of {len(self)}")
    epoch, position = divmod(step % len(self), self.steps_per_epoch)
    return self._epoch(epoch)[position]

  def _epoch(self, epoch: int) -> list[P]:
    plan = self._epochs.get(epoch)
    if plan is None:
      plan = self._make(epoch)
      # The last epoch and this one: reading ahead crosses the border between two.
      self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1} | {epoch: plan}
    return plan


class RunPlan(EpochPlan[PlannedBatch]):
  """A run with one row per passage, rows of like length in a batch, see :func:`batch_plan`.

  Args:
    row_lengths: tokens of the longest row of each example.
    batch_size: examples of a batch, over all hosts.
    seed: of the order.
    num_steps: steps of the run; None for ``epochs`` of the data.
    epochs: passes over the data where ``num_steps`` is None.
    bucket_multiple: see :func:`bucket_lengths`.
    max_buckets: see :func:`bucket_lengths`.
    order: see :func:`batch_plan`.

  Attributes:
    steps_per_epoch: batches of one pass.
    buckets: lengths of the rows that occur, ascending: one program is compiled for each.
    padding: share of the planned tokens that is padding in the longest row of each example of the first epoch.
  """

  def __init__(
    self,
    row_lengths: Int[np.ndarray, "n"] | Sequence[int],
    *,
    batch_size: int,
    seed: int,
    num_steps: int | None = None,
    epochs: float = 1.0,
    bucket_multiple: int = 32,
    max_buckets: int = 4,
    order: Order | None = None,
  ) -> None:
    lengths = _checked(row_lengths)

    def make(epoch: int) -> list[PlannedBatch]:
      return batch_plan(
        lengths,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        bucket_multiple=bucket_multiple,
        max_buckets=max_buckets,
        order=order,
      )

    super().__init__(make, num_steps=num_steps, epochs=epochs)
    first = self._epoch(0)
    self.buckets = tuple(sorted({batch.bucket_tokens for batch in first}))
    real = sum(int(lengths[list(b.examples)].sum()) for b in first)
    self.padding = 1 - real / sum(b.bucket_tokens * len(b.examples) for b in first)


def _checked(row_lengths: Int[np.ndarray, "n"] | Sequence[int]) -> Int[np.ndarray, "n"]:
  lengths = np.asarray(row_lengths, np.int64)
  if lengths.ndim != 1 or not lengths.size:
    raise ValueError(f"row_lengths has shape {lengths.shape}; one length per example is needed, and at least one")
  if lengths.min() < 1:
    raise ValueError(f"example {int(lengths.argmin())} has a row of {int(lengths.min())} tokens")
  return lengths


def epoch_order(count: int, seed: int | None) -> Order:
  """Every one of ``count`` examples once an epoch, in an order drawn anew in each; without a seed as they come."""
  return lambda epoch: np.arange(count) if seed is None else permutation(count, seed, 2 * epoch)


def permutation(count: int, seed: int, *stream: int) -> Int[np.ndarray, "n"]:
  """A permutation from raw random bits: their stream is fixed for all NumPy versions, a shuffle's is not."""
  bits = np.random.PCG64(np.random.SeedSequence((seed, *stream))).random_raw(count)
  return np.argsort(bits, kind="stable")
