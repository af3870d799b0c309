"""Generators and encoders, and the Hugging Face directories they come from and go to."""

from radit_jax.lazy import exports

__all__, __getattr__ = exports(
  __name__,
  {
    "Bert": "bert",
    "BertConfig": "bert",
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "DualEncoder": "dual_encoder",
    "EmbeddingConfig": "encoder",
    "Encoder": "dual_encoder",
    "Generator": ".parallel_context",
    "TextEncoder": "encoder",
    "encoder_temperature": "pretrained",
    "fingerprint": "pretrained",
    "load_dual_encoder": "pretrained",
    "load_encoder": "pretrained",
    "load_end_ids": "pretrained",
    "load_generator": "pretrained",
    "load_tokenizer": "pretrained",
    "save_encoder": "pretrained",
    "save_generator": "pretrained",
  },
)
