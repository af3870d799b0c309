"""Several processes as one program: how they find each other, wait for each other, write files, and end together.

Every process runs the same verb with the same options. All compute; the first one writes files while the others wait.
Without :func:`connect` there is one process, and everything here returns at once.
"""

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from radit_jax import files
from radit_jax.errors import Preempted, UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TIMEOUT = "RADIT_CONNECT_TIMEOUT_S"

#: As long as the first process may take over something alone; one that has died is noticed by its missing heartbeat.
_PATIENCE_MS = 7 * 24 * 3600 * 1000
_ENDED, _ALIVE = "radit/ended", "radit/alive"
#: Seconds without a sign of life after which a process counts as lost: JAX then ends the others.
_SILENCE_S = 40
#: Seconds between two signs of life that are only read to name the lost process.
_BEAT_S = 2.0
#: Seconds between two looks at whether another process has ended.
_LOOK_EVERY_S = 0.5
#: Seconds a process that ends waits for the others to hear of it.
_FAREWELL_S = 20
#: Seconds a file written by one host may take to be seen by another (NFS).
_SEEN_WITHIN_S = 3.0


@dataclasses.dataclass
class _Group:
  """The processes of a run, as one of them sees them."""

  say: Callable[[str], None]
  client: Any
  index: int
  count: int
  meetings: int = 0
  #: Each process's last sign of life, and when this one saw it change.
  seen: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)
  leaving: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  closed: threading.Event = dataclasses.field(default_factory=threading.Event)
  #: C holds its address only.
  on_abort: Any = None


_group: _Group | None = None


def count() -> int:
  """Processes of the run."""
  return 1 if _group is None else _group.count


def index() -> int:
  """This one of them, from 0."""
  return 0 if _group is None else _group.index


def is_first() -> bool:
  """Whether this is the process that writes files and talks to people."""
  return index() == 0


def part(size: int, number: int | None = None) -> range:
  """What this process, or process ``number``, does of ``size`` things that each need doing once.

  Example:
    >>> part(5)
    range(0, 5)
  """
  own = index() if number is None else number
  return range(size * own // count(), size * (own + 1) // count())


def configured() -> bool:
  """Whether the environment says that there are several processes; the workers of a TPU slice need not say so."""
  return _environment() is not None


def connect(say: Callable[[str], None]) -> None:
  """Joins the other processes of the run, before JAX computes anything.

  Three variables of the environment say where they meet: ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0),
  ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. The workers of a TPU slice find each other without them. A process waits
  ``RADIT_CONNECT_TIMEOUT_S`` seconds (300) for the others, and then ends with status 2.

  Args:
    say: tells people one line before this process is ended from here: by a wait in vain, or because another one failed.

  Raises:
    UserError: some of the variables are missing or no numbers, or a TPU VM does not say which worker it is.
  """
  where = _environment()
  if where is None and (COUNT in os.environ or not _tpu_worker()):
    return
  seconds = _number(TIMEOUT, os.environ.get(TIMEOUT, "300"), 1)
  import jax

  # JAX itself ends a process that waits in vain with a stack trace; this is sooner, in one line.
  place = "the other workers of this TPU slice" if where is None else f"{where[1]} processes at {where[0]}"
  who = "" if where is None else f" (this is process {where[2]})"
  message = f"waited {seconds} s for {place}{who}; start the same command on every one of them"
  timer = threading.Timer(seconds, _give_up, [say, message])
  timer.daemon = True
  timer.start()
  try:
    address, number, own = where or (None, None, None)
    jax.distributed.initialize(
      address, number, own, initialization_timeout=seconds + 60, heartbeat_timeout_seconds=_SILENCE_S
    )
  except Exception as e:
    if where is None and isinstance(e, ValueError):  # a TPU VM that belongs to no slice
      return
    raise UserError(f"{place}{who} cannot be reached: {e}; {COUNT}=1 runs in one process") from None
  finally:
    timer.cancel()
  from jax._src import distributed

  state = distributed.global_state
  if state.num_processes == 1:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it, for processes that must agree where to stop
    return
  global _group
  _group = _Group(say, state.client, state.process_id, state.num_processes)
  _name_the_lost(_group)
  threading.Thread(target=_watch, args=[_group], daemon=True).start()


def _environment() -> tuple[str, int, int] | None:
  """Address, number of processes and number of this one; None without them, or for one process."""
  given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}
  if not given or given.get(COUNT) == "1":
    return None
  for name in (ADDRESS, COUNT, INDEX):
    if name not in given:
      raise UserError(f"{next(iter(given))} is set and {name} is not: set all of {ADDRESS}, {COUNT} and {INDEX}")
  number = _number(COUNT, given[COUNT], 1)
  own = _number(INDEX, given[INDEX], 0)
  if own >= number:
    raise UserError(f"{INDEX}={own}: must be below {COUNT}={number}")
  if not given[ADDRESS].rpartition(":")[2].isdigit() or ":" not in given[ADDRESS]:
    raise UserError(f"{ADDRESS}={given[ADDRESS]}: must be HOST:PORT of process 0")
  return given[ADDRESS], number, own


