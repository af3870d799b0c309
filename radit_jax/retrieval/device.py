"""Search on the accelerators: stored embeddings spread over the mesh by rows, candidates of all devices merged."""

import functools
import json
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from radit_jax import hosts
from radit_jax.config import Dtype
from radit_jax.retrieval.metadata import Allowed
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import Settings, num_candidates
from radit_jax.sharding import gather, make_mesh, place

#: Rows multiplied at once on each device, and queries: 64 MiB of products.
_ROWS, _QUERIES = 2**14, 2**10
#: Queries are padded to a power of two, at least this one, so that programs are few.
_LEAST_QUERIES = 8
#: Share of a block's best rows that a TPU finds in it, see `jax.lax.approx_max_k`. CPUs and GPUs find all.
_RECALL = 0.98
#: Candidates of a query at most. They are sorted block by block: a search for more is exact search's.
_MOST = 2**14


class DeviceCandidates:
  """Embeddings held by the devices of a mesh.

  Args:
    stored: ``[N, E]`` embeddings; each process reads the rows of its own devices.
    dtype: they are held in; half the memory and the time in bfloat16, whose products order rows to two or three digits.
    settings: ``reorder`` is the number of candidates at least.
    mesh: rows are spread over all its axes; None takes every device of every process. With several processes all must
      make this and search alike, one search at a time.

  Attributes:
    mesh: as given.
  """

  def __init__(self, stored: Rows, dtype: Dtype, settings: Settings, *, mesh: Mesh | None = None):
    self.mesh = make_mesh() if mesh is None else mesh
    self._count, width = stored.shape
    self._settings = settings
    each = -(-self._count // self.mesh.size)
    self._block = min(_ROWS, each)
    each = -(-each // self._block) * self._block
    sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
    shape = (each * self.mesh.size, width)
    parts, longest, rounding = [], 0.0, 0.0
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      part = np.zeros((each, width), jnp.dtype(dtype))
      first = index[0].start or 0  # type: ignore[index]
      for at in range(first, min(first + each, self._count), _ROWS):
        block = stored[at : min(at + _ROWS, first + each)]
        held = part[at - first : at - first + len(block)]
        held[:] = block
        longest = max(longest, float(np.linalg.norm(block, axis=1).max()))
        rounding = max(rounding, float(np.linalg.norm(block - held.astype(np.float32), axis=1).max()))
      parts.append(jax.device_put(part, device))
    self._embeddings = jax.make_array_from_single_device_arrays(shape, sharding, parts)
    told = [json.loads(said) for said in hosts.exchange(json.dumps([longest, rounding]))]
    self._longest, self._rounding = (max(figures) for figures in zip(*told, strict=True))
    # Programs over several devices that two threads start at once can wait for one another for ever.
    self._turn = threading.Lock()

  @property
  def together(self) -> bool:
    """Whether the rows lie with several processes, all of which must search."""
    return len({device.process_index for device in self.mesh.devices.flat}) > 1

  def with_settings(self, settings: Settings) -> "DeviceCandidates":
    """The same embeddings under other settings."""
    other = object.__new__(DeviceCandidates)
    other.__dict__.update(self.__dict__, _settings=settings)
    return other

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """See :class:`radit_jax.retrieval.index.Candidates`."""
    return self._search(queries, k, None)[0]

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """See :class:`radit_jax.retrieval.index.Candidates`; all other rows are masked, so that the bound holds."""
    ids, least = self._search(queries, k, allowed.mask)
    q = queries.astype(np.float64)
    rounded = np.linalg.norm(q - queries.astype(self._embeddings.dtype).astype(np.float64), axis=1)
    length = np.linalg.norm(q, axis=1)
    # What rounding queries and embeddings can change a product by, and what adding them up in float32 can.
    wrong = length * self._rounding + rounded * (self._longest + self._rounding)
    wrong += 4 * q.shape[1] * np.finfo(np.float32).eps * length * self._longest
    return ids, least + wrong

  def _search(
    self, queries: Float[np.ndarray, "Q E"], k: int, mask: Bool[np.ndarray, "N"] | None
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """Candidates, and the least product among them where rows were left out, -inf where none were."""
    wanted = min(max(num_candidates(k), self._settings.reorder), self._count)
    if wanted > _MOST:
      return np.full((len(queries), k), -1, np.int64), np.full(len(queries), np.inf)
    ids, least = np.empty((len(queries), wanted), np.int64), np.empty(len(queries))
    with self._turn:
      allowed = None
      if mask is not None:
        padded = np.zeros(self._embeddings.shape[0], bool)
        padded[: self._count] = mask
        allowed = place(padded, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names)))
      for first in range(0, len(queries), _QUERIES):
        part = queries[first : first + _QUERIES]
        rows = max(_LEAST_QUERIES, 1 << (len(part) - 1).bit_length())
        q = np.zeros((rows, part.shape[1]), np.float32)
        q[: len(part)] = part
        found, products = gather(
          best_rows(
            self._embeddings,
            place(q, NamedSharding(self.mesh, PartitionSpec())),
            allowed,
            mesh=self.mesh,
            count=self._count,
            wanted=wanted,
            block=self._block,
          )
        )
        ids[first : first + len(part)] = found[: len(part)]
        least[first : first + len(part)] = products[: len(part), -1]
    return ids, least


@functools.partial(jax.jit, static_argnames=("mesh", "count", "wanted", "block"))
def best_rows(
  embeddings: Float[Array, "P E"],
  queries: Float[Array, "Q E"],
  allowed: Bool[Array, "P"] | None,
  *,
  mesh: Mesh,
  count: int,
  wanted: int,
  block: int,
) -> tuple[Int[Array, "Q C"], Float[Array, "Q C"]]:
  """The program of a search: every device goes over its rows block by block, then all merge what they found.

  Args:
    embeddings: ``[P, E]`` spread by rows over all axes of the mesh; those from ``count`` on are padding.
    queries: ``[Q, E]`` float32, the same on every device.
    allowed: ``[P]``, spread alike: only these rows, and the search in each block is exact; None takes all of them, and
      searches approximately where the hardware does.
    mesh: of the embeddings.
    count: rows that are real.
    wanted: rows to be found, C; at most ``count``.
    block: rows at once, a divisor of those that a device holds.

  Returns:
    ``[Q, C]`` int32 rows, best first, equal products by lower row, -1 where there are no more; and their products,
    ``-inf`` there.
  """
  axes = mesh.axis_names
  spread = PartitionSpec(axes)

  def on_one_device(x: Array, q: Array, ok: Array | None) -> tuple[Array, Array]:
    per = x.shape[0]
    kept = min(wanted, per)
    start = jax.lax.axis_index(axes) * per

    def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
      part = jax.lax.dynamic_slice_in_dim(x, number * block, block)
      # float32 is multiplied as such: on a TPU the default would round it to bfloat16.
      products = jnp.einsum(
        "qe,ne->qn",
        q.astype(x.dtype),
        part,
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
      )
      rows = start + number * block + jnp.arange(block, dtype=jnp.int32)
      usable = rows < count
      if ok is not None:
        usable &= jax.lax.dynamic_slice_in_dim(ok, number * block, block)
      products = jnp.where(usable, products, -jnp.inf)
      if ok is None:
        values, at = jax.lax.approx_max_k(products, min(kept, block), recall_target=_RECALL)
      else:
        values, at = jax.lax.top_k(products, min(kept, block))
      return _merged(carry, (values, rows[at]), kept), None

    nothing = jnp.full((q.shape[0], kept), -jnp.inf), jnp.full((q.shape[0], kept), -1, jnp.int32)
    found, _ = jax.lax.scan(step, nothing, jnp.arange(per // block, dtype=jnp.int32))
    products, ids = jax.tree.map(lambda a: jax.lax.all_gather(a, axes, axis=1, tiled=True), found)
    products, at = jax.lax.top_k(products, wanted)
    return jnp.where(products > -jnp.inf, jnp.take_along_axis(ids, at, axis=1), -1), products

  whole = PartitionSpec()
  specs: Any = (spread, whole, None if allowed is None else spread)
  return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(
    embeddings, queries, allowed
  )


def _merged(a: tuple[Array, Array], b: tuple[Array, Array], kept: int) -> tuple[Array, Array]:
  """The best of two lists of products and rows; of equal ones those of the first list, whose rows are lower."""
  products, rows = (jnp.concatenate(both, axis=1) for both in zip(a, b, strict=True))
  best, at = jax.lax.top_k(products, kept)
  return best, jnp.take_along_axis(rows, at, axis=1)
