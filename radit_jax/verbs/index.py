"""`radit index`: every passage through the passage encoder, then the embeddings become a search index."""

import dataclasses
from typing import Any

from radit_jax import files, hosts, runs, versions
from radit_jax.config import IndexConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.errors import UserError
from radit_jax.models.pretrained import fingerprint, load_encoder
from radit_jax.owner import owned
from radit_jax.progress import Progress, silent
from radit_jax.retrieval import milvus_client
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.cost import IndexPlan, plan_index
from radit_jax.retrieval.tuned import Wish, has_collection, tune_index
from radit_jax.verbs.encode import encode, index_recipe
from radit_jax.verbs.update import RollbackResult, UpdateResult, rollback, update


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
    behind: version of the passages that it is of, and the newer one that is read without it; None where it is of that
      one.
  """

  index: str
  embeddings: str
  num_passages: int
  dimension: int
  backend: str
  method: str = "exact"
  overlap: dict[str, Any] | None = None
  behind: tuple[int, int] | None = None

  def summary(self) -> str:
    """One line for the command line, one for newer passages, and one for what was measured."""
    line = f"{self.backend} index of {self.num_passages} passages, width {self.dimension}: {self.index}"
    if self.behind is not None:
      own, newer = self.behind
      line += (
        f"\nof version {own} of the passages, not {newer}: the updates that made it bring it in here with --update"
      )
    if self.overlap is None:
      return f"{line}\nevery search is exact" if self.backend == "scann" else line
    o = self.overlap
    below = f", below {o['wanted']:g}: {o['advice']}" if o["advice"] else ""
    return f"{line}\noverlap@10 with exact search {o['overlap']:.3f} ({o['queries']} passages as queries){below}"


def index(
  config: IndexConfig, *, progress: Progress = silent
) -> IndexResult | IndexPlan | UpdateResult | RollbackResult:
  """Embeds every passage and builds the index; or says what that would cost, updates it, or goes back a version.

  Args:
    config: see :class:`radit_jax.config.IndexConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a missing or foreign store or encoder; an embedding that is not finite (its row named); another process
      that works on the same index or embeddings.
  """
  if config.plan:
    return _plan(config)
  if config.rollback:
    return rollback(config)
  if config.update is not None:
    return update(config, progress=progress)
  # Beside the directory, as a build removes all that is in it.
  with owned(config.index, beside=True, otherwise="choose another --index"):
    return _build(config, progress)


def _build(config: IndexConfig, progress: Progress) -> IndexResult:
  """The index, built so far as it is not there, and tuned so far as other settings are asked for."""
  store = read = PassageStore(config.passages)
  wish = Wish(config.leaves_to_search, config.reorder, config.target_recall)
  current = versions.current(config.index)
  if versions.current_number(config.index) and not (current / files.MANIFEST).exists():
    raise UserError(
      f"{current}: missing or not whole, and {versions.CURRENT} says that it is read; write the number of another "
      f"version into {config.index}/{versions.CURRENT} ({', '.join(map(str, versions.numbers(config.index)))}), or "
      "remove the directory to build anew"
    )
  if (current / files.MANIFEST).exists():
    store = version_of(files.read_manifest(current, "index").get("passages_fingerprint"), store, config.index)
  inputs = {"passages": store.fingerprint, "encoder": fingerprint(config.encoder, config.embedding)}
  wanted = index_recipe(config, inputs)
  if not runs.finished(current, "index", wanted):
    if config.milvus_uri is not None:
      milvus_client.connect(config.milvus_uri).close()  # before hours of encoding
    fields = {"encoder_fingerprint": inputs["encoder"], "passages_fingerprint": store.fingerprint}
    with owned(config.embeddings, beside=True, otherwise="choose other --embeddings"):
      encode(config, store, config.embeddings, fields, progress)
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
          removed=store.removed,
          device_dtype=config.device_dtype,
          milvus_uri=config.milvus_uri,
          progress=progress,
        )
  manifest = files.read_manifest(current, "index")
  with hosts.one_writes() as mine:
    if mine and (manifest["wish"] != dataclasses.asdict(wish) or not _is_there(config, manifest)):
      tune_index(current, wish, milvus_uri=config.milvus_uri, progress=progress)
  manifest = files.read_manifest(current, "index")
  method = manifest["parameters"].get("method", "exact")
  size = manifest["count"] - manifest.get("removed", 0), manifest["dim"]
  behind = (store.version, read.version) if store.version < read.version else None
  return IndexResult(config.index, config.embeddings, *size, config.backend, method, manifest["overlap"], behind)


def _is_there(config: IndexConfig, manifest: dict[str, Any]) -> bool:
  """Whether the collection of an index, if it has one, is whole on the server of the config, and noted to be there."""
  if config.milvus_uri is None:
    return True
  there = has_collection(versions.current(config.index), manifest, config.milvus_uri)
  return there and manifest["milvus_uri"] == config.milvus_uri


def _plan(config: IndexConfig) -> IndexPlan:
  count = config.plan_passages or len(PassageStore(config.passages))
  encoder = load_encoder(config.encoder, options=config.embedding, abstract=True)
  return plan_index(
    count,
    encoder.dimensions,
    dtype=config.stored_dtype,
    backend=config.backend,
    device_dtype=config.device_dtype,
    shard_passages=config.shard_passages,
    rate=config.plan_rate,
  )
