"""Sentence ends and word counts of many texts at once, for scripts that put spaces between words.

The same as :mod:`radit_jax.data.corpus.chunks` finds text by text, many times as fast: the bytes of all texts together
become classes, and what can stand at a sentence's end is looked for among them. Texts with characters of which this
knows too little, such as those of Chinese or Thai, are left to the other way.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from radit_jax.data.corpus.balance import choose_all
from radit_jax.data.corpus.chunks import CLOSING, OTHER_STOPS, STOPS, UNSPACED, Limit, cut

#: Classes of bytes in UTF-8. A character of several bytes gives its class to the first three; until it is known, the
#: first one is of `_UNKNOWN`.
_SPACE, _END, _CLOSING, _OTHER, _NEWLINE, _UNKNOWN = 1, 2, 4, 8, 16, 32
#: Bytes that are looked at together; what is made of them fits the cache of a CPU.
_TOGETHER = 1 << 20
#: Single steps over white space and the like, before all of it is looked for.
_STEPS = 8
#: Around the texts, so that what stands before any byte, and behind it, can be asked for.
_MARGIN = b"\n" * 4
_BLANKS, _WIDE_BLANK = b" \t\r", "\u3000".encode()
_PAIRS = [ord(word[0]) << 8 | ord(word[1]) for word in ("Dr", "Mr", "Ms", "St", "vs", "No")]
_TRIPLES = [ord(word[0]) << 16 | ord(word[1]) << 8 | ord(word[2]) for word in ("Mrs", "etc")]


def cut_all(texts: Sequence[str], limit: Limit) -> Iterator[list[bytes]]:
  """What :func:`radit_jax.data.corpus.chunks.cut` makes of each text, without titles; in UTF-8.

  Args:
    texts: any that can be encoded.
    limit: of a piece, in words; others are left to `cut`.

  Example:
    >>> list(cut_all(["One two. Three four five. Six.", ""], Limit(5)))
    [[b'One two.', b'Three four five. Six.'], []]
  """
  if limit.unit != "words":
    yield from (_cut_alone(text, limit) for text in texts)
    return
  texts = [text.strip() for text in texts]
  encoded = [text.encode() for text in texts]
  long = [raw for text, raw in zip(texts, encoded, strict=True) if len(text) > limit.size]
  pieces = _pieces(_measure_all(long, limit.size), limit.size) if long else iter(())
  for text, raw in zip(texts, encoded, strict=True):
    if len(text) <= limit.size:
      yield [raw] if raw else []
    else:
      found = next(pieces)
      yield _cut_alone(text, limit) if found is None else found


def _cut_alone(text: str, limit: Limit) -> list[bytes]:
  return [piece.encode() for piece in cut(text, limit)]


@dataclasses.dataclass(frozen=True)
class _Measured:
  """Texts one behind the other, with line breaks around them, and their bounds: their ends and those of sentences.

  Attributes:
    raw: the texts.
    words: that begin before each bound.
    begin: of each bound, where the text behind it begins, past white space.
    end: of each bound, where the text before it ends, without white space.
    first: the bound where each text begins.
    last: the bound where it ends.
    left: whether it has a character that is not known here, or a sentence above the limit.
  """

  raw: bytes
  words: Int[np.ndarray, "P"]
  begin: Int[np.ndarray, "P"]
  end: Int[np.ndarray, "P"]
  first: Int[np.ndarray, "N"]
  last: Int[np.ndarray, "N"]
  left: Bool[np.ndarray, "N"]


def _pieces(measured: _Measured, size: int) -> Iterator[list[bytes] | None]:
  """Pieces of each text, None for those that are left."""
  raw, last = measured.raw, np.where(measured.left, measured.first, measured.last)
  starts, counts = choose_all(measured.words.astype(np.float64), measured.first, last, size)
  stops = np.append(starts[1:], 0)
  stops[np.cumsum(counts) - 1] = last
  spans = zip(measured.begin[starts].tolist(), measured.end[stops].tolist(), strict=True)
  pieces = [raw[a:b] for a, b in spans]
  place = 0
  for count, left in zip(counts.tolist(), measured.left.tolist(), strict=True):
    yield None if left else pieces[place : place + count]
    place += count


def _measure_all(texts: Sequence[bytes], size: int) -> _Measured:
  """A few texts at a time, put together; at least one."""
  parts = []
  start = length = 0
  for number, text in enumerate(texts, 1):
    length += len(text)
    if length >= _TOGETHER or number == len(texts):
      parts.append(_measure(texts[start:number], size))
      start, length = number, 0

  def joined(name: str, before: Sequence[int]) -> np.ndarray:
    offsets = np.cumsum([0, *before[:-1]])
    return np.concatenate([getattr(part, name) + offset for part, offset in zip(parts, offsets, strict=True)])

  lengths, bounds = [len(part.raw) for part in parts], [len(part.words) for part in parts]
  return _Measured(
    raw=b"".join(part.raw for part in parts),
    words=joined("words", [int(part.words[-1]) for part in parts]),
    begin=joined("begin", lengths),
    end=joined("end", lengths),
    first=joined("first", bounds),
    last=joined("last", bounds),
    left=np.concatenate([part.left for part in parts]),
  )


def _measure(texts: Sequence[bytes], size: int) -> _Measured:
  raw = b"\n".join([_MARGIN, *texts, _MARGIN])
  codes, classes = np.frombuffer(raw, np.uint8), _classes(raw)
  space = (classes & _SPACE).view(bool)
  places = np.flatnonzero(classes > _SPACE)
  kinds = classes[places]
  begins = np.cumsum([len(_MARGIN) + 1, *(len(text) + 1 for text in texts)])
  begins, ends = begins[:-1], begins[1:] - 1
  sentences, blank_lines = _sentence_ends(raw, codes, classes, places, kinds)
  bounds = np.sort(np.concatenate([sentences, blank_lines, begins, ends]), kind="stable")  # of four runs
  bounds = bounds[np.diff(bounds, prepend=-1) > 0]
  words = _count_before(space[:-1] > space[1:], bounds - 1)  # white space before something else
  first, last = np.searchsorted(bounds, begins), np.searchsorted(bounds, ends)
  left = np.zeros(len(texts) + 1, bool)  # the last one is of what is between the texts
  large = bounds[np.flatnonzero(np.diff(words) > size)]
  left[np.searchsorted(ends, np.concatenate([large, places[kinds == _OTHER]]), "right")] = True
  return _Measured(
    raw=raw,
    words=words,
    begin=_moved(bounds, 1, space),
    end=_moved(bounds - 1, -1, space) + 1,
    first=first,
    last=last,
    left=left[:-1],
  )


def _classes(raw: bytes) -> UInt8[np.ndarray, "n"]:
  """Class of each byte."""
  table = _byte_table()
  classes = np.frombuffer(raw.translate(table), np.uint8)
  if raw.isascii():
    return classes
  at = np.flatnonzero(classes == _UNKNOWN)
  if not len(at):
    return classes
  codes = np.frombuffer(raw, np.uint8)
  one, two, three = (codes[at + n].astype(np.int32) for n in range(3))
  code = np.where(one < 0xE0, (one & 0x1F) << 6 | two & 0x3F, (one & 0xF) << 12 | (two & 0x3F) << 6 | three & 0x3F)
  # Of those of four bytes only the Chinese ones, from 0x20000 on, are more than a letter.
  kinds = np.where(one < 0xF0, _table()[code], np.where((one == 0xF0) & (two < 0xA0), 0, _OTHER)).astype(np.uint8)
  classes = classes.copy()
  classes[at] = kinds
  known = kinds != 0
  at, one, kinds = at[known], one[known], kinds[known]
  classes[at + 1] = kinds
  classes[at[one >= 0xE0] + 2] = kinds[one >= 0xE0]
  return classes


def _count_before(flags: Bool[np.ndarray, "n"], places: Int[np.ndarray, "P"]) -> Int[np.ndarray, "P"]:
  """How many flags stand before each place: whole words of 64 are counted once, and of its own word each place's."""
  packed = np.packbits(flags, bitorder="little")
  words = np.append(packed, np.zeros(8 + -len(packed) % 8, np.uint8)).view("<u8")
  before = np.cumsum(np.bitwise_count(words), dtype=np.int64) - np.bitwise_count(words)
  word, bit = places >> 6, (places & 63).astype(np.uint64)
  return before[word] + np.bitwise_count(words[word] & ((np.uint64(1) << bit) - np.uint64(1)))


