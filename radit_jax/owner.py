"""One run, one owner: a lock in a work directory names the process that writes there, and others are refused."""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from radit_jax import files, hosts
from radit_jax.errors import UserError

LOCK = "run.lock"
#: Where nothing can be written no run can either, except to find that it is finished.
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
#: Seconds after which a lock that names nobody was left by a process killed as it made it.
_EMPTY_FOR_S = 10.0

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("radit_jax")


def one_owner(verb: F) -> F:
  """A verb that owns ``config.workdir`` while it runs."""

  @functools.wraps(verb)
  def owning(config: Any, **options: Any) -> Any:
    with owned(config.workdir, otherwise="choose another --workdir"):
      return verb(config, **options)

  return cast(F, owning)


@contextlib.contextmanager
def owned(workdir: str | os.PathLike[str], *, beside: bool = False, otherwise: str | None = None) -> Iterator[None]:
  """Holds the lock of a directory; of several processes the first one does.

  The lock of a process that has ended, on this machine or before it was started anew, is taken over. Buckets have none.

  Args:
    workdir: made if missing, and removed again if nothing was written.
    beside: the lock lies beside the directory, which is left as it is: for work that puts a whole one in its place.
    otherwise: what the one that is refused may do but wait.

  Raises:
    UserError: another process owns it, or one on another machine may: host and process id named.

  Example:
    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with owned(directory):
    ...   sorted(os.listdir(directory))
    ['run.lock']
    >>> os.listdir(directory)
    []
  """
  if files.in_bucket(workdir) or not hosts.is_first():
    yield
    return
  root = pathlib.Path(workdir)
  lock = root.parent / f".{root.name}.lock" if beside else root / LOCK
  root = lock.parent
  made = [p for p in (root, *root.parents) if not p.exists()]
  root.mkdir(parents=True, exist_ok=True)
  try:
    _take(lock, "wait for it" + (f", or {otherwise}" if otherwise else ""))
    held = True
  except OSError as e:
    if e.errno not in _UNWRITABLE:
      raise
    held = False
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # not empty; or read-only by now, of which the run has told
      if held:
        lock.unlink(missing_ok=True)
      for directory in made:
        directory.rmdir()


def _take(lock: pathlib.Path, advice: str) -> None:
  mine = json.dumps(_identity(os.getpid()))
  while True:
    try:
      handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
      _remove_stale(lock, advice)
      continue
    with os.fdopen(handle, "w") as f:
      f.write(mine)
      f.flush()
      os.fsync(f.fileno())
    return


def _remove_stale(lock: pathlib.Path, advice: str) -> None:
  """Removes the lock of an owner that has ended.

  Raises:
    UserError: it has not, or that cannot be known from here.
  """
  with contextlib.suppress(FileNotFoundError), open(lock) as f:
    with contextlib.suppress(OSError):  # some file systems have no flock
      fcntl.flock(f, fcntl.LOCK_EX)  # of two that find it stale, one removes it, and not what the other then made
    if os.stat(lock).st_ino != os.fstat(f.fileno()).st_ino:
      return
    try:
      owner = json.loads(f.read())
      pid, host = int(owner["pid"]), str(owner["host"])
    except (ValueError, KeyError, TypeError):
      if time.time() - os.fstat(f.fileno()).st_mtime < _EMPTY_FOR_S:
        raise UserError(f"{lock}: another process is just taking this lock; {advice}") from None
      log.warning("%s: names no process; taken over", lock)
      lock.unlink()
      return
    if host != socket.gethostname():
      raise UserError(
        f"{lock}: process {pid} on {host} holds this lock, and whether it still runs cannot be seen from here; if it "
        "does not, remove that file"
      )
    if owner == _identity(pid):
      raise UserError(f"{lock}: process {pid} on this machine holds this lock; {advice}")
    log.warning("%s: left by process %d, which has ended; taken over", lock, pid)
    lock.unlink()


def _identity(pid: int) -> dict[str, Any]:
  """What tells a process of this machine from every other one, an earlier one of the same number too.

  ``started`` is None for one that does not run.
  """
  boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
  started: str | None = None
  if boot.exists():
    with contextlib.suppress(OSError):
      state, *rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
      started = None if state in "ZX" else rest[18]  # in clock ticks since boot
  else:
    with contextlib.suppress(ProcessLookupError):
      with contextlib.suppress(PermissionError):
        os.kill(pid, 0)
      started = "running"
  booted = boot.read_text().strip() if boot.exists() else ""
  return {"host": socket.gethostname(), "pid": pid, "boot": booted, "started": started}
