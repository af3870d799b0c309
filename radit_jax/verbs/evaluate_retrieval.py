"""`radit evaluate-retrieval`: what a retrieval is worth, alone or against another one of the same questions."""

import dataclasses
import os
import pathlib
from typing import Any

from radit_jax import files
from radit_jax.config import EvaluateRetrievalConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.examples import RetrievedStore
from radit_jax.errors import UserError
from radit_jax.evaluation import trec
from radit_jax.evaluation.charts import interval_bars
from radit_jax.evaluation.page import page
from radit_jax.evaluation.ranking import answer_in
from radit_jax.evaluation.rankings import Ranked, compare, measure, summarize
from radit_jax.progress import Progress, silent

#: Of every page that is written here.
_HEADING = "<h1>Retrieval</h1>"


@dataclasses.dataclass(frozen=True)
class EvaluateRetrievalResult:
  """What was measured.

  Attributes:
    out: JSON file of the figures.
    measures: measure -> ``mean``, ``ci`` and ``n``, see :func:`radit_jax.evaluation.rankings.summarize`.
    comparison: measure -> ``difference``, ``ci`` and ``p``, see :func:`radit_jax.evaluation.rankings.compare`; None
      without a baseline.
  """

  out: str
  measures: dict[str, Any]
  comparison: dict[str, Any] | None

  def summary(self) -> str:
    """A line per measure."""
    lines = []
    for name, m in self.measures.items():
      line = f"{name:<17}{m['mean']:.4f} [{m['ci'][0]:.4f}, {m['ci'][1]:.4f}]  n {m['n']}"
      if self.comparison and name in self.comparison:
        c = self.comparison[name]
        line += f"  {c['difference']:+.4f} [{c['ci'][0]:+.4f}, {c['ci'][1]:+.4f}]  p {c['p']:.4g}"
      lines.append(line)
    return "\n".join([*lines, self.out])


@dataclasses.dataclass(frozen=True)
class _Retrieval:
  """Rankings, what is known of their questions, and the version of the passages that they are of."""

  run: dict[str, list[tuple[str, float]]]
  qrels: dict[str, dict[str, int]]
  answers: dict[str, tuple[str, ...]]
  rows: dict[str, int]
  depth: int
  store: PassageStore | None


def evaluate_retrieval(config: EvaluateRetrievalConfig, *, progress: Progress = silent) -> EvaluateRetrievalResult:
  """Measures every question, and writes the figures.

  Args:
    config: see :class:`radit_jax.config.EvaluateRetrievalConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a run file without judgements, a store without its passages, nothing known of any question, a baseline of
      other questions, or an ``out`` that holds something else.
  """
  _check_out(pathlib.Path(config.out))
  store = None if config.passages is None else PassageStore(config.passages)
  given = None if config.qrels is None else trec.read_qrels(config.qrels)
  after = _read(config.retrieved, store, given)
  found = _measure(after, progress)
  if not any(found.values()):
    raise UserError(f"{config.retrieved}: no relevant passage is known for any question; give --qrels")
  report: dict[str, Any] = {"measures": summarize(found, samples=config.bootstrap_samples, seed=config.seed)}
  report |= {"retrieved": config.retrieved, "questions": len(found), "comparison": None}
  if config.baseline is not None:
    before = _measure(_read(config.baseline, store, given), progress)
    report["comparison"] = compare(found, before, samples=config.bootstrap_samples, seed=config.seed)
    report["baseline"] = config.baseline
  report["per_question"] = found
  if config.write_run is not None:
    trec.write_run(config.write_run, after.run)
  if config.write_qrels is not None:
    trec.write_qrels(config.write_qrels, after.qrels)
  files.write_json(config.out, report)
  files.write_atomic(pathlib.Path(config.out).with_suffix(".html"), _page(report))
  return EvaluateRetrievalResult(config.out, report["measures"], report["comparison"])


def _check_out(out: pathlib.Path) -> None:
  """Refuses what an earlier call has not written, of the figures and of the page, and where nothing can be written."""
  files.written(out, "measured retrieval", ("measures", "per_question"))
  shown = out.with_suffix(".html")
  if shown == out:
    raise UserError(f"{out}: the page gets this name; choose another one for the figures")
  if shown.exists() and not (shown.is_file() and _HEADING.encode() in shown.read_bytes()):
    raise UserError(f"{shown}: exists and is no page of a measured retrieval; choose another --out")
  files.check_writable(out)


