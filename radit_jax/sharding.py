"""One mesh factory, and one table from the logical axes that parameters name to the axes of the mesh."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from radit_jax import hosts
from radit_jax.config import MeshConfig
from radit_jax.errors import UserError
from radit_jax.topology import arrange

#: Logical axis -> mesh axis. Parameters are spread over `fsdp` along the model width and over `tensor` along heads,
#: hidden units and vocabulary (Megatron's split: one all-reduce per block); what is small stays whole everywhere.
RULES: dict[str, str | None] = {
  "layers": None,  # scanned over: a sharded scan axis would gather every layer
  "vocab": "tensor",
  "embed": "fsdp",
  "mlp": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "norm": None,
  "positions": None,
}
ROW_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig = MeshConfig(), *, devices: list[jax.Device] | None = None) -> Mesh:
  """Mesh of axes ``data`` x ``fsdp`` x ``tensor``, all Auto (the compiler places what is not stated).

  Args:
    config: sizes of the axes; ``data=-1`` takes what is left.
    devices: default all devices of all processes.

  Raises:
    UserError: the sizes do not fit the devices, see :func:`radit_jax.topology.arrange`; or several processes were not
      started by :func:`radit_jax.hosts.connect`.

  Example:
    >>> make_mesh().axis_names
    ('data', 'fsdp', 'tensor')
  """
  if jax.process_count() != hosts.count():
    raise UserError(f"{jax.process_count()} processes that did not meet: call radit_jax.hosts.connect() first")
  devices = jax.devices() if devices is None else devices
  return Mesh(arrange(config, devices), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def partition_spec(logical_axes: tuple[str | None, ...]) -> PartitionSpec:
  """The table applied to one parameter.

  Raises:
    ValueError: an axis that is not in the table, or two dimensions that would share a mesh axis.

  Example:
    >>> partition_spec(("layers", "embed", "mlp"))
    P(None, 'fsdp', 'tensor')
  """
  unknown = [a for a in logical_axes if a is not None and a not in RULES]
  if unknown:
    raise ValueError(f"logical axis {unknown[0]!r} is not in sharding.RULES")
  axes = [None if a is None else RULES[a] for a in logical_axes]
  used = [a for a in axes if a is not None]
  if len(used) != len(set(used)):
    raise ValueError(f"logical axes {logical_axes} put two dimensions on one mesh axis: {axes}")
  return _spec(axes)


def _spec(axes: list[str | None]) -> PartitionSpec:
  while axes and axes[-1] is None:  # as jit writes what it returns: P() and P(None) are two programs
    axes.pop()
  return PartitionSpec(*axes)


def _sharding(path: Any, leaf: Any, mesh: Mesh | AbstractMesh) -> Any:
  """Sharding of one leaf: by its logical axes if it is a Variable that names them, else whole everywhere."""
  axes = getattr(leaf, "logical_axes", None) if isinstance(leaf, nnx.Variable) else None
  if axes is None:
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), leaf)
  value = leaf.get_value()
  if len(value.shape) != len(axes):
    raise ValueError(f"{jax.tree_util.keystr(path)}: shape {value.shape} against logical axes {axes}")
  spec = partition_spec(axes)
  for size, logical, axis in zip(value.shape, axes, spec, strict=False):  # the spec ends with its last mesh axis
    if axis is not None and size % mesh.shape[axis]:
      raise UserError(
        f"{jax.tree_util.keystr(path)}: its {logical} dimension is {size}, which mesh axis {axis}={mesh.shape[axis]} "
        f"does not divide; {_with_smaller(mesh, axis, math.gcd(size, mesh.shape[axis]))} does"
      )
  # Written as jit writes what a step returns, or the second step would be another program: without axes of size 1.
  kept = _spec([axis if axis is not None and mesh.shape[axis] > 1 else None for axis in spec])
  return jax.tree.map(lambda _: NamedSharding(mesh, kept), leaf)


def parameter_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
  """Shardings of a module, an optimizer state or any pytree of them, as a pytree of the same structure.

  Moments of a parameter are Variables with the parameter's logical axes, so an optimizer state is spread
  like its model.

  Args:
    tree: pytree; leaves that name no logical axes are replicated.
    mesh: from :func:`make_mesh`, or the mesh in force inside jit.

  Raises:
    UserError: a dimension that its mesh axis does not divide (both numbers named).
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _sharding(path, leaf, mesh), tree, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )


