"""Every option of every verb: frozen dataclasses that check themselves when made, parsed by the command line."""

import dataclasses
import typing
from typing import Literal

from radit_jax.errors import UserError

CorpusFormat = Literal["jsonl", "squad"]
QuestionFormat = Literal["jsonl", "squad"]
OnError = Literal["strict", "skip"]
Backend = Literal["scann", "exact"]
Verify = Literal["full", "sizes"]
LossName = Literal["lsr", "contrastive"]
Method = Literal["ralt", "it"]
TargetScore = Literal["prob", "token_prob", "log_prob", "token_log_prob"]
Direction = Literal["retriever_to_lm", "lm_to_retriever"]
Dtype = Literal["float32", "bfloat16"]
LoraBase = Literal["float", "int8", "nf4"]
EvaluationMode = Literal["retrieval", "closed_book", "gold"]
Pooling = Literal["cls", "mean", "last"]


def _at_least(config: object, name: str, low: float) -> None:
  value = getattr(config, name)
  if value is not None and not value >= low:
    raise UserError(f"{type(config).__name__}.{name} = {value}: must be at least {low}")


def _above(config: object, name: str, low: float) -> None:
  value = getattr(config, name)
  if not value > low:
    raise UserError(f"{type(config).__name__}.{name} = {value}: must be greater than {low}")


