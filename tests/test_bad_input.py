"""Every verb by its command line, on real files: what is missing or wrong is one line, and nothing is left behind."""

import json
import pathlib
import shutil

import pytest
import torch
from privileges import held_to_modes

from radit_jax import cli

PROMPT = ["--prompt.max-tokens", "96", "--prompt.max-passage-tokens", "40", "--prompt.max-answer-tokens", "8"]
SHORT = ["--loop.steps", "2", "--loop.batch-size", "8"]


TUNINGS = ("generator", "retriever")


def commands(root, parts):
  """Arguments of each verb that reads files, all of them good: by verb."""
  stores = ["--passages", f"{root}/passages"]
  retrieved = ["--retrieved", f"{root}/retrieved/train", "--dev-retrieved", f"{root}/retrieved/dev"]
  generator, encoder = ["--generator", parts["generator"]], ["--encoder", parts["encoder"]]
  files = ["--corpus", parts["corpus"], "--questions", parts["questions"]]
  train, scores = f"{root}/retrieved/train", ["--scores", f"{root}/scores/train", "--dev-scores", f"{root}/scores/dev"]
  index, questions = ["--index", f"{root}/index"], ["--questions", f"{root}/split/train.jsonl"]
  tunings = [a.replace("--", f"--{tuning}-tuning.") for tuning in TUNINGS for a in SHORT]
  return {
    "prepare": ["--workdir", f"{root}", *files],
    "index": [*stores, *encoder, *index, "--embeddings", f"{root}/embeddings", "--backend=exact"],
    "retrieve": [*stores, *encoder, *index, *questions, "--k=3", "--out", train],
    "rerank": [*stores, *encoder, *index, *retrieved[:2], "--k=2", "--out", f"{root}/reranked"],
    "bm25": [*stores, *questions, "--k=3", "--out", f"{root}/run.trec"],
    "evaluate-retrieval": [*stores, *retrieved[:2], "--out", f"{root}/retrieval.json"],
    "score": [*stores, *generator, *PROMPT, *retrieved[:2], "--k=3", "--batch-size=8", "--out", f"{root}/scores/train"],
    "train-generator": [*stores, *generator, *PROMPT, *SHORT, *retrieved, "--k=2", "--workdir", f"{root}/generator"],
    "train-retriever": [*encoder, *SHORT, *retrieved, *index, *scores, "--k=3", "--workdir", f"{root}/retriever"],
    "evaluate": [*stores, *generator, *PROMPT, *retrieved[:2], "--k=3", "--out", f"{root}/row.json"],
    "ask": ["Where?", *stores, *generator, *encoder, *PROMPT, *index, "--k=3"],
    "inspect": ["ranking", *stores, *generator, *PROMPT, *retrieved[:2], "--k=3"],
    "run": ["--workdir", f"{root}/run", *files, *generator, *encoder, *PROMPT, *tunings, "--backend=exact", "--k=3"],
    "quickstart": ["--workdir", f"{root}/quickstart"],
    "export": ["--run", f"{root}/tuned", "--out", f"{root}/published"],
    "convert": ["--source", f"{root}/pickled", "--out", f"{root}/converted"],
    "checkpoints": ["--run", f"{root}/tuned"],
    "mine-negatives": [*stores, *retrieved[:2], "--out", f"{root}/negatives.jsonl"],
  }


@pytest.fixture(scope="module")
def made(parts, tmp_path_factory):
  """What prepare, index, retrieve, score and train-generator leave, and a model with pickled weights."""
  root = tmp_path_factory.mktemp("made")
  good = commands(root, parts)
  assert cli.main(["prepare", *good["prepare"]]) == 0
  assert cli.main(["index", *good["index"]]) == 0
  for verb in ("retrieve", "score"):
    for split in ("train", "dev"):
      assert cli.main([verb, *(a.replace("train", split) for a in good[verb])]) == 0
  assert cli.main(["train-generator", *changed(good["train-generator"], workdir=root / "tuned")]) == 0
  shutil.copytree(parts["generator"], root / "pickled")
  (root / "pickled/model.safetensors").unlink()
  torch.save({"lm_head.weight": torch.ones(2, 3)}, root / "pickled/pytorch_model.bin")
  return root


