"""Options of the verbs: one class per verb of the command line."""

import dataclasses
from typing import Literal

from radit_jax.config.shared import (
  Backend,
  CorpusFormat,
  Direction,
  Dtype,
  EmbeddingOptions,
  EvaluationMode,
  LoopConfig,
  LoraConfig,
  LossName,
  MeshConfig,
  Method,
  OnError,
  OptimizerConfig,
  PromptConfig,
  QuestionFormat,
  Remat,
  StoredDtype,
  TargetScore,
  Verify,
  above,
  at_least,
  check_master_dtype,
  check_select,
  corpus_limits,
  local_paths,
  milvus_address,
  one_of,
)
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """Reads a corpus and questions; writes the passage store and the split, which later runs keep.

  Attributes:
    workdir: directory the stores are written into.
    corpus: file or folder of documents.
    questions: file of questions with answers, or a folder of such files; None makes the passage store alone, to be
      searched with questions that nothing is trained on.
    corpus_format: "jsonl" (id, text, maybe title, section, metadata), "beir" (a folder with corpus.jsonl), "dpr"
      (psgs_w100.tsv), "kilt" (its knowledge source), "squad", "folder" (texts, Markdown, HTML; PDF and Office files
      with the extra "office"), or "tfds" (a folder that TFDS prepared, such as Wikipedia). gzip, bzip2 and Zstandard
      are read as what they hold.
    questions_format: the data set whose original files these are, or the project's own `jsonl`; docs/data.md says what
      each reads.
    max_passage_words: a longer section is split into passages of at most this many words; a Chinese or Japanese
      character counts as a word, and so do four Thai, Lao, Burmese or Khmer ones.
    max_passage_characters: the limit in characters, in place of words.
    max_passage_tokens: the limit in tokens of the encoder, title and prompt included, in place of words.
    passage_encoder: Hugging Face directory of the passage encoder; only for max_passage_tokens.
    embedding: the encoder's prompt, where its files do not say it; only for max_passage_tokens.
    processes: that read the corpus; None takes one for each CPU.
    split_by: what must not be shared between the splits: "auto" (the question's `group` field, else its gold
      document's title, else its id) or the name of a metadata field.
    dev_fraction: share of the groups held out to pick checkpoints.
    test_fraction: share of the groups held out for the table.
    seed: draw of the split.
    on_error: "strict" stops at the first bad line, "skip" counts and leaves out bad lines.
  """

  workdir: str
  corpus: str
  questions: str | None = None
  corpus_format: CorpusFormat = "jsonl"
  questions_format: QuestionFormat = "jsonl"
  max_passage_words: int = 100
  max_passage_characters: int | None = None
  max_passage_tokens: int | None = None
  passage_encoder: str | None = None
  embedding: EmbeddingOptions = EmbeddingOptions()
  processes: int | None = None
  split_by: str = "auto"
  dev_fraction: float = 0.1
  test_fraction: float = 0.2
  seed: int = 0
  on_error: OnError = "strict"

  def __post_init__(self) -> None:
    local_paths(self)
    corpus_limits(self)
    if (self.max_passage_tokens is None) != (self.passage_encoder is None):
      raise UserError(
        f"PrepareConfig: max_passage_tokens = {self.max_passage_tokens}, passage_encoder = {self.passage_encoder!r}: "
        "tokens are those of an encoder, and nothing else here needs one"
      )
    for name in ("dev_fraction", "test_fraction"):
      if not 0 < getattr(self, name) < 1:
        raise UserError(f"PrepareConfig.{name} = {getattr(self, name)}: must be between 0 and 1")
    if self.dev_fraction + self.test_fraction >= 1:
      raise UserError(
        f"PrepareConfig: dev_fraction {self.dev_fraction} + test_fraction {self.test_fraction} leave no training data"
      )


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
    leaves_to_search: partitions that ScaNN or Milvus looks at; None takes an eighth of them, or half of that where
      it finds as much. This one, reorder and target_recall may be changed later: the index is measured again, not built
      again.
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
class ScoreConfig:
  """Computes the LSR teacher: log p(y | c_j ∘ x) of every retrieved passage under a frozen generator.

  Attributes:
    generator: Hugging Face directory of the teacher (the paper's is the base generator).
    retrieved: retrieved-example store.
    passages: passage store.
    out: directory of the score store.
    k: passages scored per question, the best ones first.
    prompt: how rows are rendered.
    batch_size: questions per step, about: a step has as many tokens as their prompts.
    pack_tokens: length of rows, which hold several prompts each; None for twice the longest prompt. Prompts of one row
      that begin with the same passage share it.
    dtype: the generator's computation type.
    mesh: devices.
  """

  generator: str
  retrieved: str
  passages: str
  out: str
  k: int = 10
  prompt: PromptConfig = PromptConfig()
  batch_size: int = 16
  pack_tokens: int | None = None
  dtype: Dtype = "float32"
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)
    at_least(self, "batch_size", 1)
    at_least(self, "pack_tokens", 1)


