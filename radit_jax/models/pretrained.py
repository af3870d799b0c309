"""Generators, encoders and tokenizers from Hugging Face directories, and back."""

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike

from radit_jax.errors import UserError
from radit_jax.files import atomic_directory, fingerprint_directory
from radit_jax.models import hf_config, safetensors_files
from radit_jax.models.bert import BertEncoder
from radit_jax.models.dual_encoder import DualEncoder, default_temperature
from radit_jax.models.hf_config import encoder_temperature
from radit_jax.models.llama import Llama
from radit_jax.sharding import parameter_shardings

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

__all__ = [
  "encoder_temperature",
  "fingerprint",
  "load_dual_encoder",
  "load_encoder",
  "load_generator",
  "load_tokenizer",
  "save_encoder",
  "save_generator",
]

_FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where one parameter lies in the files.

  Attributes:
    parameter: dotted path of the Variable in the module.
    name: name in the files, with "{}" for the layer of a stacked parameter.
    transposed: files hold [out, in], the module [in, out].
  """

  parameter: str
  name: str
  transposed: bool = False

  @property
  def stacked(self) -> bool:
    return "{}" in self.name


_LLAMA = (
  _Place("embedding", "model.embed_tokens.weight"),
  _Place("final_norm", "model.norm.weight"),
  _Place("layers.attention_norm", "model.layers.{}.input_layernorm.weight"),
  _Place("layers.q_kernel", "model.layers.{}.self_attn.q_proj.weight", True),
  _Place("layers.k_kernel", "model.layers.{}.self_attn.k_proj.weight", True),
  _Place("layers.v_kernel", "model.layers.{}.self_attn.v_proj.weight", True),
  _Place("layers.o_kernel", "model.layers.{}.self_attn.o_proj.weight", True),
  _Place("layers.mlp_norm", "model.layers.{}.post_attention_layernorm.weight"),
  _Place("layers.gate_kernel", "model.layers.{}.mlp.gate_proj.weight", True),
  _Place("layers.up_kernel", "model.layers.{}.mlp.up_proj.weight", True),
  _Place("layers.down_kernel", "model.layers.{}.mlp.down_proj.weight", True),
)
_LLAMA_HEAD = (_Place("head", "lm_head.weight", True),)

_BERT = (
  _Place("word_embedding", "embeddings.word_embeddings.weight"),
  _Place("position_embedding", "embeddings.position_embeddings.weight"),
  _Place("type_embedding", "embeddings.token_type_embeddings.weight"),
  _Place("embedding_norm", "embeddings.LayerNorm.weight"),
  _Place("embedding_norm_bias", "embeddings.LayerNorm.bias"),
  _Place("layers.q_kernel", "encoder.layer.{}.attention.self.query.weight", True),
  _Place("layers.q_bias", "encoder.layer.{}.attention.self.query.bias"),
  _Place("layers.k_kernel", "encoder.layer.{}.attention.self.key.weight", True),
  _Place("layers.k_bias", "encoder.layer.{}.attention.self.key.bias"),
  _Place("layers.v_kernel", "encoder.layer.{}.attention.self.value.weight", True),
  _Place("layers.v_bias", "encoder.layer.{}.attention.self.value.bias"),
  _Place("layers.o_kernel", "encoder.layer.{}.attention.output.dense.weight", True),
  _Place("layers.o_bias", "encoder.layer.{}.attention.output.dense.bias"),
  _Place("layers.attention_norm", "encoder.layer.{}.attention.output.LayerNorm.weight"),
  _Place("layers.attention_norm_bias", "encoder.layer.{}.attention.output.LayerNorm.bias"),
  _Place("layers.up_kernel", "encoder.layer.{}.intermediate.dense.weight", True),
  _Place("layers.up_bias", "encoder.layer.{}.intermediate.dense.bias"),
  _Place("layers.down_kernel", "encoder.layer.{}.output.dense.weight", True),
  _Place("layers.down_bias", "encoder.layer.{}.output.dense.bias"),
  _Place("layers.mlp_norm", "encoder.layer.{}.output.LayerNorm.weight"),
  _Place("layers.mlp_norm_bias", "encoder.layer.{}.output.LayerNorm.bias"),
)
_BERT_POOLER = (
  _Place("pooler_kernel", "pooler.dense.weight", True),
  _Place("pooler_bias", "pooler.dense.bias"),
)


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
  _fill(generator, _places(generator), tensors, root, mesh)
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
  model = hf_config.model_directory(path)
  config = hf_config.read_bert_config(path)
  tensors = safetensors_files.read_directory(model)
  tensors.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: a buffer that older versions of transformers saved
  config = dataclasses.replace(config, pooler=any(p.name in tensors for p in _BERT_POOLER))
  encoder = nnx.eval_shape(lambda: BertEncoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32 if dtype is None else dtype))
  _fill(encoder, _places(encoder), tensors, model, mesh)
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
  root = hf_config.model_directory(path)
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
    safetensors_files.write_file(d / safetensors_files.SINGLE, _tensors(generator, _places(generator)))
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
    safetensors_files.write_file(d / safetensors_files.SINGLE, _tensors(encoder, _places(encoder)))
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
  return fingerprint_directory(path, suffixes=(".safetensors", ".json"))


def passage_encoder_of(path: str | os.PathLike[str]) -> str:
  """Fingerprint of the passage encoder whose index a query encoder may search: the one it names, else its own.

  Raises:
    UserError: no such directory.
  """
  return hf_config.passage_encoder_fingerprint(path) or fingerprint(path)


def _places(module: Llama | BertEncoder) -> tuple[_Place, ...]:
  if isinstance(module, Llama):
    return _LLAMA if module.head is None else _LLAMA + _LLAMA_HEAD
  return _BERT + _BERT_POOLER if module.config.pooler else _BERT


def _variable(module: Any, place: _Place) -> nnx.Variable[Array]:
  for name in place.parameter.split("."):
    module = getattr(module, name)
  return module


def _fill(
  module: Llama | BertEncoder,
  places: tuple[_Place, ...],
  tensors: dict[str, safetensors_files.StoredTensor],
  path: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
) -> None:
  """Puts the files' tensors into a module of shapes; everything is checked before the first byte is read."""
  names: dict[_Place, list[str]] = {}
  expected: dict[str, tuple[int, ...]] = {}
  for place in places:
    shape = _variable(module, place).shape
    names[place] = [place.name.format(i) for i in range(shape[0])] if place.stacked else [place.name]
    one = shape[1:] if place.stacked else shape
    expected |= dict.fromkeys(names[place], one[::-1] if place.transposed else one)
  for kind, wrong in (
    ("missing", sorted(expected.keys() - tensors.keys())),
    ("not part of the model that config.json describes", sorted(tensors.keys() - expected.keys())),
  ):
    if wrong:
      more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
      raise UserError(f"{path}: {kind}: {', '.join(wrong[:3])}{more}")
  for name, shape in expected.items():
    if tensors[name].shape != shape:
      raise UserError(f"{path}: {name} has shape {tensors[name].shape}, config.json makes it {shape}")
    if tensors[name].dtype.name not in _FLOATS:
      raise UserError(f"{path}: {name} is {tensors[name].dtype.name}; supported are {', '.join(_FLOATS)}")

  shardings = None if mesh is None else parameter_shardings(module, mesh)
  for place in places:
    variable = _variable(module, place)
    sources = [tensors[name] for name in names[place]]
    dtype = jnp.result_type(*(s.dtype for s in sources))
    # One copy on the host per parameter, never a second of the whole model; and no view of the file outlives it.
    value = np.empty(variable.shape, dtype)
    for target, source in zip(value if place.stacked else [value], sources, strict=True):
      target[...] = source.read().T if place.transposed else source.read()
    sharding = None if shardings is None else _variable(shardings, place).get_value()
    variable.set_value(jax.device_put(value, sharding))


def _tensors(module: Llama | BertEncoder, places: tuple[_Place, ...]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
  """Parameters under their names in the files, as views."""
  out = {}
  for place in places:
    value = np.asarray(_variable(module, place)[...])
    for i, one in enumerate(value if place.stacked else [value]):
      out[place.name.format(i)] = one.T if place.transposed else one
  return out


def _check_vocabulary(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, path: str | os.PathLike[str]) -> None:
  if len(tokenizer) > vocab_size:
    raise UserError(f"{path}: the tokenizer has {len(tokenizer)} ids, the model's embedding {vocab_size} rows")
