"""`radit prepare --mix` from small files to the batches that are trained on."""

import collections
import dataclasses
import functools
import json
import operator
import re

import numpy as np
import pytest
from tiny import TOWNS, documents, write_lines

from radit_jax import cli, files
from radit_jax import config as c
from radit_jax.data.batches import parallel_context_batches, row_lengths
from radit_jax.data.catalogue import CATALOGUE
from radit_jax.data.completion import complete, token_spans
from radit_jax.data.corpus import PassageStore
from radit_jax.data.corpus.chunks import word_spans
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.mix import Draw, group_of, likeness, locate, shares, take
from radit_jax.data.mixture import mixture_of
from radit_jax.data.plan import RunPlan
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Example, Passage
from radit_jax.errors import UserError
from radit_jax.evaluation.metrics import has_answer
from radit_jax.models.pretrained import load_tokenizer
from radit_jax.retrieval.build import build_index
from radit_jax.retrieval.dropping import search_without
from radit_jax.retrieval.index import load_index
from radit_jax.sharding import RowShare
from radit_jax.verbs.evaluate import make_query
from radit_jax.verbs.index import index
from radit_jax.verbs.inspect import inspect
from radit_jax.verbs.prepare import read_split
from radit_jax.verbs.prepare_mix import prepare_mix
from radit_jax.verbs.retrieve import retrieve
from radit_jax.verbs.run import run

ASK = c.SetConfig("ask", ("ask/*.jsonl",), format="jsonl")
SQUAD_V2 = c.SetConfig("squad_v2", ("squad_v2/train-v2.0.json",))
CHAT = c.SetConfig("chat", ("chat/chat.jsonl",), format="jsonl", weight=0.05)
TEXT = c.SetConfig("text", format="passages", weight=0.10)
MIX = c.MixConfig(
  generator=(TEXT, CHAT, ASK, SQUAD_V2),
  retriever=(ASK, SQUAD_V2),
  cap=30,
  completions=35,
  completion_tokens=4,
)


STORIES = tuple(f"{town} lies on the Vornara. Mira {i} was born there." for i, town in enumerate(TOWNS))


def squad_v2():
  """One paragraph for each article, of each a question with an answer and one without."""
  paragraphs = [
    {
      "context": story,
      "qas": [
        {"id": f"s{i}", "question": f"Who was born in {TOWNS[i]}?", "answers": [{"text": f"Mira {i}"}]},
        {"id": f"t{i}", "question": f"Who died in {TOWNS[i]}?", "answers": [], "is_impossible": True},
      ],
    }
    for i, story in enumerate(STORIES)
  ]
  return {"version": "v2.0", "data": [{"title": t, "paragraphs": [p]} for t, p in zip(TOWNS, paragraphs, strict=True)]}