@dataclasses.dataclass(frozen=True)
class TrainGeneratorConfig:
  """Tunes the generator: RALT (eq. 3), or plain instruction tuning on the same examples without passages.

  Attributes:
    workdir: directory of this run; the tuned generator is written to `generator/` in it.
    generator: Hugging Face directory to start from.
    retrieved: retrieved-example store to train on.
    dev_retrieved: retrieved-example store the best checkpoint is picked on.
    passages: passage store.
    method: "ralt" or "it".
    k: passages per example (the paper's k̃).
    prompt: how rows are rendered.
    pack_tokens: length of rows that hold several prompts each; None gives every prompt a row of its own. Prompts of one
      step that begin with the same passage share it.
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    dtype: the generator's computation type; what is trained has a type of its own, optimizer.master_dtype.
    lora: train small corrections of a frozen model, also written to `adapter/`, instead of the model itself.
    remat: what the backward pass computes again of each layer: "none" is fastest; "dots" all but the products with
      kernels; "full" all of it, so that only the layer's input is kept, in the least memory.
    mesh: devices.
    redact: write no text of questions, answers and passages into anything that reports on the run; what an earlier
      call wrote stays.
  """

  workdir: str
  generator: str
  retrieved: str
  dev_retrieved: str
  passages: str
  method: Method = "ralt"
  k: int = 3
  prompt: PromptConfig = PromptConfig()
  pack_tokens: int | None = None
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig(steps=500)
  dtype: Dtype = "float32"
  lora: LoraConfig = LoraConfig()
  remat: Remat = "none"
  mesh: MeshConfig = MeshConfig()
  redact: bool = False

  def __post_init__(self) -> None:
    local_paths(self, "workdir")
    at_least(self, "k", 1)
    at_least(self, "pack_tokens", 1)
    one_of(self, "method", Method)
    one_of(self, "remat", Remat)
    check_select(self, self.loop, "dev_loss", "exact_match")
    check_master_dtype(self, self.optimizer, self.lora)