def _read(path: str, store: PassageStore | None, qrels: trec.Qrels | None) -> _Retrieval:
  """A retrieved-example store, or a run file, which needs judgements from elsewhere."""
  if not os.path.isdir(path):
    run = trec.read_run(path)
    if qrels is None:
      raise UserError(f"{path}: a run file says nothing of what is relevant; give --qrels")
    return _Retrieval(run, qrels, {}, {}, max(len(found) for found in run.values()), store)
  if store is None:
    raise UserError(f"{path}: a store of rows, whose passages are needed; give --passages")
  retrieved = RetrievedStore(path)
  store = version_of(retrieved.manifest["passages"], store, path)
  found: trec.Run = {}
  gold: trec.Qrels = {}
  answers: dict[str, tuple[str, ...]] = {}
  known: dict[str, int] = {}
  for example in retrieved:
    rows = [int(row) for row in example.passage_rows[example.valid]]
    ids = [passage.id for passage in store.many(rows)]
    found[example.id] = list(zip(ids, example.scores[example.valid].tolist(), strict=True))
    gold[example.id] = {passage.id: 1 for passage in store.many(example.gold_rows)}
    known |= dict(zip([*ids, *gold[example.id]], [*rows, *example.gold_rows], strict=True))
    answers[example.id] = example.answer_texts
  return _Retrieval(found, gold if qrels is None else qrels, answers, known, retrieved.manifest["k"], store)


def _measure(retrieval: _Retrieval, progress: Progress) -> dict[str, dict[str, float]]:
  """Measures of every judged question, and of every other one that has answers; one that found nothing has zeros."""
  names = list(dict.fromkeys([*retrieval.qrels, *retrieval.answers]))
  rows, store = dict(retrieval.rows), retrieval.store
  if store is not None:
    found = {passage for ranked in retrieval.run.values() for passage, _ in ranked}
    wanted = {passage for judged in retrieval.qrels.values() for passage in judged} | found
    if wanted := wanted - rows.keys():
      rows |= {passage.id: row for row, passage in enumerate(store) if passage.id in wanted}
    if missing := sorted(found - rows.keys()):
      raise UserError(f"{store.path}: no passage {missing[0]!r} in this passage store, which the run file names")
  out = {}
  for done, name in enumerate(names, 1):
    passages = [passage for passage, _ in retrieval.run.get(name, [])]
    judged, answers = retrieval.qrels.get(name, {}), retrieval.answers.get(name, ())
    pages, answered = None, None
    if store is not None:
      at = [p for p in dict.fromkeys([*passages, *judged]) if p in rows]
      known = dict(zip(at, store.many(rows[p] for p in at), strict=True))
      pages = {p: p for p in judged}  # one that was judged need not be in the store
      pages |= {p: str(passage.metadata.get("document", p)) for p, passage in known.items()}
      if answers:
        answered = [answer_in(known[passage].text, answers) for passage in passages]
    out[name] = measure(Ranked(passages, judged, pages, answered), depth=retrieval.depth)
    progress("measure", done, len(names), "questions")
  return out


def _page(report: dict[str, Any]) -> str:
  """Bars of the measures, and of the differences."""
  rows = [(name, m["mean"], tuple(m["ci"]), f"{100 * m['mean']:.1f}") for name, m in report["measures"].items()]
  body = f"{_HEADING}\n<p>{report['questions']} questions; whiskers are 95 % bootstrap intervals.</p>\n"
  body += interval_bars(rows, low=0, high=1)
  if report["comparison"]:
    differences = [
      (name, c["difference"], tuple(c["ci"]), f"{100 * c['difference']:+.1f} points, p {c['p']:.3g}")
      for name, c in report["comparison"].items()
    ]
    largest = max([0.01, *(abs(edge) for _, _, ci, _ in differences for edge in ci)])
    body += (
      "<h2>Against the baseline</h2>\n<p>Paired over the same questions; p of a two-sided randomisation test.</p>\n"
    )
    body += interval_bars(differences, low=-largest, high=largest)
  return page("Retrieval", body)
