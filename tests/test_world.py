"""The invented world: seeded, one fact a passage, words in one token, paraphrases apart, people apart."""

import itertools
import json
import re

import pytest

from radit_jax.quickstart import parts
from radit_jax.quickstart.world import (
  RELATIONS,
  make_world,
  pretraining_texts,
  warm_start_pairs,
  write_world,
)

FUNCTION_WORDS = set(
  re.findall(r"\w+", "a of the is was in for from to on by what which who whose whom where when does did")
)


@pytest.fixture(scope="module")
def world():
  return make_world(0)


@pytest.fixture(scope="module")
def generator_tokenizer(world):
  return parts.generator_tokenizer(world)


def test_same_seed_same_world_other_seed_other_world(world):
  assert make_world(0) == world
  other = make_world(1)
  assert not {f.passage for f in other.facts} & {f.passage for f in world.facts}


def test_world_is_as_large_as_promised(world):
  assert len(world.facts) >= 2000
  assert all(len(set(values)) >= 30 for values in world.values)  # guessing a value closed book stays rare


def test_a_passage_states_one_fact_and_a_question_does_not_give_it_away(world):
  every_value = set(itertools.chain(*world.values))
  for fact in world.facts:
    words = re.findall(r"\w+", fact.passage)
    assert [w for w in words if w in every_value] == [fact.value]
    assert fact.person in fact.passage
    assert fact.passage.endswith(".")
    assert fact.person in fact.question
    assert fact.value not in fact.question


def test_each_person_has_each_relation_once(world):
  seen = {(f.person, f.relation) for f in world.facts}
  assert len(seen) == len(world.facts) == len({f.person for f in world.facts}) * len(RELATIONS)


def test_a_quarter_of_the_questions_is_in_known_forms(world):
  known = [
    fact.question in [form.format(n=fact.person) for form in RELATIONS[fact.relation].known_questions]
    for fact in world.facts
  ]
  assert sum(known) == len(known) // 4
  assert sum(known[:600]) == 150


def test_all_invented_words_differ(world):
  words = [*world.first_names, *world.last_names, *itertools.chain(*world.values)]
  assert len(set(words)) == len(words)


def test_questions_use_words_their_passages_do_not():
  def content(templates):
    bare = " ".join(templates).replace("{n}", "").replace("{v}", "").lower()
    return set(re.findall(r"[a-z]+", bare)) - FUNCTION_WORDS

  for relation in RELATIONS:
    for form in relation.known_questions + relation.new_questions:
      assert content([form]), form
      assert not content([form]) & content(relation.statements), form


def test_no_person_of_the_corpus_is_in_what_the_parts_learn_from(world):
  corpus = {f.person for f in world.facts}
  assert not corpus & set(world.strangers)
  name = re.compile("(?:" + "|".join(world.first_names) + ") (?:" + "|".join(world.last_names) + ")")
  texts = list(itertools.islice(pretraining_texts(world, 0), 3000))
  pairs = list(itertools.chain.from_iterable(itertools.islice(warm_start_pairs(world, 0), 20)))
  for text in [*texts, *itertools.chain.from_iterable(pairs)]:
    people = name.findall(text)
    assert people or not text
    assert not corpus & set(people)


def test_the_generator_never_meets_a_new_question_form(world):
  new = {w for r in RELATIONS for q in r.new_questions for w in re.findall(r"\w+", q.replace("{n}", ""))}
  old = {w for r in RELATIONS for q in r.known_questions + r.statements for w in re.findall(r"\w+", q)}
  texts = itertools.islice(pretraining_texts(world, 0), 3000)
  assert not (new - old) & {w for t in texts for w in re.findall(r"\w+", t)}


