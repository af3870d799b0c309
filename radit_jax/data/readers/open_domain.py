"""Questions whose passages are retrieved."""

import html
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from radit_jax.data import records
from radit_jax.data.fields import a_list, an_object, field, integer, metadata, optional_text, text, texts
from radit_jax.data.policy import BadRecord, Located, Unused
from radit_jax.data.readers.example import CATEGORIES, UNANSWERABLE, Example, chosen, conversation
from radit_jax.data.readers.layer import Reader, alone, first_byte, lines, tree
from radit_jax.errors import UserError


def _jsonl(record: dict[str, Any]) -> Example:
  turns, choices = texts(record, "turns", required=False), texts(record, "choices", required=False)
  answers = texts(record, "answers", required=True)
  category = optional_text(record, "category") or ("dialogue" if turns else "choice" if choices else "qa")
  if category not in CATEGORIES:
    raise BadRecord(f"category {category!r}: must be one of {', '.join(CATEGORIES)}", reason="unknown category")
  if choices:
    if answers[0] not in choices:
      raise BadRecord(f"answer {answers[0]!r} is none of the choices", reason="an answer that is none of the choices")
    answers = (*chosen(choices, choices.index(answers[0])), *answers[1:])
  fields = conversation(turns) if turns else {"instruction": text(record, "question")}
  query = optional_text(record, "query")
  return Example(
    **fields
    | {"category": category}
    | ({"query": query} if query else {})
    | {
      "id": text(record, "id"),
      "answers": answers,
      "own_context": optional_text(record, "context"),
      "gold_passage_ids": texts(record, "passage_ids", required=False),
      "group": optional_text(record, "group"),
      "choices": choices or None,
      "metadata": metadata(record),
    }
  )


def _nq_open(record: dict[str, Any]) -> Example:
  return Example(id="", instruction=text(record, "question"), answers=texts(record, "answer", required=True))


def _trivia_qa(record: dict[str, Any]) -> Example:
  answer = field(record, "Answer", dict)
  if answer is None:
    raise BadRecord("no field 'Answer': a test file without answers")
  value = text(answer, "Value")
  aliases = texts(answer, "Aliases", required=False)
  return Example(
    id=text(record, "QuestionId"), instruction=text(record, "Question"), answers=tuple(dict.fromkeys((value, *aliases)))
  )


def _hotpot_qa(record: dict[str, Any]) -> Example:
  kinds = {name: value for name in ("type", "level") if (value := optional_text(record, name))}
  return Example(
    id=text(record, "_id"), instruction=text(record, "question"), answers=(text(record, "answer"),), metadata=kinds
  )


_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)')


def _web_questions(record: dict[str, Any]) -> Example:
  if "qText" in record:
    return Example(
      id=text(record, "qId"), instruction=text(record, "qText"), answers=texts(record, "answers", required=True)
    )
  target = text(record, "targetValue")
  answers = [(quoted or bare).replace('\\"', '"').strip() for quoted, bare in _DESCRIPTION.findall(target)]
  if not any(answers):
    raise BadRecord(f"no (description ...) in targetValue {target[:60]!r}", reason="no description in targetValue")
  return Example(id="", instruction=text(record, "utterance"), answers=tuple(dict.fromkeys(filter(None, answers))))


def _web_questions_prepared(record: dict[str, Any]) -> Example:
  return Example(id="", instruction=text(record, "question"), answers=texts(record, "answers", required=True))


