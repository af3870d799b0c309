"""Metrics read back from what TensorBoard and Weights & Biases read; neither may tell what it was not given."""

import struct

import pytest

from radit_jax import config as c
from radit_jax.errors import UserError
from radit_jax.training.metrics import MetricsWriter, read_metrics
from radit_jax.training.sinks import Sinks, WandbSink, check_sinks, chosen_sinks

LINES = [
  (0, {"dev_loss": 2.5}),
  (1, {"loss": 2.25, "batch_ids_hash": "ab", "timing": {"tokens_per_s": 100.0, "goodput": 0.5}}),
  (2, {"loss": float("nan"), "grad_norm": 1.0}),
]


def events(directory):
  """(tag, step, value) of every scalar, and the steps from which on earlier files count no more."""
  from tensorboardX.proto import event_pb2

  scalars, purged = [], []
  for path in sorted(directory.iterdir()):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (size,) = struct.unpack_from("<Q", content, at)
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
      at += 12 + size + 4
      scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
      if event.HasField("session_log"):
        purged.append(event.step)
  return scalars, purged


def test_tensorboard_reads_what_the_jsonl_holds(tmp_path):
  pytest.importorskip("tensorboardX")
  loop = c.LoopConfig(tensorboard=True)
  sinks = Sinks(MetricsWriter(tmp_path / "metrics.jsonl"), *chosen_sinks(loop, tmp_path, resume_step=0))
  for step, figures in LINES:
    sinks.write(step, **figures)
  sinks.close()
  scalars, purged = events(tmp_path / "tensorboard")
  assert scalars == [
    ("dev_loss", 0, 2.5),
    ("loss", 1, 2.25),
    ("timing/tokens_per_s", 1, 100.0),
    ("timing/goodput", 1, 0.5),
    ("grad_norm", 2, 1.0),
  ]
  assert purged == []
  assert [line.get("loss") for line in read_metrics(tmp_path / "metrics.jsonl")] == [None, 2.25, None]


def test_tensorboard_forgets_steps_that_are_run_again(tmp_path):
  pytest.importorskip("tensorboardX")
  for resume_step in (0, 0, 4):
    (sink,) = chosen_sinks(c.LoopConfig(tensorboard=True), tmp_path, resume_step=resume_step)
    sink.write(resume_step + 1, loss=1.0)
    sink.close()
    for path in (tmp_path / "tensorboard").iterdir():  # named by the second it was made in
      path.rename(f"{path}.earlier")
  assert set(events(tmp_path / "tensorboard")[1]) == {0, 5}


def test_wandb_keeps_a_run_on_this_machine_and_no_secret(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_API_KEY", "0" * 32 + "c0ffee00")
  monkeypatch.setenv("HF_TOKEN", "hf_c0ffeec0ffee")
  monkeypatch.setenv("WANDB_MODE", "online")
  sink = WandbSink(tmp_path)
  for step, figures in LINES:
    sink.write(step, **figures)
  sink.close()
  (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
  content = run.read_bytes()
  for name in (b"dev_loss", b"grad_norm", b"timing/goodput", b"2.25"):
    assert name in content
  for path in tmp_path.rglob("*"):
    assert path.is_dir() or b"c0ffee" not in path.read_bytes(), path


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  for name, loop in (("tensorboard", c.LoopConfig(tensorboard=True)), ("wandb", c.LoopConfig(wandb=True))):
    with pytest.raises(UserError, match=rf'pip install "radit_jax\[{name}\]"'):
      check_sinks(loop, tmp_path)
    with pytest.raises(UserError, match=f"loop.{name}: cannot write to gs://bucket/run"):
      check_sinks(loop, "gs://bucket/run")
  check_sinks(c.LoopConfig(), tmp_path)
  assert chosen_sinks(c.LoopConfig(), tmp_path, resume_step=0) == []


def test_one_sink_that_fails_keeps_no_other_from_closing():
  closed = []

  class Sink:
    def __init__(self, name, error=None):
      self.name, self.error = name, error

    def write(self, step, **figures):
      pass

    def close(self):
      closed.append(self.name)
      if self.error:
        raise self.error

  with pytest.raises(OSError, match="full"):
    Sinks(Sink("a"), Sink("b", OSError("full")), Sink("c")).close()
  assert sorted(closed) == ["a", "b", "c"]
