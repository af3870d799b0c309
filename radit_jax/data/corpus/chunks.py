"""Long texts cut into pieces below a limit: as few as there can be, at the ends of sentences, of about equal size."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from radit_jax.data.corpus.balance import choose
from radit_jax.data.policy import BadRecord
from radit_jax.data.tokenization import EncoderTokenizer
from radit_jax.errors import UserError

Unit = Literal["words", "characters", "tokens"]
_NO_LIMIT = 2**40

# Scripts without spaces between words, where `str.split` takes a paragraph for one word. A Chinese or Japanese
# character is counted as a word; Thai, Lao, Burmese and Khmer words have four to five characters.
_HAN = (
  "\u3005-\u3007\u3021-\u3029\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
  "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_THAI = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
_THAI_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b6-\u17d3"
_HAN_OPENING = "（［｛「『〈《【〔〖〘〚"
_HAN_MARKS = "、。〃〉》」』】〕〗〙〛〜・！％），．：；？］｝～…"
UNSPACED = re.compile(f"[{_HAN}{_THAI}]")
_WORD = re.compile(f"[{_HAN_OPENING}]*[{_HAN}][{_HAN_MARKS}]*|[{_THAI}]{{1,4}}[{_THAI_MARKS}]*|[^\\s{_HAN}{_THAI}]+")
# First bytes of those characters in UTF-8.
_UNSPACED_BYTES = bytes([0xE0, 0xE1, *range(0xE3, 0xF5)])
_SPACED_WORD = re.compile(r"\S+")

#: Full stops behind which a sentence ends, before white space; those of other scripts; what may follow one.
STOPS = ".!?…"
OTHER_STOPS = "。！？｡．؟۔।॥։።၊။។๚๛"
CLOSING = "\"'”’»›)]」』）】〉》"
_CLOSING = CLOSING.replace("]", "\\]")
# A sentence ends with one of these and white space; with the full stops of Chinese and Japanese, no white space is
# needed. Initials and titles end none. A blank line ends one too, since headings have no full stop. The first character
# class is what makes this fast: `re` looks for nothing else until it has found one.
_SENTENCE_END = re.compile(
  f"""
  [.!?…。！？｡．؟۔।॥։።၊။។๚๛\\n]
  (?:
    (?<=\\n) [ \\t\\r\\u3000]* (?=\\n)
  | (?<![\\n]) (?<!\\b[A-Z]\\.) (?<!\\b(?:Dr|Mr|Ms|St|vs|No)\\.) (?<!\\b(?:Mrs|etc)\\.)
    [.!?…。！？｡{_CLOSING}]* (?: (?=\\s) | (?<=[。！？｡။។]) | (?<=[。！？｡][{_CLOSING}]) )
  )
  """,
  re.VERBOSE,
)
# Thai ends a clause with a space between two Thai letters, and a sentence in no other way.
_THAI_END = re.compile(f"(?<=[{_THAI}])(?=[ \\t\\u00a0][{_THAI}])")


#: The measure of several texts, which stand one behind the other.
Measure = Callable[[Sequence[str]], list[int]]


class TokenCount:
  """Tokens of texts as the passage encoder sees them: its prompt, and what begins and ends every text, included.

  Args:
    tokenizer: of the encoder.
    prompt: of the encoder, put in front of every passage.
  """

  def __init__(self, tokenizer: Any, prompt: str = ""):
    self._encode = EncoderTokenizer(tokenizer, _NO_LIMIT, prompt)

  def __call__(self, texts: Sequence[str]) -> list[int]:
    return [len(row) for row in self._encode(texts)[0]]


@dataclasses.dataclass(frozen=True)
class Limit:
  """How large a piece may be.

  Attributes:
    size: at least 1.
    unit: "words" (what stands between white space; of scripts without spaces, one Chinese or Japanese character, or
      four Thai, Lao, Burmese or Khmer ones), "characters" (code points), or "tokens" (of the title and the piece, as
      the encoder sees them).
    count: tokens of each of several texts; needed for tokens only.
  """

  size: int = 100
  unit: Unit = "words"
  count: Measure | None = None

  def __post_init__(self) -> None:
    if self.size < 1:
      raise UserError(f"Limit.size = {self.size}: must be at least 1")
    if self.unit == "tokens" and self.count is None:
      raise UserError("Limit: unit 'tokens' needs the encoder's count of them")


def count_words(text: str) -> int:
  """Words of a text, see :class:`Limit`.

  Example:
    >>> count_words("Two words."), count_words("我喜欢看书。"), count_words("ฉันชอบอ่าน")
    (2, 5, 3)
  """
  return sum(1 for _ in _WORD.finditer(text)) if _unspaced(text) else len(text.split())


def word_spans(text: str) -> list[tuple[int, int]]:
  """Where each word of a text begins and ends, see :class:`Limit`.

  Example:
    >>> word_spans("Two words.")
    [(0, 3), (4, 10)]
  """
  return [found.span() for found in (_WORD if _unspaced(text) else _SPACED_WORD).finditer(text)]


def _unspaced(text: str) -> bool:
  """Whether a text has characters of scripts without spaces. Its bytes say so in a third of a search's time."""
  if text.isascii():
    return False
  raw = text.encode("utf-8", "surrogatepass")
  return len(raw.translate(None, _UNSPACED_BYTES)) != len(raw) and UNSPACED.search(text) is not None


