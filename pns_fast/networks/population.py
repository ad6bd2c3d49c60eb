"""N networks of one architecture, stored stacked, so that one kernel call works on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .masks import Masks
from .stack import LayerStack, cat_stacks


class Population(LayerStack):
    """N fully connected ReLU networks of one architecture.

    ``x^l = relu(W^l x^{l-1} + b^l)``, without the ReLU in the last layer.

    Args:
        weights: one tensor ``[N, n_l, n_{l-1}]`` a layer, all float32 or all float64.
        biases: one tensor ``[N, n_l]`` a layer.

    Raises:
        TypeError: not tensors, or not floating point.
        ValueError: shapes, dtypes or devices that do not fit together.

    >>> population = Population([torch.ones(3, 2, 1)], [torch.zeros(3, 2)])
    >>> population
    Population(n=3, widths=(1, 2), torch.float32, cpu)
    >>> population.forward(torch.tensor([[5.0]])).shape
    torch.Size([3, 1, 2])
    """

    @classmethod
    def _check_dtype(cls, name: str, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {dtype}")

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """The outputs of all networks, differentiable in ``x``, weights and biases.

        Args:
            x: ``[B, n_0]``, the same inputs for all, or ``[N, B, n_0]``; the population's dtype and device.
            masks: the parameters to keep; None keeps all.

        Returns:
            ``[N, B, n_L]``.

        Raises:
            TypeError: ``x`` is no tensor of the population's dtype, or ``masks`` no Masks.
            ValueError: shapes or devices that do not fit.
        """
        self._check_input(x)
        if masks is not None:
            if not isinstance(masks, Masks):
                raise TypeError(f"masks: expected Masks or None, got {type(masks).__name__}")
            masks.check_fits(self)
        h = x.expand(self.n, -1, -1) if x.dim() == 2 else x
        for l, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            keep = torch.ones_like(w, dtype=torch.bool) if masks is None else masks.weights[l]
            h = ops.masked_linear(h, w, keep, b if masks is None else b * masks.biases[l])
            if l < len(self.weights) - 1:
                h = torch.relu(h)
        return h

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        n_0 = self.widths[0]
        if x.dim() not in (2, 3) or x.shape[-1] != n_0 or (x.dim() == 3 and len(x) != self.n):
            raise ValueError(f"x: expected shape [B, {n_0}] or [{self.n}, B, {n_0}], got {tuple(x.shape)}")
        if x.dtype != self.dtype:
            raise TypeError(f"x: expected {self.dtype} like the population, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"x: expected device {self.device} like the population, got {x.device}")

    def module(self, i: int) -> nn.Sequential:
        """Network ``i`` as a plain ``nn.Sequential(Linear, ReLU, ..., Linear)``, parameters copied."""
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            raise TypeError(f"i: expected an int, got {i!r}")
        if not 0 <= i < self.n:
            raise ValueError(f"i: expected 0 <= i < {self.n}, got {i}")
        layers: list[nn.Module] = []
        for w, b in zip(self.weights, self.biases, strict=True):
            size = (w.shape[2], w.shape[1])
            # skip_init: nn.Linear would draw from torch's global generator
            linear = nn.utils.skip_init(nn.Linear, *size, device=self.device, dtype=self.dtype)
            with torch.no_grad():
                linear.weight.copy_(w[i])
                linear.bias.copy_(b[i])
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def cat_populations(populations: Sequence[Population]) -> Population:
    """Populations of one architecture as one, along N.

    >>> p = Population([torch.ones(3, 2, 1)], [torch.zeros(3, 2)])
    >>> cat_populations([p, p]).n
    6
    """
    return cat_stacks("populations", Population, populations)
