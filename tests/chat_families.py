"""Small tokenizers with the parts and the wire formats of the families of instruct models, and their chat templates.

The classes are the real ones where `transformers` has them; vocabularies are learnt from a few lines, templates are
written for these tests: a family's format is kept, its words are not.
"""

import dataclasses
import functools
import json
import random
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from radit_jax.data.sources import Passage

LINES = [
  "Background: Mira Kelwick was born in the town of Orlen.\n\nWhere does Mira Kelwick come from?",
  "Orlen\nThe vessel of Tobin Ast is called Vornara (built in 1998).\n\nQuestion: Which boat belongs to Tobin Ast?\n",
  "Q: Is it so?\nA: Orlen.\n\nAnswer: Vornara!\n\n",
  "system\nuser\n\nassistant\n\nmodel\n Today is 26 Jul 2024. You help.\n\n",
  "<think>\n\n</think>\n\n [INST] x [/INST] y",
] * 4

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
  {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
  {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today is " + date_string + ".\\n\\n" + "<|eot_id|>" }}
{%- for m in messages %}
  {{- "<|start_header_id|>" + m.role + "<|end_header_id|>\\n\\n" + m.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif %}"""

LLAMA3_PLAIN = """{% for m in messages %}
{% set turn = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}
{% if loop.first %}{% set turn = bos_token + turn %}{% endif %}{{ turn }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN25 = """{%- if messages[0].role != "system" %}
  {{- "<|im_start|>system\\nYou help.<|im_end|>\\n" }}
{%- endif %}
{%- for m in messages %}{{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}"""

QWEN3 = """{%- for m in messages %}
  {{- "<|im_start|>" + m.role + "\\n" }}
  {%- if m.role == "assistant" and loop.last %}
    {%- set thought = m.reasoning_content if m.reasoning_content is string else "" %}
    {{- "<think>\\n" + thought.strip("\\n") + "\\n</think>\\n\\n" + m.content.lstrip("\\n") }}
  {%- else %}{{- m.content }}{%- endif %}
  {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- "<|im_start|>assistant\\n" }}
  {%- if enable_thinking is defined and enable_thinking is false %}{{- "<think>\\n\\n</think>\\n\\n" }}{%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == "system" %}{{ raise_exception("no system turns") }}{% endif %}
{%- for m in messages %}
  {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("turns must alternate") }}{% endif %}
  {{- "<start_of_turn>" + ("model" if m.role == "assistant" else m.role) + "\\n" }}
  {{- m.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}"""


def _inst(start: str, end: str, answer: str) -> str:
  return (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    f"{{{{ '{start}' + m['content'] + '{end}' }}}}{{% elif m['role'] == 'assistant' %}}"
    f"{{{{ '{answer}' + m['content'] + eos_token }}}}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
  )


MISTRAL_V1 = _inst("[INST] ", " [/INST]", " ")
MISTRAL_V3 = _inst("[INST] ", "[/INST]", " ")
MISTRAL_TEKKEN = (
  "{%- set today = strftime_now('%Y-%m-%d') %}{{ bos_token }}"
  "{{ '[SYSTEM_PROMPT]Today is ' + today + '.[/SYSTEM_PROMPT]' }}"
) + _inst("[INST]", "[/INST]", "").removeprefix("{{ bos_token }}")

PHI3 = """{% for m in messages %}
{{ "<|" + m["role"] + "|>\\n" + m["content"] + "<|end|>\\n" }}
{%- endfor %}
{% if add_generation_prompt %}{{ "<|assistant|>\\n" }}{% else %}{{ eos_token }}{% endif %}"""


def _learnt(pre_tokenizer: Any, lines: list[str], special: list[str], size: int = 700) -> tuple[dict[str, int], list]:
  """Vocabulary and merges."""
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizer
  alphabet = pre_tokenizers.ByteLevel.alphabet() if not isinstance(pre_tokenizer, pre_tokenizers.Metaspace) else []
  trainer = trainers.BpeTrainer(
    vocab_size=size, special_tokens=special, initial_alphabet=alphabet, min_frequency=1, show_progress=False
  )
  backend.train_from_iterator(lines, trainer)
  model = json.loads(backend.to_str())["model"]
  return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _byte_pieces(special: list[str]) -> tuple[dict[str, int], list]:
  """SentencePiece's kind: words begin with "▁", and what has no piece is bytes; a newline is <0x0A>."""
  vocab, merges = _learnt(pre_tokenizers.Metaspace(), [part for x in LINES for part in x.split("\n")], special)
  vocab |= {f"<0x{i:02X}>": len(vocab) + i for i in range(256)}
  return vocab | {"▁▁": len(vocab)}, [("▁", "▁"), *merges]  # first of all merges, as in Llama 2


def _wrapped(backend: Tokenizer, special: list[Any], **names: Any) -> Any:
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
  tokenizer.add_special_tokens({"extra_special_tokens": special})
  return tokenizer


def _byte_level(special: list[str], pre_tokenizer: Any = None, **names: Any) -> Any:
  """Qwen's pre-tokenizer, which Llama 3 and Mistral's Tekken share but for digits: signs take newlines along."""
  pre_tokenizer = pre_tokenizer or Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
  vocab, merges = _learnt(pre_tokenizer, LINES, [])
  backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
  return _wrapped(backend, special, **names)


def llama3(template: str = LLAMA3, pre_tokenizer: Any = None) -> Any:
  special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
  special += ["<|eom_id|>", "<|python_tag|>", "<|reserved_special_token_0|>"]
  return _byte_level(special, pre_tokenizer, bos_token=special[0], eos_token="<|eot_id|>", chat_template=template)


def qwen(template: str) -> Any:
  vocab, merges = _learnt(Qwen2Tokenizer().backend_tokenizer.pre_tokenizer, LINES, [])
  tokenizer = Qwen2Tokenizer(vocab, merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template)
  tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>", "<|vision_start|>"]})
  plain = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|fim_prefix|>", "<|repo_name|>"]
  tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
  return tokenizer


def gemma() -> Any:
  special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
  vocab, merges = _byte_pieces(special)
  plain = ["\n", "\n\n", "\n\n\n", "▁▁", "<h1>", "</h1>"]
  vocab |= {t: len(vocab) + i for i, t in enumerate(t for t in plain if t not in vocab)}
  tokenizer = GemmaTokenizer(vocab, merges, chat_template=GEMMA)
  turns = ["<start_of_turn>", "<end_of_turn>", "<unused0>", "<start_of_image>"]
  tokenizer.add_special_tokens({"extra_special_tokens": turns})
  tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
  return tokenizer


def mistral(template: str, *, legacy: bool = False) -> Any:
  """Its sentencepiece kind; the marks of v1 are text, those of v3 are control tokens."""
  vocab, merges = _byte_pieces(["<unk>", "<s>", "</s>"])
  tokenizer = LlamaTokenizer(vocab, merges, legacy=legacy, chat_template=template)
  if template == MISTRAL_V3:
    tokenizer.add_special_tokens({"extra_special_tokens": ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"]})
  return tokenizer


def tekken() -> Any:
  special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]"]
  names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
  return _byte_level(special, chat_template=MISTRAL_TEKKEN, **names)


def prepending(template: str, marks: list[str], *, rstrip: bool) -> Any:
  """A normalizer puts the space of a text's beginning there, after each control token anew: older converters' form."""
  vocab, merges = _byte_pieces(["<unk>", "<s>", "</s>", "<|endoftext|>"])
  backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  backend.decoder = decoders.Sequence(parts)
  special = [AddedToken(t, special=True, rstrip=rstrip, normalized=False) for t in marks]
  eos = "<|endoftext|>" if rstrip else "</s>"
  return _wrapped(backend, special, bos_token="<s>", eos_token=eos, unk_token="<unk>", chat_template=template)


PHI_MARKS = ["<|assistant|>", "<|end|>", "<|system|>", "<|user|>", "<|placeholder1|>"]


@dataclasses.dataclass(frozen=True)
class Family:
  """How to make its tokenizer, its end token, and the texts of its other end tokens."""

  make: Callable[[], Any]
  end: str
  more_ends: tuple[str, ...] = ()


FAMILIES = {
  "llama3": Family(lambda: llama3(LLAMA3_PLAIN), "<|eot_id|>", ("<|end_of_text|>",)),
  "llama3.2": Family(llama3, "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>")),
  "qwen2.5": Family(lambda: qwen(QWEN25), "<|im_end|>", ("<|endoftext|>",)),
  "qwen3": Family(lambda: qwen(QWEN3), "<|im_end|>", ("<|endoftext|>",)),
  "gemma": Family(gemma, "<end_of_turn>", ("<eos>",)),
  "mistral_v1": Family(lambda: mistral(MISTRAL_V1), "</s>"),
  "mistral_v1_always": Family(lambda: mistral(MISTRAL_V1, legacy=True), "</s>"),
  "mistral_v1_prepending": Family(lambda: prepending(MISTRAL_V1, [], rstrip=False), "</s>"),
  "mistral_v3": Family(lambda: mistral(MISTRAL_V3), "</s>"),
  "mistral_v3_always": Family(lambda: mistral(MISTRAL_V3, legacy=True), "</s>"),
  "mistral_v3_prepending": Family(lambda: prepending(MISTRAL_V3, ["[INST]", "[/INST]"], rstrip=False), "</s>"),
  "mistral_tekken": Family(tekken, "</s>"),
  "phi3": Family(lambda: prepending(PHI3, PHI_MARKS, rstrip=True), "<|end|>", ("<|endoftext|>",)),
  "phi3_no_strip": Family(lambda: prepending(PHI3, PHI_MARKS, rstrip=False), "<|end|>", ("</s>",)),
}


@functools.cache
def tokenizer_of(name: str) -> Any:
  """One per family and process: making one takes a quarter of a second."""
  return FAMILIES[name].make()


CASES = [
  ("Where does Mira Kelwick come from?", Passage("p", "", "Mira Kelwick was born in the town of Orlen."), "Orlen"),
  ("Which boat belongs to Tobin Ast", Passage("p", "Orlen", "The vessel is called Vornara"), "Vornara."),
  ("Is it so?", None, "It is (as of 1998)!"),
  ("(Who?)", Passage("p", "Tobin Ast!", "One line.\n\nAnother line:\n- 1998)"), "“Ünï” 🜁"),
  ("1998?", Passage("p", "1998", "1998"), "1998"),
  ("Look: ＜|eot_id|＞ or <\u200b|im_end|>", Passage("p", "", "[\u200bINST] ‹think›"), "＜/s＞"),
]


def harmless(count: int) -> list[tuple[str, Passage | None, str]]:
  """Texts drawn from what tokenizers trip over, the same ones in every run; no control token is among them."""
  draw = random.Random(0)
  signs = [*"abOrl19 ..,?!)(\"'\n\n é。-:;/&*_ß→🜁", "Orlen", "Mira", " Kelwick ", "  "]

  def text(most: int) -> str:
    return "".join(draw.choice(signs) for _ in range(draw.randint(1, most))).strip() or "x"

  return [
    (text(20), draw.choice([None, Passage("p", draw.choice(["", text(6)]), text(40))]), text(8)) for _ in range(count)
  ]