@pytest.fixture
def workplace(made, parts, tmp_path):
  """A directory with copies of all of it, to be damaged: its path, and each verb's good arguments there."""
  root = tmp_path / "here"
  shutil.copytree(made, root)
  here = {name: str(shutil.copytree(parts[name], root / name)) for name in ("generator", "encoder")}
  here |= {name: str(shutil.copy(parts[name], root / f"{name}.jsonl")) for name in ("corpus", "questions")}
  here["generator"] = str(pathlib.Path(here["generator"]).rename(root / "models_generator"))
  return root, commands(root, here)


def everything(root):
  """Every file and directory below, with the files' bytes."""
  return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def refused(capsys, root, verb, args):
  """The one line that a refused call says; it has left everything as it was."""
  before = everything(root)
  capsys.readouterr()
  status = cli.main([verb, *args])
  captured = capsys.readouterr()
  assert status == 2, captured.err
  assert captured.out == ""
  assert captured.err.count("\n") == 1, captured.err
  assert captured.err.startswith("radit: error: ")
  after = everything(root)
  assert after.keys() == before.keys()
  assert after == before
  return captured.err


def changed(args, **options):
  """Arguments with options set anew; None leaves one out."""
  out = list(args)
  for name, value in options.items():
    flag = f"--{name.replace('__', '.').replace('_', '-')}"
    for i, arg in enumerate(out):
      if arg == flag:
        del out[i : i + 2]
        break
      if arg.startswith(f"{flag}="):
        del out[i]
        break
    if value is not None:
      out += [flag, str(value)]
  return out


#: Verb -> its options that name something to read.
INPUTS = {
  "prepare": ["corpus", "questions"],
  "index": ["passages", "encoder"],
  "retrieve": ["passages", "encoder", "questions", "index"],
  "rerank": ["passages", "encoder", "index", "retrieved"],
  "bm25": ["passages", "questions"],
  "evaluate-retrieval": ["passages", "retrieved"],
  "score": ["passages", "generator", "retrieved"],
  "train-generator": ["passages", "generator", "retrieved", "dev_retrieved"],
  "train-retriever": ["encoder", "retrieved", "dev_retrieved", "index", "scores", "dev_scores"],
  "evaluate": ["passages", "generator", "retrieved"],
  "ask": ["passages", "generator", "encoder", "index"],
  "inspect": ["passages", "generator", "retrieved", "scores"],
  "run": ["corpus", "questions", "generator", "encoder", "passage_encoder", "teacher"],
  "export": ["run"],
  "convert": ["source"],
  "checkpoints": ["run"],
  "mine-negatives": ["passages", "retrieved"],
}


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, options in INPUTS.items() for option in options])
def test_a_missing_path_is_named(workplace, capsys, verb, option):
  root, good = workplace
  line = refused(capsys, root, verb, changed(good[verb], **{option: root / "nowhere"}, **new_place(root, verb)))
  assert "nowhere" in line


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, options in INPUTS.items() for option in options])
def test_something_else_in_the_place_of_an_input_is_named(workplace, capsys, verb, option):
  """A file for a directory, a directory for a file, and a directory of another kind."""
  root, good = workplace
  (root / "empty").mkdir()
  for other in (root / "empty", root / "questions.jsonl", root / "split"):
    # Lines of questions are read from a file or from every such file of a folder, which is what `split` is.
    if (option, other.name) in (
      ("corpus", "questions.jsonl"),
      ("questions", "questions.jsonl"),
      ("questions", "split"),
    ):
      continue
    line = refused(capsys, root, verb, changed(good[verb], **{option: other}, **new_place(root, verb)))
    # An index is asked first whose encoder this is, and that it is any at all is found after that.
    assert str(other) in line or "index: built by the encoder" in line


def new_place(root, verb):
  """An output that is not there yet, for verbs whose own is: a finished one is kept, and nothing read again."""
  return {"retrieve": {"out": root / "new"}, "score": {"out": root / "new"}, "prepare": {"workdir": root / "new"}}.get(
    verb, {"index": root / "new", "embeddings": root / "new_embeddings"} if verb == "index" else {}
  )


