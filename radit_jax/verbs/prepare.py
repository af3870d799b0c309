"""`radit prepare`: a corpus and questions become a passage store and a split that is made once and kept."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from radit_jax import files, hosts, runs
from radit_jax.config import PrepareConfig, PrepareMixConfig
from radit_jax.data.corpus import Limit, PassageStore
from radit_jax.data.corpus.build import Build
from radit_jax.data.corpus.chunks import TokenCount
from radit_jax.data.corpus.formats import files_of
from radit_jax.data.corpus.scan import Wanted
from radit_jax.data.corpus.serialized import digest
from radit_jax.data.policy import BadRecord, Skipped
from radit_jax.data.prompts import Prompt
from radit_jax.data.records import MAX_LINE_BYTES, read_json
from radit_jax.data.sources import Example, read_examples
from radit_jax.data.templates import instruct
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import has_answer
from radit_jax.models.pretrained import fingerprint, load_encoder, load_tokenizer
from radit_jax.progress import Progress, silent

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class PrepareResult:
  """Where the stores lie, and what was counted.

  Attributes:
    passages: passage store.
    split: directory of ``train.jsonl``, ``dev.jsonl``, ``test.jsonl``.
    num_documents: documents read.
    num_passages: passages they were split into.
    num_duplicates: passages left out, because one with the same title, section and text stood before.
    num_questions: questions of each split.
    num_groups: groups of each split; no group is in two.
    num_gold: questions whose gold passage is known.
    num_foreign_contexts: questions whose `context` is the text of no document, so that it is not used.
    skipped: records left out, bad ones (``on_error="skip"``) and those that make no question by their format.
    skipped_lines: their reasons with counts and first places, for the command line.
  """

  passages: str
  split: str
  num_documents: int
  num_passages: int
  num_duplicates: int
  num_questions: dict[str, int]
  num_groups: dict[str, int]
  num_gold: int
  num_foreign_contexts: int
  skipped: int
  skipped_lines: list[str] = dataclasses.field(default_factory=list)

  def summary(self) -> str:
    """A few lines for the command line."""
    counts = ", ".join(f"{name} {n} ({self.num_groups[name]} groups)" for name, n in self.num_questions.items())
    lines = [f"{self.num_passages} passages of {self.num_documents} documents: {self.passages}"]
    if self.num_duplicates:
      lines.append(f"{self.num_duplicates} more passages stood before, word by word: left out")
    if any(self.num_questions.values()):
      lines.append(f"questions: {counts}; {self.num_gold} with a gold passage: {self.split}")
    if self.num_foreign_contexts:
      lines.append(f"{self.num_foreign_contexts} questions carry a context that is the text of no document: not used")
    lines += self.skipped_lines
    return "\n".join(lines)


def prepare(config: PrepareConfig, *, prompt: Prompt | None = None, progress: Progress = silent) -> PrepareResult:
  """Reads both files, splits documents into passages, and splits the questions by group.

  The corpus is read a block at a time, by several processes. A call that was killed is continued by the same one.

  Args:
    config: see :class:`radit_jax.config.PrepareConfig`.
    prompt: of the generator: a question whose answer it has no room for is a bad record.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a missing, empty or malformed file (line named), duplicate ids, too few groups to split.
  """
  root = pathlib.Path(config.workdir)
  passages, split = root / "passages", root / "split"
  sources = corpus_sources(config)
  asked = "none" if config.questions is None else fingerprint_path(config.questions)
  inputs = {"corpus": fingerprint_sources(sources), "questions": asked}
  if config.passage_encoder is not None:
    inputs["passage_encoder"] = fingerprint(config.passage_encoder, config.embedding)
  if prompt is not None and config.on_error == "skip":  # else it refuses, and changes nothing of what is made
    inputs["prompt"] = prompt.hash
  wanted = runs.recipe(config, inputs=inputs)
  # Both are looked at, as one that is something else is refused before the corpus is read.
  if all([runs.finished(passages, "passages", wanted), runs.finished(split, "split", wanted)]):
    return _prepared(root)
  with hosts.one_writes() as mine:
    if mine:
      _prepare(config, wanted, sources, prompt, progress)
  return _prepared(root)


def _prepared(root: pathlib.Path) -> PrepareResult:
  counts = files.read_manifest(root / "split", "split")["counts"]
  return PrepareResult(str(root / "passages"), str(root / "split"), **counts)


def _prepare(
  config: PrepareConfig,
  wanted: dict[str, Any],
  sources: list[dict[str, Any]],
  prompt: Prompt | None,
  progress: Progress,
) -> None:
  passages, split = pathlib.Path(config.workdir) / "passages", pathlib.Path(config.workdir) / "split"
  skipped = Skipped()

  def check(example: Example) -> None:
    if prompt is None or not example.answers:
      return
    try:
      prompt.check_answer(example.answers[0])
    except UserError as e:
      raise BadRecord(str(e), reason=f"an answer of more than {prompt.config.max_answer_tokens} tokens") from None

  examples: list[Example] = []
  if config.questions is not None:
    found = read_examples(
      config.questions, format=config.questions_format, on_error=config.on_error, skipped=skipped, check=check
    )
    with _squad_named(config.questions, config.questions_format, "--questions-format"):
      examples += found
  build = Build(
    passages,
    config.corpus,
    format=config.corpus_format,
    limit=limit_of(config),
    recipe=wanted,
    on_error=config.on_error,
    wanted=Wanted(
      frozenset(name for e in examples for name in e.gold_passage_ids),
      frozenset(_digest(e.own_context) for e in examples if e.own_context),
    ),
    processes=config.processes,
  )
  try:
    with _squad_named(config.corpus, config.corpus_format, "--corpus-format"):
      build.scan(progress)
    # Everything that can be wrong with the questions is found before anything is written.
    gold_documents = [_gold_documents(e, build, str(config.questions)) for e in examples]
    groups = [_group(e, config.split_by, gold, build.titles) for e, gold in zip(examples, gold_documents, strict=True)]
    for example in examples:
      if not example.answers:
        raise UserError(f"{config.questions}: question {example.id!r} has no answer, which training and the table need")
    assigned = _assign(groups, config) if examples else {}
    made = build.write({"recipe": wanted, "sources": sources}, progress)
  except UserError:
    build.discard()
    raise
  store = PassageStore(passages)
  rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
  num_gold = 0
  for example, group, in_documents in zip(examples, groups, gold_documents, strict=True):
    gold = _gold_rows(example, in_documents, store)
    num_gold += bool(gold)
    rows[assigned[group]].append(
      {
        "id": example.id,
        "question": instruct(example),
        "answers": list(example.answers),
        "answer_texts": list(example.answer_texts),
        "query": example.query or example.instruction,
        "group": group,
        "category": example.category,
        "gold_rows": gold,
      }
    )
  foreign = (e.own_context and _digest(e.own_context).hex() not in build.texts for e in examples)
  counts: dict[str, Any] = {
    "num_documents": made.documents,
    "num_passages": made.passages,
    "num_duplicates": made.duplicates,
    "num_questions": {name: len(r) for name, r in rows.items()},
    "num_groups": {name: sum(s == name for s in assigned.values()) for name in SPLITS},
    "num_gold": num_gold,
    "num_foreign_contexts": sum(map(bool, foreign)),
    "skipped": build.skipped.total() + skipped.total(),
    "skipped_lines": build.skipped.lines() + skipped.lines(),
  }
  with files.atomic_directory(split) as out:
    for name, lines in rows.items():
      text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
      (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files.write_manifest(out, "split", {"recipe": wanted, "counts": counts})


@contextlib.contextmanager
def _squad_named(path: str, format: str, option: str) -> Iterator[None]:
  """Tells of a file that cannot be read as lines of JSON where it is one of SQuAD's as a whole."""
  try:
    yield
  except UserError:
    file = pathlib.Path(path)
    if format != "jsonl" or not file.is_file() or file.stat().st_size > MAX_LINE_BYTES:
      raise
    whole: Any = None
    with contextlib.suppress(UserError):
      whole = read_json(file)
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
      raise
    raise UserError(
      f'{path}: one JSON object with "data", as a SQuAD file is, and not one on each line; {option} squad reads it'
    ) from None


