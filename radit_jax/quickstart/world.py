"""A seeded world of invented people and facts: small enough to learn in minutes, and unknown to every model there is.

Three populations share the same name parts, so that almost every word is one token, but no full name is in two of them:
people of the corpus (their facts are the passages, their questions are split into train / dev / test by person), and
people who only occur in the pre-training texts and in the encoder's warm start.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from radit_jax.files import atomic_directory

NUM_PEOPLE = 900
NUM_NAME_PARTS = 64
NUM_VALUES = 40
# Of a person's six questions, one or two in turn are in a form the pre-trained parts have met. This sets the base
# figures: such a question finds its passage, any other the right person and one of six passages, so base recall@1 is
# near 0.25 + 0.75 / 6. Counted, not drawn, so that it is the same in every split.
KNOWN_QUESTIONS = (1, 2)

# What the pre-training texts are made of; the rest is pairs of sentences.
CLOSED_BOOK_SHARE = 0.15
STATED_SHARE = 0.3
REPEAT_SHARE = 0.7

# What the warm start's queries are made of; the rest is another statement of the passage's fact.
KNOWN_QUERY_SHARE = 0.3
VAGUE_QUERY_SHARE = 0.35


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact, and the ways to state it and to ask for it; ``{n}`` is the person, ``{v}`` the value.

  Attributes:
    name: e.g. ``"birthplace"``.
    endings: last syllables of the relation's values, so that a reader sees a town from a dish.
    statements: sentences of the corpus and of the pre-training texts.
    known_questions: forms the pre-trained parts have met.
    new_questions: forms nobody has met before the tuning; their content words occur in no statement.
  """

  name: str
  endings: tuple[str, ...]
  statements: tuple[str, ...]
  known_questions: tuple[str, ...]
  new_questions: tuple[str, ...]


RELATIONS = (
  Relation(
    "birthplace",
    ("wick", "ford", "mere", "holm"),
    ("{n} was born in the town of {v}.", "The birthplace of {n} is {v}.", "{n} grew up as a child of {v}."),
    ("Where does {n} come from?",),
    ("What is the native soil of {n}?", "Which home did {n} first see?"),
  ),
  Relation(
    "employer",
    ("tek", "corp", "lux", "dyne"),
    ("{n} works for the firm {v}.", "The company {v} employs {n}.", "{n} has a job at {v}."),
    ("Who pays {n}?",),
    ("From whom does {n} earn wages?", "Which boss signs the salary of {n}?"),
  ),
  Relation(
    "teacher",
    ("ander", "oline", "uard", "istan"),
    ("{n} was taught by the master {v}.", "{n} took lessons from {v}.", "The teacher of {n} was {v}."),
    ("Whose pupil was {n}?",),
    ("Under whose guidance did {n} learn?", "Which mentor trained {n}?"),
  ),
  Relation(
    "dish",
    ("oodle", "elli", "asta", "umble"),
    ("{n} likes to eat {v}.", "The favourite dish of {n} is {v}.", "{n} orders {v} for every meal."),
    ("What food does {n} prefer?",),
    ("Which snack delights {n}?", "What does {n} cook when hungry?"),
  ),
  Relation(
    "ship",
    ("ara", "ion", "eus", "onia"),
    ("{n} sails on the ship {v}.", "The vessel of {n} is called {v}.", "{n} is captain of the {v}."),
    ("Which boat belongs to {n}?",),
    ("What carries {n} across water?", "Aboard what does {n} travel?"),
  ),
  Relation(
    "pet",
    ("by", "ky", "pip", "zo"),
    ("{n} keeps a dog named {v}.", "The pet of {n} answers to {v}.", "{n} walks the hound {v}."),
    ("Which animal lives with {n}?",),
    ("What barks beside {n}?", "Who is the furry friend of {n}?"),
  ),
)


@dataclasses.dataclass(frozen=True)
class Fact:
  """One fact of the corpus.

  Attributes:
    person: first and last name.
    relation: position in `RELATIONS`.
    value: the answer.
    passage: the sentence that states it.
    question: a question it answers.
  """

  person: str
  relation: int
  value: str
  passage: str
  question: str


