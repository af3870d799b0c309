"""Every family against the library that defines it: random models with awkward shapes, in and out again.

`python tests/test_families.py` prints the table of docs/models.md.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile

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

from radit_jax.config import EmbeddingOptions
from radit_jax.errors import UserError
from radit_jax.inference.decode import greedy_decode, prefill, score_candidates
from radit_jax.models.decoder import Decoder
from radit_jax.models.hf_weights import named_tensors
from radit_jax.models.pretrained import load_encoder, load_generator, load_tokenizer, save_encoder, save_generator
from radit_jax.parallel_context import ParallelContextBatch, answer_log_likelihoods
from radit_jax.retrieval.embed import embed_queries
from radit_jax.training.step import ralt_objective, score_step

VOCAB, TOKENS = 61, 23
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(VOCAB - 4))]
#: 6 query heads on 2 key heads (groups of 3), heads wider than hidden_size / heads, windows shorter than the row.
SHAPE = {
  "vocab_size": VOCAB,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 2,
  "eos_token_id": 3,
  "pad_token_id": 0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
LONGROPE = {
  "rope_type": "longrope",
  "rope_theta": 10_000.0,
  "short_factor": [1.0, 1.5],
  "long_factor": [2.0, 3.0],
  "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
BERT = {**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}, "type_vocab_size": 2, "layer_norm_eps": 1e-6}


@dataclasses.dataclass(frozen=True)
class Case:
  """A family: the reference's model class, its config class, and what is awkward."""

  model: str
  config: str
  fields: dict

  def make(self, seed=0):
    torch.manual_seed(seed)
    config = getattr(transformers, self.config)(**{**SHAPE, **self.fields}, attn_implementation="eager")
    reference = getattr(transformers, self.model)(config).eval()
    with torch.no_grad():  # far from the usual small weights, so that norms, gates, caps and biases all count
      for name, p in reference.named_parameters():
        noise = torch.randn_like(p)
        p.copy_(0.25 * noise if p.ndim > 1 else (p + 0.2 * noise if "bias" not in name else 0.2 * noise))
    return reference