def _one_of(config: object, name: str, allowed: object) -> None:
  """A check for library callers: the command line's parser has already refused anything else."""
  choices = typing.get_args(allowed)
  value = getattr(config, name)
  if value not in choices:
    raise UserError(f"{type(config).__name__}.{name} = {value!r}: must be one of {', '.join(map(repr, choices))}")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """How an example and a passage become tokens.

  Attributes:
    style: "plain" (the paper's), "chat" (the tokenizer's own template), or the path of a text file that holds
      {passage}, {question}, {answer} and maybe {title}.
    max_tokens: longest row, prompt and answer together.
    max_passage_tokens: a passage block is cut to this many tokens, whatever the question is.
    max_answer_tokens: longest answer trained on or generated; a longer gold answer is an error, never cut.
  """

  style: str = "plain"
  max_tokens: int = 512
  max_passage_tokens: int = 256
  max_answer_tokens: int = 64

  def __post_init__(self) -> None:
    _at_least(self, "max_tokens", 8)
    _at_least(self, "max_passage_tokens", 1)
    _at_least(self, "max_answer_tokens", 1)
    if self.max_passage_tokens + self.max_answer_tokens >= self.max_tokens:
      raise UserError(
        f"PromptConfig: max_passage_tokens {self.max_passage_tokens} + max_answer_tokens {self.max_answer_tokens} "
        f"leave no room for a question in max_tokens {self.max_tokens}"
      )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 for data means all that are left.

  Attributes:
    data: copies of the model, each with its own rows.
    fsdp: devices one copy's parameters and rows are spread over.
    tensor: devices one layer's heads and hidden units are spread over.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self) -> None:
    if self.data != -1:
      _at_least(self, "data", 1)
    _at_least(self, "fsdp", 1)
    _at_least(self, "tensor", 1)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up, then cosine from peak_lr to floor_lr. Defaults are the paper's for generator tuning.

  Attributes:
    peak_lr: learning rate after the warm-up.
    floor_lr: learning rate of the last step.
    warmup_steps: steps from 0 to peak_lr; shortened to the run's steps where it is longer.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: decoupled; applied to matrices, not to norms and biases.
    max_grad_norm: gradients are scaled down to this global norm.
  """

  peak_lr: float = 1e-5
  floor_lr: float = 1e-7
  warmup_steps: int = 200
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1
  max_grad_norm: float = 1.0

  def __post_init__(self) -> None:
    _above(self, "peak_lr", 0)
    _at_least(self, "floor_lr", 0)
    _at_least(self, "warmup_steps", 0)
    _at_least(self, "weight_decay", 0)
    _above(self, "max_grad_norm", 0)
    if self.floor_lr > self.peak_lr:
      raise UserError(f"OptimizerConfig: floor_lr {self.floor_lr} is above peak_lr {self.peak_lr}")
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"OptimizerConfig.{name} = {getattr(self, name)}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Trains a correction of low rank beside each kernel instead of the model itself: `W + (alpha / rank) A B`.

  Attributes:
    rank: columns of A and rows of B; 0 tunes the whole model.
    alpha: strength of the correction, which is alpha / rank.
    targets: kernels to correct, by short name (q k v o gate up down, where the model has them); none given means all.
    base: how the frozen model is held: "float" as its files have it, "int8" or "nf4" to save memory (QLoRA).
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ()
  base: LoraBase = "float"

  def __post_init__(self) -> None:
    _at_least(self, "rank", 0)
    _above(self, "alpha", 0)
    _one_of(self, "base", LoraBase)
    if not self.rank and (self.targets or self.base != "float"):
      raise UserError("LoraConfig: targets and base say nothing with rank 0, which tunes the whole model; set rank")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How long to train, and what to keep.

  Attributes:
    steps: optimizer steps; None takes `epochs`.
    epochs: passes over the data, used when steps is None.
    batch_size: examples per step, over all devices.
    accumulate: a step's examples go through the model in so many microbatches one after another, in less memory; their
      gradients are summed and divided once.
    seed: order of the examples and draw of the prompt markers.
    log_every: steps between lines of metrics.jsonl.
    evaluate_every: steps between dev losses and checkpoints; the best one is exported.
    patience: stop after this many dev losses without a new best; None never stops early.
    keep: checkpoints kept beside the best one.
    max_nonfinite_steps: a non-finite step changes nothing; the run stops after this many of them.
  """

  steps: int | None = None
  epochs: float = 1.0
  batch_size: int = 64
  accumulate: int = 1
  seed: int = 0
  log_every: int = 10
  evaluate_every: int = 100
  patience: int | None = None
  keep: int = 1
  max_nonfinite_steps: int = 3

  def __post_init__(self) -> None:
    _at_least(self, "steps", 1)
    _above(self, "epochs", 0)
    for name in ("batch_size", "accumulate", "log_every", "evaluate_every", "patience", "keep", "max_nonfinite_steps"):
      _at_least(self, name, 1)
    _at_least(self, "seed", 0)
    if self.batch_size % self.accumulate:
      raise UserError(
        f"LoopConfig: batch_size {self.batch_size} does not split into accumulate {self.accumulate} microbatches of "
        f"one size; batch_size {-(-self.batch_size // self.accumulate) * self.accumulate} would"
      )


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """Reads a corpus and questions; writes the passage store and the split, which later runs keep.

  Attributes:
    workdir: directory the stores are written into.
    corpus: file of documents.
    questions: file of questions with answers.
    corpus_format: format of the corpus file.
    questions_format: format of the question file.
    max_passage_words: a document longer than this is split into passages of at most this many words.
    split_by: what must not be shared between the splits: "auto" (the question's `group` field, else its gold
      document's title, else its id) or the name of a metadata field.
    dev_fraction: share of the groups held out to pick checkpoints.
    test_fraction: share of the groups held out for the table.
    seed: draw of the split.
    on_error: "strict" stops at the first bad line, "skip" counts and leaves out bad lines.
  """

  workdir: str
  corpus: str
  questions: str
  corpus_format: CorpusFormat = "jsonl"
  questions_format: QuestionFormat = "jsonl"
  max_passage_words: int = 100
  split_by: str = "auto"
  dev_fraction: float = 0.1
  test_fraction: float = 0.2
  seed: int = 0
  on_error: OnError = "strict"

  def __post_init__(self) -> None:
    _at_least(self, "max_passage_words", 10)
    for name in ("dev_fraction", "test_fraction"):
      if not 0 < getattr(self, name) < 1:
        raise UserError(f"PrepareConfig.{name} = {getattr(self, name)}: must be between 0 and 1")
    if self.dev_fraction + self.test_fraction >= 1:
      raise UserError(
        f"PrepareConfig: dev_fraction {self.dev_fraction} + test_fraction {self.test_fraction} leave no training data"
      )


