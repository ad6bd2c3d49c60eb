"""Piecewise-linear functions of one variable as a layer of ReLU neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Knots:
    """``g(x) = sum_j a_j relu(p_j (x - s_j)) + b``."""

    positions: np.ndarray  # s [N], ascending, equidistant
    signs: np.ndarray  # p [N], 1, -1, 1, ...
    coefficients: np.ndarray  # a [N]
    offset: float  # b

    @property
    def biases(self) -> np.ndarray:
        """``-p_j s_j``: the biases of the knots' neurons ``[N]``."""
        return -self.signs * self.positions


def interpolate(f: Callable[[np.ndarray], np.ndarray], low: float, high: float, n: int) -> Knots:
    """The interpolation of ``f`` with ``n`` knots from ``low`` to ``high``, both included.

    ``m_j = (f(s_{j+1}) - f(s_j)) / (s_{j+1} - s_j)`` with ``s_{n+1}`` one grid step beyond,
    ``a_j = m_j - m_{j-1}`` for j >= 2, ``a_1 = m_1 + sum_{j: p_j = -1} a_j``; b makes ``g(s_1) = f(s_1)``.
    Knots with p_j = -1 are active below s_j, hence their part in a_1 (without them it is the paper's m_1).

    Source: Fischer & Burkholz 2022, appendix A.4.3.

    >>> g = interpolate(np.square, 0.0, 1.0, 3)
    >>> g.positions, g.coefficients  # slopes 0.5, 1.5, 2.5
    (array([0. , 0.5, 1. ]), array([1.5, 1. , 1. ]))
    """
    step = (high - low) / (n - 1)
    grid = np.append(np.linspace(low, high, n), high + step)
    positions = grid[:n]
    signs = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    slopes = np.diff(f(grid)) / np.diff(grid)
    coefficients = np.diff(slopes, prepend=0.0)
    coefficients[0] = slopes[0] + coefficients[signs < 0].sum()
    at_first_knot = coefficients @ np.maximum(signs * (low - positions), 0)
    return Knots(positions, signs, coefficients, float(f(positions[:1])[0] - at_first_knot))
