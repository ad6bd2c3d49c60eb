"""Training of any module at fixed masks: :func:`pns_fast.train` for what is no population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.unwrap import copied, unwrap
from ..nn.keep_pruned import keep_pruned
from ..nn.model import NamedMasks, check_masks, finalize, get_masks, mask_model, set_masks
from ..pruners.checks import check_count
from .module_loop import fit, module_data, torch_optimizer
from .optimizers import SGD, Adam


@dataclass(frozen=True, eq=False)
class ModuleResult:
    """A trained module and how it got there. Entry 0 of test_loss and metric is before training."""

    module: nn.Module  # plain layers, zeros where they are pruned
    train_loss: Tensor  # float64 [epochs], mean over the epoch's samples as they were trained
    test_loss: Tensor  # float64 [epochs + 1]
    metric: Tensor  # float64 [epochs + 1]: test accuracy in [0, 1], or the mean squared error

    @property
    def diverged(self) -> bool:
        """Whether a loss became non-finite; all entries after that epoch are NaN."""
        return not bool(torch.isfinite(torch.cat([self.train_loss, self.test_loss])).all())


@torch.inference_mode(False)  # wherever the caller is, as the native trainer
def train_module(
    model: nn.Module,
    masks: NamedMasks | None,
    data: Any,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Adam | SGD = Adam(lr=1e-3),  # noqa: B008 (frozen)
    seed: int = 0,
    loss: str | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> ModuleResult:
    """Trains the kept parameters of a module; pruned ones are zero. Layers that :func:`pns_fast.nn.mask_model` knows
    take the time of what they keep.

    Args:
        model: any module on one device, one tensor in and one out; it is not changed.
        masks: bool masks by parameter name, as :func:`pns_fast.prune_module` returns them; a parameter without one is
            kept. None for all.
        data: with ``x_train``, ``y_train``, ``x_test``, ``y_test``, see :func:`pns_fast.tasks.images`; if it has a
            true ``augments``, batches are augmented, see :func:`pns_fast.tasks.augmented`.
        epochs: passes over the training data, >= 0.
        batch_size: samples a step, >= 1; the last batch of an epoch may be smaller.
        optimizer: Adam or SGD.
        seed: of the order of batches and of augmentation. A module that draws numbers of its own (dropout) takes
            them from torch.
        loss: "cross_entropy" or "mse"; None takes cross-entropy for int64 labels, else MSE.
        progress: called as ``progress(epochs done, epochs)``; what it raises ends the training and is raised here.

    Returns:
        A :class:`ModuleResult`, the same for the same arguments up to rounding: torch's convolutions sum in an order
        that depends on threads and device. A training that diverges is no error.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Source: Fischer & Burkholz 2022, Supplement B.1 (Adam, lr 0.001, batch 32, 10 epochs).

    >>> data = pns.tasks.images("digits").part(100, 50)
    >>> network = pns.networks.image_network("vgg-small", in_channels=1, width=0.25)
    >>> masks = pns.prune_module(network, "magnitude", 0.5)
    >>> result = train_module(network, masks, data, epochs=2)
    >>> bool(result.train_loss[1] < result.train_loss[0]), result.metric.shape
    (True, torch.Size([3]))
    """
    model = unwrap(model)
    settings, epochs = optimizer, check_count("epochs", epochs, 0)
    data = module_data(data, model, loss)
    trained, others = (copied(model), {}) if masks is None else _masked(model, masks)
    torch_opt = torch_optimizer(settings, list(trained.parameters()))
    if others:  # masked layers read no pruned parameter, wherever weight decay moves it
        keep_pruned(torch_opt, trained, others)
    curves = fit(trained, torch_opt, settings, data, epochs, batch_size, seed, progress)
    return ModuleResult(finalize(trained), *curves.tensors(epochs))


def _masked(model: nn.Module, masks: NamedMasks) -> tuple[nn.Module, NamedMasks]:
    """The model with masked layers, and the masks of parameters that no such layer has; those are zeros already."""
    masks = {name: mask for name, (_, mask) in check_masks(model, masks).items()}
    masked = mask_model(model)
    in_layers = set(get_masks(masked))
    set_masks(masked, {name: mask for name, mask in masks.items() if name in in_layers})
    others = {name: mask for name, mask in masks.items() if name not in in_layers}
    with torch.no_grad():
        for parameter, mask in check_masks(masked, others).values():
            parameter.masked_fill_(~mask.to(parameter.device), 0)
    return masked, others
