"""Masked layers one behind the other, each with a ReLU behind it or not, in one native call forward and one backward:
in a small network the layers' own steps through Python and autograd take longer than their products. A microsecond
counts here, see _masked_plain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _native
from . import _masked_plain, _memory
from ._library import pointer
from .masked_linear import masked_layer

_FORWARD = {torch.float32: _native.cpu.masked_chain_forward_f32, torch.float64: _native.cpu.masked_chain_forward_f64}
_BACKWARD = {torch.float32: _native.cpu.masked_chain_backward_f32, torch.float64: _native.cpu.masked_chain_backward_f64}

# (weight [O, I], mask, bias or None, its bool mask or None, whether a ReLU follows)
Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]


def masked_chain(x: Tensor, layers: Sequence[Layer]) -> Tensor | None:
    """``relu(x (W m)^T + b)`` of one layer after the other, of b what its mask keeps; None, and nothing done, where not
    all are plain tensors on the CPU that fit, or a weight is computed from others. Who computes weights often
    differentiates twice (GraSP, meta-learning), for which a chain runs forward again, and rounds in another order."""
    if not _is_plain(x, layers):
        return None
    trained = [t for weight, _, bias, _, _ in layers for t in (weight, bias) if t is not None]
    if torch.is_grad_enabled() and (x.requires_grad or any([t.requires_grad for t in trained])):
        return _chain(x, layers, *trained)
    return _run(x, layers)[0]


def _is_plain(x: Tensor, layers: Sequence[Layer]) -> bool:
    if not _masked_plain.is_plain_batch(x):
        return False
    n_in, dtype = x.shape[1], x.dtype
    for weight, mask, bias, bias_mask, _ in layers:
        if not (weight.is_leaf and _masked_plain.is_plain_layer(n_in, dtype, weight, mask, bias, bias_mask)):
            return False
        n_in = weight.shape[0]
    return True


def _run(x: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    """The last layer's output; those of the others, one behind the other; and for each layer (I, O, what the backward
    pass reads: addresses of its output if it ends in a ReLU, of its input, weight, mask and the bias's mask)."""
    batch, dtype, itemsize = x.shape[0], x.dtype, x.itemsize
    shapes = [weight.shape for weight, *_ in layers]
    inner = _memory.empty((batch * sum([n_out for n_out, _ in shapes[:-1]]),), dtype)
    y = _memory.empty((batch, shapes[-1][0]), dtype)
    read, written, forward, backward = x.data_ptr(), inner.data_ptr(), [], []
    for (n_out, n_in), (weight, mask, bias, bias_mask, has_relu) in zip(shapes, layers, strict=True):
        if len(forward) + 1 == len(layers):
            written = y.data_ptr()
        at = weight.data_ptr(), mask.data_ptr()
        bias_mask_at = pointer(bias_mask)
        forward.append((n_in, n_out, *at, pointer(bias), bias_mask_at, has_relu, written))
        backward.append((n_in, n_out, written if has_relu else 0, read, *at, bias_mask_at))
        read, written = written, written + batch * n_out * itemsize
    _FORWARD[dtype](batch, x.data_ptr(), forward, torch.get_num_threads())
    return y, inner, backward


class _Chain(torch.autograd.Function):
    """Of plain tensors that fit; ``trained`` are the weights and biases of ``layers``, for autograd to see."""

    @staticmethod
    def forward(ctx, x, layers, *trained):
        y, inner, ctx.described = _run(x, layers)
        kept = [t for layer in layers for t in layer[:4] if t is not None]
        saved = [x, inner, *kept, y] if layers[-1][4] else [x, inner, *kept]
        ctx.save_for_backward(*saved)
        ctx.addresses = [t.data_ptr() for t in saved]
        ctx.kinds = [(bias is not None, bias_mask is not None, relu) for _, _, bias, bias_mask, relu in layers]
        return y

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        x, last = saved[0], ctx.described[-1]
        if (
            not torch.is_grad_enabled()
            and not _masked_plain.has_mode()
            and _masked_plain.is_plain(grad)
            and grad.dtype is x.dtype
            and grad.shape == (x.shape[0], last[1])
            # A hook on saved tensors may have brought others than were checked.
            and [t.data_ptr() for t in saved] == ctx.addresses
        ):
            return _gradients(ctx, grad, x)
        return _differentiable_gradients(ctx, grad, saved)


# Without what Function.apply does for transforms, see masked_linear.
_chain = super(torch.autograd.Function, _Chain).apply


def _gradients(ctx, grad: Tensor, x: Tensor) -> tuple[Tensor | None, ...]:
    """Of what _Chain takes, None where not wanted."""
    wants_x, _, *wanted = ctx.needs_input_grad
    dtype, found, layers, at = x.dtype, [], [], 0
    for (has_bias, _, _), (n_in, n_out, *read) in zip(ctx.kinds, ctx.described, strict=True):
        grad_weight = _memory.empty((n_out, n_in), dtype) if wanted[at] else None
        grad_bias = torch.empty(n_out, dtype=dtype, device="cpu") if has_bias and wanted[at + 1] else None
        found += (grad_weight, grad_bias) if has_bias else (grad_weight,)
        at += 1 + has_bias
        # Below the lowest layer that wants something there is nothing to do.
        if wants_x or layers or grad_weight is not None or grad_bias is not None:
            layers.append((n_in, n_out, *read, pointer(grad_weight), pointer(grad_bias)))
    grad_x = _memory.empty_like(x) if wants_x else None
    _BACKWARD[dtype](x.shape[0], grad.data_ptr(), layers, pointer(grad_x), torch.get_num_threads())
    return grad_x, None, *found


def _differentiable_gradients(ctx, grad: Tensor, saved: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The same by autograd, layer by layer, and differentiable where that is asked for. Of views, one for each place: a
    layer that is there twice gets what each place gives it, not twice what both give."""
    x, _, *kept = saved
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        x, rest = x.view_as(x), iter([t.view_as(t) for t in kept])
        y, trained = x, []
        for has_bias, has_bias_mask, has_relu in ctx.kinds:
            weight, mask = next(rest), next(rest)
            bias = next(rest) if has_bias else None
            bias_mask = next(rest) if has_bias_mask else None
            trained += (weight, bias) if has_bias else (weight,)
            y = masked_layer(y, weight, mask, bias, bias_mask)
            y = F.relu(y) if has_relu else y
    inputs = [t for t, is_wanted in zip((x, None, *trained), ctx.needs_input_grad, strict=True) if is_wanted]
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=is_differentiated))
    return tuple(next(found) if is_wanted else None for is_wanted in ctx.needs_input_grad)
