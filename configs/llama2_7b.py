"""`radit run --config llama2_7b --corpus ... --questions ... --workdir D`: Llama 2 7B.

Ask first whether it fits: `radit plan --config llama2_7b`.

The paper's settings: k̃ = 3, rows packed to 2,048 tokens, 64 rows a step (128 examples of three prompts of 320 tokens
fill 60), 500 steps; the retriever is DRAGON+, 512 questions a step, one epoch. Fits v5e:4x4, 16 chips.

DRAGON+ is on the Hub as pickles: `radit convert facebook/dragon-plus-query-encoder --out Q`, the context encoder alike,
and name the directories by --encoder Q --passage-encoder C.
"""

import functools

from radit_jax.config import MeshConfig, PlanConfig, paper_run

config = paper_run(
  "meta-llama/Llama-2-7b-hf",
  batch_size=128,
  encode_batch_size=4096,
  score_batch_size=128,
  answer_batch_size=16,
  mesh=MeshConfig(fsdp=16),
)
plan = functools.partial(PlanConfig, topology="v5e:4x4")
