"""One block of a corpus cut into pieces, and what is kept of it on disk until the store is written."""

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from radit_jax import files
from radit_jax.config import CorpusFormat
from radit_jax.data.corpus.chunks import Limit
from radit_jax.data.corpus.documents import Document, metadata_of, sectioned
from radit_jax.data.corpus.formats import Block, read_block
from radit_jax.data.corpus.serialized import Records, digest, digesting, feature, metadata_text, piece_names
from radit_jax.data.corpus.spaced import cut_all
from radit_jax.data.corpus.table import by_digest, numbers
from radit_jax.data.policy import BadRecord, Skipped

#: A piece of a block: the digest of what an encoder sees of it, and its number in the block. Sorted by digest.
PIECE = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4")])
#: A document of a block: the digest of its id, its number, the number of its first piece and how many it has.
BLOCK_DOCUMENT = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u4"), ("first", "<u4"), ("count", "<u4")])


#: A document called `<id>/<piece>`, as a piece of another one may be: the digest of that id, the piece, its own number.
NUMBERED = np.dtype([("high", "<u8"), ("low", "<u8"), ("piece", "<u4"), ("number", "<u4")])
_NUMBERED_ID = re.compile(r"(.*)/(0|[1-9][0-9]{0,8})", re.DOTALL)

