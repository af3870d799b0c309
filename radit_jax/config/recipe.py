"""Options of the whole recipe in one call, and of the quickstart."""

import dataclasses
from typing import Literal

from radit_jax.config.mix import Decontaminate, LicenceLimit
from radit_jax.config.shared import (
  Backend,
  CorpusFormat,
  Dtype,
  EmbeddingOptions,
  LoopConfig,
  LoraConfig,
  MeshConfig,
  OnError,
  OptimizerConfig,
  PromptConfig,
  QuestionFormat,
  Remat,
  TargetScore,
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
class TuningConfig:
  """One tuning inside a whole run.

  Attributes:
    optimizer: learning rates.
    loop: steps, batch and checkpoints.
    lora: train small corrections of a frozen model, instead of the model itself.
    remat: what the backward pass computes again of each layer: "none" is fastest; "dots" all but the products with
      kernels; "full" all of it, so that only the layer's input is kept, in the least memory.
  """

  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  lora: LoraConfig = LoraConfig()
  remat: Remat = "none"

  def __post_init__(self) -> None:
    one_of(self, "remat", Remat)
    check_master_dtype(self, self.optimizer, self.lora)


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The whole recipe on a user's files: prepare, index, retrieve, both tunings, and the table of what each brought.

  Attributes:
    workdir: everything is written here; the same command continues what is there.
    corpus: file or folder of documents.
    generator: Hugging Face directory of the language model.
    encoder: Hugging Face directory of the retriever; of its query encoder if there are two.
    questions: file of questions with answers, which are split for tuning and the table.
    mix: in place of questions, a mix of data sets to tune on, see `radit prepare --mix`; the table is about its
      evaluation sets.
    data: directory of the mix's sets.
    allow_missing: go on without sets of the mix whose files are not there.
    licence: "commercial" leaves out sets of the mix that may not be used commercially, or do not say so.
    decontaminate: what is done about evaluation questions in what the mix trains on: "report", "questions" or "all".
    passage_encoder: Hugging Face directory of the passage encoder, if that is another one.
    corpus_format: format of the corpus, see `prepare`.
    questions_format: format of the question file.
    max_passage_words: a longer section is split into passages.
    max_passage_characters: the limit in characters, in place of words.
    max_passage_tokens: the limit in tokens of the passage encoder, title and prompt included, in place of words.
    processes: that read the corpus; None takes one for each CPU.
    split_by: see `prepare`.
    dev_fraction: share of the groups held out to pick checkpoints.
    test_fraction: share of the groups held out for the table.
    train_questions: train on at most this many questions; None for all.
    dev_questions: pick checkpoints on at most this many.
    test_questions: answer at most this many test questions (recall is measured on all of them).
    on_error: "strict" stops at the first bad line of a file, "skip" counts and leaves out bad lines.
    tune: which tunings to run; rows of the other one stay empty.
    backend: search index.
    milvus_uri: address of the server, for the backend milvus; see `index`.
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
    redact: write no text of questions, answers and passages into anything that reports on the run; what an earlier
      call wrote stays.
  """

  workdir: str
  corpus: str
  generator: str
  encoder: str
  questions: str | None = None
  mix: str | None = None
  data: str = "data"
  allow_missing: bool = False
  licence: LicenceLimit = "any"
  decontaminate: Decontaminate = "report"
  passage_encoder: str | None = None
  corpus_format: CorpusFormat = "jsonl"
  questions_format: QuestionFormat = "jsonl"
  max_passage_words: int = 100
  max_passage_characters: int | None = None
  max_passage_tokens: int | None = None
  processes: int | None = None
  split_by: str = "auto"
  dev_fraction: float = 0.1
  test_fraction: float = 0.2
  train_questions: int | None = None
  dev_questions: int | None = 500
  test_questions: int | None = None
  on_error: OnError = "strict"
  tune: Literal["both", "generator", "retriever"] = "both"
  backend: Backend = "scann"
  milvus_uri: str | None = None
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
  redact: bool = False

  def __post_init__(self) -> None:
    local_paths(self)
    if (self.questions is None) == (self.mix is None):
      raise UserError(
        f"RunConfig: questions = {self.questions!r}, mix = {self.mix!r}: give one, --questions FILE or --mix NAME"
      )
    one_of(self, "licence", LicenceLimit)
    one_of(self, "decontaminate", Decontaminate)
    at_least(self, "k", 2)
    for name in ("k_train", "train_questions", "dev_questions", "test_questions", "pack_tokens"):
      at_least(self, name, 1)
    for name in ("encode_batch_size", "score_batch_size", "answer_batch_size"):
      at_least(self, name, 1)
    above(self, "lm_temperature", 0)
    corpus_limits(self)
    milvus_address(self)
    check_select(self, self.generator_tuning.loop, "dev_loss", "exact_match")
    check_select(self, self.retriever_tuning.loop, "dev_loss", "mrr", "recall")
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
    local_paths(self)
    at_least(self, "seed", 0)
