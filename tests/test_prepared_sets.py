"""Sets that TFDS has prepared in ArrayRecord form, read without TensorFlow; each with the features it has there."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from radit_jax.data.policy import Skipped
from radit_jax.data.readers import READERS
from radit_jax.data.readers.example import UNANSWERABLE, Example
from radit_jax.data.sources import read_examples
from radit_jax.errors import UserError

TEXT = tfds.features.Text
STORY = "Mira was born in Orlen."
SPAN = {"text": TEXT(), "answer_start": np.int32}


def texts(*names):
  return {name: TEXT() for name in names}


SETS = {
  "gsm8k": (
    texts("question", "answer", "annotation", "short_answer"),
    {"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4", "annotation": "x", "short_answer": "4"},
    Example("", "2 + 2?", ("It is 4.\nThe answer is 4.", "4"), category="reasoning"),
  ),
  "math_qa": (
    texts("Problem", "Rationale", "options", "correct", "correct_option", "category"),
    {"Problem": "2 + 2 ?", "Rationale": "x", "options": "a ) 3 , b ) 4", "correct": "b"}
    | {"correct_option": "4", "category": "x"},
    Example("", "2 + 2 ?", ("B", "4"), category="choice", choices=("3", "4")),
  ),
  "web_questions": (
    texts("url", "question") | {"answers": tfds.features.Sequence(TEXT())},
    {"url": "u", "question": "where?", "answers": ["Orlen", "Örlen"]},
    Example("", "where?", ("Orlen", "Örlen")),
  ),
  "coqa": (
    texts("source", "story")
    | {
      "questions": tfds.features.Sequence(TEXT()),
      "answers": tfds.features.Sequence({"input_text": TEXT(), "answer_start": np.int32, "answer_end": np.int32}),
    },
    {
      "source": "x",
      "story": STORY,
      "questions": ["Where?", "When?"],
      "answers": [{"input_text": a, "answer_start": 0, "answer_end": 1} for a in ("Orlen", "unknown")],
    },
    Example(
      "",
      "When?",
      (UNANSWERABLE,),
      category="dialogue",
      query="Where?\nOrlen\nWhen?",
      turns=("Where?", "Orlen", "When?"),
      own_context=STORY,
    ),
  ),
  "drop": (
    texts("passage", "question", "answer", "query_id") | {"validated_answers": tfds.features.Sequence(TEXT())},
    {"passage": STORY, "question": "Where?", "answer": "Orlen", "query_id": "d", "validated_answers": []},
    Example("d", "Where?", ("Orlen",), category="reading", own_context=STORY),
  ),
  "quac": (
    texts("context", "followup", "yesno", "question", "section_title", "background", "title")
    | {"answers": tfds.features.Sequence(SPAN), "orig_answer": SPAN},
    dict.fromkeys(("followup", "yesno", "section_title", "background"), "x")
    | {"context": STORY + " CANNOTANSWER", "question": "Where?", "title": "Mira"}
    | {"answers": [{"text": "Orlen", "answer_start": 17}], "orig_answer": {"text": "Orlen", "answer_start": 17}},
    Example("", "Where?", ("Orlen",), category="reading", own_context=STORY, group="Mira"),
  ),
  "squad_v2": (
    texts("id", "title", "context", "question")
    | {
      "is_impossible": np.bool_,
      "answers": tfds.features.Sequence(SPAN),
      "plausible_answers": tfds.features.Sequence(SPAN),
    },
    {"id": "s", "title": "Mira", "context": STORY, "question": "When?"}
    | {"is_impossible": True, "answers": [], "plausible_answers": [{"text": "Orlen", "answer_start": 17}]},
    Example("s", "When?", (UNANSWERABLE,), category="reading", own_context=STORY, group="Mira"),
  ),
  "cnn_dailymail": (
    texts("article", "highlights", "publisher", "id"),
    {"article": STORY, "highlights": "Mira is born .", "publisher": "cnn", "id": "c"},
    Example("c", "Summarize this article:", ("Mira is born .",), category="summary", own_context=STORY),
  ),
}


def prepare(folder, name, features, splits, file_format="array_record"):
  """Writes a set the way TFDS does; the folder it lies in."""

  class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = folder

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True, description="", homepage=""
      )

    def _split_generators(self, dl_manager):
      return {split: enumerate(records) for split, records in splits.items()}

    def _generate_examples(self):
      raise NotImplementedError

  Prepared.name = name
  with contextlib.redirect_stdout(io.StringIO()):
    builder = Prepared(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
  return builder.data_path


def test_every_mapping_of_a_prepared_set_is_tested():
  assert {name for name, reader in READERS.items() if reader.prepared} == {*SETS, "squad"}


@pytest.mark.parametrize("name", list(SETS))
def test_a_prepared_set_gives_examples(tmp_path, name):
  features, record, expected = SETS[name]
  path = prepare(tmp_path, name, features, {"train": [record]})
  (example,) = read_examples(str(path), format=name)
  assert example.id == (expected.id or "1.0.0#train[0]")
  assert {**vars(example), "id": expected.id} == vars(expected)
  assert "tensorflow" not in sys.modules


def test_splits_and_what_is_no_such_folder(tmp_path):
  features, record, _ = SETS["gsm8k"]
  splits = {"test": [record], "train": [record, record | {"answer": "4"}, record]}
  path = prepare(tmp_path, "gsm8k", features, splits)
  assert len(list(read_examples(path, format="gsm8k", split="test"))) == 1
  with pytest.raises(UserError, match=r"1\.0\.0#train\[1\]: no '#### <result>'"):
    list(read_examples(path, format="gsm8k"))
  skipped = Skipped()
  assert len(list(read_examples(path, format="gsm8k", on_error="skip", skipped=skipped))) == 2
  assert skipped.total() == 1
  with pytest.raises(UserError, match="no split 'dev', has test, train"):
    list(read_examples(path, format="gsm8k", split="dev"))
  with pytest.raises(UserError, match="TFDS does not have 'quail'"):
    list(read_examples(path, format="quail"))
  with pytest.raises(UserError, match="is missing"):
    list(read_examples(path, format="drop"))


def test_hostile_and_broken_folders(tmp_path):
  features, record, _ = SETS["gsm8k"]
  path = prepare(tmp_path, "gsm8k", features, {"train": [record]})
  stored = (path / "features.json").read_text()
  (path / "features.json").write_text(stored.replace("tensorflow_datasets.core.features.features_dict", "os.path"))
  with pytest.raises(UserError, match=r"features\.json names the class 'os\.path\.FeaturesDict'"):
    list(read_examples(path, format="gsm8k"))
  (path / "features.json").write_text("{")
  with pytest.raises(UserError, match=r"features\.json:1: not JSON"):
    list(read_examples(path, format="gsm8k"))
  (path / "features.json").write_text(stored)
  info = json.loads((path / "dataset_info.json").read_text())
  (path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with pytest.raises(UserError, match="no folder that TFDS can read in ArrayRecord form") as raised:
    list(read_examples(path, format="gsm8k"))
  assert "\n" not in str(raised.value)
  (path / "dataset_info.json").write_text(json.dumps(info))
  (shard,) = path.glob("*.array_record*")
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(UserError, match=r"no folder that TFDS can read|cannot be read"):
    list(read_examples(path, format="gsm8k"))
