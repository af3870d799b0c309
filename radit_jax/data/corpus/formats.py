"""The formats a corpus may have: which files belong to it, the blocks they are read in, and the documents of a block.

A block is what one process reads at a time: a few megabytes, whatever the corpus has, and the same ones everywhere.
"""

import csv
import dataclasses
import functools
import io
import os
import pathlib
import typing
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, AnyStr

import numpy as np

from radit_jax.config import CorpusFormat, OnError
from radit_jax.data import squad
from radit_jax.data.corpus import folders
from radit_jax.data.corpus.documents import Document
from radit_jax.data.fields import a_list, an_object, metadata, optional_text, text, type_name
from radit_jax.data.policy import BadRecord, Skipped, accepted
from radit_jax.data.records import (
  MAX_LINE_BYTES,
  broken_archive,
  decode_line,
  json_object,
  open_input,
)
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError

#: Bytes of a block, up to the end of its last line.
BLOCK_BYTES = 8 << 20
_TFDS_ROWS = 1024
#: Names of the files of a folder, by format.
_SUFFIXES = {
  "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.zst"),
  "kilt": (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.bz2", ".jsonl.bz2", ".json.zst", ".jsonl.zst"),
  "dpr": (".tsv", ".tsv.gz", ".tsv.bz2", ".tsv.zst"),
  "squad": (".json", ".json.gz", ".json.bz2", ".json.zst"),
}
_BEIR = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.bz2", "corpus.jsonl.zst")
_NEWLINE = ord("\n")
_BOM = b"\xef\xbb\xbf"
_DPR_COLUMNS = ("id", "text", "title")


@dataclasses.dataclass(frozen=True)
class Block:
  """Part of a corpus.

  Attributes:
    path: the file that it is part of, or the folder.
    first: whether it is the first one of that file.
    offset: where it begins, in bytes.
    length: bytes to read.
    data: the bytes themselves, where the file is compressed.
    problem: what is wrong behind its last line.
    columns: of a table.
    header: whether the first line of the file names them.
    line: lines of the file before it.
    files: documents of a folder.
    rows: first row of a prepared data set, and the one after the last.
    done: bytes of the corpus that are behind it, about.
  """

  path: str
  first: bool = True
  offset: int = 0
  length: int = 0
  data: bytes | None = None
  problem: BadRecord | None = None
  columns: tuple[str, ...] = ()
  header: bool = False
  line: int = 0
  files: tuple[str, ...] = ()
  rows: tuple[int, int] = (0, 0)
  done: int = 0


#: Where it stands, and a document or what is wrong with it.
Read = tuple[str, Document | BadRecord]


def files_of(path: str | os.PathLike[str], format: CorpusFormat) -> list[pathlib.Path]:
  """The files of a corpus, in the order they are read in.

  Raises:
    UserError: no such file or folder, or a folder without a file of this format.
  """
  root = pathlib.Path(path)
  if not root.exists():
    raise UserError(f"{root}: no such file" if format != "folder" else f"{root}: no such folder")
  if format == "tfds":
    return _tfds_files(root)
  if format == "folder":
    if not root.is_dir():
      raise UserError(f"{root}: a file; format 'folder' reads a folder of texts")
    found = folders.files_of(root)
  elif root.is_file():
    return [root]
  elif format == "beir":
    found = [root / name for name in _BEIR if (root / name).is_file()][:1]
  else:
    found = sorted(p for p in root.iterdir() if p.is_file() and p.name.endswith(_SUFFIXES[format]))
  if not found:
    wanted = _BEIR[0] if format == "beir" else "file" if format == "folder" else f"{_SUFFIXES[format][0]} file"
    raise UserError(f"{root}: a folder without a {wanted}, which format {format!r} reads")
  return found


