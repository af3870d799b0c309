"""The one loop: resume, checkpoints, non-finite steps, early stop, SIGTERM; on a model of three numbers."""

import dataclasses
import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.config import LoopConfig, MeshConfig, OptimizerConfig
from radit_jax.errors import Preempted, TrainingError, UserError
from radit_jax.sharding import make_mesh
from radit_jax.training import manifests
from radit_jax.training.checkpoint import Checkpoints
from radit_jax.training.loop import train
from radit_jax.training.metrics import read_metrics
from radit_jax.training.step import init_state, make_optimizer, train_step

OPTIMIZER = OptimizerConfig(peak_lr=0.1, floor_lr=0.01, warmup_steps=2, weight_decay=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
  w: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
  x: np.ndarray
  y: np.ndarray


def squared_error(model, batch):
  return jnp.sum((batch.x @ model.w - batch.y) ** 2), jnp.float32(batch.y.shape[0])


def nothing(model, batch):
  return jnp.sum(model.w) * 0.0, jnp.float32(0)


def batch_of(step, *, poison=()):
  rng = np.random.default_rng(step)
  x = rng.normal(size=(8, 3)).astype(np.float32)
  y = x @ np.array([1.0, -2.0, 0.5], np.float32)
  if step in poison:
    y[0] = np.nan
  return (f"example-{step}",), Points(x, y)


def batches(start, **kwargs):
  return (batch_of(step, **kwargs) for step in itertools.count(start))


def run(workdir, *, steps=12, objective=squared_error, source=batches, dev=True, examine=None, **loop):
  return train(
    Linear(jnp.zeros(3)),
    objective,
    source,
    total_steps=steps,
    loop=LoopConfig(**{"batch_size": 8, "log_every": 1, "evaluate_every": 4, **loop}),
    optimizer=OPTIMIZER,
    mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    workdir=workdir,
    dev_batches=(lambda: [batch_of(10_000)]) if dev else None,
    examine=examine,
  )


def losses(workdir):
  return {m["step"]: m["loss"] for m in read_metrics(workdir / "metrics.jsonl") if "loss" in m}


def test_loss_falls_and_best_model_is_returned(tmp_path):
  result = run(tmp_path, steps=40)
  seen = losses(tmp_path)
  assert seen[40] < 0.1 * seen[1]
  dev = {m["step"]: m["dev_loss"] for m in read_metrics(tmp_path / "metrics.jsonl") if "dev_loss" in m}
  assert result.best_step == min((s for s in dev if s), key=lambda s: dev[s])
  _, points = batch_of(10_000)
  again = float(squared_error(result.model, points)[0]) / 8
  np.testing.assert_allclose(again, result.best_dev_loss, rtol=1e-5)


def test_resumed_equals_uninterrupted(tmp_path):
  whole = run(tmp_path / "whole", dev=False)

  def killed(start):
    for step in itertools.count(start):
      if step == 7:
        raise KeyboardInterrupt
      yield batch_of(step)

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "cut", source=killed, dev=False)
  starts = []

  def resumed(start):
    starts.append(start)
    return batches(start)

  again = run(tmp_path / "cut", source=resumed, dev=False)
  assert starts == [4]  # the last checkpoint, not the beginning
  np.testing.assert_array_equal(np.asarray(whole.model.w), np.asarray(again.model.w))
  assert losses(tmp_path / "whole") == losses(tmp_path / "cut")  # every step once, with the same loss


def test_finished_run_is_not_run_again(tmp_path):
  first = run(tmp_path)

  def never(start):
    raise AssertionError("no batch may be drawn")

  second = run(tmp_path, source=never)
  np.testing.assert_array_equal(np.asarray(first.model.w), np.asarray(second.model.w))
  assert second.best_step == first.best_step


def test_non_finite_step_changes_nothing_but_its_counter():
  mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
  optimizer = make_optimizer(OPTIMIZER, 10)
  state, frozen = init_state(Linear(jnp.zeros(3)), optimizer, mesh)
  for step in range(3):
    state, figures = train_step(state, frozen, batch_of(step)[1], objective=squared_error, update=optimizer.update)
    assert bool(figures.finite)
  before = jax.tree.map(np.asarray, state)
  state, figures = train_step(
    state, frozen, batch_of(3, poison={3})[1], objective=squared_error, update=optimizer.update
  )
  assert not bool(figures.finite)
  assert int(state.nonfinite_steps) == 1
  after = jax.tree.map(np.asarray, state)
  jax.tree.map(
    np.testing.assert_array_equal, (before.model, before.optimizer_state), (after.model, after.optimizer_state)
  )