@dataclasses.dataclass(frozen=True)
class EmbeddingOptions:
  """How an encoder's hidden states become a vector, where its files leave it open.

  Attributes:
    pooling: hidden state of the first token ("cls") or of the last one ("last"), or the mean over all.
    normalize: vectors are scaled to length 1.
    max_tokens: longer texts are cut.
    query_prompt: put in front of every question, such as "query: ".
    passage_prompt: put in front of every passage.
    dimensions: only so many first values of each vector are kept (Matryoshka).
  """

  pooling: Pooling | None = None
  normalize: bool | None = None
  max_tokens: int | None = None
  query_prompt: str | None = None
  passage_prompt: str | None = None
  dimensions: int | None = None

  def __post_init__(self) -> None:
    _at_least(self, "max_tokens", 1)
    _at_least(self, "dimensions", 1)


@dataclasses.dataclass(frozen=True)
class IndexConfig:
  """Embeds the passage store with the passage encoder and builds the search index.

  Attributes:
    passages: passage store made by `prepare`.
    encoder: Hugging Face directory of the passage encoder.
    embeddings: directory the embedding shards are written into.
    index: directory the index is written into.
    backend: "scann", or "exact" (the oracle, and the path where ScaNN has no wheel).
    batch_size: passages per encoder call.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
  """

  passages: str
  encoder: str
  embeddings: str
  index: str
  backend: Backend = "scann"
  batch_size: int = 64
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    _at_least(self, "batch_size", 1)
    _one_of(self, "backend", Backend)


@dataclasses.dataclass(frozen=True)
class RetrieveConfig:
  """Finds the top-k passages of every question of a split, and stores them.

  Attributes:
    questions: split file made by `prepare`.
    passages: passage store.
    index: index made by `index`.
    encoder: Hugging Face directory of the query encoder.
    passage_encoder: directory of its passage encoder, if that is another one and the query encoder does not name it.
    out: directory of the retrieved-example store.
    k: passages per question.
    limit: at most this many questions, drawn by seed; None for all.
    verify: "full" checks the index's hashes, "sizes" its sizes.
    batch_size: questions per encoder call.
    seed: draw of the limited questions.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
  """

  questions: str
  passages: str
  index: str
  encoder: str
  out: str
  passage_encoder: str | None = None
  k: int = 10
  limit: int | None = None
  verify: Verify = "full"
  batch_size: int = 64
  seed: int = 0
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    _at_least(self, "k", 1)
    _at_least(self, "limit", 1)
    _at_least(self, "batch_size", 1)


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
    batch_size: questions per step.
    pack_tokens: length of rows that hold several prompts each; None gives every prompt a row of its own.
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
    _at_least(self, "k", 1)
    _at_least(self, "batch_size", 1)
    _at_least(self, "pack_tokens", 1)


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
    pack_tokens: length of rows that hold several prompts each; None gives every prompt a row of its own.
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    dtype: the generator's computation type; what is trained and its moments stay float32.
    lora: train small corrections of a frozen model, also written to `adapter/`, instead of the model itself.
    remat: the backward pass computes each layer again in place of keeping what it needs: slower, in less memory.
    mesh: devices.
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
  remat: bool = False
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    _at_least(self, "k", 1)
    _at_least(self, "pack_tokens", 1)
    _one_of(self, "method", Method)


