"""Questions whose answer shows how it is reached: the reasoning, and after it the result."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from radit_jax.data import records
from radit_jax.data.fields import an_object, field, optional_text, text, texts, truth
from radit_jax.data.policy import BadRecord, Located
from radit_jax.data.readers.example import Example, chosen, reasoned
from radit_jax.data.readers.layer import Reader, alone, lines, tree
from radit_jax.errors import UserError

_AQUA_OPTION = re.compile(r"\s*([A-E])\s*\)(.*)", re.DOTALL)


def _aqua_rat(record: dict[str, Any]) -> Example:
  parts = [_AQUA_OPTION.fullmatch(option) for option in texts(record, "options", required=True)]
  labels, options = [m[1] if m else "" for m in parts], tuple(m[2].strip() if m else "" for m in parts)
  right = text(record, "correct")
  if labels != list("ABCDE"[: len(labels)]) or right not in labels:
    raise BadRecord(f"correct {right!r} is none of the options {labels}", reason="options that cannot be told")
  return Example(
    id="",
    instruction=text(record, "question"),
    answers=reasoned(text(record, "rationale"), *chosen(options, labels.index(right))),
    category="reasoning",
    choices=options,
  )


def _ecqa_records(path: pathlib.Path, split: str | None) -> Iterator[Located]:
  """The table that the authors' script makes, or their folder before that: reasoning, and CommonsenseQA in `cqa/`."""
  if not path.is_dir():
    if split is not None:
      raise UserError(f"{path}: one table, so no split {split!r}; give the folder of ecqa.jsonl")
    yield from alone(records.read_table(path, delimiter=","))
    return
  ids = None if split is None else _split_ids(path / "author_split", split)
  questions: dict[str, dict[str, Any]] = {}
  for name in ("train_rand_split.jsonl", "dev_rand_split.jsonl"):
    for place, record in records.read_lines(path / "cqa" / name):
      if isinstance(record, BadRecord):
        yield place, record
      elif isinstance(record.get("id"), str):
        questions[record["id"]] = record
  for place, record in records.read_lines(path / "ecqa.jsonl"):
    if isinstance(record, BadRecord):
      yield place, record
    elif ids is None or not isinstance(record.get("id"), str) or record["id"] in ids:
      try:
        yield place, (_joined(record, questions),)
      except BadRecord as e:
        yield place, e


def _split_ids(folder: pathlib.Path, split: str) -> set[str]:
  path = folder / f"{split}_ids.txt"
  if not path.is_file():
    raise UserError(f"{path}: no such file, so no split {split!r}; ECQA has train, val and test")
  return {line.strip() for _, line in records.read_text_lines(path) if isinstance(line, str)}


def _joined(record: dict[str, Any], questions: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """A row as the authors' table has it."""
  name = text(record, "id")
  if name not in questions:
    raise BadRecord(f"question {name!r} is not in CommonsenseQA's files", reason="no such question in CommonsenseQA")
  whole = questions[name]
  asked = field(whole, "question", dict) or {}
  choices = {
    text(choice, "label"): text(choice, "text")
    for choice in field(asked, "choices", list) or []
    if isinstance(choice, dict)
  }
  if list(choices) != list("ABCDE"):
    raise BadRecord(
      f"question {name!r} has choices {list(choices)}, must be A to E", reason="choices that are not A to E"
    )
  options = {f"q_op{i}": choice for i, choice in enumerate(choices.values(), 1)}
  right = choices.get(text(whole, "answerKey"), "")
  return {"q_no": name, "q_text": asked.get("stem"), "q_ans": right, "taskB": record.get("explanation")} | options


def _ecqa(row: dict[str, Any]) -> Example:
  options = tuple(text(row, f"q_op{i}") for i in range(1, 6))
  right = text(row, "q_ans")
  if right not in options:
    raise BadRecord(f"q_ans {right!r} is none of the options", reason="q_ans is none of the options")
  return Example(
    id=text(row, "q_no"),
    instruction=text(row, "q_text"),
    answers=reasoned(text(row, "taskB"), *chosen(options, options.index(right))),
    category="reasoning",
    choices=options,
  )


_CALCULATION = re.compile(r"<<[^<>]*>>")


def _gsm8k(record: dict[str, Any]) -> Example:
  steps, mark, final = text(record, "answer").rpartition("####")
  if not mark or not final.strip() or not steps.strip():
    raise BadRecord("no '#### <result>' behind the steps of the answer")
  return Example(
    id="",
    instruction=text(record, "question"),
    answers=reasoned(_CALCULATION.sub("", steps), final.strip()),
    category="reasoning",
  )


def _problems(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """A file is a record, or has one on each line."""
  if path.suffix == ".json":
    try:
      yield str(path), (an_object(records.read_json(path)),)
    except (BadRecord, UserError) as e:
      yield str(path), BadRecord(str(e).removeprefix(f"{path}: "), reason="not JSON of one problem")
    return
  for place, record in records.read_lines(path):
    yield place, record if isinstance(record, BadRecord) else (record,)


def boxed(solution: str) -> str | None:
  r"""What stands in the last ``\boxed{...}`` of a solution; None where there is none.

  Example:
    >>> boxed(r"so it is $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
  """
  start = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
  if start < 0:
    short = re.findall(r"\\boxed ([^\s$]+)", solution)
    return short[-1] if short else None
  first = solution.index("{", start) + 1
  depth = 1
  for i in range(first, len(solution)):
    depth += {"{": 1, "}": -1}.get(solution[i], 0)
    if depth == 0:
      return solution[first:i].strip() or None
  return None


def _competition_math(record: dict[str, Any]) -> Example:
  solution = text(record, "solution")
  final = boxed(solution)
  if final is None:
    raise BadRecord("no \\boxed{...} in the solution")
  return Example(
    id="",
    instruction=text(record, "problem"),
    answers=reasoned(solution, final),
    category="reasoning",
    metadata={name: value for name in ("type", "level") if (value := optional_text(record, name))},
  )


def _strategyqa(record: dict[str, Any]) -> Example:
  if "answer" not in record:
    raise BadRecord("no field 'answer': a test file without answers")
  return Example(
    id=text(record, "qid"),
    instruction=text(record, "question"),
    answers=reasoned(" ".join(texts(record, "facts", required=True)), "yes" if truth(record, "answer") else "no"),
    category="reasoning",
  )


REASONING = {
  "aqua_rat": lines(_aqua_rat, "*.json"),
  "ecqa": Reader(_ecqa_records, _ecqa, splits=True),
  "gsm8k": lines(_gsm8k, prepared=_gsm8k),
  "competition_math": Reader(_problems, _competition_math, "*.json"),
  "strategyqa": tree("[]", _strategyqa),
}
