"""Circle: four classes in rings, whose ticket is sparser the deeper it is."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from .knots import interpolate
from .task import Task, check_depth
from .ticket import Ticket

N_KNOTS = 10  # per axis
THRESHOLDS = (0.2, 0.5, 0.7)  # r^2 between class c and c + 1
SLOPES = 5.0 * 2.0 ** np.arange(4)  # of the logits on r^2
OFFSETS = np.append(0.0, -np.cumsum(np.diff(SLOPES) * THRESHOLDS))

# Outermost knots on the signed axes of depth 3. The chords of x^2 lie above it, the more the wider the grid;
# beyond the knots the last chord runs on and is still near x^2 at sqrt(0.7), the outermost ring. Measured
# without noise: accuracy 0.960 for 1, 0.983 for 0.69, 0.984 for 0.66, 0.980 for 0.6.
SIGNED_REACH = 0.66


class Circle(Task):
    """Which ring of r^2 in {0.2, 0.5, 0.7} a point of the plane lies in.

    The logit of class c is ``a_c r^2 + b_c``, ``a_c = 5 * 2^c``; classes c and c + 1 cross at the rings. With
    probability ``noise`` the label is replaced by the second most likely class.

    Source: Fischer & Burkholz 2022, section 2.3 and appendix A.4.2.

    >>> [Circle().ticket(depth).kept_weights for depth in (3, 4, 5, 6, 7, 8)]
    [100, 124, 108, 119, 126, 135]
    """

    name: ClassVar[str] = "circle"
    loss: ClassVar[str] = "cross_entropy"
    n_inputs: ClassVar[int] = 2
    n_outputs: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise > 1:
            raise ValueError(f"noise: expected a probability in [0, 1], got {self.noise}")

    def _targets(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        logits = (x**2).sum(1, keepdims=True) * SLOPES + OFFSETS
        ranked = np.argsort(-logits, axis=1, kind="stable")
        flipped = generator.uniform(size=len(x)) < self.noise
        return np.where(flipped, ranked[:, 1], ranked[:, 0]).astype(np.int64)

    def ticket(self, depth: int) -> Ticket:
        """Fold the plane along its symmetries, then r^2 by knots on each remaining component."""
        check_depth(depth)
        if depth == 3:
            layers, components = [], _signed_axes()
        elif depth == 4:
            layers, components = [_half_axes()], _unsigned_axes(np.kron(np.eye(2), np.ones((1, 2))))
        else:
            layers = [_half_axes(), (np.kron(np.eye(2), np.ones((1, 2))), np.zeros(2))]
            components = _unsigned_axes(np.eye(2))
            for l in range(3, depth - 2):
                layers.append(_mirror(math.pi / 2 ** (l - 1), first=l == 3))
                components = _polar_components(math.pi / 2 ** (l - 1))
        layers += _square_layers(components)
        weights, biases = zip(*layers, strict=True)
        return Ticket(weights, biases)


def _half_axes():  # a layer is (weight [O, I], bias [O])
    """(x, y) -> relu of (x, -x, y, -y)."""
    return np.kron(np.eye(2), [[1.0], [-1.0]]), np.zeros(4)


def _mirror(angle: float, first: bool):
    """Along an axis at ``angle``: parallel component, positive and negative part of the perpendicular one.

    The previous layer holds (parallel, perpendicular), the latter from the second mirror on as two halves.
    """
    parallel, perpendicular = math.cos(angle), math.sin(angle)
    rows = np.array([[parallel, perpendicular], [perpendicular, -parallel], [-perpendicular, parallel]])
    return (rows if first else rows[:, [0, 1, 1]]), np.zeros(3)


# A component is (row [n_in] that sums it from the previous layer, low, high, number of knots): r^2 is the
# sum of the squares of the components.
def _signed_axes():
    return [(row, -SIGNED_REACH, SIGNED_REACH, N_KNOTS) for row in np.eye(2)]


def _unsigned_axes(rows: np.ndarray):
    return [(row, 0.0, 1.0, N_KNOTS) for row in rows]


def _polar_components(angle: float):
    """Parallel on [0, sqrt 2], perpendicular on [0, c] with c just beyond the outermost ring."""
    reach = math.sqrt(0.7) * math.sin(angle) + 0.01
    total = 2 * N_KNOTS
    n_parallel = min(math.ceil(total * math.sqrt(2) / (reach + math.sqrt(2))), total - 3)
    n_perpendicular = max(total - n_parallel, 3)
    return [
        (np.array([1.0, 0.0, 0.0]), 0.0, math.sqrt(2), n_parallel),
        (np.array([0.0, 1.0, 1.0]), 0.0, reach, n_perpendicular),
    ]


def _square_layers(components):
    """The knots of every component's square, and the logits of their sum."""
    squares = [interpolate(np.square, low, high, n) for _, low, high, n in components]
    inner = np.concatenate([np.outer(g.signs, row) for g, (row, *_) in zip(squares, components, strict=True)])
    r2 = np.concatenate([g.coefficients for g in squares])
    r2_offset = sum(g.offset for g in squares)
    return [
        (inner, np.concatenate([g.biases for g in squares])),
        (np.outer(SLOPES, r2), SLOPES * r2_offset + OFFSETS),
    ]
