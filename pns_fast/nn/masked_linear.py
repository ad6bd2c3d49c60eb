"""MaskedLinear: nn.Linear that knows which of its parameters are kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops

HALVES = (torch.float16, torch.bfloat16)


def linear(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """``input (weight * mask)^T + bias``: the native op, or a dense product for weights in half precision, which it
    does not take."""
    if weight.dtype in HALVES:
        return F.linear(input, weight * mask, bias)
    return ops.masked_linear(input, weight, mask, bias)


def check_mask(name: str, mask: Tensor, parameter: Tensor) -> Tensor:
    """``mask`` if it is a bool tensor of the shape of ``parameter``."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {mask.dtype}")
    if mask.shape != parameter.shape:
        raise ValueError(f"{name}: expected shape {list(parameter.shape)}, got {list(mask.shape)}")
    return mask


class MaskedLinear(nn.Linear):
    """``y = x (W * M)^T + b * m`` with bool buffers M and m: True keeps, False prunes.

    A forward and backward pass costs what the kept weights cost. Pruned parameters keep their value and get
    gradient 0; weight decay and momentum may still move them, see :func:`pns_fast.nn.keep_pruned`.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``. The masks start full.

    ``weight`` and ``bias`` are nn.Linear's; ``weight_mask [O, I]`` and ``bias_mask [O]`` (None without a bias) are
    persistent buffers: part of ``state_dict``, moved by ``.to``, never cast. Weights in half precision work as a
    dense product.

    Source: a layer of the pruned network, section 1.2 of Fischer & Burkholz 2022.

    Example:
        >>> layer = MaskedLinear(3, 2)
        >>> layer.set_mask(torch.tensor([[True, False, False], [False, True, True]]))
        >>> layer.density
        0.625
    """

    weight_mask: Tensor
    bias_mask: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_masks()

    def _add_masks(self) -> None:
        self.register_buffer("weight_mask", torch.ones_like(self.weight, dtype=torch.bool))
        full = None if self.bias is None else torch.ones_like(self.bias, dtype=torch.bool)
        self.register_buffer("bias_mask", full)

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, weight_mask: Tensor | None = None, bias_mask: Tensor | None = None
    ) -> MaskedLinear:
        """A masked copy of a plain ``nn.Linear``; a mask that is None keeps everything."""
        if type(layer) is not nn.Linear:
            raise TypeError(f"layer: expected a plain nn.Linear, got {type(layer).__name__}")
        masked = copy.deepcopy(layer)
        become_masked(masked, cls)
        masked.set_mask(weight_mask, bias_mask)
        return masked

    def set_mask(self, weight_mask: Tensor | None = None, bias_mask: Tensor | None = None) -> None:
        """Copies bool masks ``[O, I]`` and ``[O]`` into the buffers; None leaves one as it is."""
        if bias_mask is not None and self.bias is None:
            raise ValueError("bias_mask: expected None, the layer has no bias")
        given = [("weight", weight_mask), ("bias", bias_mask)]
        given = [(name, mask) for name, mask in given if mask is not None]
        for name, mask in given:  # all checks before the first change
            check_mask(f"{name}_mask", mask, getattr(self, name))
        for name, mask in given:
            getattr(self, f"{name}_mask").copy_(mask)

    def masks(self) -> dict[str, Tensor]:
        """The buffers by the name of their parameter: "weight", and "bias" if there is one."""
        masks = {"weight": self.weight_mask}
        return masks if self.bias_mask is None else {**masks, "bias": self.bias_mask}

    @property
    def density(self) -> float:
        """Kept weights and biases / weights and biases."""
        masks = self.masks().values()
        return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)

    def finalize(self) -> nn.Linear:
        """A plain ``nn.Linear`` with zeros written where this layer prunes."""
        layer = copy.deepcopy(self)
        become_plain(layer)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else torch.where(self.bias_mask, self.bias, 0)
        return linear(input, self.weight, self.weight_mask, bias)

    def extra_repr(self) -> str:
        if self.weight.is_meta:  # no values to count
            return super().extra_repr()
        return f"{super().extra_repr()}, density={self.density:.4g}"


# A layer changes its class, as torch's parametrizations do: hooks, the training flag, attributes, and whoever else
# holds the module or its parameters stay as they are.


def become_masked(layer: nn.Linear, cls: type[MaskedLinear] = MaskedLinear) -> None:
    """Turns a plain nn.Linear into a MaskedLinear with full masks, in place."""
    layer.__class__ = cls
    layer._add_masks()


def become_plain(layer: MaskedLinear) -> None:
    """Turns a MaskedLinear into a plain nn.Linear with zeros where it pruned, in place."""
    with torch.no_grad():
        for name, mask in layer.masks().items():
            getattr(layer, name).masked_fill_(~mask, 0)
    layer.__class__ = nn.Linear
    del layer.weight_mask, layer.bias_mask
