"""Work dealt out to processes, its results in order."""

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_work: Callable[..., Any] | None = None


def in_order(work: Callable[..., T], tasks: Iterable[tuple[Any, ...]], processes: int) -> Iterator[T]:
  """``work(*task)`` of every task, in their order.

  Only a few tasks more than there are processes are taken at a time. One task alone, or one process, needs no other.

  Args:
    work: can be pickled; sent to each process once.
    tasks: arguments, as many as there are.
    processes: at least 1.
  """
  tasks = iter(tasks)
  first = list(itertools.islice(tasks, 2))
  if processes == 1 or len(first) < 2:
    for task in itertools.chain(first, tasks):
      yield work(*task)
    return
  # Not by fork: JAX has threads, which a forked process waits for in vain.
  context = multiprocessing.get_context("spawn")
  executor = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(work,))
  try:
    waiting: collections.deque[Future[T]] = collections.deque()
    for task in itertools.chain(first, tasks):
      waiting.append(executor.submit(_call, task))
      if len(waiting) > 2 * processes:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    executor.shutdown(cancel_futures=True)


def available() -> int:
  """CPUs that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(work: Callable[..., Any]) -> None:
  global _work
  _work = work
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A parent that is killed cannot end its pool, which would wait for tasks forever."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


def _call(task: tuple[Any, ...]) -> Any:
  assert _work is not None
  return _work(*task)
