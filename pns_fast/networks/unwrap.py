"""The module that a user wrote, inside of what torch wraps around it, and copies of it."""

from __future__ import annotations

import copy

from torch import Tensor, nn


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and torch.compile, whose names have no prefix."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """A copy, also of modules that hold results of a forward pass: torch copies no tensor that autograd made.

    Such are the weights that torch.nn.utils.prune and the old weight_norm compute, and activations that are kept to be
    looked at. The copy holds their values.
    """
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in held if not value.is_leaf})
