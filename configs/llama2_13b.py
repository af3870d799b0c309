"""`radit run --config llama2_13b --corpus ... --questions ... --workdir D`: Llama 2 13B.

Ask first whether it fits: `radit plan --config llama2_13b`.

The paper's settings: k̃ = 3, rows packed to 2,048 tokens, 128 rows a step (256 examples of three prompts of 320 tokens
fill 120), 500 steps. The RALT step fits v5e:8x8, 64 chips.

The retriever is DRAGON+: see llama2_7b.py for how its directories are made.
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
  generator="meta-llama/Llama-2-13b-hf",
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
    loop=LoopConfig(steps=500, batch_size=256, evaluate_every=100),
    remat="full",
  ),
  retriever_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=1237, weight_decay=0.01),
    loop=LoopConfig(epochs=1, batch_size=512),
  ),
  lm_temperature=0.01,
  encode_batch_size=4096,
  score_batch_size=192,
  answer_batch_size=64,
  mesh=MeshConfig(fsdp=64),
)
plan = functools.partial(PlanConfig, topology="v5e:8x8")
