"""Files users bring, as they are: every bad line is named, none is dropped in silence."""

import dataclasses
import os
import typing
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from radit_jax.config import CorpusFormat, OnError, QuestionFormat
from radit_jax.data import squad
from radit_jax.data.fields import a_list, an_object, metadata, optional_text, text, texts
from radit_jax.data.policy import BadRecord, Located, Skipped, accepted
from radit_jax.data.records import read_lines
from radit_jax.errors import UserError

Metadata = Mapping[str, str | int | float]


@dataclasses.dataclass(frozen=True)
class Example:
  """A task with its answers.

  Attributes:
    id: unique in its file.
    instruction: ``x``, what is asked.
    answers: ``y``; the first one is trained on, all count in evaluation.
    category: kind of task.
    query: text for the retriever; None takes the instruction.
    own_context: text of the passage that the example brings along.
    gold_passage_ids: ids of the documents that hold the answer.
    group: what must not be shared between splits, e.g. an article.
    turns: of a dialogue.
    choices: of a multiple-choice question.
    metadata: anything else.
  """

  id: str
  instruction: str
  answers: tuple[str, ...]
  category: str = "qa"
  query: str | None = None
  own_context: str | None = None
  gold_passage_ids: tuple[str, ...] = ()
  group: str | None = None
  turns: tuple[str, ...] | None = None
  choices: tuple[str, ...] | None = None
  metadata: Metadata = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Passage:
  """A document of a corpus, or a piece of one.

  Attributes:
    id: unique in its corpus.
    title: may be empty.
    text: what is read, without the title.
    metadata: values a search can filter on.
  """

  id: str
  title: str
  text: str
  metadata: Metadata = dataclasses.field(default_factory=dict)

  @property
  def full_text(self) -> str:
    """The title on a line of its own, then the text."""
    return f"{self.title}\n{self.text}" if self.title else self.text


def read_examples(
  path: str | os.PathLike[str],
  *,
  format: QuestionFormat,
  split: str | None = None,
  on_error: OnError = "strict",
  skipped: Skipped | None = None,
) -> Iterator[Example]:
  """Reads questions with answers.

  Formats:

  - ``jsonl``: ``{"id", "question", "answers": [...]}`` and maybe ``"context"`` (text of the gold passage),
    ``"passage_ids"`` (ids of gold documents), ``"query"``, ``"group"``, ``"metadata"`` on each line;
  - ``squad``: a file of SQuAD 1.1; the gold passage is the question's paragraph, the group its article.

  Args:
    path: the file.
    format: see above.
    split: for formats of several splits; these two have one.
    on_error: "strict" stops at the first bad line; "skip" leaves bad lines out.
    skipped: counts what was left out, by reason.

  Yields:
    Examples, in the order of the file.

  Raises:
    UserError: no such file, an empty one, or a bad line: not JSON, not UTF-8, a field missing or of the wrong type, an
      id that was there before, no answer.
  """
  _check(format, QuestionFormat, on_error)
  if split is not None:
    raise UserError(f"{path}: format {format!r} has no splits, but split {split!r} was asked for")
  records = read_lines(path) if format == "jsonl" else squad.questions(path)
  make = _example if format == "jsonl" else _squad_example
  yield from _checked(path, records, make, "questions", on_error, skipped)


def read_corpus(
  path: str | os.PathLike[str],
  *,
  format: CorpusFormat,
  on_error: OnError = "strict",
  skipped: Skipped | None = None,
) -> Iterator[Passage]:
  """Reads the documents of a corpus.

  Formats:

  - ``jsonl``: ``{"id", "text"}`` and maybe ``"title"``, ``"metadata"`` (name -> text or number) on each line;
  - ``squad``: every distinct paragraph of a SQuAD file, with the id ``<article>#<n>``.

  Args:
    path: the file.
    format: see above.
    on_error: "strict" stops at the first bad line; "skip" leaves bad lines out.
    skipped: counts what was left out, by reason.

  Yields:
    Documents, in the order of the file.

  Raises:
    UserError: as :func:`read_examples`; a text that is empty.
  """
  _check(format, CorpusFormat, on_error)
  records = read_lines(path) if format == "jsonl" else squad.documents(path)
  make = _passage if format == "jsonl" else _squad_passage
  yield from _checked(path, records, make, "documents", on_error, skipped)


def _check(format: str, formats: object, on_error: str) -> None:
  for name, value, allowed in (("format", format, formats), ("on_error", on_error, OnError)):
    if value not in typing.get_args(allowed):
      raise UserError(f"{name}={value!r}: must be one of {', '.join(map(repr, typing.get_args(allowed)))}")


def _checked(
  path: str | os.PathLike[str],
  records: Iterator[Located],
  make: Callable[[Any], Any],
  kind: str,
  on_error: OnError,
  skipped: Skipped | None,
) -> Iterator[Any]:
  skipped = Skipped() if skipped is None else skipped
  before = skipped.total()
  places: dict[str, str] = {}

  def unique(record: Any) -> Any:
    made = make(record)
    if made.id in places:
      raise BadRecord(f"id {made.id!r} was already used at {places[made.id]}", reason="an id that was already used")
    return made

  for place, made in accepted(records, unique, on_error, skipped):
    places[made.id] = place
    yield made
  if not places:
    left_out = skipped.total() - before
    raise UserError(f"{path}: no {kind} in it" + (f" ({left_out} bad lines left out)" if left_out else " (empty file)"))


def _example(record: dict[str, Any]) -> Example:
  return Example(
    id=text(record, "id"),
    instruction=text(record, "question"),
    answers=texts(record, "answers", required=True),
    query=optional_text(record, "query"),
    own_context=optional_text(record, "context"),
    gold_passage_ids=texts(record, "passage_ids", required=False),
    group=optional_text(record, "group"),
    metadata=metadata(record),
  )


def _passage(record: dict[str, Any]) -> Passage:
  return Passage(
    id=text(record, "id"),
    title=optional_text(record, "title") or "",
    text=text(record, "text"),
    metadata=metadata(record),
  )


def _squad_passage(paragraph: squad.Paragraph) -> Passage:
  title = urllib.parse.unquote(paragraph.article).replace("_", " ")
  return Passage(id=paragraph.id, title=title, text=paragraph.text)


def _squad_example(located: tuple[squad.Paragraph, Any]) -> Example:
  paragraph, record = located
  answers = a_list(an_object(record), "answers")
  if not answers:
    raise BadRecord(f"question {record.get('id')!r} has no answer; this format is SQuAD 1.1")
  return Example(
    id=text(record, "id"),
    instruction=text(record, "question").strip(),
    answers=tuple(dict.fromkeys(text(an_object(a), "text") for a in answers)),
    own_context=paragraph.text,
    gold_passage_ids=(paragraph.id,),
    group=paragraph.article,
  )
