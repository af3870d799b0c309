"""Where a benchmark's figures go: its own section of a Markdown page, and nothing else of it."""

import pathlib
import re


def table(header: list[str], rows: list[list[str]]) -> str:
  """A Markdown table.

  Args:
    header: names of the columns.
    rows: cells, as many as there are columns.
  """
  lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
  return "\n".join(lines)


def write_section(page: str | None, name: str, text: str) -> None:
  """Prints a section, and puts it between ``<!-- name -->`` and ``<!-- /name -->`` of a page.

  Args:
    page: path; None only prints.
    name: of the section.
    text: Markdown.

  Raises:
    ValueError: the page has no such section.
  """
  print(text)
  if page is None:
    return
  path = pathlib.Path(page)
  before = path.read_text(encoding="utf-8")
  pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
  if not pattern.search(before):
    raise ValueError(f"{page}: no section <!-- {name} --> ... <!-- /{name} -->")
  path.write_text(pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", before), encoding="utf-8")
