"""Generators, encoders and tokenizers from Hugging Face directories, and back."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from radit_jax import hosts
from radit_jax.config import EmbeddingOptions, Remat
from radit_jax.errors import UserError
from radit_jax.files import atomic_directory, fingerprint_directory
from radit_jax.models import hf_config, hf_weights, safetensors_files, sentence_files
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.cross_encoder import CrossEncoder
from radit_jax.models.decoder import Decoder
from radit_jax.models.dual_encoder import DualEncoder, default_temperature
from radit_jax.models.encoder import TextEncoder
from radit_jax.models.hub import local_directory
from radit_jax.models.sentence_files import encoder_temperature
from radit_jax.models.tokenizer_files import check_vocabulary, load_end_ids, load_tokenizer, write_tokenizer
from radit_jax.sharding import check_heads

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

HEAD = "lm_head.weight"
#: Heads of other tasks beside a transformer whose names have a prefix: no encoder reads them.
_HEADS_BESIDE = ("cls.", "lm_head.", "head.", "decoder.")

__all__ = [
  "check_vocabulary",
  "encoder_temperature",
  "fingerprint",
  "load_cross_encoder",
  "load_dual_encoder",
  "load_encoder",
  "load_end_ids",
  "load_generator",
  "load_tokenizer",
  "passage_encoder_of",
  "save_encoder",
  "save_generator",
]


def load_generator(
  path: str | os.PathLike[str],
  *,
  mesh: jax.sharding.Mesh | None = None,
  dtype: DTypeLike | None = None,
  param_dtype: DTypeLike | None = None,
  remat: Remat = "none",
  forward_only: bool = False,
  abstract: bool = False,
) -> Decoder:
  """Loads a decoder-only language model: Llama 1-3, Mistral, Qwen 2, 2.5 and 3, Gemma 2 and 3 (text), Phi-3.

  Args:
    path: Hugging Face directory with `config.json` and safetensors, in one file or in shards.
    mesh: parameters are placed on it as the sharding table says, each device's slice read by itself.
    dtype: computation type, default float32.
    param_dtype: type of the parameters, default the one they have in the files.
    remat: see :class:`radit_jax.models.decoder.Decoder`.
    forward_only: the model is only read, and its matrices take the computation type where that is narrower: they are
      cast to it in any case where they are used. Of float32 files in bfloat16 that is half of the memory, and half of
      what every decoded token reads. Norms and biases keep their type.
    abstract: everything is checked, the files by their headers, and the parameters stay in the files. Such a model
      computes nothing; saved, it is copied from file to file, one tensor at a time.

  Raises:
    UserError: another architecture, a feature that is not supported, tensors missing, unknown or misshapen; heads or
      dimensions that the mesh does not divide.
  """
  root = local_directory(path)
  config = hf_config.read_generator_config(root)
  tensors = _tensors(root)
  tied_head = config.tie_word_embeddings and HEAD in tensors
  if tied_head:  # some files repeat the embedding as the head it is tied to
    head, embedding = tensors.pop(HEAD), tensors.get("model.embed_tokens.weight")
    if embedding is None or head.shape != embedding.shape or not np.array_equal(head.read(), embedding.read()):
      raise UserError(f"{head.file}: {HEAD} differs from the embedding, but config.json has tie_word_embeddings true")
  narrowed = dtype if forward_only else None
  return _filled(
    Decoder, config, tensors, root, mesh, dtype, param_dtype, remat, abstract, "model.", tied_head, narrowed
  )


def load_encoder(
  path: str | os.PathLike[str],
  *,
  mesh: jax.sharding.Mesh | None = None,
  dtype: DTypeLike | None = None,
  param_dtype: DTypeLike | None = None,
  remat: Remat = "none",
  options: EmbeddingOptions = EmbeddingOptions(),
  abstract: bool = False,
) -> TextEncoder:
  """Loads an encoder with its pooling: the BERT and RoBERTa families, DPR, ModernBERT, and any decoder.

  Args:
    path: sentence-transformers directory, or a plain Hugging Face directory.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type, default float32.
    param_dtype: type of the parameters, default the one they have in the files.
    remat: see :class:`radit_jax.models.decoder.Decoder`.
    options: pooling, prompts and limits that the files do not say; a `radit.json` in the directory may say them too.
    abstract: see :func:`load_generator`.

  Raises:
    UserError: another architecture, an unsupported feature or pooling, no word on the pooling, tensors missing,
      unknown or misshapen; heads or dimensions that the mesh does not divide.
  """
  model = sentence_files.model_directory(path)
  config = hf_config.read_encoder_config(model)
  tensors = _tensors(model)
  kind: type[Bert | Decoder]
  if isinstance(config, BertConfig):
    kind, first, longest = Bert, "embeddings.word_embeddings.weight", config.longest_row
  else:
    first = "embed_tokens.weight" if config.causal else "embeddings.tok_embeddings.weight"
    kind, longest = Decoder, config.max_positions
    config = dataclasses.replace(config, tie_word_embeddings=True)  # nobody reads its logits
  embedding = sentence_files.read_embedding_config(local_directory(path), longest, options)
  prefixes = [name.removesuffix(first) for name in tensors if name.endswith(first)]
  prefix = prefixes[0] if len(prefixes) == 1 else ""
  tensors = {
    name: t for name, t in tensors.items() if not name.startswith(_HEADS_BESIDE) or name.startswith(prefix or " ")
  }
  if isinstance(config, BertConfig):
    config = dataclasses.replace(config, pooler=f"{prefix}pooler.dense.weight" in tensors)
    if prefix.endswith("bert_model."):  # DPR is a BERT in a wrapper that sentence-transformers cannot load: unwrapped
      tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
      config, prefix = dataclasses.replace(config, source=None), ""
  body = _filled(kind, config, tensors, model, mesh, dtype, param_dtype, remat, abstract, prefix, False)
  return TextEncoder(body, embedding)


def load_cross_encoder(
  path: str | os.PathLike[str], *, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike | None = None
) -> tuple[CrossEncoder, int]:
  """Loads a BERT, RoBERTa or XLM-RoBERTa for sequence classification with one label.

  Args:
    path: Hugging Face directory.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type of the body, default float32; the head is float32.

  Returns:
    The model, and tokens of the longest pair it reads.

  Raises:
    UserError: another architecture, other than one label, an unsupported feature, tensors missing, unknown or
      misshapen; heads or dimensions that the mesh does not divide.
  """
  root = local_directory(path)
  config = hf_config.read_cross_encoder_config(root)
  prefix = "bert." if config.padding_position is None else "roberta."

  def make(config: BertConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, remat: Remat) -> CrossEncoder:
    return CrossEncoder(Bert(config, rngs=rngs, dtype=dtype, remat=remat), rngs=rngs)

  model = _filled(make, config, _tensors(root), root, mesh, dtype, None, "none", False, prefix, False)
  return model, min(sentence_files.read_max_tokens(root), config.longest_row)


def _tensors(root: pathlib.Path) -> dict[str, safetensors_files.StoredTensor]:
  """All tensors but the buffers that older versions of transformers saved: positions 0, 1, 2, ... and frequencies."""
  buffers = ("embeddings.position_ids", ".rotary_emb.inv_freq")
  found = {n: t for n, t in safetensors_files.read_directory(root).items() if not n.endswith(buffers)}
  # The first BERTs have the names of TensorFlow.
  return {
    n.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): t
    for n, t in found.items()
  }


def _filled(
  kind: Any,
  config: Any,
  tensors: dict[str, safetensors_files.StoredTensor],
  root: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
  dtype: DTypeLike | None,
  param_dtype: DTypeLike | None,
  remat: Remat,
  abstract: bool,
  prefix: str,
  tied_head: bool,
  matrices: DTypeLike | None = None,
) -> Any:
  """A body with the files' tensors."""
  if config.source is not None:
    source = dataclasses.replace(config.source, prefix=prefix, tied_head=tied_head)
    config = dataclasses.replace(config, source=source)
  if mesh is not None:
    check_heads(mesh, **config.heads)
  computation = jnp.float32 if dtype is None else dtype
  body = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0), dtype=computation, remat=remat))
  hf_weights.fill(body, tensors, root, mesh, param_dtype, matrices=matrices, abstract=abstract)
  return body


