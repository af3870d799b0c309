"""Batches of arrays for the device, by step number: streams that resume anywhere."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Int

from radit_jax import hosts
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import PassageScores, RetrievedExample, RetrievedStore, ScoreStore
from radit_jax.data.groups import Prefixes, halves, whole
from radit_jax.data.packing import PackedBatch
from radit_jax.data.plan import PlannedBatch
from radit_jax.data.prompts import AnswerTooLong, Prompt, Rendered, Request
from radit_jax.data.rows import packed_to_batch, rows_to_batch, text_to_batch
from radit_jax.data.sources import Passage
from radit_jax.data.templates import Markers, markers_of
from radit_jax.data.tokenization import EncoderTokenizer
from radit_jax.errors import UserError
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch
from radit_jax.sharding import RowShare, total

__all__ = [
  "RowLengths",
  "lsr_batches",
  "own_request",
  "parallel_context_batches",
  "query_lengths",
  "row_lengths",
  "rows_to_batch",
  "text_to_batch",
]

B = TypeVar("B")
T = TypeVar("T")

# Examples rendered at once when only their lengths are wanted: bounds memory, and keeps tokenisation batched.
_MEASURED_AT_ONCE = 1024


class Embeddings(Protocol):
  """The part of an index that retriever training needs."""

  def embeddings(self, ids: Int[np.ndarray, "..."]) -> Float[np.ndarray, "... E"]:
    """Stored embeddings of rows of the passage store."""


@dataclasses.dataclass(frozen=True)
class RowLengths:
  """What a plan is made from, and what did not fit.

  Attributes:
    each: ``[n, K]`` int64, tokens of each row, whatever markers are drawn; 0 for a passage that is not there.
    answers: ``[n]`` int64, tokens of each example's answer with its end token.
    cut_passages: rows whose passage block was cut.
    cut_questions: rows whose question was cut.
    prefixes: how each row begins, whatever markers are drawn; None where that is not known.
  """

  each: Int[np.ndarray, "n K"]
  answers: Int[np.ndarray, "n"]
  cut_passages: int
  cut_questions: int
  prefixes: Prefixes | None = None

  @property
  def rows(self) -> Int[np.ndarray, "n"]:
    """Tokens of the longest row of each example, at least 1."""
    return np.maximum(self.each.max(axis=1), np.int64(1))

  @property
  def answer(self) -> int:
    """A where every row holds one prompt: the longest answer, rounded up to a multiple of 4."""
    return -(-int(self.answers.max(initial=0)) // 4) * 4


def row_lengths(
  retrieved: RetrievedStore, passages: PassageStore, prompt: Prompt, *, k: int, with_passages: bool
) -> RowLengths:
  """Renders every row once, for its length. Each of several processes reads its part of the examples.

  Args:
    retrieved: examples.
    passages: the store their rows refer to.
    prompt: renders the rows.
    k: passages per example, the best ones first.
    with_passages: False measures closed-book rows; an own context stays, as it is part of what is asked.

  Raises:
    UserError: an answer that is too long (its example named), or a passage store that is not the examples'.
  """
  check_passages(retrieved, passages, k, with_passages)
  each, begins, keys = np.zeros((3, len(retrieved), k if with_passages else 1), np.int64)
  answers = np.zeros(len(retrieved), np.int64)
  cut_passages = cut_questions = 0
  own = hosts.part(len(retrieved))
  for start in own[::_MEASURED_AT_ONCE]:
    examples = retrieved.many(range(start, min(start + _MEASURED_AT_ONCE, own.stop)))
    requests = _requests(examples, passages, k, with_passages, seed=None)
    lengths = with_names(prompt, prompt.measure, requests, examples, retrieved)
    real = [[request is not None for request in rows] for rows in requests]
    b, j = np.nonzero(np.array(real, bool))
    each[start + b, j] = lengths.tokens
    begins[start + b, j], keys[start + b, j] = lengths.prefixes.tokens, lengths.prefixes.keys
    np.maximum.at(answers, start + b, lengths.answer_tokens)
    cut_passages += int(np.count_nonzero(lengths.cut_passage_tokens))
    cut_questions += int(np.count_nonzero(lengths.cut_question_tokens))
  each, answers, begins, parts, cuts = total(
    (each, answers, begins, halves(keys), np.array([cut_passages, cut_questions]))
  )
  return RowLengths(each, answers, int(cuts[0]), int(cuts[1]), Prefixes(begins, whole(*parts)))


def with_names(
  prompt: Prompt,
  make: Callable[[list[Request]], T],
  requests: Sequence[Sequence[Request | None]],
  examples: Sequence[RetrievedExample],
  retrieved: RetrievedStore,
) -> T:
  """``make`` of all requests at once, those of absent passages left out; an error names the example it is about.

  An answer that is too long is told with how many there are, and with the limit that takes them all.
  """
  try:
    return make([request for rows in requests for request in rows if request is not None])
  except UserError:
    for example, rows in zip(examples, requests, strict=True):
      try:
        make([request for request in rows if request is not None])
      except AnswerTooLong as e:
        raise UserError(
          f"{retrieved.path}: question {example.id!r}: {e.what}; {_too_long(prompt, retrieved)}"
        ) from None
      except UserError as e:
        raise UserError(f"{retrieved.path}: question {example.id!r}: {e}") from None
    raise


def _too_long(prompt: Prompt, retrieved: RetrievedStore) -> str:
  """How many answers of a store are too long, and what to do. A pass of its own, over answers alone, and at an end."""
  longest = count = 0
  for start in range(0, len(retrieved), _MEASURED_AT_ONCE):
    examples = retrieved.many(range(start, min(start + _MEASURED_AT_ONCE, len(retrieved))))
    answers = [e.answers[0] for e in examples if e.searched or e.context is not None]  # a plain text has no limit
    tokens = prompt.answer_tokens(answers)
    count += int(np.count_nonzero(tokens > prompt.config.max_answer_tokens))
    longest = max(longest, int(tokens.max(initial=0)))
  return (
    f"{count} of {len(retrieved)} examples have such answers, the longest has {longest} tokens; "
    f"--prompt.max-answer-tokens {longest} takes all"
  )


def parallel_context_batches(
  retrieved: RetrievedStore,
  passages: PassageStore,
  prompt: Prompt,
  plan: Sequence[PlannedBatch],
  *,
  k: int,
  with_passages: bool,
  batch_size: int,
  answer_tokens: int,
  seed: int | None = None,
  start: int = 0,
  share: RowShare = RowShare(),
) -> Iterable[tuple[tuple[str, ...], ParallelContextBatch]]:
  """Batches of a plan, from step ``start`` on: the same as skipping the first ``start`` batches.

  Args:
    retrieved: examples.
    passages: the store their rows refer to.
    prompt: renders the rows.
    plan: position is the step number; made from :func:`row_lengths` with the same ``k`` and ``with_passages``. Where
      its batches are :class:`radit_jax.data.packing.PackedBatch`, rows hold several prompts each.
    k: passages per example, the best ones first.
    with_passages: False gives one closed-book row per example, K = 1; an own context stays.
    batch_size: B over all hosts; a planned batch that is shorter is filled with absent examples.
    answer_tokens: A of rows with one prompt each, see :class:`RowLengths`; packed batches bring their own.
    seed: draws the prompts' markers anew in each epoch; None keeps the fixed ones of evaluation.
    start: first step.
    share: of this process, see :func:`radit_jax.sharding.row_share`; by default the whole batch.

  Returns:
    An iterable of ``(example ids, batch)`` with the examples and rows of the share; absent examples have no id.

  Raises:
    UserError: a batch size that the parts do not divide, or a passage store that is not the examples'.
  """
  check_passages(retrieved, passages, k, with_passages)
  width = k if with_passages else 1

  def make_packed(
    examples: list[RetrievedExample], planned: PackedBatch, markers: tuple[int, int] | None, first: int, size: int
  ) -> ParallelContextBatch:
    """Examples of a part and rows of the same part, which may hold prompts of examples of another one."""
    per_example = len(planned.rows) / batch_size
    rows = planned.rows[round(first * per_example) : round((first + size) * per_example)]
    own = range(first, first + len(examples))
    others = sorted({b for row in rows for group in row for b, _ in group if b not in own})
    everyone = [*examples, *retrieved.many([planned.examples[b] for b in others])]
    wanted = dict(zip([*own, *others], _requests(everyone, passages, k, with_passages, seed=markers), strict=True))
    slots = [at for row in rows for group in row for at in group]
    rendered = iter(prompt.render_many([r for b, j in slots if (r := wanted[b][j]) is not None]))
    mask = np.zeros((size, width), bool)
    for b in own:
      mask[b - first] = [request is not None for request in wanted[b]]
    return packed_to_batch(
      [[[(b * width + j, next(rendered)) for b, j in group] for group in row] for row in rows],
      mask,
      num_tokens=planned.bucket_tokens,
      num_answer_tokens=planned.answer_tokens,
      share=planned.shares,
    )

  def make(examples: list[RetrievedExample], planned: PlannedBatch, first: int, size: int) -> ParallelContextBatch:
    markers = None if seed is None else (seed, planned.epoch)
    if isinstance(planned, PackedBatch):
      return make_packed(examples, planned, markers, first, size)
    requests = _requests(examples, passages, k, with_passages, seed=markers)
    rendered = iter(prompt.render_many([request for rows in requests for request in rows if request is not None]))
    filled: list[list[Rendered | None]] = [[r and next(rendered) for r in rows] for rows in requests]
    filled += [[None] * width for _ in range(size - len(examples))]
    return rows_to_batch(
      filled, num_tokens=planned.bucket_tokens, num_answer_tokens=answer_tokens, first_slot=first * width
    )

  return _stream(retrieved, plan, make, batch_size, start, share)


def query_lengths(
  retrieved: RetrievedStore, tokenizer: Any, *, max_tokens: int, prompt: str = ""
) -> Int[np.ndarray, "n"]:
  """Tokens of each example's query as the encoder reads it, ``[n]`` int64. Each of several processes reads its part."""
  encode = EncoderTokenizer(tokenizer, max_tokens, prompt)
  own, lengths = hosts.part(len(retrieved)), np.zeros(len(retrieved), np.int64)
  rows, _ = encode([example.query for example in retrieved.many(own)])
  lengths[own.start : own.stop] = [len(row) for row in rows]
  return total(lengths)


