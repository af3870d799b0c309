"""The file format against the library that defines it, and every way a file can be damaged."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from radit_jax.errors import UserError
from radit_jax.models.safetensors_files import NamedTensor, read_directory, write_directory, write_file


def readable(tensors):
  return {name: NamedTensor(t.dtype, t.shape, lambda t=t: t) for name, t in tensors.items()}


def _raw(header, data=b"", *, length=None):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "header of 0 bytes in a file of 0"),
    (_raw(b"", length=2**63), "header of 9223372036854775808 bytes in a file of 8"),
    (_raw({"a": _entry()}, b"12345678")[:-30], "cut short"),
    (_raw({"a": _entry()}, b"1234"), "ends at byte 8 of 4"),
    (_raw({"a": _entry()}, b"12345678xx"), "2 bytes after the last tensor"),
    (_raw({"a": _entry(shape=(2**40, 2**40))}, b"12345678"), "takes 4835703278458516698824704"),
    (_raw({"a": _entry(shape=(-2,))}, b"12345678"), "must be whole numbers"),
    (_raw({"a": _entry(offsets=(8, 0))}, b"12345678"), "-8 bytes"),
    (_raw({"a": _entry(shape=(True, 2))}, b"12345678"), "must be whole numbers"),
    (_raw({"a": _entry(dtype="C128")}, b"12345678"), "unknown type 'C128'"),
    (_raw({"a": _entry(dtype=["F32"])}, b"12345678"), "unknown type"),
    (_raw({"a": {"dtype": "F32"}}, b"12345678"), "must have dtype, shape and data_offsets"),
    (_raw({"a": _entry(), "b": _entry()}, b"12345678"), "overlap or hole"),
    (_raw({"a": _entry(), "b": _entry(offsets=(12, 20))}, b"1" * 20), "overlap or hole"),
    (_raw(b"[1]"), "not a JSON object"),
    (_raw(b"{nope"), "not JSON"),
    (_raw(b"\xff\xfe"), "not JSON"),
    (_raw(b"[" * 100_000), "not JSON"),
    (_raw(b'{"a": 1, "a": 2}'), "a name stands twice"),
  ],
)
def test_damaged_files_are_refused_before_anything_is_read(tmp_path, content, message):
  (tmp_path / "model.safetensors").write_bytes(content)
  with pytest.raises(UserError, match=message):
    read_directory(tmp_path)


def test_every_cut_of_a_file_is_noticed(tmp_path):
  file = tmp_path / "model.safetensors"
  write_file(file, readable({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}))
  whole = file.read_bytes()
  for size in range(len(whole)):
    file.write_bytes(whole[:size])
    with pytest.raises(UserError):
      read_directory(tmp_path)


def test_files_are_the_librarys_files(tmp_path, rng):
  tensors = {
    "b": rng.normal(size=(3, 5)).astype(np.float32),
    "a": rng.normal(size=7).astype(ml_dtypes.bfloat16),
    "c": np.zeros((0, 4), np.float16),
    "transposed": rng.normal(size=(3, 5)).astype(np.float32).T,
    "scalar": np.array(3, np.int64),
  }
  write_file(tmp_path / "model.safetensors", readable(tensors))
  theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  ours = {name: t.read() for name, t in read_directory(tmp_path).items()}
  assert theirs.keys() == ours.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(theirs[name], value)
    np.testing.assert_array_equal(ours[name], value)
    assert ours[name].dtype == value.dtype


def test_shards_hold_everything_once_and_no_more_than_they_may(tmp_path):
  tensors = {f"t{i}": np.full((4, i + 1), i, np.float32) for i in range(6)}  # 16, 32, ... 96 bytes
  write_directory(tmp_path, readable(tensors), max_shard_bytes=100)
  files = sorted(f.name for f in tmp_path.glob("*.safetensors"))
  assert files == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors.values())}
  assert index["weight_map"]["t2"] == files[0]  # 16 + 32 + 48 bytes
  found = read_directory(tmp_path)
  assert found.keys() == tensors.keys()
  for name, t in tensors.items():
    np.testing.assert_array_equal(found[name].read(), t)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_where_asked(tmp_path, monkeypatch, dtype, value):
  monkeypatch.setattr("radit_jax.models.safetensors_files._AT_ONCE", 4)
  bad = np.zeros((3, 5), dtype)
  bad[2, 1] = value
  tensors = readable({"counts": np.arange(3), "good": np.ones(7, dtype), "bad": bad})
  write_directory(tmp_path, tensors)
  with pytest.raises(UserError, match=r"bad is -?(nan|inf) at element 11; nothing is written"):
    write_directory(tmp_path, tensors, finite=True)
  write_directory(tmp_path, {name: t for name, t in tensors.items() if name != "bad"}, finite=True)