GENERATORS = {
  "Llama, tied": Case("LlamaForCausalLM", "LlamaConfig", {"head_dim": 10, "tie_word_embeddings": True}),
  "Llama 3, scaled": Case("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3}),
  "Llama, linear, biases": Case(
    "LlamaForCausalLM",
    "LlamaConfig",
    {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}, "attention_bias": True},
  ),
  "Mistral, window": Case("MistralForCausalLM", "MistralConfig", {"head_dim": 6, "sliding_window": 7}),
  "Qwen 2.5": Case("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
  "Qwen 2, window from layer 1": Case(
    "Qwen2ForCausalLM", "Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
  ),
  "Qwen 3": Case("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 10}),
  "Gemma 2": Case(
    "Gemma2ForCausalLM",
    "Gemma2Config",
    {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "layer_types": MIXED},
  ),
  "Gemma 3": Case(
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    {
      **GEMMA,
      "layer_types": MIXED,
      "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
      },
    },
  ),
  "Phi-3": Case("Phi3ForCausalLM", "Phi3Config", {"sliding_window": 9}),
  "Phi-3, longrope": Case(
    "Phi3ForCausalLM",
    "Phi3Config",
    {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32, "max_position_embeddings": 64},
  ),
}
ENCODERS = {
  "BERT": (Case("BertModel", "BertConfig", BERT), "mean"),
  "RoBERTa": (Case("RobertaModel", "RobertaConfig", {**BERT, "type_vocab_size": 1, "pad_token_id": 1}), "cls"),
  "XLM-RoBERTa": (Case("XLMRobertaModel", "XLMRobertaConfig", {**BERT, "type_vocab_size": 1}), "mean"),
  "DPR": (Case("DPRQuestionEncoder", "DPRConfig", BERT), "cls"),
  "ModernBERT": (
    Case(
      "ModernBertModel",
      "ModernBertConfig",
      {**BERT, "local_attention": 6, "cls_token_id": 2, "sep_token_id": 3, "reference_compile": False},
    ),
    "cls",
  ),
  "Qwen3-Embedding": (Case("Qwen3Model", "Qwen3Config", {"head_dim": 10}), "last"),
  "E5-Mistral": (Case("MistralModel", "MistralConfig", {"sliding_window": 7}), "last"),
}


def batches(rng):
  """Token ids and masks: full rows, padded on the right, padded on the left."""
  tokens = rng.integers(4, VOCAB, (3, TOKENS))
  lengths = np.array([TOKENS, 3, 14])
  right = np.arange(TOKENS) < lengths[:, None]
  return {"right": (tokens, right), "left": (tokens, right[:, ::-1])}


def positions(mask):
  return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


@jax.jit
def run(generator, tokens, mask, at):
  hidden = generator(tokens, positions=at, segment_ids=mask.astype(jnp.int32))
  return hidden, generator.logits(hidden)


@jax.jit
def run_cached(generator, tokens, mask, at):
  """A prompt of ten, then the rest token by token."""
  cache = generator.init_cache(tokens.shape[0], tokens.shape[1])
  segments = mask.astype(jnp.int32)
  first, cache = generator(tokens[:, :10], positions=at[:, :10], segment_ids=segments[:, :10], cache=cache)

  def step(cache, column):
    token, segment, position = (x[:, None] for x in column)
    hidden, cache = generator(token, positions=position, segment_ids=segment, cache=cache)
    return cache, hidden[:, 0]

  _, rest = jax.lax.scan(step, cache, jax.tree.map(lambda x: x[:, 10:].T, (tokens, segments, at)))
  return jnp.concatenate([first, rest.swapaxes(0, 1)], axis=1)


def answer_batch(tokens, mask):
  """The last two tokens of each row are its answer; three passages of one example."""
  ends = mask.sum(1) - 1
  return ParallelContextBatch(
    tokens=jnp.asarray(tokens, jnp.int32),
    positions=jnp.asarray(positions(mask), jnp.int32),
    segment_ids=jnp.asarray(mask, jnp.int32),
    answer_positions=jnp.asarray(ends[:, None] + np.array([-2, -1])),
    answer_tokens=jnp.asarray(np.stack([row[e - 1 : e + 1] for row, e in zip(tokens, ends, strict=True)])),
    answer_slot=jnp.arange(3)[:, None] + jnp.zeros((1, 2), jnp.int32),
    context_mask=jnp.ones((1, 3), bool),
  )


def reference_answers(logits, tokens, mask):
  """Log-likelihood of the same answers, token by token."""
  log_probs = torch.log_softmax(logits, -1)
  ends = mask.sum(1) - 1
  return torch.stack([sum(log_probs[i, t - 1, tokens[i, t]] for t in (e - 1, e)) for i, e in enumerate(ends)])


def measure_generator(case, path, rng):
  """Largest differences from the reference."""
  reference = case.make()
  reference.save_pretrained(path)
  generator = load_generator(path)
  worst = {"hidden": 0.0, "logits": 0.0, "answer": 0.0, "cache": 0.0}
  for tokens, mask in batches(rng).values():
    with torch.no_grad():
      out = reference(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        position_ids=torch.tensor(positions(mask)),
        output_hidden_states=True,
      )
    args = (tokens.astype(np.int32), mask, positions(mask).astype(np.int32))
    hidden, logits = (np.asarray(x) for x in run(generator, *args))
    theirs = out.logits.numpy()
    assert np.std(theirs[mask]) > 0.1
    np.testing.assert_array_equal(logits[mask].argmax(-1), theirs[mask].argmax(-1))
    found = {
      "hidden": hidden - out.hidden_states[-1].numpy(),
      "logits": logits - theirs,
      "cache": np.asarray(run_cached(generator, *args)) - hidden,
    }
    for name, difference in found.items():
      worst[name] = max(worst[name], np.abs(difference[mask]).max())
    if mask[0, -1] and mask[1, 0]:  # padded on the right: the layout of a ParallelContextBatch
      batch = answer_batch(tokens, mask)
      ours = np.asarray(jax.jit(answer_log_likelihoods)(generator, batch).log_likelihood)[0]
      worst["answer"] = max(worst["answer"], np.abs(ours - reference_answers(out.logits, tokens, mask).numpy()).max())
  return worst, reference, generator


def tokenizer(kind="words"):
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  if kind == "wrapped":
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
    cls_token="[CLS]", sep_token="[SEP]",
  )  # fmt: skip


