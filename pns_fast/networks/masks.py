"""Which parameters of each network of a population are kept, and what that leaves of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .stack import LayerStack, cat_stacks


class Masks(LayerStack):
    """Boolean masks of a population, ``True`` keeps.

    Args:
        weights: one bool tensor ``[N, n_l, n_{l-1}]`` a layer.
        biases: one bool tensor ``[N, n_l]`` a layer.

    Raises:
        TypeError: not tensors, or not bool.
        ValueError: shapes or devices that do not fit together.

    >>> masks = Masks([torch.tensor([[[True, False]]])], [torch.tensor([[True]])])
    >>> masks.density(), masks.density(biases=False)
    (tensor([0.6667], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """

    @classmethod
    def _check_dtype(cls, name: str, dtype: torch.dtype) -> None:
        if dtype != torch.bool:
            raise TypeError(f"{name}: expected bool, got {dtype}")

    @classmethod
    def full(cls, population: LayerStack) -> Masks:
        """Masks that keep every parameter of ``population``."""
        if not isinstance(population, LayerStack):
            raise TypeError(f"population: expected a Population, got {type(population).__name__}")
        return cls(
            [torch.ones_like(w, dtype=torch.bool) for w in population.weights],
            [torch.ones_like(b, dtype=torch.bool) for b in population.biases],
        )

    def check_fits(self, population: LayerStack) -> None:
        """Raises ValueError unless these are masks of ``population``: same N, widths and device."""
        if (self.n, self.widths, self.device) != (population.n, population.widths, population.device):
            raise ValueError(
                f"masks: expected {population.n} networks of widths {population.widths} on "
                f"{population.device}, got {self.n} of widths {self.widths} on {self.device}"
            )

    def named(self, i: int) -> dict[str, Tensor]:
        """The masks of network ``i`` by the parameter names of ``population.module(i)``, for ``pns_fast.nn``.

        >>> list(Masks([torch.ones(1, 1, 2, dtype=torch.bool)], [torch.ones(1, 1, dtype=torch.bool)]).named(0))
        ['0.weight', '0.bias']
        """
        one = self.select(i)
        layers = enumerate(zip(one.weights, one.biases, strict=True))
        # 2 * l: a ReLU follows each layer but the last
        return {f"{2 * l}.{name}": m[0] for l, pair in layers for name, m in zip(("weight", "bias"), pair, strict=True)}

    def kept(self) -> Tensor:
        """The number of kept parameters, weights and biases: int64 ``[N]``."""
        return _count((*self.weights, *self.biases))

    def density(self, biases: bool = True) -> Tensor:
        """Kept parameters / all parameters, float64 ``[N]``; weights only where ``biases`` is False."""
        parts = (*self.weights, *self.biases) if biases else self.weights
        return _fraction(_count(parts), sum(part[0].numel() for part in parts))

    def layer_densities(self) -> Tensor:
        """Kept weights / weights of each layer, float64 ``[N, L]``."""
        return torch.stack([_fraction(_count([w]), w[0].numel()) for w in self.weights], dim=1)

    def collapsed(self) -> Tensor:
        """Whether some layer keeps no weight, so that no input reaches an output: bool ``[N]``."""
        return torch.stack([_count([w]) == 0 for w in self.weights]).any(0)

    def effective_density(self) -> Tensor:
        """Kept parameters that can influence the input-output function / all parameters, float64 ``[N]``.

        A weight counts if its source is reachable from an input and its target reaches an output through kept
        weights, a bias if its neuron lies on such a path.

        >>> dead_end = Masks(  # 1 -> 2 -> 1: the second hidden neuron leads nowhere
        ...     [torch.tensor([[[True], [True]]]), torch.tensor([[[True, False]]])],
        ...     [torch.tensor([[True, True]]), torch.tensor([[True]])],
        ... )
        >>> dead_end.kept(), dead_end.effective_density() * 7
        (tensor([6]), tensor([4.], dtype=torch.float64))
        """
        fed = [torch.ones_like(self.weights[0][:, 0])]  # fed[l] [N, n_l]: reachable from an input
        for w in self.weights:
            fed.append((w & fed[-1][:, None, :]).any(2))
        used = [torch.ones_like(self.biases[-1])]  # used[l] [N, n_l]: reaches an output
        for w in reversed(self.weights):
            used.insert(0, (w & used[0][:, :, None]).any(1))
        effective = Masks(
            [w & fed[l][:, None, :] & used[l + 1][:, :, None] for l, w in enumerate(self.weights)],
            [b & fed[l + 1] & used[l + 1] for l, b in enumerate(self.biases)],
        )
        return effective.density()


def _count(parts: Sequence[Tensor]) -> Tensor:
    """What each network keeps of bool ``[N, ...]`` tensors: int64 ``[N]``."""
    # in 32 bits, which a layer fits: on the CPU torch sums bools to int64 16 times as slowly
    return sum(part.flatten(1).sum(1, dtype=torch.int32).long() for part in parts)


def _fraction(count: Tensor, n: int) -> Tensor:
    """count / n in float64, the same bits on every device: by a number, CUDA multiplies with its inverse."""
    return count.double() / torch.full_like(count, n, dtype=torch.float64)


def cat_masks(masks: Sequence[Masks]) -> Masks:
    """Masks of one architecture as one, along N.

    >>> m = Masks([torch.ones(1, 1, 2, dtype=torch.bool)], [torch.ones(1, 1, dtype=torch.bool)])
    >>> cat_masks([m, m, m]).n
    3
    """
    return cat_stacks("masks", Masks, masks)
