"""A ticket: a small known network, the target that is planted into a mother network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..networks.stack import check_widths


@dataclass(frozen=True, eq=False)
class Ticket:
    """A small ReLU network in float64; what is exactly zero is not part of the ticket.

    Args:
        weights: ``[n_l, n_{l-1}]`` a layer, tensors or arrays.
        biases: ``[n_l]`` a layer.

    Raises:
        TypeError: something that is no array of real numbers.
        ValueError: shapes that do not fit together, or values that are not finite.

    >>> ticket = Ticket([[[1.0]], [[2.0]]], [[0.0], [-1.0]])
    >>> ticket.kept_weights, ticket.widths, ticket.density((1, 5, 1))
    (2, (1, 1, 1), 0.2)
    >>> ticket.forward(torch.tensor([[3.0], [-3.0]]))
    tensor([[ 5.],
            [-1.]])
    """

    weights: list[Tensor]
    biases: list[Tensor]

    def __post_init__(self) -> None:
        for name, dim in (("weights", 2), ("biases", 1)):
            parts = getattr(self, name)
            if isinstance(parts, (str, Tensor)) or not isinstance(parts, Sequence):
                raise TypeError(f"{name}: expected a list, one a layer, got {type(parts).__name__}")
            parts = [_float64(f"{name}[{l}]", part, dim) for l, part in enumerate(parts)]
            object.__setattr__(self, name, parts)
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(
                f"weights, biases: expected one of each a layer, got {len(self.weights)} and {len(self.biases)}"
            )
        widths = check_widths(self.widths)
        for l, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            if w.shape != (widths[l + 1], widths[l]) or b.shape != (widths[l + 1],):
                raise ValueError(
                    f"weights[{l}], biases[{l}]: expected shapes {(widths[l + 1], widths[l])} and "
                    f"{(widths[l + 1],)}, got {tuple(w.shape)} and {tuple(b.shape)}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """``(n_0, ..., n_L)``."""
        return (self.weights[0].shape[1], *(len(w) for w in self.weights))

    @property
    def kept_weights(self) -> int:
        """The number of non-zero weights (biases are not counted)."""
        return sum(int(w.count_nonzero()) for w in self.weights)

    def density(self, widths: Sequence[int]) -> float:
        """Kept weights / weights of a mother network of these widths.

        Raises:
            TypeError: ``widths`` is no sequence of ints.
            ValueError: the ticket does not fit into such a network.
        """
        widths = check_widths(widths)
        self.check_fits(widths)
        return self.kept_weights / sum(o * i for i, o in itertools.pairwise(widths))

    def check_fits(self, widths: Sequence[int]) -> None:
        """Raises ValueError unless a mother network of ``widths`` has room for this ticket."""
        own = self.widths
        if len(own) != len(widths):
            raise ValueError(
                f"ticket: depth {len(own)} does not fit a mother network of depth {len(widths)} "
                f"(widths {own} and {tuple(widths)})"
            )
        if (own[0], own[-1]) != (widths[0], widths[-1]):
            raise ValueError(
                f"ticket: expected {widths[0]} inputs and {widths[-1]} outputs like the mother network, "
                f"got {own[0]} and {own[-1]}"
            )
        for l, (small, large) in enumerate(zip(own, widths, strict=True)):
            if small > large:
                raise ValueError(
                    f"ticket: layer {l} is wider than the mother network's, {small} neurons against {large}"
                )

    def forward(self, x: Tensor) -> Tensor:
        """The ticket's outputs, computed in float64.

        Args:
            x: ``[B, n_0]``, float32 or float64.

        Returns:
            ``[B, n_L]`` in the dtype and on the device of ``x``.

        Raises:
            TypeError: ``x`` is no floating point tensor.
            ValueError: ``x`` has another shape.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.dim() != 2 or x.shape[1] != self.widths[0]:
            raise ValueError(f"x: expected shape [B, {self.widths[0]}], got {tuple(x.shape)}")
        h = x.double()
        for l, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            w, b = w.to(x.device), b.to(x.device)
            h = ops.masked_linear(h if l == 0 else torch.relu(h), w, w != 0, b)
        return h.to(x.dtype)


def as_ticket(ticket: Ticket | Sequence[tuple[Tensor, Tensor]]) -> Ticket:
    """A Ticket as it is, a list of (weight, bias) as one.

    Raises:
        TypeError, ValueError: neither, or layers that do not fit together.
    """
    if isinstance(ticket, Ticket):
        return ticket
    if isinstance(ticket, (str, Tensor)) or not isinstance(ticket, Sequence):
        raise TypeError(f"ticket: expected a Ticket or a list of (weight, bias) pairs, got {type(ticket).__name__}")
    if not ticket:
        raise ValueError("ticket: expected at least one (weight, bias) pair, got none")
    for l, pair in enumerate(ticket):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"ticket[{l}]: expected a (weight, bias) pair, got {type(pair).__name__}")
    return Ticket([weight for weight, _ in ticket], [bias for _, bias in ticket])


def _float64(name: str, values: object, dim: int) -> Tensor:
    """``values`` as a float64 tensor of ``dim`` dimensions, finite."""
    try:
        # lists through NumPy, in float64: torch would make float32 of them
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__}") from error
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    if tensor.dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimensions, got shape {tuple(tensor.shape)}")
    tensor = tensor.detach().to(torch.float64) + 0.0  # a copy, and -0.0 becomes a plain zero
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite numbers, got nan or inf")
    return tensor
