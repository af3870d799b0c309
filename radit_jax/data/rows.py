"""Rendered rows and plain text as the arrays of a ParallelContextBatch."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from radit_jax.data.groups import common_prefix
from radit_jax.data.prompts import Rendered
from radit_jax.parallel_context import ParallelContextBatch


def rows_to_batch(
  rendered: Sequence[Sequence[Rendered | None]], *, num_tokens: int, num_answer_tokens: int, first_slot: int = 0
) -> ParallelContextBatch:
  """Pads rows to one length; row b*K+j holds example b with passage j.

  Args:
    rendered: ``[B][K]`` rows; None for an absent passage, whose row is padding.
    num_tokens: T.
    num_answer_tokens: A.
    first_slot: slot of row 0, where these are one host's rows of a larger batch.

  Returns:
    NumPy arrays, R = B*K.

  Raises:
    ValueError: the examples differ in K, a row is longer than T, or an answer than A or without a token before it.
  """
  k = len(rendered[0])
  batch = _empty(len(rendered) * k, (len(rendered), k), num_tokens, num_answer_tokens)
  for b, rows in enumerate(rendered):
    if len(rows) != k:
      raise ValueError(f"example {b} has {len(rows)} rows, example 0 has {k}")
    for j, row in enumerate(rows):
      if row is not None:
        _append(batch, b * k + j, first_slot + b * k + j, row.tokens, row.answer_start, row.answer_end)
        batch.context_mask[b, j] = True
  return batch


def packed_to_batch(
  rows: Sequence[Sequence[Sequence[tuple[int, Rendered]]]],
  context_mask: Bool[np.ndarray, "B K"],
  *,
  num_tokens: int,
  num_answer_tokens: int,
  share: bool = False,
) -> ParallelContextBatch:
  """Several prompts in one row, each a segment that sees nothing of its neighbours, but for what it shares with some.

  Args:
    rows: for each of R rows its groups of prompts, and the slot b*K+j each prompt's answer counts for.
    context_mask: ``[B, K]`` bool, True for the passages of the examples that are there.
    num_tokens: T.
    num_answer_tokens: A, of all prompts of a row together.
    share: prompts of a group share one copy of the tokens that all of them begin with, up to the end of the passage.

  Returns:
    NumPy arrays; prefix_ids with ``share`` only.

  Raises:
    ValueError: the prompts of a row are longer than T, or their answers than A.
  """
  batch = _empty(len(rows), (context_mask.shape[0], context_mask.shape[1]), num_tokens, num_answer_tokens)
  if share:
    batch = dataclasses.replace(batch, prefix_ids=np.zeros_like(batch.segment_ids))
  for r, groups in enumerate(rows):
    for group in groups:
      _append_group(batch, r, group)
  batch.context_mask[:] = context_mask
  return batch


def shared_to_batch(
  rows: Sequence[tuple[int, Sequence[Sequence[Rendered]]]],
  *,
  num_tokens: int,
  num_answer_tokens: int,
  num_prompts: int,
  share: bool = True,
) -> ParallelContextBatch:
  """Rows whose m-th prompt counts for slot ``row * M + m``, whatever example it is of; see :func:`packed_to_batch`.

  Args:
    rows: of each row its number in the whole batch, and its groups.
    num_tokens: T.
    num_answer_tokens: A.
    num_prompts: M.
    share: see :func:`packed_to_batch`.

  Returns:
    NumPy arrays; context_mask is ``[R, M]``, True where there is a prompt.

  Raises:
    ValueError: more tokens, answers or prompts than there is room for.
  """
  mask = np.zeros((len(rows), num_prompts), bool)
  placed = []
  for r, (number, groups) in enumerate(rows):
    count = sum(map(len, groups))
    if count > num_prompts:
      raise ValueError(f"row {r} has {count} prompts, the batch holds {num_prompts}")
    mask[r, :count] = True
    slots = itertools.count(number * num_prompts)
    placed.append([[(next(slots), row) for row in group] for group in groups])
  return packed_to_batch(placed, mask, num_tokens=num_tokens, num_answer_tokens=num_answer_tokens, share=share)


def text_to_batch(token_ids: Sequence[Sequence[int]], num_tokens: int) -> ParallelContextBatch:
  """Plain text: every token but a row's first is an answer token.

  Args:
    token_ids: ids of each text, B of them; one with fewer than two has nothing to predict and counts as absent.
    num_tokens: T.

  Returns:
    NumPy arrays, K = 1 and A = T - 1.

  Raises:
    ValueError: a text is longer than T.
  """
  batch = _empty(len(token_ids), (len(token_ids), 1), num_tokens, num_tokens - 1)
  for b, ids in enumerate(token_ids):
    if len(ids) >= 2:
      _append(batch, b, b, ids, 1, len(ids))
      batch.context_mask[b, 0] = True
  return batch


def _empty(rows: int, slots: tuple[int, int], num_tokens: int, num_answer_tokens: int) -> ParallelContextBatch:
  return ParallelContextBatch(
    tokens=np.zeros((rows, num_tokens), np.int32),
    positions=np.zeros((rows, num_tokens), np.int32),
    segment_ids=np.zeros((rows, num_tokens), np.int32),
    answer_positions=np.zeros((rows, num_answer_tokens), np.int32),
    answer_tokens=np.zeros((rows, num_answer_tokens), np.int32),
    answer_slot=np.full((rows, num_answer_tokens), -1, np.int32),
    context_mask=np.zeros(slots, bool),
  )


def _append_group(batch: ParallelContextBatch, row: int, group: Sequence[tuple[int, Rendered]]) -> None:
  """Puts prompts behind what the row holds, what they begin with once where the batch has prefixes."""
  shares = batch.prefix_ids is not None and len(group) > 1
  common = common_prefix([prompt.context for _, prompt in group]) if shares else ()
  prefix = _append(batch, row, -1, common, 0, 0) if common else 0
  skipped = len(common)
  for slot, prompt in group:
    start, end = prompt.answer_start - skipped, prompt.answer_end - skipped
    _append(batch, row, slot, prompt.tokens[skipped:], start, end, prefix=prefix, position=skipped)


def _append(
  batch: ParallelContextBatch,
  row: int,
  slot: int,
  ids: Sequence[int],
  start: int,
  end: int,
  *,
  prefix: int = 0,
  position: int = 0,
) -> int:
  """Puts a prompt behind what the row holds, as a segment of its own, whose number is returned."""
  used, answered = np.count_nonzero(batch.segment_ids[row]), np.count_nonzero(batch.answer_slot[row] >= 0)
  here, answers = slice(used, used + len(ids)), slice(answered, answered + end - start)
  if here.stop > batch.tokens.shape[1]:
    raise ValueError(f"row {row} has {here.stop} tokens, the batch holds {batch.tokens.shape[1]}")
  if answers.stop > batch.answer_tokens.shape[1]:
    raise ValueError(f"row {row} has {answers.stop} answer tokens, the batch holds {batch.answer_tokens.shape[1]}")
  if end > start and start < 1:
    raise ValueError(f"row {row}: no token stands before the answer to predict it from")
  batch.tokens[row, here] = ids
  batch.positions[row, here] = np.arange(position, position + len(ids))
  segment = int(batch.segment_ids[row].max()) + 1
  batch.segment_ids[row, here] = segment
  if prefix:
    batch.prefix_ids[row, here] = prefix
  batch.answer_positions[row, answers] = used + np.arange(start - 1, end - 1)
  batch.answer_tokens[row, answers] = ids[start:end]
  batch.answer_slot[row, answers] = slot
  return segment
