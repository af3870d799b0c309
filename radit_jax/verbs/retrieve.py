"""`radit retrieve`: the top-k passages of every question of a split, stored once for all that follows."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax import files, hosts, runs
from radit_jax.config import RetrieveConfig
from radit_jax.data import mixture
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
from radit_jax.retrieval.index import Index, SearchResult, load_index
from radit_jax.sharding import make_mesh
from radit_jax.verbs.data_card import complete_card
from radit_jax.verbs.prepare import read_split


@dataclasses.dataclass(frozen=True)
class RetrieveResult:
  """What was found.

  Attributes:
    retrieved: retrieved-example store.
    num_questions: questions in it.
    num_own: those of them that nothing was searched for: they bring their context along, or are plain text.
    recall: k -> share of the questions with a gold passage among the first k. Questions without a known gold passage
      count a passage that holds an answer.
    mrr: mean reciprocal rank of the first such passage.
    by_set: of the examples of a mix, set -> share with such a passage among those retrieved.
  """

  retrieved: str
  num_questions: int
  num_own: int
  recall: dict[int, float]
  mrr: float
  by_set: dict[str, float] = dataclasses.field(default_factory=dict)

  def summary(self) -> str:
    """One line for the command line."""
    recall = ", ".join(f"recall@{k} {value:.1%}" for k, value in self.recall.items())
    own = f", {self.num_own} of them with a context of their own or plain text" if self.num_own else ""
    sets = "".join(f"\n  {name}: {share:.1%} with an answer in a passage" for name, share in self.by_set.items())
    return f"{self.num_questions} questions{own}, {recall}, MRR {self.mrr:.3f}: {self.retrieved}{sets}"


def retrieve(config: RetrieveConfig, *, progress: Progress = silent) -> RetrieveResult:
  """Encodes the questions, searches, and stores what was found with its scores.

  A question that brings its context along, and plain text, is not searched for. Passages that a question was made of
  are never among those found for it. Of a mix's training examples, the data card is told what was found.

  Args:
    config: see :class:`radit_jax.config.RetrieveConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the number of passages; an index built by another passage encoder than the one this query
      encoder was tuned against; a damaged index.
  """
  store = PassageStore(config.passages)
  if config.k > store.num_live:
    raise UserError(f"k = {config.k} passages asked for, {config.passages} holds {store.num_live}; lower --k")
  questions = read_split(config.questions)
  questions = [questions[i] for i in sample(len(questions), config.limit, config.seed)]
  passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
  index = load_index(config.index, verify=config.verify, encoder_fingerprint=passage_encoder, resident=False)
  store = check_passages(index.manifest["passages_fingerprint"], store, config.index)
  inputs = {
    "questions": files.sha256_file(config.questions),
    "passages": store.fingerprint,
    "index": index.manifest["fingerprint"],
    "encoder": fingerprint(config.encoder, config.embedding),
    "passage_encoder": passage_encoder,
  }
  wanted = runs.recipe(config, inputs=inputs)
  if not runs.finished(config.out, "retrieved", wanted):
    searched = [q for q in questions if not _own(q)]
    mesh = make_mesh(config.mesh)
    encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
    embeddings = embed_queries(
      encoder,
      load_tokenizer(config.encoder),
      [str(q["query"]) for q in searched],
      max_tokens=encoder.config.max_tokens,
      prompt=encoder.config.query_prompt,
      batch_size=config.batch_size,
      mesh=mesh,
      progress=progress,
    )
    with hosts.one_writes() as mine:
      if mine:
        without = [q.get("exclude_rows", []) for q in searched]
        _store(search_without(index, embeddings, config.k, without), questions, store, config, wanted)
  manifest = files.read_manifest(config.out, "retrieved")
  rank = np.asarray(manifest["hits"])
  recall = {k: float(np.mean(rank < k)) if len(rank) else 0.0 for k in (1, 5, 10) if k <= config.k}
  mrr = float(np.mean(np.where(rank < config.k, 1 / (rank + 1), 0))) if len(rank) else 0.0
  ends = np.cumsum([0, *(count for _, count in manifest.get("searched", []))])
  found = {
    name: (int(np.sum(rank[start : start + count] < config.k)), count)
    for (name, count), start in zip(manifest.get("searched", []), ends, strict=False)
  }
  with hosts.one_writes() as mine:
    if mine and found:
      complete_card(pathlib.Path(config.questions), config.k, found)
  by_set = {name: hits / count for name, (hits, count) in found.items()}
  return RetrieveResult(config.out, manifest["count"], manifest["count"] - len(rank), recall, mrr, by_set)


def _own(question: dict[str, Any]) -> bool:
  """Whether nothing is searched for."""
  return question.get("context") is not None or question.get("category") == "text"


def search_without(
  index: Index, queries: Float[np.ndarray, "Q E"], k: int, without: Sequence[Sequence[int]]
) -> SearchResult:
  """The k best passages for every query but the ones that it must not find.

  Args:
    index: to search.
    queries: ``[Q, E]``.
    k: passages for each.
    without: rows for each query. So many more are searched for, and these dropped.
  """
  most = max(map(len, without), default=0)
  found = index.search(queries, k + most)
  if not most:
    return found
  dropped = np.array([np.isin(ids, rows) for ids, rows in zip(found.ids, without, strict=True)], bool)
  order = np.argsort(dropped | ~found.valid, axis=1, kind="stable")[:, :k]
  ids, scores, valid = (np.take_along_axis(x, order, axis=1) for x in (found.ids, found.scores, found.valid & ~dropped))
  return SearchResult(np.where(valid, ids, -1), np.where(valid, scores, np.float32(-np.inf)), valid)


def _store(
  found: SearchResult,
  questions: list[dict[str, Any]],
  store: PassageStore,
  config: RetrieveConfig,
  wanted: dict[str, Any],
) -> None:
  """Writes what was found for each question that was searched for, and the others between them."""
  places = np.cumsum([not _own(q) for q in questions]) - 1
  first = np.arange(config.k) == 0
  own = (np.full(config.k, -1, np.int64), np.where(first, np.float32(0), np.float32(-np.inf)), first)

  def records() -> Iterator[RetrievedExample]:
    for q, i in zip(questions, places, strict=True):
      rows, scores, valid = own if _own(q) else (found.ids[i], found.scores[i], found.valid[i])
      yield RetrievedExample(
        id=q["id"],
        question=q["question"],
        answers=tuple(q["answers"]),
        query=q["query"],
        group=q["group"],
        category=q.get("category", "qa"),
        context=q.get("context"),
        gold_rows=tuple(q["gold_rows"]),
        passage_rows=rows,
        scores=scores,
        valid=valid,
      )

  stated = files.read_manifest(pathlib.Path(config.questions).parent, "split").get("mixture", {})
  mixed = stated.get(pathlib.Path(config.questions).stem)
  fields = {
    "recipe": wanted,
    "k": config.k,
    "query_encoder": wanted["inputs"]["encoder"],
    "passages": store.fingerprint,
    "score_temperature": encoder_temperature(config.encoder, config.embedding),
    "hits": [
      first_hit(q["gold_rows"], q.get("answer_texts", q["answers"]), ids, lambda row: store[row].text)
      for q, ids in zip((q for q in questions if not _own(q)), found.ids, strict=True)
    ],
  }
  if any("set" in q for q in questions):
    counts = collections.Counter(q["set"] for q in questions if not _own(q))
    fields["searched"] = [[name, count] for name, count in counts.items()]
  if mixed:
    fields["mixture"] = mixture.kept(mixed, [q["set"] for q in questions], config.questions)
  write_retrieved(records(), config.out, manifest=fields)
