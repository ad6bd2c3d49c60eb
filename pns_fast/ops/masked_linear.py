"""masked_linear and supermask: differentiable ops at the cost of the kept weights.

Two native products, x (W m)^T and m (grad^T x), are closed under differentiation: each one's gradients are again such
products, so second derivatives (GraSP) come for free. A backward that is not itself differentiated is one native call.
A sum never crosses networks: a network's numbers are the same alone or in a batch.
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

_masked_product = torch.ops.pns_fast.masked_product.default
_masked_outer = torch.ops.pns_fast.masked_outer.default
_masked_backward = torch.ops.pns_fast.masked_backward.default

_FORWARD = {torch.float32: _native.cpu.masked_linear_forward_f32, torch.float64: _native.cpu.masked_linear_forward_f64}
_BACKWARD = {
    torch.float32: _native.cpu.masked_linear_backward_f32,
    torch.float64: _native.cpu.masked_linear_backward_f64,
}


# ---- the native products


def _sizes(batched: Tensor, mask: Tensor) -> tuple[int, int, int, int]:
    """(networks, batch, inputs, outputs) of [N, B, .] or [B, .] and mask [N, O, I] or [O, I]."""
    shape = mask.shape
    return (shape[0] if len(shape) == 3 else 1), batched.shape[-2], shape[-1], shape[-2]


def _fits(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool = False) -> bool:
    """Whether a native product takes these: in one expression, since it stands before every call. If not, the checks
    that follow say why."""
    shape, dtype = weight.shape, weight.dtype
    n_dims = len(shape)
    return (
        (n_dims == 2 or n_dims == 3)
        and mask.shape == shape
        and x.dim() == n_dims
        and x.shape[-1] == shape[-2 if transposed else -1]
        and (n_dims == 2 or x.shape[0] == shape[0])
        and dtype in _FORWARD
        and x.dtype == dtype
        and mask.dtype == torch.bool
        and (bias is None or (bias.shape == shape[:-1] and bias.dtype == dtype))
    )


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


def _run_backward(grad, x, weight, mask, grad_x=None, grad_weight=None, grad_bias=None) -> None:
    grad, x, weight, mask = (None if t is None else t.contiguous() for t in (grad, x, weight, mask))
    pointers = map(pointer, (grad, x, weight, mask, grad_x, grad_weight, grad_bias))
    _BACKWARD[grad.dtype](*_sizes(grad, mask), *pointers, torch.get_num_threads())


def _product_shape(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, ...]:
    return (*x.shape[:-1], weight.shape[-1 if transposed else -2])


def _masked_product_cpu(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if (bias is not None and transposed) or not _fits(x, weight, mask, bias, transposed):
        _check_product(x, weight, mask, bias, transposed)
    y = x.new_empty(_product_shape(x, weight, transposed))
    if transposed:
        _run_backward(x, None, weight, mask, grad_x=y)
        return y
    x, weight, mask = x.contiguous(), weight.contiguous(), mask.contiguous()
    bias = None if bias is None else bias.contiguous()
    pointers = x.data_ptr(), weight.data_ptr(), mask.data_ptr(), pointer(bias), y.data_ptr()
    _FORWARD[x.dtype](*_sizes(x, mask), *pointers, torch.get_num_threads())
    return y


def _masked_outer_cpu(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    _check_outer(grad, x, mask)
    y = x.new_empty(mask.shape)
    _run_backward(grad, x, None, mask, grad_weight=y)
    return y


def _empty_gradients(x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; without elements where not wanted."""
    wants_x, wants_weight, wants_bias = wanted
    return (
        x.new_empty(x.shape if wants_x else 0),
        x.new_empty(weight.shape if wants_weight else 0),
        x.new_empty(weight.shape[:-1] if wants_bias else 0),
    )


