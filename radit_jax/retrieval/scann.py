"""ScaNN as a source of candidates. It is given row numbers only, and what it returns is scored anew by the index."""

import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.errors import UserError

#: Below this many passages ScaNN scans them all: at 20,000 x 384 that takes well under a millisecond a query.
BRUTE_FORCE_BELOW = 20_000
#: From this many on, passages are partitioned; below, quantised scores of all of them are fast enough.
TREE_FROM = 100_000
#: ScaNN's loader unpickles a file of this name if it finds one. We never write it, and never load a folder that has it.
_PICKLED = "scann_docids.pkl"


def build_scann(embeddings: Float[np.ndarray, "N E"], directory: pathlib.Path) -> dict[str, Any]:
  """Builds a searcher for the number of passages and writes it to ``directory``.

  Under 20,000 passages brute force; under 100,000 asymmetric hashing (2 dimensions a block, anisotropic threshold 0.2)
  with the best reordered by bfloat16 products; above, the same within the nearest eighth of about √N partitions.

  Args:
    embeddings: ``[N, E]`` float32. **Must be finite**: one NaN kills the process inside ScaNN.
    directory: made here.

  Returns:
    What was built, for the manifest.

  Raises:
    UserError: ScaNN is not installed.
  """
  scann = _scann()
  reorder_type = scann.scann_ops_pybind.scann_builder.ReorderType.BFLOAT16
  builder = scann.scann_ops_pybind.builder(embeddings, 1, "dot_product")
  count = len(embeddings)
  parameters: dict[str, Any]
  if count < BRUTE_FORCE_BELOW:
    parameters = {"method": "brute_force"}
    builder = builder.score_brute_force()
  else:
    parameters = {"method": "quantized"}
    if count >= TREE_FROM:
      leaves = math.isqrt(count)
      parameters = {"method": "tree", "leaves": leaves, "leaves_to_search": math.ceil(leaves / 8)}
      # 250 points a partition place its centre well; more only cost time.
      sample = min(count, 250 * leaves)
      # SOAR lists a passage under a second partition. At 120,000 x 128 it lifts recall@10 from .93 to .98 at the cost
      # of a third more time a query; looking at more partitions instead takes twice the time for the same.
      builder = builder.tree(
        leaves,
        parameters["leaves_to_search"],
        training_sample_size=sample,
        soar_lambda=1.5,
        overretrieve_factor=2.0,
      )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100, quantize=reorder_type)
  directory.mkdir()
  # Without relative_path the files name the temporary folder they were written in.
  builder.build().serialize(str(directory), relative_path=True)
  return parameters


class ScannCandidates:
  """A searcher read from disk.

  Args:
    directory: written by :func:`build_scann`.

  Raises:
    UserError: ScaNN is not installed, the folder holds a pickle, or ScaNN cannot read it.
  """

  def __init__(self, directory: pathlib.Path):
    scann = _scann()
    if (directory / _PICKLED).exists():
      raise UserError(
        f"{directory / _PICKLED}: a pickle, which loading would execute; delete it or build the index again"
      )
    try:
      self._searcher = scann.scann_ops_pybind.load_searcher(str(directory), assets_backcompat_shim=False)
    except Exception as e:  # pybind turns every fault of the files into one of several exception types
      raise UserError(f"{directory}: ScaNN cannot read it ({str(e).splitlines()[0]}); build the index again") from e

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """More than ``k`` likely rows of every query, in no promised order.

    Args:
      queries: ``[Q, E]`` float32, finite, Q >= 1 (ScaNN raises on an empty batch).
      k: how many will be kept, at most the number of passages.

    Returns:
      ``[Q, C]`` int64 with C >= k; -1 where ScaNN found no more.
    """
    # bfloat16 order is right to three digits: the spare candidates are there for the float32 scores to choose from.
    wanted = max(2 * k, k + 16)
    ids, distances = self._searcher.search_batched_parallel(
      queries, final_num_neighbors=wanted, pre_reorder_num_neighbors=max(100, 2 * wanted)
    )
    # ScaNN fills short rows with id 0 and score NaN: taken at its word, passage 0 would follow every short result.
    return np.where(np.isnan(distances), -1, ids.astype(np.int64))


def _scann() -> Any:
  try:
    import scann
  except ImportError as e:
    raise UserError(
      f"backend scann: ScaNN cannot be imported here ({e}); install it, or use the backend exact"
    ) from None
  return scann
