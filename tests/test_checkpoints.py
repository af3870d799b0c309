"""Checkpoints are known to be intact or not used: every file damaged in every way, kills, checksums and their twin."""

import dataclasses
import itertools
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_loop import batch_of, losses, run

from radit_jax import cli, files
from radit_jax.config import MeshConfig
from radit_jax.errors import TrainingError, UserError
from radit_jax.sharding import make_mesh
from radit_jax.training import manifests
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.checksums import by_name, checksums

STEPS = (4, 8, 12)


@dataclasses.dataclass
class Saved:
  """Three checkpoints and what they hold."""

  root: pathlib.Path
  states: dict[int, dict[str, np.ndarray]]


def state_of(step):
  rng = np.random.default_rng(step)
  return {
    "w": jnp.asarray(rng.normal(size=(8, 3)).astype(np.float32)),
    "moments": {"m": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16), "count": jnp.int32(step)},
  }


def open_on_one(directory, *, keep=3):
  return Checkpoints(directory, keep=keep, data={"seed": 1})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  root = tmp_path_factory.mktemp("saved") / "checkpoints"
  checkpoints = open_on_one(root)
  for step in STEPS:
    checkpoints.save(step, state_of(step), dev_loss=1.0 / step)
  checkpoints.close()
  return Saved(root, {step: jax.tree.map(np.asarray, state_of(step)) for step in STEPS})


@pytest.fixture
def warnings(caplog):
  """Also where an earlier test has run the command line, which tells them itself."""
  logger = logging.getLogger("radit_jax")
  logger.addHandler(caplog.handler)
  yield caplog
  logger.removeHandler(caplog.handler)


def resumed(directory):
  """Step and state that a new process would continue from."""
  checkpoints = open_on_one(directory)
  try:
    if checkpoints.newest() is None:
      return 0, None
    return checkpoints.resume(jax.tree.map(jnp.zeros_like, state_of(0)))
  finally:
    checkpoints.close()


def assert_is(state, expected):
  for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert mine.dtype == theirs.dtype
    assert np.asarray(mine).tobytes() == theirs.tobytes()


def files_of(step_directory):
  return sorted(p for p in step_directory.rglob("*") if p.is_file())


def flip_a_bit(file, other):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def truncate(file, other):
  os.truncate(file, file.stat().st_size // 2)


def delete(file, other):
  file.unlink()


def swap(file, other):
  mine = file.read_bytes()
  file.write_bytes(other.read_bytes())
  other.write_bytes(mine)


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, delete, swap])
def test_each_damaged_file_is_named_or_does_no_harm(saved, tmp_path, warnings, damage):
  """Of the newest step; swapped with one of the step before, which is then damaged too."""
  names = [p.relative_to(saved.root / "12") for p in files_of(saved.root / "12")]
  others = [p.relative_to(saved.root / "8") for p in files_of(saved.root / "8")]
  assert min(len(names), len(others)) >= 9  # ten, one more or less: orbax divides its own as they come
  counterparts = [name if name in others else others[i % len(others)] for i, name in enumerate(names)]
  fell_back = 0
  for number, (name, counterpart) in enumerate(zip(names, counterparts, strict=True)):
    root = tmp_path / str(number)
    shutil.copytree(saved.root, root)
    damage(root / "12" / name, root / "8" / counterpart)
    warnings.clear()
    step, state = resumed(root)
    assert_is(state, saved.states[step])
    if step != 12:
      fell_back += 1
      assert step == (4 if damage is swap else 8), name
      assert str(root / "12" / name) in warnings.text
      assert not (root / "12").exists()
    shutil.rmtree(root)
  pairs = zip(names, counterparts, strict=True)
  equal = sum((saved.root / "12" / a).read_bytes() == (saved.root / "8" / b).read_bytes() for a, b in pairs)
  assert fell_back == len(names) - (equal if damage is swap else 0)