def load_dual_encoder(
  query_path: str | os.PathLike[str],
  passage_path: str | os.PathLike[str] | None = None,
  *,
  mesh: jax.sharding.Mesh | None = None,
  dtype: DTypeLike | None = None,
  options: EmbeddingOptions = EmbeddingOptions(),
) -> DualEncoder:
  """Loads a retriever; its score temperature is the query encoder's.

  Args:
    query_path: directory of the query encoder, see :func:`load_encoder`.
    passage_path: directory of the passage encoder; without one the query encoder's weights are copied.
    mesh: parameters are placed on it as the sharding table says.
    dtype: computation type, default float32.
    options: see :func:`load_encoder`; for both.

  Raises:
    UserError: see :func:`load_encoder`; or encoders of different widths.
  """
  query = load_encoder(query_path, mesh=mesh, dtype=dtype, options=options)
  if passage_path is None:
    passage = jax.tree.map(jnp.copy, query)
  else:
    passage = load_encoder(passage_path, mesh=mesh, dtype=dtype, options=options)
  return DualEncoder(query, passage, encoder_temperature(query_path, options))


def save_generator(
  generator: Decoder,
  tokenizer: "PreTrainedTokenizerBase",
  path: str | os.PathLike[str],
  *,
  dtype: DTypeLike | None = None,
  beside: Mapping[str, str] = {},
) -> None:
  """Writes a Hugging Face directory, whole or not at all. Of several processes, all must call it.

  Args:
    generator: the model. One that was loaded keeps its own `config.json` and `generation_config.json`. Corrections of
      :func:`radit_jax.models.lora.add_lora` are merged into what is written.
    tokenizer: its tokenizer.
    path: the directory.
    dtype: type of the weights in the files; None for the parameters' own.
    beside: text files to write with it, by name.

  Raises:
    UserError: the tokenizer has more ids than the embedding has rows.
  """
  check_vocabulary(tokenizer, generator.config.vocab_size, path)
  tensors = hf_weights.named_tensors(generator, dtype)
  with hosts.one_writes() as mine:
    if not mine:
      safetensors_files.write_directory(None, tensors, finite=True)
      return
    with atomic_directory(path) as d:
      _write_body(d, generator, tensors, tokenizer, beside)


