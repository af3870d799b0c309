"""Draws from several sets by their weights: a pure function of seed and epoch, the same on every host."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.data.plan import Order, permutation
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sets whose examples lie one behind the other, and what share of the draws each has.

  An epoch has as many draws as there are examples, and of each set its share of them, to less than one draw. A set is
  walked through in one random order after another, so its examples are drawn equally often, to one draw.

  Attributes:
    names: of the sets.
    counts: examples of each, at least 1.
    weights: share of each, above 0; what they add up to does not matter.

  Example:
    >>> mixture = Mixture(("few", "many"), (2, 6), (0.5, 0.5))
    >>> sorted(mixture.order(seed=0)(0).tolist())[:4]  # each of the few twice
    [0, 0, 1, 1]
  """

  names: tuple[str, ...]
  counts: tuple[int, ...]
  weights: tuple[float, ...]

  def __post_init__(self) -> None:
    if not len(self.names) == len(self.counts) == len(self.weights) or not self.names:
      raise ValueError(f"{len(self.names)} names, {len(self.counts)} counts and {len(self.weights)} weights")
    if min(self.counts) < 1 or min(self.weights) <= 0:
      raise ValueError(f"counts {self.counts} must be at least 1, weights {self.weights} above 0")

  @property
  def draws(self) -> tuple[int, ...]:
    """Draws of each set in an epoch; the largest remainders get what rounding down leaves."""
    shares = np.asarray(self.weights) / sum(self.weights) * sum(self.counts)
    draws = np.floor(shares).astype(np.int64)
    most = np.argsort(-(shares - draws), kind="stable")[: sum(self.counts) - int(draws.sum())]
    draws[most] += 1
    return tuple(draws.tolist())

  def order(self, seed: int) -> Order:
    """Epoch -> ``[n]`` positions, for :func:`radit_jax.data.plan.batch_plan`."""
    starts = np.concatenate([[0], np.cumsum(self.counts)])

    def order(epoch: int) -> Int[np.ndarray, "n"]:
      parts = []
      for s, (count, draws) in enumerate(zip(self.counts, self.draws, strict=True)):
        first, last = epoch * draws, (epoch + 1) * draws
        # The third number keeps these permutations apart from the plan's own, which have two.
        walks = [permutation(count, seed, walk, s + 1) for walk in range(first // count, -(-last // count))]
        start = first // count * count
        parts.append(starts[s] + np.concatenate([np.zeros(0, np.int64), *walks])[first - start : last - start])
      drawn = np.concatenate(parts)
      return drawn[permutation(len(drawn), seed, 2 * epoch)]

    return order

  def to_manifest(self) -> list[list[Any]]:
    """As a store's manifest holds it."""
    return [list(x) for x in zip(self.names, self.counts, self.weights, strict=True)]


def mixture_of(manifest: Mapping[str, Any]) -> Mixture | None:
  """The mixture that a store's manifest holds; None where it holds none, and every example is as good as another."""
  stated = manifest.get("mixture")
  if not stated:
    return None
  names, counts, weights = zip(*stated, strict=True)
  return Mixture(names, counts, weights)


def kept(mixture: Sequence[Sequence[Any]], sets: Sequence[str], where: str) -> list[list[Any]]:
  """The mixture of some of the examples.

  Args:
    mixture: of all, as a manifest holds it.
    sets: name of the set of each example that is kept, in order.
    where: named in errors.

  Raises:
    UserError: examples of one set do not lie together, or of a set that the mixture does not know.
  """
  weights = {name: weight for name, _, weight in mixture}
  out: list[list[Any]] = []
  for name in sets:
    if out and out[-1][0] == name:
      out[-1][1] += 1
    elif name not in weights or any(name == before for before, _, _ in out):
      raise UserError(f"{where}: set {name!r} is not where its manifest says; run `radit prepare` again")
    else:
      out.append([name, 1, weights[name]])
  return out
