"""`radit index`: every passage through the passage encoder, then the embeddings become a search index."""

import dataclasses
from typing import Any

import jax

from radit_jax import files, hosts, runs
from radit_jax.config import IndexConfig, MeshConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.models.pretrained import fingerprint, load_encoder, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.build import Wish, build_index, tune_index
from radit_jax.retrieval.cost import IndexPlan, plan_index
from radit_jax.retrieval.embed import embed_passages
from radit_jax.sharding import make_mesh

#: Options that change how an index is searched, or nothing at all, and so are no part of what made it.
_BESIDE = ("index", "plan", "plan_passages", "plan_rate", "leaves_to_search", "reorder", "target_recall", "milvus_uri")


@dataclasses.dataclass(frozen=True)
class IndexResult:
  """What was built.

  Attributes:
    index: directory of the index.
    embeddings: directory of the embedding shards.
    num_passages: passages in it.
    dimension: embedding width E.
    backend: search backend.
    method: what the backend does at this size: "exact", "quantized", "tree", "device" or "milvus".
    overlap: what the index found of what exact search finds, see :class:`radit_jax.retrieval.recall.Overlap`; None
      where the search is exact.
  """

  index: str
  embeddings: str
  num_passages: int
  dimension: int
  backend: str
  method: str = "exact"
  overlap: dict[str, Any] | None = None

  def summary(self) -> str:
    """One line for the command line, and one for what was measured."""
    line = f"{self.backend} index of {self.num_passages} passages, width {self.dimension}: {self.index}"
    if self.overlap is None:
      return f"{line}\nevery search is exact" if self.backend == "scann" else line
    o = self.overlap
    below = f", below {o['wanted']:g}: {o['advice']}" if o["advice"] else ""
    return f"{line}\noverlap@10 with exact search {o['overlap']:.3f} ({o['queries']} passages as queries){below}"


def index(config: IndexConfig, *, progress: Progress = silent) -> IndexResult | IndexPlan:
  """Embeds every passage and builds the index; or says what that would cost.

  Args:
    config: see :class:`radit_jax.config.IndexConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a missing or foreign store or encoder; an embedding that is not finite (its row named).
  """
  if config.plan:
    return _plan(config)
  store = PassageStore(config.passages)
  inputs = {"passages": store.fingerprint, "encoder": fingerprint(config.encoder, config.embedding)}
  wanted = runs.recipe(config, inputs=inputs)
  for name in (*_BESIDE, *(() if config.backend == "device" else ("device_dtype",))):
    wanted["options"].pop(name, None)
  wish = Wish(config.leaves_to_search, config.reorder, config.target_recall)
  if not runs.finished(config.index, "index", wanted):
    _embed(config, store, inputs["encoder"], progress)
    with hosts.one_writes() as mine:
      if mine:
        build_index(
          config.embeddings,
          config.index,
          backend=config.backend,
          metadata=(passage.metadata for passage in store),
          fields={"recipe": wanted},
          shard_passages=config.shard_passages,
          wish=wish,
          device_dtype=config.device_dtype,
          milvus_uri=config.milvus_uri,
          progress=progress,
        )
  manifest = files.read_manifest(config.index, "index")
  if manifest["wish"] != dataclasses.asdict(wish) or manifest.get("milvus_uri") != config.milvus_uri:
    with hosts.one_writes() as mine:
      if mine:
        tune_index(config.index, wish, milvus_uri=config.milvus_uri, progress=progress)
    manifest = files.read_manifest(config.index, "index")
  method = manifest["parameters"].get("method", "exact")
  size = manifest["count"], manifest["dim"]
  return IndexResult(config.index, config.embeddings, *size, config.backend, method, manifest["overlap"])


def _embed(config: IndexConfig, store: PassageStore, encoder_fingerprint: str, progress: Progress) -> None:
  mesh = make_mesh(config.mesh)
  within = config.mesh.fsdp * config.mesh.tensor
  if hosts.count() > 1 and jax.local_device_count() % within == 0:
    # The encoder fits the devices of one process: each makes shards of its own, and waits for nobody.
    mesh = make_mesh(MeshConfig(fsdp=config.mesh.fsdp, tensor=config.mesh.tensor), devices=jax.local_devices())
  encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
  embed_passages(
    encoder,
    load_tokenizer(config.encoder),
    store,
    config.embeddings,
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.passage_prompt,
    batch_size=config.batch_size,
    fields={
      "encoder_fingerprint": encoder_fingerprint,
      "passages_fingerprint": store.fingerprint,
      "pooling": encoder.config.pooling,
      "normalize": encoder.config.normalize,
    },
    mesh=mesh,
    progress=progress,
    dtype=config.stored_dtype,
  )


def _plan(config: IndexConfig) -> IndexPlan:
  count = config.plan_passages or len(PassageStore(config.passages))
  encoder = load_encoder(config.encoder, options=config.embedding, abstract=True)
  return plan_index(
    count,
    encoder.dimensions,
    dtype=config.stored_dtype,
    backend=config.backend,
    shard_passages=config.shard_passages,
    rate=config.plan_rate,
  )
