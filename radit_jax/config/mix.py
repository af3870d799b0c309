"""A mix of data sets as a Python file holds it, and the options of `radit prepare --mix`."""

import dataclasses
import re
import typing
from collections.abc import Iterable
from typing import Literal

from radit_jax.config.shared import (
  CorpusFormat,
  EmbeddingOptions,
  OnError,
  QuestionFormat,
  at_least,
  corpus_limits,
  local_paths,
  one_of,
)
from radit_jax.errors import UserError

PASSAGES = "passages"
SetFormat = QuestionFormat | Literal["passages"]
LicenceLimit = Literal["any", "commercial"]
Decontaminate = Literal["report", "questions", "all"]


@dataclasses.dataclass(frozen=True)
class SetConfig:
  """A set of a mix.

  Attributes:
    name: unique in the mix; that of the set in `radit download --list`, where it is there.
    files: patterns below the data directory; what they find is read one behind the other. A folder is found too.
    format: how it is read; None for the format called as the set is. "passages" takes passages of the corpus as plain
      text, and needs no files.
    split: for formats that hold several splits in one place.
    weight: share of the draws; None shares with the others what is left, in proportion to the examples it gives.
    cap: examples at most; None for the mix's.
  """

  name: str
  files: tuple[str, ...] = ()
  format: SetFormat | None = None
  split: str | None = None
  weight: float | None = None
  cap: int | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
      raise UserError(f"SetConfig.name = {self.name!r}: must be letters, digits and _ . -")
    formats = (*typing.get_args(QuestionFormat), PASSAGES)
    if self.read_as not in formats:
      raise UserError(f"set {self.name}: format {self.read_as!r}, must be one of {', '.join(map(repr, formats))}")
    if not isinstance(self.files, tuple) or not all(isinstance(f, str) for f in self.files):
      raise UserError(f"set {self.name}: files = {self.files!r}, must be a tuple of texts, such as ('gsm8k/*.jsonl',)")
    if bool(self.files) == (self.read_as == PASSAGES):
      raise UserError(
        f"set {self.name}: files = {self.files!r}; plain text comes from the corpus and has none, other sets have some"
      )
    if any(f.startswith("/") or ".." in f.split("/") for f in self.files):
      raise UserError(f"set {self.name}: files = {self.files!r}, must lie below the data directory")
    if self.weight is not None and not 0 < self.weight <= 1:
      raise UserError(f"set {self.name}: weight = {self.weight}, must be above 0 and at most 1")
    at_least(self, "cap", 1)

  @property
  def read_as(self) -> str:
    """Name of the format."""
    return self.format or self.name


@dataclasses.dataclass(frozen=True)
class MixConfig:
  """What generator and retriever are tuned on. A mix file holds one as ``mix``.

  Attributes:
    generator: sets of generator tuning (the paper's D_L).
    retriever: sets of retriever tuning (its D_R) beside corpus completions. Own contexts are no passages there.
    cap: examples of a generator set at most, dev examples not counted; None for all.
    retriever_cap: of a retriever set.
    evaluation: sets that training is held against, see ``decontaminate`` of `radit prepare --mix`. Those that are not
      there are not looked at, and the data card says so.
    completions: pieces of the corpus that retriever tuning completes, at most; 0 for none.
    completion_share: of the draws of retriever tuning.
    completion_tokens: tokens given of a piece's beginning, and asked for of its end; of a piece with fewer than twice
      as many, each is a half.
  """

  generator: tuple[SetConfig, ...]
  retriever: tuple[SetConfig, ...] = ()
  evaluation: tuple[SetConfig, ...] = ()
  cap: int | None = 7500
  retriever_cap: int | None = None
  completions: int = 900_000
  completion_share: float = 0.95
  completion_tokens: int = 50

  def __post_init__(self) -> None:
    for name in ("cap", "retriever_cap", "completion_tokens"):
      at_least(self, name, 1)
    at_least(self, "completions", 0)
    if not 0 < self.completion_share <= 1:
      raise UserError(f"MixConfig.completion_share = {self.completion_share}: must be above 0 and at most 1")
    known: dict[str, SetConfig] = {}
    for part in ("generator", "retriever", "evaluation"):
      sets = getattr(self, part)
      if not isinstance(sets, tuple) or not all(isinstance(s, SetConfig) for s in sets):
        raise UserError(f"MixConfig.{part}: must be a tuple of SetConfig")
      names = [s.name for s in sets]
      if len(set(names)) < len(names):
        raise UserError(f"MixConfig.{part}: set {next(n for n in names if names.count(n) > 1)!r} is there twice")
      fixed = sum(s.weight or 0.0 for s in sets)
      if fixed > 1 + 1e-9:
        raise UserError(f"MixConfig.{part}: the weights given add up to {fixed:g}, more than 1")
      if fixed > 1 - 1e-9 and any(s.weight is None for s in sets):
        raise UserError(f"MixConfig.{part}: the weights given add up to {fixed:g} and leave nothing for the other sets")
      if part == "evaluation":
        continue
      for s in sets:
        same = known.setdefault(s.name, s)
        if (same.files, same.read_as, same.split) != (s.files, s.read_as, s.split):
          raise UserError(f"set {s.name!r} is read in two ways: {same} and {s}; give one of them another name")
    if not self.generator:
      raise UserError("MixConfig.generator is empty")
    if any(s.read_as == PASSAGES for s in self.retriever):
      raise UserError("MixConfig.retriever: plain text trains no retriever; `completions` are made of the corpus")
    if any(s.read_as == PASSAGES for s in self.evaluation):
      raise UserError("MixConfig.evaluation: plain text asks nothing")

  def sets(self) -> Iterable[SetConfig]:
    """Every set that is trained on, once."""
    return {s.name: s for s in (*self.generator, *self.retriever)}.values()


