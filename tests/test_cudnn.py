"""cuDNN attention: where segments lie, what is handed to the kernel, who may ask for it; the kernel itself on a GPU."""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from radit_jax.errors import UserError
from radit_jax.models import cudnn
from radit_jax.models.attention import attention, attention_choice
from radit_jax.models.decoder import Decoder, DecoderConfig, _visible

ROOT = pathlib.Path(__file__).parent.parent
HAS_GPU = any(pathlib.Path("/dev").glob("nvidia[0-9]*"))
#: Packed and full, packed with padding, right-padded, left-padded, one segment, nothing but padding.
ROWS = np.array(
  [
    [1, 1, 1, 2, 2, 3, 3, 3],
    [1, 2, 2, 2, 2, 0, 0, 0],
    [1, 1, 1, 1, 1, 0, 0, 0],
    [0, 0, 1, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0, 0, 0],
  ],
  np.int32,
)


def runs_slowly(row):
  runs, first = [], 0
  for _, run in itertools.groupby(row.tolist()):
    length = len(list(run))
    runs.append((first, length))
    first += length
  return runs


@pytest.mark.parametrize("most", [3, 5])
def test_runs_of_equals_a_loop(rng, most):
  rows = np.concatenate([ROWS, rng.integers(0, 3, (50, 8)).astype(np.int32)])
  lengths, offsets, fits = map(np.asarray, jax.jit(cudnn.runs_of, static_argnums=1)(rows, most))
  assert 0 < fits.sum() < len(rows)
  for row, length, offset, fit in zip(rows, lengths, offsets, fits, strict=True):
    runs = runs_slowly(row)
    assert fit == (len(runs) <= most)
    if fit:
      missing = [-1] * (most - len(runs))
      assert offset.tolist() == [o for o, _ in runs] + missing + [-1]
      assert length.tolist() == [n for _, n in runs] + missing


