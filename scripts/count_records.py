"""Counts the examples that each reader makes of the original files below a folder, against the published numbers.

    python scripts/count_records.py FOLDER

Files are found by their names. Prints a row for each: examples, what else was counted, seconds, MB/s. Exits with 1 if
a count is not the published one or a file cannot be read whole.
"""

import argparse
import pathlib
import sys
import time

from radit_jax.data.policy import Skipped
from radit_jax.data.sources import read_examples
from radit_jax.errors import UserError

#: format, pattern of the path below the folder, published number of examples (None: not known, or not of this file)
KNOWN = [
  ("squad", "**/train-v1.1.json", 87_599),
  ("squad", "**/dev-v1.1.json", 10_570),
  ("squad", "**/xquad.??.json", 1_190),
  ("squad_v2", "**/train-v2.0.json", 130_319),
  ("squad_v2", "**/dev-v2.0.json", None),  # the official file has 11,873; a common half of it has 6,078
  ("gsm8k", "**/gsm8k/train.jsonl", 7_473),
  ("gsm8k", "**/gsm8k/test.jsonl", 1_319),
  ("commonsense_qa", "**/train_rand_split.jsonl", 9_741),
  ("commonsense_qa", "**/dev_rand_split.jsonl", 1_221),
  ("web_questions", "**/webquestions/trainmodel.json", 2_834),  # these three: 3,778, the official training set
  ("web_questions", "**/webquestions/val.json", 755),
  ("web_questions", "**/webquestions/devtest.json", 189),
  ("web_questions", "**/webquestions/test.json", 2_032),
  ("strategyqa", "**/strategyqa/train.json", 2_061),
  ("strategyqa", "**/strategyqa/dev.json", 229),
  ("aqua_rat", "**/aqua_rat/dev.json", 254),
  ("aqua_rat", "**/aqua_rat/test.json", 254),
  ("pubmed_qa", "**/ori_pqal.json", 1_000),
  ("freebase_qa", "**/FreebaseQA-*.tab", None),  # an older form than the published numbers count
  ("freebase_qa", "**/FreebaseQA-train.json", 20_358),
  ("freebase_qa", "**/FreebaseQA-dev.json", 3_994),
  ("freebase_qa", "**/FreebaseQA-eval.json", 3_996),
  ("nq_open", "**/NQ-open.train.jsonl", 87_925),
  ("nq_open", "**/NQ-open.dev.jsonl", 3_610),
  ("nq_open", "**/NQ-open.efficientqa.dev.1.1.jsonl", 1_800),
  ("nq_open", "**/NQ-open.efficientqa.test.1.1.jsonl", 1_769),
  ("mmlu", "**/mmlu/data/dev", 285),
  ("mmlu", "**/mmlu/data/val", None),  # 1,531 since the revision of 2021, 1,542 before
  ("mmlu", "**/mmlu/data/test", None),  # 14,042 since then, 14,079 before
  ("hotpot_qa", "**/hotpotqa_train.json", None),
  ("oasst1", "**/*_tree.jsonl", None),
  ("oasst1", "**/*.trees.jsonl.gz", None),
]


def count(format: str, path: pathlib.Path) -> tuple[int, str]:
  """Examples, and in words what else there is to say."""
  skipped, subjects, number = Skipped(), set(), 0
  for example in read_examples(path, format=format, skipped=skipped):
    number += 1
    subjects.add(example.metadata.get("subject"))
  notes = [f"{n} {reason}" for reason, n in skipped.counts.items()]
  if len(subjects) > 1:
    notes.append(f"{len(subjects)} subjects")
  return number, ", ".join(notes)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=pathlib.Path)
  folder = parser.parse_args().folder
  print("| format | file | examples | published | seconds | MB/s | also |\n|---|---|---|---|---|---|---|")
  wrong = found = 0
  for format, pattern, published in KNOWN:
    for path in sorted(folder.glob(pattern)):
      files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
      size = sum(p.stat().st_size for p in files)
      started = time.perf_counter()
      try:
        number, notes = count(format, path)
      except UserError as e:
        number, notes = -1, str(e)
      seconds = time.perf_counter() - started
      found += 1
      wrong += number < 0 or number != (published if published is not None else number)
      expected = "–" if published is None else f"{published:,}"
      name = path.relative_to(folder)
      print(
        f"| {format} | {name} | {number:,} | {expected} | {seconds:.2f} | {size / 1e6 / seconds:.0f} | {notes} |",
        flush=True,
      )
  print(f"\n{found} files, {wrong} not as published")
  return int(wrong > 0 or found == 0)


if __name__ == "__main__":
  sys.exit(main())
