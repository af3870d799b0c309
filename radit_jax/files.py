"""Files that are whole or absent: atomic writes, SHA-256 manifests, JSON with its errors named."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from radit_jax.errors import UserError

MANIFEST = "manifest.json"
BUCKET = "gs://"
#: Files that make a directory one that is used: in a bucket, which renames nothing, they are written last.
_LAST = (MANIFEST, "config.json")


def in_bucket(path: str | os.PathLike[str]) -> bool:
  """Whether a path names objects in Google Cloud Storage."""
  return os.fspath(path).startswith(BUCKET)


def location(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path to read and write at: that of a file system, or ``gs://bucket/name``, which behaves like one.

  Raises:
    UserError: the path is in a bucket, and what reads buckets is not installed.
  """
  if not in_bucket(path):
    return pathlib.Path(path)
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f'{os.fspath(path)}: needs the extra gcs: pip install "radit_jax[gcs]"')
  from etils import epath

  return epath.Path(path)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary sibling of ``path`` and renames it to ``path`` if the block succeeds.

  An exception removes the temporary directory, so nothing half-written ever stands under the final name. An existing
  directory of the same kind is replaced, see :func:`replace_directory`.

  In a bucket there is no renaming: the files are written there when the block has succeeded, those without which the
  directory is none at all last.

  Args:
    path: the final directory.

  Example:
    >>> import tempfile, pathlib
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> with atomic_directory(root / "out") as d:
    ...   _ = (d / "a.txt").write_text("x")
    >>> (root / "out" / "a.txt").read_text()
    'x'
  """
  if in_bucket(path):
    with tempfile.TemporaryDirectory(prefix="radit_jax.") as name:
      yield pathlib.Path(name)
      _upload(pathlib.Path(name), location(path))
    return
  final = pathlib.Path(path)
  final.parent.mkdir(parents=True, exist_ok=True)
  with named(final):
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    temporary.chmod(0o755)  # mkdtemp makes 0o700; the user's other tools must be able to read the result
    try:
      yield temporary
      replace_directory(temporary, final)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: pathlib.Path) -> None:
  """Removes what killed processes have left of :func:`atomic_directory`; for whoever alone writes ``path``."""
  for left in path.parent.glob(f".{path.name}.*"):
    if left.is_dir():
      shutil.rmtree(left)


def remove_directory(path: pathlib.Path) -> None:
  """Removes a local directory; a kill meanwhile leaves no part of it under its name, and the next call the rest."""
  dropped = path.parent / f".{path.name}.dropped"
  if dropped.exists():
    shutil.rmtree(dropped)
  shutil.rmtree(path.rename(dropped))


def _upload(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the files of a directory into a bucket, in place of what is there."""
  if target.exists():
    target.rmtree()  # type: ignore[attr-defined]
  for file in sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: (p.name in _LAST, p)):
    with open(file, "rb") as read, (target / file.relative_to(source)).open("wb") as write:
      shutil.copyfileobj(read, write, 1 << 24)


def check_replaceable(path: str | os.PathLike[str], what: str, names: Collection[str] = (MANIFEST,)) -> None:
  """Refuses to put a directory where something else is: nothing of that would be left.

  Args:
    path: of the directory to be; one that is empty may be there.
    what: it will be.
    names: one of which every directory has that it may replace.

  Raises:
    UserError: a file, a directory with something else in it, or the current one, which cannot be replaced.
  """
  found = location(path)
  if in_bucket(path) or not found.exists():
    return
  if found.is_dir() and not found.samefile(os.curdir):
    held = set(os.listdir(found))
    if not held or held & set(names):
      return
  raise UserError(f"{found}: exists and is no {what}; choose another directory, or remove it")


def replace_directory(finished: pathlib.Path, final: pathlib.Path, *, durable: bool = False) -> None:
  """Gives a finished directory its final name; one that has it is removed, or keeps it if this fails.

  Args:
    finished: the directory.
    final: its name from now on.
    durable: all of it has reached the disk before it has the name, and the name before the one that had it goes.

  Raises:
    UserError: what has the name is no such directory: it holds files, and none that is named as one of the new ones.
  """
  check_replaceable(final, "directory of this kind", os.listdir(finished))
  if durable:
    sync_all(finished)
  if not final.exists():
    os.replace(finished, final)
    if durable:
      sync(final.parent)
    return
  # A directory cannot be renamed over a non-empty one: move the old one aside, and drop it last.
  old = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent))
  try:
    os.replace(final, old / "was")
    os.replace(finished, final)
    if durable:
      sync(final.parent)
  finally:
    if not final.exists():  # a signal came between the two
      os.replace(old / "was", final)
    shutil.rmtree(old)


