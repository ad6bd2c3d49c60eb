"""Arguments of masked convolutions, drawn from a seed over all kinds of geometry."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from ops.layers import F64


@dataclass(frozen=True)
class Geometry:
    """[B, I, H, W] images, [O, I, KH, KW] weights; pairs are of rows and columns."""

    batch: int
    n_in: int
    n_out: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def pairs(self):
        return self.stride, self.padding, self.dilation

    def arguments(self, dtype=F64, density=0.5, seed=0):
        """(x, weight, mask, bias)."""
        g = torch.Generator().manual_seed(seed)
        shapes = (self.batch, self.n_in, *self.size), (self.n_out, self.n_in, *self.kernel), (self.n_out,)
        x, weight, bias = (torch.randn(shape, generator=g, dtype=F64).to(dtype) for shape in shapes)
        return x, weight, torch.rand(weight.shape, generator=g) < density, bias


def random_geometry(seed: int) -> Geometry:
    draw = random.Random(seed)

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw.randint(least, most), draw.randint(least, most)

    kernel, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 4), pair(1, 3)
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = least[0] + draw.randint(0, 9), least[1] + draw.randint(0, 20)
    batch = draw.choice([1, 2, 7, 8, 15, 16, 17, 33, 70])
    return Geometry(batch, draw.randint(1, 9), draw.randint(1, 9), size, kernel, stride, padding, dilation)


SMALL = Geometry(3, 2, 3, (4, 5), (2, 3), (2, 1), (1, 0), (1, 2))
