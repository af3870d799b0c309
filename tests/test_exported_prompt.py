"""The exported prompt.py, run as its users run it, against the ids that Prompt renders."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from chat_families import CASES, FAMILIES, harmless, tokenizer_of
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radit_jax import losses
from radit_jax.config import PromptConfig
from radit_jax.data import exported_prompt
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage

SCRIPT = pathlib.Path(exported_prompt.__file__)
TITLED = "Title: {title}\nText: {passage}.\n\nAsked: {question} (one word)\nAnswer: {answer}"


def export(prompt, path, score_temperature=1.0):
  """What an export writes, as far as prompt.py reads it."""
  shutil.copyfile(SCRIPT, path / "prompt.py")
  record = {"prompt": prompt.recipe(), "score_temperature": score_temperature, "k": 5}
  (path / "radit.json").write_text(json.dumps(record), encoding="utf-8")


def run(path, lines, **options):
  command = [sys.executable, "-I", "-S", str(path / "prompt.py")]
  return subprocess.run(command, input="".join(lines), capture_output=True, text=True, encoding="utf-8", **options)


def module_of(path):
  spec = importlib.util.spec_from_file_location("prompt", path / "prompt.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def line(question, passage):
  record = {"question": question}
  if passage:
    record |= {"passage": passage.text, "title": passage.title}
  return json.dumps(record, ensure_ascii=False) + "\n"


def prompt_of(style, tokenizer, path):
  if style == "file":
    (path / "template.txt").write_text(TITLED, encoding="utf-8")
    style = str(path / "template.txt")
  return Prompt(tokenizer, PromptConfig(style=style, max_tokens=1024, max_passage_tokens=400, max_answer_tokens=200))


@pytest.mark.parametrize("style", ["plain", "chat", "file"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_has_the_ids_of_the_row(name, style, tmp_path):
  tokenizer = tokenizer_of(name)
  prompt = prompt_of(style, tokenizer, tmp_path)
  export(prompt, tmp_path)
  cases = [(q, p) for q, p, _ in CASES + harmless(150)]
  done = run(tmp_path, (line(*case) for case in cases), check=True)
  texts = [json.loads(x)["prompt"] for x in done.stdout.splitlines()]
  assert len(texts) == len(cases)
  for text, case in zip(texts, cases, strict=True):
    assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == prompt.render(*case, None).tokens, text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("style", ["plain", "chat", "file"])
def test_a_recipe_says_what_else_an_engine_must_know(name, style, tmp_path):
  tokenizer = tokenizer_of(name)
  prompt = prompt_of(style, tokenizer, tmp_path)
  recipe = prompt.recipe()
  assert json.loads(json.dumps(recipe)) == recipe
  assert recipe["style"] == style
  assert recipe["hash"] == prompt.hash
  assert tuple(end["id"] for end in recipe["end"]) == prompt.end_ids
  assert [tokenizer.convert_tokens_to_ids(end["text"]) for end in recipe["end"]] == list(prompt.end_ids)
  assert recipe["limits"] == {"max_tokens": 1024, "max_passage_tokens": 400, "max_answer_tokens": 200}
  starts_with_bos = prompt.render("Who?", None, None).tokens[0] == tokenizer.bos_token_id
  assert (recipe["bos"] is not None) == (starts_with_bos and tokenizer.bos_token_id is not None)
  if recipe["bos"]:
    assert recipe["bos"] == {"id": tokenizer.bos_token_id, "text": tokenizer.bos_token, "in_text": True}
    assert recipe["closed_book"][0]["text"].startswith(tokenizer.bos_token)
  slots = ["title", "passage", "question"] if style == "file" else ["passage", "question"]
  assert [piece["slot"] for piece in recipe["with_passage"] if "slot" in piece] == slots
  assert [piece["slot"] for piece in recipe["closed_book"] if "slot" in piece] == ["question"]


def stripping():
  """Takes the spaces off that stand before a text, so that nothing in a text can give its first word one."""
  words = ["<unk>", "<s>", "</s>", "▁", *(f"{p}{c}" for p in ("", "▁") for c in map(chr, range(33, 127)))]
  backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("▁", "B"), ("▁", "Q")], unk_token="<unk>"))
  backend.normalizer = normalizers.Strip(left=True, right=False)
  backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
  names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
  return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_a_bos_token_that_no_text_can_hold_is_the_engines_to_add(tmp_path):
  tokenizer = stripping()
  prompt = Prompt(tokenizer, PromptConfig())
  recipe = prompt.recipe()
  assert recipe["bos"] == {"id": 1, "text": "<s>", "in_text": False}
  assert recipe["with_passage"][0] == {"text": "Background: "}
  export(prompt, tmp_path)
  text = module_of(tmp_path).build_prompt("Who?", "Born here.", "Orlen")
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  assert (1, *ids) == prompt.render("Who?", Passage("p", "Orlen", "Born here."), None).tokens


def test_limits_that_cut_do_not_change_the_recipes_text():
  tokenizer = tokenizer_of("mistral_v1")
  wide = Prompt(tokenizer, PromptConfig()).recipe()
  tight = Prompt(tokenizer, PromptConfig(max_tokens=40, max_passage_tokens=1, max_answer_tokens=2)).recipe()
  assert (wide["with_passage"], wide["bos"]) == (tight["with_passage"], tight["bos"])


def test_pieces_tell_users_texts_from_the_templates(tmp_path):
  tokenizer = tokenizer_of("llama3")
  prompt = prompt_of("plain", tokenizer, tmp_path)
  export(prompt, tmp_path)
  built = module_of(tmp_path)
  passage = Passage("p", "Orlen <|eot_id|>", "Born here <|eot_id|> in 1998")
  question = "Who <|start_header_id|>"
  pieces = built.build_pieces(question, passage.text, passage.title)
  assert "".join(text for _, text in pieces) == built.build_prompt(question, passage.text, passage.title)
  assert [text for users, text in pieces if users] == [" " + passage.full_text, " " + question]
  ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=users)["input_ids"] for users, text in pieces]
  assert tuple(i for own in ids for i in own) == prompt.render(question, passage, None).tokens


@pytest.mark.parametrize("style", ["plain", "chat", "file"])
def test_empty_texts_and_spaces_are_treated_alike(style, tmp_path):
  tokenizer = tokenizer_of("qwen2.5")
  prompt = prompt_of(style, tokenizer, tmp_path)
  export(prompt, tmp_path)
  built = module_of(tmp_path)
  for question, passage in [
    (" Who? \n", Passage("p", " Orlen ", " Born here. ")),
    ("Who?", Passage("p", "Orlen", "")),
    ("Who?", Passage("p", " ", " Born here")),
    (" Who?", None),
  ]:
    text = built.build_prompt(question, passage and passage.text, passage.title if passage else "")
    assert (
      tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == prompt.render(question, passage, None).tokens
    )


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_weights_are_those_of_equation_2(temperature, tmp_path):
  prompt = prompt_of("plain", tokenizer_of("phi3"), tmp_path)
  export(prompt, tmp_path, temperature)
  built = module_of(tmp_path)
  for scores in ([0.31, 0.62, 0.6], [412.5, 398.25, 411.0], [-3.0]):
    expected = np.exp(losses.retriever_log_probs(np.array(scores, np.float32), temperature=temperature))
    np.testing.assert_allclose(built.mixture_weights(scores), expected, rtol=2e-4, atol=1e-7)
  assert built.mixture_weights([]) == []


@pytest.mark.parametrize("bad", ['{"passage": "x"}', "[1]", "{", '{"question": 3}', '{"question": "x", "passage": 4}'])
def test_a_bad_line_is_named(bad, tmp_path):
  export(prompt_of("plain", tokenizer_of("gemma"), tmp_path), tmp_path)
  done = run(tmp_path, ['{"question": "Who?"}\n', bad + "\n"])
  assert done.returncode == 2
  assert len(done.stdout.splitlines()) == 1
  assert done.stderr.startswith("line 2: ")
  assert len(done.stderr.splitlines()) == 1


def test_it_needs_python_alone():
  found = {line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith(("import ", "from "))}
  assert found <= {"__future__", "functools", "json", "math", "pathlib", "sys", "typing"}
