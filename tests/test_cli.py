"""The command line: what it calls with what, what it prints where, and how it ends."""

import dataclasses
import errno
import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import time
import tomllib
import types

import pytest

import radit_jax
from radit_jax import cli, display
from radit_jax import config as configs
from radit_jax.errors import Preempted, TrainingError, UserError

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Result:
  text: str = "the summary"

  def summary(self) -> str:
    return self.text


@pytest.fixture
def verb(monkeypatch):
  """Puts a function in the place of a verb's; returns what it was called with."""

  def install(name, function=lambda config, progress: Result()):
    module, attribute, _ = cli.VERBS[name]
    calls = []

    def called(config, *, progress):
      calls.append(config)
      return function(config, progress=progress)

    fake = types.ModuleType(module)
    setattr(fake, attribute, called)
    monkeypatch.setitem(sys.modules, module, fake)
    return calls

  return install


ASK = ["ask", "who is it?", "--generator", "g", "--encoder", "e", "--index", "i", "--passages", "p"]
RUN = ["run", "--workdir", "w", "--corpus", "c", "--questions", "q", "--generator", "g", "--encoder", "e"]
TUNE = ["--workdir", "w", "--generator", "g", "--retrieved", "r", "--dev-retrieved", "d", "--passages", "p"]


def one_line(capsys) -> str:
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.count("\n") == 1, captured.err
  return captured.err


def test_a_verb_gets_its_config_and_its_summary_is_printed(verb, capsys):
  calls = verb("run")
  status = cli.main([*RUN, "--k", "7", "--generator-tuning.loop.steps", "5", "--mesh.fsdp", "2", "--controls"])
  assert status == 0
  assert capsys.readouterr() == ("the summary\n", "")
  (config,) = calls
  assert config == configs.RunConfig(
    workdir="w",
    corpus="c",
    questions="q",
    generator="g",
    encoder="e",
    k=7,
    controls=True,
    mesh=configs.MeshConfig(fsdp=2),
    generator_tuning=configs.TuningConfig(loop=configs.LoopConfig(steps=5)),
  )


def test_underscores_equals_signs_and_none(verb):
  calls = verb("run")
  assert cli.main([*RUN, "--k_train=2", "--dev-questions", "None"]) == 0
  assert (calls[0].k_train, calls[0].dev_questions) == (2, None)


def test_options_of_lora_in_a_whole_run(verb):
  calls = verb("run")
  lora = ["--generator-tuning.lora.rank", "4", "--generator-tuning.lora.base", "nf4", "--retriever-tuning.lora.rank=2"]
  assert cli.main([*RUN, *lora, "--generator-tuning.lora.targets", "q", "v"]) == 0
  assert calls[0].generator_tuning.lora == configs.LoraConfig(rank=4, targets=("q", "v"), base="nf4")
  assert calls[0].retriever_tuning.lora == configs.LoraConfig(rank=2)


@pytest.mark.parametrize("args", [ASK, ["ask", "--question", *ASK[1:]], [ASK[0], *ASK[2:], "--question", ASK[1]]])
def test_the_question_may_stand_first(verb, args):
  calls = verb("ask")
  assert cli.main(args) == 0
  assert calls[0].question == "who is it?"


@pytest.mark.parametrize("what", ["batch", "example", "ranking"])
def test_inspect_takes_what_it_shows_first(verb, what):
  calls = verb("inspect")
  assert cli.main(["inspect", what, "--retrieved", "r", "--passages", "p", "--generator", "g"]) == 0
  assert calls[0].what == what


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help_and_a_documented_function(name, capsys):
  assert cli.main([name, "--help"]) == 0
  out = capsys.readouterr().out
  assert out.startswith(f"usage: radit {name}")
  assert "(default:" in out or "(required)" in out
  module, attribute, config = cli.VERBS[name]
  function = getattr(importlib.import_module(module), attribute)
  assert inspect.getdoc(function)
  parameters = inspect.signature(function).parameters
  assert next(iter(parameters)) == "config"
  assert parameters["config"].annotation is config
  assert "progress" in parameters
  others = [p for p in parameters.values() if p.name != "config"]
  assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)


def test_help_shows_the_docstring_of_every_option(capsys):
  cli.main(["train-generator", "--help"])
  out = " ".join(capsys.readouterr().out.replace("│", "").split())
  assert "--loop.patience {None}|INT stop after this many measurements without a new best" in out
  assert "--method {ralt,it}" in out


