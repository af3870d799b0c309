"""SIGTERM and SIGINT as a request: what is under way stops where it can go on, and the process ends with status 75.

A program asks for this with :func:`heeded`. From then on the first signal raises :class:`radit_jax.errors.Preempted` in
the main thread, wherever it is. Within :func:`deferred`, where a state is to be saved first, it waits to be asked for.
A main thread that does neither in time, as it may be compiling for minutes, is ended from another thread, which saves
what there is. A second signal ends the process at once.
"""

import contextlib
import dataclasses
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from radit_jax import hosts
from radit_jax.errors import Preempted

STATUS = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Raises a Preempted once more that was lost, and seconds until it does.
_AGAIN, _AGAIN_S = signal.SIGALRM, 0.02
#: Seconds that the main thread has to come to where it can stop, see `_grace_s`.
_GRACE_S = 5.0
#: Seconds between two looks at whether another process has been asked to stop.
_LOOK_EVERY_S = 0.5
_ASKED = "radit/stop"


@dataclasses.dataclass
class _Section:
  """A deferred part of a program, of which all processes pass the same points in the same order."""

  number: int
  last_resort: Callable[[str], str]
  points: int = 0
  #: When the last point was passed, and the seconds between the last two.
  passed_at: float | None = None
  gap_s: float = 0.0
  noticed: bool = False
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


@dataclasses.dataclass
class _Heed:
  """What one process knows of being asked to stop."""

  say: Callable[[str], None]
  name: str | None = None
  section: _Section | None = None
  #: Points passed in the sections that have ended.
  ended: list[int] = dataclasses.field(default_factory=list)
  told: set[int] = dataclasses.field(default_factory=set)
  #: The main thread knows where it is to stop, and saves: however long that takes, nothing else is better.
  stopping: bool = False
  closed: threading.Event = dataclasses.field(default_factory=threading.Event)

  def message(self) -> str:
    """Of the exception outside of a deferred section."""
    return f"stopped by {self.name}; the same command continues"


_heed: _Heed | None = None


@contextlib.contextmanager
def heeded(say: Callable[[str], None]) -> Iterator[None]:
  """Around a program: from here on SIGTERM and SIGINT ask its main thread to stop.

  Args:
    say: tells people one line before the process is ended from another thread.
  """
  global _heed
  if threading.current_thread() is not threading.main_thread():  # only the main thread may install a handler
    yield
    return
  heed = _heed = _Heed(say)

  def asked(number: int, frame: Any) -> None:
    heed.name = heed.name or signal.Signals(number).name
    if heed.section is None:
      raise Preempted(heed.message())

  def again(number: int, frame: Any) -> None:
    if heed.section is None:
      raise Preempted(heed.message())

  def lost(unraisable: Any) -> None:
    """Where Python drops what is raised, as in the function that JAX has called by the collector of garbage."""
    if isinstance(unraisable.exc_value, Preempted):
      signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
      hook(unraisable)

  read, write = os.pipe()
  os.set_blocking(write, False)
  hook, sys.unraisablehook = sys.unraisablehook, lost
  before = {s: signal.signal(s, asked) for s in _SIGNALS} | {_AGAIN: signal.signal(_AGAIN, again)}
  # The main thread runs no handler while it compiles, or waits for a device: another thread must learn of it.
  wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  os.register_at_fork(after_in_child=_forget)
  thread = threading.Thread(target=_watch, args=[heed, read], daemon=True)
  thread.start()
  try:
    yield
  finally:
    heed.closed.set()
    sys.unraisablehook = hook
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.set_wakeup_fd(wakeup)
    for s, handler in before.items():
      signal.signal(s, handler)
    os.close(write)  # which ends the thread's waiting
    thread.join(2 * _LOOK_EVERY_S)
    _heed = None


def _forget() -> None:
  """In a forked process, whose signals are its own: they must not reach the parent's pipe."""
  if _heed is not None:
    signal.set_wakeup_fd(-1)
    for s in (*_SIGNALS, _AGAIN):
      signal.signal(s, signal.SIG_DFL)


