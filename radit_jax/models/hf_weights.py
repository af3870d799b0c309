"""Which parameter lies under which name in Hugging Face files, and the way of the numbers between the two."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike

from radit_jax.errors import UserError
from radit_jax.models.bert import Bert
from radit_jax.models.cross_encoder import CrossEncoder
from radit_jax.models.decoder import Decoder
from radit_jax.models.kernels import LoraKernel, QuantizedKernel, is_matrix, merged
from radit_jax.models.safetensors_files import NamedTensor, StoredTensor
from radit_jax.sharding import gather, parameter_shardings

_FLOATS = ("float32", "bfloat16", "float16")
Body = Decoder | Bert | CrossEncoder
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class InFiles:
  """A parameter that stays in the files until a part of it is asked for, like an array.

  Attributes:
    shape: of the parameter.
    dtype: its type once it is read.
    read: gives any slice.
  """

  shape: tuple[int, ...]
  dtype: np.dtype[Any]
  read: Callable[[Index], np.ndarray[Any, np.dtype[Any]]]

  def __getitem__(self, layer: int) -> np.ndarray[Any, np.dtype[Any]]:
    return self.read((slice(layer, layer + 1), *(slice(None) for _ in self.shape[1:])))[0]

  def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, np.dtype[Any]]:
    whole = self.read(tuple(slice(None) for _ in self.shape))
    return whole if dtype is None else whole.astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one parameter lies in the files.

  Attributes:
    parameter: dotted path of the Variable in the module.
    name: name in the files, with "{}" for the layer of a stacked parameter.
    transposed: files hold [out, in], the module [in, out].
    rows: first and last + 1 of the file's rows that are this parameter's, where several share a tensor.
    first_layer: layers before it have no such tensor, and ones in the module.
  """

  parameter: str
  name: str
  transposed: bool = False
  rows: tuple[int, int] | None = None
  first_layer: int = 0

  @property
  def stacked(self) -> bool:
    return "{}" in self.name


def places(body: Body) -> tuple[Place, ...]:
  """Every parameter of a body, in the names of its family; a name's several places stand in the order of their rows."""
  source = body.config.source
  if isinstance(body, CrossEncoder):
    return _cross_encoder_places(body, source.prefix if source else "bert.")
  if isinstance(body, Bert):
    return _bert_places(body, source.prefix if source else "")
  prefix = source.prefix if source else "model."
  return _decoder_places(body, prefix) if body.config.causal else _modernbert_places(body, prefix)


def _decoder_places(body: Decoder, prefix: str) -> tuple[Place, ...]:
  config, layer = body.config, prefix + "layers.{}."
  q, kv, hidden = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_size

  def kernel(name: str, file: str) -> Place:
    return Place(f"layers.{name}_kernel", f"{layer}{file}.weight", True)

  def parts(file: str, sizes: dict[str, int]) -> list[Place]:
    ends = list(itertools.accumulate(sizes.values()))
    return [
      Place(f"layers.{name}_kernel", f"{layer}{file}.weight", True, (end - size, end))
      for (name, size), end in zip(sizes.items(), ends, strict=True)
    ]

  if config.fused:
    kernels = [
      *parts("self_attn.qkv_proj", {"q": q, "k": kv, "v": kv}),
      *parts("mlp.gate_up_proj", {"gate": hidden, "up": hidden}),
    ]
  else:
    kernels = [kernel(n, f"self_attn.{n}_proj") for n in "qkv"] + [kernel(n, f"mlp.{n}_proj") for n in ("gate", "up")]
  after = "post_attention_layernorm" if not config.post_norms else "pre_feedforward_layernorm"
  found = [
    Place("embedding", f"{prefix}embed_tokens.weight"),
    Place("final_norm", f"{prefix}norm.weight"),
    Place("layers.attention_norm", f"{layer}input_layernorm.weight"),
    *kernels,
    kernel("o", "self_attn.o_proj"),
    Place("layers.mlp_norm", f"{layer}{after}.weight"),
    kernel("down", "mlp.down_proj"),
  ]
  if config.qkv_bias:
    found += [Place(f"layers.{n}_bias", f"{layer}self_attn.{n}_proj.bias") for n in "qkv"]
  if config.o_bias:
    found.append(Place("layers.o_bias", f"{layer}self_attn.o_proj.bias"))
  if config.qk_norm:
    found += [Place(f"layers.{n}_norm", f"{layer}self_attn.{n}_norm.weight") for n in "qk"]
  if config.post_norms:
    found.append(Place("layers.attention_out_norm", f"{layer}post_attention_layernorm.weight"))
    found.append(Place("layers.mlp_out_norm", f"{layer}post_feedforward_layernorm.weight"))
  if body.head is not None:
    found.append(Place("head", "lm_head.weight", True))
  return tuple(found)


