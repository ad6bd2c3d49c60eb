"""supermask: the mask that edge-popup trains through."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import check_tensor, library
from .topk_mask import check_keep, topk_mask

library.define("supermask(Tensor scores, Scalar keep) -> Tensor")


class _Supermask(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores, keep):
        return topk_mask(scores.abs().reshape(-1), keep).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


library.impl("supermask", lambda scores, keep: _Supermask.apply(scores, keep), "CompositeImplicitAutograd")


def supermask(scores: Tensor, keep: int | float) -> Tensor:
    """The 0/1 mask of the largest ``|scores|`` with a straight-through gradient: edge-popup's mask.

    Args:
        scores: float tensor of any shape, ranked as a whole.
        keep: count (int) or density (float), as in :func:`topk_mask`.

    Returns:
        0.0 or 1.0 in the shape and dtype of ``scores``; ``d mask / d scores = 1`` for every score. Code that trains
        signed scores, as hidden-networks does, calls ``supermask(scores.abs(), keep)``: the gradient then carries the
        sign, so that a harmful weight's score shrinks towards 0 from both sides.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?", equation 3.

    Example:
        >>> scores = torch.tensor([0.1, -2.0, 0.5], requires_grad=True)
        >>> mask = supermask(scores, 2)
        >>> mask.sum().backward(); mask.detach(), scores.grad
        (tensor([0., 1., 1.]), tensor([1., 1., 1.]))
    """
    check_tensor("scores", scores)
    check_keep(keep)
    return _Supermask.apply(scores, keep)
