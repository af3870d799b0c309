"""What a program sets for its whole process before it computes."""

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import resource
import sys
from collections.abc import MutableMapping

# glibc's names, from malloc.h: when to shrink the heap (-1 for never), how many buffers may lie outside of it, and how
# many heaps there are. Threads have heaps of their own by default, too small for large buffers.
_HEAP = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
_CACHE = "JAX_COMPILATION_CACHE_DIR"
#: Files open at once that are asked for: Linux maps about as many (vm.max_map_count), and more would be no use.
_FILES = 2**16
#: What JAX runs an accelerator with, and the device files of one.
_ACCELERATORS = {
  "libtpu": ("accel[0-9]*", "vfio/[0-9]*"),
  "jax_cuda13_plugin": ("nvidia[0-9]*",),
  "jax_cuda12_plugin": ("nvidia[0-9]*",),
}


def keep_heap() -> None:
  """Lets freed memory stay with the process, on Linux with glibc; to be called before there are threads.

  XLA on a CPU allocates its buffers anew in every step; by default glibc gives each large one back to the kernel, which
  then clears the same pages again. A training step of the quickstart's generator takes 43 ms with this, and 58 ms
  without, 28 of them system time; one of 8 layers of 512 with 3 GB of temporaries 6.1 s, and 6.8. What the process
  holds no longer falls below its peak.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
  if mallopt is not None:
    for option, value in _HEAP.values():
      mallopt(option, value)


def open_many_files() -> None:
  """Lets the process have as many files open as the system allows without asking, 65,536 at most.

  Each shard of embeddings is one for as long as its index is open, and there are 32,768 passages to a shard: with the
  1024 that most systems begin with, an index of 33 million passages could not be opened.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    with contextlib.suppress(OSError, ValueError):  # macOS takes less than it says
      resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_programs(environ: MutableMapping[str, str] = os.environ, devices: pathlib.Path = pathlib.Path("/dev")) -> None:
  """Lets compiled programs outlive the process, on a machine with a TPU or GPU; to be called before JAX is imported.

  A restart then compiles nothing that an earlier run has compiled. They are kept in `radit_jax/jax` of the user's cache
  directory, or where `JAX_COMPILATION_CACHE_DIR` says; `JAX_ENABLE_COMPILATION_CACHE=false` keeps none. Whoever may
  write there may run code here, so the directory is the user's alone.

  Not on a CPU by default: compiled there, a program fits one kind of CPU; another one refuses it with an error line, as
  do some of the same kind (jax-ml/jax#38445). Who shares no home directory between machines may set the variable.

  Args:
    environ: the process's.
    devices: where device files stand.
  """
  if _CACHE in environ or environ.get("JAX_PLATFORMS", "").startswith("cpu"):
    return
  for package, names in _ACCELERATORS.items():
    if importlib.util.find_spec(package) and any(True for name in names for _ in devices.glob(name)):
      break
  else:
    return
  root = pathlib.Path(environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "radit_jax" / "jax"
  try:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError:
    return  # a home that cannot be written: programs are compiled in every run, as without this
  environ[_CACHE] = str(root)
