"""RALT steps and scoring side by side with PyTorch: the same weights, prompts, optimizer and cores, turn by turn.

    python benchmarks/against_torch.py --squad dev-v1.1.json

Needs the `test` extra (torch, transformers). The contestants take turns, a batch each:

- usual: `transformers` on torch as most use it: padded batches in the order of the file, logits of every token, in a
  process of its own, so that its memory is handled as it is by default,
- strong: the strongest torch here: prompts sorted by length in small groups, logits of answer tokens only, no mask,
- padded, packed: this library's step on rows of one prompt each, and of several (`--pack-tokens` of the verbs), which
  share what prompts of a step have in common: on questions of neighbouring paragraphs, and on some that share nothing,
- apart, shared: the rows of `radit score`, without and with one copy of a passage for the questions in a row.

Before anything is timed all must agree on every prompt's log-likelihood, and on loss and gradient of a batch.
"""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import tyro
from page import table, write_section
from torch_side import Strong, Usual
from workload import Shape, Workload, machine, one_device, squad_workload

from radit_jax import sharding
from radit_jax.config import LoopConfig, OptimizerConfig
from radit_jax.data.batches import parallel_context_batches
from radit_jax.data.plan import PlannedBatch
from radit_jax.data.prefixes import prompt_table, shared_batches
from radit_jax.data.prompts import Rendered
from radit_jax.display import quiet_libraries
from radit_jax.models.decoder import Decoder
from radit_jax.models.pretrained import load_generator, save_generator
from radit_jax.parallel_context import ParallelContextBatch
from radit_jax.process import keep_heap
from radit_jax.training.step import init_state, learning_rate, make_optimizer, ralt_objective, score_step, train_step
from radit_jax.verbs import tuning
from radit_jax.verbs.score import scoring_plan

