"""`radit prepare --mix`: the sets of a mix and a corpus become splits for both tunings, and a data card."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from radit_jax import files, hosts, runs
from radit_jax.config import MixConfig, PrepareMixConfig
from radit_jax.config.mix import PASSAGES
from radit_jax.data.catalogue import CATALOGUE
from radit_jax.data.contamination import Contamination
from radit_jax.data.corpus import PassageStore
from radit_jax.data.corpus.build import Build
from radit_jax.data.mix import locate, missing, read_set
from radit_jax.data.policy import Skipped
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.pretrained import fingerprint
from radit_jax.progress import Progress, silent
from radit_jax.verbs.data_card import CARD, FIGURES, write_card
from radit_jax.verbs.mix_splits import (
  COMPLETION,
  PARTS,
  TEST_DIRECTORY,
  SplitWriter,
  limit_of_answers,
  read_sets,
  write_test,
)
from radit_jax.verbs.prepare import corpus_sources, fingerprint_path, fingerprint_sources, limit_of


@dataclasses.dataclass(frozen=True)
class PrepareMixResult:
  """Where the stores lie, and what is in them.

  Attributes:
    passages: passage store.
    splits: "generator" and maybe "retriever" -> directory of its ``train.jsonl`` and ``dev.jsonl``; "evaluation" ->
      directory of its ``test.jsonl``, if an evaluation set is there.
    card: Markdown file; ``data_card.json`` and ``data_card.svg`` lie beside it.
    num_passages: of the corpus.
    num_questions: part -> split -> examples.
    lines: what was left out, for the command line.
  """

  passages: str
  splits: dict[str, str]
  card: str
  num_passages: int
  num_questions: dict[str, dict[str, int]]
  lines: list[str]

  def summary(self) -> str:
    """A few lines for the command line."""
    out = [f"{self.num_passages:,} passages: {self.passages}"]
    for part, counts in self.num_questions.items():
      out.append(f"{part}: {', '.join(f'{name} {n:,}' for name, n in counts.items())}: {self.splits[part]}")
    return "\n".join([*out, *self.lines, f"data card: {self.card}"])


def prepare_mix(
  config: PrepareMixConfig, mix: MixConfig, *, prompt: Prompt | None = None, progress: Progress = silent
) -> PrepareMixResult:
  """Reads the corpus and the sets, splits both by documents, and writes what the tunings draw from.

  Args:
    config: see :class:`radit_jax.config.PrepareMixConfig`.
    mix: what its ``mix`` names.
    prompt: of the generator: answers that it has no room for are left out and counted. In its place the config's
      ``max_answer_tokens`` counts the tokens of an answer alone.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: sets without files (all named), a bad record, a corpus that cannot be read, no dev examples, or a
      directory that other options made.
  """
  root, data = pathlib.Path(config.workdir), pathlib.Path(config.data)
  mix, refused = _usable(mix, config)
  absent = missing(mix, data)
  if absent and not config.allow_missing:
    told = "; ".join(f"{name} ({why})" for name, why in absent.items())
    raise UserError(
      f"{data}: {len(absent)} sets of the mix are not there: {told}. `radit download --list` says how to get them; "
      "--allow-missing goes on without them"
    )
  mix = _without(mix, absent)
  evaluated = {s.name: locate(s, data) for s in mix.evaluation}
  paths = {s.name: locate(s, data) for s in mix.sets() if s.read_as != PASSAGES}
  sources = corpus_sources(config)
  corpus_inputs = {"corpus": fingerprint_sources(sources)}
  if config.passage_encoder is not None:
    corpus_inputs["passage_encoder"] = fingerprint(config.passage_encoder, config.embedding)
  named = paths | {f"evaluation {name}": found for name, found in evaluated.items()}
  inputs = corpus_inputs | {
    name: "+".join(fingerprint_path(str(p))[:16] for p in found) for name, found in named.items()
  }
  if config.tokenizer is not None:
    inputs["tokenizer"] = fingerprint(config.tokenizer)
  if prompt is not None:
    inputs["prompt"] = prompt.hash
  wanted = runs.recipe(config, inputs=inputs)
  for name in ("data", "mix", "allow_missing"):  # what they come to stands in the inputs and below
    wanted["options"].pop(name, None)
  wanted["options"] |= runs.flatten({"mix": _described(mix)})
  corpus = runs.recipe(config, inputs=corpus_inputs)
  corpus["options"] = {k: v for k, v in corpus["options"].items() if k in _CORPUS_OPTIONS or k.startswith("embedding.")}
  stores = {part: root / part for part in PARTS if part == "generator" or mix.retriever or mix.completions}
  tested = {s: evaluated[s.name] for s in mix.evaluation if evaluated[s.name]}
  if tested:
    stores[EVALUATION] = root / TEST_DIRECTORY
  finished = [runs.finished(root / "passages", "passages", corpus)]
  finished += [runs.finished(path, "split", wanted) for path in stores.values()]
  if not all([*finished, (root / FIGURES).is_file()]):
    with hosts.one_writes() as mine:
      if mine:
        skipped = Skipped()
        # What is wrong with the sets is found before the corpus is read.
        contamination = Contamination(
          (s.name, read_set(s, found, on_error=config.on_error, skipped=skipped)) for s, found in tested.items()
        )
        too_long = limit_of_answers(config, prompt)
        taken = read_sets(config, mix, paths, skipped, contamination, progress, too_long)
        if not finished[0]:
          _write_corpus(config, corpus, sources, progress)
        store = PassageStore(root / "passages")
        writer = SplitWriter(config, mix, taken, store, wanted, skipped, contamination, too_long)
        parts = {part: writer.write(part, path) for part, path in stores.items() if part != EVALUATION}
        counts = {part: written["counts"] for part, written in parts.items()}
        if tested:
          counts[EVALUATION] = write_test(stores[EVALUATION], config, tested, wanted, skipped, too_long)
        card = _card(config, mix, skipped, store, absent, refused, contamination)
        card |= {"parts": {PARTS[part]: written["sets"] for part, written in parts.items()}, "counts": counts}
        write_card(root, card)
  return _prepared(root, stores)


#: Its counts in the card, beside those of the parts.
EVALUATION = "evaluation"
_CORPUS_OPTIONS = ("corpus_format", "max_passage_words", "max_passage_characters", "max_passage_tokens", "on_error")


def _usable(mix: MixConfig, config: PrepareMixConfig) -> tuple[MixConfig, dict[str, str]]:
  """The mix without sets that the licence asked for does not allow, and why they are lost."""
  if config.licence == "any":
    return mix, {}
  refused = {
    s.name: "licence" if s.name in CATALOGUE else "licence not known"
    for s in mix.sets()
    if s.read_as != PASSAGES and not (s.name in CATALOGUE and CATALOGUE[s.name].commercial)
  }
  return _without(mix, refused), refused


def _without(mix: MixConfig, names: Iterable[str]) -> MixConfig:
  lost = set(names)
  generator, retriever = (tuple(s for s in sets if s.name not in lost) for sets in (mix.generator, mix.retriever))
  if not generator:
    raise UserError("none of the mix's sets for the generator is left; `radit download --list` says how to get them")
  return dataclasses.replace(mix, generator=generator, retriever=retriever)


def _described(mix: MixConfig) -> dict[str, Any]:
  """A mix with its sets by name, so that an error can name the one that differs."""
  out = dataclasses.asdict(mix)
  for part in (*PARTS, "evaluation"):
    out[part] = {s["name"]: {k: v for k, v in s.items() if k not in ("name", "files")} for s in out[part]}
  return out


def _write_corpus(
  config: PrepareMixConfig, recipe: dict[str, Any], sources: list[dict[str, Any]], progress: Progress
) -> None:
  build = Build(
    pathlib.Path(config.workdir) / "passages",
    config.corpus,
    format=config.corpus_format,
    limit=limit_of(config),
    recipe=recipe,
    on_error=config.on_error,
    processes=config.processes,
  )
  try:
    build.scan(progress)
    skipped = dict(build.skipped.counts)
    build.write({"recipe": recipe, "sources": sources, "skipped": skipped}, progress)
  except UserError:
    build.discard()
    raise


def _card(
  config: PrepareMixConfig,
  mix: MixConfig,
  skipped: Skipped,
  store: PassageStore,
  absent: dict[str, str],
  refused: dict[str, str],
  contamination: Contamination,
) -> dict[str, Any]:
  manifest = store.manifest
  return {
    "mix": pathlib.Path(config.mix).stem,
    "seed": config.seed,
    "dev_fraction": config.dev_fraction,
    "corpus": manifest["counts"],
    "licences": {name: entry.licence for name, entry in CATALOGUE.items()}
    | {s.name: "that of the corpus" for s in mix.generator if s.read_as == PASSAGES}
    | {COMPLETION: "that of the corpus"},
    "decontaminate": config.decontaminate,
    "evaluation": contamination.summary(),
    "not_looked_at": [s.name for s in mix.evaluation if s.name not in {f["name"] for f in contamination.summary()}],
    "missing": absent,
    "refused": refused,
    "skipped": dict(skipped.counts) | {f"corpus: {k}": n for k, n in manifest["skipped"].items()},
    "skipped_lines": skipped.lines(),
  }


def _prepared(root: pathlib.Path, stores: dict[str, pathlib.Path]) -> PrepareMixResult:
  card = files.read_json(root / FIGURES)
  lines = [f"{name} is not there ({why}): left out" for name, why in card["missing"].items()]
  lines += [
    f"{name} left out: {why} ({card['licences'].get(name, 'not stated')})" for name, why in card["refused"].items()
  ]
  return PrepareMixResult(
    passages=str(root / "passages"),
    splits={part: str(path) for part, path in stores.items()},
    card=str(root / CARD),
    num_passages=card["corpus"]["passages"],
    num_questions=card["counts"],
    lines=lines + card["skipped_lines"],
  )
