"""Multi-shot pruning of any module: :func:`pns_fast.multishot` for what is no population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.model import get_masks, unwrap
from ..nn.prune_module import prune_module
from ..pruners import SCOPES, pruning_batch, round_density
from ..pruners.checks import check_choice, check_count, check_density
from ..pruners.prune import SCHEDULES
from ..pruners.registry import get
from .module_loop import module_data
from .multishot import progress_parts, round_seeds
from .optimizers import SGD, Adam
from .train_module import ModuleResult, train_module


@dataclass(frozen=True, eq=False)
class ModuleMultishotResult:
    """The masks found; the last training says what they are worth: its entry 0 at initial parameters (strong), its
    last one after training (weak)."""

    masks: dict[str, Tensor] | None  # None where nothing is pruned: at density 1, of a model without masked layers
    result: ModuleResult


@torch.inference_mode(False)  # wherever the caller is, as the native trainer
def multishot_module(
    model: nn.Module,
    pruner: str,
    density: float,
    data: Any,
    rounds: int = 10,
    round_epochs: int = 5,
    epochs: int = 10,
    *,
    batch: tuple[Tensor, Tensor] | None = None,
    scope: str = "global",
    schedule: str = "exponential",
    batch_size: int = 32,
    optimizer: Adam | SGD = Adam(lr=1e-3),  # noqa: B008 (frozen)
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> ModuleMultishotResult:
    """Prunes a module in ``rounds`` rounds, each scored at trained parameters, and trains what is left.

    Round r of R: train ``round_epochs`` epochs from the initial parameters with a fresh optimiser and the masks so far,
    score at the trained parameters, prune to ``density^(r/R)``, rewind. Then ``epochs`` epochs from the initial
    parameters. At density 1 there are no rounds.

    Args:
        model: at its initial parameters; it is not changed. Of masked layers, what they keep is where pruning starts.
        pruner: out of ``pruners.names()``.
        density: fraction of parameters kept at the end, in (0, 1].
        data: labelled samples, as in :func:`train_module`.
        rounds: number of rounds, >= 1.
        round_epochs: epochs a round, >= 0.
        epochs: epochs of the last training, >= 0.
        batch: the pruning batch (x, y); None draws 10 training samples a class.
        scope, schedule: as in :func:`pns_fast.prune_module`.
        batch_size, optimizer: as in :func:`train_module`.
        seed: of batches, of the pruning batch and of the random pruner.
        progress: called as ``progress(epochs done, epochs)`` over all rounds and the last training.

    Returns:
        A :class:`ModuleMultishotResult`.

    Raises:
        TypeError, ValueError: an argument that does not fit, or scores that are not finite.

    Source: Fischer & Burkholz 2022, Section 3.2 and Supplement B.1.

    >>> data = pns.tasks.images("digits").part(100, 50)
    >>> network = pns.networks.image_network("vgg-small", in_channels=1, width=0.25)
    >>> found = multishot_module(network, "synflow", 0.1, data, rounds=2, round_epochs=1, epochs=1)
    >>> sum(int(mask.sum()) for mask in found.masks.values())  # ceil(0.1 * 18,370)
    1837
    """
    density, rounds = check_density(density), check_count("rounds", rounds, 1)
    model = unwrap(model)
    get(pruner)  # checked before the trainings, as is all that only comes after them
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    check_count("round_epochs", round_epochs, 0)
    check_count("epochs", epochs, 0)
    on_device = module_data(data, model, None)
    if batch is None:
        batch = _pruning_batch(on_device, seed)
    options = {"batch_size": batch_size, "optimizer": optimizer}
    rounds = 0 if density == 1 else rounds
    parts = progress_parts(progress, [round_epochs] * rounds + [epochs])
    masks = {name: mask.clone() for name, mask in get_masks(model).items()} or None
    for r in range(1, rounds + 1):
        (of_round,) = round_seeds(seed, 1, r)
        trained = train_module(model, masks, on_device, round_epochs, seed=of_round, progress=parts[r - 1], **options)
        now = round_density(density, r, rounds, schedule)
        masks = prune_module(trained.module, pruner, now, batch, on_device.loss_fn, scope=scope, seed=seed, masks=masks)
    result = train_module(model, masks, on_device, epochs, seed=seed, progress=parts[-1], **options)
    return ModuleMultishotResult(masks, result)


def _pruning_batch(data: Any, seed: int) -> tuple[Tensor, Tensor]:
    n_classes = len(data.y_train.unique()) if data.loss == "cross_entropy" else 4
    return pruning_batch(data, data.loss, min(10 * n_classes, len(data.x_train)), seed)
