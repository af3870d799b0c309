"""A document on its way from a file to the pieces it is cut into."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from radit_jax.data.corpus.chunks import Limit, cut
from radit_jax.data.sources import Metadata, Passage


class Document(NamedTuple):
  """A text with its sections.

  Attributes:
    id: unique in its corpus.
    title: may be empty.
    sections: heading (empty where there is none) and text of each; at least one, and none without a text.
    metadata: values a search can filter on.
  """

  id: str
  title: str
  sections: Sequence[tuple[str, str]]
  metadata: Metadata

  @property
  def text(self) -> str:
    """The texts of all sections, with a blank line between two of them."""
    return "\n\n".join(text for _, text in self.sections)


def sectioned(document: Document, limit: Limit) -> Iterator[tuple[str, list[str]]]:
  """Each section's heading and pieces.

  Raises:
    BadRecord: see :func:`radit_jax.data.corpus.chunks.cut`.
  """
  for heading, text in document.sections:
    title = f"{document.title}: {heading}" if document.title and heading else document.title or heading
    yield heading, cut(text, limit, title=title)


def chunk(document: Document | Passage, limit: Limit) -> Iterator[Passage]:
  """Cuts a document into passages; no passage has text of two sections.

  Args:
    document: all its passages keep its title and metadata, name it as metadata "document", and their section, if it has
      a heading, as metadata "section".
    limit: of a passage.

  Yields:
    One passage with the document's id, or several with the ids ``<id>/0``, ``<id>/1`` and so on.

  Raises:
    BadRecord: tokens are counted, and the title leaves no room for a text.

  Example:
    >>> from radit_jax.data.sources import Passage
    >>> [(p.id, p.text) for p in chunk(Passage("d", "", "One two. Three four five. Six."), Limit(5))]
    [('d/0', 'One two.'), ('d/1', 'Three four five. Six.')]
  """
  if isinstance(document, Passage):
    document = Document(document.id, document.title, [("", document.text)], document.metadata)
  found = [(heading, piece) for heading, pieces in sectioned(document, limit) for piece in pieces]
  for i, (heading, piece) in enumerate(found):
    name = document.id if len(found) == 1 else f"{document.id}/{i}"
    yield Passage(name, document.title, piece, metadata_of(document, heading))


def metadata_of(document: Document, heading: str) -> Metadata:
  """Metadata of a passage in the section of that heading."""
  section = {"section": heading} if heading else {}
  return {**document.metadata, "document": document.id, **section}