def cut_in_half(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("verb", ["score", "train-generator", "evaluate", "ask", "inspect", "run"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_generator_is_named(workplace, capsys, verb, name):
  root, good = workplace
  cut_in_half(root / "models_generator" / name)
  line = refused(capsys, root, verb, changed(good[verb], **new_place(root, verb)))
  assert "models_generator" in line


@pytest.mark.parametrize("verb", ["index", "retrieve", "train-retriever", "ask", "run"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_encoder_is_named(workplace, capsys, verb, name):
  root, good = workplace
  cut_in_half(root / "encoder" / name)
  args = changed(good[verb], **new_place(root, verb))
  if verb != "index":  # the others read an index, and are told first that it is another encoder's
    args = changed(args, passage_encoder=shutil.copytree(root / "encoder", root / "whole"))
  line = refused(capsys, root, verb, args)
  assert "encoder" in line


@pytest.mark.parametrize(
  "name", ["run.json", "generator/radit.json", "generator/model.safetensors", "generator/config.json"]
)
def test_a_damaged_run_is_not_exported(workplace, capsys, name):
  root, good = workplace
  cut_in_half(root / "tuned" / name)
  assert str(pathlib.Path("tuned", name).parent) in refused(capsys, root, "export", good["export"])


def test_a_pickle_that_is_cut_or_does_more_is_not_converted(workplace, capsys):
  root, good = workplace
  weights = root / "pickled/pytorch_model.bin"
  torch.save({"a": pathlib.Path("x")}, weights)
  assert "pytorch_model.bin" in refused(capsys, root, "convert", good["convert"])
  cut_in_half(weights)
  assert "pytorch_model.bin" in refused(capsys, root, "convert", good["convert"])


STORES = {
  "passages": ["index", "retrieve", "score", "train-generator", "evaluate", "ask", "inspect"],
  "retrieved/train": ["score", "train-generator", "train-retriever", "evaluate", "inspect"],
  "scores/train": ["train-retriever"],
  "index": ["retrieve", "train-retriever", "ask"],
}


@pytest.mark.parametrize(("store", "verb"), [(store, verb) for store, verbs in STORES.items() for verb in verbs])
def test_a_damaged_store_is_named(workplace, capsys, store, verb):
  root, good = workplace
  largest = max((p for p in (root / store).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  cut_in_half(largest)
  line = refused(capsys, root, verb, changed(good[verb], **new_place(root, verb)))
  assert store in line
  cut_in_half(root / store / "manifest.json")
  line = refused(capsys, root, verb, changed(good[verb], **new_place(root, verb)))
  assert f"{store}/manifest.json" in line


@pytest.mark.parametrize(
  ("store", "verb"),
  [*(("passages", v) for v in ("ask", "score", "evaluate")), ("retrieved/train", "score")],
)
def test_bytes_that_changed_in_a_store_are_named(workplace, capsys, store, verb):
  """The sizes are right, so it is seen when a record is read."""
  root, good = workplace
  (file,) = (root / store).rglob("*.array_record*")
  content = bytearray(file.read_bytes())
  for at in range(2000, len(content), 512):
    content[at : at + 8] = bytes(b ^ 255 for b in content[at : at + 8])
  file.write_bytes(content)
  capsys.readouterr()
  assert cli.main([verb, *changed(good[verb], **new_place(root, verb))]) == 2
  said = capsys.readouterr().err
  assert "Traceback" not in said
  kind = store.split("/")[0]
  assert said.splitlines()[-1] == (
    f"radit: error: {file}: SHA-256 differs from manifest.json; the file is damaged, make the {kind} again"
  )


@pytest.mark.parametrize(
  ("verb", "options", "message"),
  [
    ("prepare", {"split_by": "colour"}, "no metadata field 'colour'"),
    ("retrieve", {"k": 41}, "k = 41 passages asked for"),
    ("retrieve", {"questions": "split/manifest.json"}, "manifest.json"),
    ("score", {"k": 4}, "k = 4 passages to score"),
    ("score", {"prompt__max_tokens": 4096}, "the generator has 2048 positions"),
    ("score", {"prompt__style": "nowhere.txt"}, "nowhere.txt"),
    ("train-generator", {"k": 4}, "k = 4 passages per example"),
    ("train-generator", {"loop__batch_size": 3}, "multiple of 8"),
    ("train-generator", {"prompt__max_answer_tokens": 0}, "--prompt.max-answer-tokens 0: must"),
    ("train-retriever", {"k": 4}, "k = 4 passages per question"),
    ("train-retriever", {"scores": None}, "scores"),
    ("train-retriever", {"retrieved": "retrieved/dev"}, "scores of the retrieved examples"),
    ("train-retriever", {"loop__batch_size": 3}, "multiple of 8"),
    ("evaluate", {"k": 4}, "k = 4 passages to mix"),
    ("evaluate", {"mode": "open_book"}, "open_book"),
    ("evaluate", {"mesh__data": 3}, "3"),
    ("ask", {"k": 41}, "k = 41 passages asked for"),
    ("inspect", {"example": "q99"}, "no example 'q99'"),
    ("inspect", {"k": 4}, "k = 4 passages"),
    ("run", {"split_by": "colour"}, "no metadata field 'colour'"),
    ("run", {"generator_tuning__loop__batch_size": 3}, "multiple of 8"),
    ("run", {"prompt__max_tokens": 4096}, "the generator has 2048 positions"),
    ("quickstart", {"seed": -1}, "--seed -1: must"),
    ("export", {"out": "split"}, "split: exists"),
    ("convert", {"out": "split"}, "split: exists"),
    ("convert", {"source": "models_generator"}, "holds model.safetensors already"),
  ],
)
def test_a_wrong_value_is_named(workplace, capsys, monkeypatch, verb, options, message):
  root, good = workplace
  monkeypatch.chdir(root)
  assert message in refused(capsys, root, verb, changed(good[verb], **options, **new_place(root, verb)))


@pytest.mark.parametrize("verb", ["prepare", "run"])
@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("corpus", b"", "corpus.jsonl"),
    ("corpus", b'{"id": "a", "text": "A town."}\n{not json\n', "corpus.jsonl:2: "),
    ("questions", b'{"id": "q", "question": "What?"}\n', "questions.jsonl:1: "),
    ("questions", b"\xff\n", "questions.jsonl:1: "),
    ("questions", b'{"id": "q", "question": "What?", "answers": ["A"]}\n', "1 group"),
  ],
)
def test_a_bad_line_is_named(workplace, capsys, verb, name, content, message):
  root, good = workplace
  (root / f"{name}.jsonl").write_bytes(content)
  assert message in refused(capsys, root, verb, changed(good[verb], **new_place(root, verb)))


@pytest.mark.parametrize(
  "verb", [v for v in cli.VERBS if v not in ("ask", "inspect", "plan", "download", "checkpoints", "doctor")]
)
def test_an_output_below_a_file_is_named(workplace, capsys, verb):
  """Found before anything is computed or, where that is cheap, when it is written."""
  root, good = workplace
  (root / "file").write_text("not a directory")
  options = ["embeddings", "index"] if verb == "index" else ["out" if "--out" in good[verb] else "workdir"]
  args = changed(good[verb], **{option: root / "file" / option for option in options})
  before = everything(root)
  capsys.readouterr()
  assert cli.main([verb, *args]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert str(root / "file") in lines[-1]
  assert "Traceback" not in "".join(lines)
  assert everything(root) == before


#: Verb -> option that names the directory it makes, and its kind.
DIRECTORIES = {
  **{"index": ("index", "index"), "retrieve": ("out", "retrieved")},
  **{"rerank": ("out", "retrieved"), "score": ("out", "scores")},
}


@pytest.mark.parametrize("verb", DIRECTORIES)
def test_a_directory_or_file_that_is_something_else_is_kept(workplace, capsys, monkeypatch, verb):
  root, good = workplace
  option, kind = DIRECTORIES[verb]
  (root / "file").write_text("mine")
  (root / "empty").mkdir()
  good = {verb: changed(good[verb], **new_place(root, verb))}
  for place in ("retrieved", "file"):  # a directory of stores: one level too high
    line = refused(capsys, root, verb, changed(good[verb], **{option: root / place}))
    assert line == (
      f"radit: error: {root / place}: exists and is no {kind} store; choose another directory, or remove it\n"
    )
  monkeypatch.chdir(root / "empty")
  assert f"exists and is no {kind} store" in refused(capsys, root, verb, changed(good[verb], **{option: "."}))
  monkeypatch.undo()
  assert cli.main([verb, *changed(good[verb], **{option: root / "empty"})]) == 0
  assert (root / "empty/manifest.json").is_file()


#: Verb -> what its file is.
FILES = {
  "evaluate": "evaluation",
  "evaluate-retrieval": "measured retrieval",
  "mine-negatives": "file of mined negatives",
}


@pytest.mark.parametrize("content", ['{"question": "Where?"}\n', "[]", "Where?\n", "\x80", None])
@pytest.mark.parametrize("verb", FILES)
def test_a_file_that_is_something_else_is_kept(workplace, capsys, verb, content):
  root, good = workplace
  place = root / "mine"
  place.mkdir() if content is None else place.write_text(content, encoding="latin-1")
  line = refused(capsys, root, verb, changed(good[verb], out=place))
  assert line == f"radit: error: {place}: exists and is no {FILES[verb]}; choose another file\n"


@pytest.mark.parametrize("verb", FILES)
def test_a_file_of_its_own_or_an_empty_one_is_no_hindrance(workplace, verb):
  root, good = workplace
  (root / "own.json").touch()
  for _ in range(2):
    assert cli.main([verb, *changed(good[verb], out=root / "own.json")]) == 0


def test_a_page_that_is_something_else_is_kept(workplace, capsys):
  root, good = workplace
  (root / "retrieval.html").write_text("<h1>Letters</h1>")
  line = refused(capsys, root, "evaluate-retrieval", good["evaluate-retrieval"])
  assert "retrieval.html: exists and is no page of a measured retrieval" in line
  line = refused(capsys, root, "evaluate-retrieval", changed(good["evaluate-retrieval"], out=root / "new.html"))
  assert "new.html: the page gets this name; choose another one for the figures" in line


@pytest.mark.parametrize(
  ("verb", "computes"),
  [
    *(("evaluate", "load_generator"), ("score", "load_generator"), ("retrieve", "load_encoder")),
    *(("rerank", "load_encoder"), ("evaluate-retrieval", "_measure"), ("mine-negatives", "choose")),
  ],
)
def test_where_nothing_can_be_written_nothing_is_computed(workplace, capsys, monkeypatch, verb, computes):
  root, good = workplace
  monkeypatch.setattr(f"{cli.VERBS[verb][0]}.{computes}", None)
  (root / "shut").mkdir(mode=0o555)
  with held_to_modes():
    line = refused(capsys, root, verb, changed(good[verb], out=root / "shut/deep/out.json"))
  assert line == f"radit: error: {root / 'shut/deep/out.json'}: Permission denied\n"


@pytest.mark.parametrize("name", ["passages", "split"])
def test_preparing_keeps_what_is_something_else(workplace, capsys, name):
  root, good = workplace
  (root / "new" / name).mkdir(parents=True)
  (root / "new" / name / "letter").write_text("mine")
  assert f"exists and is no {name} store" in refused(
    capsys, root, "prepare", changed(good["prepare"], workdir=root / "new")
  )


def test_a_quickstart_of_another_seed_is_refused(workplace, capsys):
  root, good = workplace
  (root / "quickstart").mkdir()
  (root / "quickstart/run.json").write_text(json.dumps({"verb": "run", "recipe": {"options": {"seed": 7}}}))
  assert "made with" in refused(capsys, root, "quickstart", good["quickstart"])
  (root / "quickstart/run.json").write_text("{half")
  assert "run.json:1: not JSON" in refused(capsys, root, "quickstart", good["quickstart"])


@pytest.mark.parametrize("verb", ["train-generator", "train-retriever", "run"])
def test_a_directory_of_another_verb_is_refused(workplace, capsys, verb):
  root, good = workplace
  place = root / {"train-generator": "generator", "train-retriever": "retriever", "run": "run"}[verb]
  place.mkdir()
  (place / "run.json").write_text(json.dumps({"verb": "another", "recipe": {}}))
  assert "made by 'another'" in refused(capsys, root, verb, good[verb])
