"""Sentence ends and word counts of many texts at once, for scripts that put spaces between words.

The same as :mod:`radit_jax.data.corpus.chunks` finds text by text, in a third of the time: characters become classes of
one byte, and what can stand at a sentence's end is looked for in all texts together. Texts with characters of which
this knows too little, such as those of Chinese or Thai, are left to the other way.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from radit_jax.data.corpus.chunks import CLOSING, OTHER_STOPS, STOPS, UNSPACED, Limit, choose, cut

_SPACE, _END, _CLOSING, _OTHER, _NEWLINE = 1, 2, 4, 8, 16
#: Characters of texts that are looked at together; what is made of them fits the cache of a CPU.
_TOGETHER = 1 << 18
#: Before the first text, so that what stands before any character can be asked for.
_MARGIN = "\n" * 4
_TWO = [ord(word[0]) << 8 | ord(word[1]) for word in ("Dr", "Mr", "Ms", "St", "vs", "No")]
_THREE = [ord(word[0]) << 16 | ord(word[1]) << 8 | ord(word[2]) for word in ("Mrs", "etc")]


def cut_all(texts: Sequence[str], limit: Limit) -> Iterator[list[str]]:
  """What :func:`radit_jax.data.corpus.chunks.cut` makes of each text, without titles.

  Args:
    texts: any texts.
    limit: of a piece, in words; others are left to `cut`.

  Example:
    >>> list(cut_all(["One two. Three four five. Six.", ""], Limit(5)))
    [['One two.', 'Three four five. Six.'], []]
  """
  if limit.unit != "words":
    yield from (cut(text, limit) for text in texts)
    return
  batch: list[str] = []
  length = 0
  for text in texts:
    batch.append(text.strip())
    length += len(text)
    if length >= _TOGETHER:
      yield from _cut_batch(batch, limit)
      batch, length = [], 0
  yield from _cut_batch(batch, limit)


def _cut_batch(texts: list[str], limit: Limit) -> Iterator[list[str]]:
  long = [text for text in texts if len(text) > limit.size]
  joined = "\n".join([_MARGIN, *long, ""])
  if not joined.isascii() and not _is_narrow(joined):
    narrow = [_is_narrow(text) for text in texts]
    found = _cut_batch([text for text, fits in zip(texts, narrow, strict=True) if fits], limit)
    yield from (next(found) if fits else cut(text, limit) for text, fits in zip(texts, narrow, strict=True))
    return
  measured = _measure(joined, long, limit.size)
  number = 0
  for text in texts:
    if len(text) <= limit.size:
      yield [text] if text else []
      continue
    first, last = measured.spans[number]
    if number in measured.left:
      yield cut(text, limit)
    elif measured.words[last] - measured.words[first] <= limit.size:
      yield [text]
    else:
      chosen = choose(measured.words[first:last], measured.words[first + 1 : last + 1], limit.size)
      starts = [measured.bounds[first + i] for i in chosen]
      yield [joined[a:b].strip() for a, b in itertools.pairwise([*starts, measured.bounds[last]])]
    number += 1


@dataclasses.dataclass(frozen=True)
class _Measured:
  """Texts one behind the other, with line breaks between them.

  Attributes:
    bounds: where sentences end; and of each text, where it begins and ends.
    words: that begin before each bound.
    spans: of each text, the first bound and the last.
    left: numbers of texts with a character that is not known here, or a sentence above the limit.
  """

  bounds: list[int]
  words: list[int]
  spans: list[tuple[int, int]]
  left: set[int]


def _is_narrow(text: str) -> bool:
  """Whether a text has no character of two units in UTF-16, where places would not be those of characters."""
  return len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)


def _measure(joined: str, texts: list[str], size: int) -> _Measured:
  table = _table()
  if joined.isascii():
    raw = joined.encode("ascii")
    codes, classes = np.frombuffer(raw, np.uint8), np.frombuffer(raw.translate(table[:256].tobytes()), np.uint8)
    places = np.flatnonzero(classes > _SPACE)
  else:
    codes = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), "<u2")
    low = bytearray(np.minimum(codes, 255).astype(np.uint8))
    classes = np.frombuffer(low.translate(table[:255].tobytes() + bytes([_OTHER])), np.uint8)
    places = np.flatnonzero(classes > _SPACE)
    classes[places] = table[codes[places]]  # those that are looked up one by one, and again the few others
  space = (classes & _SPACE).view(bool)
  # words[i]: how many begin at character i or before
  words = np.empty(len(codes), np.int32)
  words[0] = 0
  np.cumsum(space[:-1] > space[1:], dtype=np.int32, out=words[1:])
  kinds = classes[places]
  first = np.cumsum([len(_MARGIN) + 1, *(len(text) + 1 for text in texts)])
  last = first[1:] - 1
  ends = _sentence_ends(codes, classes, places, kinds)
  bounds = np.sort(np.concatenate([*ends, first[:-1], last]), kind="stable")  # of four runs that are sorted
  bounds = bounds[np.diff(bounds, prepend=-1) > 0]
  before = words[bounds - 1]  # a bound is at white space, or begins a text
  large = bounds[np.flatnonzero(np.diff(before) > size)]
  left = np.searchsorted(last, np.concatenate([large, places[kinds == _OTHER]]), "right")
  spans = zip(np.searchsorted(bounds, first[:-1]).tolist(), np.searchsorted(bounds, last).tolist(), strict=True)
  return _Measured(bounds.tolist(), before.tolist(), list(spans), set(left.tolist()))


def _sentence_ends(
  codes: np.ndarray, classes: np.ndarray, places: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Places of white space behind a sentence, and of line breaks that end a blank line, in all texts together."""
  marks = places[(kinds & (_END | _CLOSING)) != 0]
  at = marks[(classes[marks + 1] & _SPACE) != 0]  # the last mark before white space
  last = classes[at]
  good = (last == _END) & ~_abbreviated(codes, at)
  # A closing character: what it closes must end in a full stop.
  closed = np.flatnonzero(last == _CLOSING)
  place = at[closed] - 1
  while len(closed):
    found = classes[place] == _END
    good[closed[found]] = ~_abbreviated(codes, place[found])
    further = classes[place] == _CLOSING
    closed, place = closed[further], place[further] - 1
  breaks = places[kinds == (_NEWLINE | _SPACE)]
  return at[good] + 1, breaks[1:][_blank(codes, breaks)]


