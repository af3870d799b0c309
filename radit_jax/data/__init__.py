"""Files of users, prompts, stores, and the batches made of them."""

import importlib
from typing import Any

#: Name -> module: imported when it is first asked for, so that one reader does not pay for every library.
_WHERE = {
  "Example": "sources",
  "Passage": "sources",
  "PassageStore": "corpus",
  "Prompt": "prompts",
  "RetrievedStore": "examples",
  "ScoreStore": "examples",
  "read_corpus": "sources",
  "read_examples": "sources",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
