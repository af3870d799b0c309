"""`radit convert`, against transformers: the same tensors under the same names, and nothing of a pickle ever run."""

import builtins
import copy
import functools
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from radit_jax import cli
from radit_jax.config import ConvertConfig
from radit_jax.errors import UserError
from radit_jax.models import safetensors_files, torch_files
from radit_jax.models.pretrained import load_encoder
from radit_jax.verbs.convert import convert

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = transformers.BertConfig(vocab_size=32, max_position_embeddings=48, **SIZES)
LLAMA = transformers.LlamaConfig(vocab_size=32, max_position_embeddings=48, tie_word_embeddings=True, **SIZES)
T5 = transformers.T5Config(vocab_size=32, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4)
encode = jax.jit(lambda encoder, tokens, mask: encoder(tokens, mask))


@pytest.fixture
def source(tmp_path):
  """A retriever as DRAGON+ is published: configuration, vocabulary, and a pickle."""
  torch.manual_seed(0)
  model = transformers.BertModel(copy.deepcopy(BERT)).eval()
  path = tmp_path / "source"
  path.mkdir()
  model.config.architectures = ["BertModel"]
  model.config.save_pretrained(path)
  state = model.state_dict()
  state["embeddings.position_ids"] = torch.arange(48)[None]
  torch.save(state, path / "pytorch_model.bin")
  (path / "vocab.txt").write_text("a\nb\n")
  (path / "README.md").write_text("# hello\n")
  return path


def stored(path):
  return {name: tensor.read() for name, tensor in safetensors_files.read_directory(path).items()}


def refused(source, out, message):
  with pytest.raises(UserError, match=message) as e:
    convert(ConvertConfig(str(source), str(out)))
  assert "\n" not in str(e.value)
  assert not out.exists()
  assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")]


def test_a_converted_retriever_equals_the_one_transformers_loads(source, tmp_path, rng):
  reference = transformers.BertModel.from_pretrained(source).eval()
  result = convert(ConvertConfig(str(source), str(tmp_path / "out")))
  assert {p.name for p in (tmp_path / "out").iterdir()} == {
    *("config.json", "model.safetensors", "vocab.txt", "README.md"),
  }
  theirs = torch.load(source / "pytorch_model.bin", weights_only=True)
  ours = stored(tmp_path / "out")
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(ours[name], tensor.numpy())
  assert result.num_tensors == len(theirs)
  assert result.num_bytes == sum(t.nbytes for t in theirs.values())
  with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "np") as f:
    assert f.metadata() == {"format": "pt"}

  (tmp_path / "out" / "radit.json").write_text('{"pooling": "cls", "normalize": false}')
  tokens = rng.integers(1, 32, (3, 9))
  mask = np.arange(9) < np.array([[9], [5], [1]])
  with torch.no_grad():
    hidden = reference(torch.tensor(tokens), attention_mask=torch.tensor(mask)).last_hidden_state
  np.testing.assert_allclose(encode(load_encoder(tmp_path / "out"), tokens, mask), hidden[:, 0], atol=1e-5)


@pytest.mark.parametrize(
  ("config", "model"),
  [
    (LLAMA, transformers.LlamaForCausalLM),
    (BERT, transformers.BertForMaskedLM),
    (T5, transformers.T5ForConditionalGeneration),
  ],
  ids=lambda v: getattr(v, "__name__", ""),
)
def test_of_tied_weights_the_name_that_transformers_keeps_is_kept(tmp_path, config, model):
  reference = model(copy.deepcopy(config)).to(torch.bfloat16)
  reference.save_pretrained(tmp_path / "theirs")
  theirs = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
  (tmp_path / "source").mkdir()
  torch.save(reference.state_dict(), tmp_path / "source" / "pytorch_model.bin")
  assert len(reference.state_dict()) > len(theirs)
  convert(ConvertConfig(str(tmp_path / "source"), str(tmp_path / "out")))
  ours = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
  assert ours.keys() == theirs.keys()
  assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
  assert {t.dtype for t in ours.values()} == {torch.bfloat16}


