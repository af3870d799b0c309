"""The rows of docs/reliability.md, each in seconds: real tunings cut, signalled, damaged, moved and starved."""

import json
import os
import signal
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from radit_jax import cli

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module", autouse=True)
def kept_programs(benchmarks, tmp_path_factory):
  """A program is compiled once: here, and once more in all processes that are started."""
  import faults

  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  names += ("jax_persistent_cache_min_entry_size_bytes",)
  before = {name: getattr(jax.config, name) for name in names}
  with pytest.MonkeyPatch.context() as patch:
    for name in names:
      patch.setenv(name.upper(), "")  # is as it was, after the tests
    faults.keep_programs(tmp_path_factory.mktemp("programs"))
    compilation_cache.reset_cache()
    yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def world(benchmarks, tmp_path_factory):
  import fault_runs

  return fault_runs.make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["ralt", "lsr", "lora"])
def test_a_run_that_is_cut_ends_with_the_same_bits(world, tmp_path, kind):
  """Every cut point of 30 steps: `benchmarks/faults.py --row cuts`."""
  import faults

  found = faults.cut_points(world, tmp_path, kind, signalled=(5, 6), ended=(6,), steps=8)
  assert found == {"signalled": 0, "ended": 0}


def test_the_harness_sees_another_run(world, tmp_path):
  """Or it would find every run to be the same."""
  import fault_runs

  for seed in (0, 1):
    fault_runs.tune(world.config("lsr", tmp_path / str(seed), steps=2, seed=seed))
  one, other = (fault_runs.outcome(tmp_path / str(seed)) for seed in (0, 1))
  assert one["leaves"] != other["leaves"]
  assert one["exports"] != other["exports"]
  assert one["metrics"][1]["batch_ids_hash"] != other["metrics"][1]["batch_ids_hash"]
  assert one["metrics"][1]["tokens"] > 8


@pytest.mark.fault
@pytest.mark.parametrize(
  ("phase", "sent"),
  [
    ("compile", "SIGTERM"),
    ("step", "SIGINT"),
    ("evaluation", "SIGTERM"),
    ("saving", "SIGTERM"),
    ("scoring", "SIGINT"),
    ("encoding", "SIGTERM"),
    ("index build", "SIGTERM"),
  ],
)
def test_a_signal_stops_a_process_in_time_and_the_same_command_continues(world, tmp_path, phase, sent):
  import faults

  found = faults.stop_in(world, tmp_path / "run", phase, signal.Signals[sent])
  assert found["status"] == 75, found
  assert f"stopped by {sent}" in found["said"]
  assert "the same command continues" in found["said"]
  assert found["again"] == 0
  if "saved" in found:
    assert found["saved"] >= found["reached"]
    assert found["reached"] > 0 or phase == "compile"
    assert found["same"]
  if phase == "scoring":  # the batch that was under way is finished
    assert (found["kept"], found["batches"], found["same"]) == (3, 6, True), found


@pytest.mark.fault
def test_a_second_signal_ends_a_process_at_once(world, tmp_path):
  import faults

  found = faults.stop_in(world, tmp_path / "run", "compile", signal.SIGTERM, signal.SIGTERM)
  assert found["status"] == 128 + signal.SIGTERM
  assert "at once" in found["said"]
  assert (found["again"], found["same"]) == (0, True)


def test_what_a_kill_left_of_an_export_goes(world, tmp_path):
  import fault_runs

  left = tmp_path / "run/.generator.k1ll3d"
  left.mkdir(parents=True)
  (left / "model.safetensors").write_bytes(b"half of it")
  fault_runs.tune(world.config("ralt", tmp_path / "run", steps=1))
  assert sorted(p.name for p in (tmp_path / "run").glob("*generator*")) == ["generator"]
  assert not left.exists()


@pytest.mark.fault
def test_kills_at_random_moments_lose_no_more_than_an_interval(world, tmp_path):
  import random

  import faults

  found = faults.kill(world, tmp_path, "lsr", 2, random.Random(0), steps=60, every=5)
  assert (found["kills"], found["unrecoverable"], found["differing"]) == (2, 0, 0)
  assert found["lost"] <= 5


