"""Generators, encoders and tokenizers from Hugging Face directories, and back."""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from radit_jax.errors import UserError
from radit_jax.files import atomic_directory, fingerprint_directory
from radit_jax.models import hf_config, hf_weights, safetensors_files, sentence_files
from radit_jax.models.bert import BertEncoder
from radit_jax.models.dual_encoder import DualEncoder, default_temperature
from radit_jax.models.llama import Llama
from radit_jax.models.sentence_files import encoder_temperature

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

__all__ = [
  "encoder_temperature",
  "fingerprint",
  "load_dual_encoder",
  "load_encoder",
  "load_generator",
  "load_tokenizer",
  "passage_encoder_of",
  "save_encoder",
  "save_generator",
]


def load_generator(
  path: str | os.PathLike[str], *, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike | None = None
) -> Llama:
  """Loads a Llama-family decoder.

  Args:
    path: Hugging Face directory with `config.json` and safetensors, in one file or in shards.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type, default float32. Parameters keep the type they have in the files.

  Raises:
    UserError: another architecture, a feature that is not supported, tensors missing, unknown or misshapen.
  """
  root = pathlib.Path(path)
  config = hf_config.read_llama_config(root)
  tensors = safetensors_files.read_directory(root)
  # Buffers that older versions of transformers saved, and a head that repeats the embedding it is tied to.
  tensors = {name: t for name, t in tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
  if config.tie_word_embeddings and "lm_head.weight" in tensors:
    head, embedding = tensors.pop("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if embedding is None or head.shape != embedding.shape or not np.array_equal(head.read(), embedding.read()):
      raise UserError(
        f"{head.file}: lm_head.weight differs from the embedding, but config.json has tie_word_embeddings true"
      )
  generator = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0), dtype=jnp.float32 if dtype is None else dtype))
  hf_weights.fill(generator, tensors, root, mesh)
  return generator


def load_encoder(
  path: str | os.PathLike[str], *, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike | None = None
) -> BertEncoder:
  """Loads a BERT encoder with its pooling.

  Args:
    path: sentence-transformers directory; or a plain Hugging Face directory with a `radit.json` that says
      ``{"pooling": "cls" or "mean", "normalize": true or false}``.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type, default float32. Parameters keep the type they have in the files.

  Raises:
    UserError: another architecture, an unsupported feature or pooling, no word on the pooling, tensors missing,
      unknown or misshapen.
  """
  model = sentence_files.model_directory(path)
  config = hf_config.read_bert_config(path)
  tensors = safetensors_files.read_directory(model)
  tensors.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: a buffer that older versions of transformers saved
  config = dataclasses.replace(config, pooler="pooler.dense.weight" in tensors)
  encoder = nnx.eval_shape(lambda: BertEncoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32 if dtype is None else dtype))
  hf_weights.fill(encoder, tensors, model, mesh)
  return encoder


def load_dual_encoder(
  query_path: str | os.PathLike[str],
  passage_path: str | os.PathLike[str] | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  dtype: DTypeLike | None = None,
) -> DualEncoder:
  """Loads a retriever; its score temperature is the query encoder's.

  Args:
    query_path: directory of the query encoder, see :func:`load_encoder`.
    passage_path: directory of the passage encoder; without one the query encoder's weights are copied.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type, default float32.

  Raises:
    UserError: see :func:`load_encoder`; or encoders of different widths.
  """
  query = load_encoder(query_path, mesh=mesh, dtype=dtype)
  if passage_path is None:
    passage = jax.tree.map(jnp.copy, query)
  else:
    passage = load_encoder(passage_path, mesh=mesh, dtype=dtype)
  return DualEncoder(query, passage, encoder_temperature(query_path))


