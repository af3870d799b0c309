"""What a run survives, measured: each row of the table in docs/reliability.md is one of the functions here.

Run: python benchmarks/faults.py --row cuts --page docs/reliability.md
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from fault_runs import (
  KINDS,
  Kind,
  World,
  content,
  devices,
  intact,
  last_word,
  make_world,
  metrics,
  outcome,
  reached,
  start,
  timed_end,
  tune,
  verb_of,
)
from page import table, write_section
from processes import free_port

from radit_jax.config import LoopConfig, MeshConfig, OptimizerConfig
from radit_jax.errors import Preempted, TrainingError, UserError
from radit_jax.process import keep_heap
from radit_jax.sharding import make_mesh
from radit_jax.training import manifests
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.loop import train
from radit_jax.verbs.score import score

Row = Literal["cuts", "kills", "signals", "files", "disk", "nan", "lost", "mesh", "accumulate", "memory"]
PHASES = ("compile", "step", "evaluation", "scoring", "encoding", "index build", "saving")


@dataclasses.dataclass(frozen=True)
class Config:
  """Which fault, and how often.

  Attributes:
    row: of the table.
    kills_ralt: SIGKILLs in generator tuning.
    kills_lsr: in retriever tuning.
    seed: of the moments of the kills.
    work: a directory for the runs; None takes a temporary one.
    page: Markdown file whose section of that name gets the figures; None prints them only.
  """

  row: Row
  kills_ralt: int = 100
  kills_lsr: int = 50
  seed: int = 0
  work: str | None = None
  page: str | None = None


class Cut(BaseException):
  """Ends a run where it stands, as a kill would."""


def cut_points(
  world: World, root: pathlib.Path, kind: Kind, *, signalled: Sequence[int], ended: Sequence[int], steps: int = 30
) -> dict[str, int]:
  """Runs that get a signal after these steps, or end there without a save, and are continued.

  Returns:
    of both, how many differ in parameters, optimizer state, exported bytes or lines from the uninterrupted run.
  """
  whole = root / f"{kind}-whole"
  tune(world.config(kind, whole, steps=steps))
  expected, differing = outcome(whole), {"signalled": 0, "ended": 0}
  for how, cuts in (("signalled", signalled), ("ended", ended)):
    for cut in cuts:
      workdir = root / f"{kind}-{how}-{cut}"

      def stop(
        stage: str, done: int, total: int, unit: str, /, cut: int = cut, how: str = how, **figures: float
      ) -> None:
        if unit == "steps" and done == cut < total:
          if how == "ended":
            raise Cut
          os.kill(os.getpid(), signal.SIGTERM)

      with contextlib.suppress(Cut, Preempted):
        tune(world.config(kind, workdir, steps=steps), stop)
      assert not (workdir / "result.json").exists(), f"was not cut at {cut}"
      tune(world.config(kind, workdir, steps=steps))
      differs = outcome(workdir) != expected
      differing[how] += differs
      print(f"{kind} {how} after step {cut}: {'differs' if differs else 'the same'}", file=sys.stderr, flush=True)
      shutil.rmtree(workdir)
      jax.clear_caches()  # each program holds memory maps, of which a process may have 65,530
  return differing


def every_cut(world: World, root: pathlib.Path, kind: Kind, how: str) -> int:
  """Of 30 steps: how many differ."""
  cuts = {"signalled": range(0), "ended": range(0), how: range(1, 30)}
  return cut_points(world, root / how, kind, signalled=cuts["signalled"], ended=cuts["ended"])[how]


def cuts(config: Config, root: pathlib.Path) -> str:
  world = make_world(root / "world")
  ways = {"signalled": "SIGTERM after each step", "ended": "ended after each step without a save"}
  each = [(kind, how) for kind in KINDS for how in ways]
  with concurrent.futures.ProcessPoolExecutor(len(each), mp_context=multiprocessing.get_context("spawn")) as pool:
    started = [pool.submit(every_cut, world, root, kind, how) for kind, how in each]
    rows = [[kind, ways[how], "29", str(of.result())] for (kind, how), of in zip(each, started, strict=True)]
  return table(["run of 30 steps, saved every 5", "cut", "runs", "that differ in any bit"], rows)


def kill(
  world: World, root: pathlib.Path, kind: Kind, kills: int, moments: random.Random, *, steps: int = 400, every: int = 20
) -> dict[str, int]:
  """SIGKILL at random moments of one run after the other, each continued to its end."""
  root.mkdir(parents=True, exist_ok=True)
  options = {"steps": steps, "evaluate_every": every}
  began = time.monotonic()
  assert start(world.config(kind, root / "whole", **options), root / "run.py").wait() == 0
  length = time.monotonic() - began
  expected = outcome(root / "whole")
  found = {"kills": 0, "saving": 0, "finished": 0, "unrecoverable": 0, "differing": 0, "lost": 0, "beyond": 0}
  workdir, before = root / "killed", 0
  while found["kills"] < kills or workdir.exists():
    process = start(world.config(kind, workdir, **options), root / "run.py")
    if found["kills"] < kills:
      # Once the newest line is older than this process: it has begun to train, and is found anywhere in it.
      until = time.monotonic() + 5 * length
      while reached(workdir) <= before and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
      time.sleep(moments.uniform(0, 0.15 * length))
      process.kill()
    status = process.wait()
    if status == -signal.SIGKILL:
      before, at = reached(workdir), intact(workdir)
      found["kills"] += 1
      found["lost"] = max(found["lost"], before - at)
      found["beyond"] += before - at > every
      found["saving"] += any(
        not p.name.isdecimal() or not (p / "manifest.json").exists() for p in (workdir / "checkpoints").iterdir()
      )
      print(f"{root.name}: kill {found['kills']}: at step {before}, continues from {at}", flush=True)
      continue
    if status == 0:
      found["finished"] += 1
      came_to = outcome(workdir)
      found["differing"] += came_to != expected
      if came_to != expected:
        print(f"{root.name}: differs in {[name for name in expected if came_to[name] != expected[name]]}", flush=True)
    else:
      found["unrecoverable"] += 1
      print(f"{root.name}: status {status}: {last_word(root / 'run.py')}", flush=True)
    shutil.rmtree(workdir)
    before = 0
  return found


def kills(config: Config, root: pathlib.Path) -> str:
  """Runs of up to 25 kills each, all at the same time."""
  world = make_world(root / "world")
  shares: list[tuple[Kind, int]] = [
    (kind, min(25, total - before))
    for kind, total in (("ralt", config.kills_ralt), ("lsr", config.kills_lsr))
    for before in range(0, total, 25)
  ]
  with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
    started = [
      (kind, pool.submit(kill, world, root / f"{kind}{number}", kind, count, random.Random(config.seed + number)))
      for number, (kind, count) in enumerate(shares)
    ]
  ralt, lsr = ([future.result() for of, future in started if of == kind] for kind in ("ralt", "lsr"))
  names = {
    "kills": "kill -9 at a random moment of training",
    "saving": "of which while a step was being written",
    "finished": "times that it got to its end in between, and at the end",
    "unrecoverable": "starts that could not continue",
    "differing": "ends that differ in any bit from the uninterrupted run's",
    "lost": "steps lost at most, of 20 between saves",
    "beyond": "kills that cost more than 20",
  }
  rows = []
  for name, text in names.items():
    whole = max if name == "lost" else sum
    rows.append([text, *(str(whole(found[name] for found in of)) for of in (ralt, lsr))])
  return table(["", "RALT", "LSR"], rows)


def stop_in(
  world: World, root: pathlib.Path, phase: str, *signals: signal.Signals, kind: Kind = "ralt"
) -> dict[str, Any]:
  """Signals a process in a phase, and starts the same command again."""
  root.mkdir(parents=True, exist_ok=True)
  out, file = root / "out", root / "call.py"
  if phase == "scoring":
    wanted: Any = dataclasses.replace(world.score_config("train", out), batch_size=2)
  elif phase in ("encoding", "index build"):
    wanted = world.index_config(out, "scann")
  else:
    wanted = world.config(kind, out, steps=12, evaluate_every=6)
  if phase == "compile":  # of a run that continues
    process = start(wanted, file)
    while intact(out) < 6 and process.poll() is None:
      time.sleep(0.02)
    process.kill()
    process.wait()
  process = start(wanted, file, hold=phase)
  assert process.stdout is not None
  line = process.stdout.readline()
  assert line == f"phase {phase}\n", (line, last_word(file))
  status, seconds = timed_end(process, *signals)
  said = last_word(file)
  result = {"status": status, "seconds": seconds, "said": said}
  if verb_of(wanted).startswith("train"):
    result |= {"reached": reached(out), "saved": intact(out)}
  again = start(wanted, file, hold="batches" if phase == "scoring" else "")
  computed = again.communicate()[0].count("batch\n")
  result["again"] = again.returncode
  if phase == "scoring":
    batches = re.search(r"of (\d+) batches", said)
    result |= {"batches": int(batches[1]), "kept": int(batches[1]) - computed} if batches else {}
    score(dataclasses.replace(wanted, out=f"{world.root}/whole-scores"))
    result["same"] = content(out) == content(world.root / "whole-scores")
  if verb_of(wanted).startswith("train"):
    whole = world.root / f"whole-{kind}"  # trained by the first call
    tune(world.config(kind, whole, steps=12, evaluate_every=6))
    result["same"] = outcome(out) == outcome(whole)
  return result


def signals(config: Config, root: pathlib.Path) -> str:
  world, rows = make_world(root / "world"), []
  for phase in PHASES:
    for name in (signal.SIGTERM, signal.SIGINT):
      found = stop_in(world, root / phase.replace(" ", "_") / name.name, phase, name)
      kept = f"{found['saved']} of {found['reached']}" if "saved" in found else "–"
      kept = f"{found['kept']} of {found['batches']} batches" if "kept" in found else kept
      ended = "0, the same bits" if found.get("same") else str(found["again"])
      rows.append([phase, name.name, str(found["status"]), f"{found['seconds']:.1f}", kept, ended])
      print(rows[-1], found["said"], flush=True)
  twice = stop_in(world, root / "twice", "compile", signal.SIGTERM, signal.SIGTERM)
  rows.append(["compile", "SIGTERM twice", str(twice["status"]), f"{twice['seconds']:.1f}", "–", str(twice["again"])])
  return table(
    ["phase", "signal", "status", "seconds", "step saved, of steps begun; batches kept", "the same command again"], rows
  )


def flip_a_bit(file: pathlib.Path, other: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def truncate(file: pathlib.Path, other: pathlib.Path) -> None:
  os.truncate(file, file.stat().st_size // 2)


def delete(file: pathlib.Path, other: pathlib.Path) -> None:
  file.unlink()


def swap(file: pathlib.Path, other: pathlib.Path) -> None:
  mine = file.read_bytes()
  file.write_bytes(other.read_bytes())
  other.write_bytes(mine)


DAMAGES: tuple[Callable[[pathlib.Path, pathlib.Path], None], ...] = (flip_a_bit, truncate, delete, swap)


def damaged_files(world: World, root: pathlib.Path, kind: Kind) -> list[list[str]]:
  """Each file of the newest step of a real run, damaged in each way: whether that is named, and what is continued."""
  saved = root / f"{kind}-saved"
  tune(world.config(kind, saved, steps=15, keep=3))
  newest, older = saved / "checkpoints/15", saved / "checkpoints/10"
  names = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
  others = sorted(p.relative_to(older) for p in older.rglob("*") if p.is_file())
  rows = []
  for damage in DAMAGES:
    detected = equal = missed = 0
    for i, name in enumerate(names):
      place = root / "damaged"
      shutil.copytree(saved / "checkpoints", place)
      other = older / (name if name in others else others[i % len(others)])
      same = damage is swap and (newest / name).read_bytes() == other.read_bytes()
      damage(place / "15" / name, place / "10" / other.relative_to(older))
      found = manifests.take_up(place)
      checkpoints = Checkpoints(place, keep=3)
      checkpoints.close()
      detected += found[-1].number < 15
      equal += same and found[-1].number == 15
      missed += not same and found[-1].number == 15
      assert found[-1].number == (15 if same else 5 if damage is swap else 10) or found[-1].number == 15
      shutil.rmtree(place)
    rows.append([kind, damage.__name__.replace("_", " "), str(len(names)), str(detected), str(equal), str(missed)])
  return rows


def files(config: Config, root: pathlib.Path) -> str:
  world = make_world(root / "world")
  rows = [row for kind in KINDS for row in damaged_files(world, root, kind)]
  header = ["run", "damage", "files", "named, the newest intact step continues", "were equal", "missed"]
  return table(header, rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
  """A model of numbers."""

  w: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
  """What it is fitted to."""

  x: np.ndarray


@jax.custom_vjp
def _scaled_gradient(x: jax.Array, scale: jax.Array) -> jax.Array:
  return x


_scaled_gradient.defvjp(lambda x, scale: (x, scale), lambda scale, g: (g * scale, jnp.zeros_like(scale)))


def squares(model: Weights, batch: Points) -> tuple[jax.Array, jax.Array]:
  """Finite as long as data and weights are."""
  w = jnp.concatenate(jax.tree.leaves(model))
  return jnp.sum((w[None, :3] - batch.x) ** 2), jnp.float32(batch.x.shape[0])


def poisoned_gradient(model: Weights, batch: Points) -> tuple[jax.Array, jax.Array]:
  """A finite loss whose gradient is none where the first number is above 1."""
  total, count = squares(model, batch)
  return _scaled_gradient(total, jnp.where(batch.x[0, 0] > 1, jnp.nan, 1.0)), count


def masked(model: Weights, batch: Points) -> tuple[jax.Array, jax.Array]:
  """Of a batch whose examples are all masked."""
  total, _ = squares(model, batch)
  return 0 * total, jnp.float32(0)


def poisoned(root: pathlib.Path, where: str, steps: set[int], *, limit: int = 3) -> dict[str, Any]:
  """A run of twelve steps, some of which (counted from 0) are not finite; saved after every second one."""
  objective = {"gradient": poisoned_gradient, "mask": masked}.get(where, squares)

  def batches(first: int) -> Any:
    for step in range(first, 12):
      x = np.random.default_rng(step).uniform(size=(8, 3)).astype(np.float32)
      if step in steps:
        x[0, 0] = np.nan if where == "data" else 2
      yield (f"example-{step}",), Points(x)

  first = Weights({"w": jnp.full(3, jnp.nan if where == "weights" else 0.0)})
  said, nonfinite = "", 0
  try:
    nonfinite = train(
      first,
      objective,
      batches,
      total_steps=12,
      loop=LoopConfig(batch_size=8, log_every=1, evaluate_every=2, keep=12, max_nonfinite_steps=limit),
      optimizer=OptimizerConfig(peak_lr=0.1, floor_lr=0.01, warmup_steps=1),
      mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
      workdir=root,
    ).nonfinite_steps
  except (TrainingError, UserError) as e:
    said = f"{type(e).__name__}: {e}"
  found = {s.number: s.manifest["leaves"] for s in manifests.steps(root / "checkpoints") if s.manifest}
  moved = [n for n in found if n > 2 and _trained(found[n]) != _trained(found[n - 2])]
  return {"said": said, "left_out": nonfinite, "saved": sorted(found), "moved": moved}


def _trained(leaves: dict[str, str]) -> dict[str, str]:
  """Checksums of parameters and moments: without the counters of what was left out."""
  return {name: of for name, of in leaves.items() if "nonfinite" not in name}


NAN_CASES: dict[str, tuple[str, set[int]]] = {
  "data, two steps": ("data", {4, 5}),
  "data, every third step": ("data", {1, 4, 7, 10}),
  "data, from a step on": ("data", set(range(5, 12))),
  "gradients of a finite loss, two steps": ("gradient", {4, 5}),
  "gradients, from a step on": ("gradient", set(range(5, 12))),
  "weights of the model given": ("weights", set()),
  "a batch that is all masked": ("mask", set()),
}


def nan(config: Config, root: pathlib.Path) -> str:
  rows = []
  for number, (name, (where, steps)) in enumerate(NAN_CASES.items()):
    found = poisoned(root / str(number), where, steps)
    newest = str(found["saved"][-1]) if found["saved"] else "none"
    rows.append([name, found["said"][:160] or f"finished, {found['left_out']} steps left out", newest])
  return table(["NaN in", "end of a run of 12 steps, `max_nonfinite_steps` 3", "newest intact step"], rows)


def small_run(workdir: pathlib.Path, progress: Callable[..., None]) -> None:
  """Forty steps of a model of forty arrays, measured and saved every 5."""

  def batches(first: int) -> Any:
    return (((f"example-{step}",), Points(np.full((8, 3), step, np.float32))) for step in range(first, 40))

  train(
    Weights({f"w{i}": jnp.zeros(3) for i in range(40)}),
    squares,
    batches,
    total_steps=40,
    loop=LoopConfig(batch_size=8, log_every=1, evaluate_every=5, keep=3),
    optimizer=OptimizerConfig(peak_lr=0.1, floor_lr=0.01, warmup_steps=1),
    mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    workdir=workdir,
    dev_batches=lambda: itertools.islice(batches(0), 2),
    progress=progress,
  )


def fails_in_mid_run(workdir: pathlib.Path, fault: Callable[[], None], *, saving: bool) -> dict[str, Any]:
  """A fault of the file system after step 12, or while step 10 is being saved.

  Returns:
    what is said, how many steps later, and which checkpoint is intact.
  """
  last, at = 0, 10 if saving else 12

  def progress(stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
    nonlocal last
    last = done
    if done == at and not saving:
      fault()

  def save(checkpoints: Checkpoints, step: int, *args: Any, **options: Any) -> None:
    begin(checkpoints, step, *args, **options)
    if step == at and saving:
      fault()

  said, begin = "nothing", Checkpoints.save
  try:
    Checkpoints.save = save  # type: ignore[method-assign]
    small_run(workdir, progress)
  except (TrainingError, UserError, OSError) as e:
    said = f"{type(e).__name__}: {e}"
  finally:
    Checkpoints.save = begin  # type: ignore[method-assign]
  return {"said": said, "steps": last - at, "intact": intact(workdir)}


@contextlib.contextmanager
def mounted(place: pathlib.Path, size: str) -> Any:
  """A small file system; needs root."""
  place.mkdir(parents=True)
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, capture_output=True)
  try:
    yield place
  finally:
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: pathlib.Path) -> None:
  """Until there is no room."""
  for name, size in (("filler", 1 << 16), ("filler2", 1)):
    with contextlib.suppress(OSError), open(place / name, "wb", buffering=0) as f:
      while True:
        f.write(bytes(size))


def make_read_only(place: pathlib.Path) -> None:
  """Files being written keep a file system writable for a moment."""
  for _ in range(200):
    done = subprocess.run(["mount", "-o", "remount,ro", str(place)], capture_output=True, check=False)
    if done.returncode == 0:
      return
    time.sleep(0.05)
  raise RuntimeError(done.stderr)


def remove(place: pathlib.Path) -> None:
  """What is being written meanwhile may stay."""
  shutil.rmtree(place, ignore_errors=True)


#: Faults of a file system of its own, on which the run lies in ``run``; the last two need no such file system.
DISK_FAULTS: dict[str, Callable[[pathlib.Path], None]] = {
  "disk full": fill,
  "read-only": make_read_only,
  "`checkpoints/` removed": lambda place: remove(place / "run/checkpoints"),
  "work directory removed": lambda place: remove(place / "run"),
}


def fails_in_a_process(world: World, place: pathlib.Path, fault: Callable[[pathlib.Path], None]) -> dict[str, Any]:
  """The command line, as its work directory fails after step 12: what people see, and how many steps later."""
  file = place.parent / f"{place.name}.py"
  process = start(world.config("ralt", place / "run", steps=100_000, keep=3), file)
  while reached(place / "run") < 12 and process.poll() is None:
    time.sleep(0.005)
  with open(place / "run/metrics.jsonl") as lines:  # readable once it has been removed, too
    fault(place)
    lines.read()
    status = process.wait()
    steps = sum('"loss"' in line for line in lines.read().splitlines())
  said = file.with_suffix(".err").read_text().splitlines()
  said = [line for line in said if not line.startswith("train ")]  # the progress
  return {"status": status, "lines": len(said), "said": said[-1], "steps": steps, "intact": intact(place / "run")}


def disk(config: Config, root: pathlib.Path) -> str:
  world, rows = make_world(root / "world"), []
  for number, (name, fault) in enumerate(DISK_FAULTS.items()):
    with mounted(root / "process" / str(number), "64m") as place:
      found = fails_in_a_process(world, place, fault)
    said = found["said"].replace(str(place), "")[:140]
    rows.append([name, str(found["steps"]), str(found["status"]), str(found["lines"]), said])
    print(rows[-1], found["intact"], flush=True)
  header = [
    "`radit train-generator`, saved every 5 steps",
    "steps until the end",
    "status",
    "lines on stderr",
    "the last",
  ]
  later = []
  for saving in (False, True):
    for number, (name, fault) in enumerate(DISK_FAULTS.items()):
      with mounted(root / f"{saving}" / str(number), "64m") as place:
        found = fails_in_mid_run(place / "run", functools.partial(fault, place), saving=saving)
      moment = "as step 10 is saved" if saving else "after step 12"
      later.append([f"{name}, {moment}", str(found["steps"]), str(found["intact"] or "gone")])
  exact = table(["at one moment of a run that saves every 5 steps", "steps until the end", "newest intact step"], later)
  return table(header, rows) + "\n\n" + exact


def lose(
  world: World, root: pathlib.Path, victim: int, sent: signal.Signals, *, within_s: float = 200
) -> dict[str, Any]:
  """One of two processes is killed or frozen while they train: how and when the other ends."""
  root.mkdir(parents=True, exist_ok=True)
  tuning = world.config("ralt", root / "run", steps=100_000, evaluate_every=20)
  port = free_port()
  both = []
  for index in range(2):
    file = root / f"process{index}.py"
    both.append(
      start(
        tuning,
        file,
        XLA_FLAGS="--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
      )
    )
  try:
    until = time.monotonic() + within_s
    while reached(root / "run") < 25 and time.monotonic() < until:
      time.sleep(0.1)
    both[victim].send_signal(sent)
    status, seconds = timed_end(both[1 - victim], within_s=within_s)
  finally:
    for process in both:
      process.kill()
      process.wait()
  return {"status": status, "seconds": seconds, "said": last_word(root / f"process{1 - victim}.py")}


def lost(config: Config, root: pathlib.Path) -> str:
  world, rows = make_world(root / "world"), []
  for victim, name in enumerate(("the coordinator, process 0", "the worker, process 1")):
    for sent, how in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "frozen")):
      found = lose(world, root / f"{victim}-{how}", victim, sent)
      rows.append([f"{name}, {how}", str(found["status"]), f"{found['seconds']:.0f}", found["said"]])
      print(rows[-1], flush=True)
  return table(["of two processes", "status of the other", "seconds", "its last line"], rows)


def on_meshes(world: World, root: pathlib.Path, kind: Kind, sizes: tuple[int, ...], steps: int = 20) -> dict[str, Any]:
  """A run that goes on over other numbers of devices, against one that stays on the first."""

  def config(name: str) -> Any:
    return world.config(kind, root / name, steps=steps)

  with devices(sizes[0]):
    tune(config("whole"))
  for number, size in enumerate(sizes):
    until = steps * (number + 1) // len(sizes)

    def stop(stage: str, done: int, total: int, unit: str, /, until: int = until, **figures: float) -> None:
      if unit == "steps" and done == until < total:
        os.kill(os.getpid(), signal.SIGTERM)

    with devices(size), contextlib.suppress(Preempted):
      tune(config("moved"), stop)
  one, other = metrics(root / "whole"), metrics(root / "moved")
  same = [(a["step"], a.get("batch_ids_hash")) for a in one] == [(b["step"], b.get("batch_ids_hash")) for b in other]
  pairs = [(a[n], b[n]) for a, b in zip(one, other, strict=True) for n in ("loss", "dev_loss") if n in a]
  nats, apart = max(abs(a - b) for a, b in pairs), max(abs(a - b) / abs(a) for a, b in pairs)
  return {"same": same, "nats": nats, "apart": apart}


def mesh(config: Config, root: pathlib.Path) -> str:
  jax.config.update("jax_num_cpu_devices", 8)
  world, rows = make_world(root / "world"), []
  for kind in KINDS:
    found = on_meshes(world, root / kind, kind, (8, 4, 1))
    same = "the same" if found["same"] else "DIFFERS"
    rows.append([kind, same, f"{found['nats']:.1e}", f"{found['apart']:.1e}"])
  header = [
    "20 steps, on 8, then 4, then 1 device",
    "examples of every step",
    "losses apart, nats",
    "as a share of them",
  ]
  return table(header, rows)


def accumulated(world: World, root: pathlib.Path, kind: Kind) -> dict[str, float]:
  """A step of 8 examples in 1 and in 4 microbatches: how far its losses are apart, in nats, and its gradients."""
  lines = []
  for parts in (1, 4):
    tune(world.config(kind, root / f"{kind}-{parts}", steps=1, accumulate=parts))
    lines += [line for line in metrics(root / f"{kind}-{parts}") if "loss" in line]
  one, four = lines
  return {
    "loss": abs(one["loss"] - four["loss"]),
    "gradient": abs(one["grad_norm"] - four["grad_norm"]) / one["grad_norm"],
  }


def accumulate(config: Config, root: pathlib.Path) -> str:
  world, rows = make_world(root / "world"), []
  for kind in KINDS:
    found = accumulated(world, root, kind)
    rows.append([kind, f"{found['loss']:.1e}", f"{found['gradient']:.1e}"])
  return table(["a step in 1 against 4 microbatches", "losses apart, nats", "gradient norms apart, as a share"], rows)


def anonymous_bytes() -> int:
  """Memory of this process that no file stands behind."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


