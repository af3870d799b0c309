"""`radit prepare` on corpora of every limit and format: what it writes, and what it notices."""

import dataclasses
import json

import pytest
from tiny import documents, make_parts, questions, write_lines

from radit_jax import config as c
from radit_jax.data.corpus import PassageStore
from radit_jax.errors import UserError
from radit_jax.models.pretrained import load_tokenizer
from radit_jax.verbs.prepare import prepare, read_split


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  return make_parts(tmp_path_factory.mktemp("parts"))


def config(parts, workdir, **changes):
  return c.PrepareConfig(
    **{"workdir": str(workdir), "corpus": parts["corpus"], "questions": parts["questions"], **changes}
  )


def test_the_limit_in_tokens_is_the_encoders(parts, tmp_path):
  made = prepare(config(parts, tmp_path, max_passage_tokens=14, passage_encoder=parts["encoder"]))
  assert made.num_passages > 40
  tokenizer = load_tokenizer(parts["encoder"])
  store = PassageStore(tmp_path / "passages")
  assert max(len(tokenizer(text)["input_ids"]) for text in store.texts(range(len(store)))) <= 14
  with pytest.raises(UserError, match=r"made with max_passage_tokens = 14, this call has 15"):
    prepare(config(parts, tmp_path, max_passage_tokens=15, passage_encoder=parts["encoder"]))
  with pytest.raises(UserError, match=r"max_passage_tokens = 999: .* reads \d+ at most"):
    prepare(config(parts, tmp_path / "w", max_passage_tokens=999, passage_encoder=parts["encoder"]))


def test_the_limit_in_characters(parts, tmp_path):
  prepare(config(parts, tmp_path, max_passage_characters=50))
  assert max(len(p.text) for p in PassageStore(tmp_path / "passages")) <= 50
  with pytest.raises(UserError, match="give one"):
    config(parts, tmp_path, max_passage_characters=50, max_passage_tokens=24, passage_encoder="e")
  with pytest.raises(UserError, match="tokens are those of an encoder"):
    config(parts, tmp_path, max_passage_tokens=24)


def test_duplicates_are_counted_and_stay_gold(parts, tmp_path):
  """A question whose document was left out points at the one that stood before."""
  first = next(documents())
  lines = [*documents(), {**first, "id": "again"}]
  asked = [
    *questions(),
    {"id": "q", "question": "Where?", "answers": ["Arlen"], "passage_ids": ["again"], "group": "g"},
  ]
  made = prepare(
    config(
      parts,
      tmp_path / "w",
      corpus=write_lines(tmp_path / "c.jsonl", lines),
      questions=write_lines(tmp_path / "q.jsonl", asked),
    )
  )
  assert (made.num_documents, made.num_passages, made.num_duplicates) == (41, 40, 1)
  assert "1 more passages stood before" in made.summary()
  rows = {
    q["id"]: q["gold_rows"] for n in ("train", "dev", "test") for q in read_split(f"{tmp_path}/w/split/{n}.jsonl")
  }
  assert rows["q"] == rows["q0"]


def test_the_manifest_names_every_source_with_its_hash(parts, tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  for document in documents():
    (folder / f"{document['id']}.txt").write_text(document["text"])
  asked = [{**q, "passage_ids": [f"{q['passage_ids'][0]}.txt"]} for q in questions()]
  again = config(
    parts,
    tmp_path / "w",
    corpus=str(folder),
    corpus_format="folder",
    questions=write_lines(tmp_path / "q.jsonl", asked),
  )
  made = prepare(again)
  sources = PassageStore(made.passages).manifest["sources"]
  assert len(sources) == 40
  assert set(sources[0]) == {"name", "bytes", "sha256"}
  assert prepare(again) == made
  assert prepare(dataclasses.replace(again, processes=1)) == made
  (folder / "d3.txt").write_text("Person 3 has moved.")
  with pytest.raises(UserError, match="made with corpus"):
    prepare(again)


def test_a_question_that_is_wrong_leaves_nothing(parts, tmp_path):
  asked = [*questions(), {"id": "q", "question": "Where?", "answers": ["Arlen"], "passage_ids": ["nowhere"]}]
  path = write_lines(tmp_path / "q.jsonl", asked)
  with pytest.raises(UserError, match="names passage 'nowhere', which the corpus does not hold"):
    prepare(config(parts, tmp_path / "deep" / "w", questions=path))
  assert [p.name for p in tmp_path.iterdir()] == ["q.jsonl"]


def test_help_lists_formats_and_limits(capsys):
  from radit_jax import cli

  assert cli.main(["prepare", "--help"]) == 0
  shown = " ".join(capsys.readouterr().out.split())
  for word in ("beir", "dpr", "kilt", "folder", "tfds", "--max-passage-words", "--max-passage-tokens", "--processes"):
    assert word in shown
  assert json.dumps("psgs_w100.tsv")[1:-1] in shown


def test_a_file_of_questions_that_lies_in_no_split_is_named(tmp_path):
  (tmp_path / "questions.jsonl").write_text('{"id": "q", "question": "Who?", "answers": ["Ann"]}\n')
  with pytest.raises(
    UserError, match=r"questions.jsonl: lies in no split; `radit prepare` makes one, with train.jsonl"
  ):
    read_split(str(tmp_path / "questions.jsonl"))
