"""`radit inspect`: what the model really sees, and how retriever and language model weigh each passage."""

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from radit_jax import files, losses, sharding
from radit_jax.config import InspectConfig
from radit_jax.data.batches import own_request, parallel_context_batches, row_lengths
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import PassageScores, RetrievedExample, RetrievedStore, ScoreStore
from radit_jax.data.mixture import mixture_of
from radit_jax.data.plan import RunPlan, row_multiple
from radit_jax.data.prompts import Prompt, Rendered
from radit_jax.data.rows import rows_to_batch
from radit_jax.data.sources import Passage
from radit_jax.data.templates import markers_of
from radit_jax.errors import UserError
from radit_jax.models.pretrained import fingerprint, load_generator, load_tokenizer
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch, answer_log_likelihoods
from radit_jax.progress import Progress, silent
from radit_jax.training.step import PairBatch
from radit_jax.verbs.inspect_text import (
  Mark,
  batch_lines,
  example_lines,
  lsr_batch_lines,
  pair_batch_lines,
  ranking_lines,
)


@dataclasses.dataclass(frozen=True)
class InspectResult:
  """What was asked for, as data.

  Attributes:
    what: "batch", "example" or "ranking".
    data: everything shown, as JSON types.
    json: print the data and not the text.
  """

  what: str
  data: dict[str, Any]
  json: bool = False

  def text(self, *, colour: bool = False) -> str:
    """For people; answers in green, or in ⟦ ⟧ without colour."""
    mark: Mark = (lambda s: f"\x1b[1;32m{s}\x1b[0m") if colour else (lambda s: f"⟦{s}⟧")
    lines = {"batch": batch_lines, "example": example_lines, "ranking": ranking_lines}[self.what]
    return "\n".join(lines(self.data, mark))

  def summary(self) -> str:
    """For the command line: colour on a terminal only."""
    if self.json:
      return json.dumps(self.data, ensure_ascii=False)
    return self.text(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def inspect(config: InspectConfig, *, progress: Progress = silent) -> InspectResult:
  """Shows a training batch, an example's rows, or the ranking of an example's passages.

  Args:
    config: see :class:`radit_jax.config.InspectConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved or scored, an id that is not in the store, stores that do not fit.
  """
  retrieved, passages = RetrievedStore(config.retrieved), PassageStore(config.passages)
  if config.k > retrieved.manifest["k"]:
    raise UserError(f"k = {config.k} passages, {config.retrieved} holds {retrieved.manifest['k']}; lower --k")
  passages = version_of(retrieved.manifest["passages"], passages, config.retrieved)
  tokenizer = load_tokenizer(config.generator)
  prompt = Prompt(tokenizer, config.prompt)
  if config.what == "batch":
    data = _first_batch(config, retrieved, passages, prompt, tokenizer)
    return InspectResult("batch", data, config.json)
  example = _find(retrieved, config.example)
  places = [j for j in range(config.k) if example.valid[j]]
  if not places:
    raise UserError(f"{config.retrieved}: question {example.id!r} has no passage")
  markers = markers_of(example.category, (config.seed, 0, example.id))  # those of the first epoch
  try:
    if example.searched:
      found = passages.many(example.passage_rows[j] for j in places)
      rendered = prompt.render_many([(example.question, p, example.answers[0], markers) for p in found])
    else:
      found = [Passage("", "", example.context or "")]
      rendered = prompt.render_many([own_request(example, markers)])
  except UserError as e:
    raise UserError(f"{config.retrieved}: question {example.id!r}: {e}") from None
  data = {
    "id": example.id,
    "question": example.question,
    "answers": list(example.answers),
    "query": example.query,
    "passages": [
      {
        "rank": j + 1,
        "row": int(example.passage_rows[j]),
        "id": p.id,
        "title": p.title,
        "text": p.text,
        "gold": int(example.passage_rows[j]) in example.gold_rows,
        "score": float(example.scores[j]),
      }
      for j, p in zip(places, found, strict=True)
    ],
  }
  if config.what == "example":
    for passage, row in zip(data["passages"], rendered, strict=True):
      passage["prompt"] = _rendered_data(row, tokenizer)
    data["limits"] = dataclasses.asdict(config.prompt)
  else:
    _add_ranking(data, config, retrieved, example, places, rendered)
  return InspectResult(config.what, data, config.json)


def describe_batch(
  ids: Sequence[str], batch: ParallelContextBatch | LSRBatch | PairBatch, tokenizer: Any, stem: str | os.PathLike[str]
) -> None:
  """Writes a training batch as ``<stem>.json`` and ``<stem>.txt``, read back from the arrays the model gets.

  Args:
    ids: of the batch's examples; absent examples at its end have none.
    batch: of NumPy arrays, one row per slot.
    tokenizer: the one the rows were made with.
    stem: path without suffix.
  """
  if isinstance(batch, LSRBatch):
    data, lines = _lsr_batch_data(ids, batch, tokenizer), lsr_batch_lines
  elif isinstance(batch, PairBatch):
    data, lines = _pair_batch_data(ids, batch, tokenizer), pair_batch_lines
  else:
    data, lines = _batch_data(ids, batch, tokenizer), batch_lines
  path = files.location(stem)
  text = "\n".join(lines(data, lambda s: f"⟦{s}⟧"))
  files.write_atomic(path.with_name(path.name + ".json"), json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
  files.write_atomic(path.with_name(path.name + ".txt"), text + "\n")


# Gathering: everything as JSON types.


def _find(retrieved: RetrievedStore, name: str | None) -> RetrievedExample:
  if name is None:
    return retrieved[0]
  known = []
  for example in retrieved:
    if example.id == name:
      return example
    known.append(example.id)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
  raise UserError(f"{retrieved.path}: no example {name!r}; the nearest id is {near!r}")


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
  return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _first_batch(
  config: InspectConfig, retrieved: RetrievedStore, passages: PassageStore, prompt: Prompt, tokenizer: Any
) -> dict[str, Any]:
  """The batch that `train-generator` starts with, given the same seed, batch size, k and prompt; unpacked."""
  lengths = row_lengths(retrieved, passages, prompt, k=config.k, with_passages=True)
  multiple = row_multiple(jax.default_backend())
  mixture = mixture_of(retrieved.manifest)
  plan = RunPlan(
    lengths.rows,
    batch_size=config.batch_size,
    seed=config.seed,
    bucket_multiple=multiple,
    order=None if mixture is None else mixture.order(config.seed),
  )
  batches = parallel_context_batches(
    retrieved,
    passages,
    prompt,
    plan,
    k=config.k,
    with_passages=True,
    batch_size=config.batch_size,
    answer_tokens=lengths.answer,
    seed=config.seed,
  )
  cut = {"rows": len(retrieved) * config.k, "passages": lengths.cut_passages, "questions": lengths.cut_questions}
  return {**_batch_data(*next(iter(batches)), tokenizer), "cut_in_the_whole_store": cut, "row_tokens": plan.buckets}


def _batch_data(ids: Sequence[str], batch: ParallelContextBatch, tokenizer: Any) -> dict[str, Any]:
  """Prompts as they lie in the arrays, alone in a row or beside others: nothing is rendered again."""
  num_rows, width = batch.tokens.shape
  k = batch.context_mask.shape[1]
  examples = []
  for b, name in enumerate(ids):
    rows = [_slot_data(batch, b * k + j, tokenizer) if batch.context_mask[b, j] else None for j in range(k)]
    examples.append({"id": name, "rows": rows})
  real = batch.segment_ids != 0
  return {
    "rows": num_rows,
    "tokens_per_row": width,
    "answer_tokens_per_row": batch.answer_tokens.shape[1],
    "real_tokens": int(real.sum()),
    "answer_tokens": int((batch.answer_slot >= 0).sum()),
    "padding": round(1 - float(real.mean()), 4),
    "examples": examples,
  }


def _slot_data(batch: ParallelContextBatch, slot: int, tokenizer: Any) -> dict[str, Any]:
  [row, *_], answers = np.nonzero(batch.answer_slot == slot)
  at = batch.answer_positions[row, answers]
  segments = [batch.segment_ids[row, at[0]]]
  if batch.prefix_ids is not None and batch.prefix_ids[row, at[0]]:
    segments.append(batch.prefix_ids[row, at[0]])  # stands before it, if other prompts between them
  own = np.flatnonzero(np.isin(batch.segment_ids[row], segments))
  tokens = batch.tokens[row, own]
  mask = np.isin(own, at + 1).astype(np.int32)  # an answer position is that of the token before
  return _tokens_data(tokens.tolist(), mask.tolist(), tokenizer)


def _tokens_data(tokens: list[int], mask: list[int], tokenizer: Any) -> dict[str, Any]:
  start = mask.index(1) if 1 in mask else len(mask)
  end = start + sum(mask)
  return {
    "tokens": tokens,
    "pieces": [_decode(tokenizer, [t]) for t in tokens],
    "answer_mask": mask,
    "text": [_decode(tokenizer, part) for part in (tokens[:start], tokens[start:end], tokens[end:])],
  }


def _rendered_data(row: Rendered, tokenizer: Any) -> dict[str, Any]:
  mask = [int(row.answer_start <= i < row.answer_end) for i in range(len(row.tokens))]
  segments = [{"name": name, "text": _decode(tokenizer, ids), "tokens": list(ids)} for name, ids in row.segments if ids]
  cut = {"cut_passage_tokens": row.cut_passage_tokens, "cut_question_tokens": row.cut_question_tokens}
  return {**_tokens_data(list(row.tokens), mask, tokenizer), "segments": segments, **cut}


def _lsr_batch_data(ids: Sequence[str], batch: LSRBatch, tokenizer: Any) -> dict[str, Any]:
  examples = []
  for b, name in enumerate(ids):
    passages = [
      {
        "row": int(batch.passage_rows[b, j]),
        "gold": bool(batch.positive[b, j]),
        "log_likelihood": float(batch.log_likelihood[b, j]),
        "num_tokens": int(batch.num_tokens[b, j]),
      }
      for j in np.flatnonzero(batch.context_mask[b])
    ]
    query = _real_tokens(batch.query_tokens[b], batch.query_mask[b], tokenizer)
    examples.append({"id": name, "query": query, "passages": passages})
  return {"queries": batch.query_tokens.shape[0], "tokens_per_query": batch.query_tokens.shape[1], "examples": examples}


def _pair_batch_data(ids: Sequence[str], batch: PairBatch, tokenizer: Any) -> dict[str, Any]:
  examples = [
    {
      "id": name,
      "query": _real_tokens(batch.query_tokens[b], batch.query_mask[b], tokenizer),
      "passage": _real_tokens(batch.passage_tokens[b], batch.passage_mask[b], tokenizer),
    }
    for b, name in enumerate(ids)
  ]
  pairs, width = batch.query_tokens.shape
  return {
    "pairs": pairs,
    "tokens_per_query": width,
    "tokens_per_passage": batch.passage_tokens.shape[1],
    "examples": examples,
  }


def _real_tokens(tokens: Any, mask: Any, tokenizer: Any) -> dict[str, Any]:
  ids = tokens[mask].tolist()
  return {"tokens": ids, "text": _decode(tokenizer, ids)}


def _add_ranking(
  data: dict[str, Any],
  config: InspectConfig,
  retrieved: RetrievedStore,
  example: RetrievedExample,
  places: list[int],
  rendered: list[Rendered],
) -> None:
  """Adds p_R, p_LSR and the log-likelihood to each passage: over the k passages shown, as training computes them."""
  if config.scores is not None:
    store = ScoreStore(config.scores, retrieved=retrieved)
    if config.k > store.manifest["k"]:
      raise UserError(f"k = {config.k} passages, {config.scores} holds scores of {store.manifest['k']}; lower --k")
    teacher: PassageScores = store.of([example.id])[0]
    likelihoods, num_tokens = jnp.asarray(teacher.log_likelihood[places]), jnp.asarray(teacher.num_tokens[places])
    data["teacher"] = store.manifest["generator"]
  else:
    mesh = sharding.make_mesh(config.mesh)
    generator = load_generator(config.generator, mesh=mesh)
    absent = sharding.round_up_rows(len(rendered), mesh) - len(rendered)
    multiple = row_multiple(jax.default_backend())
    batch = rows_to_batch(
      [[row] for row in [*rendered, *[None] * absent]],  # a passage an example: devices share them, however few
      num_tokens=-(-max(len(r.tokens) for r in rendered) // multiple) * multiple,
      num_answer_tokens=max(len(r.answer_tokens) for r in rendered),
    )
    with jax.set_mesh(mesh):
      out = sharding.gather(jax.jit(answer_log_likelihoods)(generator, sharding.place_rows(batch, mesh)))
    likelihoods, num_tokens = (jnp.asarray(x[: len(rendered), 0]) for x in (out.log_likelihood, out.num_tokens))
    data["teacher"] = fingerprint(config.generator)
  scores, temperature = jnp.asarray(example.scores[places]), retrieved.manifest["score_temperature"]
  log_p = losses.retriever_log_probs(scores, temperature=temperature)
  log_q = losses.lsr_log_targets(likelihoods, num_tokens, temperature=config.lm_temperature, score=config.score)
  for i, passage in enumerate(data["passages"]):
    passage["p_r"], passage["p_lsr"] = float(np.exp(log_p[i])), float(np.exp(log_q[i]))
    passage["log_likelihood"], passage["num_tokens"] = float(likelihoods[i]), int(num_tokens[i])
  data["score_temperature"], data["lm_temperature"] = temperature, config.lm_temperature
  data["score_kind"] = config.score
  data["lsr_loss"] = float(losses.lsr_loss(scores, log_q, temperature=temperature))