class Peak:
  """Most anonymous memory since it was begun, looked at every two milliseconds."""

  def __init__(self) -> None:
    self.bytes, self._closed = anonymous_bytes(), threading.Event()
    self._thread = threading.Thread(target=self._look, daemon=True)
    self._thread.start()

  def _look(self) -> None:
    while not self._closed.wait(0.002):
      self.bytes = max(self.bytes, anonymous_bytes())

  def close(self) -> int:
    """The peak."""
    self._closed.set()
    self._thread.join()
    return max(self.bytes, anonymous_bytes())


def give_memory_back() -> None:
  """Has freed memory go back to the system at once, so that what is needed anew is seen: the opposite of kept."""
  malloc = ctypes.CDLL(None)
  malloc.mallopt(-4, 1 << 16)  # M_MMAP_MAX: large buffers lie outside of the heap
  malloc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: from 64 KB on, also after one of them was freed
  malloc.malloc_trim(0)


def apart(model: Weights, batch: Points) -> tuple[jax.Array, jax.Array]:
  """Of each array by itself, so that a step needs little memory beside the state and its gradient."""
  total = sum((jnp.sum((w - batch.x[0, 0]) ** 2) for w in jax.tree.leaves(model)), jnp.float32(0))
  return total, jnp.float32(batch.x.shape[0])


