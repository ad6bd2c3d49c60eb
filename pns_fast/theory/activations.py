"""The largest activations of a ticket, ``sup |x^(l)|_1`` over x in [-1, 1]^n_0, by branch and bound.

On a box of inputs every activation lies between two affine functions of the input, which coincide where no neuron
changes its sign. So does the sum over a layer: the largest value of its upper function on the box bounds it there, and
the sum at the corner where that is reached is a value the supremum has at least. Boxes that may hold more than the
best such value are halved. Exact enumeration of the linear regions would do for one and two inputs only, and plain
intervals forget that x and -x are not large together (on Circle they give twice the supremum a layer).

Shapes: M boxes, I inputs, n neurons. The planted tickets need at most a few hundred boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tasks import Ticket

_GAP = 1e-9  # relative, between the bound and a value that is reached: there the search ends
_MOST_ROUNDS = 200  # each halves every open box once
_MOST_NUMBERS = 2**20  # slopes of all boxes looked at, a fraction of a second; after them the bound is what it is then

Layer = tuple[np.ndarray, np.ndarray]  # weight [n, n_in], bias [n]


def largest_inputs(ticket: Ticket) -> list[float]:
    """Of each layer l = 1..L, ``sup |x^(l-1)|_1``: an upper bound up to rounding in float64.

    It is at most 1e-9 (relative) above the supremum for networks of few inputs; of many inputs, where the search
    is cut short, it can be far above.

    >>> largest_inputs(Ticket([[[1.0], [-1.0]], [[1.0, 1.0]]], [[0.0, 0.5], [0.0]]))  # relu(x) + relu(0.5 - x)
    [1.0, 1.5]
    """
    layers = [(w.cpu().numpy(), b.cpu().numpy()) for w, b in zip(ticket.weights, ticket.biases, strict=True)]
    return [float(ticket.widths[0]), *(_supremum(layers[:l]) for l in range(1, len(layers)))]


def _supremum(layers: Sequence[Layer]) -> float:
    n_inputs = layers[0][0].shape[1]
    boxes_left = _MOST_NUMBERS // (n_inputs * max(len(b) for _, b in layers))
    center, radius = np.zeros((1, n_inputs)), np.ones((1, n_inputs))
    reached, settled = 0.0, 0.0  # the best value so far; the largest bound of boxes that are not looked at further
    for _ in range(_MOST_ROUNDS):
        upper, corner = _largest_sum(layers, center, radius)
        reached = max(reached, float(_activation_sum(layers, corner).max()))
        is_open = upper > reached * (1 + _GAP)
        settled = max(settled, float(upper[~is_open].max(initial=0.0)))
        if not is_open.any():
            return settled
        boxes_left -= 2 * int(is_open.sum())
        if boxes_left < 0:
            break
        center, radius = _halves(center[is_open], radius[is_open])
    return max(settled, float(upper[is_open].max()))


def _activation_sum(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """``|x^(l)|_1`` at the inputs x [M, I]: [M]."""
    for w, b in layers:
        x = np.maximum(x @ w.T + b, 0)
    return x.sum(1)


def _largest_sum(layers: Sequence[Layer], center: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A bound on the sum of the last activations in each box [M], and the corner where the bound is reached [M, I]."""
    slope = np.broadcast_to(np.eye(center.shape[1]), (len(center), center.shape[1], center.shape[1]))
    lower = upper = (slope, np.zeros_like(center))  # activations are between the affine functions lower and upper
    for w, b in layers:
        positive, negative = np.maximum(w, 0), np.minimum(w, 0)
        lower, upper = (
            (positive @ lower[0] + negative @ upper[0], lower[1] @ positive.T + upper[1] @ negative.T + b),
            (positive @ upper[0] + negative @ lower[0], upper[1] @ positive.T + lower[1] @ negative.T + b),
        )
        lower, upper = _relu(lower, upper, center, radius)
    slope, offset = upper[0].sum(1), upper[1].sum(1)
    bound = offset + (slope * center).sum(1) + (np.abs(slope) * radius).sum(1)
    return bound, center + np.sign(slope) * radius


def _relu(lower, upper, center, radius):
    """Affine functions around relu(h) out of those around h; see Zhang et al. 2018 (CROWN)."""
    low = lower[1] + (lower[0] @ center[..., None] - np.abs(lower[0]) @ radius[..., None])[..., 0]
    high = upper[1] + (upper[0] @ center[..., None] + np.abs(upper[0]) @ radius[..., None])[..., 0]
    is_positive, crosses = low >= 0, (low < 0) & (high > 0)
    chord = np.where(crosses, high / np.where(crosses, high - low, 1), is_positive)
    shift = np.where(crosses, -low, 0)
    under = np.where(crosses, high > -low, is_positive)
    return (
        (under[..., None] * lower[0], under * lower[1]),
        (chord[..., None] * upper[0], chord * (upper[1] + shift)),
    )


def _halves(center: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every box as two, halved along its longest side."""
    along = np.arange(radius.shape[1]) == radius.argmax(1)[:, None]
    half = np.where(along, radius / 2, radius)
    shift = np.where(along, half, 0)
    return np.concatenate([center - shift, center + shift]), np.concatenate([half, half])
