"""What every reader gives: one task with its answers."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Literal

from radit_jax.data.policy import BadRecord

Metadata = Mapping[str, str | int | float]
#: Kind of task: it decides the template, and whether an own context takes the place of retrieved passages.
Category = Literal[
  "qa", "choice", "reading", "summary", "reasoning", "dialogue", "fact", "slot", "entity", "text", "completion"
]
CATEGORIES: tuple[Category, ...] = typing.get_args(Category)
#: Categories of which an own context is the background, as in the paper; elsewhere it is the gold passage's text.
_OWN_CONTEXT = ("reading", "summary", "dialogue")
#: The answer to what cannot be answered.
UNANSWERABLE = "I don't know"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Example:
  """A task with its answers.

  Attributes:
    id: unique in its file.
    instruction: ``x``, what is asked, without the words that its template adds; of a dialogue the user's last turn.
    answers: ``y``; the first one is trained on, all count in evaluation. With choices: the letter, then the text.
    category: kind of task.
    query: text for the retriever; None takes the instruction.
    own_context: text of the passage that the example brings along.
    gold_passage_ids: ids of the documents that hold the answer.
    group: what must not be shared between splits, e.g. an article.
    turns: of a dialogue, the user's last turn at the end; before it assistant and user take turns.
    choices: of a multiple-choice question.
    metadata: anything else.
  """

  id: str
  instruction: str
  answers: tuple[str, ...]
  category: Category = "qa"
  query: str | None = None
  own_context: str | None = None
  gold_passage_ids: tuple[str, ...] = ()
  group: str | None = None
  turns: tuple[str, ...] | None = None
  choices: tuple[str, ...] | None = None
  metadata: Metadata = dataclasses.field(default_factory=dict)

  @property
  def skips_retrieval(self) -> bool:
    """Whether the own context is the background, so that nothing is retrieved."""
    return self.own_context is not None and self.category in _OWN_CONTEXT

  @property
  def answer_texts(self) -> tuple[str, ...]:
    """Answers worth looking for in a passage: not a choice's letter, which occurs everywhere, nor a reasoning."""
    return (
      self.answers[1:] if (self.choices or self.category == "reasoning") and len(self.answers) > 1 else self.answers
    )


def chosen(choices: Sequence[str], index: int) -> tuple[str, str]:
  """The answers of a multiple-choice question: letter and text of the right choice.

  Example:
    >>> chosen(("red", "blue"), 1)
    ('B', 'blue')

  Raises:
    BadRecord: fewer than two choices, more than there are letters, an empty one, or an index that is none of theirs.
  """
  if not 2 <= len(choices) <= len(LETTERS):
    raise BadRecord(f"{len(choices)} choices, must be 2 to {len(LETTERS)}", reason="wrong number of choices")
  if not all(choice.strip() for choice in choices):
    raise BadRecord("a choice is empty")
  if not 0 <= index < len(choices):
    raise BadRecord(f"the right choice is number {index + 1} of {len(choices)}", reason="the right choice is none")
  return LETTERS[index], choices[index]


def reasoned(reasoning: str, *finals: str) -> tuple[str, ...]:
  r"""The answers of a chain-of-thought example: the reasoning that ends in the first final answer, then the finals.

  Example:
    >>> reasoned("2 and 2 are 4.", "4")
    ('2 and 2 are 4.\nThe answer is 4.', '4')
  """
  return (f"{reasoning.strip()}\nThe answer is {finals[0].strip().rstrip('.')}.", *dict.fromkeys(finals))


def conversation(turns: Sequence[str]) -> dict[str, typing.Any]:
  """The fields of a dialogue: its last turn is asked, and all turns are one query."""
  return {"instruction": turns[-1], "turns": tuple(turns), "query": "\n".join(turns), "category": "dialogue"}
