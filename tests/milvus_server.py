"""Milvus Lite as a server of its own, which tests talk to over TCP."""

import contextlib
import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from processes import free_port


@dataclasses.dataclass(frozen=True)
class Server:
  """One that listens."""

  uri: str
  port: int
  process: subprocess.Popen


@contextlib.contextmanager
def running(directory, port: int | None = None) -> Iterator[Server]:
  """Starts a server on a directory, waits until it listens, yields it, and ends it."""
  pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
  port = free_port() if port is None else port
  command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(directory / "data")]
  with open(directory / "log", "a") as log:
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
      for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
          break
        assert process.poll() is None, (directory / "log").read_text()
        time.sleep(0.1)
      yield Server(f"http://127.0.0.1:{port}", port, process)
    finally:
      process.kill()
      process.wait()
