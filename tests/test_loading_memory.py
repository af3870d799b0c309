"""Loading onto a mesh holds the model once and little more: measured in a process of its own on 8 devices."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from radit_jax.models.safetensors_files import NamedTensor, write_directory

WIDTH, HIDDEN, LAYERS, VOCAB = 2048, 5632, 8, 32_000
CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": VOCAB,
  "hidden_size": WIDTH,
  "intermediate_size": HIDDEN,
  "num_hidden_layers": LAYERS,
  "num_attention_heads": 16,
  "num_key_value_heads": 16,
}
MEASURE = """
import json, pathlib, sys, threading, time
import jax, numpy as np
from radit_jax.config import MeshConfig
from radit_jax.models.pretrained import load_generator
from radit_jax.sharding import make_mesh

def anonymous_bytes():
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon"):
      return int(line.split()[1]) * 1024

from transformers import CONFIG_MAPPING
CONFIG_MAPPING["llama"]  # the library, which imports torch where torch is installed, is no part of the model
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
jax.block_until_ready(jax.numpy.ones(8) + 1)
base = peak = anonymous_bytes()
done = threading.Event()
def watch():
  global peak
  while not done.is_set():
    peak = max(peak, anonymous_bytes())
    time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
generator = load_generator(sys.argv[1], mesh=mesh)
done.set()
watcher.join()
# The values are where they should be: every tensor holds its own number.
q = np.asarray(generator.layers.q_kernel[...][3, :5, :5]).astype(float)
leaves = jax.tree.leaves(generator)
print(json.dumps({
  "peak": peak - base, "bytes": sum(x.nbytes for x in leaves), "q": q.tolist(),
  "shards": [str(x.sharding.spec) for x in leaves],
}))
"""


def tensor(value: float, *shape: int) -> NamedTensor:
  return NamedTensor(np.dtype(jnp.bfloat16), shape, lambda: np.full(shape, value, jnp.bfloat16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """1.01 GiB of bfloat16 in two shards."""
  path = tmp_path_factory.mktemp("large")
  tensors = {
    "model.embed_tokens.weight": tensor(1, VOCAB, WIDTH),
    "lm_head.weight": tensor(2, VOCAB, WIDTH),
    "model.norm.weight": tensor(3, WIDTH),
  }
  for i in range(LAYERS):
    layer = f"model.layers.{i}."
    tensors |= {f"{layer}self_attn.{n}_proj.weight": tensor(10 + i, WIDTH, WIDTH) for n in "qkvo"}
    tensors |= {f"{layer}mlp.{n}_proj.weight": tensor(4, HIDDEN, WIDTH) for n in ("gate", "up")}
    tensors[f"{layer}mlp.down_proj.weight"] = tensor(5, WIDTH, HIDDEN)
    tensors |= {f"{layer}{n}_layernorm.weight": tensor(1, WIDTH) for n in ("input", "post_attention")}
  write_directory(path, tensors, max_shard_bytes=600_000_000)
  (path / "config.json").write_text(json.dumps(CONFIG))
  return path


def test_the_peak_is_the_model_and_little_more(checkpoint):
  size = sum(f.stat().st_size for f in checkpoint.glob("*.safetensors"))
  assert size >= 2**30
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", MEASURE, str(checkpoint)], env=env, capture_output=True, text=True, check=True
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert 2**30 <= found["bytes"] <= size
  assert found["q"] == [[13.0] * 5] * 5
  assert found["shards"].count("P(None, 'fsdp', 'tensor')") == 5  # q, k, v, gate, up
  print(
    f"\npeak {found['peak'] / 2**20:.0f} MiB for {found['bytes'] / 2**20:.0f} MiB: {found['peak'] / found['bytes']:.3f}"
  )
  assert found["peak"] <= 1.3 * found["bytes"]
