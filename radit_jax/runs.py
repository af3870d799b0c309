"""Recipes: what made a directory, so that the same command continues it and another one is refused."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
from typing import Any

import radit_jax
from radit_jax import files, hosts
from radit_jax.errors import UserError

RUN = "run.json"
#: Packages whose versions a run writes down.
_PACKAGES = (
  *(
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
  ),
  *("grain", "tensorflow-datasets", "array_record", "scann", "qwix"),
)
#: Options a continued run may change: they alter neither data nor the meaning of a step.
FREE = (
  "loop.steps",
  "loop.epochs",
  "loop.log_every",
  "loop.keep",
  "loop.patience",
  "loop.select",
  "loop.dev_questions",
  "loop.accumulate",
  "loop.tensorboard",
  "loop.wandb",
  "remat",
  "verify",
  "mesh.data",
)
#: Batches of work without gradients, the number of processes, where a server is, and what a whole run shows beside its
#: main rows: free too, by their full names.
FREE_NAMES = (
  *("batch_size", "encode_batch_size", "score_batch_size", "answer_batch_size"),
  *("controls", "tune", "processes", "milvus_uri", "redact"),
)


class StaleInputs(UserError):
  """A directory made by the same options from other inputs: whoever knows that it is derived may make it anew."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
  """Nested dicts as dotted names.

  Example:
    >>> flatten({"loop": {"steps": 5}, "k": 3})
    {'loop.steps': 5, 'k': 3}
  """
  out: dict[str, Any] = {}
  for name, inner in value.items():
    if isinstance(inner, dict):
      out |= flatten(inner, f"{prefix}{name}.")
    else:
      out[f"{prefix}{name}"] = list(inner) if isinstance(inner, tuple) else inner
  return out


def recipe(config: Any, *, inputs: dict[str, str]) -> dict[str, Any]:
  """Options of a verb, with the fingerprints of its inputs in place of their paths.

  Args:
    config: a config dataclass.
    inputs: field name -> fingerprint; these fields' paths are left out, as the same data may lie elsewhere.
  """
  options = flatten(dataclasses.asdict(config))
  kept = {k: v for k, v in options.items() if k not in inputs and k not in ("workdir", "out", "embeddings")}
  return {"options": kept, "inputs": inputs}


def difference(stored: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, str] | None:
  """What stands against continuing under one recipe what another one began.

  Returns:
    "options" or "inputs", and the first of them that differs with both values, in words; None if nothing does.
  """
  for part in ("options", "inputs"):
    before, now = flatten(stored.get(part, {})), flatten(wanted[part])
    for name in [*now, *(n for n in before if n not in now)]:
      free = name in FREE_NAMES or any(name == f or name.endswith("." + f) for f in FREE)
      if not free and before.get(name) != now.get(name):
        return part, f"made with {name} = {_short(before.get(name))}, this call has {_short(now.get(name))}"
  return None


def _short(value: Any) -> str:
  """A value as the message of a difference tells it: of a SHA-256 the first 12 digits."""
  return repr(value[:12] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value)


def check_same(path: str | os.PathLike[str], stored: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Refuses to continue a directory that was made by another recipe.

  Raises:
    UserError: naming the first option that differs, and both values.
    StaleInputs: all options agree, and an input differs.
  """
  if found := difference(stored, wanted):
    error = StaleInputs if found[0] == "inputs" else UserError
    raise error(f"{path}: {found[1]}; choose another directory, or remove this one")


def finished(path: str | os.PathLike[str], kind: str, wanted: dict[str, Any]) -> bool:
  """Whether ``path`` already holds what this recipe would make.

  Raises:
    UserError: it holds what another recipe made, or is damaged; it is there and no store at all; or one of several
      processes does not see it.
    OSError: it is not there, and cannot be written.
  """
  hosts.check_shared(path)
  if not (files.location(path) / files.MANIFEST).exists():
    if hosts.is_first():  # the others may still see a file by which all have found that they share the directory
      files.check_replaceable(path, f"{kind} store")
      files.check_writable(path)
    return False
  manifest = files.read_manifest(path, kind)
  check_same(path, manifest.get("recipe", {}), wanted)
  return True


def check_run(workdir: str | os.PathLike[str], verb: str, wanted: dict[str, Any]) -> None:
  """Checks that this call continues the run in ``workdir``, if there is one.

  Raises:
    UserError: the directory belongs to another verb or recipe, or one of several processes does not see it.
  """
  hosts.check_shared(workdir)
  path = files.location(workdir) / RUN
  if path.exists():
    stored = files.read_json(path)
    if stored.get("verb") != verb:
      raise UserError(f"{path}: made by {stored.get('verb')!r}, this is {verb!r}; choose another directory")
    check_same(path, stored["recipe"], wanted)


def open_run(
  workdir: str | os.PathLike[str],
  verb: str,
  wanted: dict[str, Any],
  *,
  config: Any = None,
  attention: dict[str, str] | None = None,
) -> None:
  """Writes ``run.json``, all that is needed to repeat the run, after :func:`check_run`.

  These are the resolved options and fingerprints of the inputs (``recipe``), where the inputs lay (``paths``), versions
  of the packages, the commit of a checkout, and what devices there were. Nothing of the environment is written down.

  Args:
    workdir: of the run.
    verb: its name.
    wanted: see :func:`recipe`.
    config: whose options of text that ``wanted`` does not have, but for the work directory, are paths.
    attention: form of attention and why it was chosen: written down, and no part of the recipe. None keeps what an
      earlier call has written.

  Raises:
    UserError: the directory belongs to another verb or recipe.
  """
  check_run(workdir, verb, wanted)
  path = files.location(workdir) / RUN
  beside = files.read_json(path) if path.exists() else {}
  if config is not None:
    options = dataclasses.asdict(config)
    known = {*wanted["options"], "workdir"}
    beside["paths"] = {n: v for n, v in options.items() if n not in known and isinstance(v, str | None)}
  if attention is not None:
    beside["attention"] = attention
  about = {"versions": _versions(), "commit": _commit(), "devices": _devices()}
  with hosts.one_writes() as mine:
    if mine:
      files.write_json(path, {**beside, "verb": verb, "recipe": wanted, **about})


def _versions() -> dict[str, str]:
  """Of Python, this package, and what it stands on, so far as it is installed."""
  out = {"radit_jax": radit_jax.__version__, "python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      out[name] = importlib.metadata.version(name)
  return out


@functools.cache
def _commit() -> str | None:
  """Commit of the checkout that this package lies in, with a plus if its files were changed since; None without one."""
  root = pathlib.Path(radit_jax.__file__).parent.parent
  git = shutil.which("git")
  if git is None or not (root / ".git").exists():
    return None

  def ask(*arguments: str) -> str:
    done = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()

  try:
    return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
  except (subprocess.SubprocessError, OSError):  # a checkout of another user, which git refuses to read
    return None


def _devices() -> dict[str, Any]:
  import jax

  devices = jax.devices()
  return {"kind": devices[0].device_kind, "count": len(devices), "processes": hosts.count()}
