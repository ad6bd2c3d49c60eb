"""PHEW: paths sampled by random walks that prefer large weights, without data, Patil & Dovrolis 2021."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import rng
from .problem import ScoringProblem
from .registry import register

# Walks for each weight of the largest layer. One walk takes one weight of every layer: of a layer with normal weights,
# two for each of them visit about 72%.
WALKS_PER_WEIGHT = 2
_BLOCK = 8192  # walks at a time
_NEVER = np.iinfo(np.int64).max


@register("phew")
def phew(problem: ScoringProblem) -> list[Tensor]:
    """Scores by the first of many random walks that came by: earlier is larger; the rest by ``|theta|`` below all that.

    Walks start by turns at an input (to the outputs) and at an output (to the inputs), each time at the next one. From
    a neuron they follow each of its weights w with probability ``|w| / sum |w|`` over its outgoing, or incoming,
    weights. What a walk comes by is kept: its weights, and the biases of its neurons. So up to the density that walks
    reach, what is kept lies on paths from input to output (but for the last walk, which is cut), and masks of larger
    densities contain those of smaller ones.

    There are two walks for each weight of the largest layer, whatever the density asked for. They visit about 70% of
    the layers that large and more of the others. Each network's come from its own stream, on the CPU whatever the
    device. On modules: linear layers in sequence.
    """
    chain = problem.chain()
    magnitudes = [p.detach().abs().double().cpu().numpy() for p in problem.parameters]
    scores = [np.full_like(m, np.nan) for m in magnitudes]
    for i, key in enumerate(problem.keys):
        if not all(np.isfinite(m[i]).all() for m in magnitudes):
            continue  # NaN: no pruner takes such a network
        weights = [magnitudes[weight][i] for weight, _ in chain]
        times, end = _first_visits(weights, rng.generator(key, "path_walks"))
        largest = max(m[i].max(initial=0.0) for m in magnitudes) or 1.0
        for (weight, bias), (weight_times, bias_times) in zip(chain, times, strict=True):
            for at, first in ((weight, weight_times), (bias, bias_times)):
                if at is not None:
                    # whole numbers of 2 and more for what was visited, at most 1 for what was not
                    scores[at][i] = np.where(first < _NEVER, 1 + (end - first), magnitudes[at][i] / largest)
    return [torch.from_numpy(s).to(p.device) for s, p in zip(scores, problem.parameters, strict=True)]


def _first_visits(
    weights: Sequence[np.ndarray], generator: np.random.Generator
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """When walks first came by the weights ``[O, I]`` and the neurons ``[O]`` of each layer of one network.

    Returns:
        (times of weights, times of neurons) of each layer, int64, ``_NEVER`` where no walk came by; and a time later
        than all others.
    """
    n_layers = len(weights)
    times = [(np.full(w.shape, _NEVER), np.full(len(w), _NEVER)) for w in weights]
    forth, back = [_Steps(w.T) for w in weights], [_Steps(w) for w in weights]
    n_walks = WALKS_PER_WEIGHT * max(w.size for w in weights)
    for first in range(0, n_walks, _BLOCK):
        walks = np.arange(first, min(first + _BLOCK, n_walks))
        # of 32 bits: with the number of a row in front they are exact
        chances = np.floor(generator.random((len(walks), n_layers)) * 2.0**32) / 2.0**32
        for is_back, steps in enumerate((forth, back)):
            own = walks % 2 == is_back
            _walk(steps, bool(is_back), walks[own], chances[own], times)
        if all((t < _NEVER).all() for t, _ in times):
            break
    return times, n_walks * (n_layers + 1)


def _walk(
    steps: Sequence[_Steps],
    is_back: bool,
    walks: np.ndarray,
    chances: np.ndarray,
    times: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Takes the walks through all layers, from the first or ``is_back`` from the last one, and notes what is new."""
    n_layers = len(steps)
    order = range(n_layers)[::-1] if is_back else range(n_layers)
    neurons, now = walks // 2 % steps[order[0]].n_rows, walks * (n_layers + 1)
    if is_back:
        np.minimum.at(times[-1][1], neurons, now)
    for step, l in enumerate(order):
        after, goes_on = steps[l].take(neurons, chances[:, step])
        # a neuron without weights ends a walk
        before, neurons, now, chances = neurons[goes_on], after[goes_on], now[goes_on] + 1, chances[goes_on]
        o, i = (before, neurons) if is_back else (neurons, before)
        np.minimum.at(times[l][0].reshape(-1), o * times[l][0].shape[1] + i, now)  # flat: numpy's fast path
        if not is_back:
            np.minimum.at(times[l][1], neurons, now)
        elif l > 0:
            np.minimum.at(times[l - 1][1], neurons, now)


class _Steps:
    """One step of many walks: from row r of magnitudes m ``[R, C]`` to column c with chance ``m[r, c] / sum m[r]``."""

    def __init__(self, magnitudes: np.ndarray) -> None:
        self.n_rows, self._n_columns = magnitudes.shape
        sums = np.cumsum(magnitudes, axis=1)
        total = sums[:, -1]
        self._is_way = total > 0
        # one sorted list of all rows: row r lies in [r, r + 1]
        scaled = sums / np.where(self._is_way, total, 1.0)[:, None]
        self._levels = (scaled + np.arange(self.n_rows)[:, None]).ravel()

    def take(self, rows: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The column each walk goes to, and whether it can go at all."""
        # right of equal levels: a column of magnitude 0 has the level of the one before it
        found = np.searchsorted(self._levels, rows + chances, side="right") - rows * self._n_columns
        return np.minimum(found, self._n_columns - 1), self._is_way[rows]
