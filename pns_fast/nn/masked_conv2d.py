"""MaskedConv2d: nn.Conv2d that knows which of its parameters are kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.masked_conv2d import masked_layer
from ..ops.masked_linear import kept_bias
from .masked_layer import HALVES, MaskedLayer

Size = int | tuple[int, int]


def unsupported(layer: nn.Conv2d) -> str:
    """What of a convolution :func:`pns_fast.ops.masked_conv2d` does not do, as an error says it; or ""."""
    if layer.groups != 1:
        return f"groups: expected 1, got {layer.groups}"
    if layer.padding_mode != "zeros":
        return f"padding_mode: expected 'zeros', got {layer.padding_mode!r}"
    if layer.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)):
        return f"padding: expected numbers, 'same' is uneven for a kernel of {layer.kernel_size}"
    return ""


def conv2d(
    layer: nn.Conv2d,
    input: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    bias_mask: Tensor | None = None,
    relu: bool = False,
    max_pool: int = 1,
) -> Tensor:
    """``layer`` with ``weight * mask`` and ``bias * bias_mask``, and what follows it: the native op, or a dense
    convolution for weights in half precision, which it does not take."""
    if layer.weight.dtype in HALVES:
        bias = kept_bias(bias, bias_mask)
        y = F.conv2d(input, layer.weight * mask, bias, layer.stride, layer.padding, layer.dilation)
        y = F.relu(y) if relu else y
        return F.max_pool2d(y, max_pool) if max_pool > 1 else y
    padding = layer.padding
    if isinstance(padding, str):
        around = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        padding = tuple(around) if padding == "same" else (0, 0)
    images = input.unsqueeze(0) if input.dim() == 3 else input
    geometry = layer.stride, padding, layer.dilation
    y = masked_layer(images, layer.weight, mask, bias, bias_mask, *geometry, relu, max_pool)
    return y.squeeze(0) if input.dim() == 3 else y


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """``y = conv2d(x, W * M) + b * m`` with bool buffers M and m: True keeps, False prunes.

    A forward and backward pass costs what the kept weights cost, or what a dense convolution does where that is less,
    see :func:`pns_fast.ops.masked_conv2d`. Pruned parameters keep their value and get gradient 0; weight decay and
    momentum may still move them, see :func:`pns_fast.nn.keep_pruned`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, device, dtype: as in ``nn.Conv2d``.
        groups, padding_mode: 1 and "zeros". The masks start full.

    ``weight`` and ``bias`` are nn.Conv2d's; ``weight_mask [O, I, KH, KW]`` and ``bias_mask [O]`` (None without a bias)
    are persistent buffers: part of ``state_dict``, moved by ``.to``, never cast. Weights in half precision work as a
    dense convolution.

    Raises:
        ValueError: groups, another padding mode, or ``padding="same"`` that is uneven.

    Source: a layer of the pruned network, section 1.2 of Fischer & Burkholz 2022.

    Example:
        >>> layer = MaskedConv2d(1, 2, 2, bias=False)
        >>> layer.set_mask(torch.eye(2, dtype=torch.bool).expand(2, 1, 2, 2))
        >>> layer.density
        0.5
    """

    plain = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, *options)
        if problem := unsupported(self):
            raise ValueError(problem)
        self._add_masks()

    @classmethod
    def from_conv2d(
        cls, layer: nn.Conv2d, weight_mask: Tensor | None = None, bias_mask: Tensor | None = None
    ) -> MaskedConv2d:
        """A masked copy of a plain ``nn.Conv2d``; a mask that is None keeps everything."""
        if type(layer) is nn.Conv2d and (problem := unsupported(layer)):
            raise ValueError(f"layer: {problem}")
        return cls._from_plain(layer, weight_mask, bias_mask)

    def forward(self, input: Tensor) -> Tensor:
        return conv2d(self, input, self.weight_mask, self.bias, self.bias_mask)
