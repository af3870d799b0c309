"""`radit doctor`: are the files of a run whole, does the machine still compute what it did, and why is a loss flat?"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from radit_jax import files, owner, runs
from radit_jax.config import DoctorConfig, TrainGeneratorConfig, TrainRetrieverConfig
from radit_jax.errors import TrainingError, UserError
from radit_jax.models.safetensors_files import read_header
from radit_jax.progress import Progress, silent
from radit_jax.training import manifests
from radit_jax.training.checkpoint import DamagedCheckpoint
from radit_jax.training.metrics import read_metrics
from radit_jax.verbs.causes import causes
from radit_jax.verbs.checkpoints import FOLDER
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever

METRICS = "metrics.jsonl"
#: Verb of a run.json, by its beginning -> its config and function.
_TUNINGS: dict[str, tuple[type, Callable[..., Any]]] = {
  "train-generator": (TrainGeneratorConfig, train_generator),
  "train-retriever": (TrainRetrieverConfig, train_retriever),
}
#: Inputs that are directories of their own; a model may be a name on the Hub.
_STORES = ("retrieved", "dev_retrieved", "passages", "index", "scores", "dev_scores")
#: What a step that is run again must give.
_COMPARED = ("loss", "grad_norm", "lr", "tokens", "batch_ids_hash")
#: Relative difference allowed where devices or versions are others than those of the run.
_ELSEWHERE = 1e-3


@dataclasses.dataclass(frozen=True)
class DoctorResult:
  """What was found.

  Attributes:
    findings: what is wrong, a sentence each.
    notes: what was looked at, and what could not be.
  """

  findings: tuple[str, ...]
  notes: tuple[str, ...]

  @property
  def failed(self) -> bool:
    """Something is wrong; the command line exits with 1."""
    return bool(self.findings)

  def summary(self) -> str:
    """For the command line."""
    return "\n".join(
      [*self.notes, *(f"FOUND: {f}" for f in self.findings), *([] if self.findings else ["nothing found"])]
    )


def doctor(config: DoctorConfig, *, progress: Progress = silent) -> DoctorResult:
  """Looks a run over; changes nothing in it.

  Every file is held against its manifest; the figures of its tunings are searched for the cause of a flat loss; steps
  are run again from a checkpoint, twice, and held against each other and against what the run logged.

  Args:
    config: see :class:`radit_jax.config.DoctorConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: no such directory, or nothing of a run in it.
  """
  root = pathlib.Path(config.run)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  tunings = [p.parent for p in [root / METRICS, *sorted(root.glob(f"*/{METRICS}"))] if p.exists()]
  places = sorted({p.parent for p in root.rglob(files.MANIFEST)} - set(_inside_checkpoints(root)))
  if not tunings and not places and not (root / runs.RUN).exists():
    raise UserError(f"{root}: nothing of a run here (no {runs.RUN}, no {METRICS}, no {files.MANIFEST})")
  findings: list[str] = []
  notes: list[str] = []
  for done, check in enumerate(checks := [*_file_checks(root, places)], 1):
    try:
      check()
    except UserError as e:
      findings.append(str(e))
    progress("files", done, len(checks), "directories")
  notes.append(f"{len(checks)} directories and files were read")
  for place in tunings:
    try:
      findings += [f"{place}: {cause}" for cause in _causes(place)]
      told, wrong = _rerun(place, progress) if config.rerun else ([], [])
    except UserError as e:  # of a file that has been named above
      told, wrong = [f"its figures were not read: {e}"], []
    notes += [f"{place}: {line}" for line in told]
    findings += [f"{place}: {line}" for line in wrong]
  return DoctorResult(tuple(findings), tuple(notes))


# Files.


def _inside_checkpoints(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder in root.rglob(FOLDER):
    yield from (p.parent for p in folder.rglob(files.MANIFEST))


def _file_checks(root: pathlib.Path, places: list[pathlib.Path]) -> Iterator[Callable[[], object]]:
  """One call for each thing to be read, which raises a UserError for a damaged one."""
  for place in places:
    yield functools.partial(_check_manifest, place)
  for folder in sorted(p for p in root.rglob(FOLDER) if p.is_dir()):
    yield functools.partial(_check_checkpoints, folder)
  for path in sorted(root.rglob("*.json")):
    if FOLDER not in path.relative_to(root).parts and path.name != files.MANIFEST:
      yield functools.partial(files.read_json, path)
  for path in sorted(root.rglob(METRICS)):
    yield functools.partial(_check_lines, path)
  for weights in sorted({p.parent for p in root.rglob("*.safetensors")}):
    yield functools.partial(_check_weights, weights)


def _check_manifest(place: pathlib.Path) -> None:
  manifest = files.read_json(place / files.MANIFEST)
  kind = manifest.get("kind") if isinstance(manifest, dict) else None
  if kind is None:
    raise UserError(f"{place / files.MANIFEST}: says of no kind what this directory is")
  if "files" in manifest:  # else shards that are still being written
    files.read_manifest(place, kind, verify="full")


def _check_checkpoints(folder: pathlib.Path) -> None:
  for step in manifests.steps(folder):
    if step.problem and not step.unfinished:
      raise UserError(step.problem)


def _check_lines(path: pathlib.Path) -> None:
  for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
    try:
      json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
      raise UserError(f"{path}:{number}: not a line of figures; what follows it is not read") from None


def _check_weights(directory: pathlib.Path) -> None:
  for name in sorted(p.name for p in directory.glob("*.safetensors")):
    for tensor, stored in read_header(directory / name).items():
      values = stored.read()
      if values.dtype.kind in "fV" and not np.isfinite(values.astype(np.float32)).all():
        raise UserError(f"{directory / name}: {tensor} holds values that are not finite")


# Figures.


def _causes(place: pathlib.Path) -> list[str]:
  lines = read_metrics(place / METRICS)
  run = files.read_json(place / runs.RUN) if (place / runs.RUN).exists() else {}
  options = run.get("recipe", {}).get("options", {})
  right = [_share_right(run, name, options.get("k")) for name in ("retrieved", "dev_retrieved")]
  return causes(lines, options, right=right, cut=_share_cut(place, run, options))


def _store(run: dict[str, Any], name: str) -> dict[str, Any] | None:
  """Manifest of a store that a tuning read, if it still lies where it did."""
  path = (run.get("paths") or {}).get(name)
  if not path or not (pathlib.Path(path) / files.MANIFEST).exists():
    return None
  return typing.cast(dict[str, Any], files.read_json(pathlib.Path(path) / files.MANIFEST))


def _share_right(run: dict[str, Any], name: str, k: int | None) -> float | None:
  """Share of the questions of a store with a right passage among the first k; None where none was searched for."""
  manifest = _store(run, name)
  hits = (manifest or {}).get("hits")
  return float(np.mean(np.asarray(hits) < k)) if hits and k else None


def _share_cut(place: pathlib.Path, run: dict[str, Any], options: dict[str, Any]) -> float | None:
  manifest = _store(run, "retrieved")
  if manifest is None or not (place / "result.json").exists():
    return None
  cut = files.read_json(place / "result.json")["result"].get("cut_passages")
  return None if cut is None else cut / max(manifest["count"] * options["k"], 1)


# Steps run again.


class _Enough(BaseException):
  """The steps that were wanted have been run and saved."""


def _rerun(place: pathlib.Path, progress: Progress) -> tuple[list[str], list[str]]:
  """Runs a few steps of a tuning twice; returns what was done, and what is wrong."""
  run = files.read_json(place / runs.RUN) if (place / runs.RUN).exists() else {}
  kind = _TUNINGS.get(str(run.get("verb")).split(" ")[0])
  if kind is None or "paths" not in run:
    return ["no steps run again: nothing says how it was made"], []
  if (place / owner.LOCK).exists():
    return [f"no steps run again: {place / owner.LOCK} says that it is running"], []
  cls, verb = kind
  try:
    config = _config(cls, {**run["recipe"]["options"], **run["paths"], "workdir": str(place)})
  except (TypeError, UserError) as e:
    return [f"no steps run again: its options are not those of this version ({e})"], []
  gone = [v for n, v in run["paths"].items() if v and (n in _STORES or os.path.isabs(v)) and not os.path.exists(v)]
  if gone:
    return [f"no steps run again: {gone[0]} is not there any more"], []
  lines = {line["step"]: line for line in read_metrics(place / METRICS) if "loss" in line}
  saved = [s for s in manifests.steps(place / FOLDER, verify="sizes") if not s.problem]
  start, target = _stretch(lines, [s.number for s in saved])
  if target is None:
    return ["no steps run again: no step was logged"], []
  try:
    one, other = (_again(verb, config, place, start, target, progress) for _ in range(2))
  except (UserError, OSError, TrainingError) as e:
    # What it was given, or a file of the copy that cannot be written, which has a cause: it says nothing of the steps.
    if isinstance(e, DamagedCheckpoint) or (isinstance(e, TrainingError) and e.__cause__ is None):
      return [], [f"step {start + 1} cannot be run again: {e}"]
    return [f"no steps run again: {e}"], []
  told = [f"steps {start + 1} to {target} were run again, twice"]
  wrong = [
    f"step {target} run twice gives {name} with checksum {a} and {other.leaves[name]}: this machine does not compute "
    "the same twice (silent data corruption); do not trust it, and train elsewhere"
    for name, a in one.leaves.items()
    if other.leaves[name] != a
  ][:1]
  here = one.run["devices"] == run.get("devices") and one.run["versions"] == run.get("versions")
  for name in _COMPARED:
    was, now = lines[target].get(name), one.line.get(name)
    same = was == now
    if not same and not here and isinstance(was, float) and isinstance(now, float):
      same = abs(now - was) <= _ELSEWHERE * abs(was)
    if not same:
      wrong.append(
        f"step {target} run again from step {start} gives {name} {now!r}, the run logged {was!r}: silent data "
        "corruption, then or now, or inputs that were changed"
      )
      break
  kept = {s.number: s.manifest for s in saved}.get(target)
  if here and kept is not None and not wrong:
    told.append(f"their state is held against the checkpoint of step {target}")
    wrong += [
      f"step {target} run again from step {start} gives {name} with checksum {one.leaves[name]}, its checkpoint has "
      f"{value}: silent data corruption, then or now"
      for name, value in kept["leaves"].items()
      if one.leaves.get(name) != value
    ][:1]
  if not here:
    told.append("other devices or versions than the run's: held against its figures to one part in a thousand")
  return told, wrong


def _stretch(lines: dict[int, Any], saved: list[int]) -> tuple[int, int | None]:
  """From which checkpoint (0: from the beginning) up to which logged step: the shortest way there is."""
  ways = [(step - start, -start, start, step) for start in [0, *saved] for step in lines if step > start]
  return min(ways)[2:] if ways else (0, None)


@dataclasses.dataclass(frozen=True)
class _Again:
  """What came of steps that were run again: the line of the last one, checksums of the state after it, and run.json."""

  line: dict[str, Any]
  leaves: dict[str, str]
  run: dict[str, Any]


def _again(
  verb: Callable[..., Any], config: Any, place: pathlib.Path, start: int, target: int, progress: Progress
) -> _Again:
  """Continues a copy of a run from a checkpoint, and ends it after a step."""

  def report(stage: str, done: int, total: int, unit: str, /, **figures: float) -> None:
    if unit == "steps" and done > target:
      raise _Enough
    progress(f"again: {stage}", done, total, unit, **figures)

  with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place.parent) as name:
    if start:
      shutil.copytree(place / FOLDER / str(start), pathlib.Path(name, FOLDER, str(start)), copy_function=_link)
    loop = dataclasses.replace(
      config.loop,
      log_every=1,
      evaluate_every=target,
      keep=2,
      patience=None,
      select="dev_loss",
      dev_questions=None,
      tensorboard=False,
      wandb=False,
    )
    with contextlib.suppress(_Enough):
      verb(dataclasses.replace(config, workdir=name, loop=loop), progress=report)
    steps = {s.number: s.manifest for s in manifests.steps(pathlib.Path(name, FOLDER), verify="sizes")}
    manifest = steps[target]
    assert manifest is not None
    (line,) = (x for x in read_metrics(pathlib.Path(name, METRICS)) if x["step"] == target and "loss" in x)
    return _Again(line, manifest["leaves"], files.read_json(pathlib.Path(name, runs.RUN)))


def _link(source: str, target: str) -> None:
  files.link(pathlib.Path(source), pathlib.Path(target))


def _config(cls: type, options: dict[str, Any]) -> Any:
  """A config of its options, dotted as :func:`radit_jax.runs.flatten` writes them; what is no field is left out."""
  hints = typing.get_type_hints(cls)
  values: dict[str, Any] = {}
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    if dataclasses.is_dataclass(hint):
      below = f"{field.name}."
      values[field.name] = _config(
        typing.cast(type, hint), {n.removeprefix(below): v for n, v in options.items() if n.startswith(below)}
      )
    elif field.name in options:
      value = options[field.name]
      values[field.name] = tuple(value) if isinstance(value, list) else value
  return cls(**values)
