"""`radit run --config squad_small ...`: SQuAD paragraphs, the real MiniLM, a generator of scripts/pretrain_small.py.

Sized for 2 CPU cores: a sample of the training questions, recall on all questions of the test articles, answers to
a sample of them.
"""

import functools

from radit_jax.config import LoopConfig, OptimizerConfig, PromptConfig, RunConfig, TuningConfig

config = functools.partial(
  RunConfig,
  corpus_format="squad",
  questions_format="squad",
  backend="exact",
  train_questions=2000,
  dev_questions=200,
  test_questions=200,
  prompt=PromptConfig(max_tokens=320, max_passage_tokens=192, max_answer_tokens=64),
  generator_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=5e-4, floor_lr=5e-5, warmup_steps=20),
    loop=LoopConfig(epochs=1, batch_size=16, evaluate_every=60),
  ),
  retriever_tuning=TuningConfig(
    optimizer=OptimizerConfig(peak_lr=2e-5, floor_lr=2e-7, warmup_steps=20, weight_decay=0.01),
    loop=LoopConfig(epochs=4, batch_size=64, evaluate_every=20, patience=4),
  ),
)
