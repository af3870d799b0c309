"""The search index: one contract, its backends, and the embeddings it is built from."""

from radit_jax.lazy import exports

__all__, __getattr__ = exports(
  __name__,
  {
    "Index": "index",
    "SearchResult": "index",
    "build_index": "build",
    "embed_passages": "embed",
    "embed_queries": "embed",
    "load_index": "index",
  },
)
