"""Files are whole or absent, and damage is named."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from privileges import held_to_modes

from radit_jax import files
from radit_jax.errors import Preempted, UserError


def names(path):
  return sorted(p.name for p in path.iterdir())


@pytest.fixture
def synced(monkeypatch):
  """Names of what is synced and renamed, in order."""
  told, sync, replace = [], files.sync, os.replace

  def note_sync(path):
    told.append(path.name)
    sync(path)

  def note_replace(source, target):
    told.append(f"{pathlib.Path(source).name} -> {pathlib.Path(target).name}")
    replace(source, target)

  monkeypatch.setattr(files, "sync", note_sync)
  monkeypatch.setattr(os, "replace", note_replace)
  return told


def test_a_directory_appears_when_it_is_whole(tmp_path):
  with files.atomic_directory(tmp_path / "deep" / "out") as d:
    (d / "a.txt").write_text("x")
    assert names(tmp_path / "deep") == [d.name]
    assert d.name.startswith(".")
  assert names(tmp_path / "deep") == ["out"]
  assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "x"
  assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("before", [False, True])
def test_a_durable_directory_has_reached_the_disk_before_it_has_its_name(tmp_path, before, synced):
  if before:
    (tmp_path / "out/deep").mkdir(parents=True)
  (tmp_path / "work/deep").mkdir(parents=True)
  (tmp_path / "work/deep/file").write_text("x")
  files.replace_directory(tmp_path / "work", tmp_path / "out", durable=True)
  moves = ["out -> was"] if before else []
  assert synced == ["work", "deep", "file", *moves, "work -> out", tmp_path.name]
  assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, before):
  if before:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("kept")

  def write():
    with files.atomic_directory(tmp_path / "out") as d:
      (d / "new").write_text("half")
      raise RuntimeError

  with pytest.raises(RuntimeError):
    write()
  assert names(tmp_path) == (["out"] if before else [])
  assert not before or names(tmp_path / "out") == ["old"]


def test_a_directory_replaces_an_older_one_whole(tmp_path):
  for name in ("first", "second"):
    with files.atomic_directory(tmp_path / "out") as d:
      (d / name).write_text("x")
      (d / "which").write_text(name)
  assert names(tmp_path) == ["out"]
  assert names(tmp_path / "out") == ["second", "which"]


def test_what_is_something_else_is_never_replaced(tmp_path, monkeypatch):
  def replace(name):
    with files.atomic_directory(name) as d:
      (d / files.MANIFEST).write_text("{}")

  (tmp_path / "notes").write_text("mine")
  (tmp_path / "letters").mkdir()
  (tmp_path / "letters/first").write_text("mine")
  (tmp_path / "empty").mkdir()
  monkeypatch.chdir(tmp_path / "empty")
  for name in (tmp_path / "notes", tmp_path / "letters", "."):
    with pytest.raises(UserError, match="exists and is no directory of this kind; choose another directory, or remove"):
      replace(name)
  monkeypatch.chdir(tmp_path)
  replace("empty")
  assert names(tmp_path) == ["empty", "letters", "notes"]
  assert (tmp_path / "notes").read_text() == (tmp_path / "letters/first").read_text() == "mine"
  assert names(tmp_path / "empty") == [files.MANIFEST]


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
  for data in ("one", b"two"):
    files.write_atomic(tmp_path / "a" / "f", data)
  assert (tmp_path / "a" / "f").read_bytes() == b"two"
  assert names(tmp_path / "a") == ["f"]
  assert (tmp_path / "a" / "f").stat().st_mode & 0o777 == 0o644


def test_errors_of_temporary_names_tell_the_final_one(tmp_path):
  (tmp_path / "shut").mkdir(mode=0o555)
  with held_to_modes():
    for write in (lambda p: files.write_atomic(p, "x"), lambda p: files.atomic_directory(p).__enter__()):
      with pytest.raises(PermissionError) as caught:
        write(tmp_path / "shut/out")
      assert caught.value.filename == str(tmp_path / "shut/out")
    for name in ("out", "deep/out"):
      with pytest.raises(PermissionError) as caught:
        files.check_writable(tmp_path / "shut" / name)
      assert caught.value.filename == str(tmp_path / "shut" / name)
  with pytest.raises(FileNotFoundError) as caught, files.atomic_directory(tmp_path / "out") as d:
    (d / "deep/file").write_text("x")
  assert caught.value.filename == str(tmp_path / "out/deep/file")
  files.check_writable(tmp_path / "deep/out")
  assert names(tmp_path) == ["shut"]


def test_a_full_disk_is_named_by_what_was_to_be_written(tmp_path, monkeypatch):
  def full(source, target):
    raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

  def write():
    with files.atomic_directory(tmp_path / "out") as d, files.atomic_directory(d / "generator"):
      raise OSError(errno.ENOSPC, "No space left on device")  # as a file that is open does

  with pytest.raises(OSError, match="No space left") as caught:
    write()
  assert caught.value.filename == str(tmp_path / "out/generator")
  (tmp_path / "source").write_text("x")
  monkeypatch.setattr(files.shutil, "copyfile", full)
  monkeypatch.setattr(os, "link", full)
  with pytest.raises(OSError, match="No space left") as caught:
    files.link(tmp_path / "source", tmp_path / "target")
  assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "target"), None)


def test_write_atomic_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
  files.write_atomic(tmp_path / "f", "old")

  def refuse(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", refuse)
  with pytest.raises(OSError, match="disk full"):
    files.write_atomic(tmp_path / "f", "new")
  assert names(tmp_path) == ["f"]
  assert (tmp_path / "f").read_text() == "old"


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
  code = (
    "import sys, time, radit_jax.files as f\n"
    "with f.atomic_directory(sys.argv[1]) as d:\n"
    "  (d / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
  )
  root = pathlib.Path(files.__file__).parent.parent
  with subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path / "out")], cwd=root, stdout=subprocess.PIPE
  ) as process:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
  assert "out" not in names(tmp_path)


def test_a_signal_between_the_two_renames_leaves_what_was_there(tmp_path, monkeypatch):
  with files.atomic_directory(tmp_path / "out") as d:
    (d / "which").write_text("old")
  replace = os.replace

  def interrupted(source, target):
    replace(source, target)
    if target.name == "was":
      raise Preempted("stopped by SIGTERM")

  monkeypatch.setattr(os, "replace", interrupted)
  with pytest.raises(Preempted), files.atomic_directory(tmp_path / "out") as d:
    (d / "which").write_text("new")
  assert (tmp_path / "out/which").read_text() == "old"
  assert names(tmp_path) == ["out"]


def test_a_removal_that_is_cut_short_leaves_nothing_under_the_name(tmp_path, monkeypatch):
  def make():
    (tmp_path / "model").mkdir()
    (tmp_path / "model/result.json").touch()

  def cut(path):
    raise KeyboardInterrupt

  make()
  with monkeypatch.context() as patch:
    patch.setattr(files.shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
      files.remove_directory(tmp_path / "model")
  assert [p.name for p in tmp_path.iterdir()] == [".model.dropped"]
  make()
  files.remove_directory(tmp_path / "model")
  assert not list(tmp_path.iterdir())


def test_json_round_trip_and_what_json_cannot_hold(tmp_path):
  files.write_json(tmp_path / "f.json", {"a": [1, "ä"]})
  assert files.read_json(tmp_path / "f.json") == {"a": [1, "ä"]}
  with pytest.raises(ValueError, match="JSON"):
    files.write_json(tmp_path / "f.json", {"a": float("nan")})
  assert files.read_json(tmp_path / "f.json") == {"a": [1, "ä"]}


@pytest.mark.parametrize(
  ("content", "message"),
  [(None, "no such file"), (b'{"a": 1,\n "b" 2}', r"f\.json:2: not JSON"), (b'"\xff"', r"not UTF-8 \(byte 1\)")],
)
def test_bad_json_is_named(tmp_path, content, message):
  if content is not None:
    (tmp_path / "f.json").write_bytes(content)
  with pytest.raises(UserError, match=message):
    files.read_json(tmp_path / "f.json")


def test_sha256_of_a_known_text(tmp_path):
  (tmp_path / "f").write_bytes(b"abc")
  assert files.sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_fingerprint_depends_on_names_and_contents_alone(tmp_path):
  def made(name, contents):
    for file, text in contents:
      (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name / file).write_text(text)
    return files.fingerprint_directory(tmp_path / name)

  first = made("a", [("x", "1"), ("sub/y", "2")])
  time.sleep(0.01)
  assert made("b", [("sub/y", "2"), ("x", "1")]) == first
  assert made("c", [("x", "2"), ("sub/y", "1")]) != first
  assert made("d", [("x", "1"), ("sub/z", "2")]) != first
  (tmp_path / "a" / "notes.txt").write_text("other")
  assert files.fingerprint_directory(tmp_path / "a", suffixes=("x", "y")) == first


@pytest.mark.parametrize(("make", "message"), [(False, "no such directory"), (True, "empty")])
def test_nothing_has_no_fingerprint(tmp_path, make, message):
  if make:
    (tmp_path / "d").mkdir()
  with pytest.raises(UserError, match=message):
    files.fingerprint_directory(tmp_path / "d")


@pytest.fixture
def store(tmp_path):
  with files.atomic_directory(tmp_path / "store") as d:
    (d / "data").write_bytes(b"0123456789")
    files.write_manifest(d, "passages", {"count": 3})
  return tmp_path / "store"


@pytest.mark.parametrize("verify", ["full", "sizes"])
def test_a_good_manifest(store, verify):
  manifest = files.read_manifest(store, "passages", verify=verify)
  assert manifest["count"] == 3
  assert manifest["files"]["data"]["bytes"] == 10


def test_a_flipped_byte_is_seen_by_full_alone(store):
  (store / "data").write_bytes(b"0123456780")
  files.read_manifest(store, "passages", verify="sizes")
  with pytest.raises(UserError, match="data: SHA-256 differs"):
    files.read_manifest(store, "passages", verify="full")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda d: (d / "data").write_bytes(b"012"), "data: 3 bytes, manifest.json says 10"),
    (lambda d: (d / "data").unlink(), "data: missing"),
    (lambda d: (d / "manifest.json").unlink(), "no manifest.json, so not a finished passages"),
    (lambda d: (d / "manifest.json").write_text("{"), "manifest.json:1: not JSON"),
    (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json: holds no JSON object; make the passages again"),
    (lambda d: (d / "manifest.json").write_text('{"kind": "passages"}'), "manifest.json: lists no files"),
    (lambda d: (d / "manifest.json").write_text('{"kind": "passages", "files": {"data": {}}}'), "lists no files with"),
  ],
  ids=["cut", "missing file", "missing manifest", "broken manifest", "a list", "no files", "a file without size"],
)
def test_damage_is_named(store, damage, message):
  damage(store)
  with pytest.raises(UserError, match=message):
    files.read_manifest(store, "passages")


def test_another_kind_is_refused(store):
  with pytest.raises(UserError, match="holds 'passages', expected 'index'"):
    files.read_manifest(store, "index")


def test_a_missing_directory_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere: no such directory"):
    files.read_manifest(tmp_path / "nowhere", "index")


def test_an_unknown_way_to_verify_is_refused(store):
  with pytest.raises(UserError, match='"full" or "sizes"'):
    files.read_manifest(store, "passages", verify="none")


def test_a_manifest_cannot_point_outside(store):
  manifest = json.loads((store / "manifest.json").read_text())
  manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
  (store / "manifest.json").write_text(json.dumps(manifest))
  (store.parent / "secret").write_text("x")
  with pytest.raises(UserError, match="outside the directory"):
    files.read_manifest(store, "passages", verify="sizes")
