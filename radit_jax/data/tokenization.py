"""Pieces of text to token ids, such that the pieces' ids can be concatenated."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from radit_jax.errors import UserError

Ids = tuple[int, ...]
#: How a slot's text meets what stands on its left: as a text of its own, behind a space, or as it is after a newline
#: (that keeps a tokenizer which begins every text with a space of its own from doing so).
PLAIN, SPACE, BARE = "plain", "space", "bare"


class Seam(NamedTuple):
  """How a slot's text meets the fixed text on both its sides.

  Many tokenizers (Llama 3, Qwen, Mistral's newer ones) have one token for a full stop and the newlines after it. So the
  first ids of the text on the right may depend on the slot's text.

  Attributes:
    left: PLAIN, SPACE or BARE.
    glue: the beginning of the text on the right, as far as it may share a token with the slot's text.
    context: stands for what follows the glue.
    glue_ids: ids of the glue where it shares no token.
    context_ids: ids of the context.
  """

  left: str
  glue: str = ""
  context: str = ""
  glue_ids: Ids = ()
  context_ids: Ids = ()


#: Ids of a slot's text, and how many of the first ids of the fixed text on its right they stand for too.
SlotIds = tuple[Ids, int]

# 4M ids as Python integers are about 150 MB: a 20,000-passage corpus stays tokenised, a larger one starts over.
CACHE_TOKENS = 4_000_000


_MARKUP = re.compile(r"<(?!0x[0-9A-F]{2}>).+>|\[.+\]")  # <0x0A> is a byte
#: How far a token may reach that begins in the text on the left: over the rest of its word, signs, and white space.
_GLUE = re.compile(r"\w*[^\w\s]*\s*")


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
    self._cache: dict[tuple[Seam, str], SlotIds] = {}
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

  def ids(self, wanted: Iterable[tuple[Seam, str]]) -> dict[tuple[Seam, str], SlotIds]:
    """Ids of each ``(seam, text)``, none of which is a control token's."""
    found = {key: self._cache.get(key) for key in wanted}
    for seam in dict.fromkeys(seam for seam, _ in found):
      missing = [text for (s, text), ids in found.items() if s == seam and ids is None]
      if missing:
        found.update(((seam, text), ids) for text, ids in zip(missing, self._slot(seam, missing), strict=True))
    out = {key: ids for key, ids in found.items() if ids is not None}
    new = {key: ids for key, ids in out.items() if key not in self._cache}
    if new:
      if self._cached_tokens > CACHE_TOKENS:
        self._cache, self._cached_tokens = {}, 0
      self._cache.update(new)
      self._cached_tokens += sum(len(ids) for ids, _ in new.values())
    return out

  def unglued(self, seam: Seam, text: str) -> Ids:
    """Ids of a text that is to be cut: whatever follows has its own."""
    key = (Seam(seam.left), text)
    return self.ids([key])[key][0]

  def compile(self, pieces: Sequence[tuple[str, str | None]]) -> list[tuple[str, Ids | Seam]]:
    """Fixed pieces become ids, slots (None) the way their text meets what stands beside it.

    Fixed text on the left of the slot "answer" is tokenised as the end of a prompt is: an engine that is to go on from
    there sees nothing behind it.
    """
    parts: list[tuple[str, Ids | Seam]] = []
    before: str | None = ""  # text on the left; None where that is a slot
    for i, (name, text) in enumerate(pieces):
      if text is None:
        parts.append((name, Seam(self._left(before or ""))))
        before = None
        continue
      slot_follows = any(text is None for _, text in pieces[i + 1 :])
      own = text[:-1] if text.endswith(" ") and slot_follows else text
      answer_follows = i + 1 < len(pieces) and pieces[i + 1][0] == "answer"
      right = text[len(own) :] + "a" if slot_follows and not answer_follows else ""
      ids = self.fixed(own, left="a" if before is None else "", right=right)
      if before is None and i:
        slot, seam = parts[-1]
        assert isinstance(seam, Seam)
        parts[-1] = (slot, self._glued(seam, own, ids, right))
      parts.append((name, ids))
      before = text
    return [(name, value) for name, value in parts if value != ()]

  def fixed(self, text: str, *, left: str = "", right: str = "") -> Ids:
    """Ids of fixed text as it reads between two others; its control tokens are control tokens."""
    if not text:
      return ()
    whole = self._encode([left + text + right], control=True)[0]
    head = self._encode([left], control=True)[0] if left else ()
    tail = self._tail(text, right)
    if whole[: len(head)] == head and (not tail or whole[len(whole) - len(tail) :] == tail):
      return whole[len(head) : len(whole) - len(tail)]
    return self._encode([text], control=True)[0]

  def _tail(self, before: str, right: str) -> Ids:
    """Ids of ``right``, one letter with or without a space on its left, where it stands after ``before``."""
    return self._slot(Seam(self._left(before + right[:-1])), [right[-1]])[0][0] if right else ()

  def _left(self, before: str) -> str:
    spaced = before.endswith(" ")
    if not before or not self._prepends_space:
      return SPACE if spaced else PLAIN
    # After a control token some tokenizers put their space and some do not, even where there is one already: ask.
    whole = self._encode([before + "a"], control=True)[0]
    if spaced:
      head = self._encode([before[:-1]], control=True)[0]
      return SPACE if whole == head + self._encode([" a"])[0] else PLAIN
    plain = self._encode(["a"])[0]
    return PLAIN if whole[len(whole) - len(plain) :] == plain else BARE

  def _glued(self, seam: Seam, text: str, ids: Ids, right: str) -> Seam:
    """``seam`` of a slot with the fixed ``text`` on its right, which has these ``ids`` beside a letter."""
    plain = text[: min([text.find(token) for token in self._control_texts if token in text], default=len(text))]
    match = _GLUE.match(plain)
    glue = match[0] if match else ""
    following = plain[len(glue) : len(glue) + 1] or (right if plain == text else "")
    # Any letter will do: then prompts that differ in a word share their seams.
    context = "a" if following.isalpha() else following
    tail = self._tail(glue, context)
    head, whole = self._encode(["a", "a" + glue + context])
    own = ids[: len(whole) - len(head) - len(tail)]
    return Seam(seam.left, glue, context, own, tail) if own and whole == head + own + tail else seam

  def _slot(self, seam: Seam, texts: list[str]) -> list[SlotIds]:
    after = seam.glue + seam.context
    rows = self._placed(seam.left, [text + after if text else "" for text in texts])
    own, tail = len(seam.glue_ids), len(seam.context_ids)
    out: list[SlotIds] = []
    for text, row in zip(texts, rows, strict=True):
      if after and row:
        end = len(row) - tail
        if row[end:] != seam.context_ids or not self.control.isdisjoint(row):
          out += self._slot(Seam(seam.left), [text])
          continue
        same = 0
        while same < min(own, end) and row[end - 1 - same] == seam.glue_ids[own - 1 - same]:
          same += 1
        out.append((row[: end - same], own - same))
      else:
        out.append((row if self.control.isdisjoint(row) else self._defused(seam.left, text), 0))
    return out

  def _placed(self, left: str, texts: list[str]) -> list[Ids]:
    """Ids of texts with what stands on their left."""
    if left == BARE:
      return self._after_newline(texts)
    return self._encode([" " + text if text else "" for text in texts] if left == SPACE else texts)

  def _after_newline(self, texts: list[str]) -> list[Ids]:
    """Ids as they are after a newline, where a tokenizer cannot put a space of its own before the text."""
    n = len(self._newline)
    out = []
    for text, row in zip(texts, self._encode(["\n" + text for text in texts]), strict=True):
      apart = row[:n] == self._newline and (len(row) > n or not text)  # else its newline is no token of its own
      out.append(row[n:] if apart else self._encode([text])[0])
    return out

  def _defused(self, left: str, text: str) -> Ids:
    """A text whose words are themselves in the vocabulary as control tokens: those words are broken in two."""
    parts = [text]
    for token in self._control_texts:
      if len(token) > 1:
        parts = [p for part in parts for p in _broken(part, token)]
    if left == SPACE:
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
    body = self._bodies(Seam(PLAIN), ["a"])[0]
    whole = tokenizer(["a"], add_special_tokens=True, truncation=False, padding=False)["input_ids"][0]
    start = _place(tokenizer, body, whole)
    *fixed, (_, seam) = self._slots.compile([("prompt", prompt), ("text", None)])
    assert isinstance(seam, Seam)
    self._seam = seam
    prompt_ids = [i for _, ids in fixed for i in ids]
    self._prefix, self._suffix = [*whole[:start], *prompt_ids], whole[start + len(body) :]
    added = len(self._prefix) + len(self._suffix)
    self._room = max_tokens - added
    if self._room < 1:
      raise UserError(f"max_tokens = {max_tokens}: tokenizer and prompt add {added}, so no text would be left")

  def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Ids of each text, and how many tokens were cut off its end."""
    bodies = self._bodies(self._seam, texts)
    rows = [[*self._prefix, *body[: self._room], *self._suffix] for body in bodies]
    return rows, [max(0, len(body) - self._room) for body in bodies]

  def _bodies(self, seam: Seam, texts: Sequence[str]) -> list[list[int]]:
    found = self._slots.ids((seam, text) for text in texts)
    return [list(found[seam, text][0]) for text in texts]


class PairTokenizer:
  """Questions with passages to what a cross-encoder reads, its control ids from the tokenizer's template alone.

  Args:
    tokenizer: of the cross-encoder.
    max_tokens: longest pair, the template's tokens included.

  Raises:
    UserError: ``max_tokens`` leaves no room for both.
  """

  def __init__(self, tokenizer: Any, max_tokens: int) -> None:
    self._slots = SlotTokenizer(tokenizer)
    first, second = self._slots.unglued(Seam(PLAIN), "a"), self._slots.unglued(Seam(PLAIN), "b")
    encoded = tokenizer(["a"], ["b"], add_special_tokens=True, truncation=False, padding=False)
    whole = encoded["input_ids"][0]
    types = encoded.get("token_type_ids", [[0] * len(whole)])[0]
    i = _place(tokenizer, list(first), whole)
    j = _place(tokenizer, list(second), whole, i + len(first))
    self._prefix, self._between, self._suffix = whole[:i], whole[i + len(first) : j], whole[j + len(second) :]
    #: Tokens of type 1 in front of the second text; None where the tokenizer knows one type.
    self._typed = j - types.index(1) if 1 in types else None
    added = len(self._prefix) + len(self._between) + len(self._suffix)
    self._room = max_tokens - added
    if self._room < 2:
      raise UserError(f"max_tokens = {max_tokens}: the tokenizer adds {added}, so no room would be left for two texts")

  def __call__(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[int], list[int]]:
    """Ids of each pair, the position from which they have type 1, and how many tokens were cut off.

    What is too long is cut at the end of its longer text, so that neither is lost to the other.
    """
    seam = Seam(PLAIN)
    found = self._slots.ids((seam, text) for pair in pairs for text in pair)
    rows, starts, cut = [], [], []
    for first, second in pairs:
      a, b = found[seam, first][0], found[seam, second][0]
      kept = min(len(a), max(self._room - len(b), self._room // 2))
      row = [*self._prefix, *a[:kept], *self._between]
      second_start = len(row)
      row += [*b[: self._room - kept], *self._suffix]
      rows.append(row)
      starts.append(len(row) if self._typed is None else second_start - self._typed)
      cut.append(max(0, len(a) + len(b) - self._room))
    return rows, starts, cut


def _place(tokenizer: Any, ids: list[int], whole: list[int], start: int = 0) -> int:
  """Where a text's ids stand in what the tokenizer's template makes of it, from ``start`` on."""
  for i in range(start, len(whole) - len(ids) + 1):
    if whole[i : i + len(ids)] == ids:
      return i
  raise UserError(f"tokenizer {type(tokenizer).__name__}: its template changes the text ({ids} is not in {whole})")