def test_poisoned_step_leaves_the_weights_of_the_step_before(tmp_path):
  poisoned = run(
    tmp_path, steps=1, dev=False, source=lambda start: (batch_of(s, poison={0}) for s in itertools.count(start))
  )
  np.testing.assert_array_equal(np.asarray(poisoned.model.w), np.zeros(3))


def test_a_state_that_a_step_gives_back_in_another_type_is_an_error(monkeypatch, tmp_path):
  """It would be another program, and another optimizer: a moment in bfloat16, say."""
  from radit_jax.training import loop

  def narrower(state, frozen, rows, **options):
    new, figures = train_step(state, frozen, rows, **options)
    return dataclasses.replace(new, model=jax.tree.map(lambda x: x.astype(jnp.bfloat16), new.model)), figures

  narrower.lower = train_step.lower
  monkeypatch.setattr(loop, "train_step", narrower)
  with pytest.raises(RuntimeError, match=r"was float32 .* before a step, and is bfloat16"):
    run(tmp_path, dev=False)


def test_repeated_non_finite_steps_stop_the_run_with_the_ids(tmp_path):
  with pytest.raises(TrainingError, match=r"step 6: .*limit 2.*example-5"):
    run(
      tmp_path,
      steps=20,
      max_nonfinite_steps=2,
      source=lambda start: (batch_of(s, poison={4, 5}) for s in itertools.count(start)),
    )


def test_a_step_is_waited_for_once_the_next_one_has_started(tmp_path, monkeypatch):
  """So the device always has work, and at most two steps of it; evaluation alone lets it come to a stop."""
  events = []

  class Figure:
    """A scalar that notes when it is waited for."""

    def __init__(self, step, value):
      self.step, self.value = step, value

    def __float__(self):
      if ("read", self.step) not in events:
        events.append(("read", self.step))
      return float(self.value)

  def recording(*args, step, **kwargs):
    state, figures = train_step(*args, step=step, **kwargs)
    events.append(("start", step + 1))
    return state, dataclasses.replace(figures, count=Figure(step + 1, figures.count))

  recording.lower = train_step.lower
  monkeypatch.setattr("radit_jax.training.loop.train_step", recording)
  run(tmp_path, steps=6, evaluate_every=3, log_every=1)
  expected = []
  for first in (1, 4):
    expected += [("start", first), ("start", first + 1), ("read", first), ("start", first + 2)]
    expected += [("read", first + 1), ("read", first + 2)]
  assert events == expected
  assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_batches_that_end_early_leave_no_step_unread(tmp_path):
  run(tmp_path, steps=10, dev=False, source=lambda start: (batch_of(s) for s in range(start, 3)))
  assert sorted(losses(tmp_path)) == [1, 2, 3]


def test_batch_without_anything_to_train_on_is_named(tmp_path):
  with pytest.raises(UserError, match=r"step 1: nothing to train on .* example-0"):
    run(tmp_path, objective=nothing, dev=False)


def test_patience_stops_early(tmp_path):
  def diverging(model, batch):
    return -jnp.sum(model.w) + 0.0 * jnp.sum(batch.x), jnp.float32(1)

  train_up = train(
    Linear(jnp.zeros(3)),
    diverging,
    batches,
    total_steps=100,
    loop=LoopConfig(batch_size=8, evaluate_every=2, patience=3),
    optimizer=OPTIMIZER,
    mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    workdir=tmp_path,
    # The dev loss is the training loss of the opposite sign: it only gets worse.
    dev_batches=None,
  )
  assert train_up.steps == 100  # without dev losses patience has nothing to go by
  stopped = run(tmp_path / "early", steps=100, evaluate_every=2, patience=3, source=lambda s: _away(s))
  assert stopped.steps < 100
  assert stopped.best_step < stopped.steps


def _away(start):
  """Batches whose targets lie opposite to the dev targets, so that training makes the dev loss worse."""
  for step in itertools.count(start):
    ids, points = batch_of(step)
    yield ids, Points(points.x, -points.y)


def test_patience_counts_equal_ratings_alike_before_and_after_a_restart(tmp_path):
  def alike(first):
    return lambda model: {"exact_match": 0.5}

  def go(name, source=batches):
    done = run(
      tmp_path / name, steps=30, source=source, examine=alike, evaluate_every=2, patience=3, select="exact_match"
    )
    return done.steps, done.best_step

  def killed(start):
    for step in itertools.count(start):
      if step == 7:
        raise KeyboardInterrupt
      yield batch_of(step)

  whole = go("whole")
  with pytest.raises(KeyboardInterrupt):
    go("cut", killed)
  assert go("cut") == whole == (8, 2)
  assert go("cut") == whole  # what has ended is not continued


