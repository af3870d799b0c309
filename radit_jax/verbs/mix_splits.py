"""The splits that `radit prepare --mix` writes: rows of every set, and what share of the draws each has."""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from radit_jax import files
from radit_jax.config import MixConfig, PrepareMixConfig, SetConfig
from radit_jax.config.mix import PASSAGES
from radit_jax.data.completion import Spans, complete, draw_rows, passages_at, token_spans
from radit_jax.data.contamination import Contamination
from radit_jax.data.corpus import PassageStore
from radit_jax.data.mix import Taken, chance, read_set, shares, take
from radit_jax.data.mixture import Mixture
from radit_jax.data.policy import Skipped, Unused
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Example, Passage
from radit_jax.data.templates import instruct
from radit_jax.errors import UserError
from radit_jax.models.pretrained import load_tokenizer
from radit_jax.progress import Progress
from radit_jax.verbs.data_card import SetFigures

#: What a mix has sets for, and the directory of its split -> heading in the data card.
PARTS = {"generator": "Generator tuning", "retriever": "Retriever tuning"}
COMPLETION = "completion"
#: Name of the questions that no tuning sees, and the directory they lie in.
TEST, TEST_DIRECTORY = "test", "split"
Row = dict[str, Any]
#: Gives the rows of a set, and whether each is held out.
Rows = Callable[[], Iterator[tuple[Row, bool]]]
#: Tells of an answer the limit that it is above, or 0.
TooLong = Callable[[str], int]


#: Name of a set -> part of the mix -> what is taken of it.
Sets = dict[str, dict[str, Taken]]


def read_sets(
  config: PrepareMixConfig,
  mix: MixConfig,
  paths: Mapping[str, tuple[pathlib.Path, ...]],
  skipped: Skipped,
  contamination: Contamination,
  progress: Progress,
  too_long: TooLong,
) -> Sets:
  """Reads every set once.

  Args:
    config: of the verb.
    mix: sets that are there.
    paths: of their files.
    skipped: counts what is left out.
    contamination: counts evaluation questions that are trained on.
    progress: told of the sets.
    too_long: from :func:`limit_of_answers`.

  Raises:
    UserError: a bad record under "strict".
  """

  def fits(source: SetConfig, example: Example) -> bool:
    if not example.answers:
      raise UserError(f"set {source.name}: example {example.id!r} has no answer, which training needs")
    if limit := too_long(example.answers[0]):
      skipped.add(example.id, Unused(f"{source.name}: an answer of more than {limit} tokens"))
      return False
    if config.decontaminate != "report" and contamination.example(example):
      skipped.add(example.id, Unused(f"{source.name}: an evaluation question"))
      return False
    return True

  caps: dict[str, dict[str, int | None]] = {}
  for part, cap in (("generator", mix.cap), ("retriever", mix.retriever_cap)):
    for source in getattr(mix, part):
      caps.setdefault(source.name, {})[part] = source.cap or cap
  taken: Sets = {}
  wanted = [s for s in mix.sets() if s.read_as != PASSAGES]
  for done, source in enumerate(wanted, 1):
    examples = read_set(source, paths[source.name], on_error=config.on_error, skipped=skipped)
    fitting = filter(functools.partial(fits, source), examples)
    taken[source.name] = take(fitting, caps[source.name], dev_fraction=config.dev_fraction, seed=config.seed)
    if config.decontaminate == "report":
      for example in {e.id: e for uses in taken[source.name].values() for e in uses.train}.values():
        contamination.example(example)
    progress("sets", done, len(wanted), "sets")
  return taken


def limit_of_answers(config: PrepareMixConfig, prompt: Prompt | None) -> TooLong:
  """Gives the limit that an answer is above, 0 where it is not: a prompt's, else that of the options, if any."""
  limit = prompt.config.max_answer_tokens if prompt else config.max_answer_tokens
  if limit is None:
    return lambda answer: 0
  tokenizer = None if prompt else load_tokenizer(str(config.tokenizer))

  def too_long(answer: str) -> int:
    if tokenizer is not None:
      return limit if len(tokenizer(answer, add_special_tokens=False)["input_ids"]) > limit else 0
    assert prompt is not None
    try:
      prompt.check_answer(answer)
    except UserError:
      return limit
    return 0

  return too_long


