"""Starts a program in two real processes of four simulated devices each, which meet on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(command, index, port, count=2, **environment):
  """One of ``count`` processes, with its output in files: a full pipe would stop it, and the other with it."""
  variables = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": FLAGS,
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
    **environment,
  }
  files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
  process = subprocess.Popen([sys.executable, *command], env=variables, stdout=files[0], stderr=files[1])
  return process, files


def finish(*started, within_s=900):
  """``(exit status, last line of stdout, last line of stderr)`` of each."""
  until = time.monotonic() + within_s
  try:
    for process, _ in started:
      process.wait(until - time.monotonic())
  finally:
    for process, _ in started:
      process.kill()
      process.wait()
  return [(process.returncode, *map(last_line, files)) for process, files in started]


def last_line(file):
  with file:
    file.seek(0)
    return (file.read().strip().splitlines() or [""])[-1]


def radit(*commands, within_s=900):
  """Runs one command line per process, each without ``radit``."""
  port = free_port()
  started = [start(["-m", "radit_jax.cli", *map(str, c)], i, port) for i, c in enumerate(commands)]
  return finish(*started, within_s=within_s)
