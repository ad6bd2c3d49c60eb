"""masked_conv2d: a differentiable convolution at the cost of the kept weights.

The convolution, its input's gradient and its weight's gradient are closed under differentiation: each one's gradients
are again such products, so second derivatives (GraSP) come for free. A backward that is not itself differentiated is
one native call. So is a convolution with the ReLU and the pooling that follow it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _masked_cuda
from ._library import HALVES, check_tensor, has_tangents, is_transformed, library
from ._masked_conv import (
    check_conv,
    masked_conv,
    masked_conv_backward,
    masked_conv_input,
    masked_conv_outer,
    tail_backward,
    tail_forward,
    tail_layout,
    takes_tail,
)
from ._masked_plain import is_plain, is_watched
from .masked_linear import kept_bias

library.define(
    "masked_conv2d(Tensor x, Tensor weight, Tensor mask, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
    "int[2] dilation=1, bool relu=False, int max_pool=1) -> Tensor"
)


class _Conv(torch.autograd.Function):
    """The convolution plus bias; the weight gets its gradient where ``grad_mask`` is True (None: the mask)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, mask, grad_mask, bias, stride, padding, dilation):
        return masked_conv(x, weight, mask, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, mask, grad_mask, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight, mask, grad_mask)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask, grad_mask = ctx.saved_tensors
        wants_x, wants_weight, _, _, wants_bias, *_ = ctx.needs_input_grad
        if not torch.is_grad_enabled() and grad_mask is None:
            wanted = [wants_x, wants_weight, wants_bias]
            found = masked_conv_backward(grad, x, weight, mask, *ctx.geometry, wanted)
            grad_x, grad_weight, grad_bias = (g if wants else None for g, wants in zip(found, wanted, strict=True))
        else:
            grad_x = grad_weight = grad_bias = None
            if wants_x:
                grad_x = _input(grad, weight, mask, grad_mask, x.shape[2:], *ctx.geometry)
            if wants_weight:
                grad_weight = _outer(grad, x, mask if grad_mask is None else grad_mask, *ctx.geometry)
            if wants_bias:
                grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, None, None, grad_bias, None, None, None


class _Input(torch.autograd.Function):
    """From the gradient of the result to that of x, of height and width ``size``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, weight, mask, grad_mask, size, stride, padding, dilation):
        return masked_conv_input(grad, weight, mask, size, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, mask, grad_mask, _, *ctx.geometry = inputs
        ctx.save_for_backward(grad, weight, mask, grad_mask)

    @staticmethod
    def backward(ctx, upstream):
        grad, weight, mask, grad_mask = ctx.saved_tensors
        grad_grad = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad = _conv(upstream, weight, mask, grad_mask, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight = _outer(grad, upstream, mask if grad_mask is None else grad_mask, *ctx.geometry)
        return grad_grad, grad_weight, None, None, None, None, None, None


class _Outer(torch.autograd.Function):
    """From the gradient of the result to that of the kept weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mask, stride, padding, dilation):
        return masked_conv_outer(grad, x, mask, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, x, mask, *ctx.geometry = inputs
        ctx.save_for_backward(grad, x, mask)

    @staticmethod
    def backward(ctx, upstream):
        grad, x, mask = ctx.saved_tensors
        grad_grad = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_grad = _conv(x, upstream, mask, None, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_x = _input(grad, upstream, mask, None, x.shape[2:], *ctx.geometry)
        return grad_grad, grad_x, None, None, None, None


# The same outside of transforms, see is_transformed.


class _EagerConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, mask, grad_mask, bias, stride, padding, dilation):
        ctx.save_for_backward(x, weight, mask, grad_mask)
        ctx.geometry = stride, padding, dilation
        return masked_conv(x, weight, mask, bias, stride, padding, dilation)

    backward = _Conv.backward


class _EagerInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, weight, mask, grad_mask, size, stride, padding, dilation):
        ctx.save_for_backward(grad, weight, mask, grad_mask)
        ctx.geometry = stride, padding, dilation
        return masked_conv_input(grad, weight, mask, size, stride, padding, dilation)

    backward = _Input.backward


class _EagerOuter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, x, mask, stride, padding, dilation):
        ctx.save_for_backward(grad, x, mask)
        ctx.geometry = stride, padding, dilation
        return masked_conv_outer(grad, x, mask, stride, padding, dilation)

    backward = _Outer.backward


