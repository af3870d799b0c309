"""LoRA: what is trained and what is not, gradients against the merged weights; sharded, resumed, on a small base."""

import functools
import gc
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from radit_jax import sharding
from radit_jax.config import LoopConfig, LoraConfig, MeshConfig, OptimizerConfig, TrainGeneratorConfig
from radit_jax.errors import UserError
from radit_jax.models import hf_config, hf_weights
from radit_jax.models.bert import Bert, BertConfig
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.models.encoder import EmbeddingConfig, TextEncoder
from radit_jax.models.kernels import QuantizedKernel, dequantize
from radit_jax.models.lora import add_lora, body_of, frozen, quantize_base, rebased
from radit_jax.models.pretrained import load_generator
from radit_jax.models.safetensors_files import write_directory
from radit_jax.training.loop import train
from radit_jax.training.step import combine, init_state, make_optimizer, partition, train_step
from radit_jax.verbs import tuning

CONFIG = DecoderConfig(
  vocab_size=64, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16
)
BERT = BertConfig(vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, max_positions=32)
LORA = LoraConfig(rank=4, alpha=8.0)
OPTIMIZER = OptimizerConfig(peak_lr=1e-2, floor_lr=1e-3, warmup_steps=0)


@pytest.fixture(scope="module")
def generator():
  return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def encoder():
  return TextEncoder(Bert(BERT, rngs=nnx.Rngs(0)), EmbeddingConfig(max_tokens=32))


def adapted_of(model, config=LORA, *, moved=True):
  """With B away from 0, as after some training."""
  adapted = add_lora(model, config, rngs=nnx.Rngs(1))
  if moved:
    keys = itertools.count()
    for kernel in kernels(adapted).values():
      value = 0.05 * jax.random.normal(jax.random.key(next(keys)), kernel.b.shape)
      kernel.b.set_value(value)
  return adapted


def kernels(adapted):
  return {n: k for n, k in vars(body_of(adapted).layers).items() if n.endswith("_kernel") and hasattr(k, "b")}


def saved(model):
  """What the files of a model hold, as a model."""
  body = body_of(model)
  again = nnx.eval_shape(lambda: type(body)(body.config, rngs=nnx.Rngs(0)))
  hf_weights.fill(again, hf_weights.named_tensors(body), pathlib.Path("saved"), None, None)
  return again if body is model else TextEncoder(again, model.config)


def tokens_of(step, rows=8):
  return np.random.default_rng(step).integers(1, 64, (rows, 12)).astype(np.int32)


def next_token_loss(model, tokens):
  log_probs = jax.nn.log_softmax(model.logits(model(tokens))[:, :-1])
  return -jnp.sum(jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)), jnp.float32(tokens[:, 1:].size)


def run(encoder_or_generator, tokens):
  if isinstance(encoder_or_generator, TextEncoder):
    return encoder_or_generator(tokens, tokens > 0)
  return encoder_or_generator.logits(encoder_or_generator(tokens))


@pytest.mark.parametrize("side", ["generator", "encoder"])
@pytest.mark.parametrize("base", ["float", "int8", "nf4"])
def test_step_0_is_the_base_exactly(request, side, base):
  model = request.getfixturevalue(side)
  model = model if base == "float" else quantize_base(model, base)
  adapted = adapted_of(model, moved=False)
  np.testing.assert_array_equal(run(adapted, tokens_of(0)), run(model, tokens_of(0)))


@pytest.mark.parametrize(
  ("side", "targets"),
  [("generator", ["q", "k", "v", "o", "gate", "up", "down"]), ("encoder", ["q", "k", "v", "o", "up", "down"])],
)
def test_all_kernels_are_adapted_unless_some_are_named(request, side, targets):
  model = request.getfixturevalue(side)
  assert {n.removesuffix("_kernel") for n in kernels(adapted_of(model))} == set(targets)
  some = adapted_of(model, LoraConfig(rank=2, targets=("q", "down")))
  assert set(kernels(some)) == {"q_kernel", "down_kernel"}
  with pytest.raises(UserError, match=f"'query' is none of {', '.join(sorted(targets))}"):
    add_lora(model, LoraConfig(rank=2, targets=("query",)), rngs=nnx.Rngs(0))


