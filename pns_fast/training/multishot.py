"""Multi-shot pruning: rounds of train, prune, reset, then a last training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..networks import Masks, Population
from ..ops._library import check_callback
from ..pruners import pruning_batch, round_density, threshold
from ..pruners.batch import check_batch
from ..pruners.checks import check_choice, check_count, check_density, check_population
from ..pruners.prune import SCHEDULES, SCOPES, score_by_key
from ..pruners.registry import get
from .datasets import is_data, stack_data
from .optimizers import SGD, Adam
from .train import TrainResult, run_trainer, trainer_settings

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
    pruner: str | Sequence[str],
    density: float | Sequence[float],
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
    At density 1 the rounds would change nothing and are left out. A network's result depends on its own arguments
    only: networks of several pruners and densities in one call get what they would get in calls of their own.

    Args:
        population: N networks, float32, at theta_0.
        pruner: a pruner out of ``pruners.names()``, or a list of N.
        density: fraction of parameters kept at the end, in (0, 1], or a list of N.
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
    n = check_population(population).n
    names = _one_each("pruner", pruner, str, n)
    densities = [check_density(d) for d in _one_each("density", density, (int, float), n)]
    for name in set(names):
        get(name)
    rounds = check_count("rounds", rounds, 1)
    check_count("round_epochs", round_epochs, 0)
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    settings = trainer_settings(epochs, batch_size, optimizer)
    stacked, keys = stack_data(data, population, loss), rng.network_keys(seed, n)
    if batch is None:
        datasets = [data] * n if is_data(data) else data
        batch = pruning_batch(datasets, stacked.loss, min(40, len(datasets[0].x_train)), seed)
    x, y = check_batch(batch, population, stacked.loss)

    pruned = [i for i, d in enumerate(densities) if d < 1]
    masks = Masks.full(population)
    sizes = [len(pruned) * round_epochs] * (rounds if pruned else 0) + [n * epochs]
    parts = progress_parts(progress, sizes)
    if pruned:
        some, found = _part(population, pruned), _part(masks, pruned)
        of_some = replace(stacked, dataset=stacked.dataset[pruned])
        jobs = [(names[i], densities[i], keys[i]) for i in pruned]
        for r in range(1, rounds + 1):
            seeds = round_seeds(seed, n, r)
            seeds = [seeds[i] for i in pruned]
            options = {**settings, "epochs": round_epochs, "progress": parts[r - 1]}
            trained = Population.from_flat(
                run_trainer(some, found.flatten(), of_some, seeds, **options)[0], population.widths
            )
            now = [(name, round_density(d, r, rounds, schedule), key) for name, d, key in jobs]
            found = _prune(trained, now, (x[pruned], y[pruned]), stacked.loss, scope, found)
        flat = masks.flatten()
        flat[pruned] = found.flatten()
        masks = Masks.from_flat(flat, population.widths)
    last, _, _, *curves = run_trainer(population, masks.flatten(), stacked, seed, progress=parts[-1], **settings)
    result = TrainResult(Population.from_flat(last, population.widths), *curves)
    return MultishotResult(masks, result.metric[:, 0], result.test_loss[:, 0], result)


def _one_each(name: str, value: object, kind: type | tuple[type, ...], n: int) -> list:
    """``value`` for each of n networks; a list has one for each already."""
    if not isinstance(value, (list, tuple)):
        return [value] * n
    if len(value) != n or not all(isinstance(v, kind) for v in value):
        raise ValueError(f"{name}: expected one, or a list with one for each of {n} networks, got {value!r}")
    return list(value)


def _part(stack: Population | Masks, rows: Sequence[int]) -> Population | Masks:
    return stack if len(rows) == stack.n else stack.select(rows)


def _rows(values: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Each value -> where it is."""
    rows: dict[Hashable, list[int]] = {}
    for i, value in enumerate(values):
        rows.setdefault(value, []).append(i)
    return rows


def _prune(
    population: Population,
    jobs: Sequence[tuple[str, float, tuple[int, int]]],
    batch: tuple[Tensor, Tensor],
    loss: str,
    scope: str,
    masks: Masks,
) -> Masks:
    """One round of score and threshold; each network has a pruner, a density and a key."""
    flat = torch.empty_like(masks.flatten())
    for name, rows in _rows(name for name, _, _ in jobs).items():
        networks, before = _part(population, rows), _part(masks, rows)
        keys = [jobs[i][2] for i in rows]
        scores = score_by_key(networks, name, tuple(part[rows] for part in batch), loss, keys, before)
        for density, at in _rows(jobs[i][1] for i in rows).items():
            kept = threshold(scores[at], _part(before, at), population.widths, density, scope)
            flat[[rows[i] for i in at]] = kept.flatten()
    return Masks.from_flat(flat, population.widths)


def progress_parts(progress: Callable | None, sizes: Sequence[int]) -> list[Callable | None]:
    """For each of several trainings of so many network-epochs the callback that reports it as a part of the whole."""
    check_callback("progress", progress)
    if progress is None:
        return [None] * len(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [lambda done, _, start=start: progress(start + done, sum(sizes)) for start in starts]


def round_seeds(seed: int | Sequence[int], n: int, r: int) -> list[int]:
    """The batch-order seed of each network in round ``r``, hashed from its key and ``r``."""
    sequences = (np.random.SeedSequence(key, spawn_key=(r,)) for key in rng.network_keys(seed, n))
    return [int(s.generate_state(1, np.uint64)[0] >> np.uint64(1)) for s in sequences]
