"""Checks the report of `radit quickstart --controls` against what the recipe must show. Exit status 1 if it does not.

python scripts/check_quickstart.py runs/quickstart/report.json
"""

import json
import pathlib
import sys
from typing import Any

ROWS = ("closed_book", "base", "it", "lm_ft", "r_ft", "ra_dit", "ra_dit_gold")
GIB = 2**30


def failures(report: dict[str, Any]) -> list[str]:
  """What the report does not show, one line each; times are left out, as machines are noisy."""
  rows = report["rows"]
  missing = [name for name in ROWS if name not in rows]
  if missing:
    return [f"rows missing: {missing}"]
  match = {name: rows[name]["exact_match"] for name in ROWS}
  recall = {name: row["recall@1"] for name, row in rows.items()}
  lift = recall["r_ft"] - recall["base"]
  shuffled = recall["r_ft_shuffled"] - recall["base"]
  checks = {
    f"void: {report['void']}": report["void"] is None,
    f"RA-DIT {match['ra_dit']:.1%} is below 80 %": match["ra_dit"] >= 0.80,
    f"RA-DIT with the gold passage {match['ra_dit_gold']:.1%} is below 95 %": match["ra_dit_gold"] >= 0.95,
    f"closed book {match['closed_book']:.1%} is above 10 %": match["closed_book"] <= 0.10,
    f"R-ft lifts recall@1 by {100 * lift:.1f} points, fewer than 10": lift >= 0.10,
    f"the shuffled teacher lifts recall@1 by {100 * shuffled:.1f} points, more than 2": shuffled <= 0.02,
    f"peak memory {report['peak_memory_bytes'] / GIB:.1f} GiB is above 6": report["peak_memory_bytes"] < 6 * GIB,
  }
  # Each alone at least neither, both at least each alone: by the paired bootstrap, so two questions decide nothing.
  for c in report["comparisons"]:
    low, high = c["ci"]
    checks[f"{c['label']}: {100 * c['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"] = high >= 0
  return [text for text, holds in checks.items() if not holds]


if __name__ == "__main__":
  found = failures(json.loads(pathlib.Path(sys.argv[1]).read_text()))
  print("\n".join(found) or "the report shows what it must")
  sys.exit(1 if found else 0)
