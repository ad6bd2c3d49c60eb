"""Edge-popup: train a score for each parameter, never the parameters. Ramanujan et al. 2020."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..networks import Masks, Population
from ..pruners.checks import check_density, check_population
from .datasets import stack_data
from .optimizers import SGD, Adam
from .train import TrainResult, run_trainer, trainer_settings

if TYPE_CHECKING:
    from ..tasks import Data


@dataclass(frozen=True)
class EdgePopupResult(TrainResult):
    """A TrainResult (of the masked, untrained networks) with the masks found."""

    masks: Masks
    scores: Tensor  # [N, P] in the flat layout

    @property
    def diverged(self) -> Tensor:
        """As in TrainResult, or a score is not finite (it ranks lowest, so the losses may be finite): bool [N]."""
        return super().diverged | ~torch.isfinite(self.scores).all(dim=1)


def edge_popup(
    population: Population,
    data: Data | Sequence[Data],
    density: float,
    epochs: int = 10,
    anneal: bool = False,
    optimizer: Adam | SGD = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine"),  # noqa: B008 (frozen)
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    loss: str | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> EdgePopupResult:
    """Searches a strong ticket: scores s are trained, parameters w are not.

    The network computes with ``w * [|s| among the top density]``, for each layer's weights and biases
    separately; the gradient goes straight through to all |scores|, ``dL/ds = dL/dw_eff * w * sign(s)`` with
    sign(0) = 1. Weight scores start uniform in ``+-1/sqrt(fan_in)`` (Kaiming, a = sqrt 5), bias scores at zero.

    Args:
        population: N networks, float32; their parameters stay as they are.
        data: one dataset, or a list of N, as in :func:`train`.
        density: fraction kept of each layer's weights and of its biases, in (0, 1].
        epochs: passes over the training data, >= 0.
        anneal: epoch i of E keeps ``density^(i/E)`` instead.
        optimizer: SGD or Adam, of the scores.
        seed: of first scores and batch order, an int or N ints.
        batch_size: samples a step, >= 1.
        loss, progress: as in :func:`train`.

    Returns:
        A TrainResult with ``.masks`` and ``.scores``; ``.population`` has the parameters given. Column 0 of
        test_loss and metric is of the mask that the first scores give. A network that diverges stops as in
        :func:`train`; its masks are the top ``density`` of the scores it stopped with, NaN lowest.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Source: Ramanujan et al. 2020; biases and annealing: Fischer & Burkholz 2022, Section 3.2.

    >>> from types import SimpleNamespace
    >>> from pns_fast import init_population
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> data = SimpleNamespace(x_train=x, y_train=x.relu(), x_test=x, y_test=x.relu())
    >>> result = edge_popup(init_population((1, 8, 1)), data, density=0.25, epochs=1)
    >>> [int(w.sum()) for w in result.masks.weights], [int(b.sum()) for b in result.masks.biases]
    ([2, 2], [2, 1])
    """
    check_population(population)
    density = check_density(density)
    if not isinstance(anneal, bool):
        raise TypeError(f"anneal: expected a bool, got {anneal!r}")
    settings = trainer_settings(epochs, batch_size, optimizer)
    stacked = stack_data(data, population, loss)
    parameters, scores, mask, *curves = run_trainer(
        population,
        Masks.full(population).flatten(),
        stacked,
        seed,
        scores=first_scores(population, seed),
        density=density,
        anneal=anneal,
        progress=progress,
        **settings,
    )
    return EdgePopupResult(
        Population.from_flat(parameters, population.widths),
        *curves,
        Masks.from_flat(mask, population.widths),
        scores,
    )


def first_scores(population: Population, seed: int | Sequence[int]) -> Tensor:
    """Weights uniform in +-1/sqrt(fan_in), biases zero: [N, P] in the flat layout."""
    rows = []
    for key in rng.network_keys(seed, population.n):
        generator, row = rng.generator(key, "edge_popup_scores"), []
        for n_in, n_out in itertools.pairwise(population.widths):
            bound = 1 / math.sqrt(n_in)
            row += [generator.uniform(-bound, bound, n_out * n_in), np.zeros(n_out)]
        rows.append(np.concatenate(row))
    return torch.from_numpy(np.stack(rows)).to(population.device, population.dtype)
