"""Pre-trainings write their first batch like every training run, and it is the one the first step learnt from."""

import dataclasses
import importlib.util
import json
import pathlib

import pytest

from radit_jax import quickstart
from radit_jax.config import PrepareConfig
from radit_jax.data.corpus import PassageStore
from radit_jax.models.pretrained import load_tokenizer
from radit_jax.progress import silent
from radit_jax.quickstart import parts
from radit_jax.quickstart.world import make_world
from radit_jax.verbs.prepare import prepare


def first_batch(workdir):
  assert (workdir / "first_batch.txt").read_text()
  return json.loads((workdir / "first_batch.json").read_text())["examples"]


@pytest.fixture(scope="module")
def world():
  return make_world(0, num_people=20)


def test_the_quickstarts_generator(world, tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "GENERATOR_LOOP", dataclasses.replace(parts.GENERATOR_LOOP, steps=1, batch_size=8))
  quickstart._make_generator(world, 3, tmp_path, silent)
  rows = next(parts.generator_batches(world, load_tokenizer(tmp_path / "generator"), 3, batch_size=8))
  shown = first_batch(tmp_path / "pretrain_generator")
  assert [e["id"] for e in shown] == [f"text-{i}" for i in range(8)]
  assert [e["rows"][0]["tokens"] for e in shown] == rows


def test_the_quickstarts_encoder(world, tmp_path, monkeypatch):
  monkeypatch.setattr(parts, "ENCODER_LOOP", dataclasses.replace(parts.ENCODER_LOOP, steps=1, batch_size=8))
  quickstart._make_encoder(world, 3, tmp_path, silent)
  queries, passages = next(parts.encoder_batches(world, load_tokenizer(tmp_path / "encoder"), 3, batch_size=8))
  shown = first_batch(tmp_path / "pretrain_encoder")
  assert [e["id"] for e in shown] == [f"pair-{i}" for i in range(8)]
  assert [e["query"]["tokens"] for e in shown] == queries
  assert [e["passage"]["tokens"] for e in shown] == passages


def test_a_small_generator_for_a_users_files(tmp_path):
  path = pathlib.Path(__file__).parent.parent / "scripts/pretrain_small.py"
  spec = importlib.util.spec_from_file_location("pretrain_small", path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  documents = [{"id": f"d{i}", "text": f"Town {i} lies by the river. Its mill is number {i}."} for i in range(12)]
  asked = [{"id": f"q{i}", "question": "?", "answers": ["mill"], "passage_ids": [f"d{i}"]} for i in range(12)]
  for name, lines in (("corpus", documents), ("questions", asked)):
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  workdir = tmp_path / "w"
  prepare(
    PrepareConfig(
      workdir=str(workdir), corpus=str(tmp_path / "corpus.jsonl"), questions=str(tmp_path / "questions.jsonl")
    )
  )
  out = tmp_path / "generator"
  script.main(
    script.Config(str(workdir), str(out), vocab_size=400, width=64, layers=1, max_tokens=64, steps=1, batch_size=8)
  )
  shown = first_batch(tmp_path / "generator.run")
  assert len(shown) == 8
  tokenizer = load_tokenizer(out)
  texts = PassageStore(workdir / "passages").texts(range(12))
  for example in shown:
    row = example["rows"][0]
    assert row["answer_mask"] == [0] + [1] * (len(row["tokens"]) - 1)
    text = tokenizer.decode(row["tokens"], skip_special_tokens=True)
    assert any(passage in text for passage in texts)
