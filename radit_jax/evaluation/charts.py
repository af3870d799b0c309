"""Charts as inline SVG and HTML: no script, no font, no image from anywhere. Colours come from the page's style."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]
#: Size of an SVG in its own units; a phone shows it at about this width, so its text stays readable there.
_WIDTH, _HEIGHT = 350.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 12.0, 34.0
#: More points than this cannot be told apart at that width; they are averaged in equal groups.
_MAX_POINTS = 200


def ticks(low: float, high: float, count: int = 4) -> list[float]:
  """Round numbers that span an interval, about ``count`` steps of 1, 2 or 5 times a power of ten.

  Example:
    >>> ticks(0.3, 4.1)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
  """
  spread = (high - low) or abs(high) or 1.0
  raw = spread / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(lines: Sequence[tuple[str, Sequence[Point]]], *, x_label: str, y_label: str) -> str:
  """Lines over a common pair of axes; the first is drawn thin, further ones bold with their points.

  Args:
    lines: ``(name, points)`` each; points that are not finite are left out.
    x_label: what runs along the bottom.
    y_label: what runs up the side.

  Returns:
    HTML, or "" where no point is left.
  """
  kept = [(name, _thinned([p for p in points if all(map(math.isfinite, p))])) for name, points in lines]
  kept = [(name, points) for name, points in kept if points]
  if not kept:
    return ""
  xs, ys = zip(*[p for _, points in kept for p in points], strict=True)
  x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
  x_high = max(max(xs), x_ticks[0] + 1e-9)  # the last tick may lie far behind the last step

  def at(point: Point) -> tuple[float, float]:
    x = _LEFT + (point[0] - x_ticks[0]) / (x_high - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)
    y = _TOP + (y_ticks[-1] - point[1]) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)
    return round(x, 1), round(y, 1)

  marks = [_y_axis([(at((x_ticks[0], t))[1], f"{t:g}") for t in y_ticks])]
  for tick in x_ticks:
    if tick <= x_high:
      marks.append(f'<text class="tick mid" x="{at((tick, 0))[0]}" y="{_HEIGHT - 18}">{tick:g}</text>')
  marks.append(f'<text class="tick mid" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 3}">{escape(x_label)}</text>')
  for number, (_, points) in enumerate(kept):
    spots = [at(p) for p in points]
    drawn = " ".join(f"{x},{y}" for x, y in spots)
    marks.append(f'<polyline class="line s{number}" points="{drawn}"/>')
    if number or len(spots) == 1:
      marks += [f'<circle class="dot s{number}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in spots]
  ends = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in kept)
  return _svg(marks, f"{y_label}: {ends}") + _legend([name for name, _ in kept])


def grouped_bars(groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], *, label: str) -> str:
  """Bars of shares in [0, 1], one group per measure, one bar per series.

  Args:
    groups: what is measured, left to right.
    series: ``(name, shares)`` each, a share or None per group.
    label: said to screen readers.

  Returns:
    HTML, or "" where there is no share.
  """
  if not any(share is not None for _, shares in series for share in shares):
    return ""
  bottom, height = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM
  slot = (_WIDTH - _LEFT - _RIGHT) / len(groups)
  width = 0.72 * slot / len(series)
  marks = [_y_axis([(round(bottom - share * height, 1), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)])]
  for g, group in enumerate(groups):
    middle = _LEFT + (g + 0.5) * slot
    marks.append(f'<text class="tick mid" x="{middle:.1f}" y="{_HEIGHT - 14}">{escape(group)}</text>')
    for s, (_, shares) in enumerate(series):
      share = shares[g]
      if share is None:
        continue
      x, y = middle + (s - len(series) / 2) * width, bottom - share * height
      marks.append(
        f'<rect class="bar s{s}" x="{x + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{bottom - y:.1f}"/>'
      )
      marks.append(f'<text class="value mid" x="{x + width / 2:.1f}" y="{max(y - 4, 10):.1f}">{100 * share:.0f}</text>')
  return _svg(marks, label) + _legend([name for name, _ in series])


def interval_bars(
  rows: Sequence[tuple[str, float, tuple[float, float] | None, str]], *, low: float, high: float, strong: str = ""
) -> str:
  """Labelled horizontal bars from zero, with the interval of each as a whisker; they fit any width.

  Args:
    rows: ``(label, value, interval, text at the end)``.
    low: left end of the scale, at most 0.
    high: right end, above 0.
    strong: label of the row to set off.

  Returns:
    HTML.
  """

  def place(value: float) -> float:
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

  out = []
  for label, value, interval, text in rows:
    left, right = sorted((place(0), place(value)))
    marks = f'<i class="fill" style="left:{left}%;width:{round(right - left, 2)}%"></i>'
    if interval is not None:
      start, end = place(interval[0]), place(interval[1])
      marks += f'<i class="whisker" style="left:{start}%;width:{round(end - start, 2)}%"></i>'
    if low < 0:
      marks += f'<i class="zero" style="left:{place(0)}%"></i>'
    kind = "hbar strong" if label == strong else "hbar"
    out.append(
      f'<div class="{kind}"><span class="name">{escape(label)}</span><span class="track">{marks}</span>'
      f'<span class="end">{escape(text)}</span></div>'
    )
  return "\n".join(out)


#: Colours of a chart that stands alone, for light and dark pages alike.
_ALONE = (
  "text{font:12px system-ui,sans-serif;fill:#5c6878}.head{font-weight:600;fill:#1b2430}.bar{fill:#0f766e}"
  ".span{stroke:#9aa7b8;stroke-width:3}.s0{fill:#5c6878}.s1{fill:#0f766e}.end{text-anchor:end}.mid{text-anchor:middle}"
  "@media(prefers-color-scheme:dark){text{fill:#9aa7b6}.head{fill:#e5eaf1}.bar,.s1{fill:#2dd4bf}.s0{fill:#9aa7b6}}"
)


def set_bars(rows: Sequence[tuple[str, float, tuple[int, int], tuple[int, int]]], titles: Mapping[int, str]) -> str:
  """Sets of a mix: a bar for the share of each, and its lengths from median to 95th percentile on a logarithmic scale.

  Args:
    rows: ``(name, share, words asked, words answered)`` each; lengths as median and 95th percentile.
    titles: row number -> heading above that row.

  Returns:
    An SVG file of its own.
  """
  most = max((share for _, share, _, _ in rows), default=1.0) or 1.0
  longest = max(max(n, 10) for _, _, *lengths in rows for pair in lengths for n in pair)
  decades = math.ceil(math.log10(longest))
  y, marks = 6, []

  def along(words: float) -> float:
    return round(400 + 240 * math.log10(max(words, 1)) / decades, 1)

  for i, (name, share, asked, answered) in enumerate(rows):
    if i in titles:
      y += 30
      marks.append(f'<text class="head" x="8" y="{y - 6}">{escape(titles[i])}</text>')
      marks.append(f'<text x="150" y="{y - 6}">share of the draws</text>')
      marks.append(f'<text class="s0" x="400" y="{y - 6}">words asked</text>')
      marks.append(f'<text class="s1" x="480" y="{y - 6}">and answered (median to p95)</text>')
    y += 20
    marks.append(f'<text class="end" x="140" y="{y}">{escape(name)}</text>')
    marks.append(f'<rect class="bar" x="150" y="{y - 9}" width="{round(160 * share / most, 1)}" height="9"/>')
    marks.append(f'<text x="{round(156 + 160 * share / most, 1)}" y="{y}">{share:.1%}</text>')
    for s, (middle, high) in enumerate((asked, answered)):
      if not high:
        continue
      at = y - 7 + 5 * s
      marks.append(f'<line class="span" x1="{along(middle)}" x2="{along(high)}" y1="{at}" y2="{at}"/>')
      marks.append(f'<circle class="s{s}" cx="{along(middle)}" cy="{at}" r="3"/>')
  y += 22
  marks += [f'<text class="mid" x="{along(10**d)}" y="{y}">{10**d:,}</text>' for d in range(decades + 1)]
  label = "; ".join(f"{name} {share:.1%}" for name, share, _, _ in rows)
  inside = "\n".join(marks)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {y + 8}" role="img" aria-label="{escape(label)}">\n'
    f"<style>{_ALONE}</style>\n{inside}\n</svg>\n"
  )


def _thinned(points: list[Point]) -> list[Point]:
  size = -(-len(points) // _MAX_POINTS)
  if size <= 1:
    return points
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _y_axis(places: Sequence[tuple[float, str]]) -> str:
  lines = [
    f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4}">{escape(text)}</text>'
    for y, text in places
  ]
  return "".join(lines)


def _svg(marks: Sequence[str], label: str) -> str:
  inside = "\n".join(marks)
  return f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">\n{inside}\n</svg>\n'


def _legend(names: Sequence[str]) -> str:
  items = "".join(f'<span><i class="key s{i}"></i>{escape(name)}</span>' for i, name in enumerate(names))
  return f'<p class="legend">{items}</p>\n'
