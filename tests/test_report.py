"""The report: what it says, that every text in it is inert, and that the charts are to scale."""

import html.parser
import itertools
import re

import pytest

from radit_jax.evaluation.charts import grouped_bars, interval_bars, line_chart, ticks
from radit_jax.evaluation.report import format_table, write_report_html

HOSTILE = "\"'><script>alert(1)</script><img src=http://x.invalid/a.png onerror=alert(2)>&amp;"


def row(label, match=None, recall=None):
  interval = None if match is None else [match - 0.05, match + 0.05]
  return {
    "label": label,
    "exact_match": match,
    "exact_match_ci": interval,
    "f1": match,
    "recall@1": recall,
    "recall@5": recall,
    "recall@10": recall,
    "answer_log_likelihood": None if match is None else -1.234,
    "n": 0 if match is None and recall is None else 400,
  }


def report(**changes):
  rows = {
    "closed_book": row("closed book", 0.05),
    "base": row("base + retrieval", 0.25, 0.5),
    "it": row("plain instruction tuning"),
    "r_ft": row("+ R-ft", 0.35, 0.75),
    "ra_dit": row("RA-DIT", 0.85, 0.75),
    "r_ft_shuffled": row("control", None, 0.51),
  }
  return {
    "title": "A small world",
    "rows": rows,
    "comparisons": [
      {"label": "RA-DIT over base", "difference": 0.6, "ci": [0.55, 0.65]},
      {"label": "+ R-ft over base", "difference": 0.02, "ci": [-0.01, 0.05]},
    ],
    "void": None,
    "notes": ["Teacher: base."],
    "seed": 7,
    "wall_s": 187.4,
    "peak_memory_bytes": 3 * 2**30,
    "stages": {"embed": 12.34, "train generator": 75.2},
    "curves": {
      "train_generator": {"steps": [10, 20], "loss": [2.0, 1.0], "dev_steps": [20], "dev_loss": [1.5]},
      "some_other": {"steps": [], "loss": [], "dev_steps": [], "dev_loss": []},
    },
    "examples": [
      {
        "question": "Where?",
        "answers": ["Kelwick"],
        "prediction": "the Kelwick",
        "baseline_prediction": "Tarn",
        "passage": "In kelwick & Tarn.",
        "passage_score": 7.256,
      }
    ],
  } | changes


