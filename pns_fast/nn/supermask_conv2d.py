"""SupermaskConv2d: edge-popup's convolution. Weights stay, a score for each is trained, the best scores are the
subnet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .masked_conv2d import Size, conv2d, unsupported
from .supermask_layer import SupermaskLayer


class SupermaskConv2d(SupermaskLayer, nn.Conv2d):
    """``y = conv2d(x, W * top(|S|)) + b * top(|s|)`` with W and b fixed, S and s trained.

    The weights and the biases are ranked apart, each keeps the fraction ``keep``. The gradient goes straight
    through the selection to every score, ``dL/ds = dL/dw_eff * w * sign(s)`` with sign(0) = 1: a pass that trains
    scores costs a dense gradient of the weight.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, device, dtype: as in ``nn.Conv2d``.
        keep: density in [0, 1]. The attribute may be changed, to anneal.
        groups, padding_mode: 1 and "zeros".

    ``weight`` (He normal) and ``bias`` (as in nn.Conv2d) need no gradient. ``weight_scores`` start uniform in
    ``+-1/sqrt(in_channels * kernel height * kernel width)``, ``bias_scores`` at zero. An optimiser gets the parameters
    with ``requires_grad``.

    Raises:
        TypeError, ValueError: naming ``keep``; groups, another padding mode, or ``padding="same"`` that is uneven.

    Source: Ramanujan et al. 2020; biases: Fischer & Burkholz 2022, Section 3.2.

    Example:
        >>> layer = SupermaskConv2d(2, 4, 3, keep=0.25, padding=1)
        >>> {name: int(mask.sum()) for name, mask in layer.masks().items()}
        {'weight': 18, 'bias': 1}
    """

    plain = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        keep: float,
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
        self._start(keep)

    @classmethod
    def from_conv2d(cls, layer: nn.Conv2d, keep: float) -> SupermaskConv2d:
        """A copy of a plain ``nn.Conv2d`` with fixed parameters and fresh scores."""
        if type(layer) is nn.Conv2d and (problem := unsupported(layer)):
            raise ValueError(f"layer: {problem}")
        return cls._from_plain(layer, keep)

    def forward(self, input: Tensor) -> Tensor:
        return conv2d(self, input, self._supermask(), self._masked_bias())
