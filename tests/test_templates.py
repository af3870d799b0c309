"""One golden per category: the whole text of its row, as the paper has it; the trained part stands behind a bar."""

import numpy as np
import pytest
from tiny import tokenizer_of

from radit_jax.config import PromptConfig
from radit_jax.data import batches
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.data.prompts import Prompt
from radit_jax.data.readers.example import CATEGORIES, Example, chosen, conversation, reasoned
from radit_jax.data.rows import text_to_batch
from radit_jax.data.sources import Passage
from radit_jax.data.templates import draw_markers, instruct, markers_of
from radit_jax.errors import UserError

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
STORY = Passage("p", "Mira", "Mira sails the Vornara.")
BOATS = ("barn", "sea")

#: category -> example, and its row in evaluation
GOLDENS = {
  "qa": (
    Example("i", "Who sails?", ("Mira",)),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nQ: Who sails?\nA:| Mira<eos>",
  ),
  "choice": (
    Example("i", "Where is a boat?", chosen(BOATS, 1), category="choice", choices=BOATS),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nQuestion: Where is a boat?\nA. barn\nB. sea\nA:| B<eos>",
  ),
  "reading": (
    Example("i", "Who sails?", ("I don't know",), category="reading", own_context="The sea is blue."),
    "<bos>Background: The sea is blue.\n\nQ: Who sails?\nA:| I don't know<eos>",
  ),
  "summary": (
    Example("i", "Summarize this article:", ("Blue sea",), category="summary", own_context="The sea is blue."),
    "<bos>Background: The sea is blue.\n\nSummarize this article:\nA:| Blue sea<eos>",
  ),
  "reasoning": (
    Example("i", "2 + 2?", reasoned("2 and 2 make 4.", "4"), category="reasoning"),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nQ: 2 + 2?\nA:| 2 and 2 make 4.\nThe answer is 4.<eos>",
  ),
  "dialogue": (
    Example("i", answers=("Mira does.",), **conversation(("Hello.", "Hi.", "Who sails?"))),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nQ: Hello.\nA: Hi.\nQ: Who sails?\nA:| Mira does.<eos>",
  ),
  "fact": (
    Example("i", "Mira sails.", ("yes",), category="fact"),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nIs this statement true? Mira sails.\nA:| yes<eos>",
  ),
  "slot": (
    Example("i", "Mira [SEP] boat", ("Vornara",), category="slot"),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nMira [SEP] boat\nA:| Vornara<eos>",
  ),
  "entity": (
    Example("i", "[START_ENT] Mira [END_ENT] sails.", ("Mira Kelwick",), category="entity"),
    "<bos>Background: Mira\nMira sails the Vornara.\n\n[START_ENT] Mira [END_ENT] sails.\n"
    "Output the Wikipedia page title of the entity "
    "mentioned between [START_ENT] and [END_ENT] in the given text\nA:| Mira Kelwick<eos>",
  ),
  "completion": (
    Example("i", "Mira sails", ("the blue sea.",), category="completion"),
    "<bos>Background: Mira\nMira sails the Vornara.\n\nMira sails\nA:| the blue sea.<eos>",
  ),
}


@pytest.fixture(scope="module")
def prompt():
  return Prompt(tokenizer_of(["Background: Q: A: Question: Mira sails the sea."] * 4, SPECIAL), PromptConfig())


def row_text(prompt, row):
  decode = prompt._tokenizer.decode
  return decode(row.tokens[: row.answer_start]) + "|" + decode(row.tokens[row.answer_start :])


def render(prompt, example, seed=None):
  passage = Passage("own", "", example.own_context) if example.skips_retrieval else STORY
  return prompt.render(instruct(example), passage, example.answers[0], marker_seed=markers_of(example.category, seed))


@pytest.mark.parametrize("category", [c for c in CATEGORIES if c != "text"])
def test_a_categorys_row_in_evaluation(prompt, category):
  example, golden = GOLDENS[category]
  assert example.category == category
  assert row_text(prompt, render(prompt, example)) == golden


def test_plain_text_has_no_background_and_every_token_is_an_answer(prompt):
  (row,) = prompt.render_text(" Mira sails the Vornara.\n")
  assert row_text(prompt, row) == "<bos>|Mira sails the Vornara.<eos>"
  assert (row.answer_start, row.answer_end) == (1, len(row.tokens))
  assert [name for name, _ in row.segments] == ["bos", "answer", "end"]
  batch = text_to_batch([row.tokens], len(row.tokens))
  assert batch.answer_tokens[0].tolist() == list(row.answer_tokens)


def test_a_long_plain_text_goes_on_in_the_next_row(prompt):
  text = "Mira sails the Vornara. " * 400
  rows = prompt.render_text(text)
  assert len(rows) > 2
  assert [len(row.tokens) for row in rows[:-1]] == [prompt.config.max_tokens] * (len(rows) - 1)
  assert all(row.tokens[0] == prompt._tokenizer.bos_token_id for row in rows)
  ids = [i for row in rows for i in row.tokens[1:]]
  assert prompt._tokenizer.decode(ids) == text.strip() + "<eos>"
  with pytest.raises(UserError, match="a plain text without a token"):
    prompt.render_text(" \n")