def _moved(places: Int[np.ndarray, "P"], step: int, past: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "P"]:
  """Places moved on, one step or one back at a time, to where ``past`` is False, or to the end of all."""
  places = places.copy()
  moving = np.flatnonzero(past[places])
  for _ in range(_STEPS):
    if not len(moving):
      return places
    places[moving] += step
    moving = moving[(places[moving] > 0) & (places[moving] < len(past) - 1)]
    moving = moving[past[places[moving]]]
  stops = np.concatenate([[0], np.flatnonzero(~past[1:-1]) + 1, [len(past) - 1]])
  at = np.searchsorted(stops, places[moving], "left" if step > 0 else "right")
  places[moving] = stops[at if step > 0 else at - 1]
  return places


def _sentence_ends(
  raw: bytes,
  codes: UInt8[np.ndarray, "n"],
  classes: UInt8[np.ndarray, "n"],
  places: Int[np.ndarray, "m"],
  kinds: UInt8[np.ndarray, "m"],
) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "b"]]:
  """Places of white space behind a sentence, and of line breaks that end a blank line, in all texts together."""
  marks = places[(kinds & (_END | _CLOSING)) != 0]
  at = marks[(classes[marks + 1] & _SPACE) != 0]  # the last byte of the last mark before white space
  last = classes[at]
  stops = at.copy()
  closed = last == _CLOSING  # what they close must end in a full stop
  if closed.any():
    stops[closed] = _moved(at[closed], -1, classes == _CLOSING)
  good = (classes[stops] == _END) & ~_abbreviated(raw, codes, stops)
  breaks = places[kinds == (_NEWLINE | _SPACE)]
  return at[good] + 1, breaks[1:][_blank(raw, breaks)]