def _masked_backward_cpu(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    is_like_x = x.shape[:-1] == grad.shape[:-1] and x.shape[-1] == weight.shape[-1] and x.dtype == grad.dtype
    if not (is_like_x and _fits(grad, weight, mask, None, True)):
        _check_product(grad, weight, mask, None, True)
        _check_outer(grad, x, mask)
    grad_x, grad_weight, grad_bias = results = _empty_gradients(x, weight, wanted)
    wants_x, wants_weight, wants_bias = wanted
    _run_backward(
        grad,
        x,
        weight,
        mask,
        grad_x if wants_x else None,
        grad_weight if wants_weight else None,
        grad_bias if wants_bias else None,
    )
    return results


for _name, _implementation in (
    ("masked_product", _masked_product_cpu),
    ("masked_outer", _masked_outer_cpu),
    ("masked_backward", _masked_backward_cpu),
):
    library.impl(_name, _implementation, "CPU")
    library.impl(_name, not_on_cuda("masked_linear"), "CUDA")


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


# ---- vmap: the mapped dimension becomes networks


def _as_networks(size: int, in_dims, tensors) -> list[Tensor | None]:
    """Each [..., a, b] as [size * n, a, b]: mapped dimensions in front, what is not mapped repeated."""
    networks = []
    for dim, t in zip(in_dims, tensors, strict=True):
        if t is not None:
            t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        networks.append(t)
    return networks


def _merged(t: Tensor | None, n_inner: int) -> Tensor | None:
    """[V, a, b] as it is; [V, N, a, b] as [V * N, a, b]; ``n_inner`` counts the dimensions of one network's tensor."""
    return t if t is None or t.dim() == n_inner + 1 else t.flatten(0, 1)


def _split(t: Tensor, size: int, like: Tensor) -> Tensor:
    return t if like.dim() == 3 else t.unflatten(0, (size, like.shape[1]))


def _vmap_product(info, in_dims, x, weight, mask, bias, transposed):
    x, weight, mask, bias = _as_networks(info.batch_size, in_dims[:4], (x, weight, mask, bias))
    merged = (_merged(x, 2), _merged(weight, 2), _merged(mask, 2), _merged(bias, 1))
    return _split(_masked_product(*merged, transposed), info.batch_size, x), 0


def _vmap_outer(info, in_dims, *tensors):
    networks = _as_networks(info.batch_size, in_dims, tensors)
    merged = _masked_outer(*(_merged(t, 2) for t in networks))
    return _split(merged, info.batch_size, networks[0]), 0


def _vmap_backward(info, in_dims, grad, x, weight, mask, wanted):
    networks = _as_networks(info.batch_size, in_dims[:4], (grad, x, weight, mask))
    results = _masked_backward(*(_merged(t, 2) for t in networks), wanted)
    split = (
        _split(r, info.batch_size, networks[0]) if wants else r.expand(info.batch_size, 0)
        for r, wants in zip(results, wanted, strict=True)
    )
    return tuple(split), (0, 0, 0)


torch.library.register_vmap("pns_fast::masked_product", _vmap_product, lib=library)
torch.library.register_vmap("pns_fast::masked_outer", _vmap_outer, lib=library)
torch.library.register_vmap("pns_fast::masked_backward", _vmap_backward, lib=library)


# ---- autograd


class _MaskedProduct(torch.autograd.Function):
    """``x (W m)^T + b``, or ``x (W m)``; the weight gets its gradient where ``grad_mask`` is True (None: the mask)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, mask, grad_mask, bias, transposed):
        return _masked_product(x, weight, mask, bias, transposed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, mask, grad_mask, _, ctx.transposed = inputs
        ctx.save_for_backward(x, weight, mask, grad_mask)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask, grad_mask = ctx.saved_tensors
        wants_x, wants_weight, _, _, wants_bias, _ = ctx.needs_input_grad
        if not (torch.is_grad_enabled() or ctx.transposed or grad_mask is not None):
            wanted = [wants_x, wants_weight, wants_bias]
            grad_x, grad_weight, grad_bias = _masked_backward(grad, x, weight, mask, wanted)
            return (
                grad_x if wants_x else None,
                grad_weight if wants_weight else None,
                None,
                None,
                grad_bias if wants_bias else None,
                None,
            )
        grad_x = grad_weight = grad_bias = None
        if wants_x:
            grad_x = _product(grad, weight, mask, grad_mask, None, not ctx.transposed)
        if wants_weight:
            outer = (x, grad) if ctx.transposed else (grad, x)
            grad_weight = _outer(*outer, mask if grad_mask is None else grad_mask)
        if wants_bias:
            grad_bias = grad.sum(-2)
        return grad_x, grad_weight, None, None, grad_bias, None


class _MaskedOuter(torch.autograd.Function):
    """``m * (grad^T x)``: the gradient of the kept weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mask):
        return _masked_outer(grad, x, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        grad, x, mask = ctx.saved_tensors
        grad_grad = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_grad = _product(x, upstream, mask, None, None, False)
        if ctx.needs_input_grad[1]:
            grad_x = _product(grad, upstream, mask, None, None, True)
        return grad_grad, grad_x, None


def _outside_transforms(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same with the context as forward's first argument, which vmap and torch.func.grad do not take: a separate
    setup_context makes torch bind the arguments by inspection, 8 us a call."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(function.backward)

    Eager.__name__ = Eager.__qualname__ = f"{function.__name__}Eager"
    return Eager


_EagerProduct, _EagerOuter = _outside_transforms(_MaskedProduct), _outside_transforms(_MaskedOuter)


def _is_transformed() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _product(*inputs) -> Tensor:
    return (_MaskedProduct if _is_transformed() else _EagerProduct).apply(*inputs)


def _outer(*inputs) -> Tensor:
    return (_MaskedOuter if _is_transformed() else _EagerOuter).apply(*inputs)


# ---- the public ops


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


def _is_plain(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> bool:
    return (
        isinstance(weight, Tensor)
        and isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and x.dim() == weight.dim()
        and x.device == weight.device == mask.device
        and x.layout == weight.layout == mask.layout == torch.strided
        and (bias is None or (isinstance(bias, Tensor) and bias.device == x.device and bias.layout == torch.strided))
    )


def _without_autocast(t: Tensor | None) -> Tensor | None:
    """Autocast's rule for ops that run in float32: half precision is widened, float64 stays."""
    return t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t


def _masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        x, weight, mask, bias = map(_without_autocast, (x, weight, mask, bias))
    if not _is_plain(x, weight, mask, bias):  # then the product's own check is enough
        _check(x, weight, mask, bias)
    pattern, grad_mask = mask, None
    if mask.dtype != torch.bool:
        weight = weight * mask  # autograd takes the product apart into the gradients of weight and of mask
        pattern = mask != 0
        # A mask that learns needs the gradient of pruned entries too: that is what revives them.
        grad_mask = torch.ones_like(pattern) if mask.requires_grad else None
    rows = x if x.dim() == weight.dim() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    needs_grad = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    # Inside a transform a tensor does not tell whether one outside of it needs the gradient.
    if (needs_grad and torch.is_grad_enabled()) or _is_transformed():
        y = _product(rows, weight, pattern, grad_mask, bias, False)
    else:
        y = _masked_product(rows, weight, pattern, bias, False)
    return y if rows is x else y.reshape(*x.shape[:-1], weight.shape[-2])


# Composite: torch.ops.pns_fast.masked_linear is differentiable, traceable and vmappable as the two products are.
library.impl("masked_linear", _masked_linear, "CompositeImplicitAutograd")


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (weight * mask)^T + bias`` in time proportional to the kept weights, forward and backward.

    A pruned weight is not read: an inf or NaN there does not spread, unlike in ``F.linear(x, w * m)``. The gradient of
    ``weight`` is formed at kept positions and is 0 elsewhere. Where the kept weights are is found once for each mask
    and remembered; every call compares the mask with that, so it may change at any time and by any means.
    Under autocast it runs in float32.

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
