"""Training of masked populations: arguments checked, everything else in ops.mlp_trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops, rng
from ..networks import Masks, Population
from ..pruners.checks import check_count, check_masks, check_population
from .datasets import StackedData, stack_data
from .optimizers import SGD, Adam

if TYPE_CHECKING:
    from ..tasks import Data


@dataclass(frozen=True)
class TrainResult:
    """Trained networks and how they got there, on one device. Column 0 of test_loss and metric is before training."""

    population: Population
    train_loss: Tensor  # float64 [N, epochs], mean over the epoch's batches as they were trained
    test_loss: Tensor  # float64 [N, epochs + 1]
    metric: Tensor  # float64 [N, epochs + 1]: test accuracy in [0, 1], or MSE after rescaling each output

    @property
    def diverged(self) -> Tensor:
        """Which networks became non-finite, bool [N]: in the train loss of an epoch, or at the last test after one.

        A network stops after an epoch whose mean train loss is not finite: that entry of ``train_loss`` is what it
        was, all that follow in train_loss, test_loss and metric are NaN, and its parameters are those it stopped with.
        """
        losses = torch.cat([self.train_loss, self.test_loss[:, 1:][:, -1:]], dim=1)
        return ~torch.isfinite(losses).all(dim=1)


def train(
    population: Population,
    masks: Masks | None,
    data: Data | Sequence[Data],
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Adam | SGD = Adam(lr=1e-3),  # noqa: B008 (frozen)
    seed: int | Sequence[int] = 0,
    loss: str | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> TrainResult:
    """Trains the kept parameters of every network; pruned ones stay bitwise as they are and count as zero.

    A network's result depends on its own parameters, masks, data and key only, not on the other networks. A
    network that diverges is no error: it stops after an epoch whose mean train loss is not finite, the others go on
    (``TrainResult.diverged``).

    Args:
        population: N networks, float32.
        masks: parameters to train; None for all.
        data: one dataset for all, or a list of N of the same shapes (``x_train [n, n_0]``, ``y_train`` int64
            ``[n]`` or float ``[n, n_L]``, ``x_test``, ``y_test``), on the population's device or on the CPU.
        epochs: passes over the training data, >= 0.
        batch_size: samples a step, >= 1; the last batch of an epoch may be smaller.
        optimizer: Adam or SGD.
        seed: of the batch order, an int or N ints (see ``rng.network_keys``).
        loss: "cross_entropy" or "mse"; None takes cross-entropy for int64 labels, else MSE.
        progress: called as ``progress(done, total)`` with the epochs finished and to do over all networks; on the
            calling thread, at most every 50 ms and once at the end with ``done == total``. What it raises ends the
            training and is raised here.

    Returns:
        A TrainResult.

    Raises:
        TypeError, ValueError: an argument that does not fit. KeyboardInterrupt, and whatever ``progress`` raises.

    Source: Fischer & Burkholz 2022, Supplement B.1 (Adam, lr 0.001, batch 32, 10 epochs).

    >>> from types import SimpleNamespace
    >>> from pns_fast import init_population
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> data = SimpleNamespace(x_train=x, y_train=x.relu(), x_test=x, y_test=x.relu())
    >>> result = train(init_population((1, 8, 1), n=2), None, data, epochs=3)
    >>> result.metric.shape, bool((result.test_loss[:, -1] < result.test_loss[:, 0]).all())
    (torch.Size([2, 4]), True)
    """
    masks = check_masks(check_population(population), masks)
    settings = trainer_settings(epochs, batch_size, optimizer)
    parameters, _, _, *curves = run_trainer(
        population,
        masks.flatten(),
        stack_data(data, population, loss),
        seed,
        progress=progress,
        **settings,
    )
    return TrainResult(Population.from_flat(parameters, population.widths), *curves)


def run_trainer(
    population: Population, mask: Tensor, data: StackedData, seed: int | Sequence[int], **options
) -> tuple[Tensor, ...]:
    """``ops.mlp_trainer`` of checked arguments; all it returns is on the population's device."""
    if population.dtype != torch.float32:
        raise TypeError(f"population: expected torch.float32 to train, got {population.dtype}")
    found = ops.mlp_trainer(
        population.flatten().detach(),  # parameters of a module want gradients; a training has none to give
        mask,
        population.widths,
        data.x_train,
        data.y_train,
        data.x_test,
        data.y_test,
        data.dataset,
        key_tensor(seed, population),
        loss=data.loss,
        **options,
    )
    return tuple(t.to(population.device) for t in found)


def trainer_settings(epochs: int, batch_size: int, optimizer: Adam | SGD) -> dict[str, float | str]:
    """The checked keyword arguments of ``ops.mlp_trainer`` that say how to train."""
    if not isinstance(optimizer, (Adam, SGD)):
        raise TypeError(f"optimizer: expected an Adam or an SGD, got {type(optimizer).__name__}")
    return {
        "epochs": check_count("epochs", epochs, 0),
        "batch_size": check_count("batch_size", batch_size, 1),
        **optimizer.settings(),
    }


def key_tensor(seed: int | Sequence[int], population: Population) -> Tensor:
    """The networks' (seed, network) keys as int64 [N, 2]."""
    return torch.tensor(rng.network_keys(seed, population.n), dtype=torch.int64, device=population.device)
