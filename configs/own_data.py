"""`radit run --config own_data --corpus docs.jsonl --questions qa.jsonl --generator DIR --encoder DIR --workdir D`

For about 5,000 questions with answers: few passes over them, a dev loss several times a pass, and a stop as soon as it
no longer falls. The paper's batches (64 and 512) would leave a few dozen steps.
"""

import functools

from radit_jax.config import LoopConfig, OptimizerConfig, RunConfig, TuningConfig

config = functools.partial(
  RunConfig,
  dev_fraction=0.1,
  test_fraction=0.2,
  k=10,
  k_train=3,
  generator_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=20),
    loop=LoopConfig(epochs=3, batch_size=32, evaluate_every=25, patience=4),
  ),
  retriever_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-5, floor_lr=1e-7, warmup_steps=20, weight_decay=0.01),
    loop=LoopConfig(epochs=5, batch_size=64, evaluate_every=25, patience=4),
  ),
)
