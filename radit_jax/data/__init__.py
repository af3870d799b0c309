"""Files of users, prompts, stores, and the batches made of them."""

from radit_jax.lazy import exports

__all__, __getattr__ = exports(
  __name__,
  {
    "Example": "sources",
    "Passage": "sources",
    "PassageStore": "corpus",
    "Prompt": "prompts",
    "RetrievedStore": "examples",
    "ScoreStore": "examples",
    "read_corpus": "corpus",
    "read_examples": "sources",
  },
)