def blocks(path: str | os.PathLike[str], format: CorpusFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
  """The blocks of a corpus, in order.

  Raises:
    UserError: see :func:`files_of`.
  """
  found = files_of(path, format)
  if format == "tfds":
    count = len(_tfds_source(os.fspath(path)))
    for start in range(0, count, _TFDS_ROWS):
      stop = min(start + _TFDS_ROWS, count)
      yield Block(os.fspath(path), rows=(start, stop), done=stop)
    return
  if format == "folder":
    yield from _folder_blocks(os.fspath(path), found, block_bytes)
    return
  done = 0
  for file in found:
    size = file.stat().st_size
    if format == "squad":
      yield Block(str(file), done=done + size)
    else:
      yield from _line_blocks(file, format, block_bytes, done, size)
    done += size


def _folder_blocks(root: str, found: list[pathlib.Path], block_bytes: int) -> Iterator[Block]:
  names: list[str] = []
  size = done = 0
  for file in found:
    size += file.stat().st_size
    names.append(str(file))
    if size >= block_bytes:
      done += size
      yield Block(root, files=tuple(names), done=done)
      names, size = [], 0
  if names:
    yield Block(root, files=tuple(names), done=done + size)


def _line_blocks(path: pathlib.Path, format: str, block_bytes: int, before: int, size: int) -> Iterator[Block]:
  """Blocks that end with a line. A line that is too long to be read keeps its first 100 MB, which says so."""
  columns, header = _columns(path) if format == "dpr" else ((), False)
  first = True
  with open_input(path) as f:
    compressed = not isinstance(getattr(f, "raw", None), io.FileIO)
    number = 0
    buffer = bytearray(0 if compressed else block_bytes)  # what is only counted needs no memory of its own
    while True:
      offset, before_it = f.tell(), number
      problem = None
      data: bytes | bytearray = b""
      rest = b""
      length = 0
      try:
        if compressed:
          data = f.read(block_bytes)
          length = len(data)
        else:
          data, length = buffer, f.readinto(buffer)  # type: ignore[attr-defined]
        if length and data[length - 1] != _NEWLINE:
          rest = f.readline(MAX_LINE_BYTES)
        end = f.tell()
        number += _line_breaks(data, length) + rest.endswith(b"\n")
        if length + len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
          while (more := f.readline(1 << 20)) and not more.endswith(b"\n"):
            pass
          number += 1
      except broken_archive() as e:
        if not compressed:
          raise
        problem = BadRecord(f"the compressed file is cut off or damaged ({e})", reason="compressed file damaged")
        end = offset + length
      if not length and problem is None:
        return
      yield Block(
        path=str(path),
        first=first,
        offset=offset,
        length=end - offset,
        data=b"".join((data, rest)) if compressed else None,
        problem=problem,
        columns=columns,
        header=header,
        line=before_it,
        done=before if compressed else before + end,
      )
      if problem is not None:
        return
      first = False


def _line_breaks(data: bytes | bytearray, length: int) -> int:
  """Line breaks among the first bytes: `count` takes six times as long, and one process does this for all of them."""
  return int(np.count_nonzero(np.frombuffer(data, np.uint8, length) == _NEWLINE))


def _columns(path: pathlib.Path) -> tuple[tuple[str, ...], bool]:
  """Columns of a DPR table: those of psgs_w100.tsv, or as the first line has them."""
  try:
    with open_input(path) as f:
      line = decode_line(f.readline(1 << 16), first=True)
  except broken_archive():
    return _DPR_COLUMNS, False
  cells = tuple(line.split("\t")) if isinstance(line, str) else ()
  return (cells, True) if {"id", "text"} <= set(cells) else (_DPR_COLUMNS, False)


def read_block(block: Block, format: CorpusFormat) -> Iterator[Read]:
  """Documents of a block, in order; blank lines say nothing."""
  if format == "tfds":
    yield from _tfds_rows(block)
  elif format == "folder":
    for name in block.files:
      try:
        yield name, folders.read_document(pathlib.Path(name), pathlib.Path(block.path))
      except BadRecord as e:
        yield name, e
  elif format == "squad":
    for place, paragraph in squad.documents(block.path):
      yield place, paragraph if isinstance(paragraph, BadRecord) else _squad(paragraph)
  else:
    make = _MAKERS[format]
    for number, line in _lines(block):
      place = f"{block.path}:{number}"
      if isinstance(line, BadRecord):
        yield place, line
      elif line and not line.isspace() and not (number == 1 and block.header):
        try:
          yield place, make(line, block)
        except BadRecord as e:
          yield place, e


def _lines(block: Block) -> Iterator[tuple[int, str | BadRecord]]:
  """Lines of a block with their numbers in the file, decoded all at once where every one is sound."""
  data = block.data
  if data is None:
    with open(block.path, "rb") as f:
      f.seek(block.offset)
      data = f.read(block.length)
  if block.first:
    data = data.removeprefix(_BOM)
  number = block.line
  try:
    decoded = data.decode() if b"\0" not in data and len(data) < MAX_LINE_BYTES else None
  except UnicodeDecodeError:
    decoded = None
  if decoded is not None:
    for number, text in enumerate(_split(decoded, "\n"), block.line + 1):
      yield number, text.removesuffix("\r")
  else:
    for number, line in enumerate(_split(data, b"\n"), block.line + 1):
      if len(line) < MAX_LINE_BYTES:
        value = decode_line(line, first=False)
        yield number, value.removesuffix("\r") if isinstance(value, str) else value
      else:
        yield number, BadRecord(f"a line of {MAX_LINE_BYTES} bytes or more; does the file have line breaks?")
  if block.problem is not None:
    yield number + 1, block.problem


def _split(data: AnyStr, line_break: AnyStr) -> list[AnyStr]:
  lines = data.split(line_break)
  return lines if lines[-1] else lines[:-1]


def _jsonl(line: str, block: Block) -> Document:
  record = json_object(line)
  fields = metadata(record)
  title = optional_text(record, "title") or ""
  if record.get("sections") is not None:
    sections = [(optional_text(an_object(s), "title") or "", text(s, "text")) for s in a_list(record, "sections")]
    if not sections:
      raise BadRecord("field 'sections' is an empty list; at least one is needed")
  else:
    sections = [(optional_text(record, "section") or "", text(record, "text"))]
  return Document(text(record, "id"), title, sections, fields)


def _beir(line: str, block: Block) -> Document:
  record = json_object(line)
  body, title = optional_text(record, "text"), optional_text(record, "title") or ""
  if body is None and not title:
    raise BadRecord("fields 'title' and 'text' are empty")
  # Some sets have documents that are a title only.
  return Document(text(record, "_id"), title if body else "", [("", body or title)], metadata(record))


def _dpr(line: str, block: Block) -> Document:
  cells = line.split("\t")
  if '"' in line:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
      cells = next(csv.reader((line,), delimiter="\t", strict=True))
    except csv.Error as e:
      raise BadRecord(f"not a row of cells ({e})", reason="not a row of cells") from None
  if len(cells) != len(block.columns):
    wanted = f"must be {len(block.columns)} ({', '.join(block.columns)})"
    raise BadRecord(f"{len(cells)} cells, {wanted}", reason=f"not {len(block.columns)} cells")
  record = dict(zip(block.columns, cells, strict=True))
  return Document(text(record, "id"), record.get("title", "").strip(), [("", text(record, "text"))], {})


_KILT_SECTION = "Section::::"
_KILT_ITEM = "BULLET::::"


def _kilt(line: str, block: Block) -> Document:
  record = json_object(line)
  title = optional_text(record, "wikipedia_title") or ""
  sections: list[tuple[str, list[str]]] = [("", [])]
  for number, paragraph in enumerate(a_list(record, "text")):
    if not isinstance(paragraph, str):
      raise BadRecord(f"field 'text' holds {type_name(paragraph)}, must be a list of text")
    paragraph = text({"text": paragraph}, "text").strip() if paragraph.strip() else ""
    if paragraph.startswith(_KILT_SECTION):
      name = paragraph.removeprefix(_KILT_SECTION).removesuffix(".").replace(".:", " > ").strip()
      sections.append((name, []))
    elif paragraph and not (number == 0 and paragraph == title):
      sections[-1][1].append(paragraph.replace(_KILT_ITEM, "", 1) if paragraph.startswith(_KILT_ITEM) else paragraph)
  found = [(name, "\n".join(paragraphs)) for name, paragraphs in sections if paragraphs]
  if not found:
    raise BadRecord("field 'text' has no paragraph besides the title", reason="no text")
  identifier = text(record, "wikipedia_id" if record.get("wikipedia_id") is not None else "_id")
  return Document(identifier, title, found, {})


def _squad(paragraph: squad.Paragraph) -> Document:
  title = urllib.parse.unquote(paragraph.article).replace("_", " ")
  return Document(paragraph.id, title, [("", paragraph.text)], {})


_MAKERS: dict[str, Callable[[str, Block], Document]] = {"jsonl": _jsonl, "beir": _beir, "dpr": _dpr, "kilt": _kilt}


def _tfds_files(root: pathlib.Path) -> list[pathlib.Path]:
  found = sorted(p for p in root.iterdir() if p.is_file()) if root.is_dir() else []
  if not any(p.name == "dataset_info.json" for p in found):
    raise UserError(f"{root}: no dataset_info.json, so no data set that TFDS prepared (name the folder of its version)")
  return found


@functools.lru_cache(maxsize=1)
def _tfds_source(path: str) -> Any:
  from radit_jax.data import builders

  return builders.read_prepared(pathlib.Path(path))[1]


def _tfds_rows(block: Block) -> Iterator[Read]:
  source = _tfds_source(block.path)
  numbers = range(*block.rows)
  for number, row in zip(numbers, source.__getitems__(list(numbers)), strict=True):
    place = f"{block.path}#row {number}"
    try:
      record = {name: _utf8(name, value) for name, value in row.items() if isinstance(value, bytes | str)}
      title = optional_text(record, "title") or ""
      identifier = next((v for n in ("id", "_id", "url") if (v := optional_text(record, n))), title)
      if not identifier:
        raise BadRecord("no field 'id', 'url' or 'title' that names the document", reason="no id")
      yield place, Document(identifier, title, [("", text(record, "text"))], {})
    except BadRecord as e:
      yield place, e


def _utf8(name: str, value: bytes | str) -> str:
  try:
    return value.decode() if isinstance(value, bytes) else value
  except UnicodeDecodeError as e:
    raise BadRecord(f"field {name!r} is not UTF-8 (byte {e.start})", reason="not UTF-8") from None


def read_corpus(
  path: str | os.PathLike[str],
  *,
  format: CorpusFormat,
  on_error: OnError = "strict",
  skipped: Skipped | None = None,
) -> Iterator[Passage]:
  """Reads the documents of a corpus, one after another, in one process.

  Formats; the line formats may be compressed, and be a folder of files:

  - ``jsonl``: ``{"id", "text"}`` and maybe ``"title"``, ``"section"``, ``"metadata"`` (name -> text or number) on each
    line; ``"sections"``, a list of ``{"title", "text"}``, may stand in the place of the text;
  - ``beir``: ``corpus.jsonl`` of a BEIR folder, ``{"_id", "title", "text"}`` on each line;
  - ``dpr``: a table of ``id``, ``text``, ``title`` between tabs, as ``psgs_w100.tsv``;
  - ``kilt``: the KILT knowledge source, its ``Section::::`` paragraphs being the sections;
  - ``squad``: every distinct paragraph of a SQuAD file, with the id ``<article>#<n>``;
  - ``folder``: texts, Markdown and HTML, see :mod:`radit_jax.data.corpus.folders`;
  - ``tfds``: a folder in which TFDS has prepared a data set with ``title`` and ``text``, as Wikipedia.

  Args:
    path: the file or folder.
    format: see above.
    on_error: "strict" stops at the first bad line; "skip" leaves bad lines out.
    skipped: counts what was left out, by reason.

  Yields:
    Documents, in the order of the files; sections are told apart by a blank line.

  Raises:
    UserError: no such file, an empty one, or a bad line: not JSON, not UTF-8, a field missing or of the wrong type, an
      id that was there before, a text that is empty.
  """
  for name, value, allowed in (("format", format, CorpusFormat), ("on_error", on_error, OnError)):
    if value not in typing.get_args(allowed):
      raise UserError(f"{name}={value!r}: must be one of {', '.join(map(repr, typing.get_args(allowed)))}")
  skipped = Skipped() if skipped is None else skipped
  before = skipped.total()
  places: dict[str, str] = {}

  def unique(document: Document) -> Document:
    if document.id in places:
      raise already_used(document.id, places[document.id])
    return document

  for place, document in accepted(_all(path, format), unique, on_error, skipped):
    places[document.id] = place
    yield Passage(document.id, document.title, document.text, document.metadata)
  if not places:
    raise no_documents(path, skipped.total() - before)


def _all(path: str | os.PathLike[str], format: CorpusFormat) -> Iterator[Read]:
  for block in blocks(path, format):
    yield from read_block(block, format)


def already_used(name: str, place: str) -> BadRecord:
  """A document whose id another one had before."""
  return BadRecord(f"id {name!r} was already used at {place}", reason="an id that was already used")


def used_by_a_piece(name: str, place: str) -> BadRecord:
  """A document with the id that a piece of another one gets."""
  return BadRecord(
    f"id {name!r} is that of a piece of the document at {place}", reason="an id that a piece of another document has"
  )


def no_documents(path: str | os.PathLike[str], left_out: int) -> UserError:
  """A corpus in which nothing is left."""
  return UserError(
    f"{path}: no documents in it" + (f" ({left_out} bad lines left out)" if left_out else " (empty file)")
  )
