"""Configuration files of Hugging Face and sentence-transformers directories, read as plain JSON and written back."""

import os
import pathlib
from typing import Any, Literal, cast

from radit_jax.errors import UserError
from radit_jax.files import read_json, write_json
from radit_jax.models.bert import BertConfig
from radit_jax.models.dual_encoder import default_temperature
from radit_jax.models.llama import LlamaConfig

SUPPORTED = "generators: LlamaForCausalLM; encoders: BertModel"
RADIT = "radit.json"
Pooling = Literal["cls", "mean"]


def read_llama_config(path: str | os.PathLike[str]) -> LlamaConfig:
  """Reads the `config.json` of a generator.

  Raises:
    UserError: another architecture, or a feature that this decoder does not have.
  """
  file = pathlib.Path(path) / "config.json"
  config = _read_object(file)
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


def model_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Where weights, `config.json` and tokenizer lie: the directory itself, or the part that modules.json names."""
  root = pathlib.Path(path)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  modules = _modules(root)
  return modules["Transformer"] if modules else root


def read_bert_config(path: str | os.PathLike[str], *, pooler: bool = False) -> BertConfig:
  """Reads the configuration of an encoder: `config.json`, and the pooling from `modules.json` or `radit.json`.

  Raises:
    UserError: another architecture, a feature that this encoder does not have, or no word on the pooling.
  """
  root, model = pathlib.Path(path), model_directory(path)
  file = model / "config.json"
  config = _read_object(file)
  _check_architecture(file, config, "BertModel", "bert")
  _refuse_unless(file, config, "hidden_act", "gelu")
  _refuse_unless(file, config, "position_embedding_type", "absolute")
  _refuse_unless(file, config, "is_decoder", False)
  max_positions = _whole(file, config, "max_position_embeddings")
  pooling, normalize = _pooling(root)
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
    max_tokens=_max_tokens(model, max_positions),
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
  modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * config.normalize
  write_json(
    path / "modules.json",
    [
      {"idx": i, "name": str(i), "path": directory, "type": f"sentence_transformers.models.{name}"}
      for i, (directory, name) in enumerate(modules)
    ],
  )
  (path / "1_Pooling").mkdir()  # Normalize has nothing to say
  write_json(
    path / "1_Pooling" / "config.json",
    {
      "word_embedding_dimension": config.hidden_size,
      "pooling_mode_cls_token": config.pooling == "cls",
      "pooling_mode_mean_tokens": config.pooling == "mean",
      "pooling_mode_max_tokens": False,
      "pooling_mode_mean_sqrt_len_tokens": False,
    },
  )
  write_json(path / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
  partner = {} if passage_encoder is None else {"passage_encoder": passage_encoder}
  write_json(path / RADIT, {"score_temperature": score_temperature, **partner})


def encoder_temperature(path: str | os.PathLike[str]) -> float:
  """Score temperature of an encoder directory: `radit.json` if it says one, else by whether vectors are normalised.

  Raises:
    UserError: a temperature that is no number above 0, or no word on whether vectors are normalised.
  """
  root = pathlib.Path(path)
  stated = _radit(root).get("score_temperature")
  return float(stated) if stated is not None else default_temperature(normalize=_pooling(root)[1])


def passage_encoder_fingerprint(path: str | os.PathLike[str]) -> str | None:
  """Fingerprint of the passage encoder that a tuned query encoder belongs to; None for an encoder of both sides."""
  return _radit(pathlib.Path(path)).get("passage_encoder")


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


def _modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Directory of each module that `modules.json` lists, by the last part of its type; empty without the file."""
  file = root / "modules.json"
  if not file.exists():
    return {}
  listed = read_json(file)
  found = {}
  for module in listed if isinstance(listed, list) else [None]:
    if not isinstance(module, dict) or not all(isinstance(module.get(k), str) for k in ("type", "path")):
      raise UserError(f"{file}: must be a list of objects with type and path")
    kind = module["type"].rsplit(".", 1)[-1]
    if kind not in ("Transformer", "Pooling", "Normalize"):
      raise UserError(f"{file}: module {module['type']!r} is not supported; Transformer, Pooling and Normalize are")
    if pathlib.PurePath(module["path"]).is_absolute() or ".." in pathlib.PurePath(module["path"]).parts:
      raise UserError(f"{file}: path {module['path']!r} lies outside the directory")
    found[kind] = root / module["path"]
  if "Transformer" not in found or "Pooling" not in found:
    raise UserError(f"{file}: must list a Transformer and a Pooling module")
  return found