def test_only_a_and_b_are_trained(generator):
  trained, rest = partition(adapted_of(generator))
  names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(trained)[0]}
  assert len(names) == 2 * 7
  assert all(".a" in n or ".b" in n for n in names)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(trained))
  whole = combine(trained, rest)
  assert jax.tree.structure(whole) == jax.tree.structure(adapted_of(generator))
  assert not any(isinstance(x, nnx.Param) for x in jax.tree.leaves(rest, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def test_the_model_given_stays_as_it_was(generator):
  before = jax.tree.map(np.asarray, generator)
  add_lora(generator, LORA, rngs=nnx.Rngs(0))
  quantize_base(generator, "int8")
  assert isinstance(generator.layers.q_kernel, nnx.Param)
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, generator))


def test_gradients_are_those_of_the_merged_weights(generator):
  """dA = s dW B^T and dB = s A^T dW, with dW the gradient of a plain model that holds W + s A B."""
  adapted = adapted_of(generator)
  tokens = tokens_of(0)

  def loss_of_formed(pairs):
    model = frozen(generator)
    for name, (a, b) in pairs.items():
      w = getattr(generator.layers, name)[...]
      setattr(model.layers, name, nnx.Variable(w + 2.0 * jnp.einsum("lir,lro->lio", a, b)))
    return next_token_loss(model, tokens)[0]

  pairs = {n: (k.a[...], k.b[...]) for n, k in kernels(adapted).items()}
  expected = jax.jit(jax.grad(loss_of_formed))(pairs)
  trained, rest = partition(adapted)
  got = jax.jit(jax.grad(lambda t: next_token_loss(combine(t, rest), tokens)[0]))(trained)
  for name, (a, b) in expected.items():
    kernel = getattr(got.layers, name)
    np.testing.assert_allclose(kernel.a[...], a, atol=1e-5 * np.abs(a).max(), rtol=0)
    np.testing.assert_allclose(kernel.b[...], b, atol=1e-5 * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("side", ["generator", "encoder"])
def test_a_saved_model_is_plain_and_computes_the_same(request, side):
  model = request.getfixturevalue(side)
  adapted = adapted_of(model)
  merged = saved(adapted)
  assert jax.tree.structure(merged) == jax.tree.structure(model)
  np.testing.assert_allclose(run(merged, tokens_of(0)), run(adapted, tokens_of(0)), atol=2e-5)
  assert np.abs(np.asarray(run(merged, tokens_of(0)) - run(model, tokens_of(0)))).max() > 1e-3
  w, a, b = (np.asarray(x, np.float64) for x in (body_of(model).layers.up_kernel[...], *pair(adapted, "up_kernel")))
  np.testing.assert_allclose(body_of(merged).layers.up_kernel[...], w + 2.0 * a @ b, rtol=1e-5, atol=1e-6)


def pair(adapted, name):
  kernel = getattr(body_of(adapted).layers, name)
  return kernel.a[...], kernel.b[...]


def test_merged_weights_keep_the_type_of_the_files(generator):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), generator)
  adapted = adapted_of(half)
  assert adapted.layers.q_kernel.base[...].dtype == jnp.bfloat16
  assert adapted.layers.q_kernel.a[...].dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(saved(adapted))} == {jnp.dtype(jnp.bfloat16)}


def test_what_corrected_a_quantised_base_is_merged_into_the_weights_it_was_made_of(generator):
  adapted = adapted_of(quantize_base(generator, "nf4"), LoraConfig(rank=4, alpha=8.0, targets=("q",)))
  assert isinstance(adapted.layers.up_kernel, QuantizedKernel)
  with pytest.raises(ValueError, match="quantised"):
    saved(adapted)
  merged = saved(rebased(adapted, generator))
  assert jax.tree.structure(merged) == jax.tree.structure(generator)
  np.testing.assert_array_equal(merged.layers.up_kernel[...], generator.layers.up_kernel[...])
  a, b = pair(adapted, "q_kernel")
  np.testing.assert_allclose(merged.layers.q_kernel[...] - generator.layers.q_kernel[...], 2.0 * a @ b, atol=1e-6)