def asked(n, start=0):
  for i in range(start, start + n):
    yield {"id": f"a{i}", "question": f"Where does person {i % 40} live in {i}?", "answers": [TOWNS[i % 10]]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  for name in ("ask", "squad_v2", "chat"):
    (root / name).mkdir()
  write_lines(root / "ask" / "1.jsonl", asked(40))
  write_lines(root / "ask" / "2.jsonl", [*asked(20, 40), {**next(asked(1)), "id": "again"}])
  (root / "squad_v2" / "train-v2.0.json").write_text(json.dumps(squad_v2()))
  write_lines(
    root / "chat" / "chat.jsonl",
    [{"id": f"c{i}", "turns": ["Hello.", "Hi.", f"Who are {i}?"], "answers": [f"I am {i}."]} for i in range(12)],
  )
  return root


@pytest.fixture(scope="module")
def config(data, parts):
  def make(workdir, **changes):
    given = {"mix": "here.py", "data": str(data), "corpus": parts["corpus"], "dev_fraction": 0.15, **changes}
    return c.PrepareMixConfig(workdir=str(workdir), **given)

  return make


@pytest.fixture(scope="module")
def made(config, parts, tmp_path_factory):
  """A prepared mix, its index, and what was retrieved of the generator's and the retriever's split."""
  root = tmp_path_factory.mktemp("made")
  prepare_mix(config(root), MIX)
  index(
    c.IndexConfig(
      passages=f"{root}/passages",
      encoder=parts["encoder"],
      embeddings=f"{root}/embeddings",
      index=f"{root}/index",
      backend="exact",
    )
  )
  results = {}
  for part in ("generator", "retriever"):
    for split in ("train", "dev"):
      results[part, split] = retrieve(
        c.RetrieveConfig(
          questions=f"{root}/{part}/{split}.jsonl",
          passages=f"{root}/passages",
          index=f"{root}/index",
          encoder=parts["encoder"],
          out=f"{root}/retrieved/{part}/{split}",
          k=3,
        )
      )
  return root, results


def rows(root, part, split):
  return read_split(f"{root}/{part}/{split}.jsonl")


def test_what_a_split_holds(made, data):
  root, _ = made
  train, dev = rows(root, "generator", "train"), rows(root, "generator", "dev")
  counts = collections.Counter(row["set"] for row in train)
  assert counts["ask"] == 30
  assert counts["text"] <= 30
  assert len({row["id"] for row in train + dev}) == len(train) + len(dev)
  contexts = {row["set"] for row in train + dev if "context" in row}
  assert contexts == {"squad_v2"}
  own = [row for row in train + dev if row["set"] == "squad_v2"]
  assert {row["context"] for row in own} == set(STORIES)
  assert "I don't know" in {row["answers"][0] for row in own}
  chat = next(row for row in train if row["set"] == "chat")
  assert chat["question"].startswith("Q: Hello.\nA: Hi.\nQ: Who are")
  assert chat["query"].startswith("Hello.\nHi.\n")
  assert chat["answers"][0].startswith("I am ")
  text = next(row for row in train if row["set"] == "text")
  assert text["category"] == "text"
  assert text["question"] == ""
  # For the retriever a context of one's own is no passage: what is asked is searched for.
  assert not any("context" in row for row in rows(root, "retriever", "train"))


def test_no_document_and_no_question_is_on_both_sides(made):
  root, _ = made
  for part in ("generator", "retriever"):
    train, dev = rows(root, part, "train"), rows(root, part, "dev")
    assert dev
    for name in ("squad_v2", "text", "completion"):
      groups = [{row["group"] for row in split if row["set"] == name} for split in (train, dev)]
      assert not groups[0] & groups[1]
    questions = [{likeness(row["question"]) for row in split if row["set"] == "ask"} for split in (train, dev)]
    assert not questions[0] & questions[1]


def test_weights(made):
  root, _ = made
  for part, fixed in (("generator", {"text": 0.10, "chat": 0.05}), ("retriever", {"completion": 0.95})):
    stated = files.read_manifest(root / part, "split")["mixture"]["train"]
    of = {name: (count, weight) for name, count, weight in stated}
    assert sum(weight for _, weight in of.values()) == pytest.approx(1)
    for name, weight in fixed.items():
      assert of[name][1] == pytest.approx(weight)
    others = [of[name] for name in of if name not in fixed]
    assert len({round(weight / count, 12) for count, weight in others}) == 1
    # ... and the store that is trained on draws by them.
    mixture = mixture_of(RetrievedStore(root / "retrieved" / part / "train").manifest)
    assert mixture.to_manifest() == stated
    assert [row["set"] for row in rows(root, part, "train")] == [n for n, count, _ in stated for _ in range(count)]


def test_own_contexts_and_plain_text_are_not_searched_for(made):
  root, results = made
  store = RetrievedStore(root / "retrieved" / "generator" / "train")
  own = [e for e in store if not e.searched]
  expected = [r for r in rows(root, "generator", "train") if r["set"] in ("text", "squad_v2")]
  assert [e.id for e in own] == [r["id"] for r in expected]
  for example, row in zip(own, expected, strict=True):
    assert example.context == row.get("context")
    assert example.valid.tolist() == [True, False, False]
    assert (example.passage_rows == -1).all()
    assert example.scores[0] == 0
  searched = [e for e in store if e.searched]
  assert all(e.valid.all() and (e.passage_rows >= 0).all() for e in searched)
  result = results["generator", "train"]
  assert result.num_questions == len(store)
  assert result.num_own == len(own) > 0
  assert f"{len(own)} of them with a context of their own or plain text" in result.summary()
  assert results["retriever", "train"].num_own == 0
  found = collections.defaultdict(list)
  passages = PassageStore(root / "passages")
  for example in searched:
    texts = passages.texts(example.passage_rows.tolist())
    found[example.id.split("/")[0]].append(any(has_answer(text, example.answers) for text in texts))
  assert result.by_set == pytest.approx({name: np.mean(hits) for name, hits in found.items()})
  assert any(result.by_set.values())
  assert "\n  ask: " in result.summary()
  # ... and the card is told, of what is trained on.
  told = files.read_json(root / "data_card.json")["retrieved"]
  assert told["generator"] == {"k": 3, "sets": {name: [sum(hits), len(hits)] for name, hits in found.items()}}
  assert set(told) == {"generator", "retriever"}
  card = (root / "data_card.md").read_text()
  assert re.search(rf"\| ask \|.*\| {sum(found['ask'])} of {len(found['ask'])} \|\n", card)
  assert re.search(r"\| squad_v2 \|.*\| – \|\n", card)  # not searched for in generator tuning
  assert "Passages are the 3 that `radit retrieve` found" in card
  assert len({line.count("|") for line in card.split("## Generator")[1].splitlines() if line.startswith("|")}) <= 3


def test_the_piece_that_an_example_came_from_is_never_among_its_passages(made):
  root, _ = made
  passages = PassageStore(root / "passages")
  by_id = {row["id"]: row for split in ("train", "dev") for row in rows(root, "retriever", split)}
  seen = 0
  for split in ("train", "dev"):
    for example in RetrievedStore(root / "retrieved" / "retriever" / split):
      row = by_id[example.id]
      if row["set"] == "completion":
        seen += 1
        (own,) = row["exclude_rows"]
        text = passages[own].text
        assert text.startswith(row["question"])
        assert text.endswith(row["answers"][0])
        assert own not in example.passage_rows.tolist()
        assert example.valid.all()
  assert seen == 35


def test_the_first_hit_is_dropped_and_the_next_one_moves_up(tmp_path, rng):
  """An index in which every query is a row of it: without dropping, that row would be the first."""
  embeddings = rng.normal(size=(20, 8)).astype(np.float32)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  build_index(embeddings, tmp_path / "i", backend="exact")
  opened = load_index(tmp_path / "i")
  queries, k = embeddings[:6], 4
  assert opened.search(queries, k).ids[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
  found, dropped = search_without(opened, queries, k, [[0], [], [2, 7], [3], [4], [5]])
  scores = queries @ embeddings.T
  for i, without in enumerate(([0], [], [2, 7], [3], [4], [5])):
    expected = [r for r in np.argsort(-scores[i], kind="stable").tolist() if r not in without][:k]
    assert found.ids[i].tolist() == expected
    assert found.scores[i] == pytest.approx(scores[i][expected], abs=1e-6)
  assert found.valid.all()
  assert dropped == {"own": 5, "duplicates": 0, "same_document": 0}
  few, _ = search_without(opened, queries[:1], 20, [[0]])  # one less than there are
  assert few.ids[0, -1] == -1
  assert not few.valid[0, -1]
  assert np.isneginf(few.scores[0, -1])
  assert few.valid.sum() == 19


def test_evaluate_and_inspect_show_own_contexts(made, parts):
  root, _ = made
  passages = PassageStore(root / "passages")
  store = RetrievedStore(root / "retrieved" / "generator" / "train")
  own = next(e for e in store if e.context)
  for mode in ("retrieval", "gold", "closed_book"):
    query = make_query(own, passages, mode=mode, k=3)
    assert query.passages == (Passage("", "", own.context),)
    assert query.scores == (0.0,)
  for example in (own, next(e for e in store if e.category == "text")):
    shown = inspect(
      c.InspectConfig(
        what="example",
        retrieved=str(store.path),
        passages=str(passages.path),
        generator=parts["generator"],
        example=example.id,
        prompt=PROMPT,
      )
    )
    (passage,) = shown.data["passages"]
    assert (passage["row"], passage["text"]) == (-1, example.context or "")
    segments = {part["name"]: part["text"] for part in passage["prompt"]["segments"]}
    assert segments["answer"].strip() == example.answers[0]
    assert ("passage" in segments) is (example is own)


PROMPT = c.PromptConfig(max_tokens=160, max_passage_tokens=60, max_answer_tokens=40)
LOOP = c.LoopConfig(steps=2, batch_size=8, evaluate_every=2)


def test_batches_are_the_same_at_any_step_and_on_any_number_of_hosts(made, parts):
  root, _ = made
  store, passages = RetrievedStore(root / "retrieved" / "generator" / "train"), PassageStore(root / "passages")
  prompt = Prompt(load_tokenizer(parts["generator"]), PROMPT)
  lengths = row_lengths(store, passages, prompt, k=2, with_passages=True)
  order = mixture_of(store.manifest).order(5)
  plan = RunPlan(lengths.rows, batch_size=8, seed=5, epochs=2, order=order)

  def ids(**options):
    batches = parallel_context_batches(
      store,
      passages,
      prompt,
      plan,
      k=2,
      with_passages=True,
      batch_size=8,
      answer_tokens=lengths.answer,
      seed=5,
      **options,
    )
    return [(names, batch.tokens.tolist()) for names, batch in batches]

  whole = ids()
  assert len(whole) == len(plan)
  assert ids(start=9) == whole[9:]
  halves = [ids(share=RowShare((i,), 2)) for i in range(2)]
  for (names, tokens), *of_hosts in zip(whole, *halves, strict=True):
    assert names == sum((own for own, _ in of_hosts), ())
    assert tokens == functools.reduce(operator.iadd, (own for _, own in of_hosts), [])


QUIZ = (
  c.SetConfig("quiz", ("quiz/q.jsonl",), format="jsonl"),
  c.SetConfig("boolq", ("boolq/dev.jsonl",)),
  c.SetConfig("nq_open", ("nq_open/NQ-open.dev.jsonl",)),
)


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
  """The sets of the mix, and of its evaluation one that is searched for and one that brings its texts along."""
  root = tmp_path_factory.mktemp("evaluated")
  for name in ("ask", "squad_v2", "chat"):
    (root / name).symlink_to(data / name)
  for name in ("quiz", "boolq"):
    (root / name).mkdir()
  quiz = [{"id": f"z{i}", "question": f"Who is person {i}?", "answers": [TOWNS[i % 10]]} for i in range(6)]
  long = {"id": "long", "question": "Tell me.", "answers": ["so it was " * 40]}
  write_lines(root / "quiz" / "q.jsonl", [*quiz, long])
  write_lines(
    root / "boolq" / "dev.jsonl",
    [{"question": f"is {t} old", "title": t, "answer": True, "passage": f"{t} is old."} for t in TOWNS[:3]],
  )
  return root


def run_config(parts, workdir, data, **changes):
  tuned = c.TuningConfig(loop=LOOP)
  given = {name: parts[name] for name in ("corpus", "generator", "encoder")} | {"backend": "exact", "k": 3}
  given |= {"mix": "here.py", "data": str(data), "allow_missing": True, "dev_fraction": 0.15, "k_train": 2}
  given |= {"prompt": PROMPT, "pack_tokens": 160, "generator_tuning": tuned, "retriever_tuning": tuned}
  return c.RunConfig(workdir=str(workdir), **given | changes)


def test_a_whole_run_on_a_mix(parts, evaluated, tmp_path):
  """Each tuning has its own part of the mix; the table is about the evaluation sets, all and each."""
  mix = dataclasses.replace(MIX, evaluation=QUIZ)
  config = run_config(parts, tmp_path / "run", evaluated)
  result = run(config, mix=mix)
  report = result.report
  assert [n for n, row in report["rows"].items() if row["exact_match"] is not None] == [
    *("closed_book", "base", "lm_ft", "r_ft", "ra_dit"),
  ]
  assert report["rows"]["ra_dit"]["n"] == 9
  assert {name: of["n"] for name, of in report["sets"].items()} == {"quiz": 6, "boolq": 3}
  for name, figures in report["rows"].items():
    if figures["exact_match"] is not None:
      each = [of["exact_match"][name] * of["n"] for of in report["sets"].values()]
      assert sum(each) == pytest.approx(9 * figures["exact_match"])
  assert "exact match on each set:" in result.summary()
  assert "<h2>Exact match on each set" in (tmp_path / "run" / "report.html").read_text()
  card = files.read_json(tmp_path / "run" / "data_card.json")
  assert card["skipped"]["quiz: an answer of more than 40 tokens"] == 1
  assert card["not_looked_at"] == ["nq_open"]
  assert set(card["retrieved"]) == {"generator", "retriever"}
  for verb in ("generator", "retriever"):
    inputs = files.read_json(tmp_path / "run" / f"train_{verb}" / "run.json")["recipe"]["inputs"]
    assert inputs["retrieved"] == RetrievedStore(tmp_path / "run" / "retrieved" / "base" / verb / "train").fingerprint
  first = files.read_json(tmp_path / "run" / "train_retriever" / "first_batch.json")
  drawn = [example["id"] for example in first["examples"]]
  assert sum(name.startswith("completion/") for name in drawn) >= 6  # 95 % of 8: a plan that draws by weight
  texts = [e for e in RetrievedStore(tmp_path / "run" / "retrieved" / "lsr" / "test") if e.context]
  assert [e.context for e in texts] == [f"{t} is old." for t in TOWNS[:3]]
  with pytest.raises(UserError, match=r"mix.cap = 30, this call has 20"):
    run(config, mix=dataclasses.replace(mix, cap=20))
  with pytest.raises(UserError, match=r"run.json: made with decontaminate = 'report', this call has 'all'"):
    run(dataclasses.replace(config, decontaminate="all"), mix=mix)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"evaluation": ()}, "has no evaluation sets"),
    ({"evaluation": QUIZ[2:]}, r"no question of the mix's evaluation sets \(nq_open\) is there"),
    (
      {"evaluation": QUIZ, "completion_tokens": 41},
      "completions have 41 tokens to answer, prompt.max_answer_tokens is 40",
    ),
    ({"evaluation": QUIZ, "retriever": (), "completions": 0}, "nothing for the retriever; give --tune generator"),
  ],
)
def test_a_run_that_a_mix_cannot_give(parts, evaluated, tmp_path, changes, message):
  mix = dataclasses.replace(MIX, **changes)
  with pytest.raises(UserError, match=message):
    run(run_config(parts, tmp_path / "run", evaluated), mix=mix)
  assert not (tmp_path / "run" / "run.json").exists()
  with pytest.raises(UserError, match="takes the mix that its config names"):
    run(run_config(parts, tmp_path / "run", evaluated))


