"""Reading users' files: what is read, and what is said about each kind of bad line."""

import json

import pytest

from radit_jax.data.corpus import read_corpus
from radit_jax.data.policy import Skipped
from radit_jax.data.sources import Example, Passage, read_examples
from radit_jax.errors import UserError

GOOD_QUESTION = {"id": "a", "question": "Where?", "answers": ["Orlen"]}
GOOD_DOCUMENT = {"id": "a", "text": "Orlen is a town."}
SQUAD = {
  "version": "1.1",
  "data": [
    {
      "title": "Mira_Kelwick%21",
      "paragraphs": [
        {
          "context": "Mira was born in Orlen. ",
          "qas": [
            {
              "id": "q1",
              "question": " Where? ",
              "answers": [{"text": "Orlen", "answer_start": 17}, {"text": "in Orlen"}, {"text": "Orlen"}],
            }
          ],
        },
        {"context": "Mira sails.", "qas": [{"id": "q2", "question": "Who sails?", "answers": [{"text": "Mira"}]}]},
        {
          "context": "Mira was born in Orlen.",
          "qas": [{"id": "q3", "question": "Who?", "answers": [{"text": "Mira"}]}],
        },
      ],
    },
    {"title": "Orlen", "paragraphs": [{"context": "A town.", "qas": []}]},
  ],
}


def lines(tmp_path, *records):
  path = tmp_path / "file.jsonl"
  path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records))
  return path


def squad(tmp_path, content):
  path = tmp_path / "squad.json"
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def test_jsonl_questions(tmp_path):
  full = {
    "id": "b",
    "question": "Who?",
    "answers": ["Mira", "M. K."],
    "query": "who is it",
    "context": "Mira.",
    "passage_ids": ["d1", "d2"],
    "group": "people",
    "metadata": {"year": 1931, "kind": "x", "w": 0.5},
    "unknown": [1],
  }
  nulls = {**GOOD_QUESTION, "id": "c", "query": None, "context": "", "passage_ids": [], "group": None, "metadata": None}
  path = lines(tmp_path, GOOD_QUESTION, b"", full, b"  ", nulls)
  assert list(read_examples(path, format="jsonl")) == [
    Example("a", "Where?", ("Orlen",)),
    Example(
      "b",
      "Who?",
      ("Mira", "M. K."),
      query="who is it",
      own_context="Mira.",
      gold_passage_ids=("d1", "d2"),
      group="people",
      metadata={"year": 1931, "kind": "x", "w": 0.5},
    ),
    Example("c", "Where?", ("Orlen",)),
  ]


def test_jsonl_corpus_with_byte_order_mark(tmp_path):
  titled = {"id": "b", "title": "Orlen", "text": "A töwn.", "metadata": {"year": 2}}
  path = lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD_DOCUMENT).encode(), titled)
  passages = list(read_corpus(path, format="jsonl"))
  assert passages == [Passage("a", "", "Orlen is a town."), Passage("b", "Orlen", "A töwn.", {"year": 2})]
  assert [p.full_text for p in passages] == ["Orlen is a town.", "Orlen\nA töwn."]


def test_squad_paragraphs_are_distinct_and_questions_know_theirs(tmp_path):
  path = squad(tmp_path, SQUAD)
  corpus = list(read_corpus(path, format="squad"))
  assert corpus == [
    Passage("Mira_Kelwick%21#0", "Mira Kelwick!", "Mira was born in Orlen."),
    Passage("Mira_Kelwick%21#1", "Mira Kelwick!", "Mira sails."),
    Passage("Orlen#0", "Orlen", "A town."),
  ]
  questions = list(read_examples(path, format="squad"))
  assert [q.id for q in questions] == ["q1", "q2", "q3"]
  assert questions[0] == Example(
    "q1",
    "Where?",
    ("Orlen", "in Orlen"),
    own_context="Mira was born in Orlen.",
    gold_passage_ids=("Mira_Kelwick%21#0",),
    group="Mira_Kelwick%21",
  )
  assert questions[2].gold_passage_ids == ("Mira_Kelwick%21#0",)


BAD_LINES = [
  (b"{not json", "not JSON"),
  (b"\xff\xfe{}", r"not UTF-8 \(byte 0 of the line\)"),
  ([1], "a list, must be an object"),
  ({"id": "a"}, "'{main}' is missing; found 'id'"),
  ({"{main}": "x"}, "'id' is missing"),
  ({"id": 7, "{main}": "x"}, "'id' is a number, must be text"),
  ({"id": "", "{main}": "x"}, "'id' is empty"),
  ({"id": "a", "{main}": " \n"}, "'{main}' is empty"),
  ({"id": "a", "{main}": ["x"]}, "'{main}' is a list, must be text"),
  ({"id": "a", "{main}": "half \ud800"}, "'{main}' holds half a surrogate pair"),
  ({"id": "a", "{main}": "x", "metadata": []}, "'metadata' is a list, must be an object"),
  ({"id": "a", "{main}": "x", "metadata": {"y": None}}, "metadata 'y' is null"),
  ({"id": "a", "{main}": "x", "metadata": {"y": True}}, "metadata 'y' is true or false"),
  (b'{"id": "a", "{main}": "x", "answers": ["y"], "metadata": {"z": NaN}}', "metadata 'z' is nan"),
]
BAD_QUESTIONS = [
  ({"id": "a", "question": "x"}, "'answers' is missing"),
  ({"id": "a", "question": "x", "answers": "Orlen"}, "'answers' is text, must be a list"),
  ({"id": "a", "question": "x", "answers": []}, "'answers' is an empty list"),
  ({"id": "a", "question": "x", "answers": ["y", ""]}, "'answers' holds an empty text"),
  ({"id": "a", "question": "x", "answers": [1]}, "'answers' holds a number"),
  ({"id": "a", "question": "x", "answers": ["y"], "passage_ids": "d"}, "'passage_ids' is text, must be a list"),
  ({"id": "a", "question": "x", "answers": ["y"], "context": 3}, "'context' is a number, must be text"),
]


