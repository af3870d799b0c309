"""Files broken at random: every reader ends in examples or in one line that names the place, never in a traceback."""

import bz2
import gzip
import json
import pathlib
import random
import shutil

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_files import ORIGINALS, write

from radit_jax.data.policy import BadRecord, Skipped
from radit_jax.data.readers.example import CATEGORIES, Example
from radit_jax.data.records import read_json, read_lines, read_table, read_text_lines, read_tree, read_xml
from radit_jax.data.sources import read_examples
from radit_jax.errors import UserError

#: The same cases each time: what these tests say must not change from run to run.
FAST = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
ODD = [
  None,
  True,
  0,
  -1,
  7,
  1.5,
  10**30,
  float("inf"),
  "",
  " ",
  "\n",
  "x",
  "A",
  "\ud800",
  "\0",
  "é" * 300,
  "0",
  "[SEP]",
]
ODD += [[], {}, [[]], [{}], {"": None}, ["x"], [None], {"0": {}}, {"text": "x"}, [{"text": "x"}]]
BYTES = [
  b"\0",
  b"\xff",
  b"\xef\xbb\xbf",
  b"\n",
  b"\r\n",
  b'"',
  b"\t",
  b",",
  b"{",
  b"[",
  b"]",
  b"}",
  b"\\",
  b"\xed\xa0\x80",
]


def broken_value(draw: random.Random, value):
  """A JSON value with one or two of its parts replaced, left out or repeated."""
  if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
    return draw.choice(ODD)
  key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
  value = value.copy()
  how = draw.random()
  if how < 0.15:
    del value[key]
  elif how < 0.25 and isinstance(value, list):
    value.append(value[key])
  else:
    value[key] = broken_value(draw, value[key])
  return value


def broken_text(draw: random.Random, content: bytes) -> bytes:
  """A file's bytes with pieces put in, taken out, repeated, or with its end missing."""
  for _ in range(draw.randint(1, 3)):
    at = draw.randint(0, len(content))
    end = min(len(content), at + draw.choice((1, 2, 5, 40)))
    how = draw.random()
    if how < 0.4:
      content = content[:at] + draw.choice(BYTES) + content[at:]
    elif how < 0.6:
      content = content[:at] + content[end:]
    elif how < 0.7:
      content = content[:end] + content[at:]
    elif how < 0.8:
      content = content[:at]
    else:
      content = content[:at] + bytes([draw.randrange(256)]) + content[end:]
  return content


def broken(draw: random.Random, content: bytes) -> bytes:
  if draw.random() < 0.35:
    return broken_text(draw, content)
  try:
    return json.dumps(broken_value(draw, json.loads(content))).encode()
  except ValueError:
    pass
  lines = content.splitlines(keepends=True)
  at = draw.randrange(len(lines)) if lines else 0
  try:
    lines[at] = json.dumps(broken_value(draw, json.loads(lines[at]))).encode() + b"\n"
    return b"".join(lines)
  except (ValueError, IndexError):
    return broken_text(draw, content)


def check_line(error: str, place: pathlib.Path) -> None:
  assert error.startswith(str(place))
  assert "\n" not in error
  assert len(error) < 3000


def check(example: Example) -> None:
  assert example.id.strip()
  assert example.instruction.strip()
  assert example.category in CATEGORIES
  assert all(answer.strip() for answer in example.answers)
  for text in (example.id, example.instruction, *example.answers, *(example.turns or ()), *(example.choices or ())):
    text.encode()  # a store takes it
    assert "\0" not in text
  if example.choices:
    assert set(example.answers) & set(example.choices) or example.category == "reasoning"


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_a_broken_file_gives_examples_or_one_line(tmp_path, name):
  whole = {p: p.read_bytes() for p in (write(tmp_path, name), *tmp_path.rglob("*")) if p.is_file()}
  path = tmp_path / ORIGINALS[name][0]
  outcomes = {"examples": 0, "error": 0}

  @settings(max_examples=100, **FAST)
  @given(st.integers(0, 2**32 - 1))
  def one(seed):
    draw = random.Random(seed)
    for file, content in whole.items():
      file.write_bytes(content)
    file = draw.choice(sorted(whole))
    if draw.random() < 0.03:
      file.unlink()
    else:
      file.write_bytes(broken(draw, whole[file]))
    kept, skipped = {}, {}
    for mode in ("strict", "skip"):
      skipped[mode] = Skipped()
      try:
        kept[mode] = list(read_examples(path, format=name, on_error=mode, skipped=skipped[mode]))
      except UserError as e:
        check_line(str(e), tmp_path)
        continue
      for example in kept[mode]:
        check(example)
      assert len({e.id for e in kept[mode]}) == len(kept[mode])
    if "strict" in kept:  # nothing was bad: "skip" reads the same
      assert kept["strict"] == kept["skip"]
      assert skipped["strict"].counts == skipped["skip"].counts
    elif "skip" in kept:
      assert skipped["skip"].total()
    outcomes["examples" if "strict" in kept else "error"] += 1

  one()
  assert min(outcomes.values()) > 2, outcomes  # else the files are broken too little or too much to say anything


