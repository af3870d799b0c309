"""The SQuAD file format: articles, their paragraphs, and the questions on each."""

import collections
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from radit_jax.data.fields import a_list, an_object, text
from radit_jax.data.policy import BadRecord, Located
from radit_jax.data.records import read_json
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Paragraph:
  """A paragraph.

  Attributes:
    id: ``<article>#<n>``, n counting the article's distinct paragraphs; a text that stood before keeps its first id.
    article: title of the article it stands in.
    text: the paragraph.
    first: False where its text stood before.
    questions: as they are in the file.
  """

  id: str
  article: str
  text: str
  first: bool
  questions: list[Any]


def documents(path: str | os.PathLike[str]) -> Iterator[Located]:
  """Every distinct paragraph."""
  return ((place, p) for place, p in _paragraphs(path) if isinstance(p, BadRecord) or p.first)


def questions(path: str | os.PathLike[str]) -> Iterator[Located]:
  """``(paragraph, question)`` of every question."""
  for place, paragraph in _paragraphs(path):
    if isinstance(paragraph, BadRecord):
      yield place, paragraph
      continue
    for n, question in enumerate(paragraph.questions):
      yield f"{place}.qas[{n}]", (paragraph, question)


def _paragraphs(path: str | os.PathLike[str]) -> Iterator[tuple[str, Paragraph | BadRecord]]:
  content = read_json(path)
  if content is None:
    return
  articles = content.get("data") if isinstance(content, dict) else None
  if not isinstance(articles, list):
    raise UserError(f'{path}: not a SQuAD file: no list under "data"')
  known: dict[str, str] = {}
  numbers: collections.Counter[str] = collections.Counter()
  for a, article in enumerate(articles):
    place = f"{path}#data[{a}]"
    try:
      title = text(an_object(article), "title")
      paragraphs = a_list(article, "paragraphs")
    except BadRecord as e:
      yield place, e
      continue
    for n, paragraph in enumerate(paragraphs):
      place = f"{path}#data[{a}].paragraphs[{n}]"
      try:
        context = text(an_object(paragraph), "context").strip()
        asked = a_list(paragraph, "qas")
      except BadRecord as e:
        yield place, e
        continue
      first = context not in known
      if first:
        known[context] = f"{title}#{numbers[title]}"
        numbers[title] += 1
      yield place, Paragraph(known[context], title, context, first, asked)
