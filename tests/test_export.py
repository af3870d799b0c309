"""What a run tuned, as directories that other libraries load: the same words, the same vectors, and a true card."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.torch
import sentence_transformers
import torch
import transformers
import yaml

from radit_jax import config as c
from radit_jax.errors import UserError
from radit_jax.models import safetensors_files
from radit_jax.models.pretrained import fingerprint, load_encoder, load_generator, load_tokenizer
from radit_jax.retrieval.embed import embed_queries
from radit_jax.verbs.ask import ask
from radit_jax.verbs.cards import licence_of
from radit_jax.verbs.export import export
from radit_jax.verbs.run import run
from radit_jax.verbs.train_generator import train_generator

PROMPT = c.PromptConfig(max_tokens=96, max_passage_tokens=40, max_answer_tokens=8)
OPTIMIZER = c.OptimizerConfig(peak_lr=3e-3, floor_lr=1e-4, warmup_steps=4)
QUESTION = "Where does person 7 live?"


def tuning(steps):
  return c.TuningConfig(OPTIMIZER, c.LoopConfig(steps=steps, batch_size=8, log_every=10, evaluate_every=steps))


@pytest.fixture(scope="module")
def base(parts, tmp_path_factory):
  """The tiny generator with a licence, two end tokens, and a field of its own in config.json."""
  import shutil

  path = shutil.copytree(parts["generator"], tmp_path_factory.mktemp("base") / "tiny-base")
  (path / "README.md").write_text("---\nlicense: mit\n---\n# A tiny base\n")
  tokenizer = load_tokenizer(path)
  ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("!")]
  (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "top_k": 7}))
  config = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(config | {"note": "kept"}))
  return path


@pytest.fixture(scope="module")
def ran(parts, base, tmp_path_factory):
  root = tmp_path_factory.mktemp("run")
  config = c.RunConfig(
    workdir=str(root / "run"),
    corpus=parts["corpus"],
    questions=parts["questions"],
    generator=str(base),
    encoder=parts["encoder"],
    backend="exact",
    k=4,
    k_train=2,
    prompt=PROMPT,
    generator_tuning=tuning(60),
    retriever_tuning=tuning(8),
    embedding=c.EmbeddingOptions(query_prompt="Where "),
  )
  run(config)
  export(c.ExportConfig(run=str(root / "run"), out=str(root / "out"), data_licence="cc-by-4.0"))
  return root


def ask_config(ran, **changes):
  fields = {
    "question": QUESTION,
    "generator": f"{ran}/out/generator",
    "encoder": f"{ran}/out/query_encoder",
    "index": f"{ran}/run/index",
    "passages": f"{ran}/run/passages",
    "k": 1,
    "prompt": PROMPT,
  }
  return c.AskConfig(**{**fields, **changes})


def test_transformers_says_what_ask_says(ran):
  """The exported directory alone: its prompt.py makes the prompt, its own end tokens end the answer."""
  asked = ask(ask_config(ran))
  (_, title, text, _) = asked.passages[0]
  line = json.dumps({"question": QUESTION, "passage": text, "title": title})
  done = subprocess.run(
    [sys.executable, "-I", "-S", f"{ran}/out/generator/prompt.py"],
    input=line,
    capture_output=True,
    text=True,
    check=True,
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(f"{ran}/out/generator")
  model, report = transformers.AutoModelForCausalLM.from_pretrained(f"{ran}/out/generator", output_loading_info=True)
  assert not any(report.values())
  ids = tokenizer(json.loads(done.stdout)["prompt"], add_special_tokens=False, return_tensors="pt")["input_ids"]
  with torch.no_grad():
    out = model.eval().generate(ids, do_sample=False, max_new_tokens=9, attention_mask=torch.ones_like(ids))
  said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
  assert said == asked.answer.text != ""


def test_sentence_transformers_makes_the_vectors_of_retrieve(ran):
  path = f"{ran}/out/query_encoder"
  encoder = load_encoder(path)
  texts = ["Where does person 1 live?", "Who bakes?"]
  ours = embed_queries(
    encoder, load_tokenizer(path), texts, max_tokens=encoder.config.max_tokens, prompt=encoder.config.query_prompt,
    batch_size=2,
  )  # fmt: skip
  assert encoder.config.query_prompt == "Where "
  theirs = sentence_transformers.SentenceTransformer(path, device="cpu").encode_query(texts)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_card_and_recipe_tell_what_was_done(ran, base, parts):
  recipe = json.loads(pathlib.Path(f"{ran}/out/generator/radit.json").read_text())
  assert recipe["base"] == {
    "name": "tiny-base", "on_hub": False, "fingerprint": fingerprint(base), "licence": {"license": "mit"}
  }  # fmt: skip
  assert (recipe["method"], recipe["k"], recipe["k_train"], recipe["score_temperature"]) == ("ralt", 4, 2, 0.05)
  assert [end["id"] for end in recipe["prompt"]["end"]] == json.loads((base / "generation_config.json").read_text())[
    "eos_token_id"
  ]
  card = pathlib.Path(f"{ran}/out/generator/README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\n")
  report = json.loads(pathlib.Path(f"{ran}/run/report.json").read_text())
  for told in (
    'license: "mit"',
    "Base model: mit. Training data: cc-by-4.0.",
    f"on {recipe['examples']} examples, by RALT",
    f"| RA-DIT (both) | {100 * report['rows']['ra_dit']['exact_match']:.1f} |",
    recipe["inputs"]["passages"],
  ):
    assert told in card
  assert str(ran) not in card + json.dumps(recipe)  # nothing of this machine
  encoder = json.loads(pathlib.Path(f"{ran}/out/query_encoder/radit.json").read_text())
  assert encoder["passage_encoder"] == fingerprint(parts["encoder"], c.EmbeddingOptions(query_prompt="Where "))
  assert encoder["recipe"]["base"]["licence"] == {}
  assert "by LSR" in pathlib.Path(f"{ran}/out/query_encoder/README.md").read_text()


def test_the_base_models_own_files_are_kept(ran, base):
  out = pathlib.Path(f"{ran}/out/generator")
  assert (out / "config.json").read_text() == (base / "config.json").read_text()
  assert (out / "generation_config.json").read_text() == (base / "generation_config.json").read_text()


def test_tokenizer_files_are_the_base_models_own(ran, base):
  out = pathlib.Path(f"{ran}/out/generator")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (base / name).read_bytes()
  # Of a new model too: a class that version 4 of transformers knows.
  assert json.loads((base / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
  ("head", "licence"),
  [
    ("license:\nlanguage: en", {}),
    ("license:\n- mit\n- apache-2.0", {"license": "mit, apache-2.0"}),
    ("license: other\nlicense_name: llama3.2\nlicense_link: https://x.y/z", {
      "license": "other", "license_name": "llama3.2", "license_link": "https://x.y/z"}),
    ("license: no", {}),
    ("license: [", {}),
    ("just text", {}),
  ],
)  # fmt: skip
def test_licences_are_read_as_they_are_written(tmp_path, head, licence):
  (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
  assert licence_of(tmp_path) == licence


def test_nothing_of_the_machine_in_an_export_with_a_template_and_an_adapter(ran, parts, base, tmp_path):
  template = tmp_path / "template.txt"
  template.write_text("Read {passage}\n\nAsk {question}\nSay {answer}\n")
  config = c.TrainGeneratorConfig(
    workdir=str(tmp_path / "tuned"),
    generator=str(base),
    retrieved=f"{ran}/run/retrieved/base/train",
    dev_retrieved=f"{ran}/run/retrieved/base/dev",
    passages=f"{ran}/run/passages",
    k=2,
    prompt=c.PromptConfig(style=str(template), max_tokens=96, max_passage_tokens=40, max_answer_tokens=8),
    loop=c.LoopConfig(steps=2, batch_size=8, evaluate_every=2),
    lora=c.LoraConfig(rank=2),
  )
  train_generator(config)
  export(c.ExportConfig(run=str(tmp_path / "tuned"), out=str(tmp_path / "out")))
  written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
  assert len(written) > 8
  for file in written:
    assert str(tmp_path.parent).encode() not in file.read_bytes(), file
    assert str(base.parent).encode() not in file.read_bytes(), file
  adapter = json.loads((tmp_path / "out/generator/adapter/adapter_config.json").read_text())
  assert adapter["base_model_name_or_path"] == "tiny-base"
  card = (tmp_path / "out/generator/README.md").read_text()
  assert yaml.safe_load(card.split("---")[1])["license"] == "mit"


def test_weights_in_half_the_bytes(ran, tmp_path):
  export(c.ExportConfig(run=f"{ran}/run/train_generator", out=str(tmp_path / "out"), dtype="bfloat16"))
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["generator"]
  half, full = (load_generator(p) for p in (tmp_path / "out" / "generator", f"{ran}/out/generator"))
  assert half.embedding[...].dtype == "bfloat16"
  np.testing.assert_array_equal(half.embedding[...], full.embedding[...].astype("bfloat16"))
  assert json.loads((tmp_path / "out" / "generator" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
def test_files_are_those_of_safetensors_itself(ran, tmp_path, dtype):
  export(c.ExportConfig(run=f"{ran}/run", out=str(tmp_path / "out"), dtype=dtype))
  for made_by, name in (("train_generator", "generator"), ("train_retriever", "query_encoder")):
    tuned = safetensors.torch.load_file(f"{ran}/run/{made_by}/{name}/model.safetensors")
    wanted = tuned if dtype == "keep" else {n: t.to(getattr(torch, dtype)) for n, t in tuned.items()}
    safetensors.torch.save_file(wanted, tmp_path / "twin", metadata={"format": "pt"})
    assert (tmp_path / "out" / name / "model.safetensors").read_bytes() == (tmp_path / "twin").read_bytes()


def test_an_export_puts_nothing_on_a_device(ran, tmp_path, monkeypatch):
  """What was tuned may be larger than any one device: tensors go from file to file."""
  before, seen = len(jax.live_arrays()), []
  write = safetensors_files.write_file

  def spy(file, tensors, **options):
    seen.append(len(jax.live_arrays()))
    write(file, tensors, **options)
    seen.append(len(jax.live_arrays()))

  monkeypatch.setattr(safetensors_files, "write_file", spy)
  export(c.ExportConfig(run=f"{ran}/run", out=str(tmp_path / "out"), dtype="bfloat16"))
  assert len(seen) == 4
  assert max(seen) <= before


def test_what_cannot_be_exported_is_one_line(ran, parts, tmp_path):
  def refused(message, **fields):
    with pytest.raises(UserError, match=message) as e:
      export(c.ExportConfig(**{"run": f"{ran}/run", "out": str(tmp_path / "new"), **fields}))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "new").exists()

  refused("no such directory", run=str(tmp_path / "nowhere"))
  refused("no finished tuning here", run=parts["generator"])
  refused("out: exists; remove it", out=f"{ran}/out")
