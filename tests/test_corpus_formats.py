"""The formats of a corpus, each on a file of its own kind."""

import bz2
import gzip
import json
import pathlib

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radit_jax.data.corpus import read_corpus
from radit_jax.data.corpus.folders import markdown, web_page
from radit_jax.data.corpus.formats import blocks, read_block
from radit_jax.data.policy import BadRecord, Skipped
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError


def documents(path, format, **options):
  return [d for b in blocks(path, format, **options) for _, d in read_block(b, format)]


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")
  return path


def lines(path, *records):
  return write(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def test_jsonl_with_sections(tmp_path):
  sections = [{"text": "A town."}, {"title": "History", "text": "Old."}]
  path = lines(
    tmp_path / "c.jsonl",
    {"id": "a", "title": "Orlen", "sections": sections, "metadata": {"year": 3}},
    {"id": "b", "text": "Two.", "section": "Sea"},
  )
  first, second = documents(path, "jsonl")
  assert (first.id, first.title, list(first.sections), first.metadata) == (
    *("a", "Orlen"),
    [("", "A town."), ("History", "Old.")],
    {"year": 3},
  )
  assert list(second.sections) == [("Sea", "Two.")]
  assert [p.text for p in read_corpus(path, format="jsonl")] == ["A town.\n\nOld.", "Two."]


def test_a_folder_of_jsonl_files_in_the_order_of_their_names(tmp_path):
  for name in ("b.jsonl", "a.jsonl"):
    lines(tmp_path / name, {"id": name, "text": "x"})
  (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"id": "c", "text": "x"}'))
  assert [d.id for d in documents(tmp_path, "jsonl")] == ["a.jsonl", "b.jsonl", "c"]


def test_beir(tmp_path):
  lines(
    tmp_path / "corpus.jsonl",
    {"_id": "1", "title": "Orlen", "text": "A town.", "metadata": {}},
    {"_id": "2", "title": "Only", "text": ""},
  )
  lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "Where?"})
  expected = [Passage("1", "Orlen", "A town."), Passage("2", "", "Only")]
  assert list(read_corpus(tmp_path, format="beir")) == expected
  assert list(read_corpus(tmp_path / "corpus.jsonl", format="beir")) == expected
  with pytest.raises(UserError, match=r"a folder without a corpus\.jsonl"):
    list(read_corpus(write(tmp_path / "other/x.txt", "x").parent, format="beir"))


def test_dpr(tmp_path):
  table = 'id\ttext\ttitle\n1\tA town.\tOrlen\n2\t"He said ""no"" twice"\tOrlen\n3\t"a\ttab"\t"T ""q"""\n'
  path = write(tmp_path / "psgs.tsv", table)
  expected = [
    Passage("1", "Orlen", "A town."),
    Passage("2", "Orlen", 'He said "no" twice'),
    Passage("3", 'T "q"', "a\ttab"),
  ]
  assert list(read_corpus(path, format="dpr")) == expected
  for size in (1, 30):
    assert [d.text for d in documents(path, "dpr", block_bytes=size)] == [p.text for p in expected]
  swapped = write(tmp_path / "swapped.tsv", "id\ttitle\ttext\n1\tOrlen\tA town.\n")
  assert list(read_corpus(swapped, format="dpr")) == expected[:1]
  assert list(read_corpus(write(tmp_path / "bare.tsv", "1\tA town.\tOrlen\n"), format="dpr")) == expected[:1]
  for line, message in (
    ("4\tx", "2 cells, must be 3"),
    ('4\t"open\tT', "not a row of cells"),
    ("4\t \tT", "'text' is empty"),
  ):
    bad = write(tmp_path / "bad.tsv", table + line + "\n")
    with pytest.raises(UserError, match=rf"bad\.tsv:5: .*{message}"):
      list(read_corpus(bad, format="dpr"))


def test_kilt(tmp_path):
  text = [
    "Orlen\n",
    "Orlen is a town.\n",
    "It lies by the sea.\n",
    "Section::::History.\n",
    "Section::::History.:Early years.\n",
    "Founded.\n",
    "BULLET::::- 1204: charter\n",
    "Section::::See also.\n",
  ]
  path = lines(
    tmp_path / "kilt.json", {"_id": "7", "wikipedia_id": "7", "wikipedia_title": "Orlen", "text": text, "anchors": []}
  )
  (found,) = documents(path, "kilt")
  assert (found.id, found.title) == ("7", "Orlen")
  assert list(found.sections) == [
    ("", "Orlen is a town.\nIt lies by the sea."),
    ("History > Early years", "Founded.\n- 1204: charter"),
  ]
  bad = lines(tmp_path / "bad.json", {"_id": "7", "wikipedia_title": "Orlen", "text": ["Orlen\n"]})
  with pytest.raises(UserError, match="no paragraph besides the title"):
    list(read_corpus(bad, format="kilt"))


