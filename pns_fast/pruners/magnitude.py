"""Magnitude pruning, Frankle & Carbin 2019."""

from __future__ import annotations

from torch import Tensor

from .problem import ScoringProblem
from .registry import register


@register("magnitude")
def magnitude(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``|theta|``."""
    return [p.abs() for p in problem.parameters]