@pytest.fixture
def hopper(monkeypatch):
  """JAX and we believe in a Hopper GPU, so that programs for one can be made, not run."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  monkeypatch.setattr(cudnn, "capability", lambda: (9, 0))
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda wanted: True)
  monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda wanted: False)
  return fused


def packed_kernel(q, k, v, lengths, offsets_q, offsets_k, scale):
  """What cuDNN documents of its packed layout: segment s has ``lengths[s]`` tokens, from element ``offsets[s]`` on."""
  token_q, token_k = q.shape[2] * q.shape[3], k.shape[2] * k.shape[3]
  flat_q, flat_k, flat_v = q.ravel(), k.ravel(), v.ravel()
  out = np.full(flat_q.shape, np.nan, np.float32)
  for n, at_q, at_k in zip(lengths.ravel(), offsets_q.ravel(), offsets_k.ravel(), strict=False):
    if n <= 0:
      continue
    qs = flat_q[at_q : at_q + n * token_q].reshape(n, *q.shape[2:])
    ks, vs = (x[at_k : at_k + n * token_k].reshape(n, *k.shape[2:]) for x in (flat_k, flat_v))
    scores = np.einsum("thd,shd->hts", qs, ks) * scale
    scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out[at_q : at_q + n * token_q] = np.einsum("hts,shd->thd", weights, vs).ravel()
  return out.reshape(q.shape)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_kernel_is_told_where_its_tokens_lie(rng, hopper, monkeypatch, heads, kv_heads):
  """Its documented layout in NumPy, fed with what JAX would hand to it, against plain attention on every token."""
  q = rng.normal(size=(len(ROWS), 8, heads, 8)).astype(ml_dtypes.bfloat16)
  k, v = rng.normal(size=(2, len(ROWS), 8, kv_heads, 8)).astype(ml_dtypes.bfloat16)

  def kernel(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
    assert mask_type is hopper.MaskType.PADDING_CAUSAL
    told = hopper._fix_seqlen_offsets(q_seqlen, kv_seqlen, q_offsets, kv_offsets, q, k)
    lengths, lengths_k, at_q, at_k = map(np.asarray, told)
    np.testing.assert_array_equal(lengths, lengths_k)
    arrays = (np.float32(x) for x in (q, k, v))
    return jnp.asarray(packed_kernel(*arrays, lengths, at_q, at_k, scale))

  monkeypatch.setattr(hopper, "dot_product_attention", kernel)
  found = cudnn.cudnn_attention(*map(jnp.asarray, (q, k, v)), segment_ids=jnp.asarray(ROWS), max_segments=3, scale=0.4)
  arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
  plain = attention(*arrays, mask=_visible(ROWS, ROWS, 0, causal=True), scale=0.4)
  np.testing.assert_allclose(found, plain, atol=1e-5)
  poisoned = cudnn.cudnn_attention(*map(jnp.asarray, (q, k, v)), segment_ids=jnp.asarray(ROWS), max_segments=2)
  assert np.isnan(poisoned).all(axis=(1, 2, 3)).tolist() == [True, True, False, False, False, False]
  assert np.isfinite(np.asarray(poisoned)[2:]).all()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_step_is_lowered_for_cuda(hopper, mesh8, remat):
  config = DecoderConfig(
    vocab_size=40, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=8, num_kv_heads=2, head_dim=16
  )
  model = Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, kind="cudnn", max_segments=5, remat=remat)
  tokens = jnp.ones((8, 64), jnp.int32)
  loss = lambda model, tokens: jnp.sum(model(tokens, segment_ids=tokens).astype(jnp.float32))  # noqa: E731
  with jax.set_mesh(mesh8):
    text = jax.jit(jax.grad(loss)).trace(model, tokens).lower(lowering_platforms=("cuda",)).as_text()
  calls = re.findall(r'@__cudnn\$(\w+)\(.*?backend_config = "(.*?)", ', text)
  names = [name for name, _ in calls]
  assert names == (
    ["fmhaSoftmax", "fmhaSoftmaxBackward"] if remat == "none" else ["fmhaSoftmax"] * 2 + ["fmhaSoftmaxBackward"]
  )
  for _, written in calls:
    options = json.loads(written.replace("\\22", '"'))["cudnn_fmha_backend_config"]
    assert options["mask_type"] == "PADDING_CAUSAL"
    assert options["max_seg_per_batch"] == 5
    assert options["fmha_scale"] == 0.25
    # Each device's own: 8 rows over data 2 x fsdp 2, 8 heads over tensor 2.
    assert options["intermediate_tensor_shape"]["dimensions"] == ["2", "4", "64", "64"]


BF16 = {"dtype": jnp.bfloat16, "capability": (9, 0)}


@pytest.mark.parametrize(
  ("options", "kind", "reason"),
  [
    (BF16, "cudnn", "whole rows on a GPU"),
    (BF16 | {"capability": (10, 0)}, "cudnn", "whole rows"),
    (BF16 | {"capability": (8, 0)}, "plain", r"compute capability 9.0 \(Hopper\), this GPU has 8.0"),
    (BF16 | {"capability": None}, "plain", "needs an NVIDIA GPU"),
    (BF16 | {"dtype": jnp.float32}, "plain", "this is float32"),
    (BF16 | {"head_dim": 20}, "plain", "a multiple of 8 up to 256, and these are of 20"),
    (BF16 | {"windows": True}, "plain", "without windows"),
    (BF16 | {"soft_cap": 50.0}, "plain", "without soft caps"),
    (BF16 | {"causal": False}, "plain", "sees later tokens"),
  ],
)
def test_what_runs_on_a_gpu_and_why(options, kind, reason):
  choice = attention_choice("gpu", **options)
  assert choice.kind == kind
  assert re.search(reason, choice.reason)


def test_elsewhere_it_is_refused_in_one_line():
  model = Decoder(DecoderConfig.tiny(40), rngs=nnx.Rngs(0), kind="cudnn")
  with pytest.raises(UserError, match=r"^attention cudnn: it needs an NVIDIA GPU; use plain$"):
    model(jnp.ones((1, 16), jnp.int32))
  q = jnp.zeros((1, 16, 2, 8))
  with pytest.raises(UserError, match=r"^attention cudnn: it needs an NVIDIA GPU; use plain$"):
    cudnn.cudnn_attention(q, q, q, segment_ids=jnp.ones((1, 16), jnp.int32), max_segments=2)


@pytest.mark.skipif(not HAS_GPU, reason="no GPU here: cuDNN's kernel itself has not run")
def test_on_a_gpu_equals_plain():
  environ = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
  command = [sys.executable, str(ROOT / "scripts/check_gpu_attention.py")]
  done = subprocess.run(command, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
