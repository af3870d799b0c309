"""What the benchmarks run on: SQuAD questions with five passages each, and a Llama-shaped generator of any size."""

import dataclasses
import os
import pathlib
import platform
import tempfile
from typing import Any

import numpy as np
import tyro
from flax import nnx

from radit_jax.config import MeshConfig, PromptConfig
from radit_jax.data.batches import RowLengths, row_lengths
from radit_jax.data.corpus import PassageStore, read_corpus, write_passages
from radit_jax.data.examples import RetrievedExample, RetrievedStore, write_retrieved
from radit_jax.data.plan import sample
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import read_examples
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.pretrained import save_generator
from radit_jax.quickstart.parts import train_tokenizer
from radit_jax.sharding import make_mesh

#: Merges learnt from SQuAD itself up to this size cut its words about as finely as Llama's 32,000 learnt elsewhere do.
TOKENIZER_WORDS = 8000


@dataclasses.dataclass(frozen=True)
class Shape:
  """A Llama-shaped generator: grouped queries, an output head of its own, float32.

  Attributes:
    width: D.
    layers: decoder layers.
    vocabulary: rows of the embedding and columns of the head.
    head_dim: width of a head; there are width / head_dim query heads, and half as many for keys and values.
  """

  width: int = 512
  layers: int = 8
  vocabulary: int = 32_000
  head_dim: int = 64

  def config(self, max_positions: int = 2048) -> DecoderConfig:
    """The library's description of it."""
    heads = self.width // self.head_dim
    return DecoderConfig(
      vocab_size=self.vocabulary,
      hidden_size=self.width,
      intermediate_size=-(-8 * self.width // 3 // 64) * 64,  # Llama's two thirds of four, in whole blocks
      num_layers=self.layers,
      num_heads=heads,
      num_kv_heads=max(1, heads // 2),
      head_dim=self.head_dim,
      max_positions=max_positions,
    )

  def decoder(self, seed: int = 0) -> Decoder:
    """It, with random weights."""
    return Decoder(self.config(), rngs=nnx.Rngs(seed))


@dataclasses.dataclass(frozen=True)
class Workload:
  """Questions with their passages, ready for the library's plans.

  Attributes:
    retrieved: the questions, in the order of the SQuAD file.
    passages: every paragraph of it.
    prompt: renders them.
    tokenizer: of the generator.
    lengths: of every prompt.
    k: passages of a question.
  """

  retrieved: RetrievedStore
  passages: PassageStore
  prompt: Prompt
  tokenizer: Any
  lengths: RowLengths
  k: int


def squad_workload(
  path: str | os.PathLike[str],
  root: pathlib.Path,
  *,
  questions: int | None,
  k: int,
  vocabulary: int,
  seed: int = 0,
  together: bool = False,
) -> Workload:
  """Makes the stores that `prepare` and `retrieve` would make, without a retriever.

  A question's passages are its own paragraph and those behind it in its article, k in all: what a retriever finds
  changes no speed, how long passages are does.

  Args:
    path: a file of SQuAD 1.1.
    root: an empty directory for the stores.
    questions: drawn from the file with ``seed``, kept in its order; None for all.
    k: passages per question.
    vocabulary: most tokens the tokenizer may have.
    seed: of the draw.
    together: the first questions of the file instead, which have passages in common as all of a data set have.
  """
  documents = list(read_corpus(path, format="squad"))
  write_passages(documents, root / "passages")
  passages = PassageStore(root / "passages")
  row_of = {p.id: row for row, p in enumerate(documents)}
  of_article: dict[str, list[int]] = {}
  for row, p in enumerate(documents):
    of_article.setdefault(p.title, []).append(row)
  asked = list(read_examples(path, format="squad"))

  def found(gold: int) -> np.ndarray:
    article = of_article[documents[gold].title]
    at = article.index(gold)
    rows = (article[at:] + article[:at])[:k]
    return np.array(rows + [-1] * (k - len(rows)), np.int64)

  def record(i: int) -> RetrievedExample:
    example = asked[i]
    gold = row_of[example.gold_passage_ids[0]]
    rows = found(gold)
    scores = np.where(rows >= 0, -np.arange(k, dtype=np.float32), -np.inf).astype(np.float32)
    return RetrievedExample(
      id=example.id,
      question=example.instruction,
      answers=example.answers,
      query=example.instruction,
      group=example.group,
      gold_rows=(gold,),
      passage_rows=rows,
      scores=scores,
      valid=rows >= 0,
    )

  drawn = range(len(asked))[:questions] if together else sample(len(asked), questions, seed)
  manifest = {"k": k, "passages": passages.fingerprint, "score_temperature": 1.0}
  write_retrieved((record(i) for i in drawn), root / "retrieved", manifest=manifest)
  retrieved = RetrievedStore(root / "retrieved")
  texts = [p.full_text for p in documents] + [e.instruction for e in asked] + ["Background: Question: Q: Answer: A:"]
  tokenizer = train_tokenizer(texts, vocab_size=min(vocabulary, TOKENIZER_WORDS))
  prompt = Prompt(tokenizer, PromptConfig())
  lengths = row_lengths(retrieved, passages, prompt, k=k, with_passages=True)
  return Workload(retrieved, passages, prompt, tokenizer, lengths, k)


def one_device() -> Any:
  """A mesh of one device, as the verbs make it."""
  import jax

  return make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


def machine() -> str:
  """What the figures were measured on, and with which versions."""
  from importlib.metadata import version

  import jax

  described = pathlib.Path("/proc/cpuinfo")
  lines = described.read_text().splitlines() if described.exists() else []
  model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
  versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "torch", "transformers"))
  cores = len(os.sched_getaffinity(0))
  return f"{cores} cores of {model}, {jax.default_backend()}; Python {platform.python_version()}, {versions}"


@dataclasses.dataclass(frozen=True)
class Config:
  """Writes the generator of the benchmarks as a Hugging Face directory, for programs that read one.

  Attributes:
    squad: file of SQuAD 1.1; the tokenizer learns from it.
    out: the directory.
    shape: of the generator.
  """

  squad: str
  out: str
  shape: Shape = Shape()


def main(config: Config) -> None:
  """Writes the directory."""
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    work = squad_workload(config.squad, root, questions=1, k=1, vocabulary=config.shape.vocabulary)
    save_generator(config.shape.decoder(), work.tokenizer, config.out)


if __name__ == "__main__":
  main(tyro.cli(Config))
