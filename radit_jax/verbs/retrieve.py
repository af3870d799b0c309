"""`radit retrieve`: the top-k passages of every question of a split, stored once for all that follows."""

import dataclasses
from typing import Any

import numpy as np

from radit_jax import files, hosts, runs
from radit_jax.config import RetrieveConfig
from radit_jax.data.corpus import PassageStore, check_passages
from radit_jax.data.examples import RetrievedExample, write_retrieved
from radit_jax.data.plan import sample
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import first_hit
from radit_jax.models.pretrained import (
  encoder_temperature,
  fingerprint,
  load_encoder,
  load_tokenizer,
  passage_encoder_of,
)
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import SearchResult, load_index
from radit_jax.sharding import make_mesh
from radit_jax.verbs.prepare import read_split


@dataclasses.dataclass(frozen=True)
class RetrieveResult:
  """What was found.

  Attributes:
    retrieved: retrieved-example store.
    num_questions: questions in it.
    recall: k -> share of the questions with a gold passage among the first k. Questions without a known gold passage
      count a passage that holds an answer.
    mrr: mean reciprocal rank of the first such passage.
  """

  retrieved: str
  num_questions: int
  recall: dict[int, float]
  mrr: float

  def summary(self) -> str:
    """One line for the command line."""
    recall = ", ".join(f"recall@{k} {value:.1%}" for k, value in self.recall.items())
    return f"{self.num_questions} questions, {recall}, MRR {self.mrr:.3f}: {self.retrieved}"


def retrieve(config: RetrieveConfig, *, progress: Progress = silent) -> RetrieveResult:
  """Encodes the questions, searches, and stores what was found with its scores.

  Args:
    config: see :class:`radit_jax.config.RetrieveConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the number of passages; an index built by another passage encoder than the one this query
      encoder was tuned against; a damaged index.
  """
  store = PassageStore(config.passages)
  if config.k > len(store):
    raise UserError(f"k = {config.k} passages asked for, {config.passages} holds {len(store)}; lower --k")
  questions = read_split(config.questions)
  questions = [questions[i] for i in sample(len(questions), config.limit, config.seed)]
  passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
  index = load_index(config.index, verify=config.verify, encoder_fingerprint=passage_encoder)
  check_passages(index.manifest["passages_fingerprint"], store, config.index)
  inputs = {
    "questions": files.sha256_file(config.questions),
    "passages": store.fingerprint,
    "index": index.manifest["fingerprint"],
    "encoder": fingerprint(config.encoder, config.embedding),
    "passage_encoder": passage_encoder,
  }
  wanted = runs.recipe(config, inputs=inputs)
  if not runs.finished(config.out, "retrieved", wanted):
    mesh = make_mesh(config.mesh)
    encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
    embeddings = embed_queries(
      encoder,
      load_tokenizer(config.encoder),
      [str(q["query"]) for q in questions],
      max_tokens=encoder.config.max_tokens,
      prompt=encoder.config.query_prompt,
      batch_size=config.batch_size,
      mesh=mesh,
      progress=progress,
    )
    with hosts.one_writes() as mine:
      if mine:
        _store(index.search(embeddings, config.k), questions, store, config, wanted)
  rank = np.asarray(files.read_manifest(config.out, "retrieved")["hits"])
  recall = {k: float(np.mean(rank < k)) for k in (1, 5, 10) if k <= config.k}
  return RetrieveResult(config.out, len(rank), recall, float(np.mean(np.where(rank < config.k, 1 / (rank + 1), 0))))


def _store(
  found: SearchResult,
  questions: list[dict[str, Any]],
  store: PassageStore,
  config: RetrieveConfig,
  wanted: dict[str, Any],
) -> None:
  """Writes what was found for each question."""
  records = (
    RetrievedExample(
      id=q["id"],
      question=q["question"],
      answers=tuple(q["answers"]),
      query=q["query"],
      group=q["group"],
      category=q.get("category", "qa"),
      gold_rows=tuple(q["gold_rows"]),
      passage_rows=found.ids[i],
      scores=found.scores[i],
      valid=found.valid[i],
    )
    for i, q in enumerate(questions)
  )
  fields = {
    "recipe": wanted,
    "k": config.k,
    "query_encoder": wanted["inputs"]["encoder"],
    "passages": store.fingerprint,
    "score_temperature": encoder_temperature(config.encoder, config.embedding),
    "hits": [
      first_hit(q["gold_rows"], q.get("answer_texts", q["answers"]), ids, lambda row: store[row].text)
      for q, ids in zip(questions, found.ids, strict=True)
    ],
  }
  write_retrieved(records, config.out, manifest=fields)
