"""masked_linear: a differentiable op at the cost of the kept weights.

Two native products, x (W m)^T and m (grad^T x), are closed under differentiation: each one's gradients are again such
products, so second derivatives (GraSP) come for free. A backward that is not itself differentiated is one native call.
A sum never crosses networks: a network's numbers are the same alone or in a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _masked_cuda, _masked_plain
from ._library import HALVES, check_same_device, check_same_dtype, check_tensor, has_tangents, is_transformed, library
from ._masked_product import dtypes_on, fits, masked_backward, masked_outer, masked_product

library.define("masked_linear(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None) -> Tensor")


class _MaskedProduct(torch.autograd.Function):
    """``x (W m)^T + b``, or ``x (W m)``; the weight gets its gradient where ``grad_mask`` is True (None: the mask)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, mask, grad_mask, bias, transposed):
        return masked_product(x, weight, mask, bias, transposed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, mask, grad_mask, _, ctx.transposed = inputs
        ctx.save_for_backward(x, weight, mask, grad_mask)

    @staticmethod
    def backward(ctx, grad):
        wants_x, wants_weight, _, _, wants_bias, _ = ctx.needs_input_grad
        wanted = (wants_x, wants_weight, wants_bias)
        grad_x, grad_weight, grad_bias = _gradients(grad, *ctx.saved_tensors, ctx.transposed, wanted)
        return grad_x, grad_weight, None, None, grad_bias, None


def _gradients(grad, x, weight, mask, grad_mask, transposed, wanted) -> tuple[Tensor | None, ...]:
    """Of x, weight and bias, None where not wanted; differentiable where that is asked for."""
    wants_x, wants_weight, wants_bias = wanted
    if not (torch.is_grad_enabled() or transposed or grad_mask is not None):
        results = masked_backward(grad, x, weight, mask, list(wanted))
        return tuple(r if wants else None for r, wants in zip(results, wanted, strict=True))
    grad_x = grad_weight = None
    if wants_x:
        grad_x = _product(grad, weight, mask, grad_mask, None, not transposed)
    if wants_weight:
        outer = (x, grad) if transposed else (grad, x)
        grad_weight = _outer(*outer, mask if grad_mask is None else grad_mask)
    return grad_x, grad_weight, grad.sum(-2) if wants_bias else None


class _MaskedOuter(torch.autograd.Function):
    """``m * (grad^T x)``: the gradient of the kept weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mask):
        return masked_outer(grad, x, mask)

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


# The same outside of transforms, see is_transformed.


class _EagerProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, mask, grad_mask, bias, transposed):
        ctx.save_for_backward(x, weight, mask, grad_mask)
        ctx.transposed = transposed
        return masked_product(x, weight, mask, bias, transposed)

    backward = _MaskedProduct.backward


class _EagerOuter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, x, mask):
        ctx.save_for_backward(grad, x, mask)
        return masked_outer(grad, x, mask)

    backward = _MaskedOuter.backward


class _PlainProduct(torch.autograd.Function):
    """``x (W m)^T + b`` of plain tensors that fit, see _masked_plain; of b what ``bias_mask`` keeps."""

    forward = staticmethod(_masked_plain.forward)

    @staticmethod
    def backward(ctx, grad):
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
        grads = ctx.run.backward(grad, saved, wanted)
        return _differentiable_gradients(grad, *saved, wanted=wanted[2:]) if grads is None else grads


def _differentiable_gradients(grad, x, weight, mask, bias_mask=None, *, wanted) -> tuple[Tensor | None, ...]:
    wants_x, wants_weight, *wants_bias = wanted
    grads = _gradients(grad, x, weight, mask, None, False, (wants_x, wants_weight, any(wants_bias)))
    *grads, grad_bias = grads
    return (None, None, *grads, *(kept_bias(grad_bias, bias_mask) for _ in wants_bias))


def kept_bias(bias: Tensor | None, bias_mask: Tensor | None) -> Tensor | None:
    """What a bool mask keeps of the bias, 0 elsewhere; None keeps all."""
    if bias is None or bias_mask is None:
        return bias
    if bias.is_cuda and not is_transformed():  # one launch, and one for the gradient
        return _masked_cuda.masked(bias, bias_mask, 0)
    return torch.where(bias_mask, bias, 0)


# Function.apply without what it does for transforms and their tensors, 1 us.
_plain_product = super(torch.autograd.Function, _PlainProduct).apply


def _plain(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, bias_mask: Tensor | None) -> Tensor | None:
    """None, and nothing done, where these are no plain tensors that fit."""
    if torch.compiler.is_compiling():
        return None
    return _masked_plain.plain_layers(_plain_product, x, [(weight, mask, bias, bias_mask, False)], False)


def _product(*inputs) -> Tensor:
    return (_MaskedProduct if is_transformed() else _EagerProduct).apply(*inputs)


def _outer(*inputs) -> Tensor:
    return (_MaskedOuter if is_transformed() else _EagerOuter).apply(*inputs)


def _check(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    floats = dtypes_on(x.device)
    check_tensor("x", x, floats)
    check_tensor("weight", weight, floats, (2, 3))
    check_tensor("mask", mask, (torch.bool, *floats))
    if x.dim() == 0 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x: expected shape [..., {weight.shape[-1]}] (weight's inputs), got {tuple(x.shape)}")
    if weight.dim() == 3 and (x.dim() != 3 or x.shape[0] != weight.shape[0]):
        n, _, n_in = weight.shape
        raise ValueError(f"x: expected shape [{n}, B, {n_in}] (weight is batched), got {tuple(x.shape)}")
    if mask.shape != weight.shape:
        raise ValueError(f"mask: expected shape {tuple(weight.shape)} (that of weight), got {tuple(mask.shape)}")
    if bias is not None:
        check_tensor("bias", bias, floats)
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


def _widened(t: Tensor | None) -> Tensor | None:
    return t.float() if t is not None and t.dtype in HALVES else t


def _masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        wide = map(_widened, (x, weight, mask, bias))
        if device == "cpu":
            return _differentiable(*wide).to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # torch's own product is not to round to half precision
            y = _differentiable(*wide)
        return y.to(torch.get_autocast_dtype(device))
    return _differentiable(x, weight, mask, bias)


class _SparseOnCuda(torch.autograd.Function):
    """``x (W m)^T + b`` outside of transforms, the mask's index at hand: past the registered ops and their checks."""

    @staticmethod
    def forward(ctx, x, weight, mask, bias, index):
        ctx.save_for_backward(x, weight, mask)
        ctx.index, ctx.kinds = index, _kinds(x, weight, mask)
        return _masked_cuda.sparse_product(index, x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask = ctx.saved_tensors
        wants_x, wants_weight, _, wants_bias, _ = ctx.needs_input_grad
        # A hook on saved tensors may have brought others than were checked.
        is_as_checked = _masked_cuda.may_launch(grad, x, weight, mask) and _kinds(x, weight, mask) == ctx.kinds
        if torch.is_grad_enabled() or not is_as_checked:
            wanted = (wants_x, wants_weight, wants_bias)
            grad_x, grad_weight, grad_bias = _gradients(grad, x, weight, mask, None, False, wanted)
            return grad_x, grad_weight, None, grad_bias, None
        grad_x, grad_weight = _masked_cuda.sparse_gradients(ctx.index, grad, x, weight, wants_x, wants_weight)
        return grad_x, grad_weight, None, grad.sum(-2) if wants_bias else None, None


def _kinds(*tensors: Tensor) -> list[tuple]:
    return [(t.shape, t.dtype, t.get_device()) for t in tensors]


def _is_plain_on_cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> bool:
    """Whether these fit and take a path of their own, past the registered products."""
    return (
        x.is_cuda
        and not is_transformed()
        and fits(x, weight, mask, bias)
        and _masked_cuda.may_launch(x, weight, mask, bias)
    )


def _on_cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """A bool mask, outside of transforms and autocast. torch's product takes x [..., I] with a weight [O, I], ours
    [B, I]."""
    n_weights = mask.numel()
    if n_weights >= _masked_cuda.FEWEST_WEIGHTS:
        n_samples = x.shape[1] if mask.dim() == 3 else x.numel() // max(x.shape[-1], 1)
        needs_grad = torch.is_grad_enabled()
        n_products = 1 + (needs_grad and x.requires_grad) + (needs_grad and weight.requires_grad)
        if _masked_cuda.may_pay(n_weights, n_samples, n_products, x):
            rows = x if x.dim() == mask.dim() else x.reshape(n_samples, x.shape[-1])
            if _is_plain(rows, weight, mask, bias) and _is_plain_on_cuda(rows, weight, mask, bias):
                index = _masked_cuda.layer_index(rows, mask, n_products)
                if index is not None:
                    y = _SparseOnCuda.apply(rows, weight, mask, bias, index)
                    return y if rows is x else y.reshape(*x.shape[:-1], weight.shape[-2])
    return _masked_cuda.dense_linear(x, weight, mask, bias)


def _differentiable(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    if not _is_plain(x, weight, mask, bias):  # then the product's own check is enough
        _check(x, weight, mask, bias)
    pattern, grad_mask = mask, None
    if mask.dtype != torch.bool:
        weight = weight * mask  # autograd takes the product apart into the gradients of weight and of mask
        pattern = mask != 0
        # A mask that learns needs the gradient of pruned entries too: that is what revives them. Inside a transform a
        # tensor does not tell whether one outside of it needs the gradient.
        grad_mask = torch.ones_like(pattern) if mask.requires_grad or is_transformed() else None
        if pattern.is_cuda and type(pattern) is Tensor and not is_transformed():
            for made in (pattern, grad_mask):  # for this call: an index would be built in each
                if made is not None:
                    _masked_cuda.keep_dense(made)
    rows = x if x.dim() == weight.dim() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    needs_grad = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if grad_mask is None and _is_plain_on_cuda(rows, weight, pattern, bias):
        y = _on_cuda(rows, weight, pattern, bias)
    elif (needs_grad and torch.is_grad_enabled()) or is_transformed() or has_tangents():
        y = _product(rows, weight, pattern, grad_mask, bias, False)
    else:
        y = masked_product(rows, weight, pattern, bias, False)
    return y if rows is x else y.reshape(*x.shape[:-1], weight.shape[-2])


# Composite: torch.ops.pns_fast.masked_linear is differentiable, traceable and vmappable as the two products are.
library.impl("masked_linear", _masked_linear, "CompositeImplicitAutograd")


def masked_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (weight * mask)^T + bias`` in time proportional to the kept weights, forward and backward.

    A pruned weight is not read: an inf or NaN there does not spread, unlike in ``F.linear(x, w * m)``. The gradient of
    ``weight`` is formed at kept positions and is 0 elsewhere. Where the kept weights are is found once for each mask
    and remembered; every call compares the mask with that, so it may change from call to call by any means. A
    backward is that of what its forward read; after an in-place change in between torch refuses it.
    Under autocast it sums in float32 and returns autocast's dtype, as ``F.linear`` does.

    On CUDA it is torch's own product with the masked weight, at what ``F.linear(x, w * m)`` costs, unless kept weights
    alone are estimated to take less time, calls from Python included: float32, densities up to about 0.1, from about
    2,048 x 2,048 with 256 samples on. In a CUDA graph, where Python takes no time, that begins at 512 x 512, for masks
    that two calls of the warm-up on a side stream have seen. A changed mask is noticed by torch's version counter:
    after torch's own in-place operations and ``topk_mask(..., out=mask)``, not after writes through ``.data``, by other
    libraries or in a graph's replay; nor after a collective of ``torch.distributed``, so that in a group of several
    processes it is always torch's product. The first call with a large mask waits for the device; later ones do not. A
    graph keeps the mask it was captured with, but torch.compile's are torch's product and read the mask of now. torch's
    product rounds as cuBLAS does: a network's last bits may differ alone and in a batch, or in a graph and out of it.

    Args:
        x: float32 or float64 ``[..., I]``; or ``[N, B, I]`` for N networks at once. CUDA: float16 and bfloat16 too.
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
    if not isinstance(x, Tensor):
        check_tensor("x", x)
    if not x.is_cuda:
        y = _plain(x, weight, mask, bias, None)
        return _masked_linear(x, weight, mask, bias) if y is None else y
    if type(mask) is Tensor and not is_transformed() and not torch.is_autocast_enabled("cuda"):
        try:  # what torch would take but we do not is asked here, all else it refuses itself: these are microseconds
            if (
                mask.dtype is torch.bool
                and mask.shape == (shape := weight.shape)
                and (len(shape) == 2 or (len(shape) == 3 and x.dim() == 3))
                and x.layout is torch.strided
                and (bias is None or (bias.shape == shape[:-1] and bias.dtype is weight.dtype))
            ):
                if len(shape) == 3 or mask.numel() >= _masked_cuda.FEWEST_WEIGHTS:
                    return _on_cuda(x, weight, mask, bias)
                return F.linear(x, _masked_cuda.masked(weight, mask, 0), bias)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            _check(x, weight, mask, bias)
            raise
    return _masked_linear(x, weight, mask, bias)


def masked_layer(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, bias_mask: Tensor | None = None
) -> Tensor:
    """masked_linear with the bias where ``bias_mask`` ``[O]`` is True: on plain tensors one step of autograd's less."""
    y = _plain(x, weight, mask, bias, bias_mask)
    return masked_linear(x, weight, mask, kept_bias(bias, bias_mask)) if y is None else y
