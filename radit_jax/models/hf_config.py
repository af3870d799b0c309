"""The `config.json` of every family, read into the two configs that say what differs, and written for new models."""

import json
import math
import os
import pathlib
from typing import Any

from radit_jax import files
from radit_jax.errors import UserError
from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import Activation, DecoderConfig
from radit_jax.models.hub import local_directory
from radit_jax.models.rotary import Rotary
from radit_jax.models.source import SourceFiles

#: model_type -> what its architectures begin with.
DECODERS = {
  "llama": "Llama",
  "mistral": "Mistral",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
  "gemma2": "Gemma2",
  "gemma3_text": "Gemma3",
  "phi3": "Phi3",
}
ENCODERS = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "dpr": "DPR", "modernbert": "ModernBert"}
#: Architectures that are one of the families under a name of their own.
_OTHER_NAMES = {"Contriever": "bert", "Gemma3TextModel": "gemma3_text", "Gemma3ForCausalLM": "gemma3_text"}
_HEADS = ("Model", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "QuestionEncoder", "ContextEncoder")
_ACTIVATIONS: dict[str, Activation] = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}


def read_generator_config(path: str | os.PathLike[str]) -> DecoderConfig:
  """Reads the `config.json` of a generator.

  Raises:
    UserError: another architecture, or a feature that this decoder does not have.
  """
  file, config, source = _read(path, DECODERS, ("ForCausalLM",), "a generator")
  return _decoder(file, config, source)


def read_encoder_config(path: str | os.PathLike[str]) -> BertConfig | DecoderConfig:
  """Reads the `config.json` of an encoder's transformer.

  Raises:
    UserError: another architecture, or a feature that neither body has.
  """
  file, config, source = _read(path, ENCODERS | DECODERS, _HEADS, "an encoder")
  if config["model_type"] in DECODERS:
    return _decoder(file, config, source)
  return _modernbert(file, config, source) if config["model_type"] == "modernbert" else _bert(file, config, source)


def read_cross_encoder_config(path: str | os.PathLike[str]) -> BertConfig:
  """Reads the `config.json` of a cross-encoder.

  Raises:
    UserError: another architecture, more or fewer than one label, or a feature that BERT does not have here.
  """
  families = {name: ENCODERS[name] for name in ("bert", "roberta", "xlm-roberta")}
  file, config, source = _read(path, families, ("ForSequenceClassification",), "a cross-encoder")
  labels = len(config.get("id2label") or {})
  if labels != 1:
    raise UserError(f"{file}: {labels} labels; a cross-encoder that scores passages has 1")
  return _bert(file, config, source)


def _read(
  path: str | os.PathLike[str], families: dict[str, str], heads: tuple[str, ...], role: str
) -> tuple[pathlib.Path, dict[str, Any], SourceFiles]:
  """The file, its values with the family's defaults filled in, and its text."""
  file = local_directory(path) / "config.json"
  raw = files.read_json(file)
  if not isinstance(raw, dict):
    raise UserError(f"{file}: must be a JSON object")
  stated = raw.get("architectures")
  named = stated[0] if isinstance(stated, list) and stated else None
  if not isinstance(named, str | None):
    raise UserError(f"{file}: architectures must be a list of names")
  model_type = raw.get("model_type")
  supported = ", ".join(sorted(set(families.values())))
  family = families.get(model_type) if isinstance(model_type, str) else None
  good = named is None or _OTHER_NAMES.get(named) == model_type or named in {f"{family}{head}" for head in heads}
  if family is None or not good:
    raise UserError(f"{file}: architecture {named or model_type!r} is not supported as {role}; supported: {supported}")
  if raw.get("quantization_config") is not None:
    raise UserError(f"{file}: quantised weights are not supported; use the unquantised model")
  for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
    _whole(file, raw, key)  # the library has defaults for these; a file that leaves them out is damaged
  for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "type_vocab_size", "sliding_window"):
    if raw.get(key) is not None:
      _whole(file, raw, key)
  for key in ("rms_norm_eps", "layer_norm_eps", "norm_eps", "rope_theta"):
    if raw.get(key) is not None:
      _number(file, raw, key)
  for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
    if not isinstance(raw.get(key, False), bool):
      raise UserError(f"{file}: {key} = {raw[key]!r}: must be true or false")
  from transformers import CONFIG_MAPPING

  try:
    # The library knows what older files leave out or say otherwise: layer types, rotary parameters, defaults.
    config = CONFIG_MAPPING[str(model_type)].from_dict(dict(raw)).to_dict()
  except Exception as e:  # its checks raise many kinds; all mean: a file it cannot use
    raise UserError(f"{file}: cannot be used ({' '.join(str(e).split())})") from e
  generation = file.parent / "generation_config.json"
  if generation.exists():
    files.read_json(generation)  # a damaged one is told now
  text = generation.read_text(encoding="utf-8") if generation.exists() else ""
  return file, config | {"model_type": model_type}, SourceFiles(file.read_text(encoding="utf-8"), text)