def _modernbert_places(body: Decoder, prefix: str) -> tuple[Place, ...]:
  layer, width, hidden = prefix + "layers.{}.", body.config.hidden_size, body.config.intermediate_size
  return (
    Place("embedding", f"{prefix}embeddings.tok_embeddings.weight"),
    Place("embedding_norm", f"{prefix}embeddings.norm.weight"),
    Place("final_norm", f"{prefix}final_norm.weight"),
    Place("layers.attention_norm", f"{layer}attn_norm.weight", first_layer=1),
    *(
      Place(f"layers.{n}_kernel", f"{layer}attn.Wqkv.weight", True, (i * width, (i + 1) * width))
      for i, n in enumerate("qkv")
    ),
    Place("layers.o_kernel", f"{layer}attn.Wo.weight", True),
    Place("layers.mlp_norm", f"{layer}mlp_norm.weight"),
    Place("layers.gate_kernel", f"{layer}mlp.Wi.weight", True, (0, hidden)),
    Place("layers.up_kernel", f"{layer}mlp.Wi.weight", True, (hidden, 2 * hidden)),
    Place("layers.down_kernel", f"{layer}mlp.Wo.weight", True),
  )


_BERT_DENSE = {
  "q": "attention.self.query",
  "k": "attention.self.key",
  "v": "attention.self.value",
  "o": "attention.output.dense",
  "up": "intermediate.dense",
  "down": "output.dense",
}


def _bert_places(body: Bert, prefix: str) -> tuple[Place, ...]:
  layer = prefix + "encoder.layer.{}."
  found = [
    Place("word_embedding", f"{prefix}embeddings.word_embeddings.weight"),
    Place("position_embedding", f"{prefix}embeddings.position_embeddings.weight"),
    Place("type_embedding", f"{prefix}embeddings.token_type_embeddings.weight"),
    Place("embedding_norm", f"{prefix}embeddings.LayerNorm.weight"),
    Place("embedding_norm_bias", f"{prefix}embeddings.LayerNorm.bias"),
  ]
  for name, file in _BERT_DENSE.items():
    found.append(Place(f"layers.{name}_kernel", f"{layer}{file}.weight", True))
    found.append(Place(f"layers.{name}_bias", f"{layer}{file}.bias"))
  for name, file in (("attention_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm")):
    found.append(Place(f"layers.{name}", f"{layer}{file}.weight"))
    found.append(Place(f"layers.{name}_bias", f"{layer}{file}.bias"))
  if body.config.pooler:
    found.append(Place("pooler_kernel", f"{prefix}pooler.dense.weight", True))
    found.append(Place("pooler_bias", f"{prefix}pooler.dense.bias"))
  return tuple(found)


def _cross_encoder_places(model: CrossEncoder, prefix: str) -> tuple[Place, ...]:
  """Those of the body, and the head's: BERT's first layer is its pooling layer, RoBERTa's lies beside its last one."""
  body = [dataclasses.replace(p, parameter=f"body.{p.parameter}") for p in _bert_places(model.body, prefix)]
  bert = model.config.padding_position is None
  dense, out = (f"{prefix}pooler.dense", "classifier") if bert else ("classifier.dense", "classifier.out_proj")
  head = {"dense": dense, "out": out}
  kernels = [Place(f"{name}_kernel", f"{file}.weight", True) for name, file in head.items()]
  return (*body, *kernels, *(Place(f"{name}_bias", f"{file}.bias") for name, file in head.items()))


