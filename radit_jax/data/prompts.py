"""The one way from a question and a passage to token ids.

Pieces of text are tokenised apart and their ids are concatenated: no passage can smuggle in a control token, and no
passage moves the place where the answer begins. The space at a seam belongs to the piece on its right ("A:" and
" Kelwick"), and a full stop takes the newlines on its right along where the tokenizer has one token for both, so a text
at a seam gets the ids that it has in running text.
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
from radit_jax.data.groups import Prefixes, common_prefix, prefix_key
from radit_jax.data.sources import Passage
from radit_jax.data.templates import (
  ANSWER_MARKERS,
  FIXED_MARKERS,
  QUESTION_MARKERS,
  Markers,
  Piece,
  chat_pieces,
  draw_markers,
  exported_pieces,
  file_pieces,
  plain_pieces,
  read_template,
)
from radit_jax.data.tokenization import PLAIN, Seam, SlotIds, SlotTokenizer
from radit_jax.errors import UserError

Ids = tuple[int, ...]
#: question, passage (None: closed book), answer (None: a prompt to be continued), and the seed that draws the markers,
#: or the :class:`radit_jax.data.templates.Markers` themselves (None: fixed markers).
#: A question of None: the answer is plain text, of which the first row is taken, see :meth:`Prompt.render_text`.
Request = tuple[str | None, Passage | None, str | None, tuple[Any, ...] | None]


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

  @property
  def context_end(self) -> int:
    """Index after the passage: rows with the same passage and markers are alike up to there, if it comes first."""
    ends = itertools.accumulate(len(ids) for _, ids in self.segments)
    last = max((end for (name, _), end in zip(self.segments, ends, strict=True) if name == "passage"), default=0)
    return min(last, max(0, self.answer_start - 1))

  @property
  def context(self) -> Ids:
    """Ids up to there."""
    return self.tokens[: self.context_end]


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of rows that are not kept, each ``[R]`` int64.

  Attributes:
    tokens: of the row.
    answer_tokens: of the answer with its end token.
    cut_passage_tokens: see :class:`Rendered`.
    cut_question_tokens: see :class:`Rendered`.
    prefixes: how the row begins, whatever markers are drawn.
  """

  tokens: Int[np.ndarray, "R"]
  answer_tokens: Int[np.ndarray, "R"]
  cut_passage_tokens: Int[np.ndarray, "R"]
  cut_question_tokens: Int[np.ndarray, "R"]
  prefixes: Prefixes


@dataclasses.dataclass(frozen=True)
class _Layout:
  """A template made ready: fixed ids, and how each slot's text meets the text on its left.

  Attributes:
    parts: ``(name, ids)`` for fixed text, ``(name, seam)`` for a slot; the last one is the answer's slot.
    end: ids that close the answer; the last one is the end token.
    tail: ids of the template after the end token.
    fixed_tokens: ids of the parts that are fixed text.
  """

  parts: tuple[tuple[str, Ids | Seam], ...]
  end: Ids
  tail: Ids
  fixed_tokens: int


