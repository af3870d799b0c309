"""The whole recipe on an invented world, in minutes: makes the world and its pre-trained parts, then calls `run`."""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import nnx

from radit_jax.config import QuickstartConfig, RunConfig
from radit_jax.data.batches import text_to_batch
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import Decoder
from radit_jax.models.dual_encoder import DualEncoder, default_temperature
from radit_jax.models.encoder import TextEncoder
from radit_jax.models.pretrained import save_encoder, save_generator
from radit_jax.progress import Progress, silent
from radit_jax.quickstart import parts
from radit_jax.quickstart.world import make_world, write_world
from radit_jax.sharding import make_mesh
from radit_jax.training.loop import Batch, train
from radit_jax.training.step import PairBatch, pair_objective, ralt_objective
from radit_jax.verbs.run import RunResult, run
from radit_jax.verbs.tuning import write_first_batch
from radit_jax.verbs.workdir import Stages, open_workdir

#: Bands outside of which the comparison says nothing: a base that cannot read, or has nothing left to learn.
BASE_EXACT_MATCH = (0.15, 0.45)
BASE_RECALL_AT_1 = (0.30, 0.70)


def quickstart(config: QuickstartConfig, *, progress: Progress = silent) -> RunResult:
  """Makes an invented world, a generator and a retriever that know a little of it, and runs the recipe on them.

  Args:
    config: see :class:`radit_jax.config.QuickstartConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: ``workdir`` holds a run with other options.
  """
  root = pathlib.Path(config.workdir)
  options = run_config(config)
  open_workdir(options)  # another seed on this directory is refused before anything is made
  with Stages(root / "stages.json")("world and its parts"):
    world = make_world(config.seed)
    if not (root / "world").exists():
      write_world(world, root / "world")
    if not (root / "generator").exists():
      _make_generator(world, config.seed, root, progress)
    if not (root / "encoder").exists():
      _make_encoder(world, config.seed, root, progress)
  return run(options, judge=judge, title="RA-DIT quickstart: an invented world", progress=progress)


def run_config(config: QuickstartConfig) -> RunConfig:
  """What `radit run` is given: the same options a user would set for files of their own."""
  root = pathlib.Path(config.workdir)
  return RunConfig(
    workdir=str(root),
    corpus=str(root / "world" / "corpus.jsonl"),
    questions=str(root / "world" / "questions.jsonl"),
    generator=str(root / "generator"),
    encoder=str(root / "encoder"),
    teacher=config.teacher,
    controls=config.controls,
    seed=config.seed,
    **parts.RUN_OPTIONS,
  )


def judge(rows: dict[str, dict[str, Any]]) -> str | None:
  """Why the comparison is void, or None: base figures outside the bands that leave room and signal."""
  for name, column, (low, high) in (
    ("exact match", "exact_match", BASE_EXACT_MATCH),
    ("recall@1", "recall@1", BASE_RECALL_AT_1),
  ):
    value = rows["base"][column]
    if not low <= value <= high:
      return f"base {name} {value:.1%} is outside {low:.0%}-{high:.0%}: no room, or no signal, for the tunings to show"
  return None


def _make_generator(world: Any, seed: int, root: pathlib.Path, progress: Progress) -> None:
  tokenizer = parts.generator_tokenizer(world)
  loop = parts.GENERATOR_LOOP

  def batches(start: int) -> Iterator[Batch]:
    rows = parts.generator_batches(world, tokenizer, seed, batch_size=loop.batch_size)
    return _numbered("text", start, rows, loop.batch_size, lambda ids: text_to_batch(ids, parts.GENERATOR_TOKENS))

  write_first_batch(root / "pretrain_generator", lambda: next(batches(0)), tokenizer)
  trained = train(
    Decoder(parts.generator_config(len(tokenizer)), rngs=nnx.Rngs(seed)),
    ralt_objective,
    batches,
    total_steps=loop.steps or 1,
    loop=loop,
    optimizer=parts.GENERATOR_OPTIMIZER,
    mesh=make_mesh(),
    workdir=root / "pretrain_generator",
    stage="pre-train generator",
    progress=progress,
  )
  save_generator(trained.model, tokenizer, root / "generator")


def _make_encoder(world: Any, seed: int, root: pathlib.Path, progress: Progress) -> None:
  tokenizer = parts.encoder_tokenizer(world)
  loop = parts.ENCODER_LOOP
  config = parts.encoder_config(len(tokenizer))

  def pairs(ids: tuple[list[list[int]], list[list[int]]]) -> PairBatch:
    return PairBatch(*_padded(ids[0]), *_padded(ids[1]))

  def batches(start: int) -> Iterator[Batch]:
    rows = parts.encoder_batches(world, tokenizer, seed, batch_size=loop.batch_size)
    return _numbered("pair", start, rows, loop.batch_size, pairs)

  write_first_batch(root / "pretrain_encoder", lambda: next(batches(0)), tokenizer)
  # One encoder for both sides: questions and passages are in one language, and half the weights learn in half the time.
  shared = TextEncoder(Bert(config, rngs=nnx.Rngs(seed + 1)), parts.EMBEDDING)
  trained = train(
    shared,
    shared_pair_objective,
    batches,
    total_steps=loop.steps or 1,
    loop=loop,
    optimizer=parts.ENCODER_OPTIMIZER,
    mesh=make_mesh(),
    workdir=root / "pretrain_encoder",
    stage="warm up encoder",
    progress=progress,
  )
  save_encoder(trained.model, tokenizer, root / "encoder")


def shared_pair_objective(encoder: TextEncoder, batch: PairBatch) -> tuple[Any, Any]:
  """The contrastive warm start with one encoder on both sides."""
  return pair_objective(DualEncoder(encoder, encoder, default_temperature(normalize=encoder.config.normalize)), batch)


def _numbered(name: str, start: int, rows: Iterator[Any], size: int, make: Callable[[Any], Any]) -> Iterator[Batch]:
  """Batches from a start step on; what is skipped is drawn, so that the draws stay those of an uninterrupted run."""
  for step, ids in enumerate(itertools.islice(rows, start, None), start):
    yield tuple(f"{name}-{step * size + i}" for i in range(size)), make(ids)


def _padded(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.zeros((len(ids), parts.ENCODER_TOKENS), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(ids):
    tokens[i, : len(row)] = row
    mask[i, : len(row)] = True
  return tokens, mask
