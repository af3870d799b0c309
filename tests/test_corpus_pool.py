"""Work dealt out to processes."""

import operator
import os

import pytest

from radit_jax.data.corpus.pool import Pool


@pytest.fixture(params=[1, 2, 4])
def pool(request):
  pool = Pool((operator.truediv, os.getpid), request.param)
  yield pool
  pool.close()


def test_results_stand_in_the_order_of_the_tasks(pool):
  for count in (0, 1, 2, 50):
    assert list(pool.in_order(0, ((n, 2) for n in range(count)))) == [n / 2 for n in range(count)]


def test_what_a_work_or_the_tasks_raise_comes_out_behind_the_results_before_it(pool):
  def broken():
    yield from ((n, 1) for n in range(6))
    raise OSError("the file is gone")

  results = pool.in_order(0, broken())
  assert [next(results) for _ in range(6)] == list(range(6))
  with pytest.raises(OSError, match="the file is gone"):
    next(results)
  with pytest.raises(ZeroDivisionError):
    list(pool.in_order(0, [(1, 1), (1, 0), (1, 1)]))
  assert list(pool.in_order(0, [(4, 2), (9, 3)])) == [2, 3]  # and it can be used again


def test_this_process_works_too_and_a_task_alone_needs_no_other(pool):
  assert list(pool.in_order(1, [()])) == [os.getpid()]
  assert pool._executor is None
  workers = set(pool.in_order(1, (() for _ in range(3000))))
  assert os.getpid() in workers
  assert len(workers) <= pool._others + 1


def test_no_task_is_taken_for_whoever_has_stopped_listening():
  pool = Pool((operator.add,), 2)
  taken = []

  def tasks():
    for n in range(100_000):
      taken.append(n)
      yield n, n

  results = pool.in_order(0, tasks())
  assert next(results) == 0
  results.close()
  before = len(taken)
  pool.close()
  assert len(taken) <= before + 1 < 100_000
