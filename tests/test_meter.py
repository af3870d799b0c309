"""Seconds of each phase by a clock that the test turns, and the work of a batch counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import DecoderConfig
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch
from radit_jax.plan import flops
from radit_jax.training.meter import Meter, padded_tokens


class Clock:
  def __init__(self):
    self.time = 100.0

  def __call__(self):
    return self.time


def test_seconds_of_the_phases_add_up_to_all_time():
  clock = Clock()
  meter = Meter(peak_flops=1000.0, now=clock)
  clock.time += 1  # idle
  with meter("data"):
    clock.time += 2
  with meter("step"):
    clock.time += 8
    with meter("checkpoint"):  # inside, and no part of it
      clock.time += 3
  with meter("evaluate"):
    clock.time += 4
  meter.did(tokens=70, padded_tokens=110, flops=1100.0)
  meter.did(tokens=40, padded_tokens=110, flops=1100.0)
  line = meter.line()
  seconds = {name: line[f"{name}_s"] for name in ("data", "compile", "step", "evaluate", "checkpoint", "idle")}
  assert seconds == {"data": 2, "compile": 0, "step": 8, "evaluate": 4, "checkpoint": 3, "idle": 1}
  assert line["goodput"] == pytest.approx(8 / 18, rel=1e-3)
  # 11 of 18 seconds went into training.
  assert line["steps_per_s"] == pytest.approx(2 / 11, rel=1e-3)
  assert (line["tokens_per_s"], line["padded_tokens_per_s"]) == (10, 20)
  assert line["mfu"] == pytest.approx(2200 / 11 / 1000, rel=1e-3)
  assert line["host_memory_bytes"] > 2**20
  clock.time += 5
  after = meter.line()
  assert (after["idle_s"], after["step_s"], after["steps_per_s"]) == (5, 0, 0)
  assert "mfu" not in after


def test_what_the_compiler_takes_is_taken_out_of_the_phase_it_ran_in():
  meter = Meter()

  @jax.jit
  def program(x):
    for _ in range(60):
      x = jnp.sin(x @ x)
    return x

  with meter("step"), meter("evaluate"):
    program(jnp.ones((8, 8))).block_until_ready()
  first = meter.line()
  with meter("step"):
    program(jnp.ones((8, 8))).block_until_ready()
  second = meter.line()
  assert first["compile_s"] > 0.01
  assert second["compile_s"] == 0
  assert min(first.values()) >= 0


def test_a_phase_that_fails_is_counted_and_left():
  clock = Clock()
  meter = Meter(now=clock)

  def fail():
    with meter("step"):
      clock.time += 2
      raise KeyError

  with pytest.raises(KeyError):
    fail()
  with meter("data"):
    clock.time += 1
  line = meter.line()
  assert (line["step_s"], line["data_s"]) == (2, 1)


def test_waiting_for_batches_is_data_and_working_on_them_is_not():
  clock = Clock()
  meter = Meter(now=clock)

  def slow():
    for i in range(3):
      clock.time += 2
      yield i

  for _ in meter.waiting(slow()):
    clock.time += 10
  assert (meter.line()["data_s"], len(list(meter.waiting(iter([1, 2]))))) == (6, 2)


def test_flops_of_a_batch_leave_padding_out():
  config = DecoderConfig(
    vocab_size=50, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
  )
  batch = ParallelContextBatch(
    tokens=np.zeros((2, 6), np.int32),
    positions=np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0]], np.int32),
    segment_ids=np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32),
    answer_positions=np.zeros((2, 3), np.int32),
    answer_tokens=np.zeros((2, 3), np.int32),
    answer_slot=np.array([[0, 1, 1], [2, -1, -1]], np.int32),
    context_mask=np.ones((1, 3), bool),
  )
  kernels = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)  # q, k and v, o, gate, up, down of two layers
  attention = 0
  for keys in (1, 2, 3, 1, 2, 1, 2):  # each real token reads its own prompt up to itself: products with keys and values
    attention += 2 * (2 * 2 * 2 * 4 * keys)
  expected = 7 * 2 * kernels + attention + 2 * 4 * 8 * 50
  assert flops.generator_batch_flops(config, batch) == pytest.approx(expected)
  assert padded_tokens(batch) == 12


def test_flops_of_queries_read_all_of_themselves():
  config = BertConfig.tiny(50)
  mask = np.array([[True, True, True, False], [True, False, False, False]])
  batch = LSRBatch(np.zeros((2, 4), np.int32), mask, *[np.zeros((2, 3), np.float32)] * 4)
  expected = flops.body_flops(config, 3, 3.0) + flops.body_flops(config, 1, 1.0)
  assert flops.query_batch_flops(config, batch) == pytest.approx(expected)
  assert padded_tokens(batch) == 8
