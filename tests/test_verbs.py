"""The verbs on real parts of tiny size: the whole order once, what each refuses, and what a second call keeps."""

import dataclasses
import json
import logging
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny import documents, questions, write_lines

from radit_jax import config as c
from radit_jax import files
from radit_jax.data.corpus import PassageStore
from radit_jax.data.examples import RetrievedStore, ScoreStore
from radit_jax.errors import UserError
from radit_jax.models.pretrained import (
  fingerprint,
  load_encoder,
  load_generator,
  load_tokenizer,
  passage_encoder_of,
  save_encoder,
)
from radit_jax.progress import silent
from radit_jax.verbs.ask import ask
from radit_jax.verbs.evaluate import evaluate
from radit_jax.verbs.index import index
from radit_jax.verbs.prepare import prepare, read_split
from radit_jax.verbs.retrieve import retrieve
from radit_jax.verbs.run import run
from radit_jax.verbs.score import score
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever
from radit_jax.verbs.workdir import Workdir

PROMPT = c.PromptConfig(max_tokens=96, max_passage_tokens=40, max_answer_tokens=8)
LOOP = c.LoopConfig(steps=4, batch_size=8, log_every=1, evaluate_every=2)
OPTIMIZER = c.OptimizerConfig(peak_lr=1e-3, floor_lr=1e-4, warmup_steps=1)


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
  """prepare, index, retrieve, score: the stores that the tunings read."""
  root = tmp_path_factory.mktemp("made")
  prepare(c.PrepareConfig(workdir=str(root), corpus=parts["corpus"], questions=parts["questions"]))
  index(index_config(root, parts))
  for split in ("train", "dev", "test"):
    retrieve(retrieve_config(root, parts, split))
  for split in ("train", "dev"):
    score(score_config(root, parts, split))
  return root


def index_config(root, parts, **changes):
  fields = {
    "passages": f"{root}/passages",
    "encoder": parts["encoder"],
    "embeddings": f"{root}/embeddings",
    "index": f"{root}/index",
    "backend": "exact",
    "batch_size": 16,
  }
  return c.IndexConfig(**{**fields, **changes})


def retrieve_config(root, parts, split="train", **changes):
  fields = {
    "questions": f"{root}/split/{split}.jsonl",
    "passages": f"{root}/passages",
    "index": f"{root}/index",
    "encoder": parts["encoder"],
    "out": f"{root}/retrieved/{split}",
    "k": 5,
    "batch_size": 16,
  }
  return c.RetrieveConfig(**{**fields, **changes})


def score_config(root, parts, split="train", **changes):
  fields = {
    "generator": parts["generator"],
    "retrieved": f"{root}/retrieved/{split}",
    "passages": f"{root}/passages",
    "out": f"{root}/scores/{split}",
    "k": 5,
    "prompt": PROMPT,
    "batch_size": 8,
  }
  return c.ScoreConfig(**{**fields, **changes})


def generator_config(made, parts, workdir, **changes):
  fields = {
    "workdir": str(workdir),
    "generator": parts["generator"],
    "retrieved": f"{made}/retrieved/train",
    "dev_retrieved": f"{made}/retrieved/dev",
    "passages": f"{made}/passages",
    "k": 2,
    "prompt": PROMPT,
    "optimizer": OPTIMIZER,
    "loop": LOOP,
  }
  return c.TrainGeneratorConfig(**{**fields, **changes})


def retriever_config(made, parts, workdir, **changes):
  fields = {
    "workdir": str(workdir),
    "encoder": parts["encoder"],
    "retrieved": f"{made}/retrieved/train",
    "dev_retrieved": f"{made}/retrieved/dev",
    "scores": f"{made}/scores/train",
    "dev_scores": f"{made}/scores/dev",
    "index": f"{made}/index",
    "k": 5,
    "optimizer": OPTIMIZER,
    "loop": LOOP,
  }
  return c.TrainRetrieverConfig(**{**fields, **changes})


def run_config(parts, workdir, **changes):
  fields = {
    "workdir": str(workdir),
    "k": 5,
    "k_train": 2,
    "backend": "exact",
    "prompt": PROMPT,
    "generator_tuning": c.TuningConfig(OPTIMIZER, LOOP),
    "retriever_tuning": c.TuningConfig(OPTIMIZER, LOOP),
    "encode_batch_size": 16,
    "score_batch_size": 8,
    "answer_batch_size": 8,
    **parts,
  }
  return c.RunConfig(**{**fields, **changes})


def test_split_is_by_group_and_whole(made):
  groups = {name: {q["group"] for q in read_split(f"{made}/split/{name}.jsonl")} for name in ("train", "dev", "test")}
  assert sum(map(len, groups.values())) == 40
  assert not groups["train"] & groups["test"]
  assert not groups["train"] & groups["dev"]
  assert not groups["dev"] & groups["test"]


def test_gold_rows_point_at_the_passage_that_answers(made):
  store = PassageStore(made / "passages")
  for q in read_split(f"{made}/split/train.jsonl"):
    assert q["answers"][0] in store[q["gold_rows"][0]].text


def test_scores_are_what_the_generator_says_of_each_row_alone(made, parts):
  """The stored sums against one row at a time, straight through the model."""
  import jax
  import jax.numpy as jnp

  from radit_jax.data.prompts import Prompt
  from radit_jax.models.pretrained import load_generator

  retrieved = RetrievedStore(made / "retrieved/train")
  scores = ScoreStore(made / "scores/train", retrieved=retrieved)
  passages = PassageStore(made / "passages")
  generator = load_generator(parts["generator"])
  prompt = Prompt(load_tokenizer(parts["generator"]), PROMPT)
  example, stored = retrieved[3], scores[3]
  assert example.id == stored.id
  for j in range(5):
    row = prompt.render(example.question, passages[int(example.passage_rows[j])], example.answers[0])
    hidden = generator(jnp.asarray(row.tokens, jnp.int32)[None])
    log_probs = np.asarray(jax.nn.log_softmax(generator.logits(hidden)[0]))
    expected = sum(log_probs[i - 1, row.tokens[i]] for i in range(row.answer_start, row.answer_end))
    np.testing.assert_allclose(stored.log_likelihood[j], expected, atol=1e-4)
    assert stored.num_tokens[j] == row.answer_end - row.answer_start