def write_test(
  path: pathlib.Path,
  config: PrepareMixConfig,
  sets: Mapping[SetConfig, tuple[pathlib.Path, ...]],
  recipe: dict[str, Any],
  skipped: Skipped,
  too_long: TooLong,
) -> dict[str, int]:
  """Writes the questions of evaluation sets, to be answered and never trained on; returns how many there are.

  Args:
    path: directory of the split.
    config: of the verb.
    sets: those that are there, and their files.
    recipe: of the split.
    skipped: counts questions without an answer, and those whose answer has more tokens than asked for. What is wrong
      with a file was counted when it was read for what training shares with it.
    too_long: from :func:`limit_of_answers`.
  """
  count = 0
  with files.atomic_directory(path) as out:
    with open(out / f"{TEST}.jsonl", "w", encoding="utf-8") as file:
      for source, paths in sets.items():
        for example in read_set(source, paths, on_error=config.on_error, skipped=Skipped()):
          if not example.answers:
            skipped.add(example.id, Unused(f"{source.name}: a question without an answer"))
          elif limit := too_long(example.answers[0]):
            skipped.add(example.id, Unused(f"{source.name}: an answer of more than {limit} tokens"))
          else:
            row = _row(example, own_context=True)
            file.write(json.dumps({**row, "set": source.name}, ensure_ascii=False) + "\n")
            count += 1
    counts = {TEST: count}
    files.write_manifest(out, "split", {"recipe": recipe, "counts": counts})
  return counts


def _row(example: Example, *, own_context: bool) -> Row:
  row = {
    "id": example.id,
    "question": instruct(example),
    "answers": list(example.answers),
    "answer_texts": list(example.answer_texts),
    "query": example.query or example.instruction,
    "group": example.group or example.id,
    "category": example.category,
    "gold_rows": [],
  }
  if own_context and example.skips_retrieval and example.own_context:
    row["context"] = example.own_context.strip()
  return row