def test_a_figure_that_is_not_finite_is_told_as_null_and_kept_out_of_the_manifest(tmp_path):
  def broken(first):
    return lambda model: {"exact_match": float("nan"), "answer_log_likelihood": -1.0}

  result = run(tmp_path, examine=broken)
  assert np.isfinite(result.best_dev_loss)
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    told = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    if "dev" in told:
      assert told["dev"] == {"exact_match": None, "answer_log_likelihood": -1.0}
  kept = manifests.steps(tmp_path / "checkpoints")[-1].manifest["metrics"]
  assert kept.keys() == {"dev_loss", "answer_log_likelihood"}


def test_the_devices_hold_weights_and_two_moments_and_nothing_twice(tmp_path):
  """While training, while a run is continued, and while the best step is brought back at the end of it."""
  size = 1_000_000

  def held():
    seen = {s.data.unsafe_buffer_pointer(): s.data.nbytes for x in jax.live_arrays() for s in x.addressable_shards}
    return sum(seen.values()) / (4 * size)

  def objective(model, batch):
    return jnp.sum((model.w[:3] * batch.x - 1.0) ** 2), jnp.float32(8)

  calls = itertools.count()

  def falling(first):
    return lambda model: {"exact_match": -float(next(calls))}

  def go(steps):
    seen, model = [], Linear(jnp.zeros(size))
    result = train(
      model,
      objective,
      batches,
      total_steps=steps,
      loop=LoopConfig(batch_size=8, log_every=1, evaluate_every=2, select="exact_match"),
      optimizer=OPTIMIZER,
      mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
      workdir=tmp_path,
      dev_batches=lambda: [batch_of(10_000)],
      examine=falling,
      progress=lambda *args, **figures: seen.append(held() - before),
    )
    assert result.best_step == 2  # so it was restored
    return seen

  before = held()
  restored = []
  whole = Checkpoints.restore

  def restore(self, step, like):
    state = whole(self, step, like)
    restored.append(held() - before)
    return state

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Checkpoints, "restore", restore)
    first, again = go(4), go(6)
  assert len(restored) == 3  # the best of the first, the newest and the best of the second
  for share in (*first, *again, *restored):
    assert share == pytest.approx(3, abs=0.1)


def test_a_finished_run_is_measured_by_what_it_is_asked_to_select_by_now(tmp_path):
  run(tmp_path)
  asked = run(tmp_path, select="mrr", dev_questions=3, examine=lambda first: lambda model: {"mrr": 0.5})
  assert asked.best_step == 12


def test_sigterm_saves_and_the_same_call_continues(tmp_path):
  whole = run(tmp_path / "whole", dev=False)

  def interrupted(start):
    for step in itertools.count(start):
      if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch_of(step)

  with pytest.raises(Preempted, match="step 6 of 12"):
    run(tmp_path / "cut", source=interrupted, dev=False)
  again = run(tmp_path / "cut", dev=False)
  np.testing.assert_array_equal(np.asarray(whole.model.w), np.asarray(again.model.w))


def test_sigterm_during_a_step_that_was_just_saved(tmp_path):
  def interrupted(start):
    for step in itertools.count(start):
      if step == 3:  # the fourth step evaluates and saves
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch_of(step)

  with pytest.raises(Preempted, match="step 4 of 12"):
    run(tmp_path, source=interrupted)
  assert run(tmp_path).steps == 12


def test_a_dev_loss_that_is_not_finite_is_never_the_best(tmp_path):
  calls = itertools.count()

  def dev():
    ids, points = batch_of(10_000)
    if next(calls) in (2, 3):  # at steps 8 and 12; the first call is at step 0
      points = Points(points.x, points.y * np.nan)
    return [(ids, points)]

  result = train(
    Linear(jnp.zeros(3)),
    squared_error,
    batches,
    total_steps=12,
    loop=LoopConfig(batch_size=8, evaluate_every=4, keep=1, patience=5),
    optimizer=OPTIMIZER,
    mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    workdir=tmp_path,
    dev_batches=dev,
  )
  assert result.best_step == 4
  assert np.isfinite(result.best_dev_loss)


def test_checkpoint_of_another_model_is_refused(tmp_path):
  run(tmp_path)
  with pytest.raises(UserError, match=r"\(3,\), this run needs \(5,\)"):
    train(
      Linear(jnp.zeros(5)),
      squared_error,
      batches,
      total_steps=20,
      loop=LoopConfig(batch_size=8),
      optimizer=OPTIMIZER,
      mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
      workdir=tmp_path,
    )


def test_only_newest_and_best_checkpoints_are_kept(tmp_path):
  run(tmp_path, steps=40, keep=1)
  kept = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
  assert 1 <= len(kept) <= 2
  assert "40" in kept


def test_metrics_lines_are_whole_json(tmp_path):
  run(tmp_path)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == sorted(json.loads(line)["step"] for line in lines)
