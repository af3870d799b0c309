"""TFDS builders of the stores, without TensorFlow: only ``array_record`` files, read back as random-access sources.

Imported inside functions, because importing tensorflow_datasets takes most of a second.
"""

import abc
import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from radit_jax import files
from radit_jax.errors import UserError

SPLIT = "rows"


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Nothing: no public bucket knows these data, and asking leaves an empty temporary directory behind."""


class _Writer(writer.ExampleWriter):
  """Features in the order of their names. By default each process has an order of its own, and so other bytes."""

  def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
    parse = tf_example_pb2.Example.FromString
    return super().write(path, ((key, parse(e).SerializeToString(deterministic=True)) for key, e in examples))


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Rows keep the order they are given in: their numbers are what other stores and indexes refer to.

  Args:
    data_dir: directory of the store.
    records: one dict of features per row; only needed to write.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, data_dir: str | os.PathLike[str], records: Iterable[dict[str, Any]] = ()) -> None:
    self._records = records
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _example_writer(self) -> writer.ExampleWriter:
    return _Writer(self.info.file_format)

  @abc.abstractmethod
  def _features(self) -> dict[str, Any]:
    """Name of each field of a record -> its TFDS feature."""

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(self._features())
    return _Info(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    return {SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(self._records)


class RaditPassages(_Builder):
  """Passages; metadata is JSON text, as its names differ from corpus to corpus."""

  def _features(self) -> dict[str, Any]:
    text = tfds.features.Text
    return {"id": text(), "title": text(), "text": text(), "metadata": text()}


class RaditRetrieved(_Builder):
  """Questions with the passages found for them; their answer texts are JSON text, which earlier stores may lack."""

  def _features(self) -> dict[str, Any]:
    text = tfds.features.Text
    return {
      "id": text(),
      "question": text(),
      "query": text(),
      "group": text(),
      "category": text(),
      "context": text(),
      "answers": tfds.features.Sequence(text()),
      "answer_texts": text(),
      "gold_rows": _vector(np.int64),
      "passage_rows": _vector(np.int64),
      "scores": _vector(np.float32),
      "valid": _vector(np.bool_),
    }


class RaditScores(_Builder):
  """The teacher's log-likelihoods."""

  def _features(self) -> dict[str, Any]:
    return {
      "id": tfds.features.Text(),
      "log_likelihood": _vector(np.float32),
      "num_tokens": _vector(np.int32),
      "valid": _vector(np.bool_),
    }


def _vector(dtype: Any) -> Any:
  return tfds.features.Tensor(shape=(None,), dtype=dtype)


def write(builder: type[_Builder], directory: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
  """Writes all records; an exception of their iterator comes out as it is."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it prints where it "downloads" to
    builder(data_dir=directory, records=records).download_and_prepare()
  shutil.rmtree(directory / "downloads", ignore_errors=True)


def split_info(builder: type[_Builder], directory: pathlib.Path) -> Any:
  """What TFDS knows of the rows of a store: ``shard_lengths`` and ``num_bytes``."""
  return builder(data_dir=directory).info.splits[SPLIT]


def read_prepared(directory: pathlib.Path, split: str | None = None) -> tuple[str, Any]:
  """A split of a data set that TFDS has prepared in ArrayRecord, and its name; read without TensorFlow.

  Args:
    directory: the prepared folder.
    split: None for "train", or for the only one.

  Raises:
    UserError: no such data set, one that wants code of others to be read, another file format, or no such split.
  """
  _check_classes(directory / "features.json")
  try:
    builder = tfds.builder_from_directory(str(directory))
    names = sorted(builder.info.splits)
    wanted = split or ("train" if len(names) != 1 else names[0])
    if wanted not in names:
      raise UserError(f"{directory}: no split {wanted!r}, has {', '.join(names) or 'none'}")
    source = builder.as_data_source(split=wanted)
    len(source)  # what is wrong with its files is said here
    return wanted, source
  except UserError:
    raise
  except Exception as e:  # TFDS raises what it likes; none of it is the caller's traceback
    message = " ".join(str(e).split())[:200]
    raise UserError(f"{directory}: no folder that TFDS can read in ArrayRecord form ({message})") from None


def _check_classes(features: pathlib.Path) -> None:
  """TFDS imports whatever classes this file names: only its own features are let through."""
  names: list[str] = []

  def collect(value: Any) -> None:
    if isinstance(value, dict):
      names.extend(v for k, v in value.items() if k in ("pythonClassName", "type") and isinstance(v, str))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
      collect(inner)

  collect(files.read_json(features))
  for name in names:
    if "." in name and not name.startswith("tensorflow_datasets.core.features."):
      raise UserError(
        f"{features.parent}: features.json names the class {name!r}, which is none of TFDS's own features"
      )


def read(builder: type[_Builder], directory: pathlib.Path) -> Any:
  """The records as a source with ``len`` and ``__getitems__(rows)``; texts come back as bytes."""
  # Our own class, not `builder_from_directory`: that one imports whatever classes the directory's features.json names.
  return builder(data_dir=directory).as_data_source(split=SPLIT)
