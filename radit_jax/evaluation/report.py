"""The report of a run: a table for the terminal, and one self-contained page for people."""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from radit_jax.evaluation.charts import grouped_bars, interval_bars, line_chart
from radit_jax.evaluation.metrics import exact_match
from radit_jax.evaluation.page import page
from radit_jax.files import write_atomic

FIGURES = ("exact_match", "f1", "recall@1", "recall@5", "recall@10", "answer_log_likelihood")
RECALLS = ("recall@1", "recall@5", "recall@10")
CURVES = {"train_generator": "Generator tuning", "train_retriever": "Retriever tuning"}
TERMS = {
  "exact match": "share of the answers that equal an accepted one after SQuAD normalisation; in brackets the 95 % "
  "bootstrap interval",
  "F1": "mean overlap of the answer's words with the best accepted answer",
  "recall@k": "share of the questions with a right passage among the first k",
  "log p": "mean log-probability (nats) of the first accepted answer under eq. 2",
}

Report = Mapping[str, Any]
Row = Mapping[str, Any]


def format_table(report: Report) -> str:
  """The table of a report as plain text, what each tuning brought, and whether the comparison is void.

  Args:
    report: as ``report.json`` holds it. A row without any figure (a control that was not run) is left out.

  Returns:
    Lines without a trailing newline; shares in percent, differences in points.

  Example:
    >>> row = {"label": "base", "exact_match": 0.25, "exact_match_ci": [0.125, 0.5], "f1": 0.3, "n": 8}
    >>> print(format_table({"title": "Toy", "rows": {"base": row}}))
    Toy
    <BLANKLINE>
          exact match           F1  recall@1    @5    @10   log p    n
    base  25.0 [12.5, 50.0]   30.0         –     –      –       –    8
  """
  rows = _rows(report)
  width = max([len(row["label"]) for _, row in rows], default=0)

  def line(label: str, match: str, cells: Sequence[str]) -> str:
    widths = (4, 8, 4, 5, 6, 3)
    return f"{label:{width}}  {match:18}  " + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))

  lines = [str(report["title"]), "", line("", "exact match", ("F1", "recall@1", "@5", "@10", "log p", "n"))]
  for _, row in rows:
    shares = [_percent(row.get(name)) for name in ("f1", *RECALLS)]
    match = f"{_percent(row.get('exact_match')):>4} {_interval(row.get('exact_match_ci'))}"
    lines.append(line(row["label"], match, (*shares, _nats(row), _count(row))))
  comparisons = report.get("comparisons") or []
  if comparisons:
    width = max(len(c["label"]) for c in comparisons)
    lines += ["", "exact match, difference in points [95 % interval, paired]:"]
    for c in comparisons:
      unclear = "  (includes 0)" if c["ci"][0] <= 0 <= c["ci"][1] else ""
      lines.append(f"  {c['label']:{width}}  {_difference(c)}{unclear}")
  if sets := report.get("sets"):
    names = _set_columns(sets)
    width = max(map(len, sets))
    head = "  ".join(f"{name:>11}" for name in (*names, "n"))
    lines += ["", "exact match on each set:", f"  {'':{width}}  {head}"]
    for of, cells in _set_rows(sets, names):
      lines.append(f"  {of:{width}}  " + "  ".join(f"{cell:>11}" for cell in cells))
  if report.get("void"):
    lines += ["", f"THE COMPARISON IS VOID: {report['void']}"]
  if report.get("notes"):
    lines += ["", *(f"note: {note}" for note in report["notes"])]
  if report.get("left_out"):
    lines += ["", *report["left_out"]]
  return "\n".join(lines)


def write_report_html(report: Report, path: str | os.PathLike[str]) -> None:
  """Writes the report as one HTML file that needs nothing else and asks for nothing.

  Args:
    report: as ``report.json`` holds it: ``title``, ``rows``, and maybe ``comparisons``, ``sets``, ``void``, ``notes``,
      ``left_out``, ``seed``, ``wall_s``, ``peak_memory_bytes``, ``stages``, ``curves``, ``examples``. What is absent or
      null is left out. Every text may come from a user's files and is escaped.
    path: the file; written whole or not at all.
  """
  title, rows = str(report["title"]), _rows(report)
  parts = [
    f"<h1>{escape(title)}</h1>",
    _facts(report, rows),
    _void(report),
    _tiles(report["rows"]),
    _table(rows) if rows else "",
    _sets(report.get("sets") or {}, report["rows"]),
    _two(_exact_match(rows), _comparisons(report.get("comparisons") or [])),
    _two(_recall(report["rows"]), *_curves(report.get("curves") or {})),
    _examples(report.get("examples") or []),
    _two(_stages(report.get("stages") or {}), _notes([*(report.get("notes") or []), *(report.get("left_out") or [])])),
  ]
  write_atomic(path, page(title, "\n".join(part for part in parts if part)))


