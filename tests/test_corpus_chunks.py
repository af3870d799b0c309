"""Cutting texts into pieces, against a slow twin that goes character by character and tries every partition."""

import functools
import itertools
import random
import string
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from radit_jax.data.corpus import Document, Limit, chunk, spaced
from radit_jax.data.corpus.balance import choose, choose_all
from radit_jax.data.corpus.chunks import OTHER_STOPS, STOPS, UNSPACED, TokenCount, count_words, cut
from radit_jax.data.corpus.spaced import cut_all
from radit_jax.data.policy import BadRecord
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError

ENDS, HAN_ENDS, CLOSING = ".!?…؟۔।", "。！？｡", "\"'”’»›)]」』）】〉》"
ABBREVIATIONS = ("Dr", "Mr", "Ms", "St", "vs", "No", "Mrs", "etc")


def is_han(c):
  return "\u3400" <= c <= "\u9fff" or "\u3040" <= c <= "\u30ff"


def is_thai(c):
  return "\u0e00" <= c <= "\u0e7f"


def slow_ends(text):
  """Places behind which a text may be cut, one character after another."""
  ends = []
  i = 0
  while i < len(text):
    j = i + 1
    if text[i] == "\n":
      while j < len(text) and text[j] in " \t\r\u3000":
        j += 1
      if j < len(text) and text[j] == "\n":
        ends.append(j)
      else:
        j = i + 1
    elif text[i] in ENDS + HAN_ENDS:
      before = text[:i]
      word = before[len(before.rstrip(string.ascii_letters)) :]
      glued = before[: len(before) - len(word)]
      alone = not glued or not (glued[-1].isalnum() or glued[-1] == "_")
      if not (text[i] == "." and alone and (word in ABBREVIATIONS or (len(word) == 1 and word.isupper()))):
        while j < len(text) and text[j] in ENDS[:4] + HAN_ENDS + CLOSING:
          j += 1
        stop = j
        # As much of it as is followed by white space, or ends with a full stop that needs none.
        while stop > i:
          after_space = stop < len(text) and text[stop].isspace()
          han = text[stop - 1] in HAN_ENDS or (
            stop - i > 1 and text[stop - 1] in CLOSING and text[stop - 2] in HAN_ENDS
          )
          if after_space or han:
            ends.append(stop)
            break
          stop -= 1
        j = stop if stop > i else i + 1
    i = j
  ends += [
    i for i in range(1, len(text) - 1) if text[i] in " \t\u00a0" and is_thai(text[i - 1]) and is_thai(text[i + 1])
  ]
  return sorted(set(ends))


def slow_partition(sizes, limit):
  """Pieces of as few parts as can be: every way is tried, and of those the cut nearest to an equal share is taken."""

  @functools.cache
  def fewest(i):
    if i == len(sizes):
      return 0
    return 1 + min(fewest(j) for j in range(i + 1, len(sizes) + 1) if sum(sizes[i:j]) <= limit)

  out, i = [], 0
  while i < len(sizes):
    left = fewest(i)
    share = sum(sizes[i:]) / left
    fit = [j for j in range(i + 1, len(sizes) + 1) if sum(sizes[i:j]) <= limit and fewest(j) == left - 1]
    # Of two that are as near, the earlier one.
    j = min(fit, key=lambda j: (abs(sum(sizes[i:j]) - share), j))
    out.append((i, j))
    i = j
  return out


def slow_words(text):
  count = 0
  run = 0
  for i, c in enumerate(text):
    before = text[i - 1] if i else " "
    if is_han(c):
      count += 1
    elif is_thai(c):
      run = run + 1 if is_thai(before) else 1
      count += run % 4 == 1
    elif not c.isspace() and (before.isspace() or is_thai(before) or is_han(before)):
      count += 1
  return count


WORDS = st.sampled_from(
  ["word", "end.", "Dr.", "J.", "what?", '"quoted."', "(so!)", "etc.", "x", "3.5", "a.b", "…", "Ende.»", "\n", "\n\n"]
)
SPACES = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n \n", "\u00a0"])


@st.composite
def texts(draw):
  parts = draw(st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=25))
  return "".join(w + s for w, s in parts)


