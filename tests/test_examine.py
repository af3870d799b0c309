"""What is measured while training: fields of metrics.jsonl, dev questions answered or searched for, the best picked."""

import dataclasses
import types

import numpy as np
import pytest
from test_verbs import LOOP, generator_config, made, retriever_config  # noqa: F401

from radit_jax import files, hosts
from radit_jax.data.examples import RetrievedStore
from radit_jax.errors import Preempted, UserError
from radit_jax.evaluation.metrics import first_hit
from radit_jax.models.pretrained import load_encoder, load_tokenizer
from radit_jax.retrieval.embed import embed_queries
from radit_jax.retrieval.index import load_index
from radit_jax.training import manifests
from radit_jax.training.metrics import read_metrics
from radit_jax.verbs import examine
from radit_jax.verbs.train_generator import train_generator
from radit_jax.verbs.train_retriever import train_retriever

TRAIN = {"step", "loss", "grad_norm", "lr", "tokens", "batch_ids_hash", "nonfinite_steps", "timing"}
LSR = {
  *("retriever_entropy", "teacher_entropy", "uniform_retriever", "uniform_teacher", "one_hot_retriever"),
  *("one_hot_teacher", "single", "alike", "rank_correlation", "score_range", "teacher_range"),
}
TIMES = {f"{phase}_s" for phase in ("data", "compile", "step", "evaluate", "checkpoint", "idle")}
SPEEDS = {"steps_per_s", "tokens_per_s", "padded_tokens_per_s", "goodput", "host_memory_bytes"}


def lines(workdir, name):
  return [line for line in read_metrics(workdir / "metrics.jsonl") if name in line]


def same(line):
  """What a continued run repeats."""
  return {name: value for name, value in line.items() if name != "timing"}


@pytest.fixture(scope="module")
def tuned(made, parts, tmp_path_factory):  # noqa: F811
  root = tmp_path_factory.mktemp("tuned")
  loop = dataclasses.replace(LOOP, select="mrr", dev_questions=50)
  return train_retriever(retriever_config(made, parts, root, loop=loop)), root


def test_lines_of_a_generator_tell_loss_work_and_time(made, parts, tmp_path):  # noqa: F811
  train_generator(generator_config(made, parts, tmp_path))
  train = lines(tmp_path, "loss")
  assert len(train) == 4
  for line in train:
    assert line.keys() == TRAIN
    assert line["timing"].keys() == TIMES | SPEEDS  # no MFU: the peak of a CPU is not known
    assert line["timing"]["tokens_per_s"] < line["timing"]["padded_tokens_per_s"]
  assert train[0]["timing"]["compile_s"] > 0
  assert train[2]["timing"]["evaluate_s"] > 0  # after the dev loss of step 2


def test_lines_of_a_retriever_tell_what_teacher_and_retriever_think(tuned):
  _, root = tuned
  for line in lines(root, "loss"):
    assert line.keys() == TRAIN | LSR
    assert 0 <= line["retriever_entropy"] <= np.log(5) + 1e-6
  dev = lines(root, "dev_loss")
  for line in dev:
    assert line["dev"].keys() == LSR | {"moved", "mrr", "recall"}
  moved = [line["dev"]["moved"] for line in dev]
  assert moved[0] == pytest.approx(0, abs=1e-6)
  assert 1e-6 < moved[-1] < 1


def test_rankings_are_those_of_the_whole_index(tuned, made, parts):  # noqa: F811
  result, root = tuned
  dev = lines(root, "dev_loss")
  encoder, tokenizer = load_encoder(parts["encoder"]), load_tokenizer(parts["encoder"])
  examples = list(RetrievedStore(made / "retrieved/dev"))
  queries = embed_queries(encoder, tokenizer, [e.query for e in examples], max_tokens=256, batch_size=8)
  found = load_index(made / "index").search(queries, 5).ids
  ranks = [first_hit(e.gold_rows, e.answers, rows.tolist(), str) for e, rows in zip(examples, found, strict=True)]
  assert dev[0]["dev"]["mrr"] == pytest.approx(np.mean([1 / (r + 1) if r < 5 else 0 for r in ranks]))
  assert dev[0]["dev"]["recall"] == pytest.approx(np.mean([r < 5 for r in ranks]))
  best = max(dev[1:], key=lambda line: (line["dev"]["mrr"], -line["step"]))
  assert result.best_step == best["step"]
  assert result.best_dev_loss == best["dev_loss"]
  found = {step.number: step.manifest["metrics"] for step in manifests.steps(root / "checkpoints")}
  assert found[result.best_step]["mrr"] == best["dev"]["mrr"]


