"""A made-up data set and untrained models, small enough for every verb to run on them in a test."""

import dataclasses
import json

from flax import nnx

from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.pretrained import save_encoder, save_generator

TOWNS = ("Arlen", "Borva", "Cindel", "Dorrin", "Eskel", "Farrow", "Gildan", "Hollen", "Istra", "Jorvan")
CRAFTS = ("baker", "weaver", "smith", "potter", "tanner", "cooper", "miller", "mason", "fuller", "glazier")


def documents():
  for i in range(40):
    town, craft = TOWNS[i % 10], CRAFTS[(i * 3 + i // 10) % 10]
    yield {"id": f"d{i}", "title": f"Person {i}", "text": f"Person {i} lives in {town}. Person {i} is a {craft}."}


def questions():
  for i in range(40):
    yield {
      "id": f"q{i}",
      "question": f"Where does person {i} live?",
      "answers": [TOWNS[i % 10]],
      "passage_ids": [f"d{i}"],
      "group": f"Person {i}",
    }


def write_lines(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def tokenizer_of(texts, special):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
  from transformers import PreTrainedTokenizerFast

  raw = Tokenizer(models.BPE())
  raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  raw.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=list(special.values()), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
  )
  raw.train_from_iterator(texts, trainer)
  return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def make_parts(root):
  """Corpus, questions, and two untrained models as Hugging Face directories."""
  corpus = write_lines(root / "corpus.jsonl", documents())
  asked = write_lines(root / "questions.jsonl", questions())
  texts = [d["text"] for d in documents()] + [q["question"] for q in questions()] + ["Background: Q: A: Answer:"]
  special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
  tokenizer = tokenizer_of(texts, special)
  llama = DecoderConfig(
    vocab_size=len(tokenizer),
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
  )
  save_generator(Decoder(llama, rngs=nnx.Rngs(0)), tokenizer, root / "generator")
  special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
  tokenizer = tokenizer_of(texts, special)
  bert = dataclasses.replace(BertConfig.tiny(len(tokenizer)), hidden_size=16, num_heads=2, intermediate_size=32)
  save_encoder(
    TextEncoder(Bert(bert, rngs=nnx.Rngs(1)), EmbeddingConfig(pooling="mean", normalize=True, max_tokens=256)),
    tokenizer,
    root / "encoder",
  )
  return {"corpus": corpus, "questions": asked, "generator": str(root / "generator"), "encoder": str(root / "encoder")}