@pytest.mark.parametrize("base", ["float", "int8"])
def test_while_a_model_is_saved_nothing_is_held_but_it_and_one_layer(tmp_path, base):
  """A layer and its merged twin come to the devices, full of what was trained, or to the host if the base is there."""
  config = DecoderConfig(
    vocab_size=64, hidden_size=128, intermediate_size=256, num_layers=12, num_heads=8, num_kv_heads=8, head_dim=16
  )
  plain = Decoder(config, rngs=nnx.Rngs(0))
  write_directory(tmp_path, hf_weights.named_tensors(plain))
  ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
  hf_config.write(tmp_path, config, dtype="float32", token_ids=ids)
  w = np.asarray(plain.layers.up_kernel[...], np.float64)
  del plain
  options = TrainGeneratorConfig(
    workdir=str(tmp_path / "run"), generator=str(tmp_path), retrieved="", dev_retrieved="", passages="",
    lora=LoraConfig(rank=4, alpha=8.0, base=base),
  )  # fmt: skip
  load = functools.partial(load_generator, tmp_path)
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
  adapted = tuning.load_for_tuning(load, options.lora, mesh=mesh, seed=0)
  for kernel in kernels(adapted).values():
    kernel.b.set_value(jnp.full(kernel.b.shape, 0.01))
  adapted = sharding.place(adapted, sharding.parameter_shardings(adapted, mesh))
  a, b = (np.asarray(x, np.float64) for x in pair(adapted, "up_kernel"))

  def held():
    gc.collect()
    shards = [s.data for x in jax.live_arrays() for s in x.addressable_shards]
    return sum({s.unsafe_buffer_pointer(): s.nbytes for s in shards}.values())

  layer_bytes = 4 * 128 * 256
  before, most, files = held(), 0, {}
  model = tuning.export_tuned(adapted, load, options, base=str(tmp_path))
  for name, tensor in hf_weights.named_tensors(model).items():
    values = tensor.read()
    if "up_proj" in name:  # once a layer: to collect garbage takes a second in the middle of all tests
      most = max(most, held() - before)
      files[name] = np.array(values)
  assert most <= 2 * layer_bytes
  merged = np.stack([files[f"model.layers.{i}.mlp.up_proj.weight"].T for i in range(12)])
  np.testing.assert_allclose(merged, w + 2.0 * a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("form", "bits"), [("int8", 8), ("nf4", 4)])
