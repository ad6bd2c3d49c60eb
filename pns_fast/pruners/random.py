"""Random pruning, the baseline of every other pruner."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ScoringProblem
from .registry import register


@register("random")
def random(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``N(0, 1)``. A network's scores are the same in every round, so rounds leave nested masks."""
    draws = [
        torch.stack([torch.from_numpy(g.standard_normal(p.shape[1:])) for g in problem.generators])
        for p in problem.parameters
    ]
    return [d.to(p.device) for d, p in zip(draws, problem.parameters, strict=True)]