@dataclasses.dataclass(frozen=True)
class TrainRetrieverConfig:
  """Tunes the query encoder: LSR (eqs. 4-5), or the contrastive loss it must be held against.

  Attributes:
    workdir: directory of this run; the tuned encoder is written to `query_encoder/` in it.
    encoder: Hugging Face directory of the query encoder to start from.
    passage_encoder: directory of its passage encoder, if that is another one and the query encoder does not name it.
    retrieved: retrieved-example store to train on.
    dev_retrieved: retrieved-example store the best checkpoint is picked on.
    scores: score store of `retrieved`; LSR's teacher, not needed for the contrastive loss.
    dev_scores: score store of `dev_retrieved`.
    index: index whose stored embeddings the queries are held against.
    loss: "lsr" or "contrastive" (gold passage against all passages of the batch).
    k: passages per question.
    score: what of the teacher's log-likelihoods becomes the target, see `radit_jax.losses.lsr_log_targets`.
    lm_temperature: the τ of eq. 4.
    direction: "retriever_to_lm" is KL(p_R || p_LSR), the paper's.
    shuffle_teacher: control: the teacher's scores are permuted within each question, so they say nothing.
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    lora: train small corrections of a frozen model, also written to `adapter/`, instead of the model itself.
    remat: the backward pass computes each layer again in place of keeping what it needs: slower, in less memory.
    mesh: devices.
  """

  workdir: str
  encoder: str
  retrieved: str
  dev_retrieved: str
  index: str
  passage_encoder: str | None = None
  scores: str | None = None
  dev_scores: str | None = None
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
  remat: bool = False
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self) -> None:
    _at_least(self, "k", 2)
    _above(self, "lm_temperature", 0)
    _one_of(self, "loss", LossName)
    _one_of(self, "score", TargetScore)
    _one_of(self, "direction", Direction)
    if self.loss == "contrastive" and self.loop.accumulate > 1:
      raise UserError(
        f"TrainRetrieverConfig: the negatives of loss contrastive are the whole batch; it cannot run with "
        f"loop.accumulate {self.loop.accumulate}"
      )
    if self.loss == "lsr" and (self.scores is None or self.dev_scores is None):
      raise UserError("TrainRetrieverConfig: loss lsr needs --scores and --dev-scores (made by `radit score`)")


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

  def __post_init__(self) -> None:
    _at_least(self, "k", 1)
    _at_least(self, "batch_size", 1)
    _at_least(self, "limit", 1)
    _at_least(self, "bootstrap_samples", 10)
    _one_of(self, "mode", EvaluationMode)


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
    _at_least(self, "k", 1)
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
    _at_least(self, "k", 1)
    _at_least(self, "batch_size", 1)
    _above(self, "lm_temperature", 0)


