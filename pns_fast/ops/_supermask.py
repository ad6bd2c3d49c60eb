"""supermask: the mask that edge-popup trains through."""

from __future__ import annotations

import torch
from torch import Tensor

from ._keep import check_keep
from ._library import check_tensor, is_transformed, library
from .topk_mask import topk_mask

library.define("supermask(Tensor scores, Scalar keep) -> Tensor")


class _Supermask(torch.autograd.Function):
    """The mask of scores behind the first ``n_lead`` dimensions, each ranked on its own."""

    @staticmethod
    def forward(scores, keep, n_lead):
        return topk_mask(scores.abs().flatten(n_lead), keep).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, scores, keep, n_lead):
        return _Supermask.apply(scores.movedim(in_dims[0], 0), keep, n_lead + 1), 0

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


class _EagerSupermask(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, keep):
        return _Supermask.forward(scores, keep, 0)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _supermask(scores: Tensor, keep: int | float) -> Tensor:
    return _Supermask.apply(scores, keep, 0) if is_transformed() else _EagerSupermask.apply(scores, keep)


library.impl("supermask", _supermask, "CompositeImplicitAutograd")


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
    return _supermask(scores, check_keep(keep))
