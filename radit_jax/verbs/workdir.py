"""The directory of `radit run`: its stages, each a verb called with the run's options, and what they cost."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from radit_jax import files, hosts, runs
from radit_jax.config import (
  EmbeddingOptions,
  EvaluateConfig,
  IndexConfig,
  MixConfig,
  PrepareConfig,
  PrepareMixConfig,
  RetrieveConfig,
  RunConfig,
  ScoreConfig,
  TrainGeneratorConfig,
  TrainRetrieverConfig,
)
from radit_jax.data.batches import row_lengths
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.pretrained import check_vocabulary, load_encoder, load_generator, load_tokenizer
from radit_jax.progress import Progress
from radit_jax.sharding import make_mesh
from radit_jax.verbs import tuning
from radit_jax.verbs.evaluate import EvaluateResult, evaluate
from radit_jax.verbs.index import index
from radit_jax.verbs.mix_splits import PARTS, TEST, TEST_DIRECTORY
from radit_jax.verbs.prepare import prepare, read_split
from radit_jax.verbs.prepare_mix import EVALUATION, prepare_mix
from radit_jax.verbs.retrieve import RetrieveResult, retrieve
from radit_jax.verbs.score import score
from radit_jax.verbs.train_generator import TrainGeneratorResult, train_generator
from radit_jax.verbs.train_retriever import TrainRetrieverResult, train_retriever

T = TypeVar("T")


class Stages:
  """Seconds of each stage over all calls: what a killed call did counts, what a later one found finished does not.

  A call that refuses its input has done nothing, and leaves nothing here.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    stored = files.read_json(path) if path.exists() else {"seconds": {}, "finished": []}
    self.seconds: dict[str, float] = stored["seconds"]
    self._finished: list[str] = stored["finished"]

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    except BaseException as e:
      if not isinstance(e, UserError):
        self._add(name, start)
      raise
    if name not in self._finished:
      self._finished.append(name)
      self._add(name, start)

  def _add(self, name: str, start: float) -> None:
    self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)
    if hosts.is_first():
      files.write_json(self._path, {"seconds": self.seconds, "finished": self._finished})


def open_workdir(config: RunConfig) -> None:
  """Writes the run's ``run.json``, or checks that this call continues the run there.

  Raises:
    UserError: another verb or other options made the directory.
  """
  runs.open_run(config.workdir, "run", _recipe(config), config=config)


def _recipe(config: RunConfig) -> dict[str, Any]:
  wanted = runs.recipe(config, inputs={})
  # Where the files lie does not matter: each stage records the fingerprints of what it read.
  for name in ("corpus", "questions", "generator", "encoder", "passage_encoder", "mix", "data", "allow_missing"):
    wanted["options"].pop(name)
  if config.mix is None:
    for name in ("licence", "decontaminate"):
      wanted["options"].pop(name)
  return wanted


