"""Run by itself, to be killed: embeds 400 texts into shards, builds an index of three searchers, says how far it is."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radit_jax.retrieval import scann
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.embed import embed_passages

WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(98))]


def texts(count=400):
  rng = np.random.default_rng(0)
  return [" ".join(f"w{i}" for i in rng.integers(98, size=n)) for n in rng.integers(1, 60, size=count)]


def make(root, pause_s):
  """What `radit index` does, slowly enough to be killed anywhere."""
  scann.EXACT_BELOW = 1
  tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  table = jnp.asarray(np.random.default_rng(1).normal(size=(len(WORDS), 16)), jnp.float32)

  def encode(table, tokens, mask):
    return jnp.tanh(jnp.sum(table[tokens] * mask[..., None], axis=1))

  def say(stage, done, total, unit, /, **figures):
    sys.stdout.write(f"{stage} {done}\n")
    sys.stdout.flush()
    time.sleep(pause_s)

  embed_passages(
    jax.tree_util.Partial(encode, table),
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"),
    texts(),
    f"{root}/embeddings",
    max_tokens=64,
    batch_size=16,
    fields={"encoder_fingerprint": "e", "passages_fingerprint": "p"},
    progress=say,
    shard_size=64,
  )
  metadata = ({"row": row} for row in range(400))
  build_index(f"{root}/embeddings", f"{root}/index", metadata=metadata, shard_passages=134, progress=say)


if __name__ == "__main__":
  make(sys.argv[1], float(sys.argv[2]))
  if len(sys.argv) > 3:
    make(sys.argv[3], 0)