#: Documents cut together.
_TOGETHER = 1024
#: Where a document stands, the document, and its headings with their pieces in UTF-8.
Cut = tuple[str, Document, list[tuple[str, list[bytes]]]]


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What questions name, and a scan looks for.

  Attributes:
    ids: of documents.
    texts: digests of whole documents, without white space around them.
  """

  ids: frozenset[str] = frozenset()
  texts: frozenset[bytes] = frozenset()


@dataclasses.dataclass
class Scanned:
  """What is known of a block.

  Attributes:
    pieces: how many it has.
    documents: how many it has.
    numbered: documents whose id a piece of another one may have.
    record_bytes: of all its records.
    digest: of all its records, as hex.
    skipped: what was left out of it.
    titles: of wanted documents, by id.
    texts: digest of a wanted text, as hex -> id of the first document that has it.
  """

  pieces: int
  documents: int
  numbered: int
  record_bytes: int
  digest: str
  skipped: Skipped
  titles: dict[str, str]
  texts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Scanner:
  """Cuts blocks into pieces, in whatever process.

  Attributes:
    work: directory for what is kept; the files of block n are named by :func:`block_file`.
    format: of the corpus.
    limit: of a piece.
    wanted: what to look for.
  """

  work: pathlib.Path
  format: CorpusFormat
  limit: Limit
  wanted: Wanted

  def documents(self, block: Block, skipped: Skipped) -> Iterator[Cut]:
    """Place, document, and headings with pieces; what is no good goes to ``skipped``."""
    if self.limit.unit == "words":
      yield from self._together(block, skipped)
      return
    for place, document in read_block(block, self.format):
      try:
        if isinstance(document, BadRecord):
          raise document
        sections = [
          (heading, [piece.encode() for piece in pieces]) for heading, pieces in sectioned(document, self.limit)
        ]
      except BadRecord as e:
        skipped.add(place, e)
        continue
      yield place, document, sections

  def _together(self, block: Block, skipped: Skipped) -> Iterator[Cut]:
    """Cuts many documents at a time, which cannot fail for one of them where words are counted."""
    read = iter(read_block(block, self.format))
    while batch := list(itertools.islice(read, _TOGETHER)):
      good = []
      for place, document in batch:
        if isinstance(document, BadRecord):
          skipped.add(place, document)
        else:
          good.append((place, document))
      pieces = cut_all([text for _, document in good for _, text in document.sections], self.limit)
      for place, document in good:
        yield place, document, [(heading, next(pieces)) for heading, _ in document.sections]

  def __call__(self, index: int, block: Block) -> Scanned:
    """Reads a block and writes its files, the one that says that it is finished last."""
    records = Records()
    pieces: list[bytes] = []
    names: list[bytes] = []
    spans: list[tuple[int, int]] = []
    numbered: list[tuple[bytes, int, int]] = []
    titles: dict[str, str] = {}
    texts: dict[str, str] = {}
    skipped = Skipped()
    for _, document, sections in self.documents(block, skipped):
      first = len(pieces)
      identifier, title = document.id.encode(), feature("title", document.title.encode())
      called = piece_names(identifier, sum(len(found) for _, found in sections))
      for heading, found in sections:
        start = len(pieces) - first
        metadata = feature("metadata", metadata_text(metadata_of(document, heading)))
        records.add(called[start : start + len(found)], metadata, found, title)
        seen = digesting(f"{document.title}\n{heading}\n".encode())
        for text in found:
          state = seen.copy()
          state.update(text)
          pieces.append(state.digest())
      names.append(digest(identifier))
      spans.append((first, len(pieces) - first))
      if "/" in document.id and (named := _NUMBERED_ID.fullmatch(document.id)):
        numbered.append((digest(named[1].encode()), int(named[2]), len(names) - 1))
      if document.id in self.wanted.ids:
        titles.setdefault(document.id, document.title)
      if self.wanted.texts and (key := digest(document.text.strip().encode())) in self.wanted.texts:
        texts.setdefault(key.hex(), document.id)
        titles.setdefault(document.id, document.title)
    joined = records.joined()
    files.write_atomic(block_file(self.work, index, "records"), joined)
    lengths = np.array(records.lengths, "<u4")
    files.write_atomic(block_file(self.work, index, "lengths"), lengths.tobytes())
    high, low = numbers(b"".join(pieces)).T
    entries = _sorted(PIECE, high, low, number=np.arange(len(pieces)))
    files.write_atomic(block_file(self.work, index, "pieces"), entries.tobytes())
    high, low = numbers(b"".join(names)).T
    span = np.array(spans, np.int64).reshape(-1, 2)
    entries = _sorted(BLOCK_DOCUMENT, high, low, number=np.arange(len(names)), first=span[:, 0], count=span[:, 1])
    files.write_atomic(block_file(self.work, index, "documents"), entries.tobytes())
    high, low = numbers(b"".join(name for name, _, _ in numbered)).T
    of_numbered = np.array([numbers_of for _, *numbers_of in numbered], np.int64).reshape(-1, 2)
    entries = _sorted(NUMBERED, high, low, piece=of_numbered[:, 0], number=of_numbered[:, 1])
    files.write_atomic(block_file(self.work, index, "numbered"), entries.tobytes())
    content = hashlib.sha256(lengths.tobytes())
    content.update(joined)
    scanned = Scanned(
      pieces=len(pieces),
      documents=len(names),
      numbered=len(numbered),
      record_bytes=len(joined),
      digest=content.hexdigest(),
      skipped=skipped,
      titles=titles,
      texts=texts,
    )
    fields = {**vars(scanned), "skipped": vars(skipped)}
    files.write_json(block_file(self.work, index, "json"), fields)
    return scanned


def block_file(work: pathlib.Path, index: int, kind: str) -> pathlib.Path:
  """Where the files of a block lie: "records", their "lengths", "pieces", "documents", "numbered", "json"."""
  return work / "blocks" / f"{index:07d}.{kind}"


def read_scanned(work: pathlib.Path, index: int) -> Scanned | None:
  """What an earlier call kept of a block, if it finished it."""
  path = block_file(work, index, "json")
  if not path.exists():
    return None
  fields: dict[str, Any] = files.read_json(path)
  found = fields.pop("skipped")
  skipped = Skipped(collections.Counter(found["counts"]), found["examples"])
  return Scanned(skipped=skipped, **fields)


def _sorted(dtype: np.dtype, high: np.ndarray, low: np.ndarray, **columns: np.ndarray) -> np.ndarray:
  order = by_digest(high, low)
  out = np.empty(len(order), dtype)
  for name, column in {"high": high, "low": low, **columns}.items():
    out[name] = column[order]
  return out