def write_atomic(path: str | os.PathLike[str], data: str | bytes | memoryview, *, durable: bool = False) -> None:
  """Writes a file through a temporary sibling, so that a reader sees the old file or the new one, never half.

  An object in a bucket is always written like that.

  Args:
    path: the file.
    data: its content.
    durable: the content has reached the disk before the file has its name, so that this holds of a machine that loses
      its power too.
  """
  if in_bucket(path):
    location(path).write_bytes(data.encode() if isinstance(data, str) else bytes(data))
    return
  final = pathlib.Path(path)
  final.parent.mkdir(parents=True, exist_ok=True)
  with named(final):
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    try:
      with os.fdopen(handle, "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)
        if durable:
          f.flush()
          os.fsync(f.fileno())
      os.chmod(name, 0o644)
      os.replace(name, final)
      if durable:
        sync(final.parent)
    except BaseException:
      pathlib.Path(name).unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
  """An error of writing says which file or directory it is about.

  A full disk does not name the file that is open. And of a temporary sibling, or what lies in it, the name is told that
  it was to have.

  Example:
    >>> with named("out/run"):
    ...   open("out/.run.x1/a.txt")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'out/run/a.txt'
  """
  final = pathlib.Path(path)
  try:
    yield
  except OSError as e:
    if e.errno and e.filename is None:
      e.filename = os.fspath(path)
    elif isinstance(e.filename, (str, os.PathLike)):
      parts = pathlib.Path(e.filename).parts
      place = next((i for i, part in enumerate(parts) if final.name and part.startswith(f".{final.name}.")), None)
      if place is not None:
        e.filename = os.fspath(final.joinpath(*parts[place + 1 :]))
    raise


def check_writable(path: str | os.PathLike[str]) -> None:
  """Finds out whether a file or directory can be written, before what it is to hold is computed; makes nothing.

  Raises:
    OSError: naming it.
  """
  final = pathlib.Path(path)
  near = next(p for p in final.absolute().parents if p.exists())
  with named(final):
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=near)
    os.close(handle)
    os.unlink(name)