class _EagerTail(torch.autograd.Function):
    """The convolution plus bias, ReLU and pooling, from a native call that has been made already."""

    @staticmethod
    def forward(ctx, x, weight, mask, bias, bias_mask, layout, geometry, relu, window, found):
        y, passes = found
        ctx.save_for_backward(x, weight, mask, bias, bias_mask, passes)
        ctx.layout = layout
        ctx.options = geometry, relu, window
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, mask, bias, bias_mask, passes = ctx.saved_tensors
        wants_x, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
        wanted, found = (wants_x, wants_weight, wants_bias), None
        if not torch.is_grad_enabled() and is_plain(grad := grad.contiguous()) and not is_watched():
            found = tail_backward(grad, x, weight, mask, bias_mask, passes, ctx.layout, wanted)
        if found is None:
            found = _tail_gradients(grad, x, weight, mask, bias, bias_mask, *ctx.options, wanted)
        grad_x, grad_weight, grad_bias = found
        return grad_x, grad_weight if wants_weight else None, None, grad_bias, *(None,) * 6


def _tail_gradients(grad, x, weight, mask, bias, bias_mask, geometry, relu, window, wanted) -> list[Tensor | None]:
    """By torch's own ReLU and pooling, differentiable again. Of views: x may come of the same weight, whose gradient
    from there is not this layer's to give."""
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        x, weight, bias = (None if t is None else t.view_as(t) for t in (x, weight, bias))
        y = _tail(_conv(x, weight, mask, None, kept_bias(bias, bias_mask), *geometry), relu, window)
        inputs = [t for t, w in zip((x, weight, bias), wanted, strict=True) if w]
        found = iter(torch.autograd.grad(y, inputs, grad, create_graph=is_differentiated))
    return [next(found) if w else None for w in wanted]


def _tail(y: Tensor, relu: bool, window: int) -> Tensor:
    y = torch.relu(y) if relu else y
    return F.max_pool2d(y, window) if window > 1 else y


def _conv(*inputs) -> Tensor:
    return (_Conv if is_transformed() else _EagerConv).apply(*inputs)


def _input(*inputs) -> Tensor:
    return (_Input if is_transformed() else _EagerInput).apply(*inputs)


def _outer(*inputs) -> Tensor:
    return (_Outer if is_transformed() else _EagerOuter).apply(*inputs)


Size = int | tuple[int, int]


def _pair(name: str, value: Size) -> tuple[int, int]:
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or any(isinstance(v, bool) or not isinstance(v, int) for v in pair):
        raise TypeError(f"{name}: expected an int or a pair of them, got {value!r}")
    return tuple(pair)


def _widened(t: Tensor | None) -> Tensor | None:
    return t.float() if t is not None and t.dtype in HALVES else t


def _masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    relu: bool = False,
    max_pool: int = 1,
) -> Tensor:
    return masked_layer(x, weight, mask, bias, None, stride, padding, dilation, relu, max_pool)


def masked_layer(x, weight, mask, bias, bias_mask, stride, padding, dilation, relu=False, max_pool=1) -> Tensor:
    """``masked_conv2d`` with a mask of the bias (bool, or None for all of it)."""
    geometry = _pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation)
    _check_tail(relu, max_pool)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        wide = map(_widened, (x, weight, mask, bias))
        with torch.autocast(device, enabled=False):  # torch's own convolution is not to round to half precision
            y = _differentiable(*wide, bias_mask, geometry, relu, max_pool)
        return y.to(torch.get_autocast_dtype(device))
    return _differentiable(x, weight, mask, bias, bias_mask, geometry, relu, max_pool)


def _check_tail(relu: bool, max_pool: int) -> None:
    if not isinstance(relu, bool):
        raise TypeError(f"relu: expected a bool, got {relu!r}")
    if isinstance(max_pool, bool) or not isinstance(max_pool, int):
        raise TypeError(f"max_pool: expected an int, got {max_pool!r}")
    if max_pool not in (1, 2):
        raise ValueError(f"max_pool: expected 1 or 2, got {max_pool}")


