"""Options that several verbs share, and the checks that every configuration makes of itself."""

import dataclasses
import typing
from typing import Any, Literal

from radit_jax.errors import UserError

CorpusFormat = Literal["jsonl", "beir", "dpr", "kilt", "squad", "folder", "tfds"]
QuestionFormat = Literal[
  "jsonl",
  "squad",
  "squad_v2",
  "beir",
  "aqua_rat",
  "arc",
  "boolq",
  "cnn_dailymail",
  "commonsense_qa",
  "competition_math",
  "coqa",
  "drop",
  "ecqa",
  "freebase_qa",
  "gsm8k",
  "hellaswag",
  "hotpot_qa",
  "kilt",
  "kilt_aida",
  "kilt_eli5",
  "kilt_fever",
  "kilt_trex",
  "kilt_wow",
  "kilt_zsre",
  "math_qa",
  "mmlu",
  "ms_marco",
  "narrativeqa",
  "newsqa",
  "nq_open",
  "oasst1",
  "openbookqa",
  "piqa",
  "pubmed_qa",
  "quac",
  "quail",
  "quarel",
  "siqa",
  "strategyqa",
  "trivia_qa",
  "web_questions",
  "wiki_qa",
  "winogrande",
  "yahoo_answers_qa",
]
OnError = Literal["strict", "skip"]
Backend = Literal["scann", "exact", "device", "milvus"]
StoredDtype = Literal["float32", "float16"]
Verify = Literal["full", "sizes"]
LossName = Literal["lsr", "emdr2", "distill", "contrastive"]
Method = Literal["ralt", "it"]
TargetScore = Literal["prob", "token_prob", "log_prob", "token_log_prob"]
Direction = Literal["retriever_to_lm", "lm_to_retriever"]
Dtype = Literal["float32", "bfloat16"]
LoraBase = Literal["float", "int8", "nf4"]
Remat = Literal["none", "dots", "full"]
EvaluationMode = Literal["retrieval", "closed_book", "gold"]
Pooling = Literal["cls", "mean", "last"]
Select = Literal["dev_loss", "exact_match", "mrr", "recall"]


def local_paths(config: Any, *others: str) -> None:
  """Refuses ``gs://`` in every text option that is not among ``others``: what it names is read or written in place."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if isinstance(value, str) and value.startswith("gs://") and field.name not in others:
      bucket, _, rest = value.removeprefix("gs://").partition("/")
      raise UserError(
        f"{type(config).__name__}.{field.name} = {value}: cannot be in a bucket; "
        f"mount it (gcsfuse --implicit-dirs {bucket} ~/bucket, see docs/tpu.md) and give ~/bucket/{rest}, or copy it "
        f"(gcloud storage cp -r {value} .)"
      )


def at_least(config: object, name: str, low: float) -> None:
  value = getattr(config, name)
  if value is not None and not value >= low:
    raise UserError(f"{type(config).__name__}.{name} = {value}: must be at least {low}")


def above(config: object, name: str, low: float) -> None:
  value = getattr(config, name)
  if not value > low:
    raise UserError(f"{type(config).__name__}.{name} = {value}: must be greater than {low}")


def one_of(config: object, name: str, allowed: object) -> None:
  """A check for library callers: the command line's parser has already refused anything else."""
  choices = typing.get_args(allowed)
  value = getattr(config, name)
  if value not in choices:
    raise UserError(f"{type(config).__name__}.{name} = {value!r}: must be one of {', '.join(map(repr, choices))}")


def milvus_address(config: Any) -> None:
  """What is said of a Milvus: an address with the backend milvus, none without, and no password in it."""
  name, uri = f"{type(config).__name__}.milvus_uri", config.milvus_uri
  if (uri is None) == (config.backend == "milvus"):
    raise UserError(f"{name} = {uri!r} with backend {config.backend!r}: the backend milvus needs it, no other has one")
  if uri is None:
    return
  scheme, found, rest = uri.partition("://")
  if "@" in rest.partition("/")[0]:
    raise UserError(f"{name}: holds a user or a password, which every index would keep; put them into MILVUS_TOKEN")
  if scheme not in ("http", "https") or not found or not rest.strip("/"):
    raise UserError(f"{name} = {uri!r}: must be http://HOST:PORT or https://HOST:PORT")


