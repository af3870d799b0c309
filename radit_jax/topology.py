"""Which device stands where in the mesh: slices of a TPU side by side along `data`, neighbours along `tensor`."""

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from radit_jax.config import MeshConfig
from radit_jax.errors import UserError


def arrange(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
  """Devices as an array ``[data, fsdp, tensor]``, so that what talks most is closest.

  Slices, which are joined by the data centre's network alone, are recognised by their devices' ``slice_index`` and
  lie along ``data``: across them only gradients are summed, once a step. ``fsdp`` and ``tensor`` stay within one.

  Args:
    config: sizes of the axes; ``data=-1`` takes what is left.
    devices: of all processes.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or ``data`` not to that of the slices; the nearest
      mesh that does is named.

  Example:
    >>> import jax
    >>> arrange(MeshConfig(), jax.devices()[:1]).shape
    (1, 1, 1)
  """
  sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
  count, slices = len(devices), len(sizes)
  if len(set(sizes.values())) > 1:
    raise UserError(f"{slices} slices of {', '.join(str(n) for n in sizes.values())} devices: all must have as many")
  inner = config.fsdp * config.tensor
  data = count // inner if config.data == -1 else config.data
  if not data or data * inner != count or data % slices:
    asked = f"data={config.data} fsdp={config.fsdp} tensor={config.tensor}"
    there = f"{count} devices" + (f" in {slices} slices" if slices > 1 else "")
    raise UserError(f"mesh {asked} does not make {there}; {nearest(config, count, slices)} does")
  # Splitting a physical axis of the slice over two of the mesh is the last resort of both, not their first choice.
  if slices == 1:
    shape = (data, config.fsdp, config.tensor)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  within = (data // slices, config.fsdp, config.tensor)
  return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)


def nearest(config: MeshConfig, count: int, slices: int = 1) -> str:
  """The mesh over ``count`` devices that keeps most of what was asked for, as options say it.

  As few sizes as possible change, ``data`` before the others, and by the smallest factors.

  Example:
    >>> nearest(MeshConfig(fsdp=3, tensor=2), 8)
    'data=1 fsdp=4 tensor=2'
  """
  asked = (config.data, config.fsdp, config.tensor)

  def cost(shape: tuple[int, int, int]) -> tuple[int, bool, float]:
    ratios = [1.0 if a == -1 else s / a for a, s in zip(asked, shape, strict=True)]
    return sum(r != 1 for r in ratios), ratios[0] == 1, sum(abs(math.log(r)) for r in ratios)

  divisors = [n for n in range(1, count + 1) if count % n == 0]
  shapes = [
    (count // (f * t), f, t)
    for f, t in itertools.product(divisors, divisors)
    if count % (f * t) == 0 and count // (f * t) % slices == 0
  ]
  data, fsdp, tensor = min(shapes, key=cost)
  return f"data={data} fsdp={fsdp} tensor={tensor}"
