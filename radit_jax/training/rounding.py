"""Updates of weights that are held in bfloat16: rounded at random, so that small ones count."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def apply_updates(params: Any, updates: Any, step: int | Int[Array, ""]) -> Any:
  """``params + updates``, added in float32, in the types of the params.

  Neighbours in bfloat16 are 1/256 to 1/128 apart, so nearly every update at a rate of 1e-5 would be lost by rounding
  to the nearest. Each number is rounded up or down at random instead, the nearer the likelier, so that the
  expectation of the new weight is the exact sum. Float32 weights are summed as they are.

  Args:
    params: arrays.
    updates: of the same structure and shapes, float32.
    step: number of the step; it alone seeds the rounding, so a continued run rounds as an uninterrupted one, and any
      mesh as one device.

  Example:
    >>> params, updates = {"w": jnp.ones(1000, jnp.bfloat16)}, {"w": jnp.full(1000, 2.0**-10)}
    >>> sums = apply_updates(params, updates, 0)["w"].astype(jnp.float32)
    >>> sorted(set(sums.tolist()))  # neighbours; an eighth of them went up
    [1.0, 1.0078125]
  """
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), max(len(leaves), 1))
  added = [
    round_stochastically(p.astype(jnp.float32) + u, key) if p.dtype == jnp.bfloat16 else (p + u).astype(p.dtype)
    for p, u, key in zip(leaves, jax.tree.leaves(updates), keys, strict=True)
  ]
  return jax.tree.unflatten(treedef, added)


def round_stochastically(x: Float[Array, "..."], key: Key[Array, ""]) -> Array:
  """Float32 to bfloat16, to one of the two neighbours, with the exact value as expectation.

  A bfloat16 is the upper half of a float32: a random number is added to the lower half, which is then cut off.
  """
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
  rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
