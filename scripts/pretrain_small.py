"""Pre-trains a small generator on the paragraphs of the training articles of a prepared directory.

A stand-in for a downloaded language model: it has read the training articles and nothing else, and reads a
little, because its texts sometimes repeat a sentence, or ask for a phrase left out of one. It never sees a
question or an answer of the data set, nor any article of the dev and test splits.

    radit prepare --workdir runs/squad --corpus dev-v1.1.json --questions dev-v1.1.json --corpus-format squad \\
      --questions-format squad
    python scripts/pretrain_small.py --workdir runs/squad --out runs/squad-generator
"""

import dataclasses
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator

import numpy as np
import tyro
from flax import nnx

from radit_jax.config import LoopConfig, OptimizerConfig
from radit_jax.data.batches import text_to_batch
from radit_jax.data.corpus import PassageStore
from radit_jax.display import Display, quiet_libraries
from radit_jax.errors import UserError
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.pretrained import save_generator
from radit_jax.process import keep_heap
from radit_jax.quickstart.parts import train_tokenizer
from radit_jax.sharding import make_mesh
from radit_jax.training.loop import Batch, train
from radit_jax.training.step import ralt_objective
from radit_jax.verbs.prepare import read_split
from radit_jax.verbs.tuning import write_first_batch


@dataclasses.dataclass(frozen=True)
class Config:
  """Pre-trains a small generator on the training articles.

  Attributes:
    workdir: directory that `radit prepare` made.
    out: Hugging Face directory to write; the run itself lies in `<out>.run`.
    vocab_size: of the byte-level BPE trained on the same text.
    width: model width D.
    layers: decoder layers.
    max_tokens: row length.
    steps: optimizer steps.
    batch_size: rows per step.
    peak_lr: learning rate after the warm-up.
    seed: of the weights and the texts.
  """

  workdir: str
  out: str
  vocab_size: int = 6000
  width: int = 192
  layers: int = 3
  max_tokens: int = 256
  steps: int = 700
  batch_size: int = 16
  peak_lr: float = 2e-3
  seed: int = 0


def sentences(text: str) -> list[str]:
  """Sentences of a paragraph, by their full stops."""
  return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])", text) if s]


def text_of(passage: str, rng: np.random.Generator) -> str:
  """One training text: the passage alone, with a sentence said again, or with a phrase asked for."""
  kind = rng.random()
  if kind < 0.25:
    return passage
  sentence = str(rng.choice(np.array(sentences(passage), dtype=object)))
  words = sentence.split()
  if kind < 0.45 or len(words) < 6:
    return f"{passage}\n\n{sentence}"
  length = int(rng.integers(1, 4))
  start = int(rng.integers(1, len(words) - length))
  phrase = " ".join(words[start : start + length]).strip(".,;:()\"'")
  around = [*words[max(0, start - 8) : start], "what", *words[start + length : start + length + 8]]
  near = " ".join(around).strip(".,;:")
  return f"Background: {passage}\n\nQ: {near}?\nA: {phrase}"


def main(config: Config) -> None:
  """Makes the directory."""
  store = PassageStore(pathlib.Path(config.workdir) / "passages")
  questions = read_split(f"{config.workdir}/split/train.jsonl")
  gold = store.many(sorted({row for q in questions for row in q["gold_rows"]}))
  documents = dict.fromkeys(str(p.metadata.get("document", p.id)) for p in gold)
  texts = store.texts(row for document in documents for row in store.rows_of_document(document))
  if not texts:
    raise UserError(f"{config.workdir}: no training question names its passage")
  tokenizer = train_tokenizer([*texts, "Background: Q: A: Question: Answer: what?"], vocab_size=config.vocab_size)
  llama = DecoderConfig(
    vocab_size=len(tokenizer),
    hidden_size=config.width,
    intermediate_size=3 * config.width,
    num_layers=config.layers,
    num_heads=config.width // 64,
    num_kv_heads=config.width // 64,
    head_dim=64,
    tie_word_embeddings=True,
    max_positions=1024,
  )
  generator = Decoder(llama, rngs=nnx.Rngs(config.seed))
  ends = [tokenizer.bos_token_id], [tokenizer.eos_token_id]

  def batches(start: int) -> Iterator[Batch]:
    for step in itertools.count(start):
      rng = np.random.default_rng((config.seed, step))
      drawn = rng.integers(len(texts), size=config.batch_size)
      documents = [text_of(texts[i], rng) for i in drawn]
      ids = tokenizer(documents, add_special_tokens=False, split_special_tokens=True)["input_ids"]
      rows = [(ends[0] + row + ends[1])[-config.max_tokens :] for row in ids]
      yield tuple(f"text-{i}" for i in drawn), text_to_batch(rows, config.max_tokens)

  write_first_batch(f"{config.out}.run", lambda: next(batches(0)), tokenizer)
  with Display() as progress:
    trained = train(
      generator,
      ralt_objective,
      batches,
      total_steps=config.steps,
      loop=LoopConfig(steps=config.steps, batch_size=config.batch_size, evaluate_every=200, seed=config.seed),
      optimizer=OptimizerConfig(peak_lr=config.peak_lr, floor_lr=config.peak_lr / 10, warmup_steps=50),
      mesh=make_mesh(),
      workdir=f"{config.out}.run",
      stage="pre-train",
      progress=progress,
    )
  save_generator(trained.model, tokenizer, config.out)
  print(f"{len(texts)} passages of {len(documents)} paragraphs, {trained.steps} steps: {config.out}")


if __name__ == "__main__":
  keep_heap()
  quiet_libraries()
  try:
    main(tyro.cli(Config))
  except UserError as e:
    sys.exit(f"error: {e}")
