"""Masks of the sparse training cases: what pruners find; connected ones; and random ones, mostly dead when sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import pns_fast as pns
from pns_fast import Masks

PRUNERS = ("synflow", "snip", "grasp", "magnitude", "random")


@cache
def make_mask(kind: str, widths: tuple[int, ...], n: int, density: float) -> Tensor:
    """bool [n, P], flat layout [W1 | b1 | W2 | b2 ...]; network i does not depend on n."""
    if density == 1:
        return torch.ones(n, sum((i + 1) * o for i, o in pairwise(widths)), dtype=torch.bool)
    if kind == "pruned":
        return pruned(widths, n, density)
    draw = {"connected": connected, "random": random}[kind]
    return torch.from_numpy(np.stack([draw(widths, density, np.random.default_rng((1, i))) for i in range(n)]))


def pruned(widths: Sequence[int], n: int, density: float) -> Tensor:
    """As a single-shot sweep (Figure 3) prunes mother networks of Circle, one after the other by the next of five."""
    task = pns.tasks.get("circle")
    mothers = pns.plant(task.ticket(len(widths)), pns.init_population(widths, n=n, seed=0)).population
    batch = pns.pruners.pruning_batch(task.sample(n=10_000, seed=0), task.loss)
    found = torch.empty(mothers.flatten().shape, dtype=torch.bool)
    for first, pruner in enumerate(PRUNERS[:n]):
        rows = range(first, n, len(PRUNERS))
        found[rows] = pns.prune(mothers.select(rows), pruner, density, batch=batch, seed=list(rows)).flatten()
    return found


def random(widths: Sequence[int], density: float, generator: np.random.Generator) -> np.ndarray:
    """Each parameter with probability ``density``."""
    return generator.random(sum((i + 1) * o for i, o in pairwise(widths))) < density


def connected(widths: Sequence[int], density: float, generator: np.random.Generator) -> np.ndarray:
    """Exactly ``ceil(density * n_weights)`` weights, each on a path from input to output, and their neurons' biases.

    Random paths as long as whole ones fit the budget, then single weights between neurons that are on a path.
    """
    sizes = [i * o for i, o in pairwise(widths)]
    budget = math.ceil(density * sum(sizes) - 1e-9)
    if budget < len(sizes):
        raise ValueError(f"density: a path of {len(sizes)} weights needs more than {density} of {sum(sizes)}")
    kept = np.zeros(sum(sizes), dtype=bool)
    kept[_paths(widths, sizes, budget, generator)] = True
    layers = [part.reshape(o, i) for part, (i, o) in zip(_split(kept, sizes), pairwise(widths), strict=True)]
    live = [layers[0].any(0), *(layer.any(1) for layer in layers)]
    free = np.concatenate(
        [
            (np.outer(target, source) & ~layer).ravel()
            for layer, source, target in zip(layers, live[:-1], live[1:], strict=True)
        ]
    )
    kept[generator.permutation(np.flatnonzero(free))[: budget - kept.sum()]] = True
    return np.concatenate([part for pair in zip(_split(kept, sizes), live[1:], strict=True) for part in pair])


def _paths(widths: Sequence[int], sizes: list[int], budget: int, generator: np.random.Generator) -> np.ndarray:
    """The weights (their indices over all layers) of as many random paths as fit the budget."""
    n_paths, first = budget, np.cumsum([0, *sizes[:-1]])
    while True:  # paths overlap more, the denser the mask
        neurons = generator.integers(0, widths, (n_paths, len(widths)))
        weights = neurons[:, 1:] * widths[:-1] + neurons[:, :-1] + first  # [path, layer]
        distinct, at = np.unique(weights, return_index=True)
        new = np.bincount(at // len(sizes), minlength=n_paths).cumsum()  # distinct weights of the paths so far
        fitting = int(np.searchsorted(new, budget, side="right"))
        if fitting < n_paths or new[-1] == budget:
            return distinct[at < fitting * len(sizes)]
        n_paths *= 2


def _split(flat: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(sizes)[:-1])


def n_kept_and_live(mask: Tensor, widths: Sequence[int]) -> tuple[float, float]:
    """Kept parameters of a network, and those of them that are on a path from input to output: means."""
    masks = Masks.from_flat(mask, widths)
    return float(masks.kept().double().mean()), float(masks.effective_density().mean()) * mask.shape[1]
