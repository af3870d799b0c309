"""One program through the TPU compiler: what a chip holds, what it sends, and the time its published figures allow."""

import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from radit_jax.collectives import Collective, collectives
from radit_jax.plan.chips import GIB, Slice
from radit_jax.plan.programs import Program, chip_bytes


@dataclasses.dataclass(frozen=True)
class Measured:
  """A compiled program, or why there is none. Bytes are of one chip.

  Attributes:
    name: of the program.
    parameters_bytes: weights, trained and frozen.
    optimizer_bytes: moments.
    batch_bytes: what a call is given beside them, a cache of keys and values included.
    activations_bytes: kept for the backward pass, before the compiler; part of the temporaries.
    temporaries_bytes: the compiler's; 0 where it gave up.
    together_bytes: the most that lies in HBM at once; where it gave up, what it would have needed.
    hbm_bytes: of the chip.
    flops: model FLOPs of a call, all chips together.
    compute_s: they at the assumed share of the peak.
    hbm_s: weights, state and batch through HBM, at its full bandwidth.
    ici_s: collectives over the links of a chip, at their full bandwidth.
    collectives: of the program, one entry for each kind: runs and bytes sent by a chip.
    compiled_s: seconds the compiler took.
  """

  name: str
  parameters_bytes: float
  optimizer_bytes: float
  batch_bytes: float
  activations_bytes: float
  temporaries_bytes: float
  together_bytes: float
  hbm_bytes: float
  flops: float
  compute_s: float
  hbm_s: float
  ici_s: float
  collectives: dict[str, dict[str, float]]
  compiled_s: float

  @property
  def fits(self) -> bool:
    return self.together_bytes <= self.hbm_bytes

  @property
  def step_s(self) -> float:
    """The roofline: whichever takes longest, the others behind it."""
    return max(self.compute_s, self.hbm_s, self.ici_s)

  @property
  def bound(self) -> str:
    """What takes longest."""
    return max(("compute", self.compute_s), ("HBM", self.hbm_s), ("ICI", self.ici_s), key=lambda x: x[1])[0]


def measure(program: Program, of: Slice, mesh: Mesh, mfu: float) -> Measured:
  """Compiles a program for a slice.

  Args:
    program: see :class:`radit_jax.plan.programs.Program`.
    of: the slice.
    mesh: over its chips.
    mfu: share of the peak assumed.
  """
  start = time.monotonic()
  parameters, optimizer = chip_bytes(program.parameters), chip_bytes(program.optimizer)
  beside = chip_bytes(program.beside)
  sent: list[Collective] = []
  batch = temporaries = 0.0
  try:
    with jax.set_mesh(mesh):
      compiled = program.compile()
  except jax.errors.JaxRuntimeError as e:
    needed = exhausted_bytes(str(e))
    if needed is None:
      raise
    together = max(needed + beside, parameters + optimizer)
  else:
    memory = compiled.memory_analysis()
    temporaries = float(memory.temp_size_in_bytes)
    batch = memory.argument_size_in_bytes + beside - parameters - optimizer
    assert batch >= 0, (
      f"{program.name}: {memory.argument_size_in_bytes} bytes of arguments, but {parameters} of parameters and "
      f"{optimizer} of moments, of which {beside} are no arguments"
    )
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    together = float(memory.argument_size_in_bytes + temporaries + new + beside)
    sent = collectives(compiled.as_text())
  # Weights are read once a pass, in the computation type; gathered ones are written first.
  tensor, spread = mesh.shape["tensor"], mesh.shape["fsdp"] > 1
  weights = 2.0 * _numbers(program.parameters) / tensor * (2 if spread else 1)
  through_hbm = program.passes * (weights + batch) + program.update_bytes + 2 * program.activations_bytes
  kinds = sorted({c.kind for c in sent})
  return Measured(
    name=program.name,
    parameters_bytes=parameters,
    optimizer_bytes=optimizer,
    batch_bytes=batch,
    activations_bytes=program.activations_bytes,
    temporaries_bytes=temporaries,
    together_bytes=together,
    hbm_bytes=of.chip.hbm_bytes,
    flops=program.flops,
    compute_s=program.flops / (of.chips * of.chip.peak_flops * mfu),
    hbm_s=through_hbm / of.chip.hbm_bandwidth,
    ici_s=sum(c.sent_bytes for c in sent) / of.chip.ici_bandwidth,
    collectives={
      kind: {
        "runs": sum(c.count for c in sent if c.kind == kind),
        "sent_bytes": sum(c.sent_bytes for c in sent if c.kind == kind),
      }
      for kind in kinds
    },
    compiled_s=time.monotonic() - start,
  )


def exhausted_bytes(message: str) -> float | None:
  """What a program needs that the compiler refuses for want of HBM; None for any other refusal.

  Example:
    >>> exhausted_bytes("RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm.") == 20.5 * 2**30
    True
  """
  if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
    return None
  found = re.search(r"Used ([\d.]+)([KMGT]) of", message) or re.search(r"\(([\d.]+)([KMGT])\) exceeds", message)
  return float("inf") if found is None else float(found[1]) * {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]]


def _numbers(tree: Any) -> float:
  return float(sum(x.size for x in jax.tree.leaves(tree)))