def test_the_data_card(made, config):
  root, _ = made
  text = (root / "data_card.md").read_text()
  figures = files.read_json(root / "data_card.json")
  sets = {s["name"]: s for s in figures["parts"]["Generator tuning"]}
  train = rows(root, "generator", "train")
  for name, own in sets.items():
    lengths = [len((r["question"] + " " + r.get("context", "")).split()) for r in train if r["set"] == name]
    assert own["train"] == len(lengths)
    assert own["asked"] == [int(np.percentile(lengths, q, method="lower")) for q in (50, 95)]
  assert sets["ask"]["available"] > sets["ask"]["train"] == 30
  own = [r for r in train if r["set"] == "squad_v2"]
  told = [r for r in own if r["answers"][0] != "I don't know"]
  assert (sets["squad_v2"]["unanswerable"], sets["squad_v2"]["with_context"]) == (len(own) - len(told), len(told))
  assert sets["squad_v2"]["in_context"] == len(told)
  assert f"| squad_v2 | {CATALOGUE['squad_v2'].licence} |" in text
  assert "| ask | not stated |" in text
  assert re.search(r"\| chat \| \d+ \| \d+ \| \d+ \| 5\.00% \|", text)
  plot = (root / "data_card.svg").read_text()
  assert plot.startswith("<svg xmlns")
  assert plot.count('class="bar"') == 4 + 3
  assert "95.0%" in plot