def _number(name: str, text: str, low: int) -> int:
  if not text.isdecimal() or int(text) < low:
    raise UserError(f"{name}={text}: must be a whole number of at least {low}")
  return int(text)


def _tpu_worker() -> bool:
  """Whether this machine has TPU chips that JAX will use: cheap, as most machines have none."""
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
  return bool(chips) and "tpu" in wanted and importlib.util.find_spec("libtpu") is not None


def _give_up(say: Callable[[str], None], message: str) -> None:
  say(f"radit: error: {message}")
  sys.stderr.flush()
  os._exit(2)


def _watch(group: _Group) -> None:
  """Ends this process once another one has: it may be waiting in a computation that will never be finished."""
  beats, beat_at = 0, 0.0
  while not group.closed.wait(_LOOK_EVERY_S):
    try:
      ended = group.client.key_value_dir_get(_ENDED)
      if time.monotonic() - beat_at > _BEAT_S:
        beats, beat_at = beats + 1, time.monotonic()
        group.client.key_value_set(f"{_ALIVE}/{group.index:06d}", str(beats), allow_overwrite=True)
        for name, beat in group.client.key_value_dir_get(_ALIVE):
          index = int(name.rpartition("/")[2])
          if group.seen.get(index, ("", 0.0))[0] != beat:
            group.seen[index] = beat, time.monotonic()
    except Exception:  # the first process is gone, and JAX ends this one
      return
    if ended:
      status, _, message = ended[0][1].partition(" ")
      if group.leaving.acquire(blocking=False):
        group.say(f"radit: {message}")
        _farewell(group, int(status))


def _lost(group: _Group) -> str:
  """Names the processes that give no sign of life; without their first one, nobody hears of any."""
  now = time.monotonic()
  last = {index: now - at for index, (_, at) in group.seen.items() if index != group.index}
  lost = [index for index, age in last.items() if age > _FAREWELL_S / 2]
  if group.index != 0 and (not lost or 0 in lost):
    lost = [0]
  return f"process{'es' * (len(lost) > 1)} {', '.join(map(str, sorted(lost)))}" if lost else "another process"


def _name_the_lost(group: _Group) -> None:
  """Has a line of ours be the last word where JAX aborts the process, as it does for the loss of another one.

  JAX takes no function for it that works (a Status cannot be given to Python), and Python's own handlers do not run
  while a process aborts; C's do, in the thread that aborts.
  """
  if not sys.platform.startswith("linux"):
    return

  def aborted(number: int) -> None:
    group.say(_lost_line(group))
    sys.stderr.flush()
    os._exit(1)

  group.on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
  ctypes.CDLL(None).signal(int(signal.SIGABRT), group.on_abort)


