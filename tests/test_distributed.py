"""Two real processes of four devices against one of eight: the same numbers, each reading its part, and one end."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import ROOT, finish, free_port, radit, start
from test_verbs import generator_config, index_config, made, run_config, score_config  # noqa: F401

from radit_jax import config as c
from radit_jax.data.examples import RetrievedStore, ScoreStore
from radit_jax.models.safetensors_files import read_directory
from radit_jax.retrieval.shards import read_embeddings
from radit_jax.training.metrics import read_metrics
from radit_jax.verbs.index import index
from radit_jax.verbs.run import run
from radit_jax.verbs.score import score
from radit_jax.verbs.train_generator import train_generator

LOOP = c.LoopConfig(steps=2, batch_size=8, log_every=1, evaluate_every=1)


def config_file(path, config):
  """A --config file that holds ``config``."""
  path.write_text(f"from radit_jax.config import *\n\nconfig = {config!r}\n")
  return path


def figures(workdir, name):
  return [
    [line[n] for n in ("step", "loss", "dev_loss", "grad_norm") if n in line]
    for line in read_metrics(workdir / name / "metrics.jsonl")
  ]


def test_the_recipe_in_two_processes_is_that_in_one(parts, tmp_path):
  """The best checkpoints are picked by answers, and by searches in an index that lies with both."""
  optimizer = c.OptimizerConfig(peak_lr=1e-3, floor_lr=1e-4, warmup_steps=1)
  options = {
    **{"k": 3, "test_questions": 4, "backend": "device"},
    "generator_tuning": c.TuningConfig(optimizer, dataclasses.replace(LOOP, select="exact_match", dev_questions=4)),
    "retriever_tuning": c.TuningConfig(optimizer, dataclasses.replace(LOOP, select="mrr", dev_questions=8)),
  }
  one, two = tmp_path / "one", tmp_path / "two"
  command = ["run", "--config", config_file(tmp_path / "recipe.py", run_config(parts, two, **options))]
  done = radit(command, command)
  assert [status for status, *_ in done] == [0, 0], done
  assert "radit ask --generator" in done[0][1]
  assert "radit ask" not in done[1][1]  # the first one speaks for all
  report = run(run_config(parts, one, **options)).report

  for name in ("train_generator", "train_retriever"):
    ours, theirs = figures(one, name), figures(two, name)
    assert len(ours) == 5
    # Divergences are differences of log-probabilities of size 1 to 10: what is rounded is that, whatever is left.
    for a, b in zip(ours, theirs, strict=True):
      assert b == pytest.approx(a, rel=1e-6, abs=1e-6)
    picked = [
      [[line["dev"].get(n) for n in ("exact_match", "mrr", "recall")] for line in measured if "dev" in line]
      for measured in (read_metrics(root / name / "metrics.jsonl") for root in (one, two))
    ]
    assert picked[0] == picked[1]
    assert len(picked[0]) == 3
    assert (one / name / "first_batch.txt").read_text() == (two / name / "first_batch.txt").read_text()
  retrieved = [RetrievedStore(root / "retrieved/base/train") for root in (one, two)]
  assert retrieved[0].fingerprint == retrieved[1].fingerprint
  for split in ("train", "dev"):
    for a, b in zip(*(ScoreStore(root / "scores" / split) for root in (one, two)), strict=True):
      assert (a.id, a.num_tokens.tolist(), a.valid.tolist()) == (b.id, b.num_tokens.tolist(), b.valid.tolist())
      np.testing.assert_allclose(b.log_likelihood, a.log_likelihood, rtol=1e-6)
  for name in ("train_generator/generator", "train_retriever/query_encoder"):
    ours, theirs = (read_directory(root / name) for root in (one, two))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
      np.testing.assert_allclose(theirs[tensor].read(), ours[tensor].read(), atol=1e-6)
    assert names(one / name) == names(two / name)
  other = json.loads((two / "report.json").read_text())
  for name, row in report["rows"].items():
    theirs = other["rows"][name]
    likelihoods = row.pop("answer_log_likelihood"), theirs.pop("answer_log_likelihood")
    assert row == theirs
    if row["n"]:
      assert likelihoods[1] == pytest.approx(likelihoods[0], rel=1e-6)
  assert names(one) - names(two) == set()
  assert not [name for name in names(two) if name.name.startswith(".radit")]


def names(root):
  return {p.relative_to(root) for p in root.rglob("*") if "checkpoints" not in p.parts}


def test_each_process_reads_and_holds_its_part_only(made, parts, tmp_path):  # noqa: F811
  port, script = free_port(), str(pathlib.Path(__file__).parent / "shares.py")
  command = [script, str(made), parts["generator"], parts["encoder"], str(tmp_path / "embeddings")]
  done = finish(*(start(command, i, port) for i in range(2)))
  assert [status for status, *_ in done] == [0, 0], done
  first, second = (json.loads(line) for _, line, _ in done)

  a, b = first["reads"], second["reads"]
  store = RetrievedStore(made / "retrieved/train")
  everything = list(range(len(store)))
  assert a["measured"] + b["measured"] == everything
  assert (a["lengths"], a["cut"], a["planned"]) == (b["lengths"], b["cut"], b["planned"])
  for own, other, planned in zip(a["steps"], b["steps"], a["planned"], strict=True):
    assert own + other == planned
  assert sorted(row for step in a["steps"] + b["steps"] for row in step) == everything
  assert a["ids"] == [[store[row].id for row in step] for step in a["steps"]]
  assert set(a["encoded"]) & set(b["encoded"]) == set()
  assert sorted(a["encoded"] + b["encoded"]) == list(range(40))
  files = sorted((tmp_path / "embeddings").glob("*.npy"))
  ours = np.load(made / "embeddings/embeddings-00000.npy")
  np.testing.assert_allclose(np.concatenate([np.load(f) for f in files]), ours, atol=1e-6)
  # Over a mesh of its own devices, a process makes every second shard of 8 alone.
  assert [sorted(p["own_shards"]) for p in (a, b)] == [
    [*range(8), *range(16, 24), *range(32, 40)],
    [*range(8, 16), *range(24, 32)],
  ]
  each = tmp_path / "embeddings-each"
  assert sorted(p.name for p in each.iterdir()) == [*(f"embeddings-{n:05d}.npy" for n in range(5)), "manifest.json"]
  np.testing.assert_allclose(np.concatenate(read_embeddings(each, verify="full")), ours, atol=1e-6)

  held = [process["placements"] for process in (first, second)]
  assert [p["beside"]["parts"] for p in held] == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert [p["apart"]["parts"] for p in held] == [[0, 2, 4, 6], [1, 3, 5, 7]]
  assert [p["same"]["parts"] for p in held] == [[0], [0]]
  for process in held:
    assert process.pop("spread")
    for mesh in process.values():
      assert (mesh["same"], mesh["own"]) == ([True, True], True)


def test_sigterm_to_one_stops_both_after_the_same_step_and_one_process_goes_on(made, parts, tmp_path):  # noqa: F811
  loop = c.LoopConfig(steps=100_000, batch_size=8, log_every=1, evaluate_every=100_000)
  config = generator_config(made, parts, tmp_path / "run", loop=loop)
  port, file = free_port(), config_file(tmp_path / "tuning.py", config)
  started = [start(["-m", "radit_jax.cli", "train-generator", "--config", str(file)], i, port) for i in range(2)]
  until = time.monotonic() + 240
  while len(read_metrics(tmp_path / "run/metrics.jsonl")) < 3 and time.monotonic() < until:
    assert [p.poll() for p, _ in started] == [None, None]
    time.sleep(0.1)
  os.kill(started[1][0].pid, signal.SIGTERM)
  done = finish(*started)
  step = read_metrics(tmp_path / "run/metrics.jsonl")[-1]["step"]
  said = f"radit: stopped by SIGTERM after step {step} of 100000; the same command continues"
  assert done[0][::2] == done[1][::2] == (75, said)
  assert [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal()] == [step]
  loop = c.LoopConfig(steps=step + 1, batch_size=8, log_every=1, evaluate_every=100_000)
  assert train_generator(generator_config(made, parts, tmp_path / "run", loop=loop)).steps == step + 1
  assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == [*range(step + 2), step + 1]


def test_scoring_that_one_process_stops_is_kept_for_both(made, parts, tmp_path):  # noqa: F811
  """The first one writes what was finished, and all leave out the same batches."""
  config = score_config(made, parts, "train", out=f"{tmp_path}/scores", batch_size=2)
  worker, port = ROOT / "benchmarks/fault_worker.py", free_port()
  command = ["score", "--config", str(config_file(tmp_path / "scoring.py", config))]
  started = [start([str(worker), "scoring", *command], i, port) for i in range(2)]
  until = time.monotonic() + 240
  while any(b"phase" not in os.pread(out.fileno(), 1 << 16, 0) for _, (out, _) in started) and time.monotonic() < until:
    assert [p.poll() for p, _ in started] == [None, None]
    time.sleep(0.05)
  os.kill(started[1][0].pid, signal.SIGTERM)
  said = "radit: stopped by SIGTERM after 3 of 6 batches; the same command continues"
  assert [(status, error) for status, _, error in finish(*started)] == [(75, said)] * 2
  assert sorted(p.name for p in (tmp_path / ".scores.partial").iterdir()) == ["part-00000.npy", "parts.json"]
  port = free_port()
  started = [start([str(worker), "batches", *command], i, port) for i in range(2)]
  for process, _ in started:
    assert process.wait(240) == 0
  assert [os.pread(out.fileno(), 1 << 16, 0).count(b"batch\n") for _, (out, _) in started] == [3, 3]
  assert not (tmp_path / ".scores.partial").exists()
  score(dataclasses.replace(config, out=f"{tmp_path}/whole"))
  for a, b in zip(ScoreStore(tmp_path / "scores"), ScoreStore(tmp_path / "whole"), strict=True):
    assert (a.id, a.num_tokens.tolist(), a.valid.tolist()) == (b.id, b.num_tokens.tolist(), b.valid.tolist())
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-6)


def test_a_process_that_fails_ends_the_other_with_its_status_and_its_reason(made, parts, tmp_path):  # noqa: F811
  commands = [
    ["train-generator", "--config", config_file(tmp_path / f"{i}.py", generator_config(made, found, tmp_path / "run"))]
    for i, found in enumerate((parts, {**parts, "generator": f"{tmp_path}/nowhere"}))
  ]
  reason = f"{tmp_path}/nowhere: no such directory (and no id of a Hub model, which reads owner/name)"
  assert radit(*commands, within_s=300) == [
    (2, "", f"radit: process 1 ended: UserError: {reason}"),
    (2, "", f"radit: error: {reason}"),
  ]
  assert not (tmp_path / "run/run.json").exists()


def test_a_directory_that_is_not_shared_is_refused_by_both(made, parts, tmp_path):  # noqa: F811
  (tmp_path / "own").mkdir()
  commands = [
    ["train-generator", "--config", config_file(tmp_path / f"{i}.py", generator_config(made, parts, workdir))]
    for i, workdir in enumerate((tmp_path / "runs/run", tmp_path / "own/runs/run"))
  ]
  done = radit(*commands, within_s=300)
  assert [status for status, *_ in done] == [2, 2]
  assert all("process 1 does not see what process 0 writes there" in error for _, _, error in done), done
  assert not list(tmp_path.rglob(".radit*"))
  assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    (
      {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      "waited 1 s for 2 processes at 127.0.0.1:{port} (this is process 1); start the same command on every one of them",
    ),
    (
      {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"},
      "JAX_COORDINATOR_ADDRESS is set and JAX_PROCESS_ID is not: set all of JAX_COORDINATOR_ADDRESS, "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    ),
    (
      {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      "JAX_PROCESS_ID=2: must be below JAX_NUM_PROCESSES=2",
    ),
    (
      {"JAX_COORDINATOR_ADDRESS": "here", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      "JAX_COORDINATOR_ADDRESS=here: must be HOST:PORT of process 0",
    ),
  ],
)
def test_processes_that_cannot_meet_are_told_in_one_line(variables, message):
  port = free_port()
  environment = {name: value.format(port=port) for name, value in variables.items()}
  command = ["-m", "radit_jax.cli", "prepare", "--workdir", "w", "--corpus", "c", "--questions", "q"]
  done = subprocess.run(
    [sys.executable, *command],
    env={**os.environ, "PYTHONPATH": str(ROOT), "RADIT_CONNECT_TIMEOUT_S": "1", **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (2, f"radit: error: {message.format(port=port)}\n")


def test_verbs_for_one_process_say_so():
  done = radit(["quickstart"], ["export", "somewhere", "--out", "x"], within_s=300)
  assert [status for status, *_ in done] == [2, 2]
  assert done[0][2].startswith("radit: error: radit quickstart runs in one process; start it once, with ")


def test_an_index_over_the_devices_of_both_processes(made, parts, tmp_path):  # noqa: F811
  """Each holds half of the rows; all search, and the first one stores what exact search finds."""
  index(index_config(made, parts, index=f"{tmp_path}/index", backend="device", device_dtype="float32"))
  stores = ["--passages", made / "passages", "--index", tmp_path / "index", "--encoder", parts["encoder"]]
  asked = ["--questions", made / "split/test.jsonl", "--k", "5", "--batch-size", "16", "--out", tmp_path / "out"]
  command = ["retrieve", *stores, *asked, "--drop-same-document"]
  done = radit(command, command)
  assert [status for status, *_ in done] == [0, 0], done
  retrieved = RetrievedStore(made / "retrieved/test"), RetrievedStore(tmp_path / "out")
  for one, two in zip(*retrieved, strict=True):
    assert two.passage_rows.tolist() == one.passage_rows.tolist()
