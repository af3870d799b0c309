"""How fast `radit prepare` turns a corpus into a passage store, and in how much memory.

    python benchmarks/chunking.py --megabytes 200 --processes 2

Writes a corpus of invented text (documents of a few hundred words, as in an encyclopedia; some words with accents),
makes the store, and prints megabytes per second by the clock and by CPU time, the parts of it, and peak memory. CPU
time is what to compare on a machine that does other things as well.
"""

import argparse
import json
import pathlib
import random
import resource
import shutil
import tempfile
import time

from radit_jax.data.corpus import Limit
from radit_jax.data.corpus.build import Build

SYLLABLES = ["ka", "lo", "mi", "ren", "ta", "so", "vel", "dor", "an", "ist", "ur", "pel", "gra", "sha", "til", "zen"]


def write_corpus(path: pathlib.Path, megabytes: float) -> int:
  """One document a line, three kilobytes on average; returns the bytes written."""
  draw = random.Random(0)
  words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(20_000)]
  words += [w + "é" for w in words[:200]]
  sentences = [" ".join(draw.choices(words, k=draw.randint(6, 34))).capitalize() + "." for _ in range(30_000)]
  written = number = 0
  with open(path, "w", encoding="utf-8") as f:
    while written < megabytes * 1e6:
      text = " ".join(draw.choices(sentences, k=draw.randint(4, 44)))
      line = json.dumps({"id": str(number), "title": f"Article {number}", "text": text}, ensure_ascii=False)
      written += f.write(line + "\n")
      number += 1
  return path.stat().st_size


def cpu_seconds() -> float:
  """Of this process and of those that it has waited for."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--megabytes", type=float, default=200)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--words", type=int, default=100)
  options = parser.parse_args()
  root = pathlib.Path(tempfile.mkdtemp(prefix="chunking."))
  try:
    size = write_corpus(root / "corpus.jsonl", options.megabytes)
    build = Build(
      root / "passages",
      root / "corpus.jsonl",
      format="jsonl",
      limit=Limit(options.words),
      recipe={},
      processes=options.processes,
    )
    start, used = time.monotonic(), cpu_seconds()
    build.scan()
    scanned = time.monotonic()
    counts = build.write({})
    end, used = time.monotonic(), cpu_seconds() - used
    peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
      f"{size / 1e6:.0f} MB, {counts.documents} documents, {counts.passages} passages, {options.processes} processes"
    )
    print(
      f"clock: {size / 1e6 / (end - start):.1f} MB/s (cutting {scanned - start:.1f} s, writing {end - scanned:.1f} s)"
    )
    print(f"CPU time: {used:.1f} s, {size / 1e6 / used:.1f} MB per second of one CPU")
    print(f"peak memory: {peak[0]:.0f} MB in this process, {peak[1]:.0f} MB in the largest other")
  finally:
    shutil.rmtree(root)


if __name__ == "__main__":
  main()
