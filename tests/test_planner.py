"""The planner without a compiler: slices, shapes, meshes, collectives of a text, FLOPs in closed form, the bill."""

import dataclasses
import json
import math
import runpy

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from radit_jax import cli
from radit_jax.collectives import Collective, collectives
from radit_jax.config import (
  EmbeddingOptions,
  LoopConfig,
  LoraConfig,
  MeshConfig,
  OptimizerConfig,
  PlanConfig,
  PromptConfig,
  RunConfig,
  TuningConfig,
)
from radit_jax.errors import UserError
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import Decoder
from radit_jax.plan import bill, chips, flops, layout, programs, survey, tables
from radit_jax.plan.measure import Measured, exhausted_bytes
from radit_jax.plan.programs import Models
from radit_jax.plan.shapes import ENCODERS, GENERATORS, encoder_shape, generator_shape
from radit_jax.verbs import plan as verb

LLAMA, DRAGON = "meta-llama/Llama-2-7b-hf", "facebook/dragon-plus-query-encoder"
GIVEN = {"topology": "v5e:4x4", "generator": LLAMA, "encoder": DRAGON}
PAPER = {
  "pack_tokens": 2048,
  "generator_tuning": TuningConfig(loop=LoopConfig(steps=500, batch_size=128), remat="full"),
  "retriever_tuning": TuningConfig(loop=LoopConfig(batch_size=512)),
}
CONFIGS = [name for name in cli.shipped_configs() if name not in ("mixture", "own_data", "squad_small")]


def models(config):
  return Models(generator_shape(config.generator), *encoder_shape(config.encoder, config.embedding))


@pytest.mark.parametrize(
  ("asked", "nearest"),
  [
    ("v5e:16x17", "v5e:16x16"),
    ("v5e:3x3", "v5e:2x4"),
    ("v5p:4x4", "v5p:2x2x4"),
    ("v6:16x16", "v6e:16x16"),
    ("v5litepod-16", "v5e:4x4"),
    ("v5p", "v5p:2x2x4"),
    ("", "v5e:4x4"),
  ],
)
def test_an_unknown_slice_is_one_line_with_the_nearest(asked, nearest):
  with pytest.raises(UserError, match=f"no slice '{asked}'.*nearest that can is {nearest}$"):
    chips.slice_named(asked)


def test_slices_have_their_chips_and_grow():
  assert chips.slice_named("v5p:4x4x8").chips == 128
  for kind in chips.CHIPS:
    sizes = [s.chips for s in chips.slices(kind)]
    assert sizes == sorted(set(sizes))


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r'pip install "radit_jax\[tpu\]"'):
    chips.devices(chips.slice_named("v5e:2x2"))


def test_an_unknown_model_is_one_line_with_those_known():
  with pytest.raises(UserError, match=rf"no/such: no such directory.*{LLAMA}.*config.json"):
    generator_shape("no/such")
  with pytest.raises(UserError, match="dragon-plus"):
    encoder_shape("no/such", RunConfig.__dataclass_fields__["embedding"].default)


def test_a_directory_needs_no_weights(parts, tmp_path):
  for name in ("generator", "encoder"):
    place = tmp_path / name
    place.mkdir()
    for file in type(place)(parts[name]).glob("*.json"):
      (place / file.name).write_text(file.read_text())
  assert generator_shape(str(tmp_path / "generator")).num_layers == generator_shape(parts["generator"]).num_layers


# FLOPs, against the arrays of the models themselves.


@pytest.mark.parametrize("name", GENERATORS)
def test_parameters_of_a_generator_are_those_of_its_arrays(name):
  config = GENERATORS[name]
  model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  kernels = sum(x.size for x in jax.tree.leaves(model.layers) if x.ndim == 3)
  assert flops.kernel_parameters(config) == kernels
  assert flops.all_parameters(config) == kernels + sum(
    x.size for x in jax.tree.leaves(model) if x.ndim == 2 and x.shape[0] != config.num_layers
  )


def test_parameters_of_an_encoder_are_those_of_its_arrays():
  config, _ = ENCODERS[DRAGON]
  model = nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0)))
  assert flops.kernel_parameters(config) == sum(x.size for x in jax.tree.leaves(model.layers) if x.ndim == 3)


