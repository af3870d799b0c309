"""Versions of a passage store: rows that keep their numbers, against the store that prepare would make anew."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radit_jax import files, versions
from radit_jax.data.corpus import Limit, PassageStore, chunk, read_corpus, version_of, write_passages
from radit_jax.data.corpus.build import Build
from radit_jax.data.corpus.content import content_of, fields_of, match, stored_content
from radit_jax.data.corpus.revision import Revision, copied_rows, revise
from radit_jax.data.corpus.serialized import feature, passage
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError

SENTENCES = ["A town.", "It lies by the sea.", "Ships come.", "Nobody knows why the harbour is closed.", "So!"]


def write_corpus(path, documents):
  path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents), encoding="utf-8")
  return str(path)


def document(name, draw):
  text = " ".join(draw.choices(SENTENCES, k=draw.randint(1, 5)))
  return {"id": name, "title": f"T{draw.randint(0, 1)}", "text": text, "metadata": {"n": draw.randint(0, 1)}}


def first_store(root, documents):
  corpus = write_corpus(root / "corpus.jsonl", documents)
  build = Build(root / "passages", corpus, format="jsonl", limit=Limit(8), recipe={"a": 1}, processes=1)
  build.scan()
  build.write({"recipe": {"a": 1}})
  return PassageStore(root / "passages")


def revised(store, root, documents, **options):
  """The version that documents make of a store; the store itself where they change nothing."""
  corpus = write_corpus(root / "update.jsonl", documents)
  sources = [{"name": "update.jsonl", "sha256": files.sha256_file(corpus)}]
  asked = Revision(corpus, "jsonl", Limit(8), options.pop("on_error", "strict"), sources, processes=1, **options)
  number = revise(store, asked)
  return store if number is None else PassageStore(store.root, version=number)


def rebuilt(root, documents):
  """Every passage that a document has, by document: by the plainest means."""
  corpus = write_corpus(root / "model.jsonl", documents)
  return {d.id: list(chunk(d, Limit(8))) for d in read_corpus(corpus, format="jsonl")}


def check(store, root, documents):
  """One row for each text: a passage of a document that has it, and if several have it, of any of them."""
  model = rebuilt(root, documents)
  passages = {p.id: p for pieces in model.values() for p in pieces}
  texts = {p.full_text for p in passages.values()}
  live = store.many(np.setdiff1d(np.arange(len(store)), store.removed))
  assert {p.id: p for p in live}.items() <= passages.items()
  assert len({p.id for p in live}) == len(live) == store.num_live == len(texts)
  assert {p.full_text for p in live} == texts
  if len(passages) == len(texts):
    assert {p.id for p in live} == passages.keys()
  assert store.manifest["counts"]["passages"] == len(live)
  assert store.manifest["counts"]["documents"] == len(documents)
  for name, pieces in model.items():
    rows = store.rows_of_document(name)
    assert not set(rows) & set(store.removed.tolist())
    assert store.texts(rows) == list(dict.fromkeys(p.full_text for p in pieces))
  np.testing.assert_array_equal(stored_content(store.path, len(store)), content_by_hand(store))


def content_by_hand(store):
  """What lies beside the store, from what its records say."""
  records = []
  for p in store:
    metadata = feature("metadata", json.dumps(dict(p.metadata), ensure_ascii=False).encode())
    records.append(passage(p.id.encode(), metadata, p.text.encode(), feature("title", p.title.encode())))
  return content_of(records)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_updates_is_what_prepare_would_make(tmp_path_factory, seed):
  root, draw = tmp_path_factory.mktemp("revision"), random.Random(seed)
  model = {f"d{i}": document(f"d{i}", draw) for i in range(draw.randint(1, 8))}
  store = first_store(root, model.values())
  gone = set()
  for _ in range(4):
    before, was_gone = store, set(store.removed.tolist())
    whole = draw.random() < 0.4
    names = draw.sample([f"d{i}" for i in range(12)], draw.randint(1, 5))
    given_now = {n: document(n, draw) if draw.random() < 0.7 or n not in model else model[n] for n in names}
    if whole:
      given_now = {n: d for n, d in model.items() if n not in given_now and draw.random() < 0.8} | given_now
    options = {"delete_missing": whole, "restore": draw.random() < 0.5}
    after = {n: d for n, d in model.items() if n not in given_now and not whole} | given_now
    try:
      store = revised(before, root, given_now.values(), **options)
    except UserError as e:
      why = {
        "earlier update": bool(gone & given_now.keys()) and not options["restore"],
        "would remove all": whole and not model.keys() & given_now.keys(),
        "has word by word": not whole,
      }
      assert [reason for said, reason in why.items() if said in str(e)] == [True]  # noqa: PT017
      assert versions.numbers(before.root)[-1] == before.version
      continue
    gone = (gone | (model.keys() - after.keys())) - given_now.keys()
    model = after
    check(store, root, list(model.values()))
    assert was_gone <= set(store.removed.tolist())
    assert [store[r] for r in range(len(before))] == list(before)
    copied = copied_rows(before, store)
    for row, source in zip(range(len(before), len(store)), copied.tolist(), strict=True):
      texts = [p.full_text for p in before]
      assert source == (texts.index(store[row].full_text) if store[row].full_text in texts else -1)
    same = draw.sample(list(model.values()), len(model))
    assert revised(store, root, same, delete_missing=True) is store  # the same in any order changes nothing


def test_what_a_killed_call_left_of_a_finished_version_goes(tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  def stop(self):
    raise Killed

  store = first_store(tmp_path, [one("a", "One.")])
  with monkeypatch.context() as patched:
    patched.setattr(Build, "discard", stop)
    with pytest.raises(Killed):
      revised(store, tmp_path, [one("b", "Two.")])
  assert (store.root / "versions/.000001.work").exists()
  under_way = store.root / "versions/.000003.work"
  under_way.mkdir()
  assert revised(store, tmp_path, [one("b", "Two.")]).version == 1
  assert sorted(p.name for p in (store.root / "versions").iterdir()) == [".000003.work", "000001"]


def one(name, text, **metadata):
  return {"id": name, "title": "", "text": text, "metadata": metadata}


def test_a_passage_that_stays_keeps_its_row_and_files_are_shared(tmp_path):
  long = "One two three four five six. Seven eight nine ten. Eleven twelve thirteen fourteen fifteen."
  store = first_store(tmp_path, [one("a", long), one("b", "Other.")])
  changed = revised(store, tmp_path, [one("a", long.replace("ten", "10"))])
  assert [p.id for p in changed] == ["a/0", "a/1", "a/2", "b", "a/1"]
  assert changed.removed.tolist() == [1]
  assert changed.rows_of_document("a") == (0, 4, 2)
  assert changed.manifest["changes"] == {"new": 0, "changed": 1, "removed": 0, "rows_added": 1, "rows_removed": 1}
  inodes = {p.stat().st_ino for s in (store, changed) for p in s.path.glob("radit*/**/*array_record-00000*")}
  assert len(inodes) == 1
  files.read_manifest(changed.path, "passages", verify="full")
  again = revised(changed, tmp_path, [one("c", "New.")])
  assert [p.name for p in sorted(again.path.glob("radit*/**/*array_record*"))] == [
    f"radit_passages-rows.array_record-{n:05d}-of-00003" for n in range(3)
  ]
  assert PassageStore(tmp_path / "passages").version == 0  # nothing reads a version before it is the current one
  versions.make_current(tmp_path / "passages", again.version)
  assert PassageStore(tmp_path / "passages").fingerprint == again.fingerprint


def test_a_result_is_read_with_the_version_it_was_made_from(tmp_path):
  store = first_store(tmp_path, [one("a", "One."), one("b", "Two.")])
  changed = revised(store, tmp_path, [one("a", "Three.")])
  versions.make_current(store.root, changed.version)
  current = PassageStore(store.root)
  assert version_of(store.fingerprint, current, "index").fingerprint == store.fingerprint
  assert version_of(changed.fingerprint, current, "index") is current
  with pytest.raises(UserError, match="index: made from the passage store abc"):
    version_of("abc", current, "index")
  (store.root / versions.CURRENT).write_text("new\n")
  with pytest.raises(UserError, match=r"CURRENT: 'new' is no number of a version"):
    PassageStore(store.root)


@pytest.mark.parametrize(
  ("documents", "options", "message"),
  [
    ([], {"delete_missing": True}, "no documents"),
    ([one("x", "New.")], {"delete_missing": True}, "has none of the 3 documents .* would remove all of them"),
    ([one("a", "New.")], {}, "passage 'a' of .* which another document has word by word"),
    ([one("d/0", "New.")], {}, "'d/0' is also called a passage of another document"),
  ],
)
def test_what_an_update_must_not_do(tmp_path, documents, options, message):
  four = one("d", "One two three four five six. Seven eight nine ten.")
  store = first_store(tmp_path, [one("a", "Same."), one("b", "Same."), four])
  before = sorted(p.name for p in store.root.rglob("*"))
  with pytest.raises(UserError, match=message) as error:
    revised(store, tmp_path, documents, **options)
  assert "\n" not in str(error.value)
  assert sorted(p.name for p in store.root.rglob("*")) == before


def test_a_removed_document_comes_back_only_if_that_is_said(tmp_path):
  store = first_store(tmp_path, [one("a", "One."), one("b", "Two.")])
  without = revised(store, tmp_path, [one("b", "Two.")], delete_missing=True)
  with pytest.raises(UserError, match=r"passage 'a' is of a document that an earlier update .* removed; .* --restore"):
    revised(without, tmp_path, [one("a", "One.")])
  later = revised(without, tmp_path, [one("c", "Three.")])
  with pytest.raises(UserError, match="--restore"):
    revised(later, tmp_path, [one("a", "One.")])
  back = revised(later, tmp_path, [one("a", "One.")], restore=True)
  assert back.removed.tolist() == [0]
  assert back.rows_of_document("a") == (3,)
  assert copied_rows(later, back).tolist() == [0]  # its embedding is still there
  assert revised(back, tmp_path, [one("a", "Four.")]).num_live == 3


def test_a_document_that_cannot_be_read_is_not_taken_for_a_missing_one(tmp_path):
  store = first_store(tmp_path, [one("a", "One."), one("b", "Two.")])
  with pytest.raises(UserError, match=r"1 records cannot be used .* --delete-missing would remove their documents"):
    revised(store, tmp_path, [one("a", "One."), {"id": "b"}], delete_missing=True, on_error="skip")


def test_a_damaged_store_is_not_built_upon(tmp_path):
  store = first_store(tmp_path, [one("a", "One."), one("b", "Two.")])
  (shard,) = store.path.glob("radit*/**/*array_record*")
  content = bytearray(shard.read_bytes())
  content[-1] ^= 1
  shard.write_bytes(content)
  with pytest.raises(UserError, match="array_record-00000-of-00001: SHA-256 differs"):
    revised(store, tmp_path, [one("a", "Three.")])


def test_digests_do_not_depend_on_who_wrote_the_records(tmp_path):
  passages = [Passage("a", "", "x" * n, {"section": "S", "n": n}) for n in (1, 126, 127, 128, 300, 20_000)]
  named = [Passage(f"a{i}", "T", p.text, p.metadata) for i, p in enumerate(passages)]
  write_passages(named, tmp_path / "store")  # by TFDS
  store = PassageStore(tmp_path / "store")
  content = stored_content(store.path, len(store))
  np.testing.assert_array_equal(content, content_by_hand(store))
  assert len(np.unique(content.reshape(-1, 2), axis=0)) == 3 * len(named)  # a passage without a document is its own
  record = passage(b"id", feature("metadata", b"{}"), b"text " * 99, feature("title", b""))
  assert fields_of(record) == {"id": b"id", "metadata": b"{}", "text": b"text " * 99, "title": b""}


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_match_is_the_slow_one(wanted, known):
  def digests(values):
    return np.array([[v // 2, v % 2] for v in values], np.uint64).reshape(-1, 2)

  expected = [known.index(w) if w in known else -1 for w in wanted]
  assert match(digests(wanted), digests(known)).tolist() == expected