class SplitWriter:
  """Writes the split of each part of a mix.

  Args:
    config: of the verb.
    mix: sets that are there.
    taken: from :func:`read_sets`.
    store: passages of the corpus.
    recipe: of the splits.
    skipped: counts what is left out.
    contamination: counts passages that hold evaluation answers.
    too_long: from :func:`limit_of_answers`; completions may be, since a text has other tokens in a prompt than alone.
  """

  def __init__(
    self,
    config: PrepareMixConfig,
    mix: MixConfig,
    taken: Sets,
    store: PassageStore,
    recipe: dict[str, Any],
    skipped: Skipped,
    contamination: Contamination,
    too_long: TooLong,
  ):
    self._config, self._mix, self._taken = config, mix, taken
    self._store, self._recipe, self._skipped, self._contamination = store, recipe, skipped, contamination
    self._too_long = too_long

  def write(self, part: str, path: pathlib.Path) -> dict[str, Any]:
    """Writes the split of a part; returns what the data card says of it.

    Raises:
      UserError: no training or no dev examples.
    """
    sources = self._sources(part)
    figures = [SetFigures(name, available) for name, available, _ in sources]
    seen: set[bytes] = set()
    with files.atomic_directory(path) as out:
      with (
        open(out / "train.jsonl", "w", encoding="utf-8") as train,
        open(out / "dev.jsonl", "w", encoding="utf-8") as dev,
      ):
        for own, (_, _, rows) in zip(figures, sources, strict=True):
          for row, held_out in filter(self._clean, rows()):
            (dev if held_out else train).write(json.dumps({**row, "set": own.name}, ensure_ascii=False) + "\n")
            if held_out:
              own.dev += 1
            else:
              own.add(row, seen)
      counts = {"train": sum(f.train for f in figures), "dev": sum(f.dev for f in figures)}
      if not counts["train"] or not counts["dev"]:
        raise UserError(
          f"{part}: {counts['train']} training and {counts['dev']} dev examples, must be one at least; change "
          f"--dev-fraction {self._config.dev_fraction:g}, or bring more documents"
        )
      self._weigh(part, figures)
      trained = [f for f in figures if f.train]
      names, there, share = zip(*((f.name, f.train, f.share) for f in trained), strict=True)
      mixture = {"train": Mixture(names, there, share).to_manifest()}
      files.write_manifest(out, "split", {"recipe": self._recipe, "counts": counts, "mixture": mixture})
    return {"sets": [f.summary() for f in figures], "counts": counts}

  def _clean(self, made: tuple[Row, bool]) -> bool:
    """Whether a row may be trained on: passages that hold evaluation answers are counted, and left out if so asked."""
    row, held_out = made
    if held_out or row["category"] not in ("text", COMPLETION):
      return True
    text = row["answers"][0] if row["category"] == "text" else f"{row['question']}\n{row['answers'][0]}"
    if not self._contamination.passage(text) or self._config.decontaminate != "all":
      return True
    self._skipped.add(row["id"], Unused("a passage with the answer to an evaluation question"))
    return False

  def _sources(self, part: str) -> list[tuple[str, int, Rows]]:
    """Sets of a part in their order: name, training examples before any cap, and what gives the rows."""
    out: list[tuple[str, int, Rows]] = []
    for source in getattr(self._mix, part):
      if source.read_as == PASSAGES:
        out.append((source.name, len(self._store), functools.partial(self._texts, source)))
      else:
        taken = self._taken[source.name][part]
        out.append((source.name, taken.num_train, functools.partial(self._examples, taken, part)))
    if part == "retriever" and self._mix.completions:
      out.append((COMPLETION, len(self._store), self._completions))
    return out

  def _weigh(self, part: str, figures: Sequence[SetFigures]) -> None:
    """Gives each set its share of the draws: completions theirs, the others what these leave."""
    configs = {s.name: s for s in getattr(self._mix, part)}
    there = [f for f in figures if f.train and f.name in configs]
    completed = [f for f in figures if f.train and f.name not in configs]
    for f in completed:
      f.share = self._mix.completion_share if there else 1.0
    left = 1 - sum(f.share for f in completed)
    for f, share in zip(there, shares([configs[f.name] for f in there], [f.train for f in there]), strict=True):
      f.share = left * share

  def _examples(self, taken: Taken, part: str) -> Iterator[tuple[Row, bool]]:
    for example, held_out in itertools.chain(((e, False) for e in taken.train), ((e, True) for e in taken.dev)):
      yield _row(example, own_context=part == "generator"), held_out

  def _texts(self, source: SetConfig) -> Iterator[tuple[Row, bool]]:
    cap = source.cap or self._mix.cap or len(self._store)
    for _, passage in passages_at(self._store, draw_rows(len(self._store), cap, self._config.seed)):
      yield self._piece(f"{source.name}/{passage.id}", passage, "", passage.text, "text")

  def _completions(self) -> Iterator[tuple[Row, bool]]:
    mix, spans = self._mix, self._spans
    for number, passage in passages_at(self._store, draw_rows(len(self._store), mix.completions, self._config.seed)):
      made = complete(passage.text, spans(passage.text), mix.completion_tokens)
      if made is None:
        self._skipped.add(passage.id, Unused("a passage too short to be completed"))
        continue
      if limit := self._too_long(made[1]):
        self._skipped.add(passage.id, Unused(f"{COMPLETION}: an answer of more than {limit} tokens"))
        continue
      row, held_out = self._piece(f"{COMPLETION}/{passage.id}", passage, *made, COMPLETION)
      yield row | {"exclude_rows": [number]}, held_out

  @functools.cached_property
  def _spans(self) -> Spans:
    tokenizer = self._config.tokenizer
    return token_spans(None if tokenizer is None else load_tokenizer(tokenizer))

  def _piece(self, name: str, passage: Passage, given: str, asked: str, category: str) -> tuple[Row, bool]:
    document = str(passage.metadata.get("document", passage.id))
    row = {
      "id": name,
      "question": given,
      "answers": [asked],
      "answer_texts": [asked],
      "query": given,
      "group": document,
      "category": category,
      "gold_rows": [],
    }
    return row, chance(self._config.seed, f"document {document}") < self._config.dev_fraction