def test_duplicates_are_counted(config, tmp_path):
  """Two questions with one answer, in two files; the second one is kept, and counted where both are trained on."""
  mix = c.MixConfig((ASK,), completions=0)
  prepare_mix(config(tmp_path, dev_fraction=0.05), mix)
  train = rows(tmp_path, "generator", "train")
  same = [r for r in train if r["question"] == "Where does person 0 live in 0?"]
  (ask,) = files.read_json(tmp_path / "data_card.json")["parts"]["Generator tuning"]
  assert ask["duplicates"] == len(same) - 1 == 1


def test_the_same_call_keeps_what_is_there_and_another_mix_is_refused(made, config):
  root, _ = made
  before = (root / "generator" / "train.jsonl").stat().st_mtime_ns
  again = prepare_mix(config(root), MIX)
  assert (root / "generator" / "train.jsonl").stat().st_mtime_ns == before
  assert again.num_questions["generator"]["train"] == len(rows(root, "generator", "train"))
  with pytest.raises(UserError, match=r"made with mix.cap = 30, this call has 20; choose another directory"):
    prepare_mix(config(root), dataclasses.replace(MIX, cap=20))
  changed = dataclasses.replace(MIX, generator=(TEXT, dataclasses.replace(CHAT, weight=0.06), ASK, SQUAD_V2))
  with pytest.raises(UserError, match=r"made with mix.generator.chat.weight = 0.05, this call has 0.06"):
    prepare_mix(config(root), changed)


