"""The mesh, the one table, and what does not fit it."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from radit_jax.collectives import activations_of_other_rows, collectives
from radit_jax.config import MeshConfig
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.sharding import (
  check_heads,
  constrain_rows,
  make_mesh,
  parameter_shardings,
  partition_spec,
  place_rows,
  round_up_rows,
  row_sharding,
)
from radit_jax.topology import arrange


def test_mesh_takes_what_is_left_for_data_and_is_auto():
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  ("config", "works"),
  [
    (MeshConfig(fsdp=3), "data=2 fsdp=4 tensor=1"),
    (MeshConfig(data=3), "data=8 fsdp=1 tensor=1"),
    (MeshConfig(data=8, tensor=2), "data=4 fsdp=1 tensor=2"),
    (MeshConfig(data=2, fsdp=16), "data=2 fsdp=4 tensor=1"),
    (MeshConfig(fsdp=16), "data=1 fsdp=8 tensor=1"),
    (MeshConfig(data=1, fsdp=2, tensor=2), "data=2 fsdp=2 tensor=2"),
    (MeshConfig(fsdp=3, tensor=3), "data=1 fsdp=2 tensor=4"),
  ],
)
def test_mesh_that_does_not_make_the_devices_is_refused_and_the_nearest_named(config, works):
  with pytest.raises(UserError, match=rf"^mesh data={config.data} .* does not make 8 devices; {works} does$"):
    make_mesh(config)
  kept = dict(pair.split("=") for pair in works.split())
  assert make_mesh(MeshConfig(**{name: int(size) for name, size in kept.items()})).size == 8


def devices_of_slices(*sizes):
  """What the factory reads of a device; a real TPU topology of two slices is compiled for by a script."""
  ids = itertools.count()
  return [
    types.SimpleNamespace(id=next(ids), slice_index=s, process_index=s, platform="cpu", device_kind="cpu")
    for s, size in enumerate(sizes)
    for _ in range(size)
  ]


def test_slices_lie_along_data():
  devices = devices_of_slices(4, 4)
  mixed = [devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
  for config in (MeshConfig(fsdp=2, tensor=2), MeshConfig(data=2, fsdp=4), MeshConfig(data=4, tensor=2), MeshConfig()):
    placed = arrange(config, mixed)
    assert placed.shape == (8 // (config.fsdp * config.tensor), config.fsdp, config.tensor)
    assert sorted(d.id for d in placed.flat) == list(range(8))
    half = len(placed) // 2
    assert {d.slice_index for d in placed[:half].flat} == {0}
    assert {d.slice_index for d in placed[half:].flat} == {1}


def test_mesh_that_does_not_fit_the_slices_is_refused():
  message = r"^mesh data=1 fsdp=8 tensor=1 does not make 8 devices in 2 slices; data=2 fsdp=4 tensor=1 does$"
  with pytest.raises(UserError, match=message):
    arrange(MeshConfig(data=1, fsdp=8), devices_of_slices(4, 4))
  with pytest.raises(UserError, match=r"^2 slices of 4, 2 devices: all must have as many$"):
    arrange(MeshConfig(), devices_of_slices(4, 2))


def test_heads_that_tensor_does_not_divide_are_refused():
  mesh = AbstractMesh((1, 2, 16), ("data", "fsdp", "tensor"))
  check_heads(mesh, num_heads=32, num_kv_heads=16)
  with pytest.raises(UserError, match=r"^num_kv_heads 8 over .* tensor=16: not divisible; data=2 fsdp=2 tensor=8 is$"):
    check_heads(mesh, num_heads=32, num_kv_heads=8)
  with pytest.raises(
    UserError, match=r"^num_heads 12 over mesh axis tensor=16: not divisible; data=4 fsdp=2 tensor=4 is"
  ):
    check_heads(mesh, num_heads=12)


def test_table_refuses_unknown_axes_and_collisions():
  assert partition_spec(("vocab", "embed")) == P("tensor", "fsdp")
  assert partition_spec(("layers", "norm")) == partition_spec(("norm",))  # replicated, by one name
  with pytest.raises(ValueError, match="'width' is not in"):
    partition_spec(("width",))
  with pytest.raises(ValueError, match="two dimensions on one mesh axis"):
    partition_spec(("heads", "mlp"))


def test_dimension_that_the_mesh_does_not_divide_is_named(mesh8):
  tree = {"w": nnx.Param(jnp.zeros((6, 7)), logical_axes=("embed", "mlp"))}
  with pytest.raises(
    UserError, match=r"mlp dimension is 7, which mesh axis tensor=2 does not divide; data=4 fsdp=2 tensor=1 does$"
  ):
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
  with pytest.raises(UserError, match=r"^batch of 6 rows .* multiple of 4, such as 8$"):
    place_rows(np.zeros((6, 2)), mesh8)
  assert round_up_rows(5, mesh8) == 8


def test_pinned_rows_stay_and_the_kernel_travels():
  """The compiler's own choice keeps the widths of a table apart, and brings the rows read from it together."""
  mesh = make_mesh(MeshConfig(fsdp=8))
  tokens = jax.ShapeDtypeStruct((24, 10), jnp.int32, sharding=row_sharding(mesh))
  table, w = (
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    for shape, spec in (((128, 32), P(None, "fsdp")), ((32, 64), P("fsdp")))
  )

  def product(tokens, table, w, pinned):
    x = constrain_rows(table[tokens]) if pinned else table[tokens]
    return jnp.tanh(x.reshape(240, 32) @ w).reshape(24, 10, 64)

  with jax.set_mesh(mesh):
    jitted = jax.jit(product, static_argnums=3)
    texts = [jitted.lower(tokens, table, w, pin).compile().as_text() for pin in (False, True)]
  free, pinned = (activations_of_other_rows(t, num_rows=24, shards=8, widths=(10,)) for t in texts)
  assert free
  assert not pinned
  assert ("all-gather", "f32", (32, 64)) in [(c.kind, c.dtype, c.shape) for c in collectives(texts[1])]


def test_rows_are_pinned_only_where_there_is_a_mesh_that_divides_them(mesh8):
  x = jnp.zeros((6, 2))
  assert constrain_rows(x) is x
  with jax.set_mesh(mesh8):
    assert jax.jit(constrain_rows)(jnp.zeros((8, 2))).sharding.spec == P(("data", "fsdp"))
    with pytest.raises(UserError, match=r"^batch of 6 rows over data=2 x fsdp=2"):
      jax.jit(constrain_rows)(x)


@pytest.mark.parametrize("kernel", [Decoder, Bert])
def test_models_refuse_a_mesh_that_does_not_divide_their_heads(kernel, mesh8):
  """Also where nothing was read from files; before anything is compiled."""
  if kernel is Decoder:
    shape = DecoderConfig(8, 24, 8, num_layers=1, num_heads=6, num_kv_heads=3, head_dim=4)
    model, message = nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0))), "num_kv_heads 3"
  else:
    config = BertConfig(8, 24, num_layers=1, num_heads=3, intermediate_size=8)
    model, message = nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0))), "num_heads 3"
  tokens = jax.ShapeDtypeStruct((8, 4), jnp.int32)
  message = rf"^{message} over mesh axis tensor=2: not divisible; data=4 fsdp=2 tensor=1 is"
  with jax.set_mesh(mesh8), pytest.raises(UserError, match=message):
    jax.eval_shape(lambda m, t: m(t) if kernel is Decoder else m(t, t > 0), model, tokens)
