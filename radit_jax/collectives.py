"""What a compiled program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_LINE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that sends an array; inside a loop it is one instruction all the same.

  Attributes:
    kind: one of `KINDS`.
    dtype: as the compiler names it, such as "f32".
    shape: of what a device has afterwards.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]


def collectives(hlo: str) -> list[Collective]:
  """Collectives of a compiled program, in the order of its text.

  Args:
    hlo: from ``compiled.as_text()``.

  Example:
    >>> collectives("%g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %p), dimensions={0}")
    [Collective(kind='all-gather', dtype='f32', shape=(8, 4))]
  """
  out = []
  for line in hlo.splitlines():
    found = _LINE.search(line)
    if found:
      arrays = [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(found[1])]
      # Of a started gather the result is a pair, what goes in and what comes out; a reduction may have many results.
      kept = arrays[-1:] if found[2] == "all-gather" else arrays
      out += [Collective(found[2], dtype, shape) for dtype, shape in kept]
  return out


def activations_of_other_rows(hlo: str, *, num_rows: int, shards: int, widths: Iterable[int]) -> list[Collective]:
  """Gathers and sums after which a device holds activations of more rows than its own.

  Told by their sizes, so no parameter may have dimensions like these. Integers do not count (token ids are small, and
  the embedding needs them), nor numbers of which a row has one only.

  Args:
    hlo: from ``compiled.as_text()``.
    num_rows: rows of the batch.
    shards: parts they are split into; it divides ``num_rows``.
    widths: sizes of the dimensions beside the rows: tokens, answers, of an encoder the embedding.
  """
  several = {num_rows // shards * n for n in range(2, shards + 1) if shards % n == 0}
  widths = set(widths)
  flat = {rows * width for rows in several for width in widths}

  def of_several_rows(c: Collective) -> bool:
    floats = c.dtype.startswith(("f", "bf"))
    by_row = bool(several & set(c.shape) and widths & set(c.shape)) and math.prod(c.shape) >= min(flat)
    return floats and c.kind in ("all-gather", "all-reduce") and (by_row or bool(flat & set(c.shape)))

  return [c for c in collectives(hlo) if of_several_rows(c)]
