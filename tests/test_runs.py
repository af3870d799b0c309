"""Recipes: the same call continues a directory, another one is refused with the field and both values."""

import dataclasses

import pytest

from radit_jax import files, runs
from radit_jax.config import LoopConfig, TrainGeneratorConfig
from radit_jax.errors import UserError

CONFIG = TrainGeneratorConfig(
  "w", generator="g", retrieved="r", dev_retrieved="d", passages="p", loop=LoopConfig(steps=5)
)
INPUTS = {"generator": "1", "retrieved": "2", "dev_retrieved": "3", "passages": "4"}


def recipe(inputs=INPUTS, **changes):
  return runs.recipe(dataclasses.replace(CONFIG, **changes), inputs=inputs)


def test_the_same_recipe_continues_wherever_its_inputs_lie(tmp_path):
  runs.open_run(tmp_path, "train", recipe())
  runs.open_run(tmp_path, "train", recipe(generator="elsewhere", workdir="x"))  # the same data by another path
  stored = files.read_json(tmp_path / "run.json")
  assert {"jax", "flax", "python", "radit_jax"} <= set(stored["versions"])


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    (recipe(k=4), r"k = 3, this call has 4"),
    (recipe(loop=LoopConfig(steps=5, batch_size=8)), r"loop.batch_size = 64, this call has 8"),
    (recipe({**INPUTS, "generator": "9"}), r"generator = '1', this call has '9'"),
    (recipe({**INPUTS, "generator": "c0ffee" + 58 * "0"}), r"generator = '1', this call has 'c0ffee000000';"),
  ],
)
def test_another_recipe_is_refused(tmp_path, changed, message):
  runs.open_run(tmp_path, "train", recipe())
  with pytest.raises(UserError, match=message):
    runs.open_run(tmp_path, "train", changed)
  assert files.read_json(tmp_path / "run.json")["recipe"] == recipe()  # and what was there stays


def test_only_other_inputs_alone_are_stale(tmp_path):
  """Who derives a directory may make it anew for other inputs, and must not for other options."""
  other = {**INPUTS, "generator": "9"}
  runs.open_run(tmp_path, "train", recipe())
  with pytest.raises(runs.StaleInputs):
    runs.check_run(tmp_path, "train", recipe(other))
  with pytest.raises(UserError, match="k = 3") as caught:
    runs.check_run(tmp_path, "train", recipe(other, k=4))
  assert not isinstance(caught.value, runs.StaleInputs)


def test_checking_writes_nothing(tmp_path):
  runs.check_run(tmp_path / "new", "train", recipe())
  assert not (tmp_path / "new").exists()


def test_length_logging_and_retention_may_change(tmp_path):
  runs.open_run(tmp_path, "train", recipe())
  runs.open_run(tmp_path, "train", recipe(loop=LoopConfig(steps=50, log_every=1, keep=3, patience=2)))


def test_another_verb_is_refused(tmp_path):
  runs.open_run(tmp_path, "train", recipe())
  with pytest.raises(UserError, match="made by 'train', this is 'score'"):
    runs.open_run(tmp_path, "score", recipe())


def test_finished_needs_a_manifest_of_the_same_recipe(tmp_path):
  assert not runs.finished(tmp_path / "store", "passages", recipe())
  with files.atomic_directory(tmp_path / "store") as d:
    (d / "rows").write_text("x")
    files.write_manifest(d, "passages", {"recipe": recipe()})
  assert runs.finished(tmp_path / "store", "passages", recipe())
  with pytest.raises(UserError, match="k = 3"):
    runs.finished(tmp_path / "store", "passages", recipe(k=2))
  (tmp_path / "store/rows").write_text("longer")
  with pytest.raises(UserError, match="6 bytes"):
    runs.finished(tmp_path / "store", "passages", recipe())
