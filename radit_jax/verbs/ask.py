"""`radit ask`: one question, answered from the index, with the passages behind the answer."""

import dataclasses

from radit_jax.config import AskConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.inference.answer import Answer, Query, answer_questions
from radit_jax.models.pretrained import (
  encoder_temperature,
  load_encoder,
  load_end_ids,
  load_generator,
  load_tokenizer,
  passage_encoder_of,
)
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import load_index
from radit_jax.sharding import make_mesh, round_up_rows
from radit_jax.verbs import cards


@dataclasses.dataclass(frozen=True)
class AskResult:
  """An answer and where it came from.

  Attributes:
    answer: see :class:`radit_jax.inference.answer.Answer`.
    passages: ``(row, title, text, score)`` of each passage, best first.
  """

  answer: Answer
  passages: tuple[tuple[int, str, str, float], ...]

  def summary(self) -> str:
    """The answer, then the passages; the one that carries most of it is marked."""
    lines = [self.answer.text, ""]
    for j, (row, title, text, score) in enumerate(self.passages):
      mark = ">" if j == self.answer.passage else " "
      lines.append(f"{mark} {score:8.3f}  [{row}] {title + ': ' if title else ''}{text}")
    return "\n".join(lines)


def ask(config: AskConfig, *, progress: Progress = silent) -> AskResult:
  """Retrieves and answers by eq. 2.

  Args:
    config: see :class:`radit_jax.config.AskConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: k above the number of passages of the index; an index of another encoder.
  """
  store = PassageStore(config.passages)
  mesh = make_mesh(config.mesh)
  passage_encoder = passage_encoder_of(config.encoder, config.passage_encoder, config.embedding)
  index = load_index(config.index, verify="sizes", encoder_fingerprint=passage_encoder, resident=False, mesh=mesh)
  store = version_of(index.manifest["passages_fingerprint"], store, config.index)
  if config.k > store.num_live:
    raise UserError(f"k = {config.k} passages asked for, {config.index} holds {store.num_live}; lower --k")
  # Both models are loaded before anything is computed, so that a wrong path is told at once.
  tokenizer = load_tokenizer(config.generator)
  prompt = Prompt(tokenizer, config.prompt, end_ids=load_end_ids(config.generator))
  cards.warn_of_difference(config.generator, prompt, config.k)
  generator = load_generator(config.generator, mesh=mesh, dtype=config.dtype, forward_only=True)
  prompt.check_positions(generator.config.max_positions)
  encoder = load_encoder(config.encoder, mesh=mesh, options=config.embedding)
  embeddings = embed_queries(
    encoder,
    load_tokenizer(config.encoder),
    [config.question],
    max_tokens=encoder.config.max_tokens,
    prompt=encoder.config.query_prompt,
    batch_size=round_up_rows(1, mesh),
    mesh=mesh,
    progress=progress,
  )
  found = index.search(embeddings, config.k)
  rows = [int(row) for row, valid in zip(found.ids[0], found.valid[0], strict=True) if valid]
  passages = tuple(store[row] for row in rows)
  scores = tuple(float(s) for s in found.scores[0][: len(rows)])
  (answer,) = answer_questions(
    generator,
    tokenizer,
    prompt,
    [Query(id="ask", question=config.question, passages=passages, scores=scores)],
    score_temperature=encoder_temperature(config.encoder, config.embedding),
    batch_size=1,
    mesh=mesh,
    progress=progress,
  )
  found_passages = tuple((r, p.title, p.text, s) for r, p, s in zip(rows, passages, scores, strict=True))
  return AskResult(answer=answer, passages=found_passages)
