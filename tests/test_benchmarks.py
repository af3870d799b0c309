"""The benchmarks themselves: that they run, that the contestants agree, and that a wrong one is found out."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")


pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
  """Two articles of three paragraphs, a question on each."""
  towns = ("Arlen", "Borva", "Cindel")

  def paragraph(article, n):
    text = f"In {towns[n]} stands the mill of {article}. " * (n + 1)
    asked = {"id": f"{article}-{n}", "question": f"Where does mill {n} stand?"}
    return {"context": text, "qas": [{**asked, "answers": [{"text": towns[n], "answer_start": 3}]}]}

  data = [{"title": a, "paragraphs": [paragraph(a, n) for n in range(3)]} for a in ("Ottil", "Pern")]
  path = tmp_path_factory.mktemp("squad") / "squad.json"
  path.write_text(json.dumps({"version": "1.1", "data": data}))
  return str(path)


@pytest.fixture
def small(squad):
  import against_torch
  from workload import Shape

  shape = Shape(width=32, layers=2, vocabulary=400, head_dim=8)
  return against_torch.Config(
    squad=squad, shape=shape, questions=4, scored=4, batch_size=2, k=2, pack_tokens=128, rounds=1, torch_rows=(2,)
  )


def test_contestants_agree_and_the_page_gets_the_table(small, tmp_path):
  import against_torch

  page = tmp_path / "page.md"
  page.write_text("before\n<!-- against_torch -->\nold\n<!-- /against_torch -->\nafter\n")
  rates = against_torch.main(dataclasses.replace(small, write=str(page)))
  assert {kind: set(of) for kind, of in rates.items()} == {
    "train": {"usual", "strong", "padded", "packed"},
    "drawn": {"usual", "strong", "padded", "packed"},
    "score": {"usual", "strong", "apart", "shared"},
  }
  text = page.read_text()
  assert text.startswith("before\n<!-- against_torch -->\n| real tokens")
  assert text.endswith("<!-- /against_torch -->\nafter\n")
  assert "| RALT step, the first questions of the file |" in text
  assert "| scoring |" in text


def test_a_contestant_that_does_other_work_is_refused(small, monkeypatch):
  import against_torch
  import torch_side

  right = torch_side.Strong.score
  monkeypatch.setattr(torch_side.Strong, "score", lambda self, prompts: 1.001 * right(self, prompts))
  with pytest.raises(SystemExit, match="strong scores otherwise"):
    against_torch.main(small)


def test_agreement_is_to_a_relative_difference():
  import against_torch

  with pytest.raises(SystemExit, match="ours trains otherwise"):
    against_torch._agreeing(0.0, [1.0, 2.002], [1.0, 2.0], "ours trains")


def test_chart_of_growth_has_a_panel_for_each_sweep_and_linear_cost_on_the_diagonal():
  import growth

  figures = [dict.fromkeys(growth.FIGURES, float(value)) for value in (1, 2, 4)]
  svg = growth.chart({sweep: list(zip((1, 2, 4), figures, strict=True)) for sweep in ("k", "layers")})
  assert svg.count("<svg ") == 3
  assert "step from 0 to 2" in svg  # two doublings of the cost for two doublings of k


def test_a_page_without_the_section_is_an_error(tmp_path):
  import page

  path = tmp_path / "page.md"
  path.write_text("nothing here")
  with pytest.raises(ValueError, match="no section"):
    page.write_section(str(path), "growth", "text")
