"""Model FLOPs: what a program must compute whatever the compiler makes of it, in closed form from the shapes.

The compiler's own count takes the body of a scan once, whatever its number of turns, so it is no use here.
"""

from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import DecoderConfig

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
