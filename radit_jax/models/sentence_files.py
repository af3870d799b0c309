"""The files around an encoder: sentence-transformers' modules.json and pooling, and our own radit.json."""

import os
import pathlib
from typing import Any

from radit_jax.config import EmbeddingOptions
from radit_jax.errors import UserError
from radit_jax.files import read_json, write_json
from radit_jax.models.dual_encoder import default_temperature
from radit_jax.models.encoder import EmbeddingConfig
from radit_jax.models.hub import local_directory

RADIT = "radit.json"
PROMPTS = "config_sentence_transformers.json"
#: Their names of poolings, and ours.
_POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}


def model_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Where weights, `config.json` and tokenizer lie: the directory itself, or the part that modules.json names."""
  root = local_directory(path)
  modules = _modules(root)
  return modules["Transformer"] if modules else root


def read_embedding_config(
  root: pathlib.Path, longest_row: int, options: EmbeddingOptions = EmbeddingOptions()
) -> EmbeddingConfig:
  """How the hidden states of a directory's model become vectors.

  Args:
    root: the encoder's directory.
    longest_row: tokens the model has positions for.
    options: what the files leave open. Prompts, limits and dimensions given here take the place of the files'.

  Raises:
    UserError: no word on pooling or normalisation, or two words that differ; an unsupported pooling.
  """
  stated = _radit(root)
  pooling, normalize = _read_pooling(root, stated, options)
  file, model = root / PROMPTS, model_directory(root)
  sentence = read_object(file) if file.exists() else {}
  prompts = _read_prompts(sentence, file)
  truncate = sentence.get("truncate_dim")
  if truncate is not None and (type(truncate) is not int or truncate < 1):
    raise UserError(f"{file}: truncate_dim = {truncate!r}: must be a whole number above 0")

  def chosen(name: str, of_files: Any) -> Any:
    return next((v for v in (getattr(options, name), stated.get(name)) if v is not None), of_files)

  max_tokens = chosen("max_tokens", min(read_max_tokens(model), longest_row))
  if max_tokens > longest_row:
    raise UserError(f"{root}: max_tokens {max_tokens}, but the model has positions for {longest_row}")
  return EmbeddingConfig(
    pooling=pooling,
    normalize=normalize,
    max_tokens=max_tokens,
    query_prompt=chosen("query_prompt", prompts[0]),
    passage_prompt=chosen("passage_prompt", prompts[1]),
    dimensions=chosen("dimensions", truncate),
  )


def _read_pooling(root: pathlib.Path, stated: dict[str, Any], options: EmbeddingOptions) -> tuple[Any, bool]:
  """Pooling and whether vectors are normalised: modules.json, radit.json and options, which must not differ."""
  words = {root / RADIT: stated, "--embedding": {"pooling": options.pooling, "normalize": options.normalize}}
  modules = _modules(root)
  if modules:
    file = modules["Pooling"] / "config.json"
    config = read_object(file)
    prefix = "pooling_mode_"
    modes = [k.removeprefix(prefix) for k, v in config.items() if k.startswith(prefix) and v is True]
    modes += [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    if len(modes) != 1 or modes[0] not in _POOLINGS:
      raise UserError(f"{file}: pooling {' + '.join(modes) or 'none'} is not supported; cls, mean and last token are")
    if config.get("include_prompt", True) is not True:
      raise UserError(f"{file}: include_prompt = {config['include_prompt']!r} is not supported; true is")
    words = {"modules.json": {"pooling": _POOLINGS[modes[0]], "normalize": "Normalize" in modules}, **words}
  found = {}
  for key in ("pooling", "normalize"):
    said = {place: values[key] for place, values in words.items() if values.get(key) is not None}
    if not said:
      raise UserError(
        f"{root}: no modules.json, so nothing says how hidden states become one vector; give --embedding.pooling cls, "
        f"mean or last, and --embedding.normalize True or False (or pooling and normalize in {root / RADIT})"
      )
    (first, value), *others = said.items()
    for place, other in others:
      if other != value:
        raise UserError(f"{place}: {key} is {other!r}, but {first} says {value!r}; remove one of them")
    found[key] = value
  return found["pooling"], found["normalize"]


def _read_prompts(stated: dict[str, Any], file: pathlib.Path) -> tuple[str, str]:
  """Prompts of questions and of passages, by the names under which sentence-transformers looks for them."""
  prompts = stated.get("prompts") or {}
  if not isinstance(prompts, dict) or not all(isinstance(v, str | None) for v in prompts.values()):
    raise UserError(f"{file}: prompts must map names to texts")
  query, passage = (
    next((prompts[name] or "" for name in names if name in prompts), "")
    for names in (("query",), ("document", "passage", "corpus"))
  )
  return query, passage


def read_max_tokens(model: pathlib.Path) -> int:
  """Longest text: sentence_bert_config.json (or its older names), else the tokenizer's own limit."""
  for file in [*sorted(model.glob("sentence_*_config.json")), model / "tokenizer_config.json"]:
    if not file.exists():
      continue
    values = read_object(file)
    if file.name != "tokenizer_config.json" and values.get("do_lower_case"):
      raise UserError(f"{file}: do_lower_case = true is not supported; a tokenizer that lowers its text is")
    stated = values.get("model_max_length" if file.name == "tokenizer_config.json" else "max_seq_length")
    if isinstance(stated, int | float) and stated > 0:  # no limit is written as the float 1e30
      return int(min(stated, 2**31))
  return 2**31


