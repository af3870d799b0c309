"""Configs check themselves when made, name both values that disagree, and are documented field by field."""

import dataclasses
import inspect
import re
import typing

import pytest

from radit_jax import config as configs
from radit_jax.errors import UserError

#: Parts of a mix file, which no verb takes as they are.
MIX = (configs.MixConfig, configs.SetConfig)
CLASSES = [c for _, c in inspect.getmembers(configs, dataclasses.is_dataclass)]
#: A value of every required field, so that each class can be made.
GIVEN = {
  "workdir": "w",
  "source": "s",
  "run": "r",
  "corpus": "c",
  "questions": "q",
  "question": "why?",
  "passages": "p",
  "encoder": "e",
  "embeddings": "m",
  "index": "i",
  "out": "o",
  "generator": "g",
  "retrieved": "r",
  "dev_retrieved": "d",
  "what": "batch",
  "topology": "v5e:2x2",
  "scores": "s",
  "dev_scores": "t",
  "mix": "paper",
  "data": "d",
}


def make(cls, **kwargs):
  names = {f.name for f in dataclasses.fields(cls)}
  others = (("data", configs.MeshConfig), ("mix", configs.RunConfig), ("question", configs.RetrieveConfig))
  given = {k: v for k, v in GIVEN.items() if k in names and (k, cls) not in others}
  return cls(**(given | kwargs))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_field_has_one_line_of_help_or_more(cls):
  """The command line's help is made of these."""
  section = inspect.cleandoc(cls.__doc__).split("Attributes:\n")[1]
  documented = re.findall(r"^  (\w+):", section, flags=re.MULTILINE)
  assert sorted(documented) == sorted(f.name for f in dataclasses.fields(cls))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_defaults_are_valid_and_configs_are_frozen(cls):
  if cls in MIX:
    config = configs.SetConfig("gsm8k", ("gsm8k/*",))
    config = config if cls is configs.SetConfig else configs.MixConfig((config,))
  else:
    config = make(cls)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(config, dataclasses.fields(cls)[0].name, None)
  assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
  ("cls", "change", "message"),
  [
    (configs.PromptConfig, {"max_tokens": 300}, r"max_passage_tokens 256 \+ max_answer_tokens 64 .* max_tokens 300"),
    (configs.PromptConfig, {"max_answer_tokens": 0}, "max_answer_tokens = 0: must be at least 1"),
    (configs.MeshConfig, {"data": 0}, "data = 0: must be at least 1"),
    (configs.MeshConfig, {"fsdp": -1}, "fsdp = -1"),
    (configs.OptimizerConfig, {"floor_lr": 1e-3}, "floor_lr 0.001 is above peak_lr 1e-05"),
    (configs.OptimizerConfig, {"peak_lr": 0.0}, "peak_lr = 0.0: must be greater than 0"),
    (configs.OptimizerConfig, {"peak_lr": float("nan")}, "peak_lr = nan"),
    (configs.OptimizerConfig, {"b2": 1.0}, r"b2 = 1.0: must be in \[0, 1\)"),
    (configs.LoopConfig, {"steps": 0}, "steps = 0: must be at least 1"),
    (configs.LoopConfig, {"epochs": 0.0}, "epochs = 0.0"),
    (configs.LoopConfig, {"patience": 0}, "patience = 0"),
    (configs.LoopConfig, {"seed": -1}, "seed = -1"),
    (
      configs.PrepareConfig,
      {"dev_fraction": 0.5, "test_fraction": 0.5},
      r"dev_fraction 0.5 \+ test_fraction 0.5 leave no",
    ),
    (configs.PrepareConfig, {"dev_fraction": 0.0}, "dev_fraction = 0.0: must be between 0 and 1"),
    (configs.PrepareConfig, {"max_passage_words": 5}, "max_passage_words = 5: must be at least 10"),
    (configs.PrepareMixConfig, {"dev_fraction": 1.0}, "dev_fraction = 1.0: must be between 0 and 1"),
    (configs.PrepareMixConfig, {"max_answer_tokens": 9}, "max_answer_tokens = 9 without --tokenizer"),
    (configs.PrepareMixConfig, {"licence": "free"}, "licence = 'free': must be one of 'any', 'commercial'"),
    (configs.LoraConfig, {"rank": -1}, "rank = -1: must be at least 0"),
    (configs.LoraConfig, {"rank": 4, "alpha": 0.0}, "alpha = 0.0: must be greater than 0"),
    (configs.LoraConfig, {"rank": 4, "base": "int4"}, "base = 'int4': must be one of 'float', 'int8', 'nf4'"),
    (configs.LoraConfig, {"base": "nf4"}, "say nothing with rank 0"),
    (configs.IndexConfig, {"backend": "faiss"}, "backend = 'faiss': must be one of 'scann', 'exact'"),
    (configs.RetrieveConfig, {"k": 0}, "k = 0"),
    (configs.ScoreConfig, {"batch_size": 0}, "batch_size = 0"),
    (configs.TrainGeneratorConfig, {"method": "sft"}, "method = 'sft': must be one of 'ralt', 'it'"),
    (configs.TrainRetrieverConfig, {"k": 1}, "k = 1: must be at least 2"),
    (configs.TrainRetrieverConfig, {"scores": None}, "needs --scores and --dev-scores"),
    (configs.TrainRetrieverConfig, {"lm_temperature": 0.0}, "lm_temperature = 0.0"),
    (configs.TrainRetrieverConfig, {"direction": "both"}, "'retriever_to_lm', 'lm_to_retriever'"),
    (configs.EvaluateConfig, {"mode": "open"}, "mode = 'open'"),
    (configs.EvaluateConfig, {"bootstrap_samples": 1}, "bootstrap_samples = 1: must be at least 10"),
    (configs.AskConfig, {"question": "  "}, "question is empty"),
    (configs.InspectConfig, {"lm_temperature": -1.0}, "lm_temperature = -1.0"),
    (configs.RunConfig, {"k_train": 11}, "k_train 11 is more than the k 10"),
    (configs.RunConfig, {"questions": None}, "give one, --questions FILE or --mix NAME"),
    (configs.RunConfig, {"mix": "paper"}, "questions = 'q', mix = 'paper': give one"),
    (configs.RunConfig, {"train_questions": 0}, "train_questions = 0"),
    (configs.QuickstartConfig, {"seed": -3}, "seed = -3"),
  ],
  ids=lambda v: v.__name__ if isinstance(v, type) else ",".join(v) if isinstance(v, dict) else "",
)
def test_a_wrong_value_is_named_with_what_it_must_be(cls, change, message):
  make(cls)
  with pytest.raises(UserError, match=message):
    make(cls, **change)


