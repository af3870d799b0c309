"""`radit export`: what a run tuned, as directories to publish and to serve, with card, recipe and licences."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from radit_jax import files, runs
from radit_jax.config import ExportConfig
from radit_jax.errors import UserError
from radit_jax.models.pretrained import (
  encoder_temperature,
  load_encoder,
  load_generator,
  load_tokenizer,
  save_encoder,
  save_generator,
)
from radit_jax.models.sentence_files import passage_encoder_fingerprint
from radit_jax.progress import Progress, silent
from radit_jax.verbs import cards

#: Directory in a tuning's work directory -> the verb that made it.
_EXPORTS = {"generator": "train-generator", "query_encoder": "train-retriever"}


@dataclasses.dataclass(frozen=True)
class ExportResult:
  """What was written.

  Attributes:
    directories: each tuned model's.
  """

  directories: tuple[str, ...]

  def summary(self) -> str:
    """One line each for the command line."""
    return "\n".join(self.directories)


def export(config: ExportConfig, *, progress: Progress = silent) -> ExportResult:
  """Writes the tuned models of a run as Hugging Face directories in ``out``: `generator/`, `query_encoder/`, or both.

  Beside the weights stand the files of the base model (`config.json` as it was), the tokenizer, `radit.json`,
  `prompt.py` and a model card; an adapter lies in `adapter/`.

  Args:
    config: see :class:`radit_jax.config.ExportConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a directory that is no finished run, or an ``out`` that exists.
  """
  out = files.location(config.out)
  if out.exists():
    raise UserError(f"{out}: exists; remove it, or name another directory")
  root = pathlib.Path(config.run)
  tuned = dict(_tuned(root))
  if not tuned:
    raise UserError(f"{root}: no finished tuning here (neither result.json nor train_generator/ or train_retriever/)")
  report = root / "report.json"
  table = _table(files.read_json(report)) if report.exists() else ""
  with files.atomic_directory(out) as d:
    for number, (name, workdir) in enumerate(tuned.items(), 1):
      (_generator if name == "generator" else _encoder)(config, workdir / name, d / name, table)
      if (workdir / "adapter").is_dir():
        _adapter(workdir / "adapter", d / name / "adapter", cards.read_recipe(workdir / name)["base"]["name"])
      progress("export", number, len(tuned), "models")
  return ExportResult(tuple(str(out / name) for name in tuned))


def _tuned(root: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  """Name and work directory of each finished tuning: the directory itself, or the two of a whole run."""
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  for name, verb in _EXPORTS.items():
    for workdir in (root, root / verb.replace("-", "_")):
      made_by = files.read_json(workdir / runs.RUN)["verb"] if (workdir / runs.RUN).exists() else ""
      if made_by.startswith(verb) and (workdir / "result.json").exists():
        yield name, workdir


def _generator(config: ExportConfig, source: pathlib.Path, target: pathlib.Path, table: str) -> None:
  recipe = cards.read_recipe(source)
  beside = cards.generator_files(recipe, table, config.data_licence)
  dtype = None if config.dtype == "keep" else config.dtype
  # Left in the files: nothing is computed, and float32 masters of 7B (25 GiB) would not fit one chip.
  generator = load_generator(source, abstract=True)
  save_generator(generator, load_tokenizer(source), target, dtype=dtype, beside=beside)


def _encoder(config: ExportConfig, source: pathlib.Path, target: pathlib.Path, table: str) -> None:
  recipe = cards.read_recipe(source)
  save_encoder(
    load_encoder(source, abstract=True),
    load_tokenizer(source),
    target,
    score_temperature=encoder_temperature(source),
    passage_encoder=passage_encoder_fingerprint(source),
    recipe=recipe,
    dtype=None if config.dtype == "keep" else config.dtype,
    beside={cards.CARD: cards.encoder_card(recipe, table, config.data_licence)},
  )


def _adapter(source: pathlib.Path, target: pathlib.Path, base: str) -> None:
  """A copy whose base is named, not found by a path of this machine."""
  shutil.copytree(source, target)
  file = target / "adapter_config.json"
  files.write_json(file, files.read_json(file) | {"base_model_name_or_path": base})


def _table(report: dict[str, Any]) -> str:
  """The rows of a run's report, in Markdown."""
  names = ("exact_match", "f1", "recall@1", "recall@5", "recall@10")
  lines = [f"| {' | '.join(['', *(n.replace('_', ' ') for n in names), 'questions'])} |", "|---" * 7 + "|"]
  for row in report["rows"].values():
    if not row["n"]:
      continue  # not asked for in this run
    cells = ["" if row.get(n) is None else f"{100 * row[n]:.1f}" for n in names]
    lines.append(f"| {' | '.join([row['label'], *cells, str(row['n'])])} |")
  return "\n".join(lines)
