"""``radit <verb>``: parse, call one function, print what it returns. The only module that reads a command line."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import importlib
import io
import os
import pathlib
import re
import runpy
import sys
import traceback
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import radit_jax
from radit_jax import config as configs
from radit_jax import display, hosts, preemption
from radit_jax.errors import Preempted, TrainingError, UserError
from radit_jax.process import keep_heap, keep_programs, open_many_files

#: Verb -> (module, function, config). A module is imported when its verb is called, so that --help is quick.
VERBS: dict[str, tuple[str, str, type]] = {
  "quickstart": ("radit_jax.quickstart", "quickstart", configs.QuickstartConfig),
  "run": ("radit_jax.verbs.run", "run", configs.RunConfig),
  "download": ("radit_jax.verbs.download", "download", configs.DownloadConfig),
  "prepare": ("radit_jax.verbs.prepare", "prepare", configs.PrepareConfig),
  "index": ("radit_jax.verbs.index", "index", configs.IndexConfig),
  "retrieve": ("radit_jax.verbs.retrieve", "retrieve", configs.RetrieveConfig),
  "rerank": ("radit_jax.verbs.rerank", "rerank", configs.RerankConfig),
  "mine-negatives": ("radit_jax.verbs.mine_negatives", "mine_negatives", configs.MineNegativesConfig),
  "bm25": ("radit_jax.verbs.bm25", "bm25", configs.Bm25Config),
  "score": ("radit_jax.verbs.score", "score", configs.ScoreConfig),
  "train-generator": ("radit_jax.verbs.train_generator", "train_generator", configs.TrainGeneratorConfig),
  "train-retriever": ("radit_jax.verbs.train_retriever", "train_retriever", configs.TrainRetrieverConfig),
  "evaluate": ("radit_jax.verbs.evaluate", "evaluate", configs.EvaluateConfig),
  "evaluate-retrieval": (
    "radit_jax.verbs.evaluate_retrieval",
    "evaluate_retrieval",
    configs.EvaluateRetrievalConfig,
  ),
  "export": ("radit_jax.verbs.export", "export", configs.ExportConfig),
  "ask": ("radit_jax.verbs.ask", "ask", configs.AskConfig),
  "inspect": ("radit_jax.verbs.inspect", "inspect", configs.InspectConfig),
  "convert": ("radit_jax.verbs.convert", "convert", configs.ConvertConfig),
  "plan": ("radit_jax.verbs.plan", "plan", configs.PlanConfig),
  "checkpoints": ("radit_jax.verbs.checkpoints", "checkpoints", configs.CheckpointsConfig),
  "doctor": ("radit_jax.verbs.doctor", "doctor", configs.DoctorConfig),
}
#: In place of `prepare` where its options name a mix.
MIX = ("radit_jax.verbs.prepare_mix", "prepare_mix", configs.PrepareMixConfig)
#: Verbs that compute over all devices of all processes; the others work on files, in one.
TOGETHER = (
  *("run", "prepare", "index", "retrieve", "rerank", "score"),
  *("train-generator", "train-retriever", "evaluate", "ask"),
)
#: Verbs of which the same command continues what a signal has stopped.
CONTINUED = {*TOGETHER, "quickstart"} - {"ask"}
#: Verb -> the option whose value may come first without its name: `radit inspect batch`.
LEADING = {
  **{
    "ask": "question",
    "retrieve": "question",
    "inspect": "what",
    "export": "run",
    "convert": "source",
    "download": "sets",
  },
  **{"checkpoints": "run", "doctor": "run"},
}
#: Likeness (0 to 1) from which on a name may be what was meant, as in :func:`difflib.get_close_matches`.
_NEAR = 0.6
#: A path that cannot be read or written as asked is named in one line: its traceback would say nothing more.
_PATH_ERRORS = {
  *(errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
  *(errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line.

  Args:
    argv: without the program's name; None takes the process's.

  Returns:
    The exit status: 0, 2 a wrong call or wrong input (one line on stderr), 1 a fault, a plan that does not fit, a
    damaged checkpoint or what `doctor` finds, 75 preempted and can be started again, 130 interrupted.
  """
  args = list(sys.argv[1:] if argv is None else argv)
  keep_heap()
  keep_programs()
  open_many_files()
  try:
    with hosts.together(), _one_line_errors():
      _run(args)
      sys.stdout.flush()
    return 0
  except SystemExit as e:
    return e.code if isinstance(e.code, int) else 1
  except KeyboardInterrupt:
    _say("radit: interrupted")
    return 130
  except BrokenPipeError:
    # The reader (`| head`) has seen enough. The interpreter would flush stdout again on its way out, and complain.
    with contextlib.suppress(OSError, ValueError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(args: list[str]) -> None:
  if args and args[0] in ("--version", "-V"):
    print(f"radit {radit_jax.__version__}")
    return
  if not args or args[0] in ("--help", "-h", "help"):
    print(_overview(), file=sys.stdout if args else sys.stderr)
    raise SystemExit(0 if args else 2)
  verb = args[0].replace("_", "-")
  if verb not in VERBS:
    raise UserError(f"no verb {args[0]!r}{_nearest(verb, VERBS)} (radit --help shows them)")
  module, function, _ = _entry(verb, args[1:])
  config = parse(verb, args[1:])
  if os.path.isfile(workdir := getattr(config, "workdir", "")):
    raise UserError(f"{workdir}: is a file; --workdir must be a directory")
  options = {"mix": read_mix(config.mix)} if getattr(config, "mix", None) else {}
  display.quiet_libraries()
  if verb in TOGETHER:
    hosts.connect(_say)
  elif hosts.configured():
    raise UserError(f"radit {verb} runs in one process; start it once, with {hosts.COUNT}=1 or without {hosts.ADDRESS}")
  # After the processes have met: JAX takes SIGTERM for itself there.
  with preemption.heeded(_say) if verb in CONTINUED else contextlib.nullcontext():
    call = getattr(importlib.import_module(module), function)
    if not hosts.is_first():
      call(config, **options)
      return
    with display.Display() as progress:
      result = call(config, progress=progress, **options)
  print(result.summary() if hasattr(result, "summary") else result)
  if getattr(result, "failed", False):
    raise SystemExit(1)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
  """What the caller can fix becomes one line and its exit status; a fault keeps its traceback."""
  try:
    yield
  except Preempted as e:
    _say(f"radit: {e}")
    raise SystemExit(preemption.STATUS) from None
  except (UserError, TrainingError) as e:
    _say(f"radit: error: {e}")
    raise SystemExit(2 if isinstance(e, UserError) else 1) from None
  except OSError as e:
    full = e.errno == errno.ENOSPC  # of a file that is open, the system does not say which
    if e.errno not in _PATH_ERRORS or (e.filename is None and not full):
      raise
    _say("radit: error: " + ": ".join(str(x) for x in (e.filename, e.strerror) if x))
    raise SystemExit(1 if full else 2) from None
  except RuntimeError as e:  # array_record and XLA tell errors of their surroundings as texts
    text = " ".join(str(e).split())
    if "RESOURCE_EXHAUSTED" in text:
      _say(
        f"radit: error: a device has not enough memory ({text[:160]}); smaller batches (of a tuning "
        "--loop.accumulate), --remat full or more devices for each copy of the model (--mesh.fsdp) need less, and "
        "`radit plan` says how much"
      )
    elif os.strerror(errno.ENOSPC) in text:
      _say(f"radit: error: {text}")
    else:
      raise
    raise SystemExit(1) from None


def _say(message: str) -> None:
  print(" ".join(message.split()), file=sys.stderr)


def _overview() -> str:
  lines = ["usage: radit <verb> [options]", "", "RA-DIT: retrieval-augmented dual instruction tuning.", "", "verbs:"]
  lines += [f"  {verb:<18} {_first_line(config)}" for verb, (_, _, config) in VERBS.items()]
  lines += ["", "`radit <verb> --help` shows its options. `radit --version` shows the version."]
  return "\n".join(lines)


def _first_line(config: type) -> str:
  return (config.__doc__ or "").strip().splitlines()[0]


def _nearest(name: str, names: Iterable[str]) -> str:
  """Names the known one most like ``name``, or says nothing where none is like it.

  Any tail of a dotted one may be meant (--batch-size: --loop.batch-size).
  """

  def likeness(known: str) -> float:
    parts = known.lstrip("-").split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts))]
    return max(difflib.SequenceMatcher(None, name.lstrip("-"), tail).ratio() for tail in tails)

  near = max(names, key=likeness, default=None)
  return "" if near is None or likeness(near) < _NEAR else f"; the nearest is {near!r}"


