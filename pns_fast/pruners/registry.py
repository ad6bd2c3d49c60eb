"""The pruners by name. A new pruner is one function ``problem -> scores`` with ``@register("name")``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .problem import ScoringProblem

Pruner = Callable[["ScoringProblem"], list[Tensor]]

# those of Fischer & Burkholz 2022: what "all" means in a sweep, whatever else is registered
PAPER = ("random", "magnitude", "snip", "grasp", "synflow")

_PRUNERS: dict[str, Pruner] = {}
_REVIVING: set[str] = set()


def register(name: str, revives: bool = False) -> Callable[[Pruner], Pruner]:
    """Makes the decorated function the pruner ``name``.

    Args:
        name: not taken yet.
        revives: whether a parameter pruned in one round may come back in a later one. Then the function must give
            pruned parameters scores that mean something, and each round chooses from all parameters that were kept
            before the first. Otherwise rounds leave nested masks.

    Returns:
        A decorator that hands the function back unchanged. The function gets a ScoringProblem and returns
        one score tensor a parameter, in the order and the shapes of ``problem.parameters``; larger is kept.

    Raises:
        TypeError: ``name`` is no string, ``revives`` no bool.
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
    if not isinstance(revives, bool):
        raise TypeError(f"revives: expected a bool, got {revives!r}")

    def add(pruner: Pruner) -> Pruner:
        _PRUNERS[name] = pruner
        if revives:
            _REVIVING.add(name)
        return pruner

    return add


def unregister(name: str) -> None:
    """Forgets the pruner ``name``. Raises ValueError if there is none."""
    get(name)
    del _PRUNERS[name]
    _REVIVING.discard(name)


def names() -> list[str]:
    """The registered pruners: the paper's (``PAPER``), then the other built-in ones, then yours.

    >>> names()
    ['random', 'magnitude', 'snip', 'grasp', 'synflow', 'force', 'phew']
    """
    return list(_PRUNERS)


def get(name: str) -> Pruner:
    """The pruner ``name``. Raises ValueError naming the registered ones if there is none."""
    if not isinstance(name, str):
        raise TypeError(f"name: expected the name of a pruner, got {name!r}")
    if name not in _PRUNERS:
        raise ValueError(f"name: expected a pruner out of {', '.join(_PRUNERS)}, got {name!r}")
    return _PRUNERS[name]


def revives(name: str) -> bool:
    """Whether the masks of pruner ``name`` are not nested from round to round."""
    get(name)
    return name in _REVIVING


def run(name: str, problem: ScoringProblem) -> list[Tensor]:
    """The scores of pruner ``name``: detached, one tensor a parameter of ``problem``, in its shape."""
    with torch.enable_grad():
        scores = get(name)(problem)
    if not isinstance(scores, (list, tuple)) or not all(isinstance(s, Tensor) for s in scores):
        raise TypeError(f"{name}: expected scores as a list of tensors, one a parameter, got {type(scores).__name__}")
    expected, got = ([list(t.shape) for t in tensors] for tensors in (problem.parameters, scores))
    if got != expected:
        raise ValueError(f"{name}: expected scores of shapes {expected}, got {got}")
    # ranks are whole numbers; float64 has them all below 2^53
    return [s.detach() if s.is_floating_point() else s.detach().double() for s in scores]