def test_score_tells_what_was_cut(made, parts, tmp_path):
  """Against every row rendered alone; a second call reads it from the store."""
  from radit_jax.data.prompts import Prompt

  template = tmp_path / "template.txt"
  template.write_text("{passage}\nQ: {question}\nA: {answer}")
  limits = dataclasses.replace(PROMPT, style=str(template), max_tokens=30, max_passage_tokens=12)
  cfg = score_config(made, parts, "dev", out=f"{tmp_path}/scores", prompt=limits, k=3)
  result = score(cfg)
  prompt, store = Prompt(load_tokenizer(parts["generator"]), limits), PassageStore(made / "passages")
  rows = [
    prompt.render(example.question, store[int(row)], example.answers[0])
    for example in RetrievedStore(made / "retrieved/dev")
    for row in example.passage_rows[:3]
  ]
  cut_passages, cut_questions = (
    sum(getattr(r, f"cut_{what}_tokens") > 0 for r in rows) for what in ("passage", "question")
  )
  assert (result.cut_passages, result.cut_questions) == (cut_passages, cut_questions)
  assert cut_passages
  assert cut_questions
  assert f"cut to fit: {result.cut_passages} passages, {result.cut_questions} questions" in result.summary()
  assert score(cfg) == result


@pytest.mark.parametrize("pack_tokens", [100, 1000])
def test_scores_do_not_depend_on_the_length_of_rows(made, parts, tmp_path, pack_tokens):
  result = score(score_config(made, parts, "train", out=f"{tmp_path}/scores", pack_tokens=pack_tokens))
  assert result.shared > 1.1  # passages are shared
  retrieved = RetrievedStore(made / "retrieved/train")
  own, usual = (ScoreStore(p, retrieved=retrieved) for p in (f"{tmp_path}/scores", made / "scores/train"))
  assert len(own) == len(usual) == len(retrieved)
  for a, b in zip(own, usual, strict=True):
    assert a.id == b.id
    np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-5, atol=1e-5)
    assert a.num_tokens.tolist() == b.num_tokens.tolist()
    assert a.valid.tolist() == b.valid.tolist()


def test_rows_to_score_that_are_too_short(made, parts, tmp_path):
  with pytest.raises(UserError, match=r"^a prompt has (\d+) tokens, rows hold 16: pack_tokens \1 would do$"):
    score(score_config(made, parts, "train", out=f"{tmp_path}/scores", pack_tokens=16))


