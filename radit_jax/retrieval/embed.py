"""Texts to embeddings: sorted by length, run through the encoder in few shapes, finished shards kept."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from radit_jax import files, hosts
from radit_jax.config import StoredDtype
from radit_jax.data.sources import Passage
from radit_jax.data.tokenization import EncoderTokenizer
from radit_jax.errors import UserError
from radit_jax.models.dual_encoder import Encoder
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.by_length import PAD_TOKENS, run_by_length
from radit_jax.retrieval.shards import Shards
from radit_jax.sharding import concatenate, row_shards, total


def embed_queries(
  encoder: Encoder,
  tokenizer: Any,
  texts: Sequence[str],
  *,
  max_tokens: int,
  batch_size: int,
  prompt: str = "",
  mesh: Mesh | None = None,
  progress: Progress = silent,
) -> Float[np.ndarray, "Q E"]:
  """Embeddings of questions, in their order.

  Args:
    encoder: query encoder, ``(tokens [N, T] int32, mask [N, T] bool) -> [N, E]``.
    tokenizer: a fast tokenizer.
    texts: Q questions; there may be none.
    max_tokens: longer ones are cut at the end; ``progress`` is told how many (``cut=``).
    batch_size: rows per call of the encoder.
    prompt: put in front of every question.
    mesh: rows are split over its ``data`` and ``fsdp`` axes; the encoder must have been loaded onto it.
    progress: told after every batch.

  Returns:
    ``[Q, E]`` float32.

  Raises:
    UserError: an embedding that is not finite (row named), or a batch size the mesh does not divide.
  """
  ids, cut = EncoderTokenizer(tokenizer, max_tokens, prompt)(texts)
  figures = {"cut": float(np.count_nonzero(cut))}

  def report(done: int) -> None:
    progress("embed", done, len(ids), "queries", **figures)

  return _encode_all(encoder, tokenizer, ids, max_tokens, batch_size, mesh, report, first_row=0, what="question")


def embed_passages(
  encoder: Encoder,
  tokenizer: Any,
  texts: Sequence[str] | Sequence[Passage],
  out: str | os.PathLike[str],
  *,
  max_tokens: int,
  batch_size: int,
  fields: dict[str, Any],
  prompt: str = "",
  mesh: Mesh | None = None,
  progress: Progress = silent,
  shard_size: int = 2**15,
  dtype: StoredDtype = "float32",
) -> dict[str, Any]:
  """Embeds passages into a directory of shards. The same call again goes on after the shards that are finished.

  Batches are planned within each shard, so that its bytes do not depend on what was there before. Work in progress lies
  in a hidden directory beside ``out``; ``out`` itself is whole or absent.

  Args:
    encoder: passage encoder, ``(tokens [N, T] int32, mask [N, T] bool) -> [N, E]``.
    tokenizer: a fast tokenizer.
    texts: one string per row, or a passage store, whose passages are read with their titles.
    out: the directory.
    max_tokens: longer passages are cut at the end; the manifest counts them as ``cut_passages``.
    batch_size: rows per call of the encoder.
    fields: what the embeddings depend on, ``encoder_fingerprint`` and ``passages_fingerprint``; kept in the manifest.
    prompt: put in front of every passage.
    mesh: rows are split over its ``data`` and ``fsdp`` axes; the encoder must have been loaded onto it. With several
      processes and a mesh of this process's own devices, each process makes the shards whose number leaves its own
      one as the remainder; over a mesh of all devices they make every shard together.
    progress: told before the first batch, with what will be on disk, and after every batch.
    shard_size: rows per shard; sorting by length is within a shard.
    dtype: of the files.

  Returns:
    The manifest.

  Raises:
    UserError: no passages, an embedding that is not finite or does not fit ``dtype`` (row named), a full disk, or an
      ``out`` made from something else (the first field that differs is named with both values).
  """
  if not len(texts):
    raise UserError(f"{out}: no passages to embed")
  final = pathlib.Path(out)
  request = {**fields, "count": len(texts), "max_tokens": max_tokens, "prompt": prompt, "dtype": dtype}
  if final.exists():
    return _agree(final, files.read_manifest(final, "embeddings"), request)
  shards = Shards(final, request, count=len(texts), size=shard_size, dtype=dtype)
  alone = hosts.count() > 1 and (mesh is None or all(d.process_index == hosts.index() for d in mesh.devices.flat))
  own = [n for n in range(len(shards)) if not alone or n % hosts.count() == hosts.index()]
  unit = f"passages of process {hosts.index()} of {hosts.count()}" if alone else "passages"
  width = _width(encoder, mesh)
  shards.check_space(width)
  figures = {"GB on disk": shards.planned_bytes(width) / 1e9}
  sizes = {n: len(shards.rows(n)) for n in own}
  total_rows, before = sum(sizes.values()), sum(size for n, size in sizes.items() if n in shards.finished)
  progress("embed", before, total_rows, unit, **figures)
  encode = EncoderTokenizer(tokenizer, max_tokens, prompt)
  for number in own:
    if number in shards.finished:
      continue
    rows = shards.rows(number)
    ids, cut = _tokenized(encode, texts, rows, alone=alone)

    def report(done: int, before: int = before) -> None:
      progress("embed", before + done, total_rows, unit, **figures)

    embeddings = _encode_all(
      encoder, tokenizer, ids, max_tokens, batch_size, mesh, report, first_row=rows.start, what="passage row"
    )
    before += len(rows)
    if alone:
      shards.write(number, embeddings, cut=int(np.count_nonzero(cut)))
      continue
    with hosts.one_writes() as mine:
      if mine:
        shards.write(number, embeddings, cut=int(np.count_nonzero(cut)))
  shards.finish(request)
  return files.read_manifest(final, "embeddings")


def _tokenized(
  encode: EncoderTokenizer, texts: Sequence[str] | Sequence[Passage], rows: range, *, alone: bool
) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
  """Token ids of rows, and how many were cut. Of several processes each reads its part, and tells the others."""
  if alone:
    return encode([_text(texts[row]) for row in rows])
  own = hosts.part(len(rows))
  ids, cut = encode([_text(texts[row]) for row in rows[own.start : own.stop]])
  if hosts.count() == 1:
    return ids, cut
  figures = np.zeros((2, len(rows)), np.int64)
  figures[:, own.start : own.stop] = [len(row) for row in ids], cut
  lengths, cuts = total(figures)
  largest = -(-len(rows) // hosts.count())
  padded = np.zeros((largest, int(lengths.max())), np.int32)
  for i, row in enumerate(ids):
    padded[i, : len(row)] = row
  everyone = concatenate(padded).reshape(hosts.count(), largest, -1)
  parts = [(everyone[number], hosts.part(len(rows), number)) for number in range(hosts.count())]
  return [array[i - part.start, : lengths[i]] for array, part in parts for i in part], cuts


def _text(passage: str | Passage) -> str:
  return passage if isinstance(passage, str) else passage.full_text


def _agree(path: pathlib.Path, manifest: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
  """The manifest, if it is of the same request."""
  for field, asked in request.items():
    if manifest.get(field) != asked:
      there = manifest.get(field)
      raise UserError(
        f"{path}: made with {field} {str(there)[:12]}, asked for {str(asked)[:12]}; "
        "delete the directory or choose another one"
      )
  return manifest


@jax.jit
def encode_batch(encoder: Encoder, tokens: Int[Array, "N T"], mask: Bool[Array, "N T"]) -> Float[Array, "N E"]:
  """One call of the encoder; ``mask`` is True for real tokens."""
  return encoder(tokens, mask).astype(jnp.float32)


def _width(encoder: Encoder, mesh: Mesh | None) -> int:
  """Width E of what an encoder gives, without running it."""
  shape = (1 if mesh is None else row_shards(mesh), PAD_TOKENS)
  probe = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)
  return int(jax.eval_shape(encode_batch, encoder, *probe).shape[1])


def _encode_all(
  encoder: Encoder,
  tokenizer: Any,
  ids: Sequence[Sequence[int]],
  max_tokens: int,
  batch_size: int,
  mesh: Mesh | None,
  report: Callable[[int], None],
  *,
  first_row: int,
  what: str,
) -> Float[np.ndarray, "n E"]:
  """Embeddings of rows of ids in their order."""
  if not ids:
    return np.empty((0, _width(encoder, mesh)), np.float32)
  out = run_by_length(
    functools.partial(encode_batch, encoder),
    ids,
    pad_id=tokenizer.pad_token_id,
    max_tokens=max_tokens,
    batch_size=batch_size,
    mesh=mesh,
    report=report,
  )
  finite = np.isfinite(out).all(axis=1)
  if not finite.all():
    row = first_row + int(np.argmin(finite))
    raise UserError(
      f"embedding of {what} {row} is not finite; the encoder's weights or its computation type are broken"
    )
  return out
