"""Twin of ops.masked_linear and ops.supermask: the dense product with the mask multiplied in."""

from __future__ import annotations

import torch
from torch import Tensor

from .topk_mask import topk_mask


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`pns_fast.ops.masked_linear`."""
    effective = weight * mask
    if weight.dim() == 3:
        y = x @ effective.transpose(1, 2)
        return y if bias is None else y + bias[:, None, :]
    return torch.nn.functional.linear(x, effective, bias)


class _Supermask(torch.autograd.Function):
    @staticmethod
    def forward(scores, keep):
        return topk_mask(scores.abs(), keep).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def supermask(scores: Tensor, keep: int | float) -> Tensor:
    """See :func:`pns_fast.ops.supermask`."""
    return _Supermask.apply(scores.flatten(), keep).reshape(scores.shape)