@dataclasses.dataclass(frozen=True)
class World:
  """All words and facts of one seed.

  Attributes:
    seed: what everything was drawn from.
    first_names: name parts.
    last_names: name parts.
    values: per relation, its possible values.
    facts: the corpus, person by person.
    strangers: full names that are in no fact; the pre-training texts are about them.
  """

  seed: int
  first_names: tuple[str, ...]
  last_names: tuple[str, ...]
  values: tuple[tuple[str, ...], ...]
  facts: tuple[Fact, ...]
  strangers: tuple[str, ...]


_ONSETS = "b br d dr f g gr h k kl l m n p pr r s st t tr v z"
_VOWELS = tuple("aeiou")
_MIDDLES = ("l", "n", "r", "v", "d", "s", "lm", "nd", "rt", "st")


def _words(rng: np.random.Generator, count: int, endings: tuple[str, ...], taken: set[str]) -> tuple[str, ...]:
  """Draws ``count`` capitalised invented words that are not in ``taken``, and adds them to it."""
  words: list[str] = []
  while len(words) < count:
    word = "".join(str(rng.choice(part)) for part in (_ONSETS.split(), _VOWELS, _MIDDLES, endings)).capitalize()
    if word.lower() not in taken:
      taken.add(word.lower())
      words.append(word)
  return tuple(words)


def make_world(seed: int, *, num_people: int = NUM_PEOPLE) -> World:
  """Draws names, values, facts, and one passage and one question for each fact.

  Args:
    seed: the same seed gives the same world.
    num_people: people of the corpus; each has one fact of every relation.

  Returns:
    The world; ``num_people * len(RELATIONS)`` facts.

  Example:
    >>> world = make_world(0, num_people=10)
    >>> len(world.facts), world.facts[0].value in world.facts[0].passage
    (60, True)
  """
  rng = np.random.default_rng((seed, 0))
  taken = {w.strip("?.").lower() for r in RELATIONS for t in _templates(r) for w in t.split()}
  first_names = _words(rng, NUM_NAME_PARTS, ("a", "an", "el", "is", "or", "wen"), taken)
  last_names = _words(rng, NUM_NAME_PARTS, ("ast", "ek", "ott", "ung", "ard", "sen"), taken)
  values = tuple(_words(rng, NUM_VALUES, r.endings, taken) for r in RELATIONS)
  names = [f"{a} {b}" for a in first_names for b in last_names]
  names = [names[i] for i in rng.permutation(len(names))]
  facts = []
  for i, person in enumerate(names[:num_people]):
    known = rng.permutation(len(RELATIONS))[: KNOWN_QUESTIONS[i % 2]]
    for r, relation in enumerate(RELATIONS):
      value = str(rng.choice(values[r]))
      statement = str(rng.choice(relation.statements))
      forms = relation.known_questions if r in known else relation.new_questions
      question = str(rng.choice(forms))
      facts.append(Fact(person, r, value, statement.format(n=person, v=value), question.format(n=person)))
  return World(seed, first_names, last_names, values, tuple(facts), tuple(names[num_people:]))


def _templates(relation: Relation) -> tuple[str, ...]:
  return relation.statements + relation.known_questions + relation.new_questions


class _Strangers:
  """Facts about the people outside the corpus, and a generator to draw from them."""

  def __init__(self, world: World, seed: int, purpose: int):
    self.rng = np.random.default_rng((world.seed, seed, purpose))
    self.names = world.strangers
    choices = np.random.default_rng((world.seed, 1)).integers(NUM_VALUES, size=(len(self.names), len(RELATIONS)))
    self.values = [[world.values[r][v] for r, v in enumerate(row)] for row in choices]

  def pick(self, count: int) -> int:
    return int(self.rng.integers(count))

  def statement(self, person: int, relation: int, *, avoid: int | None = None) -> tuple[int, str]:
    """A sentence that states the fact, in another wording than number ``avoid``."""
    wordings = RELATIONS[relation].statements
    wording = self.pick(len(wordings))
    if wording == avoid:
      wording = (wording + 1) % len(wordings)
    return wording, wordings[wording].format(n=self.names[person], v=self.values[person][relation])

  def question(self, person: int, relation: int) -> str:
    forms = RELATIONS[relation].known_questions
    return forms[self.pick(len(forms))].format(n=self.names[person])

  def question_and_answer(self, person: int, relation: int) -> str:
    before = ("Q: ", "Question: ", "")[self.pick(3)]
    after = ("A: ", "Answer: ")[self.pick(2)]
    return f"{before}{self.question(person, relation)}\n{after}{self.values[person][relation]}"


