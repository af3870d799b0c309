"""Killed without warning while it encodes and while it builds, the same call goes on; the shards are the same bytes."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.shards import read_embeddings

ROOT = pathlib.Path(__file__).parent.parent


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, ROOT / "benchmarks" / "index_worker.py", *map(str, arguments)],
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    text=True,
  )


def events(process, until=None):
  """What it says, up to and with the event ``until``, at which it is killed."""
  said = []
  with process:
    for line in process.stdout:
      said.append(line.strip())
      if said[-1] == until:
        process.send_signal(signal.SIGKILL)
    process.wait()
  assert process.returncode == (0 if until is None else -signal.SIGKILL), said
  return said


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
  root = tmp_path_factory.mktemp("kill")
  killed, whole = root / "killed", root / "whole"
  first = events(start(killed, 0.02), until="embed 208")
  (killed / ".embeddings.partial/.embeddings-00003.npy.half").write_bytes(b"half a shard")
  second = events(start(killed, 0.02), until="build 2")
  third = events(start(killed, 0, whole))
  return killed, whole, (first, second, third)


def test_what_was_finished_is_not_made_again(roots):
  _, _, (first, second, third) = roots
  assert first[0] == "embed 0"
  assert second[0] == "embed 192"  # three shards of 64, of the fourth a batch was done
  assert "embed 400" in second
  third = third[: third.index("embed 0")]  # the uninterrupted call follows
  assert not [line for line in third if line.startswith("embed")]
  assert [line for line in third if line.startswith("build")] == ["build 1", "build 2", "build 3"]


def test_shards_are_the_same_bytes_and_the_index_is_whole(roots):
  killed, whole, _ = roots
  names = sorted(p.name for p in (whole / "embeddings").iterdir())
  assert names == [*(f"embeddings-{n:05d}.npy" for n in range(7)), "manifest.json"]
  for name in names:
    assert (killed / "embeddings" / name).read_bytes() == (whole / "embeddings" / name).read_bytes()
  manifests = [files.read_manifest(root / "index", "index", verify="full") for root in (killed, whole)]
  assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
  assert manifests[0]["overlap"]["overlap"] == pytest.approx(manifests[1]["overlap"]["overlap"], abs=0.01)
  assert sorted(p.name for p in killed.iterdir()) == ["embeddings", "index"]
  index = load_index(killed / "index")
  np.testing.assert_array_equal(index.search(index.embeddings([7, 399]), 1, where={"row": [7, 399]}).ids, [[7], [399]])


def test_searchers_one_after_the_other_find_what_all_at_once_find(roots):
  index, lean = (load_index(roots[0] / "index", resident=resident) for resident in (True, False))
  queries = index.embeddings(np.arange(0, 400, 9))
  ours, theirs = index.search(queries, 7), lean.search(queries, 7)
  np.testing.assert_array_equal(ours.ids, theirs.ids)
  np.testing.assert_array_equal(ours.scores, theirs.scores)


def flipped(path):
  content = bytearray(path.read_bytes())
  content[-3] ^= 4
  path.write_bytes(content)


def swapped(path):
  content = path.read_bytes()
  other = path.with_name("embeddings-00002.npy")
  path.write_bytes(other.read_bytes())
  other.write_bytes(content)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (flipped, "SHA-256 differs"),
    (swapped, "SHA-256 differs"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "bytes, manifest.json says"),
    (lambda path: path.unlink(), "missing, though manifest.json lists it"),
  ],
  ids=["flipped", "swapped", "truncated", "missing"],
)
def test_a_damaged_shard_is_named_before_anything_is_built(roots, tmp_path, damage, message):
  source = tmp_path / "embeddings"
  source.mkdir()
  for path in (roots[0] / "embeddings").iterdir():
    (source / path.name).write_bytes(path.read_bytes())
  damage(source / "embeddings-00001.npy")
  with pytest.raises(UserError, match=f"embeddings-00001.npy: .*{message}") as error:
    build_index(source, tmp_path / "index")
  assert "\n" not in str(error.value)
  if message == "SHA-256 differs":
    with pytest.raises(UserError, match="SHA-256 differs"):
      read_embeddings(source, verify="full")
  assert [p.name for p in tmp_path.iterdir()] == ["embeddings"]
