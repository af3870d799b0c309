"""Downloads against a real server that breaks off, ignores ranges, changes its files, and says what is not so."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest

from radit_jax import cli
from radit_jax.config import DownloadConfig
from radit_jax.data import catalogue
from radit_jax.data import download as http_download
from radit_jax.data.catalogue import CATALOGUE, CatalogueEntry, Source, located, usable
from radit_jax.data.download import check, digests, fetch, partial
from radit_jax.data.readers import READERS
from radit_jax.data.unpack import unpack
from radit_jax.errors import UserError
from radit_jax.verbs.download import LOCK, download, state


@dataclasses.dataclass
class File:
  """What the server has at a path, and how it behaves there."""

  content: bytes
  etag: str | None = '"1"'
  cuts: list[int] = dataclasses.field(default_factory=list)  # bytes sent by the next answers before they break off
  ranges: bool = True
  if_range: bool = True  # whether it looks at If-Range
  statuses: list[int] = dataclasses.field(default_factory=list)  # of the next answers
  to: str | None = None
  length: int | None = None  # what Content-Length says, where it is not so
  says_length: bool = True
  change: bytes | None = None  # the content after the next answer


class Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.files: dict[str, File] = {}
    self.asked: list[tuple[str, str | None, str | None]] = []
    self.sent = 0

  def url(self, name):
    return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
  server: Server

  def log_message(self, *args):
    pass

  def do_GET(self):
    asked = self.headers.get("Range")
    self.server.asked.append((self.path, asked, self.headers.get("If-Range")))
    file = self.server.files.get(self.path.lstrip("/"))
    status = 404 if file is None else file.statuses.pop(0) if file.statuses else 200
    if status != 200:
      self.send_response(status)
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    if file.to:
      self.send_response(302)
      self.send_header("Location", file.to)
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    content, etag, start = file.content, file.etag, 0
    if asked and file.ranges and (not file.if_range or self.headers.get("If-Range") in (None, etag)):
      start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
    if start >= len(content) > 0:
      self.send_response(416)
      self.send_header("Content-Range", f"bytes */{len(content)}")
      self.end_headers()
      return
    self.send_response(206 if start else 200)
    if start:
      self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if file.says_length:
      self.send_header("Content-Length", str(file.length or len(content) - start))
    if etag:
      self.send_header("ETag", etag)
    self.end_headers()
    body = content[start:]
    if file.cuts:
      body = body[: file.cuts.pop(0)]
      self.close_connection = True
    with contextlib.suppress(ConnectionError):  # who has seen enough hangs up
      self.wfile.write(body)
    self.server.sent += len(body)
    if file.change is not None:
      file.content, file.etag, file.change = file.change, file.etag and '"2"', None


@pytest.fixture
def server():
  made = Server()
  thread = threading.Thread(target=made.serve_forever, args=(0.01,))
  thread.start()
  yield made
  made.shutdown()
  thread.join()
  made.server_close()


def content(size, seed=0):
  return random.Random(seed).randbytes(size)


def source(server, name, data=None, **fields):
  """What the catalogue would state of content."""
  stated = {} if data is None else {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
  return Source(server.url(name), name, **{**stated, **fields})


def quick(of, target, **more):
  return fetch(of, target, pause_s=0.001, timeout_s=5.0, **more)


def test_a_file_arrives_whole_and_leaves_nothing_beside(server, tmp_path):
  data = content(3_000_000)
  server.files["a"] = File(data)
  seen = []
  found = quick(source(server, "a", data), tmp_path / "x" / "a", told=lambda *at: seen.append(at))
  assert (tmp_path / "x" / "a").read_bytes() == data
  assert found.size == len(data)
  assert found.sha256 == hashlib.sha256(data).hexdigest()
  assert os.listdir(tmp_path / "x") == ["a"]
  assert seen[0] == (0, len(data))
  assert seen[-1] == (len(data), len(data))


@pytest.mark.parametrize("seed", range(8))
def test_connections_that_drop_at_random_bytes_are_continued(server, tmp_path, seed):
  draw = random.Random(seed)
  data = content(draw.randrange(1, 400_000), seed)
  cuts = [draw.randrange(1, len(data) // 4 + 2) for _ in range(12)]
  server.files["a"] = File(data, cuts=list(cuts), etag=draw.choice(['"1"', None, 'W/"weak"']))
  quick(source(server, "a", data), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data
  assert server.sent == len(data)  # nothing was sent twice
  assert all(asked for _, asked, _ in server.asked[1:])


def test_a_killed_download_is_continued_by_the_next_process(server, tmp_path):
  data = content(900_000)
  server.files["a"] = File(data, cuts=[300_000] + [0] * 20)
  of = source(server, "a", data)
  with pytest.raises(UserError, match=r"broke|ended at byte 300,000 of 900,000.*call again"):
    quick(of, tmp_path / "a")
  assert partial(tmp_path / "a").stat().st_size == 300_000
  assert not (tmp_path / "a").exists()
  server.files["a"].cuts = []
  server.asked.clear()
  quick(of, tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data
  assert server.asked == [("/a", "bytes=300000-", '"1"')]


def test_a_download_that_ended_before_its_check_asks_for_nothing_more(server, tmp_path):
  data = content(5_000)
  server.files["a"] = File(data)
  partial(tmp_path / "a").write_bytes(data)
  notes = {"url": server.url("a"), "validator": '"1"', "total": len(data)}
  (tmp_path / ".a.part.json").write_text(json.dumps(notes))
  quick(source(server, "a", data), tmp_path / "a")
  assert server.asked == []
  assert (tmp_path / "a").read_bytes() == data


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
  data = content(500_000)
  server.files["a"] = File(data, cuts=[200_000, 300_000], ranges=False)
  quick(source(server, "a", data), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data
  assert server.sent == 1_000_000


def test_a_server_that_ignores_ranges_and_never_finishes_is_given_up(server, tmp_path):
  data = content(50_000)
  draw = random.Random(0)
  server.files["a"] = File(data, cuts=[draw.randrange(40_000) for _ in range(200)], ranges=False)
  with pytest.raises(UserError, match="attempts in a row brought nothing new"):
    quick(source(server, "a", data), tmp_path / "a")
  assert len(server.asked) < 60


@pytest.mark.parametrize("looks", [True, False], ids=["looks at If-Range", "ignores If-Range"])
def test_a_file_that_changes_in_between_is_not_made_of_two(server, tmp_path, looks):
  old, new = content(400_000, 1), content(400_000, 2)
  server.files["a"] = File(old, cuts=[150_000], change=new, if_range=looks)
  quick(source(server, "a", new), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == new
  assert server.asked[1] == ("/a", "bytes=150000-", '"1"')


def test_without_etag_and_digest_nothing_is_continued(server, tmp_path):
  """Only https is fetched without a digest: the attempts are made here as `fetch` makes them."""
  old, new = content(100_000, 1), content(100_000, 2)
  server.files["a"] = File(old, cuts=[40_000], change=new, etag=None)
  of = source(server, "a")
  with open(partial(tmp_path / "a"), "a+b", buffering=0) as file:
    for _ in range(2):
      try:
        http_download._attempt(of, file, tmp_path / ".a.part.json", lambda *_: None, 5.0)
      except http_download._Broken:
        continue
    file.seek(0)
    assert file.read() == new
  assert [asked for _, asked, _ in server.asked] == [None, None]


def test_a_longer_partial_file_than_the_server_has_starts_over(server, tmp_path):
  data = content(10_000)
  server.files["a"] = File(data, if_range=False)
  partial(tmp_path / "a").write_bytes(content(20_000, 3))
  (tmp_path / ".a.part.json").write_text(json.dumps({"url": server.url("a"), "validator": '"1"', "total": None}))
  quick(source(server, "a", data, size=None), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data


def test_a_partial_file_of_another_address_is_not_continued(server, tmp_path):
  data = content(10_000)
  server.files["a"] = File(data)
  partial(tmp_path / "a").write_bytes(b"x" * 500)
  (tmp_path / ".a.part.json").write_text(json.dumps({"url": "http://other/", "validator": '"1"', "total": 10_000}))
  quick(source(server, "a", data), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data


def test_wrong_content_is_refused_and_kept_away_from_the_name(server, tmp_path):
  server.files["a"] = File(content(5_000, 1))
  with pytest.raises(UserError, match=r"another file \(SHA-256 [0-9a-f]{64}, the catalogue says .*\.a\.refused"):
    quick(source(server, "a", content(5_000, 2)), tmp_path / "a")
  assert sorted(os.listdir(tmp_path)) == [".a.refused"]
  server.files["a"] = File(content(5_000, 2))
  quick(source(server, "a", content(5_000, 2)), tmp_path / "a")  # and is not in the way


def test_a_file_of_another_size_is_refused_before_it_is_sent(server, tmp_path):
  server.files["a"] = File(content(3_000_000))
  with pytest.raises(UserError, match=r"has 3,000,000 bytes, the catalogue says 1,000"):
    quick(source(server, "a", content(1_000)), tmp_path / "a")
  assert not (tmp_path / "a").exists()


def test_more_than_there_should_be_is_refused(server, tmp_path):
  data = content(3_000)
  server.files["a"] = File(content(9_000), says_length=False)
  with pytest.raises(UserError, match=r"sends more than the 3,000 bytes"):
    quick(source(server, "a", data), tmp_path / "a")


def test_a_length_that_is_not_so_is_a_broken_connection(server, tmp_path):
  data = content(3_000)
  server.files["a"] = File(data, length=5_000, ranges=False)
  of = source(server, "a", data, size=None)
  with pytest.raises(UserError, match=r"ended at byte 3,000 of 5,000"):
    quick(of, tmp_path / "a")


@pytest.mark.parametrize(("status", "says"), [(404, "no longer there"), (403, "in a browser"), (451, "status 451")])
def test_what_a_server_refuses_is_not_asked_again(server, tmp_path, status, says):
  server.files["a"] = File(b"", statuses=[status] * 9)
  with pytest.raises(UserError, match=says):
    quick(source(server, "a", b"x"), tmp_path / "a")
  assert len(server.asked) == 1


def test_what_passes_is_asked_again(server, tmp_path):
  data = content(1_000)
  server.files["a"] = File(data, statuses=[500, 503, 429])
  quick(source(server, "a", data), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data
  server.files["b"] = File(data, statuses=[502] * 99)
  with pytest.raises(UserError, match=r"status 502; 6 attempts"):
    quick(source(server, "b", data), tmp_path / "b")


def test_nobody_listening_is_told(tmp_path):
  with pytest.raises(UserError, match=r"Connection refused"):
    quick(Source("http://127.0.0.1:9/a", "a", 1, "0" * 64), tmp_path / "a")


def test_redirects_are_followed_but_not_to_files(server, tmp_path):
  data = content(1_000)
  server.files["b"] = File(data)
  server.files["a"] = File(b"", to=server.url("b"))
  quick(source(server, "a", data), tmp_path / "a")
  assert (tmp_path / "a").read_bytes() == data
  for to, says in (("file:///etc/passwd", "not allowed"), ("ftp://127.0.0.1/x", "which is not https")):
    server.files["a"] = File(b"", to=to)
    with pytest.raises(UserError, match=says):
      quick(source(server, "a", data), tmp_path / "c")
  server.files["a"] = File(b"", to=server.url("a"))
  with pytest.raises(UserError, match="status 302"):
    quick(source(server, "a", data), tmp_path / "c")
  with pytest.raises(UserError, match="file:"):
    quick(Source("file:///etc/passwd", "a", 1, "0" * 64), tmp_path / "c")


def test_https_never_becomes_http():
  import urllib.request

  from radit_jax.data.download import _Redirects

  asked = urllib.request.Request("https://a.example/x")
  with pytest.raises(UserError, match=r"redirects to http://b\.example/x, which is not https"):
    _Redirects().redirect_request(asked, None, 302, "Found", {}, "http://b.example/x")
  assert _Redirects().redirect_request(asked, None, 302, "Found", {}, "https://b.example/x").full_url.endswith("/x")


def test_http_without_a_digest_is_refused(server, tmp_path):
  server.files["a"] = File(b"x")
  with pytest.raises(UserError, match="no SHA-256 is known"):
    quick(source(server, "a"), tmp_path / "a")
  assert server.asked == []


def test_one_process_at_a_time(server, tmp_path):
  import fcntl

  server.files["a"] = File(b"x")
  with open(partial(tmp_path / "a"), "wb") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is downloading"):
      quick(source(server, "a", b"x"), tmp_path / "a")


def test_git_names_content_as_git_does(tmp_path):
  (tmp_path / "a").write_bytes(b"hello\n")
  assert digests(tmp_path / "a")[2] == "ce013625030ba8dba906f756967f9e9ca394464a"
  check(Source("", "a", blob="ce013625030ba8dba906f756967f9e9ca394464a"), tmp_path / "a", "it")
  with pytest.raises(UserError, match=r"a: it is another file \(git blob ce01.*, the catalogue says 0000"):
    check(Source("", "a", blob="0" * 40), tmp_path / "a", "it")


def test_a_full_disk_is_told_and_what_arrived_is_kept(server, tmp_path):
  """A limit of the process on the size of files stands in for the end of the disk: writing fails in the same place."""
  data = content(300_000)
  server.files["a"] = File(data)
  program = f"""
