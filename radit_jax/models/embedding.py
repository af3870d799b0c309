"""Rows of a table by token id, where the table is spread over the mesh."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int

from radit_jax.sharding import ROW_AXES, check_rows, partition_spec


def look_up(table: nnx.Variable[Array], tokens: Int[Array, "N T"], dtype: DTypeLike) -> Float[Array, "N T D"]:
  """``table[tokens]`` in type ``dtype``.

  On a mesh each device reads its own part of the table (vocabulary over ``tensor``, width over ``fsdp``) for the
  tokens of all rows of its ``fsdp`` group and then trades widths for rows. Left to the compiler, the table or the
  rows are brought together whole.

  Args:
    table: ``[V, D]``, of logical axes ("vocab", "embed").
    tokens: ids below V; on a mesh, rows over ``data`` and ``fsdp``.
    dtype: cast to before anything is sent.

  Raises:
    UserError: a number of rows that the mesh does not divide.

  Example:
    >>> table = nnx.Param(jnp.array([[0.0, 1.0], [2.0, 3.0]]), logical_axes=("vocab", "embed"))
    >>> look_up(table, jnp.array([[1, 0]]), jnp.float32).tolist()
    [[[2.0, 3.0], [0.0, 1.0]]]
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return table[...][tokens].astype(dtype)
  check_rows(len(tokens), mesh)

  def on_one_device(part: Array, own: Array) -> Array:
    ids = jax.lax.all_gather(own, "fsdp", tiled=True) - jax.lax.axis_index("tensor") * len(part)
    here = (ids >= 0) & (ids < len(part))
    found = jnp.where(here[..., None], part[jnp.where(here, ids, 0)].astype(dtype), 0)
    return jax.lax.psum(jax.lax.all_to_all(found, "fsdp", split_axis=0, concat_axis=2, tiled=True), "tensor")

  rows = PartitionSpec(ROW_AXES)
  specs = (partition_spec(("vocab", "embed")), rows)
  return jax.shard_map(on_one_device, in_specs=specs, out_specs=rows)(table[...], tokens)
