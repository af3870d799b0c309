"""Models named as on the Hugging Face Hub: downloaded into its cache, and from then on a directory like any other."""

import functools
import glob
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator

from radit_jax.errors import UserError
from radit_jax.files import read_json

#: What is read besides weights: configuration, vocabularies, merges, chat templates, and the card and licence that
#: exports name. "*" spans directories here.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_REVISION = re.compile(r"[\w.][\w.+/-]*", re.ASCII)
_ID = re.compile(
  rf"(?P<repo>(?P<owner>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*)(@(?P<revision>{_REVISION.pattern}))?", re.A
)


def local_directory(
  path_or_id: str | os.PathLike[str], *, revision: str | None = None, pickles: bool = False
) -> pathlib.Path:
  """The directory that a path or a Hub id stands for; an id's files are downloaded, unless the cache holds them.

  A directory that exists is returned as it is. Anything else is an id only if it is a string `owner/name` or
  `owner/name@revision`, and there is no `owner` here: a path that is mistyped never leads to the network otherwise.
  Only what this package reads is downloaded: no code, and of the weights the safetensors alone. One process sees one
  commit of an id, however often it asks.

  Args:
    path_or_id: a directory, or an id; an object that is not a string is always a path.
    revision: branch, tag or commit of an id; the same as `@revision`. By default the main branch.
    pickles: fetch `pytorch_model.bin` instead of safetensors, for conversion.

  Raises:
    UserError: no such directory; an id that the Hub does not have or does not show, that cannot be fetched, or that
      holds no weights of the kind.

  Example:
    >>> import tempfile
    >>> local_directory(tempfile.gettempdir()) == pathlib.Path(tempfile.gettempdir())
    True
  """
  path = pathlib.Path(path_or_id)
  if path.is_dir():
    if revision is not None:
      raise UserError(f"{path}: is a directory here, and has no revision {revision!r}; leave the revision out")
    return path
  named = _ID.fullmatch(path_or_id) if isinstance(path_or_id, str) else None
  if path.exists():
    raise UserError(f"{path}: not a directory")
  if named is None:
    raise UserError(f"{path}: no such directory (and no id of a Hub model, which reads owner/name)")
  if pathlib.Path(named["owner"]).exists():
    raise UserError(f"{path}: no such directory ({named['owner']} is here, so this is no id of a Hub model)")
  if revision is not None and named["revision"] not in (None, revision):
    raise UserError(f"{path_or_id}: names revision {named['revision']}, but {revision!r} is asked for")
  wanted = named["revision"] if revision is None else revision
  if wanted is not None and (not _REVISION.fullmatch(wanted) or ".." in wanted):
    raise UserError(f"{path_or_id}: {wanted!r} cannot be a revision; give a branch, a tag or a commit")
  return _download(named["repo"], wanted, pickles)


def weight_folders(root: pathlib.Path) -> list[str]:
  """Folders of a model, "" for its root, that weights are read from: those that `modules.json` names, if it is there.

  Others are a matter of their own: a training run may have left its checkpoints in the repository.

  Raises:
    UserError: a `modules.json` that is no JSON, or names a folder outside the directory.
  """
  file = root / "modules.json"
  listed = read_json(file) if file.exists() else []
  paths = [m.get("path") for m in listed if isinstance(m, dict)] if isinstance(listed, list) else []
  folders = {"", *(posixpath.normpath(path) for path in paths if isinstance(path, str) and path)} - {"."}
  for folder in folders:
    if folder.startswith("/") or ".." in folder.split("/"):
      raise UserError(f"{file}: path {folder!r} lies outside the directory")
  return sorted(folders)


@functools.cache
def _download(repo: str, revision: str | None, pickles: bool) -> pathlib.Path:
  from huggingface_hub import snapshot_download

  shown = repo if revision is None else f"{repo}@{revision}"
  try:
    # Small files first: they tell which weights to fetch. The second call asks for the commit that the first one saw.
    root = pathlib.Path(snapshot_download(repo, revision=revision, allow_patterns=list(SMALL_FILES)))
    names = _names(repo, root)
    found = {kind: sorted(_weights(root, names, kind)) for kind in (SAFETENSORS, PICKLES)}
    weights = found[PICKLES if pickles else SAFETENSORS]
    if pickles and found[SAFETENSORS]:
      raise UserError(f"{shown}: has {SAFETENSORS[0]}; it can be used as it is")
    if not weights:
      raise UserError(_no_weights(shown, pickles=pickles, has_pickles=bool(found[PICKLES])))
    snapshot_download(repo, revision=root.name, allow_patterns=[glob.escape(name) for name in weights])
  except UserError:
    raise
  except Exception as e:  # the library raises its own kinds, those of two transports below it, and OSError
    raise UserError(_explained(e, repo, revision, shown)) from e
  return root


