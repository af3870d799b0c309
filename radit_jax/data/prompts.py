"""The one way from a question and a passage to token ids.

Pieces of text are tokenised apart and their ids are concatenated: no passage can smuggle in a control token, and no
passage moves the place where the answer begins. The space at a seam belongs to the piece on its right ("A:" and
" Kelwick"), so a word at a seam gets the ids that it has in running text.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.config import PromptConfig
from radit_jax.data.sources import Passage
from radit_jax.data.templates import (
  ANSWER_MARKERS,
  FIXED_MARKERS,
  QUESTION_MARKERS,
  chat_pieces,
  file_pieces,
  plain_pieces,
  read_template,
)
from radit_jax.data.tokenization import SlotTokenizer
from radit_jax.errors import UserError

Ids = tuple[int, ...]
#: question, passage (None: closed book), answer (None: a prompt to be continued), marker seed (None: fixed markers)
Request = tuple[str, Passage | None, str | None, tuple[Any, ...] | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
  """A row as token ids.

  Attributes:
    segments: ``(name, ids)`` in order; names are "bos", "background", "title", "passage", "question_prefix",
      "question", "answer_prefix", "answer", "end", "tail", and "template" for the fixed text of other styles.
    tokens: ids of all segments, in one.
    answer_start: index of the first answer token; ``len(tokens)`` without an answer.
    answer_end: index after the last answer token, the end token included. What follows is template text after the end.
    cut_passage_tokens: tokens of the passage block that did not fit.
    cut_question_tokens: tokens cut from the front of the question.
  """

  segments: tuple[tuple[str, Ids], ...]
  tokens: Ids
  answer_start: int
  answer_end: int
  cut_passage_tokens: int = 0
  cut_question_tokens: int = 0

  @property
  def answer_tokens(self) -> Ids:
    """Ids of the answer with its end token."""
    return self.tokens[self.answer_start : self.answer_end]


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of rows that are not kept, each ``[R]`` int64.

  Attributes:
    tokens: of the row.
    answer_tokens: of the answer with its end token.
    cut_passage_tokens: see :class:`Rendered`.
    cut_question_tokens: see :class:`Rendered`.
  """

  tokens: Int[np.ndarray, "R"]
  answer_tokens: Int[np.ndarray, "R"]
  cut_passage_tokens: Int[np.ndarray, "R"]
  cut_question_tokens: Int[np.ndarray, "R"]


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A template made ready: fixed ids, and how each slot's text meets the text on its left.

  Attributes:
    parts: ``(name, ids)`` for fixed text, ``(name, seam)`` for a slot; the last one is the answer's slot.
    end: ids that close the answer; the last one is the end token.
    tail: ids of the template after the end token.
    fixed_tokens: ids of the parts that are fixed text.
  """

  parts: tuple[tuple[str, Ids | str], ...]
  end: Ids
  tail: Ids
  fixed_tokens: int


class Prompt:
  """Renders questions, passages and answers as token ids.

  Styles, with the title before the passage's text on a line of its own:

  - ``"plain"``: ``Background: {passage}\\n\\nQ: {question}\\nA: {answer}`` and the end token (RA-DIT, section 2.2),
  - ``"chat"``: the tokenizer's own template, the user says ``Background: {passage}\\n\\n{question}``,
  - a path: a text file with ``{passage}``, ``{question}``, ``{answer}`` and maybe ``{title}``. Without a passage, the
    paragraph (text between blank lines) that holds ``{passage}`` is left out.

  The passage block is cut to ``max_passage_tokens``, whatever the question is; then, where the row is still too long,
  the question from its front. Room for ``max_answer_tokens`` is always kept, so the prompt does not depend on the
  answer, and the answer is never cut. White space around question, passage and answer is not part of them.

  Args:
    tokenizer: of the generator; any ``transformers`` tokenizer.
    config: style and limits.

  Raises:
    UserError: the tokenizer has no end token or no chat template, the template file lacks a field, or the limits leave
      no room for a question.

  Attributes:
    config: as given.
    end_ids: each of these ends an answer.
    hash: hex digest over style, template, markers, limits and tokenizer; two hashes never mix.
  """

  def __init__(self, tokenizer: Any, config: PromptConfig) -> None:
    self.config = config
    self._tokenizer = tokenizer
    self._slots = SlotTokenizer(tokenizer)
    self._template = read_template(config.style) if config.style not in ("plain", "chat") else None
    if config.style == "chat" and not getattr(tokenizer, "chat_template", None):
      raise UserError('prompt.style "chat": the tokenizer has no chat template; use "plain" or a template file')
    if config.style != "chat" and tokenizer.eos_token_id is None:
      raise UserError(f"prompt.style {config.style!r}: the tokenizer has no end token (eos_token)")
    self._layouts = {
      (closed, markers): self._layout(closed, markers)
      for closed in (False, True)
      for markers in itertools.product(range(len(QUESTION_MARKERS)), range(len(ANSWER_MARKERS)))
      if config.style == "plain" or markers == FIXED_MARKERS
    }
    longest = max(self._layouts.values(), key=self._reserved)
    needed = self._reserved(longest) + config.max_passage_tokens + 1
    if needed > config.max_tokens:
      raise UserError(
        f"prompt.max_tokens {config.max_tokens}: max_passage_tokens {config.max_passage_tokens}, max_answer_tokens "
        f"{config.max_answer_tokens} and the template's {longest.fixed_tokens} tokens need at least {needed}"
      )
    ends = [self._layouts[False, FIXED_MARKERS].end[-1], tokenizer.eos_token_id]
    self.end_ids: Ids = tuple(dict.fromkeys(i for i in ends if i is not None))

  @functools.cached_property
  def hash(self) -> str:
    content = {
      "style": "file" if self._template is not None else self.config.style,
      "template": self._template,
      "markers": [QUESTION_MARKERS, ANSWER_MARKERS],
      "layouts": [[list(map(list, x.parts)), x.end, x.tail] for x in self._layouts.values()],
      "limits": [self.config.max_tokens, self.config.max_passage_tokens, self.config.max_answer_tokens],
      "tokenizer": self._slots.content(),
      "chat_template": getattr(self._tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  def check_positions(self, max_positions: int) -> None:
    """Refuses rows longer than the generator was made for, where its rotary positions would be extrapolated unseen.

    Raises:
      UserError: naming both numbers.
    """
    if self.config.max_tokens > max_positions:
      raise UserError(
        f"prompt.max_tokens {self.config.max_tokens}: the generator has {max_positions} positions; "
        f"set --prompt.max-tokens {max_positions} or less"
      )

  def render(
    self, question: str, passage: Passage | None, answer: str | None, *, marker_seed: tuple[Any, ...] | None = None
  ) -> Rendered:
    """One row; see :meth:`render_many`."""
    return self.render_many([(question, passage, answer, marker_seed)])[0]

  def render_many(self, requests: Sequence[Request]) -> list[Rendered]:
    """Renders rows; texts that occur again are tokenised once.

    Args:
      requests: ``(question, passage, answer, marker_seed)``. A passage of None gives a closed-book row, an answer of
        None a prompt to be continued. A marker seed, e.g. ``(seed, epoch, example id)``, draws the plain style's
        markers.

    Returns:
      One row per request, in order.

    Raises:
      UserError: an answer is longer than ``max_answer_tokens``.
    """
    layouts = [self._pick(request) for request in requests]
    ids = self._tokenize(zip(layouts, requests, strict=True))
    return [self._assemble(x, request, ids) for x, request in zip(layouts, requests, strict=True)]

  def measure(self, requests: Sequence[Request]) -> Lengths:
    """Lengths with the markers that make each row longest: what a batch plan needs before any marker is drawn.

    Args:
      requests: as for :meth:`render_many`; marker seeds are not looked at.

    Raises:
      UserError: an answer is longer than ``max_answer_tokens``.
    """
    out = Lengths(*(np.zeros(len(requests), np.int64) for _ in range(4)))
    # Layouts with the same seams differ in fixed text only: of each such group the longest will do.
    groups: dict[Any, _Layout] = {}
    for (closed, _), layout in self._layouts.items():
      key = (closed, tuple(seam for _, seam in layout.parts if isinstance(seam, str)))
      groups[key] = max(layout, groups.get(key, layout), key=lambda x: x.fixed_tokens)
    for (closed, *_), layout in groups.items():
      chosen = [i for i, request in enumerate(requests) if (request[1] is None) == closed]
      ids = self._tokenize((layout, requests[i]) for i in chosen)
      for i in chosen:
        row = self._assemble(layout, requests[i], ids)
        out.tokens[i] = max(out.tokens[i], len(row.tokens))
        out.answer_tokens[i] = row.answer_end - row.answer_start
        out.cut_passage_tokens[i] = row.cut_passage_tokens
        out.cut_question_tokens[i] = max(out.cut_question_tokens[i], row.cut_question_tokens)
    return out

  def _reserved(self, layout: _Layout) -> int:
    """Tokens of a row that are neither passage nor question."""
    return layout.fixed_tokens + self.config.max_answer_tokens + 1 + len(layout.tail)

  def _pick(self, request: Request) -> _Layout:
    _, passage, _, seed = request
    markers = FIXED_MARKERS
    if seed is not None and self.config.style == "plain":
      digest = hashlib.sha256(repr(seed).encode()).digest()
      markers = (digest[0] % len(QUESTION_MARKERS), digest[1] % len(ANSWER_MARKERS))
    return self._layouts[passage is None, markers]

  def _text(self, name: str, request: Request) -> str:
    question, passage, answer, _ = request
    if name == "question":
      return question.strip()
    if name == "answer":
      return (answer or "").strip()
    if passage is None:
      return ""
    if name == "title":
      return passage.title.strip()
    titled = self._template is not None and "{title}" in self._template
    return passage.text.strip() if titled else passage.full_text.strip()

  def _tokenize(self, rows: Iterable[tuple[_Layout, Request]]) -> dict[tuple[str, str], Ids]:
    """Ids of every (seam, text) that occurs in a slot."""
    wanted = {
      (seam, self._text(name, request)): None
      for layout, request in rows
      for name, seam in layout.parts
      if isinstance(seam, str)
    }
    return self._slots.ids(wanted)

  def _assemble(self, layout: _Layout, request: Request, ids: dict[tuple[str, str], Ids]) -> Rendered:
    config = self.config
    answer = request[2]
    slots = {name: ids[seam, self._text(name, request)] for name, seam in layout.parts if isinstance(seam, str)}
    block = len(slots.get("title", ())) + len(slots.get("passage", ()))
    cut_passage = max(0, block - config.max_passage_tokens)
    if cut_passage:
      slots["title"] = slots.get("title", ())[: config.max_passage_tokens]
      slots["passage"] = slots["passage"][: config.max_passage_tokens - len(slots["title"])]
    room = config.max_tokens - self._reserved(layout) - (block - cut_passage)
    cut_question = max(0, len(slots["question"]) - room)
    slots["question"] = slots["question"][cut_question:]
    segments = [(name, slots[name] if isinstance(value, str) else value) for name, value in layout.parts[:-1]]
    start = end = sum(len(s) for _, s in segments)
    if answer is not None:
      own = slots["answer"]
      if len(own) + len(layout.end) > config.max_answer_tokens + 1:
        raise UserError(
          f"answer {_shorten(answer)!r} has {len(own) + len(layout.end) - 1} tokens, prompt.max_answer_tokens is "
          f"{config.max_answer_tokens}; raise the limit or leave the example out"
        )
      segments += [("answer", own), ("end", layout.end)]
      end += len(own) + len(layout.end)
      if layout.tail:
        segments.append(("tail", layout.tail))
    tokens = tuple(itertools.chain.from_iterable(s for _, s in segments))
    return Rendered(tuple(segments), tokens, start, end, cut_passage, cut_question)

  def _layout(self, closed: bool, markers: tuple[int, int]) -> _Layout:
    tokenizer = self._tokenizer
    if self.config.style == "chat":
      pieces, after = chat_pieces(tokenizer, closed)
    elif self._template is not None:
      pieces, after = file_pieces(self._template, closed)
    else:
      pieces, after = plain_pieces(closed, markers), ""
    parts = self._slots.compile(pieces)
    first = next((value[0] for _, value in parts if value and not isinstance(value, str)), None)
    bos = tokenizer.bos_token_id
    if self.config.style != "chat" and bos is not None and first != bos:
      parts.insert(0, ("bos", (bos,)))
    closing = self._slots.fixed(after, left="a") if after else ()
    stop = next((i + 1 for i, token in enumerate(closing) if token in self._slots.control), None)
    if stop is None:
      if tokenizer.eos_token_id is None:
        raise UserError("the chat template has no end token after the assistant's words, nor has the tokenizer one")
      closing, stop = (*closing, tokenizer.eos_token_id), len(closing) + 1
    fixed = sum(len(value) for _, value in parts if not isinstance(value, str))
    return _Layout(tuple(parts), closing[:stop], closing[stop:], fixed)


def _shorten(text: str) -> str:
  return text if len(text) <= 60 else text[:57] + "..."
