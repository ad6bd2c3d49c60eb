"""What a pruner sees of the networks it scores: parameters, a loss, SynFlow's flow, random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import ops, rng
from ..networks import Masks, Population


class ScoringProblem:
    """A population as a pruner sees it. Every network is a problem of its own; one call scores them all.

    Args:
        population: the networks.
        masks: parameters already pruned (False) count as zero.
        batch: ``x [N, B, n_0]`` and ``y [N, B]`` or ``[N, B, n_L]``, or None.
        loss: "cross_entropy" or "mse".
        keys: the (seed, network) pair of each network.

    ``parameters`` holds the masked weights and biases in flat-layout order W1, b1, W2, b2, ..., each
    ``[N, ...]`` and a leaf that autograd can differentiate; ``masks`` holds their masks in the same order,
    ``generators`` one random generator a network.
    """

    def __init__(
        self,
        population: Population,
        masks: Masks,
        batch: tuple[Tensor, Tensor] | None,
        loss: str,
        keys: Sequence[tuple[int, int]],
    ) -> None:
        self._masks, self._batch, self._loss = masks, batch, loss
        self.generators: list[np.random.Generator] = [rng.generator(key, "random_pruner") for key in keys]
        self.masks = _interleaved(masks)
        self.parameters = [
            (p.detach() * mask).requires_grad_() for p, mask in zip(_interleaved(population), self.masks, strict=True)
        ]

    def loss(self, parameters: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """The sum over networks of their mean losses on the pruning batch, through the mask.

        Outputs are divided by ``temperature``. A network's gradient is that of its own loss.
        """
        if self._batch is None:
            raise ValueError("batch: expected (x, y), this pruner scores by the loss on it, got None")
        x, y = self._batch
        output = Population(parameters[0::2], parameters[1::2]).forward(x, self._masks) / temperature
        if self._loss == "cross_entropy":
            total = torch.nn.functional.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="sum")
            return total / y.shape[1]
        return torch.nn.functional.mse_loss(output, y, reduction="sum") / y[0].numel()

    def flow(self, parameters: Sequence[Tensor]) -> Tensor:
        """SynFlow's R for parameters >= 0, times a positive factor a network that autograd sees as constant.

        Each layer's output is brought to about 1, and every later bias is scaled alike. That multiplies R and
        all ``theta * dR/dtheta`` of a network by the same factor, so ranks over its layers are kept and
        nothing overflows. The factors are powers of two: they round nothing.
        """
        weights, biases = parameters[0::2], parameters[1::2]
        n = len(weights[0])
        h = weights[0].new_ones(n, 1, weights[0].shape[2])
        scale = weights[0].new_ones(n, 1, 1)
        for w, b, keep_w, keep_b in zip(weights, biases, self._masks.weights, self._masks.biases, strict=True):
            h = ops.masked_linear(h, w, keep_w, b * keep_b * scale[:, 0])
            _, exponent = torch.frexp(h.detach().amax((1, 2), keepdim=True))
            factor = torch.ldexp(torch.ones_like(scale), -exponent)
            # unlimited, layers that shrink the flow a lot make it infinite, and infinity * (bias 0) is NaN
            h, scale = h * factor, (scale * factor).clamp_max(2.0**500)
        return h.sum()


def _interleaved(stack: Population | Masks) -> list[Tensor]:
    return [part for layer in zip(stack.weights, stack.biases, strict=True) for part in layer]
