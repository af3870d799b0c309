"""Kernels in 8 and 4 bits against numpy, and the one product over every way a kernel is held."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from radit_jax.errors import UserError
from radit_jax.models.kernels import (
  NF4_BLOCK,
  NF4_VALUES,
  LoraKernel,
  dequantize,
  project,
  quantize,
)
from radit_jax.sharding import parameter_shardings

L, IN, OUT, RANK = 2, 128, 24, 4
AXES = ("layers", "embed", "mlp")


@pytest.fixture
def w(rng):
  value = rng.normal(size=(L, IN, OUT)).astype(np.float32)
  value[0, :, 3] = 0.0  # a column without a scale
  value[1, :64, 5] *= 1e-3  # a block far smaller than its neighbour
  return value


def stored(w, form):
  return quantize(jnp.asarray(w), AXES, form)


def slow_int8(w):
  out = np.zeros_like(w)
  for layer, column in np.ndindex(L, OUT):
    largest = np.abs(w[layer, :, column]).max()
    if largest:
      scale = np.float32(largest) / np.float32(127)
      out[layer, :, column] = np.round(w[layer, :, column] / scale) * scale
  return out


def slow_nf4(w):
  values = np.array(NF4_VALUES, np.float32)
  out = np.zeros_like(w)
  for layer, start, column in np.ndindex(L, IN // NF4_BLOCK, OUT):
    block = w[layer, start * NF4_BLOCK : (start + 1) * NF4_BLOCK, column]
    scale = np.abs(block).max()
    if scale:
      nearest = np.abs(block[:, None] / scale - values).argmin(axis=1)
      out[layer, start * NF4_BLOCK : (start + 1) * NF4_BLOCK, column] = values[nearest] * scale
  return out


@pytest.mark.parametrize(("form", "slow"), [("int8", slow_int8), ("nf4", slow_nf4)])
def test_numbers_are_those_of_the_slow_twin(w, form, slow):
  np.testing.assert_allclose(np.asarray(dequantize(stored(w, form))), slow(w), rtol=1e-6, atol=0)


def test_rounding_errs_by_half_a_step_at_most(w):
  error = np.abs(np.asarray(dequantize(stored(w, "int8"))) - w)
  assert (error <= np.abs(w).max(axis=1, keepdims=True) / 127 * 0.5001).all()
  blocks = np.abs(w).reshape(L, -1, NF4_BLOCK, OUT)
  widest = max(b - a for a, b in itertools.pairwise(NF4_VALUES)) / 2
  error = np.abs(np.asarray(dequantize(stored(w, "nf4"))) - w).reshape(blocks.shape)
  assert (error <= blocks.max(axis=2, keepdims=True) * widest * 1.0001).all()


def test_largest_and_zero_are_kept_exactly(w):
  """Every block's largest number is a level of both forms, and so is 0."""
  w[0, 7, :] = 0.0
  for form in ("int8", "nf4"):
    back = np.asarray(dequantize(stored(w, form)))
    assert not back[0, 7].any()
    assert not back[0, :, 3].any()
    largest = np.abs(w).max(axis=1)
    np.testing.assert_allclose(np.abs(back).max(axis=1)[largest > 0], largest[largest > 0], rtol=1e-6)


def test_storage_is_as_small_as_said(w):
  int8, nf4 = stored(w, "int8"), stored(w, "nf4")
  assert (int8.codes[...].dtype, int8.scales.shape) == (jnp.int8, (L, 1, OUT))
  assert (nf4.codes[...].dtype, nf4.scales.shape) == (jnp.uint4, (L, IN // NF4_BLOCK, OUT))
  assert not any(isinstance(v, nnx.Param) for v in (int8.codes, int8.scales, nf4.codes, nf4.scales))


def test_rows_that_do_not_fill_a_block_are_refused():
  with pytest.raises(UserError, match="multiple of 64 rows, this one has 96; use int8"):
    quantize(jnp.ones((1, 96, 8)), AXES, "nf4")


def layer_of(kernel, i):
  return jax.tree.map(lambda x: x[i], kernel)


@pytest.mark.parametrize("form", ["float", "int8", "nf4"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_in_every_form_is_numpys(w, rng, form, adapted, dtype):
  base = nnx.Variable(jnp.asarray(w), logical_axes=AXES) if form == "float" else stored(w, form)
  effective = w.astype(np.float64) if form == "float" else np.asarray(dequantize(base), np.float64)
  kernel = base
  if adapted:
    a, b = rng.normal(size=(L, IN, RANK)).astype(np.float32), rng.normal(size=(L, RANK, OUT)).astype(np.float32)
    kernel = LoraKernel(base, nnx.Param(jnp.asarray(a)), nnx.Param(jnp.asarray(b)), 0.5)
    effective = effective + 0.5 * a.astype(np.float64) @ b
  x = jnp.asarray(rng.normal(size=(5, IN)), dtype)
  bias = nnx.Param(jnp.asarray(rng.normal(size=(L, OUT)), jnp.float32))
  # Through a scan, as the models do it.
  _, out = jax.jit(lambda k, v: jax.lax.scan(lambda c, kv: (c, project(x, *kv)), 0, (k, v)))(kernel, bias)
  assert out.dtype == dtype
  expected = np.asarray(x, np.float64) @ effective + np.asarray(bias[...])[:, None]
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  scale = np.abs(expected).max()
  np.testing.assert_allclose(np.asarray(out, np.float64) / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_gradient_of_the_activations_goes_through_the_dequantised_kernel(w, rng, form):
  kernel = layer_of(stored(w, form), 0)
  x, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, IN), (5, OUT)))
  got = jax.jit(jax.grad(lambda x: jnp.sum(project(x, kernel) * g)))(x)
  np.testing.assert_allclose(got, g @ np.asarray(dequantize(kernel)).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_float_kernels_are_not_kept_for_the_backward_pass(rng, form):
  """What lies between the passes is the codes: no float array of the size of all kernels."""
  kernel = quantize(jnp.asarray(rng.normal(size=(8, IN, IN)), jnp.float32), AXES, form)
  x = jnp.ones((2, IN))

  def total(x):
    return jnp.sum(jax.lax.scan(lambda x, k: (jnp.tanh(project(x, k)), None), x, kernel)[0])

  _, backward = jax.vjp(total, x)
  kept = [leaf for leaf in jax.tree.leaves(backward) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert max(leaf.size for leaf in kept) < 8 * IN * IN


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_codes_and_scales_lie_like_their_kernel_and_are_not_gathered(mesh8, rng, form):
  kernel = quantize(jnp.asarray(rng.normal(size=(L, IN, 32)), jnp.float32), AXES, form)
  shardings = parameter_shardings(kernel, mesh8)
  assert shardings.codes.get_value().spec == P(None, "fsdp", "tensor")
  assert shardings.scales.get_value().spec == (P(None, "fsdp", "tensor") if form == "nf4" else P(None, None, "tensor"))
  placed = jax.device_put(kernel, shardings)
  x = jax.device_put(jnp.asarray(rng.normal(size=(4, IN)), jnp.float32), NamedSharding(mesh8, P(None, "fsdp")))
  step = jax.jit(lambda x, k: jax.lax.scan(lambda c, k: (c, project(x, k)), 0, k)[1])
  assert " all-gather(" not in step.lower(x, placed).compile().as_text()
  np.testing.assert_allclose(step(x, placed), step(np.asarray(x), kernel), rtol=1e-5, atol=1e-5)