def test_a_card_that_is_missing_is_written_again(config, tmp_path):
  """What a call leaves that was killed between the splits and the card."""
  mix = c.MixConfig((ASK,), completions=0)
  prepare_mix(config(tmp_path), mix)
  split = (tmp_path / "generator" / "train.jsonl").read_bytes()
  (tmp_path / "data_card.json").unlink()
  prepare_mix(config(tmp_path), mix)
  assert (tmp_path / "data_card.json").is_file()
  assert (tmp_path / "generator" / "train.jsonl").read_bytes() == split


ABSENT = c.SetConfig("gsm8k", ("gsm8k/train.jsonl", "gsm8k/train.jsonl.gz"), weight=0.5)


def test_missing_sets_are_named_or_left_out(config, data, tmp_path):
  mix = c.MixConfig((TEXT, ABSENT, ASK), completions=0)
  with pytest.raises(UserError) as told:
    prepare_mix(config(tmp_path), mix)
  line = str(told.value)
  assert "1 sets of the mix are not there: gsm8k (no gsm8k/train.jsonl or gsm8k/train.jsonl.gz)" in line
  assert "radit download --list" in line
  assert "--allow-missing" in line
  assert "\n" not in line
  assert not list(tmp_path.iterdir())
  made = prepare_mix(config(tmp_path, allow_missing=True), mix)
  assert "gsm8k is not there (no gsm8k/train.jsonl or gsm8k/train.jsonl.gz): left out" in made.summary()
  weights = {n: w for n, _, w in files.read_manifest(tmp_path / "generator", "split")["mixture"]["train"]}
  assert weights == {"text": pytest.approx(0.1), "ask": pytest.approx(0.9)}
  card = (tmp_path / "data_card.md").read_text()
  assert "| gsm8k | no gsm8k/train.jsonl or gsm8k/train.jsonl.gz | MIT |" in card
  assert "went to the others" in card
  with pytest.raises(UserError, match=r"none of the mix's sets for the generator is left"):
    prepare_mix(config(tmp_path / "x", allow_missing=True), c.MixConfig((ABSENT,), completions=0))
  with pytest.raises(UserError, match=r"nowhere: no such directory; `radit download --list`"):
    prepare_mix(config(tmp_path / "x", data=str(data / "nowhere")), mix)


