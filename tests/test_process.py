"""Compiled programs that outlive a process: where they are kept, and that the next process reads them."""

import importlib.util
import os
import pathlib
import resource
import stat
import subprocess
import sys

import pytest
from tiny import documents, questions, write_lines

from radit_jax import process
from radit_jax.config import PrepareConfig
from radit_jax.verbs.prepare import prepare


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """A machine with these packages and device files; gives what the process's environment becomes."""

  def become(packages, files, **environ):
    find = importlib.util.find_spec
    known = set(process._ACCELERATORS)
    monkeypatch.setattr(
      importlib.util, "find_spec", lambda name: (name in packages or None) if name in known else find(name)
    )
    for name in files:
      (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / "dev" / name).touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environ
    process.keep_programs(environ, tmp_path / "dev")
    return environ.get("JAX_COMPILATION_CACHE_DIR")

  return become


@pytest.mark.parametrize(
  ("package", "file"),
  [("libtpu", "accel0"), ("libtpu", "vfio/3"), ("jax_cuda13_plugin", "nvidia0"), ("jax_cuda12_plugin", "nvidia1")],
)
def test_programs_of_accelerators_are_kept(machine, tmp_path, package, file):
  kept = pathlib.Path(machine([package], [file]))
  assert kept == tmp_path / "cache/radit_jax/jax"
  assert stat.S_IMODE(kept.stat().st_mode) == 0o700


@pytest.mark.parametrize(
  ("packages", "files", "environ"),
  [
    ((), (), {}),
    (("libtpu",), (), {}),  # compiling for TPUs without one
    (("libtpu",), ("nvidia0", "vfio/vfio"), {}),
    ((), ("accel0",), {}),
    (("libtpu",), ("accel0",), {"JAX_PLATFORMS": "cpu"}),
  ],
)
def test_programs_of_a_cpu_are_not(machine, tmp_path, packages, files, environ):
  assert machine(packages, files, **environ) is None
  assert not (tmp_path / "cache").exists()


def test_users_own_directory_is_left_alone(machine, tmp_path):
  assert machine(["libtpu"], ["accel0"], JAX_COMPILATION_CACHE_DIR="elsewhere") == "elsewhere"
  assert not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_is_no_error(machine, tmp_path):
  (tmp_path / "cache").write_text("a file")
  assert machine(["libtpu"], ["accel0"]) is None


def test_second_run_reads_the_first_ones_programs(parts, tmp_path):
  """Processes of the real verb; on a CPU, so with the user's own directory. A damaged one is compiled again."""
  corpus = write_lines(tmp_path / "corpus.jsonl", list(documents())[:8])
  asked = write_lines(tmp_path / "questions.jsonl", list(questions())[:8])
  prepare(PrepareConfig(workdir=str(tmp_path / "made"), corpus=corpus, questions=asked))
  kept = tmp_path / "programs"

  def index(name):
    environ = {
      **os.environ,
      "JAX_COMPILATION_CACHE_DIR": str(kept),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_DEBUG_LOG_MODULES": "jax._src.compiler",
    }
    command = [sys.executable, "-m", "radit_jax.cli", "index", "--backend", "exact", "--encoder", parts["encoder"]]
    command += ["--passages", f"{tmp_path}/made/passages", "--embeddings", f"{tmp_path}/{name}/embeddings"]
    command += ["--index", f"{tmp_path}/{name}/index"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    embeddings = {p.name: p.read_bytes() for p in (tmp_path / name / "embeddings").glob("*.npy")}
    assert embeddings
    return done.stderr, embeddings

  _, first = index("first")
  programs = {p.name: p.read_bytes() for p in kept.glob("*-cache")}
  assert programs
  hit = "Persistent compilation cache hit"
  log, second = index("second")
  assert second == first
  if "cpu_aot_loader" not in log:  # a CPU that refuses what it has compiled itself, see `keep_programs`
    assert log.count(hit) == len(programs)
  for i, (name, program) in enumerate(programs.items()):
    (kept / name).write_bytes(b"damaged" if i % 2 else program[:100])
  log, third = index("third")
  assert third == first
  assert log.count(hit) == 0
  assert {p.name for p in kept.glob("*-cache")} == set(programs)


@pytest.mark.parametrize(("hard", "expected"), [(700, 700), (10**6, 65_536), (resource.RLIM_INFINITY, 65_536)])
def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch, hard, expected):
  limits = [(256, hard)]
  monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
  monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
  process.open_many_files()
  assert limits[1:] == [(expected, hard)]
  process.open_many_files()
  assert limits[1:] == [(expected, hard)]


def test_the_program_raises_the_limit():
  code = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300)); from radit_jax import cli; "
  code += "cli.main(['--version']); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == "(300, 300)"


# What XLA does on a CPU: large buffers, taken and given back by a thread. Prints the pages the second one had to get.
BUFFERS = """
import mmap, resource, sys, threading
from radit_jax.process import keep_heap
if sys.argv[1] == "kept":
  keep_heap()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
  for _ in range(2):
    before = faults()
    buffer = bytearray(b"1") * 2**28
    del buffer
  print((faults() - before) * mmap.PAGESIZE)
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc, on Linux")
def test_a_thread_gets_the_memory_it_gave_back():
  """Without the setting a buffer of 256 MiB is new pages each time."""
  taken = {
    kind: int(subprocess.run([sys.executable, "-c", BUFFERS, kind], capture_output=True, check=True).stdout)
    for kind in ("kept", "returned")
  }
  assert taken["kept"] < 2**20 < 2**28 <= taken["returned"] + 2**20, taken
