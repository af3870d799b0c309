"""`radit retrieve`: the top-k passages of every question of a split, stored once for all that follows; or of any."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from radit_jax import files, hosts, runs
from radit_jax.config import RetrieveConfig
from radit_jax.data import mixture
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.data.plan import sample
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import first_hit, hit_figures
from radit_jax.models.pretrained import (
  encoder_temperature,
  fingerprint,
  load_encoder,
  load_tokenizer,
  passage_encoder_of,
)
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.dropping import search_without
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import SearchResult, StoredIndex, load_index
from radit_jax.sharding import make_mesh
from radit_jax.verbs.data_card import complete_card
from radit_jax.verbs.find import FindResult, read_asked, write_run
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
    dropped: why -> how many passages were dropped, see :func:`radit_jax.retrieval.dropping.search_without`.
    removed_gold: gold passages that an update of the passages removed: they count no longer.
  """

  retrieved: str
  num_questions: int
  num_own: int
  recall: dict[int, float]
  mrr: float
  by_set: dict[str, float] = dataclasses.field(default_factory=dict)
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)
  removed_gold: int = 0

  def summary(self) -> str:
    """One line for the command line."""
    recall = ", ".join(f"recall@{k} {value:.1%}" for k, value in self.recall.items())
    own = f", {self.num_own} of them with a context of their own or plain text" if self.num_own else ""
    sets = "".join(f"\n  {name}: {share:.1%} with an answer in a passage" for name, share in self.by_set.items())
    dropped = "".join(f", {count} dropped as {name}" for name, count in self.dropped.items() if count)
    gold = f", {self.removed_gold} gold passages left out as an update removed them" if self.removed_gold else ""
    return f"{self.num_questions} questions{own}, {recall}, MRR {self.mrr:.3f}{dropped}{gold}: {self.retrieved}{sets}"


def retrieve(config: RetrieveConfig, *, progress: Progress = silent) -> RetrieveResult | FindResult:
  """Encodes the questions, searches, and stores what was found with its scores; or returns it, without ``out``.

  A question that brings its context along, and plain text, is not searched for. Passages that a question was made of
  are never among those found for it. Of a mix's training examples, the data card is told what was found.

  Args:
    config: see :class:`radit_jax.config.RetrieveConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the number of passages that the index is of, or a question that excludes a row beyond them; an
      index built by another passage encoder than the one this query encoder was tuned against; a damaged index.
  """
  if config.out is None:
    return _find(config, progress)
  questions = read_split(str(config.questions))
  questions = [questions[i] for i in sample(len(questions), config.limit, config.seed)]
  mesh = make_mesh(config.mesh)
  index, store = _open(config, mesh)
  _check_excluded(config, store, ((q["id"], q.get("exclude_rows", [])) for q in questions if not _own(q)))
  inputs = {
    "questions": files.sha256_file(str(config.questions)),
    "passages": store.fingerprint,
    "index": index.manifest["fingerprint"],
    "encoder": fingerprint(config.encoder, config.embedding),
    "passage_encoder": _passage_encoder(config),
  }
  wanted = runs.recipe(config, inputs=inputs)
  for name in (
    "question",
    "write_run",
    *(n for n in ("drop_duplicates", "drop_same_document") if not getattr(config, n)),
  ):
    del wanted["options"][name]
  if not runs.finished(config.out, "retrieved", wanted):
    searched = [q for q in questions if not _own(q)]
    without = [q.get("exclude_rows", []) for q in searched]
    found, dropped = _search(config, index, store, mesh, [str(q["query"]) for q in searched], without, progress)
    with hosts.one_writes() as mine:
      if mine:
        _store(found, dropped, questions, store, config, wanted)
  manifest = files.read_manifest(config.out, "retrieved")
  rank = np.asarray(manifest["hits"])
  recall, mrr = hit_figures(manifest["hits"], config.k)
  ends = np.cumsum([0, *(count for _, count in manifest.get("searched", []))])
  found_by_set = {
    name: (int(np.sum(rank[start : start + count] < config.k)), count)
    for (name, count), start in zip(manifest.get("searched", []), ends, strict=False)
  }
  with hosts.one_writes() as mine:
    if mine and found_by_set:
      complete_card(pathlib.Path(str(config.questions)), config.k, found_by_set)
    if mine and config.write_run is not None:
      examples = [e for e in RetrievedStore(config.out) if e.searched]
      ranked = [(e.passage_rows[e.valid].tolist(), e.scores[e.valid].tolist()) for e in examples]
      write_run(config.write_run, [e.id for e in examples], ranked, store)
  by_set = {name: hits / count for name, (hits, count) in found_by_set.items()}
  own = manifest["count"] - len(rank)
  dropped, gold = manifest.get("dropped", {}), manifest.get("removed_gold", 0)
  return RetrieveResult(config.out, manifest["count"], own, recall, mrr, by_set, dropped, gold)


def _own(question: dict[str, Any]) -> bool:
  """Whether nothing is searched for."""
  return question.get("context") is not None or question.get("category") == "text"


def _passage_encoder(config: RetrieveConfig) -> str:
  return passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)