# Parsing.


def _entry(verb: str, args: Sequence[str]) -> tuple[str, str, type]:
  """Module, function and config of a call."""
  names_mix = any(arg == "--mix" or arg.startswith("--mix=") for arg in args)
  return MIX if verb == "prepare" and names_mix else VERBS[verb]


def parse(verb: str, args: Sequence[str]) -> Any:
  """The config of a verb from its command line, over a ``--config`` file if one is named.

  Raises:
    UserError: an option that does not exist (with the nearest name), or a value that the config refuses.
    SystemExit: ``--help`` was asked for.

  Example:
    >>> parse("quickstart", ["--seed", "3"]).seed
    3
  """
  import tyro

  cls = _entry(verb, args)[2]
  args, preset = _take_config(list(args))
  if verb in LEADING and args and not args[0].startswith("-"):
    args = [f"--{LEADING[verb]}", *args]
  default = tyro.MISSING_NONPROP if preset is None else _preset_defaults(preset, verb, cls)
  asks_help = any(a in ("-h", "--help") for a in args)
  if not asks_help:
    _check_options(verb, cls, args)
  description = (
    f"{_first_line(cls)}\n\n--config NAME_OR_PATH takes the defaults from a Python file ({_shipped_text()})."
  )
  if cls is configs.PrepareConfig:
    description += (
      f" `radit prepare --mix X --help` shows how a mix of data sets ({', '.join(shipped_mixes())}) is made."
    )
  if verb in LEADING:
    description += f" The value of --{LEADING[verb]} may come first without its name."
  printed = io.StringIO()
  wide = contextlib.nullcontext() if asks_help else _environment(COLUMNS="10000")
  try:
    # Help is drawn to the terminal. Errors are drawn in boxes, wrapped: they are caught, and told in one line.
    with contextlib.redirect_stderr(printed), wide:
      return tyro.cli(cls, prog=f"radit {verb}", args=args, default=default, description=description)
  except SystemExit as e:
    if e.code in (0, None):
      raise
    refused = _chained(e, UserError)
    if refused:
      raise UserError(_with_option(str(refused), cls, args)) from None
    raise UserError(_unboxed(printed.getvalue(), f"radit {verb} --help")) from None


