"""What an index will take, from its size alone: bytes on disk, bytes in memory, hours."""

import dataclasses

from radit_jax.config import Backend, Dtype, StoredDtype
from radit_jax.retrieval import scann

#: Bytes of a searcher on disk, for each value: bfloat16 for reordering, and a byte for each block of dimensions, under
#: two partitions in a tree; and what the tree notes of each passage.
_QUANTIZED, _TREE, _TREE_NOTES = 2 + 1 / scann.BLOCK, 2 + 2 / scann.BLOCK, 12
#: Bytes in memory for each value of a searcher that has been read: codes are packed there.
_RESIDENT = {"quantized": 2.7, "tree": 2.35}
#: Float32 copies of a shard that its build holds at most, beside the program itself; measured at 60,000 x 256 to
#: 250,000 x 256 and 200,000 x 768.
_COPIES = {"quantized": 2.75, "tree": 3.25}
_PROGRAM_BYTES = 60 * 2**20
#: Whose memory it is that search takes, where it is not that of the machine.
_PLACES = {"device": "of devices", "milvus": "of server"}


@dataclasses.dataclass(frozen=True)
class IndexPlan:
  """What an index takes, apart from the encoder and the passage store.

  Attributes:
    count: passages.
    dimension: width E.
    method: "exact", "quantized", "tree", "device" or "milvus".
    shards: searchers, built one after the other.
    embedding_bytes: on disk; the index shares these files where the file system can.
    searcher_bytes: on disk.
    build_bytes: of memory, at the peak of the build of a searcher.
    search_bytes: of memory, with all searchers in it; exact search reads the embeddings instead, from disk if need be;
      "device" and "milvus" hold them on all accelerators together, and on the server.
    one_searcher_bytes: of memory, with one after the other in it.
    hours: of encoding, at the given rate.
  """

  count: int
  dimension: int
  method: str
  shards: int
  embedding_bytes: int
  searcher_bytes: int
  build_bytes: int
  search_bytes: int
  one_searcher_bytes: int
  hours: float | None

  def summary(self) -> str:
    """A table for the command line."""
    time = "give --plan-rate, passages a second" if self.hours is None else f"{self.hours:,.1f} hours"
    one_by_one = f"; {_readable(self.one_searcher_bytes)} one after the other" if self.shards > 1 else ""
    rows = [
      ("passages", f"{self.count:,} of width {self.dimension}"),
      ("search", f"{self.method}, {self.shards} ScaNN searchers" if self.shards else self.method),
      ("embeddings on disk", _readable(self.embedding_bytes)),
      ("searchers on disk", _readable(self.searcher_bytes)),
      ("memory to build", _readable(self.build_bytes)),
      (f"memory {_PLACES.get(self.method, 'to search')}", _readable(self.search_bytes) + one_by_one),
      ("encoding", time),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def plan_index(
  count: int,
  dimension: int,
  *,
  dtype: StoredDtype = "float32",
  backend: Backend = "scann",
  device_dtype: Dtype = "bfloat16",
  shard_passages: int,
  rate: float | None = None,
) -> IndexPlan:
  """What an index of so many passages takes.

  Args:
    count: passages.
    dimension: width E of the embeddings.
    dtype: of the stored embeddings.
    backend: of the index.
    device_dtype: that the backend device holds the embeddings in.
    shard_passages: passages of one searcher at most.
    rate: passages encoded a second, of all processes together.

  Example:
    >>> plan_index(10_000, 384, shard_passages=2_000_000).embedding_bytes
    15360000
  """
  values = count * dimension
  shards = -(-count // shard_passages)
  largest = -(-count // shards)
  method = scann.choose(largest)["method"] if backend == "scann" else backend
  stored = values * (2 if dtype == "float16" else 4)
  on_disk = built = 0.0
  resident = one = float(stored)  # exact search reads all of them
  if backend in ("device", "milvus"):
    resident = one = float(values * (2 if backend == "device" and device_dtype == "bfloat16" else 4))
  elif method != "exact":
    on_disk = (_TREE * values + _TREE_NOTES * count) if method == "tree" else _QUANTIZED * values
    built = _COPIES[method] * 4 * largest * dimension + _PROGRAM_BYTES
    resident = _RESIDENT[method] * values
    one = _RESIDENT[method] * largest * dimension
  return IndexPlan(
    count=count,
    dimension=dimension,
    method=method,
    shards=shards if backend == "scann" and method != "exact" else 0,
    embedding_bytes=stored,
    searcher_bytes=round(on_disk),
    build_bytes=round(built),
    search_bytes=round(resident),
    one_searcher_bytes=round(one),
    hours=None if rate is None else count / rate / 3600,
  )


def _readable(size: float) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if size < 1000:
      return f"{size:,.3g} {unit}"
    size /= 1000
  return f"{size:,.3g} TB"
