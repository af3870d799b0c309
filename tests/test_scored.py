"""Scoring that is stopped, killed or damaged: the same command ends with the same bytes, and repeats no batch."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from radit_jax import files
from radit_jax.config import ScoreConfig
from radit_jax.data import scored
from radit_jax.data.examples import ScoreStore
from radit_jax.errors import Preempted, UserError
from radit_jax.verbs import score as verb
from radit_jax.verbs.score import score

pytestmark = pytest.mark.usefixtures("benchmarks")

BATCHES = 6


@pytest.fixture(scope="module")
def world(benchmarks, tmp_path_factory):
  import fault_runs

  return fault_runs.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world):
  """Of an uninterrupted call."""
  made = dataclasses.replace(world.score_config("train", world.root / "whole"), batch_size=2)
  score(made)
  return made


@pytest.fixture
def continued(config, tmp_path, monkeypatch):
  """The same call into another directory."""
  return Continued(dataclasses.replace(config, out=f"{tmp_path}/scores"), config, monkeypatch)


@dataclasses.dataclass
class Continued:
  config: ScoreConfig
  whole: ScoreConfig
  monkeypatch: pytest.MonkeyPatch

  @property
  def work(self):
    return scored.ScoredParts(self.config.out, {})._work

  def until(self, batches, how="KeyboardInterrupt"):
    """Stops it after some of its batches."""
    calls = -1  # the first one tells where it begins

    def stop(*_, **figures):
      nonlocal calls
      calls += 1
      if calls == batches:
        if how == "SIGTERM":
          os.kill(os.getpid(), signal.SIGTERM)
        else:
          raise KeyboardInterrupt

    with pytest.raises(Preempted if how == "SIGTERM" else KeyboardInterrupt) as raised:
      score(self.config, progress=stop)
    assert not os.path.exists(self.config.out)
    return str(raised.value)

  def finish(self, config=None):
    """Continues to the end; returns the batches computed and where the progress began, and ended."""
    batches, seen = [], []
    step = verb.score_step

    def counted(*args):
      batches.append(args)
      return step(*args)

    with self.monkeypatch.context() as patch:
      patch.setattr(verb, "score_step", counted)
      score(config or self.config, progress=lambda stage, done, total, unit, **figures: seen.append((done, total)))
    assert not self.work.exists()
    return len(batches), seen

  def same(self):
    from fault_runs import content

    return content(pathlib.Path(self.config.out)) == content(pathlib.Path(self.whole.out))

  def parts(self):
    return sorted(self.work.glob("part-*"))


def test_an_uninterrupted_call_leaves_nothing_beside_its_store(continued):
  computed, seen = continued.finish()
  assert computed == BATCHES
  assert seen[0][0] == 0
  assert len(seen) == 1 + BATCHES
  assert continued.same()
  assert continued.finish() == (0, [])


@pytest.mark.parametrize("batches", range(1, BATCHES + 1))
@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SIGTERM"])
def test_what_was_finished_when_it_was_stopped_is_not_computed_again(continued, batches, how):
  said = continued.until(batches, how)
  if how == "SIGTERM":
    assert said == f"stopped by SIGTERM after {batches} of {BATCHES} batches; the same command continues"
  assert len(continued.parts()) == 1
  kept = len(np.load(continued.parts()[0]))
  computed, seen = continued.finish()
  assert computed == BATCHES - batches
  assert seen[0] == (kept, seen[-1][1])
  assert seen[-1][0] == seen[-1][1]
  assert continued.same()


def test_stopped_again_and_again_it_gets_to_its_end(continued):
  for number in range(1, BATCHES):
    continued.until(1)
    assert len(continued.parts()) == number
  assert continued.finish()[0] == 1
  assert continued.same()


def test_a_batch_that_is_refused_loses_none_before_it(continued, monkeypatch):
  step, calls = verb.score_step, []

  def broken(*args):
    calls.append(args)
    likelihoods, *others = step(*args)
    return (likelihoods * (np.nan if len(calls) == 4 else 1), *others)

  with monkeypatch.context() as patch:
    patch.setattr(verb, "score_step", broken)
    with pytest.raises(UserError, match=r"^question q\d+: a log-likelihood is not finite"):
      score(continued.config)
  assert continued.finish()[0] == BATCHES - 3
  assert continued.same()


def flip(path, other):
  content = bytearray(path.read_bytes())
  content[-3] ^= 4
  path.write_bytes(content)


def truncate(path, other):
  os.truncate(path, path.stat().st_size - 16)


def swap(path, other):
  mine = path.read_bytes()
  path.write_bytes(other.read_bytes())
  other.write_bytes(mine)


def add_a_foreign_one(path, other):
  shutil.copyfile(path, path.with_name("part-00007.npy"))


@pytest.mark.parametrize(
  ("damage", "named", "lost"),
  [
    (flip, ["part-00001.npy"], 1),
    (truncate, ["part-00001.npy"], 1),
    (lambda path, other: path.unlink(), ["part-00001.npy"], 1),
    (swap, ["part-00001.npy", "part-00002.npy"], 2),
    (add_a_foreign_one, ["part-00007.npy"], 0),
    (lambda path, other: path.with_name(".part-00003.npy.k1ll3d").write_bytes(b"half"), [], 0),
  ],
  ids=["flipped", "truncated", "missing", "swapped", "foreign", "half-written"],
)
def test_a_part_that_is_not_what_was_written_is_named_and_scored_again(
  continued, monkeypatch, caplog, damage, named, lost
):
  monkeypatch.setattr(scored, "EVERY_S", 0)
  continued.until(4)
  assert len(continued.parts()) == 4
  damage(*continued.parts()[1:3])
  assert continued.finish()[0] == BATCHES - 4 + lost
  assert [r.getMessage() for r in caplog.records] == [
    f"{continued.work}/{name}: not what was listed as written; what was scored there is scored again" for name in named
  ]
  assert continued.same()


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"request": {}, "parts": {}}'])
def test_parts_without_a_list_are_not_trusted(continued, caplog, text):
  continued.until(4)
  if text is None:
    (continued.work / "parts.json").unlink()
  else:
    (continued.work / "parts.json").write_text(text)
  assert continued.finish()[0] == BATCHES
  (record,) = caplog.records
  assert record.getMessage().startswith(f"{continued.work}: ")
  assert record.getMessage().endswith("; what was scored there is scored again")
  assert continued.same()


def test_a_list_names_no_file_outside(continued, tmp_path):
  """Whoever wrote it: numbers are all that is read of it."""
  precious = tmp_path / "precious"
  precious.write_text("here")
  continued.until(1)
  state = files.read_json(continued.work / "parts.json")
  files.write_json(continued.work / "parts.json", {**state, "parts": {"../precious": "0" * 64}})
  assert continued.finish()[0] == BATCHES
  assert precious.read_text() == "here"


@pytest.mark.parametrize("change", ["option", "input", "version"])
def test_work_on_another_recipe_is_dropped_in_a_line(continued, world, monkeypatch, caplog, change):
  continued.until(4)
  config = continued.config
  if change == "option":
    config, said = dataclasses.replace(config, k=4), "made with k = 5, this call has 4"
  elif change == "input":
    config, said = dataclasses.replace(config, retrieved=f"{world.root}/retrieved/dev"), "made with retrieved = "
  else:
    said = "made with jax = '0.0', this call has "
    state = files.read_json(continued.work / "parts.json")
    state["request"]["options"]["jax"] = "0.0"
    files.write_json(continued.work / "parts.json", state)
  computed, seen = continued.finish(config)
  assert seen[0][0] == 0
  assert computed == len(seen) - 1
  (record,) = caplog.records
  assert record.getMessage().startswith(f"{continued.work}: {said}")
  caplog.clear()
  score(dataclasses.replace(config, out=f"{config.out}-whole"))
  assert not caplog.records
  continued.whole = dataclasses.replace(config, out=f"{config.out}-whole")
  assert continued.same()


@pytest.fixture
def cleaning(continued, monkeypatch):
  """Has something else happen to the work directory than to be removed, within a context."""
  remove = shutil.rmtree

  @contextlib.contextmanager
  def instead(happens):
    with monkeypatch.context() as patch:
      patch.setattr(
        shutil, "rmtree", lambda path, **options: happens() if path == continued.work else remove(path, **options)
      )
      yield

  return instead


@pytest.mark.parametrize("removed", [0, 1, 4])
def test_a_kill_in_the_clean_up_leaves_a_finished_call(continued, monkeypatch, cleaning, caplog, removed):
  monkeypatch.setattr(scored, "EVERY_S", 0)
  continued.until(4)

  def killed():
    assert not (continued.work / "parts.json").exists()
    for part in continued.parts()[:removed]:
      part.unlink()
    raise KeyboardInterrupt

  with cleaning(killed), pytest.raises(KeyboardInterrupt):
    score(continued.config)
  assert continued.parts()
  assert continued.finish() == (0, [])  # which says that nothing is left, too
  assert not caplog.records
  assert continued.same()


def test_a_kill_between_store_and_clean_up(continued, monkeypatch):
  def killed(parts):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(scored.ScoredParts, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
      score(continued.config)
  assert continued.parts()
  assert continued.finish() == (0, [])
  assert continued.same()


def test_what_a_clean_up_left_is_no_beginning_of_another_store(continued, cleaning, caplog):
  continued.until(4)
  with cleaning(lambda: None):
    score(continued.config)
  shutil.rmtree(continued.config.out)
  assert continued.parts()
  assert continued.finish()[0] == BATCHES
  assert "no parts.json that can be read" in caplog.text
  assert continued.same()


def test_on_another_number_of_devices_finished_scores_are_kept(continued):
  import fault_runs

  continued.until(4)
  kept = np.concatenate([np.load(part) for part in continued.parts()])
  with fault_runs.devices(1):
    computed, seen = continued.finish()
    other = dataclasses.replace(continued.config, out=f"{continued.config.out}-one")
    score(other)
  assert seen[0] == (len(kept), seen[-1][1])
  assert 0 < computed < 9
  for a, b in zip(ScoreStore(continued.config.out), ScoreStore(other.out), strict=True):
    assert (a.id, a.num_tokens.tolist(), a.valid.tolist()) == (b.id, b.num_tokens.tolist(), b.valid.tolist())
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-5)


@pytest.mark.fault
@pytest.mark.parametrize(("phase", "sent"), [("parts", "SIGKILL"), ("long batch", "SIGTERM")])
def test_a_process_that_ends_in_a_batch_loses_that_one_only(continued, tmp_path, phase, sent):
  """Killed between two parts; or asked to stop, and its main thread hears nothing for too long."""
  import fault_runs

  process = fault_runs.start(continued.config, tmp_path / "call.py", hold=phase)
  assert process.stdout.readline() == f"phase {phase}\n", fault_runs.last_word(tmp_path / "call.py")
  status, seconds = fault_runs.timed_end(process, signal.Signals[sent])
  assert seconds < 15
  if sent == "SIGKILL":
    assert status == -signal.SIGKILL
  else:
    assert (status, fault_runs.last_word(tmp_path / "call.py")) == (
      75,
      f"radit: stopped by SIGTERM after 2 of {BATCHES} batches; the same command continues",
    )
  assert len(continued.parts()) == (2 if sent == "SIGKILL" else 1)
  assert continued.finish()[0] == BATCHES - 2
  assert continued.same()
