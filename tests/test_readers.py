"""Every reader on files in the original format: what it makes of them, leaves out and counts, and refuses."""

import contextlib
import dataclasses
import functools
import gzip
import json
import typing

import pytest
from original_files import ORIGINALS, jsonl, stem, write

from radit_jax.config import PrepareConfig, QuestionFormat
from radit_jax.data.policy import Skipped
from radit_jax.data.readers import READERS
from radit_jax.data.readers.example import UNANSWERABLE, Example
from radit_jax.data.sources import read_examples
from radit_jax.errors import UserError
from radit_jax.verbs.prepare import prepare, read_split


def test_every_format_has_a_reader_and_a_file_to_test_it_on():
  assert set(typing.get_args(QuestionFormat)) == set(READERS) == set(ORIGINALS)


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_what_is_read(tmp_path, name):
  assert list(read_examples(write(tmp_path, name), format=name)) == ORIGINALS[name][2]


@pytest.mark.parametrize(
  ("name", "reasons"),
  [
    ("beir", {"no document was judged relevant": 1}),
    ("wiki_qa", {"none of the candidate sentences answers it": 1}),
    ("drop", {"no answer: neither number, date nor spans": 1}),
    ("newsqa", {"marked as a bad question": 1}),
    ("cnn_dailymail", {"no article, only highlights": 1}),
    ("oasst1", {"a prompt that nobody answered": 1}),
  ],
)
def test_records_that_make_no_example_are_counted_also_where_bad_ones_stop(tmp_path, name, reasons):
  skipped = Skipped()
  assert len(list(read_examples(write(tmp_path, name), format=name, skipped=skipped))) == len(ORIGINALS[name][2])
  assert skipped.counts == reasons


@pytest.mark.parametrize("name", [n for n, (path, _, _) in ORIGINALS.items() if "." in path])
def test_compressed_files_give_the_same(tmp_path, name):
  path = write(tmp_path, name)
  plain = list(read_examples(path, format=name))
  path.write_bytes(gzip.compress(path.read_bytes()))
  assert list(read_examples(path, format=name)) == plain


def test_own_contexts_that_take_the_place_of_retrieval():
  skipping = {name for name, (_, _, examples) in ORIGINALS.items() if examples[0].skips_retrieval}
  assert skipping == {
    *("squad_v2", "coqa", "quac", "drop", "narrativeqa", "newsqa", "pubmed_qa", "boolq", "quail", "cnn_dailymail")
  }


def test_answers_to_look_for_in_passages():
  assert Example("i", "x", ("B", "sea"), category="choice", choices=("barn", "sea")).answer_texts == ("sea",)
  assert Example("i", "x", ("It is 4.", "4"), category="reasoning").answer_texts == ("4",)
  assert Example("i", "x", ("Orlen", "Orlen town")).answer_texts == ("Orlen", "Orlen town")


def test_other_forms_of_the_same_set(tmp_path):
  table = (
    'Vornara\tvornara\tm.1\tp\tnull\tm.2\tmira\t"Who sails the ""Vornara""?"\n'
    "Orlen\torlen\tm.3\tp\tnull\tm.4\tOrlen\tWhere?\n"
    'Vornara\tvornara\tm.1\tq\tnull\tm.2\tMira Kelwick\t"Who sails the ""Vornara""?"\n'
    'X\tx\tm.5\tp\tnull\tm.6\tx\t"Vornara" is what?\n'
  )
  (tmp_path / "FreebaseQA-dev.tab").write_text(table)
  assert list(read_examples(tmp_path / "FreebaseQA-dev.tab", format="freebase_qa")) == [
    Example("FreebaseQA-dev.tab:1", 'Who sails the "Vornara"?', ("mira", "Mira Kelwick")),
    Example("FreebaseQA-dev.tab:2", "Where?", ("Orlen",)),
    Example("FreebaseQA-dev.tab:4", '"Vornara" is what?', ("x",)),
  ]
  (tmp_path / "l6.xml").write_text(
    "<ystfeed><vespaadd><document type='wisdom'><uri>8</uri><subject>How?</subject><bestanswer>So &lt;br&gt; so."
    "</bestanswer><nbestanswers><answer_item>No</answer_item></nbestanswers></document></vespaadd></ystfeed>"
  )
  assert list(read_examples(tmp_path / "l6.xml", format="yahoo_answers_qa")) == [Example("8", "How?", ("So \n so.",))]
  lines = {"answers": ["Orlen"], "passages": [], "query": "where", "query_id": 3, "query_type": "x"}
  (tmp_path / "v1.json").write_text(jsonl(lines, lines | {"query_id": 4, "answers": []}))
  skipped = Skipped()
  marco = list(read_examples(tmp_path / "v1.json", format="ms_marco", skipped=skipped))
  assert marco == [Example("3", "where", ("Orlen",))]
  assert skipped.counts == {"no answer": 1}
  (tmp_path / "MATH.jsonl").write_text(jsonl({"problem": "1?", "solution": "It is $\\boxed 1$."}))
  assert list(read_examples(tmp_path / "MATH.jsonl", format="competition_math")) == [
    Example("MATH.jsonl:1", "1?", ("It is $\\boxed 1$.\nThe answer is 1.", "1"), category="reasoning")
  ]


