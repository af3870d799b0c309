"""Options of the verbs that run a generator, or tune one of the two models."""

import dataclasses

from radit_jax.config.shared import (
  Direction,
  Dtype,
  EmbeddingOptions,
  EvaluationMode,
  LoopConfig,
  LoraConfig,
  LossName,
  MeshConfig,
  Method,
  OptimizerConfig,
  PromptConfig,
  Remat,
  TargetScore,
  above,
  at_least,
  check_master_dtype,
  check_select,
  local_paths,
  one_of,
)
from radit_jax.errors import UserError


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
