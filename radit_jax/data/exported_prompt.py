"""Builds the prompts that this generator was tuned on, for any engine; `radit.json` beside this file says how.

Needs Python alone. As a module, one prompt per passage of a question, as in RA-DIT:

  from prompt import build_prompt, mixture_weights
  prompts = [build_prompt(question, passage.text, passage.title) for passage in passages]
  weights = mixture_weights([passage.score for passage in passages])  # p_R: the answer y with the largest
  # sum over passages of weight * p_LM(y | prompt) is the answer of eq. 2

As a program, one JSON object per line of the standard input, one per line of the standard output:

  echo '{"question": "Who?", "passage": "It was her.", "title": "A story"}' | python prompt.py
  {"prompt": "..."}

What an engine has to do with a prompt:

- Tokenise it with the control tokens in it parsed and none added (`add_special_tokens=False`): the token for the
  beginning of a text, where the generator wants one, stands in the prompt. Only where `bos` in `radit.json` has
  `in_text` false must its id be put in front. No space is to be added at the prompt's end, and nothing stripped.
- Stop at each of the token ids under `end`.
- Keep to the limits under `limits`: a passage with its title is cut to `max_passage_tokens` tokens before the prompt is
  built; then the question is cut from its front until prompt and `max_answer_tokens` fit into `max_tokens`.

Texts that may come from strangers: whoever can write a passage can write a control token into it, such as the one that
ends a turn, and this file knows no tokenizer. Either refuse texts in which the tokenizer finds a control token, or
tokenise the pieces of `build_pieces` apart, those of users with `split_special_tokens=True`, and join the ids. (Where a
tokenizer has one token for a full stop and the newlines behind it, or puts a space of its own before each text, ids
tokenised apart differ at the seams from those that the generator was tuned on.)

Of `radit.json` the fields `prompt` (all of the above) and `score_temperature` are read.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import sys
from typing import Any


@functools.cache
def recipe() -> dict[str, Any]:
  """What `radit.json` beside this file says."""
  found: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name("radit.json").read_text(encoding="utf-8"))
  return found


def build_pieces(question: str, passage: str | None = None, title: str = "") -> list[tuple[bool, str]]:
  """The prompt's parts in order.

  Args:
    question: what is asked.
    passage: text to answer from; None for a prompt without one.
    title: of the passage.

  Returns:
    ``(is_text_from_user, text)``; the texts joined are the prompt. The space before a text belongs to it.
  """
  prompt = recipe()["prompt"]
  text = passage or ""
  if title and prompt["passage"] == "title_line_then_text":
    text = f"{title}\n{text}"
  slots = {"question": question.strip(), "passage": text.strip(), "title": title.strip()}
  pieces: list[tuple[bool, str]] = []
  for piece in prompt["closed_book" if passage is None else "with_passage"]:
    if "slot" not in piece:
      pieces.append((False, piece["text"]))
      continue
    own = slots[piece["slot"]]
    if pieces and not pieces[-1][0] and pieces[-1][1].endswith(" "):
      pieces[-1] = (False, pieces[-1][1][:-1])
      own = f" {own}" if own else ""
    pieces.append((True, own))
  return [piece for piece in pieces if piece[1]]


def build_prompt(question: str, passage: str | None = None, title: str = "") -> str:
  """The text of a prompt; see :func:`build_pieces`."""
  return "".join(text for _, text in build_pieces(question, passage, title))


def mixture_weights(scores: list[float]) -> list[float]:
  """How much each passage counts in eq. 2: the softmax of the retriever's scores over its score temperature.

  Args:
    scores: the retriever's dot product of the question with each of its passages.
  """
  temperature = recipe()["score_temperature"]
  largest = max(scores, default=0.0)
  weights = [math.exp((score - largest) / temperature) for score in scores]
  total = sum(weights)
  return [weight / total for weight in weights]


def main() -> int:
  """Prompts of the lines of the standard input; 2 at the first line that is no question."""
  for number, line in enumerate(sys.stdin.buffer, 1):
    try:
      asked = json.loads(line)
      prompt = build_prompt(asked["question"], asked.get("passage"), asked.get("title") or "")
    except (ValueError, TypeError, KeyError, AttributeError) as e:
      sys.stderr.write(f'line {number}: not an object with "question" and maybe "passage" and "title" ({e!r})\n')
      return 2
    sys.stdout.write(json.dumps({"prompt": prompt}) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
