"""`radit run`: the verbs in the order of the recipe, on a user's files, and the table of what each tuning brought."""

import contextlib
import dataclasses
import pathlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from radit_jax import files, runs
from radit_jax.config import (
  EvaluateConfig,
  IndexConfig,
  PrepareConfig,
  RetrieveConfig,
  RunConfig,
  ScoreConfig,
  TrainGeneratorConfig,
  TrainRetrieverConfig,
)
from radit_jax.data.batches import row_lengths
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.prompts import Prompt
from radit_jax.evaluation.metrics import paired_bootstrap
from radit_jax.evaluation.report import format_table, write_report_html
from radit_jax.models.pretrained import fingerprint, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.training.metrics import read_metrics
from radit_jax.verbs.evaluate import EvaluateResult, evaluate
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare, read_split
from radit_jax.verbs.retrieve import retrieve
from radit_jax.verbs.score import score
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever

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
        f"--passages {root}/passages --question '...'" + self.ask_options,
      ]
    )


class Stages:
  """Seconds of each stage over all calls: what a killed call did counts, what a later one found finished does not."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    stored = files.read_json(path) if path.exists() else {"seconds": {}, "finished": []}
    self.seconds: dict[str, float] = stored["seconds"]
    self._finished: list[str] = stored["finished"]

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    except BaseException:
      self._add(name, start)
      raise
    if name not in self._finished:
      self._finished.append(name)
      self._add(name, start)

  def _add(self, name: str, start: float) -> None:
    self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 2)
    files.write_json(self._path, {"seconds": self.seconds, "finished": self._finished})


def run(
  config: RunConfig,
  *,
  judge: Callable[[dict[str, Any]], str | None] = lambda rows: None,
  title: str = "RA-DIT",
  progress: Progress = silent,
) -> RunResult:
  """Runs the recipe; every stage that is already there, made by the same options, is kept.

  Args:
    config: see :class:`radit_jax.config.RunConfig`.
    judge: looks at the rows and returns why the comparison is void, or None.
    title: heading of the report.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: whatever is wrong with the input, or options that differ from those of the run in ``workdir``.
  """
  root = pathlib.Path(config.workdir)
  for path in (config.generator, config.encoder, *([config.passage_encoder] if config.passage_encoder else [])):
    fingerprint(path)  # a wrong path is told before anything is made
  open_workdir(config)
  stages = Stages(root / "stages.json")
  data = _Data(config, root, stages, progress)
  data.make()

  notes = [f"Teacher of the retriever: {config.teacher}. Passages mixed: {config.k}."]
  tuned, query_encoder = config.generator, config.encoder
  plan = [
    ("closed_book", config.generator, "base", "closed_book"),
    ("base", config.generator, "base", "retrieval"),
  ]
  if config.tune != "retriever":
    with stages("train generator"):
      trained = train_generator(data.generator_config("ralt"), progress=progress)
    tuned = trained.generator
    after = ["evaluation/lm_ft.json", "evaluation/ra_dit.json", "evaluation/ra_dit_gold.json"]
    data.drop_if_changed(tuned, after + (["scores", "train_retriever"] if config.teacher == "tuned" else []))
    plan.append(("lm_ft", tuned, "base", "retrieval"))
    notes.append(f"Generator tuning: {trained.summary().rsplit(': ', 1)[0]}.")
  if config.tune != "generator":
    teacher = {"base": config.generator, "tuned": tuned}.get(config.teacher, config.teacher)
    with stages("score"):
      for split in ("train", "dev"):
        score(data.score_config(split, teacher), progress=progress)
    with stages("train retriever"):
      tuned_retriever = train_retriever(data.retriever_config("lsr"), progress=progress)
    query_encoder = tuned_retriever.query_encoder
    data.drop_if_changed(query_encoder, ["retrieved/lsr", "evaluation/r_ft.json", "evaluation/ra_dit.json"])
    with stages("retrieve again"):
      data.retrieve("test", "lsr", query_encoder)
    plan.append(("r_ft", config.generator, "lsr", "retrieval"))
    notes.append(f"Retriever tuning: {tuned_retriever.summary().rsplit(': ', 1)[0]}.")
  if config.tune == "both":
    plan.append(("ra_dit", tuned, "lsr", "retrieval"))
    if data.all_gold("test"):
      plan.append(("ra_dit_gold", tuned, "base", "gold"))
    else:
      notes.append("No row with the gold passage: not every test question names one.")

  rows: dict[str, dict[str, Any]] = {}
  results: dict[str, EvaluateResult] = {}
  if config.controls and config.tune != "retriever":
    with stages("plain instruction tuning"):
      plain = train_generator(data.generator_config("it"), progress=progress).generator
      plan.append(("it", plain, "base", "retrieval"))
  if config.controls and config.tune != "generator":
    with stages("retriever controls"):
      for name in ["shuffled"] + (["contrastive"] if data.all_gold("train") and data.all_gold("dev") else []):
        encoder = train_retriever(data.retriever_config(name), progress=progress).query_encoder
        recall = data.retrieve("test", name, encoder)
        rows[f"r_ft_{name}"] = NO_FIGURES | {f"recall@{k}": v for k, v in recall.items()} | {"n": data.counts["test"]}
  with stages("evaluate"):
    for name, generator, retriever, mode in plan:
      results[name] = evaluate(data.evaluate_config(name, generator, retriever, mode), progress=progress)
      rows[name] = results[name].row()
  ordered = {
    n: {"label": LABELS[n], **rows.get(n, NO_FIGURES)} for n in LABELS if n in rows or not n.startswith("r_ft_")
  }
  report = {
    "title": title,
    "rows": ordered,
    "comparisons": _comparisons(results, config.seed),
    "void": judge(ordered),
    "notes": notes,
    "seed": config.seed,
    "wall_s": round(sum(stages.seconds.values()), 1),
    "peak_memory_bytes": _peak_memory(root / "report.json"),
    "stages": stages.seconds,
    "curves": {name: _curve(root / name / "metrics.jsonl") for name in ("train_generator", "train_retriever")},
    "examples": _examples(results["base"], results[plan_best(results)], PassageStore(root / "passages")),
  }
  files.write_json(root / "report.json", report)
  write_report_html(report, root / "report.html")
  limits = config.prompt
  ask_options = f" --prompt.style {limits.style} --k {config.k}" + "".join(
    f" --prompt.{name.replace('_', '-')} {getattr(limits, name)}"
    for name in ("max_tokens", "max_passage_tokens", "max_answer_tokens")
  )
  return RunResult(report, str(root / "report.json"), str(root / "report.html"), tuned, query_encoder, ask_options)


def open_workdir(config: RunConfig) -> None:
  """Writes the run's ``run.json``, or checks that this call continues the run there.

  Raises:
    UserError: another verb or other options made the directory.
  """
  wanted = runs.recipe(config, inputs={})
  # Where the files lie does not matter: each stage records the fingerprints of what it read.
  for name in ("corpus", "questions", "generator", "encoder", "passage_encoder"):
    wanted["options"].pop(name)
  runs.open_run(config.workdir, "run", wanted)


def plan_best(results: dict[str, EvaluateResult]) -> str:
  """The row of the most that was tuned."""
  return next(name for name in ("ra_dit", "lm_ft", "r_ft") if name in results)


def _peak_memory(report: pathlib.Path) -> int:
  """Peak of this process, or of the call that did the work if this one found it done."""
  before = files.read_json(report)["peak_memory_bytes"] if report.exists() else 0
  return max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class _Data:
  """Where each stage's files lie, and the configs that make them: one place, so that all stages agree."""

  def __init__(self, config: RunConfig, root: pathlib.Path, stages: Stages, progress: Progress):
    self.config, self.root, self.stages, self.progress = config, root, stages, progress
    self.counts: dict[str, int] = {}

  def make(self) -> None:
    """prepare, index, and retrieve every split with the base retriever."""
    c = self.config
    with self.stages("prepare"):
      prepared = prepare(
        PrepareConfig(
          workdir=c.workdir,
          corpus=c.corpus,
          questions=c.questions,
          corpus_format=c.corpus_format,
          questions_format=c.questions_format,
          max_passage_words=c.max_passage_words,
          split_by=c.split_by,
          dev_fraction=c.dev_fraction,
          test_fraction=c.test_fraction,
          seed=c.seed,
          on_error=c.on_error,
        ),
        progress=self.progress,
      )
    self.counts = prepared.num_questions
    with self.stages("index"):
      index(
        IndexConfig(
          passages=self._path("passages"),
          encoder=c.passage_encoder or c.encoder,
          embeddings=self._path("embeddings"),
          index=self._path("index"),
          backend=c.backend,
          batch_size=c.encode_batch_size,
          mesh=c.mesh,
        ),
        progress=self.progress,
      )
    with self.stages("retrieve"):
      for split in ("train", "dev", "test"):
        self.retrieve(split, "base", c.encoder)
        self._check_lengths(split)

  def _check_lengths(self, split: str) -> None:
    """Finds an answer that is too long now, named, and not after hours of training."""
    prompt = Prompt(load_tokenizer(self.config.generator), self.config.prompt)
    retrieved = RetrievedStore(self._path("retrieved", "base", split))
    row_lengths(retrieved, PassageStore(self._path("passages")), prompt, k=1, with_passages=False)

  def _path(self, *parts: str) -> str:
    return str(self.root.joinpath(*parts))

  def drop_if_changed(self, model: str, derived: list[str]) -> None:
    """Removes what was made with an earlier state of a tuned model: a run that is given more steps makes it anew."""
    record = self.root / "tuned.json"
    known: dict[str, str] = files.read_json(record) if record.exists() else {}
    name, now = pathlib.Path(model).name, fingerprint(model)
    if known.get(name, now) != now:
      for path in map(self.root.joinpath, derived):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    files.write_json(record, {**known, name: now})

  def all_gold(self, split: str) -> bool:
    """Whether every question of a split names its gold passage."""
    return all(q["gold_rows"] for q in read_split(self._path("split", f"{split}.jsonl")))

  def retrieve(self, split: str, name: str, encoder: str) -> dict[int, float]:
    """Retrieves one split with one query encoder; returns recall by k."""
    c = self.config
    result = retrieve(
      RetrieveConfig(
        questions=self._path("split", f"{split}.jsonl"),
        passages=self._path("passages"),
        index=self._path("index"),
        encoder=encoder,
        passage_encoder=c.passage_encoder,
        out=self._path("retrieved", name, split),
        k=c.k,
        limit={"train": c.train_questions, "dev": c.dev_questions, "test": None}[split],
        batch_size=c.encode_batch_size,
        seed=c.seed,
        mesh=c.mesh,
      ),
      progress=self.progress,
    )
    return result.recall

  def generator_config(self, method: str) -> TrainGeneratorConfig:
    """RALT ("ralt"), or plain instruction tuning ("it") for as many steps."""
    c = self.config
    return TrainGeneratorConfig(
      workdir=self._path("train_generator" if method == "ralt" else f"train_generator_{method}"),
      generator=c.generator,
      retrieved=self._path("retrieved", "base", "train"),
      dev_retrieved=self._path("retrieved", "base", "dev"),
      passages=self._path("passages"),
      method=method,  # type: ignore[arg-type]
      k=c.k_train,
      prompt=c.prompt,
      optimizer=c.generator_tuning.optimizer,
      loop=dataclasses.replace(c.generator_tuning.loop, seed=c.seed),
      dtype=c.dtype,
      mesh=c.mesh,
    )

  def score_config(self, split: str, teacher: str) -> ScoreConfig:
    """The teacher's scores of one split."""
    c = self.config
    return ScoreConfig(
      generator=teacher,
      retrieved=self._path("retrieved", "base", split),
      passages=self._path("passages"),
      out=self._path("scores", split),
      k=c.k,
      prompt=c.prompt,
      batch_size=c.score_batch_size,
      dtype=c.dtype,
      mesh=c.mesh,
    )

  def retriever_config(self, name: str) -> TrainRetrieverConfig:
    """LSR ("lsr"), LSR with a shuffled teacher ("shuffled"), or the contrastive baseline ("contrastive")."""
    c = self.config
    return TrainRetrieverConfig(
      workdir=self._path("train_retriever" if name == "lsr" else f"train_retriever_{name}"),
      encoder=c.encoder,
      retrieved=self._path("retrieved", "base", "train"),
      dev_retrieved=self._path("retrieved", "base", "dev"),
      index=self._path("index"),
      passage_encoder=c.passage_encoder,
      scores=self._path("scores", "train"),
      dev_scores=self._path("scores", "dev"),
      loss="contrastive" if name == "contrastive" else "lsr",
      k=c.k,
      score=c.score,
      lm_temperature=c.lm_temperature,
      shuffle_teacher=name == "shuffled",
      optimizer=c.retriever_tuning.optimizer,
      loop=dataclasses.replace(c.retriever_tuning.loop, seed=c.seed),
      mesh=c.mesh,
    )

  def evaluate_config(self, name: str, generator: str, retriever: str, mode: str) -> EvaluateConfig:
    """One row of the table."""
    c = self.config
    return EvaluateConfig(
      generator=generator,
      retrieved=self._path("retrieved", retriever, "test"),
      passages=self._path("passages"),
      out=self._path("evaluation", f"{name}.json"),
      mode=mode,  # type: ignore[arg-type]
      k=c.k,
      limit=c.test_questions,
      prompt=c.prompt,
      batch_size=c.answer_batch_size,
      seed=c.seed,
      dtype=c.dtype,
      mesh=c.mesh,
    )


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


