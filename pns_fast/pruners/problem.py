"""What a pruner sees of the networks it scores: parameters, a loss, SynFlow's flow, random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import ops, rng
from ..networks import Masks, Population


class ScoringProblem(ABC):
    """N networks as a pruner sees them. Every network is a problem of its own; one call scores them all.

    A population is one such problem, a module another with N = 1 (``pns_fast.nn``): a pruner is written once.

    Args:
        parameters: ``[N, ...]`` each; a population's in flat-layout order W1, b1, W2, b2, ...
        masks: in the same order and shapes; parameters already pruned (False) count as zero.
        keys: the (seed, network) pair of each network.

    ``parameters`` holds the masked parameters, leaves that autograd can differentiate; ``unmasked`` the values before
    the mask; ``masks`` the masks; ``keys`` the keys, and ``generators`` one random generator a network.
    """

    def __init__(self, parameters: Sequence[Tensor], masks: Sequence[Tensor], keys: Sequence[tuple[int, int]]) -> None:
        self.keys = list(keys)
        self.generators: list[np.random.Generator] = [rng.generator(key, "random_pruner") for key in keys]
        self.masks = list(masks)
        self.unmasked = [p.detach() for p in parameters]
        self.parameters = [(p * m).requires_grad_() for p, m in zip(self.unmasked, masks, strict=True)]

    @abstractmethod
    def loss(self, parameters: Sequence[Tensor], temperature: float = 1.0, through_mask: bool = True) -> Tensor:
        """The sum over networks of their mean losses on the pruning batch.

        Outputs are divided by ``temperature``. A network's gradient is that of its own loss; ``through_mask`` makes it
        0 for pruned parameters. Without, the loss at ``self.parameters`` is the same, and its gradient that of all.
        """

    @abstractmethod
    def flow(self, parameters: Sequence[Tensor]) -> Tensor:
        """SynFlow's R, the sum of outputs on an all-ones input, for parameters >= 0 in float64.

        Times a positive factor a network that autograd sees as constant, if that prevents overflow.
        """

    @abstractmethod
    def chain(self) -> list[tuple[int, int | None]]:
        """For fully connected layers one after the other: where the weight ``[N, O, I]`` and the bias ``[N, O]`` (None
        without) of each are in ``parameters``, from input to output. Raises ValueError for any other network."""


class PopulationProblem(ScoringProblem):
    """The networks of a population.

    Args:
        population: the networks.
        masks: their masks.
        batch: ``x [N, B, n_0]`` and ``y [N, B]`` or ``[N, B, n_L]``, or None.
        loss: "cross_entropy" or "mse".
        keys: the (seed, network) pair of each network.
    """

    def __init__(
        self,
        population: Population,
        masks: Masks,
        batch: tuple[Tensor, Tensor] | None,
        loss: str,
        keys: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__(_interleaved(population), _interleaved(masks), keys)
        self._masks, self._batch, self._loss = masks, batch, loss

    def loss(self, parameters: Sequence[Tensor], temperature: float = 1.0, through_mask: bool = True) -> Tensor:
        if self._batch is None:
            raise ValueError("batch: expected (x, y), this pruner scores by the loss on it, got None")
        x, y = self._batch
        masks = self._masks if through_mask else None
        output = Population(parameters[0::2], parameters[1::2]).forward(x, masks) / temperature
        if self._loss == "cross_entropy":
            total = torch.nn.functional.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="sum")
            return total / y.shape[1]
        return torch.nn.functional.mse_loss(output, y, reduction="sum") / y[0].numel()

    def flow(self, parameters: Sequence[Tensor]) -> Tensor:
        """SynFlow's R, rescaled layer by layer.

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
            largest = h.detach().amax((1, 2), keepdim=True)
            # an exact quotient on every device; torch.ldexp goes by way of a float32 power
            factor = torch.where((largest > 0) & (largest < torch.inf), torch.frexp(largest).mantissa / largest, 1.0)
            # unlimited, layers that shrink the flow a lot make it infinite, and infinity * (bias 0) is NaN
            h, scale = h * factor, (scale * factor).clamp_max(2.0**500)
        return h.sum()

    def chain(self) -> list[tuple[int, int | None]]:
        return [(at, at + 1) for at in range(0, len(self.parameters), 2)]


def _interleaved(stack: Population | Masks) -> list[Tensor]:
    return [part for layer in zip(stack.weights, stack.biases, strict=True) for part in layer]
