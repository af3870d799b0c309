"""`radit run`: the verbs in the order of the recipe, on a user's files, and the table of what each tuning brought."""

import collections
import dataclasses
import pathlib
import resource
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from radit_jax import files, hosts
from radit_jax.config import MixConfig, RunConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import paired_bootstrap
from radit_jax.evaluation.report import CURVES, format_table, write_report_html
from radit_jax.owner import one_owner
from radit_jax.progress import Progress, silent
from radit_jax.verbs.data_card import CARD
from radit_jax.verbs.evaluate import EvaluateResult
from radit_jax.verbs.live import LivePage, curve
from radit_jax.verbs.workdir import Workdir

LABELS = {
  "closed_book": "closed book",
  "base": "base + retrieval (eq. 2, untuned)",
  "it": "plain instruction tuning + retrieval",
  "lm_ft": "+ LM-ft (RALT)",
  "r_ft": "+ R-ft (LSR)",
  "ra_dit": "RA-DIT (both)",
  "ra_dit_gold": "RA-DIT, gold passage given",
  "r_ft_shuffled": "control: R-ft, shuffled teacher",
  "r_ft_contrastive": "baseline: R-ft, contrastive on gold passages",
}
#: Pairs whose difference the report states: what each tuning brought, and what the other one added to it.
COMPARISONS = (("lm_ft", "base"), ("r_ft", "base"), ("ra_dit", "base"), ("ra_dit", "lm_ft"), ("ra_dit", "r_ft"))
#: Characters of a question that is shown as an example of how to ask.
_LONGEST_QUESTION = 200
NO_FIGURES = {
  "exact_match": None,
  "exact_match_ci": None,
  "f1": None,
  "recall@1": None,
  "recall@5": None,
  "recall@10": None,
  "answer_log_likelihood": None,
  "n": 0,
}


@dataclasses.dataclass(frozen=True)
class RunResult:
  """What a whole run leaves.

  Attributes:
    report: as `report.json` holds it.
    report_json: its path.
    report_html: the page for people.
    generator: Hugging Face directory of the tuned generator.
    query_encoder: Hugging Face directory of the tuned query encoder.
    ask_options: what `radit ask` must be told to prompt as this run did.
  """

  report: dict[str, Any]
  report_json: str
  report_html: str
  generator: str
  query_encoder: str
  ask_options: str = ""

  def summary(self) -> str:
    """The table, where everything is, and what to do next."""
    root = pathlib.Path(self.report_json).parent
    return "\n".join(
      [
        format_table(self.report),
        "",
        f"report         {self.report_html}  ({self.report_json})",
        f"generator      {self.generator}",
        f"query encoder  {self.query_encoder}",
        "",
        "next: ask the tuned pair a question",
        f"  radit ask --generator {self.generator} --encoder {self.query_encoder} --index {root}/index "
        f"--passages {root}/passages --question {shlex.quote(self._question())}" + self.ask_options,
      ]
    )

  def _question(self) -> str:
    """One of the table that can be pasted, if there is one: a line, and no longer than people ask."""
    asked = (example["question"] for example in self.report.get("examples", ()))
    return next((q for q in asked if q.isprintable() and len(q) <= _LONGEST_QUESTION), "...")


