"""What a stranger's text or directory cannot do, and what a run tells nobody: secrets, the data, the network."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_prompts import PASSAGE, QUESTION, SPECIAL, config, tokenizer  # noqa: F401
from tiny import TOWNS

from radit_jax import files
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedStore, ScoreStore
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.shards import read_embeddings
from radit_jax.training import manifests

ROOT = pathlib.Path(__file__).parent.parent

# Paths in manifests.

READERS = {
  "passages": PassageStore,
  "retrieved": RetrievedStore,
  "scores": ScoreStore,
  "embeddings": read_embeddings,
  "index": load_index,
  "checkpoint": lambda path: manifests.read(path, 3),
}


@pytest.mark.parametrize("way", ["absolute", "up", "link", "linked directory"])
@pytest.mark.parametrize("kind", READERS)
def test_no_manifest_leads_out_of_its_directory(kind, way, tmp_path):
  """Of no kind of directory that is read; what is outside exists, with the size and hash that the manifest says."""
  root, outside = tmp_path / "inside", tmp_path / "outside"
  for directory in (root, outside):
    directory.mkdir()
    (directory / "data").write_bytes(b"secret")
  names = {"absolute": str(outside / "data"), "up": "../outside/data", "link": "link", "linked directory": "to/data"}
  name = names[way]
  if way == "link":
    (root / "link").symlink_to(outside / "data")
  if way == "linked directory":
    (root / "to").symlink_to(outside)
  fields = {"step": 3, "metrics": {}, "data": {}, "leaves": {}} if kind == "checkpoint" else {}
  manifest = files.described(root, kind, fields)
  manifest["files"][name] = manifest["files"]["data"]
  if kind == "checkpoint":
    manifest["sha256"] = manifests._digest(manifest)
  files.write_json(root / files.MANIFEST, manifest)
  with pytest.raises(UserError, match="lies outside the directory"):
    READERS[kind](root)


# Text that looks like control tokens.


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_ten_thousand_fuzzed_passages_leak_no_control_token(tokenizer, style):  # noqa: F811
  """A thousand for each tokenizer and style, as question and passage: what is control is what the prompt itself has."""
  rng = np.random.default_rng(5)
  pieces = [
    *SPECIAL,
    *(token[:-1] for token in SPECIAL),
    *(token[1:] for token in SPECIAL),
    *("</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>", "<|im_start|>", "<|eot_id|>", "<0x0A>", "▁", "\n", "\t", " ", ""),
    *("A: ", "Q: ", "Background: ", "\0", "\u200b", "\u202e", "é", "日本", "🙂", "{passage}", "{{ eos_token }}", "a"),
  ]
  texts = ["".join(rng.choice(pieces, size=rng.integers(1, 12)).tolist()) for _ in range(2000)]
  texts = [text if text.strip() else "a" for text in texts]
  prompt = Prompt(tokenizer, config(style))
  control = np.array([tokenizer.convert_tokens_to_ids(t) for t in SPECIAL[1:]])
  honest = prompt.render(QUESTION, PASSAGE, "Orlen")
  expected = [i for i in honest.tokens if i in control]
  pairs = zip(texts[::2], texts[1::2], strict=True)
  rows = prompt.render_many([(question, Passage("p", text[:9], text), "Orlen", None) for question, text in pairs])
  assert len(rows) == 1000
  for row, question in zip(rows, texts[::2], strict=True):
    tokens = np.array(row.tokens)
    assert tokens[np.isin(tokens, control)].tolist() == expected, question


# A whole run: offline, with secrets in its environment, and with nothing of its data told.

NO_NETWORK = """
import socket

def _local(address):
  return not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost", "")

def _guarded(name):
  real = getattr(socket.socket, name)
  def call(self, *arguments):
    address = arguments[-1]
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address):
      print("NETWORK", name, address, flush=True)
      raise OSError(f"no network in this test: {address}")
    return real(self, *arguments)
  setattr(socket.socket, name, call)

for name in ("connect", "connect_ex", "sendto"):
  _guarded(name)
_look_up = socket.getaddrinfo
def _getaddrinfo(host, *arguments, **options):
  if host not in (None, "", "localhost", "127.0.0.1", "::1"):
    print("NETWORK getaddrinfo", host, flush=True)
    raise socket.gaierror(f"no network in this test: {host}")
  return _look_up(host, *arguments, **options)
socket.getaddrinfo = _getaddrinfo
"""
SECRETS = {
  name: f"s3cr3t-{name.lower()}"
  for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GOOGLE_API_KEY", "MY_PASSWORD")
}
LIMITS = ("--prompt.max-tokens", "96", "--prompt.max-passage-tokens", "40", "--prompt.max-answer-tokens", "8")
TUNING = [
  f"--{part}-tuning.{option}"
  for part in ("generator", "retriever")
  for option in ("loop.steps=2", "loop.batch-size=8", "loop.log-every=1", "loop.evaluate-every=1", "loop.tensorboard")
]


@pytest.fixture(scope="module")
def told(parts, tmp_path_factory):
  """Directory and output of `radit run --redact`; no socket but loopback, and where it can be had no network."""
  root = tmp_path_factory.mktemp("offline")
  (root / "site").mkdir()
  (root / "site/sitecustomize.py").write_text(NO_NETWORK)
  options = [f"--{name}={value}" for name, value in {**parts, "workdir": root / "run", "k": 5, "k-train": 2}.items()]
  command = [sys.executable, "-m", "radit_jax.cli", "run", *options, "--backend=exact", *LIMITS, *TUNING, "--redact"]
  alone = ["unshare", "--net", "--"]
  if shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0:
    command = [*alone, *command]
  paths = os.pathsep.join(filter(None, [f"{root}/site", str(ROOT), os.environ.get("PYTHONPATH")]))
  environment = {**os.environ, **SECRETS, "PYTHONPATH": paths}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-2000:]
  return root / "run", done.stdout + done.stderr


def test_a_whole_run_asks_for_no_network(told):
  root, output = told
  assert "NETWORK" not in output
  assert (root / "report.html").exists()


def test_no_secret_of_the_environment_is_written_down(told):
  root, output = told
  assert "s3cr3t" not in output
  run = json.loads((root / "run.json").read_text())
  assert {"recipe", "paths", "versions", "commit", "devices"} <= run.keys()
  for path in root.rglob("*"):
    assert path.is_dir() or b"s3cr3t" not in path.read_bytes(), path


def test_redacted_reports_and_logs_hold_none_of_the_data(told):
  root, output = told
  assert not list(root.rglob("first_batch.*"))
  reports = [
    *(root / name for name in ("report.html", "report.json", "run.json", "stages.json")),
    *(root / "evaluation").iterdir(),
    *(p for name in ("metrics.jsonl", "result.json", "run.json", "report.html") for p in root.glob(f"train_*/{name}")),
    *(p for p in root.glob("train_*/tensorboard/*")),
  ]
  assert len(reports) >= 4 + 4 + 8 + 2
  told_texts = {"output": output.encode(), **{str(p): p.read_bytes() for p in reports}}
  for name, content in told_texts.items():
    for text in (*TOWNS, "lives in", "Where does person"):
      assert text.encode() not in content, (name, text)