def lsr_batches(
  retrieved: RetrievedStore,
  scores: ScoreStore | None,
  index: Embeddings,
  tokenizer: Any,
  plan: Sequence[PlannedBatch],
  *,
  k: int,
  max_tokens: int,
  batch_size: int,
  prompt: str = "",
  gold_first: bool = False,
  negatives: Mapping[str, Sequence[int]] | None = None,
  own_scores: bool = False,
  shuffle_teacher: int | None = None,
  start: int = 0,
  share: RowShare = RowShare(),
) -> Iterable[tuple[tuple[str, ...], LSRBatch]]:
  """Batches of a plan for retriever tuning, from step ``start`` on.

  Args:
    retrieved: examples.
    scores: the teacher's; None leaves log-likelihoods and counts at zero.
    index: gives the passages' embeddings.
    tokenizer: of the query encoder.
    plan: position is the step number; made from :func:`query_lengths`.
    k: passages per question, the best ones first.
    max_tokens: longest query.
    batch_size: B over all hosts; a planned batch that is shorter is filled with absent examples.
    prompt: put in front of every query.
    gold_first: puts the first gold passage before the k - 1 best others, so that every question with a gold passage has
      a positive one; the retriever may not have found it. Not with ``scores``, which know the retrieved ones only.
    negatives: with ``gold_first``: rows of each question that take the place of those retrieved, by its id; a question
      without any has its gold passage alone.
    own_scores: the scores that the examples were retrieved with take the place of the teacher's log-likelihoods, each
      as of one token. Not with ``scores``.
    shuffle_teacher: seed of the control: the teacher's scores are permuted within each question, the same way in every
      epoch.
    start: first step.
    share: of this process, see :func:`radit_jax.sharding.row_share`; by default the whole batch.

  Returns:
    An iterable of ``(example ids, batch)`` with the examples of the share. An absent example has no passage, and one
    visible token, so that no attention runs over nothing.

  Raises:
    UserError: a batch size that the parts do not divide; k above the passages scored; an example without scores.
    ValueError: two of ``scores``, ``own_scores`` and ``gold_first``.
  """
  if (scores is not None) + own_scores + gold_first > 1:
    raise ValueError("scores, own_scores and gold_first: at most one (a gold passage need not have been scored)")
  if scores is not None and k > scores.manifest["k"]:
    raise UserError(f"k = {k} passages per question, {scores.path} holds scores of {scores.manifest['k']}; lower --k")
  encode = EncoderTokenizer(tokenizer, max_tokens, prompt)

  def make(examples: list[RetrievedExample], planned: PlannedBatch, first: int, size: int) -> LSRBatch:
    tokens = np.zeros((size, planned.bucket_tokens), np.int32)
    mask = np.zeros((size, planned.bucket_tokens), bool)
    mask[:, 0] = True
    for b, ids in enumerate(encode([example.query for example in examples])[0]):
      tokens[b, : len(ids)] = ids
      mask[b, : len(ids)] = True
    rows = np.full((size, k), -1, np.int32)
    positive = np.zeros((size, k), bool)
    log_likelihood = np.zeros((size, k), np.float32)
    num_tokens = np.zeros((size, k), np.int32)
    for b, example in enumerate(examples):
      rows[b] = _passage_rows(example, k, gold_first, negatives)
      positive[b] = np.isin(rows[b], example.gold_rows) & (rows[b] >= 0)
    teachers: list[PassageScores] = []
    if scores is not None:
      teachers = scores.of([example.id for example in examples])
    elif own_scores:
      teachers = [PassageScores(e.id, e.scores, np.ones(len(e.scores), np.int32), e.valid) for e in examples]
    for b, teacher in enumerate(teachers):
      rows[b, ~teacher.valid[:k]] = -1
      order = _order(teacher, k, shuffle_teacher)
      log_likelihood[b], num_tokens[b] = teacher.log_likelihood[order], teacher.num_tokens[order]
    real = rows >= 0
    embeddings = np.asarray(index.embeddings(np.where(real, rows, 0)), np.float32)
    return LSRBatch(
      query_tokens=tokens,
      query_mask=mask,
      passage_embeddings=np.where(real[..., None], embeddings, np.float32(0)),
      log_likelihood=np.where(real, log_likelihood, np.float32(0)),
      num_tokens=np.where(real, num_tokens, 0),
      context_mask=real,
      positive=positive & real,
      passage_rows=rows,
    )

  return _stream(retrieved, plan, make, batch_size, start, share)


