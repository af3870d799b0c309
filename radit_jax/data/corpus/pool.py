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
  """This process, and others that are started when they are first needed, until :meth:`close`.

  Args:
    works: what they do; can be pickled, and is sent to each process once.
    processes: at least 1, this one included.
  """

  def __init__(self, works: Sequence[Callable[..., Any]], processes: int):
    self._works, self._others = works, processes - 1
    self._executor: ProcessPoolExecutor | None = None

  def in_order(self, which: int, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """``works[which](*task)`` of every task, in their order.

    Each process takes the next task when it is done with one; this process too, whenever the next result is not there
    yet. One task alone needs no other process.

    Args:
      which: of the works.
      tasks: arguments, as many as there are.

    Raises:
      Exception: of ``tasks`` or of a work.
    """
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, 2))
    others = self._others if len(first) == 2 else 0
    if others and self._executor is None:
      # Not by fork: JAX has threads, which a forked process waits for in vain.
      context = multiprocessing.get_context("spawn")
      self._executor = ProcessPoolExecutor(others, context, initializer=_start, initargs=(self._works,))
    shared = _Shared(itertools.chain(first, tasks))
    try:
      for _ in range(others):
        threading.Thread(target=self._feed, args=(which, shared), daemon=True).start()
      while (taken := shared.take()) is not None:
        task, result = taken
        result.set_result(self._works[which](*task))
        while shared.results and shared.results[0].done():
          yield shared.results.popleft().result()
      while shared.results:
        yield shared.results.popleft().result()
    finally:
      shared.stop()

  def _feed(self, which: int, shared: "_Shared") -> None:
    """Gives another process one task after the other, up to the first that fails."""
    assert self._executor is not None
    while (taken := shared.take()) is not None:
      task, result = taken
      try:
        result.set_result(self._executor.submit(_call, which, task).result())
      except BaseException as e:
        result.set_exception(e)
        return

  def close(self) -> None:
    """Ends the processes, and what they have not begun."""
    if self._executor is not None:
      self._executor.shutdown(cancel_futures=True)
      self._executor = None


class _Shared:
  """Tasks that several threads take.

  Attributes:
    results: of the tasks that were taken, in their order.
  """

  def __init__(self, tasks: Iterator[tuple[Any, ...]]):
    self._tasks, self._lock = tasks, threading.Lock()
    self.results: collections.deque[Future[Any]] = collections.deque()

  def take(self) -> tuple[tuple[Any, ...], Future[Any]] | None:
    """The next task, and where its result belongs. What goes wrong with the tasks is a result, and the last one."""
    with self._lock:
      result: Future[Any] = Future()
      try:
        task = next(self._tasks)
      except StopIteration:
        return None
      except Exception as e:
        result.set_exception(e)
        self._tasks = iter(())
        self.results.append(result)
        return None
      self.results.append(result)
      return task, result

  def stop(self) -> None:
    """Lets none take another one."""
    with self._lock:
      self._tasks = iter(())


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
