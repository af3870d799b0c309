"""Compares cuDNN attention with plain attention on a GPU, in values and gradients, and times both.

Needs `pip install "radit_jax[cuda]"` and an NVIDIA GPU of compute capability 9.0 (Hopper) or higher:

    python scripts/check_gpu_attention.py

Both compute in bfloat16, and both are held against plain attention in float32: cuDNN may be at most half as far again
from it as plain attention is. Exits with 1 if it is farther, with 2 where it cannot run.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from radit_jax.errors import UserError
from radit_jax.models.attention import attention
from radit_jax.models.cudnn import cudnn_attention

#: Rows, tokens, heads, key heads, width of a head.
SHAPES = ((3, 384, 4, 4, 64), (3, 384, 6, 2, 128), (2, 1000, 8, 1, 32), (8, 2048, 16, 4, 128))
REPEATS = 20


def main() -> int:
  failures = 0
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  print("rows tokens heads key-heads width | relative error: cudnn, plain | ms forward and backward: cudnn, plain")
  for shape in SHAPES:
    try:
      errors, times = _compared(*shape)
    except UserError as e:
      print(f"check_gpu_attention: {e}", file=sys.stderr)
      return 2
    worse = any(cudnn > 1.5 * plain for cudnn, plain in errors)
    failures += worse
    told = ", ".join(
      f"{name} {cudnn:.1e} {plain:.1e}" for name, (cudnn, plain) in zip(("o", "q", "k", "v"), errors, strict=True)
    )
    print(" ".join(map(str, shape)), "|", told, "|", ", ".join(f"{t:.2f}" for t in times), "| WORSE" if worse else "")
  return int(bool(failures))


def _compared(rows, tokens, heads, kv_heads, width):
  """Relative errors of the values and of three gradients, for cuDNN and for plain, and times in ms."""
  rng = np.random.default_rng(0)
  q, weights = rng.normal(size=(2, rows, tokens, heads, width))
  k, v = rng.normal(size=(2, rows, tokens, kv_heads, width))
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
  # Rows of several segments and padding, of one segment and padding, and of one segment.
  ends = [np.sort(rng.choice(np.arange(1, tokens), 4, replace=False)), [tokens - 37], [tokens]]
  segments = np.zeros((rows, tokens), np.int32)
  for row in range(rows):
    first = 0
    for number, end in enumerate(ends[row % 3]):
      segments[row, first:end] = number + 1
      first = end
  real = jnp.asarray(segments != 0)[..., None, None]
  same = segments[:, :, None] == segments[:, None, :]
  mask = jnp.asarray(same & np.tril(np.ones((tokens, tokens), bool)))[:, None]

  def plain(q, k, v):
    return attention(q, k, v, mask=mask)

  def fused(q, k, v):
    return cudnn_attention(q, k, v, segment_ids=jnp.asarray(segments), max_segments=5)

  def with_gradients(f):
    def total(q, k, v):
      out = jnp.where(real, f(q, k, v).astype(jnp.float32), 0.0)
      return jnp.sum(out * weights), out

    program = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))

    def run(*arrays):
      (_, out), gradients = program(*arrays)
      return [out, *gradients]

    return run

  exact = [np.float32(x) for x in with_gradients(plain)(*(x.astype(jnp.float32) for x in (q, k, v)))]
  found, times = [], []
  for f in (fused, plain):
    run = with_gradients(f)
    found.append([np.float32(x) for x in run(q, k, v)])
    start = time.monotonic()
    for _ in range(REPEATS):
      last = run(q, k, v)
    jax.block_until_ready(last)
    times.append((time.monotonic() - start) / REPEATS * 1e3)
  errors = [
    tuple(float(np.linalg.norm(x - e) / np.linalg.norm(e)) for x in pair)
    for *pair, e in zip(*found, exact, strict=True)
  ]
  return errors, times


if __name__ == "__main__":
  sys.exit(main())