def _stream(
  retrieved: RetrievedStore,
  plan: Sequence[PlannedBatch],
  make: Callable[[list[RetrievedExample], PlannedBatch, int, int], B],
  batch_size: int,
  start: int,
  share: RowShare,
) -> Iterable[tuple[tuple[str, ...], B]]:
  """``make`` over this process's share of each planned batch, two batches ahead in one thread."""
  if batch_size % share.of:
    raise UserError(f"batch_size {batch_size}: must be a multiple of the {share.of} parts that rows are split into")

  def load(planned: PlannedBatch) -> tuple[tuple[str, ...], B]:
    if len(planned.examples) > batch_size:
      raise ValueError(f"a planned batch of {len(planned.examples)} examples, batch_size is {batch_size}")
    ids: list[str] = []
    made: list[B] = []
    for span in share.ranges(batch_size):
      examples = retrieved.many(planned.examples[span.start : span.stop])
      ids += [example.id for example in examples]
      made.append(make(examples, planned, span.start, len(span)))
    return tuple(ids), _joined(made)

  return ahead(plan, load, start)


def ahead(plan: Sequence[Any], load: Callable[[Any], T], start: int = 0) -> Iterable[T]:
  """``load`` of each entry of a plan from ``start`` on, two of them ahead of what is asked for, in one thread."""
  import grain

  dataset = grain.MapDataset.source(plan).map(load)[start:]
  # One thread: rendering holds the interpreter's lock, and the device's own threads want the cores.
  return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _joined(batches: list[B]) -> B:
  """One batch of several: a process whose rows do not lie beside one another makes each part by itself."""
  import jax

  return batches[0] if len(batches) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *batches)