def test_tensors_of_every_kind(tmp_path):
  base = torch.arange(24, dtype=torch.float32)
  state = {
    "transposed": base.reshape(4, 6).T,
    "head_of_it": base[:6],
    "tail_of_it": base[6:],
    "expanded": base[:3].expand(2, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "scalar": torch.tensor(3),
    "flag": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "empty_too": torch.zeros(0, 4),
    "eight_bits": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    "half": torch.tensor([1.5], dtype=torch.float16),
  }
  (tmp_path / "s").mkdir()
  torch.save(state, tmp_path / "s" / "pytorch_model.bin")
  convert(ConvertConfig(str(tmp_path / "s"), str(tmp_path / "out")))
  ours = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
  assert ours.keys() == state.keys()
  for name, value in state.items():
    assert ours[name].dtype == value.dtype
    assert ours[name].shape == value.shape
    assert torch.equal(ours[name].to(torch.float32), value.detach().to(torch.float32)), name


def test_files_of_old_torch_that_cannot_be_mapped(source, tmp_path):
  state = torch.load(source / "pytorch_model.bin", weights_only=True)
  torch.save(state, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
  convert(ConvertConfig(str(source), str(tmp_path / "out")))
  ours = stored(tmp_path / "out")
  assert all(np.array_equal(ours[name], tensor.numpy()) for name, tensor in state.items())


def split(source):
  """Rewrites the source's weights as two shards with an index; returns the index."""
  state = torch.load(source / "pytorch_model.bin", weights_only=True)
  (source / "pytorch_model.bin").unlink()
  parts = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
  weight_map = {}
  for i, part in enumerate(parts, start=1):
    torch.save(part, source / f"pytorch_model-0000{i}-of-00002.bin")
    weight_map |= dict.fromkeys(part, f"pytorch_model-0000{i}-of-00002.bin")
  (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
  return weight_map


def test_shards_in_and_shards_out(source, tmp_path, monkeypatch):
  whole = torch.load(source / "pytorch_model.bin", weights_only=True)
  split(source)
  in_small_shards = functools.partial(safetensors_files.write_directory, max_shard_bytes=8_000)
  monkeypatch.setattr(safetensors_files, "write_directory", in_small_shards)
  convert(ConvertConfig(str(source), str(tmp_path / "out")))
  ours = stored(tmp_path / "out")
  assert ours.keys() == whole.keys()
  assert all(np.array_equal(ours[name], tensor.numpy()) for name, tensor in whole.items())
  shards = sorted((tmp_path / "out").glob("*.safetensors"))
  assert [p.name for p in shards] == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  assert len(shards) > 2
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
  assert not list((tmp_path / "out").glob("*.bin*"))
  loaded = transformers.BertModel.from_pretrained(tmp_path / "out")
  assert [n for n, t in loaded.state_dict().items() if not torch.equal(t, whole[n])] == []


class Late:
  """A tensor of bytes that notes when it is read, and how much lay on the disk then."""

  dtype = np.dtype(np.uint8)

  def __init__(self, size, directory, reads):
    self.shape, self.directory, self.reads = (size,), directory, reads

  def read(self):
    self.reads.append(sum(p.stat().st_size for p in self.directory.iterdir()))
    return np.full(self.shape, self.shape[0], np.uint8)


def test_a_shard_is_never_larger_than_asked_unless_one_tensor_is(tmp_path):
  sizes, reads = [3, 3, 4, 1, 12, 1, 9, 2], []
  tensors = {f"t{i}": Late(size, tmp_path, reads) for i, size in enumerate(sizes)}
  safetensors_files.write_directory(tmp_path, tensors, max_shard_bytes=10)
  assert len(reads) == len(sizes)
  assert reads[-1] > reads[3] > reads[0]  # one at a time: what was read is written before the next shard is read
  shards = [safetensors_files.read_header(p) for p in sorted(tmp_path.glob("*.safetensors"))]
  assert [sorted(shard) for shard in shards] == [["t0", "t1", "t2"], ["t3"], ["t4"], ["t5", "t6"], ["t7"]]
  for name, values in stored(tmp_path).items():
    np.testing.assert_array_equal(values, tensors[name].read())
  (tmp_path / "one").mkdir()
  safetensors_files.write_directory(tmp_path / "one", tensors, max_shard_bytes=sum(sizes))
  assert [p.name for p in (tmp_path / "one").iterdir()] == ["model.safetensors"]


def test_what_is_copied(source, tmp_path):
  for name in ("modeling_x.py", "optimizer.pt", "training_args.bin", "flax_model.msgpack", ".gitattributes"):
    (source / name).write_text("x")
  for folder in ("1_Pooling", ".git", "2_Dense", "empty"):
    (source / folder).mkdir()
    (source / folder / "config.json").write_text('{"a": 1}')
  (source / "empty" / "config.json").rename(source / "empty" / "x.py")
  for folder in ("2_Dense", "empty"):  # the second is none that the model is read from
    torch.save({"linear.weight": torch.eye(3)}, source / folder / "pytorch_model.bin")
  modules = [{"type": "m.Transformer", "path": ""}, {"type": "m.Dense", "path": "2_Dense/"}]
  (source / "modules.json").write_text(json.dumps(modules))
  blob = shutil.move(source / "vocab.txt", tmp_path / "blob")  # as in the Hub's cache
  (source / "vocab.txt").symlink_to(blob)
  convert(ConvertConfig(str(source), str(tmp_path / "out")))
  out = tmp_path / "out"
  assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
    *("config.json", "model.safetensors", "vocab.txt", "README.md", "1_Pooling/config.json"),
    *("modules.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
  }
  assert not (out / "vocab.txt").is_symlink()
  assert (out / "vocab.txt").read_text() == "a\nb\n"


# What is refused


class Malicious:
  """Unpickled without care, this makes a file."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (builtins.open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_something_is_refused_and_not_run(source, tmp_path, zipped, monkeypatch):
  made, file = tmp_path / "made", source / "pytorch_model.bin"
  torch.save({"w": torch.ones(2), "x": Malicious(made)}, file, _use_new_zipfile_serialization=zipped)
  torch.load(file, weights_only=False)
  assert made.exists()  # it would
  made.unlink()
  monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
  refused(source, tmp_path / "out", r"pytorch_model.bin: refused.*more than tensors \(it names .*open\)$")
  assert not made.exists()


def test_the_command_line_tells_it_in_one_line(source, tmp_path, capsys):
  torch.save({"w": torch.ones(2), "x": Malicious(tmp_path / "made")}, source / "pytorch_model.bin")
  assert cli.main(["convert", str(source), "--out", str(tmp_path / "out")]) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.count("\n") == 1
  assert captured.err.startswith("radit: error: ")
  assert "weights_only" not in captured.err  # no advice to load it all the same


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ([torch.ones(2)], "holds a list; a table of named tensors is expected"),
    ({"model": {"w": torch.ones(2)}, "step": 3}, "'model' is a dict, not a tensor; is this a training state"),
    ({3: torch.ones(2)}, "3 is a Tensor"),
    ({"w": torch.ones(2, dtype=torch.complex64)}, "w is complex64, torch.strided: safetensors has no such"),
    ({"w": torch.eye(2).to_sparse()}, "w is float32, torch.sparse_coo: safetensors has no such"),
    ({"w": torch.ones(2, device="meta")}, "w is float32.*safetensors has no such"),
  ],
)
def test_tables_that_are_no_weights(source, tmp_path, state, message):
  torch.save(state, source / "pytorch_model.bin")
  refused(source, tmp_path / "out", message)


def test_damaged_files(source, tmp_path):
  file = source / "pytorch_model.bin"
  whole = file.read_bytes()
  for content in (b"", b"nonsense", b"PK", whole[: len(whole) // 2], whole[:-1]):
    file.write_bytes(content)
    refused(source, tmp_path / "out", "refused, as it is damaged")
  file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
  refused(source, tmp_path / "out", "a Git LFS pointer, not the weights; `git lfs pull`")


def test_indexes_that_do_not_fit(source, tmp_path):
  weight_map, out = split(source), tmp_path / "out"
  index, first = source / "pytorch_model.bin.index.json", next(iter(weight_map))

  def wrong(changed, message):
    index.write_text(json.dumps({"weight_map": changed}))
    refused(source, out, message)

  wrong(3, "weight_map must map")
  wrong(weight_map | {"more": weight_map[first]}, "tensor 'more' is not in pytorch_model-00001")
  wrong({n: s for n, s in weight_map.items() if n != first}, f"holds '{first}', which .* does not place there")
  wrong(weight_map | {first: "../x.bin"}, "'../x.bin', which is not a file of this directory")
  wrong(weight_map | {first: "gone.bin"}, "gone.bin: cannot be read")


def test_directories_that_are_not_to_be_converted(source, tmp_path):
  out = tmp_path / "out"
  refused(tmp_path / "nowhere", out, "no such directory")
  refused(source, source / "inside", "lies in .*; name a directory outside of it")
  (source / "modules.json").write_text('[{"path": "../elsewhere"}]')
  refused(source, out, "modules.json: path '../elsewhere' lies outside the directory")
  (source / "modules.json").unlink()
  (source / "model.safetensors").write_text("x")
  refused(source, out, "holds model.safetensors already; it can be used as it is")
  for name in ("model.safetensors", "pytorch_model.bin"):
    (source / name).unlink()
  refused(source, out, "no pytorch_model.bin, so nothing to convert")


def test_an_existing_directory_is_not_touched(source, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine").write_text("x")
  with pytest.raises(UserError, match="out: exists; remove it, or name another directory"):
    convert(ConvertConfig(str(source), str(tmp_path / "out")))
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
  real = pathlib.Path.open

  def full(self, mode="r", *args, **kwargs):
    if self.suffix == ".safetensors" and "w" in mode:
      raise OSError(28, "No space left on device", str(self))
    return real(self, mode, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, "open", full)
  with pytest.raises(OSError, match="No space"):
    convert(ConvertConfig(str(source), str(tmp_path / "out")))
  assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_without_torch_one_line_says_what_to_install(source, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  refused(source, tmp_path / "out", r'torch is not installed.*pip install "radit_jax\[torch\]"')
  monkeypatch.undo()
  monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
  refused(source, tmp_path / "out", r"torch 2.5.1\+cpu: before 2.6")
  with pytest.raises(UserError, match="before 2"):
    torch_files.require_torch()
