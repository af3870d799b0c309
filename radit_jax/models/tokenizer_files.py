"""The tokenizer of a directory in and out, and the ids that end its model's answers."""

import hashlib
import json
import os
import pathlib
from typing import TYPE_CHECKING

from radit_jax.errors import UserError
from radit_jax.files import copy, write_json
from radit_jax.models import sentence_files
from radit_jax.models.hub import local_directory

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = (
  *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
  *("chat_template.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json"),
  "merges.txt",
)


def load_tokenizer(path: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
  """Loads a tokenizer from a directory or a Hub id; no code of it is run.

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
  tokenizer.radit_files = (root, _tokenizer_digest(tokenizer))  # for an export, which says what they say
  return tokenizer


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
  """What a tokenizer holds, as far as its files say it."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
  parts = [content, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_tokenizer(directory: pathlib.Path, tokenizer: "PreTrainedTokenizerBase") -> None:
  """The files a tokenizer was loaded from, as they are; for one that is new or was changed, the library's own."""
  root, digest = getattr(tokenizer, "radit_files", (None, None))
  found = [root / name for name in _TOKENIZER_FILES if (root / name).is_file()] if root is not None else []
  if found and digest == _tokenizer_digest(tokenizer):
    for file in found:
      copy(file, directory / file.name)
    return
  tokenizer.save_pretrained(directory)
  # Version 5 of the library writes a class name and fields that version 4, which many servers have, does not know.
  config = sentence_files.read_object(directory / "tokenizer_config.json")
  if config.get("tokenizer_class") == "TokenizersBackend":
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
  write_json(
    directory / "tokenizer_config.json", {k: v for k, v in config.items() if k not in ("is_local", "local_files_only")}
  )


def load_end_ids(path: str | os.PathLike[str]) -> tuple[int, ...]:
  """Every token id that ends a model's answers, by its `generation_config.json`, else its `config.json`.

  Raises:
    UserError: a file whose eos_token_id is neither a whole number nor a list of them.
  """
  root = local_directory(path)
  for file in (root / "generation_config.json", root / "config.json"):
    value = sentence_files.read_object(file).get("eos_token_id") if file.exists() else None
    if value is not None:
      ids = value if isinstance(value, list) else [value]
      if not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{file}: eos_token_id = {value!r}: must be a token id or a list of them")
      return tuple(ids)
  return ()


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", vocab_size: int, path: str | os.PathLike[str]) -> None:
  """Refuses a tokenizer whose texts may yield ids that the embedding has no row for.

  Control tokens may lie beyond it (Gemma 3's image token in its text models): no text yields them.

  Raises:
    UserError: naming both numbers.
  """
  if len(tokenizer) <= vocab_size:
    return
  control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
  if any(i >= vocab_size and i not in control for i in tokenizer.get_vocab().values()):
    raise UserError(f"{path}: the tokenizer has {len(tokenizer)} ids, the model's embedding {vocab_size} rows")