def test_overview_and_version(capsys):
  assert cli.main(["--help"]) == 0
  out = capsys.readouterr().out
  assert all(f"\n  {name} " in out for name in cli.VERBS)
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"radit {radit_jax.__version__}\n"
  assert cli.main([]) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert "usage: radit" in captured.err


@pytest.mark.parametrize(
  ("args", "parts"),
  [
    (["indx"], ["no verb 'indx'", "'index'"]),
    (["frobnicate"], ["no verb 'frobnicate' (radit --help"]),
    (["prepare", "--generator", "x"], ["no option --generator (radit prepare --help"]),
    ([*RUN, "--generator-tuning.loop.stepz", "5"], ["no option --generator-tuning.loop.stepz", "loop.steps'"]),
    ([*RUN, "--lop.steps=5"], ["no option --lop.steps", "loop.steps'"]),
    ([*RUN, "--batch-size", "3"], ["no option --batch-size", ".batch-size'"]),
    (["quickstart", "-k", "3"], ["no option -k"]),
    (["quickstart", "extra"], ["extra"]),
    (["quickstart", "--seed"], ["--seed"]),
    (["quickstart", "--seed", "three"], ["--seed", "three"]),
    (["quickstart", "--seed", "-1"], ["--seed -1: must be at least 0"]),
    ([*RUN, "--k", "ten"], ["error: --k ten: must be a whole number ("]),
    ([*RUN, "--dev-questions", "ten"], ["error: --dev-questions ten: must be a whole number ("]),
    ([*RUN, "--lm-temperature", "ten"], ["error: --lm-temperature ten: must be a number ("]),
    (["ask", " ", *ASK[2:]], ["error: --question is empty"]),
    (["train-generator", *TUNE, "--optimizer.peak_lr=-1"], ["error: --optimizer.peak-lr -1.0: must be greater"]),
    ([*RUN, "--generator-tuning.loop.steps=0"], ["error: --generator-tuning.loop.steps 0: must be at least 1"]),
    ([*RUN, "--generator-tuning.loop.select=mrr"], ["error: --generator-tuning.loop.select 'mrr': must be one of"]),
    ([*RUN, "--workdir", __file__], ["test_cli.py: is a file; --workdir must be a directory"]),
    ([*RUN, "--prompt.max-tokens", "9"], ["max_passage_tokens 256", "max_tokens 9"]),
    ([*RUN, "--backend", "faiss"], ["faiss", "--backend", "scann", "exact"]),
    (["run", "--workdir", "w"], ["--corpus", "--generator", "--encoder"]),
    ([*RUN, "--mix", "paper"], ["give one, --questions FILE or --mix NAME"]),
    (["inspect", "rows", "--retrieved", "r", "--passages", "p", "--generator", "g"], ["rows", "ranking"]),
    (["quickstart", "--config"], ["--config needs a name or a path", "own_data"]),
    (["run", "--config", "own_dta"], ["own_dta", "'own_data'"]),
    (["run", "--config", "no/such.py"], ["no/such.py: no such file"]),
    (["quickstart", "--config", "own_data"], ["holds a RunConfig", "`radit quickstart` takes a QuickstartConfig"]),
  ],
  ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else None,
)
def test_a_wrong_call_is_one_line_and_status_2(verb, capsys, args, parts):
  calls = verb(args[0]) if args[0] in cli.VERBS else []
  assert cli.main(args) == 2
  line = one_line(capsys)
  assert line.startswith("radit: error: ")
  assert all(part in line for part in parts), line
  assert not calls


def raising(error):
  def function(config, progress):
    progress("stage", 1, 5, "things")
    raise error

  return function


