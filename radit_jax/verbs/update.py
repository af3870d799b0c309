"""`radit index --update` and `--rollback`: a new version of passages and index beside the old one, and the way back.

The version of the index names the passages that it is of, so one file, the index's ``CURRENT``, decides what is read.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from radit_jax import files, hosts, runs, versions
from radit_jax.config import IndexConfig, PrepareConfig
from radit_jax.data.corpus import PassageStore, version_of
from radit_jax.data.corpus.revision import Revision, copied_rows, revise
from radit_jax.errors import UserError
from radit_jax.models.pretrained import fingerprint
from radit_jax.owner import owned
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.shards import read_embeddings
from radit_jax.retrieval.tuned import Wish, has_collection, tune_index
from radit_jax.retrieval.update import update_index
from radit_jax.verbs.encode import encode, index_recipe
from radit_jax.verbs.golden import Found, golden, read_golden
from radit_jax.verbs.prepare import corpus_sources, limit_of

#: Passages read at once.
_READ = 256


@dataclasses.dataclass(frozen=True)
class UpdateResult:
  """What has changed.

  Attributes:
    index: directory of the index.
    version: that is read now.
    made: version that was made; None where nothing has changed.
    documents: new, changed and removed ones.
    rows_added: passages that came.
    rows_encoded: of these, whose texts were new.
    rows_removed: passages that went.
    num_passages: that a search may find.
    overlap: what the index found of what exact search finds; None where the search is exact.
    golden: what was found of the golden questions; None if there were none.
    pruned: old versions that were removed.
  """

  index: str
  version: int
  made: int | None
  documents: dict[str, int] = dataclasses.field(default_factory=dict)
  rows_added: int = 0
  rows_encoded: int = 0
  rows_removed: int = 0
  num_passages: int = 0
  overlap: dict[str, Any] | None = None
  golden: Found | None = None
  pruned: tuple[int, ...] = ()

  @property
  def failed(self) -> bool:
    """The golden questions kept the new version from being read."""
    return self.made is not None and self.made != self.version

  def summary(self) -> str:
    """A few lines for the command line."""
    if self.made is None:
      return f"nothing has changed: version {self.version} of {self.index} stays"
    d = self.documents
    lines = [
      f"version {self.made} of {self.index}: {self.num_passages} passages; documents: {d['new']} new, {d['changed']} "
      f"changed, {d['removed']} removed; passages: {self.rows_added} came ({self.rows_encoded} encoded), "
      f"{self.rows_removed} went"
    ]
    if self.overlap is not None:
      o = self.overlap
      below = f", below {o['wanted']:g}: {o['advice']}" if o["advice"] else ""
      lines.append(f"overlap@10 with exact search {o['overlap']:.3f} ({o['queries']} passages as queries){below}")
    if self.golden is not None:
      lines.append(self.golden.summary())
    if self.failed:
      lines.append(f"version {self.made} is not read; version {self.version} stays")
    if self.pruned:
      lines.append(f"{len(self.pruned)} old versions removed: {', '.join(map(str, self.pruned))}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class RollbackResult:
  """Which version is read now.

  Attributes:
    index: directory of the index.
    before: version that was read.
    version: that is read now.
    num_passages: that a search may find.
  """

  index: str
  before: int
  version: int
  num_passages: int

  def summary(self) -> str:
    """One line for the command line."""
    return f"version {self.version} of {self.index} is read again, not {self.before}: {self.num_passages} passages"


def update(config: IndexConfig, *, progress: Progress = silent) -> UpdateResult:
  """Makes a version of the passages and of the index from those that are read now and the documents that have changed.

  Until all of it is there, measured, and has found enough of the golden questions, the version before is read. A call
  that was killed is continued by the same one.

  Args:
    config: see :class:`radit_jax.config.IndexConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: an index of another encoder, of other passages, or made with other options; a damaged one; documents that
      cannot be read or must not come.
  """
  assert config.update is not None
  root = pathlib.Path(config.index)
  if not root.is_dir():
    raise UserError(f"{root}: no such directory; `radit index` without --update makes the index")
  passages = PassageStore(config.passages).root
  # Other indexes may be of the same passages, and updated at the same time.
  with owned(root, beside=True), owned(passages):
    number = versions.current_number(root)
    base = versions.directory(root, number)
    manifest = files.read_manifest(base, "index", verify="full")
    encoder = fingerprint(config.encoder, config.embedding)
    if manifest["encoder_fingerprint"] != encoder:
      raise UserError(
        f"{base}: built by the encoder {str(manifest['encoder_fingerprint'])[:12]}, {config.encoder} is "
        f"{encoder[:12]}; update it with the encoder it was built by"
      )
    before = version_of(manifest["passages_fingerprint"], PassageStore(config.passages), config.index)
    inputs = {"passages": before.fingerprint, "encoder": encoder}
    runs.check_same(base, manifest.get("recipe", {}), index_recipe(config, inputs))
    # Before anything is cut or encoded.
    if config.milvus_uri is not None and not has_collection(base, manifest, config.milvus_uri):
      raise UserError(
        f"{config.milvus_uri}: no whole collection {manifest['parameters']['collection']}, which {base} is searched "
        "in; the same call without --update fills it"
      )
    questions = read_golden(config)
    after = _passages(config, before, encoder, progress)
    if after is None:
      with hosts.one_writes() as mine:
        if mine:  # the call that made this version may have been killed just before
          _read_from_now_on(root, number, before)
      return UpdateResult(config.index, number, None, num_passages=before.num_live)
    made = _made(root, number, after)
    if made is None:
      made = versions.numbers(root)[-1] + 1
      _make(config, manifest, made, before, after, progress)
    else:
      _tune(config, versions.directory(root, made), progress)
    asked = golden(config, questions, [(number, before), (made, after)], progress=progress) if questions else None
    pruned: tuple[int, ...] = ()
    passed = asked is None or asked.passed
    with hosts.one_writes() as mine:
      if mine and passed:
        _read_from_now_on(root, made, after)
        pruned = tuple(versions.prune(root, config.keep_versions, {made, number}))
    made_of = files.read_manifest(versions.directory(root, made), "index")
    return UpdateResult(
      config.index,
      made if passed else number,
      made,
      documents={k: after.manifest["changes"][k] for k in ("new", "changed", "removed")},
      rows_added=after.manifest["changes"]["rows_added"],
      rows_encoded=made_of["encoded"],
      rows_removed=after.manifest["changes"]["rows_removed"],
      num_passages=after.num_live,
      overlap=made_of["overlap"],
      golden=asked,
      pruned=pruned,
    )


def rollback(config: IndexConfig) -> RollbackResult:
  """Has the version read again that the current one was made from.

  Raises:
    UserError: the current version is the first one, or the one it was made from is no longer there or damaged.
  """
  root = pathlib.Path(config.index)
  with owned(root, beside=True), owned(PassageStore(config.passages).root):
    number = versions.current_number(root)
    # What is gone back from may be damaged: that is a reason to.
    manifest = files.read_json(versions.directory(root, number) / files.MANIFEST)
    if "base" not in manifest:
      raise UserError(f"{root}: version {number} is the first one; there is none to go back to")
    target = manifest["base"]
    if target not in versions.numbers(root):
      raise UserError(
        f"{root}: version {target}, which {number} was made from, was removed (--keep-versions keeps more)"
      )
    there = files.read_manifest(versions.directory(root, target), "index", verify="full")
    store = version_of(there["passages_fingerprint"], PassageStore(config.passages), config.index)
    with hosts.one_writes() as mine:
      if mine:
        _read_from_now_on(root, target, store, back=True)
    return RollbackResult(config.index, number, target, store.num_live)


def _passages(config: IndexConfig, before: PassageStore, encoder: str, progress: Progress) -> PassageStore | None:
  """The version of the passages with the documents that have changed; None where none has."""
  number: int | None = None
  with hosts.one_writes() as mine:
    if mine:
      cutting = _cutting(config, before, encoder)
      revision = Revision(
        corpus=cutting.corpus,
        format=cutting.corpus_format,
        limit=limit_of(cutting),
        on_error=cutting.on_error,
        sources=corpus_sources(cutting),
        delete_missing=config.delete_missing,
        restore=config.restore,
      )
      number = revise(before, revision, progress=progress)
  number = json.loads(hosts.exchange(json.dumps(number))[0])
  return None if number is None else PassageStore(before.root, version=number)


def _cutting(config: IndexConfig, store: PassageStore, encoder: str) -> PrepareConfig:
  """How documents were cut when the passages were made.

  Raises:
    UserError: the passages do not say it, or their tokens are those of another encoder.
  """
  assert config.update is not None
  recipe = store.manifest.get("recipe", {})
  options = recipe.get("options", {})
  if "max_passage_words" not in options:
    raise UserError(f"{store.path}: not made by `radit prepare`, so it does not say how documents are to be cut")
  tokens = options["max_passage_tokens"]
  if tokens is not None and recipe["inputs"].get("passage_encoder") != encoder:
    raise UserError(
      f"{store.path}: cut into passages of {tokens} tokens of the encoder "
      f"{str(recipe['inputs'].get('passage_encoder'))[:12]}, {config.encoder} is {encoder[:12]}"
    )
  return PrepareConfig(
    workdir="",
    corpus=config.update,
    questions="",
    corpus_format=config.corpus_format or options["corpus_format"],
    max_passage_words=options["max_passage_words"],
    max_passage_characters=options["max_passage_characters"],
    max_passage_tokens=tokens,
    passage_encoder=None if tokens is None else config.encoder,
    embedding=config.embedding,
    on_error=options["on_error"],
  )


def _made(root: pathlib.Path, base: int, passages: PassageStore) -> int | None:
  """A version that was made before and is not read: it found too little, was gone back from, or its call was killed."""
  return versions.first_of(root, versions.numbers(root)[1:], base=base, passages_fingerprint=passages.fingerprint)


def _wish(config: IndexConfig) -> Wish:
  return Wish(config.leaves_to_search, config.reorder, config.target_recall)


def _tune(config: IndexConfig, made: pathlib.Path, progress: Progress) -> None:
  """Checks a version that was made before, and has it search as thoroughly as this call asks for, if it asks."""
  wish = _wish(config)
  manifest = files.read_manifest(made, "index")
  with hosts.one_writes() as mine:
    if mine and wish != Wish() and manifest["wish"] != dataclasses.asdict(wish):
      tune_index(made, wish, milvus_uri=config.milvus_uri, progress=progress)


def _make(
  config: IndexConfig,
  manifest: dict[str, Any],
  number: int,
  before: PassageStore,
  after: PassageStore,
  progress: Progress,
) -> None:
  """Makes a version of the index that is read now."""
  root = pathlib.Path(config.index)
  base = versions.current_number(root)
  path = versions.directory(root, number)
  copied = copied_rows(before, after)
  texts = _Texts(after, len(before) + np.flatnonzero(copied < 0))
  fields = {"encoder_fingerprint": manifest["encoder_fingerprint"], "passages_fingerprint": after.fingerprint}
  encoded = path.parent / f".{path.name}.encoded"
  if len(texts):
    with hosts.one_writes() as mine:
      if mine and encoded.exists() and not _is_of(encoded, after):
        shutil.rmtree(encoded)
    encode(config, texts, encoded, fields, progress)
  asked = _wish(config)
  with hosts.one_writes() as mine:
    if mine:
      rows = range(len(before), len(after))
      update_index(
        versions.directory(root, base),
        manifest,
        path,
        copied=copied,
        encoded=Rows(read_embeddings(encoded)) if len(texts) else None,
        removed=after.removed,
        metadata=(p.metadata for i in range(0, len(rows), _READ) for p in after.many(rows[i : i + _READ])),
        fields={
          **fields,
          "recipe": index_recipe(config, {"passages": after.fingerprint, "encoder": manifest["encoder_fingerprint"]}),
          "base": base,
          "encoded": len(texts),
        },
        shard_passages=config.shard_passages,
        wish=Wish(**manifest["wish"]) if asked == Wish() else asked,
        milvus_uri=config.milvus_uri,
        progress=progress,
      )
      shutil.rmtree(encoded, ignore_errors=True)


def _is_of(encoded: pathlib.Path, passages: PassageStore) -> bool:
  """Whether embeddings that an earlier call has finished are of these passages."""
  try:
    return bool(files.read_manifest(encoded, "embeddings")["passages_fingerprint"] == passages.fingerprint)
  except UserError:
    return False


def _read_from_now_on(root: pathlib.Path, number: int, passages: PassageStore, *, back: bool = False) -> None:
  """Has a version of the index read, and then its passages by whoever reads them without an index.

  Newer passages, which another index may be of, stay read unless it is to go back.
  """
  versions.settle(passages.root, passages.version)
  if versions.current_number(root) != number:
    versions.make_current(root, number)
  read = versions.current_number(passages.root)
  if passages.version > read or (back and passages.version < read):
    versions.make_current(passages.root, passages.version)


class _Texts(Sequence[str]):
  """What an encoder reads of some rows of a store."""

  def __init__(self, store: PassageStore, rows: np.ndarray):
    self._store, self._rows = store, rows

  def __len__(self) -> int:
    return len(self._rows)

  @overload
  def __getitem__(self, place: int) -> str: ...
  @overload
  def __getitem__(self, place: slice) -> list[str]: ...
  def __getitem__(self, place: int | slice) -> str | list[str]:
    rows = self._rows[place]
    return self._store.texts(rows) if isinstance(place, slice) else self._store[int(rows)].full_text
