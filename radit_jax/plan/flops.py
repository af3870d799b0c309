"""Model FLOPs: what a program must compute whatever the compiler makes of it, in closed form from the shapes.

The compiler's own count takes the body of a scan once, whatever its number of turns, so it is no use here.
"""

import numpy as np

from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import DecoderConfig
from radit_jax.parallel_context import LSRBatch, ParallelContextBatch

#: Forward once, backward twice: gradients of activations and of weights. Frozen weights need no gradient of theirs.
TRAINED, ADAPTED, FORWARD = 3, 2, 1


def kernel_parameters(config: DecoderConfig | BertConfig) -> int:
  """Numbers in the kernels of all layers: two FLOPs each for every token.

  Example:
    >>> kernel_parameters(DecoderConfig(32_000, 4096, 11_008, 32, 32, 32, 128))  # Llama 2 7B without both embeddings
    6476005376
  """
  width, hidden = config.hidden_size, config.intermediate_size
  if isinstance(config, BertConfig):
    return config.num_layers * (4 * width * width + 2 * width * hidden)
  attention = 2 * width * config.head_dim * (config.num_heads + config.num_kv_heads)
  return config.num_layers * (attention + 3 * width * hidden)


def body_flops(config: DecoderConfig | BertConfig, tokens: int, keys: float) -> float:
  """Forward pass of a body without head.

  Args:
    config: its shape.
    tokens: of all rows together.
    keys: keys each token reads, on average.
  """
  heads = config.num_heads * (
    config.hidden_size // config.num_heads if isinstance(config, BertConfig) else config.head_dim
  )
  return tokens * (2.0 * kernel_parameters(config) + 4.0 * config.num_layers * heads * keys)


def head_flops(config: DecoderConfig, positions: int) -> float:
  """Output head at so many positions."""
  return 2.0 * positions * config.hidden_size * config.vocab_size


def all_parameters(config: DecoderConfig | BertConfig) -> int:
  """Kernels, embeddings and head; norms and biases, thousandths of that, left out."""
  embeddings = config.vocab_size * config.hidden_size
  tied = isinstance(config, BertConfig) or config.tie_word_embeddings
  return kernel_parameters(config) + embeddings * (1 if tied else 2)


def generator_batch_flops(config: DecoderConfig, batch: ParallelContextBatch) -> float:
  """Forward pass over the prompts of a batch of NumPy arrays, padding left out.

  Args:
    config: of the generator.
    batch: see :class:`radit_jax.parallel_context.ParallelContextBatch`. What prompts share is counted once, as it is
      computed once; its tokens are among the keys of all of them.
  """
  real = batch.segment_ids > 0
  tokens = int(np.count_nonzero(real))
  keys = float(np.sum(batch.positions + 1, where=real)) / max(tokens, 1)
  return body_flops(config, tokens, keys) + head_flops(config, int(np.count_nonzero(batch.answer_slot >= 0)))


def query_batch_flops(config: DecoderConfig | BertConfig, batch: LSRBatch) -> float:
  """Forward pass of a query encoder over a batch of NumPy arrays, padding left out; a token reads its whole query."""
  lengths = np.count_nonzero(batch.query_mask, axis=1).astype(np.float64)
  tokens = int(lengths.sum())
  return body_flops(config, tokens, float(np.sum(lengths**2)) / max(tokens, 1))