def _rows(report: Report) -> list[tuple[str, Row]]:
  return [(name, r) for name, r in report["rows"].items() if any(r.get(figure) is not None for figure in FIGURES)]


def _facts(report: Report, rows: Sequence[tuple[str, Row]]) -> str:
  facts = []
  if counts := [row["n"] for _, row in rows if row.get("n")]:
    facts.append(f"{max(counts):,} test questions")
  if report.get("seed") is not None:
    facts.append(f"seed {report['seed']}")
  if report.get("wall_s") is not None:
    facts.append(_duration(report["wall_s"]))
  if report.get("peak_memory_bytes"):
    facts.append(f"{report['peak_memory_bytes'] / 2**30:.1f} GiB at most")
  return f'<p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>' if facts else ""


def _void(report: Report) -> str:
  if not report.get("void"):
    return ""
  return f'<section class="void"><p><b>The comparison is void.</b> {escape(str(report["void"]))}</p></section>'


def _tiles(rows: Mapping[str, Row]) -> str:
  """What tuning did, in three numbers."""
  tiles = []
  for name, label in (("exact_match", "exact match"), ("f1", "F1"), ("recall@1", "recall@1")):
    before, after = (rows.get(key, {}).get(name) for key in ("base", "ra_dit"))
    if before is not None and after is not None:
      tiles.append(
        f'<div class="tile"><b><small>{_percent(before)} →</small> {_percent(after)}<small> %</small></b>'
        f"<span>{label}, before and after RA-DIT</span></div>"
      )
  return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _table(rows: Sequence[tuple[str, Row]]) -> str:
  columns = ("", "exact match", "F1", *RECALLS, "log p", "n")
  head = "".join(f'<th scope="col">{column}</th>' for column in columns)
  body = []
  for name, row in rows:
    match = _percent(row.get("exact_match"))
    if interval := _interval(row.get("exact_match_ci")):
      match += f"<small>{interval}</small>"
    cells = (match, *(_percent(row.get(figure)) for figure in ("f1", *RECALLS)), _nats(row), _count(row))
    tag = '<tr class="strong">' if name == "ra_dit" else "<tr>"
    body.append(f'{tag}<th scope="row">{escape(row["label"])}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
  terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in TERMS.items())
  table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody></table>"
  content = f'<div class="scroll" tabindex="0">{table}</div>\n<dl class="terms">{terms}</dl>'
  return _section("Results on the test questions, shares in percent", content)


def _set_columns(sets: Mapping[str, Row]) -> list[str]:
  """Rows of the table that any set has a figure of."""
  return list(dict.fromkeys(name for of in sets.values() for name in of["exact_match"]))


def _set_rows(sets: Mapping[str, Row], names: Sequence[str]) -> list[tuple[str, list[str]]]:
  return [(of, [*(_percent(s["exact_match"].get(n)) for n in names), _count(s)]) for of, s in sets.items()]


def _sets(sets: Mapping[str, Row], rows: Mapping[str, Row]) -> str:
  if not sets:
    return ""
  names = _set_columns(sets)
  labels = [*(rows[name]["label"] for name in names), "n"]
  head = "<th></th>" + "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
  body = "\n".join(
    f'<tr><th scope="row">{escape(of)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    for of, cells in _set_rows(sets, names)
  )
  table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
  return _section("Exact match on each set, in percent", f'<div class="scroll" tabindex="0">{table}</div>')


def _exact_match(rows: Sequence[tuple[str, Row]]) -> str:
  bars = []
  for name, row in rows:
    if row.get("exact_match") is not None:
      interval = row.get("exact_match_ci")
      text = f"{_percent(row['exact_match'])} %"
      bars.append((row["label"], row["exact_match"], (interval[0], interval[1]) if interval else None, text, name))
  if not bars:
    return ""
  strong = next((label for label, *_, name in bars if name == "ra_dit"), "")
  chart = interval_bars([bar[:4] for bar in bars], low=0, high=1, strong=strong)
  return _section("Exact match with its interval", chart)


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
  if not comparisons:
    return ""
  ends = [end for c in comparisons for end in (*c["ci"], c["difference"])]
  low, high = min(0.0, *ends), max(0.05, *ends)
  bars = [(c["label"], c["difference"], (c["ci"][0], c["ci"][1]), _difference(c)) for c in comparisons]
  unclear = [c["label"] for c in comparisons if c["ci"][0] <= 0 <= c["ci"][1]]
  said = f'<p class="legend">The interval includes zero: {escape(", ".join(unclear))}.</p>' if unclear else ""
  chart = interval_bars(bars, low=low, high=high)
  return _section("What each tuning brought, in points of exact match", chart + said)


