"""Manifests of checkpoints: what was saved, by which a step is known to be intact; and what is done about others."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any

from radit_jax import files
from radit_jax.errors import UserError

KIND = "checkpoint"
#: In orbax's own metadata of a step, written with it: a manifest is to follow.
MARKER = "radit_jax_manifest"
#: Name before the step of a directory that is not used any more.
SET_ASIDE, DROPPED = "damaged-", ".dropped-"
_ORBAX = "_CHECKPOINT_METADATA"
_COMMITTED = "commit_success.txt"

log = logging.getLogger("radit_jax")


@dataclasses.dataclass(frozen=True)
class Step:
  """A checkpoint that lies in a directory.

  Attributes:
    number: optimizer steps it was made after.
    path: its directory.
    manifest: None without one that can be read.
    problem: why it is not intact; None for one that is.
    unfinished: the process ended after the step was written and before its manifest was.
  """

  number: int
  path: pathlib.Path
  manifest: dict[str, Any] | None = None
  problem: str | None = None
  unfinished: bool = False

  @property
  def dev_loss(self) -> float | None:
    """Of the manifest."""
    return None if self.manifest is None else self.manifest["metrics"].get("dev_loss")


def write(path: pathlib.Path, step: int, *, leaves: dict[str, str], metrics: dict[str, float], data: Any) -> None:
  """Writes the manifest of a step that is final, with the SHA-256 of its files unless they are in a bucket.

  Args:
    path: directory of the step.
    step: its number.
    leaves: checksum of each array, see :func:`radit_jax.training.checksums.checksums`.
    metrics: dev loss, if there is one.
    data: where in which data the run stood, as JSON.
  """
  fields = {"step": step, "metrics": metrics, "data": data, "leaves": leaves}
  hashed = not files.in_bucket(path)
  manifest = files.described(path, KIND, fields) if hashed else {"kind": KIND, **fields, "files": {}}
  files.write_json(path / files.MANIFEST, {**manifest, "sha256": _digest(manifest)}, durable=True)


def rate(path: pathlib.Path, step: int, metrics: dict[str, float]) -> None:
  """Gives the manifest of an intact step other metrics."""
  manifest = {**read(path, step, verify="sizes"), "metrics": metrics}
  del manifest["sha256"]
  files.write_json(path / files.MANIFEST, {**manifest, "sha256": _digest(manifest)}, durable=True)


def _digest(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read(path: pathlib.Path, step: int, *, verify: str = "full") -> dict[str, Any]:
  """The manifest of a step whose files are those that it lists.

  Args:
    path: directory of the step.
    step: its number.
    verify: see :func:`radit_jax.files.read_manifest`. Files in a bucket are not looked at.

  Raises:
    UserError: naming the file and what is wrong with it.
  """
  file = path / files.MANIFEST
  manifest = files.read_json(file)
  if not isinstance(manifest, dict) or _digest({k: v for k, v in manifest.items() if k != "sha256"}) != manifest.get(
    "sha256"
  ):
    raise UserError(f"{file}: differs from its own SHA-256")
  if manifest["kind"] != KIND or manifest["step"] != step:
    raise UserError(f"{file}: that of {manifest['kind']} {manifest.get('step')}, not of {KIND} {step}")
  if not files.in_bucket(path):
    files.read_manifest(path, KIND, verify=verify)
  return manifest


def steps(directory: str | os.PathLike[str], *, verify: str = "full") -> list[Step]:
  """Every checkpoint in a directory, intact or not, the oldest first.

  Args:
    directory: ``checkpoints/`` of a run.
    verify: ``"full"`` reads every file, ``"sizes"`` none.
  """
  root = files.location(directory)
  if not root.is_dir():
    return []
  found = sorted((int(p.name), p) for p in root.iterdir() if p.name.isdecimal() and p.is_dir())
  if files.in_bucket(root):  # a step gets its name there before it is whole
    found = [(n, p) for n, p in found if (p / files.MANIFEST).exists() or (p / _COMMITTED).exists()]
  return [_step(number, path, verify, newest=number == found[-1][0]) for number, path in found]


def _step(number: int, path: pathlib.Path, verify: str, *, newest: bool) -> Step:
  if (path / files.MANIFEST).exists():
    try:
      return Step(number, path, read(path, number, verify=verify))
    except UserError as e:
      return Step(number, path, problem=str(e))
  problem = f"{path / files.MANIFEST}: missing"
  if not _marked(path):
    return Step(number, path, problem=f"{problem}, as an earlier radit_jax wrote none")
  # Steps are written one after the other, each with its manifest: a run that was killed lacks that of the newest alone.
  return Step(number, path, problem=problem, unfinished=newest)


def _marked(path: pathlib.Path) -> bool:
  try:
    return MARKER in (files.read_json(path / _ORBAX).get("custom_metadata") or {})
  except (UserError, AttributeError):
    return False


def take_up(directory: str | os.PathLike[str]) -> list[Step]:
  """The intact checkpoints that a run continues with, the oldest first; others are named, and put out of the way.

  A damaged one is renamed to ``damaged-STEP``. One that was not finished is removed: the run makes it again.

  Raises:
    UserError: there are damaged ones and no intact one.
  """
  root = files.location(directory)
  if not root.is_dir():
    return []
  for left in [p for p in root.iterdir() if p.name.startswith(DROPPED)]:
    remove(left)
  found = steps(root)
  damaged = [s for s in found if s.problem and not s.unfinished]
  intact = [s for s in found if not s.problem]
  if damaged and not intact:
    raise UserError(
      f"{damaged[-1].problem}; none of the {len(damaged)} checkpoints in {root} is intact: remove that directory to "
      "begin anew, or choose another --workdir"
    )
  for step in found:
    if step.unfinished:
      log.warning("%s: left out, as the run ended before it was finished", step.problem)
      remove(step.path)
    elif step.problem:
      set_aside(step.path, step.problem)
  return intact


def set_aside(path: pathlib.Path, problem: str) -> None:
  """Names a damaged checkpoint, and renames it so that its step can be saved again."""
  target = path.parent / f"{SET_ASIDE}{path.name}"
  log.warning("%s: checkpoint %s is left out, and renamed to %s", problem, path.name, target.name)
  if target.exists():
    _delete(target)
  path.rename(target)


def remove(path: pathlib.Path) -> None:
  """Removes a checkpoint; a kill meanwhile leaves no half of one under its name."""
  if not files.in_bucket(path) and not path.name.startswith(DROPPED):
    dropped = path.parent / f"{DROPPED}{path.name}"
    _delete(dropped)
    path = path.rename(dropped)
  _delete(path)


def _delete(path: pathlib.Path) -> None:
  if files.in_bucket(path):
    path.rmtree()  # type: ignore[attr-defined]
  else:
    shutil.rmtree(path, ignore_errors=not path.exists())
