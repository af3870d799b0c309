"""What is computed again in the backward pass changes its memory, and neither values nor gradients."""

import jax
import numpy as np
import pytest
from flax import nnx

from radit_jax.config import LoraConfig, TuningConfig
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.lora import add_lora, quantize_base
from radit_jax.models.remat import rematerialized

DECODER = DecoderConfig(
  vocab_size=40, hidden_size=64, intermediate_size=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16
)
BERT = BertConfig(vocab_size=40, hidden_size=64, num_layers=4, num_heads=4, intermediate_size=128)
KINDS = ("none", "dots", "full")


def decoder(remat):
  return Decoder(DECODER, rngs=nnx.Rngs(0), remat=remat)


def qlora(remat):
  return add_lora(quantize_base(decoder(remat), "nf4"), LoraConfig(rank=4), rngs=nnx.Rngs(1))


def bert(remat):
  return Bert(BERT, rngs=nnx.Rngs(0), remat=remat)


def loss_of(model, tokens):
  hidden = model(tokens, tokens != 0) if isinstance(model, Bert) else model(tokens)
  return (hidden**2 * jax.numpy.cos(jax.numpy.arange(hidden.shape[-1]))).sum() / hidden.size


def gradient_of(make, remat, tokens):
  """Loss and gradients, and the bytes of temporaries of the program."""
  graph, params, rest = nnx.split(jax.jit(lambda: make(remat))(), nnx.Param, ...)
  f = jax.jit(jax.value_and_grad(lambda p, r, t: loss_of(nnx.merge(graph, p, r), t)))
  program = f.lower(params, rest, tokens).compile()
  return program(params, rest, tokens), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("make", [decoder, qlora, bert])
def test_less_memory_for_the_same_gradients(rng, make):
  tokens = rng.integers(1, 40, (4, 128)).astype(np.int32)
  (value, gradients), most = gradient_of(make, "none", tokens)
  assert sum(np.asarray(g).any() for g in jax.tree.leaves(gradients)) > 5
  held = [most]
  for remat in KINDS[1:]:
    (again, gradients_again), temporaries = gradient_of(make, remat, tokens)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients_again, gradients)
    held.append(temporaries)
  assert held[0] > 1.25 * held[1] > 1.25**2 * held[2], held


def test_another_word_is_refused():
  with pytest.raises(UserError, match=r"^TuningConfig.remat = True: must be one of 'none', 'dots', 'full'$"):
    TuningConfig(remat=True)
  with pytest.raises(UserError, match=r"^remat = 'some': must be one of 'none', 'dots', 'full'$"):
    rematerialized(lambda *x: x, "some")
