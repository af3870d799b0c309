"""The house of docs/architecture.md: a module imports only from floors below its own, and nothing heavy at once."""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "radit_jax"

FLOORS = {
  "losses": 0,
  "parallel_context": 0,
  "sharding": 0,
  "topology": 0,
  "collectives": 0,
  "config": 0,
  "errors": 0,
  "files": 0,
  "hosts": 0,
  "lazy": 0,
  "owner": 0,
  "preemption": 0,
  "process": 0,
  "progress": 0,
  "runs": 0,
  "versions": 0,
  "models": 1,
  "data": 1,
  "retrieval": 2,
  "training": 2,
  "inference": 3,
  "evaluation": 4,
  "demonstrations": 5,
  "plan": 5,
  "verbs": 6,
  "quickstart": 7,
  "cli": 8,
  "display": 8,
}
#: Slow to import, or absent from some machines: imported where they are used.
HEAVY = {
  "scann",
  "tensorflow",
  "tensorflow_datasets",
  "transformers",
  "tokenizers",
  "grain",
  "orbax",
  "torch",
  "array_record",
  "huggingface_hub",
  "markitdown",
  "bm25s",
  "pymilvus",
  "grpc",
  "tensorboardX",
  "wandb",
}
#: Besides these, nothing is imported by floor 8 before its verb is known.
LIGHT = {
  "radit_jax",
  "radit_jax.config",
  "radit_jax.display",
  "radit_jax.errors",
  "radit_jax.hosts",
  "radit_jax.preemption",
  "radit_jax.process",
}

MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def name_of(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
  """First name below the package: the folder or the module of floor FLOORS[...]."""
  return module.split(".")[1]


def imports(path: pathlib.Path, *, everywhere: bool) -> set[str]:
  """Full names of imported modules: at module level, or inside functions too."""
  found: set[str] = set()

  def visit(node: ast.AST) -> None:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.Import):
        found.update(alias.name for alias in child.names)
      elif isinstance(child, ast.ImportFrom):
        assert child.level == 0, f"{path}:{child.lineno}: relative import"
        for alias in child.names:
          full = f"{child.module}.{alias.name}"
          found.add(full if module_exists(full) else str(child.module))
      else:
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere
        never = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not later and not never:
          visit(child)

  visit(ast.parse(path.read_text(encoding="utf-8")))
  return found


def module_exists(name: str) -> bool:
  path = ROOT.joinpath(*name.split("."))
  return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def own(names: set[str]) -> set[str]:
  return {n for n in names if n.startswith("radit_jax.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_stands_on_a_floor_and_imports_from_below(path):
  part = part_of(name_of(path))
  assert part in FLOORS, f"{part} has no floor: give it one here and in docs/architecture.md"
  for name in own(imports(path, everywhere=True)):
    below = part_of(name)
    # Floor 0 holds modules of their own, which may use each other as long as no circle comes of it.
    allowed = below == part or FLOORS[below] < FLOORS[part] or FLOORS[below] == FLOORS[part] in (0, 8)
    assert allowed, f"{name_of(path)} (floor {FLOORS[part]}) imports {name} (floor {FLOORS[below]})"


def test_no_circles():
  """Between modules, imports inside functions included."""
  graph = {name_of(p): own(imports(p, everywhere=True)) - {name_of(p)} for p in MODULES}
  done: set[str] = set()

  def walk(name: str, trail: tuple[str, ...]) -> None:
    assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
    if name not in done:
      for other in sorted(graph.get(name, ())):
        walk(other, (*trail, name))
      done.add(name)

  for name in sorted(graph):
    walk(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
  heavy = {n for n in imports(path, everywhere=False) if n.split(".")[0] in HEAVY | {"rich", "tyro"}}
  # The builders' classes must exist at module level; nobody imports that module at module level.
  assert not heavy or name_of(path) == "radit_jax.data.builders"


def test_what_is_imported_is_declared():
  """By this package itself, also where another dependency would bring it along."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  lines = [
    *project["dependencies"],
    *project["optional-dependencies"]["torch"],
    *project["optional-dependencies"]["gcs"],
    *project["optional-dependencies"]["office"],
    *project["optional-dependencies"]["bm25"],
    *project["optional-dependencies"]["milvus"],
    *project["optional-dependencies"]["tensorboard"],
    *project["optional-dependencies"]["wandb"],
  ]
  declared = {re.match(r"[\w.-]+", line)[0].lower().replace("-", "_") for line in lines}
  distributions = importlib.metadata.packages_distributions()
  for name in {n.split(".")[0] for p in MODULES for n in imports(p, everywhere=True)}:
    if name != "radit_jax" and name not in sys.stdlib_module_names:
      assert declared & {d.lower().replace("-", "_") for d in distributions.get(name, [name])}, name


def test_the_module_that_is_heavy_is_itself_imported_late():
  for path in MODULES:
    assert "radit_jax.data.builders" not in imports(path, everywhere=False), path


def test_losses_know_no_model_and_models_know_no_loss():
  assert not own(imports(PACKAGE / "losses.py", everywhere=True))
  for path in (PACKAGE / "models").glob("*.py"):
    assert not {n for n in own(imports(path, everywhere=True)) if part_of(n) in ("losses", "parallel_context")}, path


def test_the_command_line_imports_nothing_slow_before_its_verb_is_known():
  assert own(imports(PACKAGE / "cli.py", everywhere=False)) | {"radit_jax"} == LIGHT
  assert not own(imports(PACKAGE / "display.py", everywhere=False))
  for path in (PACKAGE / "config").glob("*.py"):
    assert {n for n in own(imports(path, everywhere=True)) if part_of(n) != "config"} <= {"radit_jax.errors"}, path


@pytest.mark.parametrize("module", ["radit_jax", "radit_jax.cli"])
def test_importing_does_not_import_jax(module):
  """Below a second, that is: jax alone takes about one."""
  code = f"import sys, {module}; print(*sorted({{'jax', 'numpy', 'flax', 'transformers'}} & set(sys.modules)))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == ""


def test_only_the_top_floor_prints_or_reads_the_command_line():
  for path in MODULES:
    if part_of(name_of(path)) in ("cli", "display"):
      continue
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
      where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
      assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), f"{where} prints"
      assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv"), f"{where} reads sys.argv"


def test_nothing_is_unpickled_or_executed():
  """Of data, models, indexes and checkpoints nothing is run. A `--config` file is, in cli.py: its user's program."""
  banned = {
    *("eval", "exec", "pickle", "cloudpickle", "dill", "marshal", "runpy"),
    *("allow_pickle", "trust_remote_code", "shell"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
  }
  for path in MODULES:
    allowed = {"runpy"} if name_of(path) == "radit_jax.cli" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      names = set()
      if isinstance(node, ast.Name):
        names = {node.id}
      elif isinstance(node, ast.Attribute):
        names = {ast.unparse(node)}
      elif isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names = {str(node.module)}
      elif isinstance(node, ast.keyword) and not (isinstance(node.value, ast.Constant) and node.value.value is False):
        names = {str(node.arg)}
      assert not names & (banned - allowed), f"{name_of(path)}:{getattr(node, 'lineno', 0)}: {names & banned}"


@pytest.mark.parametrize("part", ["models", "data", "retrieval"])
def test_names_of_a_part_are_there_without_its_modules(part):
  module = importlib.import_module(f"radit_jax.{part}")
  for name in module.__all__:
    assert getattr(module, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    module.nothing  # noqa: B018
