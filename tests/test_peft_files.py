"""Adapters and merged models, loaded by the libraries that define the formats: the same numbers as ours."""

import itertools
import json

import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from flax import nnx

from radit_jax.config import LoraConfig
from radit_jax.errors import UserError
from radit_jax.models.lora import add_lora, body_of
from radit_jax.models.peft_files import fused_targets, save_adapter
from radit_jax.models.pretrained import load_encoder, load_generator, save_encoder, save_generator

VOCAB, WIDTH, HIDDEN = 32, 24, 40
TOKENS = np.random.default_rng(0).integers(3, VOCAB, (3, 9)).astype(np.int32)
MASK = np.arange(9) < np.array([[9], [6], [4]])


@pytest.fixture(scope="module")
def tokenizer():
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "</s>": 2}, "[UNK]"))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="[PAD]", unk_token="[UNK]"
  )


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory):
  config = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=HIDDEN,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=48,
  )
  torch.manual_seed(1)
  path = tmp_path_factory.mktemp("llama")
  transformers.LlamaForCausalLM(config).save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
  config = transformers.BertConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=HIDDEN,
    max_position_embeddings=48,
    initializer_range=0.2,
  )
  torch.manual_seed(1)
  path = tmp_path_factory.mktemp("bert")
  transformers.BertModel(config).save_pretrained(path)
  (path / "radit.json").write_text(json.dumps({"pooling": "mean", "normalize": False}))
  return path


def adapted_of(model, targets):
  """With B away from 0, as after some training."""
  adapted = add_lora(model, LoraConfig(rank=3, alpha=7.5, targets=targets), rngs=nnx.Rngs(0))
  keys = itertools.count()
  for kernel in vars(body_of(adapted).layers).values():
    if hasattr(kernel, "b"):
      kernel.b.set_value(0.5 * jax.random.normal(jax.random.key(next(keys)), kernel.b.shape))
  return adapted


def torch_logits(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def torch_vectors(model):
  mask = torch.tensor(MASK)
  with torch.no_grad():
    hidden = model.eval()(torch.tensor(TOKENS, dtype=torch.long), attention_mask=mask.long()).last_hidden_state
  return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


@pytest.mark.parametrize("targets", [(), ("q", "v"), ("o", "down")])
def test_peft_and_transformers_compute_our_logits(tmp_path, tokenizer, llama_path, targets):
  generator = load_generator(llama_path)
  adapted = adapted_of(generator, targets)
  ours = np.asarray(adapted.logits(adapted(TOKENS)))
  assert np.abs(ours - np.asarray(generator.logits(generator(TOKENS)))).max() > 0.01
  save_adapter(adapted, tmp_path / "adapter", base=str(llama_path))
  base = transformers.LlamaForCausalLM.from_pretrained(llama_path)
  np.testing.assert_allclose(torch_logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), ours, atol=1e-4)
  save_generator(adapted, tokenizer, tmp_path / "merged")
  merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
  np.testing.assert_allclose(torch_logits(merged), ours, atol=1e-4)


def test_auto_class_finds_the_base_by_itself(tmp_path, llama_path):
  adapted = adapted_of(load_generator(llama_path), ("q",))
  save_adapter(adapted, tmp_path, base=str(llama_path))
  model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
  np.testing.assert_allclose(torch_logits(model), np.asarray(adapted.logits(adapted(TOKENS))), atol=1e-4)


@pytest.mark.parametrize("targets", [(), ("q", "v"), ("down",)])
def test_peft_and_transformers_compute_our_vectors(tmp_path, tokenizer, bert_path, targets):
  encoder = load_encoder(bert_path)
  adapted = adapted_of(encoder, targets)
  ours = np.asarray(adapted(TOKENS, MASK))
  assert np.abs(ours - np.asarray(encoder(TOKENS, MASK))).max() > 0.01
  save_adapter(adapted, tmp_path / "adapter", base=str(bert_path))
  base = transformers.BertModel.from_pretrained(bert_path)
  model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
  np.testing.assert_allclose(torch_vectors(model), ours, atol=1e-4)
  # Nothing but the targets got an adapter, though PEFT goes by the ends of names.
  held = {n.split(".lora_")[0] for n in model.state_dict() if ".lora_" in n}
  assert len(held) == 2 * (len(targets) or 6)
  save_encoder(adapted, tokenizer, tmp_path / "merged")
  np.testing.assert_allclose(
    torch_vectors(transformers.BertModel.from_pretrained(tmp_path / "merged")), ours, atol=1e-4
  )


def test_files_hold_the_layout_of_peft(tmp_path, llama_path):
  adapted = adapted_of(load_generator(llama_path), ("down",))
  save_adapter(adapted, tmp_path, base="some/base@v2")
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 7.5, ["down_proj"])
  assert (config["base_model_name_or_path"], config["revision"]) == ("some/base", "v2")
  tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
  a = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
  b = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
  assert (a.shape, b.shape, len(tensors)) == ((3, HIDDEN), (WIDTH, 3), 4)
  np.testing.assert_array_equal(a, np.asarray(adapted.layers.down_kernel.a[...][1]).T)


@pytest.mark.parametrize("kind", ["phi3", "qwen3_embedding"])
def test_other_families(tmp_path, tokenizer, kind):
  """Phi-3's files hold q, k, v as one module, which PEFT cannot adapt in parts; a decoder that embeds has no prefix."""
  sizes = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
  }
  torch.manual_seed(1)
  if kind == "phi3":
    reference = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, bos_token_id=1, eos_token_id=2))
    reference.save_pretrained(tmp_path / "base")
    generator = load_generator(tmp_path / "base")
    with pytest.raises(UserError, match=r"gate, k, q, up, v lie in one tensor .* choose from o, down"):
      save_adapter(adapted_of(generator, ()), tmp_path / "adapter", base="base")
    everything = adapted_of(generator, ())
    assert set(fused_targets(everything)) == {"q", "k", "v", "gate", "up"}
    save_generator(everything, tokenizer, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(torch_logits(merged), np.asarray(everything.logits(everything(TOKENS))), atol=1e-4)
    adapted = adapted_of(generator, ("o", "down"))
    assert not fused_targets(adapted)
    save_adapter(adapted, tmp_path / "adapter", base="base")
    model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
    np.testing.assert_allclose(torch_logits(model), np.asarray(adapted.logits(adapted(TOKENS))), atol=1e-4)
  else:
    reference = transformers.Qwen3Model(transformers.Qwen3Config(**sizes, head_dim=8))
    reference.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "radit.json").write_text(json.dumps({"pooling": "mean", "normalize": False}))
    adapted = adapted_of(load_encoder(tmp_path / "base"), ())
    save_adapter(adapted, tmp_path / "adapter", base="base")
    model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
    np.testing.assert_allclose(torch_vectors(model), np.asarray(adapted(TOKENS, MASK)), atol=1e-4)
