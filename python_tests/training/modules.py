"""Small networks and data for the tests of training modules."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn


def blobs(n_train=96, n_test=40, n_classes=3, side=6, **more):
    """Noisy images, one pattern a class."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(n_classes, 2, side, side, generator=generator)
    splits = {}
    for part, n in (("train", n_train), ("test", n_test)):
        y = torch.arange(n) % n_classes
        splits[f"y_{part}"] = y
        splits[f"x_{part}"] = patterns[y] + 0.5 * torch.randn(n, 2, side, side, generator=generator)
    return SimpleNamespace(**splits, **more)


def network(width=6, norm=False, n_classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width, n_classes)),
        )
