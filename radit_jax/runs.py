"""Recipes: what made a directory, so that the same command continues it and another one is refused."""

import dataclasses
import importlib.metadata
import os
import platform
from typing import Any

import radit_jax
from radit_jax import files, hosts
from radit_jax.errors import UserError

RUN = "run.json"
#: Options a continued run may change: they alter neither data nor the meaning of a step.
FREE = (
  "loop.steps",
  "loop.epochs",
  "loop.log_every",
  "loop.keep",
  "loop.patience",
  "loop.accumulate",
  "remat",
  "verify",
  "mesh.data",
)
#: Batches of work without gradients, the number of processes, where a server is, and what a whole run shows beside its
#: main rows: free too, by their full names.
FREE_NAMES = (
  *("batch_size", "encode_batch_size", "score_batch_size", "answer_batch_size"),
  *("controls", "tune", "processes", "milvus_uri"),
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


def check_same(path: str | os.PathLike[str], stored: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Refuses to continue a directory that was made by another recipe.

  Raises:
    UserError: naming the first option that differs, and both values.
    StaleInputs: all options agree, and an input differs.
  """
  for part, error in (("options", UserError), ("inputs", StaleInputs)):
    before, now = flatten(stored.get(part, {})), flatten(wanted[part])
    for name in [*now, *(n for n in before if n not in now)]:
      free = name in FREE_NAMES or any(name == f or name.endswith("." + f) for f in FREE)
      if not free and before.get(name) != now.get(name):
        raise error(
          f"{path}: made with {name} = {before.get(name)!r}, this call has {now.get(name)!r}; "
          "choose another directory, or remove this one"
        )


def finished(path: str | os.PathLike[str], kind: str, wanted: dict[str, Any]) -> bool:
  """Whether ``path`` already holds what this recipe would make.

  Raises:
    UserError: it holds what another recipe made, or is damaged; or one of several processes does not see it.
  """
  hosts.check_shared(path)
  if not (files.location(path) / files.MANIFEST).exists():
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
  workdir: str | os.PathLike[str], verb: str, wanted: dict[str, Any], *, attention: dict[str, str] | None = None
) -> None:
  """Writes ``run.json`` (resolved options, versions, fingerprints), after :func:`check_run`.

  Args:
    workdir: of the run.
    verb: its name.
    wanted: see :func:`recipe`.
    attention: form of attention and why it was chosen: written down, and no part of the recipe. None keeps what an
      earlier call has written.

  Raises:
    UserError: the directory belongs to another verb or recipe.
  """
  check_run(workdir, verb, wanted)
  versions = {n: importlib.metadata.version(n) for n in ("jax", "flax", "optax", "orbax-checkpoint", "transformers")}
  versions |= {"radit_jax": radit_jax.__version__, "python": platform.python_version()}
  path = files.location(workdir) / RUN
  if attention is None and path.exists():
    attention = files.read_json(path).get("attention")
  beside = {} if attention is None else {"attention": attention}
  with hosts.one_writes() as mine:
    if mine:
      files.write_json(path, {"verb": verb, "recipe": wanted, "versions": versions, **beside})