import pathlib, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from radit_jax.data.catalogue import Source
from radit_jax.data.download import fetch
try:
  fetch(Source({server.url("a")!r}, "a", 300_000, "{hashlib.sha256(data).hexdigest()}"), pathlib.Path(sys.argv[1]))
except OSError as e:
  print(e.filename, "|", e.strerror)
"""
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path / "a")], capture_output=True, text=True, check=True
  )
  assert done.stdout.startswith(f"{tmp_path}/.a.part | ")
  assert "what has arrived is kept" in done.stdout
  assert not (tmp_path / "a").exists()
  quick(source(server, "a", data), tmp_path / "a")
  assert server.sent == 300_000 + 200_000 or server.asked[-1][1] == "bytes=100000-"


def test_no_room_is_told_before_anything_is_sent(server, tmp_path):
  server.files["a"] = File(b"x", length=1 << 60)
  with pytest.raises(UserError, match=r"MB free, a needs 1,152,921,504,607 MB more"):
    quick(source(server, "a", b"x", size=1 << 60), tmp_path / "a")


# Archives.


def zipped(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path


def tarred(path, members, mode="w:gz"):
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      member = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
      member.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
      archive.addfile(member, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
  return path


@pytest.mark.parametrize("make", [zipped, tarred])
def test_members_that_match_are_unpacked_and_no_others(make, tmp_path):
  archive = make(tmp_path / "a", {"x/1.json": b"1", "x/._1.json": b"mac", "x/y/2.json": b"2", "run.sh": b"rm -rf /"})
  out = tmp_path / "out"
  assert unpack(archive, out, ("x/*.json",)) == ["x/1.json"]
  assert [p.relative_to(out).as_posix() for p in sorted(out.rglob("*"))] == ["x", "x/1.json"]


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_a_member_outside_is_refused(make, name, tmp_path):
  archive = make(tmp_path / "a", {name: b"1"})
  with pytest.raises(UserError, match="outside"):
    unpack(archive, tmp_path / "out", (name,))
  assert not list(tmp_path.rglob("evil"))


def link(name, to, kind=tarfile.SYMTYPE):
  made = tarfile.TarInfo(name)
  made.type, made.linkname = kind, to
  return made


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_tar_are_refused(kind, tmp_path):
  archive = tarred(tmp_path / "a", {"x": b"1", "l": link("l", "/etc/passwd", kind)})
  with pytest.raises(UserError, match="'l' is a link or a device"):
    unpack(archive, tmp_path / "out", ("*",))


def test_links_of_zip_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "a", "w") as archive:
    member = zipfile.ZipInfo("l")
    member.external_attr = 0o120777 << 16
    archive.writestr(member, "/etc/passwd")
  with pytest.raises(UserError, match="'l' is a link or a device"):
    unpack(tmp_path / "a", tmp_path / "out", ("*",))


def test_a_link_that_is_there_leads_nowhere(tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "out" / "x").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="through a link"):
    unpack(zipped(tmp_path / "a", {"x/1": b"1"}), tmp_path / "out", ("x/*",))
  assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_damaged_archive_is_told(make, tmp_path):
  whole = make(tmp_path / "a", {"x": content(50_000), "y": content(50_000, 1)}).read_bytes()
  for at in range(0, len(whole), 4_999):
    (tmp_path / "b").write_bytes(whole[:at])
    with pytest.raises(UserError, match="no archive that can be read"):
      unpack(tmp_path / "b", tmp_path / "out", ("x", "y"))
    (tmp_path / "b").write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
    try:
      unpack(tmp_path / "b", tmp_path / "out", ("x", "y"))
    except UserError:
      continue
    assert (tmp_path / "out" / "x").read_bytes() == content(50_000)


def test_a_pattern_without_a_member_is_told(tmp_path):
  with pytest.raises(UserError, match=r"no member z\*"):
    unpack(zipped(tmp_path / "a", {"x": b"1"}), tmp_path / "out", ("x", "z*"))


# The verb.


@pytest.fixture
def sets(server, monkeypatch, tmp_path):
  """A catalogue of sets that the server has."""
  plain, second = content(200_000), content(1_000, 1)
  archive = zipped(tmp_path / "in.zip", {"d/train.jsonl": b"{}\n", "d/notes.txt": b"no"}).read_bytes()
  server.files |= {"plain": File(plain), "second": File(second), "in.zip": File(archive)}
  entries = [
    CatalogueEntry("one", "gsm8k", (source(server, "plain", plain),), {"train": "plain"}, "MIT", True),
    CatalogueEntry(
      "packed",
      "gsm8k",
      (source(server, "in.zip", archive, members=("d/*.jsonl",)),),
      {"train": "d/train.jsonl"},
      "CC-BY-4.0",
      True,
    ),
    CatalogueEntry(
      "asked",
      "gsm8k",
      (source(server, "second", second), source(server, "by.zip", archive, members=("d/*",), by_hand="Click first.")),
      {"train": "second"},
      "not stated",
      False,
    ),
  ]
  for entry in entries:
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
  return tmp_path / "data", archive


def test_sets_are_downloaded_once_and_checked_afterwards(server, sets):
  data, _ = sets
  done = download(DownloadConfig(("one", "packed"), data=str(data)))
  assert not done.failed, done.summary()
  assert sorted(p.name for p in (data / "packed").rglob("*")) == ["d", LOCK, "train.jsonl"]
  server.asked.clear()
  assert not download(DownloadConfig(("one", "packed"), data=str(data))).failed
  assert server.asked == []
  (data / "packed" / "d" / "train.jsonl").write_bytes(b"[]\n")
  failed = download(DownloadConfig(("one", "packed"), data=str(data)))
  assert failed.failed
  assert failed.missing == ("packed",)
  assert "has changed" in failed.summary()
  (data / "packed" / "d" / "train.jsonl").unlink()
  assert not download(DownloadConfig(("packed",), data=str(data))).failed  # it is fetched again


def test_a_directory_below_a_file_is_named(sets, capsys):
  data, _ = sets
  data.write_text("not a directory")
  assert cli.main(["download", "one", "--data", str(data)]) == 2
  told = capsys.readouterr().err.splitlines()[-1]
  assert str(data) in told
  assert data.read_text() == "not a directory"


def test_one_that_fails_does_not_keep_the_others(server, sets):
  data, _ = sets
  server.files["plain"].statuses = [404]
  done = download(DownloadConfig(("one", "packed"), data=str(data)))
  assert done.missing == ("one",)
  assert state(CATALOGUE["packed"], data / "packed") == "there"


def test_by_hand_is_told_and_what_was_put_there_is_checked_and_unpacked(sets):
  data, archive = sets
  done = download(DownloadConfig(("asked",), data=str(data)))
  assert done.failed
  assert "Click first." in done.summary()
  assert str(data / "asked") in done.summary()
  assert state(CATALOGUE["asked"], data / "asked") == "by hand"
  (data / "asked" / "by.zip").write_bytes(archive[:-1] + b"x")
  assert "another file" in download(DownloadConfig(("asked",), data=str(data))).summary()
  (data / "asked" / "by.zip").write_bytes(archive)
  assert not download(DownloadConfig(("asked",), data=str(data))).failed
  assert (data / "asked" / "d" / "notes.txt").exists()
  assert not (data / "asked" / "by.zip").exists()


def test_a_digest_that_nobody_states_is_written_down_and_held_to(server, sets, monkeypatch):
  """What comes over http needs a digest, so the first file is put there, as if it had come over https."""
  data, _ = sets
  first, later = content(700, 5), content(700, 6)
  (data / "new").mkdir(parents=True)
  (data / "new" / "new").write_bytes(first)
  entry = CatalogueEntry("new", "gsm8k", (Source(server.url("new"), "new"),), {"train": "new"}, "MIT", True)
  monkeypatch.setitem(CATALOGUE, "new", entry)
  assert not download(DownloadConfig(("new",), data=str(data))).failed
  held = json.loads((data / "new" / LOCK).read_text())["files"]["new"]
  assert held["sha256"] == hashlib.sha256(first).hexdigest()
  (data / "new" / "new").unlink()
  server.files["new"] = File(later)
  failed = download(DownloadConfig(("new",), data=str(data)))
  assert failed.failed
  assert "another file" in failed.summary()
  assert not (data / "new" / "new").exists()
  server.files["new"] = File(first)
  assert not download(DownloadConfig(("new",), data=str(data))).failed


def test_listing_downloads_nothing(server, sets, capsys):
  data, _ = sets
  assert cli.main(["download", "one", "--data", str(data)]) == 0
  server.asked.clear()
  capsys.readouterr()
  assert cli.main(["download", "one", "asked", "--data", str(data), "--list"]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"^one +there +0\.2 MB +yes", printed, re.M)
  assert re.search(r"^asked +missing", printed, re.M)
  assert "Click first." in printed
  assert "1 of 2 sets" in printed
  assert server.asked == []


def test_a_licence_leaves_sets_out_and_says_so(server, sets, capsys):
  data, _ = sets
  done = download(DownloadConfig(("one", "asked"), data=str(data), licence="commercial"))
  assert not done.failed
  assert "asked: left out, no licence for commercial use is known (not stated)" in done.summary()
  assert not (data / "asked").exists()
  assert cli.main(["download", "--mix", "paper", "--licence", "commercial", "--list", "--data", str(data)]) == 0
  printed = capsys.readouterr().out
  assert "0 of 14 sets" in printed
  assert "ms_marco: left out" in printed


def test_the_paper_needs_its_sets(capsys, tmp_path):
  assert cli.main(["download", "--mix", "paper", "--list", "--data", str(tmp_path)]) == 0
  printed = capsys.readouterr().out
  assert "0 of 22 sets" in printed
  assert "newsqa: " in printed
  assert "taken down" in printed
  (tmp_path / "own.py").write_text(
    "from radit_jax.config import MixConfig, SetConfig\n"
    "mix = MixConfig((SetConfig('gsm8k', ('gsm8k/train.jsonl',)), SetConfig('mine', ('mine/*',), format='jsonl')))\n"
  )
  assert cli.main(["download", "--mix", str(tmp_path / "own.py"), "--list", "--data", str(tmp_path)]) == 0
  printed = capsys.readouterr().out
  assert "0 of 1 sets" in printed
  assert "mine: a set of the mix that is not known here, to be brought by yourself" in printed
  assert cli.main(["download", "--data", str(tmp_path)]) == 2
  assert cli.main(["download", "gsm8q"]) == 2
  assert "the nearest is 'gsm8k'" in capsys.readouterr().err


# The catalogue.


def test_every_entry_can_be_used():
  for name, entry in CATALOGUE.items():
    assert entry.name == name
    assert entry.files
    assert entry.splits
    assert entry.licence
    assert len({of.save_as for of in entry.files}) == len(entry.files)
    for of in entry.files:
      assert of.url.startswith(("https://", "http://"))
      assert of.by_hand or of.url.startswith("https://") or of.sha256, f"{of.url}: http without a digest"
      assert of.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", of.sha256)
      assert of.blob is None or re.fullmatch(r"[0-9a-f]{40}", of.blob)
      assert of.size is None or of.size > 0
      assert not of.save_as.startswith("/")
      assert ".." not in of.save_as
    if "corpus" not in entry.uses and name not in ("wiki_dpr", "kilt_wikipedia"):
      assert entry.format in READERS


def test_splits_lie_among_the_files():
  import fnmatch

  for entry in CATALOGUE.values():
    for path in entry.splits.values():
      if path == ".":
        continue
      plain = [of.save_as for of in entry.files if not of.members]
      inside = [pattern for of in entry.files for pattern in of.members]
      folder = any(pattern.startswith(f"{path}/") for pattern in inside)
      assert path in plain or folder or any(fnmatch.fnmatchcase(path, pattern) for pattern in inside), path


def test_the_mixes_are_those_of_the_paper():
  """Written out once more from the paper's tables: 20 sets for the generator, 10 for the retriever."""
  first = {"oasst1", "commonsense_qa", "math_qa", "web_questions", "wiki_qa", "yahoo_answers_qa"}
  reading = {"coqa", "drop", "narrativeqa", "newsqa", "pubmed_qa", "quail", "quarel", "squad_v2", "cnn_dailymail"}
  reasoning = {"aqua_rat", "ecqa", "gsm8k", "competition_math", "strategyqa"}
  retriever = first | {"freebase_qa", "ms_marco", "pubmed_qa", "quarel"}
  assert {n for n, e in CATALOGUE.items() if "generator" in e.uses} == first | reading | reasoning
  assert {n for n, e in CATALOGUE.items() if "retriever" in e.uses} == retriever