def save_encoder(
  encoder: TextEncoder,
  tokenizer: "PreTrainedTokenizerBase",
  path: str | os.PathLike[str],
  *,
  score_temperature: float | None = None,
  passage_encoder: str | None = None,
  recipe: dict[str, Any] | None = None,
  dtype: DTypeLike | None = None,
  beside: Mapping[str, str] = {},
) -> None:
  """Writes a sentence-transformers directory, whole or not at all. Of several processes, all must call it.

  Args:
    encoder: the encoder. One that was loaded keeps its own `config.json`. Corrections are merged, as a generator's.
    tokenizer: its tokenizer.
    path: the directory.
    score_temperature: of the retriever it belongs to, kept in `radit.json`; by default what its normalisation implies.
    passage_encoder: for a tuned query encoder, fingerprint of the passage encoder it was tuned against, kept there too.
    recipe: how it was made, kept there too.
    dtype: type of the weights in the files; None for the parameters' own.
    beside: text files to write with it, by name.

  Raises:
    UserError: the tokenizer has more ids than the embedding has rows.
  """
  body = encoder.body
  check_vocabulary(tokenizer, body.config.vocab_size, path)
  if score_temperature is None:
    score_temperature = default_temperature(normalize=encoder.config.normalize)
  tensors = hf_weights.named_tensors(body, dtype)
  with hosts.one_writes() as mine:
    if not mine:
      safetensors_files.write_directory(None, tensors, finite=True)
      return
    with atomic_directory(path) as d:
      _write_body(d, body, tensors, tokenizer, beside)
      sentence_files.write(
        d,
        encoder.config,
        body.config.hidden_size,
        score_temperature=score_temperature,
        passage_encoder=passage_encoder,
        recipe=recipe,
      )


def _write_body(
  directory: pathlib.Path,
  body: hf_weights.Body,
  tensors: Mapping[str, safetensors_files.NamedTensor],
  tokenizer: "PreTrainedTokenizerBase",
  beside: Mapping[str, str],
) -> None:
  """Weights, tokenizer and the `config.json` files of a transformer, and texts beside them."""
  safetensors_files.write_directory(directory, tensors, finite=True)
  write_tokenizer(directory, tokenizer)
  token_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
  hf_config.write(directory, body.config, dtype=next(iter(tensors.values())).dtype.name, token_ids=token_ids)
  for name, text in beside.items():
    (directory / name).write_text(text, encoding="utf-8")


def fingerprint(path: str | os.PathLike[str], options: EmbeddingOptions = EmbeddingOptions()) -> str:
  """SHA-256 over weights, configuration and tokenizer of a directory, as hex: equal iff it is the same model.

  Args:
    path: the directory, or an id of the Hub.
    options: given to an encoder beside its files; other options, another encoder.

  Raises:
    UserError: no such directory, or nothing of the kind in it.
  """
  # .model, .txt and .jinja: vocabularies, merges and chat templates that stand in files of their own.
  files = fingerprint_directory(local_directory(path), suffixes=(".safetensors", ".json", ".model", ".txt", ".jinja"))
  if options == EmbeddingOptions():
    return files
  return hashlib.sha256(json.dumps([files, dataclasses.asdict(options)]).encode()).hexdigest()


def passage_encoder_of(
  path: str | os.PathLike[str],
  passage_path: str | os.PathLike[str] | None = None,
  options: EmbeddingOptions = EmbeddingOptions(),
) -> str:
  """Fingerprint of the passage encoder whose index a query encoder may search.

  Args:
    path: directory of the query encoder.
    passage_path: directory of its passage encoder; without one it is the encoder that the query encoder was tuned
      against, else the query encoder itself.
    options: given to the passage encoder beside its files.

  Raises:
    UserError: no such directory.
  """
  if passage_path is not None:
    return fingerprint(passage_path, options)
  return sentence_files.passage_encoder_fingerprint(path) or fingerprint(path, options)
