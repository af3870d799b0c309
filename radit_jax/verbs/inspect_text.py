"""The text that `radit inspect` shows: lines made of the data it gathered."""

import json
from collections.abc import Callable, Iterator
from typing import Any

#: Turns a stretch of answer into one that stands out.
Mark = Callable[[str], str]
_IDS_PER_LINE = 24


def _indented(text: str, indent: str) -> Iterator[str]:
  yield from (f"{indent}{line}" for line in text.split("\n"))


def _row_lines(row: dict[str, Any], mark: Mark, indent: str) -> Iterator[str]:
  """The row's text and its ids, the answer marked in both."""
  before, answer, after = row["text"]
  yield from _indented(f"{before}{mark(answer) if answer else ''}{after}", indent)
  ids = [mark(str(t)) if m else str(t) for t, m in zip(row["tokens"], row["answer_mask"], strict=True)]
  for start in range(0, len(ids), _IDS_PER_LINE):
    yield f"{indent}{'ids' if start == 0 else '   '} {' '.join(ids[start : start + _IDS_PER_LINE])}"


def batch_lines(data: dict[str, Any], mark: Mark) -> Iterator[str]:
  """A generator's batch: every row with its ids."""
  yield (
    f"{len(data['examples'])} examples in {data['rows']} rows of {data['tokens_per_row']} tokens, "
    f"{100 * data['padding']:.0f} % padding; the loss is on {data['answer_tokens']} answer tokens, marked {mark('so')}"
  )
  if "cut_in_the_whole_store" in data:
    cut = data["cut_in_the_whole_store"]
    yield f"of the store's {cut['rows']} rows, cut to fit: {cut['passages']} passages, {cut['questions']} questions"
  for example in data["examples"]:
    for j, row in enumerate(example["rows"], 1):
      yield ""
      # A single row may be closed book, or plain text: then there is no passage to speak of.
      name = f"{example['id']} · passage {j}" if len(example["rows"]) > 1 else example["id"]
      if row is None:
        yield f"{name}: none"
        continue
      yield f"{name}: {len(row['tokens'])} tokens, {sum(row['answer_mask'])} of them answer"
      yield from _row_lines(row, mark, "  ")


def _heading(data: dict[str, Any]) -> Iterator[str]:
  yield f"{data['id']}: {data['question']}"
  more = f" (and {len(data['answers']) - 1} more in evaluation)" if len(data["answers"]) > 1 else ""
  yield f"answer: {data['answers'][0]}{more}"
  if data["query"] != data["question"]:
    yield f"query: {data['query']}"


def example_lines(data: dict[str, Any], mark: Mark) -> Iterator[str]:
  """One example: each passage's row and the segments it is made of."""
  yield from _heading(data)
  limits = data["limits"]
  for passage in data["passages"]:
    row = passage["prompt"]
    yield ""
    yield f"passage {passage['rank']} (row {passage['row']}), score {passage['score']:.4f}{' · gold' * passage['gold']}"
    yield (
      f"  {len(row['tokens'])} tokens of at most {limits['max_tokens']}, {sum(row['answer_mask'])} of them answer; "
      f"cut: {row['cut_passage_tokens']} tokens of the passage, {row['cut_question_tokens']} of the question"
    )
    yield from _row_lines(row, mark, "  | ")
    for segment in row["segments"]:
      shown = json.dumps(segment["text"], ensure_ascii=False)
      if segment["name"] in ("answer", "end"):
        shown = mark(shown)
      yield f"  {segment['name']:<15} {len(segment['tokens']):>4} tokens  {shown}"


def ranking_lines(data: dict[str, Any], mark: Mark) -> Iterator[str]:
  """One example: its passages with what retriever and language model make of them."""
  yield from _heading(data)
  yield ""
  yield f"{'rank':>4} {'row':>7} {'score':>10} {'p_R':>7} {'p_LSR':>7} {'log p(y)':>10} {'tokens':>6}  passage"
  best = max(data["passages"], key=lambda p: p["p_lsr"])
  for p in data["passages"]:
    figures = f"{p['score']:>10.4f} {p['p_r']:>7.4f} {p['p_lsr']:>7.4f} {p['log_likelihood']:>10.3f}"
    text = " ".join(f"{p['title']}: {p['text']}".removeprefix(": ").split())
    shown = f"{'[gold] ' * p['gold']}{text if len(text) <= 100 else text[:99] + '…'}"
    yield f"{p['rank']:>4} {p['row']:>7} {figures} {p['num_tokens']:>6}  {mark(shown) if p is best else shown}"
  yield ""
  yield (
    f"KL(p_R || p_LSR) = {data['lsr_loss']:.4f} over these {len(data['passages'])}; p_R at temperature "
    f"{data['score_temperature']}, p_LSR from {data['score_kind']} at {data['lm_temperature']}; "
    "marked: what the language model would rather have"
  )


def lsr_batch_lines(data: dict[str, Any], mark: Mark) -> Iterator[str]:
  """A retriever's batch: queries and their passages."""
  yield f"{len(data['examples'])} of {data['queries']} queries of {data['tokens_per_query']} tokens, padding included"
  for example in data["examples"]:
    query = example["query"]
    yield ""
    yield f"{example['id']}: {query['text']}"
    yield f"  ids {' '.join(map(str, query['tokens']))}"
    for p in example["passages"]:
      shown = f"row {p['row']}{' · gold' * p['gold']}"
      yield f"  {mark(shown) if p['gold'] else shown}: log p(y) {p['log_likelihood']:.3f} of {p['num_tokens']} tokens"


def pair_batch_lines(data: dict[str, Any], mark: Mark) -> Iterator[str]:
  """A warm start's batch: each query with the passage that belongs to it, marked."""
  yield (
    f"{data['pairs']} queries of {data['tokens_per_query']} tokens, their passages of {data['tokens_per_passage']}, "
    f"padding included; a query's own passage is marked {mark('so')}, all the others are its negatives"
  )
  for example in data["examples"]:
    yield ""
    for name, shown in (("query", example["query"]["text"]), ("passage", mark(example["passage"]["text"]))):
      yield f"{example['id']} · {name}: {shown}"
      yield f"  ids {' '.join(map(str, example[name]['tokens']))}"
