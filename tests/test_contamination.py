"""Evaluation questions in training: each count against the slow and obvious one."""

import random

import pytest

from radit_jax.data.contamination import GRAM_WORDS, Contamination
from radit_jax.data.mix import likeness
from radit_jax.data.sources import Example

LONG = "In which of the old harbours of Orlen does Mira keep her boat?"


def asks(*questions, answers=("Mira Kelwick",)):
  return [Example(str(i), question, answers) for i, question in enumerate(questions)]


def one(held):
  (figures,) = held.summary()
  return figures


@pytest.mark.parametrize(
  ("trained", "same", "overlapping"),
  [
    ("who sails THE  Vornara", 1, 0),
    ("Who sails the Vornara today?", 0, 0),
    (LONG.upper().replace("?", " !"), 1, 0),
    ("Tell me in which of the old harbours of Orlen, please.", 0, 1),  # eight words
    ("Tell me in which of the old harbours of it, please.", 0, 0),  # seven
    ("Where is Mira?", 0, 0),
  ],
)
def test_questions(trained, same, overlapping):
  held = Contamination([("nq", asks("Who sails the Vornara?", LONG))])
  assert held.example(Example("x", trained, ("y",))) == bool(same or overlapping)
  figures = one(held)
  assert (figures["same"], figures["overlapping"], figures["examples"]) == (same, overlapping, same or overlapping)


def test_a_question_found_in_both_ways_counts_once():
  held = Contamination([("nq", asks(LONG))])
  held.example(Example("x", LONG, ("y",)))
  held.example(Example("y", f"Say: {LONG}", ("y",)))
  assert (one(held)["same"], one(held)["overlapping"], one(held)["examples"]) == (1, 0, 2)


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("It was MIRA  Kelwick, they say.", True),
    ("It was Mira. Kelwick is another.", True),  # signs are no words
    ("It was Mira Kelwicks.", False),
    ("Kelwick Mira", False),
    ("", False),
  ],
)
def test_answers_are_found_word_by_word(text, found):
  held = Contamination([("nq", asks("Who?"))])
  assert held.passage(text) is found
  assert (one(held)["answered"], one(held)["passages"]) == (found, found)


def test_answers_that_are_everywhere_are_not_looked_for():
  """Short ones, yes and no, and a choice's letter, of which the text counts."""
  choice = Example("c", "Which?", ("A", "the sea"), category="choice", choices=("the sea", "a barn"))
  held = Contamination([("m", [*asks("Q?", answers=("12", "true", "no", "I don't know")), choice])])
  assert not held.passage("12 is true, no, i don't know: a A.")
  assert held.passage("By the sea!")


def test_fast_equals_slow():
  rng = random.Random(0)

  def text(n):
    return " ".join(rng.choice("abcdef") * 2 for _ in range(n))

  sets = {
    name: [Example(str(i), text(rng.randint(1, 14)), (text(rng.randint(2, 4)),)) for i in range(40)] for name in "xy"
  }
  trained = [Example(str(i), text(rng.randint(1, 40)), ("z",)) for i in range(60)]
  trained += [Example(f"e{i}", f"{text(2)} {e.instruction} {text(2)}", ("z",)) for i, e in enumerate(sets["x"][:20])]
  held = Contamination(sets.items())
  for example in trained:
    held.example(example)
    held.passage(example.instruction)
  for figures in held.summary():
    own = sets[figures["name"]]

    def grams(words):
      return {tuple(words[i : i + GRAM_WORDS]) for i in range(len(words) - GRAM_WORDS + 1)}

    def asked(e, t):
      return likeness(e.instruction) == likeness(t.instruction)

    def shares(e, t):
      return bool(grams(e.instruction.split()) & grams(t.instruction.split()))

    def answers(e, t):
      return f" {e.answers[0]} " in f" {t.instruction} "

    same = [any(asked(e, t) for t in trained) for e in own]
    overlapping = [any(shares(e, t) for t in trained) for e in own]
    assert figures == {
      "name": figures["name"],
      "questions": 40,
      "same": sum(same),
      "overlapping": sum(o and not s for s, o in zip(same, overlapping, strict=True)),
      "examples": sum(any(asked(e, t) or shares(e, t) for e in own) for t in trained),
      "answered": sum(any(answers(e, t) for t in trained) for e in own),
      "passages": sum(any(answers(e, t) for e in own) for t in trained),
    }
    assert figures["answered"] > 0
  assert held.summary()[0]["overlapping"] > 0