@dataclasses.dataclass(frozen=True)
class TrainRetrieverConfig:
  """Tunes the query encoder: LSR (eqs. 4-5), or the losses it must be held against.

  Attributes:
    workdir: directory of this run; the tuned encoder is written to `query_encoder/` in it.
    encoder: Hugging Face directory of the query encoder to start from.
    passage_encoder: directory of its passage encoder, if that is another one and the query encoder does not name it.
    retrieved: retrieved-example store to train on.
    dev_retrieved: retrieved-example store the best checkpoint is picked on.
    scores: score store of `retrieved`, the teacher of "lsr" and "emdr2".
    dev_scores: score store of `dev_retrieved`.
    negatives: of contrastive: JSONL file of hard negatives of the training questions, made by `mine-negatives`; they
      take the place of the passages retrieved. A question that is not in it has its gold passage alone.
    index: index whose stored embeddings the queries are held against.
    passages: passage store; only for `loop.select` and `loop.dev_questions`, where questions name no gold passage.
    loss: "lsr"; "emdr2" (the answer's likelihood under the mixture of eq. 2, as in Atlas); "distill" (as lsr, towards
      the scores of the cross-encoder by which the two stores were re-ranked); or "contrastive" (gold passage against
      all passages of the batch).
    k: passages per question.
    score: of lsr: what of the teacher's log-likelihoods becomes the target, see `radit_jax.losses.lsr_log_targets`.
    lm_temperature: of lsr: the τ of eq. 4.
    direction: of lsr and distill: "retriever_to_lm" is KL(p_R || p_LSR), the paper's.
    shuffle_teacher: control: the teacher's scores are permuted within each question, so they say nothing.
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    lora: train small corrections of a frozen model, also written to `adapter/`, instead of the model itself.
    remat: what the backward pass computes again of each layer: "none" is fastest; "dots" all but the products with
      kernels; "full" all of it, so that only the layer's input is kept, in the least memory.
    mesh: devices.
    redact: write no text of questions, answers and passages into anything that reports on the run; what an earlier
      call wrote stays.
  """

  workdir: str
  encoder: str
  retrieved: str
  dev_retrieved: str
  index: str
  passages: str | None = None
  passage_encoder: str | None = None
  scores: str | None = None
  dev_scores: str | None = None
  negatives: str | None = None
  loss: LossName = "lsr"
  k: int = 10
  score: TargetScore = "token_prob"
  lm_temperature: float = 0.01
  direction: Direction = "retriever_to_lm"
  shuffle_teacher: bool = False
  optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=1237, weight_decay=0.01)
  loop: LoopConfig = LoopConfig(batch_size=512)
  embedding: EmbeddingOptions = EmbeddingOptions()
  lora: LoraConfig = LoraConfig()
  remat: Remat = "none"
  mesh: MeshConfig = MeshConfig()
  redact: bool = False

  def __post_init__(self) -> None:
    local_paths(self, "workdir")
    at_least(self, "k", 2)
    above(self, "lm_temperature", 0)
    one_of(self, "loss", LossName)
    one_of(self, "score", TargetScore)
    one_of(self, "direction", Direction)
    one_of(self, "remat", Remat)
    check_select(self, self.loop, "dev_loss", "mrr", "recall")
    check_master_dtype(self, self.optimizer, self.lora)
    if self.loss == "contrastive" and self.loop.accumulate > 1:
      raise UserError(
        f"TrainRetrieverConfig: the negatives of loss contrastive are the whole batch; it cannot run with "
        f"loop.accumulate {self.loop.accumulate}"
      )
    if self.negatives is not None and self.loss != "contrastive":
      raise UserError(
        f"TrainRetrieverConfig: negatives say nothing to loss {self.loss}; leave them out, or choose loss contrastive"
      )
    if self.loss in ("lsr", "emdr2") and (self.scores is None or self.dev_scores is None):
      raise UserError(f"TrainRetrieverConfig: loss {self.loss} needs --scores and --dev-scores (made by `radit score`)")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Answers every question of a retrieved-example store and measures the answers.

  Attributes:
    generator: Hugging Face directory.
    retrieved: retrieved-example store of the split to answer.
    passages: passage store.
    out: JSON file of the figures and the answers.
    mode: "retrieval" mixes the top k by eq. 2, "closed_book" gives no passage, "gold" gives the gold passage alone.
    k: passages mixed.
    limit: answer at most this many questions, drawn by seed; None for all. Recall is always over all of them.
    prompt: how rows are rendered.
    batch_size: questions per step.
    bootstrap_samples: resamples behind each interval.
    seed: draw of the resamples and of the limited questions.
    dtype: the generator's computation type.
    mesh: devices.
    redact: write no text of questions, answers and passages into anything that reports on the run; what an earlier
      call wrote stays.
  """

  generator: str
  retrieved: str
  passages: str
  out: str
  mode: EvaluationMode = "retrieval"
  k: int = 10
  limit: int | None = None
  prompt: PromptConfig = PromptConfig()
  batch_size: int = 16
  bootstrap_samples: int = 1000
  seed: int = 0
  dtype: Dtype = "float32"
  mesh: MeshConfig = MeshConfig()
  redact: bool = False

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)
    at_least(self, "batch_size", 1)
    at_least(self, "limit", 1)
    at_least(self, "bootstrap_samples", 10)
    one_of(self, "mode", EvaluationMode)


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


@dataclasses.dataclass(frozen=True)
class AskConfig:
  """Answers one question from the index, and shows where the answer came from.

  Attributes:
    question: the question.
    generator: Hugging Face directory.
    encoder: Hugging Face directory of the query encoder.
    index: index made by `index`.
    passages: passage store.
    passage_encoder: directory of its passage encoder, if that is another one and the query encoder does not name it.
    k: passages mixed.
    prompt: how rows are rendered.
    dtype: the generator's computation type.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
  """

  question: str
  generator: str
  encoder: str
  index: str
  passages: str
  passage_encoder: str | None = None
  k: int = 10
  prompt: PromptConfig = PromptConfig()
  dtype: Dtype = "float32"
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    local_paths(self, "question")
    at_least(self, "k", 1)
    if not self.question.strip():
      raise UserError("AskConfig.question is empty")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """Writes what a run tuned as directories to publish and to serve, with model card, recipe and licences.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    out: directory to make; the models are `generator/` and `query_encoder/` in it.
    dtype: type of the weights in the files; "keep" for the one they were trained in.
    data_licence: licence of the training data, for the model card.
  """

  run: str
  out: str
  dtype: Literal["keep", "float32", "bfloat16"] = "keep"
  data_licence: str = "not stated"

  def __post_init__(self) -> None:
    local_paths(self, "out")


@dataclasses.dataclass(frozen=True)
class InspectConfig:
  """Shows what the model really sees.

  Attributes:
    what: "batch" (the first training batch), "example" (one example's rows) or "ranking" (its passages with score,
      p_R, p_LSR and log-likelihood).
    retrieved: retrieved-example store.
    passages: passage store.
    generator: Hugging Face directory whose tokenizer (and for "ranking" without scores, weights) are used.
    scores: score store; None computes the shown example's scores with the generator.
    example: id of the example; None takes the first.
    k: passages shown.
    batch_size: examples of the batch.
    lm_temperature: the τ of eq. 4.
    score: as in `train-retriever`.
    prompt: how rows are rendered.
    seed: draw of the prompt markers and of the batch.
    json: print JSON in place of text.
  """

  what: Literal["batch", "example", "ranking"]
  retrieved: str
  passages: str
  generator: str
  scores: str | None = None
  example: str | None = None
  k: int = 3
  batch_size: int = 4
  lm_temperature: float = 0.01
  score: TargetScore = "token_prob"
  prompt: PromptConfig = PromptConfig()
  seed: int = 0
  json: bool = False

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)
    at_least(self, "batch_size", 1)
    above(self, "lm_temperature", 0)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
  """A model whose weights are pickles (`pytorch_model.bin`) becomes a directory with safetensors.

  Attributes:
    source: Hugging Face directory, or owner/name (or owner/name@revision) on the Hub.
    out: directory to be made; it must not exist.
  """

  source: str
  out: str

  def __post_init__(self) -> None:
    local_paths(self)


@dataclasses.dataclass(frozen=True)
class DownloadConfig:
  """Downloads data sets from where their authors keep them, checked and resumable, or lists them.

  Attributes:
    sets: names of sets, as --list shows them.
    data: directory that gets a folder for each set.
    mix: the sets that this mix trains on too: name of one that ships, or path of a Python file that holds one.
    licence: "commercial" leaves out sets of which no licence is stated that allows commercial use, and says which.
    list: show what is needed, what is there and what must be fetched by hand, and download nothing.
  """

  sets: tuple[str, ...] = ()
  data: str = "data"
  mix: str | None = None
  licence: Literal["any", "commercial"] = "any"
  list: bool = False

  def __post_init__(self) -> None:
    local_paths(self)


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
  """Lists the checkpoints of a run, with sizes and dev losses, and whether each is intact.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    verify: "full" checks the SHA-256 of every file, "sizes" that each is there with its size.
  """

  run: str
  verify: Verify = "full"

  def __post_init__(self) -> None:
    local_paths(self)
    one_of(self, "verify", Verify)


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
  """Looks a run over: damaged files, a machine that computes wrongly, and the likely cause of a flat loss.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    rerun: run steps again from a checkpoint, twice, beside the run's directory; needs the inputs and the devices of the
      run, and the time that its models take to load.
  """

  run: str
  rerun: bool = True

  def __post_init__(self) -> None:
    local_paths(self)
