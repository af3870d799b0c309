"""`gs://`: against a server that speaks the protocol of Google Cloud Storage, and refusals where it cannot work."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import typing
import urllib.parse
from typing import Any

import jax.numpy as jnp
import pytest
from processes import finish, free_port, start
from test_distributed import config_file
from test_verbs import generator_config, made, retriever_config  # noqa: F401 - made is a fixture

from radit_jax import cli, files
from radit_jax import config as c
from radit_jax.errors import UserError
from radit_jax.training import manifests
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.metrics import MetricsWriter, read_metrics
from radit_jax.verbs.export import export
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever

ACCEPTED = {
  ("train-generator", "workdir"),
  ("train-retriever", "workdir"),
  ("export", "out"),
  ("ask", "question"),
  ("retrieve", "question"),
  ("plan", "topology"),
}


def text_options() -> list[tuple[str, str]]:
  """Every option of every verb that is free text, paths that is."""
  found = []
  for verb, (_, _, config) in cli.VERBS.items():
    hints = typing.get_type_hints(config)
    found += [(verb, f.name) for f in dataclasses.fields(config) if hints[f.name] in (str, str | None)]
  return found


@pytest.fixture(scope="module")
def bucket():
  """A running server with an empty bucket; what reads and writes buckets talks to it."""
  from gcp_storage_emulator.exceptions import NotFound
  from gcp_storage_emulator.server import RequestHandler, create_server

  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
  server.start()
  end_headers = RequestHandler.end_headers

  def with_generation(handler: Any) -> None:
    """The emulator does not say which version it sends; tensorstore needs it to write an object a second time."""
    media = re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^?]+)\?.*alt=media.*", handler.path)
    if handler.command == "GET" and media:
      with contextlib.suppress(NotFound):
        found = server._storage.get_file_obj(media[1], urllib.parse.unquote(media[2]))
        handler.send_header("x-goog-generation", found["generation"])
    end_headers(handler)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(RequestHandler, "end_headers", with_generation)
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
    # Nobody to ask for credentials, and an emulator without hierarchical buckets.
    patch.setenv("NO_GCE_CHECK", "true")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield "gs://bucket"
  server.stop()


def contents(root: str | pathlib.Path) -> dict[str, bytes]:
  """Files below a directory or a bucket's prefix, checkpoints left out."""
  root = files.location(root)
  found, folders = {}, [root]
  while folders:
    for p in folders.pop().iterdir():
      if p.is_dir():
        folders += [p] if p.name != "checkpoints" else []
      else:
        found[str(p).removeprefix(f"{root}/")] = p.read_bytes()
  return found


