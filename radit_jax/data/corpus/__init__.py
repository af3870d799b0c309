"""Documents of a corpus: their formats, the pieces they are cut into, and the store whose rows everything refers to."""

from radit_jax.data.corpus.chunks import Limit
from radit_jax.data.corpus.documents import Document, chunk
from radit_jax.data.corpus.formats import read_corpus
from radit_jax.data.corpus.store import PassageStore, version_of, write_passages

__all__ = ["Document", "Limit", "PassageStore", "chunk", "read_corpus", "version_of", "write_passages"]
