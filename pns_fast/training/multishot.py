"""Multi-shot pruning: rounds of train, prune, rewind, then a last training."""

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
from ..pruners import SCOPES, pruning_batch, round_density
from ..pruners.batch import check_batch
from ..pruners.checks import check_choice, check_count, check_density, check_population
from ..pruners.prune import SCHEDULES, next_masks, score_by_key
from ..pruners.registry import get
from .datasets import is_data, stack_data
from .optimizers import SGD, Adam
from .train import TrainResult, run_trainer, trainer_settings

if TYPE_CHECKING:
    from ..tasks import Data


REWINDS = ("init", "weights", "learning-rate")


@dataclass(frozen=True)
class MultishotResult:
    """The masks found, what they are worth before the last training (strong) and after it (weak)."""

    masks: Masks
    strong_metric: Tensor  # float64 [N], test metric where the last training starts: at theta_0 for rewind "init"
    strong_loss: Tensor  # float64 [N], test loss there
    result: TrainResult  # of the last training

    @property
    def diverged(self) -> Tensor:
        """Which networks became non-finite in the last training, bool [N]: see ``TrainResult.diverged``."""
        return self.result.diverged


@torch.inference_mode(False)  # scores are gradients, wherever the caller is
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
    rewind: str = "init",
    rewind_epochs: int = 0,
    batch_size: int = 32,
    optimizer: Adam | SGD = Adam(lr=1e-3),  # noqa: B008 (frozen)
    seed: int | Sequence[int] = 0,
    loss: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MultishotResult:
    """Prunes in ``rounds`` rounds, each scored at trained parameters, and trains what is left.

    Round r of R: train ``round_epochs`` epochs with a fresh optimiser and the masks so far, score at the trained
    parameters, prune to ``density^(r/R)``, rewind. Then ``epochs`` epochs with the last masks: exactly
    ``train(rewound, masks, data, seed=seed)``. What rewinding sets the parameters to is where the next training
    starts, the last one too, and where ``strong_metric`` is taken:

    - "init", the paper's: the initial parameters theta_0. Only here is a strong ticket one of random parameters.
    - "weights", late rewinding: theta_k, which k = ``rewind_epochs`` epochs of round 1, dense, lead to. Round 1 itself
      starts from theta_0; with k = 0 this is "init". (A cosine schedule is that of a training of k epochs.)
    - "learning-rate": those just trained; only the optimiser and its schedule start again.

    At density 1 nothing is pruned, so that rounds are left out where rewinding undoes them. A pruned parameter does
    not train: if the pruner revives it (FORCE), it comes back with the value that it was pruned with, which
    is also what it is scored with, or with that of theta_0 or theta_k where these are rewound to. A network's result
    depends on its own arguments only: networks of several pruners and densities in one call get what they would get
    in calls of their own.

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
        rewind: "init", "weights" or "learning-rate".
        rewind_epochs: k of rewind "weights", from 0 to ``round_epochs``.
        batch_size, optimizer, loss: as in :func:`train`.
        seed: an int or N ints. Network i of key (s, i) visits batches in round r in the order of a seed
            hashed from (s, i) and r, and in the last training in that of (s, i).
        progress: as in :func:`train`, over the epochs of all rounds and the last training; pruning does not report.

    Returns:
        A MultishotResult.

    Raises:
        TypeError, ValueError: an argument that does not fit, or scores that are not finite: a network that
            diverges in a round cannot be pruned.

    Source: Fischer & Burkholz 2022, Section 3.2 and Supplement B.1; rewinding of weights Frankle et al. 2020, of the
    learning rate Renda et al. 2020.

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
    check_rewind(rewind, rewind_epochs, check_count("round_epochs", round_epochs, 0))
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    settings = trainer_settings(epochs, batch_size, optimizer)
    stacked, keys = stack_data(data, population, loss), rng.network_keys(seed, n)
    if batch is None:
        datasets = [data] * n if is_data(data) else data
        batch = pruning_batch(datasets, stacked.loss, min(40, len(datasets[0].x_train)), seed)
    x, y = check_batch(batch, population, stacked.loss)

    # which networks rounds change
    in_rounds = [i for i, d in enumerate(densities) if d < 1 or rewind == "learning-rate"]
    n_rounds = rounds if in_rounds else 0
    sizes = [n * rewind_epochs, *[len(in_rounds) * round_epochs] * n_rounds, n * epochs]
    first, *parts, last = progress_parts(progress, sizes)

    def trained(some: Population, found: Masks, rows: list[int], r: int, n_epochs: int, report) -> Population:
        """Networks ``rows`` after a training in the batch order of round r."""
        seeds, of_rows = round_seeds(seed, n, r), replace(stacked, dataset=stacked.dataset[rows])
        options = {**settings, "epochs": n_epochs, "progress": report}
        flat, *_ = run_trainer(some, found.flatten(), of_rows, [seeds[i] for i in rows], **options)
        return Population.from_flat(flat, population.widths)

    rewound, masks = population, Masks.full(population)
    if rewind_epochs:
        rewound = trained(population, masks, list(range(n)), 1, rewind_epochs, first)
    if in_rounds:
        some, found = _part(population, in_rounds), _part(masks, in_rounds)
        jobs = [(names[i], densities[i], keys[i]) for i in in_rounds]
        for r, report in enumerate(parts, 1):
            some = trained(some, found, in_rounds, r, round_epochs, report)
            now = [(name, round_density(d, r, rounds, schedule), key) for name, d, key in jobs]
            found = _prune(some, now, (x[in_rounds], y[in_rounds]), stacked.loss, scope, found)
            some = some if rewind == "learning-rate" else _part(rewound, in_rounds)
        rewound, masks = _with(rewound, in_rounds, some), _with(masks, in_rounds, found)
    final, _, _, *curves = run_trainer(rewound, masks.flatten(), stacked, seed, progress=last, **settings)
    result = TrainResult(Population.from_flat(final, population.widths), *curves)
    return MultishotResult(masks, result.metric[:, 0], result.test_loss[:, 0], result)


def check_rewind(rewind: str, rewind_epochs: int, round_epochs: int) -> None:
    """ValueError or TypeError unless these arguments of :func:`multishot` fit together."""
    check_choice("rewind", rewind, REWINDS)
    most = round_epochs if rewind == "weights" else 0
    if check_count("rewind_epochs", rewind_epochs, 0) > most:
        raise ValueError(
            f"rewind_epochs: expected at most {most} for rewind {rewind!r} and {round_epochs} epochs a round, "
            f"got {rewind_epochs}"
        )


def _with(stack: Population | Masks, rows: list[int], part: Population | Masks) -> Population | Masks:
    """``stack`` with ``part`` in the place of its ``rows``."""
    flat = stack.flatten()
    flat[rows] = part.flatten()
    return type(stack).from_flat(flat, stack.widths)


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
    """One round of score and threshold; each network has a pruner, a density and a key. Density 1 needs no scores.

    A pruner that revives chooses from all parameters in every round.
    """
    flat = masks.flatten()
    for name, rows in _rows(name if density < 1 else None for name, density, _ in jobs).items():
        if name is None:
            continue
        networks, before = _part(population, rows), _part(masks, rows)
        start, keys = Masks.full(networks), [jobs[i][2] for i in rows]
        scores = score_by_key(networks, name, tuple(part[rows] for part in batch), loss, keys, before)
        for density, at in _rows(jobs[i][1] for i in rows).items():
            kept = next_masks(name, scores[at], _part(before, at), _part(start, at), density, scope)
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