def corpus_limits(config: object) -> None:
  """What is said of cutting a corpus: each limit large enough, one of words, characters or tokens, and processes."""
  at_least(config, "max_passage_words", 10)
  at_least(config, "max_passage_characters", 50)
  at_least(config, "max_passage_tokens", 10)
  at_least(config, "processes", 1)
  characters, tokens = (getattr(config, f"max_passage_{unit}") for unit in ("characters", "tokens"))
  if characters is not None and tokens is not None:
    raise UserError(
      f"{type(config).__name__}: max_passage_characters = {characters} and max_passage_tokens = {tokens}: give one"
    )


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
    at_least(self, "max_tokens", 8)
    at_least(self, "max_passage_tokens", 1)
    at_least(self, "max_answer_tokens", 1)
    if self.max_passage_tokens + self.max_answer_tokens >= self.max_tokens:
      raise UserError(
        f"PromptConfig: max_passage_tokens {self.max_passage_tokens} + max_answer_tokens {self.max_answer_tokens} "
        f"leave no room for a question in max_tokens {self.max_tokens}"
      )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; -1 for data means all that are left.

  Several TPU slices are recognised from the devices and lie along data: its size is a multiple of their number.

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
      at_least(self, "data", 1)
    at_least(self, "fsdp", 1)
    at_least(self, "tensor", 1)


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
    master_dtype: type of the weights that are trained. In bfloat16 they and their gradients take half the memory;
      updates are added in float32 and rounded at random, so that small ones count in expectation. Moments are
      float32 in any case.
  """

  peak_lr: float = 1e-5
  floor_lr: float = 1e-7
  warmup_steps: int = 200
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1
  max_grad_norm: float = 1.0
  master_dtype: Dtype = "float32"

  def __post_init__(self) -> None:
    above(self, "peak_lr", 0)
    at_least(self, "floor_lr", 0)
    at_least(self, "warmup_steps", 0)
    at_least(self, "weight_decay", 0)
    above(self, "max_grad_norm", 0)
    one_of(self, "master_dtype", Dtype)
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
    at_least(self, "rank", 0)
    above(self, "alpha", 0)
    one_of(self, "base", LoraBase)
    if not self.rank and (self.targets or self.base != "float"):
      raise UserError("LoraConfig: targets and base say nothing with rank 0, which tunes the whole model; set rank")


def check_master_dtype(config: object, optimizer: OptimizerConfig, lora: LoraConfig) -> None:
  """Refuses a type of trained weights where corrections are trained in place of weights."""
  if lora.rank and optimizer.master_dtype != "float32":
    raise UserError(
      f"{type(config).__name__}: lora.rank {lora.rank} trains corrections, which are float32; leave out "
      f"optimizer.master_dtype {optimizer.master_dtype}"
    )


#: Dev questions where `loop.select` needs answers or rankings and `loop.dev_questions` says nothing.
DEV_QUESTIONS = 100
#: Of them, those that are answered at once, beside the weights and moments of the tuning.
DEV_QUESTIONS_AT_ONCE = 16


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
    evaluate_every: steps between measurements on the dev set, and checkpoints; the best one is exported.
    select: what makes a checkpoint the best: the lowest "dev_loss", or the highest "exact_match" of answers to dev
      questions (generator), or "mrr" or "recall" (at k) of their passages in the whole index (retriever).
    dev_questions: that are answered, or searched for, each time; None does so with 100 where `select` needs it, and
      with none elsewhere.
    patience: stop after this many measurements without a new best; None never stops early.
    keep: checkpoints kept beside the best one.
    max_nonfinite_steps: a non-finite step changes nothing; the run stops after this many of them in a row.
    tensorboard: write the metrics for TensorBoard too, into `tensorboard/`; needs the extra of that name.
    wandb: write them as a run of Weights & Biases too, into `wandb/`; offline, and needs the extra of that name.
  """

  steps: int | None = None
  epochs: float = 1.0
  batch_size: int = 64
  accumulate: int = 1
  seed: int = 0
  log_every: int = 10
  evaluate_every: int = 100
  select: Select = "dev_loss"
  dev_questions: int | None = None
  patience: int | None = None
  keep: int = 1
  max_nonfinite_steps: int = 3
  tensorboard: bool = False
  wandb: bool = False

  def __post_init__(self) -> None:
    at_least(self, "steps", 1)
    above(self, "epochs", 0)
    for name in ("batch_size", "accumulate", "log_every", "evaluate_every", "patience", "keep", "max_nonfinite_steps"):
      at_least(self, name, 1)
    at_least(self, "seed", 0)
    at_least(self, "dev_questions", 1)
    one_of(self, "select", Select)
    if self.batch_size % self.accumulate:
      raise UserError(
        f"LoopConfig: batch_size {self.batch_size} does not split into accumulate {self.accumulate} microbatches of "
        f"one size; batch_size {-(-self.batch_size // self.accumulate) * self.accumulate} would"
      )

  @property
  def asked_questions(self) -> int | None:
    """Dev questions to answer or to search for each time; None for none."""
    if self.dev_questions is not None:
      return self.dev_questions
    return None if self.select == "dev_loss" else DEV_QUESTIONS


def check_select(config: object, loop: LoopConfig, *allowed: Select) -> None:
  """Refuses to pick a checkpoint by what is not measured of its kind of model."""
  if loop.select not in allowed:
    raise UserError(
      f"{type(config).__name__}.loop.select = {loop.select!r}: must be one of {', '.join(map(repr, allowed))}"
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
    at_least(self, "max_tokens", 1)
    at_least(self, "dimensions", 1)