def _chained(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
  """The error of this kind that led to ``error``; tyro reports a ValueError of a config's check by exiting."""
  while error is not None and not isinstance(error, kind):
    error = error.__context__
  return error


def _with_option(message: str, cls: type, args: Sequence[str]) -> str:
  """A config's word on one of its fields, with the option in the field's place.

  Of one that stands in several places (the optimizer of each tuning) the option is the one that was given. Where that
  is not clear the message stays as it is.

  Example:
    >>> _with_option("LoopConfig.steps = 0: must be at least 1", configs.TrainGeneratorConfig, ())
    '--loop.steps 0: must be at least 1'
  """
  found = re.match(r"(\w+)\.([a-z]\w*(?:\.\w+)*)(?: =)?(?=[ :])", message)
  if not found:
    return message
  field = found[2].replace("_", "-")
  prefixes = tuple(_prefixes(cls, found[1]))
  known = [option for option in option_names(cls) if option.startswith(prefixes)]
  options = [option for option in known if option in [prefix + field for prefix in prefixes]]
  options = options or [option for option in known if option.endswith(f".{field}")]  # loop.select of either tuning
  if len(options) > 1:
    given = {arg.partition("=")[0].replace("_", "-") for arg in args}
    options = [option for option in options if option in given]
  return options[0] + message[found.end() :] if len(options) == 1 else message


def _prefixes(cls: type, name: str, prefix: str = "--") -> Iterator[str]:
  """What the options of the config class called ``name`` begin with, in each place that it has inside ``cls``."""
  if cls.__name__ == name:
    yield prefix
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(hints[field.name]):
      below = f"{prefix}{field.name.replace('_', '-')}."
      yield from _prefixes(typing.cast(type, hints[field.name]), name, below)


#: What Python says of a text that is no number, and what it must be.
_NO_NUMBER = (
  (r"invalid literal for int\(\) with base 10: '(.*?)'", "a whole number"),
  (r"could not convert string to float: '(.*?)'", "a number"),
)


def _unboxed(text: str, help_command: str) -> str:
  """First section of tyro's box, without frame, option descriptions (indented deeper) and line breaks."""
  rows = [line.strip("│╭╮╰╯|+") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:]]
  section: list[str] = []
  for row in rows:
    if row.strip().startswith(("──", "-----")):  # the latter where the locale has no such characters
      if section:
        break
      continue
    if not row.startswith("        "):
      section.append(row.strip())
  message = " ".join(section).removesuffix(".") or "wrong call"
  option = re.match(r"Error parsing (--[\w.-]+):", message)
  for pattern, kind in _NO_NUMBER if option else ():
    if option and (found := re.search(pattern, message)):
      message = f"{option[1]} {found[1]}: must be {kind}"
  return f"{message} ({help_command} shows the options)"


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
  before = {name: os.environ.get(name) for name in values}
  os.environ.update(values)
  try:
    yield
  finally:
    for name, value in before.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})