@pytest.mark.parametrize(("verb", "name"), sorted(set(text_options()) - ACCEPTED))
def test_an_option_that_cannot_be_in_a_bucket_says_so(verb, name, capsys):
  config = cli.VERBS[verb][2]
  needed = [f.name for f in dataclasses.fields(config) if f.default is dataclasses.MISSING and f.name != "what"]
  values = dict.fromkeys(needed, "y") | ({"topology": "v5e:2x4"} if verb == "plan" else {}) | {name: "gs://b/x"}
  args = [part for n, value in values.items() for part in (f"--{n.replace('_', '-')}", value)]
  assert cli.main([verb, *(["--what", "batch"] if verb == "inspect" else []), *args]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert f"error: --{name.replace('_', '-')} gs://b/x: cannot be in a bucket; mount it (gcsfuse " in error


def test_without_the_extra_one_line_says_what_to_install():
  code = (
    "import sys; sys.modules['gcsfs'] = None; from radit_jax import cli\n"
    "sys.exit(cli.main(['train-generator', '--workdir', 'gs://b/r', *'--generator x --retrieved x --dev-retrieved x "
    "--passages x'.split()]))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr == 'radit: error: gs://b/r: needs the extra gcs: pip install "radit_jax[gcs]"\n'


def test_a_path_on_disk_needs_nothing(tmp_path):
  assert files.location(tmp_path) == tmp_path
  assert type(files.location("a/b")) is type(pathlib.Path())


def test_files_and_directories_in_a_bucket_are_whole_or_absent(bucket):
  files.write_json(f"{bucket}/files/a.json", {"x": 1})
  assert files.read_json(f"{bucket}/files/a.json") == {"x": 1}
  with pytest.raises(UserError, match=r"gs://bucket/files/none.json: no such file"):
    files.read_json(f"{bucket}/files/none.json")
  target = f"{bucket}/files/model"
  with pytest.raises(ZeroDivisionError), files.atomic_directory(target) as d:
    (d / "config.json").write_text(str(1 / len(list(d.iterdir()))))
  assert not files.location(target).exists()
  for names in (["config.json", "old.txt"], ["config.json", "part/new.txt"]):
    with files.atomic_directory(target) as d:
      for name in names:
        (d / name).parent.mkdir(exist_ok=True)
        (d / name).write_text(name)
    assert contents(target) == {name: name.encode() for name in names}


def test_metrics_in_a_bucket_are_those_of_a_file(bucket, tmp_path):
  paths = [f"{bucket}/metrics/metrics.jsonl", tmp_path / "metrics.jsonl"]
  for path in paths:
    writer = MetricsWriter(path)
    writer.write(1, loss=2.0)
    writer.write(2, loss=float("nan"))
    writer.write(2, dev_loss=1.0)
    assert len(read_metrics(path)) == 3  # not later than the checkpoint that follows
    writer.write(3, loss=0.5)
    writer.close()
    writer = MetricsWriter(path, resume_step=2)
    writer.write(3, loss=0.25)
    writer.close()
  assert files.location(paths[0]).read_bytes() == paths[1].read_bytes()
  assert [line["step"] for line in read_metrics(paths[0])] == [1, 2, 2, 3]


def steady(lines: bytes) -> list[dict]:
  """Without the speed."""
  return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in lines.splitlines()]


def test_a_generator_tuned_in_a_bucket_is_the_one_tuned_on_disk(made, parts, bucket, tmp_path):  # noqa: F811
  """Killed and continued there; then the finished run is found, and another recipe refused."""
  local = train_generator(generator_config(made, parts, tmp_path / "run"))
  remote = generator_config(made, parts, f"{bucket}/run")

  class Killed(Exception):
    pass

  def kill(stage, done, total, unit, **figures):
    if done == 3:
      raise Killed

  with pytest.raises(Killed):
    train_generator(remote, progress=kill)
  assert "run.json" in contents(f"{bucket}/run")
  result = train_generator(remote)
  assert result == dataclasses.replace(local, generator=f"{bucket}/run/generator")
  here, there = contents(tmp_path / "run"), contents(f"{bucket}/run")
  assert here.keys() == there.keys()
  assert steady(here.pop("metrics.jsonl")) == steady(there.pop("metrics.jsonl"))
  del here["result.json"], there["result.json"]  # it names the directory
  del here["report.html"], there["report.html"]  # and this tells how long it took
  assert here == there
  assert train_generator(remote, progress=kill) == result
  with pytest.raises(UserError, match=r"gs://bucket/run/run.json: made with k = 2, this call has 1"):
    train_generator(dataclasses.replace(remote, k=1))


def test_two_processes_tune_in_one_bucket_and_one_goes_on(made, parts, bucket, tmp_path):  # noqa: F811
  """A signal to one stops both; a single process continues from the newest step that they saved together."""
  loop = c.LoopConfig(steps=100_000, batch_size=8, log_every=1, evaluate_every=4, keep=100)
  config = generator_config(made, parts, f"{bucket}/two", loop=loop)
  port, file = free_port(), config_file(tmp_path / "tuning.py", config)
  started = [start(["-m", "radit_jax.cli", "train-generator", "--config", str(file)], i, port) for i in range(2)]
  until = time.monotonic() + 240
  while len(read_metrics(f"{bucket}/two/metrics.jsonl")) < 7 and time.monotonic() < until:  # one has been saved
    assert [p.poll() for p, _ in started] == [None, None]
    time.sleep(0.1)
  os.kill(started[1][0].pid, signal.SIGTERM)
  done = finish(*started)
  assert [status for status, *_ in done] == [75, 75]
  assert done[0][2] == done[1][2]
  saved = [s.number for s in manifests.steps(f"{bucket}/two/checkpoints") if not s.problem]
  assert saved[0] == 4
  went_on = []

  class Killed(Exception):
    pass

  def kill(stage, done, total, unit, **figures):
    if unit == "steps" and done > saved[-1]:
      went_on.append(done)
      raise Killed

  with pytest.raises(Killed):
    train_generator(config, progress=kill)
  assert went_on == [saved[-1] + 1]


def test_a_retriever_is_tuned_in_a_bucket_and_a_run_exported_to_one(made, parts, bucket, tmp_path):  # noqa: F811
  local = train_retriever(retriever_config(made, parts, tmp_path / "run"))
  remote = train_retriever(retriever_config(made, parts, f"{bucket}/retriever"))
  assert contents(remote.query_encoder) == contents(local.query_encoder)
  for out in (f"{bucket}/exported", f"{tmp_path}/exported"):
    assert export(c.ExportConfig(run=str(tmp_path / "run"), out=out)).directories == (f"{out}/query_encoder",)
  assert contents(f"{bucket}/exported") == contents(tmp_path / "exported")
  with pytest.raises(UserError, match=r"gs://bucket/exported: exists"):
    export(c.ExportConfig(run=str(tmp_path / "run"), out=f"{bucket}/exported"))


def test_an_unfinished_checkpoint_in_a_bucket_is_left_out(bucket, caplog):
  root = f"{bucket}/damaged/checkpoints"
  checkpoints = Checkpoints(root, keep=4)
  for step in (1, 2):
    checkpoints.save(step, {"w": jnp.arange(64.0) * step}, dev_loss=None)
  checkpoints.close()
  assert files.read_json(f"{root}/2/manifest.json")["files"] == {}
  files.location(f"{root}/2/manifest.json").unlink()  # as a kill leaves it
  logging.getLogger("radit_jax").addHandler(caplog.handler)
  checkpoints = Checkpoints(root, keep=4)
  logging.getLogger("radit_jax").removeHandler(caplog.handler)
  step, found = checkpoints.resume({"w": jnp.zeros(64)})
  checkpoints.close()
  assert step == 1
  assert found["w"].tolist() == list(range(64))
  assert "2/manifest.json: missing: left out" in caplog.text