def _open(config: RetrieveConfig, mesh: Mesh) -> tuple[StoredIndex, PassageStore]:
  """The index, if it is of this store and of the passage encoder, and the version of the store that it is of.

  Raises:
    UserError: neither, or that version has fewer passages than are asked for.
  """
  store = PassageStore(config.passages)
  built_by = _passage_encoder(config)
  index = load_index(config.index, verify=config.verify, encoder_fingerprint=built_by, resident=False, mesh=mesh)
  store = version_of(index.manifest["passages_fingerprint"], store, config.index)
  if config.k > store.num_live:
    raise UserError(f"k = {config.k} passages asked for, {config.index} holds {store.num_live}; lower --k")
  return index, store


def _check_excluded(config: RetrieveConfig, store: PassageStore, excluded: Iterable[tuple[str, Sequence[int]]]) -> None:
  """Refuses rows, by the ids of questions that must not find them, that the store does not have."""
  for question, rows in excluded:
    if any(not 0 <= row < len(store) for row in rows):
      raise UserError(f"{config.questions}: question {question!r} excludes rows that {config.index} does not have")


def _search(
  config: RetrieveConfig,
  index: StoredIndex,
  store: PassageStore,
  mesh: Mesh,
  texts: Sequence[str],
  without: Sequence[Sequence[int]],
  progress: Progress,
) -> tuple[SearchResult, dict[str, int]]:
  """Passages for texts. Of several processes one searches, unless the rows of the index lie with all of them."""
  encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
  embeddings = embed_queries(
    encoder,
    load_tokenizer(config.encoder),
    texts,
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.query_prompt,
    batch_size=config.batch_size,
    mesh=mesh,
    progress=progress,
  )
  if not (hosts.is_first() or index.together):
    nothing = np.empty((0, config.k))
    return SearchResult(nothing.astype(np.int64), nothing.astype(np.float32), nothing.astype(bool)), {}
  return search_without(
    index,
    embeddings,
    config.k,
    without,
    store=store,
    duplicates=config.drop_duplicates,
    same_document=config.drop_same_document,
  )


def _find(config: RetrieveConfig, progress: Progress) -> FindResult:
  """Passages for questions that need not be of a split."""
  asked = read_asked(config)
  asked = tuple(asked[i] for i in sample(len(asked), config.limit, config.seed))
  mesh = make_mesh(config.mesh)
  index, store = _open(config, mesh)
  _check_excluded(config, store, ((question.id, question.own_rows) for question in asked))
  without = [question.own_rows for question in asked]
  result, dropped = _search(config, index, store, mesh, [question.text for question in asked], without, progress)
  ranked = [
    (ids[ok].tolist(), s[ok].tolist()) for ids, s, ok in zip(result.ids, result.scores, result.valid, strict=True)
  ]
  if config.write_run is not None:
    with hosts.one_writes() as mine:
      if mine:
        write_run(config.write_run, [question.id for question in asked], ranked, store)
  found = tuple(tuple(zip(rows, scores, store.many(rows), strict=True)) for rows, scores in ranked)
  return FindResult(asked, found, config.write_run, dropped)


def _store(
  found: SearchResult,
  dropped: dict[str, int],
  questions: list[dict[str, Any]],
  store: PassageStore,
  config: RetrieveConfig,
  wanted: dict[str, Any],
) -> None:
  """Writes what was found for each question that was searched for, and the others between them."""
  places = np.cumsum([not _own(q) for q in questions]) - 1
  first = np.arange(config.k) == 0
  removed = set(store.removed.tolist())
  gold_rows = [[row for row in q["gold_rows"] if row not in removed] for q in questions]
  own = (np.full(config.k, -1, np.int64), np.where(first, np.float32(0), np.float32(-np.inf)), first)

  def records() -> Iterator[RetrievedExample]:
    for q, gold, i in zip(questions, gold_rows, places, strict=True):
      rows, scores, valid = own if _own(q) else (found.ids[i], found.scores[i], found.valid[i])
      yield RetrievedExample(
        id=q["id"],
        question=q["question"],
        answers=tuple(q["answers"]),
        answer_texts=tuple(q.get("answer_texts", ())),
        query=q["query"],
        group=q["group"],
        category=q.get("category", "qa"),
        context=q.get("context"),
        gold_rows=tuple(gold),
        passage_rows=rows,
        scores=scores,
        valid=valid,
      )

  stated = files.read_manifest(pathlib.Path(str(config.questions)).parent, "split").get("mixture", {})
  mixed = stated.get(pathlib.Path(str(config.questions)).stem)
  fields = {
    "recipe": wanted,
    "k": config.k,
    "query_encoder": wanted["inputs"]["encoder"],
    "passages": store.fingerprint,
    "dropped": dropped,
    "removed_gold": sum(len(q["gold_rows"]) - len(gold) for q, gold in zip(questions, gold_rows, strict=True)),
    "score_temperature": encoder_temperature(config.encoder, config.embedding),
    "hits": [
      first_hit(gold, q.get("answer_texts", q["answers"]), found.ids[i], lambda row: store[row].text)
      for q, gold, i in zip(questions, gold_rows, places, strict=True)
      if not _own(q)
    ],
  }
  if any("set" in q for q in questions):
    counts = collections.Counter(q["set"] for q in questions if not _own(q))
    fields["searched"] = [[name, count] for name, count in counts.items()]
  if mixed:
    fields["mixture"] = mixture.kept(mixed, [q["set"] for q in questions], str(config.questions))
  write_retrieved(records(), str(config.out), manifest=fields)
