"""Prompt templates as pieces of fixed text and slots, and what a category of tasks adds to a question."""

import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from radit_jax.data.readers.example import LETTERS, Category, Example
from radit_jax.errors import UserError

#: Markers before question and answer; drawn at random in training, so that none is learnt by heart.
QUESTION_MARKERS = ("Q: ", "Question: ", "")
ANSWER_MARKERS = ("A: ", "Answer: ")


class Markers(NamedTuple):
  """Positions in :data:`QUESTION_MARKERS` and :data:`ANSWER_MARKERS`."""

  question: int
  answer: int


#: What evaluation uses, where a category has none of its own.
FIXED_MARKERS = Markers(0, 0)
_UNMARKED = 2


def draw_markers(seed: tuple[Any, ...]) -> Markers:
  """Markers of one row, e.g. for ``(seed, epoch, example id)``: the same for the same seed, on every machine."""
  digest = hashlib.sha256(repr(seed).encode()).digest()
  return Markers(digest[0] % len(QUESTION_MARKERS), digest[1] % len(ANSWER_MARKERS))


def markers_of(category: Category, seed: tuple[Any, ...] | None = None) -> Markers:
  """Markers that a category's rows begin question and answer with.

  Args:
    category: kind of task.
    seed: draws them, for training; None gives those of evaluation.

  Example:
    >>> [tuple(markers_of(name)) for name in ("qa", "choice", "summary", "dialogue")]
    [(0, 0), (1, 0), (2, 0), (2, 0)]
  """
  if category == "dialogue":  # its turns bring markers of their own, which the answer's must match
    return Markers(_UNMARKED, 0)
  drawn = FIXED_MARKERS if seed is None else draw_markers(seed)
  if category in ("summary", "fact", "slot", "entity", "completion"):  # these begin with words of their own
    return drawn._replace(question=_UNMARKED)
  return Markers(1, 0) if category == "choice" and seed is None else drawn


def instruct(example: Example) -> str:
  r"""What stands in the question's slot: the instruction in the form of the example's category.

  - of a dialogue all turns, each behind ``Q:`` or ``A:``, the last one the user's;
  - with choices, the choices below it, each behind its letter (the form of MMLU);
  - of a statement to be checked, ``Is this statement true?`` before it;
  - of an entity to be linked, what is asked for, below its text;
  - else as it is: a summary's instruction is ``Summarize this article:``, a slot's ``{entity} [SEP] {relation}``.

  Example:
    >>> instruct(Example("i", "Which is red?", ("B", "blood"), choices=("grass", "blood")))
    'Which is red?\nA. grass\nB. blood'
  """
  text = example.instruction.strip()
  if example.turns:
    last = len(example.turns) - 1
    text = "\n".join(f"{'A' if (last - i) % 2 else 'Q'}: {turn.strip()}" for i, turn in enumerate(example.turns))
  if example.choices:
    text = "\n".join([text, *(f"{LETTERS[i]}. {choice.strip()}" for i, choice in enumerate(example.choices))])
  if example.category == "fact":
    text = f"Is this statement true? {text}"
  if example.category == "entity":
    text += (
      "\nOutput the Wikipedia page title of the entity mentioned between [START_ENT] and [END_ENT] in the given text"
    )
  return text


#: Fixed text, or None for a slot.
Piece = tuple[str, str | None]


def plain_pieces(closed: bool, markers: tuple[int, int]) -> list[Piece]:
  """The paper's: ``Background: {passage}``, a blank line, question and answer behind their markers."""
  question, answer = QUESTION_MARKERS[markers[0]], ANSWER_MARKERS[markers[1]]
  passage: list[Piece] = [] if closed else [("background", "Background: "), ("passage", None)]
  gap = "" if closed else "\n\n"
  return [
    *passage,
    ("question_prefix", gap + question),
    ("question", None),
    ("answer_prefix", "\n" + answer),
    ("answer", None),
  ]


_SLOT = re.compile(r"\{(passage|title|question|answer)\}")
_FIELD = re.compile(r"\{(\w+)\}")


def _split(template: str) -> tuple[list[Piece], str]:
  """Pieces up to the answer's slot, and the text after it."""
  found = _SLOT.split(template)  # text, slot, text, slot, ..., text
  pieces: list[Piece] = [
    (piece, None) if i % 2 else ("template", piece) for i, piece in enumerate(found[:-1]) if i % 2 or piece
  ]
  return pieces, found[-1]


def file_pieces(template: str, closed: bool) -> tuple[list[Piece], str]:
  """A user's template up to its answer, and the text after it.

  Example:
    >>> file_pieces("Read: {passage}\\n\\nQ: {question}\\nA: {answer}", closed=True)
    ([('template', 'Q: '), ('question', None), ('template', '\\nA: '), ('answer', None)], '')
  """
  if closed:
    paragraphs = template.split("\n\n")
    kept = [p for p in paragraphs if "{passage}" not in p or "{question}" in p or "{answer}" in p]
    template = "\n\n".join(kept).replace("{passage}", "").replace("{title}", "")
  return _split(template)


