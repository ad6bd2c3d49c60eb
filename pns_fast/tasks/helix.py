"""Helix: a one-dimensional submanifold of three dimensions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .knots import interpolate
from .task import Task, check_depth, regression_targets
from .ticket import Ticket

N_KNOTS = 30


def _angle(x: np.ndarray) -> np.ndarray:
    return 5 * np.pi + 3 * np.pi * x


def _curve(x: np.ndarray) -> np.ndarray:
    """``(y cos y, y sin y, y) / (8 pi)``, y = 5 pi + 3 pi x: [n] -> [n, 3]."""
    y = _angle(x)
    return np.stack([y * np.cos(y), y * np.sin(y), y], axis=1) / (8 * np.pi)


class Helix(Task):
    """Regression of ``(y cos y, y sin y, y) / (8 pi)``, y = 5 pi + 3 pi x; ``noise`` is a standard deviation.

    Source: Fischer & Burkholz 2022, section 2.3 and appendix A.4.3.

    >>> Helix().ticket(5).kept_weights, Helix().ticket(5).widths
    (95, (1, 1, 30, 3, 3))
    """

    name: ClassVar[str] = "helix"
    loss: ClassVar[str] = "mse"
    n_inputs: ClassVar[int] = 1
    n_outputs: ClassVar[int] = 3

    def _targets(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return regression_targets(_curve(x[:, 0]), self.noise, generator)

    def ticket(self, depth: int) -> Ticket:
        """Knots as early as possible, then identity layers."""
        check_depth(depth)
        shift = 0.0 if depth == 3 else 1.0  # from depth 4 on the knots see x + 1 in [0, 2]
        outer, offsets, knots = _outer_layer(shift)
        inner = (knots.signs[:, None], knots.biases)
        layers = [inner] if depth == 3 else [(np.ones((1, 1)), np.ones(1)), inner]
        n_identity = max(depth - 4, 0)
        # f1 and f2 reach below 0: +1 carries them through the ReLUs of the identity layers, -1 at the end.
        lift = np.array([1.0, 1.0, 0.0]) if n_identity else np.zeros(3)
        layers.append((outer, offsets + lift))
        layers += [(np.eye(3), np.zeros(3))] * (n_identity - 1)
        if n_identity:
            layers.append((np.eye(3), -lift))
        weights, biases = zip(*layers, strict=True)
        return Ticket(weights, biases)


def _outer_layer(shift: float):
    """Weights [3, N] and biases [3] behind the knots on ``[-1, 1] + shift``, and the knots."""
    f1, f2 = (interpolate(lambda x, k=k: _curve(x - shift)[:, k], shift - 1, shift + 1, N_KNOTS) for k in (0, 1))
    slope = 3 / 8  # f3 is linear: its knots beyond the first have coefficient 0
    outer = np.stack([f1.coefficients, f2.coefficients, np.zeros(N_KNOTS)])
    outer[2, 0] = slope
    return outer, np.array([f1.offset, f2.offset, 2 / 8]), f1
