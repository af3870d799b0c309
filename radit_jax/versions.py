"""Versions of a directory: numbered ones below the first, and a file that says which of them is read."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax import files
from radit_jax.errors import UserError

CURRENT, VERSIONS = "CURRENT", "versions"
#: Rows of a version that went: numbers as on disk. Rows keep their numbers from version to version.
REMOVED, ROW = "removed.bin", np.dtype("<u8")


def current_number(path: str | os.PathLike[str]) -> int:
  """Number of the version that is read; 0 is the directory itself, as it was first made.

  Raises:
    UserError: the file that names it holds no number.
  """
  file = pathlib.Path(path) / CURRENT
  try:
    text = file.read_text(encoding="utf-8").strip()
  except (FileNotFoundError, NotADirectoryError):
    return 0
  if not (text.isascii() and text.isdecimal()):
    raise UserError(f"{file}: {text[:20]!r} is no number of a version; write 0 into it for the first one")
  return int(text)


def directory(path: str | os.PathLike[str], number: int) -> pathlib.Path:
  """Where a version lies.

  Example:
    >>> directory("index", 0).as_posix(), directory("index", 12).as_posix()
    ('index', 'index/versions/000012')
  """
  root = pathlib.Path(path)
  return root / VERSIONS / f"{number:06d}" if number else root


def current(path: str | os.PathLike[str]) -> pathlib.Path:
  """The version that is read."""
  return directory(path, current_number(path))


def numbers(path: str | os.PathLike[str]) -> list[int]:
  """Every finished version, ascending, the first one too."""
  found = (pathlib.Path(path) / VERSIONS).glob(f"[0-9]*/{files.MANIFEST}")
  return [0, *sorted(int(manifest.parent.name) for manifest in found)]


def first_of(path: str | os.PathLike[str], candidates: Iterable[int], **fields: Any) -> int | None:
  """The first of some versions whose manifest has these fields; None if there is none.

  Files are not checked, and a manifest that cannot be read has no fields: a damaged version is in the way of no other.
  """
  for number in candidates:
    with contextlib.suppress(UserError):
      manifest = files.read_json(directory(path, number) / files.MANIFEST)
      if isinstance(manifest, dict) and all(manifest.get(n) == v for n, v in fields.items()):
        return number
  return None


def make_current(path: str | os.PathLike[str], number: int) -> None:
  """Has a version read from now on: whoever opens the directory sees the one before or this one."""
  settle(path, number)
  files.write_atomic(pathlib.Path(path) / CURRENT, f"{number}\n", durable=True)


def settle(path: str | os.PathLike[str], number: int) -> None:
  """Returns when all of a version has reached the disk: what names it then also does after a loss of power."""
  if number:
    files.sync_all(directory(path, number))


def prune(path: str | os.PathLike[str], keep: int, needed: Collection[int] = ()) -> list[int]:
  """Removes old versions, and returns which.

  Args:
    path: the directory.
    keep: how many of the newest stay, beside the first one.
    needed: others that stay.
  """
  remove_leftovers(path)
  gone = [n for n in numbers(path)[1:][:-keep] if n not in needed]
  for number in gone:
    # Without its manifest it is no version any more, even if this is interrupted.
    (directory(path, number) / files.MANIFEST).unlink()
  newest = numbers(path)[-1]
  for left in (pathlib.Path(path) / VERSIONS).glob("[0-9]*"):
    if left.name.isdecimal() and int(left.name) < newest and not (left / files.MANIFEST).exists():
      shutil.rmtree(left)
  return gone


def remove_leftovers(path: str | os.PathLike[str]) -> None:
  """Removes what killed calls have left of the work on finished versions; for whoever alone makes versions.

  It lies beside them, under names of theirs behind a dot or two, as ``.000001.work``.
  """
  finished = {directory(path, number).name for number in numbers(path)[1:]}
  for left in (pathlib.Path(path) / VERSIONS).glob(".*"):
    if left.is_dir() and left.name.lstrip(".").split(".")[0] in finished:
      shutil.rmtree(left)


def removed_rows(version: pathlib.Path, manifest: dict[str, Any]) -> Int[np.ndarray, "M"]:
  """Rows of an index or a passage store that no search may find, ascending."""
  if REMOVED not in manifest["files"]:
    return np.empty(0, np.int64)
  return np.fromfile(version / REMOVED, ROW).astype(np.int64)
