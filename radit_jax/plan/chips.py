"""TPU chips by their published figures, the slices they come in, and the compiler's picture of a slice."""

import dataclasses
import difflib
import importlib.util
import math
import os
from typing import Any

from radit_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    peak_flops: of bfloat16, per second.
    hbm_bytes: what the compiler leaves a program; the published size is a little more.
    hbm_bandwidth: bytes per second.
    ici_bandwidth: bytes per second out of a chip over all its links, half of the published two-way figure.
    vcpus: of the host, per chip.
  """

  peak_flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  vcpus: int


#: cloud.google.com/tpu/docs, the pages of v5e, v5p and v6e.
CHIPS = {
  "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 28),
  "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 52),
  "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 22),
}
#: Chips and cards as JAX names them -> FLOPs of bfloat16 per second, without sparsity; the makers' data sheets.
_PEAKS = {
  **{"TPU v5 lite": CHIPS["v5e"].peak_flops, "TPU v5e": CHIPS["v5e"].peak_flops},
  **{"TPU v5": CHIPS["v5p"].peak_flops, "TPU v5p": CHIPS["v5p"].peak_flops},
  **{"TPU v6 lite": CHIPS["v6e"].peak_flops, "TPU v6e": CHIPS["v6e"].peak_flops},
  **{"NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12},
  **{"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H200": 989.4e12},
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
#: Shapes that can be rented, smallest first.
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of a generation of chips.

  Attributes:
    name: such as "v5e:16x16".
    chip: each of its chips.
    chips: their number.
  """

  name: str
  chip: Chip
  chips: int


def peak_flops(device_kind: str) -> float | None:
  """FLOPs of bfloat16 per second of a device by the name that JAX gives it; None for one that is not known, as a CPU.

  Example:
    >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
    (197000000000000.0, None)
  """
  return _PEAKS.get(device_kind)


def slice_named(name: str) -> Slice:
  """A slice by its name.

  Raises:
    UserError: a generation or a shape that there is not, with the nearest there is.

  Example:
    >>> slice_named("v5e:16x16").chips
    256
  """
  kind, _, shape = name.partition(":")
  if kind in CHIPS and shape in SHAPES[kind]:
    return Slice(name, CHIPS[kind], _count(shape))
  raise UserError(
    f"no slice {name!r} of {', '.join(CHIPS)} can be rented; the nearest that can is {_nearest(kind, shape)}"
  )


def slices(kind: str) -> list[Slice]:
  """All slices of a generation, smallest first."""
  return [slice_named(f"{kind}:{shape}") for shape in SHAPES[kind]]


def _count(shape: str) -> int:
  return math.prod(int(n) for n in shape.split("x"))


def _nearest(kind: str, shape: str) -> str:
  if not shape:  # the names of accelerator types: v5litepod-16, v6e-64
    kind, _, shape = kind.replace("v5lite", "v5e").partition("-")
  alike = difflib.get_close_matches(kind, CHIPS, n=1) or ["v5e"]
  kind = next((known for known in CHIPS if kind.startswith(known)), alike[0])
  sizes = [n for n in shape.split("x") if n.isdigit() and int(n)]
  wanted = math.log(math.prod(map(int, sizes))) if sizes else math.log(16)
  # Nearest in the number of chips, and then the shape spelt most alike.
  best = min(
    SHAPES[kind],
    key=lambda s: (abs(math.log(_count(s)) - wanted), -difflib.SequenceMatcher(None, s, shape).ratio()),
  )
  return f"{kind}:{best}"


def devices(of: Slice) -> list[Any]:
  """The chips of a slice as the compiler sees them; nothing can be run on them.

  This process computes on CPUs from here on, also where there are TPUs.

  Raises:
    UserError: the TPU compiler is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      'plan needs the TPU compiler, which is not installed here: pip install "radit_jax[tpu]" (Linux x86)'
    )
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",  # or it asks the network what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it compiles only, and takes no device from another process
    "TPU_WORKER_HOSTNAMES": "localhost",  # not told these two, it complains on stderr
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  }.items():
    os.environ.setdefault(name, value)
  import jax
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")
  bounds = {"chips_per_host_bounds": [1, 1, 1]} if of.chips == 1 else {}
  return list(topologies.get_topology_desc(platform="tpu", topology_name=of.name, **bounds).devices)
