"""The `config.json` of the two families, read as plain JSON and written so that transformers loads it."""

import os
import pathlib
from typing import Any

from radit_jax.errors import UserError
from radit_jax.files import write_json
from radit_jax.models import sentence_files
from radit_jax.models.bert import BertConfig
from radit_jax.models.llama import LlamaConfig
from radit_jax.models.sentence_files import read_object

SUPPORTED = "generators: LlamaForCausalLM; encoders: BertModel"


def read_llama_config(path: str | os.PathLike[str]) -> LlamaConfig:
  """Reads the `config.json` of a generator.

  Raises:
    UserError: another architecture, or a feature that this decoder does not have.
  """
  file = pathlib.Path(path) / "config.json"
  config = read_object(file)
  _check_architecture(file, config, "LlamaForCausalLM", "llama")
  _refuse_unless(file, config, "hidden_act", "silu")
  _refuse_unless(file, config, "attention_bias", False)
  _refuse_unless(file, config, "mlp_bias", False)
  num_heads, hidden_size = _whole(file, config, "num_attention_heads"), _whole(file, config, "hidden_size")
  return LlamaConfig(
    vocab_size=_whole(file, config, "vocab_size"),
    hidden_size=hidden_size,
    intermediate_size=_whole(file, config, "intermediate_size"),
    num_layers=_whole(file, config, "num_hidden_layers"),
    num_heads=num_heads,
    num_kv_heads=_whole(file, config, "num_key_value_heads", num_heads),
    head_dim=_whole(file, config, "head_dim", hidden_size // max(num_heads, 1)),
    rope_theta=_rope_theta(file, config),
    rms_norm_eps=_number(file, config, "rms_norm_eps", 1e-6),
    tie_word_embeddings=_boolean(file, config, "tie_word_embeddings", False),
    max_positions=_whole(file, config, "max_position_embeddings", 2048),
  )


def write_llama_config(
  path: pathlib.Path, config: LlamaConfig, *, dtype: str, token_ids: dict[str, int | None]
) -> None:
  """Writes a `config.json` that transformers loads; ``token_ids`` are bos, eos and pad of the tokenizer."""
  write_json(
    path / "config.json",
    {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "vocab_size": config.vocab_size,
      "hidden_size": config.hidden_size,
      "intermediate_size": config.intermediate_size,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "num_key_value_heads": config.num_kv_heads,
      "head_dim": config.head_dim,
      # transformers 5 reads rope_parameters, older versions and other servers rope_theta.
      "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
      "rope_theta": config.rope_theta,
      "rms_norm_eps": config.rms_norm_eps,
      "tie_word_embeddings": config.tie_word_embeddings,
      "max_position_embeddings": config.max_positions,
      "hidden_act": "silu",
      "attention_bias": False,
      "attention_dropout": 0.0,
      "mlp_bias": False,
      "initializer_range": 0.02,
      "use_cache": True,
      "dtype": dtype,
      **token_ids,
    },
  )


def read_bert_config(path: str | os.PathLike[str], *, pooler: bool = False) -> BertConfig:
  """Reads the configuration of an encoder: `config.json`, and the pooling from `modules.json` or `radit.json`.

  Raises:
    UserError: another architecture, a feature that this encoder does not have, or no word on the pooling.
  """
  root, model = pathlib.Path(path), sentence_files.model_directory(path)
  file = model / "config.json"
  config = read_object(file)
  _check_architecture(file, config, "BertModel", "bert")
  _refuse_unless(file, config, "hidden_act", "gelu")
  _refuse_unless(file, config, "position_embedding_type", "absolute")
  _refuse_unless(file, config, "is_decoder", False)
  max_positions = _whole(file, config, "max_position_embeddings")
  pooling, normalize = sentence_files.read_pooling(root)
  return BertConfig(
    vocab_size=_whole(file, config, "vocab_size"),
    hidden_size=_whole(file, config, "hidden_size"),
    num_layers=_whole(file, config, "num_hidden_layers"),
    num_heads=_whole(file, config, "num_attention_heads"),
    intermediate_size=_whole(file, config, "intermediate_size"),
    max_positions=max_positions,
    type_vocab_size=_whole(file, config, "type_vocab_size", 2),
    layer_norm_eps=_number(file, config, "layer_norm_eps", 1e-12),
    pooling=pooling,
    normalize=normalize,
    max_tokens=sentence_files.read_max_tokens(model, max_positions),
    pooler=pooler,
  )


def write_bert_config(
  path: pathlib.Path,
  config: BertConfig,
  *,
  dtype: str,
  pad_token_id: int | None,
  score_temperature: float,
  passage_encoder: str | None,
) -> None:
  """Writes the configuration files of a sentence-transformers directory, and `radit.json`."""
  write_json(
    path / "config.json",
    {
      "architectures": ["BertModel"],
      "model_type": "bert",
      "vocab_size": config.vocab_size,
      "hidden_size": config.hidden_size,
      "num_hidden_layers": config.num_layers,
      "num_attention_heads": config.num_heads,
      "intermediate_size": config.intermediate_size,
      "max_position_embeddings": config.max_positions,
      "type_vocab_size": config.type_vocab_size,
      "layer_norm_eps": config.layer_norm_eps,
      "hidden_act": "gelu",
      "position_embedding_type": "absolute",
      "attention_probs_dropout_prob": 0.1,
      "hidden_dropout_prob": 0.1,
      "initializer_range": 0.02,
      "pad_token_id": pad_token_id,
      "dtype": dtype,
    },
  )
  sentence_files.write(path, config, score_temperature=score_temperature, passage_encoder=passage_encoder)


def _rope_theta(file: pathlib.Path, config: dict[str, Any]) -> float:
  rope: dict[str, Any] = {}
  for key in ("rope_scaling", "rope_parameters"):
    value = config.get(key) or {}
    if not isinstance(value, dict):
      raise UserError(f"{file}: {key} = {value!r}: must be an object")
    kind = value.get("rope_type", value.get("type", "default"))
    if kind != "default" or value.get("partial_rotary_factor", 1.0) != 1.0:
      raise UserError(f"{file}: {key} of type {kind!r} is not supported yet; only unscaled rotary positions are")
    rope |= value
  return _number(file, {"rope_theta": rope.get("rope_theta", config.get("rope_theta"))}, "rope_theta", 10_000.0)


def _check_architecture(file: pathlib.Path, config: dict[str, Any], architecture: str, model_type: str) -> None:
  stated = config.get("architectures")
  named = stated[0] if isinstance(stated, list) and stated else None
  if config.get("model_type") != model_type or named not in (None, architecture):
    raise UserError(
      f"{file}: architecture {named or config.get('model_type')!r} where {architecture} is expected ({SUPPORTED})"
    )
  if config.get("quantization_config") is not None:
    raise UserError(f"{file}: quantised weights are not supported; use the unquantised model")


def _refuse_unless(file: pathlib.Path, config: dict[str, Any], key: str, expected: Any) -> None:
  value = config.get(key, expected)
  if value != expected:
    raise UserError(f"{file}: {key} = {value!r} is not supported; {expected!r} is")


def _whole(file: pathlib.Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
  value = default if config.get(key) is None else config[key]
  if type(value) is not int or value <= 0:
    raise UserError(f"{file}: {key} = {value!r}: must be a whole number above 0")
  return value


def _number(file: pathlib.Path, config: dict[str, Any], key: str, default: float) -> float:
  value = default if config.get(key) is None else config[key]
  if type(value) not in (int, float) or not 0 < value < float("inf"):
    raise UserError(f"{file}: {key} = {value!r}: must be a number above 0")
  return float(value)


def _boolean(file: pathlib.Path, config: dict[str, Any], key: str, default: bool) -> bool:
  value = config.get(key, default)
  if not isinstance(value, bool):
    raise UserError(f"{file}: {key} = {value!r}: must be true or false")
  return value
