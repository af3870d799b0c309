"""LoRA kernels as a directory that the PEFT library reads."""

import functools
import os
import pathlib
from typing import Any

import numpy as np

from radit_jax import hosts
from radit_jax.errors import UserError
from radit_jax.files import atomic_directory, write_json
from radit_jax.models import hf_weights, safetensors_files
from radit_jax.models.lora import adapters, body_of
from radit_jax.sharding import gather

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def fused_targets(model: Any) -> list[str]:
  """Adapted kernels that share a tensor of the files with another one (Phi-3, ModernBERT): PEFT adapts whole modules.

  A model that has any is exported merged only.
  """
  names = _module_names(model)
  return [_target(path) for path in adapters(model) if path not in names]


def adapted_modules(model: Any) -> dict[str, str]:
  """Adapted kernels by their path in the model, with the names of their modules in transformers, "{}" for the layer.

  Raises:
    UserError: a kernel that shares a tensor of the files with another one: PEFT adapts whole modules.
  """
  names, fused = _module_names(model), fused_targets(model)
  if fused:
    whole = [_target(path) for path in names]
    raise UserError(
      f"lora.targets: {', '.join(fused)} lie in one tensor in this model's files, and PEFT adapts whole ones; "
      f"choose from {', '.join(whole)}"
    )
  return {path: names[path] for path in adapters(model)}


def save_adapter(model: Any, path: str | os.PathLike[str], *, base: str) -> None:
  """Writes ``adapter_model.safetensors`` and ``adapter_config.json``, whole or not at all; in all processes alike.

  Args:
    model: a decoder or an encoder from :func:`radit_jax.models.lora.add_lora`, trained or not.
    path: the directory.
    base: the model that was adapted, a directory or a Hub id, with or without ``@revision``.

  Raises:
    UserError: see :func:`adapted_modules`.
  """
  modules, kernels = adapted_modules(model), adapters(model)
  tensors = {}
  for parameter, kernel in kernels.items():
    for part, stacked in (("lora_A", kernel.a), ("lora_B", kernel.b)):
      for i, value in enumerate(gather(stacked[...])):
        read = functools.partial(np.transpose, value)
        tensor = hf_weights.NamedTensor(value.dtype, value.shape[::-1], read)
        tensors[f"base_model.model.{modules[parameter].format(i)}.{part}.weight"] = tensor
  first = next(iter(kernels.values()))
  num_layers, _, rank = first.a.shape
  name, _, revision = (base, "", "") if pathlib.Path(base).is_dir() else base.partition("@")
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM" if hasattr(model, "logits") else "FEATURE_EXTRACTION",
    "base_model_name_or_path": name,
    "revision": revision or None,
    "r": rank,
    "lora_alpha": first.scale * rank,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "target_modules": _target_modules(modules, _module_names(model), num_layers),
  }
  with hosts.one_writes() as mine:
    if mine:
      with atomic_directory(path) as d:
        safetensors_files.write_file(d / WEIGHTS, tensors, finite=True)
        write_json(d / CONFIG, config)


def _module_names(model: Any) -> dict[str, str]:
  """Kernels that are modules of their own, in the names of `AutoModelForCausalLM` or, for an encoder, `AutoModel`."""
  body = body_of(model)
  source = body.config.source
  # Files of a model with a task's head put a prefix before the transformer, which alone has none.
  prefix = source.prefix if source is not None and body is not model else ""
  return {parameter: name.removeprefix(prefix) for parameter, name in hf_weights.kernel_names(body)}


def _target(parameter: str) -> str:
  return parameter.removeprefix("layers.").removesuffix("_kernel")


def _target_modules(adapted: dict[str, str], all_modules: dict[str, str], num_layers: int) -> list[str]:
  """Modules as PEFT finds them, by the end of their name.

  The last part of the name where one module of a layer bears it (`q_proj`), else every module by its full name: BERT
  has three called `dense`, another in its pooler, and even `output.dense` is the end of two names.
  """
  ends = [name.rpartition(".")[2] for name in all_modules.values()]
  out = []
  for name in adapted.values():
    end = name.rpartition(".")[2]
    out += [end] if ends.count(end) == 1 else [name.format(i) for i in range(num_layers)]
  return sorted(out)
