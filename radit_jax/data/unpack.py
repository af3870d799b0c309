"""Members of zip and tar archives as files below a folder: plain files alone, and none outside."""

import contextlib
import fnmatch
import functools
import gzip
import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from radit_jax.data.records import open_input
from radit_jax.errors import UserError


def unpack(archive: pathlib.Path, folder: pathlib.Path, patterns: tuple[str, ...]) -> list[str]:
  """Writes the members of an archive whose paths match, below a folder, under those paths.

  Members that do not match are not looked at. Each file appears whole.

  Args:
    archive: a zip file, or a tar file, as it is or compressed by gzip, bzip2 or Zstandard.
    folder: where the members' paths begin.
    patterns: as of a shell; hidden files, such as those that macOS adds, match none.

  Returns:
    The paths, in the order of the archive.

  Raises:
    UserError: not such an archive, one that is damaged or encrypted, a pattern without a member, or a member that
      matches and is a link, a device, or would lie outside the folder.
  """
  written = []
  unmatched = set(patterns)
  with _readable(archive):
    members = _zip_members(archive) if _begins(archive, b"PK") else _tar_members(archive)
    for name, opened in members:
      matched = {pattern for pattern in patterns if _matches(name, pattern)}
      unmatched -= matched
      if matched:
        if opened is None:
          raise UserError(f"{archive}: member {name!r} is a link or a device, and is not unpacked")
        path = folder / _inside(archive, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(folder.resolve()):
          raise UserError(f"{archive}: member {name!r} would lie outside {folder}, through a link that is there")
        _write(opened(), path)
        written.append(name)
  if unmatched:
    raise UserError(f"{archive}: no member {', '.join(sorted(unmatched))}")
  return written


def _begins(path: pathlib.Path, magic: bytes) -> bool:
  with open(path, "rb") as f:
    return f.read(len(magic)) == magic


def _matches(name: str, pattern: str) -> bool:
  """As a shell does it: part by part."""
  parts, patterns = name.split("/"), pattern.split("/")
  same = len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))
  return same and not parts[-1].startswith(".")


@contextlib.contextmanager
def _readable(archive: pathlib.Path) -> Iterator[None]:
  broken = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError)
  try:
    yield
  except broken as e:  # RuntimeError: an encrypted zip, or a way of compressing that Python does not know
    raise UserError(f"{archive}: no archive that can be read ({' '.join(str(e).split())})") from None


#: A member's path, and what opens it; None for a link or a device.
Member = tuple[str, Callable[[], IO[bytes]] | None]


def _zip_members(archive: pathlib.Path) -> Iterator[Member]:
  with zipfile.ZipFile(archive) as opened:
    for member in opened.infolist():
      kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was made without Unix modes
      if not member.is_dir():
        plain = kind in (0, stat.S_IFREG)
        yield member.filename, functools.partial(opened.open, member) if plain else None


def _tar_members(archive: pathlib.Path) -> Iterator[Member]:
  with open_input(archive) as stream:
    with tarfile.open(fileobj=stream, mode="r:") as opened:
      for member in opened:
        if not member.isdir():
          yield member.name, functools.partial(_of_tar, opened, member) if member.isreg() else None
    while stream.read(1 << 20):  # the checksum of gzip stands at its end, behind what tar reads
      pass


def _of_tar(opened: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
  content = opened.extractfile(member)
  assert content is not None  # a regular file has one
  return content


def _inside(archive: pathlib.Path, name: str) -> pathlib.PurePosixPath:
  path = pathlib.PurePosixPath(name)
  if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
    raise UserError(f"{archive}: member {name!r} would lie outside the folder, and is not unpacked")
  return path


def _write(content: IO[bytes], path: pathlib.Path) -> None:
  temporary = path.with_name(f".{path.name}.unpacking")
  temporary.unlink(missing_ok=True)  # also a link of that name, which would be written through
  try:
    with content, open(temporary, "xb") as f:
      shutil.copyfileobj(content, f, 1 << 20)
    os.replace(temporary, path)
  except BaseException as e:
    temporary.unlink(missing_ok=True)
    if isinstance(e, OSError) and e.errno and e.filename is None:  # a full disk, told by no name
      raise OSError(e.errno, e.strerror, str(path)) from None
    raise