def _needs_grad(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    has_one = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    return has_one and torch.is_grad_enabled()


def _differentiable(x, weight, mask, bias, bias_mask, geometry, relu: bool, max_pool: int) -> Tensor:
    if (relu or max_pool > 1) and takes_tail(x, weight, mask, bias) and (bias_mask is None or is_plain(bias_mask)):
        layout = tail_layout(x.shape, weight.shape, x.element_size(), *geometry, max_pool)
        has_backward = _needs_grad(x, weight, bias)
        found = tail_forward(x, weight, mask, bias, bias_mask, layout, relu, has_backward)
        if found is not None:
            if not has_backward:
                return found[0]
            return _EagerTail.apply(x, weight, mask, bias, bias_mask, layout, geometry, relu, max_pool, found)
    bias = kept_bias(bias, bias_mask)
    check_conv(x, weight, mask, bias, *geometry, window=max_pool)
    return _tail(_convolved(x, weight, mask, bias, geometry), relu, max_pool)


def _convolved(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry) -> Tensor:
    pattern, grad_mask = mask, None
    if mask.dtype != torch.bool:
        weight = weight * mask  # autograd takes the product apart into the gradients of weight and of mask
        pattern = mask != 0
        # A mask that learns needs the gradient of pruned entries too: that is what revives them. Inside a transform a
        # tensor does not tell whether one outside of it needs the gradient.
        if mask.requires_grad or is_transformed():
            grad_mask = pattern.new_ones(()).expand(pattern.shape)
    if x.is_cuda and grad_mask is None and not is_transformed():
        return _masked_cuda.dense_conv(x, weight, pattern, bias, *geometry)
    if _needs_grad(x, weight, bias) or is_transformed() or has_tangents():
        return _conv(x, weight, pattern, grad_mask, bias, *geometry)
    return masked_conv(x, weight, pattern, bias, *geometry)


# Composite: torch.ops.pns_fast.masked_conv2d is differentiable, traceable and vmappable as the three products are.
library.impl("masked_conv2d", _masked_conv2d, "CompositeImplicitAutograd")


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    relu: bool = False,
    max_pool: int = 1,
) -> Tensor:
    """``F.conv2d(x, weight * mask, bias, stride, padding, dilation)`` in time proportional to the kept weights.

    A pruned weight is not read: an inf or NaN there does not spread. The gradient of ``weight`` is formed at kept
    positions and is 0 elsewhere. Where the kept weights are is found once for each mask and remembered; every call
    compares the mask with that, so it may change at any time and by any means.

    On the CPU a direct sparse convolution, batch innermost, runs where it is estimated to be faster, by the density,
    the batch and the sizes; elsewhere, and always on CUDA for now, torch convolves with the masked weight, at what the
    dense convolution costs. Both agree up to rounding (on CUDA what ``torch.backends.cudnn.allow_tf32`` leaves of it).
    The sparse path's results do not depend on the number of threads, torch's may. Under autocast it sums in float32
    and returns autocast's dtype.

    ``relu`` and ``max_pool`` are ``F.max_pool2d(torch.relu(y), max_pool)``. On the sparse path they take place while a
    result is still in the cache, and their gradient while it is read: at low densities they would take as long as the
    convolution.

    Args:
        x: float32 or float64 ``[B, I, H, W]``. CUDA: float16 and bfloat16 too.
        weight: ``[O, I, KH, KW]``; one group.
        mask: bool, or of the dtype of weight (then multiplied in, with a gradient at every entry), shape of weight.
        bias: ``[O]`` or None.
        stride, padding, dilation: of rows and columns, or one int for both. Padding is with zeros.
        relu: negative results become 0.
        max_pool: 2 for the largest of each square of 2 x 2 results, after the ReLU; 1 for all of them.

    Returns:
        ``[B, O, OH // max_pool, OW // max_pool]``, contiguous, differentiable twice in x, weight, bias and a float
        mask.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: a layer of the pruned network, section 1.2 of Fischer & Burkholz 2022; direct sparse convolution: Park et
    al., Faster CNNs with Direct Sparse Convolutions and Guided Pruning, ICLR 2017.

    Example:
        >>> x, mask = torch.arange(9.0).reshape(1, 1, 3, 3), torch.eye(2, dtype=torch.bool).reshape(1, 1, 2, 2)
        >>> masked_conv2d(x, torch.ones(1, 1, 2, 2), mask)
        tensor([[[[ 4.,  6.],
                  [10., 12.]]]])
    """
    for name, value in (("x", x), ("weight", weight), ("mask", mask)):
        if not isinstance(value, Tensor):
            check_tensor(name, value)
    return _masked_conv2d(x, weight, mask, bias, stride, padding, dilation, relu, max_pool)
