"""The same work in PyTorch, as most write it and as well as it can be written: `transformers`' own Llama both times."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from radit_jax.config import OptimizerConfig
from radit_jax.data.prompts import Rendered

_IGNORED = -100


def load(path: str | pathlib.Path) -> Any:
  """The model of a Hugging Face directory, float32, with PyTorch's fused attention."""
  return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


def padded(prompts: Sequence[Rendered]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
  """Tokens, attention mask and labels of prompts padded on the right to their longest, ``[N, T]`` each."""
  shape = len(prompts), max(len(p.tokens) for p in prompts)
  tokens, mask, labels = (torch.full(shape, fill, dtype=torch.long) for fill in (0, 0, _IGNORED))
  for row, p in enumerate(prompts):
    tokens[row, : len(p.tokens)] = torch.tensor(p.tokens)
    mask[row, : len(p.tokens)] = 1
    labels[row, p.answer_start : p.answer_end] = torch.tensor(p.answer_tokens)
  return tokens, mask, labels


class _Side:
  """A model with the library's optimizer: AdamW with clipping, decay of matrices only, and one rate per step."""

  def __init__(self, path: str | pathlib.Path, config: OptimizerConfig, rate: Callable[[int], float]) -> None:
    self.model = load(path)
    matrices = [p for p in self.model.parameters() if p.ndim >= 2]
    others = [p for p in self.model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    self._optimizer = torch.optim.AdamW(groups, lr=rate(0), betas=(config.b1, config.b2), fused=True)
    self._max_norm, self._rate, self._steps = config.max_grad_norm, rate, 0

  def loss(self, prompts: Sequence[Rendered]) -> float:
    """Mean negative log-likelihood per answer token; its gradient is added to the parameters' own."""
    raise NotImplementedError

  def train(self, prompts: Sequence[Rendered]) -> tuple[float, float]:
    """One step: the loss, and the norm of its gradient before clipping."""
    loss = self.loss(prompts)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
    for group in self._optimizer.param_groups:
      group["lr"] = self._rate(self._steps)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    self._steps += 1
    return loss, float(norm)

  def figures(self, prompts: Sequence[Rendered]) -> tuple[float, float]:
    """What :meth:`train` returns, and nothing changes."""
    loss = self.loss(prompts)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)
    self._optimizer.zero_grad(set_to_none=True)
    return loss, float(norm)


class Usual(_Side):
  """Prompts in the order they come, padded to the longest of the batch; logits of every token; the model's own loss."""

  def loss(self, prompts: Sequence[Rendered]) -> float:
    tokens, mask, labels = padded(prompts)
    loss = self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    loss.backward()
    return float(loss.detach())

  @torch.no_grad()
  def score(self, prompts: Sequence[Rendered]) -> np.ndarray:
    """Log-likelihood of each prompt's answer."""
    tokens, mask, labels = padded(prompts)
    logits = self.model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    log_probs = torch.log_softmax(logits, dim=-1)
    targets = labels[:, 1:]
    picked = torch.gather(log_probs, 2, targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(targets == _IGNORED, 0.0, picked).sum(dim=1).numpy()


class Strong(_Side):
  """Prompts of like length together in small groups, so hardly any padding; only answer tokens meet the output head.

  Padding stands on the right and a token sees earlier ones only, so no mask is needed: the fused attention then skips
  the upper half, and does not read a mask.

  Args:
    path: see :func:`load`.
    config: of the optimizer.
    rate: step -> learning rate.
    rows: prompts that go through the model at once; gradients of a step's groups are summed.
    compiled: the body goes through ``torch.compile``.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    config: OptimizerConfig,
    rate: Callable[[int], float],
    *,
    rows: int,
    compiled: bool = False,
  ) -> None:
    super().__init__(path, config, rate)
    self.rows = rows
    body = self.model.model
    self._body: Any = torch.compile(body, dynamic=True) if compiled else body

  def _log_probs(self, prompts: Sequence[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every answer token, and the prompt it belongs to."""
    tokens, _, labels = padded(prompts)
    hidden = self._body(input_ids=tokens, use_cache=False).last_hidden_state
    rows, at = torch.nonzero(labels[:, 1:] != _IGNORED, as_tuple=True)
    logits = self.model.lm_head(hidden[rows, at])
    return -F.cross_entropy(logits, labels[rows, at + 1], reduction="none"), rows

  def _groups(self, prompts: Sequence[Rendered]) -> list[list[int]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    return [order[start : start + self.rows] for start in range(0, len(order), self.rows)]

  def loss(self, prompts: Sequence[Rendered]) -> float:
    count = sum(p.answer_end - p.answer_start for p in prompts)
    total = 0.0
    for group in self._groups(prompts):
      loss = -self._log_probs([prompts[i] for i in group])[0].sum() / count
      loss.backward()
      total += float(loss.detach())
    return total

  @torch.inference_mode()
  def score(self, prompts: Sequence[Rendered]) -> np.ndarray:
    """Log-likelihood of each prompt's answer."""
    out = np.zeros(len(prompts), np.float32)
    for group in self._groups(prompts):
      log_probs, rows = self._log_probs([prompts[i] for i in group])
      out[group] = torch.zeros(len(group)).index_add_(0, rows, log_probs).numpy()
    return out
