"""Shapes of models by name, so that a plan needs neither weights nor network; any other from its `config.json`."""

import dataclasses
import pathlib
from collections.abc import Iterable

from radit_jax.config import EmbeddingOptions
from radit_jax.errors import UserError
from radit_jax.models import hf_config, sentence_files
from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig
from radit_jax.models.rotary import Rotary


def _llama(width: int, hidden: int, layers: int, heads: int, positions: int) -> DecoderConfig:
  return DecoderConfig(
    vocab_size=32_000,
    hidden_size=width,
    intermediate_size=hidden,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=128,
    max_positions=positions,
  )


GENERATORS = {
  "meta-llama/Llama-2-7b-hf": _llama(4096, 11_008, 32, 32, 4096),
  "meta-llama/Llama-2-13b-hf": _llama(5120, 13_824, 40, 40, 4096),
  "huggyllama/llama-65b": _llama(8192, 22_016, 80, 64, 2048),
  "meta-llama/Meta-Llama-3-8B": DecoderConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rotary=Rotary(theta=500_000.0),
    max_positions=8192,
  ),
  "Qwen/Qwen3-8B-Base": DecoderConfig(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rotary=Rotary(theta=1_000_000.0),
    rms_norm_eps=1e-6,
    qk_norm=True,
    max_positions=32_768,
  ),
}
_BERT_BASE = BertConfig(vocab_size=30_522, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)
ENCODERS = {
  "facebook/dragon-plus-query-encoder": (_BERT_BASE, EmbeddingConfig(pooling="cls")),
  "facebook/dragon-plus-context-encoder": (_BERT_BASE, EmbeddingConfig(pooling="cls")),
}


def generator_shape(name: str) -> DecoderConfig:
  """Shape of a generator.

  Args:
    name: a directory with a `config.json`, or a name of the table.

  Raises:
    UserError: neither.

  Example:
    >>> generator_shape("meta-llama/Llama-2-7b-hf").hidden_size
    4096
  """
  if pathlib.Path(name).is_dir():
    return hf_config.read_generator_config(name)
  if name not in GENERATORS:
    raise _unknown(name, GENERATORS)
  return GENERATORS[name]


def encoder_shape(name: str, options: EmbeddingOptions) -> tuple[BertConfig | DecoderConfig, EmbeddingConfig]:
  """Shape of an encoder, and its pooling.

  Args:
    name: a directory as :func:`radit_jax.models.pretrained.load_encoder` takes it, weights not needed, or a name of the
      table.
    options: what a directory's files do not say.

  Raises:
    UserError: neither, or a directory that does not say how texts become vectors.
  """
  path = pathlib.Path(name)
  if path.is_dir():
    body = hf_config.read_encoder_config(sentence_files.model_directory(path))
    longest = body.longest_row if isinstance(body, BertConfig) else body.max_positions
    if isinstance(body, DecoderConfig):
      body = dataclasses.replace(body, tie_word_embeddings=True)  # as it is loaded: nobody reads its logits
    return body, sentence_files.read_embedding_config(path, longest, options)
  if name not in ENCODERS:
    raise _unknown(name, ENCODERS)
  return ENCODERS[name]


def _unknown(name: str, known: Iterable[str]) -> UserError:
  return UserError(
    f"{name}: no such directory, and no model whose shape is known ({', '.join(known)}); put its config.json into a "
    "directory and name that"
  )