def same_files(a, b):
  """Tensor names and bytes, and config.json to the byte."""
  first, second = (safetensors.numpy.load_file(p / "model.safetensors") for p in (a, b))
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.dtype == second[name].dtype
    assert value.tobytes() == second[name].tobytes(), name
  assert (a / "config.json").read_bytes() == (b / "config.json").read_bytes()


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_equals_transformers(name, tmp_path, rng):
  case = GENERATORS[name]
  worst, reference, generator = measure_generator(case, tmp_path / "in", rng)
  assert max(worst.values()) <= 1e-4, worst
  save_generator(generator, tokenizer(), tmp_path / "out")
  same_files(tmp_path / "in", tmp_path / "out")
  again, report = getattr(transformers, case.model).from_pretrained(
    tmp_path / "out", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values())
  tokens = torch.tensor(rng.integers(4, VOCAB, (2, TOKENS)))
  with torch.no_grad():
    assert torch.equal(again.eval()(tokens).logits, reference(tokens).logits)
  assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 3


@pytest.mark.parametrize("name", ["Llama 3, scaled", "Qwen 2.5", "Gemma 2", "Gemma 3"])
def test_a_generator_that_is_only_read_says_the_same_from_half_the_bytes(name, tmp_path, rng):
  """Bit for bit: matrices are cast when they are read, in place of where they are used; norms and biases are not."""
  GENERATORS[name].make().save_pretrained(tmp_path)
  plain = load_generator(tmp_path, dtype="bfloat16")
  read = load_generator(tmp_path, dtype="bfloat16", forward_only=True)
  types = {path[-1]: variable[...].dtype for path, variable in nnx.to_flat_state(nnx.state(read))}
  assert {jnp.dtype(jnp.float32)} == {x.dtype for x in jax.tree.leaves(plain)}
  assert {n for n, dtype in types.items() if dtype == jnp.float32} == {n for n in types if n.endswith(("norm", "bias"))}
  assert {n for n, dtype in types.items() if dtype == jnp.bfloat16} >= {"embedding", "q_kernel", "down_kernel"}
  tokens, mask = batches(rng)["right"]
  lengths = jnp.asarray(mask.sum(axis=1))
  candidates = jnp.asarray(rng.integers(4, VOCAB, (3, 2, 4)))

  def answers(generator):
    prefilled = prefill(generator, jnp.asarray(tokens), lengths, max_new_tokens=6)
    counts = jnp.full((3, 2), 4)
    return (
      score_step(generator, answer_batch(tokens, mask)),
      greedy_decode(generator, prefilled, max_new_tokens=6, end_ids=(3,)),
      score_candidates(generator, prefilled, candidates, counts, jnp.asarray(2)),
    )

  jax.tree.map(np.testing.assert_array_equal, answers(read), answers(plain))


