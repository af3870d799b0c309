"""The quickstart's "pre-trained" parts, as data and numbers: tokenizers, shapes, and the batches they learn from."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from radit_jax.config import LoopConfig, OptimizerConfig, PromptConfig, TuningConfig
from radit_jax.models.bert import BertConfig
from radit_jax.models.decoder import DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig
from radit_jax.quickstart.world import World, pretraining_texts, tokenizer_texts, warm_start_pairs

# The longest texts of `pretraining_texts`, and the longest rows of the warm start.
GENERATOR_TOKENS = 28
ENCODER_TOKENS = 16
GENERATOR_LOOP = LoopConfig(steps=850, batch_size=48, log_every=20, evaluate_every=425)
GENERATOR_OPTIMIZER = OptimizerConfig(peak_lr=3e-3, floor_lr=3e-4, warmup_steps=50)
ENCODER_LOOP = LoopConfig(steps=400, batch_size=64, log_every=20, evaluate_every=400)
ENCODER_OPTIMIZER = OptimizerConfig(peak_lr=3e-3, floor_lr=3e-4, warmup_steps=20, weight_decay=0.01)
#: How the encoder's hidden states become one vector.
EMBEDDING = EmbeddingConfig(pooling="mean", normalize=True, max_tokens=64)
#: The run's own options; rates and steps of the tunings were chosen on dev people (docs/results.md says more). Small
#: models want high rates; with more steps of generator tuning they learn the training people by heart, and at 1e-3 the
#: retriever settles on a wrong passage before it has seen enough.
RUN_OPTIONS: dict[str, Any] = {
  "k": 10,
  "k_train": 3,
  "dev_fraction": 0.05,
  "test_fraction": 0.15,
  "test_questions": 400,
  "prompt": PromptConfig(max_tokens=64, max_passage_tokens=32, max_answer_tokens=4),
  "generator_tuning": TuningConfig(
    optimizer=OptimizerConfig(peak_lr=1e-3, floor_lr=1e-4, warmup_steps=50),
    loop=LoopConfig(steps=600, batch_size=16, log_every=20, evaluate_every=150),
  ),
  "retriever_tuning": TuningConfig(
    optimizer=OptimizerConfig(peak_lr=3e-4, floor_lr=3e-5, warmup_steps=20, weight_decay=0.01),
    loop=LoopConfig(steps=400, batch_size=64, log_every=20, evaluate_every=100),
  ),
  "encode_batch_size": 256,
  "score_batch_size": 64,
  "answer_batch_size": 32,
}


def generator_tokenizer(world: World) -> Any:
  """A tokenizer that holds every word of the world as one token: merging ends near 1,400 of the 4,096 allowed."""
  return train_tokenizer(tokenizer_texts(world), vocab_size=4096)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
  """A byte-level BPE tokenizer that reads any text.

  Args:
    texts: what the merges are learnt from.
    vocab_size: most tokens it may have.

  Returns:
    A ``transformers`` fast tokenizer with ``<pad>``, ``<s>`` and ``</s>``; it adds none of them by itself.
  """
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
  from transformers import PreTrainedTokenizerFast

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=1,
    special_tokens=["<pad>", "<s>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token="<s>",
    eos_token="</s>",
    pad_token="<pad>",
    clean_up_tokenization_spaces=False,
    model_max_length=1024,
  )


def encoder_tokenizer(world: World) -> Any:
  """A lower-casing WordPiece tokenizer as BERT has it, with every word of the world as one token.

  Args:
    world: the world.

  Returns:
    A ``transformers`` fast tokenizer that adds ``[CLS]`` and ``[SEP]``.
  """
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
  from transformers import PreTrainedTokenizerFast

  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  normalizer = normalizers.BertNormalizer(lowercase=True)
  splitter = pre_tokenizers.BertPreTokenizer()
  words = {w for text in tokenizer_texts(world) for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
  # Single letters and digits, at the start and inside of a word, so that a word from outside is spelled, not unknown.
  letters = [prefix + c for c in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
  vocabulary = list(dict.fromkeys(special + letters + sorted(words)))
  tokenizer = Tokenizer(
    models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]", max_input_chars_per_word=100)
  )
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = splitter
  tokenizer.decoder = decoders.WordPiece()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[(w, vocabulary.index(w)) for w in ("[CLS]", "[SEP]")],
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="[PAD]",
    unk_token="[UNK]",
    cls_token="[CLS]",
    sep_token="[SEP]",
    mask_token="[MASK]",
    model_max_length=64,
  )


def generator_config(vocab_size: int) -> DecoderConfig:
  """Two layers of width 128."""
  return dataclasses.replace(DecoderConfig.tiny(vocab_size), intermediate_size=256)


def encoder_config(vocab_size: int) -> BertConfig:
  """One layer of width 64: the world's sentences are little more than their words."""
  return BertConfig(
    vocab_size=vocab_size,
    hidden_size=64,
    num_layers=1,
    num_heads=4,
    intermediate_size=128,
    max_positions=64,
    type_vocab_size=1,
    layer_norm_eps=1e-12,
  )


def generator_batches(world: World, tokenizer: Any, seed: int, *, batch_size: int) -> Iterator[list[list[int]]]:
  """Endless batches of token ids, begin and end tokens included, of the pre-training texts.

  Args:
    world: the world.
    tokenizer: from `generator_tokenizer`.
    seed: draw of the texts.
    batch_size: texts in a batch.

  Yields:
    ``batch_size`` lists of at most `GENERATOR_TOKENS` ids.
  """
  texts = pretraining_texts(world, seed)
  while True:
    # Many batches to one call, and past the wrapper, which takes longer than the tokenizer itself.
    chunk = list(itertools.islice(texts, 32 * batch_size))
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
    rows = [[tokenizer.bos_token_id, *row.ids, tokenizer.eos_token_id] for row in encoded]
    for i in range(0, len(rows), batch_size):
      yield rows[i : i + batch_size]


def encoder_batches(
  world: World, tokenizer: Any, seed: int, *, batch_size: int
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
  """Endless batches of token ids of the warm start's pairs; row i of the queries belongs to row i of the passages.

  Args:
    world: the world.
    tokenizer: from `encoder_tokenizer`.
    seed: draw of the pairs.
    batch_size: pairs in a batch, a multiple of 4.

  Yields:
    Queries and passages, ``batch_size`` lists of at most `ENCODER_TOKENS` ids each, ``[CLS]`` and ``[SEP]`` included.
  """
  for pairs in warm_start_pairs(world, seed, num_people=batch_size // 4, num_relations=4):
    queries, passages = zip(*pairs, strict=True)
    encoded = [row.ids for row in tokenizer.backend_tokenizer.encode_batch_fast([*queries, *passages])]
    yield encoded[:batch_size], encoded[batch_size:]