def test_the_names_say_how_large_the_models_are():
  sizes = [round(flops.all_parameters(c) / 1e9, 1) for c in GENERATORS.values()]
  assert sizes == [6.7, 13.0, 65.3, 8.0, 8.2]


# Collectives of a text written by hand, in the compiler's three ways to write groups.

TEXT = """HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%one_of_two (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%two_of_two (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.3 (input: f32[32]) -> f32[8] {
  %input = f32[32]{0} parameter(0)
  %r = f32[32]{0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %d = f32[8]{0} dynamic-slice(%r), dynamic_slice_sizes={8}
}

%body (c: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %c = (s32[], bf16[4,8]{1,0}) parameter(0)
  %f = bf16[16,8]{1,0} fusion(%c), kind=kCustom, calls=%one_of_two
  %h = bf16[16,8]{1,0} fusion(%f), kind=kCustom, calls=%two_of_two
  %t = f32[6]{0} all-to-all(%h), channel_id=8, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
  ROOT %o = (s32[], bf16[4,8]{1,0}) tuple(%c, %c)
}

%condition (c: (s32[], bf16[4,8])) -> pred[] {
  %c = (s32[], bf16[4,8]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(32)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %l = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> f32[8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %w = (s32[], bf16[4,8]{1,0}) while(%a), condition=%condition, body=%body
  %p = (bf16[2,3]{1,0}, bf16[2,3]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=4, source_target_pairs={}
  %q = bf16[2,3]{1,0} collective-permute-done(%p)
  ROOT %r = f32[8]{0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_collectives_of_loops_fusions_and_parts():
  found = {c.kind: c for c in collectives(TEXT)}
  assert found == {
    # Two fusions work at one gather of a loop of 32 turns.
    "all-gather": Collective("all-gather", "bf16", (16, 8), 4, 32),
    "all-to-all": Collective("all-to-all", "f32", (6,), 2, 32),
    "reduce-scatter": Collective("reduce-scatter", "f32", (8,), 4, 1),
    "collective-permute": Collective("collective-permute", "bf16", (2, 3), 2, 1),
  }
  # A ring: of a gathered array each chip sends all but its own part, of a scattered sum all parts but its own.
  assert found["all-gather"].sent_bytes == 16 * 8 * 2 * 3 / 4 * 32
  assert found["reduce-scatter"].sent_bytes == 8 * 4 * 3
  assert found["collective-permute"].sent_bytes == 12


def test_what_the_compiler_says_that_it_lacks():
  said = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (600.00G) exceeds ..."
  )
  assert exhausted_bytes(said) == 600 * 2**30
  assert (
    exhausted_bytes("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 16.25G of 15.75G hbm.") == 16.25 * 2**30
  )
  assert exhausted_bytes("RESOURCE_EXHAUSTED: out of HBM in some other words") == math.inf
  assert exhausted_bytes("INTERNAL: Used 16.25G of 15.75G hbm") is None
  assert exhausted_bytes("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M") is None


# What programs are given.


@pytest.mark.parametrize(
  ("change", "matrices", "norms"),
  [
    ({}, "bfloat16", "float32"),  # as tuned in float32, and read in bfloat16
    ({"dtype": "float32"}, "float32", "float32"),
    ({"generator_tuning": TuningConfig(lora=LoraConfig(rank=4))}, "bfloat16", "bfloat16"),  # merged into the files'
    ({"generator_tuning": TuningConfig(optimizer=OptimizerConfig(master_dtype="bfloat16"))}, "bfloat16", "bfloat16"),
  ],
)
def test_what_scores_and_answers_is_the_tuned_generator_as_it_is_read(mesh8, change, matrices, norms):
  config = PlanConfig(**GIVEN | {"topology": "v5e:2x4"} | change)
  for program in (programs.score(config, models(config), mesh8), *programs.answers(config, models(config), mesh8)):
    held = program.parameters
    assert {held.layers.q_kernel.dtype, held.embedding.dtype, held.head.dtype} == {jnp.dtype(matrices)}
    assert {held.layers.mlp_norm.dtype, held.final_norm.dtype} == {jnp.dtype(norms)}
    assert held.layers.q_kernel.get_value().sharding.shard_shape((32, 4096, 4096)) == (32, 2048, 2048)


def test_a_dev_batch_has_the_rows_of_a_microbatch(mesh8):
  loop = LoopConfig(steps=5, batch_size=128)
  config = PlanConfig(**GIVEN | PAPER | {"topology": "v5e:2x4"})

  def dev(**change):
    tuned = TuningConfig(loop=dataclasses.replace(loop, **change), remat="full")
    return programs.ralt_dev(dataclasses.replace(config, generator_tuning=tuned), models(config), mesh8)

  whole, part = dev(), dev(accumulate=8)
  assert (whole.tokens, part.tokens) == (60 * 2048, 8 * 2048)  # 60 rows of eight prompts, and 7.5 on four row shards
  assert programs.chip_bytes(part.beside) == programs.chip_bytes(part.optimizer) > programs.chip_bytes(part.parameters)


@pytest.mark.parametrize(("change", "questions"), [({}, 0), ({"select": "exact_match"}, 16), ({"dev_questions": 6}, 8)])
def test_dev_questions_are_answered_beside_weights_and_moments(mesh8, change, questions):
  config = PlanConfig(**GIVEN | {"topology": "v5e:2x4"})
  config = dataclasses.replace(config, generator_tuning=TuningConfig(loop=LoopConfig(steps=5, **change)))
  assert survey.names_of(config) == (*survey.NAMES, *(survey.DEV_ANSWERS if questions else ()))
  found = list(survey._programs(config, models(config), mesh8, survey.DEV_ANSWERS if questions else ()))
  assert [p.name for p in found] == list(survey.DEV_ANSWERS if questions else ())
  for p in found:
    assert p.parameters.layers.q_kernel.dtype == jnp.float32
    head = programs.chip_bytes(p.parameters.head) if "reading" in p.name else 0
    assert programs.chip_bytes(p.beside) == programs.chip_bytes(p.optimizer) + head
    assert head == 0 or p.tokens == questions * config.k_train * config.prompt.max_tokens


def test_numbers_of_four_bits_are_two_to_a_byte(mesh8):
  rows = NamedSharding(mesh8, PartitionSpec("fsdp"))
  for dtype, size in ((jnp.uint4, 0.5), (jnp.int8, 1), (jnp.bfloat16, 2), (jnp.bool_, 1)):
    assert programs.chip_bytes(jax.ShapeDtypeStruct((8, 6), dtype, sharding=rows)) == 24 * size


def test_a_decoder_that_embeds_has_no_head(parts):
  body, _ = encoder_shape(parts["generator"], EmbeddingOptions(pooling="last", normalize=True))
  assert not generator_shape(parts["generator"]).tie_word_embeddings
  assert body.tie_word_embeddings


# Meshes.


@pytest.mark.parametrize(
  ("change", "mesh"),
  [
    ({}, (16, 1)),
    ({"topology": "v5e:8x8"}, (64, 1)),  # one row a chip
    # 60 rows do not fill 128 shards, but BERT's 30,522 words do not divide by 4.
    ({"topology": "v5e:16x16"}, (128, 2)),
  ],
)
def test_rows_over_as_many_chips_as_they_fill(change, mesh):
  config = PlanConfig(**GIVEN | PAPER | change)
  found = layout.mesh_for(config, models(config), chips.slice_named(config.topology))
  assert (found.fsdp, found.tensor) == mesh


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"mesh": MeshConfig(fsdp=3)}, "fsdp=3 .* does not make the 16 chips of v5e:4x4; fsdp=16 tensor=1 would do"),
    ({"mesh": MeshConfig(fsdp=4, tensor=4)}, "encoder: vocab_size 30522 over tensor=4: not divisible; fsdp=16"),
    (
      {"generator_tuning": TuningConfig(loop=LoopConfig(batch_size=60)), "mesh": MeshConfig(fsdp=16)},
      "batch_size 60 in accumulate 1 over 16 row shards: not divisible, batch_size 64 is",
    ),
  ],
)
def test_what_does_not_divide_is_one_line_with_what_would(change, told):
  config = PlanConfig(**GIVEN | PAPER | change)
  with pytest.raises(UserError, match=told):
    layout.mesh_for(config, models(config), chips.slice_named(config.topology))


def test_prompts_longer_than_the_positions_are_refused():
  config = PlanConfig(**GIVEN | {"generator": "huggyllama/llama-65b", "prompt": PromptConfig(max_tokens=4096)})
  with pytest.raises(UserError, match=r"max_tokens 4096, .* has positions for 2048"):
    layout.check(config, models(config))


@pytest.mark.parametrize(
  "change",
  [
    {"mfu": 0},
    {"mfu": 1.2},
    {"price_per_chip_hour": -1.0},
    {"prompt_tokens": 600},
    {"pack_tokens": 256},
  ],
)
def test_options_that_make_no_sense(change):
  with pytest.raises(UserError, match=f"PlanConfig.*{next(iter(change))}"):
    PlanConfig(**GIVEN | change)


# Shipped configs: one file for the run and for its plan.


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_serves_a_run_and_its_plan_on_the_same_mesh(name):
  run = cli.parse("run", ["--config", name, "--workdir", "w", "--corpus", "c", "--questions", "q"])
  config = cli.parse("plan", ["--config", name])
  for field in {f.name for f in dataclasses.fields(RunConfig)} & {f.name for f in dataclasses.fields(PlanConfig)}:
    if field != "mesh":
      assert getattr(run, field) == getattr(config, field), field
  found = layout.mesh_for(config, models(config), chips.slice_named(config.topology))
  assert (found.fsdp, found.tensor) == (run.mesh.fsdp, run.mesh.tensor)
  assert f"its {config.topology}" in runpy.run_path(f"configs/{name}.py")["__doc__"].replace("\n", " ")


def test_options_of_a_plan_win_over_the_file_and_the_runs_mesh_is_left(tmp_path):
  config = cli.parse("plan", ["--config", "llama2_7b", "--topology", "v6e:8x8", "--k", "5"])
  assert (config.topology, config.k, config.mesh) == ("v6e:8x8", 5, MeshConfig())


def test_a_run_without_a_plan_needs_a_topology(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    "import functools\nfrom radit_jax.config import RunConfig\n"
    f"config = functools.partial(RunConfig, generator={LLAMA!r}, encoder={DRAGON!r}, k=7)\n"
  )
  with pytest.raises(UserError, match="--topology"):
    cli.parse("plan", ["--config", str(file)])
  assert cli.parse("plan", ["--config", str(file), "--topology", "v5e:2x2"]).k == 7


# The bill and the tables.


def measured(name, **change):
  values = {
    "parameters_bytes": 2.0**30,
    "optimizer_bytes": 2.0**31,
    "batch_bytes": 0.0,
    "activations_bytes": 0.0,
    "temporaries_bytes": 2.0**32,
    "together_bytes": 7 * 2.0**30,
    "hbm_bytes": 15.75 * 2**30,
    "flops": 1e12,
    "compute_s": 3.0,
    "hbm_s": 2.0,
    "ici_s": 1.0,
    "collectives": {"all-gather": {"runs": 3, "sent_bytes": 2.0**30}},
    "compiled_s": 1.0,
  }
  return Measured(name=name, **values | change)


def surveyed(mesh, **change):
  config = PlanConfig(**GIVEN | PAPER | {"price_per_chip_hour": 2.0} | change)
  return survey.Survey(config, chips.slice_named("v5e:2x4"), mesh, tuple(measured(name) for name in survey.NAMES))


def test_a_bill_by_hand(mesh8):
  """Four row shards, three seconds a call."""
  of = surveyed(mesh8, score_batch_size=6, tuning_examples=17, encode_batch_size=3, corpus_passages=200_000)
  stages = {stage.name: stage for stage in bill.stages(of)}
  assert stages["encode"].calls == 50_000  # three are rounded up to four
  assert stages["score"].calls == 3  # 17 questions by eight
  assert stages["RALT"].calls == 500
  assert stages["RALT"].hours == pytest.approx(500 * 3 / 3600)
  assert stages["RALT"].chip_hours == pytest.approx(8 * 500 * 3 / 3600)
  assert stages["RALT"].money == pytest.approx(2 * 8 * 500 * 3 / 3600)
  assert stages["R-ft"].calls == 1
  assert stages["evaluate"].hours == pytest.approx(4 * 50_000 / 16 * 3 * 3 / 3600)  # three programs
  queries = 17 + 500 * 128 + 2 * 50_000
  assert stages["retrieve"].hours == pytest.approx(queries / (2500 * 28 * 8) / 3600)
  assert stages["all"].money == pytest.approx(sum(s.money for n, s in stages.items() if n != "all"))


def test_a_larger_corpus_is_searched_more_slowly(mesh8):
  small, large = (
    {s.name: s for s in bill.stages(surveyed(mesh8, corpus_passages=n))}["retrieve"].hours for n in (10**6, 10**8)
  )
  assert large == pytest.approx(10 * small)


def test_what_does_not_fit_has_no_price_and_says_what_would(mesh8):
  of = surveyed(mesh8)
  of = dataclasses.replace(of, programs=(measured("RALT step", together_bytes=20 * 2.0**30), *of.programs[1:]))
  stages = bill.stages(of)
  assert [s.money is None for s in stages] == [False, False, True, False, False, False, True]
  help_ = [survey.Remedy("RALT step", "--generator-tuning.remat full", 9 * 2.0**30)]
  result = verb.PlanResult(of, stages, help_, [])
  assert result.failed
  text = result.summary()
  assert (
    "RALT step: 20.00 GiB a chip, which has 15.75; what would:\n    --generator-tuning.remat full  (9.00 GiB)" in text
  )
  assert "\nfits" not in text
  read = json.loads(
    dataclasses.replace(
      result, survey=dataclasses.replace(of, config=dataclasses.replace(of.config, json=True))
    ).summary()
  )
  assert (read["fits"], read["programs"][0]["fits"], read["stages"][2]["money"]) == (False, False, None)


def test_the_table_of_what_fits(mesh8):
  of = surveyed(mesh8)
  result = verb.PlanResult(of, bill.stages(of), [], [])
  assert not result.failed
  text = result.summary()
  assert text.endswith("\nfits")
  assert "45% of 197 TFLOP/s" in text
  assert "--mesh.fsdp 2 --mesh.tensor 2 --mesh.data 2" in text
  assert "all-gather 1.00 in 3" in text
  money = surveyed(mesh8, price_per_chip_hour=None)
  assert "money" not in tables.as_text(money, bill.stages(money), [], [])


def test_changes_are_the_runs_own_options_smallest_first(mesh8):
  tuning = TuningConfig(loop=LoopConfig(steps=5, batch_size=32))
  of = surveyed(mesh8, generator_tuning=tuning, score_batch_size=32)
  of = dataclasses.replace(of, of=chips.slice_named("v5e:2x4"))
  asked = [change for _, change, _ in survey._changes(of, models(of.config), "RALT step")]
  assert asked == [
    "--generator-tuning.remat dots",
    "--generator-tuning.remat full",
    "--generator-tuning.remat full --generator-tuning.loop.accumulate 2",
    "--generator-tuning.remat full --generator-tuning.loop.accumulate 4",
    "--generator-tuning.remat full --generator-tuning.loop.accumulate 8",
    "--topology v5e:4x4",
    "--topology v5e:4x8",
    "--generator-tuning.remat full --generator-tuning.lora.rank 16",
  ]
  asked = [change for _, change, _ in survey._changes(of, models(of.config), "RALT dev loss")]
  assert asked[:3] == [f"--generator-tuning.loop.accumulate {n}" for n in (2, 4, 8)]
  assert asked[-1] == "--generator-tuning.lora.rank 16"
  asked = [change for _, change, _ in survey._changes(of, models(of.config), survey.DEV_ANSWERS[0])]
  assert asked == ["--topology v5e:4x4", "--topology v5e:4x8", "--generator-tuning.lora.rank 16"]
  asked = [change for _, change, _ in survey._changes(of, models(of.config), "scoring")]
  assert asked[:3] == ["--score-batch-size 16", "--score-batch-size 8", "--score-batch-size 4"]


def test_adapted_models_are_known_to_be_small():
  whole = PlanConfig(**GIVEN)
  adapted = dataclasses.replace(whole, generator_tuning=TuningConfig(lora=LoraConfig(rank=4, base="nf4")))
  assert survey._least_bytes(whole, models(whole)) == pytest.approx(12 * 6.74e9, rel=1e-3)
  assert survey._least_bytes(adapted, models(whole)) == pytest.approx(0.5 * 6.74e9, rel=1e-3)


def test_a_plan_that_does_not_fit_ends_with_status_1(monkeypatch, capsys):
  monkeypatch.setattr(
    verb, "plan", lambda config, progress: type("R", (), {"failed": True, "summary": lambda self: "no"})()
  )
  assert cli.main(["plan", "--config", "llama2_7b"]) == 1
  assert capsys.readouterr() == ("no\n", "")
