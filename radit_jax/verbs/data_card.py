"""The data card of a mix: what each set gave, how long it is, what it may be used for, and what was left out."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radit_jax import files
from radit_jax.data.corpus.chunks import count_words
from radit_jax.data.mix import likeness
from radit_jax.data.readers.example import UNANSWERABLE
from radit_jax.evaluation.charts import set_bars
from radit_jax.evaluation.metrics import has_answer

CARD, FIGURES, PLOT = "data_card.md", "data_card.json", "data_card.svg"


@dataclasses.dataclass
class SetFigures:
  """What is counted of a set's training examples, row by row.

  Attributes:
    name: of the set.
    available: training examples before the cap.
    train: training examples.
    dev: held out.
    share: of the draws.
    asked: words of each question with its own context.
    answered: words of each answer that is trained on.
    duplicates: examples of which another one stood before in the mix, in this set or another.
    with_context: examples with a context of their own.
    in_context: of those, whose context holds an answer.
    unanswerable: examples answered by "I don't know".
  """

  name: str
  available: int = 0
  train: int = 0
  dev: int = 0
  share: float = 0.0
  asked: list[int] = dataclasses.field(default_factory=list)
  answered: list[int] = dataclasses.field(default_factory=list)
  duplicates: int = 0
  with_context: int = 0
  in_context: int = 0
  unanswerable: int = 0

  def add(self, row: Mapping[str, Any], seen: set[bytes]) -> None:
    """Counts a row of a split.

    Args:
      row: as `radit prepare` writes it.
      seen: digests of the mix's earlier rows.
    """
    context = row.get("context")
    self.train += 1
    self.asked.append(count_words(row["question"]) + count_words(context or ""))
    self.answered.append(count_words(row["answers"][0]))
    text = "\0".join(map(likeness, (row["question"], context or "", row["answers"][0])))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    self.duplicates += digest in seen
    seen.add(digest)
    unanswerable = row["answers"][0] == UNANSWERABLE
    self.unanswerable += unanswerable
    if context is not None and not unanswerable:
      self.with_context += 1
      self.in_context += has_answer(context, row["answer_texts"])

  def summary(self) -> dict[str, Any]:
    """As JSON values, lengths as median and 95th percentile."""
    out: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    for name in ("asked", "answered"):
      out[name] = [int(np.percentile(out[name], q, method="lower")) for q in (50, 95)] if out[name] else [0, 0]
    return out


def write_card(root: pathlib.Path, card: Mapping[str, Any]) -> None:
  """Writes the card as text, as a plot and as figures, in this order: where these are, the card is whole."""
  files.write_atomic(root / CARD, card_text(card))
  files.write_atomic(root / PLOT, card_plot(card))
  files.write_json(root / FIGURES, dict(card))


def complete_card(questions: pathlib.Path, k: int, found: Mapping[str, tuple[int, int]]) -> None:
  """Writes the card again with what was retrieved for a part's training examples; the last retrieval counts.

  Args:
    questions: split file; of one that no mix made, and of questions that nothing is trained on, no card tells.
    k: passages for each.
    found: set -> examples of which a passage holds an answer, and examples that were searched for.
  """
  root, part = questions.parent.parent, questions.parent.name
  if questions.name != "train.jsonl" or not (root / FIGURES).is_file():
    return
  card = files.read_json(root / FIGURES)
  retrieved = {"k": k, "sets": {name: list(counts) for name, counts in found.items()}}
  known = card.get("retrieved", {})
  if part in card["counts"] and known.get(part) != retrieved:
    write_card(root, card | {"retrieved": known | {part: retrieved}})


def card_text(card: Mapping[str, Any]) -> str:
  """The card as Markdown.

  Args:
    card: ``mix``, ``corpus``, ``seed``, ``parts`` (title -> sets as :meth:`SetFigures.summary` gives them),
      ``counts`` (part, in the order of ``parts`` -> split -> examples), ``retrieved`` (part -> what
      :func:`complete_card` adds; absent before), ``licences`` (set -> words), ``missing`` and ``refused``
      (set -> why), ``skipped`` (reason -> count), ``decontaminate``, ``evaluation`` (as
      :meth:`radit_jax.data.contamination.Contamination.summary` gives it) and ``not_looked_at`` (names).
  """
  lines = [
    f"# Data card of the mix {card['mix']}",
    "",
    f"Corpus: {card['corpus']['passages']:,} passages of {card['corpus']['documents']:,} documents. "
    f"Seed {card['seed']}; {card['dev_fraction']:.1%} of the documents (where a set has none, of the questions) held "
    "out.",
  ]
  for part, (title, sets) in zip(card["counts"], card["parts"].items(), strict=False):
    if sets:
      lines += ["", f"## {title}", "", *_table(sets, card.get("retrieved", {}).get(part))]
  used = dict.fromkeys(s["name"] for sets in card["parts"].values() for s in sets)
  lines += ["", "## Licences", "", "| set | licence |", "|---|---|"]
  lines += [f"| {name} | {card['licences'].get(name, 'not stated')} |" for name in used]
  left_out = {**card["missing"], **card["refused"]}
  if left_out:
    lines += ["", "## Sets left out", "", "| set | why | licence |", "|---|---|---|"]
    lines += [f"| {n} | {why} | {card['licences'].get(n, 'not stated')} |" for n, why in left_out.items()]
    lines += ["", "What they would have had of the draws went to the others, in proportion."]
  if card["evaluation"] or card["not_looked_at"]:
    lines += ["", "## Evaluation questions in training", "", *_evaluation(card)]
  if card["skipped"]:
    lines += ["", "## Records left out", "", "| records | why |", "|---|---|"]
    lines += [f"| {count:,} | {reason} |" for reason, count in card["skipped"].items()]
  return "\n".join(lines) + "\n"


def _table(sets: Sequence[Mapping[str, Any]], retrieved: Mapping[str, Any] | None) -> list[str]:
  head = "| set | there | train | dev | draws | words asked | words answered | duplicates | answer in own context |"
  rows = [head + (" answer in passages |" if retrieved else ""), "|---" * (10 if retrieved else 9) + "|"]
  for s in sets:
    found = f"{s['in_context']:,} of {s['with_context']:,}" if s["with_context"] else "–"
    lengths = (" · ".join(f"{n:,}" for n in s[name]) for name in ("asked", "answered"))
    counts = f"{s['available']:,} | {s['train']:,} | {s['dev']:,} | {s['share']:.2%}"
    row = f"| {s['name']} | {counts} | {' | '.join(lengths)} | {s['duplicates']:,} | {found} |"
    if retrieved:
      hits, searched = retrieved["sets"].get(s["name"], (0, 0))
      row += f" {hits:,} of {searched:,} |" if searched else " – |"
    rows.append(row)
  total = collections.Counter[str]()
  for s in sets:
    total.update({name: s[name] for name in ("available", "train", "dev", "duplicates")})
  rows.append(
    f"| all | {total['available']:,} | {total['train']:,} | {total['dev']:,} | 100 % | | | {total['duplicates']:,} | |"
    + (" |" if retrieved else "")
  )
  unanswerable = sum(s["unanswerable"] for s in sets)
  rows += ["", "Lengths are median · 95th percentile, contexts of their own included."]
  if unanswerable:
    rows[-1] += f" {unanswerable:,} questions are answered “{UNANSWERABLE}”."
  if retrieved:
    rows[-1] += f" Passages are the {retrieved['k']} that `radit retrieve` found for each question."
  return rows


def _evaluation(card: Mapping[str, Any]) -> list[str]:
  rows = [
    "| set | questions | asked in training | eight words in a row | examples | answer in a passage | passages |",
    "|---|---|---|---|---|---|---|",
  ]
  for e in card["evaluation"]:
    names = ("questions", "same", "overlapping", "examples", "answered", "passages")
    rows.append(f"| {e['name']} | {' | '.join(f'{e[name]:,}' for name in names)} |")
  done = {
    "report": "All of it is trained on (`--decontaminate` leaves it out).",
    "questions": "Those examples are left out; passages (plain text and completions) are trained on.",
    "all": "Those examples and passages are left out.",
  }[card["decontaminate"]]
  unseen = f" Not there, so not looked for: {', '.join(card['not_looked_at'])}." if card["not_looked_at"] else ""
  return [*(rows if card["evaluation"] else []), "", done + unseen]


def card_plot(card: Mapping[str, Any]) -> str:
  """The card as an SVG of its own: draws and lengths of each set."""
  rows = [(f"{s['name']}", s["share"], s["asked"], s["answered"]) for sets in card["parts"].values() for s in sets]
  breaks = [len(sets) for sets in card["parts"].values() if sets]
  titles = [title for title, sets in card["parts"].items() if sets]
  return set_bars(rows, dict(zip(np.cumsum([0, *breaks[:-1]]).tolist(), titles, strict=True)))