def written(tmp_path, value):
  write_report_html(value, tmp_path / "report.html")
  return (tmp_path / "report.html").read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
  """Tags, attributes and text of a page; raises where tags do not nest."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.words, self._open = set(), [], [], []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes += attrs
    if tag != "meta":
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.words).split())


def test_table():
  assert format_table(report()) == (
    "A small world\n"
    "\n"
    "                  exact match           F1  recall@1    @5    @10   log p    n\n"
    "closed book        5.0 [0.0, 10.0]     5.0         –     –      –   -1.23  400\n"
    "base + retrieval  25.0 [20.0, 30.0]   25.0      50.0  50.0   50.0   -1.23  400\n"
    "+ R-ft            35.0 [30.0, 40.0]   35.0      75.0  75.0   75.0   -1.23  400\n"
    "RA-DIT            85.0 [80.0, 90.0]   85.0      75.0  75.0   75.0   -1.23  400\n"
    "control              –                   –      51.0  51.0   51.0       –  400\n"
    "\n"
    "exact match, difference in points [95 % interval, paired]:\n"
    "  RA-DIT over base  +60.0 [+55.0, +65.0]\n"
    "  + R-ft over base  +2.0 [-1.0, +5.0]  (includes 0)\n"
    "\n"
    "note: Teacher: base."
  )


def test_void_is_said_in_both():
  assert "THE COMPARISON IS VOID: base too good" in format_table(report(void="base too good"))
  assert "VOID" not in format_table(report())


def test_page_says_everything(tmp_path):
  page = Page(written(tmp_path, report(void="base too good")))
  for said in [
    "The comparison is void. base too good",
    "400 test questions seed 7 3 min 07 s 3.0 GiB at most",
    "25.0 → 85.0 %",
    "85.0 [80.0, 90.0]",
    "-1.23",
    "+60.0 [+55.0, +65.0]",
    "The interval includes zero: + R-ft over base.",
    "Generator tuning",
    "before Tarn ✗ after the Kelwick ✓",
    "In kelwick & Tarn.",
    "score 7.26",
    "12.3 s",
    "Teacher: base.",
  ]:
    assert said in page.text, said
  assert "plain instruction tuning" not in page.text  # not run: no figures
  assert "Some other" not in page.text  # no points


def test_answer_is_marked_in_its_passage(tmp_path):
  assert "In <mark>kelwick</mark> &amp; Tarn." in written(tmp_path, report())


def test_page_needs_nothing_and_no_text_acts(tmp_path):
  def poisoned(value):
    if isinstance(value, str):
      return value + HOSTILE
    if isinstance(value, list):
      return [poisoned(v) for v in value]
    if isinstance(value, dict):
      return {k: poisoned(v) for k, v in value.items()}
    return value

  value = poisoned(report(void="void"))
  value["curves"][HOSTILE] = value["curves"]["train_generator"]
  value["stages"][HOSTILE] = 1.0
  value["examples"][0]["passage"] = f"It is {value['examples'][0]['answers'][0]}."  # so the marked part is hostile too
  text = written(tmp_path, value)
  page = Page(text)
  assert not page.tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a"}
  names = {name for name, _ in page.attributes}
  assert not {n for n in names if n.startswith("on") or n in ("src", "href", "srcset", "action", "xlink:href")}
  style = text.split("<style>")[1].split("</style>")[0]
  assert not re.search(r"url\(|@import|http", style)
  assert "default-src 'none'" in text
  assert page.text.count("<script>alert(1)</script>") > 12  # there, as text
  assert page.tags <= Page(written(tmp_path, report(void="void"))).tags  # and it made no element of its own


@pytest.mark.parametrize(
  "missing", ["comparisons", "notes", "seed", "wall_s", "peak_memory_bytes", "stages", "curves", "examples"]
)
def test_parts_that_are_absent_are_left_out(tmp_path, missing):
  value = report()
  del value[missing]
  Page(written(tmp_path, value))
  format_table(value)
  value[missing] = None
  Page(written(tmp_path, value))
  format_table(value)


def test_report_without_rows(tmp_path):
  value = {"title": "Nothing", "rows": {}, "void": "nothing was run"}
  assert format_table(value).startswith("Nothing\n")
  assert "nothing was run" in Page(written(tmp_path, value)).text


def test_odd_figures(tmp_path):
  curve = {"steps": [1, 2, 3], "loss": [float("nan"), None, 0.5], "dev_steps": [3], "dev_loss": [float("inf")]}
  examples = [
    {"question": "?", "answers": ["x"], "prediction": "", "passage": None},
    {"question": "?", "answers": ["", "x"], "passage": "axb"},
  ]
  stages = {"quick": 0.0}
  text = written(tmp_path, report(curves={"train_retriever": curve}, examples=examples, stages=stages))
  assert not re.search(r"\b(nan|inf|None)\b", Page(text).text + str(re.findall(r'points="[^"]*"', text)))
  assert "<i>nothing</i> ✗" in text
  assert "a<mark>x</mark>b" in text


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0.3, 4.1, [0, 1, 2, 3, 4, 5]),
    (10, 1500, [0, 500, 1000, 1500]),
    (0.31, 0.42, [0.3, 0.35, 0.4, 0.45]),
    (2, 2, [2, 2.5]),
    (0, 0, [0, 0.5]),
  ],
)
def test_ticks(low, high, expected):
  assert ticks(low, high) == expected


def test_line_chart_is_to_scale():
  chart = line_chart([("a", [(0, 0), (50, 1), (100, 4)]), ("b", [(100, 2)])], x_label="step", y_label="loss")
  Page(chart)
  (x0, y0), (x1, y1), (x2, y2) = [
    tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', chart)[1].split()
  ]
  assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.01)
  assert (y0 - y1) / (y0 - y2) == pytest.approx(0.25, abs=0.01)
  labels = dict(re.findall(r'class="tick end"[^>]* y="([\d.]+)">(\d)</text>', chart))
  assert {float(y) - 4 for y, text in labels.items() if text in "04"} == {y0, y2}
  cy = float(re.search(r'cy="([\d.]+)"', chart)[1])
  assert (y0 - cy) / (y0 - y2) == pytest.approx(0.5, abs=0.01)
  assert line_chart([("a", [])], x_label="", y_label="") == ""


def test_long_curve_is_averaged_not_cut():
  chart = line_chart([("a", [(i, i % 2) for i in range(1000)])], x_label="step", y_label="loss")
  points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', chart)[1].split()]
  assert len(points) == 200
  assert all(b[0] > a[0] for a, b in itertools.pairwise(points))


def test_grouped_bars_are_to_scale():
  chart = grouped_bars(["recall@1", "recall@5"], [("before", [0.25, None]), ("after", [0.5, 1.0])], label="recall")
  heights = [float(h) for h in re.findall(r'class="bar [^>]*height="([\d.]+)"', chart)]
  assert len(heights) == 3
  assert heights[1] / heights[0] == pytest.approx(2, abs=0.01)
  assert heights[2] / heights[0] == pytest.approx(4, abs=0.01)
  assert grouped_bars(["recall@1"], [("before", [None])], label="") == ""


def test_interval_bars_are_to_scale():
  text = interval_bars([("a", 0.5, (0.25, 0.75), "50"), ("b", -0.5, None, "-50")], low=-1, high=1, strong="a")
  Page(text)
  assert re.findall(r'class="(\w+)" style="left:([\d.]+)%(?:;width:([\d.]+)%)?"', text) == [
    ("fill", "50.0", "25.0"),
    ("whisker", "62.5", "25.0"),
    ("zero", "50.0", ""),
    ("fill", "25.0", "25.0"),
    ("zero", "50.0", ""),
  ]
  assert text.count("strong") == 1
