"""What `prepare`, `index` and `retrieve` leave, for tests of what reads it."""

import pathlib

from radit_jax import config as c
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare
from radit_jax.verbs.retrieve import retrieve


def make_retrieved(root: pathlib.Path, parts: dict[str, str], *, k: int) -> None:
  """Passages, split, exact index, and retrieved-example stores of the train and dev questions below a directory."""
  prepare(c.PrepareConfig(workdir=str(root), corpus=parts["corpus"], questions=parts["questions"]))
  stores = {"passages": f"{root}/passages", "index": f"{root}/index", "encoder": parts["encoder"]}
  index(c.IndexConfig(**stores, embeddings=f"{root}/embeddings", backend="exact", batch_size=16))
  for split in ("train", "dev"):
    questions, out = f"{root}/split/{split}.jsonl", f"{root}/retrieved/{split}"
    retrieve(c.RetrieveConfig(**stores, questions=questions, out=out, k=k, batch_size=16))