def _curve(path: pathlib.Path) -> dict[str, list[float]]:
  lines = read_metrics(path)
  return {
    "steps": [line["step"] for line in lines if line.get("loss") is not None],
    "loss": [line["loss"] for line in lines if line.get("loss") is not None],
    "dev_steps": [line["step"] for line in lines if line.get("dev_loss") is not None],
    "dev_loss": [line["dev_loss"] for line in lines if line.get("dev_loss") is not None],
  }


def _examples(base: EvaluateResult, tuned: EvaluateResult, passages: PassageStore) -> list[dict[str, Any]]:
  """Questions for people to look at: half that tuning put right, half drawn from all the others."""
  pairs = list(zip(base.answers, tuned.answers, strict=True))
  gained = [i for i, (b, t) in enumerate(pairs) if t["exact_match"] > b["exact_match"]][:4]
  others = [i for i in range(len(pairs)) if i not in gained]
  drawn = np.random.default_rng(0).permutation(others)[: 8 - len(gained)].tolist() if others else []
  out = []
  for i in [*gained, *sorted(drawn)]:
    before, after = pairs[i]
    passage = passages[after["passage_row"]]
    out.append(
      {
        "question": after["question"],
        "answers": after["answers"],
        "baseline_prediction": before["prediction"],
        "prediction": after["prediction"],
        "passage": f"{passage.title}: {passage.text}" if passage.title else passage.text,
      }
    )
  return out