def _pooling(root: pathlib.Path) -> tuple[Pooling, bool]:
  """Pooling and whether vectors are normalised."""
  stated, modules = _radit(root), _modules(root)
  if not modules:
    if stated.get("pooling") is None or stated.get("normalize") is None:
      raise UserError(
        f"{root}: no modules.json, so nothing says how hidden states become one vector; "
        f'write {{"pooling": "cls" or "mean", "normalize": true or false}} into {root / RADIT}'
      )
    return stated["pooling"], stated["normalize"]
  file = modules["Pooling"] / "config.json"
  config = _read_object(file)
  prefix = "pooling_mode_"
  modes = [k.removeprefix(prefix).removesuffix("_token").removesuffix("_tokens") for k, v in config.items()
           if k.startswith(prefix) and v is True]  # fmt: skip
  modes += [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
  if len(modes) != 1 or modes[0] not in ("cls", "mean"):
    raise UserError(f"{file}: pooling {' + '.join(modes) or 'none'} is not supported; cls and mean are")
  pooling, normalize = cast(Pooling, modes[0]), "Normalize" in modules
  for key, value in (("pooling", pooling), ("normalize", normalize)):
    if stated.get(key) not in (None, value):
      raise UserError(f"{root / RADIT}: {key} is {stated[key]!r}, but modules.json says {value!r}; remove one of them")
  return pooling, normalize


def _radit(root: pathlib.Path) -> dict[str, Any]:
  """Our own file beside the model: what a retriever adds, and the pooling of directories that do not tell it."""
  file = root / RADIT
  if not file.exists():
    return {}
  stated = _read_object(file)
  for key, value in stated.items():
    if key == "score_temperature":
      good = type(value) in (int, float) and 0 < value < float("inf")
    elif key == "pooling":
      good = value in ("cls", "mean")
    elif key == "normalize":
      good = isinstance(value, bool)
    elif key == "passage_encoder":
      good = isinstance(value, str) and len(value) == 64
    else:
      known = "score_temperature, passage_encoder, pooling and normalize"
      raise UserError(f"{file}: unknown field {key!r}; {known} are known")
    if not good:
      raise UserError(f"{file}: {key} = {value!r} is not possible")
  return stated


def _max_tokens(model: pathlib.Path, max_positions: int) -> int:
  """Longest text: sentence_bert_config.json, else the tokenizer's own limit; never more than there are positions."""
  for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
    if (model / name).exists():
      stated = _read_object(model / name).get(key)
      if isinstance(stated, int | float) and stated > 0:  # no limit is written as the float 1e30
        return int(min(stated, max_positions))
  return max_positions


def _check_architecture(file: pathlib.Path, config: dict[str, Any], architecture: str, model_type: str) -> None:
  stated = config.get("architectures")
  named = stated[0] if isinstance(stated, list) and stated else None
  if config.get("model_type") != model_type or named not in (None, architecture):
    raise UserError(
      f"{file}: architecture {named or config.get('model_type')!r} where {architecture} is expected ({SUPPORTED})"
    )
  if config.get("quantization_config") is not None:
    raise UserError(f"{file}: quantised weights are not supported; use the unquantised model")


def _read_object(file: pathlib.Path) -> dict[str, Any]:
  value = read_json(file)
  if not isinstance(value, dict):
    raise UserError(f"{file}: must be a JSON object")
  return value


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
