"""Orbax checkpoints of a train state: the newest to continue from, the best to export."""

import os
from typing import Any

import jax

from radit_jax import files
from radit_jax.errors import UserError


def _named(tree: Any) -> dict[str, Any]:
  """Arrays by path: names that do not depend on how a module's classes nest."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


class Checkpoints:
  """Checkpoints of one run, kept: the best by dev loss, and the newest ``keep``.

  Args:
    directory: made if missing.
    keep: newest checkpoints kept beside the best one.
  """

  def __init__(self, directory: str | os.PathLike[str], *, keep: int):
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    best = policies.BestN(
      get_metric_fn=lambda m: m["dev_loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    self._manager = ocp.CheckpointManager(
      files.location(os.path.abspath(directory) if not files.in_bucket(directory) else directory),
      item_handlers=ocp.StandardCheckpointHandler(),  # without it, metadata of an older run cannot be read
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        best_fn=lambda m: m["dev_loss"],
        best_mode="min",
        cleanup_tmp_directories=True,
      ),
    )

  def latest(self) -> int | None:
    """Newest finished step, None before the first."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Step of the lowest dev loss, None before the first."""
    return self._manager.best_step()

  def best_loss(self) -> float | None:
    """Dev loss of that step."""
    step = self.best()
    return None if step is None else float(self._manager.metrics(step)["dev_loss"])

  def save(self, step: int, state: Any, *, dev_loss: float | None) -> None:
    """Starts an asynchronous save; a checkpoint without a dev loss only serves to continue."""
    import orbax.checkpoint as ocp

    metrics = None if dev_loss is None else {"dev_loss": float(dev_loss)}
    self._manager.save(step, args=ocp.args.StandardSave(_named(state)), metrics=metrics, force=True)

  def restore(self, step: int, like: Any) -> Any:
    """The state of a step, with the shapes and shardings of ``like``.

    Raises:
      UserError: the checkpoint holds other names or shapes.
    """
    import orbax.checkpoint as ocp

    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in _named(like).items()}
    stored = self._manager.item_metadata(step)
    shapes = {name: tuple(m.shape) for name, m in dict(stored).items()}
    for name, want in wanted.items():
      if shapes.get(name) != want.shape:
        raise UserError(
          f"{self._manager.directory}/{step}: {name} is {shapes.get(name, 'missing')}, this run needs {want.shape}; "
          "choose another --workdir"
        )
    named = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [named[jax.tree_util.keystr(path)] for path, _ in paths])

  def wait(self) -> None:
    """Returns when every save has been committed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the manager's threads."""
    self._manager.close()