@one_owner
def run(
  config: RunConfig,
  *,
  mix: MixConfig | None = None,
  judge: Callable[[dict[str, Any]], str | None] = lambda rows: None,
  title: str = "RA-DIT",
  progress: Progress = silent,
) -> RunResult:
  """Runs the recipe; every stage that is already there, made by the same options, is kept.

  Args:
    config: see :class:`radit_jax.config.RunConfig`.
    mix: what its ``mix`` names. Generator and retriever are tuned on its splits, the table is about its evaluation
      sets, all together and each.
    judge: looks at the rows and returns why the comparison is void, or None.
    title: heading of the report.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: whatever is wrong with the input, or options that differ from those of the run in ``workdir``.
  """
  if (config.mix is None) != (mix is None):
    raise UserError(f"mix = {config.mix!r}: `run` takes the mix that its config names, and no other")
  workdir = Workdir(config, _live(config, title, progress), mix)
  workdir.make()
  root, stages = workdir.root, workdir.stages

  notes = [f"Teacher of the retriever: {config.teacher}. Passages mixed: {config.k}."]
  if mix is not None:
    notes.append(f"Mix {config.mix}: what it holds, and what was left out of it, stands in {CARD}.")
  tuned, query_encoder = config.generator, config.encoder
  plan = [
    ("closed_book", config.generator, "base", "closed_book"),
    ("base", config.generator, "base", "retrieval"),
  ]
  if config.tune != "retriever":
    with stages("train generator"):
      trained = workdir.train_generator("ralt")
    tuned = trained.generator
    plan.append(("lm_ft", tuned, "base", "retrieval"))
    notes.append(f"Generator tuning: {trained.summary().rsplit(': ', 1)[0]}.")
  if config.tune != "generator":
    teacher = {"base": config.generator, "tuned": tuned}.get(config.teacher, config.teacher)
    with stages("score"):
      for split in ("train", "dev"):
        workdir.score(split, teacher)
    with stages("train retriever"):
      tuned_retriever = workdir.train_retriever("lsr")
    query_encoder = tuned_retriever.query_encoder
    with stages("retrieve again"):
      workdir.retrieve_test("lsr", query_encoder)
    plan.append(("r_ft", config.generator, "lsr", "retrieval"))
    notes.append(f"Retriever tuning: {tuned_retriever.summary().rsplit(': ', 1)[0]}.")
  if config.tune == "both":
    plan.append(("ra_dit", tuned, "lsr", "retrieval"))
    if workdir.all_gold("test"):
      plan.append(("ra_dit_gold", tuned, "base", "gold"))
    else:
      notes.append("No row with the gold passage: not every test question names one.")

  rows: dict[str, dict[str, Any]] = {}
  results: dict[str, EvaluateResult] = {}
  if config.controls and config.tune != "retriever":
    with stages("plain instruction tuning"):
      plain = workdir.train_generator("it").generator
      plan.append(("it", plain, "base", "retrieval"))
  if config.controls and config.tune != "generator":
    with stages("retriever controls"):
      for name in ["shuffled"] + (["contrastive"] if workdir.all_gold("train") and workdir.all_gold("dev") else []):
        recall = workdir.retrieve_test(name, workdir.train_retriever(name).query_encoder)
        figures = {f"recall@{k}": v for k, v in recall.items()}
        rows[f"r_ft_{name}"] = NO_FIGURES | figures | {"n": workdir.num_test}
  with stages("evaluate"):
    for name, generator, retriever, mode in plan:
      results[name] = workdir.evaluate(name, generator, retriever, mode)
      rows[name] = results[name].row()
  ordered = {
    n: {"label": LABELS[n], **rows.get(n, NO_FIGURES)} for n in LABELS if n in rows or not n.startswith("r_ft_")
  }
  most_tuned = next(name for name in ("ra_dit", "lm_ft", "r_ft") if name in results)
  report = {
    "title": title,
    "rows": ordered,
    "comparisons": _comparisons(results, config.seed),
    "sets": {} if mix is None else _by_set(results),
    "void": judge(ordered),
    "notes": notes,
    # The lines below a reason are places with messages, which may quote an answer.
    "left_out": [line for line in workdir.left_out if not (config.redact and line.startswith(" "))],
    "seed": config.seed,
    "wall_s": round(sum(stages.seconds.values()), 1),
    "peak_memory_bytes": _peak_memory(root / "report.json"),
    "stages": stages.seconds,
    "curves": {name: curve(root / name / "metrics.jsonl") for name in CURVES},
    "examples": []
    if config.redact
    else _examples(results["base"], results[most_tuned], PassageStore(root / "passages")),
  }
  with hosts.one_writes() as mine:
    if mine:
      files.write_json(root / "report.json", report)
      write_report_html(report, root / "report.html")
  limits = config.prompt
  ask_options = f" --prompt.style {limits.style} --k {config.k}" + "".join(
    f" --prompt.{name.replace('_', '-')} {getattr(limits, name)}"
    for name in ("max_tokens", "max_passage_tokens", "max_answer_tokens")
  )
  return RunResult(report, str(root / "report.json"), str(root / "report.html"), tuned, query_encoder, ask_options)


def _live(config: RunConfig, title: str, progress: Progress) -> Progress:
  """Shows the run on its page until its report is there; that of an earlier call stays until it is made anew."""
  root = pathlib.Path(config.workdir)
  if (root / "report.json").exists():
    return progress

  def so_far() -> dict[str, Any]:
    stages = files.read_json(root / "stages.json")["seconds"] if (root / "stages.json").exists() else {}
    return {"seed": config.seed, "stages": stages, "curves": {n: curve(root / n / "metrics.jsonl") for n in CURVES}}

  return LivePage(root, title, progress, so_far)


def _peak_memory(report: pathlib.Path) -> int:
  """Peak of this process, or of the call that did the work if this one found it done."""
  before = files.read_json(report)["peak_memory_bytes"] if report.exists() else 0
  return max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _comparisons(results: dict[str, EvaluateResult], seed: int) -> list[dict[str, Any]]:
  """Paired differences of exact match, with their intervals."""
  out = []
  for one, other in COMPARISONS:
    if one not in results or other not in results:
      continue
    a = [line["exact_match"] for line in results[one].answers]
    b = [line["exact_match"] for line in results[other].answers]
    difference, low, high = paired_bootstrap(a, b, samples=1000, seed=seed)
    label = f"{LABELS[one]} over {LABELS[other]}"
    out.append({"label": label, "difference": float(difference), "ci": [float(low), float(high)]})
  return out


def _by_set(results: dict[str, EvaluateResult]) -> dict[str, dict[str, Any]]:
  """Exact match of every row on each evaluation set of a mix, whose name begins the ids of its questions."""
  out: dict[str, dict[str, Any]] = {}
  for name in LABELS:
    found = collections.defaultdict(list)
    for line in results[name].answers if name in results else ():
      found[line["id"].split("/")[0]].append(line["exact_match"])
    for of, matches in found.items():
      out.setdefault(of, {"n": len(matches), "exact_match": {}})["exact_match"][name] = float(np.mean(matches))
  return out


def _examples(base: EvaluateResult, tuned: EvaluateResult, passages: PassageStore) -> list[dict[str, Any]]:
  """Questions for people to look at: half that tuning put right, half drawn from all the others.

  Answers that an earlier call with ``redact`` left have no texts, and are none to look at.
  """
  pairs = [p for p in zip(base.answers, tuned.answers, strict=True) if all("prediction" in answer for answer in p)]
  gained = [i for i, (b, t) in enumerate(pairs) if t["exact_match"] > b["exact_match"]][:4]
  others = [i for i in range(len(pairs)) if i not in gained]
  drawn = np.random.default_rng(0).permutation(others)[: 8 - len(gained)].tolist() if others else []
  out = []
  for i in [*gained, *sorted(drawn)]:
    before, after = pairs[i]
    row = after["passage_row"]  # none where a question brings its text along, or nothing was found
    passage = None if row is None else passages[row]
    out.append(
      {
        "question": after["question"],
        "answers": after["answers"],
        "baseline_prediction": before["prediction"],
        "prediction": after["prediction"],
        "passage": "" if passage is None else ": ".join(filter(None, (passage.title, passage.text))),
      }
    )
  return out
