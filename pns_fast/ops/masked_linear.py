"""masked_linear and supermask: differentiable ops at the cost of the kept weights.

The two native products are closed under differentiation: each one's gradients are again such products, so second
derivatives (GraSP) come for free. A sum never crosses networks: a network's numbers are the same alone or in a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _native
from ._library import (
    FLOATS,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    library,
    not_on_cuda,
    pointer,
)
from .topk_mask import check_keep, topk_mask

library.define("masked_linear(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None) -> Tensor")
library.define("supermask(Tensor scores, Scalar keep) -> Tensor")
library.define("masked_product(Tensor x, Tensor weight, Tensor mask, Tensor? bias, bool transposed) -> Tensor")
library.define("masked_outer(Tensor grad, Tensor x, Tensor mask) -> Tensor")
library.define(
    "masked_backward(Tensor grad, Tensor x, Tensor weight, Tensor mask, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)

_FORWARD = {torch.float32: _native.cpu.masked_linear_forward_f32, torch.float64: _native.cpu.masked_linear_forward_f64}
_BACKWARD = {
    torch.float32: _native.cpu.masked_linear_backward_f32,
    torch.float64: _native.cpu.masked_linear_backward_f64,
}


def _sizes(batched: Tensor, mask: Tensor) -> tuple[int, int, int, int]:
    """(networks, batch, inputs, outputs) of [N, B, .] or [B, .] and mask [N, O, I] or [O, I]."""
    shape = mask.shape
    return (shape[0] if len(shape) == 3 else 1), batched.shape[-2], shape[-1], shape[-2]


def _run_forward(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    x, weight, mask = x.contiguous(), weight.contiguous(), mask.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty((*x.shape[:-1], weight.shape[-2]))
    _FORWARD[x.dtype](*_sizes(x, mask), *map(pointer, (x, weight, mask, bias, y)), torch.get_num_threads())
    return y


def _run_backward(grad, x, weight, mask, grad_x=None, grad_weight=None, grad_bias=None) -> None:
    grad, x, weight, mask = (None if t is None else t.contiguous() for t in (grad, x, weight, mask))
    pointers = map(pointer, (grad, x, weight, mask, grad_x, grad_weight, grad_bias))
    _BACKWARD[grad.dtype](*_sizes(grad, mask), *pointers, torch.get_num_threads())


def _product_shape(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, ...]:
    return (*x.shape[:-1], weight.shape[-1] if transposed else weight.shape[-2])


def _check_product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> None:
    """The raw ops are callable too: nothing may reach the kernel with shapes that do not fit."""
    check_tensor("x", x, FLOATS)
    check_tensor("weight", weight, (x.dtype,), (x.dim(),))
    check_tensor("mask", mask, (torch.bool,))
    check_shape("mask", mask, weight.shape, "that of weight")
    lead, n_features = weight.shape[:-2], weight.shape[-2 if transposed else -1]
    check_tensor("x", x, ndim=(2, 3))
    check_shape("x", x, (*lead, x.shape[-2], n_features), "to go with weight")
    if bias is not None:
        check_tensor("bias", bias, (x.dtype,))
        check_shape("bias", bias, weight.shape[:-1], "weight's outputs")
        if transposed:
            raise ValueError("bias: expected None with transposed=True")


def _check_outer(grad: Tensor, x: Tensor, mask: Tensor) -> None:
    check_tensor("x", x, FLOATS, (2, 3))
    check_tensor("grad", grad, (x.dtype,), (x.dim(),))
    check_tensor("mask", mask, (torch.bool,), (x.dim(),))
    check_shape("grad", grad, (*mask.shape[:-2], x.shape[-2], mask.shape[-2]), "to go with x and mask")
    check_shape("x", x, (*mask.shape[:-2], x.shape[-2], mask.shape[-1]), "to go with mask")


def _masked_product_cpu(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    _check_product(x, weight, mask, bias, transposed)
    if not transposed:
        return _run_forward(x, weight, mask, bias)
    y = x.new_empty(_product_shape(x, weight, True))
    _run_backward(x, None, weight, mask, grad_x=y)
    return y


def _masked_outer_cpu(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    _check_outer(grad, x, mask)
    y = x.new_empty(mask.shape)
    _run_backward(grad, x, None, mask, grad_weight=y)
    return y


def _masked_backward_cpu(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    _check_product(grad, weight, mask, None, True)
    _check_outer(grad, x, mask)
    results = _empty_gradients(x, weight, wanted)
    _run_backward(grad, x, weight, mask, *(r if wants else None for r, wants in zip(results, wanted, strict=True)))
    return results


def _empty_gradients(x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; without elements where not wanted."""
    shapes = x.shape, weight.shape, weight.shape[:-1]
    return tuple(x.new_empty(shape if wants else 0) for shape, wants in zip(shapes, wanted, strict=True))


library.impl("masked_product", _masked_product_cpu, "CPU")
library.impl("masked_product", not_on_cuda("masked_linear"), "CUDA")
library.impl("masked_outer", _masked_outer_cpu, "CPU")
library.impl("masked_outer", not_on_cuda("masked_linear"), "CUDA")
library.impl("masked_backward", _masked_backward_cpu, "CPU")
library.impl("masked_backward", not_on_cuda("masked_linear"), "CUDA")


@torch.library.register_fake("pns_fast::masked_product", lib=library)
def _(x, weight, mask, bias, transposed):
    _check_product(x, weight, mask, bias, transposed)
    return x.new_empty(_product_shape(x, weight, transposed))


