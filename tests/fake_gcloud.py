"""A `gcloud` that keeps TPU slices in a folder, runs what is sent to workers here, and takes slices away.

What it must be told, in the environment:
  FAKE_CLOUD: the folder. `calls` in it lists every call; a slice NAME is `NAME/`, its worker I has `NAME/I/home`.
  FAKE_SEED: of the life of each slice and of what fails; 0 for slices that stay, and nothing that fails.
  FAKE_BIN: programs of the workers, before those of the system.

Flags that the real one does not have are errors; the answers, exit statuses and second attempts are like its own.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
import zlib

COMMON = {"--zone", "--project", "--quiet", "--format"}
FLAGS = {
  "queued-resources create": {"--node-id", "--accelerator-type", "--runtime-version", "--spot"},
  "queued-resources describe": set(),
  "queued-resources delete": {"--force"},
  "tpu-vm create": {"--accelerator-type", "--version", "--spot"},
  "tpu-vm describe": set(),
  "tpu-vm delete": set(),
  "tpu-vm ssh": {"--worker", "--ssh-flag", "--command"},
  "tpu-vm scp": {"--worker"},
}
# Read also where there is none: the test run imports every module for its doctests.
CLOUD = os.environ.get("FAKE_CLOUD", "")
SEED = int(os.environ.get("FAKE_SEED", "0"))


def error(message: str, status: int = 1) -> None:
  sys.exit(print(f"ERROR: (gcloud) {message}", file=sys.stderr) or status)


def read(path: str, default: str = "") -> str:
  try:
    with open(path) as f:
      return f.read()
  except FileNotFoundError:
    return default


def write(path: str, text: str) -> None:
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(f"{path}.{os.getpid()}", "w") as f:
    f.write(text)
  os.replace(f"{path}.{os.getpid()}", path)


@contextlib.contextmanager
def alone():
  """One process at a time looks at the slices and changes them."""
  with open(f"{CLOUD}/lock", "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


def draw(what: str) -> float:
  """A number in [0, 1), another one at each call, the same ones for each seed."""
  number = int(read(f"{CLOUD}/draws", "0")) + 1
  write(f"{CLOUD}/draws", str(number))
  return zlib.crc32(f"{SEED} {number} {what}".encode()) / 2**32


def age() -> int:
  """Calls so far, and steps of the jobs (tests count them in `count.WORKER`): the time, on a machine however slow."""
  with open(f"{CLOUD}/calls") as f:
    return sum(1 for _ in f) + sum(int(read(f"{CLOUD}/count.{worker}", "0")) for worker in range(2))


class Slice:
  """A node and the request it came from."""

  def __init__(self, name: str):
    self.name, self.path = name, f"{CLOUD}/{name}"

  @property
  def node(self) -> str:
    if read(f"{self.path}/node") == "READY" and age() > int(read(f"{self.path}/ends", "1000000")):
      self.take_away()
    return read(f"{self.path}/node")

  @property
  def request(self) -> str:
    return read(f"{self.path}/request")

  def set(self, **values: str) -> None:
    for name, value in values.items():
      write(f"{self.path}/{name}", value)

  def workers(self) -> range:
    return range(int(read(f"{self.path}/workers", "0")))

  def make(self, accelerator: str) -> None:
    kind, number = accelerator.split("-")
    chips = int(number) // (2 if kind == "v5p" else 1)
    self.set(node="READY", workers=str(max(chips // 4, 1)))
    for worker in self.workers():
      os.makedirs(f"{self.path}/{worker}/home")
      for chip in range(min(chips, 4)):
        write(f"{self.path}/{worker}/dev/vfio/{chip}", "")
      write(f"{self.path}/{worker}/jax", f"{min(chips, 4)} of {chips}")
    if SEED:
      self.set(ends=str(age() + len(self.workers()) * (8 + int(40 * draw("life")))))

  def take_away(self) -> None:
    """Everything on the workers is lost, what runs there at once."""
    write(f"{CLOUD}/taken", str(int(read(f"{CLOUD}/taken", "0")) + 1))
    self.end_jobs()
    self.set(node="PREEMPTED")
    if self.request:
      self.set(request="SUSPENDING")
    if draw("gone") < 0.3:
      self.set(node="")

  def end_jobs(self) -> None:
    for worker in self.workers():
      home = f"{self.path}/{worker}/home/radit_jax"
      with contextlib.suppress(ValueError, ProcessLookupError):
        os.killpg(int(read(f"{home}/jobs/{read(f'{home}/job').strip()}/pid")), signal.SIGKILL)
      shutil.rmtree(f"{self.path}/{worker}", ignore_errors=True)


def main() -> None:
  words, flags = [], {}
  for arg in sys.argv[1:]:
    name, equals, value = arg.partition("=")
    if arg.startswith("--"):
      flags[name] = value if equals else "yes"
    else:
      words.append(arg)
  command = " ".join(words[2:4])
  if words[:2] != ["compute", "tpus"] or command not in FLAGS:
    error(f"Invalid choice: {words}", 2)
  for name in flags:
    if name not in FLAGS[command] | COMMON:
      error(f"unrecognized arguments: {name}", 2)
  if "--zone" not in flags:
    error("[--zone] must be specified", 2)
  with alone():
    with open(f"{CLOUD}/calls", "a") as f:
      f.write(" ".join(sys.argv[1:]) + "\n")
    it = Slice(words[-1].split(":")[0] if command == "tpu-vm scp" else words[4])
    if SEED and draw(command) < 0.01:
      error("HttpError 503: the service is currently unavailable")
    answer = {"queued-resources": request, "tpu-vm": node}[words[2]](words[3], it, flags)
  if words[3] == "scp":
    copy(it, words[4], flags)
  elif words[3] == "ssh":
    answer = ssh(it, flags)
  if isinstance(answer, str):
    print(answer)
  sys.exit(answer if isinstance(answer, int) else 0)


def request(verb: str, it: Slice, flags: dict[str, str]) -> str | None:
  if verb == "create":
    if it.request or it.node:
      error(f"ALREADY_EXISTS: Resource '{it.name}' already exists")
    it.set(request="WAITING_FOR_RESOURCES", accelerator=flags["--accelerator-type"])
    return None
  if not it.request:
    error(f"NOT_FOUND: Resource '{it.name}' was not found")
  if verb == "delete":
    if it.node and "--force" not in flags:
      error("FAILED_PRECONDITION: the queued resource has a node")
    it.end_jobs()
    shutil.rmtree(it.path)
    return None
  it.node  # noqa: B018 - the slice may have been taken away since
  state = it.request
  following = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE", "SUSPENDING": "SUSPENDED"}
  if SEED and state == "PROVISIONING" and draw("fails") < 0.1:
    following = {"PROVISIONING": "FAILED"}
  if state in following:
    it.set(request=following[state])
    if it.request == "ACTIVE":
      it.make(read(f"{it.path}/accelerator"))
  return state


def node(verb: str, it: Slice, flags: dict[str, str]) -> str | None:
  if verb == "create":
    if it.node:
      error(f"ALREADY_EXISTS: Resource '{it.name}' already exists")
    it.make(flags["--accelerator-type"])
    return None
  if not it.node:
    error(f"NOT_FOUND: Resource '{it.name}' was not found")
  if verb == "delete":
    if it.request:
      error("FAILED_PRECONDITION: the node belongs to a queued resource")
    it.end_jobs()
    shutil.rmtree(it.path)
  if verb == "describe":
    return it.node if "state" in flags["--format"] else ";".join(f"10.0.0.{w + 1}" for w in it.workers())
  if verb in ("ssh", "scp") and it.node != "READY":
    error(f'TPU VM "{it.name}" is in state {it.node}')
  return None


def copy(it: Slice, source: str, flags: dict[str, str]) -> None:
  with contextlib.suppress(FileNotFoundError):
    shutil.copy(source, f"{it.path}/{flags['--worker']}/home/{sys.argv[5].partition(':')[2]}")


def ssh(it: Slice, flags: dict[str, str]) -> int:
  """The exit status of the command. A lost connection is made again and the command run again, as gcloud does."""
  worker = f"{it.path}/{flags['--worker']}"
  environment = {
    "PATH": f"{os.environ['FAKE_BIN']}:/usr/bin:/bin",
    "HOME": f"{worker}/home",
    "TPU_VM_DEV": f"{worker}/dev",
    "FAKE_WORKER": worker,
    "FAKE_CLOUD": CLOUD,
  }
  for _ in range(10):
    with alone():
      lost = time.time() + 2 * draw("connection") if SEED and draw("line") < 0.1 else float("inf")
    child = os.fork()
    if not child:
      os.setsid()
      os.execve("/bin/sh", ["sh", "-c", flags["--command"]], environment)
    while True:
      ended, status = os.waitpid(child, os.WNOHANG)
      if ended:
        return os.waitstatus_to_exitcode(status) % 256
      with alone():
        ready = it.node == "READY"
      if not ready or time.time() > lost:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not ready:
          error("[ssh] exited with return code [255].")
        print("Retrying: SSH command error: [ssh] exited with return code [255].", flush=True)
        break
      time.sleep(0.05)
  return error("[ssh] exited with return code [255].") or 1


if __name__ == "__main__":
  main()
