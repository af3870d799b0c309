"""The files around an encoder: sentence-transformers' modules.json and pooling, and our own radit.json."""

import os
import pathlib
from typing import Any, Literal, cast

from radit_jax.errors import UserError
from radit_jax.files import read_json, write_json
from radit_jax.models.bert import BertConfig
from radit_jax.models.dual_encoder import default_temperature

RADIT = "radit.json"
Pooling = Literal["cls", "mean"]


def model_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Where weights, `config.json` and tokenizer lie: the directory itself, or the part that modules.json names."""
  root = pathlib.Path(path)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory")
  modules = _modules(root)
  return modules["Transformer"] if modules else root


def read_pooling(root: pathlib.Path) -> tuple[Pooling, bool]:
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
  config = read_object(file)
  prefix = "pooling_mode_"
  stated_modes = [k.removeprefix(prefix) for k, v in config.items() if k.startswith(prefix) and v is True]
  modes = [m.removesuffix("_token").removesuffix("_tokens") for m in stated_modes]
  modes += [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
  if len(modes) != 1 or modes[0] not in ("cls", "mean"):
    raise UserError(f"{file}: pooling {' + '.join(modes) or 'none'} is not supported; cls and mean are")
  pooling, normalize = cast(Pooling, modes[0]), "Normalize" in modules
  for key, value in (("pooling", pooling), ("normalize", normalize)):
    if stated.get(key) not in (None, value):
      raise UserError(f"{root / RADIT}: {key} is {stated[key]!r}, but modules.json says {value!r}; remove one of them")
  return pooling, normalize


def read_max_tokens(model: pathlib.Path, max_positions: int) -> int:
  """Longest text: sentence_bert_config.json, else the tokenizer's own limit; never more than there are positions."""
  for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
    if (model / name).exists():
      stated = read_object(model / name).get(key)
      if isinstance(stated, int | float) and stated > 0:  # no limit is written as the float 1e30
        return int(min(stated, max_positions))
  return max_positions


def encoder_temperature(path: str | os.PathLike[str]) -> float:
  """Score temperature of an encoder directory: `radit.json` if it says one, else by whether vectors are normalised.

  Raises:
    UserError: a temperature that is no number above 0, or no word on whether vectors are normalised.
  """
  root = pathlib.Path(path)
  stated = _radit(root).get("score_temperature")
  return float(stated) if stated is not None else default_temperature(normalize=read_pooling(root)[1])


def passage_encoder_fingerprint(path: str | os.PathLike[str]) -> str | None:
  """Fingerprint of the passage encoder that a tuned query encoder belongs to; None for an encoder of both sides."""
  return _radit(pathlib.Path(path)).get("passage_encoder")


def write(path: pathlib.Path, config: BertConfig, *, score_temperature: float, passage_encoder: str | None) -> None:
  """Writes everything but `config.json`, weights and tokenizer."""
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
