"""`radit download`: the files of data sets from where their authors keep them, checked, and what is there already."""

import dataclasses
import hashlib
import pathlib
from typing import Any

from radit_jax.config import DownloadConfig, MixConfig
from radit_jax.config.mix import PASSAGES
from radit_jax.data import download as http
from radit_jax.data.catalogue import CATALOGUE, CatalogueEntry, Source, entry_named, usable
from radit_jax.data.unpack import unpack
from radit_jax.errors import UserError
from radit_jax.files import read_json, sha256_file, write_json
from radit_jax.progress import Progress, silent

#: Beside the files of a set: where each came from, its size and SHA-256, and those of what it was unpacked to.
LOCK = "download.json"


@dataclasses.dataclass(frozen=True)
class DownloadResult:
  """What there is now.

  Attributes:
    lines: one for each set, and what to do about it.
    missing: names of sets that are not whole.
  """

  lines: tuple[str, ...]
  missing: tuple[str, ...]
  listed: bool

  @property
  def failed(self) -> bool:
    """Something that was asked for is not there; the command line exits with 1."""
    return bool(self.missing) and not self.listed

  def summary(self) -> str:
    """The lines."""
    return "\n".join(self.lines)


def download(config: DownloadConfig, *, mix: MixConfig | None = None, progress: Progress = silent) -> DownloadResult:
  """Downloads sets into folders of their names, or lists them.

  A file that is there already is compared with its digest. A set that cannot be had does not keep the others from
  being downloaded; why is told at the end.

  Args:
    config: see :class:`radit_jax.config.DownloadConfig`.
    mix: what its ``mix`` names. Sets of it that no catalogue has are their user's, and told.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a name that is not in the catalogue, or none at all.
    OSError: the disk is full.
  """
  data = pathlib.Path(config.data)
  mixed = [s.name for s in mix.sets() if s.read_as != PASSAGES] if mix else []
  own = [name for name in mixed if name not in CATALOGUE]
  names = list(dict.fromkeys([*config.sets, *(name for name in mixed if name in CATALOGUE)]))
  if not names and not mix and not config.list:
    raise UserError("radit download: name a set, or --mix paper (radit download --list shows all)")
  kept, lost = usable(names if names or mix else CATALOGUE, config.licence)
  entries = [entry_named(name) for name in kept]
  lines = [f"{name}: left out, no licence for commercial use is known ({why})" for name, why in lost.items()]
  lines += [f"{name}: a set of the mix that is not known here, to be brought by yourself" for name in own]
  if config.list:
    return _listed(entries, data, lines)
  missing = []
  for entry in entries:
    try:
      lines.append(_downloaded(entry, data / entry.name, progress))
    except UserError as e:
      lines.append(f"{entry.name}: {e}")
      missing.append(entry.name)
  return DownloadResult(tuple(lines), tuple(missing), False)


def _listed(entries: list[CatalogueEntry], data: pathlib.Path, left_out: list[str]) -> DownloadResult:
  """A table, and below it what a person must do and what a licence leaves out."""
  states = {entry.name: state(entry, data / entry.name) for entry in entries}
  rows = [("set", "", "size", "commercial", "used by the paper for", "licence")]
  for entry in entries:
    size = "?" if entry.size is None else f"{entry.size / 1e6:,.1f} MB"
    uses = ", ".join(entry.uses) or "-"
    rows.append((entry.name, states[entry.name], size, "yes" if entry.commercial else "no", uses, entry.licence))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  missing = tuple(name for name, found in states.items() if found != "there")
  asked = [entry for entry in entries if entry.name in missing and entry.by_hand]
  if asked:
    lines += ["", "To be fetched by hand:"]
    lines += [f"  {data / entry.name}: {entry.by_hand}" for entry in asked]
  lines += ["", *left_out] if left_out else []
  there = len(states) - len(missing)
  lines += ["", f"{there} of {len(states)} sets are in {data}."]
  return DownloadResult(tuple(lines), missing, True)


def state(entry: CatalogueEntry, folder: pathlib.Path) -> str:
  """Whether the files of a set are there, by their sizes: "there", "in part", "by hand" or "missing"."""
  lock = _read_lock(folder)
  found = [_is_there(source, folder, lock) for source in entry.files]
  if all(found):
    return "there"
  by_hand = all(source.by_hand for source, there in zip(entry.files, found, strict=True) if not there)
  started = any(found) or any(http.partial(folder / source.save_as).exists() for source in entry.files)
  return "by hand" if by_hand else "in part" if started else "missing"


