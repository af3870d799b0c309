"""Sentence ends and word counts of many texts at once, for scripts that put spaces between words.

The same as :mod:`radit_jax.data.corpus.chunks` finds text by text, in a third of the time: characters become classes of
one byte, and what can stand at a sentence's end is looked for in all texts together. Texts with characters of which
this knows too little, such as those of Chinese or Thai, are left to the other way.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from radit_jax.data.corpus.chunks import CLOSING, OTHER_STOPS, STOPS, UNSPACED, Limit, choose, cut

_SPACE, _END, _CLOSING, _OTHER, _NEWLINE = 1, 2, 4, 8, 16
#: Characters of texts that are looked at together; what is made of them fits the cache of a CPU.
_TOGETHER = 1 << 17
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
  found = iter(_measured(long, limit.size) if long else ())
  for text in texts:
    if len(text) <= limit.size:
      yield [text] if text else []
    elif (measure := next(found)) is None:
      yield cut(text, limit)
    else:
      bounds, words = measure
      if words[-1] <= limit.size:
        yield [text]
      else:
        starts = [bounds[i] for i in choose(words[:-1], words[1:], limit.size)]
        yield [text[a:b].strip() for a, b in itertools.pairwise([*starts, len(text)])]


def _measured(texts: list[str], size: int) -> list[tuple[list[int], list[int]] | None]:
  """Where the sentences of texts end, and how many words stand before each end.

  Returns:
    For each text, bounds from 0 to its length and the words before each of them; None where a character is not known
    here, or a sentence has more than ``size`` words.
  """
  joined = "\n".join([_MARGIN, *texts, ""])
  table = _table()
  if joined.isascii():
    raw = joined.encode("ascii")
    codes, classes = np.frombuffer(raw, np.uint8), np.frombuffer(raw.translate(table[:256].tobytes()), np.uint8)
  else:
    raw = joined.encode("utf-16-le", "surrogatepass")
    if len(raw) != 2 * len(joined):  # a character of two units: places would not be those of characters
      return [_measured([text], size)[0] if max(text) <= "\uffff" else None for text in texts]
    codes = np.frombuffer(raw, np.uint16)
    low = np.minimum(codes, 255).astype(np.uint8)
    classes = np.frombuffer(bytearray(low.tobytes().translate(table[:256].tobytes())), np.uint8)
    high = np.flatnonzero(codes > 255)
    classes[high] = table[codes[high]]
  space = (classes & _SPACE).view(bool)
  # words[i]: how many begin before character i
  begins = space[:-1] & ~space[1:]
  words = np.empty(len(codes), np.int32)
  words[0] = 0
  np.cumsum(begins, dtype=np.int32, out=words[1:])
  ends = _sentence_ends(codes, classes, space)
  first = np.cumsum([len(_MARGIN) + 1, *(len(text) + 1 for text in texts)])
  last = first[1:] - 1
  # Every text ends somewhere, whether its last sentence does or not.
  bounds = np.unique(np.concatenate([ends, first[:-1], last]))
  before = words[bounds - 1]  # a word begins behind white space, and none begins at a bound but the first one
  stops = np.searchsorted(bounds, last, "right")
  starts = np.searchsorted(bounds, first[:-1])
  large = np.flatnonzero(np.diff(before) > size)
  odd = np.flatnonzero(classes & _OTHER)
  left = set(np.searchsorted(last, bounds[large], "right").tolist())
  left |= set(np.searchsorted(last, odd, "right").tolist())
  return [
    None if n in left else ((bounds[a:b] - origin).tolist(), (before[a:b] - before[a]).tolist())
    for n, (a, b, origin) in enumerate(zip(starts.tolist(), stops.tolist(), first.tolist(), strict=False))
  ]


def _sentence_ends(codes: np.ndarray, classes: np.ndarray, space: np.ndarray) -> np.ndarray:
  """Places of white space behind a sentence, and of line breaks that end a blank line, in all texts together."""
  marks = classes & (_END | _CLOSING)
  at = np.flatnonzero(space[1:] & (marks[:-1] != 0)) + 1  # white space behind a mark
  last, before = marks[at - 1], marks[at - 2]
  good = (last == _END) & ((before != 0) | ~_abbreviated(codes, at - 1))
  # A closing character: what it closes must end in a mark.
  closed = np.flatnonzero(last == _CLOSING)
  place = at[closed] - 2
  while len(closed):
    mark = marks[place]
    found = mark == _END
    good[closed[found]] = (marks[place[found] - 1] != 0) | ~_abbreviated(codes, place[found])
    closed, place = closed[mark == _CLOSING], place[mark == _CLOSING] - 1
  breaks = np.flatnonzero(classes & _NEWLINE)
  following = breaks[1:][_blank(codes, breaks)]
  return np.concatenate([at[good], following])


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
