"""Passages: long documents cut into pieces, and the store every row number refers to."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from radit_jax import files
from radit_jax.data.sources import Passage
from radit_jax.data.stores import Store, write_store
from radit_jax.errors import UserError

_DOCUMENTS = "documents.json"
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’»)\]]*$""")


def chunk(passage: Passage, max_words: int) -> Iterator[Passage]:
  """Splits a document into pieces of at most ``max_words`` words, at the end of a sentence where there is one.

  Args:
    passage: the document; all pieces keep its title and metadata, and name it as metadata "document".
    max_words: at least 1. A word is what stands between white space.

  Yields:
    One piece with the document's id, or several with the ids ``<id>/0``, ``<id>/1`` and so on. Their words, one behind
    the other, are the document's.

  Example:
    >>> [p.text for p in chunk(Passage("d", "", "One two. Three four five. Six."), 5)]
    ['One two. Three four five.', 'Six.']
  """
  text = passage.text
  words = [(m.start(), m.end()) for m in _WORD.finditer(text)]
  pieces = []
  start = 0
  while start < len(words):
    end = min(start + max_words, len(words))
    if end < len(words):
      # A blank line ends a sentence too: headings have no full stop.
      ends = (
        i
        for i in range(end, start, -1)
        if _SENTENCE_END.search(text[slice(*words[i - 1])]) or text.count("\n", words[i - 1][1], words[i][0]) > 1
      )
      end = next(ends, end)
    pieces.append(text[words[start][0] : words[end - 1][1]])
    start = end
  metadata = {**passage.metadata, "document": passage.id}
  for i, piece in enumerate(pieces):
    name = passage.id if len(pieces) == 1 else f"{passage.id}/{i}"
    yield Passage(name, passage.title, piece, metadata)


def write_passages(
  passages: Iterable[Passage], path: str | os.PathLike[str], *, manifest: Mapping[str, Any] | None = None
) -> None:
  """Writes a passage store; the n-th passage is row n.

  Args:
    passages: in order; the pieces of a document one behind the other.
    path: directory; replaced if it exists, absent if this fails.
    manifest: what the passages were made from.

  Raises:
    UserError: no passages, an empty text, or two with one id.
  """
  documents: dict[str, tuple[int, int]] = {}

  def records() -> Iterator[dict[str, Any]]:
    for row, passage in enumerate(passages):
      if not passage.text.strip():
        raise UserError(f"{path}: passage {passage.id!r} has no text")
      document = str(passage.metadata.get("document", passage.id))
      first, count = documents.get(document, (row, 0))
      if first + count != row:
        raise UserError(f"{path}: the pieces of document {document!r} do not follow one another (row {row})")
      documents[document] = (first, count + 1)
      yield {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "metadata": json.dumps(dict(passage.metadata), ensure_ascii=False),
      }

  write_store("passages", path, records(), manifest or {}, side_files=lambda: {_DOCUMENTS: documents})


class PassageStore(Store[Passage]):
  """Passages by row number: ``store[row]``, ``store.many(rows)``.

  Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/passages"
    >>> write_passages([Passage("a", "", "First."), Passage("b", "Title", "Second.")], path)
    >>> store = PassageStore(path)
    >>> len(store), store[1].text, store.rows_of_document("b")
    (2, 'Second.', (1,))
  """

  kind = "passages"
  _documents: dict[str, list[int]] | None = None

  def _decode(self, record: dict[str, Any]) -> Passage:
    return Passage(
      id=record["id"].decode(),
      title=record["title"].decode(),
      text=record["text"].decode(),
      metadata=json.loads(record["metadata"]),
    )

  def texts(self, rows: Iterable[int]) -> list[str]:
    """Title and text of each row, see :attr:`radit_jax.data.sources.Passage.full_text`."""
    return [passage.full_text for passage in self.many(rows)]

  def rows_of_document(self, document: str) -> tuple[int, ...]:
    """Rows of a document's pieces.

    Raises:
      UserError: the store holds no such document.
    """
    if self._documents is None:
      self._documents = files.read_json(self.path / _DOCUMENTS)
    if document not in self._documents:
      raise UserError(f"{self.path}: no document {document!r} in this passage store")
    first, count = self._documents[document]
    return tuple(range(first, first + count))


def check_passages(made_from: str | None, store: PassageStore, what: str) -> None:
  """Refuses rows that refer to another passage store.

  Args:
    made_from: fingerprint in the manifest of ``what``.
    store: the store that is at hand.
    what: path of an index or of retrieved examples.

  Raises:
    UserError: both fingerprints are named.
  """
  if made_from != store.fingerprint:
    raise UserError(
      f"{what}: made from the passage store {str(made_from)[:12]}, but {store.path} is {store.fingerprint[:12]}; "
      "pass the store it was made from, or make it again"
    )