def check_passages(retrieved: RetrievedStore, passages: PassageStore, k: int, with_passages: bool) -> None:
  """Refuses another passage store than the examples', and more passages than were retrieved."""
  made_from = retrieved.manifest.get("passages")
  if made_from != passages.fingerprint:
    raise UserError(
      f"{retrieved.path}: retrieved from the passage store {made_from}, but {passages.path} is {passages.fingerprint}; "
      "run `radit retrieve` again"
    )
  if with_passages and k > retrieved.manifest["k"]:
    raise UserError(f"k = {k} passages per example, {retrieved.path} holds {retrieved.manifest['k']}; lower --k")


def _requests(
  examples: Sequence[RetrievedExample],
  passages: PassageStore,
  k: int,
  with_passages: bool,
  seed: tuple[int, int] | None,
) -> list[list[Request | None]]:
  """Per example, what to render in each slot; None for a passage that is not there."""
  markers = [markers_of(e.category, None if seed is None else (*seed, e.id)) for e in examples]
  width = k if with_passages else 1
  rows = [[int(r) if v else -1 for r, v in zip(e.passage_rows[:width], e.valid[:width], strict=True)] for e in examples]
  wanted = sorted({r for own in rows for r in own if r >= 0}) if with_passages else []
  found = dict(zip(wanted, passages.many(wanted), strict=True)) if wanted else {}

  def slots(e: RetrievedExample, markers: Markers, own: list[int]) -> list[Request | None]:
    if not e.searched:
      return [own_request(e, markers), *[None] * (width - 1)]
    if not with_passages:
      return [(e.question, None, e.answers[0], markers)]
    return [(e.question, found[r], e.answers[0], markers) if r >= 0 else None for r in own]

  return [slots(*of) for of in zip(examples, markers, rows, strict=True)]


