"""Which parameter lies under which name in Hugging Face files, and the way of the numbers between the two."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from radit_jax.errors import UserError
from radit_jax.models.bert import BertEncoder
from radit_jax.models.llama import Llama
from radit_jax.models.safetensors_files import StoredTensor
from radit_jax.sharding import parameter_shardings

_FLOATS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where one parameter lies in the files.

  Attributes:
    parameter: dotted path of the Variable in the module.
    name: name in the files, with "{}" for the layer of a stacked parameter.
    transposed: files hold [out, in], the module [in, out].
  """

  parameter: str
  name: str
  transposed: bool = False

  @property
  def stacked(self) -> bool:
    return "{}" in self.name


_LLAMA = (
  _Place("embedding", "model.embed_tokens.weight"),
  _Place("final_norm", "model.norm.weight"),
  _Place("layers.attention_norm", "model.layers.{}.input_layernorm.weight"),
  _Place("layers.q_kernel", "model.layers.{}.self_attn.q_proj.weight", True),
  _Place("layers.k_kernel", "model.layers.{}.self_attn.k_proj.weight", True),
  _Place("layers.v_kernel", "model.layers.{}.self_attn.v_proj.weight", True),
  _Place("layers.o_kernel", "model.layers.{}.self_attn.o_proj.weight", True),
  _Place("layers.mlp_norm", "model.layers.{}.post_attention_layernorm.weight"),
  _Place("layers.gate_kernel", "model.layers.{}.mlp.gate_proj.weight", True),
  _Place("layers.up_kernel", "model.layers.{}.mlp.up_proj.weight", True),
  _Place("layers.down_kernel", "model.layers.{}.mlp.down_proj.weight", True),
)
_LLAMA_HEAD = (_Place("head", "lm_head.weight", True),)

_BERT = (
  _Place("word_embedding", "embeddings.word_embeddings.weight"),
  _Place("position_embedding", "embeddings.position_embeddings.weight"),
  _Place("type_embedding", "embeddings.token_type_embeddings.weight"),
  _Place("embedding_norm", "embeddings.LayerNorm.weight"),
  _Place("embedding_norm_bias", "embeddings.LayerNorm.bias"),
  _Place("layers.q_kernel", "encoder.layer.{}.attention.self.query.weight", True),
  _Place("layers.q_bias", "encoder.layer.{}.attention.self.query.bias"),
  _Place("layers.k_kernel", "encoder.layer.{}.attention.self.key.weight", True),
  _Place("layers.k_bias", "encoder.layer.{}.attention.self.key.bias"),
  _Place("layers.v_kernel", "encoder.layer.{}.attention.self.value.weight", True),
  _Place("layers.v_bias", "encoder.layer.{}.attention.self.value.bias"),
  _Place("layers.o_kernel", "encoder.layer.{}.attention.output.dense.weight", True),
  _Place("layers.o_bias", "encoder.layer.{}.attention.output.dense.bias"),
  _Place("layers.attention_norm", "encoder.layer.{}.attention.output.LayerNorm.weight"),
  _Place("layers.attention_norm_bias", "encoder.layer.{}.attention.output.LayerNorm.bias"),
  _Place("layers.up_kernel", "encoder.layer.{}.intermediate.dense.weight", True),
  _Place("layers.up_bias", "encoder.layer.{}.intermediate.dense.bias"),
  _Place("layers.down_kernel", "encoder.layer.{}.output.dense.weight", True),
  _Place("layers.down_bias", "encoder.layer.{}.output.dense.bias"),
  _Place("layers.mlp_norm", "encoder.layer.{}.output.LayerNorm.weight"),
  _Place("layers.mlp_norm_bias", "encoder.layer.{}.output.LayerNorm.bias"),
)
_BERT_POOLER = (
  _Place("pooler_kernel", "pooler.dense.weight", True),
  _Place("pooler_bias", "pooler.dense.bias"),
)


def fill(
  module: Llama | BertEncoder,
  tensors: dict[str, StoredTensor],
  path: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
) -> None:
  """Puts the files' tensors into a module of shapes; everything is checked before the first byte is read.

  Args:
    module: made under `nnx.eval_shape`; its Variables get arrays of the files' types.
    tensors: all tensors of the directory.
    path: the directory, for messages.
    mesh: parameters are placed on it as the sharding table says.

  Raises:
    UserError: tensors missing, unknown, misshapen, or of a type that is no float; dimensions the mesh does not divide.
  """
  places = _places(module)
  names: dict[_Place, list[str]] = {}
  expected: dict[str, tuple[int, ...]] = {}
  for place in places:
    shape = _variable(module, place).shape
    names[place] = [place.name.format(i) for i in range(shape[0])] if place.stacked else [place.name]
    one = shape[1:] if place.stacked else shape
    expected |= dict.fromkeys(names[place], one[::-1] if place.transposed else one)
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

  shardings = None if mesh is None else parameter_shardings(module, mesh)
  for place in places:
    variable = _variable(module, place)
    sources = [tensors[name] for name in names[place]]
    dtype = jnp.result_type(*(s.dtype for s in sources))
    # One copy on the host per parameter, never a second of the whole model; and no view of the file outlives it.
    value = np.empty(variable.shape, dtype)
    for target, source in zip(value if place.stacked else [value], sources, strict=True):
      target[...] = source.read().T if place.transposed else source.read()
    sharding = None if shardings is None else _variable(shardings, place).get_value()
    variable.set_value(jax.device_put(value, sharding))


def named_tensors(module: Llama | BertEncoder) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
  """Parameters under their names in the files, as views in the files' layout."""
  out = {}
  for place in _places(module):
    value = np.asarray(_variable(module, place)[...])
    for i, one in enumerate(value if place.stacked else [value]):
      out[place.name.format(i)] = one.T if place.transposed else one
  return out


def _places(module: Llama | BertEncoder) -> tuple[_Place, ...]:
  if isinstance(module, Llama):
    return _LLAMA if module.head is None else _LLAMA + _LLAMA_HEAD
  return _BERT + _BERT_POOLER if module.config.pooler else _BERT


def _variable(module: Any, place: _Place) -> nnx.Variable[Array]:
  for name in place.parameter.split("."):
    module = getattr(module, name)
  return module
