"""Edge-popup in any module: :func:`pns_fast.edge_popup` for what is no population."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import ops, rng
from ..nn.model import finalize, unwrap
from ..nn.module_problem import prunable_parameters
from ..pruners.checks import check_count, check_density
from .module_loop import fit, module_data, torch_optimizer
from .optimizers import SGD, Adam
from .train_module import ModuleResult


@dataclass(frozen=True, eq=False)
class ModulePopupResult(ModuleResult):
    """A ModuleResult (of the masked, untrained module) with the masks found."""

    masks: dict[str, Tensor]


class _Subnet(nn.Module):
    """A module whose parameters are fixed; its scores, one a parameter, choose which of them it computes with."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.keep = copy.deepcopy(model).requires_grad_(False), 1.0
        found = prunable_parameters(self.model, include_bias=True, ignore=())
        generator = rng.generator(rng.network_keys(seed, 1)[0], "edge_popup_scores")
        self.names, self.scores = list(found), nn.ParameterList()
        for parameter in found.values():
            scores = torch.zeros_like(parameter)
            if parameter.dim() > 1:
                bound = 1 / math.sqrt(parameter[0].numel())
                scores.copy_(torch.from_numpy(generator.uniform(-bound, bound, parameter.shape)))
            self.scores.append(nn.Parameter(scores))

    def masks(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {n: _supermask(s, self.keep).bool() for n, s in zip(self.names, self.scores, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        chosen = {
            name: self.model.get_parameter(name) * _supermask(scores, self.keep)
            for name, scores in zip(self.names, self.scores, strict=True)
        }
        return functional_call(self.model, chosen, (x,))


def _supermask(scores: Tensor, keep: float) -> Tensor:
    # not scores.abs(): its gradient at 0 is 0, and bias scores, which start there, would never move
    return ops.supermask(torch.where(scores < 0, -scores, scores).flatten(), keep).view_as(scores)


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
        model: any module; its parameters stay as they are, those of norms are not chosen from.
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
        TypeError, ValueError: an argument that does not fit.

    Source: Ramanujan et al. 2020; biases and annealing: Fischer & Burkholz 2022, Section 3.2.

    >>> data = pns.tasks.images("digits").part(100, 50)
    >>> network = pns.networks.image_network("vgg-small", in_channels=1, width=0.25)
    >>> found = edge_popup_module(network, data, density=0.5, epochs=1)
    >>> int(found.masks["0.weight"].sum())  # ceil(0.5 * 8 * 9)
    36
    """
    model, density = unwrap(model), check_density(density)
    if not isinstance(anneal, bool):
        raise TypeError(f"anneal: expected a bool, got {anneal!r}")
    settings, epochs = optimizer, check_count("epochs", epochs, 0)
    subnet = _Subnet(model, seed)
    data = module_data(data, model, loss)

    def before_epoch(epoch: int) -> None:
        subnet.keep = density ** ((epoch + 1) / epochs) if anneal else density

    # before training: that of the first epoch
    before_epoch(0) if epochs else setattr(subnet, "keep", density)
    opt = torch_optimizer(settings, list(subnet.scores))
    curves = fit(subnet, opt, settings, data, epochs, batch_size, seed, before_epoch, progress)
    subnet.keep = density
    masks = subnet.masks()
    return ModulePopupResult(finalize(subnet.model.requires_grad_(True), masks), *curves.tensors(epochs), masks)