class AnswerTooLong(UserError):
  """An answer for which a prompt has no room.

  Attributes:
    what: which one and by how much, without what to do about it.
  """

  def __init__(self, what: str):
    super().__init__(f"{what}; raise the limit or leave the example out")
    self.what = what


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
    end_ids: more ids that end an answer: those of the generator's own ``eos_token_id``, which may be a list.

  Raises:
    UserError: the tokenizer has no end token or no chat template, the chat template cannot be used (see
      :func:`radit_jax.data.templates.chat_pieces`), the template file lacks a field, the limits leave no room for a
      question, or an end id is not one of the tokenizer's.

  Attributes:
    config: as given.
    end_ids: each of these ends an answer: first the template's own end token, then the tokenizer's, then those given.
    hash: hex digest over style, template, markers, limits and tokenizer; two hashes never mix. Given end ids are not in
      it: they say when decoding stops and change no row, so scores and stores stay good.
  """

  def __init__(self, tokenizer: Any, config: PromptConfig, end_ids: Sequence[int] = ()) -> None:
    self.config = config
    self._tokenizer = tokenizer
    self._slots = SlotTokenizer(tokenizer)
    self._template = read_template(config.style) if config.style not in ("plain", "chat") else None
    self._titled = self._template is not None and "{title}" in self._template
    if config.style == "chat" and not getattr(tokenizer, "chat_template", None):
      raise UserError('prompt.style "chat": the tokenizer has no chat template; use "plain" or a template file')
    if config.style != "chat" and tokenizer.eos_token_id is None:
      raise UserError(f"prompt.style {config.style!r}: the tokenizer has no end token (eos_token)")
    self._layouts = {
      (closed, markers): self._layout(closed, markers)
      for closed in (False, True)
      for markers in itertools.starmap(
        Markers, itertools.product(range(len(QUESTION_MARKERS)), range(len(ANSWER_MARKERS)))
      )
      if config.style == "plain" or markers == FIXED_MARKERS
    }
    longest = max(self._layouts.values(), key=self._reserved)
    needed = self._reserved(longest) + config.max_passage_tokens + 1
    if needed > config.max_tokens:
      raise UserError(
        f"prompt.max_tokens {config.max_tokens}: max_passage_tokens {config.max_passage_tokens}, max_answer_tokens "
        f"{config.max_answer_tokens} and the template's {longest.fixed_tokens} tokens need at least {needed}"
      )
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    for i in end_ids:
      if not 0 <= i < vocabulary:
        raise UserError(
          f"end token id {i}: the tokenizer has {vocabulary} ids; correct eos_token_id in the generator's "
          "generation_config.json or config.json"
        )
    ends = [self._layouts[False, FIXED_MARKERS].end[-1], tokenizer.eos_token_id, *end_ids]
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

  def recipe(self) -> dict[str, Any]:
    """How any other engine makes these prompts, as JSON values; `radit_jax/data/exported_prompt.py` reads it.

    Returns:
      - ``style``: "plain" (with the markers of evaluation), "chat" or "file";
      - ``with_passage`` and ``closed_book``: a prompt up to its answer, each piece ``{"text": ...}`` or
        ``{"slot": "passage" | "title" | "question"}``. The space before a slot goes where the slot's text is
        empty, and there is none at the prompt's end. Tokenised with its control tokens parsed, such a prompt has the
        ids that :meth:`render` gives;
      - ``passage``: "title_line_then_text" where the title, if there is one, stands on a line of its own in the
        passage's slot, "text" where it has a slot;
      - ``bos``: None where a row begins without one; else ``{"id", "text", "in_text"}``. Only where ``in_text`` is
        False must an engine put it in front;
      - ``end``: ``{"id", "text"}`` of each token that ends an answer, the one that training uses first;
      - ``limits``: in tokens, see :class:`radit_jax.config.PromptConfig`;
      - ``hash``: see above.
    """
    first = self._layouts[False, FIXED_MARKERS].parts[0][1]
    bos: dict[str, Any] | None = None
    bos_text: str | None = ""
    if not isinstance(first, Seam) and first[0] == self._tokenizer.bos_token_id:
      bos_text = self._bos_text()
      bos = {"id": first[0], "text": self._tokenizer.bos_token, "in_text": bos_text is not None}
    texts = {
      closed: exported_pieces([("bos", bos_text or ""), *self._pieces(closed, FIXED_MARKERS)[0][:-1]])
      for closed in (False, True)
    }
    return {
      "style": "file" if self._template is not None else self.config.style,
      "with_passage": texts[False],
      "closed_book": texts[True],
      "passage": "text" if self._titled else "title_line_then_text",
      "bos": bos,
      "end": [{"id": i, "text": self._tokenizer.decode([i])} for i in self.end_ids],
      "limits": {
        "max_tokens": self.config.max_tokens,
        "max_passage_tokens": self.config.max_passage_tokens,
        "max_answer_tokens": self.config.max_answer_tokens,
      },
      "hash": self.hash,
    }

  def _bos_text(self) -> str | None:
    """What stands for the bos token before a prompt's text, such that the ids are those of a row; None for nothing."""
    word = "radit"
    for text in ("", self._tokenizer.bos_token, self._tokenizer.bos_token + " "):
      same = []
      for closed in (False, True):
        whole = "".join(word if own is None else own for _, own in self._pieces(closed, FIXED_MARKERS)[0][:-1])
        parts = self._layouts[closed, FIXED_MARKERS].parts[:-1]
        ids = self._slots.ids((seam, word) for _, seam in parts if isinstance(seam, Seam))
        segments = _joined(parts, {name: ids[seam, word] for name, seam in parts if isinstance(seam, Seam)})
        same.append(self._slots.fixed(text + whole.removesuffix(" ")) == _ids(segments))
      if all(same):
        return text
    return None

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

  def check_answer(self, answer: str) -> None:
    """Refuses an answer that is too long, whatever question, passage and markers stand before it.

    Raises:
      AnswerTooLong: more tokens than ``max_answer_tokens``.
    """
    self.measure([("?", None, answer, None), ("?", Passage("", "", "."), answer, None)])

  def answer_tokens(self, answers: Sequence[str]) -> Int[np.ndarray, "n"]:
    """The limit under which each answer would be accepted, whatever question, passage and markers stand before it."""
    texts = [answer.strip() for answer in answers]
    ends = {(layout.parts[-1][1], len(layout.end)) for layout in self._layouts.values()}
    ids = self._slots.ids((seam, text) for seam, _ in ends if isinstance(seam, Seam) for text in texts)

    def needed(text: str) -> int:
      own = ((ids[seam, text], end) for seam, end in ends if isinstance(seam, Seam))
      return max(len(tokens) - shared + end - 1 for (tokens, shared), end in own)

    return np.array([needed(text) for text in texts], np.int64)

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
        markers; a category has its own, see :func:`radit_jax.data.templates.markers_of`.

    Returns:
      One row per request, in order.

    Raises:
      AnswerTooLong: an answer is longer than ``max_answer_tokens``.
    """
    layouts = [self._pick(request) for request in requests]
    asked = [(layout, r) for layout, r in zip(layouts, requests, strict=True) if r[0] is not None]
    ids = self._tokenize(asked)
    return [
      self._plain_text(r) if r[0] is None else self._assemble(x, r, ids) for x, r in zip(layouts, requests, strict=True)
    ]

  def render_text(self, text: str) -> list[Rendered]:
    """Plain text as rows without a background, whose every token is an answer token.

    Args:
      text: a longer one than ``max_tokens`` goes on in the next row; nothing of it is lost.

    Returns:
      Rows of the begin token, where the tokenizer has one, the text's tokens and, at its end, the end token. The first
      token of a row is predicted from nothing, so it is no answer token where there is no begin token.
    """
    tokenizer = self._tokenizer
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    ids = self._slots.unglued(Seam(PLAIN), text.strip())
    if not ids:
      raise UserError("a plain text without a token; leave it out")
    room = self.config.max_tokens - len(bos)
    whole = ids + end
    rows = []
    for start in range(0, len(whole), room):
      own = whole[start : start + room]
      closing = end if start + room >= len(whole) else ()
      segments = [("bos", bos), ("answer", own[: len(own) - len(closing)]), ("end", closing)]
      segments = [(name, part) for name, part in segments if part]
      rows.append(Rendered(tuple(segments), bos + own, 1, len(bos) + len(own)))
    return rows

  def _plain_text(self, request: Request) -> Rendered:
    """The first row of a plain text; what does not fit counts as cut from its passage."""
    first, *more = self.render_text(request[2] or "")
    return dataclasses.replace(first, cut_passage_tokens=sum(r.answer_end - r.answer_start for r in more))

  def measure(self, requests: Sequence[Request]) -> Lengths:
    """Lengths with the markers that make each row longest: what a batch plan needs before any marker is drawn.

    Args:
      requests: as for :meth:`render_many`; marker seeds are not looked at.

    Raises:
      AnswerTooLong: an answer is longer than ``max_answer_tokens``.
    """
    tokens, answers, passages, questions, begin_tokens, keys = np.zeros((6, len(requests)), np.int64)
    out = Lengths(tokens, answers, passages, questions, Prefixes(begin_tokens, keys))
    begins: list[Ids | None] = [None] * len(requests)
    for i, request in enumerate(requests):
      if request[0] is None:
        row = self._plain_text(request)
        out.tokens[i], out.answer_tokens[i] = len(row.tokens), row.answer_end - row.answer_start
        out.cut_passage_tokens[i] = row.cut_passage_tokens
    # Layouts with the same seams differ in fixed text only: of each such group the longest will do.
    groups: dict[Any, _Layout] = {}
    for (closed, _), layout in self._layouts.items():
      key = (closed, tuple(seam for _, seam in layout.parts if isinstance(seam, Seam)))
      groups[key] = max(layout, groups.get(key, layout), key=lambda x: x.fixed_tokens)
    for (closed, *_), layout in groups.items():
      chosen = [i for i, r in enumerate(requests) if (r[1] is None) == closed and r[0] is not None]
      ids = self._tokenize((layout, requests[i]) for i in chosen)
      for i in chosen:
        row = self._assemble(layout, requests[i], ids)
        out.tokens[i] = max(out.tokens[i], len(row.tokens))
        out.answer_tokens[i] = row.answer_end - row.answer_start
        out.cut_passage_tokens[i] = row.cut_passage_tokens
        out.cut_question_tokens[i] = max(out.cut_question_tokens[i], row.cut_question_tokens)
        # Markers stand behind the passage, but its last token may take in some of what follows.
        begins[i] = common_prefix([begin for begin in (begins[i], row.context) if begin is not None])
    for i, begin in enumerate(begins):
      if begin:
        out.prefixes.tokens[i], out.prefixes.keys[i] = len(begin), prefix_key(begin)
    return out

  def _reserved(self, layout: _Layout) -> int:
    """Tokens of a row that are neither passage nor question."""
    return layout.fixed_tokens + self.config.max_answer_tokens + 1 + len(layout.tail)

  def _pick(self, request: Request) -> _Layout:
    _, passage, _, seed = request
    markers = FIXED_MARKERS
    if seed is not None and self.config.style == "plain":
      markers = seed if isinstance(seed, Markers) else draw_markers(seed)
    return self._layouts[passage is None, markers]

  def _text(self, name: str, request: Request) -> str:
    question, passage, answer, _ = request
    if name == "question":
      return (question or "").strip()
    if name == "answer":
      return (answer or "").strip()
    if passage is None:
      return ""
    if name == "title":
      return passage.title.strip()
    return passage.text.strip() if self._titled else passage.full_text.strip()

  def _tokenize(self, rows: Iterable[tuple[_Layout, Request]]) -> dict[tuple[Seam, str], SlotIds]:
    """Ids of every (seam, text) that occurs in a slot."""
    wanted = {
      (seam, self._text(name, request)): None
      for layout, request in rows
      for name, seam in layout.parts
      if isinstance(seam, Seam)
    }
    return self._slots.ids(wanted)

  def _assemble(self, layout: _Layout, request: Request, ids: dict[tuple[Seam, str], SlotIds]) -> Rendered:
    config = self.config
    answer = request[2]
    slots: dict[str, SlotIds] = {}
    block, cut_passage = 0, 0
    for name, seam in layout.parts:
      if not isinstance(seam, Seam):
        continue
      own, shared = ids[seam, self._text(name, request)]
      room = config.max_passage_tokens - block
      if name in ("title", "passage"):
        if len(own) - shared > room:
          own, shared = self._slots.unglued(seam, self._text(name, request)), 0
          cut_passage += max(0, len(own) - room)
          own = own[:room]
        block += len(own) - shared
      slots[name] = own, shared
    own, shared = slots["question"]
    cut_question = max(0, len(own) - shared - (config.max_tokens - self._reserved(layout) - block))
    slots["question"] = own[cut_question:], shared
    if answer is not None:
      own, shared = slots["answer"]
      if len(own) - shared + len(layout.end) > config.max_answer_tokens + 1:
        raise AnswerTooLong(
          f"answer {_shorten(answer)!r} has {len(own) - shared + len(layout.end) - 1} tokens, "
          f"--prompt.max-answer-tokens is {config.max_answer_tokens}"
        )
    segments = _joined(layout.parts[:-1], slots)
    start = end = sum(len(s) for _, s in segments)
    if answer is not None:
      own, shared = slots["answer"]
      segments += [("answer", own), ("end", layout.end[shared:])]
      end += len(own) + len(layout.end) - shared
      if layout.tail:
        segments.append(("tail", layout.tail))
    return Rendered(tuple(segments), _ids(segments), start, end, cut_passage, cut_question)

  def _pieces(self, closed: bool, markers: tuple[int, int]) -> tuple[list[Piece], str]:
    """The template up to its answer, and the text after it."""
    if self.config.style == "chat":
      return chat_pieces(self._tokenizer, closed)
    if self._template is not None:
      return file_pieces(self._template, closed)
    return plain_pieces(closed, markers), ""

  def _layout(self, closed: bool, markers: tuple[int, int]) -> _Layout:
    tokenizer = self._tokenizer
    pieces, after = self._pieces(closed, markers)
    parts = self._slots.compile([*pieces, ("end", after)])
    closing = parts.pop()[1] if parts[-1][0] == "end" else ()
    assert not isinstance(closing, Seam)
    first = next((value[0] for _, value in parts if value and not isinstance(value, Seam)), None)
    bos = tokenizer.bos_token_id
    if self.config.style != "chat" and bos is not None and first != bos:
      parts.insert(0, ("bos", (bos,)))
    stop = next((i + 1 for i, token in enumerate(closing) if token in self._slots.control), None)
    if stop is None:
      if tokenizer.eos_token_id is None:
        raise UserError("the chat template has no end token after the assistant's words, nor has the tokenizer one")
      closing, stop = (*closing, tokenizer.eos_token_id), len(closing) + 1
    fixed = sum(len(value) for _, value in parts if not isinstance(value, Seam))
    return _Layout(tuple(parts), closing[:stop], closing[stop:], fixed)


def _joined(parts: Sequence[tuple[str, Ids | Seam]], slots: dict[str, SlotIds]) -> list[tuple[str, Ids]]:
  """Segments of a row up to its answer."""
  segments: list[tuple[str, Ids]] = []
  shared = 0  # first ids of a fixed text that the slot before it stands for
  for name, value in parts:
    if isinstance(value, Seam):
      own, shared = slots[name]
      segments.append((name, own))
    else:
      segments.append((name, value[shared:]))
      shared = 0
  return segments


def _ids(segments: Iterable[tuple[str, Ids]]) -> Ids:
  return tuple(itertools.chain.from_iterable(ids for _, ids in segments))


def _shorten(text: str) -> str:
  return text if len(text) <= 60 else text[:57] + "..."
