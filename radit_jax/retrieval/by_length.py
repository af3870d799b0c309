"""Rows of token ids through a model in few shapes: sorted by length, in batches, in their own order again."""

import collections
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from radit_jax.errors import UserError
from radit_jax.sharding import gather, place_rows, row_shards

#: Rows are padded to a multiple of this: at most max_tokens / 32 programs, and little padding once sorted by length.
PAD_TOKENS = 32
#: Batches the device works on while the host prepares the next ones.
_IN_FLIGHT = 2


def run_by_length(
  call: Callable[..., jax.Array],
  rows: Sequence[Sequence[int]],
  *beside: Int[np.ndarray, "n"],
  pad_id: int | None,
  max_tokens: int,
  batch_size: int,
  mesh: Mesh | None,
  report: Callable[[int], None],
) -> Float[np.ndarray, "n ..."]:
  """What a model makes of every row; the longest ones come first, so memory is short at once or never.

  Args:
    call: ``(tokens [N, T] int32, mask [N, T] bool, *beside [N]) -> [N, ...]`` float32, compiled for each shape.
    rows: token ids, at least one row.
    *beside: a number for each row.
    pad_id: of padding; None takes 0.
    max_tokens: longest row.
    batch_size: rows per call.
    mesh: rows are split over its ``data`` and ``fsdp`` axes.
    report: told after every batch how many rows are done.

  Returns:
    ``[n, ...]`` float32.

  Raises:
    UserError: a batch size the mesh does not divide.
  """
  devices = 1 if mesh is None else row_shards(mesh)
  if batch_size % devices:
    raise UserError(f"batch_size {batch_size} over {devices} devices: choose a multiple of {devices}")
  # A few rows (one question of `ask`) are not padded to a whole batch: to a power of two, so shapes stay few.
  n_rows = min(batch_size, devices << (-(-len(rows) // devices) - 1).bit_length())
  order = np.argsort([-len(row) for row in rows], kind="stable")
  out: np.ndarray | None = None
  in_flight: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()
  done = 0

  def collect() -> None:
    nonlocal out, done
    numbers, made = in_flight.popleft()
    values = gather(made)[: len(numbers)]
    if out is None:
      out = np.empty((len(rows), *values.shape[1:]), np.float32)
    out[numbers] = values
    done += len(numbers)
    report(done)

  for start in range(0, len(rows), n_rows):
    numbers = order[start : start + n_rows]
    longest = max(1, len(rows[numbers[0]]))
    n_tokens = max(longest, min(max_tokens, -(-longest // PAD_TOKENS) * PAD_TOKENS))
    tokens = np.full((n_rows, n_tokens), pad_id or 0, np.int32)
    mask = np.zeros((n_rows, n_tokens), bool)
    mask[:, 0] = True  # a padding row or an empty text has one token, so that no pooling divides by zero
    for i, number in enumerate(numbers):
      tokens[i, : len(rows[number])] = rows[number]
      mask[i, : len(rows[number])] = True
    fill = (0, n_rows - len(numbers))
    batch: Any = (tokens, mask, *(np.pad(np.asarray(b, np.int32)[numbers], fill) for b in beside))
    if mesh is not None:
      batch = place_rows(batch, mesh, whole=True)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      in_flight.append((numbers, call(*batch)))
    if len(in_flight) > _IN_FLIGHT:
      collect()
  while in_flight:
    collect()
  assert out is not None
  return out