MARKDOWN = """---
layout: page
---
# Orlen

A town.

History
-------
Old.

### Early years ###
Older.

```
# no heading
```

| a | b |
|---|---|
## Sea
Blue.
"""


def test_markdown():
  title, sections = markdown(MARKDOWN)
  assert title == "Orlen"
  assert sections == [
    ("", "A town."),
    ("History", "Old."),
    ("History > Early years", "Older.\n\n```\n# no heading\n```\n\n| a | b |\n|---|---|"),
    ("Sea", "Blue."),
  ]


def test_web_pages():
  page = """<!doctype html><html><head><title>Orlen &ndash; town</title><style>p {}</style>
  <script>var a = "<p>";</script></head><body><nav><a>Home</a></nav><h1>Orlen</h1>
  <p>A <b>town</b>&nbsp;by<br>the sea.<p>Second
  line.</p><h2>His<i>tory</i></h2><ul><li>one<li>two</ul><table><tr><td>a<td>b</tr></table><pre>x  y\n z</pre></body>"""
  title, sections = web_page(page)
  assert title == "Orlen – town"
  assert sections[-1] == ("History", "one\ntwo\n\na b\n\nx  y\n z")
  assert sections[0][1] == "A town by\nthe sea.\nSecond line."
  assert "Home" not in str(sections)
  assert "var" not in str(sections)


