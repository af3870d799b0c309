"""Starts a program in two real processes of four simulated devices each, which meet on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(command, index, port, count=2, **environment):
  """One of ``count`` processes, with its output in pipes."""
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
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  return subprocess.Popen([sys.executable, *command], env=variables, **pipes)


def finish(*processes, within_s=300):
  """``(exit status, last line of stdout, last line of stderr)`` of each."""
  try:
    outputs = [p.communicate(timeout=within_s) for p in processes]
  finally:
    for p in processes:
      p.kill()
  last = [[(text.strip().splitlines() or [""])[-1] for text in output] for output in outputs]
  return [(p.returncode, *lines) for p, lines in zip(processes, last, strict=True)]


def radit(*commands, within_s=300):
  """Runs one command line per process, each without ``radit``."""
  port = free_port()
  started = [start(["-m", "radit_jax.cli", *map(str, c)], i, port) for i, c in enumerate(commands)]
  return finish(*started, within_s=within_s)
