"""One number per array, computed where the array lies: the same on every mesh, another after any change of a bit."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32


def checksums(arrays: dict[str, Array]) -> Array:
  """Checksum of each array over the bit patterns and places of its elements.

  .. math:: \\sum_i m(b_i \\oplus m(i)) \\bmod 2^{32}

  with the bits b of element i and a bijective mixing m: a change of one element always changes the sum, of several all
  but once in 2^32. Integers that wrap have one sum in every order, so no mesh and no sharding shows in it.

  Args:
    arrays: by name, all on the mesh of the first one; complex numbers are not known.

  Returns:
    ``[number of arrays]`` uint32 in the order of the names, on every device. Computing is started, not waited for.

  Example:
    >>> one, other = checksums({"a": jnp.zeros(3), "b": jnp.zeros(3).at[1].set(1e-45)})
    >>> bool(one == other)
    False
  """
  first = next(iter(arrays.values())).sharding
  everywhere = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else None
  return _program(everywhere)([arrays[name] for name in sorted(arrays)])


@functools.cache
def _program(out: NamedSharding | None) -> Any:
  return jax.jit(lambda leaves: jnp.stack([_checksum(x) for x in leaves]), out_shardings=out)


def by_name(arrays: dict[str, Any], sums: Array) -> dict[str, str]:
  """The sums of :func:`checksums` as hex digits under their names, waited for."""
  return {name: f"{int(value):08x}" for name, value in zip(sorted(arrays), np.asarray(sums), strict=True)}


def _checksum(x: Array) -> UInt32[Array, ""]:
  bits = _bits(x)
  # The place as a sum over dimensions, not a reshape: a reshape would gather a sharded array. It wraps after 2^32.
  place = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(bits.shape):
    stride = math.prod(bits.shape[axis + 1 :]) % 2**32
    place = place + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride) if size else place
  return jnp.sum(_mixed(bits ^ _mixed(place + np.uint32(1))), dtype=jnp.uint32)


def _bits(x: Array) -> Array:
  """Elements as uint32; those of 8 bytes as two, in one more dimension."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if x.dtype.itemsize == 8:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _mixed(x: Array) -> Array:
  """The finishing step of MurmurHash3, a bijection of 32 bits."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