def test_a_generator_is_picked_by_its_answers_and_a_cut_run_picks_the_same(made, parts, tmp_path):  # noqa: F811
  loop = dataclasses.replace(LOOP, select="exact_match", dev_questions=3, patience=2)

  def cut(stage, done, total, unit, **figures):
    if (stage, done) == ("train generator (ralt)", 3):
      raise Preempted("cut")

  with pytest.raises(Preempted):
    train_generator(generator_config(made, parts, tmp_path / "cut", loop=loop), progress=cut)
  again = train_generator(generator_config(made, parts, tmp_path / "cut", loop=loop))
  whole = train_generator(generator_config(made, parts, tmp_path / "whole", loop=loop))
  assert dataclasses.replace(again, generator=whole.generator) == whole
  one, other = ([same(x) for x in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("cut", "whole"))
  assert one == other
  assert {"exact_match", "answer_log_likelihood"} == one[0]["dev"].keys()
  weights = [files.sha256_file(tmp_path / name / "generator/model.safetensors") for name in ("cut", "whole")]
  assert weights[0] == weights[1]


def test_questions_without_gold_passages_need_the_passages(made, parts, tmp_path, monkeypatch):  # noqa: F811
  # The first answer stands in every passage, as a choice's letter would, and is none to look for.
  many, unknown = RetrievedStore.many, {"gold_rows": (), "answers": ("person",)}
  monkeypatch.setattr(
    RetrievedStore, "many", lambda self, rows: [dataclasses.replace(e, **unknown) for e in many(self, rows)]
  )
  loop = dataclasses.replace(LOOP, select="recall")
  with pytest.raises(UserError, match=r"no question names its gold passage.*need --passages"):
    train_retriever(retriever_config(made, parts, tmp_path / "a", loop=loop))
  train_retriever(retriever_config(made, parts, tmp_path / "b", loop=loop, passages=f"{made}/passages"))
  assert 0 < lines(tmp_path / "b", "dev_loss")[0]["dev"]["recall"] < 1  # towns are named in several passages


@pytest.mark.parametrize("options", [{"select": "exact_match"}, {"dev_questions": 2}])
def test_plain_text_has_nothing_to_answer(made, parts, tmp_path, monkeypatch, options):  # noqa: F811
  many = RetrievedStore.many
  monkeypatch.setattr(
    RetrievedStore, "many", lambda self, rows: [dataclasses.replace(e, category="text") for e in many(self, rows)]
  )
  loop = dataclasses.replace(LOOP, **options)
  with pytest.raises(UserError, match=r"retrieved/dev: plain text is all that was drawn \([24] of 4") as error:
    train_generator(generator_config(made, parts, tmp_path / "run", loop=loop))
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(("first", "together"), [(True, False), (False, False), (False, True)])
def test_every_process_searches_rows_that_lie_with_all_and_else_the_first(first, together, monkeypatch):
  searched, told = [], []

  def search(queries, k):
    searched.append(len(queries))
    return types.SimpleNamespace(ids=np.array([[3, 7], [4, 5]]))

  monkeypatch.setattr(hosts, "is_first", lambda: first)
  monkeypatch.setattr(hosts, "exchange", lambda text: told.append(text) or ["1 2", text])
  index = types.SimpleNamespace(together=together, search=search)
  right = [lambda rows: rows.index(7), None, lambda rows: 2]
  found = examine._rankings(right, index, np.zeros((3, 4)), 2)
  assert found == {"mrr": 0.25, "recall": 0.5}  # what the first one told
  assert (searched, told) == (([2], ["1 2"]) if first or together else ([], [""]))


@pytest.mark.parametrize(
  ("config", "select", "allowed"),
  [(generator_config, "mrr", "'dev_loss', 'exact_match'"), (retriever_config, "exact_match", "'dev_loss', 'mrr'")],
)
def test_what_is_not_measured_picks_nothing(config, select, allowed, tmp_path):
  parts = {"generator": "g", "encoder": "e"}
  with pytest.raises(UserError, match=f"loop.select = '{select}': must be one of {allowed}"):
    config("made", parts, tmp_path, loop=dataclasses.replace(LOOP, select=select))