def test_licences_drop_and_say_what_is_lost():
  kept, lost = usable(["squad_v2", "ms_marco", "gsm8k", "quail"])
  assert kept == ["squad_v2", "gsm8k"]
  assert lost == {"ms_marco": CATALOGUE["ms_marco"].licence, "quail": "CC-BY-NC-SA-4.0"}
  assert usable(["ms_marco"], "any") == (["ms_marco"], {})
  assert len(usable(n for n, e in CATALOGUE.items() if {"generator", "retriever"} & set(e.uses))[1]) == 8
  for entry in CATALOGUE.values():
    assert not (entry.commercial and re.search(r"\bNC\b|non-commercial|not stated|only|unclear", entry.licence)), entry
  with pytest.raises(UserError, match="nearest is 'gsm8k'"):
    usable(["gsm8kk"])


def test_a_split_is_located(tmp_path):
  assert located(tmp_path, "squad_v2", "dev") == (tmp_path / "squad_v2" / "dev-v2.0.json", None)
  assert located(tmp_path, "newsqa", "dev") == (tmp_path / "newsqa" / "combined-newsqa-data-v1.json", "dev")
  with pytest.raises(UserError, match=r"no split 'test'; it has 'train', 'dev'"):
    located(tmp_path, "squad_v2", "test")
  assert catalogue.entry_named("arc").splits["test_easy"].endswith("ARC-Easy/ARC-Easy-Test.jsonl")