def test_a_whole_step_under_the_name_of_another_is_not_used(saved, tmp_path, warnings):
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  (root / "12").rename(root / "x")
  (root / "8").rename(root / "12")
  (root / "x").rename(root / "8")
  assert resumed(root)[0] == 4
  assert "12/manifest.json: that of checkpoint 8, not of checkpoint 12" in warnings.text


def test_a_file_outside_is_not_read(saved, tmp_path, warnings):
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  manifest = files.read_json(root / "12/manifest.json")
  manifest["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
  rewrite(root / "12", manifest)
  (tmp_path / "secret").write_text("")
  assert resumed(root)[0] == 8
  assert "'../../secret' lies outside the directory" in warnings.text


def rewrite(step, manifest):
  """A manifest that agrees with itself."""
  rest = {k: v for k, v in manifest.items() if k != "sha256"}
  files.write_json(step / "manifest.json", {**rest, "sha256": manifests._digest(rest)})


def test_what_is_restored_is_held_against_the_checksums_of_what_was_saved(saved, tmp_path, warnings):
  """Where the files have no hashes, as in a bucket, or memory is at fault."""
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  manifest = files.read_json(root / "12/manifest.json")
  manifest["leaves"]["['w']"] = "00000000"
  rewrite(root / "12", manifest)
  step, state = resumed(root)
  assert step == 8
  assert_is(state, saved.states[8])
  assert "['w'] has checksum" in warnings.text
  assert sorted(p.name for p in root.iterdir()) == ["4", "8", "damaged-12"]


def test_nothing_intact_is_one_line(saved, tmp_path):
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  for step in STEPS:
    flip_a_bit(root / str(step) / "manifest.json", None)
  with pytest.raises(
    UserError, match=r"12/manifest.json.*none of the 3 checkpoints .* is intact: remove that"
  ) as caught:
    resumed(root)
  assert "\n" not in str(caught.value)
  assert sorted(p.name for p in root.iterdir()) == ["12", "4", "8"]  # left for whoever wants to look into it


def test_a_step_whose_process_ended_before_the_manifest_is_made_again(saved, tmp_path, warnings):
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  (root / "12/manifest.json").unlink()
  assert resumed(root)[0] == 8
  assert "ended before it was finished" in warnings.text
  assert not (root / "12").exists()
  for step in (4, 8):
    (root / str(step) / "manifest.json").unlink()
  with pytest.raises(UserError, match="none of the 1 checkpoints"):  # a kill takes one manifest, not two
    resumed(root)
  shutil.rmtree(root / "4")
  assert resumed(root)[0] == 0


def test_checkpoints_from_before_there_were_manifests_are_refused_and_kept(tmp_path):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(tmp_path / "checkpoints", item_handlers=ocp.StandardCheckpointHandler()) as manager:
    manager.save(4, args=ocp.args.StandardSave({"['w']": jnp.zeros(3)}))
    manager.wait_until_finished()
  with pytest.raises(UserError, match=r"4/manifest.json: missing, as an earlier radit_jax wrote none; none of"):
    resumed(tmp_path / "checkpoints")
  assert (tmp_path / "checkpoints/4").exists()


def test_an_older_step_stays_until_the_newer_one_has_its_manifest(tmp_path, monkeypatch):
  checkpoints = open_on_one(tmp_path, keep=1)
  checkpoints.save(4, state_of(4), dev_loss=None)
  checkpoints.wait()
  write = manifests.write

  def full(*args, **kwargs):
    assert (tmp_path / "4").exists()
    raise OSError(28, "No space left on device", "manifest.json")

  monkeypatch.setattr(manifests, "write", full)
  checkpoints.save(8, state_of(8), dev_loss=None)
  with pytest.raises(TrainingError, match=r"/8: .*No space left.*; step 4 is the newest that is whole"):
    checkpoints.close()
  monkeypatch.setattr(manifests, "write", write)
  assert resumed(tmp_path)[0] == 4


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from test_loop import run
from radit_jax.training import manifests
import pathlib
write = manifests.write
def killed(path, step, **kwargs):
  if step == 8:
    os.kill(os.getpid(), signal.SIGKILL)
  write(path, step, **kwargs)
manifests.write = killed
run(pathlib.Path(sys.argv[1]), dev=False)
"""


def test_a_kill_between_a_step_and_its_manifest_costs_that_step_alone(tmp_path, warnings):
  root = pathlib.Path(__file__).parent.parent
  done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut"], cwd=root, capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert {s.number: s.unfinished for s in manifests.steps(tmp_path / "cut/checkpoints")} == {4: False, 8: True}
  whole, again = run(tmp_path / "whole", dev=False), run(tmp_path / "cut", dev=False)
  np.testing.assert_array_equal(np.asarray(whole.model.w), np.asarray(again.model.w))
  assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_a_run_whose_newest_step_is_damaged_ends_as_it_would_have(tmp_path):
  whole = run(tmp_path / "whole", dev=False, keep=2)

  def killed(start):
    for step in itertools.count(start):
      if step == 11:
        raise KeyboardInterrupt
      yield batch_of(step)

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "cut", dev=False, keep=2, source=killed)
  array = max(files_of(tmp_path / "cut/checkpoints/8/default/d"), key=lambda p: p.stat().st_size)
  flip_a_bit(array, None)
  starts = []

  def source(start):
    starts.append(start)
    return (batch_of(s) for s in itertools.count(start))

  again = run(tmp_path / "cut", dev=False, keep=2, source=source)
  assert starts == [4]
  np.testing.assert_array_equal(np.asarray(whole.model.w), np.asarray(again.model.w))
  assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


# The verb.


def listed(capsys, *args):
  status = cli.main(["checkpoints", *map(str, args)])
  return status, capsys.readouterr()


def test_the_verb_lists_steps_sizes_and_losses(saved, capsys):
  before = {p: p.read_bytes() for p in files_of(saved.root)}
  status, said = listed(capsys, saved.root)
  assert status == 0
  lines = [line.split() for line in said.out.splitlines()]
  assert lines[0] == [str(saved.root)]
  assert [(line[0], line[2:]) for line in lines[2:]] == [
    ("4", ["0.2500", "intact"]),
    ("8", ["0.1250", "intact"]),
    ("12", ["0.0833", "intact"]),
  ]
  assert {p: p.read_bytes() for p in files_of(saved.root)} == before


def test_the_verb_finds_the_tunings_of_a_whole_run_and_names_damaged_files(saved, tmp_path, capsys):
  for name in ("train_generator", "train_retriever_contrastive"):
    shutil.copytree(saved.root, tmp_path / name / "checkpoints")
  bad = tmp_path / "train_retriever_contrastive/checkpoints/8/default/_METADATA"
  flip_a_bit(bad, None)
  status, said = listed(capsys, "--run", tmp_path)
  assert status == 1
  assert said.out.count("intact") == 5
  assert f"DAMAGED: {bad}: SHA-256 differs" in said.out
  assert listed(capsys, tmp_path, "--verify", "sizes")[0] == 0
  resumed(bad.parents[2])
  status, said = listed(capsys, tmp_path / "train_retriever_contrastive")
  assert status == 0
  assert f"{bad.parents[2]}/damaged-8: was damaged" in said.out


def test_a_step_without_a_manifest_is_no_damage_while_it_may_be_under_way(saved, tmp_path, capsys):
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  (root / "12/manifest.json").unlink()
  status, said = listed(capsys, tmp_path)
  assert status == 0
  assert "not finished" in said.out.splitlines()[-1]
  (root / "8/manifest.json").unlink()
  assert listed(capsys, tmp_path)[0] == 1


@pytest.mark.parametrize(("name", "message"), [("none", "no such directory"), (".", "no checkpoints here")])
def test_the_callers_mistakes_are_one_line(tmp_path, capsys, name, message):
  status, said = listed(capsys, tmp_path / name)
  assert status == 2
  assert said.out == ""
  assert message in said.err
  assert said.err.count("\n") == 1


def test_a_damaged_step_is_one_line_on_stderr(saved, tmp_path):
  """As the command line says it, which no test's capture may stand between."""
  root = tmp_path / "checkpoints"
  shutil.copytree(saved.root, root)
  flip_a_bit(root / "12/manifest.json", None)
  code = (
    "import sys; from radit_jax.display import quiet_libraries; from radit_jax.training import manifests\n"
    "quiet_libraries(); print(*(s.number for s in manifests.take_up(sys.argv[1])))"
  )
  done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
  assert done.stdout == "4 8\n"
  assert done.stderr.startswith(f"radit: warning: {root}/12/manifest.json:")
  assert done.stderr.count("\n") == 1


# Checksums.


def slow_checksum(x):
  """As the formula says it, element by element."""

  def mixed(v):
    v = (v ^ (v >> 16)) * 0x85EBCA6B % 2**32
    v = (v ^ (v >> 13)) * 0xC2B2AE35 % 2**32
    return v ^ (v >> 16)

  x = np.asarray(x)
  size = min(x.dtype.itemsize, 4)
  bits = np.frombuffer(x.tobytes(), f"uint{8 * size}")
  return f"{sum(mixed(int(b) ^ mixed((i + 1) % 2**32)) for i, b in enumerate(bits)) % 2**32:08x}"


def arrays():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(8, 6, 4)).astype(np.float32)
  return {
    "float32": jnp.asarray(values),
    "bfloat16": jnp.asarray(values, jnp.bfloat16),
    "float16": jnp.asarray(values, jnp.float16),
    "int8": jnp.asarray(values * 50, jnp.int8),
    "bool": jnp.asarray(values > 0),
    "uint32": jnp.asarray(rng.integers(0, 2**32, size=(16,), dtype=np.uint32)),
    "scalar": jnp.int32(7),
    "special": jnp.asarray([np.nan, -0.0, 0.0, np.inf, 1e-45], jnp.float32),
    "empty": jnp.zeros((0, 3)),
  }


