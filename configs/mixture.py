"""`radit run --config mixture --mix paper --data DIR --corpus ... --generator DIR --encoder DIR --workdir D`

The paper's settings for both tunings (Lin et al., appendix B), for a mix of data sets. Answers are longer than those of
own questions, so a row is too: examples above max_answer_tokens are left out and counted in the data card. Rows are
packed to 2,048 tokens: plain text fills far more of them than its questions do. `radit plan --config llama2_7b` shows
how sizes of batches and a mesh are found for a large model.
"""

import functools

from radit_jax.config import LoopConfig, OptimizerConfig, PromptConfig, RunConfig, TuningConfig

config = functools.partial(
  RunConfig,
  dev_fraction=0.02,
  dev_questions=1000,
  test_questions=5000,
  k=10,
  k_train=3,
  prompt=PromptConfig(max_tokens=1024, max_passage_tokens=512, max_answer_tokens=256),
  pack_tokens=2048,
  generator_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=200),
    loop=LoopConfig(steps=500, batch_size=128, evaluate_every=100),
  ),
  retriever_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=1237, weight_decay=0.01),
    loop=LoopConfig(epochs=1, batch_size=512),
  ),
)
