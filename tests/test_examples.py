"""Stores of retrieved examples and of the teacher's scores."""

import dataclasses

import numpy as np
import pytest

from radit_jax.data import builders
from radit_jax.data.examples import (
  PassageScores,
  RetrievedExample,
  RetrievedStore,
  ScoreStore,
  write_retrieved,
  write_scores,
)
from radit_jax.errors import UserError

EXAMPLES = [
  RetrievedExample(
    "q1",
    "Where was Mira born? ünï",
    ("Orlen", "in Orlen"),
    "Mira birthplace",
    "mira",
    (4, 7),
    np.array([7, 2, 2**40]),
    np.array([401.25, 1e-30, -3.5], np.float32),
    np.array([True, True, True]),
  ),
  RetrievedExample(
    "q0",
    "Who?",
    ("B", "Tobin Üre"),
    "Who?",
    None,
    (),
    np.array([1, -1, -1]),
    np.array([0.1, -np.inf, -np.inf], np.float32),
    np.array([True, False, False]),
    category="choice",
    answer_texts=("Tobin Üre",),
  ),
]
SCORES = [
  PassageScores(e.id, np.array([-1.5, -2e3, 0.0], np.float32), np.array([3, 3, 0], np.int32), e.valid) for e in EXAMPLES
]
MANIFEST = {"k": 3, "passages": "f" * 8, "score_temperature": 0.05, "recipe": {"options": {"k": 3}}}


def same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype, field.name
      np.testing.assert_array_equal(x, y)
    else:
      assert (type(x), x) == (type(y), y), field.name


@pytest.fixture
def retrieved(tmp_path):
  write_retrieved(EXAMPLES, tmp_path / "r", manifest=MANIFEST)
  return RetrievedStore(tmp_path / "r")


def test_retrieved_examples_come_back_exactly(retrieved):
  assert len(retrieved) == 2
  for stored, example in zip(retrieved, EXAMPLES, strict=True):
    same(stored, example)
  assert {k: retrieved.manifest[k] for k in MANIFEST} == MANIFEST
  assert [e.answer_texts for e in retrieved] == [("Orlen", "in Orlen"), ("Tobin Üre",)]


def test_a_store_of_earlier_versions_has_its_answers_looked_for(tmp_path, monkeypatch):
  def without(fields):
    return {name: value for name, value in fields.items() if name != "answer_texts"}

  features, write = builders.RaditRetrieved._features, builders.write
  with monkeypatch.context() as earlier:
    earlier.setattr(builders.RaditRetrieved, "_features", lambda self: without(features(self)))
    earlier.setattr(builders, "write", lambda kind, path, records: write(kind, path, map(without, records)))
    write_retrieved(EXAMPLES, tmp_path / "r", manifest=MANIFEST)
  assert [e.answer_texts for e in RetrievedStore(tmp_path / "r")] == [e.answers for e in EXAMPLES]


def test_scores_come_back_exactly_by_position_and_by_id(retrieved, tmp_path):
  write_scores(SCORES, tmp_path / "s", manifest={"k": 3, "retrieved": retrieved.fingerprint})
  store = ScoreStore(tmp_path / "s", retrieved=retrieved)
  for stored, scores in zip(store, SCORES, strict=True):
    same(stored, scores)
  assert [s.id for s in store.of(["q0", "q1", "q0"])] == ["q0", "q1", "q0"]
  with pytest.raises(UserError, match="no scores of question 'q9'"):
    store.of(["q9"])


@pytest.mark.parametrize("kind", [RetrievedExample, PassageScores])
def test_the_bytes_of_a_record_do_not_depend_on_the_process(tmp_path, kind):
  """Each process has an order of its own for features that nobody puts into one."""
  from array_record.python import array_record_module

  if kind is RetrievedExample:
    write_retrieved(EXAMPLES, tmp_path / "s", manifest=MANIFEST)
  else:
    write_scores(SCORES, tmp_path / "s", manifest={"k": 3, "retrieved": ""})
  (path,) = (tmp_path / "s").rglob("*.array_record*")
  for record in array_record_module.ArrayRecordReader(str(path)).read_all():
    names = sorted(field.name for field in dataclasses.fields(kind))
    places = [record.index(b"\n%c%s\x12" % (len(name), name.encode())) for name in names]
    assert places == sorted(places)


def test_scores_of_other_examples_are_refused(retrieved, tmp_path):
  write_scores(SCORES, tmp_path / "s", manifest={"k": 3, "retrieved": retrieved.fingerprint})
  changed = [dataclasses.replace(EXAMPLES[0], answers=("Vorn",)), EXAMPLES[1]]
  write_retrieved(changed, tmp_path / "other", manifest=MANIFEST)
  other = RetrievedStore(tmp_path / "other")
  with pytest.raises(UserError, match=rf"{retrieved.fingerprint}.*{other.fingerprint}.*radit score"):
    ScoreStore(tmp_path / "s", retrieved=other)
  assert len(ScoreStore(tmp_path / "s")) == 2


def test_fingerprint_tells_contents_and_origins_apart_but_not_recipes(tmp_path):
  def fingerprint(records, manifest):
    write_retrieved(records, tmp_path / "x", manifest=manifest)
    return RetrievedStore(tmp_path / "x").fingerprint

  first = fingerprint(EXAMPLES, MANIFEST)
  assert fingerprint(EXAMPLES, {**MANIFEST, "recipe": "another batch size"}) == first
  scores = EXAMPLES[0].scores.copy()
  scores[1] = np.nextafter(scores[1], np.float32(1))
  others = [
    fingerprint(EXAMPLES[::-1], MANIFEST),
    fingerprint([dataclasses.replace(EXAMPLES[0], scores=scores), EXAMPLES[1]], MANIFEST),
    fingerprint([dataclasses.replace(EXAMPLES[0], gold_rows=(4,)), EXAMPLES[1]], MANIFEST),
    fingerprint(EXAMPLES, {**MANIFEST, "score_temperature": 1.0}),
    fingerprint(EXAMPLES, {**MANIFEST, "passages": "e" * 8}),
  ]
  assert len({first, *others}) == 6


def test_bad_records_leave_nothing_behind(tmp_path):
  with pytest.raises(UserError, match="'q1'"):
    write_retrieved([EXAMPLES[0], EXAMPLES[0]], tmp_path / "r", manifest=MANIFEST)
  with pytest.raises(UserError, match="'q0' has no answer"):
    write_retrieved([dataclasses.replace(EXAMPLES[1], answers=())], tmp_path / "r", manifest=MANIFEST)
  with pytest.raises(ValueError, match=r"'q1': passage_rows has shape \(3,\), the store's k is 2"):
    write_retrieved(EXAMPLES, tmp_path / "r", manifest={**MANIFEST, "k": 2})
  with pytest.raises(ValueError, match=r"'q1': num_tokens has shape \(2,\), the store's k is 3"):
    write_scores([dataclasses.replace(SCORES[0], num_tokens=[1, 2])], tmp_path / "s", manifest={"k": 3})
  with pytest.raises(UserError, match="no records"):
    write_scores([], tmp_path / "s", manifest={"k": 3})
  assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_kind_is_refused(retrieved):
  with pytest.raises(UserError, match="holds 'retrieved', expected 'scores'"):
    ScoreStore(retrieved.path)