@given(texts(), st.integers(3, 12))
@example("a b c. d e f. g h i. j k l.", 6)
@settings(max_examples=300, deadline=None)
def test_words_of_spaced_text_against_the_slow_twin(text, limit):
  stripped = text.strip()
  pieces = cut(text, Limit(limit))
  bounds = [0, *(e for e in slow_ends(stripped) if e < len(stripped)), len(stripped)]
  sentences = [stripped[a:b] for a, b in itertools.pairwise(bounds)]
  sizes = [len(s.split()) for s in sentences]
  if max(sizes) > limit:  # such a sentence is cut anywhere between its words
    parts = [p for s in sentences for p in (s.split() if len(s.split()) > limit else [s])]
  else:
    parts = sentences
  expected = [
    " ".join("".join(f"{p} " for p in parts[i:j]).split())
    for i, j in slow_partition([len(p.split()) for p in parts], limit)
  ]
  if len(stripped.split()) <= limit:
    expected = [" ".join(stripped.split())] if stripped else []
  assert [" ".join(p.split()) for p in pieces] == expected
  assert all(p in text and p == p.strip() for p in pieces)


@given(
  st.lists(
    st.sampled_from(["猫", "が好き", "。", "！」", "「", "word ", "ภาษาไทย", " ", "ก", "ขค ", "、", "end. ", "\n\n"]),
    max_size=40,
  ),
  st.integers(2, 12),
)
@settings(max_examples=300, deadline=None)
def test_scripts_without_spaces(parts, limit):
  text = "".join(parts)
  pieces = cut(text, Limit(limit))
  assert "".join("".join(pieces).split()) == "".join(text.split())
  assert all(1 <= count_words(p) <= limit for p in pieces)
  # Cut only where a sentence ends, unless one alone is above the limit.
  ends = {"".join(text.strip()[:e].split()) for e in slow_ends(text.strip())}
  behind = ""
  for piece in pieces[:-1]:
    behind += "".join(piece.split())
    bounds = [0, *slow_ends(text.strip()), len(text.strip())]
    longest = max(count_words(text.strip()[a:b]) for a, b in itertools.pairwise(bounds))
    assert behind in ends or longest > limit


@given(st.text(alphabet="ab .猫。ก่", max_size=60))
def test_words_are_counted_as_told(text):
  plain = text.replace("่", "ก").replace("。", "")
  assert count_words(plain) == slow_words(plain)


@pytest.mark.parametrize(
  ("text", "limit", "pieces"),
  [
    ("我喜欢看书。他「不喜欢。」她说：我也是！", 9, ["我喜欢看书。", "他「不喜欢。」她说：我也是！"]),
    ("مرحبا كيف حالك؟ أنا بخير. شكرا۔ نعم نعم", 5, ["مرحبا كيف حالك؟", "أنا بخير. شكرا۔ نعم نعم"]),
    ("ฉันชอบ อ่านหนังสือ แต่วันนี้ฝนตก", 5, ["ฉันชอบ อ่านหนังสือ", "แต่วันนี้ฝนตก"]),
    ("यह एक है। वह दो है। वे तीन हैं।", 6, ["यह एक है।", "वह दो है। वे तीन हैं।"]),
    (
      "Dr. A. Smith came. Mrs. Bo left. No. 5 stayed here.",
      5,
      ["Dr. A. Smith came.", "Mrs. Bo left.", "No. 5 stayed here."],
    ),
    ("Heading\n\nOne two three four five.", 5, ["Heading", "One two three four five."]),
  ],
)
def test_sentence_ends(text, limit, pieces):
  assert cut(text, Limit(limit)) == pieces


def test_two_hundred_words_of_chinese_are_two_hundred_characters():
  text = "今天天气很好，我们去公园散步。" * 300
  pieces = cut(text, Limit(200))
  assert "".join(pieces) == text
  assert max(map(len, pieces)) <= 200 + 2 * 15  # marks are no words
  assert all(p.endswith("。") for p in pieces)
  assert max(map(len, pieces)) - min(map(len, pieces)) <= 15


