"""`radit run --config llama2_7b --corpus ... --questions ... --workdir D`: Llama 2 7B.

Ask first whether it fits: `radit plan --config llama2_7b`.

The paper's settings: k̃ = 3, rows packed to 2,048 tokens, 64 rows a step (128 examples of three prompts of 320 tokens
fill 60), 500 steps; the retriever is DRAGON+, 512 questions a step, one epoch. Fits v5e:4x4, 16 chips.

DRAGON+ is on the Hub as pickles: `radit convert facebook/dragon-plus-query-encoder --out Q`, the context encoder alike,
and name the directories by --encoder Q --passage-encoder C.
"""

import functools

from radit_jax.config import (
  EmbeddingOptions,
  LoopConfig,
  MeshConfig,
  OptimizerConfig,
  PlanConfig,
  PromptConfig,
  RunConfig,
  TuningConfig,
)

config = functools.partial(
  RunConfig,
  generator="meta-llama/Llama-2-7b-hf",
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
    loop=LoopConfig(steps=500, batch_size=128, evaluate_every=100),
    remat="full",
  ),
  retriever_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=1237, weight_decay=0.01),
    loop=LoopConfig(epochs=1, batch_size=512),
  ),
  lm_temperature=0.01,
  encode_batch_size=4096,
  score_batch_size=128,
  answer_batch_size=16,
  mesh=MeshConfig(fsdp=16),
)
plan = functools.partial(PlanConfig, topology="v5e:4x4")