def constrain_rows(x: Array) -> Array:
  """Pins an activation to where its rows are: split over ``data`` and ``fsdp``, whole in every other dimension.

  Parameters are spread over ``fsdp`` too. Where nothing pins the rows, the compiler may bring all of them together
  rather than the kernel that they meet. As it is without a mesh in force (``jax.set_mesh``).

  Args:
    x: ``[N, ...]``, first dimension rows.

  Raises:
    UserError: a number of rows that the mesh does not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  check_rows(x.shape[0], mesh)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES))


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of everything whose first dimension is rows, examples or queries."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def round_up_rows(count: int, mesh: Mesh) -> int:
  """The smallest multiple of ``data`` x ``fsdp`` that is at least ``count``: for work where a batch may be padded.

  Example:
    >>> round_up_rows(5, make_mesh(devices=jax.devices()[:1]))
    5
  """
  shards = row_shards(mesh)
  return -(-count // shards) * shards


def row_shards(mesh: Mesh | AbstractMesh) -> int:
  """Parts the rows of a batch are split into: ``data`` x ``fsdp``."""
  return int(mesh.shape["data"] * mesh.shape["fsdp"])


def check_heads(mesh: Mesh | AbstractMesh, **counts: int) -> None:
  """Refuses heads that ``tensor`` does not divide: half a head would be computed by nobody.

  Args:
    mesh: without axes, everything fits.
    counts: ``num_heads`` and, where they differ, ``num_kv_heads``.

  Raises:
    UserError: naming both numbers and the mesh that works.
  """
  tensor = dict(mesh.shape).get("tensor", 1)
  for name, count in counts.items():
    if count % tensor:
      works = _with_smaller(mesh, "tensor", math.gcd(tensor, *counts.values()))
      raise UserError(f"{name} {count} over mesh axis tensor={tensor}: not divisible; {works} is")


def _with_smaller(mesh: Mesh | AbstractMesh, axis: str, size: int) -> str:
  """The same devices with less of one axis, a divisor of what it is, and more of ``data``."""
  sizes = {"data": 1, "fsdp": 1, "tensor": 1, **mesh.shape}
  sizes["data"] *= sizes[axis] // size
  sizes[axis] = size
  return " ".join(f"{name}={n}" for name, n in sizes.items())


def check_rows(count: int, mesh: Mesh | AbstractMesh) -> None:
  """Refuses a batch that the row axes do not divide, before anything is compiled.

  Raises:
    UserError: naming the batch, the axes and the nearest batch that works.
  """
  shards = row_shards(mesh)
  if count % shards:
    multiple = max(round(count / shards), 1) * shards
    raise UserError(
      f"batch of {count} rows over data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}: "
      f"choose a batch size that is a multiple of {shards}, such as {multiple}"
    )


@dataclasses.dataclass(frozen=True)
class RowShare:
  """What one process holds of every batch: some of the parts that its rows, and its examples, are split into.

  Attributes:
    parts: numbers of its parts, ascending.
    of: parts in all.
  """

  parts: tuple[int, ...] = (0,)
  of: int = 1

  def ranges(self, count: int) -> list[range]:
    """Its rows of a batch of ``count``, parts beside one another joined; ``of`` must divide ``count``.

    Example:
      >>> RowShare((0, 1, 3), 4).ranges(8)
      [range(0, 4), range(6, 8)]
    """
    size, out = count // self.of, list[range]()
    for part in self.parts:
      first = out.pop().start if out and out[-1].stop == part * size else part * size
      out.append(range(first, (part + 1) * size))
    return out


def row_share(mesh: Mesh) -> RowShare:
  """The parts that lie on devices of this process: all where it is the only one.

  Where ``tensor`` reaches over several processes, each of them holds, and reads, the same parts.
  """
  if hosts.count() == 1:
    return RowShare()
  parts = mesh.devices.reshape(row_shards(mesh), -1)
  own = [i for i, devices in enumerate(parts) if any(d.process_index == hosts.index() for d in devices)]
  return RowShare(tuple(own), len(parts))


def place_rows(tree: Any, mesh: Mesh, *, whole: bool = False) -> Any:
  """Puts a batch of numpy arrays onto the mesh, split along the first dimension.

  Args:
    tree: this process's rows of the batch, as :func:`row_share` says.
    mesh: from :func:`make_mesh`.
    whole: ``tree`` holds all rows of the batch, the same in every process.

  Raises:
    UserError: a first dimension that ``data`` x ``fsdp`` does not divide.
  """
  sharding, share = row_sharding(mesh), row_share(mesh)

  def place(x: Any) -> jax.Array:
    rows = x.shape[0] if whole else x.shape[0] * share.of // len(share.parts)
    check_rows(rows, mesh)
    if hosts.count() == 1:
      return jax.device_put(x, sharding)
    size = rows // share.of

    def part(index: Any) -> Any:
      number = (index[0].start or 0) // size
      at = number if whole else share.parts.index(number)
      return x[at * size : (at + 1) * size]

    return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

  return jax.tree.map(place, tree)


def place(tree: Any, shardings: Any) -> Any:
  """``jax.device_put`` of values that every process has: without the check that they are the same in all of them.

  Args:
    tree: arrays, of this process or on the mesh.
    shardings: pytree of the same structure.
  """
  if hosts.count() == 1:
    return jax.device_put(tree, shardings)

  def one(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

  return jax.tree.map(one, tree, shardings)


def gather(tree: Any) -> Any:
  """NumPy arrays of a tree of arrays, whole in every process. With several processes all must call it."""

  def one(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(one, tree)


def total(tree: Any) -> Any:
  """Sums over all processes of NumPy arrays of whole numbers below 2^31; all must call it."""
  if hosts.count() == 1:
    return tree
  from jax.experimental import multihost_utils

  def one(x: Any) -> Any:
    return multihost_utils.process_allgather(x.astype(np.int32)).sum(axis=0, dtype=x.dtype)

  return jax.tree.map(one, tree)


def concatenate(array: np.ndarray) -> np.ndarray:
  """Arrays of all processes behind one another, of one shape and 32 bits a number; all must call it."""
  if hosts.count() == 1:
    return array
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(array, tiled=True))