@pytest.mark.parametrize(
  ("name", "split", "count"), [("narrativeqa", "train", 1), ("narrativeqa", "test", 1), ("newsqa", "train", 2)]
)
def test_splits(tmp_path, name, split, count):
  path = write(tmp_path, name)
  assert len(list(read_examples(path, format=name, split=split))) == count
  with pytest.raises(UserError, match=r"no split 'other'|no questions in it"):
    list(read_examples(path, format=name, split="other"))


def test_ecqa_is_joined_with_commonsense_qa_as_its_authors_do(tmp_path):
  """From the folder of the distribution come the examples of the table that the authors' script makes of it."""
  asked = {"stem": "Where does a boat lie?", "question_concept": "boat"}
  words = ("barn", "sea", "drawer", "sky", "oven")
  choices = [{"label": label, "text": word} for label, word in zip("ABCDE", words, strict=True)]
  question = {"id": "e1", "answerKey": "B", "question": asked | {"choices": choices}}
  reason = {
    "id": "e1",
    "positives": ["Boats float"],
    "negatives": ["x"],
    "explanation": "Boats float, so they lie at sea.",
  }
  files = {
    "cqa/train_rand_split.jsonl": jsonl(
      question, question | {"id": "e2", "question": asked | {"choices": choices[:4]}}
    ),
    "cqa/dev_rand_split.jsonl": jsonl(question | {"id": "e3", "answerKey": "A"}),
    "ecqa.jsonl": jsonl(reason, reason | {"id": "e2"}, reason | {"id": "e3"}, reason | {"id": "e9"}),
    "author_split/train_ids.txt": "e1\ne2\ne9\n",
    "author_split/val_ids.txt": "e3\n",
  }
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
  skipped = Skipped()
  read = functools.partial(read_examples, tmp_path, format="ecqa", on_error="skip", skipped=skipped)
  assert list(read(split="train")) == ORIGINALS["ecqa"][2]
  assert skipped.counts == {"choices that are not A to E": 1, "no such question in CommonsenseQA": 1}
  assert [e.answers[1:] for e in read(split="val")] == [("A", "barn")]
  assert [e.id for e in read()] == ["e1", "e3"]
  with pytest.raises(UserError, match=r"no split 'dev'; ECQA has train, val and test"):
    list(read(split="dev"))
  table = write(tmp_path, "ecqa")
  with pytest.raises(UserError, match=r"one table, so no split 'train'"):
    list(read_examples(table, format="ecqa", split="train"))


