"""Multiple-choice questions."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from radit_jax.data import records
from radit_jax.data.fields import a_list, an_object, an_object_at, field, integer, optional_text, text, texts
from radit_jax.data.policy import BadRecord, Located
from radit_jax.data.readers.example import LETTERS, Example, chosen
from radit_jax.data.readers.layer import Reader, alone, labelled, lines, tree


def _stem(record: dict[str, Any]) -> Example:
  """The form of CommonsenseQA, ARC and OpenBookQA; labels may be letters or numbers."""
  question = an_object_at(record, "question")
  choices = [an_object(choice) for choice in a_list(question, "choices")]
  labels, options = [text(c, "label") for c in choices], tuple(text(c, "text") for c in choices)
  key = optional_text(record, "answerKey")
  if key is None:
    raise BadRecord("no field 'answerKey': a test file without answers")
  if key not in labels:
    raise BadRecord(f"answerKey {key!r} is none of {', '.join(labels)}", reason="answerKey is none of the labels")
  return _choice(text(record, "id"), text(question, "stem"), options, labels.index(key))


def _choice(name: str, question: str, options: tuple[str, ...], right: int, **fields: Any) -> Example:
  return Example(
    id=name,
    instruction=question.strip(),
    answers=chosen(options, right),
    choices=options,
    **{"category": "choice", **fields},
  )


_MATH_OPTION = re.compile(r"(?:^|[,\[]\s*)['\"]?([a-e]) \) ?")


def _math_qa(record: dict[str, Any]) -> Example:
  """Options are one text, such as ``a ) 24 , b ) 120``, or that as a list in Python's notation."""
  given = text(record, "options")
  parts = _MATH_OPTION.split(given.strip())
  labels, options = parts[1::2], tuple(option.strip(" ,'\"]") for option in parts[2::2])
  right = text(record, "correct")
  if labels != list("abcde"[: len(labels)]) or right not in labels:
    raise BadRecord(f"correct {right!r} is none of the options {given[:60]!r}", reason="options that cannot be told")
  return _choice("", text(record, "Problem"), options, labels.index(right))


def _quail(record: dict[str, Any]) -> Example:
  return _choice(
    text(record, "id"),
    text(record, "question"),
    texts(record, "answers", required=True),
    integer(record, "correct_answer_id"),
    category="reading",
    own_context=text(record, "context"),
    group=optional_text(record, "context_id"),
  )


_QUAREL = re.compile(r"(.*)\(A\)(.*)\(B\)(.*)", re.DOTALL)


def _quarel(record: dict[str, Any]) -> Example:
  whole = _QUAREL.fullmatch(text(record, "question"))
  if not whole:
    raise BadRecord("no (A) and (B) in the question")
  question, *options = (part.strip() for part in whole.groups())
  return _choice(
    text(record, "id"), text({"question": question}, "question"), tuple(options), integer(record, "answer_index")
  )


_MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
_MMLU_SPLIT = re.compile(r"_(dev|val|test|train)$")


def _mmlu_records(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """A file is a subject, which only its name says."""
  subject = _MMLU_SPLIT.sub("", path.name.split(".")[0])
  for place, row in alone(records.read_table(path, delimiter=",", columns=_MMLU_COLUMNS)):
    yield place, row if isinstance(row, BadRecord) else (*row, subject)


def _mmlu(row: dict[str, Any], subject: str) -> Example:
  right = text(row, "answer").strip()
  if right not in ("A", "B", "C", "D"):
    raise BadRecord(f"answer {right!r}, must be A, B, C or D", reason="answer is no letter A to D")
  options = tuple(text(row, letter).strip() for letter in "ABCD")
  return _choice("", text(row, "question"), options, LETTERS.index(right), metadata={"subject": subject})


def _number(label: str, first: int) -> int:
  if not re.fullmatch(r"\s*[0-9]\s*", label):
    raise BadRecord(f"label {label[:20]!r} is no number", reason="a label that is no number")
  return int(label) - first


def _piqa(record: dict[str, Any], label: str) -> Example:
  return _choice("", text(record, "goal"), (text(record, "sol1"), text(record, "sol2")), _number(label, 0))


def _siqa(record: dict[str, Any], label: str) -> Example:
  question = f"{text(record, 'context').strip()} {text(record, 'question').strip()}"
  return _choice("", question, tuple(text(record, f"answer{letter}") for letter in "ABC"), _number(label, 1))


def _hellaswag(record: dict[str, Any]) -> Example:
  if record.get("label") in (None, ""):
    raise BadRecord("no field 'label': a test file without answers")
  activity = optional_text(record, "activity_label")
  return _choice(
    "",
    text(record, "ctx"),
    texts(record, "endings", required=True),
    integer(record, "label"),
    metadata={"activity": activity} if activity else {},
  )


def _winogrande(record: dict[str, Any]) -> Example:
  if field(record, "answer", str) in (None, ""):
    raise BadRecord("no field 'answer': a test file without answers")
  options = (text(record, "option1"), text(record, "option2"))
  return _choice(text(record, "qID"), text(record, "sentence"), options, integer(record, "answer") - 1)


CHOICES = {
  "commonsense_qa": lines(_stem),
  "arc": lines(_stem),
  "openbookqa": lines(_stem),
  "math_qa": tree("[]", _math_qa, prepared=_math_qa),
  "quail": lines(_quail),
  "quarel": lines(_quarel),
  "mmlu": Reader(_mmlu_records, _mmlu, "*.csv"),
  "piqa": labelled(_piqa),
  "siqa": labelled(_siqa),
  "hellaswag": lines(_hellaswag),
  "winogrande": lines(_winogrande),
}
