"""Scores that are finished while others are not: kept in parts, and checked before a later call uses them."""

import contextlib
import hashlib
import io
import logging
import os
import pathlib
import shutil
import threading
import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax import files, hosts, runs
from radit_jax.errors import UserError

#: A passage's number is that of its question times k, plus its own. Whatever batch it was in, it is scored.
PART = np.dtype([("passage", "<i8"), ("log_likelihood", "<f4"), ("num_tokens", "<i4")])
#: Seconds of scoring that a kill may cost.
EVERY_S = 30.0
_LIST = "parts.json"

log = logging.getLogger("radit_jax")


class ScoredParts:
  """Scores that are being made, in a hidden directory beside the store they will be in.

  A part is written to a temporary file, synced and renamed, then listed with its SHA-256. Of several processes the
  first one reads and writes.

  Args:
    out: directory of the store.
    request: recipe of the scores, see :func:`radit_jax.runs.recipe`. Work on another one is thrown away.
  """

  def __init__(self, out: str | os.PathLike[str], request: dict[str, Any]):
    final = pathlib.Path(out)
    self._work = final.parent / f".{final.name}.partial"
    self._request = request
    self._listed: dict[int, str] = {}
    self._unsaved: list[np.ndarray] = []
    self._saved_at = time.monotonic()
    self._lock = threading.Lock()

  def read(self) -> np.ndarray:
    """Entries of type :data:`PART` that earlier calls have finished; what cannot be used is named, and removed."""
    found = [np.empty(0, PART)]
    if not hosts.is_first() or not self._work.exists():
      return found[0]
    try:
      state = files.read_json(self._work / _LIST)
      other = runs.difference(state["request"], self._request)
      listed = {int(number): str(sha256) for number, sha256 in state["parts"].items()}
      problem = other and other[1]
    except (UserError, KeyError, TypeError, AttributeError, ValueError):
      problem = f"no {_LIST} that can be read"
    if problem:
      log.warning("%s: %s; what was scored there is scored again", self._work, problem)
      self.remove()
      return found[0]
    names = {_name(number): number for number in listed}
    for name in sorted({*names, *(p.name for p in self._work.iterdir())} - {_LIST}):
      path, number = self._work / name, names.get(name)
      part = None if number is None else _read(path, listed[number])
      if number is not None and part is not None:
        self._listed[number] = listed[number]
        found.append(part)
        continue
      if not name.startswith("."):  # which a kill leaves of a file that it cut short
        log.warning("%s: not what was listed as written; what was scored there is scored again", path)
      shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return np.concatenate(found)

  def add(
    self,
    passages: Int[np.ndarray, "n"] | list[int],
    log_likelihoods: Float[np.ndarray, "n"],
    num_tokens: Int[np.ndarray, "n"],
  ) -> None:
    """Takes the scores of a batch, and writes what there is every :data:`EVERY_S` seconds."""
    if not hosts.is_first():
      return
    part = np.empty(len(passages), PART)
    part["passage"], part["log_likelihood"], part["num_tokens"] = passages, log_likelihoods, num_tokens
    self._unsaved.append(part)
    if time.monotonic() - self._saved_at >= EVERY_S:
      self.save()

  def save(self) -> None:
    """Writes what was added since the last part; may be called by another thread than the one that adds."""
    with self._lock:
      new = list(self._unsaved)
      if new:
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(new), allow_pickle=False)
        content = buffer.getbuffer()
        number = max(self._listed, default=-1) + 1
        files.write_atomic(self._work / _name(number), content, durable=True)
        self._listed[number] = hashlib.sha256(content).hexdigest()
        files.write_json(self._work / _LIST, {"request": self._request, "parts": self._listed}, durable=True)
        del self._unsaved[: len(new)]
      self._saved_at = time.monotonic()

  def remove(self) -> None:
    """Once the store is there. The list goes first: without it, nothing of what a kill leaves is continued."""
    if hosts.is_first() and self._work.exists():
      with contextlib.suppress(OSError):  # the store is as good beside it
        (self._work / _LIST).unlink(missing_ok=True)
        shutil.rmtree(self._work)


def _name(number: int) -> str:
  return f"part-{number:05d}.npy"


def _read(path: pathlib.Path, sha256: str) -> np.ndarray | None:
  try:
    content = path.read_bytes()
  except OSError:
    return None
  return np.load(io.BytesIO(content), allow_pickle=False) if hashlib.sha256(content).hexdigest() == sha256 else None