@dataclasses.dataclass(frozen=True)
class PrepareMixConfig:
  """Reads a corpus and the sets of a mix; writes the passage store, and splits for generator and retriever tuning.

  Attributes:
    workdir: directory the stores are written into: `passages/`, `generator/`, `retriever/` and the data card.
    mix: name of a mix that ships, or path of a Python file that holds one; it is run.
    data: directory in which each set lies in a folder, as `radit download` lays them out.
    corpus: file or folder of documents.
    corpus_format: as in `radit prepare`.
    max_passage_words: a longer section is split into passages of at most this many words.
    max_passage_characters: the limit in characters, in place of words.
    max_passage_tokens: the limit in tokens of the encoder, title and prompt included, in place of words.
    passage_encoder: Hugging Face directory of the passage encoder; only for max_passage_tokens.
    embedding: the encoder's prompt, where its files do not say it; only for max_passage_tokens.
    processes: that read the corpus; None takes one for each CPU.
    tokenizer: Hugging Face directory of the generator, whose tokens corpus completions and max_answer_tokens are
      counted in; None counts the words of completions.
    max_answer_tokens: examples with a longer answer are left out and counted; None keeps them, and training refuses an
      answer above its own prompt.max_answer_tokens.
    allow_missing: go on without sets whose files are not there; the data card names them.
    licence: "commercial" leaves out sets that may not be used commercially, or do not say so.
    decontaminate: what is done about evaluation questions in training: "report" counts them; "questions" leaves out
      training examples that ask the same, or share eight words in a row; "all" also plain text and completions that
      hold an evaluation answer.
    dev_fraction: share of the documents (of sets without any, of the questions) held out to pick checkpoints.
    seed: draw of splits, capped sets and completions.
    on_error: "strict" stops at the first bad record, "skip" counts and leaves out bad ones.
  """

  workdir: str
  mix: str
  data: str
  corpus: str
  corpus_format: CorpusFormat = "jsonl"
  max_passage_words: int = 100
  max_passage_characters: int | None = None
  max_passage_tokens: int | None = None
  passage_encoder: str | None = None
  embedding: EmbeddingOptions = EmbeddingOptions()
  processes: int | None = None
  tokenizer: str | None = None
  max_answer_tokens: int | None = None
  allow_missing: bool = False
  licence: LicenceLimit = "any"
  decontaminate: Decontaminate = "report"
  dev_fraction: float = 0.02
  seed: int = 0
  on_error: OnError = "strict"

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "max_answer_tokens", 1)
    one_of(self, "licence", LicenceLimit)
    one_of(self, "decontaminate", Decontaminate)
    corpus_limits(self)
    if (self.max_passage_tokens is None) != (self.passage_encoder is None):
      raise UserError(
        f"PrepareMixConfig: max_passage_tokens = {self.max_passage_tokens}, passage_encoder = "
        f"{self.passage_encoder!r}: tokens are those of an encoder, and nothing else here needs one"
      )
    if self.max_answer_tokens is not None and self.tokenizer is None:
      raise UserError(
        f"PrepareMixConfig: max_answer_tokens = {self.max_answer_tokens} without --tokenizer: whose tokens?"
      )
    if not 0 < self.dev_fraction < 1:
      raise UserError(f"PrepareMixConfig.dev_fraction = {self.dev_fraction}: must be between 0 and 1")
