"""Work dealt out to processes, its results in order."""

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

_works: Sequence[Callable[..., Any]] = ()


class Pool:
  """Processes, started when they are first needed, until :meth:`close`.

  Args:
    works: what they do; can be pickled, and is sent to each process once.
    processes: at least 1.
  """

  def __init__(self, works: Sequence[Callable[..., Any]], processes: int):
    self._works, self._processes = works, processes
    self._executor: ProcessPoolExecutor | None = None

  def in_order(self, which: int, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """``works[which](*task)`` of every task, in their order.

    Only a few tasks more than there are processes are taken at a time. One task alone, or one process, needs no other.

    Args:
      which: of the works.
      tasks: arguments, as many as there are.
    """
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, 2))
    if self._processes == 1 or len(first) < 2:
      for task in itertools.chain(first, tasks):
        yield self._works[which](*task)
      return
    if self._executor is None:
      # Not by fork: JAX has threads, which a forked process waits for in vain.
      context = multiprocessing.get_context("spawn")
      self._executor = ProcessPoolExecutor(self._processes, context, initializer=_start, initargs=(self._works,))
    waiting: collections.deque[Future[Any]] = collections.deque()
    for task in itertools.chain(first, tasks):
      waiting.append(self._executor.submit(_call, which, task))
      if len(waiting) > 2 * self._processes:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()

  def close(self) -> None:
    """Ends the processes, and what they have not begun."""
    if self._executor is not None:
      self._executor.shutdown(cancel_futures=True)
      self._executor = None


def available() -> int:
  """CPUs that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(works: Sequence[Callable[..., Any]]) -> None:
  global _works
  _works = works
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A parent that is killed cannot end its pool, which would wait for tasks forever."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


def _call(which: int, task: tuple[Any, ...]) -> Any:
  return _works[which](*task)
