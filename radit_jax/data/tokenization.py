"""Pieces of text to token ids, such that the pieces' ids can be concatenated."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from radit_jax.errors import UserError

Ids = tuple[int, ...]
#: How a slot's text meets what stands on its left: nothing is between them, a space is, or nothing is and a tokenizer
#: that begins every text with a space of its own must be kept from it.
PLAIN, SPACE, BARE = "plain", "space", "bare"

# 4M ids as Python integers are about 150 MB: a 20,000-passage corpus stays tokenised, a larger one starts over.
CACHE_TOKENS = 4_000_000


_MARKUP = re.compile(r"<(?!0x[0-9A-F]{2}>).+>|\[.+\]")  # <0x0A> is a byte


class SlotTokenizer:
  """Tokenises fixed text, where control tokens count, and slots, where they are plain text.

  Args:
    tokenizer: any ``transformers`` tokenizer.

  Attributes:
    control: ids that no slot's text may yield: special tokens (apart from a mere unknown), and added ones that look
      like one, such as ``<think>``.
  """

  def __init__(self, tokenizer: Any) -> None:
    self._tokenizer = tokenizer
    unknown = tokenizer.unk_token_id
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    control = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for i, token in tokenizer.added_tokens_decoder.items():
      # Vocabularies also add words and runs of white space as tokens that are not special: those are text.
      if token.special or _MARKUP.fullmatch(token.content):
        control[i] = token.content
    if unknown not in named:
      control.pop(unknown, None)
    self.control = frozenset(control)
    self._control_texts = sorted(control.values(), key=len, reverse=True)
    self._cache: dict[tuple[str, str], Ids] = {}
    self._cached_tokens = 0
    self._newline = self._encode(["\n"])[0]
    plain, bare = self._encode(["a"])[0], self._after_newline(["a"])[0]
    self._prepends_space = plain != bare

  def content(self) -> dict[str, Any]:
    """What the ids depend on, as JSON values: the same for the same tokenizer, however it was used before."""
    backend = getattr(self._tokenizer, "backend_tokenizer", None)
    if backend is None:
      return {"vocab": self._tokenizer.get_vocab(), "special": self._tokenizer.special_tokens_map}
    content = json.loads(backend.to_str())
    # Calls set these two as they like; they say nothing about the vocabulary.
    return {k: v for k, v in content.items() if k not in ("truncation", "padding")}

  def ids(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Ids]:
    """Ids of each ``(seam, text)``, none of which is a control token's."""
    found = {key: self._cache.get(key) for key in wanted}
    for seam in (PLAIN, SPACE, BARE):
      missing = [text for (s, text), ids in found.items() if s == seam and ids is None]
      if missing:
        found.update(((seam, text), ids) for text, ids in zip(missing, self._slot(seam, missing), strict=True))
    out = {key: ids for key, ids in found.items() if ids is not None}
    new = {key: ids for key, ids in out.items() if key not in self._cache}
    if new:
      if self._cached_tokens > CACHE_TOKENS:
        self._cache, self._cached_tokens = {}, 0
      self._cache.update(new)
      self._cached_tokens += sum(map(len, new.values()))
    return out

  def compile(self, pieces: Sequence[tuple[str, str | None]]) -> list[tuple[str, Ids | str]]:
    """Fixed pieces become ids, slots (None) the way their text meets what stands on its left."""
    parts: list[tuple[str, Ids | str]] = []
    before: str | None = ""  # text on the left; None where that is a slot
    for i, (name, text) in enumerate(pieces):
      if text is not None:
        slot_follows = i + 1 < len(pieces)
        left = "a" if before is None else ""
        own = text[:-1] if text.endswith(" ") and slot_follows else text
        parts.append((name, self.fixed(own, left=left, right=(text[len(own) :] + "a") if slot_follows else "")))
        before = text
        continue
      parts.append((name, self._seam(before or "")))
      before = None
    return [(name, value) for name, value in parts if value != ()]

  def fixed(self, text: str, *, left: str = "", right: str = "") -> Ids:
    """Ids of fixed text as it reads between two others; its control tokens are control tokens."""
    if not text:
      return ()
    whole = self._encode([left + text + right], control=True)[0]
    head = self._encode([left], control=True)[0] if left else ()
    tail: Ids = ()
    if right:
      tail = self._slot(self._seam(text + right[:-1]), [right[-1]])[0]
    if whole[: len(head)] == head and (not tail or whole[len(whole) - len(tail) :] == tail):
      return whole[len(head) : len(whole) - len(tail)]
    return self._encode([text], control=True)[0]

  def _seam(self, before: str) -> str:
    if before.endswith(" "):
      return SPACE
    if not before or not self._prepends_space:
      return PLAIN
    # After a control token some tokenizers put their space and some do not: ask.
    plain = self._encode(["a"])[0]
    whole = self._encode([before + "a"], control=True)[0]
    return PLAIN if whole[len(whole) - len(plain) :] == plain else BARE

  def _slot(self, seam: str, texts: list[str]) -> list[Ids]:
    if seam == SPACE and not self._prepends_space:
      rows = self._encode([" " + text if text else "" for text in texts])
    elif seam == BARE:
      rows = self._after_newline(texts)
    else:
      rows = self._encode(texts)
    for i, row in enumerate(rows):
      if not self.control.isdisjoint(row):
        rows[i] = self._defused(seam, texts[i])
    return rows

  def _after_newline(self, texts: list[str]) -> list[Ids]:
    """Ids as they are after a newline, where a tokenizer cannot put a space of its own before the text."""
    n = len(self._newline)
    out = []
    for text, row in zip(texts, self._encode(["\n" + text for text in texts]), strict=True):
      apart = row[:n] == self._newline and (len(row) > n or not text)  # else its newline is no token of its own
      out.append(row[n:] if apart else self._encode([text])[0])
    return out

  def _defused(self, seam: str, text: str) -> Ids:
    """A text whose words are themselves in the vocabulary as control tokens: those words are broken in two."""
    parts = [text]
    for token in self._control_texts:
      if len(token) > 1:
        parts = [p for part in parts for p in _broken(part, token)]
    if seam == SPACE and not self._prepends_space:
      parts[0] = " " + parts[0]
    ids = [i for part in parts for i in self._encode([part])[0]]
    return tuple(i for i in ids if i not in self.control)

  def _encode(self, texts: list[str], *, control: bool = False) -> list[Ids]:
    encoded = self._tokenizer(
      texts,
      add_special_tokens=False,
      split_special_tokens=not control,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def _broken(text: str, token: str) -> list[str]:
  """``text``, cut inside every occurrence of ``token``."""
  pieces = text.split(token)
  out = [pieces[0]]
  for piece in pieces[1:]:
    out[-1] += token[:1]
    out.append(token[1:] + piece)
  return out


class EncoderTokenizer:
  """Texts to what an encoder reads: control ids come from the tokenizer's template alone, never from a text.

  A tokenizer's own truncation and padding are not used: MiniLM's file cuts at 128 tokens and says nothing.

  Args:
    tokenizer: of the encoder.
    max_tokens: longest row, the template's tokens ([CLS], [SEP]) and the prompt's included.
    prompt: put in front of every text, such as "query: "; its control tokens are control tokens.

  Raises:
    UserError: ``max_tokens`` leaves no room for text.
  """

  def __init__(self, tokenizer: Any, max_tokens: int, prompt: str = "") -> None:
    self._slots = SlotTokenizer(tokenizer)
    body = list(self._slots.ids([(PLAIN, "a")])[PLAIN, "a"])
    whole = tokenizer(["a"], add_special_tokens=True, truncation=False, padding=False)["input_ids"][0]
    starts = [i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body]
    if not starts:
      raise UserError(f"tokenizer {type(tokenizer).__name__}: its template changes the text ({body} is not in {whole})")
    *fixed, (_, seam) = self._slots.compile([("prompt", prompt), ("text", None)])
    assert isinstance(seam, str)
    self._seam = seam
    prompt_ids = [i for _, ids in fixed for i in ids]
    self._prefix, self._suffix = [*whole[: starts[0]], *prompt_ids], whole[starts[0] + len(body) :]
    added = len(self._prefix) + len(self._suffix)
    self._room = max_tokens - added
    if self._room < 1:
      raise UserError(f"max_tokens = {max_tokens}: tokenizer and prompt add {added}, so no text would be left")

  def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Ids of each text, and how many tokens were cut off its end."""
    found = self._slots.ids((self._seam, text) for text in texts)
    bodies = [found[self._seam, text] for text in texts]
    rows = [[*self._prefix, *body[: self._room], *self._suffix] for body in bodies]
    return rows, [max(0, len(body) - self._room) for body in bodies]
