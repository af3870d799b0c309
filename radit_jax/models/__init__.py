"""Generators and encoders, and the Hugging Face directories they come from and go to."""

import importlib
from typing import Any

#: Name -> module: imported when it is first asked for, so that one reader does not pay for every library.
_WHERE = {
  "Bert": "bert",
  "BertConfig": "bert",
  "Decoder": "decoder",
  "DecoderConfig": "decoder",
  "DualEncoder": "dual_encoder",
  "EmbeddingConfig": "encoder",
  "Encoder": "dual_encoder",
  "Generator": ".parallel_context",
  "TextEncoder": "encoder",
  "encoder_temperature": "pretrained",
  "fingerprint": "pretrained",
  "load_dual_encoder": "pretrained",
  "load_encoder": "pretrained",
  "load_end_ids": "pretrained",
  "load_generator": "pretrained",
  "load_tokenizer": "pretrained",
  "save_encoder": "pretrained",
  "save_generator": "pretrained",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