def test_contrastive_needs_no_teacher():
  make(configs.TrainRetrieverConfig, loss="contrastive", scores=None, dev_scores=None)


def test_defaults_are_the_papers():
  """LM-ft: lr 1e-5 to 1e-7, 200 warm-up, 500 steps of 64, k̃ 3. R-ft: τ 0.01, 1,237 warm-up, batch 512, top 10."""
  generator, retriever = make(configs.TrainGeneratorConfig), make(configs.TrainRetrieverConfig)
  assert (generator.optimizer.peak_lr, generator.optimizer.floor_lr, generator.optimizer.warmup_steps) == (
    1e-5,
    1e-7,
    200,
  )
  assert (generator.loop.steps, generator.loop.batch_size, generator.loop.evaluate_every, generator.k) == (
    500,
    64,
    100,
    3,
  )
  assert (retriever.lm_temperature, retriever.optimizer.peak_lr, retriever.optimizer.warmup_steps) == (0.01, 1e-5, 1237)
  assert (retriever.loop.steps, retriever.loop.epochs, retriever.loop.batch_size, retriever.k) == (None, 1.0, 512, 10)
  assert (retriever.score, retriever.direction) == ("token_prob", "retriever_to_lm")


def test_choices_are_those_of_the_losses():
  """Written twice, as config imports no jax."""
  from radit_jax import losses

  assert typing.get_args(configs.TargetScore) == typing.get_args(losses.LsrScore)
  assert typing.get_args(configs.Direction) == typing.get_args(losses.LsrDirection)
