"""GraSP: keep the gradient flow, Wang et al. 2020."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ScoringProblem
from .registry import register

TEMPERATURE = 200.0


@register("grasp")
def grasp(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``theta * Hg``, H and g Hessian and gradient of the loss with outputs divided by T = 200.

    Removing theta_i changes ``|g|^2 / 2`` by about ``-theta_i (Hg)_i``. The paper scores ``-theta * Hg`` and
    removes the largest; larger is kept here, so the sign is turned. It counts: a large negative score, whose
    removal raises the gradient norm, goes first.
    """
    parameters = problem.parameters
    loss = problem.loss(parameters, temperature=TEMPERATURE)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    # d/dtheta of (g held constant) . g is Hg, with no Hessian formed
    product = sum((g.detach() * g).sum() for g in gradients)
    hessian_gradients = torch.autograd.grad(product, parameters, materialize_grads=True)
    return [p * hg for p, hg in zip(parameters, hessian_gradients, strict=True)]
