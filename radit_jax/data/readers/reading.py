"""Questions about a text that they bring along, and summaries of one."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from radit_jax.data import records, squad
from radit_jax.data.fields import a_list, an_object, an_object_at, field, integer, optional_text, text, texts, truth
from radit_jax.data.policy import BadRecord, Located, Unused
from radit_jax.data.readers.example import UNANSWERABLE, Example, conversation
from radit_jax.data.readers.layer import Reader, lines, tree
from radit_jax.errors import UserError

#: What a summary is asked for with, see :func:`radit_jax.data.templates.instruct`.
SUMMARIZE = "Summarize this article:"


def _spans(record: dict[str, Any]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(text(an_object(a), "text") for a in a_list(record, "answers")))


def _squad(paragraph: squad.Paragraph, record: Any) -> Example:
  answers = _spans(an_object(record))
  if not answers:
    raise BadRecord(
      f"question {record.get('id')!r} has no answer; this format is SQuAD 1.1, read version 2 as squad_v2",
      reason="no answer",
    )
  return Example(
    id=text(record, "id"),
    instruction=text(record, "question").strip(),
    answers=answers,
    own_context=paragraph.text,
    gold_passage_ids=(paragraph.id,),
    group=paragraph.article,
  )


def _squad_v2(paragraph: squad.Paragraph, record: Any) -> Example:
  answers = _spans(an_object(record))
  if "is_impossible" in record and truth(record, "is_impossible") != (not answers):
    raise BadRecord(
      f"is_impossible is {record['is_impossible']}, but it has {len(answers)} answers", reason="no answer"
    )
  return Example(
    id=text(record, "id"),
    instruction=text(record, "question").strip(),
    answers=answers or (UNANSWERABLE,),
    category="reading",
    own_context=paragraph.text,
    group=paragraph.article,
  )


def _squad_prepared(record: dict[str, Any]) -> Example:
  answers = texts(an_object_at(record, "answers"), "text", required=False)
  return Example(
    id=text(record, "id"),
    instruction=text(record, "question").strip(),
    answers=tuple(dict.fromkeys(answers)) or (UNANSWERABLE,),
    category="reading",
    own_context=text(record, "context").strip(),
    group=optional_text(record, "title"),
  )


def _each(path: pathlib.Path, steps: str, name: str) -> Iterator[Located]:
  """Every item of the list ``name`` at the end of a path, as its objects and the item's number."""
  for place, chain in records.read_tree(path, steps):
    if isinstance(chain, BadRecord):
      yield place, chain
      continue
    try:
      items = a_list(chain[-1], name)
    except BadRecord as e:
      yield place, e
      continue
    for i in range(len(items)):
      yield f"{place}.{name}[{i}]", (*chain, i)


def _coqa(story: dict[str, Any], turn: int) -> Example:
  questions, answers = a_list(story, "questions"), a_list(story, "answers")
  if len(questions) != len(answers):
    raise BadRecord(f"{len(questions)} questions, {len(answers)} answers", reason="not as many answers as questions")
  said = [text(an_object(q), "input_text").strip() for q in questions[: turn + 1]]
  told = [_unknown(text(an_object(a), "input_text").strip(), "unknown") for a in answers[: turn + 1]]
  others = field(story, "additional_answers", dict) or {}
  also = [an_object(o[turn]) for o in others.values() if isinstance(o, list) and len(o) > turn]
  more = [_unknown(a.strip(), "unknown") for o in also if (a := optional_text(o, "input_text"))]
  name = text(story, "id")
  return Example(
    id=f"{name}/{turn}",
    answers=tuple(dict.fromkeys((told[turn], *more))),
    own_context=text(story, "story"),
    group=name,
    **conversation(_alternating(said, told)),
  )


def _alternating(asked: Sequence[str], told: Sequence[str]) -> list[str]:
  """Questions and answers in turns; the last question's answer is left out."""
  return [turn for pair in zip(asked, told, strict=True) for turn in pair][:-1]


def _unknown(answer: str, mark: str) -> str:
  return UNANSWERABLE if answer == mark else answer


_CANNOT = "CANNOTANSWER"


