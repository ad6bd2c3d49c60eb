"""How many parameters each layer keeps: the step between scores and thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from ..ops._keep import keep_count
from .checks import check_choice, check_density

SCOPES = ("global", "layer", "erk")

Shapes = Sequence[Sequence[int]]


def allocate(layers: Sequence[Shapes], density: float, scope: str) -> list[int]:
    """The number of parameters to keep in each layer, or in all of them together.

    "global": ``ceil(density * n - 1e-9)`` of all n parameters; "layer": as much of the n of each layer; "erk": as many
    as "global" in all, layer l at the density ``min(1, eps * sum(shape_l) / prod(shape_l))``, shape_l that of its
    weight (``(n_in + n_out) / (n_in n_out)``, kernel sizes included) and eps such that the total is right: what a
    full layer cannot take goes to the others. Counts are whole: they are dealt out one by one, each to the layer that
    is furthest behind (Sainte-Lague), ties to the first. So a larger density never takes from a layer, which
    rounding by largest remainders does now and then, and masks of one schedule stay nested and exact.

    Args:
        layers: of each layer the shapes of its weight and bias (or of several weights; their shapes are added up).
        density: fraction kept, in (0, 1].
        scope: "global", "layer" or "erk".

    Returns:
        One count a layer; for "global" a single one.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Source: Evci et al. 2020 (RigL), Section 3, Erdos-Renyi-Kernel; Balinski & Young 1982 (rounding).

    >>> layers = [[(100, 2), (100,)], [(100, 100), (100,)], [(4, 100), (4,)]]
    >>> allocate(layers, 0.1, "layer"), allocate(layers, 0.1, "erk"), allocate(layers, 0.05, "erk")
    ([30, 1010, 41], [300, 514, 267], [180, 238, 123])
    """
    check_choice("scope", scope, SCOPES)
    density = check_density(density)
    sizes = [sum(math.prod(shape) for shape in shapes) for shapes in layers]
    if scope == "global":
        return [keep_count(density, sum(sizes))]
    if scope == "layer":
        return [keep_count(density, size) for size in sizes]
    return _dealt([_share(shapes) for shapes in layers], sizes, keep_count(density, sum(sizes)))


def _share(shapes: Shapes) -> Fraction:
    """What a layer keeps for eps = 1: its density times its size; biases have the density of the weights."""
    weights = [shape for shape in shapes if len(shape) > 1] or shapes
    size = sum(math.prod(shape) for shape in shapes)
    return Fraction(sum(map(sum, weights)) * max(size, 1), max(sum(map(math.prod, weights)), 1))  # 1: of empty layers


def _dealt(shares: Sequence[Fraction], sizes: Sequence[int], total: int) -> list[int]:
    """The first ``total`` parameters dealt out: the k-th one of a layer is due at ``(k - 1/2) / share``.

    In exact arithmetic, from where water-filling leaves every layer within half of its count.
    """
    half = Fraction(1, 2)
    eps = _water_level(shares, sizes, total)
    counts = [min(size, math.floor(eps * share + half)) for share, size in zip(shares, sizes, strict=True)]
    layers = range(len(sizes))
    while sum(counts) < total:
        counts[min((l for l in layers if counts[l] < sizes[l]), key=lambda l: (counts[l] + half) / shares[l])] += 1
    while sum(counts) > total:
        counts[max((l for l in layers if counts[l] > 0), key=lambda l: ((counts[l] - half) / shares[l], l))] -= 1
    return counts


def _water_level(shares: Sequence[Fraction], sizes: Sequence[int], total: int) -> Fraction:
    """The eps at which ``sum(min(size, eps * share))`` is ``total``."""
    left, share_left = total, sum(shares)
    # layers fill up in this order
    for share, size in sorted(zip(shares, sizes, strict=True), key=lambda layer: layer[1] / layer[0]):
        if left * share < size * share_left:
            return left / share_left
        left, share_left = left - size, share_left - share
    return max(size / share for share, size in zip(shares, sizes, strict=True))
