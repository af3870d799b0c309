"""`radit run --config llama3_8b --corpus ... --questions ... --workdir D`: Llama 3 8B.

Ask first whether it fits: `radit plan --config llama3_8b`.

The paper's settings for its 7B: k̃ = 3, rows packed to 2,048 tokens, 64 rows a step (128 examples of three prompts of
320 tokens fill 60), 500 steps. Fits v5e:8x8, 64 chips.

The retriever is DRAGON+: see llama2_7b.py for how its directories are made.
"""

import functools

from radit_jax.config import MeshConfig, PlanConfig, paper_run

config = paper_run(
  "meta-llama/Meta-Llama-3-8B",
  batch_size=128,
  encode_batch_size=4096,
  score_batch_size=192,
  answer_batch_size=64,
  mesh=MeshConfig(fsdp=64),
)
plan = functools.partial(PlanConfig, topology="v5e:8x8")
