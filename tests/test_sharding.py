"""The mesh, the one table, and what does not fit it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from radit_jax.config import MeshConfig
from radit_jax.errors import UserError
from radit_jax.sharding import make_mesh, parameter_shardings, partition_spec, place_rows, round_up_rows


def test_mesh_takes_what_is_left_for_data_and_is_auto():
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(data=3), MeshConfig(data=8, tensor=2)])
def test_mesh_that_does_not_make_the_devices_is_refused(config):
  with pytest.raises(UserError, match=r"does not make 8 devices; data=8 fsdp=1 tensor=1 would"):
    make_mesh(config)


def test_table_refuses_unknown_axes_and_collisions():
  assert partition_spec(("vocab", "embed")) == P("tensor", "fsdp")
  assert partition_spec(("layers", "norm")) == partition_spec(("norm",))  # replicated, by one name
  with pytest.raises(ValueError, match="'width' is not in"):
    partition_spec(("width",))
  with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
    partition_spec(("heads", "mlp"))


def test_dimension_that_the_mesh_does_not_divide_is_named(mesh8):
  tree = {"w": nnx.Param(jnp.zeros((6, 7)), logical_axes=("embed", "mlp"))}
  with pytest.raises(UserError, match=r"mlp dimension is 7, which mesh axis tensor=2 does not divide"):
    parameter_shardings(tree, mesh8)


def test_what_names_no_axes_is_whole_everywhere(mesh8):
  tree = {"count": jnp.zeros(()), "w": nnx.Param(jnp.zeros((6, 8)), logical_axes=("embed", "mlp"))}
  shardings = jax.tree.leaves(parameter_shardings(tree, mesh8))
  assert [s.spec for s in shardings] == [P(), P("fsdp", "tensor")]


def test_rows_are_split_over_data_and_fsdp(mesh8):
  placed = place_rows({"x": np.arange(16).reshape(8, 2)}, mesh8)["x"]
  assert placed.sharding.spec == P(("data", "fsdp"))
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
  np.testing.assert_array_equal(np.asarray(placed), np.arange(16).reshape(8, 2))
  with pytest.raises(UserError, match=r"batch of 6 rows .* multiple of 4"):
    place_rows(np.zeros((6, 2)), mesh8)
  assert round_up_rows(5, mesh8) == 8