def test_quantised_base_is_small_and_near(generator, form, bits):
  quantized = quantize_base(generator, form)
  for name, kernel in vars(quantized.layers).items():
    if name.endswith("_kernel"):
      num_layers, fan_in, fan_out = getattr(generator.layers, name).shape
      assert jnp.iinfo(kernel.codes[...].dtype).bits == bits
      assert kernel.codes.shape == (num_layers, fan_in, fan_out)
      assert kernel.scales.shape == (num_layers, 1 if form == "int8" else fan_in // 64, fan_out)
  w, back = generator.layers.down_kernel[...], dequantize(quantized.layers.down_kernel)
  assert float(jnp.linalg.norm(back - w) / jnp.linalg.norm(w)) < (0.01 if form == "int8" else 0.11)


@pytest.mark.parametrize("base", ["float", "int8", "nf4"])
def test_training_on_eight_devices_equals_one_and_leaves_the_base(mesh1, mesh8, base):
  config = DecoderConfig(
    vocab_size=64, hidden_size=128, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32
  )
  model = Decoder(config, rngs=nnx.Rngs(0))
  model = adapted_of(model if base == "float" else quantize_base(model, base))
  before = [np.asarray(x) for x in jax.tree.leaves(partition(model)[1])]
  optimizer = make_optimizer(OPTIMIZER, 10)
  after = []
  for mesh in (mesh1, mesh8):
    programs = train_step._cache_size()
    with jax.set_mesh(mesh):
      state, rest = init_state(model, optimizer, mesh)
      for step in range(2):
        tokens = sharding.place_rows(tokens_of(step), mesh)
        state, figures = train_step(state, rest, tokens, objective=next_token_loss, update=optimizer.update)
    assert train_step._cache_size() == programs + 1
    for x, was in zip(jax.tree.leaves(rest), before, strict=True):
      np.testing.assert_array_equal(np.asarray(x), was)
    after.append((jax.tree.map(np.asarray, state.model), float(figures.loss_sum)))
  np.testing.assert_allclose(after[0][1], after[1][1], rtol=1e-5)
  for a, b in zip(jax.tree.leaves(after[0][0]), jax.tree.leaves(after[1][0]), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)

  specs = {jax.tree_util.keystr(p): x.sharding.spec for p, x in jax.tree_util.tree_flatten_with_path(state)[0]}
  for name, (a_spec, b_spec) in {
    "gate_kernel": (P(None, "fsdp"), P(None, None, "tensor")),
    "down_kernel": (P(None, "tensor"), P(None, None, "fsdp")),
  }.items():
    assert [s for n, s in specs.items() if f"{name}.a" in n] == [a_spec] * 3  # A and both its moments
    assert [s for n, s in specs.items() if f"{name}.b" in n] == [b_spec] * 3
  held = rest.layers.gate_kernel.base
  lies = held[...] if base == "float" else held.codes[...]
  assert lies.sharding.spec == P(None, "fsdp", "tensor")


def lora_run(workdir, mesh, *, source=None, steps=6, model=None):
  def batches(start):
    return ((("example",), tokens_of(step)) for step in itertools.count(start))

  return train(
    adapted_of(Decoder(CONFIG, rngs=nnx.Rngs(0)), moved=False) if model is None else model,
    next_token_loss,
    source or batches,
    total_steps=steps,
    loop=LoopConfig(batch_size=8, log_every=1, evaluate_every=2),
    optimizer=OPTIMIZER,
    mesh=mesh,
    workdir=workdir,
    dev_batches=lambda: [(("dev",), tokens_of(1000))],
  )


def test_resumed_run_is_bit_identical_and_its_result_is_the_whole_model(tmp_path, mesh1):
  whole = lora_run(tmp_path / "whole", mesh1)

  def killed(start):
    for step in itertools.count(start):
      if step == 3:
        raise KeyboardInterrupt
      yield ("example",), tokens_of(step)

  with pytest.raises(KeyboardInterrupt):
    lora_run(tmp_path / "cut", mesh1, source=killed)
  again = lora_run(tmp_path / "cut", mesh1)
  jax.tree.map(
    np.testing.assert_array_equal, jax.tree.map(np.asarray, whole.model), jax.tree.map(np.asarray, again.model)
  )
  assert jax.tree.structure(whole.model) == jax.tree.structure(adapted_of(Decoder(CONFIG, rngs=nnx.Rngs(0))))
  loss = next_token_loss(whole.model, tokens_of(1000))
  np.testing.assert_allclose(float(loss[0] / loss[1]), whole.best_dev_loss, rtol=1e-5)
  assert np.asarray(whole.model.layers.q_kernel.b[...]).any()


def test_checkpoint_holds_what_is_trained_and_no_more(tmp_path, mesh1):
  def size(path: pathlib.Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())

  config = DecoderConfig.tiny(4096)
  model = Decoder(config, rngs=nnx.Rngs(0))
  base_bytes = sum(x.nbytes for x in jax.tree.leaves(model))
  adapted = adapted_of(model, LoraConfig(rank=2), moved=False)
  trained_bytes = sum(x.nbytes for x in jax.tree.leaves(partition(adapted)[0]))
  lora_run(tmp_path, mesh1, steps=1, model=adapted)
  stored = size(tmp_path / "checkpoints" / "1")
  assert stored < 0.1 * base_bytes
  assert stored < 3.5 * trained_bytes + 100_000  # with two moments, and the names


def test_a_model_without_frozen_parts_and_a_foreign_pytree_are_trained_whole(generator):
  trained, rest = partition(generator)
  assert not jax.tree.leaves(rest)
  assert len(jax.tree.leaves(trained)) == len(jax.tree.leaves(generator))
  foreign = {"w": jnp.ones(3), "fixed": nnx.Variable(jnp.ones(2))}
  trained, rest = partition(foreign)
  assert (len(jax.tree.leaves(trained)), len(jax.tree.leaves(rest))) == (1, 1)
  assert trained["fixed"] is None


def test_non_finite_step_changes_nothing(mesh1, generator):
  optimizer = make_optimizer(OPTIMIZER, 10)
  state, rest = init_state(adapted_of(generator), optimizer, mesh1)
  before = jax.tree.map(np.asarray, state)
  poisoned = jax.tree.map(lambda x: x * jnp.nan, rest)
  state, figures = train_step(state, poisoned, tokens_of(0), objective=next_token_loss, update=optimizer.update)
  assert (bool(figures.finite), int(state.nonfinite_steps)) == (False, 1)
  jax.tree.map(np.testing.assert_array_equal, before.model, jax.tree.map(np.asarray, state.model))
  jax.tree.map(np.testing.assert_array_equal, before.optimizer_state, jax.tree.map(np.asarray, state.optimizer_state))


def test_frozen_base_is_no_constant_of_the_program(mesh1, generator):
  """Two bases of the same shapes run the same program."""
  optimizer = make_optimizer(OPTIMIZER, 10)
  step = functools.partial(train_step, objective=next_token_loss, update=optimizer.update)
  sizes, losses = [], []
  for seed in (0, 1):
    state, rest = init_state(adapted_of(Decoder(CONFIG, rngs=nnx.Rngs(seed))), optimizer, mesh1)
    losses.append(float(step(state, rest, tokens_of(0))[1].loss_sum))
    sizes.append(train_step._cache_size())
  assert sizes[0] == sizes[1]
  assert losses[0] != losses[1]
