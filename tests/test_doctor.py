"""Faults planted into real small runs, each named by `radit doctor`; a healthy run, of which nothing is found."""

import dataclasses
import errno
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from test_verbs import PROMPT, generator_config, made, retriever_config  # noqa: F401

from radit_jax import cli, files
from radit_jax import config as c
from radit_jax.data.examples import RetrievedStore, ScoreStore, write_retrieved, write_scores
from radit_jax.errors import TrainingError, UserError
from radit_jax.models.pretrained import fingerprint
from radit_jax.training import metrics as training_metrics
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.verbs.causes import causes
from radit_jax.verbs.doctor import doctor
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever

LOOP = c.LoopConfig(steps=12, batch_size=8, log_every=1, evaluate_every=4, keep=3)
OPTIMIZER = c.OptimizerConfig(peak_lr=3e-3, floor_lr=1e-3, warmup_steps=1, weight_decay=0.0)


@pytest.fixture(scope="module")
def stores(made, tmp_path_factory):  # noqa: F811
  """Makes stores of the training examples whose passages, scores or hits a test has changed; dev is the same store."""
  train = RetrievedStore(made / "retrieved/train")
  teacher = json.loads((made / "scores/train/manifest.json").read_text())

  def make(log_likelihood, change=lambda e: e, **fields):
    root = tmp_path_factory.mktemp("stores")
    examples = [change(e) for e in train]
    stated = {n: v for n, v in train.manifest.items() if n not in ("kind", "files", "count", "fingerprint")}
    write_retrieved(examples, root / "retrieved", manifest={**stated, **fields})
    stated = {n: v for n, v in teacher.items() if n not in ("kind", "files", "count", "fingerprint")}
    stated["retrieved"] = RetrievedStore(root / "retrieved").fingerprint
    own = list(ScoreStore(made / "scores/train"))
    scores = [
      dataclasses.replace(s, log_likelihood=np.asarray(log_likelihood(e, s), np.float32))
      for e, s in zip(examples, own, strict=True)
    ]
    write_scores(scores, root / "scores", manifest=stated)
    return {f"{dev}{name}": f"{root}/{name}" for dev in ("", "dev_") for name in ("retrieved", "scores")}

  return make


def gold_first(example, scores):
  """A teacher that knows: its best passage has twice the likelihood per token, and which one that is can be learnt."""
  best = int(np.argmin(np.where(example.valid, example.passage_rows, 10**6)))
  return np.where(np.arange(len(example.valid)) == best, -0.5, -1.2) * scores.num_tokens


def tune(made, parts, workdir, optimizer=OPTIMIZER, **changes):  # noqa: F811
  loop = changes.pop("loop", LOOP)
  train_retriever(retriever_config(made, parts, workdir, loop=loop, optimizer=optimizer, **changes))
  return doctor(c.DoctorConfig(str(workdir), rerun=False))


@pytest.fixture(scope="module")
def healthy(made, parts, stores, tmp_path_factory):  # noqa: F811
  root = tmp_path_factory.mktemp("healthy") / "run"
  return tune(made, parts, root, lm_temperature=0.1, **stores(gold_first)), root


def test_nothing_is_found_in_a_healthy_run(healthy):
  result, root = healthy
  assert result.findings == ()
  assert not result.failed
  losses = [json.loads(line).get("dev_loss") for line in (root / "metrics.jsonl").read_text().splitlines()]
  assert min(x for x in losses[1:] if x is not None) < 0.9 * losses[0]


def scaled(parts, root, temperature):
  """The encoder with another score temperature."""
  shutil.copytree(parts["encoder"], root)
  stated = files.read_json(root / "radit.json") if (root / "radit.json").exists() else {}
  files.write_json(root / "radit.json", {**stated, "score_temperature": temperature})
  return str(root)


def nothing_right(example):
  return dataclasses.replace(example, answers=("Nowhere",), gold_rows=())


def one_passage_many_times(example):
  return dataclasses.replace(example, passage_rows=np.repeat(example.passage_rows[:1], len(example.valid)))


def one_passage(example):
  first = np.arange(len(example.valid)) == 0
  return dataclasses.replace(
    example,
    valid=first,
    passage_rows=np.where(first, example.passage_rows, -1),
    scores=np.where(first, example.scores, -np.inf).astype(np.float32),
  )


