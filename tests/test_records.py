"""Files as located records: compressed, cut off, in pieces; and what is said about each thing that is wrong."""

import bz2
import gzip
import json
import tracemalloc

import pytest
from backports import zstd

from radit_jax.data.policy import BadRecord, Skipped, Unused, accepted
from radit_jax.data.records import (
  MAX_LINE_BYTES,
  open_input,
  read_json,
  read_lines,
  read_table,
  read_text_lines,
  read_tree,
  read_xml,
)
from radit_jax.errors import UserError

COMPRESS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "zstd": zstd.compress}


def write(tmp_path, content, name="file"):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def told(located):
  """Places and records; of bad ones what is said about them."""
  return [(str(place), str(r) if isinstance(r, BadRecord) else r) for place, r in located]


@pytest.mark.parametrize("compress", list(COMPRESS))
def test_compressed_files_are_read_as_what_they_hold(tmp_path, compress):
  path = write(tmp_path, COMPRESS[compress](b'\xef\xbb\xbf{"a": "\xc3\xb6"}\r\n\r\n{"a": 2}'))
  assert list(read_lines(path)) == [(f"{path}:1", {"a": "ö"}), (f"{path}:3", {"a": 2})]
  whole = write(tmp_path, COMPRESS[compress](b'\xef\xbb\xbf{"a": [1]}'), "whole")
  assert read_json(whole) == {"a": [1]}


def test_two_members_of_one_archive_are_one_file(tmp_path):
  for name in ("gzip", "bzip2", "zstd"):
    path = write(tmp_path, COMPRESS[name](b"a\nb") + COMPRESS[name](b"c\n"), name)
    assert list(read_text_lines(path)) == [(1, "a"), (2, "bc")]