def _wiki_questions(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """Rows of candidate sentences, gathered by question; a question's rows follow one another."""
  place, rows = "", list[dict[str, str]]()
  for here, row in records.read_table(path, delimiter="\t", quoted=False):
    if isinstance(row, BadRecord):
      yield here, row
      continue
    if rows and row.get("QuestionID") != rows[0].get("QuestionID"):
      yield place, (rows,)
      rows = []
    place = here if not rows else place
    rows.append(row)
  if rows:
    yield place, (rows,)


def _wiki_qa(rows: list[dict[str, str]]) -> Example:
  for row in rows:
    if text(row, "Label") not in ("0", "1"):
      raise BadRecord(f"Label {row['Label']!r}, must be 0 or 1", reason="Label is neither 0 nor 1")
  answers = dict.fromkeys(text(row, "Sentence") for row in rows if row["Label"] == "1")
  first = rows[0]
  made = Example(
    id=text(first, "QuestionID"),
    instruction=text(first, "Question"),
    answers=tuple(answers),
    group=optional_text(first, "DocumentTitle"),
  )
  if not answers:
    raise Unused("none of the candidate sentences answers it")
  return made


def _yahoo_records(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  return alone(records.read_xml(path, "document")) if first_byte(path) == b"<" else records.read_tree(path, "[]")


_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def _yahoo_answers_qa(record: dict[str, Any]) -> Example:
  xml = "uri" in record
  names = ("uri", "subject", "bestanswer", "maincat") if xml else ("id", "question", "answer", "main_category")
  asked, answer = (html.unescape(_BREAK.sub("\n", text(record, name))).strip() for name in names[1:3])
  if not asked or not answer:
    raise BadRecord("question or answer is nothing but line breaks")
  category = optional_text(record, names[3])
  return Example(
    id=text(record, names[0]),
    instruction=asked,
    answers=(answer,),
    metadata={"main_category": category} if category else {},
  )


_FREEBASE_COLUMNS = ("mention", "name", "mid", "predicate", "predicate2", "answer_mid", "answer", "question")


def _freebase_records(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """The JSON form, or the older table with a row for each way to an answer: one record for each question."""
  if first_byte(path) == b"{":
    yield from records.read_tree(path, "Questions[]")
    return
  asked: dict[str, tuple[str, dict[str, Any]]] = {}
  # Cells are unquoted, apart from questions with quotes in them, and of those not all.
  for place, row in records.read_table(path, delimiter="\t", columns=_FREEBASE_COLUMNS, quoted=False):
    if isinstance(row, BadRecord):
      yield place, row
      continue
    question = row["question"]
    if question[:1] == question[-1:] == '"' and '"' not in question[1:-1].replace('""', ""):
      question = question[1:-1].replace('""', '"')
    _, known = asked.setdefault(question, (place, {"RawQuestion": question, "names": []}))
    known["names"].append(row["answer"])
  for place, record in asked.values():
    yield place, (record,)


def _freebase_qa(record: dict[str, Any]) -> Example:
  if "names" in record:
    names, name = texts(record, "names", required=True), ""
  else:
    parses = [an_object(parse) for parse in a_list(record, "Parses")]
    given = [an_object(answer) for parse in parses for answer in a_list(parse, "Answers")]
    names, name = tuple(n for answer in given for n in texts(answer, "AnswersName", required=False)), ""
    name = text(record, "Question-ID")
  if not names:
    raise BadRecord("no answer has a name")
  return Example(id=name, instruction=text(record, "RawQuestion"), answers=tuple(dict.fromkeys(names)))


def _marco_records(path: pathlib.Path, _: str | None) -> Iterator[Located]:
  """Version 2 is one object of columns, ``{"query": {"0": ...}, ...}``; version 1 has an object on each line."""
  with records.open_input(path) as f:
    columns = re.match(rb'\s*\{\s*"\w+"\s*:\s*\{', f.read(4096).removeprefix(b"\xef\xbb\xbf"))
  if not columns:
    yield from alone(records.read_lines(path))
    return
  content = records.read_json(path)
  names = [name for name, column in content.items() if isinstance(column, dict)]
  rows = content.get("query")
  if not isinstance(rows, dict):
    raise UserError(f'{path}: not a file of this format: no object under "query"')
  for row in rows:
    yield f"{path}#{row}", ({name: content[name][row] for name in names if row in content[name]},)


def _ms_marco(record: dict[str, Any]) -> Example:
  answers = tuple(a.strip() for a in texts(record, "answers", required=False))
  if not answers:
    raise Unused("no answer")
  passages = [an_object(p) for p in field(record, "passages", list) or []]
  selected = [text(p, "passage_text") for p in passages if field(p, "is_selected", int)]
  return Example(
    id=str(integer(record, "query_id")),
    instruction=text(record, "query"),
    answers=(UNANSWERABLE,) if answers[0] == "No Answer Present." else tuple(dict.fromkeys(answers)),
    own_context="\n".join(selected) or None,
  )


def _kilt_outputs(record: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
  if record.get("output") is None:
    raise BadRecord("field 'output' is missing: a test file without answers")
  outputs = [an_object(output) for output in a_list(record, "output")]
  answers = tuple(dict.fromkeys(a.strip() for o in outputs if (a := optional_text(o, "answer"))))
  if not answers:
    raise Unused("no answer")
  pages = [an_object(p) for o in outputs for p in field(o, "provenance", list) or []]
  ids = dict.fromkeys(i for p in pages if (i := optional_text(p, "wikipedia_id")))
  return answers, {"wikipedia_ids": " ".join(ids)} if ids else {}


def _kilt(record: dict[str, Any], category: Any = "qa") -> Example:
  answers, pages = _kilt_outputs(record)
  if "input" not in record:
    raise BadRecord("field 'input' is missing; KILT leaves TriviaQA's questions out: read the original as trivia_qa")
  return Example(
    id=text(record, "id"), instruction=text(record, "input"), answers=answers, category=category, metadata=pages
  )


_VERDICTS = {"SUPPORTS": "yes", "REFUTES": "no", "NOT ENOUGH INFO": UNANSWERABLE}


def _kilt_fever(record: dict[str, Any]) -> Example:
  answers, pages = _kilt_outputs(record)
  if answers[0] not in _VERDICTS:
    raise BadRecord(f"answer {answers[0]!r}, must be one of {', '.join(_VERDICTS)}", reason="unknown verdict")
  claim = text(record, "input")
  return Example(
    id=text(record, "id"), instruction=claim, answers=(_VERDICTS[answers[0]],), category="fact", metadata=pages
  )


def _kilt_slot(record: dict[str, Any]) -> Example:
  made = _kilt(record, "slot")
  if " [SEP] " not in made.instruction:
    raise BadRecord("no ' [SEP] ' between entity and relation")
  return made


def _kilt_aida(record: dict[str, Any]) -> Example:
  made = _kilt(record, "entity")
  if not ("[START_ENT]" in made.instruction and "[END_ENT]" in made.instruction):
    raise BadRecord("no [START_ENT] and [END_ENT] around the entity")
  return made


def _kilt_wow(record: dict[str, Any]) -> Example:
  answers, pages = _kilt_outputs(record)
  turns = [turn.strip() for turn in text(record, "input").split("\n") if turn.strip()]
  return Example(id=text(record, "id"), answers=answers, metadata=pages, **conversation(turns))


def _beir_records(path: pathlib.Path, split: str | None) -> Iterator[Located]:
  """A folder of ``queries.jsonl`` and ``qrels/<split>.tsv``; queries that nobody judged are in another split."""
  judgements = sorted((path / "qrels").glob("*.tsv"))
  names = [p.stem for p in judgements]
  if not judgements:
    raise UserError(f"{path}: not a BEIR folder: no qrels/*.tsv")
  if split is None:
    split = names[0] if len(names) == 1 else "test"
  if split not in names:
    raise UserError(f"{path}: no split {split!r}, has {', '.join(names)}")
  gold: dict[str, list[str]] = {}
  judged: dict[str, str] = {}
  columns = ("query-id", "corpus-id", "score")
  for place, row in records.read_table(path / "qrels" / f"{split}.tsv", delimiter="\t", columns=columns, quoted=False):
    if isinstance(row, dict) and tuple(row.values()) == columns:
      continue
    if isinstance(row, dict) and not re.fullmatch(r"-?\d+", row["score"]):
      row = BadRecord(f"score {row['score']!r} is no whole number", reason="score is no whole number")
    if isinstance(row, BadRecord):
      yield place, row
      continue
    judged.setdefault(row["query-id"], place)
    if int(row["score"]) > 0:
      gold.setdefault(row["query-id"], []).append(row["corpus-id"])
  found = [path / name for name in ("queries.jsonl", "queries.jsonl.gz") if (path / name).is_file()]
  for place, query in records.read_lines(found[0] if found else path / "queries.jsonl"):
    name = query.get("_id") if isinstance(query, dict) else None
    if isinstance(query, BadRecord) or not isinstance(name, str):
      yield place, query if isinstance(query, BadRecord) else (query, [])
    elif name in judged:
      del judged[name]
      yield place, (query, gold.get(name, []))
  for name, place in judged.items():
    yield place, BadRecord(f"query {name!r} is not in queries.jsonl", reason="a judgement of a query that is not there")


def _beir(query: dict[str, Any], gold: list[str]) -> Example:
  name, asked = text(query, "_id"), text(query, "text")
  if not gold:
    raise Unused("no document was judged relevant")
  return Example(
    id=name, instruction=asked, answers=texts(query, "answers", required=False), gold_passage_ids=tuple(gold)
  )


OPEN_DOMAIN = {
  "jsonl": lines(_jsonl),
  "beir": Reader(_beir_records, _beir, splits=True),
  "nq_open": lines(_nq_open),
  "trivia_qa": tree("Data[]", _trivia_qa),
  "hotpot_qa": tree("[]", _hotpot_qa),
  "web_questions": tree("[]", _web_questions, prepared=_web_questions_prepared),
  "wiki_qa": Reader(_wiki_questions, _wiki_qa),
  "yahoo_answers_qa": Reader(_yahoo_records, _yahoo_answers_qa),
  "freebase_qa": Reader(_freebase_records, _freebase_qa),
  "ms_marco": Reader(_marco_records, _ms_marco),
  "kilt": lines(_kilt),
  "kilt_fever": lines(_kilt_fever),
  "kilt_aida": lines(_kilt_aida),
  "kilt_zsre": lines(_kilt_slot),
  "kilt_trex": lines(_kilt_slot),
  "kilt_wow": lines(_kilt_wow),
  "kilt_eli5": lines(_kilt),
}