def fingerprint_path(path: str) -> str:
  """Of a file, or of a folder of files."""
  p = pathlib.Path(path)
  if p.is_dir():
    return files.fingerprint_directory(p)
  if not p.is_file():
    raise UserError(f"{path}: no such file")
  return files.sha256_file(p)


def corpus_sources(config: PrepareConfig | PrepareMixConfig) -> list[dict[str, Any]]:
  """Every file of the corpus, by its place in the corpus, with its hash."""
  root = pathlib.Path(config.corpus)
  return [
    {
      "name": p.relative_to(root).as_posix() if p != root else p.name,
      "bytes": p.stat().st_size,
      "sha256": files.sha256_file(p),
    }
    for p in files_of(root, config.corpus_format)
  ]


def fingerprint_sources(sources: list[dict[str, Any]]) -> str:
  """Of one file its own hash, whatever it is called."""
  if len(sources) == 1:
    return str(sources[0]["sha256"])
  listed = "".join(f"{source['name']}\0{source['sha256']}\n" for source in sources)
  return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


def _digest(text: str) -> bytes:
  return digest(text.strip().encode())


def limit_of(config: PrepareConfig | PrepareMixConfig) -> Limit:
  """How large a passage may be.

  Raises:
    UserError: more tokens than the encoder reads.
  """
  if config.max_passage_characters is not None:
    return Limit(config.max_passage_characters, "characters")
  if config.max_passage_tokens is None or config.passage_encoder is None:
    return Limit(config.max_passage_words)
  encoder = load_encoder(config.passage_encoder, options=config.embedding, abstract=True).config
  if config.max_passage_tokens > encoder.max_tokens:
    raise UserError(
      f"max_passage_tokens = {config.max_passage_tokens}: {config.passage_encoder} reads {encoder.max_tokens} at most"
    )
  count = TokenCount(load_tokenizer(config.passage_encoder), encoder.passage_prompt)
  return Limit(config.max_passage_tokens, "tokens", count)


