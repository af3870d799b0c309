"""`radit run --config llama_65b --corpus ... --questions ... --workdir D`: LLaMA 65B.

Ask first whether it fits: `radit plan --config llama_65b`.

The paper's settings: k̃ = 3, rows packed to 2,048 tokens, 128 rows a step (256 examples of three prompts of 320 tokens
fill 120), 500 steps. The RALT step fits v5e:16x16, 256 chips, as do the LSR step, scoring and encoding; answering does
not (22.4 GiB of 15.75 a chip). On v5e:8x8 scoring fits (`--mesh.fsdp 32 --mesh.tensor 2`), and tuning by LoRA:
`--generator-tuning.lora.rank 16 --mesh.fsdp 64 --mesh.tensor 1`.

The retriever is DRAGON+: see llama2_7b.py for how its directories are made.
"""

import functools

from radit_jax.config import MeshConfig, PlanConfig, paper_run

config = paper_run(
  "huggyllama/llama-65b",
  batch_size=256,
  encode_batch_size=8192,
  score_batch_size=384,
  answer_batch_size=128,
  mesh=MeshConfig(fsdp=128, tensor=2),
)
plan = functools.partial(PlanConfig, topology="v5e:16x16")