def read_template(path: str) -> str:
  """Reads a user's template; the newline at its end is not part of it.

  Raises:
    UserError: no readable file; a field is unknown, missing, stands there twice, or comes after the answer.
  """
  try:
    template = pathlib.Path(path).read_text(encoding="utf-8").removesuffix("\n")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'prompt.style {path!r}: neither "plain" nor "chat", and no readable text file ({e})') from None
  names = _SLOT.findall(template)
  for name in _FIELD.findall(template):
    if name not in names:
      raise UserError(
        f"{path}: unknown field {{{name}}}; there are {{passage}}, {{title}}, {{question}} and {{answer}}"
      )
  for name in ("passage", "question", "answer"):
    if names.count(name) != 1:
      raise UserError(f"{path}: {{{name}}} occurs {names.count(name)} times, must be there once")
  if names.count("title") > 1:
    raise UserError(f"{path}: {{title}} occurs {names.count('title')} times, at most once is allowed")
  if names[-1] != "answer":
    raise UserError(f"{path}: {{answer}} must come last, after it stands {{{names[-1]}}}")
  return template


#: What a template that shows today's date sees: a prompt and its hash must not change overnight. The day is the one
#: that Llama 3's templates name where they are told none.
_DATE = {
  "%-d": "26",
  "%d": "26",
  "%a": "Fri",
  "%A": "Friday",
  "%b": "Jul",
  "%B": "July",
  "%m": "07",
  "%Y": "2024",
  "%y": "24",
  "%H": "12",
  "%M": "00",
  "%S": "00",
}


def chat_pieces(tokenizer: Any, closed: bool) -> tuple[list[Piece], str]:
  """Fills the tokenizer's template with words that stand for the slots, and cuts it there.

  Thinking is off where the template can switch it (``enable_thinking``), and today is always the same day.

  Raises:
    UserError: the template fails, does not show a slot's text once, or begins the answer of a training row in another
      way than a prompt to be answered ends: what a generator learns it would never be asked.
  """
  words = {name: f"radit{name}slot" for name in ("passage", "question", "answer")}
  user = words["question"] if closed else f"Background: {words['passage']}\n\n{words['question']}"
  messages = [{"role": "user", "content": user}, {"role": "assistant", "content": words["answer"]}]
  text = _rendered(tokenizer, messages)
  for name, word in words.items():
    expected = 0 if closed and name == "passage" else 1
    if text.count(word) != expected:
      raise UserError(f"the chat template shows the {name} {text.count(word)} times, expected {expected}")
  start = _rendered(tokenizer, messages[:1], add_generation_prompt=True)
  trained = text[: text.index(words["answer"])]
  # The space between "[/INST]" and an answer belongs to the answer.
  if trained.rstrip(" ") != start.rstrip(" "):
    raise UserError(
      f'prompt.style "chat": the template puts {trained[-40:]!r} before an answer that is given, but {start[-40:]!r} '
      'before one to be written; use "plain" or a template file'
    )
  pieces: list[Piece] = []
  for name in ["question", "answer"] if closed else ["passage", "question", "answer"]:
    before, text = text.split(words[name])
    pieces += [("template", before), (name, None)]
  return pieces, text


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
  """The template's text, by the fixed date."""
  import jinja2

  try:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
      # A macro of this name hides the function that asks the clock.
      named = "".join(f" | replace('{code}', '{value}')" for code, value in _DATE.items())
      template = f"{{% macro strftime_now(format) %}}{{{{ format{named} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
    return str(
      tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=False,
      )
    )
  except (jinja2.TemplateError, ValueError, TypeError) as e:
    reason = " ".join(str(e).split())
    raise UserError(
      f'prompt.style "chat": the chat template fails ({reason}); use "plain" or a template file'
    ) from None


def exported_pieces(pieces: Sequence[Piece]) -> list[dict[str, str]]:
  """Pieces of a prompt as JSON values, without empty ones and without the space at the end, which is the answer's.

  Example:
    >>> exported_pieces([("template", "Q: "), ("question", None), ("template", "\\n"), ("template", "A: ")])
    [{'text': 'Q: '}, {'slot': 'question'}, {'text': '\\nA:'}]
  """
  out: list[dict[str, str]] = []
  for name, text in pieces:
    if text is None:
      out.append({"slot": name})
    elif out and "text" in out[-1]:
      out[-1]["text"] += text
    else:
      out.append({"text": text})
  if "text" in out[-1]:
    out[-1]["text"] = out[-1]["text"].removesuffix(" ")
  return [piece for piece in out if piece != {"text": ""}]