def _abbreviated(codes: np.ndarray, at: np.ndarray) -> np.ndarray:
  """Whether the full stops at these places stand behind an initial or a title, and so end no sentence."""
  one, two, three, four = (codes[at - n].astype(np.int64) for n in (1, 2, 3, 4))
  word = _word_characters()
  short = (one >= ord("A")) & (one <= ord("Z")) & ~word[two]
  short |= np.isin(two << 8 | one, _TWO) & ~word[three]
  short |= np.isin(three << 16 | two << 8 | one, _THREE) & ~word[four]
  return short & (codes[at] == ord("."))


def _blank(codes: np.ndarray, breaks: np.ndarray) -> np.ndarray:
  """For each line break but the last one, whether nothing but blanks stands between it and the next."""
  gaps = np.diff(breaks) - 1
  blank = gaps == 0
  for n in np.flatnonzero((gaps > 0) & np.isin(codes[breaks[:-1] + 1], (0x20, 0x9, 0xD, 0x3000))):
    blank[n] = np.isin(codes[breaks[n] + 1 : breaks[n + 1]], (0x20, 0x9, 0xD, 0x3000)).all()
  return blank


@functools.cache
def _table() -> np.ndarray:
  """Class of each character of 16 bits."""
  table = np.zeros(1 << 16, np.uint8)
  for code in range(1 << 16):
    character = chr(code)
    if character.isspace():
      table[code] = _SPACE
    elif UNSPACED.match(character) or character in OTHER_STOPS or 0xD800 <= code < 0xE000:
      table[code] = _OTHER
  for character in STOPS:
    table[ord(character)] = _END
  for character in CLOSING:
    table[ord(character)] = _CLOSING
  table[ord("\n")] |= _NEWLINE
  return table


@functools.cache
def _word_characters() -> np.ndarray:
  """Whether a character of 16 bits is one of a word, as `re` has it."""
  return np.array([chr(code).isalnum() or code == ord("_") for code in range(1 << 16)])