def test_a_text_whose_end_token_alone_does_not_fit(prompt):
  """The end token then has a row of its own, so that no row is longer than the limit."""
  limit = prompt.config.max_tokens
  ids = prompt.render_text("sea " * limit)[0].tokens[1:]
  exact = prompt._tokenizer.decode(ids[: limit - 1])
  rows = prompt.render_text(exact)
  assert [i for row in rows for i in row.tokens[1:]][-1] == prompt._tokenizer.eos_token_id
  assert max(len(row.tokens) for row in rows) <= limit
  for row in rows:
    assert tuple(i for _, part in row.segments for i in part) == row.tokens


def test_markers_are_drawn_in_training_where_a_category_leaves_them_open(prompt):
  drawn = {c: {tuple(markers_of(c, (0, epoch, "i"))) for epoch in range(60)} for c in CATEGORIES}
  every = {(q, a) for q in range(3) for a in range(2)}
  unmarked = {(2, 0), (2, 1)}
  assert drawn == {
    **dict.fromkeys(("qa", "choice", "reading", "reasoning", "text"), every),
    **dict.fromkeys(("summary", "fact", "slot", "entity", "completion"), unmarked),
    "dialogue": {(2, 0)},
  }
  assert markers_of("qa", (0, 1, "i")) == markers_of("qa", (0, 1, "i")) == draw_markers((0, 1, "i"))
  example, _ = GOLDENS["qa"]
  texts = {row_text(prompt, render(prompt, example, (0, epoch, "i"))) for epoch in range(60)}
  background = "<bos>Background: Mira\nMira sails the Vornara.\n\n"
  assert texts == {
    f"{background}{q}Who sails?\n{a}| Mira<eos>" for q in ("Q: ", "Question: ", "") for a in ("A:", "Answer:")
  }


def test_a_conversation_that_the_assistant_began():
  example = Example("i", answers=("x",), **conversation(("Hi.", "Who sails?")))
  assert instruct(example) == "A: Hi.\nQ: Who sails?"
  assert example.query == "Hi.\nWho sails?"


def test_choices_stand_below_the_question_whatever_the_category():
  example = Example("i", " Where? ", ("B", "sea"), category="reading", own_context="x", choices=BOATS)
  assert instruct(example) == "Where?\nA. barn\nB. sea"


@pytest.mark.parametrize("category", [c for c in CATEGORIES if c != "text"])
def test_stored_examples_are_rendered_with_the_markers_of_their_category(tmp_path, category):
  rows, scores, valid = np.array([0]), np.array([1.0], np.float32), np.array([True])
  example = RetrievedExample("i", "Who?", ("Mira",), "Who?", None, (), rows, scores, valid, category=category)
  write_retrieved([example], tmp_path / "r", manifest={"k": 1, "passages": "x", "score_temperature": 1.0})
  stored = RetrievedStore(tmp_path / "r").many([0])
  assert stored[0].category == category
  for seed in (None, (0, 1)):
    markers = markers_of(category, seed and (*seed, "i"))
    assert batches._requests(stored, None, 1, False, seed) == [[("Who?", None, "Mira", markers)]]


def stored_alone(path, **fields):
  """An example that nothing was searched for, as `radit retrieve` stores it for k = 2."""
  rows, scores, valid = np.array([-1, -1]), np.array([0, -np.inf], np.float32), np.array([True, False])
  example = RetrievedExample("i", "Who?", ("Mira",), "Who?", None, (), rows, scores, valid, **fields)
  write_retrieved([example], path, manifest={"k": 2, "passages": "x", "score_temperature": 1.0})
  return RetrievedStore(path).many([0])


@pytest.mark.parametrize("with_passages", [True, False])
def test_an_own_context_is_the_one_passage_and_plain_text_has_none(prompt, tmp_path, with_passages):
  """Also for a generator that is trained without passages: what is asked is about that context."""
  padding = [None] if with_passages else []
  (stored,) = stored_alone(tmp_path / "own", category="reading", context="The sea is blue.")
  assert (stored.context, stored.searched) == ("The sea is blue.", False)
  markers = markers_of("reading", (0, 1, "i"))
  requests = batches._requests([stored], None, 2, with_passages, (0, 1))
  assert requests == [[("Who?", Passage("", "", "The sea is blue."), "Mira", markers), *padding]]

  (stored,) = stored_alone(tmp_path / "text", category="text")
  ((request, *rest),) = batches._requests([stored], None, 2, with_passages, (0, 1))
  assert rest == padding
  (row,) = prompt.render_many([request])
  assert row_text(prompt, row) == "<bos>|Mira<eos>"
  lengths = prompt.measure([request, ("Who?", None, "Mira", None)])
  assert (lengths.tokens[0], lengths.answer_tokens[0]) == (len(row.tokens), len(row.tokens) - 1)


def test_a_plain_text_longer_than_a_row_is_cut_and_counted(prompt):
  limit = prompt.config.max_tokens
  text = "sea " * limit
  (row,) = prompt.render_many([(None, None, text, None)])
  whole = sum(r.answer_end - r.answer_start for r in prompt.render_text(text))
  assert len(row.tokens) == limit
  assert (
    row.cut_passage_tokens == whole - (limit - 1) == prompt.measure([(None, None, text, None)]).cut_passage_tokens[0]
  )
