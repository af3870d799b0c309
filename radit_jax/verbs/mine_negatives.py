"""`radit mine-negatives`: passages that are near a question and wrong, for the contrastive loss."""

import collections
import dataclasses
import json

from radit_jax import files
from radit_jax.config import MineNegativesConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.negatives import Candidate, choose, record
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import has_answer, normalize_answer
from radit_jax.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class MineNegativesResult:
  """What was mined, and what was not.

  Attributes:
    out: JSONL file.
    num_questions: questions in it.
    num_negatives: negatives in it.
    gold: passages passed over as gold.
    copies: as a copy of a gold passage, or of one taken before.
    answers: as holding an answer.
    without_gold: questions left out, as no gold passage of theirs is known.
    own: questions left out, as nothing was searched for.
    without_negative: questions left out, as no passage was left.
    short: questions with fewer negatives than asked for.
  """

  out: str
  num_questions: int
  num_negatives: int
  gold: int
  copies: int
  answers: int
  without_gold: int
  own: int
  without_negative: int
  short: int

  def summary(self) -> str:
    """Three lines for the command line."""
    return (
      f"{self.num_negatives} negatives of {self.num_questions} questions, {self.short} of them with fewer than asked "
      f"for: {self.out}\n"
      f"passages passed over: {self.gold} gold, {self.copies} copies, {self.answers} with an answer\n"
      f"questions left out: {self.without_gold} without a known gold passage, {self.without_negative} without a "
      f"negative, {self.own} that nothing was searched for"
    )


def mine_negatives(config: MineNegativesConfig, *, progress: Progress = silent) -> MineNegativesResult:
  """Writes each question's best passages that are not its gold one, no copy of it, and hold no answer.

  Args:
    config: see :class:`radit_jax.config.MineNegativesConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: another passage store, no question with a gold passage and a negative, or an ``out`` that holds something
      else.
  """
  files.written(config.out, "file of mined negatives", ("id", "negatives", "passages"), lines=True)
  files.check_writable(config.out)
  store = PassageStore(config.passages)
  retrieved = RetrievedStore(config.retrieved)
  store = version_of(retrieved.manifest["passages"], store, config.retrieved)
  dropped: collections.Counter[str] = collections.Counter()
  left_out: collections.Counter[str] = collections.Counter()
  lines: list[str] = []
  mined = short = 0
  for done, example in enumerate(retrieved, 1):
    progress("mine", done, len(retrieved), "questions")
    if not example.searched or not example.gold_rows:
      left_out["own" if not example.searched else "gold"] += 1
      continue
    rows = [int(row) for row in example.passage_rows[example.valid]]
    found = {
      row: Candidate(row, normalize_answer(passage.text), has_answer(passage.full_text, example.answer_texts))
      for row, passage in zip([*rows, *example.gold_rows], store.many([*rows, *example.gold_rows]), strict=True)
    }
    chosen = choose([found[row] for row in rows], [found[row] for row in example.gold_rows], config.negatives, dropped)
    if not chosen:
      left_out["negative"] += 1
      continue
    mined += len(chosen)
    short += len(chosen) < config.negatives
    line = record(example.id, example.query, example.gold_rows, chosen, lambda row: store[row].id, store.fingerprint)
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  if not lines:
    raise UserError(
      f"{config.retrieved}: no negatives: of {len(retrieved)} questions {left_out['gold']} have no known gold passage, "
      f"{left_out['negative']} no passage that is wrong, {left_out['own']} were not searched for; retrieve more (--k)"
    )
  files.write_atomic(config.out, "".join(lines))
  return MineNegativesResult(
    out=config.out,
    num_questions=len(lines),
    num_negatives=mined,
    gold=dropped["gold"],
    copies=dropped["copy"],
    answers=dropped["answer"],
    without_gold=left_out["gold"],
    own=left_out["own"],
    without_negative=left_out["negative"],
    short=short,
  )
