"""What a compiled program sends between devices, read from its text: kind, shape, devices together, how often."""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f8e4m3fn": 8, "f8e5m2": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between chips.

  Attributes:
    kind: one of :data:`KINDS`.
    dtype: of the elements, in the compiler's words.
    shape: of the result on one chip.
    group: chips that take part together.
    count: times it runs in one call of the program.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  group: int
  count: int

  @property
  def sent_bytes(self) -> float:
    """Bytes that a chip sends in all its runs, by the ring that needs the fewest."""
    size = math.prod(self.shape) * _bits(self.dtype) / 8
    share = (self.group - 1) / self.group
    once = {
      "all-gather": size * share,
      "all-reduce": 2 * size * share,
      "reduce-scatter": size * (self.group - 1),
      "all-to-all": size * share,
      "collective-permute": size,
    }[self.kind]
    return once * self.count


def collectives(text: str) -> list[Collective]:
  """All collectives of a program, those inside loops with their number of turns.

  The compiler spreads one collective over several fusions, so that it overlaps with computation; they share a channel,
  and are one here. A loop whose end is not a constant counts as one turn.

  Args:
    text: of the compiled program (``compiled.as_text()``).

  Example:
    >>> text = '''
    ... ENTRY %main (p: f32[4]) -> f32[8] {
    ...   %p = f32[4]{0} parameter(0)
    ...   ROOT %g = f32[8]{0} all-gather(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
    ... }'''
    >>> collectives(text)
    [Collective(kind='all-gather', dtype='f32', shape=(8,), group=2, count=1)]
    >>> collectives(text)[0].sent_bytes
    16.0
  """
  bodies = _computations(text)
  turns = _turns(bodies)
  found: dict[tuple[str, str, int], Collective] = {}
  for name, lines in bodies.items():
    for number, line in enumerate(lines):
      match = _COLLECTIVE.search(line)
      if match is None:
        continue
      arrays = [(kind, _shape(sizes)) for kind, sizes in _ARRAY.findall(match[1])]
      kind, group = match[2], _group(line)
      # Sums of several arrays are one instruction. A started one of another kind returns what goes in and what comes
      # out (and a permute its flags): the largest is what comes out.
      kept = arrays if kind == "all-reduce" else [max(arrays, key=lambda a: math.prod(a[1]) * _bits(a[0]))]
      channel = re.search(r"channel_id=(\d+)", line)
      for i, (dtype, shape) in enumerate(kept):
        key = (kind, channel[1] if channel else f"{name}/{number}", i)
        if key not in found or turns.get(name, 1) > found[key].count:
          scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
          found[key] = (
            Collective("reduce-scatter", dtype, (math.prod(shape) // group,), group, turns.get(name, 1))
            if scattered
            else Collective(kind, dtype, shape, group, turns.get(name, 1))
          )
  return list(found.values())


def activations_of_other_rows(text: str, *, num_rows: int, shards: int, widths: Iterable[int]) -> list[Collective]:
  """Gathers and sums after which a device holds activations of more rows than its own.

  Told by their sizes, so no parameter may have dimensions like these. Integers do not count (token ids are small, and
  the embedding needs them), nor numbers of which a row has one only.

  Args:
    text: from ``compiled.as_text()``.
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

  return [c for c in collectives(text) if of_several_rows(c)]


def _computations(text: str) -> dict[str, list[str]]:
  current: list[str] = []
  bodies = {"": current}
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      current = bodies.setdefault(("ENTRY " if line.startswith("ENTRY") else "") + head[1], [])
    elif line.startswith("  "):
      current.append(line)
  return bodies


def _turns(bodies: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation runs: once for each turn of the loops around it."""
  turns = {name: 1 for name in bodies if not name or name.startswith("ENTRY ")}
  todo = list(turns)
  while todo:
    caller = todo.pop()
    for line in bodies[caller]:
      loop = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line)
      called = {loop[2]: _end(bodies, loop[1])} if loop else {}
      for name in re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)", line):
        called[name] = 1
      for group in re.findall(r"branch_computations=\{(.*?)\}", line):
        called |= {name.strip().lstrip("%"): 1 for name in group.split(",")}
      for name, times in called.items():
        if name in bodies and turns[caller] * times > turns.get(name, 0):
          turns[name] = turns[caller] * times
          todo.append(name)
  return turns


def _end(bodies: dict[str, list[str]], condition: str) -> int:
  """What a loop's counter is compared with; 1 where that is no constant."""
  lines = list(bodies.get(condition, ()))
  for line in list(lines):
    for name in re.findall(r"calls=%?([\w.-]+)", line):
      lines += bodies.get(name, ())
  return max([1, *(int(n) for line in lines for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line))])


def _group(line: str) -> int:
  """Chips in one group, in any of the three ways they are written."""
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
  if listed:
    return listed[1].count(",") + 1
  counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
  if counted:
    return int(counted[1])
  named = re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line)
  if named:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
  return 2


def _shape(sizes: str) -> tuple[int, ...]:
  return tuple(int(n) for n in sizes.split(",") if n)


def _bits(dtype: str) -> int:
  return _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