def encoder_temperature(path: str | os.PathLike[str], options: EmbeddingOptions = EmbeddingOptions()) -> float:
  """Score temperature of an encoder directory: `radit.json` if it says one, else by whether vectors are normalised.

  Raises:
    UserError: a temperature that is no number above 0, or no word on whether vectors are normalised.
  """
  root = local_directory(path)
  stated = _radit(root)
  if stated.get("score_temperature") is not None:
    return float(stated["score_temperature"])
  return default_temperature(normalize=_read_pooling(root, stated, options)[1])


def cross_encoder_temperature(path: str | os.PathLike[str]) -> float:
  """Score temperature of a cross-encoder's directory: `radit.json` if it says one, else 1, as its scores are logits."""
  return float(_radit(local_directory(path)).get("score_temperature", 1.0))


def passage_encoder_fingerprint(path: str | os.PathLike[str]) -> str | None:
  """Fingerprint of the passage encoder that a tuned query encoder belongs to; None for an encoder of both sides."""
  return _radit(local_directory(path)).get("passage_encoder")


def write(
  path: pathlib.Path,
  config: EmbeddingConfig,
  width: int,
  *,
  score_temperature: float,
  passage_encoder: str | None,
  recipe: dict[str, Any] | None,
) -> None:
  """Writes everything but `config.json`, weights and tokenizer; ``width`` is the transformer's."""
  modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * config.normalize
  write_json(
    path / "modules.json",
    [
      {"idx": i, "name": str(i), "path": directory, "type": f"sentence_transformers.models.{name}"}
      for i, (directory, name) in enumerate(modules)
    ],
  )
  (path / "1_Pooling").mkdir()
  write_json(
    path / "1_Pooling" / "config.json",
    {
      "word_embedding_dimension": width,
      "pooling_mode_cls_token": config.pooling == "cls",
      "pooling_mode_mean_tokens": config.pooling == "mean",
      "pooling_mode_max_tokens": False,
      "pooling_mode_mean_sqrt_len_tokens": False,
      "pooling_mode_lasttoken": config.pooling == "last",
      "include_prompt": True,
    },
  )
  if config.normalize:
    (path / "2_Normalize").mkdir()
    write_json(path / "2_Normalize" / "config.json", {})
  write_json(path / "sentence_bert_config.json", {"max_seq_length": config.max_tokens, "do_lower_case": False})
  prompts = {"query": config.query_prompt, "document": config.passage_prompt}
  write_json(
    path / PROMPTS,
    {
      "prompts": prompts,
      "default_prompt_name": None,
      "similarity_fn_name": "cosine" if config.normalize else "dot",
      **({} if config.dimensions is None else {"truncate_dim": config.dimensions}),
    },
  )
  own: dict[str, Any] = {"score_temperature": score_temperature}
  own |= {} if passage_encoder is None else {"passage_encoder": passage_encoder}
  own |= {} if config.dimensions is None else {"dimensions": config.dimensions}
  own |= {} if recipe is None else {"recipe": recipe}
  write_json(path / RADIT, own)


def read_object(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that must hold an object."""
  value = read_json(file)
  if not isinstance(value, dict):
    raise UserError(f"{file}: must be a JSON object")
  return value


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


def _radit(root: pathlib.Path) -> dict[str, Any]:
  """Our own file beside the model: what a retriever adds, and the pooling of directories that do not tell it."""
  file = root / RADIT
  if not file.exists():
    return {}
  stated = read_object(file)
  for key, value in stated.items():
    if key == "score_temperature":
      good = type(value) in (int, float) and 0 < value < float("inf")
    elif key == "pooling":
      good = value in ("cls", "mean", "last")
    elif key == "normalize":
      good = isinstance(value, bool)
    elif key == "passage_encoder":
      good = isinstance(value, str) and len(value) == 64
    elif key in ("max_tokens", "dimensions"):
      good = type(value) is int and value > 0
    elif key in ("query_prompt", "passage_prompt"):
      good = isinstance(value, str)
    elif key == "recipe":
      good = isinstance(value, dict)
    else:
      known = (
        "score_temperature, passage_encoder, pooling, normalize, max_tokens, dimensions, query_prompt, passage_prompt"
      )
      raise UserError(f"{file}: unknown field {key!r}; known are {known} and recipe")
    if not good:
      raise UserError(f"{file}: {key} = {value!r} is not possible")
  return stated
