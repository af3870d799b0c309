"""Names of a package that are imported when they are first asked for, so that one of them does not pay for all."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, where: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
  """``__all__`` and ``__getattr__`` of a package.

  Args:
    package: its ``__name__``.
    where: name -> module of the package that has it.

  Example:
    >>> names, get = exports("radit_jax", {"UserError": "errors"})
    >>> names, get("UserError").__name__
    (['UserError'], 'UserError')
  """

  def get(name: str) -> Any:
    if name not in where:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{where[name]}", package), name)

  return sorted(where), get
