"""`radit bm25`: the baseline without a model, alone or fused with what a retriever found, as a TREC run file."""

import dataclasses

from radit_jax.config import Bm25Config
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedStore
from radit_jax.errors import UserError
from radit_jax.evaluation import trec
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.bm25 import Bm25, fuse
from radit_jax.verbs.prepare import read_split


@dataclasses.dataclass(frozen=True)
class Bm25Result:
  """What was found.

  Attributes:
    out: TREC run file.
    num_questions: questions that something was found for.
  """

  out: str
  num_questions: int

  def summary(self) -> str:
    """One line for the command line."""
    return f"{self.num_questions} questions: {self.out}"


def bm25(config: Bm25Config, *, progress: Progress = silent) -> Bm25Result:
  """Searches with every question of a split.

  Args:
    config: see :class:`radit_jax.config.Bm25Config`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a missing store or split, retrieved examples of other passages or without one of the questions.
  """
  store = PassageStore(config.passages)
  questions = read_split(config.questions)
  dense: dict[str, list[int]] = {}
  if config.fuse is not None:
    retrieved = RetrievedStore(config.fuse)
    store = version_of(retrieved.manifest["passages"], store, config.fuse)
    dense = {example.id: example.passage_rows[example.valid].tolist() for example in retrieved}
    if missing := [q["id"] for q in questions if q["id"] not in dense]:
      raise UserError(f"{config.fuse}: nothing retrieved for question {missing[0]!r}; retrieve for this split first")
  gone = frozenset(store.removed.tolist())  # they have no words
  index = Bm25("" if row in gone else passage.full_text for row, passage in enumerate(store))
  run: trec.Run = {}
  for done, question in enumerate(questions, 1):
    found = index.search(str(question["query"]), config.k)
    if config.fuse is not None:
      found = fuse([dense[question["id"]], [row for row, _ in found]], config.k)
    ids = [passage.id for passage in store.many(row for row, _ in found)]
    if found:
      run[question["id"]] = [(passage, score) for passage, (_, score) in zip(ids, found, strict=True)]
    progress("search", done, len(questions), "questions")
  if not run:
    raise UserError(f"{config.questions}: no question shares a word with a passage")
  trec.write_run(config.out, run, name="bm25" if config.fuse is None else "rrf")
  return Bm25Result(config.out, len(run))