def test_licences_leave_out_what_is_not_for_commercial_use(config, tmp_path):
  made = prepare_mix(config(tmp_path, licence="commercial"), MIX)
  sets = {n for n, _, _ in files.read_manifest(tmp_path / "generator", "split")["mixture"]["train"]}
  assert sets == {"text", "squad_v2"}  # those of the test have no licence that is known
  assert "ask left out: licence not known" in made.summary()
  assert "| chat | licence not known | not stated |" in (tmp_path / "data_card.md").read_text()


def test_answers_that_are_too_long_are_left_out_and_counted(config, parts, tmp_path):
  made = prepare_mix(config(tmp_path, tokenizer=parts["generator"], max_answer_tokens=4), MIX)
  count = load_tokenizer(parts["generator"])
  kept = [r for s in ("train", "dev") for r in rows(tmp_path, "generator", s) if r["set"] in ("ask", "chat")]
  assert all(len(count(r["answers"][0], add_special_tokens=False)["input_ids"]) <= 4 for r in kept)
  assert re.search(r"\d+ left out: chat: an answer of more than 4 tokens", made.summary())


def test_a_bad_record_stops_or_is_counted(config, tmp_path):
  (tmp_path / "d" / "ask").mkdir(parents=True)
  lines = [json.dumps(record) for record in asked(30)]
  (tmp_path / "d" / "ask" / "a.jsonl").write_text("\n".join([*lines[:3], '{"id": "x"}', *lines[3:]]) + "\n")
  mix = c.MixConfig((ASK,), completions=0)
  with pytest.raises(UserError, match=r"a\.jsonl:4: .*--on-error skip"):
    prepare_mix(config(tmp_path / "w", data=str(tmp_path / "d")), mix)
  made = prepare_mix(config(tmp_path / "w", data=str(tmp_path / "d"), on_error="skip", dev_fraction=0.3), mix)
  assert "1 left out" in made.summary()
  assert "a.jsonl:4" in made.summary()
  (tmp_path / "d" / "ask" / "b.jsonl").write_text(lines[0] + "\n")
  (tmp_path / "d" / "ask" / "a.jsonl").write_text("\n".join(lines))
  with pytest.raises(UserError, match=r"b\.jsonl: id 'a0' was already used in .*a\.jsonl"):
    prepare_mix(config(tmp_path / "v", data=str(tmp_path / "d")), mix)


@pytest.mark.parametrize("decontaminate", ["report", "questions", "all"])
def test_evaluation_questions_are_counted_and_left_out(config, data, tmp_path, decontaminate):
  """One is asked in training; its answer stands in passages that plain text and completions are made of."""
  store = tmp_path / "d"
  for name in ("ask", "quiz"):
    (store / name).mkdir(parents=True)
  write_lines(store / "ask" / "1.jsonl", asked(40))
  write_lines(store / "quiz" / "q.jsonl", [next(asked(1)), {"id": "b", "question": "Which one?", "answers": ["xyzzy"]}])
  quiz = c.SetConfig("quiz", ("quiz/q.jsonl",), format="jsonl")
  absent = c.SetConfig("nq_open", ("nq_open/dev.jsonl",))
  mix = c.MixConfig((TEXT, ASK), evaluation=(quiz, absent), completions=0)
  made = prepare_mix(config(tmp_path / "w", data=str(store), decontaminate=decontaminate, dev_fraction=0.2), mix)
  (found,) = files.read_json(tmp_path / "w" / "data_card.json")["evaluation"]
  assert (found["name"], found["questions"], found["same"], found["examples"]) == ("quiz", 2, 1, 1)
  train = rows(tmp_path / "w", "generator", "train")
  holding = [r for r in train if r["category"] == "text" and TOWNS[0] in r["answers"][0]]
  assert found["passages"] > 0
  assert len(holding) == (0 if decontaminate == "all" else found["passages"])
  assert any(r["id"] == "ask/a0" for r in train) is (decontaminate == "report")
  assert ("ask: an evaluation question" in made.summary()) is (decontaminate != "report")
  card = (tmp_path / "w" / "data_card.md").read_text()
  assert "| quiz | 2 | 1 | 0 | 1 | 1 |" in card
  assert "Not there, so not looked for: nq_open." in card


