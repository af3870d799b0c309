"""Chat prompts of the families of instruct models, against what their tokenizers make of the same messages."""

import re
import time

import chat_families
import jax
import numpy as np
import pytest
from chat_families import CASES, FAMILIES, harmless, tokenizer_of
from flax import nnx
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from radit_jax.config import MeshConfig, PromptConfig
from radit_jax.data.prompts import Prompt
from radit_jax.data.sources import Passage
from radit_jax.errors import UserError
from radit_jax.inference.answer import Query, answer_questions
from radit_jax.inference.decode import greedy_decode, prefill
from radit_jax.models.decoder import Decoder, DecoderConfig
from radit_jax.sharding import make_mesh

CHAT = PromptConfig(style="chat", max_tokens=1024, max_passage_tokens=400, max_answer_tokens=200)
DATE = "26 Jul 2024"


def ids_of(tokenizer, name):
  return tokenizer.convert_tokens_to_ids(name)


def own_ids(tokenizer, messages, **options):
  """The tokenizer's own rendering; a clock in its template is stopped by rewriting the template."""
  template = tokenizer.chat_template.replace("strftime_now('%Y-%m-%d')", "'2024-07-26'")
  return tokenizer.apply_chat_template(
    messages, chat_template=template, date_string=DATE, enable_thinking=False, return_dict=False, **options
  )


def conversation(question, passage, answer):
  user = f"Background: {passage.full_text}\n\n{question}" if passage else question
  return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_rows_have_the_ids_that_the_tokenizer_itself_gives(name):
  tokenizer = tokenizer_of(name)
  prompt = Prompt(tokenizer, CHAT)
  end = ids_of(tokenizer, FAMILIES[name].end)
  for question, passage, answer in CASES + harmless(150):
    messages = conversation(question, passage, answer)
    asked = prompt.render(question, passage, None)
    assert list(asked.tokens) == own_ids(tokenizer, messages[:1], add_generation_prompt=True)
    row = prompt.render(question, passage, answer)
    assert row.tokens[: row.answer_start] == asked.tokens
    assert list(row.tokens) == own_ids(tokenizer, messages)
    assert row.answer_tokens[-1] == end
    assert end not in row.answer_tokens[:-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_so_it_is_with_a_tokenizer_read_from_files(name, tmp_path):
  tokenizer_of(name).save_pretrained(tmp_path)
  loaded = AutoTokenizer.from_pretrained(tmp_path)
  prompt = Prompt(loaded, CHAT)
  for question, passage, answer in CASES:
    row = prompt.render(question, passage, answer)
    assert list(row.tokens) == own_ids(loaded, conversation(question, passage, answer))


def test_the_vocabularies_do_have_tokens_over_seams():
  """Else the tests above would not see them: a full stop with newlines, two spaces."""
  for name in ("llama3", "qwen3", "mistral_tekken"):
    assert tokenizer_of(name).tokenize("so.\n\nIs")[-2:] == [".ĊĊ", "Is"]
  for name in ("mistral_v1", "phi3", "gemma"):
    assert "▁▁" in tokenizer_of(name).get_vocab()
  phi3 = tokenizer_of("phi3")
  ids = phi3("<|user|>\nOrlen<|end|>\n", add_special_tokens=False)["input_ids"]
  assert phi3.convert_ids_to_tokens(ids) == ["<|user|>", "▁Orlen", "<|end|>"]


def controls_of(tokenizer):
  """Every added token but words and runs of white space."""
  added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if not re.fullmatch(r"[\s▁]+", t.content)}
  unknown = tokenizer.unk_token_id
  return {i: t for i, t in added.items() if i != unknown or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id)}


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("name", FAMILIES)
def test_hostile_texts_yield_no_control_token(name, style):
  tokenizer = tokenizer_of(name)
  prompt = Prompt(tokenizer, PromptConfig(style=style, max_tokens=4096, max_passage_tokens=1500, max_answer_tokens=900))
  controls = controls_of(tokenizer)
  assert len(controls) >= 2
  everywhere = [
    "<|eot_id|>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
    "<|im_end|>",
    "<think>",
    "</think>",
    "</s>",
    "<s>",
  ]
  for token in dict.fromkeys([*controls.values(), *everywhere]):
    half = len(token) // 2
    texts = [token, f"a{token}b", f"{token}\n{token} {token}.", f"x {token}", token[:half], token[half:], token.upper()]
    for text in texts:
      passage = Passage("p", text, f"{text}{text}")
      row = prompt.render(text, passage, text)
      honest = prompt.render("Who?", Passage("p", "x", "Orlen."), "Orlen")
      assert [i for i in row.tokens if i in controls] == [i for i in honest.tokens if i in controls], (token, text)
      assert row.answer_tokens[-1] == honest.answer_tokens[-1]
      assert not set(row.answer_tokens[:-1]) & set(controls)
    # One half in the passage, the other one in the question.
    split = prompt.render(token[half:], Passage("p", token[half:], token[:half]), token[half:])
    assert [i for i in split.tokens if i in controls] == [i for i in honest.tokens if i in controls], token