def test_beir_splits(tmp_path):
  path = write(tmp_path, "beir")
  (path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\nq9\td1\t1\nq2\td2\tx\n")
  assert [e.id for e in read_examples(path, format="beir")] == ["q1"]
  skipped = Skipped()
  assert [e.id for e in read_examples(path, format="beir", split="dev", on_error="skip", skipped=skipped)] == ["q2"]
  assert skipped.counts == {"a judgement of a query that is not there": 1, "score is no whole number": 1}
  with pytest.raises(UserError, match="no split 'train', has dev, test"):
    list(read_examples(path, format="beir", split="train"))
  with pytest.raises(UserError, match="not a BEIR folder"):
    list(read_examples(tmp_path, format="beir"))


def test_labels_in_a_file_of_their_own(tmp_path):
  path = write(tmp_path, "piqa")
  (tmp_path / "train-labels.lst").write_text("0\n1\n1\n")
  skipped = Skipped()
  assert len(list(read_examples(path, format="piqa", on_error="skip", skipped=skipped))) == 1
  assert skipped.counts == {"labels without a line": 1}
  path.write_text(path.read_text() * 4)
  with pytest.raises(UserError, match=r"train\.jsonl:4: no line 4 in .*train-labels\.lst"):
    list(read_examples(path, format="piqa"))
  (tmp_path / "train-labels.lst").write_text("0\nyes\n2\n1\n")
  skipped = Skipped()
  assert len(list(read_examples(path, format="piqa", on_error="skip", skipped=skipped))) == 2
  assert skipped.counts == {"a label that is no number": 1, "the right choice is none": 1}


CHANGES = [
  ("gsm8k", "#### 6", "6", "no '#### <result>'"),
  ("commonsense_qa", '"answerKey": "B"', '"answerKey": "D"', "answerKey 'D' is none of A, B, C"),
  ("commonsense_qa", '"answerKey": "B"', '"key": "B"', "a test file without answers"),
  ("mmlu", ",None,B", ",None,E", r"boats_test\.csv:1: answer 'E', must be A, B, C or D"),
  ("mmlu", ",None,B", ",B", r"boats_test\.csv:1: 5 cells, must be 6"),
  ("math_qa", '"correct": "b"', '"correct": "e"', "'e' is none of the options"),
  ("quarel", "(B) sand", "or sand", r"no \(A\) and \(B\)"),
  ("aqua_rat", "B)4", "4", "'B' is none of the options"),
  ("ecqa", ",oven,sea,", ",oven,lake,", "q_ans 'lake' is none of the options"),
  ("competition_math", "boxed", "box", r"1\.json: no \\boxed"),
  ("competition_math", '"problem"', "problem", r"1\.json: .*not JSON"),
  ("strategyqa", '"answer": false', '"answer": "no"', "'answer' is text, must be true or false"),
  ("kilt_fever", "SUPPORTS", "PERHAPS", "'PERHAPS', must be one of SUPPORTS, REFUTES"),
  ("kilt_zsre", " [SEP] ", " ", r"no ' \[SEP\] '"),
  ("kilt_aida", "[END_ENT]", "", "around the entity"),
  ("kilt", '"input"', '"question"', "read the original as trivia_qa"),
  ("newsqa", '"e": 30', '"e": 300', "the answer is at characters 25 to 300 of 54"),
  ("squad_v2", '"is_impossible": true', '"is_impossible": false', "is_impossible is False, but it has 0 answers"),
  ("coqa", '"answers": [', '"answers": [], "old": [', "3 questions, 0 answers"),
  ("oasst1", '"role": "assistant"', '"role": "prompter"', "role 'prompter' where 'assistant' is due"),
  ("oasst1", '"prompt": ', '"role": ', "a single message"),
  ("pubmed_qa", "maybe", "perhaps", "final_decision 'perhaps'"),
  ("jsonl", '"category": "fact"', '"category": "facts"', "category 'facts': must be one of qa, choice"),
  ("jsonl", '["red"]', '["green"]', "answer 'green' is none of the choices"),
  ("wiki_qa", "\t1\n", "\tyes\n", "Label 'yes', must be 0 or 1"),
  ("narrativeqa", "d1,test", "d2,test", "document 'd2' has no summary"),
  ("web_questions", "(description", "(text", "no .description .... in targetValue"),
  ("trivia_qa", '"Answer"', '"Reply"', "a test file without answers"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), CHANGES, ids=[f"{c[0]}-{c[3][:20]}" for c in CHANGES])
def test_what_is_wrong_is_said_with_its_place_or_counted(tmp_path, name, old, new, message):
  path = write(tmp_path, name)
  changed = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and old in p.read_text()]
  changed[0].write_text(changed[0].read_text().replace(old, new))
  with pytest.raises(UserError, match=message) as raised:
    list(read_examples(path, format=name))
  assert str(raised.value).startswith(f"{tmp_path}/")
  assert "\n" not in str(raised.value)
  skipped = Skipped()
  kept, rest = [], read_examples(path, format=name, on_error="skip", skipped=skipped)
  with contextlib.suppress(UserError):  # of a file of one record nothing is left
    kept += rest
  assert len(kept) < len(ORIGINALS[name][2])
  assert skipped.total()


