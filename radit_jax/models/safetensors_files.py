"""safetensors files in and out. Nothing a header says is believed, and nothing allocated, before it fits the file."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from radit_jax.errors import UserError
from radit_jax.files import read_json, write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
#: The size of shard that other tools write too.
MAX_SHARD_BYTES = 5_000_000_000

_DTYPES: dict[str, np.dtype[Any]] = {
  name: np.dtype(t)
  for name, t in {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
  }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Readable(Protocol):
  """A tensor whose values are fetched only when its turn comes."""

  @property
  def dtype(self) -> np.dtype[Any]: ...
  @property
  def shape(self) -> tuple[int, ...]: ...
  def read(self) -> np.ndarray[Any, np.dtype[Any]]: ...


@dataclasses.dataclass(frozen=True)
class NamedTensor:
  """A tensor as a file wants it, made when its turn comes.

  Attributes:
    dtype: its type.
    shape: its shape in the file.
    read: the values.
  """

  dtype: np.dtype[Any]
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray[Any, np.dtype[Any]]]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """One tensor of a file, not read yet.

  Attributes:
    file: the file it lies in.
    dtype: its type.
    shape: its shape.
    offset_bytes: where it starts, counted from the start of the file.
  """

  file: pathlib.Path
  dtype: np.dtype[Any]
  shape: tuple[int, ...]
  offset_bytes: int

  def read(self) -> np.ndarray[Any, np.dtype[Any]]:
    """The values, mapped from the file: copy them before the file may change."""
    if 0 in self.shape:
      return np.zeros(self.shape, self.dtype)
    return np.memmap(self.file, self.dtype, "r", self.offset_bytes, self.shape)


def read_header(file: pathlib.Path) -> dict[str, StoredTensor]:
  """Tensors of one safetensors file, by name, after checking that all of them lie within the file.

  Raises:
    UserError: a file cut short, a header that is no JSON object, an unknown type, a size that does not follow from
      shape and type, tensors that overlap or leave a hole.
  """
  try:
    size = file.stat().st_size
    with file.open("rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise UserError(f"{file}: not safetensors, or cut short: header of {length} bytes in a file of {size}")
      raw = f.read(length)
  except OSError as e:
    raise UserError(f"{file}: cannot be read ({e.strerror})") from None
  try:
    header = json.loads(raw, object_pairs_hook=_no_duplicates)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{file}: header is not JSON ({e})") from None
  if not isinstance(header, dict):
    raise UserError(f"{file}: header is not a JSON object")
  header.pop("__metadata__", None)

  data_bytes = size - 8 - length
  tensors, spans = {}, []
  for name, entry in header.items():
    where = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
      raise UserError(f"{where}: header entry must have dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
      raise UserError(f"{where}: unknown type {entry['dtype']!r}")
    if not _is_counts(entry["shape"]) or not _is_counts(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
      raise UserError(f"{where}: shape {entry['shape']} and data_offsets {entry['data_offsets']} must be whole numbers")
    begin, end = entry["data_offsets"]
    needed = math.prod(entry["shape"]) * dtype.itemsize
    if end > data_bytes:
      raise UserError(f"{where}: ends at byte {end} of {data_bytes}; the file is cut short or damaged")
    if end - begin != needed:
      raise UserError(f"{where}: {end - begin} bytes, but {entry['dtype']} {entry['shape']} takes {needed}")
    tensors[name] = StoredTensor(file, dtype, tuple(entry["shape"]), 8 + length + begin)
    spans.append((begin, end, name))
  at = 0
  for begin, end, name in sorted(spans):
    if begin != at:
      raise UserError(f"{file}: tensor {name!r} starts at byte {begin}, where {at} was due: overlap or hole")
    at = end
  if at != data_bytes:
    raise UserError(f"{file}: {data_bytes - at} bytes after the last tensor belong to none")
  return tensors


def read_directory(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
  """Tensors of a Hugging Face directory: one `model.safetensors`, or shards listed in its index.

  Raises:
    UserError: no such file, a shard outside the directory, a tensor missing from its shard or in two of them.
  """
  root = pathlib.Path(path)
  if (root / SINGLE).exists():
    return read_header(root / SINGLE)
  if not (root / INDEX).exists():
    if any((root / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
      raise UserError(
        f"{root}: only pytorch_model.bin, a pickle, which is never read; `radit convert {root} --out DIR` makes a "
        "directory with safetensors of it"
      )
    raise UserError(f"{root}: no {SINGLE} and no {INDEX}")
  index = read_json(root / INDEX)
  weight_map = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
    raise UserError(f"{root / INDEX}: weight_map must map names of tensors to names of files")
  tensors: dict[str, StoredTensor] = {}
  for shard in sorted(set(weight_map.values())):
    # Compared as text: in the Hub's cache the files are links out of the directory, and those are fine.
    if shard in ("", ".", "..") or "/" in shard or os.sep in shard or "\0" in shard:
      raise UserError(f"{root / INDEX}: weight_map names {shard!r}, which is not a file of this directory")
    found = read_header(root / shard)
    both = sorted(found.keys() & tensors.keys())
    if both:
      raise UserError(f"{root / shard}: tensor {both[0]!r} is in {tensors[both[0]].file.name} too")
    tensors |= found
  for name, shard in weight_map.items():
    if name not in tensors or tensors[name].file.name != shard:
      raise UserError(f"{root / INDEX}: tensor {name!r} is not in {shard}")
  return tensors


def write_directory(
  directory: pathlib.Path | None,
  tensors: Mapping[str, Readable],
  *,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  finite: bool = False,
) -> None:
  """Writes one `model.safetensors`, or shards and their index where they would be more than ``max_shard_bytes``.

  Args:
    directory: where to; it must exist. None only reads the tensors, in the same order: what the others of several
      processes do while one writes.
    tensors: by name; one at a time is read.
    max_shard_bytes: a larger tensor gets a shard of its own.
    finite: refuse NaN and infinity, see :func:`write_file`.
  """
  shards: list[dict[str, Readable]] = [{}]
  room = max_shard_bytes
  for name, tensor in tensors.items():
    size = _num_bytes(tensor)
    if size > room and shards[-1]:
      shards.append({})
      room = max_shard_bytes
    shards[-1][name] = tensor
    room -= size
  if len(shards) == 1:
    write_file(directory and directory / SINGLE, shards[0], finite=finite)
    return
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    write_file(directory and directory / file, shard, finite=finite)
    weight_map |= dict.fromkeys(shard, file)
  total = sum(map(_num_bytes, tensors.values()))
  if directory is not None:
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def write_file(file: pathlib.Path | None, tensors: Mapping[str, Readable], *, finite: bool = False) -> None:
  """Writes one safetensors file, one tensor at a time; without a file, only reads them.

  Raises:
    UserError: with ``finite``, a tensor with NaN or infinity: nobody could use such a model.
  """
  # Wider types first, as the format's own writer does: every tensor then starts on a multiple of its type's size.
  order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  at = 0
  for name in order:
    tensor = tensors[name]
    end = at + _num_bytes(tensor)
    header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
    at = end
  raw = json.dumps(header, separators=(",", ":")).encode()
  raw += b" " * (-len(raw) % 8)
  with (file or pathlib.Path(os.devnull)).open("wb") as f:
    f.write(len(raw).to_bytes(8, "little") + raw)
    for name in order:
      values = np.ascontiguousarray(tensors[name].read()).reshape(-1)
      if finite:
        _check_finite(name, values, file)
      f.write(values.view(np.uint8).data)


#: Elements looked at together: a whole embedding in float32 would be a copy of gigabytes.
_AT_ONCE = 1 << 22


def _check_finite(name: str, values: np.ndarray[Any, np.dtype[Any]], file: pathlib.Path | None) -> None:
  if values.dtype.kind in "biu":
    return
  for start in range(0, values.size, _AT_ONCE):
    finite = np.isfinite(values[start : start + _AT_ONCE])
    if not finite.all():
      place = start + int(np.argmin(finite))
      raise UserError(f"{file or 'export'}: {name} is {values[place]} at element {place}; nothing is written")


def _num_bytes(tensor: Readable) -> int:
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  out = dict(pairs)
  if len(out) != len(pairs):
    raise ValueError("a name stands twice")
  return out


def _is_counts(value: Any) -> bool:
  return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