def _recall(rows: Mapping[str, Row]) -> str:
  before = rows.get("base", {})
  after = next(
    (rows[name] for name in ("r_ft", "ra_dit") if name in rows and rows[name].get("recall@1") is not None), {}
  )
  series = [("before tuning", [before.get(r) for r in RECALLS]), ("after R-ft", [after.get(r) for r in RECALLS])]
  chart = grouped_bars(RECALLS, series, label="recall in percent, before and after tuning the retriever")
  return _section("Recall, before and after", chart) if chart else ""


def _curves(curves: Mapping[str, Mapping[str, Any]]) -> list[str]:
  out = []
  for name, curve in curves.items():
    lines = [
      ("training loss", _points_of(curve, "steps", "loss")),
      ("dev loss", _points_of(curve, "dev_steps", "dev_loss")),
    ]
    if chart := line_chart(lines, x_label="step", y_label="loss"):
      out.append(_section(CURVES.get(name, name.replace("_", " ").capitalize()), chart))
  return out


def _points_of(curve: Mapping[str, Any], x: str, y: str) -> list[tuple[float, float]]:
  pairs = zip(curve.get(x) or [], curve.get(y) or [], strict=True)
  return [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
  return _section("Examples", "\n".join(map(_example, examples))) if examples else ""


def _example(example: Mapping[str, Any]) -> str:
  answers = [str(answer) for answer in example["answers"]]
  terms = [("accepted", f"<dd>{escape(' · '.join(answers))}</dd>")]
  for key, name in (("baseline_prediction", "before"), ("prediction", "after")):
    if (said := example.get(key)) is not None:
      right = exact_match(str(said), answers) == 1 if answers else False
      shown = escape(str(said)) or "<i>nothing</i>"
      terms.append((name, f'<dd class="{"right" if right else "wrong"}">{shown} {"✓" if right else "✗"}</dd>'))
  passage = ""
  if example.get("passage"):
    score = example.get("passage_score")
    source = "Passage the answer came from" + ("" if score is None else f", score {score:.2f}")
    passage = f"<blockquote>{_marked(str(example['passage']), answers)}<footer>{source}</footer></blockquote>"
  told = "".join(f"<dt>{name}</dt>{value}" for name, value in terms)
  return f'<div class="example"><h3>{escape(str(example["question"]))}</h3><dl>{told}</dl>{passage}</div>'


def _marked(text: str, answers: Sequence[str]) -> str:
  """The text escaped, with every accepted answer in it marked."""
  wanted = sorted((a.strip() for a in answers if a.strip()), key=len, reverse=True)
  if not wanted:
    return escape(text)
  pieces = re.split("(" + "|".join(map(re.escape, wanted)) + ")", text, flags=re.IGNORECASE)
  return "".join(f"<mark>{escape(piece)}</mark>" if i % 2 else escape(piece) for i, piece in enumerate(pieces))


def _stages(stages: Mapping[str, float]) -> str:
  if not stages:
    return ""
  longest = max(stages.values()) or 1.0
  bars = [(name, seconds, None, _duration(seconds)) for name, seconds in stages.items()]
  return _section("Where the time went", interval_bars(bars, low=0, high=longest))


def _notes(notes: Sequence[Any]) -> str:
  return (
    _section("Notes", "<ul>" + "".join(f"<li>{escape(str(note))}</li>" for note in notes) + "</ul>") if notes else ""
  )


def _section(heading: str, content: str) -> str:
  return f"<section><h2>{escape(heading)}</h2>\n{content}</section>"


def _two(*sections: str) -> str:
  kept = [section for section in sections if section]
  return f'<div class="two">{"".join(kept)}</div>' if kept else ""


def _percent(share: float | None) -> str:
  return "–" if share is None else f"{100 * share:.1f}"


def _interval(interval: Sequence[float] | None) -> str:
  return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _points(difference: float) -> str:
  return f"{100 * difference:+.1f}"


def _difference(comparison: Mapping[str, Any]) -> str:
  low, high = comparison["ci"]
  return f"{_points(comparison['difference'])} [{_points(low)}, {_points(high)}]"


def _nats(row: Row) -> str:
  value = row.get("answer_log_likelihood")
  return "–" if value is None else f"{value:.2f}"


def _count(row: Row) -> str:
  return str(row.get("n") or "–")


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
