"""FORCE: SNIP in rounds, in which what was pruned may come back, de Jorge et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ScoringProblem
from .registry import register


@register("force", revives=True)
def force(problem: ScoringProblem) -> list[Tensor]:
    """Scores ``|g * theta|``: g the gradient of the loss at the pruned network, theta the values before pruning.

    g is taken for all parameters, those at zero included, so that a round can undo what an earlier one did. It asks
    which parameters the sparse network would use, where SNIP asks what the dense one can miss. In one round both are
    the same. A neuron that has lost all it computed from has gradient 0, so nothing of it comes back.

    Without resurrection this is the paper's iterative SNIP: "snip" in as many rounds.
    """
    parameters = problem.parameters
    loss = problem.loss(parameters, through_mask=False)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return [(g * p).abs() for g, p in zip(gradients, problem.unmasked, strict=True)]