def gradient_errors(case, path, rng):
  """Relative error of the gradient of the RALT loss, by tensor, against torch's autograd."""
  reference = case.make()
  reference.save_pretrained(path)
  tokens, mask = batches(rng)["right"]
  logits = reference(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int))).logits
  (-reference_answers(logits, tokens, mask).sum() / 6).backward()

  def loss(generator, batch):
    total, count = ralt_objective(generator, batch)
    return total / count

  gradient = jax.jit(jax.grad(loss))(load_generator(path), answer_batch(tokens, mask))
  ours = {name: t.read() for name, t in named_tensors(gradient).items()}
  theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
  assert ours.keys() == theirs.keys()
  return {n: np.linalg.norm(ours[n] - g) / np.linalg.norm(g) for n, g in theirs.items() if np.linalg.norm(g) > 1e-6}


@pytest.mark.parametrize("name", ["Qwen 2.5", "Gemma 2"])
def test_ralt_gradient_equals_autograd(name, tmp_path, rng):
  errors = gradient_errors(GENERATORS[name], tmp_path, rng)
  assert len(errors) > 30
  assert max(errors.values()) <= 1e-3, max(errors.items(), key=lambda e: e[1])


TEXTS = ["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15", "w20", "w7 w8 w9"]


def reference_vectors(path):
  """What sentence-transformers makes of a directory: of questions, and of passages."""
  model = sentence_transformers.SentenceTransformer(
    str(path), device="cpu", model_kwargs={"attn_implementation": "eager"}
  )
  return model.encode_query(TEXTS), model.encode_document(TEXTS)


def our_vectors(path, side="query", **options):
  """What `index` and `retrieve` make of texts."""
  encoder = load_encoder(path, options=EmbeddingOptions(**options))
  return embed_queries(
    encoder,
    load_tokenizer(path),
    TEXTS,
    max_tokens=encoder.config.max_tokens,
    prompt=getattr(encoder.config, f"{side}_prompt"),
    batch_size=4,
  )


def measure_encoder(case, pooling, path, rng):
  reference = case.make()
  reference.save_pretrained(path)
  tokenizer("wrapped").save_pretrained(path)
  encoder = load_encoder(path, options=EmbeddingOptions(pooling=pooling, normalize=False))
  hidden_of = jax.jit(
    lambda body, t, m: body(t, segment_ids=m.astype(jnp.int32)) if isinstance(body, Decoder) else body(t, m)
  )
  worst = 0.0
  padding = reference.config.pad_token_id
  for tokens, mask in batches(rng).values():
    tokens = np.where(mask, tokens, padding)
    with torch.no_grad():
      inside = reference.question_encoder if case.model == "DPRQuestionEncoder" else reference
      extra = {"position_ids": torch.tensor(np.arange(TOKENS)[None] + 0 * mask)} if case.model != "BertModel" else {}
      extra = {} if case.model.startswith(("Roberta", "XLM", "DPR", "Bert")) else extra
      if case.model == "DPRQuestionEncoder":
        inside = reference.question_encoder.bert_model
      out = inside(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int)), **extra)
    ours = np.asarray(hidden_of(encoder.body, tokens.astype(np.int32), mask))
    worst = max(worst, np.abs(ours - out.last_hidden_state.numpy())[mask].max())
  return worst, encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_equals_transformers_and_sentence_transformers(name, tmp_path, rng):
  case, pooling = ENCODERS[name]
  worst, encoder = measure_encoder(case, pooling, tmp_path / "in", rng)
  assert worst <= 1e-4
  save_encoder(encoder, load_tokenizer(tmp_path / "in"), tmp_path / "out")
  if case.model != "DPRQuestionEncoder":
    same_files(tmp_path / "in", tmp_path / "out")
  theirs, _ = reference_vectors(tmp_path / "out")
  np.testing.assert_allclose(our_vectors(tmp_path / "out"), theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["XLM-RoBERTa", "Qwen3-Embedding"])
