"""Evaluation questions in what is trained on: found by their words, by eight words in a row, and by their answers."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from radit_jax.data.mix import likeness
from radit_jax.data.sources import Example

#: Words in a row that two questions do not share by chance.
GRAM_WORDS = 8
#: A shorter answer occurs everywhere, and so do these.
_SHORTEST_ANSWER = 4
_EVERYWHERE = frozenset(("true", "false", "none", "maybe", "both", "neither", likeness("I don't know")))

#: Number of an evaluation set, and of a question in it.
_Question = tuple[int, int]


@dataclasses.dataclass
class Found:
  """What of an evaluation set is trained on.

  Attributes:
    name: of the set.
    questions: it has.
    same: its questions that are asked in training, but for capitals, signs and white space.
    overlapping: others that share eight words in a row with a question asked in training.
    examples: training examples that do either.
    answered: its questions of which a passage that is trained on holds an answer.
    passages: such passages.
  """

  name: str
  questions: int
  same: set[int] = dataclasses.field(default_factory=set)
  overlapping: set[int] = dataclasses.field(default_factory=set)
  examples: int = 0
  answered: set[int] = dataclasses.field(default_factory=set)
  passages: int = 0

  def summary(self) -> dict[str, Any]:
    """As JSON values."""
    return {
      "name": self.name,
      "questions": self.questions,
      "same": len(self.same),
      "overlapping": len(self.overlapping - self.same),
      "examples": self.examples,
      "answered": len(self.answered),
      "passages": self.passages,
    }


class Contamination:
  """Evaluation sets in memory; training examples and passages are held against them one by one.

  Args:
    sets: evaluation set and its examples, each.

  Example:
    >>> held = Contamination([("nq", [Example("1", "Who sails the Vornara?", ("Mira Kelwick",))])])
    >>> held.example(Example("a", "who sails the  Vornara", ("Mira",))), held.passage("It is by Mira Kelwick.")
    (True, True)
    >>> held.summary()[0]["same"], held.summary()[0]["answered"]
    (1, 1)
  """

  def __init__(self, sets: Iterable[tuple[str, Iterable[Example]]]):
    self._found: list[Found] = []
    self._same: dict[str, list[_Question]] = collections.defaultdict(list)
    self._grams: dict[str, list[_Question]] = collections.defaultdict(list)
    self._answers: dict[str, dict[str, list[_Question]]] = collections.defaultdict(dict)
    self._lengths: dict[str, set[int]] = collections.defaultdict(set)
    for s, (name, examples) in enumerate(sets):
      found = Found(name, 0)
      self._found.append(found)
      for example in examples:
        self._add(example, (s, found.questions))
        found.questions += 1

  def _add(self, example: Example, key: _Question) -> None:
    text = likeness(example.instruction)
    self._same[text].append(key)
    for gram in set(_grams(text)):
      self._grams[gram].append(key)
    for answer in {likeness(a) for a in example.answer_texts}:
      if len(answer) >= _SHORTEST_ANSWER and answer not in _EVERYWHERE:
        words = answer.split()
        self._lengths[words[0]].add(len(words))
        self._answers[words[0]].setdefault(answer, []).append(key)

  def example(self, example: Example) -> bool:
    """Whether a training example asks what an evaluation question asks; counted."""
    text = likeness(example.instruction)
    same = self._same.get(text, ())
    overlapping = [key for gram in _grams(text) for key in self._grams.get(gram, ())]
    for s, i in same:
      self._found[s].same.add(i)
    for s, i in overlapping:
      self._found[s].overlapping.add(i)
    concerned = {s for s, _ in (*same, *overlapping)}
    for s in concerned:
      self._found[s].examples += 1
    return bool(concerned)

  def passage(self, text: str) -> bool:
    """Whether a passage holds the answer to an evaluation question, word by word; counted."""
    words = likeness(text).split()
    concerned: set[int] = set()
    for start, word in enumerate(words):
      for length in self._lengths.get(word, ()):
        for s, i in self._answers[word].get(" ".join(words[start : start + length]), ()):
          self._found[s].answered.add(i)
          concerned.add(s)
    for s in concerned:
      self._found[s].passages += 1
    return bool(concerned)

  def summary(self) -> list[dict[str, Any]]:
    """What was found so far, for each evaluation set."""
    return [found.summary() for found in self._found]


def _grams(text: str) -> Iterator[str]:
  words = text.split()
  return (" ".join(words[i : i + GRAM_WORDS]) for i in range(len(words) - GRAM_WORDS + 1))