@pytest.mark.parametrize(
  ("error", "status", "text"),
  [
    (UserError("docs.jsonl:3: not JSON"), 2, "radit: error: docs.jsonl:3: not JSON\n"),
    (UserError("two\n lines"), 2, "radit: error: two lines\n"),
    (TrainingError("step 4: loss nan"), 1, "radit: error: step 4: loss nan\n"),
    (Preempted("stopped after step 4"), 75, "radit: stopped after step 4\n"),
    (KeyboardInterrupt(), 130, "radit: interrupted\n"),
    (OSError(errno.EACCES, "Permission denied", "/w"), 2, "radit: error: /w: Permission denied\n"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/w"), 2, "error: /w: No such file or directory\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/w"), 1, "radit: error: /w: No space left on device\n"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "radit: error: No space left on device\n"),
    (
      RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
      1,
      "radit: error: a device has not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.); "
      "smaller batches (of a tuning --loop.accumulate), --remat full or more devices for each copy of the model "
      "(--mesh.fsdp) need less, and `radit plan` says how much\n",
    ),
    (RuntimeError("write() failed: No space left on device; writing /w"), 1, "left on device; writing /w\n"),
  ],
  ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
def test_how_a_verb_ends(verb, capsys, error, status, text):
  verb("quickstart", raising(error))
  assert cli.main(["quickstart"]) == status
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.endswith(text)
  assert "Traceback" not in captured.err


def test_a_fault_keeps_its_traceback(verb):
  verb("quickstart", raising(RuntimeError("a bug")))
  with pytest.raises(RuntimeError, match="a bug"):
    cli.main(["quickstart"])


def test_a_fault_ends_with_status_1():
  code = (
    "import sys, types; from radit_jax import cli\n"
    "m = types.ModuleType('radit_jax.quickstart')\n"
    "m.quickstart = lambda config, progress: 1 / 0\n"
    "sys.modules['radit_jax.quickstart'] = m; sys.exit(cli.main(['quickstart']))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "ZeroDivisionError" in done.stderr


def test_a_reader_that_has_seen_enough(tmp_path):
  """`radit ... | head`: no complaint, whatever is still to be printed."""
  code = (
    "import sys, types; from radit_jax import cli\n"
    "m = types.ModuleType('radit_jax.quickstart')\n"
    "m.quickstart = lambda config, progress: 'line\\n' * 1_000_000\n"
    "sys.modules['radit_jax.quickstart'] = m; sys.exit(cli.main(['quickstart']))"
  )
  with open(tmp_path / "err", "w") as err:
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=err) as process:
      assert process.stdout is not None
      assert process.stdout.readline() == b"line\n"
      process.stdout.close()
    assert process.returncode == 0
  assert (tmp_path / "err").read_text() == ""


def test_help_is_quick():
  """No verb is imported: jax alone takes a second."""
  code = "import sys; from radit_jax.cli import main; main(['run', '--help']); sys.exit('jax' in sys.modules)"
  start = time.monotonic()
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  assert time.monotonic() - start < 5  # 0.4 s on an idle machine


# Config files.


def test_a_shipped_config_is_found_by_name(verb):
  calls = verb("run")
  assert cli.main([*RUN, "--config", "own_data", "--generator-tuning.loop.batch-size", "16"]) == 0
  (config,) = calls
  assert config.generator_tuning.loop == configs.LoopConfig(epochs=3, batch_size=16, evaluate_every=25, patience=4)
  assert config.workdir == "w"


@pytest.mark.parametrize("name", cli.shipped_configs())
def test_every_shipped_config_is_documented_and_works(name, verb):
  path = ROOT / "configs" / f"{name}.py"
  assert path.read_text().startswith(f'"""`radit run --config {name} ')
  verb("run")
  assert cli.main([*RUN, "--config", name]) == 0


def test_options_win_over_the_file_wherever_it_is_named(verb, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "import functools\nfrom radit_jax.config import *\n"
    "config = functools.partial(RunConfig, k=6, controls=True, corpus='file')\n"
  )
  calls = verb("run")
  assert cli.main(["run", f"--config={path}", *RUN[1:], "--no-controls"]) == 0
  assert (calls[0].k, calls[0].controls, calls[0].corpus) == (6, False, "c")


def test_a_file_may_fill_what_is_required_or_hold_a_whole_config(verb, tmp_path):
  calls = verb("ask")
  head = "import functools\nfrom radit_jax.config import AskConfig\n"
  (tmp_path / "part.py").write_text(
    head + "config = functools.partial(AskConfig, generator='g', encoder='e', index='i')\n"
  )
  assert cli.main(["ask", "why?", "--config", str(tmp_path / "part.py"), "--passages", "p"]) == 0
  whole = "AskConfig(question='how?', generator='g', encoder='e', index='i', passages='p', k=3)"
  (tmp_path / "whole.py").write_text(head + f"config = {whole}\n")
  assert cli.main(["ask", "--config", str(tmp_path / "whole.py")]) == 0
  assert [(c.question, c.index, c.k) for c in calls] == [("why?", "i", 10), ("how?", "i", 3)]


def test_what_a_file_leaves_open_is_still_required(verb, tmp_path, capsys):
  verb("ask")
  (tmp_path / "c.py").write_text(
    "import functools\nfrom radit_jax.config import AskConfig\nconfig = functools.partial(AskConfig)\n"
  )
  assert cli.main(["ask", "why?", "--config", str(tmp_path / "c.py"), "--generator", "g"]) == 2
  assert "--encoder" in one_line(capsys)


@pytest.mark.parametrize(
  ("content", "parts"),
  [
    ("x = 1\n", ["c.py: needs `config = functools.partial(RunConfig, ...)`"]),
    ("config = {'k': 3}\n", ["c.py: needs `config"]),
    ("import functools\nconfig = functools.partial(dict, k=3)\n", ["holds a dict"]),
    ("\nconfig = (\n", ["c.py:2: SyntaxError"]),
    ("\n\nimport radit_jxa\n", ["c.py:3: ModuleNotFoundError", "radit_jxa"]),
    ("from radit_jax.config import *\nconfig = LoopConfig(steps=0)\n", ["c.py: LoopConfig.steps = 0"]),
    (
      "import functools\nfrom radit_jax.config import *\nconfig = functools.partial(RunConfig, k_trian=3)\n",
      ["no field 'k_trian'", "'k_train'"],
    ),
    (
      "import functools\nfrom radit_jax.config import *\nconfig = functools.partial(RunConfig, k_train=30)\n",
      ["k_train 30 is more than the k 10"],
    ),
  ],
)
def test_a_wrong_config_file_is_named(verb, capsys, tmp_path, content, parts):
  calls = verb("run")
  (tmp_path / "c.py").write_text(content)
  assert cli.main([*RUN, "--config", str(tmp_path / "c.py")]) == 2
  line = one_line(capsys)
  assert all(part in line for part in parts), line
  assert not calls


def test_every_package_is_in_the_wheel():
  """pyproject.toml lists the packages, as configs/ has a place of its own in a checkout."""
  listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
  found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "radit_jax").rglob("*.py")}
  assert set(listed) == found | {"radit_jax.configs", "radit_jax.configs.mixes"}


