"""What the quickstart promises about its own figures; the run itself is `.ci/run`'s, checked by check_quickstart."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from radit_jax.config import QuickstartConfig
from radit_jax.models.bert import Bert
from radit_jax.models.encoder import TextEncoder
from radit_jax.quickstart import judge, parts, run_config, shared_pair_objective
from radit_jax.quickstart.world import make_world
from radit_jax.training.step import PairBatch


def rows(**changes):
  names = ("closed_book", "base", "it", "lm_ft", "r_ft", "ra_dit", "ra_dit_gold", "r_ft_shuffled")
  match = {"closed_book": 0.02, "base": 0.35, "lm_ft": 0.9, "r_ft": 0.9, "ra_dit": 0.95, "ra_dit_gold": 0.97}
  recall = {"base": 0.36, "r_ft": 0.97, "r_ft_shuffled": 0.2}
  out = {n: {"exact_match": match.get(n, 0.1), "recall@1": recall.get(n)} for n in names}
  for name, value in changes.items():
    out[name.removesuffix("_recall")]["recall@1" if name.endswith("_recall") else "exact_match"] = value
  return out


def test_run_is_given_valid_options_and_the_quickstart_s_own():
  config = run_config(QuickstartConfig(workdir="w", seed=3, teacher="tuned", controls=True))
  assert (config.seed, config.teacher, config.controls) == (3, "tuned", True)
  assert config.corpus == "w/world/corpus.jsonl"


@pytest.mark.parametrize(
  ("changes", "void"),
  [
    ({}, None),
    ({"base": 0.14}, "base exact match 14.0% is outside 15%-45%"),
    ({"base": 0.46}, "base exact match 46.0%"),
    ({"base_recall": 0.29}, "base recall@1 29.0% is outside 30%-70%"),
    ({"base_recall": 0.71}, "base recall@1 71.0%"),
  ],
)
def test_a_base_without_room_or_signal_voids_the_comparison(changes, void):
  said = judge(rows(**changes))
  assert said is None if void is None else void in said


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, None),
    ({"ra_dit": 0.79}, "79.0% is below 80 %"),
    ({"ra_dit_gold": 0.94}, "94.0% is below 95 %"),
    ({"closed_book": 0.11}, "11.0% is above 10 %"),
    ({"r_ft_recall": 0.45}, "fewer than 10"),
    ({"r_ft_shuffled_recall": 0.39}, "more than 2"),
  ],
)
def test_check_names_what_the_report_does_not_show(changes, message):
  path = pathlib.Path(__file__).parent.parent / "scripts/check_quickstart.py"
  spec = importlib.util.spec_from_file_location("check_quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  report = {"rows": rows(**changes), "void": None, "peak_memory_bytes": 2**30, "comparisons": []}
  found = module.failures(report)
  assert found == [] if message is None else any(message in line for line in found)
  report["comparisons"] = [{"label": "both over one", "difference": -0.03, "ci": [-0.05, 0.0]}]
  assert module.failures(report) == found  # an interval that reaches zero says nothing
  report["comparisons"] = [{"label": "both over one", "difference": -0.03, "ci": [-0.05, -0.01]}]
  assert module.failures(report) == [*found, "both over one: -3.0 points [-5.0, -1.0]"]


def test_shared_warm_start_pulls_pairs_together():
  world = make_world(0, num_people=20)
  tokenizer = parts.encoder_tokenizer(world)
  encoder = TextEncoder(Bert(parts.encoder_config(len(tokenizer)), rngs=nnx.Rngs(0)), parts.EMBEDDING)
  rng = np.random.default_rng(0)
  ids = rng.integers(5, 60, (8, 6)).astype(np.int32)
  same = PairBatch(ids, np.ones((8, 6), bool), ids, np.ones((8, 6), bool))
  other = PairBatch(ids, np.ones((8, 6), bool), np.roll(ids, 1, axis=0), np.ones((8, 6), bool))
  objective = jax.jit(shared_pair_objective)
  assert float(objective(encoder, same)[0]) < float(objective(encoder, other)[0])