# The shipped mixes.


@pytest.mark.parametrize("name", cli.shipped_mixes())
def test_shipped_mixes_find_what_download_lays_out(name, tmp_path):
  mix = cli.read_mix(name)
  for source, split in [*((s, "train") for s in mix.sets()), *((s, "dev") for s in mix.evaluation)]:
    if source.read_as == "passages":
      continue
    entry = CATALOGUE[source.name]
    place = entry.splits["test" if source.name == "mmlu" else split]
    path = tmp_path / source.name / place
    if "." not in place.removeprefix("."):
      path.mkdir(parents=True)
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text("")
    assert path.resolve() in [p.resolve() for p in locate(source, tmp_path)], (source, path)
    assert entry.format == source.read_as


def test_the_papers_mix():
  mix = cli.read_mix("paper")
  assert len(mix.generator) == 21
  assert mix.cap == 7500
  assert {s.name: s.weight for s in mix.generator if s.weight} == {"text": 0.10, "oasst1": 0.05}
  assert (mix.completion_share, mix.completions, mix.completion_tokens) == (0.95, 900_000, 50)
  used = {s.name for s in mix.sets()} - {"text"}
  assert used == {n for n, entry in CATALOGUE.items() if {"generator", "retriever"} & set(entry.uses)}


def test_the_permissive_mix():
  """Only sets whose licence allows commercial use; for each part, all of those that the paper's mix has."""
  paper, mix = cli.read_mix("paper"), cli.read_mix("permissive")
  for part in ("generator", "retriever"):
    allowed = [s for s in getattr(paper, part) if s.name == "text" or CATALOGUE[s.name].commercial]
    assert getattr(mix, part) == tuple(allowed)


@pytest.mark.parametrize("name", cli.shipped_mixes())
def test_download_knows_the_sets_of_a_mix(name, tmp_path, capsys):
  mix = cli.read_mix(name)
  assert cli.main(["download", "--list", "--mix", name, "--data", str(tmp_path)]) == 0
  listed = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
  assert {line.split()[0] for line in listed} == {s.name for s in mix.sets()} - {"text"}
  evaluated = [n for n, entry in CATALOGUE.items() if "evaluation" in entry.uses]
  assert {s.name for s in mix.evaluation} <= set(evaluated)


# Parts.


def test_shares():
  big, small = (c.SetConfig(n, (n,), format="jsonl") for n in ("big", "small"))
  assert shares([TEXT, CHAT, big, small], [5, 5, 300, 100]) == pytest.approx([0.10, 0.05, 0.6375, 0.2125])
  assert shares([TEXT, CHAT], [5, 5]) == pytest.approx([2 / 3, 1 / 3])


def test_a_capped_draw_is_the_same_whatever_the_order(rng):
  examples = [Example(f"e{i}", "?", ("a",)) for i in range(200)]
  kept = []
  for order in (range(200), rng.permutation(200).tolist()):
    draw = Draw(20, seed=4)
    for i in order:
      draw.offer(examples[i])
    assert draw.seen == 200
    kept.append([e.id for e in draw.kept()])
  assert set(kept[0]) == set(kept[1])
  assert len(kept[0]) == 20
  assert kept[0] == sorted(kept[0], key=lambda name: int(name[1:]))
  other = Draw(20, seed=5)
  for e in examples:
    other.offer(e)
  assert {e.id for e in other.kept()} != set(kept[0])


def test_documents_stay_together_and_uses_share_one_reading():
  examples = [Example(f"e{i}", f"q{i}", ("a",), group=f"g{i % 50}") for i in range(1000)]
  taken = take(iter(examples), {"a": 100, "b": None}, dev_fraction=0.2, seed=0)
  assert len(taken["a"].train) == 100
  assert len(taken["a"].dev) == 20
  whole = taken["b"]
  assert len(whole.train) + len(whole.dev) == 1000
  assert taken["a"].num_train == len(whole.train)
  assert not {e.group for e in whole.train} & {e.group for e in whole.dev}
  assert 0.05 < len(whole.dev) / 1000 < 0.4
  context = Example("x", "q", ("a",), own_context="The  Sea", category="reading")
  assert group_of(context) == group_of(dataclasses.replace(context, id="y", instruction="other", own_context="the sea"))