def cases():
  for name, read, main, good in (
    ("questions", read_examples, "question", {**GOOD_QUESTION, "id": "good"}),
    ("corpus", read_corpus, "text", {**GOOD_DOCUMENT, "id": "good"}),
  ):
    for bad, message in BAD_LINES + (BAD_QUESTIONS if name == "questions" else []):
      if isinstance(bad, dict):
        record = {k.replace("{main}", main): v for k, v in bad.items()}
        if name == "questions" and (bad, message) not in BAD_QUESTIONS:
          record.setdefault("answers", ["y"])
        message = message.replace("found 'id'", "found 'id', 'answers'") if name == "questions" else message
      else:
        record = bad.replace(b"{main}", main.encode()) if isinstance(bad, bytes) else bad
      yield pytest.param(read, good, record, message.replace("{main}", main), id=f"{name}-{message[:40]}")


@pytest.mark.parametrize(("read", "good", "bad", "message"), list(cases()))
def test_a_bad_line_is_named_or_counted(tmp_path, read, good, bad, message):
  path = lines(tmp_path, good, b"", bad, {**good, "id": "later"})
  seen = []
  with pytest.raises(UserError, match=rf"^\S*file\.jsonl:3: .*{message}") as raised:
    seen.extend(read(path, format="jsonl"))
  assert "\n" not in str(raised.value)
  skipped = Skipped()
  assert [r.id for r in read(path, format="jsonl", on_error="skip", skipped=skipped)] == ["good", "later"]
  assert skipped.total() == 1
  assert skipped.lines()[1].startswith(f"  {path}:3: ")


@pytest.mark.parametrize(("read", "good"), [(read_examples, GOOD_QUESTION), (read_corpus, GOOD_DOCUMENT)])
def test_files_as_a_whole(tmp_path, read, good):
  with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
    list(read(tmp_path / "absent.jsonl", format="jsonl"))
  for content in (b"", b"\n \n"):
    (tmp_path / "empty.jsonl").write_bytes(content)
    for format in ("jsonl", "squad"):
      with pytest.raises(UserError, match=r"empty\.jsonl: no (questions|documents) in it \(empty file\)"):
        list(read(tmp_path / "empty.jsonl", format=format))
  path = lines(tmp_path, good, {**good, "id": "b"}, good)
  with pytest.raises(UserError, match=r"file\.jsonl:3: id 'a' was already used at .*file\.jsonl:1;"):
    list(read(path, format="jsonl"))
  skipped = Skipped()
  assert [r.id for r in read(path, format="jsonl", on_error="skip", skipped=skipped)] == ["a", "b"]
  assert skipped.total() == 1
  path = lines(tmp_path, b"{", b"[")
  with pytest.raises(UserError, match=r"no (questions|documents) in it \(2 bad lines left out\)"):
    list(read(path, format="jsonl", on_error="skip"))
  with pytest.raises(UserError, match="format='csv': must be one of 'jsonl', "):
    list(read(path, format="csv"))
  with pytest.raises(UserError, match="on_error='ignore': must be one of"):
    list(read(path, format="jsonl", on_error="ignore"))


def test_a_split_is_refused_where_there_is_none(tmp_path):
  with pytest.raises(UserError, match="'jsonl' has no splits, but split 'dev'"):
    list(read_examples(lines(tmp_path, GOOD_QUESTION), format="jsonl", split="dev"))


@pytest.mark.parametrize("read", [read_examples, read_corpus])
@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"data":\n nope}', r"squad\.json:2: not JSON"),
    ("[]", r'not a SQuAD file: no list under "data"'),
    ('{"data": {}}', r'not a SQuAD file: no list under "data"'),
    ({"data": [{"paragraphs": []}]}, r"data\[0\]: field 'title' is missing"),
    ({"data": [{"title": "x", "paragraphs": 3}]}, r"data\[0\]: field 'paragraphs' is a number"),
    ({"data": [{"title": "x", "paragraphs": [3]}]}, r"data\[0\]\.paragraphs\[0\]: a number, must be an object"),
    (
      {"data": [{"title": "x", "paragraphs": [{"context": " ", "qas": []}]}]},
      r"data\[0\]\.paragraphs\[0\]: field 'context' is empty",
    ),
  ],
)
def test_bad_squad_files(tmp_path, read, content, message):
  with pytest.raises(UserError, match=message):
    list(read(squad(tmp_path, content), format="squad"))


def test_bad_squad_bytes_name_their_line(tmp_path):
  path = tmp_path / "squad.json"
  path.write_bytes(b'{"data":\n\n "\xff"}')
  with pytest.raises(UserError, match=r"squad\.json:3: not UTF-8 \(byte 12 of the file\)"):
    list(read_corpus(path, format="squad"))


def test_a_squad_question_without_an_answer(tmp_path):
  content = json.loads(json.dumps(SQUAD))
  content["data"][0]["paragraphs"][1]["qas"][0]["answers"] = []
  path = squad(tmp_path, content)
  with pytest.raises(UserError, match=r"data\[0\]\.paragraphs\[1\]\.qas\[0\]: question 'q2' has no answer"):
    list(read_examples(path, format="squad"))
  skipped = Skipped()
  assert [q.id for q in read_examples(path, format="squad", on_error="skip", skipped=skipped)] == ["q1", "q3"]
  assert skipped.total() == 1
