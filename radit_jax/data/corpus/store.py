"""The store of passages that every row number refers to."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from radit_jax import files, versions
from radit_jax.data.corpus.table import DocumentTable, write_table
from radit_jax.data.sources import Passage
from radit_jax.data.stores import Store, write_store
from radit_jax.errors import UserError


def write_passages(
  passages: Iterable[Passage], path: str | os.PathLike[str], *, manifest: Mapping[str, Any] | None = None
) -> None:
  """Writes a passage store; the n-th passage is row n. For corpora in memory; see :mod:`.build` for large ones.

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

  def table(directory: pathlib.Path) -> None:
    write_table(directory, ((name, first, count) for name, (first, count) in documents.items()))

  write_store("passages", path, records(), manifest or {}, beside=table)


class PassageStore(Store[Passage]):
  """Passages by row number: ``store[row]``, ``store.many(rows)``. Of a store with versions the current one is read.

  Args:
    path: see :class:`radit_jax.data.stores.Store`.
    version: read this one instead.

  Attributes:
    root: as given; ``path`` is that of the version.
    version: its number.
    removed: rows whose passages went in an update, ascending: they keep their numbers, and no index finds them.

  Example:
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/passages"
    >>> write_passages([Passage("a", "", "First."), Passage("b", "Title", "Second.")], path)
    >>> store = PassageStore(path)
    >>> len(store), store[1].text, store.rows_of_document("b")
    (2, 'Second.', (1,))
  """

  kind = "passages"
  _table: DocumentTable | None = None

  def __init__(self, path: str | os.PathLike[str], *, version: int | None = None) -> None:
    self.version = versions.current_number(path) if version is None else version
    super().__init__(versions.directory(path, self.version))
    self.root = pathlib.Path(path)
    self.removed = versions.removed_rows(self.path, self.manifest)

  @property
  def num_live(self) -> int:
    """Passages that a search may find; ``len`` counts the rows, also those of passages that went."""
    return len(self) - len(self.removed)

  def _decode(self, record: dict[str, Any]) -> Passage:
    return Passage(
      id=record["id"].decode(),
      title=record["title"].decode(),
      text=record["text"].decode(),
      metadata=json.loads(record["metadata"]),
    )

  def has_document(self, document: str) -> bool:
    """Whether there is a document of this id."""
    return self._documents().rows(document) is not None

  def texts(self, rows: Iterable[int]) -> list[str]:
    """Title and text of each row, see :attr:`radit_jax.data.sources.Passage.full_text`."""
    return [passage.full_text for passage in self.many(rows)]

  def rows_of_document(self, document: str) -> tuple[int, ...]:
    """Rows of a document's pieces; of a piece that stood in another document before, the row of that one.

    Raises:
      UserError: the store holds no such document.
    """
    rows = self._documents().rows(document)
    if rows is None:
      raise UserError(f"{self.path}: no document {document!r} in this passage store")
    return rows

  def _documents(self) -> DocumentTable:
    if self._table is None:
      self._table = DocumentTable(self.path)
    return self._table


def version_of(made_from: str | None, store: PassageStore, what: str) -> PassageStore:
  """The version of a passage store that rows refer to.

  Args:
    made_from: fingerprint in the manifest of ``what``.
    store: the store that is at hand.
    what: path of an index or of retrieved examples.

  Raises:
    UserError: they refer to none of its versions; both fingerprints are named.
  """
  if made_from == store.fingerprint:
    return store
  for number in versions.numbers(store.root):
    version = versions.directory(store.root, number)
    if files.read_json(version / files.MANIFEST).get("fingerprint") == made_from:
      return PassageStore(store.root, version=number)
  raise UserError(
    f"{what}: made from the passage store {str(made_from)[:12]}, but {store.path} is {store.fingerprint[:12]}; "
    "pass the store it was made from, or make it again"
  )