#: Contestants must agree to this relative difference.
TOLERANCE = 1e-4
OPTIMIZER = OptimizerConfig(warmup_steps=0)
TOTAL_STEPS = 1000
KINDS = {
  "train": "RALT step, the first questions of the file",
  "drawn": "RALT step, questions drawn from it",
  "score": "scoring",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """Tokens per second of RALT steps and of scoring, turn by turn with PyTorch.

  Attributes:
    squad: file of SQuAD 1.1.
    shape: of the generator.
    questions: to train on, the first ones of the file and as many drawn from it; an epoch is all of them once.
    scored: questions to score, the first ones of the file.
    batch_size: examples of a batch, k prompts each.
    k: passages per question.
    pack_tokens: most tokens of packed rows.
    rounds: epochs each contestant is timed over.
    torch_rows: sizes of the strong contestant's groups; the fastest is compared.
    compile: the strong contestant also tries `torch.compile`.
    write: page whose section is replaced by the result.
  """

  squad: str
  shape: Shape = Shape()
  questions: int = 8
  scored: int = 40
  batch_size: int = 4
  k: int = 5
  pack_tokens: int = 512
  rounds: int = 3
  torch_rows: tuple[int, ...] = (2, 5)
  compile: bool = False
  write: str | None = None


class Torch:
  """A PyTorch side on batches of prompts."""

  def __init__(self, side: Usual | Strong, prompts: dict[str, list[Rendered]], batch_size: int, *, sort: bool) -> None:
    self.side = side
    self._prompts = prompts
    ids = list(prompts)
    self._batches = [tuple(ids[i : i + batch_size]) for i in range(0, len(ids), batch_size)]
    self.num_batches = len(self._batches)
    keys = [(name, j) for name, rows in prompts.items() for j in range(len(rows))]
    if sort:  # what is only scored may be sorted over all batches
      keys.sort(key=lambda key: len(prompts[key[0]][key[1]].tokens))
    size = -(-len(keys) // self.num_batches)
    self._scored = [keys[i : i + size] for i in range(0, len(keys), size)]

  def train(self, batch: int) -> tuple[float, float]:
    return self.side.train(self._of(self._batches[batch]))

  def figures(self, ids: Sequence[str]) -> tuple[float, float]:
    """Loss and gradient norm on these questions; nothing changes."""
    return self.side.figures(self._of(ids))

  def _of(self, ids: Sequence[str]) -> list[Rendered]:
    return [p for name in ids for p in self._prompts[name]]

  def score(self, batch: int) -> dict[tuple[str, int], float]:
    keys = self._scored[batch]
    values = self.side.score([self._prompts[name][j] for name, j in keys])
    return dict(zip(keys, values.tolist(), strict=True))


class Apart:
  """A PyTorch side in a process of its own, without this library's setting of the heap."""

  def __init__(self, path: pathlib.Path, rates: Sequence[float], prompts: dict[str, list[Rendered]], size: int) -> None:
    context = multiprocessing.get_context("spawn")
    self._connection, other = context.Pipe()
    self._process = context.Process(target=_serve, args=(other, path, rates, prompts, size), daemon=True)
    self._process.start()
    other.close()
    self.num_batches = self._connection.recv()

  def __getattr__(self, name: str) -> Callable[..., Any]:
    """``train``, ``score`` and ``figures`` of :class:`Torch`."""

    def call(*arguments: Any) -> Any:
      self._connection.send((name, arguments))
      return self._connection.recv()

    return call

  def close(self) -> None:
    """Ends the process."""
    self._connection.close()
    self._process.join()


def _serve(
  connection: Any, path: pathlib.Path, rates: Sequence[float], prompts: dict[str, list[Rendered]], size: int
) -> None:
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  side = Torch(Usual(path, OPTIMIZER, rates.__getitem__), prompts, size, sort=False)
  connection.send(side.num_batches)
  while True:
    try:
      name, arguments = connection.recv()
    except EOFError:
      return
    connection.send(getattr(side, name)(*arguments))


class _Ours:
  """The library's step on the batches of its own plan."""

  def __init__(self, generator: Decoder, batches: Sequence[ParallelContextBatch]) -> None:
    self._mesh = one_device()
    self._generator = generator
    self._batches = batches
    self.num_batches = len(batches)
    self.computed = sum(int(np.count_nonzero(b.segment_ids)) for b in batches)
    self.full = self.computed / sum(b.tokens.size for b in batches)
    self._shapes = [(*b.tokens.shape, b.answer_tokens.shape[1]) for b in batches]
    self.shapes = sorted(set(self._shapes))
    #: Seconds of the first call of each program together.
    self.first_s = 0.0
    self._compiled: set[Any] = set()

  def one_of_each_shape(self) -> list[int]:
    """A batch for each program."""
    return sorted(self._shapes.index(shape) for shape in self.shapes)

  def _note_first(self, batch: int, start: float) -> None:
    if self._shapes[batch] not in self._compiled:
      self._compiled.add(self._shapes[batch])
      self.first_s += time.perf_counter() - start


class Training(_Ours):
  """Steps of `train-generator`."""

  def __init__(self, path: pathlib.Path, work: Workload, plan: Sequence[PlannedBatch], batch_size: int) -> None:
    made = parallel_context_batches(
      work.retrieved,
      work.passages,
      work.prompt,
      plan,
      k=work.k,
      with_passages=True,
      batch_size=batch_size,
      answer_tokens=work.lengths.answer,
    )
    self._ids, batches = zip(*made, strict=True)
    super().__init__(load_generator(path, mesh=one_device()), batches)
    optimizer = make_optimizer(OPTIMIZER, TOTAL_STEPS)
    self._update = optimizer.update
    self._state, self._frozen = init_state(self._generator, optimizer, self._mesh)

  def questions(self, batch: int) -> tuple[str, ...]:
    """Ids of a batch's questions."""
    return self._ids[batch]

  def train(self, batch: int) -> tuple[float, float]:
    start = time.perf_counter()
    with jax.set_mesh(self._mesh):
      rows = sharding.place_rows(self._batches[batch], self._mesh)
      self._state, figures = train_step(self._state, self._frozen, rows, objective=ralt_objective, update=self._update)
      out = float(figures.loss_sum) / float(figures.count), float(figures.gradient_norm)
    self._note_first(batch, start)
    return out


class Scoring(_Ours):
  """Steps of `score`."""

  def __init__(self, path: pathlib.Path, work: Workload, batch_size: int, *, share: bool) -> None:
    table = prompt_table(work.retrieved, work.passages, work.prompt, k=work.k)
    generator = load_generator(path, mesh=one_device())
    self.plan = scoring_plan(table, generator, batch_size=batch_size, pack_tokens=None, mesh=one_device(), share=share)
    made = shared_batches(work.retrieved, work.passages, work.prompt, self.plan, k=work.k)
    self._ids = [example.id for example in work.retrieved]
    super().__init__(generator, list(made))

  def score(self, batch: int) -> dict[tuple[str, int], float]:
    start = time.perf_counter()
    with jax.set_mesh(self._mesh):
      rows = sharding.place_rows(self._batches[batch], self._mesh)
      values, _, _ = map(np.asarray, score_step(self._generator, rows))
    self._note_first(batch, start)
    prompts = (
      (r, m, i, j)
      for r, row in enumerate(self.plan.steps[batch].rows)
      for m, (i, j) in enumerate(itertools.chain.from_iterable(row))
    )
    return {(self._ids[i], j): float(values[r, m]) for r, m, i, j in prompts}


def clock(run: Callable[[], Any]) -> float:
  """Seconds of one call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def check_scores(contestants: dict[str, Any]) -> float:
  """Largest relative difference of any prompt's log-likelihood to the usual way.

  Raises:
    SystemExit: it is above `TOLERANCE`.
  """
  scores = {
    name: {key: value for batch in range(c.num_batches) for key, value in c.score(batch).items()}
    for name, c in contestants.items()
  }
  reference, worst = scores["usual"], 0.0
  for name, values in scores.items():
    if values.keys() != reference.keys():
      raise SystemExit(f"{name} scored {len(values)} prompts, usual {len(reference)}, or not the same ones")
    worst = _agreeing(worst, [values[key] for key in reference], list(reference.values()), f"{name} scores")
  return worst


def check_training(torches: dict[str, Any], ours: dict[str, Training]) -> float:
  """The same for loss and gradient norm of a batch."""
  worst = 0.0
  for name, contestant in ours.items():
    ids = contestant.questions(0)
    expected = torches["usual"].figures(ids)
    worst = _agreeing(worst, torches["strong"].figures(ids), expected, "strong trains")
    worst = _agreeing(worst, contestant.train(0), expected, f"{name} trains")
  return worst


def _agreeing(worst: float, figures: Sequence[float], expected: Sequence[float], what: str) -> float:
  difference = max(abs(a / b - 1) for a, b in zip(figures, expected, strict=True))
  if not difference <= TOLERANCE:
    raise SystemExit(f"{what} otherwise than usual: figures differ by {difference:.1e}, more than {TOLERANCE:.0e}")
  return max(worst, difference)


def main(config: Config) -> dict[str, dict[str, float]]:
  """Runs everything.

  Returns:
    Real tokens per second, ``[kind of work][contestant]``: medians over the rounds.
  """
  quiet_libraries()
  keep_heap()  # as `radit` does; the strong contestant has the same heap
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)

    def workload(name: str, questions: int, *, together: bool) -> Workload:
      (root / name).mkdir()
      return squad_workload(
        config.squad,
        root / name,
        questions=questions,
        k=config.k,
        vocabulary=config.shape.vocabulary,
        together=together,
      )

    of: dict[str, dict[str, list[float]]] = {}
    notes: list[str] = []
    for kind in KINDS:
      work = workload(kind, config.scored if kind == "score" else config.questions, together=kind != "drawn")
      if not notes:
        save_generator(config.shape.decoder(), work.tokenizer, root / "generator")
      run = _scoring if kind == "score" else _training
      of[kind], lines = run(config, work, root / "generator")
      notes += [f"{KINDS[kind]}: {lines[0]}", *lines[1:]]
  write_section(config.write, "against_torch", _report(config, of, notes))
  return {kind: {name: statistics.median(r) for name, r in rates.items()} for kind, rates in of.items()}


def _prompts(work: Workload) -> dict[str, list[Rendered]]:
  return {
    e.id: work.prompt.render_many(
      [(e.question, work.passages[r], e.answers[0], None) for r in e.passage_rows if r >= 0]
    )
    for e in work.retrieved
  }


def _torches(
  config: Config, path: pathlib.Path, prompts: dict[str, list[Rendered]]
) -> tuple[dict[str, Any], list[str]]:
  schedule = learning_rate(OPTIMIZER, TOTAL_STEPS)
  rates = [float(schedule(step)) for step in range(TOTAL_STEPS)]
  strong, tried = _fastest_strong(config, path, prompts, rates.__getitem__)
  return {
    "usual": Apart(path, rates, prompts, config.batch_size),
    "strong": Torch(strong, prompts, config.batch_size, sort=True),
  }, tried


def _rates(contestants: dict[str, Any], kind: str, rounds: int, tokens: int) -> dict[str, list[float]]:
  """Tokens per second of each contestant in each round, a batch of each in turn."""
  out: dict[str, list[float]] = {name: [] for name in contestants}
  for _ in range(rounds):
    taken = dict.fromkeys(contestants, 0.0)
    for batch in range(max(c.num_batches for c in contestants.values())):
      for name, c in contestants.items():
        if batch < c.num_batches:
          taken[name] += clock(lambda c=c, batch=batch: getattr(c, kind)(batch))
    for name, seconds in taken.items():
      out[name].append(tokens / seconds)
  return out


def _training(config: Config, work: Workload, path: pathlib.Path) -> tuple[dict[str, list[float]], list[str]]:
  prompts, size = _prompts(work), config.batch_size
  torches, tried = _torches(config, path, prompts)
  loop, mesh, lengths = LoopConfig(batch_size=size, epochs=1), one_device(), work.lengths
  plans: dict[str, Sequence[PlannedBatch]] = {
    "padded": tuning.make_plans(lengths.rows, lengths.rows, loop=loop, mesh=mesh).train,
    "packed": tuning.make_packed_plans(lengths, lengths, config.pack_tokens, loop=loop, mesh=mesh, share=True).train,
  }
  ours = {name: Training(path, work, plan, size) for name, plan in plans.items()}
  worst = check_training(torches, ours)
  for own in ours.values():
    for batch in own.one_of_each_shape():
      own.train(batch)
  for contestant in torches.values():
    contestant.train(0)
  tokens = sum(len(p.tokens) for rows in prompts.values() for p in rows)
  rates = _rates({**torches, **ours}, "train", config.rounds, tokens)
  torches["usual"].close()
  return rates, [
    f"{config.questions} × {config.k} passages, {tokens} tokens, of which packed rows compute "
    f"{ours['packed'].computed}, {size} questions a step. {_batches(ours)} Largest relative difference in loss or "
    f"gradient norm: {worst:.0e}. Strong torch, training and scoring, before the rounds: {'; '.join(tried)}.",
  ]


def _scoring(config: Config, work: Workload, path: pathlib.Path) -> tuple[dict[str, list[float]], list[str]]:
  prompts = _prompts(work)
  torches, _ = _torches(config, path, prompts)
  ours = {name: Scoring(path, work, config.batch_size, share=name == "shared") for name in ("apart", "shared")}
  worst = check_scores({**torches, **ours})
  tokens = sum(len(p.tokens) for rows in prompts.values() for p in rows)
  rates = _rates({**torches, **ours}, "score", config.rounds, tokens)
  torches["usual"].close()
  return rates, [
    f"the first {config.scored} questions of the file × {config.k} passages, {tokens} tokens, of which "
    f"{ours['shared'].computed} are computed where passages are shared. {_batches(ours)} "
    f"Largest relative difference in any log-likelihood: {worst:.0e}.",
  ]


def _batches(ours: Mapping[str, _Ours]) -> str:
  shapes = "; ".join(
    f"{name} {', '.join('×'.join(map(str, shape)) for shape in c.shapes)} ({c.full:.0%} full, first calls "
    f"{c.first_s:.0f} s, left out)"
    for name, c in ours.items()
  )
  return f"Rows × tokens × answer tokens of our batches: {shapes}."


def _fastest_strong(
  config: Config, path: pathlib.Path, prompts: dict[str, list[Rendered]], rate: Callable[[int], float]
) -> tuple[Strong, list[str]]:
  """The fastest of the strong contestant's settings on one batch, and what each of them reached."""
  batch = [p for name in list(prompts)[: config.batch_size] for p in prompts[name]]
  tokens = sum(len(p.tokens) for p in batch)
  best: tuple[float, Strong] | None = None
  tried = []
  for compiled in (False, True) if config.compile else (False,):
    for rows in config.torch_rows:
      side = Strong(path, OPTIMIZER, rate, rows=rows, compiled=compiled)
      side.score(batch)
      warm = clock(lambda s=side: s.figures(batch))
      train, score = clock(lambda s=side: s.figures(batch)), clock(lambda s=side: s.score(batch))
      note = f", compiled ({max(warm - train, 0.0):.0f} s to compile)" if compiled else ""
      tried.append(f"groups of {rows}{note}: {tokens / train:.0f} and {tokens / score:.0f}")
      if best is None or train + score < best[0]:
        best = train + score, side
  assert best is not None
  return best[1], tried


def _report(config: Config, of: dict[str, dict[str, list[float]]], lines: list[str]) -> str:
  parts = []
  for kind, title in KINDS.items():
    rates = of[kind]
    medians = {name: statistics.median(r) for name, r in rates.items()}
    own = [name for name in rates if name not in ("usual", "strong")]
    best = max(medians[name] for name in own)
    cells = [f"{medians[n]:.0f} ({min(r):.0f}–{max(r):.0f})" for n, r in rates.items()]
    header = ["real tokens per second", "(a) usual torch", "(b) strong torch", *(f"ours, {name}" for name in own)]
    ratios = [f"{best / medians['usual']:.2f} ×", f"{best / medians['strong']:.2f} ×"]
    parts += [table([*header, "against (a)", "against (b)"], [[title, *cells, *ratios]]), ""]
  s = config.shape
  return "\n".join(
    [
      *parts,
      f"Medians and range of {config.rounds} rounds; width {s.width}, {s.layers} layers, vocabulary {s.vocabulary}, "
      "float32. The ratios are those of the faster of our two.",
      *lines,
      f"{machine()}; load {os.getloadavg()[0]:.1f} at the end.",
    ]
  )


if __name__ == "__main__":
  main(tyro.cli(Config))
