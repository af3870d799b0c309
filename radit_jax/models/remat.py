"""What the backward pass keeps of each layer, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax

from radit_jax.config import Remat
from radit_jax.errors import UserError

#: Name of what forms of attention with a backward pass of their own need for it beside their inputs.
ATTENDED = "attended"

_KEPT: dict[Remat, Any] = {
  # Products with kernels have no batch dimensions, as activations go into them as one matrix [N * T, D]. The scores of
  # plain attention have two (rows, heads), so they are not kept: they would be the largest of all.
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(ATTENDED),
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialized(step: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
  """The body of a scan over layers, which keeps less for the backward pass.

  Values and gradients are the same. Temporaries of a RALT gradient, 8 layers of 512, 8 rows of 512 tokens, float32,
  plain attention: none 3,089 MiB, dots 961, full 494. Work on top: dots that of norms and activations (and of plain
  attention), full a whole forward pass, which is a third of the step.

  Args:
    step: ``(carry, scanned) -> (carry, out)``.
    remat: "none" keeps all that is needed, "dots" the products with kernels and what attention gives, "full" only what
      goes in.

  Raises:
    UserError: another word.
  """
  if remat == "none":
    return step
  if remat not in _KEPT:
    raise UserError(f"remat = {remat!r}: must be one of 'none', {', '.join(map(repr, _KEPT))}")
  # prevent_cse=False: a scan keeps forward and backward apart by itself, without barriers against merging them.
  return jax.checkpoint(step, policy=_KEPT[remat], prevent_cse=False)
