"""What a signal is granted: time to save once all know where they stop, and no line of a saved step is lost."""

import pathlib
import subprocess
import sys

from radit_jax.training import manifests
from radit_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent

#: One of two processes, of which the other has noticed the signal at its first point: both stop at the second.
SAVES = """
import os, signal, time
from radit_jax import hosts, preemption

preemption._GRACE_S = 0.5
told = {"radit/stop/0/000001": "1 SIGTERM"}
hosts.count, hosts.index = lambda: 2, lambda: 0
hosts.tell = told.setdefault
hosts.said = lambda name: [text for key, text in sorted(told.items()) if key.startswith(name + "/")]
hosts.leave = lambda status, why: None
with preemption.heeded(print):
  with preemption.deferred(lambda name: "ended before it had saved") as stop_here:
    stop_here()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GAP)
    while stop_here() is None:
      time.sleep(0.01)
    time.sleep(1.5)
    print("saved")
    raise SystemExit(75)
"""

RUN = """
import os, signal, sys, threading, time
import jax.numpy as jnp
import numpy as np
from radit_jax import hosts, preemption
from radit_jax.config import LoopConfig, OptimizerConfig
from radit_jax.sharding import make_mesh
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.loop import train

preemption._GRACE_S = 0.5
"""

#: A run whose main thread is deaf behind its second step.
DEAF = (
  RUN
  + """
def batches(start):
  for step in range(start, 6):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)
      while True:
        time.sleep(0.05)
    yield (f"example-{step}",), {"x": np.full(8, step, np.float32)}

def objective(model, batch):
  return jnp.sum((model["w"] - batch["x"]) ** 2), jnp.float32(8)

with preemption.heeded(print):
  train({"w": jnp.zeros(1)}, objective, batches, total_steps=6, workdir=sys.argv[1], mesh=make_mesh(),
        loop=LoopConfig(steps=6, batch_size=8, log_every=1, evaluate_every=100, tensorboard=True),
        optimizer=OptimizerConfig(peak_lr=0.1, floor_lr=0.01, warmup_steps=1))
"""
)


#: One of two processes that are asked to stop while they write step 4, which takes longer than the other waits.
WRITES = (
  RUN
  + """
told, mesh = {}, make_mesh()
hosts.count, hosts.index = lambda: 2, lambda: 0
hosts.tell = told.setdefault
hosts.said = lambda name: [text for key, text in sorted(told.items()) if key.startswith(name + "/")]
hosts.leave = lambda status, why: None
seal = Checkpoints._seal

def slow(self, step, *args):
  if step == 4:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)
  seal(self, step, *args)

Checkpoints._seal = slow

def batches(start):
  for step in range(start, 6):
    yield (f"example-{step}",), {"x": np.full(8, step, np.float32)}

def objective(model, batch):
  return jnp.sum((model["w"] - batch["x"]) ** 2), jnp.float32(8)

with preemption.heeded(print):
  train({"w": jnp.zeros(1)}, objective, batches, total_steps=6, workdir=sys.argv[1], mesh=mesh,
        loop=LoopConfig(steps=6, batch_size=8, log_every=1, evaluate_every=2),
        optimizer=OptimizerConfig(peak_lr=0.1, floor_lr=0.01, warmup_steps=1))
"""
)


#: A signal that comes while the collector of garbage calls a function, which is where JAX has one.
LOST = """
import gc, os, signal, time
from radit_jax import preemption
from radit_jax.errors import Preempted

def collected(phase, info):
  if phase == "stop" and not sent:
    sent.append("once")
    os.kill(os.getpid(), signal.SIGINT)

sent = []
gc.callbacks.append(collected)
try:
  with preemption.heeded(print):
    gc.collect()
    time.sleep(3)
    print("went on")
except Preempted as e:
  print(e, sent)
"""


def run(code: str, *args: str) -> tuple[int, str]:
  done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False)
  return done.returncode, done.stdout + done.stderr


def test_a_process_that_saves_is_left_to_it():
  """However long it takes: the others save with it."""
  status, said = run(SAVES.replace("GAP", "0"))
  assert (status, said) == (75, "saved\n")


def test_a_signal_is_heeded_where_python_drops_what_is_raised():
  status, said = run(LOST)
  assert (status, said) == (0, "stopped by SIGINT; the same command continues ['once']\n")


def test_several_processes_that_do_not_meet_in_time_end_without_a_save():
  status, said = run(SAVES.replace("GAP", "1.5"))
  assert (status, said) == (75, "radit: ended before it had saved\n")


def test_several_processes_finish_a_save_that_is_under_way(tmp_path):
  status, said = run(WRITES, str(tmp_path))
  assert status == 75, said
  assert [s.number for s in manifests.steps(tmp_path / "checkpoints") if not s.problem] == [4]


def test_what_is_saved_for_a_deaf_main_thread_has_its_lines(tmp_path):
  status, said = run(DEAF, str(tmp_path))
  assert status == 75, said
  assert said.splitlines()[-1] == "radit: stopped by SIGTERM after step 2 of 6; the same command continues"
  assert [s.number for s in manifests.steps(tmp_path / "checkpoints") if not s.problem] == [2]
  assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert events.stat().st_size > 0
