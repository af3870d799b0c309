"""Passages that were found already, scored anew by a cross-encoder, and put into a new order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from radit_jax.data.tokenization import PairTokenizer
from radit_jax.errors import UserError
from radit_jax.models.cross_encoder import CrossEncoder
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.by_length import run_by_length

#: Pairs tokenised and sorted by length at once: some 50 MB of Python integers, and little padding.
_PAIRS = 2**14


@jax.jit
def _score(
  model: CrossEncoder, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"], passage_starts: Int[Array, "N"]
) -> Float[Array, "N"]:
  return model(tokens, mask, passage_starts).astype(jnp.float32)


def cross_scores(
  model: CrossEncoder,
  tokenizer: Any,
  questions: Sequence[str],
  rows: Int[np.ndarray, "Q L"],
  texts: Callable[[Iterable[int]], list[str]],
  *,
  max_tokens: int,
  batch_size: int,
  mesh: Mesh | None = None,
  progress: Progress = silent,
) -> Float[np.ndarray, "Q L"]:
  """What a cross-encoder makes of every question with each of its passages.

  Args:
    model: the cross-encoder.
    tokenizer: of it.
    questions: Q texts.
    rows: rows of each question's passages, -1 for none.
    texts: gives the passages of rows.
    max_tokens: longest pair; ``progress`` is told how many were cut (``cut=``).
    batch_size: pairs per call of the model.
    mesh: pairs are split over its ``data`` and ``fsdp`` axes; the model must have been loaded onto it.
    progress: told after every batch.

  Returns:
    ``[Q, L]`` float32 logits, ``-inf`` where there is no passage.

  Raises:
    UserError: a score that is not finite (question and row named), or a batch size the mesh does not divide.
  """
  encode = PairTokenizer(tokenizer, max_tokens)
  scores = np.full(rows.shape, -np.inf, np.float32)
  pairs = np.argwhere(rows >= 0)
  cut = 0
  for start in range(0, len(pairs), _PAIRS):
    part = pairs[start : start + _PAIRS]
    passages = texts(rows[i, j] for i, j in part)
    ids, starts, lost = encode([(questions[i], passage) for (i, _), passage in zip(part, passages, strict=True)])
    cut += int(np.count_nonzero(lost))

    def report(done: int, before: int = start, cut: int = cut) -> None:
      progress("re-rank", before + done, len(pairs), "passages", cut=float(cut))

    made = run_by_length(
      lambda *batch: _score(model, *batch),
      ids,
      np.asarray(starts, np.int32),
      pad_id=tokenizer.pad_token_id,
      max_tokens=max_tokens,
      batch_size=batch_size,
      mesh=mesh,
      report=report,
    )
    if not np.isfinite(made).all():
      i, j = part[int(np.argmin(np.isfinite(made)))]
      raise UserError(
        f"question {questions[i]!r} with passage row {rows[i, j]}: the cross-encoder's score is not finite"
      )
    scores[part[:, 0], part[:, 1]] = made
  return scores


def best_first(scores: Float[np.ndarray, "Q L"], rows: Int[np.ndarray, "Q L"], k: int) -> Int[np.ndarray, "Q k"]:
  """Places of each question's k best scores; equal scores by lower row, places without a passage last.

  Args:
    scores: finite where there is a passage.
    rows: -1 where there is none.
    k: at most L.

  Example:
    >>> best_first(np.array([[1.0, 3.0, 3.0, 0.0]]), np.array([[7, 9, 4, -1]]), 3).tolist()
    [[2, 1, 0]]
  """
  return np.lexsort((rows, -scores, rows < 0), axis=-1)[:, :k]
