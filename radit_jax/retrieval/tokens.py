"""What an encoder reads: token ids of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.data.tokenization import PLAIN, SlotTokenizer
from radit_jax.errors import UserError


def encoder_tokens(
  tokenizer: Any, texts: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], Int[np.ndarray, "n"]]:
  """Token ids for an encoder: control ids come from the tokenizer's template alone, never from a text.

  A tokenizer's own truncation and padding are not used: MiniLM's file cuts at 128 tokens and says nothing.

  Args:
    tokenizer: a fast tokenizer.
    texts: what to encode.
    max_tokens: longest row, the template's tokens ([CLS], [SEP]) included.

  Returns:
    The ids of every text, and ``[n]`` how many tokens were cut off its end.

  Raises:
    UserError: ``max_tokens`` leaves no room for text.
  """
  slots = SlotTokenizer(tokenizer)
  prefix, suffix = _template(tokenizer, slots)
  room = max_tokens - len(prefix) - len(suffix)
  if room < 1:
    raise UserError(
      f"max_tokens = {max_tokens}: the tokenizer adds {len(prefix) + len(suffix)}, so no text would be left"
    )
  found = slots.ids((PLAIN, text) for text in texts)
  bodies = [found[PLAIN, text] for text in texts]
  cut = np.array([max(0, len(body) - room) for body in bodies], np.int64)
  return [[*prefix, *body[:room], *suffix] for body in bodies], cut


def _template(tokenizer: Any, slots: SlotTokenizer) -> tuple[list[int], list[int]]:
  """Ids that the tokenizer puts before and after a text."""
  body = list(slots.ids([(PLAIN, "a")])[PLAIN, "a"])
  whole = tokenizer(["a"], add_special_tokens=True, truncation=False, padding=False)["input_ids"][0]
  for start in range(len(whole) - len(body) + 1):
    if whole[start : start + len(body)] == body:
      return whole[:start], whole[start + len(body) :]
  raise UserError(f"tokenizer {type(tokenizer).__name__}: its template changes the text ({body} is not in {whole})")
