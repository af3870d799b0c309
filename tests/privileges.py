"""Root held to the modes of files, as everybody else is."""

import contextlib
import ctypes
from collections.abc import Iterator

#: Version 3 of what the kernel is asked by: effective, permitted and inheritable capabilities, in two words.
_VERSION = 0x20080522
#: Writing and reading past the modes of files and directories.
_PAST_MODES = 1 << 1 | 1 << 2


@contextlib.contextmanager
def held_to_modes() -> Iterator[None]:
  """The calling thread may write and read what the modes say, whoever it runs as."""
  libc = ctypes.CDLL(None, use_errno=True)
  header, had = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
  assert libc.capget(header, had) == 0, ctypes.get_errno()
  fewer = (ctypes.c_uint32 * 6)(*had)
  fewer[0] &= ~_PAST_MODES
  assert libc.capset(header, fewer) == 0, ctypes.get_errno()
  try:
    yield
  finally:
    assert libc.capset(header, had) == 0, ctypes.get_errno()
