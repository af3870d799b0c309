# ruff: noqa: E402
"""Eight simulated CPU devices, set up before jax is imported, and the meshes over them."""

import atexit
import gc
import os
import pathlib
import shutil
import signal
import tempfile
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
# Level 0: the programs of tests are small, and compiling them takes longer than running them (half the time of a file).
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# A shell starts what it puts in the background with Ctrl-C ignored, and no shell below can trap it again: tests that
# send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules, and all workers, make many of the same programs: each is compiled once. Not in the processes that tests
# start, as some CPUs complain of such programs on stderr (see `radit_jax.process.keep_programs`), which tests read.
PROGRAMS = "RADIT_JAX_TEST_PROGRAMS"
if PROGRAMS not in os.environ:
  os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="radit_jax_programs.")
  atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)

import jax
import numpy as np
import pytest
from hypothesis import settings
from jax.sharding import Mesh

from radit_jax.config import MeshConfig
from radit_jax.sharding import make_mesh

jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The same cases in every run of one commit; `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("suite", derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module() -> Iterator[None]:
  """Programs go with their module: each holds memory maps, of which a process may have 65,530, and the compiler
  ends the process with a segmentation fault when there are no more."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[None]:
  """The programs in benchmarks/ can be imported."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(pathlib.Path(__file__).parent.parent / "benchmarks"))
    yield


@pytest.fixture
def rng() -> np.random.Generator:
  """The same numbers in every run of a test."""
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def mesh1() -> Mesh:
  """One device."""
  return make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh8() -> Mesh:
  """Eight devices: data 2 x fsdp 2 x tensor 2."""
  return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory) -> Iterator[str]:
  """Address of a Milvus that listens on this machine."""
  from milvus_server import running

  with running(tmp_path_factory.mktemp("milvus")) as server:
    yield server.uri


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> dict[str, str]:
  """Corpus, questions, and two untrained models as Hugging Face directories."""
  from tiny import make_parts

  return make_parts(tmp_path_factory.mktemp("parts"))
