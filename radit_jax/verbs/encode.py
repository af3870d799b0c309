"""What building and updating an index share: their recipe, and passages through the passage encoder."""

import os
from collections.abc import Sequence
from typing import Any

import jax

from radit_jax import hosts, runs
from radit_jax.config import IndexConfig, MeshConfig
from radit_jax.data.sources import Passage
from radit_jax.models.pretrained import load_encoder, load_tokenizer
from radit_jax.progress import Progress
from radit_jax.retrieval.embed import embed_passages
from radit_jax.sharding import make_mesh

#: Options that change how an index is searched or updated, or nothing at all, and so are no part of what made it.
_BESIDE = (
  *("index", "plan", "plan_passages", "plan_rate", "leaves_to_search", "reorder", "target_recall"),
  "milvus_uri",
  *("update", "corpus_format", "delete_missing", "restore", "rollback", "keep_versions"),
  *("golden", "golden_min", "golden_k", "golden_encoder"),
)


def index_recipe(config: IndexConfig, inputs: dict[str, str]) -> dict[str, Any]:
  """What an index is made from, see :func:`radit_jax.runs.recipe`."""
  wanted = runs.recipe(config, inputs=inputs)
  for name in (*_BESIDE, *(() if config.backend == "device" else ("device_dtype",))):
    wanted["options"].pop(name, None)
  return wanted


def encode(
  config: IndexConfig,
  texts: Sequence[str] | Sequence[Passage],
  out: str | os.PathLike[str],
  fields: dict[str, str],
  progress: Progress,
) -> None:
  """Embeds texts with the passage encoder into a directory of shards.

  Args:
    config: of the verb.
    texts: of the passages.
    out: the directory.
    fields: ``encoder_fingerprint`` and ``passages_fingerprint``.
    progress: told after every batch.
  """
  mesh = make_mesh(config.mesh)
  within = config.mesh.fsdp * config.mesh.tensor
  if hosts.count() > 1 and jax.local_device_count() % within == 0:
    # The encoder fits the devices of one process: each makes shards of its own, and waits for nobody.
    mesh = make_mesh(MeshConfig(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor), devices=jax.local_devices())
  encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
  embed_passages(
    encoder,
    load_tokenizer(config.encoder),
    texts,
    out,
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.passage_prompt,
    batch_size=config.batch_size,
    fields={**fields, "pooling": encoder.config.pooling, "normalize": encoder.config.normalize},
    mesh=mesh,
    progress=progress,
    dtype=config.stored_dtype,
  )