@dataclasses.dataclass(frozen=True)
class TuningConfig:
  """One tuning inside a whole run.

  Attributes:
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    lora: train small corrections of a frozen model, instead of the model itself.
    remat: the backward pass computes each layer again in place of keeping what it needs: slower, in less memory.
  """

  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  lora: LoraConfig = LoraConfig()
  remat: bool = False


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The whole recipe on a user's files: prepare, index, retrieve, both tunings, and the table of what each brought.

  Attributes:
    workdir: everything is written here; the same command continues what is there.
    corpus: file of documents.
    questions: file of questions with answers.
    generator: Hugging Face directory of the language model.
    encoder: Hugging Face directory of the retriever; of its query encoder if there are two.
    passage_encoder: Hugging Face directory of the passage encoder, if that is another one.
    corpus_format: format of the corpus file.
    questions_format: format of the question file.
    max_passage_words: a longer document is split into passages.
    split_by: see `prepare`.
    dev_fraction: share of the groups held out to pick checkpoints.
    test_fraction: share of the groups held out for the table.
    train_questions: train on at most this many questions; None for all.
    dev_questions: pick checkpoints on at most this many.
    test_questions: answer at most this many test questions (recall is measured on all of them).
    on_error: "strict" stops at the first bad line of a file, "skip" counts and leaves out bad lines.
    tune: which tunings to run; rows of the other one stay empty.
    backend: search index.
    k: passages retrieved, scored and mixed.
    k_train: passages per example in generator tuning (the paper's k̃).
    teacher: generator whose scores tune the retriever: "base" (the paper's), "tuned" (after RALT), or a directory.
    controls: also train and show plain instruction tuning, the shuffled-teacher control and the contrastive baseline.
    prompt: how rows are rendered.
    pack_tokens: length of rows that hold several prompts each, in generator tuning and scoring; None gives every prompt
      a row of its own.
    generator_tuning: RALT, and plain instruction tuning.
    retriever_tuning: LSR, and its controls.
    score: what of the teacher's log-likelihoods becomes the target.
    lm_temperature: the τ of eq. 4.
    encode_batch_size: passages or questions per encoder call.
    score_batch_size: questions per scoring step.
    answer_batch_size: questions per answering step.
    dtype: the generator's computation type.
    embedding: pooling, prompts and limits that the encoder's files do not say.
    mesh: devices.
    seed: split, order of the examples, prompt markers, bootstrap.
  """

  workdir: str
  corpus: str
  questions: str
  generator: str
  encoder: str
  passage_encoder: str | None = None
  corpus_format: CorpusFormat = "jsonl"
  questions_format: QuestionFormat = "jsonl"
  max_passage_words: int = 100
  split_by: str = "auto"
  dev_fraction: float = 0.1
  test_fraction: float = 0.2
  train_questions: int | None = None
  dev_questions: int | None = 500
  test_questions: int | None = None
  on_error: OnError = "strict"
  tune: Literal["both", "generator", "retriever"] = "both"
  backend: Backend = "scann"
  k: int = 10
  k_train: int = 3
  teacher: str = "base"
  controls: bool = False
  prompt: PromptConfig = PromptConfig()
  pack_tokens: int | None = None
  generator_tuning: TuningConfig = TuningConfig()
  retriever_tuning: TuningConfig = TuningConfig(optimizer=OptimizerConfig(weight_decay=0.01))
  score: TargetScore = "token_prob"
  lm_temperature: float = 0.01
  encode_batch_size: int = 64
  score_batch_size: int = 16
  answer_batch_size: int = 16
  dtype: Dtype = "float32"
  embedding: EmbeddingOptions = EmbeddingOptions()
  mesh: MeshConfig = MeshConfig()
  seed: int = 0

  def __post_init__(self) -> None:
    _at_least(self, "k", 2)
    for name in ("k_train", "train_questions", "dev_questions", "test_questions", "pack_tokens"):
      _at_least(self, name, 1)
    for name in ("encode_batch_size", "score_batch_size", "answer_batch_size"):
      _at_least(self, name, 1)
    _above(self, "lm_temperature", 0)
    if self.teacher == "tuned" and self.tune == "retriever":
      raise UserError("RunConfig: teacher tuned needs the generator tuned, which tune retriever leaves out")
    if self.controls and self.retriever_tuning.loop.accumulate > 1:
      raise UserError(
        f"RunConfig: controls train a contrastive baseline, whose negatives are the whole batch; it cannot run with "
        f"retriever_tuning.loop.accumulate {self.retriever_tuning.loop.accumulate}"
      )
    if self.k_train > self.k:
      raise UserError(f"RunConfig: k_train {self.k_train} is more than the k {self.k} passages retrieved")


@dataclasses.dataclass(frozen=True)
class QuickstartConfig:
  """RA-DIT end to end in an invented world, on a CPU, in minutes.

  Attributes:
    workdir: everything is written here; the same command continues what is there.
    seed: of the world, the models and the training.
    teacher: generator whose scores tune the retriever: "base" (the paper's) or "tuned".
    controls: also train and show plain instruction tuning, the shuffled-teacher control and the contrastive baseline.
  """

  workdir: str = "runs/quickstart"
  seed: int = 0
  teacher: Literal["base", "tuned"] = "base"
  controls: bool = False

  def __post_init__(self) -> None:
    _at_least(self, "seed", 0)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
  """A model whose weights are pickles (`pytorch_model.bin`) becomes a directory with safetensors.

  Attributes:
    source: Hugging Face directory, or owner/name (or owner/name@revision) on the Hub.
    out: directory to be made; it must not exist.
  """

  source: str
  out: str
