"""Small tunings to be cut, killed, damaged and continued: the invented data of the tests, and what a run came to."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tiny import make_parts  # noqa: E402

from radit_jax import config as c  # noqa: E402
from radit_jax import sharding  # noqa: E402
from radit_jax.progress import silent  # noqa: E402
from radit_jax.training import manifests  # noqa: E402
from radit_jax.training.metrics import read_metrics  # noqa: E402
from radit_jax.verbs.index import index  # noqa: E402
from radit_jax.verbs.prepare import prepare  # noqa: E402
from radit_jax.verbs.retrieve import retrieve  # noqa: E402
from radit_jax.verbs.score import score  # noqa: E402
from radit_jax.verbs.train_generator import train_generator  # noqa: E402
from radit_jax.verbs.train_retriever import train_retriever  # noqa: E402

Kind = Literal["ralt", "lsr", "lora"]
KINDS: tuple[Kind, ...] = ("ralt", "lsr", "lora")
WORKER = pathlib.Path(__file__).parent / "fault_worker.py"
#: What a line of metrics.jsonl says of the run; the rest is about time.
FIELDS = ("step", "loss", "grad_norm", "lr", "tokens", "batch_ids_hash", "dev_loss", "nonfinite_steps")
PROMPT = c.PromptConfig(max_tokens=96, max_passage_tokens=40, max_answer_tokens=8)
OPTIMIZER = c.OptimizerConfig(peak_lr=1e-3, floor_lr=1e-4, warmup_steps=2)


@dataclasses.dataclass(frozen=True)
class World:
  """Stores that both tunings read.

  Attributes:
    root: where they lie.
    parts: paths of corpus, questions, generator and encoder.
  """

  root: pathlib.Path
  parts: dict[str, str]

  def config(self, kind: Kind, workdir: pathlib.Path, **loop: Any) -> Any:
    """A tuning of 30 steps that saves every 5, or what ``loop`` says."""
    shared = {
      "workdir": str(workdir),
      "retrieved": f"{self.root}/retrieved/train",
      "dev_retrieved": f"{self.root}/retrieved/dev",
      "optimizer": OPTIMIZER,
      "loop": c.LoopConfig(**{"steps": 30, "batch_size": 8, "log_every": 1, "evaluate_every": 5, **loop}),
      "lora": c.LoraConfig(rank=4) if kind == "lora" else c.LoraConfig(),
    }
    if kind != "lsr":
      own = {"generator": self.parts["generator"], "passages": f"{self.root}/passages", "k": 2, "prompt": PROMPT}
      return c.TrainGeneratorConfig(**shared, **own)
    stores = {"scores": f"{self.root}/scores/train", "dev_scores": f"{self.root}/scores/dev"}
    return c.TrainRetrieverConfig(**shared, **stores, encoder=self.parts["encoder"], index=f"{self.root}/index", k=5)

  def score_config(self, split: str, out: pathlib.Path) -> c.ScoreConfig:
    """Of `radit score`."""
    return c.ScoreConfig(
      generator=self.parts["generator"],
      retrieved=f"{self.root}/retrieved/{split}",
      passages=f"{self.root}/passages",
      out=str(out),
      k=5,
      prompt=PROMPT,
      batch_size=8,
    )

  def index_config(self, out: pathlib.Path, backend: c.Backend = "exact") -> c.IndexConfig:
    """Of `radit index`."""
    return c.IndexConfig(
      passages=f"{self.root}/passages",
      encoder=self.parts["encoder"],
      embeddings=str(out / "embeddings"),
      index=str(out / "index"),
      backend=backend,
      batch_size=16,
    )


def make_world(root: pathlib.Path) -> World:
  """Forty documents and questions, two untrained models, and everything up to the scores."""
  root.mkdir(parents=True, exist_ok=True)
  world = World(root, make_parts(root))
  prepare(c.PrepareConfig(workdir=str(root), corpus=world.parts["corpus"], questions=world.parts["questions"]))
  index(world.index_config(root))
  for split in ("train", "dev"):
    retrieve(
      c.RetrieveConfig(
        questions=f"{root}/split/{split}.jsonl",
        passages=f"{root}/passages",
        index=f"{root}/index",
        encoder=world.parts["encoder"],
        out=f"{root}/retrieved/{split}",
        k=5,
        batch_size=16,
      )
    )
    score(world.score_config(split, root / "scores" / split))
  return world


def tune(config: Any, progress: Callable[..., None] = silent) -> Any:
  """Runs a tuning in this process."""
  verb = train_retriever if isinstance(config, c.TrainRetrieverConfig) else train_generator
  return verb(config, progress=progress)


@contextlib.contextmanager
def devices(number: int) -> Iterator[None]:
  """Verbs see only so many devices."""
  import jax

  whole = sharding.make_mesh
  sharding.make_mesh = functools.partial(whole, devices=jax.devices()[:number])
  try:
    yield
  finally:
    sharding.make_mesh = whole


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Lines of a run, without what is about time."""
  return [{name: line[name] for name in FIELDS if name in line} for line in read_metrics(workdir / "metrics.jsonl")]


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """What a finished run came to: checksums of parameters and optimizer state, its lines, the bytes of its export."""
  last = manifests.steps(workdir / "checkpoints")[-1]
  assert last.manifest is not None, last.problem
  exports = sorted(p for p in workdir.rglob("*.safetensors") if "checkpoints" not in p.parts)
  return {
    "step": last.number,
    "leaves": last.manifest["leaves"],
    "metrics": metrics(workdir),
    "exports": {str(p.relative_to(workdir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in exports},
  }


def content(root: pathlib.Path) -> dict[str, bytes]:
  """Every file below a directory."""
  return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def reached(workdir: pathlib.Path) -> int:
  """Last step that has its line."""
  return max((line["step"] for line in read_metrics(workdir / "metrics.jsonl")), default=0)


def intact(workdir: pathlib.Path) -> int:
  """Newest step that a run would continue from."""
  return max((s.number for s in manifests.steps(workdir / "checkpoints") if not s.problem), default=0)


# Processes.


def verb_of(config: Any) -> str:
  """Name of the verb that takes a config."""
  return {
    c.TrainGeneratorConfig: "train-generator",
    c.TrainRetrieverConfig: "train-retriever",
    c.ScoreConfig: "score",
    c.IndexConfig: "index",
  }[type(config)]


def config_file(path: pathlib.Path, config: Any) -> pathlib.Path:
  """A --config file that holds ``config``."""
  path.write_text(f"from radit_jax.config import *\n\nconfig = {config!r}\n")
  return path


def start(config: Any, file: pathlib.Path, *, hold: str = "", **environment: str) -> subprocess.Popen[str]:
  """The command line on a config, its output in ``file`` with other endings.

  Args:
    config: of a verb.
    file: written, a ``--config`` file.
    hold: a phase to announce and to stay in, see ``fault_worker.py``; "" runs the command line as it is.
    environment: further variables.
  """
  program = [str(WORKER), hold] if hold else ["-m", "radit_jax.cli"]
  with open(file.with_suffix(".err"), "w") as err:
    return subprocess.Popen(
      [sys.executable, *program, verb_of(config), "--config", str(config_file(file, config))],
      env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
      stdout=subprocess.PIPE,
      stderr=err,
      text=True,
    )


def last_word(file: pathlib.Path) -> str:
  """Last line on stderr of what was started with ``file``."""
  return (file.with_suffix(".err").read_text().strip().splitlines() or [""])[-1]


def timed_end(process: subprocess.Popen[str], *signals: signal.Signals, within_s: float = 120) -> tuple[int, float]:
  """Sends signals half a second apart; returns exit status and seconds from the last one to the end."""
  for number, name in enumerate(signals):
    time.sleep(0.5 * bool(number))
    process.send_signal(name)
  began = time.monotonic()
  status = process.wait(within_s)
  return status, time.monotonic() - began