def _abbreviated(raw: bytes, codes: UInt8[np.ndarray, "n"], at: Int[np.ndarray, "m"]) -> Bool[np.ndarray, "m"]:
  """Whether the full stops at these places stand behind an initial or a title, and so end no sentence."""
  one, two, three = (codes[at - n].astype(np.int32) for n in (1, 2, 3))
  length = ((one >= ord("A")) & (one <= ord("Z"))).astype(np.int64)
  for letters, titles, found in ((2, _PAIRS, two << 8 | one), (3, _TRIPLES, three << 16 | two << 8 | one)):
    for title in titles:
      length[found == title] = letters
  short = (length > 0) & (codes[at] == ord("."))
  candidates = np.flatnonzero(short)
  before = at[candidates] - length[candidates] - 1
  short[candidates] = [not _ends_in_word(raw[max(0, place - 3) : place + 1]) for place in before.tolist()]
  return short


def _ends_in_word(raw: bytes) -> bool:
  """Whether the last character is one of a word, as `re` has it; the first one may be cut off."""
  character = raw.decode(errors="ignore")[-1]
  return character.isalnum() or character == "_"


def _blank(raw: bytes, breaks: Int[np.ndarray, "m"]) -> Bool[np.ndarray, "k"]:
  """For each line break but the last one, whether nothing but blanks stands between it and the next."""
  gaps = np.diff(breaks) - 1
  blank = gaps == 0
  behind = np.frombuffer(raw, np.uint8)[breaks[:-1] + 1]
  for n in np.flatnonzero((gaps > 0) & _is_blank()[behind]).tolist():
    line = raw[breaks[n] + 1 : breaks[n + 1]]
    blank[n] = not line.replace(_WIDE_BLANK, b"").strip(_BLANKS)
  return blank


@functools.cache
def _is_blank() -> Bool[np.ndarray, "256"]:
  """Whether a byte may begin a blank line that is not empty."""
  out = np.zeros(256, bool)
  out[[*_BLANKS, _WIDE_BLANK[0]]] = True
  return out


@functools.cache
def _table() -> UInt8[np.ndarray, "c"]:
  """Class of each character of at most three bytes."""
  table = np.zeros(1 << 16, np.uint8)
  characters = "".join(map(chr, range(1 << 16)))
  for kind, pattern in ((_OTHER, f"(?:{UNSPACED.pattern})+"), (_SPACE, r"\s+")):
    for found in re.finditer(pattern, characters):
      table[slice(*found.span())] = kind
  for kind, marks in ((_OTHER, OTHER_STOPS), (_END, STOPS), (_CLOSING, CLOSING)):
    table[list(map(ord, marks))] = kind
  table[ord("\n")] |= _NEWLINE
  return table


@functools.cache
def _byte_table() -> bytes:
  """Class of each byte: of a character, or `_UNKNOWN` where one that begins with it may have a class."""
  table = _table()
  out = bytearray(256)
  out[:128] = table[:128].tobytes()
  for code in np.flatnonzero(table[128:]).tolist():
    out[chr(code + 128).encode()[0]] = _UNKNOWN
  out[0xF0:0xF5] = bytes([_UNKNOWN] * 5)
  return bytes(out)
