"""Multi-shot pruning: rounds of train, prune, reset, then a last training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .. import rng
from ..networks import Masks, Population
from ..ops._library import check_callback
from ..pruners import prune, pruning_batch, round_density
from ..pruners.checks import check_choice, check_count, check_density, check_population
from ..pruners.prune import SCHEDULES, SCOPES
from ..pruners.registry import get
from .datasets import is_data, stack_data
from .optimizers import SGD, Adam
from .train import TrainResult, train, trainer_settings

if TYPE_CHECKING:
    from ..tasks import Data


@dataclass(frozen=True)
class MultishotResult:
    """The masks found, what they are worth at initial parameters (strong) and after training (weak)."""

    masks: Masks
    strong_metric: Tensor  # float64 [N], test metric at the initial parameters
    strong_loss: Tensor  # float64 [N], test loss there
    result: TrainResult  # of the last training

    @property
    def diverged(self) -> Tensor:
        """Which networks became non-finite in the last training, bool [N]: see ``TrainResult.diverged``."""
        return self.result.diverged


def multishot(
    population: Population,
    pruner: str,
    density: float,
    data: Data | Sequence[Data],
    rounds: int = 10,
    round_epochs: int = 5,
    epochs: int = 10,
    *,
    batch: tuple[Tensor, Tensor] | None = None,
    scope: str = "global",
    schedule: str = "exponential",
    batch_size: int = 32,
    optimizer: Adam | SGD = Adam(lr=1e-3),  # noqa: B008 (frozen)
    seed: int | Sequence[int] = 0,
    loss: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MultishotResult:
    """Prunes in ``rounds`` rounds, each scored at trained parameters, and trains what is left.

    Round r of R: train ``round_epochs`` epochs from the initial parameters theta_0 with a fresh optimiser and
    the masks so far, score at the trained parameters, prune to ``density^(r/R)``, reset to theta_0. Then
    ``epochs`` epochs from theta_0 with the last masks: exactly ``train(population, masks, data, seed=seed)``.
    At density 1 the rounds would change nothing and are left out.

    Args:
        population: N networks, float32, at theta_0.
        pruner: a pruner out of ``pruners.names()``.
        density: fraction of parameters kept at the end, in (0, 1].
        data: one dataset, or a list of N, as in :func:`train`.
        rounds: number of rounds R, >= 1.
        round_epochs: epochs a round, >= 0.
        epochs: epochs of the last training, >= 0.
        batch: the pruning batch, see ``pruners.score``; None draws 40 training samples a network by its key.
        scope, schedule: as in ``pruners.prune``.
        batch_size, optimizer, loss: as in :func:`train`.
        seed: an int or N ints. Network i of key (s, i) visits batches in round r in the order of a seed
            hashed from (s, i) and r, and in the last training in that of (s, i).
        progress: as in :func:`train`, over the epochs of all rounds and the last training; pruning does not report.

    Returns:
        A MultishotResult.

    Raises:
        TypeError, ValueError: an argument that does not fit, or scores that are not finite: a network that
            diverges in a round cannot be pruned.

    Source: Fischer & Burkholz 2022, Section 3.2 and Supplement B.1.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> from pns_fast import init_population
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> data = SimpleNamespace(x_train=x, y_train=x.relu(), x_test=x, y_test=x.relu())
    >>> population = init_population((1, 8, 1))
    >>> found = multishot(population, "magnitude", 0.5, data, rounds=2, round_epochs=1, epochs=1)
    >>> found.masks.kept()  # ceil(0.5 * 25)
    tensor([13])
    """
    check_population(population)
    get(pruner)
    density = check_density(density)
    rounds = check_count("rounds", rounds, 1)
    check_count("round_epochs", round_epochs, 0)
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    trainer_settings(epochs, batch_size, optimizer)
    loss = stack_data(data, population, loss).loss
    if batch is None:
        datasets = [data] * population.n if is_data(data) else data
        batch = pruning_batch(datasets, loss, min(40, len(datasets[0].x_train)), seed)

    masks = Masks.full(population)
    if density == 1:
        rounds = 0  # nothing is pruned, and every round ends where it began
    parts = progress_parts(progress, population.n, [round_epochs] * rounds + [epochs])
    for r in range(1, rounds + 1):
        seeds = round_seeds(seed, population.n, r)
        trained = train(
            population, masks, data, round_epochs, batch_size, optimizer, seeds, loss, progress=parts[r - 1]
        ).population
        now = round_density(density, r, rounds, schedule)
        masks = prune(trained, pruner, now, batch, loss, scope, seed=seed, masks=masks)
    result = train(population, masks, data, epochs, batch_size, optimizer, seed, loss, progress=parts[-1])
    return MultishotResult(masks, result.metric[:, 0], result.test_loss[:, 0], result)


def progress_parts(progress: Callable | None, n: int, epochs: Sequence[int]) -> list[Callable | None]:
    """For each of several trainings of n networks the callback that reports it as a part of the whole."""
    check_callback("progress", progress)
    if progress is None:
        return [None] * len(epochs)
    total = n * sum(epochs)
    starts = [n * sum(epochs[:i]) for i in range(len(epochs))]
    return [lambda done, _, start=start: progress(start + done, total) for start in starts]


def round_seeds(seed: int | Sequence[int], n: int, r: int) -> list[int]:
    """The batch-order seed of each network in round ``r``, hashed from its key and ``r``."""
    sequences = (np.random.SeedSequence(key, spawn_key=(r,)) for key in rng.network_keys(seed, n))
    return [int(s.generate_state(1, np.uint64)[0] >> np.uint64(1)) for s in sequences]