@pytest.mark.parametrize("compress", ["gzip", "bzip2", "zstd"])
def test_an_archive_cut_off_or_damaged_is_told_after_what_it_held(tmp_path, compress):
  text = b"".join(b"line %d %d\n" % (i, i * i * 7919 % 1000003) for i in range(40_000))
  packed = COMPRESS[compress](text)
  path = write(tmp_path, packed[: len(packed) // 2])
  *good, (number, problem) = read_text_lines(path)
  assert number == len(good) + 1
  assert isinstance(problem, BadRecord)
  assert "cut off or damaged" in str(problem)
  assert [line for _, line in good] == text.decode().split("\n")[: len(good)]
  with pytest.raises(UserError, match="cut off or damaged"):
    read_json(path)
  flipped = bytearray(packed)
  flipped[len(packed) // 2] ^= 0xFF
  assert any(isinstance(line, BadRecord) for _, line in read_text_lines(write(tmp_path, bytes(flipped), "flipped")))


def test_bad_lines_have_their_numbers_and_good_ones_around_them_are_read(tmp_path):
  path = write(
    tmp_path, b'{"a": 1}\n\xff\n{"a": "x\0"}\n[1]\n{"a": 2}\n' + b"[" * 100_000 + b'\n{"a": ' + b"9" * 5000 + b'}\n{"a"'
  )
  assert told(read_lines(path)) == [
    (f"{path}:1", {"a": 1}),
    (f"{path}:2", "not UTF-8 (byte 0 of the line)"),
    (f"{path}:3", "NUL bytes; is this text, and in UTF-8?"),
    (f"{path}:4", "a list, must be an object {...}"),
    (f"{path}:5", {"a": 2}),
    (f"{path}:6", "not JSON (nested too deep)"),
    (
      f"{path}:7",
      "not JSON (a number of thousands of digits)",
    ),
    (f"{path}:8", "not JSON (column 5: it ends too early: Expecting ':' delimiter)"),
  ]


def test_a_line_of_100_megabytes_is_refused_and_the_next_one_read(tmp_path):
  line = b"x" * 1_000_000
  with gzip.open(tmp_path / "file", "wb", compresslevel=1) as f:
    f.write(b"a\n")
    for _ in range(MAX_LINE_BYTES // len(line)):
      f.write(line)
    f.write(b"more\nb\n")
  (_, first), (number, problem), last = read_text_lines(tmp_path / "file")
  assert (first, number, last) == ("a", 2, (3, "b"))
  assert "a line of 100000000 bytes or more" in str(problem)


@pytest.mark.parametrize("read", [read_json, lambda p: list(read_text_lines(p)), lambda p: list(read_xml(p, "a"))])
def test_what_is_no_file_is_said_in_one_line(tmp_path, read):
  for path, message in (
    (tmp_path / "absent", "no such file"),
    (tmp_path, "a folder, must be a file"),
    (write(tmp_path, b"PK\x03\x04rest"), "a zip archive; unpack it"),
    (write(tmp_path, b"", "f") / "below", "no such file"),
  ):
    with pytest.raises(UserError, match=message):
      read(path)


def test_empty_files_hold_nothing(tmp_path):
  for i, content in enumerate((b"", b"\n", b"\xef\xbb\xbf", b" \r\n")):
    path = write(tmp_path, content, str(i))
    assert read_json(path) is None
    assert list(read_lines(path)) == list(read_tree(path, "[]")) == []
    assert list(read_table(path, delimiter="\t", columns=("a", "b"))) == []
  assert list(read_xml(write(tmp_path, b"<a/>", "x"), "b")) == []
  with open_input(write(tmp_path, b"PK", "short")) as f:
    assert f.read() == b"PK"


def test_a_path_through_json_gives_chains_with_their_places(tmp_path):
  content = {"data": [{"t": "x", "qas": [{"id": 1}, 7]}, {"t": "y"}, {"t": "z", "qas": [{"id": 2}]}]}
  path = write(tmp_path, json.dumps(content).encode())
  assert told(read_tree(path, "data[].qas[]")) == [
    (f"{path}#data[0].qas[0]", (content["data"][0], {"id": 1})),
    (f"{path}#data[0].qas[1]", "a number, must be an object {...}"),
    (f"{path}#data[1]", "field 'qas' is missing; found 't'"),
    (f"{path}#data[2].qas[0]", (content["data"][2], {"id": 2})),
  ]
  keyed = write(tmp_path, b'{"p 1": {"qas": [{"id": 1}]}, "p2": []}', "keyed")
  assert told(read_tree(keyed, "{}.qas[]")) == [
    (f'{keyed}#["p 1"].qas[0]', ("p 1", {"qas": [{"id": 1}]}, {"id": 1})),
    (f'{keyed}#["p2"]', "a list, must be an object {...}"),
  ]
  for steps, message in (("[]", "an object, must be a list"), ("rows[]", "'rows' is missing"), ("data{}", "is a list")):
    with pytest.raises(UserError, match=rf"not a file of this format: .*{message}"):
      list(read_tree(path, steps))


def test_tables(tmp_path):
  path = write(tmp_path, b'\xef\xbb\xbfid,text\r\n1,"two, with\na ""line"""\r\n\r\n2\r\n3,\xff\r\n4,"open\nend')
  assert told(read_table(path, delimiter=",")) == [
    (f"{path}:2", {"id": "1", "text": 'two, with\na "line"'}),
    (f"{path}:5", "1 cells, must be 2 (id, text)"),
    (f"{path}:6", "not UTF-8 (byte 2 of the line)"),
    (f"{path}:7", "not a row of cells (unexpected end of data), up to line 8"),
  ]
  path = write(tmp_path, b'a\t"b\nc\td"\n', "tabs")
  rows = read_table(path, delimiter="\t", columns=("x", "y"), quoted=False)
  assert told(rows) == [(f"{path}:1", {"x": "a", "y": '"b'}), (f"{path}:2", {"x": "c", "y": 'd"'})]
  with pytest.raises(UserError, match=r"bad:1: no line of column names: not UTF-8"):
    list(read_table(write(tmp_path, b"\xff\na\n", "bad"), delimiter=","))


def test_xml_elements(tmp_path):
  path = write(tmp_path, b"<f><d><a>x &amp; y</a><l><i>1</i><i/></l><e/></d><d/></f>")
  assert told(read_xml(path, "d")) == [
    (f"{path}#d[0]", {"a": "x & y", "l": ["1", ""], "e": ""}),
    (f"{path}#d[1]", {}),
  ]
  entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
  bomb = f'<!DOCTYPE f [<!ENTITY e0 "{"x" * 100}">{entities}]><f><d><a>&e9;</a></d></f>'
  for name, content in (("cut", b"<f>\n<d>"), ("bytes", b"<f>\xff</f>"), ("bomb", bomb.encode()), ("empty", b"")):
    with pytest.raises(UserError, match=rf"{name}:\d: not XML") as raised:
      list(read_xml(write(tmp_path, content, name), "d"))
    assert "\n" not in str(raised.value)


def test_skipped_counts_by_reason_and_keeps_the_first_five():
  def make(record):
    if record == 99:
      raise Unused("nobody answered")
    if record % 2:
      raise BadRecord(f"{record} is odd", reason="odd")
    return -record

  records = [(f"f:{i}", i) for i in [*range(20), 99]]
  skipped = Skipped()
  assert list(accepted(records, make, "skip", skipped)) == [(f"f:{i}", -i) for i in range(0, 20, 2)]
  assert skipped.total() == 11
  assert skipped.lines() == [
    "10 left out: odd",
    *(f"  f:{i}: {i} is odd" for i in (1, 3, 5, 7, 9)),
    "1 left out: nobody answered",
    "  f:99: nobody answered",
  ]
  skipped = Skipped()
  with pytest.raises(UserError, match=r"^f:1: 1 is odd; correct it, or leave such records out with --on-error skip$"):
    list(accepted(records, make, "strict", skipped))
  assert list(accepted(records[-1:], make, "strict", skipped)) == []
  assert skipped.counts == {"nobody answered": 1}


def test_memory_does_not_grow_with_the_file(tmp_path):
  """Of lines, tables and XML one record is held at a time, also where they are compressed."""
  word = "x" * 1000
  contents = {
    "lines": ("".join(json.dumps({"a": word + str(i)}) + "\n" for i in range(10_000)), read_lines),
    "table": (
      "".join(f"{i},{word}\n" for i in range(10_000)),
      lambda p: read_table(p, delimiter=",", columns=("a", "b")),
    ),
    "xml": ("<f>" + "".join(f"<d><a>{word}{i}</a></d>" for i in range(10_000)) + "</f>", lambda p: read_xml(p, "d")),
  }
  for name, (content, read) in contents.items():
    path = write(tmp_path, zstd.compress(content.encode()), name)
    tracemalloc.start()
    assert sum(1 for _ in read(path)) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000 < len(content), name


def test_what_is_said_is_one_line_of_bounded_length_whatever_the_file_holds(tmp_path):
  path = write(tmp_path, b'a,"b\n\xe2\x80\xa8c"\n1\n' + b"x" * 10_000 + b"\n")
  (_, first), (_, second) = told(read_table(path, delimiter=","))
  assert first == "1 cells, must be 2 (a, b c)"
  assert second == first
  long = BadRecord("x" * 10_000)
  assert len(str(long)) == len(long.reason) == 500
