"""Edge-popup in any module: :func:`pns_fast.edge_popup` for what is no population."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..nn.model import finalize, get_masks, masked_layers, supermask_model
from ..nn.supermask_layer import SupermaskLayer
from ..pruners.checks import check_count, check_density
from .module_loop import fit, module_data, torch_optimizer
from .optimizers import SGD, Adam
from .train_module import ModuleResult


@dataclass(frozen=True, eq=False)
class ModulePopupResult(ModuleResult):
    """A ModuleResult (of the masked, untrained module) with the masks found."""

    masks: dict[str, Tensor]


@torch.inference_mode(False)  # wherever the caller is, as the native trainer
def edge_popup_module(
    model: nn.Module,
    data: Any,
    density: float,
    epochs: int = 10,
    anneal: bool = False,
    optimizer: Adam | SGD = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine"),  # noqa: B008 (frozen)
    seed: int = 0,
    batch_size: int = 32,
    loss: str | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> ModulePopupResult:
    """Searches a strong ticket in a module, as :func:`pns_fast.edge_popup` in a population.

    ``w * [|s| among the top density]`` for the weights and the biases of each layer separately, with the gradient
    straight through to all |scores|; weight scores start uniform in ``+-1/sqrt(fan_in)``, bias scores at zero.

    Args:
        model: any module; its parameters stay as they are. Chosen from are those of the layers that
            :func:`pns_fast.nn.supermask_model` knows; others, of norms for instance, are used in full.
        data: as in :func:`train_module`.
        density: fraction kept of each layer's weights and of its biases, in (0, 1].
        epochs: passes over the training data, >= 0.
        anneal: epoch i of E keeps ``density^(i/E)`` instead.
        optimizer: SGD or Adam, of the scores.
        seed: of first scores, batch order and augmentation.
        batch_size, loss, progress: as in :func:`train_module`.

    Returns:
        A :class:`ModulePopupResult`. Entry 0 of test_loss and metric is of the mask that the first scores give.

    Raises:
        TypeError, ValueError: an argument that does not fit, or scores that become NaN: they cannot be ranked.

    Source: Ramanujan et al. 2020; biases and annealing: Fischer & Burkholz 2022, Section 3.2.

    >>> data = pns.tasks.images("digits").part(100, 50)
    >>> network = pns.networks.image_network("vgg-small", in_channels=1, width=0.25)
    >>> found = edge_popup_module(network, data, density=0.5, epochs=1)
    >>> int(found.masks["0.weight"].sum())  # ceil(0.5 * 8 * 9)
    36
    """
    density = check_density(density)
    if not isinstance(anneal, bool):
        raise TypeError(f"anneal: expected a bool, got {anneal!r}")
    settings, epochs = optimizer, check_count("epochs", epochs, 0)
    subnet, layers = _subnet(model, density, seed)
    data = module_data(data, subnet, loss)

    def keep_of_epoch(epoch: int) -> None:
        for layer in layers:
            layer.keep = density ** ((epoch + 1) / epochs) if anneal and epochs else density

    keep_of_epoch(0)
    opt = torch_optimizer(settings, [p for p in subnet.parameters() if p.requires_grad])
    curves = fit(subnet, opt, settings, data, epochs, batch_size, seed, progress, keep_of_epoch)
    for layer in layers:
        layer.keep = density  # after a training that ended early as well
    masks = get_masks(subnet)
    return ModulePopupResult(finalize(subnet).requires_grad_(True), *curves.tensors(epochs), masks)


def _subnet(model: nn.Module, density: float, seed: int) -> tuple[nn.Module, list[SupermaskLayer]]:
    """The model with supermask layers, everything but their scores fixed, and these layers."""
    subnet = supermask_model(model, density)
    layers = [layer for _, layer in masked_layers(subnet) if isinstance(layer, SupermaskLayer)]
    if not layers:
        raise ValueError("model: expected linear layers or convolutions to choose from, found none")
    generator = rng.generator(rng.network_keys(seed, 1)[0], "edge_popup_scores")
    subnet.requires_grad_(False)
    with torch.no_grad():
        for layer in layers:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            drawn = generator.uniform(-bound, bound, layer.weight.shape)
            layer.weight_scores.copy_(torch.from_numpy(drawn))
            for scores in (layer.weight_scores, layer.bias_scores):
                if scores is not None:
                    scores.requires_grad_(True)
    return subnet, layers