def pretraining_texts(world: World, seed: int) -> Iterator[str]:
  """Endless short texts for the generator's pre-training, all about people who are not in the corpus.

  Two sentences, the second of which repeats the first one's fact in other words or states another fact; a question
  with its answer alone (closed book); a sentence with a question about it. So the base generator knows sentences,
  the form of an answer, which values answer the known questions, and reads a little.

  Args:
    world: the world.
    seed: draw of the texts.

  Yields:
    Texts of at most 28 tokens of the world's tokenizer, begin and end tokens included.
  """
  people = _Strangers(world, seed, 2)
  while True:
    person, relation = people.pick(len(people.names)), people.pick(len(RELATIONS))
    kind = people.rng.random()
    if kind < CLOSED_BOOK_SHARE:
      yield people.question_and_answer(person, relation)
      continue
    # The leading space: names look as they do inside a text, and in the prompt after "Background:".
    wording, sentence = people.statement(person, relation)
    if kind < CLOSED_BOOK_SHARE + STATED_SHARE:
      yield f" {sentence}\n\n{people.question_and_answer(person, relation)}"
      continue
    if people.rng.random() >= REPEAT_SHARE:
      wording = -1
      if people.rng.random() < 0.5:
        person = people.pick(len(people.names))
      else:
        relation = (relation + 1 + people.pick(len(RELATIONS) - 1)) % len(RELATIONS)
    yield f" {sentence} {people.statement(person, relation, avoid=wording)[1]}"


def warm_start_pairs(
  world: World, seed: int, *, num_people: int = 16, num_relations: int = 4
) -> Iterator[list[tuple[str, str]]]:
  """Endless batches of (query, passage) for the encoder's contrastive warm start, about people outside the corpus.

  A batch holds several facts of each of its people, so that the right person alone is not enough. A query is another
  statement of the passage's fact, a question in a known form, or a question in a new form about anything: the new
  forms' words are met, but say only that somebody is asked about.

  Args:
    world: the world.
    seed: draw of the pairs.
    num_people: people in a batch.
    num_relations: facts of each.

  Yields:
    ``num_people * num_relations`` pairs; passages of a batch are distinct.
  """
  people = _Strangers(world, seed, 3)
  while True:
    batch = []
    for person in people.rng.choice(len(people.names), num_people, replace=False):
      for relation in people.rng.choice(len(RELATIONS), num_relations, replace=False):
        wording, passage = people.statement(int(person), int(relation))
        kind = people.rng.random()
        if kind < KNOWN_QUERY_SHARE:
          query = people.question(int(person), int(relation))
        elif kind < KNOWN_QUERY_SHARE + VAGUE_QUERY_SHARE:
          forms = RELATIONS[people.pick(len(RELATIONS))].new_questions
          query = forms[people.pick(len(forms))].format(n=people.names[person])
        else:
          query = people.statement(int(person), int(relation), avoid=wording)[1]
        batch.append((query, passage))
    yield batch


def tokenizer_texts(world: World) -> list[str]:
  """Every word of the world, as it stands after a space and, for words that open a text or a line, without one."""
  words = " ".join(world.first_names + world.last_names + sum(world.values, ()))
  texts = [f" {words}", "Background:", "Question:", "Answer:", "Q:", "A:", "\n", "\n\n"]
  for relation in RELATIONS:
    for template in _templates(relation):
      text = template.format(n="", v="")
      texts += [text, f" {text}"]
  return texts


def write_world(world: World, path: str | pathlib.Path) -> None:
  """Writes ``corpus.jsonl`` and ``questions.jsonl`` in the formats of a user's own files.

  Args:
    world: the world.
    path: directory, made or replaced as a whole.
  """
  with atomic_directory(path) as directory:
    with open(directory / "corpus.jsonl", "w", encoding="utf-8") as f:
      for i, fact in enumerate(world.facts):
        f.write(json.dumps({"id": f"p{i}", "title": "", "text": fact.passage}) + "\n")
    with open(directory / "questions.jsonl", "w", encoding="utf-8") as f:
      for i, fact in enumerate(world.facts):
        record = {
          "id": f"q{i}",
          "question": fact.question,
          "answers": [fact.value],
          "passage_ids": [f"p{i}"],
          "group": fact.person,
          "metadata": {"relation": RELATIONS[fact.relation].name},
        }
        f.write(json.dumps(record) + "\n")
