"""What populations and masks share: a tensor a layer for N networks, and the flat layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """``widths`` as a tuple of ints, or an error saying what is wrong with it."""
    if isinstance(widths, np.ndarray):
        widths = widths.tolist()
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence):
        raise TypeError(f"widths: expected a sequence of ints, got {type(widths).__name__}")
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
            raise TypeError(f"widths: expected ints, got {width!r}")
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths: expected at least 2 layers of at least 1 neuron, got {tuple(widths)}")
    return tuple(int(width) for width in widths)


class LayerStack:
    """Weights ``[N, O, I]`` and biases ``[N, O]`` of each layer: the base of Population and Masks.

    The flat layout is ``[W1 | b1 | W2 | b2 | ...]`` with row-major W, the one the kernels use.
    """

    weights: list[Tensor]  # [N, n_l, n_{l-1}] per layer
    biases: list[Tensor]  # [N, n_l] per layer

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        for name, tensors in (("weights", weights), ("biases", biases)):
            if not isinstance(tensors, Iterable):
                raise TypeError(f"{name}: expected a tensor a layer, got {type(tensors).__name__}")
        self.weights, self.biases = list(weights), list(biases)
        self._check_layers()

    @classmethod
    def _check_dtype(cls, name: str, dtype: torch.dtype) -> None:
        """Raises TypeError for a dtype the subclass does not hold."""

    def _check_layers(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(
                f"weights, biases: expected one of each a layer, got {len(self.weights)} and {len(self.biases)}"
            )
        for name, tensors, dim in (("weights", self.weights, 3), ("biases", self.biases, 2)):
            for l, t in enumerate(tensors):
                if not isinstance(t, Tensor):
                    raise TypeError(f"{name}[{l}]: expected a tensor, got {type(t).__name__}")
                if t.dim() != dim:
                    raise ValueError(f"{name}[{l}]: expected {dim} dimensions, got shape {tuple(t.shape)}")
                self._check_dtype(f"{name}[{l}]", t.dtype)
                if t.dtype != self.dtype or t.device != self.device:
                    raise ValueError(
                        f"{name}[{l}]: expected {self.dtype} on {self.device} like weights[0], "
                        f"got {t.dtype} on {t.device}"
                    )
        if self.n < 1:
            raise ValueError(f"weights[0]: expected at least one network, got shape {tuple(self.weights[0].shape)}")
        widths = check_widths(self.widths)
        for l, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if w.shape != (self.n, widths[l + 1], widths[l]):
                expected = (self.n, widths[l + 1], widths[l])
                raise ValueError(f"weights[{l}]: expected shape {expected}, got {tuple(w.shape)}")
            if b.shape != (self.n, widths[l + 1]):
                expected = (self.n, widths[l + 1])
                raise ValueError(f"biases[{l}]: expected shape {expected}, got {tuple(b.shape)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, ..., n_L)``."""
        return (self.weights[0].shape[2], *(w.shape[1] for w in self.weights))

    @property
    def n(self) -> int:
        """The number of networks N."""
        return self.weights[0].shape[0]

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.n}, widths={self.widths}, {self.dtype}, {self.device})"

    def flatten(self) -> Tensor:
        """All parameters of each network in the flat layout: ``[N, P]``, a copy."""
        layers = zip(self.weights, self.biases, strict=True)
        return torch.cat([part for w, b in layers for part in (w.flatten(1), b)], dim=1)

    @classmethod
    def from_flat(cls, flat: Tensor, widths: Sequence[int]) -> Self:
        """The inverse of :meth:`flatten`, differentiable in ``flat``.

        Args:
            flat: ``[N, P]`` with P the number of parameters of an MLP of these widths.
            widths: ``(n_0, ..., n_L)``.

        Raises:
            TypeError: ``flat`` is no tensor, or its dtype does not fit.
            ValueError: P does not fit the widths.
        """
        widths = check_widths(widths)
        if not isinstance(flat, Tensor):
            raise TypeError(f"flat: expected a tensor, got {type(flat).__name__}")
        shapes = [s for i, o in itertools.pairwise(widths) for s in ((o, i), (o,))]
        sizes = [math.prod(shape) for shape in shapes]
        if flat.dim() != 2 or flat.shape[1] != sum(sizes):
            raise ValueError(f"flat: expected shape [N, {sum(sizes)}] for widths {widths}, got {tuple(flat.shape)}")
        # Cloned: the pieces of one [N, P] tensor are strided and would alias it.
        parts = [
            part.reshape(-1, *shape).clone(memory_format=torch.contiguous_format)
            for part, shape in zip(flat.split(sizes, dim=1), shapes, strict=True)
        ]
        return cls(parts[::2], parts[1::2])

    def select(self, indices: int | Sequence[int] | Tensor) -> Self:
        """The networks at ``indices`` (an int, ints, or an int64 tensor ``[M]``), copied, in that order."""
        try:
            # checked where it is: ints need no look at a device
            index = indices if isinstance(indices, Tensor) else torch.as_tensor(indices, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"indices: expected an int, ints or a tensor of them, got {indices!r}") from error
        if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
            raise TypeError(f"indices: expected ints, got {index.dtype}")
        index = index.reshape(-1).long()
        if index.numel() == 0 or not bool(((index >= 0) & (index < self.n)).all()):
            raise ValueError(f"indices: expected at least one, each in [0, {self.n}), got {index.tolist()}")
        index = index.to(self.device)
        return type(self)([w[index] for w in self.weights], [b[index] for b in self.biases])

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same parameters on another device or in another dtype; a dtype alone may come first, as in torch."""
        if isinstance(device, torch.dtype) and dtype is None:
            device, dtype = None, device
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, got {dtype!r}")
        try:
            device = None if device is None else torch.device(device)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"device: expected a torch.device or the name of one, got {device!r}") from error
        return type(self)(
            [w.to(device=device, dtype=dtype) for w in self.weights],
            [b.to(device=device, dtype=dtype) for b in self.biases],
        )


def cat_stacks(name: str, kind: type[LayerStack], stacks: Sequence[LayerStack]) -> LayerStack:
    """``stacks``, all of type ``kind`` and of one architecture, concatenated along N."""
    stacks = list(stacks)
    for stack in stacks:
        if not isinstance(stack, kind):
            raise TypeError(f"{name}: expected {kind.__name__} objects, got {type(stack).__name__}")
    if not stacks or any(stack.widths != stacks[0].widths for stack in stacks):
        raise ValueError(f"{name}: expected at least one, all of the same widths, got {[s.widths for s in stacks]}")
    return kind(
        [torch.cat(layer) for layer in zip(*(s.weights for s in stacks), strict=True)],
        [torch.cat(layer) for layer in zip(*(s.biases for s in stacks), strict=True)],
    )