def fill(
  body: Body,
  tensors: dict[str, StoredTensor],
  path: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
  param_dtype: DTypeLike | None,
  *,
  matrices: DTypeLike | None = None,
  abstract: bool = False,
) -> None:
  """Puts the files' tensors into a module of shapes; everything is checked before the first byte is read.

  Each device's own slice is read from the files and put there before the next one is read, so the host never holds
  more than the model and one slice.

  Args:
    body: made under `nnx.eval_shape`; its Variables get arrays.
    tensors: all tensors of the directory.
    path: the directory, for messages.
    mesh: parameters are placed on it as the sharding table says.
    param_dtype: type of the parameters; None for the files' own.
    matrices: see :func:`held_dtype`.
    abstract: only check; the Variables get an :class:`InFiles`, which :func:`named_tensors` reads.

  Raises:
    UserError: tensors missing, unknown, misshapen, or of a type that is no float; dimensions the mesh does not divide.
  """
  found = places(body)
  if body.config.num_layers > len(tensors):
    raise UserError(f"{path}: config.json has {body.config.num_layers} layers, the files hold {len(tensors)} tensors")
  expected: dict[str, tuple[int, ...]] = {}
  for place in found:
    shape = _variable(body, place).shape
    one = shape[1:] if place.stacked else shape
    one = one[::-1] if place.transposed else one
    for name in _names(place, shape):
      rows = expected[name][0] if name in expected else 0
      expected[name] = one if place.rows is None else (rows + one[0], *one[1:])
  for kind, wrong in (
    ("missing", sorted(expected.keys() - tensors.keys())),
    ("not part of the model that config.json describes", sorted(tensors.keys() - expected.keys())),
  ):
    if wrong:
      more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
      raise UserError(f"{path}: {kind}: {', '.join(wrong[:3])}{more}")
  for name, shape in expected.items():
    if tensors[name].shape != shape:
      raise UserError(f"{path}: {name} has shape {tensors[name].shape}, config.json makes it {shape}")
    if tensors[name].dtype.name not in _FLOATS:
      raise UserError(f"{path}: {name} is {tensors[name].dtype.name}; supported are {', '.join(_FLOATS)}")

  shardings = None if mesh is None else parameter_shardings(body, mesh)
  for place in found:
    variable = _variable(body, place)
    sources = [tensors[name] for name in _names(place, variable.shape)]
    dtype = np.dtype(param_dtype) if param_dtype is not None else jnp.result_type(*(s.dtype for s in sources))
    dtype = held_dtype(variable, dtype, matrices)
    read = _reader(place, sources, dtype, variable.shape)
    if abstract:
      variable.set_value(cast(Any, InFiles(variable.shape, dtype, read)))
    elif shardings is None:
      variable.set_value(jax.device_put(read(tuple(slice(None) for _ in variable.shape))))
    else:
      variable.set_value(_by_shards(read, variable.shape, cast(Any, _variable(shardings, place).get_value())))


def held_dtype(variable: nnx.Variable[Array], dtype: np.dtype[Any], matrices: DTypeLike | None) -> np.dtype[Any]:
  """Type that a parameter is held in.

  Args:
    variable: the parameter.
    dtype: its type without more ado.
    matrices: a narrower one for kernels, embeddings and head. Norms and biases, thousandths of a model, never take it:
      `1 + weight` (Gemma) is float32 arithmetic, and would be rounded. None for no other type.
  """
  narrower = matrices is not None and np.dtype(matrices).itemsize < dtype.itemsize
  return np.dtype(matrices) if narrower and is_matrix(variable) else dtype


def _names(place: Place, shape: tuple[int, ...]) -> list[str]:
  """Names in the files of one parameter, by layer."""
  if not place.stacked:
    return [place.name]
  return [place.name.format(i) for i in range(place.first_layer, shape[0])]