def test_prompts_and_limits_are_those_of_sentence_transformers(name, tmp_path):
  case, pooling = ENCODERS[name]
  case.make().save_pretrained(tmp_path / "in")
  tokenizer("wrapped").save_pretrained(tmp_path / "in")
  options = {"query_prompt": "w30 w31 : ", "passage_prompt": "w32 ", "max_tokens": 12}
  encoder = load_encoder(tmp_path / "in", options=EmbeddingOptions(pooling=pooling, normalize=True, **options))
  save_encoder(encoder, load_tokenizer(tmp_path / "in"), tmp_path / "out")
  assert load_encoder(tmp_path / "out").config == encoder.config
  questions, passages = reference_vectors(tmp_path / "out")
  assert np.abs(questions - passages).max() > 0.01
  np.testing.assert_allclose(our_vectors(tmp_path / "out"), questions, atol=1e-5)
  np.testing.assert_allclose(our_vectors(tmp_path / "out", "passage"), passages, atol=1e-5)


def test_only_the_first_dimensions(tmp_path):
  case, pooling = ENCODERS["Qwen3-Embedding"]
  case.make().save_pretrained(tmp_path / "in")
  tokenizer("wrapped").save_pretrained(tmp_path / "in")
  encoder = load_encoder(tmp_path / "in", options=EmbeddingOptions(pooling=pooling, normalize=True, dimensions=7))
  assert encoder.dimensions == 7
  save_encoder(encoder, load_tokenizer(tmp_path / "in"), tmp_path / "out")
  model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
  theirs = model.encode_query(TEXTS, truncate_dim=7, normalize_embeddings=True)
  np.testing.assert_allclose(our_vectors(tmp_path / "out"), theirs, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)


def test_contriever_is_a_bert_under_another_name(tmp_path):
  """Its files name no pooling, so it is asked for."""
  ENCODERS["BERT"][0].make().save_pretrained(tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Contriever"]}))
  with pytest.raises(UserError, match=r"give --embedding.pooling cls, mean or last"):
    load_encoder(tmp_path)
  assert load_encoder(tmp_path, options=EmbeddingOptions(pooling="mean", normalize=False)).config.pooling == "mean"


def test_weights_of_other_heads_are_passed_over(tmp_path):
  """Encoders are also published as the masked language models they were: a prefix before each name, a head beside."""
  torch.manual_seed(0)
  masked = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**{**SHAPE, **BERT, "pad_token_id": 1})).eval()
  masked.save_pretrained(tmp_path / "in")
  tokenizer("wrapped").save_pretrained(tmp_path / "in")
  encoder = load_encoder(tmp_path / "in", options=EmbeddingOptions(pooling="cls", normalize=False))
  tokens = np.arange(4, 14)[None]
  with torch.no_grad():
    theirs = masked.roberta(torch.tensor(tokens)).last_hidden_state[:, 0]
  np.testing.assert_allclose(encoder(tokens, tokens > 0), theirs, atol=1e-5)
  save_encoder(encoder, load_tokenizer(tmp_path / "in"), tmp_path / "out")
  np.testing.assert_allclose(our_vectors(tmp_path / "out"), reference_vectors(tmp_path / "out")[0], atol=1e-5)


def main():
  """The table of docs/models.md."""
  print("| family | hidden states | logits | answer log-likelihood | decoding from the cache |\n|---|---|---|---|---|")
  for name, case in GENERATORS.items():
    with tempfile.TemporaryDirectory() as d:
      worst, _, _ = measure_generator(case, pathlib.Path(d), np.random.default_rng(0))
    print(f"| {name} | {worst['hidden']:.0e} | {worst['logits']:.0e} | {worst['answer']:.0e} | {worst['cache']:.0e} |")
  for name, (case, pooling) in ENCODERS.items():
    with tempfile.TemporaryDirectory() as d:
      worst, _ = measure_encoder(case, pooling, pathlib.Path(d), np.random.default_rng(0))
    print(f"| {name} ({pooling}) | {worst:.0e} | | | |")


if __name__ == "__main__":
  sys.exit(main())
