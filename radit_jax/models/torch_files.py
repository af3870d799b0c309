"""Weights as PyTorch saves them, `pytorch_model.bin`: pickles, of which nothing but tensors is ever made."""

import dataclasses
import pathlib
import re
import warnings
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from radit_jax.errors import UserError
from radit_jax.files import read_json

if TYPE_CHECKING:
  import torch

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

#: Types that safetensors files can hold; those NumPy knows under the same name are found by it.
_OTHER_TYPES = {
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
}
_SAME_NAMES = (
  *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
  *("float16", "float32", "float64"),
)


@dataclasses.dataclass(frozen=True)
class TorchTensor:
  """A tensor of a file, mapped and not read; a :class:`radit_jax.models.safetensors_files.Readable`.

  Attributes:
    value: the tensor, on the CPU.
    dtype: its type.
  """

  value: "torch.Tensor"
  dtype: np.dtype[Any]

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self.value.shape)

  def read(self) -> np.ndarray[Any, np.dtype[Any]]:
    """The values; of a tensor that lies in its file in order, the file's own bytes."""
    import torch

    # As bytes: NumPy has no bfloat16, and torch does not hand it one.
    raw = self.value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.view(self.dtype).reshape(self.shape)


def read_directory(root: pathlib.Path) -> dict[str, TorchTensor]:
  """Tensors of `pytorch_model.bin`, or of the shards that its index lists; of names for one tensor, the first.

  Tied weights share their storage in these files, and safetensors has no such thing. The first name is the one that
  transformers keeps: a model lists its embedding before the head that is tied to it.

  Raises:
    UserError: torch is missing or too old; no such file, or one that holds anything but named tensors; a shard outside
      the directory, a tensor missing from its shard or in two of them.
  """
  if (root / SINGLE).exists():
    return _read_file(root / SINGLE)
  index = read_json(root / INDEX)
  weight_map = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
    raise UserError(f"{root / INDEX}: weight_map must map names of tensors to names of files")
  tensors: dict[str, TorchTensor] = {}
  dropped: set[str] = set()
  for shard in sorted(set(weight_map.values())):
    if pathlib.PurePath(shard).name != shard or shard == "..":
      raise UserError(f"{root / INDEX}: weight_map names {shard!r}, which is not a file of this directory")
    stored = _load(root / shard)
    for name in stored:
      if weight_map.get(name) != shard:
        raise UserError(f"{root / shard}: holds {name!r}, which {INDEX} does not place there")
    kept = _first_names(root / shard, stored)
    dropped |= stored.keys() - kept.keys()
    tensors |= kept
  for name, shard in weight_map.items():
    if name not in tensors and name not in dropped:
      raise UserError(f"{root / INDEX}: tensor {name!r} is not in {shard}")
  return tensors


def _read_file(file: pathlib.Path) -> dict[str, TorchTensor]:
  return _first_names(file, _load(file))


def _load(file: pathlib.Path) -> dict[str, "torch.Tensor"]:
  torch = require_torch()
  try:
    with file.open("rb") as f:
      head = f.read(20)
  except OSError as e:
    raise UserError(f"{file}: cannot be read ({e.strerror})") from None
  if head.startswith(b"version https://git-"):
    raise UserError(f"{file}: a Git LFS pointer, not the weights; `git lfs pull` fetches them")
  # Files of torch before 1.6 are no zip archives, and cannot be mapped.
  mapped = head.startswith(b"PK")
  try:
    with warnings.catch_warnings(action="ignore"):
      stored = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
  except Exception as e:  # UnpicklingError, RuntimeError, EOFError, KeyError, ...: all mean a file that is refused
    raise UserError(f"{file}: refused, as it is damaged or holds more than tensors ({_reason(e)})") from None
  if not isinstance(stored, dict):
    raise UserError(f"{file}: holds a {type(stored).__name__}; a table of named tensors is expected")
  for name, tensor in stored.items():
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
      raise UserError(
        f"{file}: {name!r} is a {type(tensor).__name__}, not a tensor; is this a training state? "
        "Save the model's state_dict alone"
      )
  return stored


def _first_names(file: pathlib.Path, stored: dict[str, "torch.Tensor"]) -> dict[str, TorchTensor]:
  torch = require_torch()
  tensors: dict[str, TorchTensor] = {}
  seen = set()
  for name, tensor in stored.items():
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or kind not in (*_SAME_NAMES, *_OTHER_TYPES) or tensor.device.type != "cpu":
      raise UserError(f"{file}: {name} is {kind}, {tensor.layout}: safetensors has no such tensors")
    # Equal views, not only equal storage: a slice of another tensor is a tensor of its own.
    view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), kind)
    if view not in seen or tensor.numel() == 0:
      seen.add(view)
      tensors[name] = TorchTensor(tensor.detach(), np.dtype(_OTHER_TYPES.get(kind, kind)))
  return tensors


def require_torch() -> Any:
  """The library; without it nothing of this module works.

  Raises:
    UserError: it is not installed, or too old to be trusted with foreign files.
  """
  try:
    import torch
  except ImportError:
    raise UserError(
      'torch is not installed; pytorch_model.bin is read with it: pip install "radit_jax[torch]"'
    ) from None
  if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):
    raise UserError(
      f"torch {torch.__version__}: before 2.6 a file could run code in spite of weights_only; install 2.6"
    )
  return torch


def _reason(error: Exception) -> str:
  """What torch found, without its advice to load the file unsafely."""
  text = str(error)
  if called := re.search(r"GLOBAL (\S+)", text):
    return f"it names {called[1]}"
  found = re.search(r"Unsupported[^\n.]*|(?!Weights only load failed)\A[^\n.]+", text)
  return found[0].strip() if found else type(error).__name__
