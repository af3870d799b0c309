"""The search index: one contract, its backends, and the embeddings it is built from."""

import importlib
from typing import Any

#: Name -> module: imported when it is first asked for, so that one reader does not pay for every library.
_WHERE = {
  "Index": "index",
  "SearchResult": "index",
  "build_index": "index",
  "embed_passages": "embed",
  "embed_queries": "embed",
  "load_index": "index",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
  if name not in _WHERE:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
