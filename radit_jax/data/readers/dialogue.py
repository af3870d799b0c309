"""Conversations with an assistant."""

from typing import Any

from radit_jax.data.fields import a_list, an_object, an_object_at, field, optional_text, text
from radit_jax.data.policy import BadRecord, Unused
from radit_jax.data.readers.example import Example, conversation
from radit_jax.data.readers.layer import lines


def _oasst1(tree: dict[str, Any]) -> Example:
  """Of a tree the thread of best-ranked replies, up to its last assistant's turn."""
  if "prompt" not in tree and "role" in tree:
    raise BadRecord("a single message; take the file of trees", reason="a single message")
  message = an_object_at(tree, "prompt")
  language = optional_text(message, "lang")
  turns: list[str] = []
  while True:
    expected = "assistant" if len(turns) % 2 else "prompter"
    if text(message, "role") != expected:
      raise BadRecord(f"role {message['role']!r} where {expected!r} is due", reason="roles that do not take turns")
    turns.append(text(message, "text").strip())
    replies = [an_object(reply) for reply in (a_list(message, "replies") if message.get("replies") else [])]
    kept = [reply for reply in replies if not field(reply, "deleted", bool)]
    if not kept:
      break
    # Prompts are not ranked: the first one, as in the file.
    message = min(kept, key=_rank)
  turns = turns[: len(turns) // 2 * 2]
  if not turns:
    raise Unused("a prompt that nobody answered")
  return Example(
    id=text(tree, "message_tree_id"),
    answers=(turns[-1],),
    metadata={"lang": language} if language else {},
    **conversation(turns[:-1]),
  )


def _rank(message: dict[str, Any]) -> float:
  rank = message.get("rank")
  return float(rank) if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank < 1_000_000 else float("inf")


DIALOGUE = {"oasst1": lines(_oasst1)}
