"""What an encoder reads: token ids of questions and passages."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from radit_jax.errors import UserError


class HasText(Protocol):
  """A passage, as the passage store gives it."""

  @property
  def title(self) -> str: ...
  @property
  def text(self) -> str: ...


def passage_text(passage: str | HasText) -> str:
  """What the passage encoder reads: title and text with one space between; a string as it is.

  Example:
    >>> passage_text("already text")
    'already text'
  """
  if isinstance(passage, str):
    return passage
  return f"{passage.title} {passage.text}" if passage.title else passage.text


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
  prefix, suffix = _template(tokenizer)
  room = max_tokens - len(prefix) - len(suffix)
  if room < 1:
    raise UserError(
      f"max_tokens = {max_tokens}: the tokenizer adds {len(prefix) + len(suffix)}, so no text would be left"
    )
  bodies = _plain_ids(tokenizer, list(texts)) if len(texts) else []
  cut = np.array([max(0, len(body) - room) for body in bodies], np.int64)
  return [[*prefix, *body[:room], *suffix] for body in bodies], cut


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
  return tokenizer(
    texts,
    add_special_tokens=False,
    split_special_tokens=True,  # else "[SEP]" in a passage becomes the control token
    truncation=False,
    padding=False,
    return_attention_mask=False,
    return_token_type_ids=False,
    verbose=False,
  )["input_ids"]


def _template(tokenizer: Any) -> tuple[list[int], list[int]]:
  """Ids that the tokenizer puts before and after a text."""
  body = _plain_ids(tokenizer, ["a"])[0]
  whole = tokenizer(["a"], add_special_tokens=True, truncation=False, padding=False)["input_ids"][0]
  for start in range(len(whole) - len(body) + 1):
    if whole[start : start + len(body)] == body:
      return whole[:start], whole[start + len(body) :]
  raise UserError(f"tokenizer of {type(tokenizer).__name__}: its template changes the text ({body} inside {whole})")
