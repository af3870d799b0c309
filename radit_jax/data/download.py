"""One file over HTTP: continued where it broke, checked before it has its name, and never half there."""

import contextlib
import dataclasses
import email.message
import errno
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, Any

import radit_jax
from radit_jax.data.catalogue import Source
from radit_jax.errors import UserError
from radit_jax.files import write_atomic

#: Attempts without a byte gained before it is given up.
ATTEMPTS = 6
CHUNK = 1 << 20
#: Worth another attempt; what else a server refuses will be refused again.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAX_PAUSE_S = 60.0


@dataclasses.dataclass(frozen=True)
class Fetched:
  """What arrived.

  Attributes:
    size: bytes.
    sha256: hex digest.
  """

  size: int
  sha256: str


class _Broken(Exception):
  """An attempt ended that may be repeated; the server may have said when."""

  def __init__(self, message: str, after_s: float | None = None):
    super().__init__(message)
    self.after_s = after_s


def fetch(
  source: Source,
  target: pathlib.Path,
  *,
  told: Callable[[int, int | None], None] = lambda done, total: None,
  timeout_s: float = 60.0,
  pause_s: float = 1.0,
) -> Fetched:
  """Downloads one file to ``target``, which exists only once size and digest are those of ``source``.

  What has arrived lies in ``.<name>.part``, and beside it what the server said of the file; a later call continues
  there by a range request, if the server still has the same file (`If-Range`), and starts over otherwise. Where neither
  the server nor the catalogue could tell one file from another, nothing is continued. Attempts are repeated after
  1, 2, 4 … seconds, or after the time a server asks for, until several in a row bring nothing.

  Args:
    source: address, and what the file must be.
    target: where it belongs.
    told: called with bytes there, and bytes in all or None.
    timeout_s: of one silence of the server.
    pause_s: the first pause between attempts.

  Returns:
    Size and digest, both checked against ``source`` where it states them.

  Raises:
    UserError: the server refuses, has a file of another size, keeps breaking off, or redirects to http; another process
      is downloading the same; or the file is another one, which then lies beside as ``.<name>.refused``.
    OSError: the disk is full.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  part, notes = _beside(target, "part"), _beside(target, "part.json")
  if urllib.parse.urlsplit(source.url).scheme != "https" and source.sha256 is None:
    raise UserError(
      f"{source.url}: not https, and no SHA-256 is known that would tell whether the file is the right one"
    )
  with _alone(part) as file:
    most, failures = file.seek(0, os.SEEK_END), 0
    while True:
      try:
        _attempt(source, file, notes, told, timeout_s)
        break
      except _Broken as e:
        # Against the most that was ever here: a server that ignores ranges and breaks off would be asked for ever.
        have = file.seek(0, os.SEEK_END)
        most, failures = (have, 0) if have > most else (most, failures + 1)
        if failures >= ATTEMPTS:
          raise UserError(
            f"{source.url}: {e}; {failures} attempts in a row brought nothing new; call again to go on"
          ) from None
        time.sleep(min(e.after_s or pause_s * 2 ** max(failures - 1, 0), _MAX_PAUSE_S))
    os.fsync(file.fileno())
    notes.unlink(missing_ok=True)
    found = check(source, part, f"what {source.url} sent", refused=_beside(target, "refused"))
    os.chmod(part, 0o644)
    os.replace(part, target)
  return found


def partial(target: pathlib.Path) -> pathlib.Path:
  """Where a file lies while it is not whole."""
  return _beside(target, "part")


def check(source: Source, path: pathlib.Path, what: str, *, refused: pathlib.Path | None = None) -> Fetched:
  """Size and digest of a file, compared with what the catalogue states.

  Args:
    source: what it must be.
    path: the file.
    what: how an error calls it.
    refused: where a file that is another one is moved; None leaves it.

  Raises:
    UserError: another size or another digest.
  """
  size, sha256, blob = digests(path)
  wrong = None
  if source.size is not None and size != source.size:
    wrong = f"{size:,} bytes, the catalogue says {source.size:,}"
  elif source.sha256 is not None and sha256 != source.sha256:
    wrong = f"SHA-256 {sha256}, the catalogue says {source.sha256}"
  elif source.blob is not None and blob != source.blob:
    wrong = f"git blob {blob}, the catalogue says {source.blob}"
  if wrong is None:
    return Fetched(size, sha256)
  kept = ""
  if refused is not None:
    os.replace(path, refused)
    kept = f"; it is kept as {refused}"
  raise UserError(f"{source.save_as}: {what} is another file ({wrong}){kept}")


def digests(path: pathlib.Path) -> tuple[int, str, str]:
  """Size, SHA-256, and the id that git gives the content."""
  size = path.stat().st_size
  sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
  with open(path, "rb") as f:
    while block := f.read(CHUNK):
      sha256.update(block)
      blob.update(block)
  return size, sha256.hexdigest(), blob.hexdigest()


def _beside(target: pathlib.Path, suffix: str) -> pathlib.Path:
  return target.with_name(f".{target.name}.{suffix}")


@contextlib.contextmanager
def _alone(part: pathlib.Path) -> Iterator[IO[bytes]]:
  """The partial file, opened by one process at a time."""
  with open(part, "a+b", buffering=0) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise UserError(f"{part}: another process is downloading this file") from None
    yield file


def _attempt(
  source: Source,
  file: IO[bytes],
  notes: pathlib.Path,
  told: Callable[[int, int | None], None],
  timeout_s: float,
) -> None:
  """One request, and what it brings appended; returns once the file is complete.

  Raises:
    _Broken: it ended too early.
    UserError: another attempt would bring the same.
  """
  have, seen = file.seek(0, os.SEEK_END), _read_notes(notes, source.url)
  if seen and have == (source.size or seen["total"]):
    return  # complete, and not checked yet: the process ended in between
  if not seen or not (seen["validator"] or source.sha256 or source.blob):
    have = 0  # without either, nobody could tell the rest of this file from the rest of another one
  headers = {"User-Agent": f"radit_jax/{radit_jax.__version__}", "Accept-Encoding": "identity"}
  if have:
    headers["Range"] = f"bytes={have}-"
    if seen["validator"]:
      headers["If-Range"] = seen["validator"]
  try:
    with _opener().open(urllib.request.Request(source.url, headers=headers), timeout=timeout_s) as answer:
      have, total = _place(source, answer, file, have, seen)
      _check_total(source, total)
      end = source.size if total is None else total
      if end is None and not (answer.chunked or source.sha256 or source.blob):
        raise UserError(f"{source.url}: the server does not say how long the file is, so half of it could not be told")
      _check_room(source, notes.parent, have, end)
      file.truncate(have)
      validator = _validator(answer.headers) or (seen["validator"] if have else None)
      write_atomic(notes, json.dumps({"url": source.url, "validator": validator, "total": total}))
      _copy(source, answer, file, have, end, told)
  except urllib.error.HTTPError as e:
    with e:
      _refused(source, e, file, have)
  except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
    reason = getattr(e, "reason", e)
    if isinstance(reason, ssl.SSLCertVerificationError):
      raise UserError(f"{source.url}: its certificate is not trusted ({reason.verify_message})") from None
    raise _Broken(_said(reason)) from None


def _said(reason: object) -> str:
  """What went wrong, on one line."""
  text = " ".join(str(reason).split())
  return f"{type(reason).__name__} ({text})" if isinstance(reason, BaseException) and text else text or repr(reason)


def _read_notes(notes: pathlib.Path, url: str) -> dict[str, Any]:
  """What the server said of the partial file; nothing if that came from elsewhere."""
  try:
    held = json.loads(notes.read_text())
  except (OSError, ValueError):
    return {}
  ours = isinstance(held, dict) and held.keys() == {"url", "validator", "total"} and held["url"] == url
  return held if ours else {}


def _validator(headers: email.message.Message) -> str | None:
  """What tells this file from a later one: a strong ETag, or else the time of its last change."""
  tag = headers.get("ETag")
  return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _place(source: Source, answer: Any, file: IO[bytes], have: int, seen: dict[str, Any]) -> tuple[int, int | None]:
  """At which byte the body begins, and how long the whole file is, where that is said."""
  length = answer.headers.get("Content-Length", "")
  if answer.status == 200:  # no range wanted, none understood, or the file has changed: all of it comes
    return 0, int(length) if length.isdigit() else None
  if answer.status != 206 or not have:
    raise UserError(
      f"{source.url}: the server answered with status {answer.status}, which this request does not ask for"
    )
  span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
  # Some servers ignore If-Range, and send the rest of a file that has changed.
  another = None not in (before := seen["validator"], now := _validator(answer.headers)) and before != now
  if span is None or int(span[1]) != have or another:
    raise _restart(file, have)
  return have, None if span[3] == "*" else int(span[3])


def _restart(file: IO[bytes], have: int) -> _Broken:
  """What has arrived is dropped: it cannot be continued."""
  file.truncate(0)
  return _Broken(f"the rest of the file from byte {have:,} is not what was asked for")


def _check_total(source: Source, total: int | None) -> None:
  if source.size is not None and total is not None and total != source.size:
    raise UserError(
      f"{source.url}: has {total:,} bytes, the catalogue says {source.size:,}: it is not the file that was catalogued"
    )


def _check_room(source: Source, folder: pathlib.Path, have: int, total: int | None) -> None:
  free = shutil.disk_usage(folder).free
  if total is not None and total - have > free:
    raise UserError(
      f"{folder}: {free / 1e6:,.0f} MB free, {source.save_as} needs {(total - have) / 1e6:,.0f} MB more; make room, or "
      "name another --data"
    )


def _copy(
  source: Source,
  answer: Any,
  file: IO[bytes],
  have: int,
  end: int | None,
  told: Callable[[int, int | None], None],
) -> None:
  told(have, end)
  while block := _read(answer):
    _write(file, block)
    have += len(block)
    if end is not None and have > end:
      file.truncate(0)
      raise UserError(f"{source.url}: sends more than the {end:,} bytes that it should have")
    told(have, end)
  if end is not None and have < end:
    raise _Broken(f"the connection ended at byte {have:,} of {end:,}")


def _read(answer: Any) -> bytes:
  try:
    return answer.read(CHUNK)
  except OSError as e:  # of the socket: a reset, a timeout, a route that is gone
    raise _Broken(_said(e)) from None


def _write(file: IO[bytes], block: bytes) -> None:
  left = memoryview(block)
  try:
    while left:
      left = left[file.write(left) :]
  except OSError as e:
    if e.errno not in _FULL:
      raise
    raise OSError(e.errno, f"{os.strerror(e.errno)}; what has arrived is kept", file.name) from None


def _refused(source: Source, error: urllib.error.HTTPError, file: IO[bytes], have: int) -> None:
  """An answer that is no file."""
  if error.code == 416 and have:
    raise _restart(file, have) from None  # the server has less than what is here: another file
  if error.code in _PASSING:
    after = error.headers.get("Retry-After", "")
    raise _Broken(f"the server answered with status {error.code}", float(after) if after.isdigit() else None) from None
  if error.code in (404, 410):
    raise UserError(
      f"{source.url}: no longer there (status {error.code}); fetch it elsewhere, as {source.save_as}"
    ) from None
  if error.code in (401, 403):
    raise UserError(
      f"{source.url}: not given to everyone (status {error.code}); fetch it in a browser, as {source.save_as}"
    ) from None
  raise UserError(f"{source.url}: the server answered with status {error.code} ({error.reason})") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows to other addresses, but never from https to what anyone on the way can change."""

  max_redirections = 8

  def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
    if not newurl.startswith("https://") and (req.full_url.startswith("https://") or not newurl.startswith("http://")):
      raise UserError(f"{req.full_url}: redirects to {newurl}, which is not https")
    return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
  """HTTP and HTTPS alone: an address of a table must not be able to name a file."""
  opener = urllib.request.OpenerDirector()
  for handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
    urllib.request.UnknownHandler(),
  ):
    opener.add_handler(handler)
  return opener
