"""Builds one ScaNN searcher: a program of its own, which its parent can lose without being lost itself.

It reads one line of JSON from stdin, see :func:`radit_jax.retrieval.scann.build_shard`, and writes one to stdout.
"""

import json
import os
import pathlib
import sys
import threading
import time
from typing import Any

import numpy as np

from radit_jax.retrieval.scann import BLOCK, PICKLED, load_searcher, require


def build(task: dict[str, Any]) -> dict[str, float]:
  """Builds, writes, reads back and searches.

  Args:
    task: ``sources``, ``out`` and ``parameters``.

  Returns:
    ``seconds`` it took, and ``peak_bytes`` held.
  """
  start = time.monotonic()
  parameters, out = task["parameters"], pathlib.Path(task["out"])
  data = _read(task["sources"])
  scann = require()
  reorder_type = scann.scann_ops_pybind.scann_builder.ReorderType.BFLOAT16
  builder = scann.scann_ops_pybind.builder(data, 1, "dot_product")
  if parameters["method"] == "tree":
    builder = builder.tree(
      parameters["leaves"],
      1,  # every search says how many
      training_sample_size=parameters["tree_training"],
      soar_lambda=1.5,
      overretrieve_factor=2.0,
    )
  builder = builder.score_ah(
    BLOCK, anisotropic_quantization_threshold=0.2, training_sample_size=parameters["training"]
  ).reorder(1, quantize=reorder_type)
  probe = np.array(data[:1])
  searcher = builder.build()
  del builder, data  # it has a copy; what it writes takes memory again
  out.mkdir()
  # Without relative_path the files name the temporary folder they were written in.
  searcher.serialize(str(out), relative_path=True)
  (out / PICKLED).unlink(missing_ok=True)
  del searcher
  ids, products = load_searcher(out).search_batched_parallel(
    probe, final_num_neighbors=1, pre_reorder_num_neighbors=10, leaves_to_search=parameters.get("leaves")
  )
  if ids.shape != (1, 1) or not np.isfinite(products).all():
    raise ValueError(f"a first search found {ids.tolist()} with scores {products.tolist()}")
  return {"seconds": round(time.monotonic() - start, 2), "peak_bytes": _peak()}


def _read(sources: list[list[Any]]) -> np.ndarray:
  """Rows of several files as one float32 array; files are read one by one, as mapped pages would count as held."""
  parts = [(pathlib.Path(path), first, stop) for path, first, stop in sources]
  width = np.load(parts[0][0], mmap_mode="r", allow_pickle=False).shape[1]
  data = np.empty((sum(stop - first for _, first, stop in parts), width), np.float32)
  done = 0
  for path, first, stop in parts:
    data[done : done + stop - first] = np.load(path, mmap_mode="r", allow_pickle=False)[first:stop]
    done += stop - first
  return data


def _peak() -> int:
  """Most memory this program has held; what getrusage says includes its parent's, before it became this program."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _end_with_parent() -> None:
  sys.stdin.read()
  os._exit(1)


if __name__ == "__main__":
  given = json.loads(sys.stdin.readline())
  threading.Thread(target=_end_with_parent, daemon=True).start()
  sys.stdout.write(json.dumps(build(given)) + "\n")
  sys.stdout.flush()
  os._exit(0)  # the thread holds stdin, which an ordinary end would wait for