def can_mount(place):
  place.mkdir()
  done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False)
  if done.returncode == 0:
    subprocess.run(["umount", str(place)], check=True)
  return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own, in which a run may lie."""
  import faults

  if os.geteuid() or not can_mount(tmp_path / "probe"):
    pytest.skip("a file system of its own needs root")
  with faults.mounted(tmp_path / "disk", "64m") as place:
    yield place


@pytest.mark.fault
@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize(("name", "text"), [("disk full", "No space left"), ("read-only", "Read-only file system")])
def test_a_disk_that_takes_no_more_ends_a_run_by_the_next_save(small_disk, name, text, saving):
  import faults

  found = faults.fails_in_mid_run(small_disk / "run", lambda: faults.DISK_FAULTS[name](small_disk), saving=saving)
  assert text in found["said"]
  assert "\n" not in found["said"]
  assert found["steps"] <= 5
  assert found["intact"] in ((5, 10) if saving else (10,))


@pytest.mark.fault
@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("name", ["`checkpoints/` removed", "work directory removed"])
def test_a_directory_that_goes_ends_a_run_at_the_next_step(tmp_path, name, saving):
  import faults

  found = faults.fails_in_mid_run(tmp_path / "run", lambda: faults.DISK_FAULTS[name](tmp_path), saving=saving)
  assert found["steps"] <= 1
  assert str(tmp_path / "run") in found["said"]
  assert "\n" not in found["said"]


@pytest.mark.fault
def test_people_see_one_line_of_a_full_disk(world, small_disk):
  import faults

  found = faults.fails_in_a_process(world, small_disk, faults.fill)
  assert (found["status"], found["lines"]) == (1, 1), found
  assert "No space left" in found["said"]
  assert found["steps"] <= 5
  assert found["intact"] >= 10


def test_a_corpus_that_does_not_fit_is_one_line_wherever_the_disk_is_full(small_disk, tmp_path, capsys):
  texts = ({"id": f"d{i}", "text": f"Document {i} has words of its own. " * 40} for i in range(10_000))
  (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
  call = ["prepare", "--corpus", str(tmp_path / "corpus.jsonl"), "--workdir", str(small_disk / "out")]
  ended = []
  for free in (0, 4, 12, 20, 28, 36, 52):
    with open(small_disk / "filler", "wb") as f:
      f.write(bytes((62 - free) << 20))
    ended.append(cli.main(call))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("radit: error: ")]
    assert len(errors) == ended[-1]
    assert all("No space left on device" in line for line in errors), errors
    (small_disk / "filler").unlink()
  assert ended[0] == 1
  assert ended[-1] == 0  # what a full disk has left is no hindrance


@pytest.mark.parametrize(
  ("name", "said", "left_out", "saved"),
  [
    ("data, two steps", "", 2, 12),
    ("data, every third step", "", 4, 12),
    ("data, from a step on", "step 8: loss nan .*3 in a row.*example-7", 0, 6),
    ("gradients of a finite loss, two steps", "", 2, 12),
    ("gradients, from a step on", "step 8: loss [0-9.]+ or gradient norm nan .*3 in a row.*example-7", 0, 6),
    ("weights of the model given", "step 3: loss nan .*example-2", 0, 2),
    ("a batch that is all masked", "step 1: nothing to train on .* example-0", 0, None),
  ],
)
def test_what_is_not_finite_never_gets_into_the_parameters(tmp_path, name, said, left_out, saved):
  import faults

  found = faults.poisoned(tmp_path, *faults.NAN_CASES[name])
  assert (found["left_out"], found["saved"][-1] if found["saved"] else None) == (left_out, saved)
  if said:
    import re

    assert re.search(said, found["said"])
  else:
    assert found["said"] == ""
  # Steps 5 and 6 are those that are left out: between the checkpoints of 4 and 6 nothing moves.
  if name.endswith("two steps"):
    assert found["moved"] == [4, 8, 10, 12]


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["ralt", "lsr"])
def test_a_run_goes_on_over_other_devices(world, tmp_path, kind):
  import faults

  found = faults.on_meshes(world, tmp_path, kind, (8, 4, 1), steps=6)
  assert found["same"]
  assert found["apart"] <= 1e-6


@pytest.mark.fault
@pytest.mark.parametrize(("victim", "sent"), [(0, "SIGKILL"), (1, "SIGKILL"), (0, "SIGSTOP"), (1, "SIGSTOP")])
def test_a_lost_process_is_named_by_the_other(world, tmp_path, victim, sent):
  import faults

  found = faults.lose(world, tmp_path / "run", victim, signal.Signals[sent])
  assert found["status"] not in (0, 75)
  assert f"lost process {victim} of 2" in found["said"]


def test_a_save_takes_less_memory_than_the_state(tmp_path):
  """Above a process that keeps no freed memory, which the copies could be in."""
  import faults

  faults.give_memory_back()
  assert faults.saving_memory(tmp_path, megabytes=120)["above"] <= 1


# What writes on the small disk: a bus error would end the tests' own process. Says what `radit` would.
FULL = """
import os, pathlib, sys, tempfile
import numpy as np
from radit_jax import files
from radit_jax.retrieval import scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.metadata import write_metadata
from radit_jax.retrieval.shards import write_rows

scann.EXACT_BELOW = 100
place, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
stored = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
embeddings = (pathlib.Path(tempfile.mkdtemp()) if kind == "copy" else place) / "embeddings"
if kind != "array":
  embeddings.mkdir()
  write_rows(embeddings / "embeddings-00000.npy", [stored], stored.shape)
  fields = {"count": 3000, "dim": 64, "dtype": "float32", "shards": 1}
  files.write_manifest(embeddings, "embeddings", fields)
try:
  if kind == "array":
    build_index(stored, place / "index", backend="exact")
  elif kind == "metadata":
    build_index(embeddings, place / "index", backend="exact", metadata=({"text": "x" * 999} for _ in stored))
  elif kind == "copy":
    build_index(embeddings, place / "index", backend="exact")
  else:
    build_index(embeddings, place / "index", backend="scann", removed=np.arange(300))
except OSError as e:
  print(os.path.relpath(e.filename, place), e.strerror, [p.name for p in place.iterdir() if "index" in p.name])
"""


@pytest.mark.fault
@pytest.mark.parametrize(
  ("kind", "size", "file"),
  [
    *(("array", "512k", "embeddings-00000.npy"), ("copy", "512k", "embeddings-00000.npy")),
    *(("rows", "1m", "rows.npy"), ("metadata", "1m", "metadata.jsonl")),
  ],
)
def test_a_build_on_a_disk_without_room_ends_in_one_line(tmp_path, kind, size, file):
  """3,000 embeddings are 768 kB."""
  import faults

  if os.geteuid() or not can_mount(tmp_path / "probe"):
    pytest.skip("a file system of its own needs root")
  with faults.mounted(tmp_path / "disk", size) as place:
    done = subprocess.run([sys.executable, "-c", FULL, place, kind], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, f"index/{file} No space left on device []\n"), done.stderr