def _names(repo: str, root: pathlib.Path) -> set[str]:
  """Files of the commit: from the listing that the download left behind, else those that the cache holds."""
  from huggingface_hub import get_cached_repo_tree
  from huggingface_hub.errors import CachedRepoTreeNotFoundError

  try:
    return {file.path for file in get_cached_repo_tree(repo, revision=root.name)}
  except CachedRepoTreeNotFoundError:  # offline, and another program filled the cache
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def _weights(root: pathlib.Path, names: set[str], kind: tuple[str, str]) -> Iterator[str]:
  """Weight files that readers will ask for; the same weights in other formats and precisions stay where they are."""
  single, index = kind
  for folder in weight_folders(root):
    if posixpath.join(folder, single) in names:
      yield posixpath.join(folder, single)
    elif posixpath.join(folder, index) in names:
      listed = read_json(root / folder / index)
      shards = listed.get("weight_map") if isinstance(listed, dict) else None
      if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{root / folder / index}: weight_map must map names of tensors to names of files")
      yield from {posixpath.join(folder, shard) for shard in shards.values()}


def _no_weights(shown: str, *, pickles: bool, has_pickles: bool) -> str:
  if pickles:
    return f"{shown}: no {PICKLES[0]}, so nothing to convert"
  if has_pickles:
    return (
      f"{shown}: only {PICKLES[0]}, a pickle, which is never loaded; "
      f"`radit convert {shown} --out DIR` makes a directory with safetensors of it"
    )
  return f"{shown}: no {SAFETENSORS[0]} on the Hub, or in its cache if that cannot be reached"


def _explained(error: Exception, repo: str, revision: str | None, shown: str) -> str:
  """What went wrong, and what to do about it, in one line."""
  from huggingface_hub import constants, errors

  chain: list[BaseException] = [error]
  while chain[-1].__cause__ is not None:
    chain.append(chain[-1].__cause__)
  status = next((e.response.status_code for e in chain if isinstance(e, errors.HfHubHTTPError)), None)
  url = f"{constants.ENDPOINT}/{repo}"

  def has(kind: type[BaseException]) -> bool:
    return any(isinstance(e, kind) for e in chain)

  if has(errors.HFValidationError):
    return f"{shown}: no such directory, and no possible id of a Hub model ({_first_line(error)})"
  if has(errors.OfflineModeIsEnabled):
    return f"{shown}: not, or not wholly, in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it once"
  if has(errors.RevisionNotFoundError):
    return f"{shown}: {constants.ENDPOINT} has no revision {revision or 'main'} of {repo}"
  if has(errors.GatedRepoError) or status == 403:
    return f"{shown}: gated; accept the licence at {url} and set HF_TOKEN to a token of that account"
  if status == 401:
    return (
      f"{shown}: not shown to you; check the name, and if the model is private or gated accept the licence at {url} "
      "and set HF_TOKEN (one that is set may have expired)"
    )
  if has(errors.RepositoryNotFoundError) or (status == 404 and not has(errors.RemoteEntryNotFoundError)):
    return f"{shown}: no such directory, and no such model at {constants.ENDPOINT}"
  if isinstance(error, OSError) and error.errno is not None:
    return f"{shown}: cannot be kept in {constants.HF_HUB_CACHE} ({error.strerror})"
  if status is not None:
    return f"{shown}: {constants.ENDPOINT} answered with status {status}; try again later"
  told = next((e for e in reversed(chain) if str(e)), error)
  return (
    f"{shown}: no such directory here, and {constants.ENDPOINT} cannot be reached, or the connection "
    f"broke ({type(told).__name__}: {_first_line(told)}); call again to go on"
  )


def _first_line(error: BaseException) -> str:
  return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