def _gold_documents(example: Example, build: Build, path: str) -> tuple[str, ...]:
  """Documents that hold the answer: those the question names, and the one whose text it carries."""
  documents = list(example.gold_passage_ids)
  if example.own_context and (key := _digest(example.own_context).hex()) in build.texts:
    documents.append(build.texts[key])
  for document in documents:
    if document not in build.titles:
      raise UserError(f"{path}: question {example.id} names passage {document!r}, which the corpus does not hold")
  return tuple(dict.fromkeys(documents))


def _group(example: Example, split_by: str, gold: tuple[str, ...], titles: dict[str, str]) -> str:
  """What must not be shared between the splits."""
  if split_by != "auto":
    if split_by not in example.metadata:
      raise UserError(f"question {example.id}: no metadata field {split_by!r} to split by")
    return str(example.metadata[split_by])
  if example.group is not None:
    return example.group
  return titles[gold[0]] or gold[0] if gold else example.id


def _assign(groups: list[str], config: PrepareConfig) -> dict[str, str]:
  """Group -> split, by a seeded shuffle of the groups, sized by questions."""
  sizes = collections.Counter(groups)
  if len(sizes) < len(SPLITS):
    raise UserError(
      f"{config.questions}: {len(sizes)} group(s) of questions, but train, dev and test need one each; "
      "set --split-by to a finer metadata field"
    )
  order = sorted(sizes)
  np.random.default_rng(config.seed).shuffle(order)
  out: dict[str, str] = {}
  remaining = iter(order)
  for name, fraction in (("test", config.test_fraction), ("dev", config.dev_fraction)):
    taken = 0
    while taken < fraction * len(groups) and len(sizes) - len(out) > (2 if name == "test" else 1):
      group = next(remaining)
      out[group] = name
      taken += sizes[group]
  return out | dict.fromkeys(remaining, "train")


def _gold_rows(example: Example, documents: tuple[str, ...], store: PassageStore) -> list[int]:
  """Rows of the gold passages; of a document in several pieces, those that hold an answer, else all."""
  rows: list[int] = []
  for document in documents:
    pieces = store.rows_of_document(document)
    if len(pieces) > 1:
      holding = [r for r in pieces if has_answer(store[r].text, example.answer_texts)]
      pieces = tuple(holding or pieces)
    rows += pieces
  return rows


def read_split(path: str) -> list[dict[str, Any]]:
  """Questions of one split file, as `prepare` wrote them.

  Raises:
    UserError: the file is missing or empty, or is not one that `prepare` wrote into that directory.
  """
  p = pathlib.Path(path)
  if not p.is_file():
    raise UserError(f"{p}: no such file; `radit prepare` makes it")
  if not (p.parent / files.MANIFEST).exists():
    raise UserError(f"{p}: lies in no split; `radit prepare` makes one, with {', '.join(f'{n}.jsonl' for n in SPLITS)}")
  if p.name not in files.read_manifest(p.parent, "split", verify="full")["files"]:
    raise UserError(f"{p}: not a file of questions; `radit prepare` wrote {', '.join(f'{n}.jsonl' for n in SPLITS)}")
  # Not splitlines: a question may hold a line separator of Unicode, which JSON does not escape.
  lines = [json.loads(line) for line in p.read_text(encoding="utf-8").split("\n") if line]
  if not lines:
    raise UserError(f"{p}: no questions in this split")
  return lines