class Workdir:
  """Directory of a run: where each stage's files lie, and the configs that make them. One place, so all stages agree.

  Args:
    config: of the run.
    progress: passed to each verb.
    mix: what the config's ``mix`` names, which has a train and a dev split for each tuning; own questions share them.

  Attributes:
    root: the directory.
    stages: their seconds.
    num_test: questions of the table, known after :meth:`make`.
    left_out: what was left out of the data and why, for people, known after :meth:`make`.
  """

  def __init__(self, config: RunConfig, progress: Progress, mix: MixConfig | None = None):
    self.config, self.progress, self.mix = config, progress, mix
    self.root = pathlib.Path(config.workdir)
    self.stages = Stages(self.root / "stages.json")
    self.num_test = 0
    self.left_out: list[str] = []

  def make(self) -> None:
    """Makes and checks what the tunings read, and only then takes the directory: a refused call can be corrected.

    Raises:
      UserError: whatever is wrong with the input, or options that differ from those of the run that is here.
    """
    c = self.config
    runs.check_run(c.workdir, "run", _recipe(c))
    prompt = Prompt(load_tokenizer(c.generator), c.prompt)
    if not (self.root / runs.RUN).exists():
      self._check_models(prompt)
    with self.stages("prepare"):
      num_passages = self._prepare(prompt)
    if c.k > num_passages:
      raise UserError(f"k = {c.k} passages per question, {c.corpus} makes {num_passages}; lower --k")
    with self.stages("index"):
      self._call(index, self._index_config())
    with self.stages("retrieve"):
      for part, split in self._splits():
        self._retrieve(part, split, "base", c.encoder)
        # Finds an answer that is too long now, named, and not after hours of training.
        store = RetrievedStore(self._retrieved(part, split))
        row_lengths(store, PassageStore(self._path("passages")), prompt, k=1, with_passages=False)
    open_workdir(c)

  def _prepare(self, prompt: Prompt) -> int:
    """Makes passages and splits; returns how many passages there are."""
    if self.mix is None:
      prepared = self._call(functools.partial(prepare, prompt=prompt), self._prepare_config())
      self.num_test = prepared.num_questions[TEST]
      self.left_out = prepared.skipped_lines
      return prepared.num_passages
    mix, c = self.mix, self.config
    if c.tune != "generator" and not (mix.retriever or mix.completions):
      raise UserError(f"mix {c.mix}: has nothing for the retriever; give --tune generator, or add sets or completions")
    if not mix.evaluation:
      raise UserError(f"mix {c.mix}: has no evaluation sets, and the table is about their questions; add one")
    if mix.completions and mix.completion_tokens > (room := c.prompt.max_answer_tokens):
      raise UserError(
        f"mix {c.mix}: completions have {mix.completion_tokens} tokens to answer, prompt.max_answer_tokens is {room}; "
        "raise it, or lower the mix's completion_tokens"
      )
    mixed = self._call(functools.partial(prepare_mix, mix=mix, prompt=prompt), self._prepare_mix_config())
    self.num_test = mixed.num_questions.get(EVALUATION, {}).get(TEST, 0)
    self.left_out = mixed.lines
    if not self.num_test:
      names = ", ".join(s.name for s in mix.evaluation)
      raise UserError(
        f"{c.data}: no question of the mix's evaluation sets ({names}) is there to make the table of; "
        "`radit download NAME` brings one"
      )
    return mixed.num_passages

  def _splits(self) -> list[tuple[str, str]]:
    """Part of the mix ("" for own questions, which both tunings share, and for the table's) and split."""
    parts = [""] if self.mix is None else [part for part in PARTS if self.config.tune in ("both", part)]
    return [*((part, split) for part in parts for split in ("train", "dev")), ("", TEST)]

  def _check_models(self, prompt: Prompt) -> None:
    """What is damaged, too small, or cannot be adapted as asked is told now and not after hours of embedding."""
    c = self.config
    mesh = make_mesh(c.mesh)
    for options in (c.generator_tuning, c.retriever_tuning):
      tuning.check_batch(options.loop, mesh)
    for path in dict.fromkeys((c.generator, *([] if c.teacher in ("base", "tuned") else [c.teacher]))):
      generator = load_generator(path, mesh=mesh, abstract=True).config
      check_vocabulary(load_tokenizer(path), generator.vocab_size, path)
      prompt.check_positions(generator.max_positions)
      if path == c.generator:
        tuning.check_lora(generator, c.generator_tuning.lora)
    for path in dict.fromkeys((c.encoder, c.passage_encoder or c.encoder)):
      encoder = load_encoder(path, mesh=mesh, options=c.embedding, abstract=True)
      check_vocabulary(load_tokenizer(path), encoder.body.config.vocab_size, path)
      if path == c.encoder:
        tuning.check_lora(encoder.body.config, c.retriever_tuning.lora)

  def all_gold(self, split: str) -> bool:
    """Whether every question of a split names its gold passage; of a mix no example does."""
    return self.mix is None and all(q["gold_rows"] for q in read_split(self._questions("", split)))

  def retrieve_test(self, name: str, encoder: str) -> dict[int, float]:
    """Retrieves the test questions with one query encoder; returns recall by k."""
    return self._retrieve("", TEST, name, encoder)

  def _retrieve(self, part: str, split: str, name: str, encoder: str) -> dict[int, float]:
    config = self._retrieve_config(part, split, name, encoder)
    result = self._call(retrieve, config, derived=name != "base")
    assert isinstance(result, RetrieveResult)  # as it has an out
    return result.recall

  def train_generator(self, method: str) -> TrainGeneratorResult:
    """Tunes by RALT ("ralt"), or by plain instruction tuning ("it") for as many steps."""
    return self._call(train_generator, self._generator_config(method))

  def score(self, split: str, teacher: str) -> None:
    """Stores the teacher's scores of one split."""
    self._call(score, self._score_config(split, teacher), derived=self.config.teacher == "tuned")

  def train_retriever(self, name: str) -> TrainRetrieverResult:
    """Tunes by LSR ("lsr"), LSR with a shuffled teacher ("shuffled"), or the baseline ("contrastive")."""
    return self._call(train_retriever, self._retriever_config(name), derived=self.config.teacher == "tuned")

  def evaluate(self, name: str, generator: str, retriever: str, mode: str) -> EvaluateResult:
    """Measures one row of the table."""
    derived = generator != self.config.generator or retriever != "base"
    return self._call(evaluate, self._evaluate_config(name, generator, retriever, mode), derived=derived)

  def _path(self, *parts: str) -> str:
    return str(self.root.joinpath(*parts))

  def _questions(self, part: str, split: str) -> str:
    return self._path(part or TEST_DIRECTORY, f"{split}.jsonl")

  def _retrieved(self, part: str, split: str, name: str = "base") -> str:
    return self._path("retrieved", name, *([part] if part else []), split)

  def _part(self, name: str) -> str:
    return name if self.mix is not None else ""

  def _call(self, verb: Callable[..., T], config: Any, *, derived: bool = False) -> T:
    """Calls a verb. What an earlier state of a model tuned here went into is derived: it is removed and made anew."""
    try:
      return verb(config, progress=self.progress)
    except runs.StaleInputs:
      if not derived:
        raise
    place = pathlib.Path(config.workdir if hasattr(config, "workdir") else config.out)
    with hosts.one_writes() as mine:
      if mine:
        files.remove_directory(place) if place.is_dir() else place.unlink()
    return verb(config, progress=self.progress)

  def _cutting(self) -> dict[str, Any]:
    """Options of how a corpus is cut into passages."""
    c = self.config
    return {
      "max_passage_words": c.max_passage_words,
      "max_passage_characters": c.max_passage_characters,
      "max_passage_tokens": c.max_passage_tokens,
      "passage_encoder": (c.passage_encoder or c.encoder) if c.max_passage_tokens else None,
      "embedding": c.embedding if c.max_passage_tokens else EmbeddingOptions(),
      "processes": c.processes,
    }

  def _prepare_config(self) -> PrepareConfig:
    c = self.config
    return PrepareConfig(
      workdir=c.workdir,
      corpus=c.corpus,
      questions=str(c.questions),
      corpus_format=c.corpus_format,
      questions_format=c.questions_format,
      **self._cutting(),
      split_by=c.split_by,
      dev_fraction=c.dev_fraction,
      test_fraction=c.test_fraction,
      seed=c.seed,
      on_error=c.on_error,
    )

  def _prepare_mix_config(self) -> PrepareMixConfig:
    c = self.config
    assert c.mix is not None
    return PrepareMixConfig(
      workdir=c.workdir,
      mix=c.mix,
      data=c.data,
      corpus=c.corpus,
      corpus_format=c.corpus_format,
      **self._cutting(),
      tokenizer=c.generator,
      allow_missing=c.allow_missing,
      licence=c.licence,
      decontaminate=c.decontaminate,
      dev_fraction=c.dev_fraction,
      seed=c.seed,
      on_error=c.on_error,
    )

  def _index_config(self) -> IndexConfig:
    c = self.config
    return IndexConfig(
      passages=self._path("passages"),
      encoder=c.passage_encoder or c.encoder,
      embeddings=self._path("embeddings"),
      index=self._path("index"),
      backend=c.backend,
      milvus_uri=c.milvus_uri,
      batch_size=c.encode_batch_size,
      embedding=c.embedding,
      mesh=c.mesh,
    )

  def _retrieve_config(self, part: str, split: str, name: str, encoder: str) -> RetrieveConfig:
    c = self.config
    return RetrieveConfig(
      questions=self._questions(part, split),
      passages=self._path("passages"),
      index=self._path("index"),
      encoder=encoder,
      passage_encoder=c.passage_encoder,
      out=self._retrieved(part, split, name),
      k=c.k,
      limit={"train": c.train_questions, "dev": c.dev_questions, TEST: None}[split],
      batch_size=c.encode_batch_size,
      seed=c.seed,
      embedding=c.embedding,
      mesh=c.mesh,
    )

  def _generator_config(self, method: str) -> TrainGeneratorConfig:
    c = self.config
    return TrainGeneratorConfig(
      workdir=self._path("train_generator" if method == "ralt" else f"train_generator_{method}"),
      generator=c.generator,
      retrieved=self._retrieved(self._part("generator"), "train"),
      dev_retrieved=self._retrieved(self._part("generator"), "dev"),
      passages=self._path("passages"),
      method=method,  # type: ignore[arg-type]
      k=c.k_train,
      prompt=c.prompt,
      pack_tokens=c.pack_tokens,
      optimizer=c.generator_tuning.optimizer,
      loop=dataclasses.replace(c.generator_tuning.loop, seed=c.seed),
      lora=c.generator_tuning.lora,
      remat=c.generator_tuning.remat,
      redact=c.redact,
      dtype=c.dtype,
      mesh=c.mesh,
    )

  def _score_config(self, split: str, teacher: str) -> ScoreConfig:
    c = self.config
    return ScoreConfig(
      generator=teacher,
      retrieved=self._retrieved(self._part("retriever"), split),
      passages=self._path("passages"),
      out=self._path("scores", split),
      k=c.k,
      prompt=c.prompt,
      batch_size=c.score_batch_size,
      pack_tokens=c.pack_tokens,
      dtype=c.dtype,
      mesh=c.mesh,
    )

  def _retriever_config(self, name: str) -> TrainRetrieverConfig:
    c = self.config
    return TrainRetrieverConfig(
      workdir=self._path("train_retriever" if name == "lsr" else f"train_retriever_{name}"),
      encoder=c.encoder,
      retrieved=self._retrieved(self._part("retriever"), "train"),
      dev_retrieved=self._retrieved(self._part("retriever"), "dev"),
      index=self._path("index"),
      passages=self._path("passages"),
      passage_encoder=c.passage_encoder,
      scores=self._path("scores", "train"),
      dev_scores=self._path("scores", "dev"),
      loss="contrastive" if name == "contrastive" else "lsr",
      k=c.k,
      score=c.score,
      lm_temperature=c.lm_temperature,
      shuffle_teacher=name == "shuffled",
      optimizer=c.retriever_tuning.optimizer,
      loop=dataclasses.replace(c.retriever_tuning.loop, seed=c.seed),
      lora=c.retriever_tuning.lora,
      remat=c.retriever_tuning.remat,
      redact=c.redact,
      embedding=c.embedding,
      mesh=c.mesh,
    )

  def _evaluate_config(self, name: str, generator: str, retriever: str, mode: str) -> EvaluateConfig:
    c = self.config
    return EvaluateConfig(
      generator=generator,
      retrieved=self._retrieved("", TEST, retriever),
      passages=self._path("passages"),
      out=self._path("evaluation", f"{name}.json"),
      mode=mode,  # type: ignore[arg-type]
      k=c.k,
      limit=c.test_questions,
      prompt=c.prompt,
      batch_size=c.answer_batch_size,
      seed=c.seed,
      redact=c.redact,
      dtype=c.dtype,
      mesh=c.mesh,
    )