def _decoder(file: pathlib.Path, config: dict[str, Any], source: SourceFiles) -> DecoderConfig:
  kind = config["model_type"]
  _refuse_unless(file, config, "mlp_bias", False)
  _refuse_unless(file, config, "use_bidirectional_attention", False)
  _refuse_unless(file, config, "is_causal", True)
  gemma = kind.startswith("gemma")
  if gemma:
    _refuse_unless(file, config, "attention_bias", False)
  hidden_size, num_heads = _whole(file, config, "hidden_size"), _whole(file, config, "num_attention_heads")
  head_dim = _whole(file, config, "head_dim", hidden_size // num_heads)
  layers, window = _windows(file, config)
  rotary, window_rotary = _rotaries(file, config)
  scalar = config.get("query_pre_attn_scalar")
  bias = kind == "qwen2" or config.get("attention_bias", False)
  max_positions = _whole(file, config, "max_position_embeddings")
  if rotary.scaling == "longrope":
    max_positions = rotary.original_max_positions
  return DecoderConfig(
    **_sizes(file, config),
    num_kv_heads=_whole(file, config, "num_key_value_heads", num_heads),
    head_dim=head_dim,
    rotary=rotary,
    rms_norm_eps=_number(file, config, "rms_norm_eps", 1e-6),
    tie_word_embeddings=config.get("tie_word_embeddings", False),
    max_positions=max_positions,
    window=window,
    window_layers=layers,
    window_rotary=window_rotary,
    qkv_bias=bias,
    o_bias=bias and kind != "qwen2",
    qk_norm=kind in ("qwen3", "gemma3_text"),
    activation=_activation(file, config),
    norm_offset=gemma,
    post_norms=gemma,
    embedding_scale=hidden_size**0.5 if gemma else 1.0,
    attention_scale=None if scalar is None else _number(file, config, "query_pre_attn_scalar") ** -0.5,
    attention_soft_cap=config.get("attn_logit_softcapping"),
    logit_soft_cap=config.get("final_logit_softcapping"),
    fused=kind == "phi3",
    source=source,
  )


def _modernbert(file: pathlib.Path, config: dict[str, Any], source: SourceFiles) -> DecoderConfig:
  for key in ("attention_bias", "mlp_bias", "norm_bias"):
    _refuse_unless(file, config, key, False)
  hidden_size, num_heads = _whole(file, config, "hidden_size"), _whole(file, config, "num_attention_heads")
  layers, _ = _windows(file, config | {"sliding_window": 1})
  rotary, window_rotary = _rotaries(file, config)
  return DecoderConfig(
    **_sizes(file, config),
    num_kv_heads=num_heads,
    head_dim=hidden_size // num_heads,
    rotary=rotary,
    rms_norm_eps=_number(file, config, "norm_eps", 1e-5),
    tie_word_embeddings=True,
    max_positions=_whole(file, config, "max_position_embeddings"),
    window=_whole(file, config, "local_attention") // 2 + 1 if any(layers) else None,
    window_layers=layers if any(layers) else (),
    window_rotary=window_rotary,
    activation=_activation(file, config),
    causal=False,
    layer_norm=True,
    embedding_norm=True,
    source=source,
  )


def _bert(file: pathlib.Path, config: dict[str, Any], source: SourceFiles) -> BertConfig:
  _refuse_unless(file, config, "hidden_act", "gelu")
  _refuse_unless(file, config, "position_embedding_type", "absolute")
  _refuse_unless(file, config, "is_decoder", False)
  _refuse_unless(file, config, "projection_dim", 0)
  roberta = config["model_type"] in ("roberta", "xlm-roberta")
  padding = config.get("pad_token_id")
  if roberta and (type(padding) is not int or padding < 0):
    raise UserError(f"{file}: pad_token_id = {padding!r}: positions are counted from it, so it must be a whole number")
  return BertConfig(
    **_sizes(file, config),
    max_positions=_whole(file, config, "max_position_embeddings"),
    type_vocab_size=_whole(file, config, "type_vocab_size"),
    layer_norm_eps=_number(file, config, "layer_norm_eps", 1e-12),
    padding_position=padding if roberta else None,
    source=source,
  )


def _sizes(file: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
  """What every transformer has."""
  return {
    "vocab_size": _whole(file, config, "vocab_size"),
    "hidden_size": _whole(file, config, "hidden_size"),
    "intermediate_size": _whole(file, config, "intermediate_size"),
    "num_layers": _whole(file, config, "num_hidden_layers"),
    "num_heads": _whole(file, config, "num_attention_heads"),
  }


def _windows(file: pathlib.Path, config: dict[str, Any]) -> tuple[tuple[bool, ...], int | None]:
  """Which layers have a window, and its size; nothing where none has one."""
  window = None if config.get("sliding_window") is None else _whole(file, config, "sliding_window")
  types = config.get("layer_types")
  if types is None:
    return (), window
  known = ("full_attention", "sliding_attention")
  wrong = [t for t in types if t not in known]
  if wrong or len(types) != config["num_hidden_layers"]:
    raise UserError(f"{file}: layer_types must be {config['num_hidden_layers']} of {', '.join(known)}")
  layers = tuple(t == "sliding_attention" for t in types)
  if not any(layers):
    return (), None
  if window is None:
    raise UserError(f"{file}: layer_types has sliding_attention, but sliding_window is not given")
  return layers, window


def _rotaries(file: pathlib.Path, config: dict[str, Any]) -> tuple[Rotary, Rotary | None]:
  """Positions of the full layers, and of those with a window where they are others."""
  stated = config.get("rope_parameters") or {}
  if "full_attention" in stated or "sliding_attention" in stated:
    full, near = (
      _rotary(file, config, stated.get(k) or stated["full_attention"]) for k in ("full_attention", "sliding_attention")
    )
    return full, None if near == full else near
  return _rotary(file, config, stated), None


def _rotary(file: pathlib.Path, config: dict[str, Any], stated: dict[str, Any]) -> Rotary:
  kind = stated.get("rope_type", "default")
  if kind not in ("default", "linear", "llama3", "longrope"):
    raise UserError(
      f"{file}: rotary positions of type {kind!r} are not supported; default, linear, llama3 and longrope are"
    )

  def number(key: str, default: float) -> float:
    return _number(file, stated, key, default)

  shared: dict[str, Any] = {"theta": number("rope_theta", 10_000.0), "partial": number("partial_rotary_factor", 1.0)}
  if kind == "default":
    return Rotary(**shared)
  if kind == "linear":
    return Rotary(scaling="linear", factor=number("factor", 0.0), **shared)
  longest = _whole(file, config, "max_position_embeddings")
  original = _whole(file, stated, "original_max_position_embeddings", config.get("original_max_position_embeddings"))
  if kind == "llama3":
    return Rotary(
      scaling="llama3",
      factor=number("factor", 0.0),
      low_freq_factor=number("low_freq_factor", 1.0),
      high_freq_factor=number("high_freq_factor", 4.0),
      original_max_positions=original,
      **shared,
    )
  factors = stated.get("short_factor")
  if not isinstance(factors, list) or not all(type(x) in (int, float) and x > 0 for x in factors):
    raise UserError(f"{file}: longrope's short_factor must be a list of numbers above 0")
  stretch = number("factor", longest / original)
  by_paper = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
  return Rotary(
    scaling="longrope",
    original_max_positions=original,
    short_factors=tuple(map(float, factors)),
    attention_factor=number("attention_factor", by_paper),
    **shared,
  )


def write(
  directory: pathlib.Path, config: DecoderConfig | BertConfig, *, dtype: str, token_ids: dict[str, int | None]
) -> None:
  """Writes `config.json`, and for a generator `generation_config.json`: the ones it came with, or new ones.

  Args:
    directory: where to.
    config: of the model.
    dtype: type of the weights in the files.
    token_ids: bos, eos and pad of the tokenizer, for a new model.

  Raises:
    UserError: a new model with a feature that neither Llama nor BERT has.
  """
  source = config.source
  values = _new_config(config, token_ids) if source is None else json.loads(source.config)
  stated = {key: values[key] for key in ("dtype", "torch_dtype") if key in values} or {"dtype": None}
  if all(value == dtype for value in stated.values()) and source is not None:
    files.write_atomic(directory / "config.json", source.config.encode())
  else:
    files.write_json(directory / "config.json", values | dict.fromkeys(stated, dtype))
  if source is not None and source.generation_config:
    files.write_atomic(directory / "generation_config.json", source.generation_config.encode())
  elif isinstance(config, DecoderConfig) and config.causal:
    ids = {key: values.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {"_from_model_config": True, **{key: value for key, value in ids.items() if value is not None}}
    files.write_json(directory / "generation_config.json", generation)


def _new_config(config: DecoderConfig | BertConfig, token_ids: dict[str, int | None]) -> dict[str, Any]:
  """The `config.json` of a model that was not read from files, as Llama or BERT.

  Raises:
    UserError: it has a feature that neither of the two has.
  """
  if isinstance(config, BertConfig):
    if config.padding_position is not None:
      raise UserError("an encoder that counts positions from its padding was not read from files: save it as BERT")
    return {
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
      "pad_token_id": token_ids["pad_token_id"],
    }
  plain = DecoderConfig(
    **{
      name: getattr(config, name)
      for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
    },
    head_dim=config.head_dim,
    rotary=Rotary(theta=config.rotary.theta),
    rms_norm_eps=config.rms_norm_eps,
    tie_word_embeddings=config.tie_word_embeddings,
    max_positions=config.max_positions,
  )
  if config != plain:
    raise UserError("only a plain Llama can be saved without the config.json of the model it came from")
  return {
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
    "rope_parameters": {"rope_theta": config.rotary.theta, "rope_type": "default"},
    "rope_theta": config.rotary.theta,
    "rms_norm_eps": config.rms_norm_eps,
    "tie_word_embeddings": config.tie_word_embeddings,
    "max_position_embeddings": config.max_positions,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "use_cache": True,
    **token_ids,
  }


def _activation(file: pathlib.Path, config: dict[str, Any]) -> Activation:
  name = config.get("hidden_activation") or config.get("hidden_act")
  if name not in _ACTIVATIONS:
    raise UserError(f"{file}: hidden_act = {name!r} is not supported; {', '.join(_ACTIVATIONS)} are")
  return _ACTIVATIONS[name]


def _refuse_unless(file: pathlib.Path, config: dict[str, Any], key: str, expected: Any) -> None:
  value = config.get(key)
  if value is not None and value != expected:
    raise UserError(f"{file}: {key} = {value!r} is not supported; {expected!r} is")


def _whole(file: pathlib.Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
  value = default if config.get(key) is None else config[key]
  if type(value) is not int or value <= 0:
    raise UserError(f"{file}: {key} = {value!r}: must be a whole number above 0")
  return value


def _number(file: pathlib.Path, config: dict[str, Any], key: str, default: float = 0.0) -> float:
  value = default if config.get(key) is None else config[key]
  if type(value) not in (int, float) or not 0 < value < float("inf"):
    raise UserError(f"{file}: {key} = {value!r}: must be a number above 0")
  return float(value)