def _quac(article: dict[str, Any], paragraph: dict[str, Any], turn: int) -> Example:
  questions = [an_object(q) for q in a_list(paragraph, "qas")[: turn + 1]]
  told = [_unknown(text(an_object_at(q, "orig_answer"), "text").strip(), _CANNOT) for q in questions]
  last = questions[-1]
  others = [_unknown(answer.strip(), _CANNOT) for answer in _spans(last)]
  return Example(
    id=text(last, "id"),
    answers=tuple(dict.fromkeys((told[turn], *others))),
    own_context=_quac_context(paragraph),
    group=optional_text(article, "title"),
    **conversation(_alternating([text(q, "question").strip() for q in questions], told)),
  )


def _quac_context(record: dict[str, Any]) -> str:
  context = text(record, "context").strip().removesuffix(_CANNOT).strip()
  if not context:
    raise BadRecord("field 'context' is empty")
  return context


def _quac_prepared(record: dict[str, Any]) -> Example:
  """TFDS keeps each question by itself, without those before it."""
  answer = _unknown(text(an_object_at(record, "orig_answer"), "text").strip(), _CANNOT)
  return Example(
    id="",
    instruction=text(record, "question").strip(),
    answers=(answer,),
    category="reading",
    own_context=_quac_context(record),
    group=optional_text(record, "title"),
  )


def _coqa_prepared_questions(record: dict[str, Any]) -> Example:
  """TFDS keeps a whole conversation: its last question is asked."""
  asked = texts(record, "questions", required=True)
  told = texts(an_object_at(record, "answers"), "input_text", required=True)
  if len(asked) != len(told):
    raise BadRecord(f"{len(asked)} questions, {len(told)} answers", reason="not as many answers as questions")
  told = tuple(_unknown(answer, "unknown") for answer in told)
  return Example(id="", answers=told[-1:], own_context=text(record, "story"), **conversation(_alternating(asked, told)))


def _drop_answer(answer: dict[str, Any]) -> str:
  """A number, a date, or the spans: whichever is filled in; "" for none."""
  number = answer.get("number")
  if isinstance(number, int | float) and not isinstance(number, bool):
    return str(number)
  if found := optional_text(answer, "number"):
    return found.strip()
  if spans := texts(answer, "spans", required=False):
    return ", ".join(spans)
  date = field(answer, "date", dict) or {}
  return " ".join(part.strip() for name in ("day", "month", "year") if (part := optional_text(date, name)))


def _drop(name: str, passage: dict[str, Any], record: dict[str, Any]) -> Example:
  others = [an_object(a) for a in field(record, "validated_answers", list) or []]
  answers = [_drop_answer(a) for a in (an_object_at(record, "answer"), *others)]
  if not any(answers):
    raise Unused("no answer: neither number, date nor spans")
  return Example(
    id=text(record, "query_id"),
    instruction=text(record, "question"),
    answers=tuple(dict.fromkeys(filter(None, answers))),
    category="reading",
    own_context=text(passage, "passage"),
    group=text({"key": name}, "key"),
  )


def _drop_prepared(record: dict[str, Any]) -> Example:
  others = texts(record, "validated_answers", required=False)
  return Example(
    id=text(record, "query_id"),
    instruction=text(record, "question"),
    answers=tuple(dict.fromkeys((text(record, "answer"), *others))),
    category="reading",
    own_context=text(record, "passage"),
  )


_SUMMARY_COLUMNS = ("document_id", "set", "summary", "summary_tokenized")


def _narrative_records(path: pathlib.Path, split: str | None) -> Iterator[Located]:
  """The folder of ``qaps.csv`` and ``third_party/wikipedia/summaries.csv``: each question with its story's summary."""
  summaries: dict[str, str] = {}
  table = path / "third_party" / "wikipedia" / "summaries.csv"
  for place, row in records.read_table(table, delimiter=","):
    if isinstance(row, BadRecord):
      yield place, row
    elif "document_id" not in row or "summary" not in row:
      raise UserError(f"{table}:1: columns {', '.join(map(repr, row))}, must be {', '.join(_SUMMARY_COLUMNS)}")
    else:
      summaries[row["document_id"]] = row["summary"]
  known = 0
  for place, row in records.read_table(path / "qaps.csv", delimiter=","):
    if isinstance(row, BadRecord):
      yield place, row
    elif split in (None, row.get("set")):
      known += 1
      yield place, (row, summaries.get(row.get("document_id", "")))
  if split is not None and not known:
    raise UserError(f"{path / 'qaps.csv'}: no split {split!r}; its column 'set' has train, valid and test")


