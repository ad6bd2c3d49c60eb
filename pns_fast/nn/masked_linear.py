"""MaskedLinear: nn.Linear that knows which of its parameters are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.masked_linear import kept_bias, masked_layer
from .masked_layer import HALVES, MaskedLayer


def linear(input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, bias_mask: Tensor | None = None) -> Tensor:
    """``input (weight * mask)^T + bias``, of the bias what its bool mask keeps: the native op, or a dense product for
    weights in half precision, which it does not take."""
    if weight.dtype in HALVES:
        return F.linear(input, weight * mask, kept_bias(bias, bias_mask))
    return masked_layer(input, weight, mask, bias, bias_mask)


class MaskedLinear(MaskedLayer, nn.Linear):
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

    plain = nn.Linear

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

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, weight_mask: Tensor | None = None, bias_mask: Tensor | None = None
    ) -> MaskedLinear:
        """A masked copy of a plain ``nn.Linear``; a mask that is None keeps everything."""
        return cls._from_plain(layer, weight_mask, bias_mask)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.weight_mask, self.bias, self.bias_mask)
