"""`radit index`'s two steps, killed without warning at random moments and started again, against an uninterrupted call.

Run: python benchmarks/kill_index.py --kills 30 --page docs/retrieval.md
"""

import dataclasses
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tyro
from page import table, write_section

from radit_jax import files

WORKER = pathlib.Path(__file__).parent / "index_worker.py"


@dataclasses.dataclass(frozen=True)
class Config:
  """How often to kill.

  Attributes:
    kills: in all; when a call gets through, the work begins anew in an empty directory.
    pause: seconds that the worker waits after each batch and shard, so that it is found anywhere.
    seed: of the moments.
    page: Markdown file whose section "kills" gets the figures; None prints them only.
  """

  kills: int = 30
  pause: float = 0.1
  seed: int = 0
  page: str | None = None


def start(root: pathlib.Path, pause: float) -> subprocess.Popen[bytes]:
  """The worker, in a process of its own."""
  package = str(WORKER.parent.parent)
  return subprocess.Popen(
    [sys.executable, WORKER, root, str(pause)], env={**os.environ, "PYTHONPATH": package}, stdout=subprocess.DEVNULL
  )


def shards(root: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file of the embeddings."""
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((root / "embeddings").iterdir())}


def main(config: Config) -> dict[str, float]:
  """Kills, compares, and returns the figures."""
  moments = random.Random(config.seed)
  with tempfile.TemporaryDirectory() as name:
    whole, work = pathlib.Path(name) / "whole", pathlib.Path(name) / "work"
    began = time.monotonic()
    assert start(whole, config.pause).wait() == 0
    length = time.monotonic() - began
    expected = shards(whole)
    overlap = files.read_manifest(whole / "index", "index")["overlap"]["overlap"]
    kills = {"embed": 0, "build": 0}
    through = lost = differing = 0
    worst = 0.0
    while through == 0 or sum(kills.values()) < config.kills or work.exists():
      before = len(list(work.glob(".embeddings.partial/*.npy"))) if work.exists() else 0
      process = start(work, config.pause)
      if sum(kills.values()) < config.kills:
        time.sleep(moments.uniform(0.1, 0.7) * length)
        process.send_signal(signal.SIGKILL)
      if process.wait() == -signal.SIGKILL:
        building = (work / "embeddings").exists()
        kills["build" if building else "embed"] += 1
        lost += not building and len(list(work.glob(".embeddings.partial/*.npy"))) < before
        continue
      assert process.returncode == 0
      through += 1
      differing += shards(work) != expected
      manifest = files.read_manifest(work / "index", "index", verify="full")
      worst = max(worst, abs(manifest["overlap"]["overlap"] - overlap))
      assert sorted(p.name for p in work.iterdir()) == ["embeddings", "index"]
      shutil.rmtree(work)
  found = {**kills, "finished": through, "lost": lost, "differing": differing, "overlap": worst}
  rows = [
    ["killed while encoding / while building", f"{kills['embed']} / {kills['build']}"],
    ["times that it got through in between, and at the end", str(through)],
    ["finished shards lost", str(lost)],
    ["times that embeddings differed by a byte from the uninterrupted call's", str(differing)],
    ["overlap@10 off from the uninterrupted call's, at most", f"{worst:.4f}"],
  ]
  text = table(["kill -9 at a random moment", ""], rows)
  write_section(config.page, "kills", text)
  return found


if __name__ == "__main__":
  main(tyro.cli(Config))
