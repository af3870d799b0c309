"""Orbax checkpoints of a train state: the newest intact one to continue from, the best to export."""

import concurrent.futures
import contextlib
import errno
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from radit_jax import files, hosts
from radit_jax.errors import TrainingError, UserError
from radit_jax.training import manifests
from radit_jax.training.checksums import by_name, checksums

DEV_LOSS = "dev_loss"


class DamagedCheckpoint(UserError):
  """What was restored is not what was saved."""


def _named(tree: Any) -> dict[str, Any]:
  """Arrays by path: names that do not depend on how a module's classes nest."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _in_short(e: Exception) -> str:
  """What the system said, where tensorstore tells it at the end of a chain of names and source lines."""
  text = " ".join(str(e).split())
  code = re.search(r"os_error_code='(\d+)'", text)
  return f"[Errno {code[1]}] {os.strerror(int(code[1]))}" if code else text[:300]


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
  return {name: float(value) for name, value in metrics.items()}


def _handler() -> Any:
  """Writes arrays as one transaction, so that a disk that takes no more is one error.

  Orbax's default awaits every array by itself, and a list of them, in an event loop that the first error closes: all
  others then report theirs to it, each with a traceback of an exception that is ignored. That list (array metadata)
  serves keys of random numbers only. And it compresses: a trained state gets a tenth smaller, and the host holds it
  once more until it is written.
  """
  import orbax.checkpoint as ocp

  types = ocp.type_handlers.create_type_handler_registry((jax.Array, ocp.type_handlers.ArrayHandler()))
  base = ocp.BasePyTreeCheckpointHandler(use_compression=False, save_concurrent_bytes=None, type_handler_registry=types)
  return ocp.PyTreeCheckpointHandler(handler_impl=base, type_handler_registry=types)


class Checkpoints:
  """Checkpoints of one run, kept: the best on the dev set, and the newest ``keep``.

  Each has a manifest (:mod:`radit_jax.training.manifests`), written once the step is final and before an older one is
  removed: at any moment of a run there is an intact one after the first.

  Args:
    directory: made if missing. Checkpoints in it that are not intact are named and put out of the way.
    keep: newest checkpoints kept beside the best one.
    data: where in which data the run stands, for the manifests; the step is added.
    select: metric that tells which one is best: the lowest dev loss, or the highest of any other.

  Raises:
    UserError: there are damaged checkpoints and no intact one.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int,
    data: Mapping[str, Any] | None = None,
    select: str = DEV_LOSS,
  ):
    import orbax.checkpoint as ocp

    self._root = files.location(os.path.abspath(directory) if not files.in_bucket(directory) else directory)
    self._keep, self._data, self._select = keep, dict(data or {}), select
    intact: dict[int, Any] = {}
    with hosts.one_writes() as mine:
      if mine:
        intact = {s.number: s.manifest for s in manifests.take_up(self._root)}
    seen = json.loads(hosts.exchange(json.dumps(intact))[0])
    self._leaves: dict[int, dict[str, str]] = {int(n): m["leaves"] for n, m in seen.items()}
    self._metrics: dict[int, dict[str, float]] = {int(n): m["metrics"] for n, m in seen.items()}
    self._manager = ocp.CheckpointManager(
      self._root,
      item_handlers=_handler(),
      # It removes no step: it would do so before the newer one has its manifest.
      options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
    )
    self._background = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="manifest")
    self._sealing: concurrent.futures.Future[None] | None = None

  def newest(self) -> int | None:
    """The newest step; None before the first."""
    return max(self._metrics, default=None)

  def best(self) -> int | None:
    """Step of the best rating, the first of equals, as patience counts from there; None before the first."""
    rated = {step: self.rating(metrics) for step, metrics in self._metrics.items()}
    known = [(rating, step) for step, rating in rated.items() if rating is not None]
    return min(known)[1] if known else None

  def best_rating(self) -> float | None:
    """Rating of that step."""
    step = self.best()
    return None if step is None else self.rating(self._metrics[step])

  def rating(self, metrics: Mapping[str, float]) -> float | None:
    """The metric that selects, as a number that is lower for a better step; None for a step that was not measured."""
    value = metrics.get(self._select)
    return value if value is None or self._select == DEV_LOSS else -value

  def is_rated(self, step: int) -> bool:
    """Whether the metric that selects is known of a checkpoint."""
    return self.rating(self._metrics.get(step, {})) is not None

  def dev_loss(self, step: int) -> float | None:
    """Dev loss of a checkpoint."""
    return self._metrics.get(step, {}).get(DEV_LOSS)

  def save(self, step: int, state: Any, *, dev_loss: float | None = None, **others: float) -> None:
    """Starts an asynchronous save; a checkpoint without a dev loss only serves to continue.

    Args:
      step: its number.
      state: what is saved.
      dev_loss: of that state.
      others: what else was measured of it.

    Raises:
      TrainingError: this one or the one before cannot be written.
    """
    import orbax.checkpoint as ocp

    self.wait()
    named = _named(state)
    self.check()
    with self._told(step):
      self._check_room(sum(x.nbytes for x in named.values()))
      sums = checksums(named)  # of what is on the devices now: the next step may take its memory
      self._manager.save(step, args=ocp.args.PyTreeSave(named), custom_metadata={manifests.MARKER: True}, force=True)
    self._metrics[step] = {} if dev_loss is None else _floats({DEV_LOSS: dev_loss, **others})
    seal = functools.partial(self._seal, step, sorted(named), sums, self._metrics[step], self._superseded())
    self._sealing = self._background.submit(seal)

  def _superseded(self) -> list[int]:
    """Steps that need not be kept any more, which are forgotten here."""
    kept = {*sorted(self._metrics)[-self._keep :], self.best()}
    old = [s for s in self._metrics if s not in kept]
    for s in old:
      del self._metrics[s]
    return old

  def check(self) -> None:
    """Asserts that what was saved is still there: one look at a file, for each step.

    Orbax makes a directory anew that was removed, and the run would go on without its earlier checkpoints. The number
    of an inode would tell too, but some network file systems change it.

    Raises:
      TrainingError: somebody has removed it.
    """
    if files.in_bucket(self._root) or not hosts.is_first():
      return
    whole = max(self._leaves, default=None)
    kept = self._root if whole is None else self._root / str(whole) / files.MANIFEST
    if not kept.exists():
      raise TrainingError(
        f"{kept}: removed while the run went on, which ends here; the same command begins anew, or continues from what "
        f"is in {self._root}"
      )

  def _check_room(self, size: int) -> None:
    """Refuses to begin what cannot be finished.

    Raises:
      OSError: the file system can only be read, or has not that many bytes.
    """
    if files.in_bucket(self._root) or not hosts.is_first():
      return
    place = os.statvfs(self._root)
    if place.f_flag & os.ST_RDONLY:
      raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    free = place.f_bavail * place.f_frsize
    if place.f_blocks and free < size:  # some network file systems do not know their size
      raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free / 1e6:.0f} MB of {size / 1e6:.0f} needed")

  @contextlib.contextmanager
  def _told(self, step: int) -> Iterator[None]:
    """A file system that takes no more is told in one line, with what is safe."""
    try:
      yield
    except (OSError, ValueError) as e:  # tensorstore's are ValueErrors
      whole = max((s for s in self._leaves if s != step), default=None)
      rest = "no earlier one is there" if whole is None else f"step {whole} is the newest that is whole"
      raise TrainingError(
        f"{self._root}/{step}: the checkpoint cannot be written ({_in_short(e)}); {rest}, and the same command "
        "continues once there is room and the directory can be written to"
      ) from e

  def rate(self, step: int, *, dev_loss: float, **others: float) -> None:
    """Gives a checkpoint the dev loss, and what else was measured, that it was saved without."""
    self.wait()
    self._metrics[step] = _floats({DEV_LOSS: dev_loss, **others})
    with self._told(step):
      if hosts.is_first():
        manifests.rate(self._root / str(step), step, self._metrics[step])
      self._remove(self._superseded())

  def _seal(self, step: int, names: list[str], sums: jax.Array, metrics: dict[str, float], old: list[int]) -> None:
    """Writes the manifest once the step is final; then the older steps can go."""
    with self._told(step):
      self._manager.wait_until_finished()
      self.check()  # who removes the earlier ones meanwhile removes files of this one, which its manifest would lack
      leaves = by_name(dict.fromkeys(names), sums)
      if hosts.is_first():
        manifests.write(
          self._root / str(step),
          step,
          leaves=leaves,
          metrics=metrics,
          data={**self._data, "step": step},
        )
      self._leaves[step] = leaves
      self._remove(old)

  def _remove(self, old: list[int]) -> None:
    for step in old:
      del self._leaves[step]
      if hosts.is_first():
        manifests.remove(self._root / str(step))

  def resume(self, like: Any) -> tuple[int, Any]:
    """Number and state of the newest intact step; there must be one, see :meth:`newest`.

    Args:
      like: a state, or its arrays' shapes, types and shardings, which take no memory.

    Raises:
      UserError: the checkpoint holds other names or shapes.
      DamagedCheckpoint: what is restored of each differs from what was saved.
    """
    damage = None
    for step in sorted(self._metrics, reverse=True):
      try:
        return step, self.restore(step, like)
      except DamagedCheckpoint as e:
        damage = e
        if len(self._metrics) > 1:
          with hosts.one_writes() as mine:
            if mine:
              manifests.set_aside(self._root / str(step), str(e))
          del self._metrics[step], self._leaves[step]
          self._manager.reload()
    raise DamagedCheckpoint(f"{damage}; no other checkpoint is intact: remove {self._root} to begin anew")

  def restore(self, step: int, like: Any) -> Any:
    """The state of a step, with the shapes and shardings of ``like``.

    Raises:
      UserError: the checkpoint holds other names or shapes.
      DamagedCheckpoint: it cannot be read, or has another checksum than what was saved.
    """
    import orbax.checkpoint as ocp

    place = f"{self._root}/{step}"
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in _named(like).items()}
    try:
      stored = dict(self._manager.item_metadata(step))
      shapes = {name: tuple(m.shape) for name, m in stored.items()}
      for name, want in wanted.items():
        if shapes.get(name) != want.shape:
          raise UserError(
            f"{place}: {name} is {shapes.get(name, 'missing')}, this run needs {want.shape}; choose another --workdir"
          )
      restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
      named = self._manager.restore(step, args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args))
    except (ValueError, KeyError, TypeError, OSError) as e:
      # On a disk every file has been held against its SHA-256, so this would be a fault of another kind.
      if isinstance(e, UserError) or not files.in_bucket(self._root):
        raise
      raise DamagedCheckpoint(f"{place}: cannot be read ({' '.join(str(e).split())[:200]})") from None
    said = self._leaves[step]
    for name, found in by_name(named, checksums(named)).items():
      if found != said.get(name):
        raise DamagedCheckpoint(f"{place}: {name} has checksum {found}, {files.MANIFEST} says {said.get(name)}")
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(treedef, [named[jax.tree_util.keystr(path)] for path, _ in paths])

  def wait(self) -> None:
    """Returns when every save has been committed and has its manifest.

    Raises:
      TrainingError: it cannot be written.
    """
    if self._sealing is not None:
      self._sealing.result()  # kept: another thread may wait for it too

  def close(self) -> None:
    """Waits, and frees the manager's threads."""
    try:
      self.wait()
    except Exception:
      with contextlib.suppress(Exception):  # orbax has more to say of what could not be written, none of it new
        self._manager.close()
      raise
    else:
      self._manager.close()
    finally:
      self._background.shutdown()