def test_checksums_are_those_of_the_formula():
  of = arrays()
  assert by_name(of, checksums(of)) == {name: slow_checksum(x) for name, x in of.items()}
  with jax.enable_x64(True):
    wide = {"float64": jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))}
    assert wide["float64"].dtype == np.float64
    assert by_name(wide, checksums(wide)) == {"float64": slow_checksum(wide["float64"])}


def test_checksums_are_the_same_on_every_mesh():
  of = {name: x for name, x in arrays().items() if x.ndim and x.shape[0] % 8 == 0 and x.size}
  alone = by_name(of, checksums(of))
  for shape in ({"data": 8}, {"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 2, "tensor": 4}):
    mesh = make_mesh(MeshConfig(**shape))
    for axes in (("data",), ("fsdp",), (("data", "fsdp"),), (None, None, "tensor"), ()):
      spread = {n: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes[: x.ndim]))) for n, x in of.items()}
      assert by_name(spread, checksums(spread)) == alone, (shape, axes)


def test_every_change_of_a_bit_and_every_exchange_changes_the_checksum():
  x = np.random.default_rng(0).normal(size=(4,)).astype(np.float32)
  variants = {"as it was": x}
  for i, bit in itertools.product(range(4), range(32)):
    bits = x.view(np.uint32).copy()
    bits[i] ^= np.uint32(1) << np.uint32(bit)
    variants[f"{i}.{bit}"] = bits.view(np.float32)
  for i, j in itertools.combinations(range(4), 2):
    changed = x.copy()
    changed[[i, j]] = changed[[j, i]]
    variants[f"{i}-{j}"] = changed
  sums = by_name(variants, checksums({n: jnp.asarray(v) for n, v in variants.items()}))
  assert len(set(sums.values())) == len(variants)


def test_a_checkpoint_restored_on_another_mesh_has_the_same_checksums(saved):
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  spread = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), state_of(0))
  spread["w"] = jax.device_put(spread["w"], NamedSharding(mesh, PartitionSpec("fsdp")))
  checkpoints = open_on_one(saved.root)
  step, state = checkpoints.resume(spread)
  checkpoints.close()
  assert step == 12
  assert state["w"].sharding.spec == PartitionSpec("fsdp")
  assert_is(state, saved.states[12])
