"""Options of the verbs that encode, index, search and score what was found."""

import dataclasses

from radit_jax.config.shared import (
  Backend,
  CorpusFormat,
  Dtype,
  EmbeddingOptions,
  MeshConfig,
  StoredDtype,
  Verify,
  above,
  at_least,
  local_paths,
  milvus_address,
  one_of,
)
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class IndexConfig:
  """Embeds the passage store with the passage encoder and builds the search index.

  Attributes:
    passages: passage store made by `prepare`.
    encoder: Hugging Face directory of the passage encoder.
    embeddings: directory the embedding shards are written into.
    index: directory the index is written into.
    backend: "scann"; "exact" (the oracle, and the path where ScaNN has no wheel); "device" (in the memory of the
      accelerators, over all of the mesh); or "milvus" (a server, see milvus_uri).
    device_dtype: of the embeddings on the accelerators; "float32" orders by all digits, in twice the memory.
    milvus_uri: address of the Milvus, such as http://localhost:19530; its token is read from MILVUS_TOKEN. May be
      changed later, where the collection has moved.
    stored_dtype: of the embeddings on disk; "float16" takes half the space.
    shard_passages: passages of one ScaNN searcher at most; above, several are built one after the other, and memory is
      that of one.
    leaves_to_search: partitions that ScaNN or Milvus looks at; None takes an eighth of them, or as few as find as much
      with half of them left out. This one, reorder and target_recall may be changed later: the index is measured again,
      not built again.
    reorder: candidates a search scores anew; None takes 200.
    target_recall: overlap@10 with exact search that the two are raised for; None leaves them, and says which to raise
      where it is below 0.95.
    plan: say what it will cost, and do nothing.
    plan_passages: plan for so many passages; None takes those of the store, which otherwise need not exist.
    plan_rate: passages encoded a second, for the plan's hours.
    update: file or folder of documents that are new, or take the place of those of the same ids: makes a new version of
      the passages and of the index, from what is there and the texts that are new.
    corpus_format: of these documents; None takes that of the passages.
    delete_missing: documents that `update` does not have are removed.
    restore: documents that an earlier update removed may come back.
    golden: questions with answers or passage_ids (`jsonl`) that a new version must find before it is read.
    golden_min: share of them that must be found.
    golden_k: among so many passages.
    golden_encoder: Hugging Face directory of the query encoder; None takes the passage encoder.
    keep_versions: newest versions that are kept, beside the first one.
    rollback: read the version again that the current one was made from.
    batch_size: passages per encoder call.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
  """

  passages: str
  encoder: str
  embeddings: str
  index: str
  backend: Backend = "scann"
  device_dtype: Dtype = "bfloat16"
  milvus_uri: str | None = None
  stored_dtype: StoredDtype = "float32"
  shard_passages: int = 2_000_000
  leaves_to_search: int | None = None
  reorder: int | None = None
  target_recall: float | None = None
  plan: bool = False
  plan_passages: int | None = None
  plan_rate: float | None = None
  update: str | None = None
  corpus_format: CorpusFormat | None = None
  delete_missing: bool = False
  restore: bool = False
  golden: str | None = None
  golden_min: float | None = None
  golden_k: int = 10
  golden_encoder: str | None = None
  keep_versions: int = 5
  rollback: bool = False
  batch_size: int = 64
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    local_paths(self)
    for name in ("batch_size", "leaves_to_search", "reorder", "plan_passages", "golden_k", "keep_versions"):
      at_least(self, name, 1)
    at_least(self, "shard_passages", 20_000)
    if self.plan_rate is not None:
      above(self, "plan_rate", 0)
    one_of(self, "backend", Backend)
    one_of(self, "device_dtype", Dtype)
    milvus_address(self)
    one_of(self, "stored_dtype", StoredDtype)
    if self.leaves_to_search is not None and self.backend in ("exact", "device"):
      raise UserError(
        f"IndexConfig.leaves_to_search = {self.leaves_to_search} with backend = {self.backend!r}, which has no "
        "partitions: leave it out, or use scann or milvus"
      )
    if self.target_recall is not None and not 0 < self.target_recall <= 1:
      raise UserError(f"IndexConfig.target_recall = {self.target_recall}: must be above 0 and at most 1")
    for name in ("plan_passages", "plan_rate"):
      if getattr(self, name) is not None and not self.plan:
        raise UserError(f"IndexConfig.{name} = {getattr(self, name)} without plan: add --plan")
    self._check_update()

  def _check_update(self) -> None:
    for name in ("corpus_format", "delete_missing", "restore", "golden"):
      if getattr(self, name) and self.update is None:
        raise UserError(f"IndexConfig.{name} = {getattr(self, name)} without update: add --update FILE")
    for name in ("golden_k", "golden_encoder"):
      if getattr(self, name) != getattr(IndexConfig, name) and self.golden is None:
        raise UserError(f"IndexConfig.{name} = {getattr(self, name)} without golden: add --golden FILE")
    if sum((self.update is not None, self.rollback, self.plan)) > 1:
      raise UserError("IndexConfig: update, rollback and plan are different things: give one of them")
    if (self.golden is None) != (self.golden_min is None):
      raise UserError(
        f"IndexConfig: golden = {self.golden!r}, golden_min = {self.golden_min}: the questions and the share of them "
        "that must be found belong together"
      )
    if self.golden_min is not None and not 0 < self.golden_min <= 1:
      raise UserError(f"IndexConfig.golden_min = {self.golden_min}: must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class RetrieveConfig:
  """Finds the top-k passages of every question of a split, and stores them; or of any questions, and shows them.

  Attributes:
    passages: passage store.
    index: index made by `index`.
    encoder: Hugging Face directory of the query encoder.
    questions: split file made by `prepare`. Without out any file will do, or - for stdin: a question in each line, as
      text or as JSON.
    question: one question, in place of a file.
    passage_encoder: directory of its passage encoder, if that is another one and the query encoder does not name it.
    out: directory of the retrieved-example store, which the tunings read; None prints what was found.
    write_run: write what was found as a TREC run file too; without out, in place of printing it.
    k: passages per question.
    drop_duplicates: leave out passages with the text of a better one, or of what the question was made of; others take
      their places.
    drop_same_document: leave out further pieces of a document that was found, and all of what the question was made of.
    limit: at most this many questions, drawn by seed; None for all.
    verify: "full" checks the index's hashes, "sizes" its sizes.
    batch_size: questions per encoder call.
    seed: draw of the limited questions.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
  """

  passages: str
  index: str
  encoder: str
  questions: str | None = None
  question: str | None = None
  passage_encoder: str | None = None
  out: str | None = None
  write_run: str | None = None
  k: int = 10
  drop_duplicates: bool = False
  drop_same_document: bool = False
  limit: int | None = None
  verify: Verify = "full"
  batch_size: int = 64
  seed: int = 0
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    local_paths(self, "question")
    at_least(self, "k", 1)
    at_least(self, "limit", 1)
    at_least(self, "batch_size", 1)
    if (self.question is None) == (self.questions is None):
      raise UserError(
        f"RetrieveConfig: questions = {self.questions!r}, question = {self.question!r}: give one, --questions FILE "
        "(- for stdin) or --question TEXT"
      )
    if self.question is not None and not self.question.strip():
      raise UserError("RetrieveConfig.question is empty")
    if self.out is not None and (self.question is not None or self.questions == "-"):
      raise UserError(
        f"RetrieveConfig.out = {self.out}: a store is of the questions of a split, which have answers; leave out --out "
        "to see what is found, or to write it with --write-run"
      )


@dataclasses.dataclass(frozen=True)
class RerankConfig:
  """Scores retrieved passages anew, with a tuned query encoder or a cross-encoder, and keeps the best ones.

  Attributes:
    retrieved: retrieved-example store.
    passages: passage store.
    out: directory of the new retrieved-example store.
    cross_encoder: Hugging Face directory of a BERT, RoBERTa or XLM-RoBERTa for sequence classification with one label;
      it reads each question together with each passage.
    encoder: Hugging Face directory of a query encoder in its place, held against the index's stored embeddings.
    index: index made by `index`; for encoder.
    passage_encoder: directory of the query encoder's passage encoder, if that is another one and it does not name it.
    k: passages kept per question, the best ones first.
    batch_size: pairs, or questions, per call of the model.
    embedding: of encoder: pooling, prompts and limits that its files do not say.
    mesh: devices.
  """

  retrieved: str
  passages: str
  out: str
  cross_encoder: str | None = None
  encoder: str | None = None
  index: str | None = None
  passage_encoder: str | None = None
  k: int = 10
  batch_size: int = 64
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)
    at_least(self, "batch_size", 1)
    if (self.cross_encoder is None) == (self.encoder is None):
      raise UserError(
        f"RerankConfig: cross_encoder = {self.cross_encoder!r} and encoder = {self.encoder!r}: give one of them"
      )
    if (self.encoder is None) != (self.index is None):
      raise UserError(
        f"RerankConfig: encoder = {self.encoder!r} and index = {self.index!r}: a query encoder needs the index whose "
        "stored embeddings it is held against, and nothing else here does"
      )