def _reader(
  place: Place, sources: list[StoredTensor], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Callable[[Index], np.ndarray[Any, np.dtype[Any]]]:
  """Reads any slice of a parameter, and only that; no view of a file outlives it."""

  def read(index: Index) -> np.ndarray[Any, np.dtype[Any]]:
    spans = [s.indices(size) for s, size in zip(index, shape, strict=True)]
    out = np.ones([stop - start for start, stop, _ in spans], dtype)
    layers = range(*spans[0]) if place.stacked else [0]
    for target, layer in zip(out if place.stacked else [out], layers, strict=True):
      if layer < place.first_layer:
        continue
      inner = [slice(start, stop) for start, stop, _ in (spans[1:] if place.stacked else spans)]
      if place.transposed:
        inner.reverse()
      if place.rows is not None:
        inner[0] = slice(inner[0].start + place.rows[0], inner[0].stop + place.rows[0])
      _copy(target, sources[layer - place.first_layer].read()[tuple(inner)], place.transposed)
    return out

  return read


def _copy(target: np.ndarray[Any, np.dtype[Any]], stored: np.ndarray[Any, np.dtype[Any]], transposed: bool) -> None:
  """Copies a tensor, turned if the file has it the other way round."""
  if target.dtype == stored.dtype:  # as whole numbers: numpy copies the narrow floats one by one
    bits = np.dtype(f"u{target.dtype.itemsize}")
    target, stored = target.view(bits), stored.view(bits)
  if not transposed:
    target[...] = stored
    return
  # In blocks, which stay in the cache: 0.12 s for 5,632 x 2,048 bfloat16 numbers, 0.39 s in one assignment.
  for start in range(0, len(stored), 256):
    target[:, start : start + 256] = stored[start : start + 256].T


def _by_shards(
  read: Callable[[Index], np.ndarray[Any, np.dtype[Any]]], shape: tuple[int, ...], sharding: jax.sharding.NamedSharding
) -> jax.Array:
  """One array over a mesh, its slices put on their devices one after the other.

  `jax.make_array_from_callback` would hold all slices of the array on the host at once.
  """
  shards = []
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    shards.append(jax.device_put(read(cast(Index, index)), device).block_until_ready())
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def named_tensors(body: Body, dtype: DTypeLike | None = None) -> dict[str, NamedTensor]:
  """Parameters under their names in the files, one layer of one parameter on the host at a time.

  An adapted kernel is merged with its correction layer by layer, as it is read: devices that could hold the model in
  training never hold it a second time.

  Args:
    body: the model. Values that it has left in the files are read from there.
    dtype: type in the files; None for the parameters' own.

  Returns:
    Tensors that are read when they are needed. Several processes must all read them, in one order.

  Raises:
    ValueError: a quantised kernel, which has lost digits that the files still hold, see
      :func:`radit_jax.models.lora.rebased`.
  """
  shares: dict[str, list[tuple[Place, int]]] = {}
  for place in places(body):
    for i, name in enumerate(_names(place, _variable(body, place).shape)):
      shares.setdefault(name, []).append((place, i + place.first_layer))
  found = dict(_named(body, name, parts, dtype) for name, parts in shares.items())
  if body.config.source is not None and body.config.source.tied_head:
    found["lm_head.weight"] = found[f"{body.config.source.prefix}embed_tokens.weight"]
  return found


def _named(body: Body, name: str, parts: list[tuple[Place, int]], dtype: DTypeLike | None) -> tuple[str, NamedTensor]:
  shapes = []
  for place, _ in parts:
    shape = _variable(body, place).shape[1 if place.stacked else 0 :]
    shapes.append(shape[::-1] if place.transposed else shape)
  to = np.dtype(_variable(body, parts[0][0]).get_value().dtype if dtype is None else dtype)

  def read() -> np.ndarray[Any, np.dtype[Any]]:
    pieces = []
    for place, layer in parts:
      value = _value(body, place, layer).astype(to, copy=False)
      pieces.append(value.T if place.transposed else value)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

  return name, NamedTensor(to, (sum(s[0] for s in shapes), *shapes[0][1:]), read)


def _value(body: Body, place: Place, layer: int) -> np.ndarray[Any, np.dtype[Any]]:
  """A parameter on the host, or one layer of a stacked one."""
  value = _variable(body, place).get_value()
  if not place.stacked:
    return cast(np.ndarray[Any, np.dtype[Any]], gather(value))
  one, kernel = value[layer], _found(body, place)
  if isinstance(kernel, LoraKernel):
    # A and B by way of the host: a base in the files meets them there, where the accelerators may have no room for it.
    a, b = gather(kernel.a[...][layer]), gather(kernel.b[...][layer])
    host = jax.local_devices(backend="cpu")[0] if isinstance(value, InFiles) else None
    with jax.default_device(host):
      one = merged(one, a, b, kernel.scale)
  return cast(np.ndarray[Any, np.dtype[Any]], gather(one))


def _variable(module: Any, place: Place) -> nnx.Variable[Array]:
  """The numbers of a parameter, those of the base if it is adapted."""
  found = _found(module, place)
  if isinstance(found, LoraKernel):
    found = found.base
  if isinstance(found, QuantizedKernel):
    raise ValueError(f"{place.parameter}: quantised; give the kernels of the files with `rebased`")
  return found


def _found(module: Any, place: Place) -> Any:
  for name in place.parameter.split("."):
    module = getattr(module, name)
  return module


def kernel_names(body: Body) -> Iterator[tuple[str, str]]:
  """``(parameter, module name in the files with "{}" for the layer)`` of every kernel that has a tensor of its own."""
  for place in places(body):
    if place.parameter.endswith("_kernel") and place.stacked and place.rows is None:
      yield place.parameter, place.name.removesuffix(".weight")