LAYER_FILES = [content.encode() for _, files, _ in ORIGINALS.values() for content in files.values()]
LAYER_FILES += [b"<a><d><x>1</x><l><i>2</i></l></d><d/></a>", b'a,b\n1,"2\n3"\n', b"\xef\xbb\xbfa\tb\r\n1\t2\r\n", b""]


def lines_slowly(content: bytes) -> list[tuple[int, str | None]]:
  """Lines of a file by splitting it whole; None for a line that is no text."""
  parts = content.split(b"\n")
  out: list[tuple[int, str | None]] = []
  for number, part in enumerate(parts, 1):
    if number == len(parts) and not part:
      break
    part = part.removeprefix(b"\xef\xbb\xbf") if number == 1 else part
    try:
      text = part.decode()
    except UnicodeDecodeError:
      out.append((number, None))
      continue
    ended = number < len(parts)
    out.append((number, None if "\0" in text else text.removesuffix("\r") if ended else text))
  return out


@settings(max_examples=2000, **FAST)
@given(st.integers(0, 2**32 - 1))
def test_the_shared_layer_gives_records_or_one_line(tmp_path_factory, seed):
  draw = random.Random(seed)
  content = draw.choice(LAYER_FILES)
  content = draw.randbytes(draw.randint(0, 60)) if draw.random() < 0.05 else broken(draw, content)
  compress = draw.choice((bytes, bytes, bytes, gzip.compress, bz2.compress, zstd.compress))
  packed = compress(content)
  path = tmp_path_factory.getbasetemp() / "layer"
  path.write_bytes(packed)
  if not (content[:3] == b"BZh" or content[:2] in (b"\x1f\x8b", b"PK", b"\x28\xb5")):
    found = [(n, None if isinstance(line, BadRecord) else line) for n, line in read_text_lines(path)]
    assert found == lines_slowly(content)
  damaged = compress is not bytes and draw.random() < 0.5
  if damaged:
    path.write_bytes(broken_text(draw, packed))
  readers = (
    lambda: list(read_text_lines(path)),
    lambda: list(read_lines(path)),
    lambda: list(read_table(path, delimiter=draw.choice("\t,"), quoted=draw.random() < 0.5)),
    lambda: list(read_table(path, delimiter="\t", columns=("a", "b"), quoted=False)),
    lambda: list(read_tree(path, draw.choice(("[]", "{}", "data[].paragraphs[].qas[]", "{}.qa_pairs[]", "Data[]")))),
    lambda: list(read_xml(path, draw.choice(("d", "a")))),
    lambda: [("", read_json(path))],
  )
  for read in readers:
    try:
      located = read()
    except UserError as e:
      check_line(str(e), path)
      continue
    for place, record in located:
      assert isinstance(place, str | int)
      if isinstance(record, BadRecord):
        assert "\n" not in str(record)
        assert record.reason
      elif not damaged and read is readers[1]:
        assert isinstance(record, dict)


def test_a_folder_where_a_file_should_be_and_the_other_way_round(tmp_path):
  for name in ORIGINALS:
    path = write(tmp_path / name, name)
    if path.is_dir():
      shutil.rmtree(path)
      path.write_text("{")
    else:
      path.unlink()
      path.mkdir()
    with pytest.raises(UserError) as raised:
      list(read_examples(path, format=name))
    assert str(raised.value).startswith(str(path)), name
