"""`radit index`: passages are embedded by the frozen passage encoder, and the embeddings become a search index."""

import dataclasses

from radit_jax import files, hosts, runs
from radit_jax.config import IndexConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.models.pretrained import fingerprint, load_encoder, load_tokenizer
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.embed import embed_passages
from radit_jax.retrieval.index import build_index, load_index
from radit_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class IndexResult:
  """What was built.

  Attributes:
    index: directory of the index.
    embeddings: directory of the embedding shards.
    num_passages: passages in it.
    dimension: embedding width E.
    backend: search backend.
  """

  index: str
  embeddings: str
  num_passages: int
  dimension: int
  backend: str

  def summary(self) -> str:
    """One line for the command line."""
    return f"{self.backend} index of {self.num_passages} passages, width {self.dimension}: {self.index}"


def index(config: IndexConfig, *, progress: Progress = silent) -> IndexResult:
  """Embeds every passage and builds the index.

  Args:
    config: see :class:`radit_jax.config.IndexConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: a missing or foreign store or encoder; an embedding that is not finite (its row named).
  """
  store = PassageStore(config.passages)
  inputs = {"passages": store.fingerprint, "encoder": fingerprint(config.encoder, config.embedding)}
  wanted = runs.recipe(config, inputs=inputs)
  wanted["options"].pop("index", None)
  if not runs.finished(config.index, "index", wanted):
    mesh = make_mesh(config.mesh)
    encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
    embed_passages(
      encoder,
      load_tokenizer(config.encoder),
      store,
      config.embeddings,
      max_tokens=encoder.config.max_tokens,
      prompt=encoder.config.passage_prompt,
      batch_size=config.batch_size,
      fields={"encoder_fingerprint": inputs["encoder"], "passages_fingerprint": store.fingerprint},
      mesh=mesh,
      progress=progress,
    )
    with hosts.one_writes() as mine:
      if mine:
        build_index(
          config.embeddings,
          config.index,
          backend=config.backend,
          metadata=[store[row].metadata for row in range(len(store))],
          fields={"recipe": wanted},
        )
  built = load_index(config.index, verify="sizes")
  manifest = files.read_manifest(config.index, "index")
  return IndexResult(config.index, config.embeddings, len(built), manifest["dim"], config.backend)
