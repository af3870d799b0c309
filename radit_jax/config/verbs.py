"""Options of the other verbs: preparing and fetching data, models in and out, looking at what is there."""

import dataclasses
from typing import Literal

from radit_jax.config.shared import (
  CorpusFormat,
  EmbeddingOptions,
  MeshConfig,
  OnError,
  PromptConfig,
  QuestionFormat,
  TargetScore,
  Verify,
  above,
  at_least,
  corpus_limits,
  local_paths,
  one_of,
)
from radit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """Reads a corpus and questions; writes the passage store and the split, which later runs keep.

  Attributes:
    workdir: directory the stores are written into.
    corpus: file or folder of documents.
    questions: file of questions with answers, or a folder of such files; None makes the passage store alone, to be
      searched with questions that nothing is trained on.
    corpus_format: "jsonl" (id, text, maybe title, section, metadata), "beir" (a folder with corpus.jsonl), "dpr"
      (psgs_w100.tsv), "kilt" (its knowledge source), "squad", "folder" (texts, Markdown, HTML; PDF and Office files
      with the extra "office"), or "tfds" (a folder that TFDS prepared, such as Wikipedia). gzip, bzip2 and Zstandard
      are read as what they hold.
    questions_format: the data set whose original files these are, or the project's own `jsonl`; docs/data.md says what
      each reads.
    max_passage_words: a longer section is split into passages of at most this many words; a Chinese or Japanese
      character counts as a word, and so do four Thai, Lao, Burmese or Khmer ones.
    max_passage_characters: the limit in characters, in place of words.
    max_passage_tokens: the limit in tokens of the encoder, title and prompt included, in place of words.
    passage_encoder: Hugging Face directory of the passage encoder; only for max_passage_tokens.
    embedding: the encoder's prompt, where its files do not say it; only for max_passage_tokens.
    processes: that read the corpus; None takes one for each CPU.
    split_by: what must not be shared between the splits: "auto" (the question's `group` field, else its gold
      document's title, else its id) or the name of a metadata field.
    dev_fraction: share of the groups held out to pick checkpoints.
    test_fraction: share of the groups held out for the table.
    seed: draw of the split.
    on_error: "strict" stops at the first bad line, "skip" counts and leaves out bad lines.
  """

  workdir: str
  corpus: str
  questions: str | None = None
  corpus_format: CorpusFormat = "jsonl"
  questions_format: QuestionFormat = "jsonl"
  max_passage_words: int = 100
  max_passage_characters: int | None = None
  max_passage_tokens: int | None = None
  passage_encoder: str | None = None
  embedding: EmbeddingOptions = EmbeddingOptions()
  processes: int | None = None
  split_by: str = "auto"
  dev_fraction: float = 0.1
  test_fraction: float = 0.2
  seed: int = 0
  on_error: OnError = "strict"

  def __post_init__(self) -> None:
    local_paths(self)
    corpus_limits(self)
    if (self.max_passage_tokens is None) != (self.passage_encoder is None):
      raise UserError(
        f"PrepareConfig: max_passage_tokens = {self.max_passage_tokens}, passage_encoder = {self.passage_encoder!r}: "
        "tokens are those of an encoder, and nothing else here needs one"
      )
    for name in ("dev_fraction", "test_fraction"):
      if not 0 < getattr(self, name) < 1:
        raise UserError(f"PrepareConfig.{name} = {getattr(self, name)}: must be between 0 and 1")
    if self.dev_fraction + self.test_fraction >= 1:
      raise UserError(
        f"PrepareConfig: dev_fraction {self.dev_fraction} + test_fraction {self.test_fraction} leave no training data"
      )


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """Writes what a run tuned as directories to publish and to serve, with model card, recipe and licences.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    out: directory to make; the models are `generator/` and `query_encoder/` in it.
    dtype: type of the weights in the files; "keep" for the one they were trained in.
    data_licence: licence of the training data, for the model card.
  """

  run: str
  out: str
  dtype: Literal["keep", "float32", "bfloat16"] = "keep"
  data_licence: str = "not stated"

  def __post_init__(self) -> None:
    local_paths(self, "out")


@dataclasses.dataclass(frozen=True)
class InspectConfig:
  """Shows what the model really sees.

  Attributes:
    what: "batch" (the first training batch), "example" (one example's rows) or "ranking" (its passages with score,
      p_R, p_LSR and log-likelihood).
    retrieved: retrieved-example store.
    passages: passage store.
    generator: Hugging Face directory whose tokenizer (and for "ranking" without scores, weights) are used.
    scores: score store; None computes the shown example's scores with the generator.
    example: id of the example; None takes the first.
    k: passages shown.
    batch_size: examples of the batch.
    lm_temperature: the τ of eq. 4.
    score: as in `train-retriever`.
    prompt: how rows are rendered.
    mesh: devices, where "ranking" computes scores.
    seed: draw of the prompt markers and of the batch.
    json: print JSON in place of text.
  """

  what: Literal["batch", "example", "ranking"]
  retrieved: str
  passages: str
  generator: str
  scores: str | None = None
  example: str | None = None
  k: int = 3
  batch_size: int = 4
  lm_temperature: float = 0.01
  score: TargetScore = "token_prob"
  prompt: PromptConfig = PromptConfig()
  mesh: MeshConfig = MeshConfig()
  seed: int = 0
  json: bool = False

  def __post_init__(self) -> None:
    local_paths(self)
    at_least(self, "k", 1)
    at_least(self, "batch_size", 1)
    above(self, "lm_temperature", 0)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
  """A model whose weights are pickles (`pytorch_model.bin`) becomes a directory with safetensors.

  Attributes:
    source: Hugging Face directory, or owner/name (or owner/name@revision) on the Hub.
    out: directory to be made; it must not exist.
  """

  source: str
  out: str

  def __post_init__(self) -> None:
    local_paths(self)


@dataclasses.dataclass(frozen=True)
class DownloadConfig:
  """Downloads data sets from where their authors keep them, checked and resumable, or lists them.

  Attributes:
    sets: names of sets, as --list shows them.
    data: directory that gets a folder for each set.
    mix: the sets that this mix trains on too: name of one that ships, or path of a Python file that holds one.
    licence: "commercial" leaves out sets of which no licence is stated that allows commercial use, and says which.
    list: show what is needed, what is there and what must be fetched by hand, and download nothing.
  """

  sets: tuple[str, ...] = ()
  data: str = "data"
  mix: str | None = None
  licence: Literal["any", "commercial"] = "any"
  list: bool = False

  def __post_init__(self) -> None:
    local_paths(self)


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
  """Lists the checkpoints of a run, with sizes and dev losses, and whether each is intact.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    verify: "full" checks the SHA-256 of every file, "sizes" that each is there with its size.
  """

  run: str
  verify: Verify = "full"

  def __post_init__(self) -> None:
    local_paths(self)
    one_of(self, "verify", Verify)


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
  """Looks a run over: damaged files, a machine that computes wrongly, and the likely cause of a flat loss.

  Attributes:
    run: directory of `radit run`, `radit quickstart`, `radit train-generator` or `radit train-retriever`.
    rerun: run steps again from a checkpoint, twice, beside the run's directory; needs the inputs and the devices of the
      run, and the time that its models take to load.
  """

  run: str
  rerun: bool = True

  def __post_init__(self) -> None:
    local_paths(self)