@dataclasses.dataclass(frozen=True)
class MineNegativesConfig:
  """Writes the passages nearest to each question that are wrong, for `train-retriever --loss contrastive`.

  A passage is passed over that is gold, a copy of a gold one or of one taken before, or holds an answer.

  Attributes:
    retrieved: retrieved-example store of questions whose gold passages are known.
    passages: passage store.
    out: JSONL file.
    negatives: passages per question at most, the best ones first; `train-retriever` takes k - 1.
  """

  retrieved: str
  passages: str
  out: str
  negatives: int = 9

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "negatives", 1)


@dataclasses.dataclass(frozen=True)
class Bm25Config:
  """Finds passages by their words (BM25), or fuses that with what was retrieved; a baseline without a model.

  Attributes:
    questions: split file made by `prepare`.
    passages: passage store.
    out: TREC run file; `evaluate-retrieval` reads it.
    k: passages per question.
    fuse: retrieved-example store of the same questions, fused with BM25 by reciprocal ranks.
  """

  questions: str
  passages: str
  out: str
  k: int = 100
  fuse: str | None = None

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)


@dataclasses.dataclass(frozen=True)
class EvaluateRetrievalConfig:
  """Measures what was retrieved: recall, answers, MRR, nDCG, MAP, R-precision; alone or against another retrieval.

  Attributes:
    retrieved: retrieved-example store, or a TREC run file.
    out: JSON file of the figures; a page with their plot is written beside it.
    passages: passage store; needed for a store, and for pages and answers.
    qrels: judgements, TREC's or BEIR's; None takes the gold passages of the store's questions.
    baseline: the same questions retrieved before, as a store or a run file: differences are tested in pairs.
    write_run: write what was retrieved as a TREC run file.
    write_qrels: write the judgements as a TREC file.
    bootstrap_samples: resamples behind each interval.
    seed: draw of the resamples.
  """

  retrieved: str
  out: str
  passages: str | None = None
  qrels: str | None = None
  baseline: str | None = None
  write_run: str | None = None
  write_qrels: str | None = None
  bootstrap_samples: int = 1000
  seed: int = 0

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "bootstrap_samples", 10)