def _narrativeqa(row: dict[str, Any], summary: str | None) -> Example:
  name = text(row, "document_id")
  if summary is None:
    raise BadRecord(f"document {name!r} has no summary in summaries.csv", reason="no summary")
  return Example(
    id="",
    instruction=text(row, "question"),
    answers=tuple(dict.fromkeys(text(row, column).strip() for column in ("answer1", "answer2"))),
    category="reading",
    own_context=text({"summary": summary}, "summary").strip(),
    group=name,
  )


def _news_records(path: pathlib.Path, split: str | None) -> Iterator[Located]:
  for place, chain in records.read_tree(path, "data[].questions[]"):
    if split is None or isinstance(chain, BadRecord) or chain[0].get("type") == split:
      yield place, chain


def _newsqa(story: dict[str, Any], record: dict[str, Any]) -> Example:
  article, agreed = text(story, "text"), an_object_at(record, "consensus")
  if agreed.get("badQuestion") is True:
    raise Unused("marked as a bad question")
  if agreed.get("noAnswer") is True:
    answer = UNANSWERABLE
  else:
    start, end = integer(agreed, "s"), integer(agreed, "e")
    if not 0 <= start < end <= len(article) or not article[start:end].strip():
      raise BadRecord(
        f"the answer is at characters {start} to {end} of {len(article)}", reason="an answer outside its text"
      )
    answer = article[start:end].strip()
  name = text(story, "storyId")
  return Example(
    id="",
    instruction=text(record, "q").strip(),
    answers=(answer,),
    category="reading",
    own_context=article,
    group=name,
  )


def _pubmed_qa(name: str, record: dict[str, Any]) -> Example:
  verdict = text(record, "final_decision")
  if verdict not in ("yes", "no", "maybe"):
    raise BadRecord(f"final_decision {verdict!r}, must be yes, no or maybe", reason="unknown final_decision")
  return Example(
    id=text({"key": name}, "key"),
    instruction=text(record, "QUESTION"),
    answers=(verdict,),
    category="reading",
    own_context="\n".join(texts(record, "CONTEXTS", required=True)),
  )


def _boolq(record: dict[str, Any]) -> Example:
  title = optional_text(record, "title")
  return Example(
    id="",
    instruction=text(record, "question"),
    answers=("yes" if truth(record, "answer") else "no",),
    category="reading",
    own_context=text(record, "passage"),
    metadata={"title": title} if title else {},
  )


_HIGHLIGHT = "@highlight"


def _stories(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """A file is a record: the article, and behind each mark a sentence of its summary."""
  article: list[str] = []
  highlights: list[str] = []
  marked = False
  for number, line in records.read_text_lines(path):
    if isinstance(line, BadRecord):
      yield f"{path}:{number}", line
      return
    if line.strip() == _HIGHLIGHT:
      marked = True
    elif line.strip():
      (highlights if marked else article).append(line.strip())
  yield str(path), ({"id": path.stem, "article": "\n".join(article), "highlights": "\n".join(highlights)},)


def _cnn_dailymail(record: dict[str, Any]) -> Example:
  article = optional_text(record, "article")
  if article is None:
    raise Unused("no article, only highlights")
  return Example(
    id=text(record, "id"),
    instruction=SUMMARIZE,
    answers=(text(record, "highlights"),),
    category="summary",
    own_context=article,
  )


READING = {
  "squad": Reader(lambda path, _: squad.questions(path), _squad, prepared=_squad_prepared),
  "squad_v2": Reader(lambda path, _: squad.questions(path), _squad_v2, prepared=_squad_prepared),
  "coqa": Reader(lambda path, _: _each(path, "data[]", "questions"), _coqa, prepared=_coqa_prepared_questions),
  "quac": Reader(lambda path, _: _each(path, "data[].paragraphs[]", "qas"), _quac, prepared=_quac_prepared),
  "drop": tree("{}.qa_pairs[]", _drop, prepared=_drop_prepared),
  "narrativeqa": Reader(_narrative_records, _narrativeqa, splits=True),
  "newsqa": Reader(_news_records, _newsqa, splits=True),
  "pubmed_qa": tree("{}", _pubmed_qa),
  "boolq": lines(_boolq),
  "cnn_dailymail": Reader(_stories, _cnn_dailymail, "*.story", prepared=_cnn_dailymail),
}
