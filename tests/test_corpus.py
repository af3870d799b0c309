"""The passage store."""

import subprocess
import sys

import pytest

from radit_jax import files
from radit_jax.data import stores
from radit_jax.data.corpus import Limit, PassageStore, chunk, write_passages
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError

PASSAGES = [
  Passage("m", "Mira Kelwick", "Mira Kelwick was born in Orlen. 🜁 ünïcode\n\nline", {"year": 1931, "kind": "person"}),
  Passage("t", "", "Tobin Ast sails.", {"weight": 0.5}),
  Passage("o", "Orlen", "A town."),
]


def test_store_gives_back_what_was_written(tmp_path):
  write_passages(PASSAGES, tmp_path / "p", manifest={"corpus": "x"})
  store = PassageStore(tmp_path / "p")
  assert len(store) == 3
  assert list(store) == PASSAGES
  assert [store[i] for i in (2, 0, -2)] == [PASSAGES[2], PASSAGES[0], PASSAGES[1]]
  assert store[1:] == PASSAGES[1:]
  assert store.many([2, 0, 2]) == [PASSAGES[2], PASSAGES[0], PASSAGES[2]]
  assert store.texts([2, 1]) == ["Orlen\nA town.", "Tobin Ast sails."]
  assert store.manifest["corpus"] == "x"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]
  for row in (3, -4):
    with pytest.raises(IndexError, match=f"row {row} of 3"):
      store[row]
  with pytest.raises(IndexError, match="row -1 of 3"):
    store.many([0, -1])


def test_row_numbers_keep_the_order_of_writing(tmp_path):
  documents = [Passage(f"d{i}", "", f"Number {i}. " * (1 + i % 3)) for i in range(300)]
  write_passages((p for d in documents for p in chunk(d, Limit(2))), tmp_path / "p")
  store = PassageStore(tmp_path / "p")
  assert [p.metadata["document"] for p in store] == [f"d{i}" for i in range(300) for _ in range(1 + i % 3)]
  for document in ("d0", "d1", "d299"):
    rows = store.rows_of_document(document)
    assert [store[r].metadata["document"] for r in rows] == [document] * (1 + int(document[1:]) % 3)
  with pytest.raises(UserError, match="no document 'x'"):
    store.rows_of_document("x")


def test_a_full_cache_changes_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(stores, "CACHE_RECORDS", 2)
  write_passages(PASSAGES, tmp_path / "p")
  store = PassageStore(tmp_path / "p")
  for rows in ([0], [1, 2], [0, 1, 2], [2], [1, 0]):
    assert store.many(rows) == [PASSAGES[r] for r in rows]
  assert len(store._cache) <= 3


def test_fingerprint_is_of_the_content(tmp_path):
  write_passages(PASSAGES, tmp_path / "a")
  write_passages(PASSAGES, tmp_path / "b")
  write_passages(PASSAGES[::-1], tmp_path / "c")
  write_passages([*PASSAGES[:2], Passage("o", "Orlen", "A town!")], tmp_path / "d")
  prints = [PassageStore(tmp_path / name).fingerprint for name in "abcd"]
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3


@pytest.mark.parametrize(
  ("passages", "message"),
  [
    ([], "no records"),
    ([PASSAGES[0], PASSAGES[1], Passage("m", "", "Again.")], "'m'"),
    ([Passage("e", "Title", " \n")], "'e' has no text"),
    (
      [Passage("a/0", "", "x", {"document": "a"}), PASSAGES[0], Passage("a/1", "", "x", {"document": "a"})],
      "do not follow one another",
    ),
  ],
)
def test_bad_passages_leave_nothing_behind(tmp_path, passages, message):
  with pytest.raises(UserError, match=message):
    write_passages(passages, tmp_path / "p")
  assert list(tmp_path.iterdir()) == []


def test_an_error_while_reading_the_corpus_comes_out_as_it_is(tmp_path):
  write_passages(PASSAGES, tmp_path / "p")

  def broken():
    yield PASSAGES[1]
    raise UserError("corpus.jsonl:2: not JSON")

  with pytest.raises(UserError, match=r"^corpus\.jsonl:2: not JSON$"):
    write_passages(broken(), tmp_path / "p")
  assert list(PassageStore(tmp_path / "p")) == PASSAGES  # the old store still stands


def test_damaged_and_foreign_directories_are_refused(tmp_path):
  with pytest.raises(UserError, match="no such directory"):
    PassageStore(tmp_path / "absent")
  write_passages(PASSAGES, tmp_path / "p")
  (record,) = (tmp_path / "p").rglob("*.array_record*")
  record.write_bytes(record.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"array_record.*bytes, manifest\.json says"):
    PassageStore(tmp_path / "p")
  (tmp_path / "i").mkdir()
  files.write_manifest(tmp_path / "i", "index", {})
  with pytest.raises(UserError, match="holds 'index', expected 'passages'"):
    PassageStore(tmp_path / "i")


def test_writing_says_nothing_and_needs_no_tensorflow(tmp_path):
  program = f"""
import sys
from radit_jax.data.corpus import PassageStore, write_passages
from radit_jax.data.sources import Passage
assert "tensorflow_datasets" not in sys.modules
write_passages((Passage(str(i), "", "x") for i in range(5000)), {str(tmp_path / "p")!r})
assert PassageStore({str(tmp_path / "p")!r})[4999].id == "4999"
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
