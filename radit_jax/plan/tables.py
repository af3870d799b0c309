"""What a plan says, as text."""

from collections.abc import Sequence

from radit_jax.plan import layout
from radit_jax.plan.bill import Stage
from radit_jax.plan.chips import GIB
from radit_jax.plan.measure import Measured
from radit_jax.plan.survey import Remedy, Survey


def as_text(of: Survey, bill: Sequence[Stage], remedies: Sequence[Remedy], tried: Sequence[str]) -> str:
  """The whole answer: memory, time, stages, assumptions, and what would fit."""
  config, chip = of.config, of.of.chip
  parts = [
    f"{config.generator} with {config.encoder}",
    f"{of.of.name}, {of.of.chips} chips of {chip.hbm_bytes / GIB:.2f} GiB; {layout.describe(of.mesh)}"
    f"; --generator-tuning.remat {config.generator_tuning.remat}",
    "",
    _memory(of.programs),
    "",
    _time(of.programs),
    "",
    _bill(bill),
    "",
    *_assumptions(of),
  ]
  if tried:
    parts += ["", "smaller slices:", *(f"  {line}" for line in tried)]
  unfit = [p for p in of.programs if not p.fits]
  if unfit:
    parts += ["", "does not fit:"]
    for p in unfit:
      parts.append(f"  {p.name}: {_gib(p.together_bytes)} GiB a chip, which has {_gib(p.hbm_bytes)}; what would:")
      helps = [r for r in remedies if r.program == p.name]
      parts += [f"    {r.change}  ({_gib(r.together_bytes)} GiB)" for r in helps] or ["    nothing that was tried"]
  else:
    parts += ["", "fits"]
  return "\n".join(parts)


def _memory(programs: Sequence[Measured]) -> str:
  head = (
    "GiB per chip",
    "parameters",
    "optimizer",
    "batch",
    "temporaries",
    "of them activations",
    "together",
    "of",
    "fits",
  )
  rows = [
    (
      p.name,
      _gib(p.parameters_bytes),
      _gib(p.optimizer_bytes),
      _gib(p.batch_bytes),
      _gib(p.temporaries_bytes) if p.temporaries_bytes else "-",
      _gib(p.activations_bytes) if p.activations_bytes else "-",
      _gib(p.together_bytes),
      _gib(p.hbm_bytes),
      "yes" if p.fits else "NO",
    )
    for p in programs
  ]
  return table([head, *rows])


def _time(programs: Sequence[Measured]) -> str:
  head = ("seconds per call", "model TFLOPs", "compute", "HBM", "ICI", "roofline", "bound by", "a chip sends, GiB")
  rows = []
  for p in programs:
    sent = ", ".join(f"{kind} {_gib(c['sent_bytes'])} in {c['runs']:.0f}" for kind, c in p.collectives.items())
    figures = (f"{s:.3g}" for s in (p.compute_s, p.hbm_s, p.ici_s, p.step_s))
    rows.append((p.name, f"{p.flops / 1e12:.4g}", *figures, p.bound, sent or "-"))
  return table([head, *rows])


def _bill(bill: Sequence[Stage]) -> str:
  priced = any(stage.money is not None for stage in bill)
  head = ("stage", "calls", "hours", "chip-hours", *(("money",) if priced else ()))
  rows = []
  for stage in bill:
    calls = "" if stage.name == "all" else f"{stage.calls:,}"
    money = (_number(stage.money),) if priced else ()
    rows.append((stage.name, calls, _number(stage.hours), _number(stage.chip_hours), *money))
  return table([head, *rows])


def _assumptions(of: Survey) -> list[str]:
  c, chip = of.config, of.of.chip
  return [
    f"Compute: model FLOPs at {c.mfu:.0%} of {chip.peak_flops / 1e12:.0f} TFLOP/s a chip (bfloat16), recomputation of "
    "layers not counted.",
    f"HBM {chip.hbm_bandwidth / 1e9:.0f} GB/s and ICI {chip.ici_bandwidth / 1e9:.0f} GB/s a chip, at their full rate; "
    "the longest of the three counts.",
    f"Corpus of {c.corpus_passages:,} passages of {c.passage_tokens} tokens; prompts of {c.prompt_tokens} tokens with "
    f"answers of {c.answer_tokens}; {c.tuning_examples:,} examples scored with {c.k} passages each; four rows of the "
    f"table, {c.evaluation_questions:,} questions each. Scoring takes less where questions have passages in common: "
    "each is computed once for all that stand in its row.",
    f"Retrieval: ScaNN on the slice's hosts ({chip.vcpus} cores a chip), 2,500 queries/s a core at 200,000 vectors, "
    "falling with the root of the corpus; the chips wait.",
  ]


def table(rows: Sequence[Sequence[str]]) -> str:
  """Columns side by side, names to the left and figures to the right.

  Example:
    >>> print(table([("a", "bb"), ("ccc", "1")]))
    a    bb
    ccc   1
  """
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
    # The last column may hold a list: it is not padded on its right.
    last = row[-1] if len(row[-1]) > 12 or widths[-1] > 12 else row[-1].rjust(widths[-1])
    lines.append("  ".join([*cells, last]).rstrip())
  return "\n".join(lines)


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}" if size < float("inf") else "more"


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
