"""SNIP: sensitivity of the loss to the connection, Lee et al. 2019."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ScoringProblem
from .registry import register


@register("snip")
def snip(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``|g * theta|``, g the gradient of the loss on the pruning batch through the mask."""
    parameters = problem.parameters
    gradients = torch.autograd.grad(problem.loss(parameters), parameters, materialize_grads=True)
    return [(g * p).abs() for g, p in zip(gradients, parameters, strict=True)]
