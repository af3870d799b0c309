"""Folders of texts: plain text, Markdown and HTML by what they are, PDF and Office files through a converter.

A file is a document; its id is its path in the folder. Headings become the sections, as in ``History > Early years``.
"""

import functools
import html.parser
import os
import pathlib
import re
import zipfile
from typing import Any

from radit_jax.data.corpus.documents import Document
from radit_jax.data.policy import BadRecord
from radit_jax.data.records import broken_archive, open_input
from radit_jax.errors import UserError

_TEXT = (".txt", ".text")
_MARKDOWN = (".md", ".markdown")
_HTML = (".html", ".htm", ".xhtml")
_OFFICE = (".pdf", ".docx", ".pptx", ".xlsx")
#: A larger file is refused: it is held in memory whole.
_MAX_FILE_BYTES = 100_000_000


def files_of(root: pathlib.Path) -> list[pathlib.Path]:
  """Every file below a folder but hidden ones, by path; links to folders are not followed."""
  found = []
  for directory, names, files in os.walk(root):
    names[:] = sorted(n for n in names if not n.startswith("."))
    found += [pathlib.Path(directory, f) for f in files if not f.startswith(".")]
  return sorted(found, key=lambda p: p.relative_to(root).as_posix())


def read_document(path: pathlib.Path, root: pathlib.Path) -> Document:
  """One file as a document.

  Raises:
    BadRecord: a kind of file that is not read, too large, not UTF-8, or without text.
    UserError: the converter is not installed.
  """
  suffix = path.suffix.lower()
  if suffix not in (*_TEXT, *_MARKDOWN, *_HTML, *_OFFICE):
    kinds = ", ".join((*_TEXT, *_MARKDOWN, *_HTML, *_OFFICE))
    raise BadRecord(
      f"not a kind of file that is read ({kinds})", reason=f"{suffix or 'files without ending'}: not read"
    )
  size = path.stat().st_size
  if size > _MAX_FILE_BYTES:
    raise BadRecord(f"{size} bytes, must be at most {_MAX_FILE_BYTES}", reason="file too large")
  if suffix in _OFFICE:
    title, sections = markdown(_converted(path))
  elif suffix in _TEXT:
    title, sections = "", [("", _text(path))]
  else:
    title, sections = (markdown if suffix in _MARKDOWN else web_page)(_text(path))
  found = [(heading, body) for heading, body in sections if body.strip()]
  if not found:
    raise BadRecord("no text in it", reason="no text")
  name = path.relative_to(root).as_posix()
  try:
    name.encode()
  except UnicodeEncodeError:
    raise BadRecord("its name is not UTF-8", reason="not UTF-8") from None
  return Document(name, title or path.stem, found, {})


def _text(path: pathlib.Path) -> str:
  try:
    with open_input(path) as f:
      text = f.read(_MAX_FILE_BYTES + 1).decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadRecord(f"not UTF-8 (byte {e.start} of the file)", reason="not UTF-8") from None
  except broken_archive() as e:
    raise BadRecord(f"cannot be read ({e})", reason="cannot be read") from None
  if "\0" in text:
    raise BadRecord("NUL bytes; is this text, and in UTF-8?")
  return text.replace("\r\n", "\n").replace("\r", "\n")


@functools.cache
def _converter() -> Any:
  from markitdown import MarkItDown

  return MarkItDown(enable_plugins=False)


def _converted(path: pathlib.Path) -> str:
  with open(path, "rb") as f:
    begins = f.read(5)
  # The converter reads as plain text what it does not know.
  if begins != b"%PDF-" if path.suffix.lower() == ".pdf" else not zipfile.is_zipfile(path):
    raise BadRecord(f"not a {path.suffix.lower()} file inside", reason="cannot be converted")
  try:
    converter = _converter()
  except ImportError:
    raise UserError(
      f"{path}: PDF and Office files need a converter: pip install 'radit_jax[office]' (or move such files away)"
    ) from None
  try:
    return converter.convert_local(path).text_content.replace("\0", "")
  except Exception as e:  # the converter passes on whatever the parsers of each format raise
    message = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
    raise BadRecord(f"cannot be converted ({message})", reason="cannot be converted") from None


