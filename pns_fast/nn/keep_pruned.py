"""keep_pruned: an optimiser's momentum and weight decay leave pruned parameters alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .masked_layer import MaskedLayer
from .model import NamedMasks, check_masks, masked_layers


class KeepPruned:
    """Two step hooks of one optimiser; :meth:`remove` takes them off again."""

    def __init__(self, optimizer: torch.optim.Optimizer, pairs: Callable[[], list[tuple[nn.Parameter, Tensor]]]):
        self._pairs = pairs
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    # Products with a mask of 0.0 and 1.0: on the CPU torch's where and masked_fill_ take 4 times as long.

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args, kwargs) -> None:
        # A copy for the time of the step: masks may change between steps, values kept since the start would be stale.
        self._held = [(parameter, mask.to(parameter.dtype), parameter.clone()) for parameter, mask in self._pairs()]
        for parameter, kept, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.mul_(kept)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args, kwargs) -> None:
        for parameter, kept, before in self._held:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    value.mul_(kept)
            parameter.copy_(before.lerp_(parameter, kept))  # exact at 0 and 1
        self._held = []

    def remove(self) -> None:
        """From the next step on the optimiser is as it was."""
        for handle in self._handles:
            handle.remove()


def keep_pruned(optimizer: torch.optim.Optimizer, model: nn.Module, masks: NamedMasks | None = None) -> KeepPruned:
    """Makes every ``optimizer.step()`` leave pruned parameters exactly as they are.

    Pruned entries get no gradient, keep the value they have (the forward pass of a masked layer ignores it, and
    :func:`finalize` writes the zeros), and their optimiser state (momentum, exp_avg, ...) is zero after each step:
    neither weight decay nor old momentum moves them. Kept entries move as if only they existed.

    Args:
        optimizer: any torch optimiser, with ``foreach`` and ``fused`` too; its ``state_dict`` stays as it is.
        model: whose masked layers are read at every step, so masks may change between steps.
        masks: bool masks by parameter name instead, for parameters of any kind, see :func:`pns_fast.prune_module`.

    Returns:
        A handle; ``.remove()`` undoes it.

    Raises:
        TypeError: ``optimizer`` is no optimiser.
        ValueError: the optimiser holds none of the masked parameters, or masks that do not fit.

    Example:
        >>> model = torch.nn.Sequential(pns.nn.MaskedLinear(2, 1, bias=False))
        >>> model[0].set_mask(torch.tensor([[True, False]]))
        >>> pruned = model[0].weight[0, 1].item()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> handle = keep_pruned(optimizer, model)
        >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step()
        >>> model[0].weight[0, 1].item() == pruned
        True
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    fixed = None if masks is None else list(check_masks(model, masks).values())

    def pairs() -> list[tuple[nn.Parameter, Tensor]]:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = {id(p): (p, mask.to(p.device)) for p, mask in (_live_pairs(model) if fixed is None else fixed)}
        return [pair for key, pair in found.items() if key in held]

    if not pairs():
        raise ValueError("optimizer: expected one that holds masked parameters of the model, got one that holds none")
    return KeepPruned(optimizer, pairs)


def _live_pairs(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    layers = [layer for _, layer in masked_layers(model) if isinstance(layer, MaskedLayer)]
    return [(getattr(layer, name), mask) for layer in layers for name, mask in layer.masks().items()]