@torch.library.register_fake("pns_fast::masked_outer", lib=library)
def _(grad, x, mask):
    _check_outer(grad, x, mask)
    return x.new_empty(mask.shape)


@torch.library.register_fake("pns_fast::masked_backward", lib=library)
def _(grad, x, weight, mask, wanted):
    _check_product(grad, weight, mask, None, True)
    _check_outer(grad, x, mask)
    return _empty_gradients(x, weight, wanted)


class _MaskedProduct(torch.autograd.Function):
    """``x (W m)^T + b``, or ``x (W m)``; the weight gets its gradient where ``grad_mask`` is True (None: the mask)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, mask, grad_mask, bias, transposed):
        return torch.ops.pns_fast.masked_product(x, weight, mask, bias, transposed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, mask, grad_mask, _, ctx.transposed = inputs
        ctx.save_for_backward(x, weight, mask, grad_mask)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask, grad_mask = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _MaskedProduct.apply(grad, weight, mask, grad_mask, None, not ctx.transposed)
        if ctx.needs_input_grad[1]:
            outer = (x, grad) if ctx.transposed else (grad, x)
            grad_weight = _MaskedOuter.apply(*outer, mask if grad_mask is None else grad_mask)
        if ctx.needs_input_grad[4]:
            # The sum over the batch as a product with ones: torch's own sum may regroup with the number of networks.
            ones = grad.new_ones((*grad.shape[:-1], 1))
            column = torch.ones((*mask.shape[:-1], 1), dtype=torch.bool, device=mask.device)
            grad_bias = _MaskedOuter.apply(grad, ones, column).squeeze(-1)
        return grad_x, grad_weight, None, None, grad_bias, None


class _MaskedOuter(torch.autograd.Function):
    """``m * (grad^T x)``: the gradient of the kept weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mask):
        return torch.ops.pns_fast.masked_outer(grad, x, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        grad, x, mask = ctx.saved_tensors
        grad_grad = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_grad = _MaskedProduct.apply(x, upstream, mask, None, None, False)
        if ctx.needs_input_grad[1]:
            grad_x = _MaskedProduct.apply(grad, upstream, mask, None, None, True)
        return grad_grad, grad_x, None


def _check(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    check_tensor("x", x, FLOATS)
    check_tensor("weight", weight, FLOATS, (2, 3))
    check_tensor("mask", mask, (torch.bool, *FLOATS))
    if x.dim() == 0 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x: expected shape [..., {weight.shape[-1]}] (weight's inputs), got {tuple(x.shape)}")
    if weight.dim() == 3 and (x.dim() != 3 or x.shape[0] != weight.shape[0]):
        n, _, n_in = weight.shape
        raise ValueError(f"x: expected shape [{n}, B, {n_in}] (weight is batched), got {tuple(x.shape)}")
    if mask.shape != weight.shape:
        raise ValueError(f"mask: expected shape {tuple(weight.shape)} (that of weight), got {tuple(mask.shape)}")
    if bias is not None:
        check_tensor("bias", bias, FLOATS)
        if bias.shape != weight.shape[:-1]:
            raise ValueError(
                f"bias: expected shape {tuple(weight.shape[:-1])} (weight's outputs), got {tuple(bias.shape)}"
            )
    check_same_dtype(x=x, weight=weight, bias=bias, mask=None if mask.dtype == torch.bool else mask)
    check_same_device(x=x, weight=weight, mask=mask, bias=bias)


def _masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    _check(x, weight, mask, bias)
    pattern, grad_mask = mask, None
    if mask.dtype != torch.bool:
        weight = weight * mask  # autograd takes the product apart into the gradients of weight and of mask
        pattern = mask != 0
        # A mask that learns needs the gradient of pruned entries too: that is what revives them.
        grad_mask = torch.ones_like(pattern) if mask.requires_grad else None
    rows = x if weight.dim() == 3 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y = _MaskedProduct.apply(rows, weight, pattern, grad_mask, bias, False)
    else:  # Function.apply binds its arguments by inspection, which costs more than a small product
        y = torch.ops.pns_fast.masked_product(rows, weight, pattern, bias, False)
    return y.reshape(*x.shape[:-1], weight.shape[-2])


# Composite: torch.ops.pns_fast.masked_linear is differentiable, traceable and vmappable as the two products are.
library.impl("masked_linear", _masked_linear, "CompositeImplicitAutograd")


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (weight * mask)^T + bias`` in time proportional to the kept weights, forward and backward.

    Where the mask is False nothing is read: an inf or NaN there does not spread, unlike in ``F.linear(x, w * m)``.
    The gradient of ``weight`` is formed at kept positions and is 0 elsewhere.

    Args:
        x: float32 or float64 ``[..., I]``; or ``[N, B, I]`` for N networks at once.
        weight: ``[O, I]``; or ``[N, O, I]``.
        mask: bool, or of the dtype of weight (then multiplied in, with a gradient at every entry), shape of weight.
        bias: ``[O]`` or ``[N, O]`` or None.

    Returns:
        ``[..., O]`` or ``[N, B, O]``, differentiable twice in x, weight, bias and a float mask.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: a layer of the pruned network, section 1.2 of Fischer & Burkholz 2022.

    Example:
        >>> weight, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]])
        >>> masked_linear(torch.tensor([[1.0, 1.0]]), weight, mask, torch.tensor([0.5, 0.0]))
        tensor([[1.5000, 4.0000]])
    """
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_tensor("mask", mask)
    if bias is not None:
        check_tensor("bias", bias)
    return _masked_linear(x, weight, mask, bias)


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