def sync(path: str | os.PathLike[str]) -> None:
  """Returns when the names in a directory, or the content of a file, have reached the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def sync_all(path: pathlib.Path) -> None:
  """Returns when a directory and all that is in it has reached the disk."""
  for found in (path, *path.rglob("*")):
    sync(found)


def write_json(path: str | os.PathLike[str], value: Any, *, durable: bool = False) -> None:
  """Writes ``value`` as indented JSON, see :func:`write_atomic`; NaN is refused (it is not JSON)."""
  write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable=durable)


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: the file is missing, or not JSON (line named).
  """
  p = location(path)
  try:
    return json.loads(p.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
  except FileNotFoundError:
    raise UserError(f"{p}: no such file") from None
  except UnicodeDecodeError as e:
    raise UserError(f"{p}: not UTF-8 (byte {e.start})") from None
  except json.JSONDecodeError as e:
    raise UserError(f"{p}:{e.lineno}: not JSON ({e.msg})") from None
  except (ValueError, RecursionError) as e:  # NaN, a number of thousands of digits, lists a thousand deep
    raise UserError(f"{p}: not JSON that can be used ({e})") from None


def _refuse_constant(name: str) -> Any:
  raise ValueError(f"{name} is not JSON")


def written(path: str | os.PathLike[str], what: str, fields: Collection[str], *, lines: bool = False) -> bool:
  """Whether an earlier call has written a file of JSON; to be asked before anything is computed for it.

  Args:
    path: the file; one that is empty counts as none.
    what: it holds.
    fields: that its object has.
    lines: it holds an object per line, of which the first is looked at.

  Raises:
    UserError: something else is there, which would be written over.
  """
  found = pathlib.Path(path)
  if not found.exists() or (found.is_file() and not found.stat().st_size):
    return False
  value = None
  if found.is_file():
    # What is no JSON, or no text, is something else.
    with contextlib.suppress(ValueError, RecursionError), open(found, encoding="utf-8") as f:
      value = json.loads(f.readline() if lines else f.read())
  if not isinstance(value, dict) or not set(fields) <= value.keys():
    raise UserError(f"{found}: exists and is no {what}; choose another file")
  return True


def link(source: pathlib.Path, target: pathlib.Path) -> bool:
  """Gives a file a second name, or copies it where the file system has no second names; says whether it is one file."""
  target.parent.mkdir(parents=True, exist_ok=True)
  target.unlink(missing_ok=True)
  try:
    os.link(source, target)
    return True
  except OSError:  # another file system, or one without second names
    copy(source, target)
    return False


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
  """Copies a file; where the disk is full, it is the copy that the error names, not what is read from elsewhere."""
  try:
    shutil.copyfile(source, target)
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      e.filename, e.filename2 = os.fspath(target), None
    raise


def sha256_file(path: str | os.PathLike[str]) -> str:
  """SHA-256 of a file's bytes, as hex."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def fingerprint_directory(path: str | os.PathLike[str], *, suffixes: tuple[str, ...] | None = None) -> str:
  """SHA-256 over names and contents of every file under ``path``: two directories agree iff their files do.

  Args:
    path: the directory.
    suffixes: only files whose name ends in one of these.

  Returns:
    64 hex digits.

  Raises:
    UserError: no such directory, or no such file in it.
  """
  root = pathlib.Path(path)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  digest = hashlib.sha256()
  files = sorted(p for p in root.rglob("*") if p.is_file() and (suffixes is None or p.name.endswith(suffixes)))
  if not files:
    raise UserError(f"{root}: empty, or no file ending in {suffixes}")
  for p in files:
    digest.update(f"{p.relative_to(root).as_posix()}\0{sha256_file(p)}\n".encode())
  return digest.hexdigest()


def write_manifest(
  path: str | os.PathLike[str],
  kind: str,
  fields: dict[str, Any],
  *,
  known: Mapping[str, str] = types.MappingProxyType({}),
  durable: bool = False,
) -> None:
  """Writes ``manifest.json`` for the directory: what it is, its recipe, and size and SHA-256 of every file in it.

  Args:
    path: the directory.
    kind: what it is.
    fields: its recipe.
    known: SHA-256 by name, of files that need not be read for it.
    durable: see :func:`write_atomic`.
  """
  write_json(pathlib.Path(path) / MANIFEST, described(path, kind, fields, known=known), durable=durable)


def described(
  path: str | os.PathLike[str],
  kind: str,
  fields: dict[str, Any],
  *,
  known: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
  """What :func:`write_manifest` writes."""
  root = pathlib.Path(path)
  names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != MANIFEST)
  files = {n: {"bytes": (root / n).stat().st_size, "sha256": known.get(n) or sha256_file(root / n)} for n in names}
  return {"kind": kind, **fields, "files": files}


def read_manifest(path: str | os.PathLike[str], kind: str, *, verify: str = "sizes") -> dict[str, Any]:
  """Reads and checks the manifest of a directory.

  Args:
    path: the directory.
    kind: what it must be, e.g. ``"index"``.
    verify: ``"full"`` checks SHA-256 of every file, ``"sizes"`` only that each is there with its size.

  Raises:
    UserError: no manifest, another kind, a file missing, or one whose size or hash differs.
  """
  root = pathlib.Path(path)
  if verify not in ("full", "sizes"):
    raise UserError(f'verify={verify!r}: must be "full" or "sizes"')
  if not root.is_dir():
    raise UserError(f"{root}: no such directory ({kind} expected)")
  if not (root / MANIFEST).exists():
    raise UserError(f"{root}: no {MANIFEST}, so not a finished {kind} directory")
  manifest = read_json(root / MANIFEST)
  if not isinstance(manifest, dict):
    raise UserError(f"{root / MANIFEST}: holds no JSON object; make the {kind} again")
  if manifest.get("kind") != kind:
    raise UserError(f"{root}: holds {manifest.get('kind')!r}, expected {kind!r}")
  listed = manifest.get("files")
  if not isinstance(listed, dict) or not all(
    isinstance(e, dict) and {"bytes", "sha256"} <= set(e) for e in listed.values()
  ):
    raise UserError(f"{root / MANIFEST}: lists no files with their sizes and hashes; make the {kind} again")
  for name, entry in listed.items():
    p = root / name
    if not p.resolve().is_relative_to(root.resolve()):
      raise UserError(f"{root / MANIFEST}: file {name!r} lies outside the directory")
    if not p.is_file():
      raise UserError(f"{p}: missing, though {MANIFEST} lists it; make the {kind} again")
    if p.stat().st_size != entry["bytes"]:
      raise UserError(f"{p}: {p.stat().st_size} bytes, {MANIFEST} says {entry['bytes']}; make the {kind} again")
    if verify == "full" and sha256_file(p) != entry["sha256"]:
      raise UserError(f"{p}: SHA-256 differs from {MANIFEST}; the file is damaged, make the {kind} again")
  return manifest
