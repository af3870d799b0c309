"""Rotary positions: wavelengths, their scalings, and the turning of queries and keys."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from radit_jax.errors import UserError

Scaling = Literal["default", "linear", "llama3", "longrope"]


@dataclasses.dataclass(frozen=True)
class Rotary:
  """How fast each pair of a head's dimensions turns.

  Attributes:
    theta: base of the wavelengths.
    scaling: "linear" divides all frequencies by ``factor``; "llama3" only those whose wavelength is longer than the
      original context, with a smooth passage; "longrope" divides each by its own ``short_factors``.
    factor: of the longer context; 1 without scaling.
    low_freq_factor: llama3: wavelengths above original_max_positions / this are divided by ``factor``.
    high_freq_factor: llama3: wavelengths below original_max_positions / this are left alone.
    original_max_positions: context the model had before it was stretched.
    short_factors: longrope: one per pair, for rows no longer than the original context (longer ones are refused).
    attention_factor: multiplies cosine and sine.
    partial: share of a head's dimensions that turn, the first ones; the others stay.
  """

  theta: float = 10_000.0
  scaling: Scaling = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192
  short_factors: tuple[float, ...] = ()
  attention_factor: float = 1.0
  partial: float = 1.0

  def __post_init__(self) -> None:
    for name in ("theta", "factor", "low_freq_factor", "original_max_positions", "attention_factor", "partial"):
      if not getattr(self, name) > 0:
        raise UserError(f"Rotary.{name} = {getattr(self, name)}: must be greater than 0")
    if self.scaling == "llama3" and not self.high_freq_factor > self.low_freq_factor:
      raise UserError(
        f"Rotary: high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
      )

  def frequencies(self, head_dim: int) -> Float[np.ndarray, "pairs"]:
    """Angle per position of every pair, float32.

    Raises:
      UserError: an odd number of dimensions to turn, or short_factors of another number of pairs.

    Example:
      >>> Rotary(theta=100.0).frequencies(4).tolist()
      [1.0, 0.10000000149011612]
    """
    width = int(head_dim * self.partial)
    if width % 2 or not width:
      raise UserError(f"head_dim {head_dim} x partial {self.partial}: an even number of dimensions must turn")
    plain = (1.0 / self.theta ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
    if self.scaling == "default":
      return plain
    if self.scaling == "linear":
      return plain / np.float32(self.factor)
    if self.scaling == "longrope":
      if len(self.short_factors) != len(plain):
        raise UserError(f"longrope: {len(self.short_factors)} short factors for {len(plain)} pairs of dimensions")
      return plain / np.asarray(self.short_factors, np.float32)
    turns = self.original_max_positions * plain / (2 * math.pi)  # within the original context
    share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
    share = np.clip(share, 0.0, 1.0).astype(np.float32)
    return (1 - share) * plain / np.float32(self.factor) + share * plain


def turns(positions: Int[Array, "N T"], rotary: Rotary, head_dim: int) -> tuple[Array, Array]:
  """Cosine and sine of every pair's angle, float32 [N, T, 1, pairs]: position 1,000 is past bfloat16's steps."""
  angles = positions[..., None, None].astype(jnp.float32) * rotary.frequencies(head_dim)
  return jnp.cos(angles) * rotary.attention_factor, jnp.sin(angles) * rotary.attention_factor


def turn(x: Float[Array, "N T h d"], cos_sin: tuple[Array, Array]) -> Float[Array, "N T h d"]:
  """Turns each pair (i, i + pairs) by its angle: the rotate-half layout of Hugging Face files."""
  cos, sin = cos_sin
  pairs = cos.shape[-1]
  a, b, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)