def _is_there(source: Source, folder: pathlib.Path, lock: dict[str, Any]) -> bool:
  held = lock.get(source.save_as)
  if held is None:
    return not source.members and _has_size(folder / source.save_as, source.size)
  if _differs(source, held):
    return False
  if not source.members:
    return _has_size(folder / source.save_as, held["bytes"])
  paths = _unpacked(source, folder)
  sizes = [path.stat().st_size for path in paths]
  return (len(sizes), sum(sizes)) == (held["unpacked"]["files"], held["unpacked"]["bytes"])


def _unpacked(source: Source, folder: pathlib.Path) -> list[pathlib.Path]:
  """The files that an archive's members became."""
  found = {path for pattern in source.members for path in folder.glob(pattern) if path.is_file()}
  return sorted(path for path in found if not path.name.startswith("."))


def _has_size(path: pathlib.Path, size: int | None) -> bool:
  return path.is_file() and size in (None, path.stat().st_size)


def _differs(source: Source, held: dict[str, Any]) -> bool:
  """Whether what was downloaded is not what the catalogue names now."""
  return source.sha256 not in (None, held["sha256"]) or source.size not in (None, held["bytes"])


def _downloaded(entry: CatalogueEntry, folder: pathlib.Path, progress: Progress) -> str:
  """Fetches what is missing of a set and checks what is there; a line about it."""
  lock = _read_lock(folder)
  fetched, recorded, by_hand = 0, [], []
  for source in entry.files:
    if source.save_as in lock and _is_there(source, folder, lock):
      _compare(source, folder, lock[source.save_as])
      continue
    target, pinned = folder / source.save_as, _pinned(source, lock)
    if target.is_file():  # put there by hand, or the process ended before it was written down
      found = http.check(pinned, target, f"what is in {folder}")
    elif source.by_hand:
      by_hand.append(source.by_hand)
      continue
    else:
      found = http.fetch(pinned, target, told=_told(entry.name, source, progress))
      fetched += 1
      if pinned.sha256 is None and pinned.blob is None:
        recorded.append(source.save_as)
    held: dict[str, Any] = {"url": source.url, "bytes": found.size, "sha256": found.sha256}
    if source.members:
      unpack(target, folder, source.members)
      held["unpacked"] = _described(source, folder)
    lock[source.save_as] = held
    write_json(folder / LOCK, {"set": entry.name, "files": lock})
    if source.members:
      target.unlink()
  if by_hand:
    raise UserError(f"to be fetched by hand, into {folder}: {' '.join(dict.fromkeys(by_hand))}")
  note = f"; {', '.join(recorded)}: no digest was known, the one that came is in {folder / LOCK}" if recorded else ""
  return f"{entry.name}: {'downloaded' if fetched else 'there'}, {folder} (licence: {entry.licence}){note}"


def _pinned(source: Source, lock: dict[str, Any]) -> Source:
  """The source, with the digest that its first download wrote down where the catalogue has none."""
  held = lock.get(source.save_as)
  if held is None or source.sha256 is not None or source.blob is not None:
    return source
  return dataclasses.replace(source, size=held["bytes"], sha256=held["sha256"])


def _told(name: str, source: Source, progress: Progress) -> Any:
  def told(done: int, total: int | None) -> None:
    if total:  # of a file of unknown length, no bar can be drawn
      progress(f"{name}: {pathlib.PurePath(source.save_as).name}", done, total, "bytes")

  return told


def _described(source: Source, folder: pathlib.Path) -> dict[str, Any]:
  """How many files an archive became, their size, and one digest over paths and contents."""
  digest, size = hashlib.sha256(), 0
  paths = _unpacked(source, folder)
  for path in paths:
    digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    size += path.stat().st_size
  return {"files": len(paths), "bytes": size, "sha256": digest.hexdigest()}


def _compare(source: Source, folder: pathlib.Path, held: dict[str, Any]) -> None:
  """What is there, against what was written down when it came."""
  if source.members:
    same, what = _described(source, folder) == held["unpacked"], ", ".join(source.members)
  else:
    same, what = sha256_file(folder / source.save_as) == held["sha256"], source.save_as
  if not same:
    raise UserError(f"{folder / what}: has changed since it was downloaded; remove it to download it again")


def _read_lock(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / LOCK
  if not path.exists():
    return {}
  held = read_json(path)
  files = held.get("files") if isinstance(held, dict) else None
  if not isinstance(files, dict) or not all(
    isinstance(of, dict) and {"bytes", "sha256"} <= of.keys() for of in files.values()
  ):
    raise UserError(f"{path}: not written by radit download; remove it to check the files anew")
  return files
