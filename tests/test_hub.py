"""Ids of the Hub, against a server that speaks the part of its protocol which the library calls."""

import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy
import torch

from radit_jax.errors import UserError
from radit_jax.models.hub import local_directory
from radit_jax.models.safetensors_files import read_directory

ROOT = pathlib.Path(__file__).parent.parent
REPO = "owner/model"
MAIN, OLD = "a" * 40, "b" * 40
TOKEN = "hf_" + "x" * 34


class Hub(http.server.ThreadingHTTPServer):
  """Repositories as dicts of files per commit; counts requests, and fails as it is told to.

  Attributes:
    repos: id -> revision -> path -> content; "main" is a name of ``MAIN``.
    status: id -> (status, error code) answered to requests without ``TOKEN``.
    cuts: path -> how many times its body ends after a third.
    seen: "METHOD path" of every request about a repository.
    ranges: Range headers that were sent.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.repos, self.status, self.cuts = {}, {}, {}
    self.seen, self.ranges = [], []

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}"

  def gets(self):
    return [line.rsplit("/", 1)[-1] for line in self.seen if line.startswith("GET") and "/resolve/" in line]


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: Hub

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.split("?")[0]
    api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
    file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    repo, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
    if repo:  # the library also asks for lists of its own
      self.server.seen.append(f"{self.command} {path}")
    if repo in self.server.status and self.headers.get("Authorization") != f"Bearer {TOKEN}":
      return self.fail(*self.server.status[repo])
    if repo not in self.server.repos:
      return self.fail(404, "RepoNotFound")
    commit = MAIN if revision in ("main", "v1.0") else revision
    files = self.server.repos[repo].get(commit)
    if files is None:
      return self.fail(404, "RevisionNotFound")
    if api and api[2] == "revision":
      return self.answer(
        json.dumps({"id": repo, "sha": commit, "siblings": [{"rfilename": n} for n in files]}).encode()
      )
    if api:
      oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
      listed = [{"type": "file", "path": n, "size": len(files[n]), "oid": oids[n]} for n in files]
      return self.answer(json.dumps(listed).encode())
    if file[3] not in files:
      return self.fail(404, "EntryNotFound")
    content = files[file[3]]
    headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    start = 0
    if self.headers.get("Range"):
      self.server.ranges.append(self.headers["Range"])
      start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
      headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    cut = self.command == "GET" and self.server.cuts.get(file[3], 0) > 0
    if cut:
      self.server.cuts[file[3]] -= 1
    return self.answer(content[start:], 206 if start else 200, headers, cut=cut)

  def fail(self, status, code):
    self.answer(b"", status, {"X-Error-Code": code} if code else {})

  def answer(self, body, status=200, headers=(), *, cut=False):
    self.send_response(status)
    for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body[: len(body) // 3] if cut else body)
    if cut:
      self.wfile.flush()
      self.close_connection = True


@pytest.fixture
def hub():
  server = Hub()
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def weights(rng):
  return safetensors.numpy.save({"w": rng.normal(size=(64, 64)).astype(np.float32)})


@pytest.fixture
def model(hub, weights):
  """A repository with what is read, and with much that is not."""
  hub.repos[REPO] = {
    MAIN: {
      "config.json": b'{"model_type": "bert"}',
      "vocab.txt": b"a\nb\n",
      "chat_template.jinja": b"{{ x }}",
      "tokenizer.model": b"sp",
      "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
      "model.safetensors": weights,
      "model.fp16.safetensors": b"another precision",
      "consolidated.safetensors": b"the same once more",
      "pytorch_model.bin": b"a pickle",
      "modeling_x.py": b"raise SystemExit",
      "onnx/model.onnx": b"onnx",
      "README.md": b"# hello",
    },
    OLD: {"config.json": b'{"model_type": "old"}', "model.safetensors": weights},
  }
  return hub


READ = {"README.md", "config.json", "vocab.txt", "chat_template.jinja", "tokenizer.model", "1_Pooling/config.json"}


def run(hub, directory, *args, **environment):
  """Python in a process of its own, with a cache in the directory: the library reads its variables when imported."""
  clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
  return subprocess.run(
    [sys.executable, *args],
    cwd=directory,
    env=clean | {"PYTHONPATH": str(ROOT), "HF_HOME": str(directory / "hf"), "HF_ENDPOINT": hub.url} | environment,
    capture_output=True,
    text=True,
    check=False,
  )


def ask(hub, directory, *args, times=1, **environment):
  """What `local_directory` returns, or its error."""
  call = f"local_directory({', '.join(map(repr, args[:1]))}{''.join(f', {a}' for a in args[1:])})"
  code = (
    "from radit_jax.errors import UserError\nfrom radit_jax.models.hub import local_directory\n"
    f"try:\n  for _ in range({times}): print(path := {call})\n"
    "except UserError as e: print('UserError:', e)\n"
  )
  done = run(hub, directory, "-c", code, **environment)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == times, done.stdout
  return lines[-1]


def refusal(*args, **kwargs):
  line = ask(*args, **kwargs)
  assert line.startswith("UserError: "), line
  return line.removeprefix("UserError: ")


def names(directory):
  root = pathlib.Path(directory)
  return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def test_only_what_is_read_is_downloaded_and_once(model, tmp_path, weights):
  first = ask(model, tmp_path, REPO)
  assert names(first) == READ | {"model.safetensors"}
  assert (pathlib.Path(first) / "model.safetensors").read_bytes() == weights
  assert sorted(model.gets()) == sorted(name.rsplit("/", 1)[-1] for name in names(first))
  model.seen.clear()
  assert ask(model, tmp_path, REPO) == first
  assert model.seen == [f"GET /api/models/{REPO}/revision/main"]


LOAD = """
import sys
import numpy as np
from radit_jax.models import fingerprint, load_end_ids, load_generator
generator = load_generator(sys.argv[1])
tokens = np.arange(6)[None]
print(np.asarray(generator.logits(generator(tokens))).tolist(), load_end_ids(sys.argv[1]), fingerprint(sys.argv[1]))
"""


def test_models_load_by_their_id(hub, tmp_path):
  """The same numbers and the same fingerprint as from a directory."""
  import transformers

  torch.manual_seed(0)
  shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
  config = transformers.LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1, eos_token_id=[3, 5])
  transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "local")
  hub.repos["owner/tiny"] = {MAIN: {p.name: p.read_bytes() for p in (tmp_path / "local").iterdir()}}
  done = [run(hub, tmp_path, "-c", LOAD, name, JAX_PLATFORMS="cpu") for name in ("owner/tiny", str(tmp_path / "local"))]
  assert done[0].returncode == 0, done[0].stderr
  assert done[0].stdout == done[1].stdout
  assert "(3, 5)" in done[0].stdout


def test_one_process_asks_once(model, tmp_path):
  ask(model, tmp_path, REPO, times=3)
  assert sum("/revision/" in line for line in model.seen) == 1


def test_a_pinned_revision(model, tmp_path):
  main = ask(model, tmp_path, REPO)
  old = ask(model, tmp_path, f"{REPO}@{OLD}")
  assert (main.rsplit("/", 1)[-1], old.rsplit("/", 1)[-1]) == (MAIN, OLD)
  assert json.loads((pathlib.Path(old) / "config.json").read_text()) == {"model_type": "old"}
  model.seen.clear()
  assert ask(model, tmp_path, REPO, f"revision={OLD!r}") == old
  assert not model.seen  # a commit never changes
  assert ask(model, tmp_path, f"{REPO}@v1.0") == main
  assert "names revision v1.0, but 'main' is asked for" in refusal(model, tmp_path, f"{REPO}@v1.0", "revision='main'")
  assert refusal(model, tmp_path, f"{REPO}@v9") == f"{REPO}@v9: {model.url} has no revision v9 of {REPO}"


def test_shards_are_those_of_the_index(hub, tmp_path):
  index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
  files = {"model-1.safetensors": b"1", "model-2.safetensors": b"2", "other.safetensors": b"3"}
  hub.repos[REPO] = {
    MAIN: {f"0_Transformer/{name}": content for name, content in files.items()}
    | {
      "0_Transformer/model.safetensors.index.json": json.dumps(index).encode(),
      "modules.json": b'[{"path": "0_Transformer"}]',
      "checkpoint-5/model.safetensors": b"4",
    }
  }
  found = names(ask(hub, tmp_path, REPO))
  assert found == {
    "modules.json",
    *(f"0_Transformer/{n}" for n in ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors")),
  }
  hub.repos[REPO][OLD] = {"model.safetensors.index.json": b'{"weight_map": 3}'}
  assert "weight_map must map" in refusal(hub, tmp_path, f"{REPO}@{OLD}")


def test_pickles_are_fetched_only_when_asked_for(model, tmp_path):
  del model.repos[REPO][MAIN]["model.safetensors"]
  model.repos[REPO][MAIN]["checkpoint-5/model.safetensors"] = b"of a training run, and no part of the model"
  told = refusal(model, tmp_path, REPO)
  assert told.startswith(f"{REPO}: only pytorch_model.bin, a pickle")
  assert f"`radit convert {REPO} --out DIR`" in told
  assert "pytorch_model.bin" not in model.gets()
  assert names(ask(model, tmp_path, REPO, "pickles=True")) == READ | {"pytorch_model.bin"}
  assert refusal(model, tmp_path, f"{REPO}@{OLD}", "pickles=True").endswith("it can be used as it is")
  del model.repos[REPO][MAIN]["pytorch_model.bin"]
  model.repos[REPO]["c" * 40] = model.repos[REPO][MAIN]
  assert refusal(model, tmp_path, f"{REPO}@{'c' * 40}", "pickles=True").endswith("so nothing to convert")


def test_convert_takes_an_id(hub, tmp_path):
  torch.save({"w": torch.arange(6.0)}, tmp_path / "w.bin")
  hub.repos[REPO] = {MAIN: {"config.json": b"{}", "x.py": b"", "pytorch_model.bin": (tmp_path / "w.bin").read_bytes()}}
  done = run(hub, tmp_path, "-m", "radit_jax.cli", "convert", f"{REPO}@v1.0", "--out", "out")
  assert (done.returncode, done.stderr.count("\n")) == (0, 2), done.stderr
  assert done.stdout == "1 tensors, 0.0 MB, as safetensors: out\n"
  assert names(tmp_path / "out") == {"config.json", "model.safetensors"}
  np.testing.assert_array_equal(read_directory(tmp_path / "out")["w"].read(), np.arange(6))


def test_without_weights(model, tmp_path):
  for name in ("model.safetensors", "pytorch_model.bin"):
    del model.repos[REPO][MAIN][name]
  assert f"{REPO}: no model.safetensors on the Hub" in refusal(model, tmp_path, REPO)


def test_a_model_that_is_not_there(hub, tmp_path):
  assert refusal(hub, tmp_path, "runs/generator") == (
    f"runs/generator: no such directory, and no such model at {hub.url}"
  )


@pytest.mark.parametrize(
  ("status", "message"),
  [
    ((401, None), "not shown to you; check the name.*accept the licence at {url}/owner/model and set HF_TOKEN"),
    ((401, "GatedRepo"), "gated; accept the licence at {url}/owner/model and set HF_TOKEN"),
    ((403, "GatedRepo"), "gated; accept the licence at {url}/owner/model and set HF_TOKEN"),
    ((403, None), "gated; accept the licence"),
    ((404, None), "no such model at {url}"),
    ((500, None), "{url} answered with status 500; try again later"),
  ],
)
def test_what_the_server_refuses_is_one_line(model, tmp_path, status, message):
  model.status[REPO] = status
  assert re.match(f"{REPO}: .*" + message.format(url=model.url), refusal(model, tmp_path, REPO))


def test_a_token_opens_what_is_gated(model, tmp_path):
  model.status[REPO] = (403, "GatedRepo")
  assert names(ask(model, tmp_path, REPO, HF_TOKEN=TOKEN)) == READ | {"model.safetensors"}
  # What one has is kept, also once the token is gone.
  assert names(ask(model, tmp_path, REPO)) == READ | {"model.safetensors"}


def test_a_connection_that_drops_is_resumed(model, tmp_path, rng):
  content = rng.bytes(36_000_000)  # the library keeps what it has in pieces of 10 MiB
  model.repos[REPO][MAIN]["model.safetensors"] = content
  model.cuts["model.safetensors"] = 1
  directory = ask(model, tmp_path, REPO)
  assert model.ranges == [f"bytes={10 * 2**20}-"]
  assert (pathlib.Path(directory) / "model.safetensors").read_bytes() == content


def test_a_connection_that_keeps_dropping_is_reported_and_leaves_nothing_half(model, tmp_path, weights):
  # Each attempt brings a third of what was left, which the library counts as progress; empty bodies are not.
  model.repos[REPO][MAIN]["model.safetensors"] = b"12"
  model.cuts["model.safetensors"] = 100
  told = refusal(model, tmp_path, REPO)
  assert re.search(r"the connection broke \(.*\); call again to go on$", told), told
  assert not list((tmp_path / "hf").rglob("model.safetensors"))
  model.cuts.clear()
  assert (pathlib.Path(ask(model, tmp_path, REPO)) / "model.safetensors").read_bytes() == b"12"


def test_offline_the_cache_serves(model, tmp_path):
  offline = {"HF_HUB_OFFLINE": "1"}
  told = refusal(model, tmp_path, REPO, **offline)
  assert "not, or not wholly, in" in told
  assert "HF_HUB_OFFLINE is set" in told
  assert not model.seen
  first = ask(model, tmp_path, REPO)
  model.seen.clear()
  assert ask(model, tmp_path, REPO, **offline) == first
  assert not model.seen
  (pathlib.Path(first) / "model.safetensors").unlink()
  assert "not, or not wholly, in" in refusal(model, tmp_path, REPO, **offline)


def test_a_server_that_cannot_be_reached(model, tmp_path):
  down = {"HF_ENDPOINT": "http://127.0.0.1:9"}
  said = f"{REPO}: no such directory here, and http://127.0.0.1:9 cannot be reached.*refused"
  assert re.match(said, refusal(model, tmp_path, REPO, **down))
  first = ask(model, tmp_path, REPO)
  assert ask(model, tmp_path, REPO, **down) == first


# What is no id never leads to the network: none of these could answer otherwise, as there is none to ask.


@pytest.fixture
def nothing_is_asked(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)

  def asked(*args):
    raise AssertionError(f"would download {args}")

  monkeypatch.setattr("radit_jax.models.hub._download", asked)


def test_a_directory_is_returned_as_it_is(nothing_is_asked, tmp_path):
  for name in ("model", "owner/model", "owner/model@v1"):
    (tmp_path / name).mkdir(parents=True)
    assert local_directory(name) == pathlib.Path(name)
  with pytest.raises(UserError, match="is a directory here, and has no revision 'main'"):
    local_directory("owner/model", revision="main")


@pytest.mark.parametrize(
  "path",
  [
    *("generator", "runs/x/generator", "./owner/model", "/owner/model", "owner/", "~/model", "../model"),
    *("owner/model/", "owner/model@", "owner/model@/etc", "https://huggingface.co/owner/model"),
    pathlib.Path("owner/model"),
  ],
)
def test_a_path_that_is_missing_is_told_at_once(nothing_is_asked, path):
  with pytest.raises(UserError, match="no such directory") as e:
    local_directory(path)
  assert "\n" not in str(e.value)


def test_an_owner_that_is_a_directory_here_makes_it_a_path(nothing_is_asked, tmp_path):
  (tmp_path / "runs").mkdir()
  with pytest.raises(UserError, match=r"runs/generator: no such directory \(runs is here, so"):
    local_directory("runs/generator")
  (tmp_path / "runs" / "file").write_text("x")
  with pytest.raises(UserError, match="runs/file: not a directory"):
    local_directory("runs/file")


@pytest.mark.parametrize("revision", ["../../x", "a/../../b", "/etc", "a b", ""])
def test_revisions_that_are_none(nothing_is_asked, revision):
  with pytest.raises(UserError, match=r"no such directory|cannot be a revision"):
    local_directory(f"owner/model@{revision}")
  with pytest.raises(UserError, match="cannot be a revision"):
    local_directory("owner/model", revision=revision)


def test_ids_that_the_hub_cannot_have(hub, tmp_path):
  assert "no possible id of a Hub model" in refusal(hub, tmp_path, "own--er/model.git")
  assert not hub.seen