@given(st.text(alphabet=st.sampled_from("ab. \n猫。"), max_size=120), st.integers(1, 20))
@example("a\n\n\na", 1)
@settings(max_examples=300)
def test_characters(text, limit):
  pieces = cut(text, Limit(limit, "characters"))
  assert "".join("".join(pieces).split()) == "".join(text.split())
  assert all(0 < len(p) <= limit and p == p.strip() for p in pieces)
  if all(len(w) <= limit for w in text.replace("。", "。 ").split()) and "猫" not in text:
    kept = [w for p in pieces for w in p.split()]
    assert "".join(kept) == "".join(text.split())


@given(st.integers(20, 2000), st.integers(10, 100))
def test_pieces_of_short_sentences_are_balanced(sentences, limit):
  """Within a sentence of each other, where every sentence has two words."""
  sizes = [len(p.split()) for p in cut("Go on. " * sentences, Limit(limit))]
  assert sum(sizes) == 2 * sentences
  assert len(sizes) == -(-2 * sentences // (limit // 2 * 2))
  assert max(sizes) - min(sizes) <= 2


def test_a_word_above_the_limit_is_cut_where_it_must_be():
  assert max(map(len, cut("x" * 999, Limit(10, "characters")))) <= 10
  assert cut("x" * 999, Limit(10)) == ["x" * 999]  # one word


@pytest.fixture(scope="module")
def tokenizer():
  from tiny import tokenizer_of

  special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
  return tokenizer_of(["A town by the sea. It has a harbour, and 300 boats."], special)


@given(texts(), st.sampled_from(["", "Orlen", "A longer title"]), st.integers(24, 40))
@example("word ", "A longer title", 24)
@example("one.\n\n\n\n two.", "A longer title", 24)
@example("… ", "A longer title", 24)
@settings(max_examples=60, deadline=None)
def test_tokens_are_those_of_what_the_encoder_sees(tokenizer, text, title, limit):
  count = TokenCount(tokenizer, "passage: ")
  head = f"{title}\n" if title else ""
  try:
    pieces = cut(text, Limit(limit, "tokens", count), title=title)
  except BadRecord:  # a character of several tokens may not fit beside a long title
    assert max(count([head + c for c in text if not c.isspace()])) > limit
    return
  assert "".join("".join(pieces).split()) == "".join(text.split())
  seen = [head + p for p in pieces]
  assert all(len(tokenizer("passage: " + s)["input_ids"]) <= limit for s in seen)


def test_a_title_that_leaves_no_room_is_told(tokenizer):
  limit = Limit(12, "tokens", TokenCount(tokenizer))
  with pytest.raises(BadRecord, match=r"the title takes .* of the limit of 12"):
    cut("A town.", limit, title="A very long title that has no end")


def test_limits_that_mean_nothing():
  for limit in ({"size": 0}, {"size": 5, "unit": "tokens"}):
    with pytest.raises(UserError, match="Limit"):
      Limit(**limit)


def test_passages_keep_title_metadata_and_section_and_never_cross_one():
  document = Document(
    "d", "Orlen", [("", "One two. Three."), ("History", "Four five six."), ("Sea", "Seven.")], {"y": 1}
  )
  passages = list(chunk(document, Limit(3)))
  assert passages == [
    Passage("d/0", "Orlen", "One two. Three.", {"y": 1, "document": "d"}),
    Passage("d/1", "Orlen", "Four five six.", {"y": 1, "document": "d", "section": "History"}),
    Passage("d/2", "Orlen", "Seven.", {"y": 1, "document": "d", "section": "Sea"}),
  ]
  assert passages[1].full_text == "Orlen: History\nFour five six."
  assert [p.id for p in chunk(Passage("e", "", "One."), Limit(3))] == ["e"]


ATOMS = {
  12: ("a", "word", " ", "."),
  2: ("Dr", "Mr", "Mrs", "etc", "vs", "No", "St", "A", "B", "é", "éA", "–A", "_A", "3A", "x.y", "\n", "\n\n", "!", "?"),
  1: (
    "  ",
    " " * 20,
    "\n" * 20,
    "a.)" + '"' * 20,
    "\n \n",
    "\n\t\u3000\n",
    "\r\n",
    "\u00a0",
    "\u2009",
    "\u2028",
    "\x1c",
    "\x85",
    "…",
    "...",
    "?!",
    "(",
    "“",
  ),
  0.7: (
    ")",
    "]",
    '"',
    "'",
    "”",
    "’",
    "»",
    ".”",
    "!)",
    "Ω",
    "ÿ",
    "Ā",
    "。",
    "\U0001f600",
    "\U0001f600A.",
    "\u3000",
    "ЖDr.",
  ),
  0.1: ("中", "๛", "ไทย", "！", "｡", "։", "؟", "．", "\U00020000", "၊"),
}


def in_utf8(pieces):
  return [piece.encode() for piece in pieces]


@pytest.mark.parametrize("seed", range(6))
def test_texts_cut_together_are_those_cut_alone(seed, monkeypatch):
  """By every rule of sentences: abbreviations, what closes, blank lines, all kinds of white space."""
  draw = random.Random(seed)
  atoms = [(atom, weight) for weight, of in ATOMS.items() for atom in of]
  names, weights = zip(*atoms, strict=True)
  monkeypatch.setattr(spaced, "_TOGETHER", draw.choice([1, 100, 5000]))
  for _ in range(60):
    texts = ["".join(draw.choices(names, weights, k=draw.randrange(0, 250))) for _ in range(draw.randrange(1, 30))]
    limit = Limit(draw.choice([1, 2, 5, 10, 20, 50, 500]))
    assert list(cut_all(texts, limit)) == [in_utf8(cut(text, limit)) for text in texts]


@given(st.lists(st.one_of(texts(), st.text(max_size=80)), max_size=8), st.integers(1, 12), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_any_texts_cut_together_are_those_cut_alone(many, limit, together):
  many = [text.encode(errors="ignore").decode() for text in many]  # half a surrogate pair is read nowhere
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(spaced, "_TOGETHER", together)
    assert list(cut_all(many, Limit(limit))) == [in_utf8(cut(text, Limit(limit))) for text in many]


def slow_class(character):
  if character.isspace():
    return spaced._SPACE | (spaced._NEWLINE if character == "\n" else 0)
  if UNSPACED.match(character) or character in OTHER_STOPS:
    return spaced._OTHER
  return spaced._END if character in STOPS else spaced._CLOSING if character in CLOSING else 0


def test_every_character_is_of_its_class():
  """Also those of four bytes, of which there is no table. Where no script has one so far, it is left."""
  characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
  classes = spaced._classes("".join([*characters, "\n" * 4]).encode()).tolist()
  at = 0
  for character in characters:
    size = len(character.encode())
    expected = spaced._OTHER if ord(character) >= 0x20000 else slow_class(character)
    assert classes[at : at + min(size, 3)] == [expected] * min(size, 3), hex(ord(character))
    assert expected in (slow_class(character), spaced._OTHER)
    at += size


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=90), max_size=6), st.integers(9, 30))
@settings(max_examples=300, deadline=None)
def test_cuts_of_many_texts_are_those_of_each(many, size):
  words, first, last = [0], [], []
  expected = []
  for parts in many:
    words.append(words[-1])
    first.append(len(words) - 1)
    words += itertools.accumulate(parts, initial=words.pop())
    last.append(len(words) - 1)
    own = words[first[-1] :]
    expected.append([first[-1] + place for place in choose(own[:-1], own[1:], size)])
  places, counts = choose_all(np.array(words, float), np.array(first, int), np.array(last, int), size)
  assert places.tolist() == list(itertools.chain(*expected))
  assert counts.tolist() == [len(places) for places in expected]


def test_most_texts_are_not_left_to_the_other_way(monkeypatch):
  left = []
  monkeypatch.setattr(spaced, "cut", lambda text, limit: left.append(text) or cut(text, limit))
  sentence = "It cost 5 € in “{}” – so much! Dr. Å. said: no… Or «yes»? Nobody knows \U0001f600; так что идём. "
  texts = [sentence.format(n) * 5 for n in range(9)]
  assert list(cut_all([*texts, "猫が好きです。" * 20], Limit(20)))[-1][0].decode().startswith("猫")
  assert left == ["猫が好きです。" * 20]


def test_other_units_are_cut_one_by_one():
  texts = ["One two three. Four five six. ", "", "Seven."]
  limit = Limit(15, "characters")
  assert list(cut_all(texts, limit)) == [in_utf8(cut(text, limit)) for text in texts]