def saving_memory(root: pathlib.Path, *, megabytes: int) -> dict[str, float]:
  """A run that saves at steps 10, 20 and 30: anonymous memory up to step 9, and how much more there was until 34."""
  count = megabytes * 10**6 // 12 // 20

  def batches(first: int) -> Any:
    return (((f"example-{step}",), Points(np.ones((8, 3), np.float32))) for step in range(first, 35))

  peak, peaks = None, {}

  def progress(stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
    nonlocal peak
    if done in (9, 34) and peak is not None:
      peaks[done] = peak.close()
    if done in (3, 9):
      peak = Peak()

  numbers = jax.random.normal(jax.random.key(0), (count,))  # zeros would share their pages
  weights = Weights({f"w{i}": numbers + i for i in range(20)})
  del numbers
  train(
    weights,
    apart,
    batches,
    total_steps=35,
    loop=LoopConfig(batch_size=8, log_every=1, evaluate_every=10, keep=1),
    optimizer=OptimizerConfig(),
    mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    workdir=root,
    dev_batches=lambda: itertools.islice(batches(0), 2),
    progress=progress,
  )
  size = 12 * 20 * count  # weights and two moments
  return {"state": size, "running": peaks[9], "above": (peaks[34] - peaks[9]) / size}


def memory(config: Config, root: pathlib.Path) -> str:
  rows = []
  for kept in (False, True):
    if kept:
      keep_heap()
    else:
      give_memory_back()
    found = saving_memory(root / str(kept), megabytes=500)
    cells = [f"{found['state'] / 1e6:.0f} MB", f"{found['running'] / 1e6:.0f} MB", f"{found['above']:.2f} × the state"]
    rows.append(["kept, as `radit` does" if kept else "given back at once", *cells])
  header = ["freed memory is", "state", "anonymous memory of the running process", "more while it saves, three saves"]
  return table(header, rows)


ROWS: dict[str, Callable[[Config, pathlib.Path], str]] = {
  "cuts": cuts,
  "kills": kills,
  "signals": signals,
  "files": files,
  "disk": disk,
  "nan": nan,
  "lost": lost,
  "mesh": mesh,
  "accumulate": accumulate,
  "memory": memory,
}


def keep_programs(directory: pathlib.Path) -> None:
  """A program is compiled once, and quickly, for all processes that run it: the most of a start otherwise."""
  os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
  kept = {
    "jax_compilation_cache_dir": str(directory),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  for name, value in kept.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


def main(config: Config) -> None:
  """Measures one row."""
  with contextlib.ExitStack() as stack:
    root = config.work or stack.enter_context(tempfile.TemporaryDirectory(prefix="faults."))
    keep_programs(pathlib.Path(root) / "programs")
    began = time.monotonic()
    text = ROWS[config.row](config, pathlib.Path(root))
    write_section(config.page, config.row, text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
  main(tyro.cli(Config))
