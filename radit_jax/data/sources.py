"""Files users bring, as they are: every bad line is named, none is dropped in silence."""

import dataclasses
import os
import pathlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

from radit_jax.config import OnError, QuestionFormat
from radit_jax.data.policy import BadRecord, Located, Skipped, accepted
from radit_jax.data.readers import READERS
from radit_jax.data.readers.example import Example, Metadata
from radit_jax.data.readers.layer import prepared_records
from radit_jax.errors import UserError


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
    """The title, with the section's heading if there is one, on a line of its own, then the text."""
    section = self.metadata.get("section")
    heading = ": ".join(h for h in (self.title, section) if h and isinstance(h, str))
    return f"{heading}\n{self.text}" if heading else self.text


def read_examples(
  path: str | os.PathLike[str],
  *,
  format: QuestionFormat,
  split: str | None = None,
  on_error: OnError = "strict",
  skipped: Skipped | None = None,
  check: Callable[[Example], None] = lambda example: None,
) -> Iterator[Example]:
  """Reads questions with answers from the files in which a data set is distributed (`docs/data.md` has the table).

  Two are the project's own:

  - ``jsonl``: ``{"id", "question", "answers": [...]}`` and maybe ``"context"`` (text of the gold passage),
    ``"passage_ids"`` (ids of gold documents), ``"query"``, ``"group"``, ``"choices"``, ``"turns"`` (instead of the
    question), ``"category"``, ``"metadata"`` on each line;
  - ``squad``: a file of SQuAD 1.1; the gold passage is the question's paragraph, the group its article.

  A folder that TFDS has prepared in ArrayRecord form is read too, under the name of its set.

  Args:
    path: the file, or the folder of files.
    format: name of the set.
    split: for formats that hold several splits in one place.
    on_error: "strict" stops at the first bad record; "skip" leaves bad ones out.
    skipped: counts what was left out, by reason; also records that by their format make no example.
    check: raises :class:`radit_jax.data.policy.BadRecord` for an example that is no good for another reason.

  Yields:
    Examples, in the order of the file; one whose set has no ids is named by its place.

  Raises:
    UserError: no such file, an empty one, or a bad record: not JSON, not UTF-8, a field missing or of the wrong type,
      an id that was there before, no answer.
  """
  _check(format, QuestionFormat, on_error)
  reader = READERS[format]
  root = pathlib.Path(path)
  is_prepared = (root / "dataset_info.json").is_file()
  if is_prepared and reader.prepared is None:
    raise UserError(f"{path}: TFDS does not have {format!r}; give the original files")
  if split is not None and not (reader.splits or is_prepared):
    raise UserError(f"{path}: format {format!r} has no splits, but split {split!r} was asked for")
  make = reader.prepared if is_prepared and reader.prepared else reader.make
  located = prepared_records(root, split) if is_prepared else reader.located(root, split)

  def named(placed: tuple[str, Any]) -> Example:
    place, parts = placed
    made = make(*parts)
    made = made if made.id else dataclasses.replace(made, id=place.removeprefix(f"{root.parent}/"))
    check(made)
    return made

  with_place = ((place, r if isinstance(r, BadRecord) else (place, r)) for place, r in located)
  yield from _checked(path, with_place, named, "questions", on_error, skipped)


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
