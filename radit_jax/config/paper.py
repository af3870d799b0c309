"""What shipped configs have in common: the paper's settings of a run, and the sets it evaluates on."""

import functools

from radit_jax.config.mix import SetConfig
from radit_jax.config.recipe import RunConfig, TuningConfig
from radit_jax.config.shared import EmbeddingOptions, LoopConfig, MeshConfig, OptimizerConfig, PromptConfig

#: What the paper reports; a mix trains on nothing of these.
PAPER_EVALUATION = (
  SetConfig("mmlu", ("mmlu/data/test",)),
  SetConfig("nq_open", ("nq_open/NQ-open.dev.jsonl",)),
  SetConfig("trivia_qa", ("trivia_qa/triviaqa-unfiltered/unfiltered-web-dev.json",)),
  SetConfig("kilt_hotpotqa", ("kilt_hotpotqa/hotpotqa-dev-kilt.jsonl",), format="kilt"),
  SetConfig("kilt_eli5", ("kilt_eli5/eli5-dev-kilt.jsonl",)),
  SetConfig("kilt_fever", ("kilt_fever/fever-dev-kilt.jsonl",)),
  SetConfig("kilt_aida", ("kilt_aida/aidayago2-dev-kilt.jsonl",)),
  SetConfig("kilt_zsre", ("kilt_zsre/structured_zeroshot-dev-kilt.jsonl",)),
  SetConfig("kilt_trex", ("kilt_trex/trex-dev-kilt.jsonl",)),
  SetConfig("kilt_wow", ("kilt_wow/wow-dev-kilt.jsonl",)),
)


def paper_run(
  generator: str,
  *,
  batch_size: int,
  encode_batch_size: int,
  score_batch_size: int,
  answer_batch_size: int,
  mesh: MeshConfig,
) -> "functools.partial[RunConfig]":
  """A run at the paper's settings (Lin et al., appendix B), all but the files it reads.

  k̃ = 3 passages a question, rows packed to 2,048 tokens, 500 steps of RALT; the retriever is DRAGON+, tuned on 512
  questions a step for one epoch.

  Args:
    generator: Hugging Face id.
    batch_size: questions a RALT step; three prompts of 320 tokens each fill a row of 2,048 twice over.
    encode_batch_size: passages encoded at once.
    score_batch_size: questions scored at once.
    answer_batch_size: questions answered at once.
    mesh: for the slice that the config names.

  Example:
    >>> from radit_jax.config import MeshConfig
    >>> run = paper_run("meta-llama/Llama-2-7b-hf", batch_size=128, encode_batch_size=4096, score_batch_size=128,
    ...   answer_batch_size=16, mesh=MeshConfig(fsdp=16))
    >>> run(corpus="passages.jsonl", questions="questions.jsonl", workdir="runs/7b").k_train
    3
  """
  return functools.partial(
    RunConfig,
    generator=generator,
    encoder="facebook/dragon-plus-query-encoder",
    passage_encoder="facebook/dragon-plus-context-encoder",
    embedding=EmbeddingOptions(pooling="cls", normalize=False),
    dtype="bfloat16",
    k=10,
    k_train=3,
    prompt=PromptConfig(max_tokens=512),
    pack_tokens=2048,
    generator_tuning=TuningConfig(
      optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=200),
      loop=LoopConfig(steps=500, batch_size=batch_size, evaluate_every=100),
      remat="full",
    ),
    retriever_tuning=TuningConfig(
      optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=1237, weight_decay=0.01),
      loop=LoopConfig(epochs=1, batch_size=512),
    ),
    lm_temperature=0.01,
    encode_batch_size=encode_batch_size,
    score_batch_size=score_batch_size,
    answer_batch_size=answer_batch_size,
    mesh=mesh,
  )