# Progress.


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
  return now


def lines(capsys):
  captured = capsys.readouterr()
  assert captured.out == ""
  return captured.err.splitlines()


def test_plain_lines_come_every_two_seconds_and_at_the_end(clock, capsys):
  with display.Display() as progress:
    for step in range(1, 101):
      clock[0] += 0.1
      progress("train", step, 100, "steps", loss=2 / step)
  out = lines(capsys)
  assert len(out) == 6  # at 0.1 s, 2.1, 4.1, 6.1, 8.1 and the end
  assert out[0] == "train: 1/100 steps (1 %), loss 2"
  assert out[1].startswith("train: 2")
  assert "10 steps/s" in out[1]
  assert "8s left" in out[1]
  assert out[-1] == "train: 100/100 steps in 10s, loss 0.02"


def test_a_resumed_stage_counts_its_rate_from_where_it_began(clock, capsys):
  progress = display.Display()
  progress("train", 900, 1000, "steps")
  clock[0] += 10
  progress("train", 910, 1000, "steps")
  assert lines(capsys)[-1] == "train: 910/1,000 steps (91 %), 1 steps/s, 1m30s left"


def test_the_rate_forgets_how_long_the_first_step_took(clock, capsys):
  progress = display.Display()
  progress("train", 0, 1000, "steps")
  clock[0] += 60
  for step in range(1, 42):
    progress("train", step, 1000, "steps")
    clock[0] += 1
  assert "1 steps/s" in lines(capsys)[-1]


def test_a_stage_told_twice_is_shown_once_and_a_new_one_starts_anew(clock, capsys):
  progress = display.Display()
  for stage in ("a", "a", "b"):
    clock[0] += 3
    progress(stage, 4, 4, "things")
  assert lines(capsys) == ["a: 4/4 things in 3s", "b: 4/4 things in 3s"]


def test_a_bar_on_a_terminal(monkeypatch, capsys, clock):
  """A pseudo-terminal as stderr: a bar while the stage runs, one line when it is done."""
  code = (
    "import time; from radit_jax.display import Display\n"
    "with Display() as p:\n"
    "  for i in range(5):\n"
    "    p('embed', i, 4, 'passages', loss=1.5); time.sleep(0.15)\n"
  )
  reader, writer = os.openpty()
  environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=writer, env=environment, check=True)
  os.close(writer)
  seen = b""
  while True:
    try:
      part = os.read(reader, 65536)
    except OSError:  # the end, on Linux
      break
    if not part:
      break
    seen += part
  os.close(reader)
  text = seen.decode()
  assert "━" in text
  assert "2/4 passages" in text
  assert "loss 1.5" in text
  assert text.rstrip().splitlines()[-1].endswith("embed: 4/4 passages in 1s, loss 1.5")
