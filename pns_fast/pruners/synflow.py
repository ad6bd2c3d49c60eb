"""SynFlow: synaptic saliency without data, Tanaka et al. 2020."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ScoringProblem
from .registry import register


@register("synflow")
def synflow(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``|theta * dR/dtheta|``, R the sum of outputs with abs parameters on an all-ones input.

    In float64, and up to one positive factor a network (see :meth:`PopulationProblem.flow`): 30 layers of width
    1000 overflow float32, and a few hundred overflow float64.
    """
    parameters = [p.detach().double().abs().requires_grad_() for p in problem.parameters]
    gradients = torch.autograd.grad(problem.flow(parameters), parameters, materialize_grads=True)
    return [(p * g).abs() for p, g in zip(parameters, gradients, strict=True)]
