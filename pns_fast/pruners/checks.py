"""Checks of arguments that pruning and training share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from ..networks import Masks, Population

LOSSES = ("cross_entropy", "mse")


def check_density(density: float) -> float:
    """``density`` as a float in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, numbers.Real):
        raise TypeError(f"density: expected a number in (0, 1], got {density!r}")
    if not 0 < density <= 1:
        raise ValueError(f"density: expected a number in (0, 1], the fraction kept, got {density!r}")
    return float(density)


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def check_count(name: str, value: int, least: int) -> int:
    """``value`` as an int >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    if value >= 2**63:
        raise ValueError(f"{name}: expected an int below 2**63, got {value}")
    return int(value)


def check_number(name: str, value: float, low: float, below: float = math.inf) -> float:
    """``value`` as a finite float with ``low <= value < below``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not low <= value < below:  # also refuses NaN
        raise ValueError(f"{name}: expected a finite number in [{low}, {below}), got {value!r}")
    return float(value)


def check_population(population: Population) -> Population:
    """``population`` if it is one."""
    if not isinstance(population, Population):
        raise TypeError(f"population: expected a Population, got {type(population).__name__}")
    return population


def check_masks(population: Population, masks: Masks | None) -> Masks:
    """``masks`` if they are masks of ``population``; None stands for masks that keep everything."""
    if masks is None:
        return Masks.full(population)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks: expected Masks or None, got {type(masks).__name__}")
    masks.check_fits(population)
    return Masks(*([differentiable(m) for m in part] for part in (masks.weights, masks.biases)))


def moved(t: Tensor, population: Population) -> Tensor:
    """A tensor on the CPU goes to the population's device: samples may wait there for networks on a GPU."""
    return t.to(population.device) if isinstance(t, Tensor) and t.device.type == "cpu" else t


def differentiable(t: object) -> object:
    """``t``, or a copy if it is a tensor made in inference mode: autograd saves no such tensor."""
    return t.clone() if isinstance(t, Tensor) and t.is_inference() else t


def check_inputs(name: str, x: Tensor, population: Population, values: bool = True) -> None:
    """``x [..., n_0]`` must be of floating point and, if ``values``, finite and on the population's device."""
    n_0 = population.widths[0]
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected floating point, got {x.dtype}")
    if x.dim() < 2 or x.shape[-1] != n_0 or x.numel() == 0:
        raise ValueError(f"{name}: expected shape [samples > 0, {n_0}], got {tuple(x.shape)}")
    if values:
        _check_device_and_values(name, x, population)


def check_targets(
    name: str, y: Tensor, lead: Sequence[int], population: Population, loss: str, values: bool = True
) -> None:
    """``y`` must be int64 labels ``[*lead]`` in [0, n_L), or for MSE finite values ``[*lead, n_L]``."""
    n_outputs = population.widths[-1]
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(y).__name__}")
    if loss == "cross_entropy":
        if y.dtype != torch.int64:
            raise TypeError(f"{name}: loss 'cross_entropy' expects int64 labels (values: 'mse'), got {y.dtype}")
        shape = tuple(lead)
    else:
        if not y.is_floating_point():
            raise TypeError(f"{name}: loss 'mse' expects floating point (labels: 'cross_entropy'), got {y.dtype}")
        shape = (*lead, n_outputs)
    if tuple(y.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(y.shape)}")
    if not values:
        return
    _check_device_and_values(name, y, population)
    if loss == "cross_entropy" and (y.min() < 0 or y.max() >= n_outputs):
        raise ValueError(f"{name}: expected labels in [0, {n_outputs}), got {int(y.min())} to {int(y.max())}")


def _check_device_and_values(name: str, t: Tensor, population: Population) -> None:
    if t.device != population.device:
        raise ValueError(f"{name}: expected device {population.device} like the population, got {t.device}")
    if t.is_floating_point() and not torch.isfinite(t).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
