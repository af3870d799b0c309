"""The sets of a mix: where their files lie, which of their examples are taken, and what share of the draws each gets.

What is taken is decided by hashes: an example is held out if its document's hash says so, and of a set above its cap
those with the smallest hashes are kept. So a set is read once, in the memory of what is kept of it; the order of its
files does not matter, and what two sets share lies on the same side of the split.
"""

import dataclasses
import hashlib
import heapq
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from radit_jax.config import MixConfig, OnError, SetConfig
from radit_jax.config.mix import PASSAGES
from radit_jax.data.policy import BadRecord, Skipped
from radit_jax.data.readers import READERS
from radit_jax.data.sources import Example, read_examples
from radit_jax.data.templates import instruct
from radit_jax.errors import UserError


def locate(source: SetConfig, data: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """The files or folders of a set; none if they are not there.

  A folder that TFDS prepared is found at ``<data>/<name>/…``, where TFDS has the set, and comes first.

  Args:
    source: the set.
    data: directory of all sets.
  """
  if READERS[source.read_as].prepared is not None:
    prepared = sorted(p.parent for p in (data / source.name).rglob("dataset_info.json"))
    if len(prepared) > 1:
      raise UserError(
        f"{data / source.name}: {len(prepared)} versions of the set that TFDS prepared ({prepared[0]}, {prepared[1]}); "
        "keep one"
      )
    if prepared:
      return (prepared[0],)
  found = {p: None for pattern in source.files for p in sorted(data.glob(pattern)) if not p.name.startswith(".")}
  return tuple(found)


def missing(mix: MixConfig, data: pathlib.Path) -> dict[str, str]:
  """Sets whose files are not there -> what was looked for, in a few words.

  Raises:
    UserError: no such directory.
  """
  if not data.is_dir():
    raise UserError(f"{data}: no such directory; `radit download --list` says what belongs into it")
  wanted = [s for s in mix.sets() if s.read_as != PASSAGES]
  return {s.name: "no " + " or ".join(s.files) for s in wanted if not locate(s, data)}


def group_of(example: Example) -> str:
  """What must not be shared between the splits: the document, of sets without documents the question.

  Example:
    >>> group_of(Example("i", "Who sails?", ("Mira",))) == group_of(Example("j", " who SAILS? ", ("Orsa",)))
    True
  """
  if example.group is not None:
    return f"group {example.group}"
  return f"text {' '.join((example.own_context or instruct(example)).lower().split())}"


def chance(seed: int, text: str) -> float:
  """A number in [0, 1) from a text: the same on every machine."""
  return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


@dataclasses.dataclass
class Taken:
  """What is taken of a set.

  Attributes:
    train: in the order of the files.
    dev: held out.
    num_train: there were before the cap.
  """

  train: list[Example]
  dev: list[Example]
  num_train: int


class Draw:
  """The examples of a set that a cap leaves, offered one by one.

  Args:
    cap: at most; None for all.
    seed: of the draw.
  """

  def __init__(self, cap: int | None, seed: int):
    self._cap, self._seed, self.seen = cap, seed, 0
    self._kept: list[tuple[float, int, Example]] = []

  def offer(self, example: Example) -> None:
    # The largest number stands first in this heap, and is the first to go. Numbers of places settle what is equal.
    item = (-chance(self._seed, f"draw {example.id}"), -self.seen, example)
    self.seen += 1
    if self._cap is None:
      self._kept.append(item)
    elif len(self._kept) < self._cap:
      heapq.heappush(self._kept, item)
    elif item[:2] > self._kept[0][:2]:
      heapq.heapreplace(self._kept, item)

  def kept(self) -> list[Example]:
    """In the order they were offered."""
    return [example for _, _, example in sorted(self._kept, key=lambda item: -item[1])]


def read_set(
  source: SetConfig, paths: Sequence[pathlib.Path], *, on_error: OnError, skipped: Skipped
) -> Iterator[Example]:
  """Examples of all files of a set, named ``<set>/<id>``.

  Raises:
    UserError: see :func:`radit_jax.data.sources.read_examples`; or an id that occurs in two files, under "strict".
  """
  places: dict[str, pathlib.Path] = {}
  for path in paths:
    reader = READERS[source.read_as]
    split = source.split if reader.splits or (path / "dataset_info.json").is_file() else None
    for example in read_examples(path, format=source.read_as, split=split, on_error=on_error, skipped=skipped):  # type: ignore[arg-type]
      if len(paths) > 1 and places.setdefault(example.id, path) != path:
        problem = f"id {example.id!r} was already used in {places[example.id]}"
        if on_error == "strict":
          raise UserError(f"{path}: {problem}; correct it, or leave such records out with --on-error skip")
        skipped.add(str(path), BadRecord(problem, reason="an id that was already used"))
        continue
      yield dataclasses.replace(example, id=f"{source.name}/{example.id}")


def take(
  examples: Iterable[Example], caps: Mapping[str, int | None], *, dev_fraction: float, seed: int
) -> dict[str, Taken]:
  """Splits a set by documents and caps it, for several uses at once.

  Args:
    examples: of the set.
    caps: use -> training examples at most. Dev examples are capped at the same fraction of them.
    dev_fraction: share of the documents that is held out.
    seed: of the split and of the draws.

  Returns:
    Use -> what is taken.
  """
  dev_caps = {use: None if cap is None else max(1, round(cap * dev_fraction)) for use, cap in caps.items()}
  draws = {use: (Draw(cap, seed), Draw(dev_caps[use], seed)) for use, cap in caps.items()}
  for example in examples:
    held_out = chance(seed, group_of(example)) < dev_fraction
    for draw in draws.values():
      draw[held_out].offer(example)
  return {use: Taken(train.kept(), dev.kept(), train.seen) for use, (train, dev) in draws.items()}


def shares(sets: Sequence[SetConfig], counts: Sequence[int]) -> list[float]:
  """Share of the draws of each set; they add up to 1.

  Sets with a weight have that; the others get what is left, in proportion to their examples. Where sets are missing, so
  that the weights do not add up to 1, all grow alike.

  Args:
    sets: those that are there.
    counts: training examples of each, capped.

  Example:
    >>> shares([SetConfig("text", format="passages", weight=0.1), SetConfig("gsm8k", ("g",))], [10, 50])
    [0.1, 0.9]
  """
  left = 1 - sum(s.weight or 0.0 for s in sets if s.weight is not None)
  total = sum(n for s, n in zip(sets, counts, strict=True) if s.weight is None)
  raw = [max(left, 0.0) * n / total if s.weight is None else s.weight for s, n in zip(sets, counts, strict=True)]
  return [share / sum(raw) for share in raw]


_SIGN = re.compile(r"[^\w\s]")


def likeness(text: str) -> str:
  """A text without capitals, signs and white space of any length: what equal questions share.

  Example:
    >>> likeness(" Who sails   the Vornara?")
    'who sails the vornara'
  """
  return " ".join(_SIGN.sub(" ", text.lower()).split())