def own_request(example: RetrievedExample, markers: Markers) -> Request:
  """The one row of an example that nothing was searched for: with its own context, or plain text."""
  if example.context is None:
    return None, None, example.answers[0], None
  return example.question, Passage("", "", example.context), example.answers[0], markers


def contexts_of(examples: Sequence[RetrievedExample], passages: PassageStore, k: int) -> list[list[Request | None]]:
  """Per example, what to render in each of k slots with the fixed markers of evaluation; None where nothing is."""
  return _requests(examples, passages, k, True, seed=None)


def _passage_rows(
  example: RetrievedExample, k: int, gold_first: bool, negatives: Mapping[str, Sequence[int]] | None
) -> list[int]:
  """Rows of k passages, -1 where there is none."""
  rows = [int(r) if v else -1 for r, v in zip(example.passage_rows[:k], example.valid[:k], strict=True)]
  if negatives is not None:
    rows = [*negatives.get(example.id, ())]
  if gold_first and example.gold_rows:
    gold = example.gold_rows[0]
    rows = [gold, *(r for r in rows if r != gold)]
  return [*rows[:k], *[-1] * (k - len(rows))]


def _order(teacher: PassageScores, k: int, seed: int | None) -> Int[np.ndarray, "k"]:
  """Positions the teacher's scores are read from: as they are, or permuted among the real passages."""
  order = np.arange(k)
  if seed is not None:
    real = np.flatnonzero(teacher.valid[:k])
    digest = hashlib.sha256(repr((seed, teacher.id)).encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "big")).random_raw(len(real))
    order[real] = real[np.argsort(bits, kind="stable")]
  return order
