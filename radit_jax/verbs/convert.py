"""`radit convert`: weights that are pickles are read once, as tensors and nothing else, and written as safetensors."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from radit_jax.config import ConvertConfig
from radit_jax.errors import UserError
from radit_jax.files import atomic_directory, copy
from radit_jax.models import hub, safetensors_files, torch_files
from radit_jax.progress import Progress, silent

WEIGHTS = (safetensors_files.SINGLE, safetensors_files.INDEX, torch_files.SINGLE, torch_files.INDEX)
#: Not copied: code, pickles, and the same weights for other programs.
LEFT_OUT = (
  *(".py", ".pyc"),
  *(".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".ot"),
  *(".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".gguf"),
)


@dataclasses.dataclass(frozen=True)
class ConvertResult:
  """What was written.

  Attributes:
    out: the directory.
    num_tensors: tensors in its safetensors files.
    num_bytes: their size.
  """

  out: str
  num_tensors: int
  num_bytes: int

  def summary(self) -> str:
    """One line for the command line."""
    return f"{self.num_tensors} tensors, {self.num_bytes / 1e6:.1f} MB, as safetensors: {self.out}"


def convert(config: ConvertConfig, *, progress: Progress = silent) -> ConvertResult:
  """Writes a copy of a directory with its `pytorch_model.bin` as safetensors, whole or not at all.

  Every tensor keeps its name, type and values. Configuration, tokenizer and the like are copied, in subdirectories
  too; code, pickles and hidden files are not.

  Args:
    config: see :class:`radit_jax.config.ConvertConfig`.
    progress: see :class:`radit_jax.progress.Progress`.

  Raises:
    UserError: torch is not installed; no such model, or one without `pytorch_model.bin`; a file that holds more than
      tensors (nothing of it is run); an ``out`` that exists or lies in the source.
  """
  torch_files.require_torch()  # before a long download
  out = pathlib.Path(config.out)
  if out.exists():
    raise UserError(f"{out}: exists; remove it, or name another directory")
  source = hub.local_directory(config.source, pickles=True)
  if out.resolve().is_relative_to(source.resolve()):
    raise UserError(f"{out}: lies in {source}, which is copied there; name a directory outside of it")
  folders = list(_folders_with_pickles(source))
  tensors = {folder: torch_files.read_directory(source / folder) for folder in folders}
  every = [tensor for of_folder in tensors.values() for tensor in of_folder.values()]
  with atomic_directory(out) as target:
    _copy_others(source, target)
    done = 0
    for folder, of_folder in tensors.items():
      progress("convert", done, len(every), "tensors")
      (target / folder).mkdir(parents=True, exist_ok=True)
      safetensors_files.write_directory(target / folder, of_folder)
      done += len(of_folder)
    progress("convert", done, len(every), "tensors")
  return ConvertResult(str(out), len(every), sum(tensor.value.nbytes for tensor in every))


def _folders_with_pickles(source: pathlib.Path) -> Iterator[pathlib.Path]:
  """Relative folders to convert: sentence-transformers keeps a module's weights in a folder of its own."""
  found = False
  for folder in map(pathlib.Path, hub.weight_folders(source)):
    holds = {name for name in WEIGHTS if (source / folder / name).exists()}
    if holds & {safetensors_files.SINGLE, safetensors_files.INDEX}:
      raise UserError(f"{source / folder}: holds {safetensors_files.SINGLE} already; it can be used as it is")
    if holds:
      found = True
      yield folder
  if not found:
    raise UserError(f"{source}: no {torch_files.SINGLE}, so nothing to convert")


def _copy_others(source: pathlib.Path, target: pathlib.Path) -> None:
  for root, folders, names in os.walk(source):
    folders[:] = [folder for folder in folders if not folder.startswith(".")]
    folder = pathlib.Path(root).relative_to(source)
    for name in names:
      if not name.startswith(".") and not name.endswith(LEFT_OUT):
        (target / folder).mkdir(parents=True, exist_ok=True)
        copy(source / folder / name, target / folder / name)  # of a link, as in the Hub's cache, its file
