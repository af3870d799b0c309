"""Pieces of the corpus as tasks of retriever tuning: the beginning is given, the end is asked for."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.data.corpus import PassageStore
from radit_jax.data.corpus.chunks import word_spans
from radit_jax.data.plan import permutation
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError

#: Where each token of a text begins and ends.
Spans = Callable[[str], list[tuple[int, int]]]
_ROWS_AT_ONCE = 4096


def token_spans(tokenizer: Any | None) -> Spans:
  """Spans of a tokenizer's tokens, or of words where there is none.

  Raises:
    UserError: a tokenizer that does not say where its tokens stand.
  """
  if tokenizer is None:
    return word_spans
  if not tokenizer.is_fast:
    raise UserError("the tokenizer does not say where its tokens stand (it has no tokenizer.json)")

  def spans(text: str) -> list[tuple[int, int]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [(start, end) for start, end in found if end > start]

  return spans


def complete(text: str, spans: list[tuple[int, int]], tokens: int) -> tuple[str, str] | None:
  """The beginning and the end of a text.

  Args:
    text: of a passage.
    spans: of its tokens.
    tokens: of each part; of a text with fewer than twice as many, each part is a half.

  Returns:
    What is given and what is asked for; None for a text too short to be split.

  Example:
    >>> from radit_jax.data.corpus.chunks import word_spans
    >>> complete("one two three four five", word_spans("one two three four five"), 2)
    ('one two', 'four five')
  """
  n = min(tokens, len(spans) // 2)
  if not n:
    return None
  given, asked = text[: spans[n - 1][1]].strip(), text[spans[-n][0] :].strip()
  return (given, asked) if given and asked else None


def draw_rows(count: int, limit: int, seed: int) -> Int[np.ndarray, "n"]:
  """At most ``limit`` of ``count`` rows, ascending."""
  return np.sort(permutation(count, seed, 1, 1)[:limit])


def passages_at(store: PassageStore, rows: Int[np.ndarray, "n"]) -> Iterator[tuple[int, Passage]]:
  """Rows of a store with their passages, some thousands in memory at a time."""
  for start in range(0, len(rows), _ROWS_AT_ONCE):
    part = rows[start : start + _ROWS_AT_ONCE].tolist()
    yield from zip(part, store.many(part), strict=True)
