"""Convolutional networks for small images, by name: plain torch modules with the initial parameters of a mother."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import rng

# Output channels of 3 x 3 convolutions; M halves the image.
_VGG = {
    "vgg-small": "32 32 M 64 64 M 128 128",
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
}
# Channels of each stage, and blocks in it.
_RESNETS = {"resnet18": ((64, 128, 256, 512), 2), "resnet20": ((16, 32, 64), 3)}


class ResidualBlock(nn.Module):
    """``relu(main(x) + shortcut(x))``: two 3 x 3 convolutions; a 1 x 1 one on the way past where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(_conv(n_in, n_out, 3, stride, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(_conv(n_out, n_out, 3, bias=False), nn.BatchNorm2d(n_out)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out or stride != 1:
            self.shortcut = nn.Sequential(_conv(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


@dataclass(frozen=True)
class _Architecture:
    build: Callable[[int, int, bool, float], nn.Sequential]
    least_side: int  # pixels an image must have, so that poolings leave one
    needs_batch_norm: bool


def _vgg(name: str) -> _Architecture:
    entries = _VGG[name].split()

    def build(n_classes: int, in_channels: int, batch_norm: bool, width: float) -> nn.Sequential:
        layers, n = [], in_channels
        for entry in entries:
            if entry == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            n_in, n = n, _wide(int(entry), width)
            layers.append(_conv(n_in, n, 3, bias=not batch_norm))
            layers += [nn.BatchNorm2d(n), nn.ReLU()] if batch_norm else [nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_classes))

    return _Architecture(build, 2 ** entries.count("M"), needs_batch_norm=False)


def _resnet(name: str) -> _Architecture:
    stages, n_blocks = _RESNETS[name]

    def build(n_classes: int, in_channels: int, batch_norm: bool, width: float) -> nn.Sequential:
        n = _wide(stages[0], width)
        layers = [_conv(in_channels, n, 3, bias=False), nn.BatchNorm2d(n), nn.ReLU()]
        for i, channels in enumerate(stages):
            for j in range(n_blocks):
                n_in, n = n, _wide(channels, width)
                layers.append(ResidualBlock(n_in, n, stride=2 if i > 0 and j == 0 else 1))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_classes))

    return _Architecture(build, 1, needs_batch_norm=True)


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=bias)


def _wide(channels: int, width: float) -> int:
    return max(1, round(channels * width))


_ARCHITECTURES = {name: _vgg(name) for name in _VGG} | {name: _resnet(name) for name in _RESNETS}


def image_network_names() -> list[str]:
    """The names that :func:`image_network` knows.

    >>> image_network_names()
    ['vgg-small', 'vgg11', 'vgg16', 'resnet18', 'resnet20']
    """
    return list(_ARCHITECTURES)


def image_network(
    name: str,
    n_classes: int = 10,
    in_channels: int = 3,
    seed: int = 0,
    batch_norm: bool | None = None,
    width: float = 1.0,
) -> nn.Sequential:
    """A random convolutional network with non-zero biases, as :func:`pns_fast.init_population` draws dense ones.

    ``w^l ~ N(0, 2/fan_in_l)``, ``b^l ~ N(0, prod_{k<=l} 2/fan_in_k)`` (variances), fan_in = input channels times
    kernel positions. The product is along the path from the input, in a residual block along its convolutions. Where
    a batch norm follows, its shift is the layer's bias and gets that draw; its factor starts at 1.

    Args:
        name: one of :func:`image_network_names`. vgg11, vgg16: 3 x 3 convolutions, five poolings, one linear layer;
            vgg-small: six convolutions, two poolings; resnet18, resnet20: 1 x 1 convolutions where shapes change.
        n_classes: outputs.
        in_channels: of the images.
        seed: of the parameters, which are drawn on the CPU and depend on it and the shapes only.
        batch_norm: after each convolution; None for what is usual: ResNets have it (and need it), VGGs do not.
        width: factor of the number of channels in every hidden layer.

    Returns:
        An nn.Sequential of plain torch layers on the CPU, float32, which :func:`pns_fast.plant_module` takes.

    Raises:
        TypeError, ValueError: an unknown name, or an argument out of range.

    Source: Simonyan & Zisserman 2015 and He et al. 2016, both in the forms used for CIFAR; initial parameters:
    He et al. 2015, biases of Fischer et al. 2021.

    >>> network = image_network("vgg-small", n_classes=10, in_channels=1)
    >>> network(torch.zeros(2, 1, 8, 8)).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([2, 10]), 287722)
    """
    architecture = _get(name)
    for argument, value in (("n_classes", n_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{argument}: expected an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{argument}: expected at least 1, got {value}")
    if batch_norm is not None and not isinstance(batch_norm, bool):
        raise TypeError(f"batch_norm: expected a bool or None, got {batch_norm!r}")
    if architecture.needs_batch_norm and batch_norm is False:
        raise ValueError(f"batch_norm: {name} needs it, expected True or None, got False")
    if isinstance(width, bool) or not isinstance(width, (int, float)):
        raise TypeError(f"width: expected a number, got {width!r}")
    if not 0 < width < math.inf:
        raise ValueError(f"width: expected a finite number > 0, got {width}")
    model = architecture.build(int(n_classes), int(in_channels), bool(batch_norm), width)
    with torch.no_grad():
        _draw(model, rng.generator(rng.network_keys(seed, 1)[0], "init"), 1.0)
    return model


def least_side(name: str) -> int:
    """Pixels that each side of an image must have for network ``name``.

    >>> least_side("vgg16")
    32
    """
    return _get(name).least_side


def _get(name: str) -> _Architecture:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {type(name).__name__}")
    if name not in _ARCHITECTURES:
        raise ValueError(f"name: expected one of {', '.join(_ARCHITECTURES)}, got {name!r}")
    return _ARCHITECTURES[name]


def _draw(module: nn.Module, generator: np.random.Generator, bias_scale: float) -> float:
    """Draw the parameters of a module whose input's layer has biases of this scale; returns that of its own."""
    if isinstance(module, ResidualBlock):
        of_main = _draw(module.main, generator, bias_scale)
        _draw(module.shortcut, generator, bias_scale)
        return of_main
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        scale = math.sqrt(2 / module.weight[0].numel())
        bias_scale *= scale
        _normal(module.weight, generator, scale)
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and module.bias is not None:
        _normal(module.bias, generator, bias_scale)
    for child in module.children():
        bias_scale = _draw(child, generator, bias_scale)
    return bias_scale


def _normal(parameter: nn.Parameter, generator: np.random.Generator, scale: float) -> None:
    values = generator.standard_normal(parameter.shape) * scale
    parameter.copy_(torch.from_numpy(values))