def cut(text: str, limit: Limit, *, title: str = "") -> list[str]:
  """Pieces of a text, each within the limit; their words, one behind the other, are the text's.

  There are as few pieces as the ends of sentences allow. A cut lies at the end of the sentence that is nearest to where
  the pieces still to come would have equal sizes. A sentence above the limit is cut between words, a word above it (of
  characters or tokens) anywhere.

  Args:
    text: any text.
    limit: of a piece.
    title: counts as part of every piece if tokens are counted.

  Returns:
    Pieces without white space around them; none of an empty text.

  Raises:
    BadRecord: tokens are counted, and the title leaves no room for a text.

  Example:
    >>> cut("One two. Three four five. Six.", Limit(5))
    ['One two.', 'Three four five. Six.']
  """
  text = text.strip()
  if not text:
    return []
  if limit.unit == "tokens":
    return _cut_tokens(text, limit, title)
  if len(text) <= limit.size:
    return [text]
  unspaced = _unspaced(text)
  if limit.unit == "characters":
    return _pieces(text, limit.size, _characters, unspaced)
  if unspaced:
    return _pieces(text, limit.size, _unspaced_words, unspaced)
  if len(text.split(None, limit.size)) <= limit.size:
    return [text]
  return _pieces(text, limit.size, _spaced_words, unspaced)


def _characters(texts: Sequence[str]) -> list[int]:
  return [len(t.strip()) for t in texts]


def _spaced_words(texts: Sequence[str]) -> list[int]:
  return list(map(len, map(str.split, texts)))


def _unspaced_words(texts: Sequence[str]) -> list[int]:
  return [count_words(t) for t in texts]


def _cut_tokens(text: str, limit: Limit, title: str) -> list[str]:
  """Tokens of parts need not add up to those of the whole, so what comes out is counted as it is."""
  count = limit.count
  assert count is not None
  head = f"{title}\n" if title else ""
  whole, before, empty = count([head + text, head, ""])
  if whole <= limit.size:
    return [text] if text else []
  room = limit.size - before
  while room > 0:
    pieces = _pieces(text, room, lambda texts: [n - empty for n in count(texts)], _unspaced(text))
    excess = max(count([head + piece for piece in pieces])) - limit.size
    if excess <= 0:
      return pieces
    room -= excess
  raise BadRecord(f"the title takes {before} tokens of the limit of {limit.size}, so that no text fits beside it")


def _pieces(text: str, size: int, measure: Measure, unspaced: bool) -> list[str]:
  """Pieces of a text that has no white space around it.

  The text falls into parts, with the white space between them, none of which is above the limit; a piece is some parts
  that follow one another.
  """
  bounds = [m.end() for m in _SENTENCE_END.finditer(text)]
  if unspaced:
    bounds = sorted({*bounds, *(m.start() for m in _THAI_END.finditer(text))})
  bounds = [0, *bounds] if bounds and bounds[-1] == len(text) else [0, *bounds, len(text)]
  sizes = measure(_between(text, bounds))
  if max(sizes) > size:
    bounds, sizes = _finer(text, bounds, sizes, size, measure, _WORD if unspaced else _SPACED_WORD)
    sizes = [min(n, size) for n in sizes]  # one character may have more tokens than there is room for
  if measure is not _spaced_words:  # white space between two ends is no part of its own, though it may have a size
    kept = [i for i, part in enumerate(_between(text, bounds)) if not part.isspace()]
    bounds, sizes = [0, *(bounds[i + 1] for i in kept)], [sizes[i] for i in kept]
  end = list(itertools.accumulate(sizes))
  begin = [0, *end[:-1]]
  if measure is _characters:  # the only measure that counts white space, and none is around a piece
    parts = _between(text, bounds)
    begin = [b - len(part.lstrip()) for b, part in zip(bounds[1:], parts, strict=True)]
    end = [a + len(part.rstrip()) for a, part in zip(bounds, parts, strict=False)]
  starts = choose(begin, end, size)
  return [text[bounds[i] : bounds[j]].strip() for i, j in itertools.pairwise([*starts, len(sizes)])]


def _between(text: str, bounds: Sequence[int]) -> list[str]:
  return list(map(text.__getitem__, map(slice, bounds, itertools.islice(bounds, 1, None))))


def _finer(
  text: str, bounds: list[int], sizes: list[int], size: int, measure: Measure, words: re.Pattern[str]
) -> tuple[list[int], list[int]]:
  """Cuts parts above the limit between words, and words above it in halves."""
  out, out_sizes = [0], []
  for a, b, n in zip(bounds, bounds[1:], sizes, strict=False):
    inner = [b]
    if n > size and b - a > 1:
      starts = [m.start() for m in words.finditer(text, a, b)][1:]
      inner = [*(starts or [(a + b) // 2]), b]
    if len(inner) > 1:
      cut_sizes = measure(_between(text, [a, *inner]))
      inner_bounds, n_inner = _finer(text, [a, *inner], cut_sizes, size, measure, words)
      out += inner_bounds[1:]
      out_sizes += n_inner
    else:
      out.append(b)
      out_sizes.append(n)
  return out, out_sizes