def test_completions_take_beginning_and_end(parts):
  words = "one two three four five six seven eight nine ten"
  assert complete(words, word_spans(words), 3) == ("one two three", "eight nine ten")
  assert complete(words, word_spans(words), 50) == ("one two three four five", "six seven eight nine ten")
  assert complete("one", word_spans("one"), 50) is None
  tokenizer = load_tokenizer(parts["generator"])
  text = next(documents())["text"]
  given, asked_for = complete(text, token_spans(tokenizer)(text), 5)
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  assert (given, asked_for) == (tokenizer.decode(ids[:5]).strip(), tokenizer.decode(ids[-5:]).strip())


def test_tfds_folders_come_first(tmp_path):
  source = c.SetConfig("gsm8k", ("gsm8k/train.jsonl",))
  folder = tmp_path / "gsm8k" / "1.0.0"
  folder.mkdir(parents=True)
  (tmp_path / "gsm8k" / "train.jsonl").write_text("")
  assert locate(source, tmp_path) == (tmp_path / "gsm8k" / "train.jsonl",)
  (folder / "dataset_info.json").write_text("{}")
  assert locate(source, tmp_path) == (folder,)
  (tmp_path / "gsm8k" / "1.0.1").mkdir()
  (tmp_path / "gsm8k" / "1.0.1" / "dataset_info.json").write_text("{}")
  with pytest.raises(UserError, match="2 versions of the set that TFDS prepared"):
    locate(source, tmp_path)


# The command line.


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("mix = 3", r"needs `mix = MixConfig\(\.\.\.\)`"),
    ("from radit_jax.config import *\nmix = MixConfig(())", "MixConfig.generator is empty"),
    ("from radit_jax.config import *\nSetConfig('a b', ('x',))", "name = 'a b': must be letters"),
    ("from radit_jax.config import *\nSetConfig('gsm9k', ('x',))", "set gsm9k: format 'gsm9k', must be one of"),
    ("from radit_jax.config import *\nSetConfig('gsm8k')", r"set gsm8k: files = \(\)"),
    ("from radit_jax.config import *\nSetConfig('gsm8k', 'x')", r"must be a tuple of texts"),
    ("from radit_jax.config import *\nSetConfig('gsm8k', ('../x',))", "must lie below the data directory"),
    (
      "from radit_jax.config import *\nSetConfig('gsm8k', ('x',), weight=2)",
      "weight = 2, must be above 0 and at most 1",
    ),
    ("from radit_jax.config import *\ns = SetConfig('gsm8k', ('x',), weight=.6)\nmix = MixConfig((s, s))", "twice"),
    (
      "from radit_jax.config import *\na, b = (SetConfig(n, ('x',), 'jsonl', weight=.6) for n in 'ab')\n"
      "mix = MixConfig((a, b))",
      "add up to 1.2, more than 1",
    ),
    (
      "from radit_jax.config import *\na, b = (SetConfig(n, ('x',), 'jsonl', weight=w) for n, w in ('a1', 'b'))\n"
      "mix = MixConfig((a, b))".replace("'a1', 'b'", "('a', 1), ('b', None)"),
      "leave nothing for the other sets",
    ),
    ("\n1 / 0", r"m\.py:2: ZeroDivisionError"),
    ("from radit_jax.config import *\n\nSetConfig('gsm8k', ('x',), weight='x')", r"m\.py:3: TypeError"),
  ],
)
def test_a_bad_mix_file_is_one_line(tmp_path, capsys, content, message):
  (tmp_path / "m.py").write_text(content)
  call = ["prepare", "--mix", str(tmp_path / "m.py"), "--data", "d", "--corpus", "c", "--workdir", str(tmp_path / "w")]
  assert cli.main(call) == 2
  printed = capsys.readouterr().err.strip()
  assert re.search(message, printed)
  assert "m.py" in printed
  assert "\n" not in printed


def test_the_command_line(tmp_path, data, parts, capsys):
  (tmp_path / "m.py").write_text(
    "from radit_jax.config import MixConfig, SetConfig\n"
    "mix = MixConfig((SetConfig('ask', ('ask/*.jsonl',), format='jsonl'),), completions=0)\n"
  )
  call = ["prepare", f"--mix={tmp_path / 'm.py'}", "--data", str(data), "--corpus", parts["corpus"]]
  assert cli.main([*call, "--workdir", str(tmp_path / "w"), "--dev-fraction", "0.2"]) == 0
  printed = capsys.readouterr().out
  assert "generator: train " in printed
  assert "data card: " in printed
  assert cli.main([*call, "--workdir", "w", "--test-fraction", "0.2"]) == 2
  assert "no option --test-fraction" in capsys.readouterr().err
  assert cli.main(["prepare", "--mix", "papr", "--data", "d", "--corpus", "c", "--workdir", "w"]) == 2
  assert "no such name; the nearest is 'paper'" in capsys.readouterr().err
