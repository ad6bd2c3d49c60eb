"""ReLU: one unit, the sparsest ticket there is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .task import Task, check_depth, regression_targets
from .ticket import Ticket


class Relu(Task):
    """Regression of ``max(x, 0)``; ``noise`` is the standard deviation of the outputs.

    Source: Fischer & Burkholz 2022, section 2.3 and appendix A.4.1.

    >>> Relu().ticket(5).kept_weights
    4
    """

    name: ClassVar[str] = "relu"
    loss: ClassVar[str] = "mse"
    n_inputs: ClassVar[int] = 1
    n_outputs: ClassVar[int] = 1

    def _targets(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return regression_targets(np.maximum(x, 0), self.noise, generator)

    def ticket(self, depth: int) -> Ticket:
        """One neuron a layer, weight 1, bias 0: depth - 1 weights."""
        check_depth(depth)
        return Ticket([np.ones((1, 1))] * (depth - 1), [np.zeros(1)] * (depth - 1))