def test_what_is_no_such_place(tmp_path):
  with pytest.raises(UserError, match=r"no \*\.csv in this folder"):
    list(read_examples(tmp_path, format="mmlu"))
  with pytest.raises(UserError, match="a folder, must be a file"):
    list(read_examples(tmp_path, format="drop"))
  with pytest.raises(UserError, match=r"qaps\.csv: no such file|summaries\.csv: no such file"):
    list(read_examples(tmp_path, format="narrativeqa"))
  path = write(tmp_path, "narrativeqa") / "third_party" / "wikipedia" / "summaries.csv"
  path.write_text("id,summary\n1,x\n")
  with pytest.raises(UserError, match=r"summaries\.csv:1: columns 'id', 'summary', must be document_id"):
    list(read_examples(tmp_path / "nqa", format="narrativeqa"))
  write(tmp_path, "ms_marco").write_text('{"answers": {"0": []}}')
  with pytest.raises(UserError, match='no object under "query"'):
    list(read_examples(tmp_path / "train.json", format="ms_marco"))


def test_an_example_unanswered_is_never_dropped_in_silence(tmp_path):
  answers = {
    name: [e.answers for e in read_examples(write(tmp_path, name), format=name)]
    for name in ("squad_v2", "coqa", "quac", "newsqa", "ms_marco")
  }
  assert all((UNANSWERABLE,) in found for found in answers.values()), json.dumps(answers)


def test_prepare_writes_questions_in_the_form_of_their_category(tmp_path):
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text(jsonl({"id": "d", "title": "Boats", "text": "A boat lies on the sea."}))
  questions = tmp_path / "train.jsonl"
  lines = [stem(f"c{i}", f"Where is boat {i}?", "ABC", "B") for i in range(9)]
  questions.write_text(jsonl(*lines) + "{\n" + jsonl(lines[0]))
  config = PrepareConfig(str(tmp_path / "run"), str(corpus), str(questions), questions_format="commonsense_qa")
  with pytest.raises(UserError, match=r"train\.jsonl:10: not JSON"):
    prepare(config)
  result = prepare(dataclasses.replace(config, on_error="skip"))
  assert result.summary().splitlines()[2:] == [
    "1 left out: not JSON",
    f"  {questions}:10: not JSON (column 2: it ends too early: Expecting property name enclosed in double quotes)",
    "1 left out: an id that was already used",
    f"  {questions}:11: id 'c0' was already used at {questions}:1",
  ]
  split = read_split(f"{result.split}/train.jsonl")
  number = split[0]["id"].removeprefix("c")
  assert split[0] | {"group": ""} == {
    "id": f"c{number}",
    "question": f"Where is boat {number}?\nA. a barn\nB. the sea\nC. a drawer",
    "answers": ["B", "the sea"],
    "answer_texts": ["the sea"],
    "query": f"Where is boat {number}?",
    "group": "",
    "category": "choice",
    "gold_rows": [],
  }


def test_prepare_refuses_questions_without_an_answer(tmp_path):
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text(jsonl({"id": "d1", "text": "A boat lies on the sea."}))
  folder = str(write(tmp_path, "beir"))
  with pytest.raises(UserError, match="question 'q1' has no answer, which training and the table need"):
    prepare(PrepareConfig(str(tmp_path / "run"), str(corpus), folder, questions_format="beir"))
