"""Twin of ops.masked_conv2d: the dense convolution with the mask multiplied in."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    relu: bool = False,
    max_pool: int = 1,
) -> Tensor:
    """See :func:`pns_fast.ops.masked_conv2d`."""
    y = torch.nn.functional.conv2d(x, weight * mask, bias, stride, padding, dilation)
    y = torch.relu(y) if relu else y
    return torch.nn.functional.max_pool2d(y, max_pool) if max_pool > 1 else y