def option_names(cls: type, prefix: str = "--") -> Iterator[str]:
  """Every option of a config class, the nested ones dotted.

  Example:
    >>> list(option_names(configs.MeshConfig))
    ['--data', '--fsdp', '--tensor']
  """
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name = field.name.replace("_", "-")
    if dataclasses.is_dataclass(hints[field.name]):
      yield from option_names(typing.cast(type, hints[field.name]), f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"
      if hints[field.name] is bool:
        yield f"{prefix}no-{name}"


def _check_options(verb: str, cls: type, args: Sequence[str]) -> None:
  known = [*option_names(cls), "--config"]
  for arg in args:
    named = re.match(r"--?[A-Za-z][\w.-]*(?==|$)", arg)
    if named and named[0].replace("_", "-") not in known:
      raise UserError(
        f"radit {verb} has no option {named[0]}{_nearest(named[0], known)} (radit {verb} --help shows the options)"
      )


# --config and --mix: programs their user wrote. Nothing else that radit reads is ever executed.


def _config_directory() -> pathlib.Path:
  """Inside the package in an installed wheel, beside it in a checkout."""
  package = pathlib.Path(radit_jax.__file__).parent
  return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def shipped_configs() -> list[str]:
  """Names that ``--config`` takes without a path."""
  return sorted(p.stem for p in _config_directory().glob("*.py") if p.stem != "__init__")


def shipped_mixes() -> list[str]:
  """Names that ``--mix`` takes without a path."""
  return sorted(p.stem for p in (_config_directory() / "mixes").glob("*.py"))


def _shipped_text() -> str:
  return f"shipped: {', '.join(shipped_configs())}"


def _take_config(args: list[str]) -> tuple[list[str], str | None]:
  """The arguments without ``--config X``, and X."""
  rest, preset = [], None
  words = iter(args)
  for word in words:
    if word == "--config":
      preset = next(words, None)
      if preset is None:
        raise UserError(f"--config needs a name or a path ({_shipped_text()})")
    elif word.startswith("--config="):
      preset = word.removeprefix("--config=")
    else:
      rest.append(word)
  return rest, preset


def _run_file(option: str, name: str, directory: pathlib.Path, shipped: list[str]) -> tuple[pathlib.Path, Any]:
  """Runs a Python file that an option names by its path, or by the name of one that ships; returns what it defines."""
  path = pathlib.Path(name)
  if not path.suffix and path.name == name:
    path = directory / f"{name}.py"
    if not path.is_file():
      raise UserError(f"{option} {name}: no such name{_nearest(name, shipped)} (or give a path to a .py)")
  if not path.is_file():
    raise UserError(f"{option} {path}: no such file")
  try:
    return path, runpy.run_path(str(path))
  except UserError as e:
    raise UserError(f"{path}: {e}") from None
  except Exception as e:
    own = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
    line = getattr(e, "lineno", None) or (own[-1] if own else 1)
    raise UserError(f"{path}:{line}: {type(e).__name__}: {e}") from None


def read_mix(name: str) -> configs.MixConfig:
  """The mix in a Python file, which is run: like a config, it is its user's program.

  Args:
    name: of a mix that ships, or a path.

  Raises:
    UserError: no such file, one that fails (line named), or one without a mix.

  Example:
    >>> len(read_mix("paper").generator)
    21
  """
  path, held = _run_file("--mix", name, _config_directory() / "mixes", shipped_mixes())
  mix = held.get("mix")
  if not isinstance(mix, configs.MixConfig):
    raise UserError(f"{path}: needs `mix = MixConfig(...)`, from radit_jax.config")
  return mix


def _preset_defaults(preset: str, verb: str, cls: type) -> Any:
  """An instance of ``cls`` with the file's values, unchecked: what is left open is still to come from the options."""
  import tyro

  path, held = _run_file("--config", preset, _config_directory(), shipped_configs())
  kind, values = _parts(held.get("config"), path, cls)
  if cls is configs.PlanConfig and kind is configs.RunConfig:
    # What a plan asks of a run, but for the mesh, which belongs to the run's own slice; and what only the plan knows.
    shared = {f.name for f in dataclasses.fields(cls)} - {"mesh"}
    values = {name: value for name, value in values.items() if name in shared}
    kind, own = _parts(held.get("plan", functools.partial(cls)), path, cls)
    values |= own
  if kind is not cls:
    raise UserError(f"{path}: holds a {getattr(kind, '__name__', kind)}, `radit {verb}` takes a {cls.__name__}")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise UserError(f"{path}: {cls.__name__} has no field {name!r}{_nearest(name, fields)}")
  default: Any = object.__new__(cls)
  for name, field in fields.items():
    open_value = tyro.MISSING if field.default is dataclasses.MISSING else field.default
    object.__setattr__(default, name, values.get(name, open_value))
  return default


def _parts(made: Any, path: pathlib.Path, cls: type) -> tuple[Any, dict[str, Any]]:
  """Class and values of what a file holds."""
  if isinstance(made, functools.partial) and not made.args:
    return made.func, dict(made.keywords)
  if dataclasses.is_dataclass(made) and not isinstance(made, type):
    return type(made), {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
  raise UserError(f"{path}: needs `config = functools.partial({cls.__name__}, ...)`, or a {cls.__name__}")


def program() -> None:
  """The program `radit`: :func:`main` as a process, which ends at once where it was asked to stop."""
  status = main()
  if status == preemption.STATUS:
    preemption.end(status)
  sys.exit(status)


if __name__ == "__main__":
  program()