def test_a_folder_of_texts(tmp_path):
  write(tmp_path / "a/notes.txt", "\ufeffPlain.\r\nText.")
  write(tmp_path / "b.md", "# Title\n\nBody.")
  write(tmp_path / "c.html", "<title>Page</title><p>Web.")
  write(tmp_path / ".hidden/x.txt", "no")
  write(tmp_path / "empty.txt", " \n")
  write(tmp_path / "picture.png", "x")
  (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
  skipped = Skipped()
  found = list(read_corpus(tmp_path, format="folder", on_error="skip", skipped=skipped))
  assert found == [
    Passage("a/notes.txt", "notes", "Plain.\nText."),
    Passage("b.md", "Title", "Body."),
    Passage("c.html", "Page", "Web."),
  ]
  assert skipped.counts == {"no text": 1, ".png: not read": 1, "not UTF-8": 1}
  with pytest.raises(UserError, match=r"empty\.txt: no text in it"):
    list(read_corpus(tmp_path, format="folder"))
  with pytest.raises(UserError, match="a file; format 'folder' reads a folder"):
    list(read_corpus(tmp_path / "b.md", format="folder"))
  many = [d if isinstance(d, BadRecord) else d.id for d in documents(tmp_path, "folder", block_bytes=1)]
  assert len(many) == 6


def test_office_files_without_the_converter_say_what_to_install(tmp_path):
  import importlib.util

  if importlib.util.find_spec("markitdown"):
    pytest.skip("the converter is installed")
  write(tmp_path / "a.pdf", "%PDF-1.4\n")
  with pytest.raises(UserError, match=r"radit_jax\[office\]"):
    list(read_corpus(tmp_path, format="folder"))


def test_office_files(tmp_path):
  """A Word file written part by part, and a file that is none."""
  pytest.importorskip("markitdown")
  import zipfile

  base = "http://schemas.openxmlformats.org"
  office = f"{base}/officeDocument/2006/relationships/officeDocument"
  word = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
  relations = "application/vnd.openxmlformats-package.relationships+xml"
  style = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>'
  parts = {
    "[Content_Types].xml": f'<Types xmlns="{base}/package/2006/content-types">'
    f'<Default Extension="rels" ContentType="{relations}"/>'
    f'<Override PartName="/word/document.xml" ContentType="{word}"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{base}/package/2006/relationships">'
    f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
    "word/styles.xml": f'<w:styles xmlns:w="{base}/wordprocessingml/2006/main"><w:style w:type="paragraph" '
    'w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>',
    "word/_rels/document.xml.rels": f'<Relationships xmlns="{base}/package/2006/relationships"><Relationship Id="s" '
    f'Type="{base}/officeDocument/2006/relationships/styles" Target="styles.xml"/></Relationships>',
    "word/document.xml": f'<w:document xmlns:w="{base}/wordprocessingml/2006/main"><w:body>'
    f"<w:p>{style}<w:r><w:t>Orlen</w:t></w:r></w:p><w:p><w:r><w:t>A town.</w:t></w:r></w:p></w:body></w:document>",
  }
  with zipfile.ZipFile(tmp_path / "a.docx", "w") as z:
    for name, content in parts.items():
      z.writestr(name, content)
  (tmp_path / "b.docx").write_bytes(b"PK\x03\x04 no Word file")
  skipped = Skipped()
  found = list(read_corpus(tmp_path, format="folder", on_error="skip", skipped=skipped))
  assert found == [Passage("a.docx", "Orlen", "A town.")]
  assert skipped.counts == {"cannot be converted": 1}


def prepared(path, rows):
  """A data set as TFDS prepares it, in ArrayRecord."""
  import tensorflow_datasets as tfds

  class Wiki(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text
      features = tfds.features.FeaturesDict({"title": text(), "text": text()})
      return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  builder = Wiki(data_dir=path, file_format="array_record")
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def test_tfds(tmp_path):
  rows = [{"title": f"Town {i}", "text": f"Text {i} ü."} for i in range(5)] + [{"title": "", "text": "x"}]
  path = prepared(tmp_path, rows)
  skipped = Skipped()
  found = list(read_corpus(path, format="tfds", on_error="skip", skipped=skipped))
  assert found == [Passage(f"Town {i}", f"Town {i}", f"Text {i} ü.") for i in range(5)]
  assert skipped.examples["no id"][0].startswith(f"{path}#row 5: ")
  with pytest.raises(UserError, match="no data set that TFDS prepared"):
    list(read_corpus(tmp_path, format="tfds"))


def test_tfds_runs_no_code_of_others(tmp_path):
  path = prepared(tmp_path, [{"title": "a", "text": "b"}])
  features = (
    (path / "features.json")
    .read_text()
    .replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text", 1)
  )
  (path / "features.json").write_text(features)
  with pytest.raises(UserError, match=r"features\.json names the class 'antigravity\.Text'"):
    list(read_corpus(path, format="tfds"))


def reference_lines(data):
  """Ids and places of the documents of a file, line by line."""
  for number, line in enumerate(data.split(b"\n"), 1):
    try:
      text = line.removeprefix(b"\xef\xbb\xbf").decode() if number == 1 else line.decode()
      if text.strip() and "\0" not in text and isinstance(json.loads(text)["text"], str):
        yield number, json.loads(text)["id"]
    except (ValueError, KeyError, TypeError):
      continue


LINE = st.sampled_from(
  [
    b'{"id": "%d", "text": "t"}',
    b'{"id": "%d", "text": "\xc3\xbc\xe2\x80\xa8"}\r',
    b"",
    b"  ",
    b"\xff",
    b"{half",
    b"[1]",
    b'{"id": "%d"}',
    b'{"id": "%d", "text": "a\0"}',
  ]
)


@given(
  st.lists(LINE, min_size=1, max_size=12),
  st.booleans(),
  st.booleans(),
  st.integers(1, 120),
  st.sampled_from(["", "gz", "bz2", "zst"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_of_any_size_give_the_lines_of_the_file(tmp_path_factory, found, bom, newline, size, packed):
  data = b"\n".join(line % i if b"%d" in line else line for i, line in enumerate(found)) + b"\n" * newline
  data = b"\xef\xbb\xbf" * bom + data
  path = tmp_path_factory.mktemp("lines") / f"c.jsonl.{packed}"
  compress = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "zst": zstd.compress}[packed]
  path.write_bytes(compress(data))
  got = [(place, d) for b in blocks(path, "jsonl", block_bytes=size) for place, d in read_block(b, "jsonl")]
  assert [(int(place.rsplit(":", 1)[1]), d.id) for place, d in got if not isinstance(d, BadRecord)] == list(
    reference_lines(data)
  )
  blank = sum(1 for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if not line.strip())
  assert len(got) == data.count(b"\n") + 1 - blank


def test_a_damaged_archive_is_told_at_its_place(tmp_path):
  good = b"".join(b'{"id": "%d", "text": "%s"}\n' % (i, bytes(str(hash(i * 77)), "ascii") * 9) for i in range(2000))
  path = tmp_path / "c.jsonl.gz"
  path.write_bytes(gzip.compress(good)[:-200])
  for size in (1000, 1 << 20):
    *fine, (place, last) = [x for b in blocks(path, "jsonl", block_bytes=size) for x in read_block(b, "jsonl")]
    assert last.reason == "compressed file damaged"
    assert all(not isinstance(d, BadRecord) for _, d in fine[:100])
    assert place.startswith(f"{path}:")


def test_a_line_that_is_too_long_is_told_and_not_held(tmp_path, monkeypatch):
  from radit_jax.data.corpus import formats

  monkeypatch.setattr(formats, "MAX_LINE_BYTES", 1000)
  path = tmp_path / "c.jsonl"
  path.write_bytes(b'{"id": "a", "text": "x"}\n' + b"y" * 2_000_000 + b'\n{"id": "b", "text": "x"}\n')
  for size in (10, 5000):
    got = [x for b in blocks(path, "jsonl", block_bytes=size) for x in read_block(b, "jsonl")]
    assert [d.id for _, d in got if not isinstance(d, BadRecord)] == ["a", "b"]
    assert [(p, d.reason) for p, d in got if isinstance(d, BadRecord)] == [
      (f"{path}:2", "a line of 1000 bytes or more; does the file have line breaks?")
    ]
    assert got[-1][0] == f"{path}:3"


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_some_page(text):
  for read in (markdown, web_page):
    _, sections = read(text)
    assert all(isinstance(h, str) and body.strip() for h, body in sections)