class _Sections:
  """Sections under way: what lies above a heading is the headings of lower levels."""

  def __init__(self) -> None:
    self.title = ""
    self.found: list[tuple[str, str]] = []
    self._path: list[tuple[int, str]] = []
    self._lines: list[str] = []

  def line(self, text: str) -> None:
    self._lines.append(text)

  def take_back(self) -> None:
    self._lines.pop()

  def heading(self, level: int, text: str) -> None:
    self.end()
    text = " ".join(text.split())
    if level == 1 and not self.title and not self.found:
      self.title, self._path = text, []
      return
    self._path = [(n, t) for n, t in self._path if n < level]
    if text:
      self._path.append((level, text))

  def end(self) -> None:
    text = "\n".join(self._lines).strip()
    if text:
      self.found.append((" > ".join(t for _, t in self._path), text))
    self._lines = []


_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def markdown(text: str) -> tuple[str, list[tuple[str, str]]]:
  r"""Title (a first heading of level 1) and sections of a Markdown text; its other marks stay as they are.

  Example:
    >>> markdown("# Orlen\n\nA town.\n\n## History\n\nOld.\n\n### Early years\n\nOlder.")
    ('Orlen', [('', 'A town.'), ('History', 'Old.'), ('History > Early years', 'Older.')])
  """
  sections = _Sections()
  fence = ""
  lines = text.split("\n")
  if lines[0].rstrip() == "---" and "---" in (rest := [line.rstrip() for line in lines[1:]]):
    lines = lines[rest.index("---") + 2 :]  # what static site generators read is no text
  before = ""
  for line in lines:
    if (mark := _FENCE.match(line)) and (not fence or mark[1].startswith(fence)):
      fence = "" if fence else mark[1]
      sections.line(line)
    elif fence:
      sections.line(line)
    elif atx := _ATX.match(line):
      sections.heading(len(atx[1]), atx[2] or "")
    elif before.strip() and (setext := _SETEXT.match(line)) and not before.startswith(("    ", "|", "- ", "* ", ">")):
      sections.take_back()
      sections.heading(1 if setext[1][0] == "=" else 2, before)
    else:
      sections.line(line)
      before = line
      continue
    before = ""
  sections.end()
  return sections.title, sections.found


class _Page(html.parser.HTMLParser):
  """Text of a page, line by line; what a reader does not see is left out."""

  HIDDEN = frozenset({"script", "style", "template", "noscript", "nav", "svg", "iframe", "select", "textarea"})
  BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "p", "pre"}
    | {"section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul"}
  )
  PARAGRAPHS = frozenset({"p", "div", "table", "ul", "ol", "blockquote", "pre", "section", "article"})
  HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})

  def __init__(self) -> None:
    super().__init__(convert_charrefs=True)
    self.sections = _Sections()
    self.title = ""
    self._hidden: list[str] = []
    self._words: list[str] = []
    self._heading = ""
    self._in_title = False
    self._pre = 0

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag in self.HIDDEN:
      self._hidden.append(tag)
    elif tag == "title":
      self._in_title = not self.title
    elif tag in self.HEADINGS:
      self._break()
      self._heading = tag
    elif tag in self.BLOCKS:
      self._break()
      self._pre += tag == "pre"
    elif tag in ("td", "th"):
      self._words.append(" ")

  def handle_endtag(self, tag: str) -> None:
    if tag in self._hidden:
      while self._hidden.pop() != tag:
        pass
    elif tag == "title":
      self._in_title = False
    elif tag in self.HEADINGS and self._heading:
      self.sections.heading(int(self._heading[1]), "".join(self._words))
      self._words, self._heading = [], ""
    elif tag in self.BLOCKS:
      self._break()
      if tag in self.PARAGRAPHS:
        self.sections.line("")
      self._pre = max(0, self._pre - (tag == "pre"))

  def handle_data(self, data: str) -> None:
    if self._in_title:
      self.title += data
    elif not self._hidden:
      self._words.append(data)

  def close(self) -> None:
    super().close()
    self._break()
    self.sections.end()

  def _break(self) -> None:
    if self._heading:  # a block inside a heading
      self._words.append(" ")
      return
    text = "".join(self._words)
    if self._pre:
      self.sections.line(text)
    elif line := " ".join(text.split()):
      self.sections.line(line)
    self._words = []


_BLANK_LINES = re.compile(r"\n{3,}")


def web_page(text: str) -> tuple[str, list[tuple[str, str]]]:
  """Title and sections of an HTML page, without scripts, styles and navigation.

  Example:
    >>> web_page("<title>Orlen</title><p>A town.</p><h2>History</h2><p>It is <b>old</b>.</p>")
    ('Orlen', [('', 'A town.'), ('History', 'It is old.')])
  """
  page = _Page()
  page.feed(text)
  page.close()
  title = " ".join(page.title.split()) or page.sections.title
  return title, [(heading, _BLANK_LINES.sub("\n\n", body)) for heading, body in page.sections.found]