def load_tokenizer(path: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
  """Loads a tokenizer from a local directory; no code of the directory is run, and nothing is downloaded.

  Truncation and padding stored in the files are switched off: lengths are the caller's business, and MiniLM's files
  would cut at 128 tokens what the model takes 256 of.

  Raises:
    UserError: no tokenizer in the directory, or one that cannot be read.
  """
  root = sentence_files.model_directory(path)
  known = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "tokenizer_config.json")
  if not any((root / name).exists() for name in known):
    raise UserError(f"{root}: no tokenizer (none of {', '.join(known)})")
  from transformers import AutoTokenizer

  try:
    tokenizer = AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
  except (
    Exception
  ) as e:  # the library raises many kinds, tokenizers even a bare Exception; all mean: files it cannot use
    raise UserError(f"{root}: tokenizer cannot be loaded ({str(e).strip().splitlines()[0] if str(e) else e!r})") from e
  backend = getattr(tokenizer, "backend_tokenizer", None)
  if backend is not None:
    backend.no_truncation()
    backend.no_padding()
  return tokenizer


def save_generator(generator: Llama, tokenizer: "PreTrainedTokenizerBase", path: str | os.PathLike[str]) -> None:
  """Writes a Hugging Face directory, whole or not at all; weights keep their type.

  Raises:
    UserError: the tokenizer has more ids than the embedding has rows.
  """
  _check_vocabulary(tokenizer, generator.config.vocab_size, path)
  token_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
  dtype = generator.embedding[...].dtype.name
  with atomic_directory(path) as d:
    safetensors_files.write_file(d / safetensors_files.SINGLE, hf_weights.named_tensors(generator))
    tokenizer.save_pretrained(d)
    hf_config.write_llama_config(d, generator.config, dtype=dtype, token_ids=token_ids)


def save_encoder(
  encoder: BertEncoder,
  tokenizer: "PreTrainedTokenizerBase",
  path: str | os.PathLike[str],
  *,
  score_temperature: float | None = None,
  passage_encoder: str | None = None,
) -> None:
  """Writes a sentence-transformers directory, whole or not at all; weights keep their type.

  Args:
    encoder: the encoder.
    tokenizer: its tokenizer.
    path: the directory.
    score_temperature: of the retriever it belongs to, kept in `radit.json`; by default what its normalisation implies.
    passage_encoder: for a tuned query encoder, fingerprint of the passage encoder it was tuned against, kept there too.

  Raises:
    UserError: the tokenizer has more ids than the embedding has rows.
  """
  _check_vocabulary(tokenizer, encoder.config.vocab_size, path)
  if score_temperature is None:
    score_temperature = default_temperature(normalize=encoder.config.normalize)
  with atomic_directory(path) as d:
    safetensors_files.write_file(d / safetensors_files.SINGLE, hf_weights.named_tensors(encoder))
    tokenizer.save_pretrained(d)
    hf_config.write_bert_config(
      d,
      encoder.config,
      dtype=encoder.word_embedding[...].dtype.name,
      pad_token_id=tokenizer.pad_token_id,
      score_temperature=score_temperature,
      passage_encoder=passage_encoder,
    )


def fingerprint(path: str | os.PathLike[str]) -> str:
  """SHA-256 over weights, configuration and tokenizer of a directory, as hex: equal iff it is the same model.

  Raises:
    UserError: no such directory, or nothing of the kind in it.
  """
  # .model, .txt and .jinja: vocabularies, merges and chat templates that stand in files of their own.
  return fingerprint_directory(path, suffixes=(".safetensors", ".json", ".model", ".txt", ".jinja"))


def passage_encoder_of(path: str | os.PathLike[str], passage_path: str | os.PathLike[str] | None = None) -> str:
  """Fingerprint of the passage encoder whose index a query encoder may search.

  Args:
    path: directory of the query encoder.
    passage_path: directory of its passage encoder; without one it is the encoder that the query encoder was tuned
      against, else the query encoder itself.

  Raises:
    UserError: no such directory.
  """
  if passage_path is not None:
    return fingerprint(passage_path)
  return sentence_files.passage_encoder_fingerprint(path) or fingerprint(path)


def _check_vocabulary(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, path: str | os.PathLike[str]) -> None:
  if len(tokenizer) > vocab_size:
    raise UserError(f"{path}: the tokenizer has {len(tokenizer)} ids, the model's embedding {vocab_size} rows")
