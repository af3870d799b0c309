"""`radit rerank`: of the passages retrieved, the best ones by a tuned query encoder or by a cross-encoder."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from radit_jax import files, hosts, runs
from radit_jax.config import RerankConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import first_hit, hit_figures
from radit_jax.models.pretrained import (
  encoder_temperature,
  fingerprint,
  load_cross_encoder,
  load_encoder,
  load_tokenizer,
  passage_encoder_of,
)
from radit_jax.models.sentence_files import cross_encoder_temperature
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.exact import score_pairs
from radit_jax.retrieval.index import StoredIndex, load_index
from radit_jax.retrieval.rerank import best_first, cross_scores
from radit_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class RerankResult:
  """What the new order is worth.

  Attributes:
    retrieved: retrieved-example store.
    num_questions: questions in it.
    before: k -> share of the questions with a right passage among the first k, as they came.
    recall: the same in the new order.
    mrr_before: mean reciprocal rank of the first right passage among those kept, as they came.
    mrr: the same in the new order.
  """

  retrieved: str
  num_questions: int
  before: dict[int, float]
  recall: dict[int, float]
  mrr_before: float
  mrr: float

  def summary(self) -> str:
    """One line for the command line."""
    recall = ", ".join(f"recall@{k} {self.before[k]:.1%} -> {value:.1%}" for k, value in self.recall.items())
    return f"{self.num_questions} questions, {recall}, MRR {self.mrr_before:.3f} -> {self.mrr:.3f}: {self.retrieved}"


def rerank(config: RerankConfig, *, progress: Progress = silent) -> RerankResult:
  """Scores the passages of a retrieved-example store anew, and stores the k best of each question with their scores.

  Args:
    config: see :class:`radit_jax.config.RerankConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the passages retrieved; stores or an index of other passages; an index of another encoder; a
      score that is not finite.
  """
  store = PassageStore(config.passages)
  retrieved = RetrievedStore(config.retrieved)
  store = version_of(retrieved.manifest["passages"], store, config.retrieved)
  if config.k > retrieved.manifest["k"]:
    raise UserError(f"k = {config.k} passages to keep, {config.retrieved} holds {retrieved.manifest['k']} per question")
  inputs = {"retrieved": retrieved.fingerprint, "passages": store.fingerprint}
  index: StoredIndex | None = None
  if config.cross_encoder is not None:
    scored_by = {"cross_encoder": fingerprint(config.cross_encoder)}
    temperature = cross_encoder_temperature(config.cross_encoder)
    inputs |= scored_by
  else:
    assert config.encoder is not None  # checked by the config
    assert config.index is not None
    passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
    index = load_index(
      config.index,
      verify="sizes",
      encoder_fingerprint=passage_encoder,
      passages_fingerprint=store.fingerprint,
      searched=False,
    )
    scored_by = {"query_encoder": fingerprint(config.encoder, config.embedding)}
    temperature = encoder_temperature(config.encoder, config.embedding)
    inputs |= {"encoder": scored_by["query_encoder"], "passage_encoder": passage_encoder}
    inputs |= {"index": index.manifest["fingerprint"]}
  wanted = runs.recipe(config, inputs=inputs)
  if not runs.finished(config.out, "retrieved", wanted):
    rows = np.stack([np.where(example.valid, example.passage_rows, -1) for example in retrieved])
    scores = _scores(config, retrieved, rows, store, index, make_mesh(config.mesh), progress)
    fields: dict[str, Any] = {
      "recipe": wanted,
      "k": config.k,
      "passages": store.fingerprint,
      "score_temperature": temperature,
    }
    fields |= scored_by
    fields |= {name: value for name, value in retrieved.manifest.items() if name in ("searched", "mixture")}
    with hosts.one_writes() as mine:
      if mine:
        _store(config, retrieved, rows, store, scores, fields)
  hits = files.read_manifest(config.out, "retrieved")["hits"]
  before, mrr_before = hit_figures(retrieved.manifest["hits"], config.k)
  recall, mrr = hit_figures(hits, config.k)
  return RerankResult(config.out, len(retrieved), before, recall, mrr_before, mrr)


def _scores(
  config: RerankConfig,
  retrieved: RetrievedStore,
  rows: Int[np.ndarray, "Q L"],
  store: PassageStore,
  index: StoredIndex | None,
  mesh: Mesh,
  progress: Progress,
) -> Float[np.ndarray, "Q L"]:
  """New scores of every example's passages, ``-inf`` where there is none."""
  queries = [example.query for example in retrieved]
  if config.cross_encoder is not None:
    model, max_tokens = load_cross_encoder(config.cross_encoder, mesh=mesh)
    return cross_scores(
      model,
      load_tokenizer(config.cross_encoder),
      queries,
      rows,
      store.texts,
      max_tokens=max_tokens,
      batch_size=config.batch_size,
      mesh=mesh,
      progress=progress,
    )
  assert config.encoder is not None
  assert index is not None
  encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
  scores = np.full(rows.shape, -np.inf, np.float32)
  searched = np.flatnonzero((rows >= 0).any(axis=1))
  embeddings = embed_queries(
    encoder,
    load_tokenizer(config.encoder),
    [queries[i] for i in searched],
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.query_prompt,
    batch_size=config.batch_size,
    mesh=mesh,
    progress=progress,
  )
  scores[searched] = score_pairs(index.stored, embeddings, rows[searched])
  return scores


def _store(
  config: RerankConfig,
  retrieved: RetrievedStore,
  rows: Int[np.ndarray, "Q L"],
  store: PassageStore,
  scores: Float[np.ndarray, "Q L"],
  fields: dict[str, Any],
) -> None:
  """Writes the examples with their k best passages; those that nothing was searched for stay as they are."""
  order = best_first(scores, rows, config.k)
  rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

  def records() -> Iterator[RetrievedExample]:
    for i, example in enumerate(retrieved):
      if example.searched:
        changes = {"passage_rows": rows[i], "scores": scores[i], "valid": rows[i] >= 0}
      else:
        changes = {name: getattr(example, name)[: config.k] for name in ("passage_rows", "scores", "valid")}
      yield dataclasses.replace(example, **changes)

  hits = [
    first_hit(example.gold_rows, example.answer_texts, rows[i], lambda row: store[row].text)
    for i, example in enumerate(retrieved)
    if example.searched
  ]
  write_retrieved(records(), config.out, manifest={**fields, "hits": hits})
