"""LoRA: small trained corrections of frozen kernels, which may be quantised; saving a model merges them."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from radit_jax.config import LoraConfig
from radit_jax.errors import UserError
from radit_jax.models.kernels import LoraKernel, QuantizedFormat, QuantizedKernel, quantize

#: A decoder or an encoder whose kernels are `layers.{target}_kernel`, each stacked ``[L, in, out]``.
Model = TypeVar("Model", bound=nnx.Module)

_SUFFIX = "_kernel"


def add_lora(model: Model, config: LoraConfig, *, rngs: nnx.Rngs) -> Model:
  """Freezes a model and puts a trained correction of low rank beside its kernels.

  A is random and B is 0, so the model computes what it computed before. Everything else becomes Frozen, in the
  type it has: training steps leave it alone, checkpoints do not hold it.

  Args:
    model: left as it was; the result shares its arrays.
    config: rank, alpha and targets.
    rngs: keys of A.

  Raises:
    UserError: a target the model does not have; a rank of 0.

  Example:
    >>> from radit_jax.models.decoder import Decoder, DecoderConfig
    >>> adapted = add_lora(Decoder(DecoderConfig.tiny(50), rngs=nnx.Rngs(0)), LoraConfig(rank=4), rngs=nnx.Rngs(1))
    >>> adapted.layers.q_kernel.a.shape
    (2, 128, 4)
  """
  if not config.rank:
    raise UserError("lora.rank = 0: there is nothing to add")
  adapted = frozen(model)
  for target in _targets(model, config.targets):
    base = getattr(body_of(adapted).layers, target + _SUFFIX)
    w = base.codes if isinstance(base, QuantizedKernel) else base
    layers, in_axis, out_axis = w.logical_axes
    num_layers, fan_in, fan_out = w.shape
    a = jax.random.normal(rngs.params(), (num_layers, fan_in, config.rank)) / fan_in**0.5
    b = jnp.zeros((num_layers, config.rank, fan_out))
    kernel = LoraKernel(
      base,
      nnx.Param(a, logical_axes=(layers, in_axis, None)),
      nnx.Param(b, logical_axes=(layers, None, out_axis)),
      config.alpha / config.rank,
    )
    setattr(body_of(adapted).layers, target + _SUFFIX, kernel)
  return adapted


def rebased(model: Model, base: Model) -> Model:
  """The corrections of one model beside the kernels of another.

  A quantised base is only what was trained on: it has lost digits that the files still hold, so what is saved are the
  weights of the files with the corrections.

  Args:
    model: from :func:`add_lora`; left as it was.
    base: the model it was made of; its values may be left in the files (``abstract`` of
      :func:`radit_jax.models.pretrained.load_generator`).
  """
  out = frozen(base)
  for name, kernel in _kernels(model).items():
    if isinstance(kernel, LoraKernel):
      w = getattr(body_of(out).layers, name)
      setattr(body_of(out).layers, name, LoraKernel(w, kernel.a, kernel.b, kernel.scale))
  return out


def quantize_base(model: Model, form: QuantizedFormat) -> Model:
  """Freezes a model and stores all its kernels in 8 or 4 bits; embeddings, norms, biases and head stay as they are.

  Args:
    model: left as it was.
    form: "int8" or "nf4".

  Raises:
    UserError: for nf4, a kernel whose number of rows 64 does not divide.
  """
  quantized = frozen(model)
  for name, kernel in _kernels(model).items():
    try:
      setattr(body_of(quantized).layers, name, quantize(kernel[...], kernel.logical_axes, form))
    except UserError as e:
      raise UserError(f"{name}: {e}") from e
  return quantized


class Frozen(nnx.Variable[Array]):
  """A Param that is left alone while corrections of it are trained."""


def frozen(model: Model) -> Model:
  """The same model with a Frozen in place of every Param, sharing its arrays: no training step changes it."""
  return _replaced(model, nnx.Param, Frozen)


def body_of(model: Any) -> Any:
  """The transformer: an encoder is one with a pooling of its hidden states."""
  return getattr(model, "body", model)


def adapters(model: nnx.Module) -> dict[str, LoraKernel]:
  """Adapted kernels by their dotted path in the body."""
  return {f"layers.{n}": k for n, k in _kernels(model).items() if isinstance(k, LoraKernel)}


def _replaced(model: Model, old: type[nnx.Variable[Any]], new: type[nnx.Variable[Any]]) -> Model:
  def changed(leaf: Any) -> Any:
    return new(leaf.get_value(), **leaf.get_metadata()) if isinstance(leaf, old) else leaf

  return jax.tree.map(changed, model, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _kernels(model: nnx.Module) -> dict[str, Any]:
  return {name: value for name, value in sorted(vars(body_of(model).layers).items()) if name.endswith(_SUFFIX)}


def _targets(model: nnx.Module, wanted: tuple[str, ...]) -> tuple[str, ...]:
  there = tuple(name.removesuffix(_SUFFIX) for name in _kernels(model))
  for target in wanted:
    if target not in there:
      raise UserError(f"lora.targets: {target!r} is none of {', '.join(there)}")
  return wanted or there