def test_texts_and_pairs_are_seeded(world):
  def first(iterator, n=50):
    return list(itertools.islice(iterator, n))

  assert first(pretraining_texts(world, 3)) == first(pretraining_texts(world, 3)) != first(pretraining_texts(world, 4))
  assert first(warm_start_pairs(world, 3), 2) == first(warm_start_pairs(world, 3), 2)
  assert first(warm_start_pairs(world, 3), 2) != first(warm_start_pairs(world, 4), 2)


def test_a_warm_start_batch_has_no_passage_twice(world):
  for batch in itertools.islice(warm_start_pairs(world, 0), 20):
    assert len(batch) == 64 == len({passage for _, passage in batch})
    assert all(query != passage for query, passage in batch)


def test_written_files_are_what_a_user_would_bring(world, tmp_path):
  write_world(world, tmp_path / "w")
  corpus, questions = (
    [json.loads(line) for line in (tmp_path / "w" / name).read_text(encoding="utf-8").splitlines()]
    for name in ("corpus.jsonl", "questions.jsonl")
  )
  passages = {p["id"]: p["text"] for p in corpus}
  assert len(passages) == len(corpus) == len(questions) == len({q["id"] for q in questions})
  for q in questions:
    (gold,) = q["passage_ids"]
    assert q["answers"][0] in passages[gold]
    assert q["group"] in passages[gold]


def test_every_word_is_one_generator_token(world, generator_tokenizer):
  for word in [*world.first_names, *world.last_names, *itertools.chain(*world.values)]:
    assert len(generator_tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
  for piece in ("Background", "Question", "Answer", "Q", "A", ":", "\n", "\n\n"):
    assert len(generator_tokenizer(piece, add_special_tokens=False)["input_ids"]) == 1, repr(piece)


def test_every_row_of_the_quickstart_fits_32_tokens(world, generator_tokenizer):
  """The smallest bucket: a row of 33 tokens would be padded to 64, and every stage would take twice as long."""

  def longest(texts):
    return max(map(len, generator_tokenizer(texts, add_special_tokens=False)["input_ids"]))

  value = 1
  passages = longest([f" {f.passage}" for f in world.facts])
  # the opening word differs with the marker: " Which" after "Q:", "Which" where the marker is empty
  questions = max(longest([f" {f.question}" for f in world.facts]), longest([f.question for f in world.facts]))
  row = len(["<s>", "Background", ":"]) + passages + len(["\n\n", "Question", ":"]) + questions
  row += len(["\n", "Answer", ":"]) + value + len(["</s>"])
  assert row <= 32


def test_generator_tokenizer_reads_any_text_back(generator_tokenizer):
  text = "Zürich, 42 % – 東京\n<s>"
  ids = generator_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
  assert generator_tokenizer.decode(ids) == text
  assert generator_tokenizer.bos_token_id not in ids


def test_every_word_is_one_encoder_token(world):
  tokenizer = parts.encoder_tokenizer(world)
  for fact in world.facts[:200]:
    for text in (fact.passage, fact.question):
      ids = tokenizer(text)["input_ids"]
      assert len(ids) == len(re.findall(r"\w+|[^\w\s]", text)) + 2 <= parts.ENCODER_TOKENS
      assert tokenizer.unk_token_id not in ids
  assert tokenizer.unk_token_id not in tokenizer("qwertz 123")["input_ids"]


def test_batches_of_ids_fit_their_rows(world, generator_tokenizer):
  for batch in itertools.islice(parts.generator_batches(world, generator_tokenizer, 0, batch_size=48), 40):
    assert len(batch) == 48
    assert max(map(len, batch)) <= parts.GENERATOR_TOKENS
    assert {row[0] for row in batch} == {generator_tokenizer.bos_token_id}
    assert {row[-1] for row in batch} == {generator_tokenizer.eos_token_id}
  queries, passages = next(parts.encoder_batches(world, parts.encoder_tokenizer(world), 0, batch_size=64))
  assert len(queries) == len(passages) == 64
  assert max(map(len, queries + passages)) <= parts.ENCODER_TOKENS
