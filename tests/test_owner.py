"""One run, one owner: the second is refused, and what an ended process left is taken over."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import pytest

from radit_jax import files, owner
from radit_jax.errors import UserError

HOLD = """
import sys, time
from radit_jax import files, owner
with owner.owned(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""
TAKE = """
import sys, time
from radit_jax import files, owner
from radit_jax.errors import UserError
while time.time() < float(sys.argv[2]):
  pass
try:
  with owner.owned(sys.argv[1]):
    print("mine")
    time.sleep(2)
except UserError:
  print("refused")
"""


def hold(workdir):
  process = subprocess.Popen([sys.executable, "-c", HOLD, workdir], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  return process


def test_the_second_starter_is_refused_and_a_killed_one_leaves_nothing_in_the_way(tmp_path):
  first = hold(tmp_path / "run")
  message = rf"run/run.lock: process {first.pid} on this machine holds this lock; wait for it$"
  with pytest.raises(UserError, match=message), owner.owned(tmp_path / "run"):
    raise AssertionError("two owners")
  first.send_signal(signal.SIGKILL)
  until = time.monotonic() + 10
  stat = pathlib.Path(f"/proc/{first.pid}/stat")
  while re.search(r"\) [^Z] ", stat.read_text()) and time.monotonic() < until:
    time.sleep(0.05)
  assert (tmp_path / "run/run.lock").exists()
  with owner.owned(tmp_path / "run"):  # a dead child that nobody has waited for counts as ended
    assert json.loads((tmp_path / "run/run.lock").read_text())["pid"] == os.getpid()
  first.wait()
  assert list((tmp_path / "run").iterdir()) == []


def test_who_is_refused_is_told_the_option_of_the_verb(tmp_path):
  verb = owner.one_owner(lambda config: None)
  (tmp_path / "run.lock").write_text(json.dumps(owner._identity(os.getpid())))
  with pytest.raises(UserError, match=r"wait for it, or choose another --workdir$"):
    verb(types.SimpleNamespace(workdir=tmp_path))
  with pytest.raises(UserError, match=r"wait for it, or give other passages$"):
    owner.owned(tmp_path, otherwise="give other passages").__enter__()


def test_a_lock_beside_a_directory_that_is_replaced_meanwhile(tmp_path):
  final, new = tmp_path / "a/index", tmp_path / "new"
  new.mkdir()
  with owner.owned(final, beside=True):
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".index.lock"]
    for _ in range(2):
      files.replace_directory(shutil.copytree(new, tmp_path / "finished"), final)
      with pytest.raises(UserError, match=r"a/\.index\.lock: process"):
        owner.owned(final, beside=True).__enter__()
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["index"]


def test_what_was_written_stays(tmp_path):
  def fail():
    (tmp_path / "a/run/kept").write_text("")
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError), owner.owned(tmp_path / "a/run"):
    fail()
  assert [p.name for p in (tmp_path / "a/run").iterdir()] == ["kept"]


@pytest.mark.parametrize(
  "changed",
  [{"boot": "another"}, {"started": "1"}, {"started": None}, {"pid": 2**22 + 1}],
  ids=["another boot", "a process of the same number", "one that had ended", "no such process"],
)
def test_a_stale_lock_is_taken_over(tmp_path, changed):
  (tmp_path / "run.lock").write_text(json.dumps(owner._identity(os.getpid()) | changed))
  with owner.owned(tmp_path):
    assert json.loads((tmp_path / "run.lock").read_text()) == owner._identity(os.getpid())


def test_of_another_machine_nothing_can_be_known(tmp_path):
  held = owner._identity(os.getpid()) | {"host": "another", "pid": 17}
  (tmp_path / "run.lock").write_text(json.dumps(held))
  with pytest.raises(UserError, match=r"process 17 on another holds .* if it does not, remove that file"):
    owner.owned(tmp_path).__enter__()
  assert (tmp_path / "run.lock").exists()


def test_a_lock_that_names_nobody_is_stale_after_a_while(tmp_path):
  for text in ("", "{half", "[]", '{"pid": "x"}'):
    (tmp_path / "run.lock").write_text(text)
    with pytest.raises(UserError, match="just taking"):
      owner.owned(tmp_path).__enter__()
    os.utime(tmp_path / "run.lock", (time.time() - 60,) * 2)
    with owner.owned(tmp_path):
      pass


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
  stale = {"host": socket.gethostname(), "pid": 2**22 + 1, "boot": "another", "started": "1"}
  (tmp_path / "run.lock").write_text(json.dumps(stale))
  command = [sys.executable, "-c", TAKE, str(tmp_path), str(time.time() + 1.5)]
  started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
  said = sorted(p.communicate()[0].strip() for p in started)
  assert said == ["mine"] + ["refused"] * 5


def test_what_was_not_written_leaves_no_directory(tmp_path):
  with owner.owned(tmp_path / "a/run"):
    pass
  assert list(tmp_path.iterdir()) == []