def _lost_line(group: _Group) -> str:
  return (
    f"radit: error: lost {_lost(group)} of {group.count}: ended without a word, or cannot be reached; the same "
    "command, started on all, continues from the last checkpoint"
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Around a whole program: a process that fails ends all of them, with its status, and they say which one it was.

  Processes that fail in the same way at once, as they do over a wrong option, each tell it themselves.
  """
  try:
    yield
  except BaseException as e:
    group = _group
    if group is None or (isinstance(e, SystemExit) and e.code in (0, None)):
      raise
    status, cause = 1, e
    if isinstance(e, KeyboardInterrupt):
      status = 130
      group.say("radit: interrupted")
    elif isinstance(e, SystemExit):
      status, cause = e.code if isinstance(e.code, int) else 1, e.__context__ or e
    else:
      traceback.print_exception(e)
    if isinstance(cause, Preempted) and cause.agreed:  # each tells it itself
      meet()
    if not group.leaving.acquire(blocking=False):
      time.sleep(2 * _FAREWELL_S)  # the watch is ending this process
    tell_end(status, f"{type(cause).__name__}: {cause}")
    _farewell(group, status)
  else:
    disconnect()


def _farewell(group: _Group, status: int) -> None:
  """Leaves when all have heard, the first process last: it is the one that the others hear it from."""
  try:
    group.client.wait_at_barrier("radit/farewell", _FAREWELL_S * 1000)
  except Exception:  # its text is no interface: who has not come is known by the signs of life
    group.say(_lost_line(group))
  if group.index == 0:
    time.sleep(_LOOK_EVERY_S)
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status)  # at a normal exit JAX would wait for computations, and for the others to leave in order


def leave(status: int, why: str) -> None:
  """Ends this process from another thread than the main one, and all the others with it."""
  group = _group
  if group is not None:
    if not group.leaving.acquire(blocking=False):
      time.sleep(2 * _FAREWELL_S)  # it is being ended already
    tell_end(status, why)
    _farewell(group, status)


def tell_end(status: int, why: str) -> None:
  """Lets the other processes know that this one ends, and so must they; nothing if another one was first."""
  if _group is not None:
    tell(f"{_ENDED}/first", " ".join(f"{status} process {_group.index} ended: {why}".split()))


def tell(name: str, text: str) -> None:
  """Says something to all processes under a name, once and for all."""
  if _group is not None:
    with contextlib.suppress(Exception):  # it was said before
      _group.client.key_value_set(name, text)


def said(name: str) -> list[str]:
  """What has been told under the names below this one, in their order; nothing in one process."""
  if _group is None:
    return []
  try:
    return [text for _, text in sorted(_group.client.key_value_dir_get(name))]
  except Exception:  # the first process is gone, and JAX ends this one
    return []


def disconnect() -> None:
  """Leaves the run after its end; returns when all others are there too."""
  global _group
  if _group is not None:
    meet()
    _group.closed.set()
    _group = None


def meet() -> None:
  """Returns when every process has come here."""
  if _group is not None:
    _group.meetings += 1
    _group.client.wait_at_barrier(f"radit/meeting/{_group.meetings}", _PATIENCE_MS)


@contextlib.contextmanager
def one_writes() -> Iterator[bool]:
  """Around work on files: True in the process that is to do it; the others wait until it is done.

  All must come here. Nobody is in the block before everybody has arrived, so what they read of the files before, such
  as whether a result is there already, they all read alike.

  Example:
    >>> with one_writes() as mine:
    ...   if mine:
    ...     print("written once")
    written once
  """
  meet()
  yield is_first()
  meet()


def exchange(text: str) -> list[str]:
  """What every process has to say, in their order; all must call it."""
  if _group is None:
    return [text]
  place = f"radit/exchange/{_group.meetings + 1}"
  _group.client.key_value_set(f"{place}/{_group.index:06d}", text)
  meet()
  return [value for _, value in sorted(_group.client.key_value_dir_get(place))]


def check_shared(path: str | os.PathLike[str]) -> None:
  """Finds out whether all processes see the same files at ``path``, which need not exist yet.

  Raises:
    UserError: naming a process that does not.
  """
  if count() == 1 or files.in_bucket(path):
    return
  target = pathlib.Path(path).absolute()
  near = next(p for p in (target, *target.parents) if p.is_dir())
  token, mine = near / f".radit-{uuid.uuid4().hex}", ""
  if is_first():
    token.touch()
    mine = f"{len(target.parts) - len(near.parts)} {token.name}"
  up, _, name = exchange(mine)[0].partition(" ")
  seen = (target, *target.parents)[int(up)] / name
  until = time.monotonic() + _SEEN_WITHIN_S
  while not seen.exists() and time.monotonic() < until:
    time.sleep(0.2)
  found = exchange("seen" if seen.exists() else "missing")
  if is_first():
    token.unlink()
  if "missing" in found:
    raise UserError(
      f"{path}: process {found.index('missing')} does not see what process 0 writes there; with several processes it "
      "must lie on a file system that all of them share"
    )