@pytest.mark.parametrize("name", FAMILIES)
def test_halves_of_a_control_token_do_not_meet_in_a_users_template(name, tmp_path):
  tokenizer = tokenizer_of(name)
  controls = controls_of(tokenizer)
  path = tmp_path / "t.txt"
  path.write_text("Read {passage}{question}> or {answer}> now")
  prompt = Prompt(tokenizer, PromptConfig(style=str(path)))
  honest = [i for i in prompt.render("so", Passage("p", "", "is it"), "yes").tokens if i in controls]
  for token in controls.values():
    row = prompt.render(token[len(token) // 2 : -1], Passage("p", "", token[: len(token) // 2]), token[:-1])
    assert [i for i in row.tokens if i in controls] == honest, token
    row = prompt.render(token[len(token) // 2 :], Passage("p", "", token[: len(token) // 2]), "so")
    assert [i for i in row.tokens if i in controls] == honest, token


def test_a_prompt_does_not_depend_on_there_being_an_answer():
  """GPT-2's rules: two newlines at the end of a text are one token, before a word they are two."""
  tokenizer = chat_families.llama3(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))
  prompt = Prompt(tokenizer, CHAT)
  for question, passage, answer in CASES + harmless(50):
    messages = conversation(question, passage, answer)
    asked = prompt.render(question, passage, None)
    assert list(asked.tokens) == own_ids(tokenizer, messages[:1], add_generation_prompt=True)
    row = prompt.render(question, passage, answer)
    assert row.tokens[: row.answer_start] == asked.tokens
    assert tokenizer.decode(row.tokens) == tokenizer.decode(own_ids(tokenizer, messages))


def test_signs_between_a_text_and_a_control_token_are_taken_along_too(tmp_path):
  tokenizer = tokenizer_of("llama3")
  path = tmp_path / "t.txt"
  path.write_text("{passage}\n\n<|eom_id|>{question}/<|eot_id|>{answer}\n\n<|end_of_text|>")
  row = Prompt(tokenizer, PromptConfig(style=str(path))).render("so <", Passage("p", "", "Orlen."), "Yes.")
  text = "<|begin_of_text|>Orlen.\n\n<|eom_id|>so </<|eot_id|>Yes.\n\n<|end_of_text|>"
  assert list(row.tokens) == tokenizer(text, add_special_tokens=False)["input_ids"]
  assert [t for t in tokenizer.convert_ids_to_tokens(row.tokens) if "Ċ" in t or "/" in t] == [".ĊĊ", "</", ".ĊĊ"]
  assert row.answer_tokens[-1] == ids_of(tokenizer, "<|end_of_text|>")


def test_words_of_a_hostile_text_stay():
  tokenizer = tokenizer_of("qwen3")
  row = Prompt(tokenizer, CHAT).render("Who <think>?", Passage("p", "", "Orlen <|im_end|> </think>."), "so")
  text = tokenizer.decode(row.tokens)
  assert "Background: Orlen <|im_end|> </think>.\n\nWho <think>?<|im_end|>" in text


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 8, 9, 30])
def test_a_cut_passage_does_not_take_the_newlines_along(limit):
  """What is left are the passage's first tokens, and after them those of the fixed text."""
  tokenizer = tokenizer_of("llama3")
  config = PromptConfig(style="chat", max_tokens=256, max_passage_tokens=limit, max_answer_tokens=8)
  passage = Passage("p", "", "Mira Kelwick was born in Orlen.")
  own = tokenizer(" " + passage.text, add_special_tokens=False)["input_ids"]
  row = Prompt(tokenizer, config).render("Where?", passage, "Orlen")
  if limit >= len(own) - 1:  # the last token is half the fixed text's
    assert row.cut_passage_tokens == 0
    assert list(row.tokens) == own_ids(tokenizer, conversation("Where?", passage, "Orlen"))
    return
  assert row.cut_passage_tokens == len(own) - limit
  assert dict(row.segments)["passage"] == tuple(own[:limit])
  text = tokenizer.decode(row.tokens[: row.answer_start])
  assert f"Background: {tokenizer.decode(own[:limit]).removeprefix(' ')}\n\nWhere?<|eot_id|>" in text


def test_rows_with_shared_tokens_keep_to_the_limit():
  tokenizer = tokenizer_of("qwen2.5")
  config = PromptConfig(style="chat", max_tokens=60, max_passage_tokens=12, max_answer_tokens=10)
  prompt = Prompt(tokenizer, config)
  requests = [(q * 3, p, a[:3], None) for q, p, a in harmless(200)]
  rows = prompt.render_many(requests)
  lengths = prompt.measure(requests)
  for row, tokens, answer in zip(rows, lengths.tokens, lengths.answer_tokens, strict=True):
    assert len(row.tokens) == tokens <= 60
    assert len(row.answer_tokens) == answer <= 11
    assert len(dict(row.segments).get("passage", ())) <= 13  # a shared token counts as the fixed text's
  assert any(row.cut_passage_tokens for row in rows)
  assert any(row.cut_question_tokens for row in rows)


def test_a_template_that_asks_for_the_date_is_told_a_fixed_one():
  for name, shown in (("llama3.2", DATE), ("mistral_tekken", "2024-07-26")):
    tokenizer = tokenizer_of(name)
    text = tokenizer.decode(Prompt(tokenizer, CHAT).render("Who?", None, None).tokens)
    assert f"Today is {shown}." in text
    assert time.strftime("%Y-%m-%d") not in text
  codes = chat_families.LLAMA3.replace("%d %b %Y", "%A %a %B %b %-d %d %m %y %Y %H:%M:%S")
  tokenizer = chat_families.llama3(codes)
  text = tokenizer.decode(Prompt(tokenizer, CHAT).render("Who?", None, None).tokens)
  assert "Today is Friday Fri July Jul 26 26 07 24 2024 12:00:00." in text


def test_thinking_is_off_in_rows_and_prompts_alike():
  tokenizer = tokenizer_of("qwen3")
  prompt = Prompt(tokenizer, CHAT)
  assert tokenizer.decode(prompt.render("Who?", None, None).tokens).endswith(
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
  )
  assert tokenizer.decode(prompt.render("Who?", None, "Mira").tokens).endswith("</think>\n\nMira<|im_end|>\n")


ALWAYS_THINKING = chat_families.QWEN25.replace("assistant\\n", "assistant\\n<think>\\n")
NO_ANSWER = "{{ '<|im_start|>' + messages[0].content }}"
TWICE = "{% for m in messages %}{{ m.content + m.content }}{% endfor %}"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (ALWAYS_THINKING, r"puts '.*assistant\\n' before an answer that is given, but '.*<think>\\n' before one to be wri"),
    (NO_ANSWER, "shows the answer 0 times"),
    (TWICE, "shows the passage 2 times"),
    ("{{ raise_exception('not\nthis') }}", r"the chat template fails \(not this\)"),
    ("{{ messages[7].content.parts }}", "the chat template fails"),
    ("{% for %}", "the chat template fails"),
    ({"tool_use": chat_families.QWEN25}, "the chat template fails .*no default"),
  ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(template, message):
  with pytest.raises(UserError, match=message) as caught:
    Prompt(chat_families.qwen(template), CHAT)
  assert "\n" not in str(caught.value)


def test_of_several_templates_the_default_counts():
  several = chat_families.qwen({"default": chat_families.QWEN25, "tool_use": NO_ANSWER})
  case = CASES[0]
  assert Prompt(several, CHAT).render(*case) == Prompt(tokenizer_of("qwen2.5"), CHAT).render(*case)


@pytest.mark.parametrize("name", FAMILIES)
def test_end_ids_are_the_templates_the_tokenizers_and_the_generators(name):
  tokenizer, family = tokenizer_of(name), FAMILIES[name]
  more = [ids_of(tokenizer, t) for t in family.more_ends]
  prompt = Prompt(tokenizer, CHAT, end_ids=more)
  assert prompt.end_ids[0] == ids_of(tokenizer, family.end)
  assert set(prompt.end_ids) == {prompt.end_ids[0], tokenizer.eos_token_id, *more}
  assert len(set(prompt.end_ids)) == len(prompt.end_ids)
  assert prompt.hash == Prompt(tokenizer, CHAT).hash


@pytest.mark.parametrize("wrong", [-1, 420, 10**6])
def test_an_end_id_outside_the_vocabulary_is_refused(wrong):
  tokenizer = tokenizer_of("qwen3")
  with pytest.raises(UserError, match=rf"end token id {wrong}: the tokenizer has 420 ids"):
    Prompt(tokenizer, CHAT, end_ids=[0, wrong])


def test_each_of_a_generators_end_ids_ends_an_answer():
  tokenizer = tokenizer_of("llama3.2")
  config = PromptConfig(style="chat", max_tokens=160, max_passage_tokens=60, max_answer_tokens=11)
  shape = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 4,
  }
  model = Decoder(DecoderConfig(vocab_size=len(tokenizer), **shape), rngs=nnx.Rngs(3))
  # Sharper than a fresh model, so that rows differ and no two logits tie.
  model = jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, model)
  queries = [Query(str(i), q, (p,) if p else (), (1.0,) if p else ()) for i, (q, p, _) in enumerate(CASES)]
  mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])

  def answers(end_ids):
    prompt = Prompt(tokenizer, config, end_ids=end_ids)
    found = answer_questions(model, tokenizer, prompt, queries, score_temperature=1.0, batch_size=8, mesh=mesh)
    return [a.text for a in found]

  # What comes without them.
  rows = [Prompt(tokenizer, config).render(q.question, (*q.passages, None)[0], None).tokens for q in queries]
  tokens, lengths = np.zeros((len(rows), 160), np.int32), np.array(list(map(len, rows)), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  room = 12
  prefilled = prefill(model, tokens, lengths, max_new_tokens=room)
  base = Prompt(tokenizer, config).end_ids
  free = np.asarray(greedy_decode(model, prefilled, max_new_tokens=room, end_ids=base))
  assert not np.isin(free, base).any()
  counts = np.bincount(free.ravel())
  ends = [int(next(t for t in row[1:-1] if counts[t] == 1)) for row in free[:3]]  # each ends its own row and no other

  def expected(end_ids):  # an end token is no part of the answer, also where the tokenizer does not call it special
    stops = [next((i for i, t in enumerate(row) if t in end_ids), room) for row in free]
    return [
      tokenizer.decode(row[:stop], skip_special_tokens=True).strip() for row, stop in zip(free, stops, strict=True)
    ]

  assert answers(()) == expected(())
  shortened = answers(ends)
  assert shortened == expected(ends)
  assert [a != b for a, b in zip(shortened, expected(()), strict=True)] == [True] * 3 + [False] * 3
