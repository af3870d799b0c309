"""Golden questions: what a new version of an index must find before it is read."""

import dataclasses
from collections.abc import Sequence

from radit_jax import files, versions
from radit_jax.config import IndexConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.data.sources import Example, read_examples
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import has_answer
from radit_jax.models.pretrained import fingerprint, load_encoder, load_tokenizer, passage_encoder_of
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import open_index
from radit_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found of the golden questions.

  Attributes:
    questions: how many there are.
    k: passages looked at for each.
    wanted: share of them that must be found.
    shares: version of the index -> share that it finds; the last one is the new one's.
  """

  questions: int
  k: int
  wanted: float
  shares: dict[int, float]

  @property
  def passed(self) -> bool:
    """Whether the new version finds enough."""
    return list(self.shares.values())[-1] >= self.wanted

  def summary(self) -> str:
    """One line for the command line."""
    *before, (_, share) = self.shares.items()
    others = "".join(f" (version {n}: {s:.1%})" for n, s in before)
    verdict = "" if self.passed else ": too few"
    return (
      f"{share:.1%} of {self.questions} golden questions found among {self.k} passages{others}, "
      f"{self.wanted:.1%} wanted{verdict}"
    )


def read_golden(config: IndexConfig) -> list[Example]:
  """The golden questions of a call, checked before anything is made.

  Raises:
    UserError: a bad file, a question that nothing is known of, or a query encoder that was tuned against another
      passage encoder.
  """
  if config.golden is None:
    return []
  examples = list(read_examples(config.golden, format="jsonl"))
  for example in examples:
    if not example.gold_passage_ids and not example.answers:
      raise UserError(f"{config.golden}: question {example.id!r} has neither answers nor passage_ids")
  if config.golden_encoder is not None:
    against = passage_encoder_of(config.golden_encoder, None, config.embedding)
    own = (fingerprint(path, config.embedding) for path in (config.encoder, config.golden_encoder))
    if against not in own:
      raise UserError(
        f"{config.golden_encoder}: tuned against the passage encoder {against[:12]}, not against {config.encoder}"
      )
  return examples


def golden(
  config: IndexConfig,
  examples: Sequence[Example],
  made: Sequence[tuple[int, PassageStore]],
  *,
  progress: Progress = silent,
) -> Found:
  """Searches versions of an index with the golden questions.

  A question is found if one of its gold documents, or without any a passage that holds an answer, is among the first k.

  Args:
    config: of the verb.
    examples: the questions.
    made: version of the index, and the passages it is of; the new one last.
    progress: told after every batch.
  """
  assert config.golden_min is not None
  path = config.golden_encoder or config.encoder
  mesh = make_mesh(config.mesh)
  encoder = load_encoder(path, mesh=mesh, options=config.embedding)
  queries = embed_queries(
    encoder,
    load_tokenizer(path),
    [example.query or example.instruction for example in examples],
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.query_prompt,
    batch_size=config.batch_size,
    mesh=mesh,
    progress=progress,
  )
  shares = {}
  for number, store in made:
    root = versions.directory(config.index, number)
    index = open_index(root, files.read_manifest(root, "index"), resident=False)
    ids = index.search(queries, config.golden_k).ids
    hits = [_found(example, store, row[row >= 0].tolist()) for example, row in zip(examples, ids, strict=True)]
    shares[number] = sum(hits) / len(hits)
  return Found(len(examples), config.golden_k, config.golden_min, shares)


def _found(example: Example, store: PassageStore, rows: Sequence[int]) -> bool:
  if not example.gold_passage_ids:
    return any(has_answer(passage.text, example.answer_texts) for passage in store.many(rows))
  gold: set[int] = set()
  for document in example.gold_passage_ids:
    gold.update(store.rows_of_document(document) if store.has_document(document) else ())
  return not gold.isdisjoint(rows)