def _watch(heed: _Heed, read: int) -> None:
  """Sees signals come, tells the other processes, and ends a main thread that takes too long."""
  since: float | None = None
  with open(read, "rb", buffering=0) as signals:
    while not heed.closed.is_set():
      if select.select([signals], [], [], _LOOK_EVERY_S)[0]:
        for number in signals.read(64) or ():
          if number not in _SIGNALS:
            continue
          if since is not None:
            heed.say(f"radit: ended at once by a second signal ({signal.Signals(number).name})")
            end(128 + number)
          heed.name = heed.name or signal.Signals(number).name
          since = time.monotonic()
      if heed.closed.is_set():
        return
      section = heed.section
      if since is None and section is not None and (said := hosts.said(f"{_ASKED}/{section.number}")):
        heed.name = said[0].partition(" ")[2]
        since = time.monotonic()
      for number, points in enumerate(list(heed.ended) if hosts.count() > 1 else ()):
        # Who stops in a section that this process has left already waits to hear how far it went there.
        if number not in heed.told and hosts.said(f"{_ASKED}/{number}"):
          heed.told.add(number)
          _tell(heed, number, points)
      if since is not None and section is not None:
        _notice(heed, section)
      if since is not None and not heed.stopping and time.monotonic() - since > _grace_s(section):
        message = _last_resort(heed)
        if heed.closed.is_set():
          return
        heed.say(f"radit: {message}")
        hosts.leave(STATUS, message)
        end(STATUS)


def _grace_s(section: _Section | None) -> float:
  """Several processes can only save where all of them stop, two steps on: with a large model that takes a while."""
  return _GRACE_S if section is None or hosts.count() == 1 else max(_GRACE_S, 2 * section.gap_s)


def _last_resort(heed: _Heed) -> str:
  section = heed.section
  if section is None:
    return heed.message()
  try:
    return section.last_resort(str(heed.name))
  except Exception as e:  # a full disk, say: there is the step that was saved before
    return f"{heed.message()} from its last checkpoint, as this one could not be saved ({type(e).__name__}: {e})"


def _notice(heed: _Heed, section: _Section) -> None:
  """From here on the main thread waits at its next point, until it is known where all of them stop."""
  with section.lock:
    if section.noticed:
      return
    section.noticed = True
    points = section.points
  _tell(heed, section.number, points)


def _tell(heed: _Heed, number: int, points: int) -> None:
  hosts.tell(f"{_ASKED}/{number}/{hosts.index():06d}", f"{points} {heed.name}")


def end(status: int) -> None:
  """Ends the process at once. To take the interpreter down in order is a second, and ten on a busy machine."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status)


@contextlib.contextmanager
def deferred(last_resort: Callable[[str], str]) -> Iterator[Callable[[], str | None]]:
  """Around work that saves its state before it stops.

  Yields a function that gives the name of the signal that asks to stop here, or None. Several processes must all call
  it at the same points: one that is asked to stop sees to it that all stop at the same one. The caller then saves and
  raises Preempted; a section that comes to its end first raises it there.

  Without :func:`heeded` this is a library's call, in which SIGTERM asks to stop, and nothing else changes.

  Args:
    last_resort: called with the signal's name in another thread, where the main one does not come to such a point for
      seconds: saves, and returns the line that people are told. It must wait for a save that is under way in the
      main one.
  """
  if _heed is None:
    with _one_signal() as asked:
      yield asked
    return
  heed = _heed
  section = _Section(len(heed.ended), last_resort)

  def stop_here() -> str | None:
    now = time.monotonic()
    with section.lock:
      section.points += 1
      section.gap_s = 0.0 if section.passed_at is None else now - section.passed_at
      section.passed_at = now
      point, noticed = section.points, section.noticed
    here = heed.name is not None if hosts.count() == 1 else noticed and point >= _agreed(section)
    heed.stopping = here
    return heed.name if here else None

  heed.section = section
  try:
    yield stop_here
  finally:
    with section.lock:
      section.noticed = True
    heed.ended.append(section.points)
    heed.section = None
  if heed.name is not None:
    raise Preempted(heed.message())


def _agreed(section: _Section) -> int:
  """The point at which all processes stop: the one after the furthest that any had passed when it noticed."""
  while len(passed := hosts.said(f"{_ASKED}/{section.number}")) < hosts.count():
    time.sleep(0.02)
  return max(int(of.partition(" ")[0]) for of in passed) + 1


@contextlib.contextmanager
def _one_signal() -> Iterator[Callable[[], str | None]]:
  flag = threading.Event()

  def stop_here() -> str | None:
    return signal.SIGTERM.name if flag.is_set() else None

  if threading.current_thread() is not threading.main_thread():  # only the main thread may install a handler
    yield stop_here
    return
  before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
  try:
    yield stop_here
  finally:
    signal.signal(signal.SIGTERM, before)
