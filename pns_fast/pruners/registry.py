"""The pruners by name. A new pruner is one function ``problem -> scores`` with ``@register("name")``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .problem import ScoringProblem

Pruner = Callable[["ScoringProblem"], list[Tensor]]

_PRUNERS: dict[str, Pruner] = {}


def register(name: str) -> Callable[[Pruner], Pruner]:
    """Makes the decorated function the pruner ``name``.

    Args:
        name: not taken yet.

    Returns:
        A decorator that hands the function back unchanged. The function gets a ScoringProblem and returns
        one score tensor a parameter, in the order and the shapes of ``problem.parameters``; larger is kept.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: ``name`` is taken.

    >>> @register("largest_last")
    ... def largest_last(problem):
    ...     return [p.flatten(1).argsort(1).reshape(p.shape) for p in problem.parameters]
    >>> unregister("largest_last")
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if name in _PRUNERS:
        raise ValueError(f"name: a pruner {name!r} is registered already")

    def add(pruner: Pruner) -> Pruner:
        _PRUNERS[name] = pruner
        return pruner

    return add


def unregister(name: str) -> None:
    """Forgets the pruner ``name``. Raises ValueError if there is none."""
    get(name)
    del _PRUNERS[name]


def names() -> list[str]:
    """The registered pruners, the built-in ones first.

    >>> names()
    ['random', 'magnitude', 'snip', 'grasp', 'synflow']
    """
    return list(_PRUNERS)


def get(name: str) -> Pruner:
    """The pruner ``name``. Raises ValueError naming the registered ones if there is none."""
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if name not in _PRUNERS:
        raise ValueError(f"name: expected a pruner out of {', '.join(_PRUNERS)}, got {name!r}")
    return _PRUNERS[name]


def run(name: str, problem: ScoringProblem) -> list[Tensor]:
    """The scores of pruner ``name``: detached, one tensor a parameter of ``problem``, in its shape."""
    with torch.enable_grad():
        scores = get(name)(problem)
    expected, got = ([list(t.shape) for t in tensors] for tensors in (problem.parameters, scores))
    if got != expected:
        raise ValueError(f"{name}: expected scores of shapes {expected}, got {got}")
    return [s.detach() for s in scores]