FAULTS = {
  "learning rate": ({"optimizer": c.OptimizerConfig(peak_lr=1e-9, floor_lr=0.0, warmup_steps=1)}, "has hardly moved"),
  "teacher too warm": ({"lm_temperature": 100.0}, "targets are uniform: --lm-temperature 100.0 is too high"),
  "teacher too cold": (
    {"lm_temperature": 1e-6, "optimizer": c.OptimizerConfig(peak_lr=1e-5, floor_lr=1e-6)},
    "targets are one-hot: --lm-temperature 1e-06 is too low",
  ),
  "underflow": ({"score": "prob", "likelihood": lambda e, s: -200 - np.arange(5.0)}, "underflow with --score prob"),
  "deaf teacher": ({"likelihood": lambda e, s: np.full(5, -3.0)}, "equally likely whatever the passage is"),
  "no answer": (
    {"change": nothing_right, "missed": True},
    "the answer is in no passage of 100% of the training",
  ),
  "duplicates": ({"change": one_passage_many_times}, "have one and the same embedding"),
  "retriever too warm": ({"temperature": 1e4}, "p_R is uniform: the score temperature"),
  "retriever settled": (
    {"temperature": 1e-6, "optimizer": c.OptimizerConfig(peak_lr=1e-12, floor_lr=0.0)},
    "p_R has settled on one passage",
  ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(made, parts, stores, tmp_path, name):  # noqa: F811
  changes, cause = FAULTS[name]
  changes = {"lm_temperature": 0.1, **changes}
  missed = changes.pop("missed", False)
  fields = {"hits": [5] * len(RetrievedStore(made / "retrieved/train"))} if missed else {}
  planted = stores(changes.pop("likelihood", gold_first), changes.pop("change", lambda e: e), **fields)
  if temperature := changes.pop("temperature", None):
    changes["encoder"] = scaled(parts, tmp_path / "encoder", temperature)
    changes["passage_encoder"] = parts["encoder"]
    assert fingerprint(changes["encoder"]) != fingerprint(parts["encoder"])
  result = tune(made, parts, tmp_path / "run", **{**planted, **changes})
  assert result.failed
  assert cause in result.findings[0], result.findings


def test_scores_of_other_questions_are_named(made, parts, stores, tmp_path):  # noqa: F811
  """As if two files had been mixed up: nothing that is learnt of the training examples is true of the dev ones."""

  def mixed_up(seed):
    rng = np.random.default_rng(seed)
    return stores(lambda e, s: rng.permutation([-0.5, -1.0, -1.5, -2.0, -2.5]) * s.num_tokens)

  planted = mixed_up(0) | {name: path for name, path in mixed_up(1).items() if name.startswith("dev")}
  result = tune(made, parts, tmp_path / "run", lm_temperature=0.1, shuffle_teacher=True, **planted)
  assert "has nothing to do with the retriever's" in result.findings[0], result.findings
  assert "as --shuffle-teacher makes them" in result.findings[0]


def test_steps_left_out_are_named(made, parts, stores, tmp_path):  # noqa: F811
  bad = RetrievedStore(made / "retrieved/train")[3].id
  planted, clean = stores(lambda e, s: np.where(e.id == bad, np.nan, gold_first(e, s))), stores(gold_first)
  planted |= {name: path for name, path in clean.items() if name.startswith("dev")}
  result = tune(made, parts, tmp_path / "run", lm_temperature=0.1, **planted)
  assert "steps were left out as their loss or gradient was not finite" in result.findings[0]


def test_a_training_set_learnt_by_heart_and_a_rate_that_is_too_high():
  train = [{"step": s, "loss": 2.0 - 0.1 * s, "lr": 1e-3, "nonfinite_steps": 0} for s in range(1, 11)]
  dev = [{"step": s, "dev_loss": 2.0 + 0.1 * s} for s in (0, 5, 10)]
  assert "learns its examples by heart" in causes([*train, *dev], {"optimizer.peak_lr": 1e-3})[0]
  rising = [{**line, "loss": 2.0 + line["step"]} for line in train]
  assert "--optimizer.peak-lr 0.001 is too high" in causes([*rising, *dev], {"optimizer.peak_lr": 1e-3})[0]
  assert causes([*train, {"step": 0, "dev_loss": 2.0}, {"step": 10, "dev_loss": 1.0}], {}) == []


def test_figures_that_were_not_finite_are_passed_over():
  train = [{"step": s, "loss": 2.0, "lr": 1e-9, "nonfinite_steps": 0} for s in range(1, 4)]
  measured = [{"moved": None, "rank_correlation": None}, {"moved": 1e-6, "rank_correlation": None}]
  dev = [{"step": s, "dev_loss": 2.0, "dev": figures} for s, figures in enumerate([*measured, measured[0]])]
  assert "has hardly moved (1 - cosine 1.0e-06)" in causes([*train, *dev], {})[0]
  lost = [{**line, "dev": measured[0]} for line in dev]
  assert "neither the training nor the dev loss moves" in causes([*train, *lost], {})[0]


# Steps run again, and files.


def test_steps_run_again_are_those_of_the_run(healthy):
  _, root = healthy
  result = doctor(c.DoctorConfig(str(root)))
  assert result.findings == ()
  assert any("were run again, twice" in note for note in result.notes), result.notes
  assert [p.name for p in root.parent.iterdir()] == ["run"]  # and nothing is left


@pytest.mark.parametrize("error", [UserError("mesh of 8 on 1 device"), OSError(30, "Read-only file system", "/runs")])
def test_steps_that_cannot_be_run_again_here_are_a_note(healthy, monkeypatch, error):
  def refused(*args):
    raise error

  monkeypatch.setattr(sys.modules[doctor.__module__], "_again", refused)
  result = doctor(c.DoctorConfig(str(healthy[1])))
  assert result.findings == ()
  assert result.notes[-1].endswith(f"no steps run again: {error}")


def full(*args, **figures):
  raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("module", "name"), [(Checkpoints, "_check_room"), (training_metrics, "open")])
def test_a_copy_that_the_disk_does_not_take_is_a_note(healthy, monkeypatch, module, name):
  monkeypatch.setattr(module, name, full, raising=False)
  result = doctor(c.DoctorConfig(str(healthy[1])))
  assert result.findings == ()
  assert "no steps run again: " in result.notes[-1]
  assert "No space left on device" in result.notes[-1]


def test_steps_that_do_not_go_on_are_a_finding(healthy, monkeypatch):
  def diverged(*args):
    raise TrainingError("step 5: loss nan is not finite")

  monkeypatch.setattr(sys.modules[doctor.__module__], "_again", diverged)
  result = doctor(c.DoctorConfig(str(healthy[1])))
  assert "cannot be run again: step 5: loss nan is not finite" in result.findings[-1]


def test_a_generator_is_run_again_too_and_another_result_is_corruption(made, parts, tmp_path):  # noqa: F811
  train_generator(generator_config(made, parts, tmp_path / "run", loop=dataclasses.replace(LOOP, steps=4)))
  result = doctor(c.DoctorConfig(str(tmp_path / "run")))
  assert not [f for f in result.findings if "corruption" in f], result.findings
  path = tmp_path / "run/metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines:
    if "loss" in line:
      line["loss"] = float(np.nextafter(np.float32(line["loss"]), np.float32(9)))
  path.write_text("".join(json.dumps(x) + "\n" for x in lines))
  result = doctor(c.DoctorConfig(str(tmp_path / "run")))
  assert "silent data corruption, then or now" in result.findings[-1], result.findings


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("query_encoder/model.safetensors", lambda b: b[:-5], "model.safetensors"),
    ("run.json", lambda b: b[: len(b) // 2], "run.json:"),
    ("metrics.jsonl", lambda b: b.replace(b'{"step": 3', b'{"ste'), "not a line of figures"),
    ("checkpoints", None, "SHA-256 differs"),
  ],
)
def test_damaged_files_are_named(healthy, tmp_path, name, damage, message, capsys):
  root = tmp_path / "run"
  shutil.copytree(healthy[1], root)
  if damage is None:
    path = max((p for p in (root / name).rglob("*") if p.is_file() and p.name != "manifest.json"), key=_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
  else:
    (root / name).write_bytes(damage((root / name).read_bytes()))
  assert cli.main(["doctor", str(root), "--no-rerun"]) == 1
  assert message in capsys.readouterr().out


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size


def test_stores_and_index_of_a_run_are_held_against_their_manifests(made, tmp_path, capsys):  # noqa: F811
  root = tmp_path / "run"
  shutil.copytree(made, root)
  assert cli.main(["doctor", str(root)]) == 0
  assert "nothing found" in capsys.readouterr().out
  for place in ("passages", "retrieved/dev", "scores/dev", "index", "embeddings"):
    path = max((p for p in (root / place).rglob("*") if p.is_file() and p.name != "manifest.json"), key=_size)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
  assert cli.main(["doctor", str(root)]) == 1
  assert capsys.readouterr().out.count("SHA-256 differs from manifest.json") == 5


def test_a_call_that_is_wrong(tmp_path, capsys):
  for arguments in ([str(tmp_path / "nothing")], [str(tmp_path)]):
    assert cli.main(["doctor", *arguments]) == 2
  told = capsys.readouterr().err
  assert "nothing: no such directory" in told
  assert "nothing of a run here" in told