def metrics(workdir):
  return (workdir / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("changes", [{"pack_tokens": 256}, {"accumulate": 5}, {"pack_tokens": 200, "accumulate": 5}])
def test_packed_and_accumulated_tuning_is_the_plain_one(made, parts, tmp_path, changes):
  """Steps of all examples, over eight devices: the same losses, in whatever rows and microbatches they come."""
  loop = dataclasses.replace(LOOP, batch_size=40, steps=2)
  plain = train_generator(generator_config(made, parts, tmp_path / "plain", loop=loop))
  changed = dataclasses.replace(loop, accumulate=changes.get("accumulate", 1))
  pack_tokens = changes.get("pack_tokens")
  other = train_generator(generator_config(made, parts, tmp_path / "other", loop=changed, pack_tokens=pack_tokens))
  assert other.best_dev_loss == pytest.approx(plain.best_dev_loss, rel=1e-5)
  assert other.best_dev_loss != pytest.approx(json.loads(metrics(tmp_path / "plain")[0])["dev_loss"], rel=1e-4)
  losses = [
    [line["loss"] for line in map(json.loads, metrics(tmp_path / name)) if "loss" in line]
    for name in ("plain", "other")
  ]
  assert len(losses[0]) == 2
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  shown = json.loads((tmp_path / "other/first_batch.json").read_text())
  alone = json.loads((tmp_path / "plain/first_batch.json").read_text())
  rows = [{e["id"]: e["rows"] for e in batch["examples"]} for batch in (shown, alone)]
  assert rows[0] == rows[1]
  assert (shown["real_tokens"] < alone["real_tokens"]) == (pack_tokens is not None)  # passages are shared


@pytest.mark.parametrize("method", ["ralt", "it"])
def test_generator_is_tuned_exported_and_kept(made, parts, tmp_path, method):
  cfg = generator_config(made, parts, tmp_path / "run", method=method)
  first = train_generator(cfg)
  assert fingerprint(first.generator) != fingerprint(parts["generator"])
  assert steps_of(tmp_path / "run") == [1, 2, 3, 4]
  assert (tmp_path / "run/first_batch.json").exists()
  before = (tmp_path / "run/generator/model.safetensors").stat().st_mtime_ns
  assert train_generator(cfg) == first
  assert (tmp_path / "run/generator/model.safetensors").stat().st_mtime_ns == before


def differ_by_roundings(half, full, *, num_tokens=1):
  """bfloat16 keeps 8 bits, so logits of size 3 made of a few rounded factors are off by some 0.01 each; not by 0."""
  off = np.abs(np.asarray(half) - np.asarray(full)) / num_tokens
  assert off.max() < 0.04
  assert off.max() > 1e-4  # two float32 programs agree to 1e-5: this one did compute in bfloat16


def test_scores_in_bfloat16(made, parts, tmp_path):
  stores = []
  for dtype in ("float32", "bfloat16"):
    score(score_config(made, parts, out=f"{tmp_path}/{dtype}", dtype=dtype))
    stores.append(list(ScoreStore(f"{tmp_path}/{dtype}")))
  full, half = (np.stack([s.log_likelihood for s in store]) for store in stores)
  num_tokens = np.stack([s.num_tokens for s in stores[0]])
  assert half.dtype == np.float32
  differ_by_roundings(half, full, num_tokens=num_tokens)
  np.testing.assert_array_equal(num_tokens, np.stack([s.num_tokens for s in stores[1]]))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_training_in_bfloat16_keeps_weights_and_moments_in_float32(made, parts, tmp_path, stored):
  """Whatever the files hold: a rate of 1e-5 would be lost on weights of 8 bits."""
  from radit_jax.models.pretrained import load_generator, save_generator
  from radit_jax.training.checkpoint import Checkpoints

  files_of = {"generator": str(tmp_path / "generator")}
  save_generator(
    load_generator(parts["generator"]), load_tokenizer(parts["generator"]), tmp_path / "generator", dtype=stored
  )
  losses = []
  for dtype in ("float32", "bfloat16"):
    result = train_generator(generator_config(made, {**parts, **files_of}, tmp_path / dtype, dtype=dtype))
    lines = [json.loads(x) for x in (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()]
    losses.append([x.get("loss", x.get("dev_loss")) for x in lines])
  differ_by_roundings(losses[1], losses[0])
  checkpoints = Checkpoints(tmp_path / "bfloat16/checkpoints", keep=1)
  arrays = dict(checkpoints._manager.item_metadata(result.best_step))
  checkpoints.close()
  floats = {name: str(m.dtype) for name, m in arrays.items() if "int" not in str(m.dtype)}
  moments = [name for name in floats if name.startswith(".optimizer_state")]
  assert len(moments) == 2 * (len(floats) - len(moments)) > 0
  assert set(floats.values()) == {"float32"}


def test_resumed_generator_equals_uninterrupted(made, parts, tmp_path):
  whole = train_generator(generator_config(made, parts, tmp_path / "whole"))

  class Killed(Exception):
    pass

  def kill(stage, done, total, unit, **figures):
    if done == 3:
      raise Killed

  with pytest.raises(Killed):
    train_generator(generator_config(made, parts, tmp_path / "cut"), progress=kill)
  again = train_generator(generator_config(made, parts, tmp_path / "cut"))
  assert fingerprint(whole.generator) == fingerprint(again.generator)


def test_only_the_query_encoder_changes(made, parts, tmp_path):
  before = fingerprint(parts["encoder"])
  result = train_retriever(retriever_config(made, parts, tmp_path / "run"))
  assert fingerprint(result.query_encoder) != before
  assert fingerprint(parts["encoder"]) == before  # the passage side is the directory it was
  tuned, base = load_encoder(result.query_encoder), load_encoder(parts["encoder"])
  moved = [not np.array_equal(a, b) for a, b in zip(*(map(np.asarray, _leaves(m)) for m in (tuned, base)), strict=True)]
  assert all(moved[1:]) or sum(moved) > 10
  # The tuned encoder still reads the base's index, and finds what it is told to look for.
  again = retrieve(retrieve_config(made, parts, "test", encoder=result.query_encoder, out=f"{tmp_path}/again"))
  assert again.num_questions == len(read_split(f"{made}/split/test.jsonl"))


def _leaves(module):
  import jax

  return jax.tree.leaves(module)


@pytest.mark.parametrize("base", ["float", "int8"])
def test_generator_with_lora_is_exported_merged_and_as_an_adapter(made, parts, tmp_path, base):
  """Only the targets differ from the files, by what the adapter holds; in the type of the files; the base stays."""
  from safetensors.numpy import load_file

  before = fingerprint(parts["generator"])
  lora = c.LoraConfig(rank=2, alpha=4.0, targets=("q", "down"), base=base)
  result = train_generator(generator_config(made, parts, tmp_path / "run", lora=lora))
  assert fingerprint(parts["generator"]) == before
  adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
  merged, files_of = (load_file(f"{d}/model.safetensors") for d in (result.generator, parts["generator"]))
  assert merged.keys() == files_of.keys()
  assert len(adapter) == 2 * 2 * 2
  for name, w in files_of.items():
    a = adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
    if a is None:
      np.testing.assert_array_equal(merged[name], w)
    else:
      b = adapter[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
      assert b.any()
      np.testing.assert_allclose(merged[name], w + 2.0 * b @ a, atol=1e-6)
  assert train_generator(generator_config(made, parts, tmp_path / "run", lora=lora)) == result


def test_resumed_lora_equals_uninterrupted(made, parts, tmp_path):
  lora = c.LoraConfig(rank=2, base="int8")
  whole = train_generator(generator_config(made, parts, tmp_path / "whole", lora=lora))

  class Killed(Exception):
    pass

  def kill(stage, done, total, unit, **figures):
    if done == 3:
      raise Killed

  with pytest.raises(Killed):
    train_generator(generator_config(made, parts, tmp_path / "cut", lora=lora), progress=kill)
  again = train_generator(generator_config(made, parts, tmp_path / "cut", lora=lora))
  assert fingerprint(whole.generator) == fingerprint(again.generator)


def test_bfloat16_weights_resume_bit_for_bit_and_leave_as_they_are(made, parts, tmp_path):
  from safetensors.numpy import load_file

  optimizer = dataclasses.replace(OPTIMIZER, master_dtype="bfloat16")
  whole = train_generator(generator_config(made, parts, tmp_path / "whole", optimizer=optimizer))
  attention = {"kind": "blocked", "reason": "whole rows on a CPU"}
  assert files.read_json(tmp_path / "whole/run.json")["attention"] == attention
  tensors = load_file(f"{whole.generator}/model.safetensors")
  assert {t.dtype.name for t in tensors.values()} == {"bfloat16"}
  assert files.read_json(f"{whole.generator}/config.json")["dtype"] == "bfloat16"

  class Killed(Exception):
    pass

  def kill(stage, done, total, unit, **figures):
    if done == 3:
      raise Killed

  with pytest.raises(Killed):
    train_generator(generator_config(made, parts, tmp_path / "cut", optimizer=optimizer), progress=kill)
  again = train_generator(generator_config(made, parts, tmp_path / "cut", optimizer=optimizer))
  assert fingerprint(whole.generator) == fingerprint(again.generator)
  assert train_generator(generator_config(made, parts, tmp_path / "cut", optimizer=optimizer)) == again
  assert files.read_json(tmp_path / "cut/run.json")["attention"] == attention


def test_remat_changes_memory_and_not_the_loss(made, parts, tmp_path):
  plain, again = (train_generator(generator_config(made, parts, tmp_path / r, remat=r)) for r in ("none", "full"))
  np.testing.assert_allclose(plain.best_dev_loss, again.best_dev_loss, rtol=1e-5)


def test_query_encoder_with_lora_reads_the_same_index(made, parts, tmp_path):
  lora = c.LoraConfig(rank=2)
  before = files.read_json(f"{made}/index/manifest.json")
  result = train_retriever(retriever_config(made, parts, tmp_path / "run", lora=lora))
  attention = {"kind": "plain", "reason": "the model sees later tokens too"}
  assert files.read_json(tmp_path / "run/run.json")["attention"] == attention
  assert fingerprint(result.query_encoder) != fingerprint(parts["encoder"])
  assert passage_encoder_of(result.query_encoder) == fingerprint(parts["encoder"])
  assert files.read_json(f"{made}/index/manifest.json") == before
  assert (tmp_path / "run/adapter/adapter_config.json").exists()
  retrieve(retrieve_config(made, parts, "test", encoder=result.query_encoder, out=f"{tmp_path}/again"))


@pytest.mark.parametrize(
  ("lora", "message"),
  [
    (c.LoraConfig(rank=2, targets=("query",)), "'query' is none of down, gate, k, o, q, up, v"),
    (c.LoraConfig(rank=2, base="nf4"), "down_kernel: nf4 needs kernels of a multiple of 64 rows, this one has 32"),
  ],
)
def test_what_lora_cannot_do_does_not_take_the_directory(made, parts, tmp_path, lora, message):
  with pytest.raises(UserError, match=message):
    train_generator(generator_config(made, parts, tmp_path / "run", lora=lora))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("side", ["generator_tuning", "retriever_tuning"])
def test_a_whole_run_finds_a_wrong_target_at_once(parts, tmp_path, side):
  """And not after one of the tunings."""
  tuning = c.TuningConfig(loop=LOOP, lora=c.LoraConfig(rank=2, targets=("wide",)))
  with pytest.raises(UserError, match="'wide' is none of down"):
    run(c.RunConfig(workdir=str(tmp_path / "run"), **parts, prompt=PROMPT, **{side: tuning}))
  assert not (tmp_path / "run/passages").exists()


def test_contrastive_baseline_trains_too(made, parts, tmp_path):
  cfg = retriever_config(made, parts, tmp_path / "run", loss="contrastive", scores=None, dev_scores=None)
  result = train_retriever(cfg)
  assert np.isfinite(result.best_dev_loss)


@pytest.mark.parametrize("mode", ["retrieval", "closed_book", "gold"])
def test_evaluate_measures_every_question(made, parts, tmp_path, mode):
  cfg = c.EvaluateConfig(
    generator=parts["generator"],
    retrieved=f"{made}/retrieved/test",
    passages=f"{made}/passages",
    out=f"{tmp_path}/row.json",
    mode=mode,
    k=5,
    prompt=PROMPT,
    batch_size=4,
  )
  result = evaluate(cfg)
  assert result.n == len(read_split(f"{made}/split/test.jsonl"))
  assert 0 <= result.exact_match <= result.f1 + 1e-9 <= 1 + 1e-9
  assert result.answer_log_likelihood < 0
  assert (result.recall["recall@1"] is None) == (mode != "retrieval")
  assert evaluate(cfg) == result  # read back, not answered again


def test_evaluate_names_the_question_that_a_broken_model_gives_no_number(made, parts, tmp_path, monkeypatch):
  module = sys.modules["radit_jax.verbs.evaluate"]
  whole = module.answer_questions

  def broken(*args, **options):
    return [dataclasses.replace(a, gold_log_likelihood=float("nan")) for a in whole(*args, **options)]

  monkeypatch.setattr(module, "answer_questions", broken)
  stores = {"retrieved": f"{made}/retrieved/test", "passages": f"{made}/passages", "out": f"{tmp_path}/row.json"}
  with pytest.raises(UserError, match=r"question .*: a log-likelihood is not finite under"):
    evaluate(c.EvaluateConfig(generator=parts["generator"], **stores, k=5, prompt=PROMPT, batch_size=4))
  assert not (tmp_path / "row.json").exists()


@pytest.mark.parametrize("verb", ["score", "evaluate", "ask"])
def test_a_generator_that_is_only_read_is_held_as_it_computes(made, parts, tmp_path, monkeypatch, verb):
  """Of float32 files, which a tuning leaves, half the bytes; and onto the mesh as ever."""
  fields = {"generator": parts["generator"], "passages": f"{made}/passages", "k": 3, "prompt": PROMPT}
  fields |= {"dtype": "bfloat16", "mesh": c.MeshConfig(fsdp=2)}
  call, config = {
    "score": (score, lambda: c.ScoreConfig(**fields, retrieved=f"{made}/retrieved/dev", out=f"{tmp_path}/out")),
    "evaluate": (
      evaluate,
      lambda: c.EvaluateConfig(**fields, retrieved=f"{made}/retrieved/dev", out=f"{tmp_path}/out"),
    ),
    "ask": (
      ask,
      lambda: c.AskConfig(**fields, question="Who?", encoder=parts["encoder"], index=f"{made}/index"),
    ),
  }[verb]

  def loaded(*args, **options):
    generator = load_generator(*args, **options)
    held = {x.dtype.name for x in jax.tree.leaves(generator)}
    raise UserError(f"{generator.layers.q_kernel[...].dtype} {sorted(held)} {generator.embedding[...].sharding.spec}")

  monkeypatch.setattr(f"radit_jax.verbs.{verb}.load_generator", loaded)
  with pytest.raises(UserError, match=r"^bfloat16 \['bfloat16', 'float32'\] .*fsdp"):
    call(config())


def test_evaluate_in_bfloat16(made, parts, tmp_path):
  found = []
  for dtype in ("float32", "bfloat16"):
    cfg = c.EvaluateConfig(
      generator=parts["generator"],
      retrieved=f"{made}/retrieved/test",
      passages=f"{made}/passages",
      out=f"{tmp_path}/{dtype}.json",
      k=5,
      prompt=PROMPT,
      batch_size=4,
      dtype=dtype,
    )
    found.append([line["gold_log_likelihood"] for line in evaluate(cfg).answers])
  differ_by_roundings(found[1], found[0], num_tokens=2)  # a town and the end token


def test_ask_shows_the_passages_behind_the_answer(made, parts):
  cfg = c.AskConfig(
    question="Where does person 3 live?",
    generator=parts["generator"],
    encoder=parts["encoder"],
    index=f"{made}/index",
    passages=f"{made}/passages",
    k=3,
    prompt=PROMPT,
  )
  result = ask(cfg)
  assert len(result.passages) == 3
  assert [p[3] for p in result.passages] == sorted((p[3] for p in result.passages), reverse=True)
  assert sum(line.startswith(">") for line in result.summary().splitlines()) == 1


def test_a_generator_asked_otherwise_than_tuned_is_told(made, parts, tmp_path, caplog, monkeypatch):
  tuned = train_generator(generator_config(made, parts, tmp_path / "tuned")).generator
  stores = {"generator": tuned, "passages": f"{made}/passages"}
  found = {"encoder": parts["encoder"], "index": f"{made}/index"}
  logger = logging.getLogger("radit_jax")
  monkeypatch.setattr(logger, "propagate", False)  # absl, once imported, would tell it again
  monkeypatch.setattr(logger, "handlers", [caplog.handler])
  asked = c.AskConfig(question="Where does person 3 live?", k=5, prompt=PROMPT, **stores, **found)
  ask(asked)
  ask(dataclasses.replace(asked, generator=parts["generator"], k=3))
  assert not caplog.messages
  ask(dataclasses.replace(asked, k=3, prompt=dataclasses.replace(PROMPT, max_tokens=80)))
  said = f"{tuned}: asked with --k 3 --prompt.max-tokens 80, was tuned with --k 5 --prompt.max-tokens 96"
  assert caplog.messages == [said]
  test = f"{made}/retrieved/test"
  evaluate(c.EvaluateConfig(retrieved=test, out=f"{tmp_path}/e.json", k=4, prompt=PROMPT, limit=2, **stores))
  assert caplog.messages[1:] == [f"{tuned}: asked with --k 4, was tuned with --k 5"]


def test_a_separate_passage_encoder_is_named_once_and_kept(made, parts, tmp_path):
  """A retriever of two encoders: the index is the passage encoder's, the queries are the other's."""
  encoder = load_encoder(parts["encoder"])
  encoder.body.word_embedding[...] = encoder.body.word_embedding[...] * 1.1
  query = tmp_path / "query"
  save_encoder(encoder, load_tokenizer(parts["encoder"]), query)
  found = {"encoder": str(query), "passage_encoder": parts["encoder"]}
  for split in ("train", "dev"):
    retrieve(retrieve_config(made, parts, split, **found, out=f"{tmp_path}/{split}"))
    score(score_config(made, parts, split, retrieved=f"{tmp_path}/{split}", out=f"{tmp_path}/scores/{split}"))
  result = train_retriever(
    retriever_config(
      made,
      parts,
      tmp_path / "run",
      **found,
      retrieved=f"{tmp_path}/train",
      dev_retrieved=f"{tmp_path}/dev",
      scores=f"{tmp_path}/scores/train",
      dev_scores=f"{tmp_path}/scores/dev",
    )
  )
  # The tuned directory names its partner: no option is needed any more.
  retrieve(retrieve_config(made, parts, "test", encoder=result.query_encoder, out=f"{tmp_path}/again"))


def test_another_passage_store_is_refused(made, parts, tmp_path):
  lines = [{**d, "text": d["text"] + " Indeed."} for d in documents()]
  prepare(
    c.PrepareConfig(
      workdir=str(tmp_path / "other"), corpus=write_lines(tmp_path / "c.jsonl", lines), questions=parts["questions"]
    )
  )
  other = f"{tmp_path}/other/passages"
  with pytest.raises(UserError, match="made from the passage store"):
    evaluate(
      c.EvaluateConfig(
        generator=parts["generator"],
        retrieved=f"{made}/retrieved/test",
        passages=other,
        out=f"{tmp_path}/row.json",
        k=5,
        prompt=PROMPT,
      )
    )
  with pytest.raises(UserError, match="made from the passage store"):
    train_generator(generator_config(made, parts, tmp_path / "run", passages=other))
  with pytest.raises(UserError, match=r"index: made from the passage store"):
    train_retriever(retriever_config(made, parts, tmp_path / "run", passages=other))
  assert not (tmp_path / "run").exists()


def test_wrong_limits_do_not_take_the_directory(made, parts, tmp_path):
  """What is refused can be corrected: the first call must leave no run.json behind."""
  with pytest.raises(UserError, match="multiple of 8"):
    train_generator(generator_config(made, parts, tmp_path / "run", loop=dataclasses.replace(LOOP, batch_size=3)))
  with pytest.raises(UserError, match=r"max_tokens 4096: the generator has 2048 positions"):
    train_generator(
      generator_config(made, parts, tmp_path / "run", prompt=dataclasses.replace(PROMPT, max_tokens=4096))
    )
  assert not (tmp_path / "run/run.json").exists()
  train_generator(generator_config(made, parts, tmp_path / "run"))


def test_an_edited_template_makes_scores_stale(made, parts, tmp_path):
  template = tmp_path / "prompt.txt"
  template.write_text("{passage}\n\nAsk: {question}\nSay: {answer}")
  cfg = score_config(
    made, parts, "dev", out=f"{tmp_path}/scores", prompt=dataclasses.replace(PROMPT, style=str(template))
  )
  score(cfg)
  template.write_text("{passage}\n\nAsk: {question}\nTell: {answer}")
  with pytest.raises(UserError, match="made with prompt = "):
    score(cfg)


def test_line_separators_of_unicode_stay_in_a_question(tmp_path):
  lines = [{"id": str(i), "question": f"What\u2028 is {i}?", "answers": ["A\u0085B"]} for i in range(20)]
  corpus = write_lines(tmp_path / "c.jsonl", documents())
  prepare(
    c.PrepareConfig(workdir=str(tmp_path / "w"), corpus=corpus, questions=write_lines(tmp_path / "q.jsonl", lines))
  )
  read = [q for name in ("train", "dev", "test") for q in read_split(f"{tmp_path}/w/split/{name}.jsonl")]
  assert len(read) == 20
  assert all("\u2028" in q["question"] for q in read)


@pytest.mark.parametrize(("tune", "rows"), [("generator", ["lm_ft"]), ("retriever", ["r_ft"])])
def test_run_of_one_tuning_leaves_the_other_rows_empty(parts, tmp_path, tune, rows):
  lines = [{**q, "answers": ["so it was " * 40]} if q["id"] == "q7" else q for q in questions()]
  asked = {"questions": write_lines(tmp_path / "questions.jsonl", lines), "on_error": "skip"}
  cfg = run_config(parts, tmp_path / "run", k=3, tune=tune, redact=True, **asked)
  result = run(cfg)
  report = result.report
  assert [n for n, row in report["rows"].items() if row["n"]] == ["closed_book", "base", *rows]
  left_out = f"1 left out: an answer of more than {PROMPT.max_answer_tokens} tokens"
  assert report["left_out"] == [left_out]
  assert left_out in (tmp_path / "run/report.html").read_text()
  assert f"\n{left_out}\n" in result.summary()
  assert "--question ... --prompt" in result.summary()
  # Continued without the option, it keeps the answers, which have no texts to show.
  again = run(dataclasses.replace(cfg, redact=False)).report
  assert (again["rows"], again["examples"]) == (report["rows"], [])
  assert "questions.jsonl:8: answer 'so it was" in again["left_out"][1]


def test_run_makes_the_report_and_restarts(parts, tmp_path):
  cfg = run_config(parts, tmp_path / "run", controls=True, teacher="tuned")
  first = run(cfg)
  report = files.read_json(tmp_path / "run/report.json")
  assert list(report["rows"])[:7] == ["closed_book", "base", "it", "lm_ft", "r_ft", "ra_dit", "ra_dit_gold"]
  for row in report["rows"].values():
    assert {"exact_match", "exact_match_ci", "f1", "recall@1", "recall@5", "recall@10"} <= set(row)
    assert {"answer_log_likelihood", "n"} <= set(row)
  assert {"seed", "wall_s", "peak_memory_bytes"} <= set(report)
  assert "RA-DIT" in first.summary()
  assert f"--question '{report['examples'][0]['question']}'" in first.summary()
  # A stage that is removed is made again, the others are kept.
  kept = (tmp_path / "run/train_generator/generator/model.safetensors").stat().st_mtime_ns
  shutil.rmtree(tmp_path / "run/scores")
  second = run(cfg)
  assert second.report["rows"] == first.report["rows"]
  assert (tmp_path / "run/train_generator/generator/model.safetensors").stat().st_mtime_ns == kept
  # More steps are the same run: what was made with the shorter tuning is made again, the controls too.
  base = (tmp_path / "run/evaluation/base.json").stat().st_mtime_ns
  longer = c.TuningConfig(OPTIMIZER, dataclasses.replace(LOOP, steps=6))
  third = run(dataclasses.replace(cfg, generator_tuning=longer))
  assert steps_of(tmp_path / "run/train_generator") == [1, 2, 3, 4, 5, 6]
  assert third.report["rows"]["closed_book"] == first.report["rows"]["closed_book"]
  assert (tmp_path / "run/evaluation/base.json").stat().st_mtime_ns == base
  here = {
    name: fingerprint(tmp_path / "run" / name / "generator") for name in ("train_generator", "train_generator_it")
  }
  assert files.read_json(tmp_path / "run/scores/train/manifest.json")["generator"] == here["train_generator"]
  assert steps_of(tmp_path / "run/train_retriever") == [1, 2, 3, 4]  # from the start, on the new scores
  for row, name in (("it", "train_generator_it"), ("lm_ft", "train_generator"), ("ra_dit_gold", "train_generator")):
    assert files.read_json(tmp_path / f"run/evaluation/{row}.json")["recipe"]["inputs"]["generator"] == here[name]
  for name in ("lsr", "shuffled", "contrastive"):
    run_of = "train_retriever" if name == "lsr" else f"train_retriever_{name}"
    encoder = files.read_json(tmp_path / f"run/retrieved/{name}/test/manifest.json")["query_encoder"]
    assert encoder == fingerprint(tmp_path / "run" / run_of / "query_encoder")
  # Another recipe on the same directory is refused with the field and both values.
  with pytest.raises(UserError, match=r"k = 5, this call has 4"):
    run(dataclasses.replace(cfg, k=4))


def test_a_generator_that_is_no_work_of_the_run_is_never_made_anew_for(parts, tmp_path):
  """Only what the run tuned itself may change under it: another base is another run, and nothing is removed."""
  cfg = run_config(parts, tmp_path / "run", k=3, tune="retriever")
  run(cfg)
  shutil.copytree(parts["generator"], tmp_path / "generator")
  (tmp_path / "generator/notes.txt").write_text("another one")
  kept = (tmp_path / "run/scores/train/manifest.json").stat().st_mtime_ns
  with pytest.raises(UserError, match=r"scores.*made with generator = "):
    run(dataclasses.replace(cfg, generator=str(tmp_path / "generator")))
  assert (tmp_path / "run/scores/train/manifest.json").stat().st_mtime_ns == kept


def test_what_run_refuses_can_be_corrected_in_the_same_directory(parts, tmp_path):
  """Before the tunings begin no option is nailed down: each of these would otherwise stand in run.json."""
  longer = [{**q, "answers": [f"{q['answers'][0]} by the river"]} for q in questions()]
  asked = {"questions": write_lines(tmp_path / "questions.jsonl", longer)}
  prompt = dataclasses.replace(PROMPT, max_answer_tokens=24)
  cfg = run_config(parts, tmp_path / "run", k=3, tune="generator", prompt=prompt, **asked)
  tuning = c.TuningConfig(OPTIMIZER, dataclasses.replace(LOOP, batch_size=3))
  for changes, message in (
    ({"teacher": f"{tmp_path}/nowhere"}, "nowhere: no such directory"),
    ({"prompt": dataclasses.replace(PROMPT, max_tokens=4096)}, "max_tokens 4096: the generator has 2048 positions"),
    ({"generator_tuning": tuning}, "multiple of 8"),
    ({"retriever_tuning": tuning}, "multiple of 8"),
    ({"corpus": f"{tmp_path}/nowhere.jsonl"}, "nowhere.jsonl: no such file"),
  ):
    with pytest.raises(UserError, match=message):
      run(dataclasses.replace(cfg, **changes))
    assert not (tmp_path / "run").exists()
  with pytest.raises(UserError, match=r"k = 41 passages per question, .*corpus.jsonl makes 40; lower --k"):
    run(dataclasses.replace(cfg, k=41))
  with pytest.raises(UserError, match=r"question 'q\d+': answer '\w+ by the river'"):
    run(dataclasses.replace(cfg, prompt=dataclasses.replace(PROMPT, max_answer_tokens=2)))
  assert not (tmp_path / "run/run.json").exists()
  assert run(cfg).report["rows"]["lm_ft"]["n"]


@pytest.mark.parametrize("on_error", ["strict", "skip"])
def test_an_answer_the_generator_has_no_room_for(parts, tmp_path, on_error):
  lines = [{**q, "answers": ["so it was " * 40]} if q["id"] == "q7" else q for q in questions()]
  asked = write_lines(tmp_path / "questions.jsonl", lines)
  from radit_jax.data.prompts import Prompt

  prompt = Prompt(load_tokenizer(parts["generator"]), PROMPT)
  config = c.PrepareConfig(
    workdir=str(tmp_path / "run"), corpus=parts["corpus"], questions=asked, on_error=on_error, split_by="auto"
  )
  if on_error == "strict":
    with pytest.raises(UserError, match=r"questions.jsonl:8: answer 'so it .* --on-error skip"):
      prepare(config, prompt=prompt)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
  else:
    made = prepare(config, prompt=prompt)
    assert sum(made.num_questions.values()) == 39
    assert f"1 left out: an answer of more than {PROMPT.max_answer_tokens} tokens" in made.summary()
    assert "questions.jsonl:8: answer 'so it" in made.summary()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("name", "on_error"), [("corpus", "strict"), ("questions", "strict"), ("questions", "skip")])
def test_a_squad_file_read_as_lines_is_told(parts, tmp_path, name, on_error, indent):
  (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": []}, indent=indent))
  paths = {"corpus": parts["corpus"], "questions": parts["questions"], name: f"{tmp_path}/squad.json"}
  with pytest.raises(UserError, match=rf'squad.json: one JSON object with "data".*; --{name}-format squad reads it$'):
    prepare(c.PrepareConfig(workdir=str(tmp_path / "run"), on_error=on_error, **paths))


def steps_of(workdir):
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [x["step"] for x in lines if "loss" in x]


GOOD_DOCUMENT = {"id": "a", "text": "A town."}
GOOD_QUESTION = {"id": "q", "question": "What?", "answers": ["A town"]}


def line(value):
  return json.dumps(value).encode() + b"\n"


THREE_QUESTIONS = b"".join(line({**GOOD_QUESTION, "id": name, "passage_ids": ["zz"]}) for name in "abc")


@pytest.mark.parametrize(
  ("corpus", "asked", "message"),
  [
    (None, None, r"corpus.jsonl: no such file"),
    (b"", None, r"corpus.jsonl.*empty"),
    (line(GOOD_DOCUMENT) + b"{not json\n", None, r"corpus.jsonl:2: .*JSON"),
    (line({"id": "a"}), None, r"corpus.jsonl:1: .*text"),
    (line(GOOD_DOCUMENT) * 2, None, r"corpus.jsonl:2: .*'?a'?.*1"),
    (b'{"id": "a", "text": "\xff"}\n', None, r"corpus.jsonl:1: .*UTF-8"),
    (line({"id": "a", "text": "  "}), None, r"corpus.jsonl:1: .*empty"),
    (line(GOOD_DOCUMENT), b"", r"questions.jsonl.*empty"),
    (line(GOOD_DOCUMENT), b"[]\n", r"questions.jsonl:1: "),
    (line(GOOD_DOCUMENT), line({"id": "q", "question": "What?"}), r"questions.jsonl:1: .*answers"),
    (line(GOOD_DOCUMENT), line(GOOD_QUESTION) * 2, r"questions.jsonl:2: .*'?q'?.*1"),
    (line(GOOD_DOCUMENT), THREE_QUESTIONS, r"'zz'"),
    (line(GOOD_DOCUMENT), line(GOOD_QUESTION), r"1 group"),
  ],
)
def test_bad_files_are_named_and_nothing_is_written(tmp_path, corpus, asked, message):
  if corpus is not None:
    (tmp_path / "corpus.jsonl").write_bytes(corpus)
  (tmp_path / "questions.jsonl").write_bytes(line(GOOD_QUESTION) if asked is None else asked)
  out = tmp_path / "out"
  with pytest.raises(UserError, match=message):
    prepare(
      c.PrepareConfig(
        workdir=str(out), corpus=str(tmp_path / "corpus.jsonl"), questions=str(tmp_path / "questions.jsonl")
      )
    )
  assert not (out / "split").exists()
  assert not list(out.glob(".*")) if out.exists() else True


def test_k_above_the_corpus_is_refused(made, parts, tmp_path):
  with pytest.raises(UserError, match=r"k = 41 .* holds 40"):
    retrieve(retrieve_config(made, parts, k=41, out=f"{tmp_path}/out"))
  assert not (tmp_path / "out").exists()


def test_index_of_another_encoder_is_refused(made, parts, tmp_path):
  other = tmp_path / "encoder"
  shutil.copytree(parts["encoder"], other)
  encoder = load_encoder(parts["encoder"])
  encoder.body.word_embedding[...] = encoder.body.word_embedding[...] * 2.0
  save_encoder(encoder, load_tokenizer(parts["encoder"]), other)
  with pytest.raises(UserError, match="built by the encoder"):
    retrieve(retrieve_config(made, parts, encoder=str(other), out=f"{tmp_path}/out"))


def test_non_finite_embedding_is_named_before_the_index(made, parts, tmp_path):
  from safetensors.numpy import load_file, save_file

  weights = shutil.copytree(parts["encoder"], tmp_path / "encoder") / "model.safetensors"
  tensors = load_file(weights)
  (name,) = (name for name in tensors if "word_embeddings" in name)
  save_file({**tensors, name: tensors[name] * np.float32(np.nan)}, weights)
  with pytest.raises(UserError, match="finite"):
    index(
      index_config(
        made, parts, encoder=str(tmp_path / "encoder"), embeddings=f"{tmp_path}/embeddings", index=f"{tmp_path}/index"
      )
    )
  assert not (tmp_path / "index").exists()
  assert not (tmp_path / "embeddings").exists()


def test_stale_scores_are_refused(made, parts, tmp_path):
  shutil.copytree(made / "retrieved/train", tmp_path / "retrieved")
  retrieve(retrieve_config(made, parts, "train", k=3, out=f"{tmp_path}/other"))
  with pytest.raises(UserError, match="retrieved"):
    train_retriever(retriever_config(made, parts, tmp_path / "run", retrieved=f"{tmp_path}/other", k=3))


def test_other_options_on_a_training_directory_are_refused(made, parts, tmp_path):
  train_generator(generator_config(made, parts, tmp_path / "run"))
  with pytest.raises(UserError, match=r"optimizer.peak_lr = 0.001, this call has 0.5"):
    train_generator(
      generator_config(made, parts, tmp_path / "run", optimizer=dataclasses.replace(OPTIMIZER, peak_lr=0.5))
    )


@pytest.mark.parametrize("verb", ["index", "retrieve", "score", "train_generator", "train_retriever", "evaluate"])
def test_missing_store_is_one_line(parts, tmp_path, verb):
  missing = tmp_path / "nowhere"
  calls = {
    "index": lambda: index(index_config(missing, parts)),
    "retrieve": lambda: retrieve(retrieve_config(missing, parts)),
    "score": lambda: score(score_config(missing, parts)),
    "train_generator": lambda: train_generator(generator_config(missing, parts, tmp_path / "run")),
    "train_retriever": lambda: train_retriever(retriever_config(missing, parts, tmp_path / "run")),
    "evaluate": lambda: evaluate(
      c.EvaluateConfig(
        generator=parts["generator"], retrieved=f"{missing}/r", passages=f"{missing}/p", out=f"{tmp_path}/row.json"
      )
    ),
  }
  with pytest.raises(UserError, match="nowhere") as caught:
    calls[verb]()
  assert "\n" not in str(caught.value)
  assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == []


@pytest.mark.parametrize("backend", ["exact", "scann", "device", "milvus"])
def test_every_backend_serves_every_verb(made, parts, tmp_path, backend, request):
  """One option is changed; what is retrieved stays the same."""
  options = {"milvus_uri": request.getfixturevalue("milvus_uri")} if backend == "milvus" else {}
  built = index(index_config(made, parts, index=f"{tmp_path}/index", backend=backend, **options))
  assert built.num_passages == 40
  assert files.read_manifest(tmp_path / "index", "index")["backend"] == backend
  again = index(index_config(made, parts, index=f"{tmp_path}/index", backend=backend, **options))
  assert again.overlap == built.overlap
  retrieve(retrieve_config(made, parts, "test", index=f"{tmp_path}/index", out=f"{tmp_path}/out"))
  assert [e.passage_rows.tolist() for e in RetrievedStore(tmp_path / "out")] == [
    e.passage_rows.tolist() for e in RetrievedStore(made / "retrieved/test")
  ]
  found = ask(
    c.AskConfig(
      question="Where does person 3 live?",
      generator=parts["generator"],
      encoder=parts["encoder"],
      index=f"{tmp_path}/index",
      passages=f"{made}/passages",
      k=3,
      prompt=PROMPT,
    )
  )
  assert len(found.passages) == 3


def test_a_run_hands_its_backend_on(parts, tmp_path, milvus_uri):
  config = run_config(parts, tmp_path, backend="milvus", milvus_uri=milvus_uri)
  made_of = Workdir(config, silent)._index_config()
  assert (made_of.backend, made_of.milvus_uri) == ("milvus", milvus_uri)
