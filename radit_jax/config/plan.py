"""Options of the planner."""

import dataclasses

from radit_jax.config.recipe import TuningConfig
from radit_jax.config.shared import (
  Dtype,
  EmbeddingOptions,
  LoopConfig,
  MeshConfig,
  OptimizerConfig,
  PromptConfig,
  above,
  at_least,
  local_paths,
)
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """Asks the TPU compiler whether a run fits a TPU slice, how long it takes and what it costs; needs no TPU.

  Attributes:
    topology: the slice, such as v5e:16x16, v5p:4x4x8 or v6e:8x8.
    generator: Hugging Face directory of the language model, of which only `config.json` is read, or a name whose shape
      is known.
    encoder: the same for the retriever.
    fit: search all slices of the topology's generation for the smallest that the run fits, with recomputation of layers
      where that helps.
    price_per_chip_hour: of one chip; None leaves money out.
    mfu: share of a chip's peak FLOP/s that model FLOPs are assumed to reach.
    json: print JSON in place of text.
    mesh: axes; left alone, chosen for the slice (and printed: give a run the same).
    k: passages scored and mixed.
    k_train: passages per example in generator tuning (the paper's k̃).
    prompt: longest rows and answers.
    pack_tokens: length of rows that hold several prompts each; None gives every prompt a row of its own.
    generator_tuning: RALT.
    retriever_tuning: LSR.
    encode_batch_size: passages per encoder call.
    score_batch_size: questions per scoring step.
    answer_batch_size: questions per answering step.
    dtype: the generator's computation type.
    embedding: pooling and limits that the encoder's files do not say.
    corpus_passages: passages to embed. The default is the paper's, Wikipedia and CommonCrawl.
    passage_tokens: of a mean passage, for the encoder.
    query_tokens: of a mean query, for the encoder.
    prompt_tokens: of a mean prompt with its passage and answer, for the generator.
    answer_tokens: of a mean answer.
    tuning_examples: examples that retriever tuning sees, each with k passages to score; the default is the paper's.
    evaluation_questions: questions that each row of the table answers.
  """

  topology: str
  generator: str
  encoder: str
  fit: bool = False
  price_per_chip_hour: float | None = None
  mfu: float = 0.45
  json: bool = False
  mesh: MeshConfig = MeshConfig()
  k: int = 10
  k_train: int = 3
  prompt: PromptConfig = PromptConfig()
  pack_tokens: int | None = None
  generator_tuning: TuningConfig = TuningConfig(loop=LoopConfig(steps=500))
  retriever_tuning: TuningConfig = TuningConfig(optimizer=OptimizerConfig(weight_decay=0.01))
  encode_batch_size: int = 64
  score_batch_size: int = 16
  answer_batch_size: int = 16
  dtype: Dtype = "bfloat16"
  embedding: EmbeddingOptions = EmbeddingOptions()
  corpus_passages: int = 399_000_000
  passage_tokens: int = 128
  query_tokens: int = 64
  prompt_tokens: int = 320
  answer_tokens: int = 50
  tuning_examples: int = 945_000
  evaluation_questions: int = 50_000

  def __post_init__(self) -> None:
    local_paths(self)
    for name in ("k", "k_train", "pack_tokens", "encode_batch_size", "score_batch_size", "answer_batch_size"):
      at_least(self, name, 1)
    for name in ("corpus_passages", "passage_tokens", "query_tokens", "prompt_tokens", "answer_tokens"):
      at_least(self, name, 1)
    for name in ("tuning_examples", "evaluation_questions"):
      at_least(self, name, 1)
    above(self, "mfu", 0)
    if self.mfu > 1:
      raise UserError(f"PlanConfig.mfu = {self.mfu}: must be at most 1")
    if self.price_per_chip_hour is not None:
      above(self, "price_per_chip_hour", 0)
    if self.prompt_tokens > self.prompt.max_tokens:
      raise UserError(
        f"PlanConfig: prompt_tokens {self.prompt_tokens} of a mean prompt are more than prompt.max_tokens "
        f"{self.prompt.max_tokens} of the longest"
      )
    if self.pack_tokens is not None and self.pack_tokens < self.prompt.max_tokens:
      raise UserError(
        f"PlanConfig: pack_tokens {self.pack_tokens} are less than prompt.max_tokens {self.prompt.max_tokens}; "
        f"pack_tokens {self.prompt.max_tokens} would do"
      )
