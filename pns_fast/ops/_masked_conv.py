"""The products of masked_conv2d as torch ops: the convolution, the gradient of its input, the gradient of its weight,
and all gradients in one call. Not differentiable themselves: see masked_conv2d.py.

On the CPU kept weights alone are read where the kernel estimates that to be faster (csrc/kernels/masked_conv2d/
conv_cost.h); elsewhere, and on CUDA, torch convolves with the masked weight. Results are contiguous on every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from . import _memory
from ._library import check_same_device, check_same_dtype, check_shape, check_tensor, library, pointer
from ._masked_plain import is_plain, is_watched
from ._masked_product import dtypes_on

_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation"
library.define(f"masked_conv(Tensor x, Tensor weight, Tensor mask, Tensor? bias, {_GEOMETRY}) -> Tensor")
library.define(f"masked_conv_input(Tensor grad, Tensor weight, Tensor mask, SymInt[2] size, {_GEOMETRY}) -> Tensor")
library.define(f"masked_conv_outer(Tensor grad, Tensor x, Tensor mask, {_GEOMETRY}) -> Tensor")
library.define(
    f"masked_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor mask, {_GEOMETRY}, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor)"
)

masked_conv = torch.ops.pns_fast.masked_conv.default
masked_conv_input = torch.ops.pns_fast.masked_conv_input.default
masked_conv_outer = torch.ops.pns_fast.masked_conv_outer.default
masked_conv_backward = torch.ops.pns_fast.masked_conv_backward.default

_FORWARD = {torch.float32: _native.cpu.masked_conv2d_forward_f32, torch.float64: _native.cpu.masked_conv2d_forward_f64}
_BACKWARD = {
    torch.float32: _native.cpu.masked_conv2d_backward_f32,
    torch.float64: _native.cpu.masked_conv2d_backward_f64,
}

Pair = Sequence[int]
PATHS = ("estimate", "sparse", "dense")
path = "estimate"  # on the CPU; tests choose


# ---- checks


def out_size(size: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """Height and width of the result for ``size``, those of x."""
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]


def check_geometry(stride: Pair, padding: Pair, dilation: Pair) -> None:
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name}: expected an int or a pair of at least {least}, got {tuple(pair)}")


def check_sizes(x_shape: Sequence[int], weight_shape: Sequence[int], *geometry: Pair, window: int = 1) -> None:
    """Of two shapes of four dimensions."""
    check_geometry(*geometry)
    if min(weight_shape) < 1:
        raise ValueError(f"weight: expected sizes of at least 1, got shape {tuple(weight_shape)}")
    n_in = weight_shape[1]
    if x_shape[1] != n_in:
        raise ValueError(f"x: expected shape [B, {n_in}, H, W] (weight's inputs; one group), got {tuple(x_shape)}")
    size = out_size(x_shape[2:], weight_shape[2:], *geometry)
    if min(x_shape[2:]) < 1 or min(size) < 1:
        raise ValueError(f"x: expected an image as large as the kernel, got {tuple(x_shape)} for {tuple(weight_shape)}")
    if min(size) < window:
        raise ValueError(f"max_pool: expected at most the size of the result, {tuple(size)}, got {window}")


def check_conv(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Pair, window: int = 1) -> None:
    floats = dtypes_on(x.device)
    check_tensor("x", x, floats, (4,))
    check_tensor("weight", weight, floats, (4,))
    check_tensor("mask", mask, (torch.bool, *floats))
    check_sizes(x.shape, weight.shape, *geometry, window=window)
    check_shape("mask", mask, weight.shape, "that of weight")
    if bias is not None:
        check_tensor("bias", bias, floats)
        check_shape("bias", bias, weight.shape[:1], "weight's outputs")
    check_same_dtype(x=x, weight=weight, bias=bias, mask=None if mask.dtype == torch.bool else mask)
    check_same_device(x=x, weight=weight, mask=mask, bias=bias)


def _check_bool(mask: Tensor) -> None:
    check_tensor("mask", mask, (torch.bool,))


def _check_grad(grad: Tensor, n: int, weight: Tensor, size: Sequence[int], geometry: Sequence[Pair]) -> None:
    check_tensor("grad", grad, (weight.dtype,) if weight.dtype != torch.bool else (), (4,))
    expected = (n, weight.shape[0], *out_size(size, weight.shape[2:], *geometry))
    check_shape("grad", grad, expected, "that of the result")


def _check_input(grad: Tensor, weight: Tensor, mask: Tensor, size: Sequence[int], *geometry: Pair) -> None:
    check_tensor("grad", grad, dtypes_on(grad.device), (4,))
    check_tensor("weight", weight, (grad.dtype,), (4,))
    x = grad.new_empty(1).expand(grad.shape[0], weight.shape[1], *size)
    check_conv(x, weight, mask, None, *geometry)
    _check_bool(mask)
    _check_grad(grad, grad.shape[0], weight, size, geometry)


def _check_outer(grad: Tensor, x: Tensor, mask: Tensor, *geometry: Pair) -> None:
    check_tensor("x", x, dtypes_on(x.device), (4,))
    check_tensor("mask", mask, (torch.bool,), (4,))
    check_conv(x, x.new_empty(1).expand(mask.shape), mask, None, *geometry)
    check_same_dtype(x=x, grad=grad)
    check_same_device(x=x, grad=grad)
    _check_grad(grad, x.shape[0], mask, x.shape[2:], geometry)


# ---- torch's convolution with the masked weight


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    """``torch.where(mask, weight, 0)``, a NaN cut as well. By bits: of a random mask's half torch's choice takes seven
    times as long, since it cannot foresee it."""
    bits = _BITS[weight.element_size()]
    return (weight.contiguous().view(bits) & -mask.contiguous().to(bits)).view(weight.dtype)


def _is_full(mask: Tensor) -> bool:
    """Whether it is one True, expanded: what a mask that learns wants gradients for."""
    return mask.device.type == "cpu" and mask.numel() > 0 and not any(mask.stride()) and bool(mask[0, 0, 0, 0])


def _dense_conv(x, weight, mask, bias, stride, padding, dilation) -> Tensor:
    y = torch.nn.functional.conv2d(x.contiguous(), _masked(weight, mask), bias, stride, padding, dilation)
    return y.contiguous()


def _dense_backward(grad, x, weight, mask, stride, padding, dilation, wanted):
    """Of x, weight and bias; None where not wanted. ``x`` and ``weight`` may be tensors of the right shape only, where
    a gradient does not need them."""
    grad, x = grad.contiguous(), x if x.stride(-1) == 0 else x.contiguous()
    options = (mask.shape[:1], stride, padding, dilation, False, (0, 0), 1, wanted)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(grad, x, weight, *options)
    return (
        grad_x.contiguous() if wanted[0] else None,
        (grad_weight if _is_full(mask) else _masked(grad_weight, mask)) if wanted[1] else None,
        grad_bias if wanted[2] else None,
    )


def _shape_only(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_zeros(1).expand(shape)


# ---- the CPU's kernel


def _sizes(
    n: int, size: Sequence[int], weight_shape: Sequence[int], geometry: Sequence[Pair], window: int = 1
) -> list[int]:
    n_out, n_in, *kernel = weight_shape
    return [n, n_in, *size, n_out, *kernel, *(value for pair in geometry for value in pair), window]


def _sparse_forward(sizes, x, weight, mask, bias, y, bias_mask=None, has_relu=False, passes=None) -> bool:
    """False where torch's convolution is estimated to be faster."""
    tensors = [t if t is None else t.contiguous() for t in (x, weight, mask, bias, bias_mask)]
    pointers = [pointer(t) for t in (*tensors, y)]
    return _FORWARD[x.dtype](sizes, *pointers, has_relu, pointer(passes), torch.get_num_threads(), path == "sparse")


def _sparse_backward(sizes, grad, x, weight, mask, grad_x, grad_weight, grad_bias, bias_mask=None, passes=None) -> bool:
    """False where torch's convolution is estimated to be faster."""
    tensors = [t if t is None else t.contiguous() for t in (grad, x, weight, mask, bias_mask, passes)]
    pointers = [pointer(t) for t in (*tensors, grad_x, grad_weight, grad_bias)]
    return _BACKWARD[grad.dtype](sizes, *pointers, torch.get_num_threads(), path == "sparse")


def _masked_conv_cpu(x, weight, mask, bias, stride, padding, dilation) -> Tensor:
    geometry = stride, padding, dilation
    check_conv(x, weight, mask, bias, *geometry)
    _check_bool(mask)
    if path != "dense":
        y = _memory.empty(_out_shape(x, weight, geometry), x.dtype)
        if _sparse_forward(_sizes(len(x), x.shape[2:], weight.shape, geometry), x, weight, mask, bias, y):
            return y
    return _dense_conv(x, weight, mask, bias, *geometry)


def _masked_conv_input_cpu(grad, weight, mask, size, *geometry) -> Tensor:
    _check_input(grad, weight, mask, size, *geometry)
    if path != "dense":
        grad_x = _memory.empty((len(grad), weight.shape[1], *size), grad.dtype)
        sizes = _sizes(len(grad), size, weight.shape, geometry)
        if _sparse_backward(sizes, grad, None, weight, mask, grad_x, None, None):
            return grad_x
    return _dense_input(grad, weight, mask, size, *geometry)


def _dense_input(grad, weight, mask, size, *geometry) -> Tensor:
    x = _shape_only(grad, (len(grad), weight.shape[1], *size))
    return _dense_backward(grad, x, _masked(weight, mask), mask, *geometry, [True, False, False])[0]


def _masked_conv_outer_cpu(grad, x, mask, *geometry) -> Tensor:
    _check_outer(grad, x, mask, *geometry)
    is_dense = _is_full(mask) and mask.shape[1] >= 16  # torch's convolution fills up to 16 channels
    if path == "sparse" or (path == "estimate" and not is_dense):
        grad_weight = _memory.empty(mask.shape, x.dtype)
        sizes = _sizes(len(x), x.shape[2:], mask.shape, geometry)
        if _sparse_backward(sizes, grad, x, None, mask, None, grad_weight, None):
            return grad_weight
    return _dense_outer(grad, x, mask, *geometry)


def _dense_outer(grad, x, mask, *geometry) -> Tensor:
    return _dense_backward(grad, x, _shape_only(x, mask.shape), mask, *geometry, [False, True, False])[1]


def _masked_conv_backward_cpu(grad, x, weight, mask, stride, padding, dilation, wanted):
    geometry = stride, padding, dilation
    _check_backward(grad, x, weight, mask, *geometry)
    if path != "dense":
        results = _empty_gradients(x, weight, wanted, _memory.empty)
        sizes = _sizes(len(x), x.shape[2:], weight.shape, geometry)
        into = [result if wants else None for result, wants in zip(results, wanted, strict=True)]
        if not wanted[1]:  # the kernel forms the bias's beside the weight's
            into[2] = None
        if _sparse_backward(sizes, grad, x, weight, mask, *into):
            if wanted[2] and not wanted[1]:
                torch.sum(grad, (0, 2, 3), out=results[2])
            return results
    return _dense_gradients(grad, x, weight, mask, *geometry, wanted)


def _dense_gradients(grad, x, weight, mask, stride, padding, dilation, wanted):
    found = _dense_backward(grad, x, _masked(weight, mask), mask, stride, padding, dilation, wanted)
    return tuple(x.new_empty(0) if result is None else result for result in found)


# ---- a convolution and what follows it, ReLU and pooling, in one native call (masked_conv2d.h: tail)


class Layout(NamedTuple):
    """What a native call with a tail needs to know of its shapes."""

    sizes: list[int]
    y_shape: tuple[int, ...]
    passes_shape: tuple[int, ...]


@lru_cache(maxsize=4096)
def tail_layout(
    x_shape: torch.Size,
    weight_shape: torch.Size,
    item_size: int,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    window: int,
) -> Layout:
    """Checked as by ``check_sizes``."""
    geometry = stride, padding, dilation
    check_sizes(x_shape, weight_shape, *geometry, window=window)
    n, samples = x_shape[0], 64 // item_size  # of a tile
    height, width = out_size(x_shape[2:], weight_shape[2:], *geometry)
    of_sample = weight_shape[0], height // window, width // window
    sizes = _sizes(n, x_shape[2:], weight_shape, geometry, window)
    return Layout(sizes, (n, *of_sample), (-(-n // samples), *of_sample, window * window))


def takes_tail(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> bool:
    """Whether these, but for their sizes, can go to ``tail_forward``, and nothing but autograd is to see it."""
    return (
        path != "dense"
        and not is_watched()
        and is_plain(x)
        and is_plain(weight)
        and is_plain(mask)
        and mask.dtype is torch.bool
        and x.dtype in _FORWARD
        and weight.dtype is x.dtype
        and x.dim() == weight.dim() == 4
        and mask.shape == weight.shape
        and (bias is None or (is_plain(bias) and bias.dtype is x.dtype and bias.shape == weight.shape[:1]))
    )


def tail_forward(x, weight, mask, bias, bias_mask, layout: Layout, has_relu, has_backward):
    """The result, and which of its pixels pass a gradient, or None if there will be none. None alone where torch's
    convolution is estimated to be faster."""
    passes = _memory.empty(layout.passes_shape, torch.int16) if has_backward else None
    y = _memory.empty(layout.y_shape, x.dtype)
    is_done = _sparse_forward(layout.sizes, x, weight, mask, bias, y, bias_mask, has_relu, passes)
    return (y, passes) if is_done else None


def tail_backward(grad, x, weight, mask, bias_mask, passes, layout: Layout, wanted) -> list[Tensor | None] | None:
    """The gradients of x, weight and bias, None where not wanted; None alone if a tile is too large."""
    wants_x, wants_weight, wants_bias = wanted
    shape, dtype = weight.shape, x.dtype
    into = [
        _memory.empty(x.shape, dtype) if wants_x else None,
        _memory.empty(shape, dtype) if wants_weight or wants_bias else None,  # the kernel forms the bias's beside it
        torch.empty(shape[:1], dtype=dtype) if wants_bias else None,
    ]
    return into if _sparse_backward(layout.sizes, grad, x, weight, mask, *into, bias_mask, passes) else None


# ---- CUDA: torch's convolution


def _masked_conv_cuda(x, weight, mask, bias, *geometry) -> Tensor:
    check_conv(x, weight, mask, bias, *geometry)
    _check_bool(mask)
    return _dense_conv(x, weight, mask, bias, *geometry)


def _masked_conv_input_cuda(grad, weight, mask, size, *geometry) -> Tensor:
    _check_input(grad, weight, mask, size, *geometry)
    return _dense_input(grad, weight, mask, size, *geometry)


def _masked_conv_outer_cuda(grad, x, mask, *geometry) -> Tensor:
    _check_outer(grad, x, mask, *geometry)
    return _dense_outer(grad, x, mask, *geometry)


def _masked_conv_backward_cuda(grad, x, weight, mask, stride, padding, dilation, wanted):
    _check_backward(grad, x, weight, mask, stride, padding, dilation)
    return _dense_gradients(grad, x, weight, mask, stride, padding, dilation, wanted)


for _name, _on_cpu, _on_cuda in (
    ("masked_conv", _masked_conv_cpu, _masked_conv_cuda),
    ("masked_conv_input", _masked_conv_input_cpu, _masked_conv_input_cuda),
    ("masked_conv_outer", _masked_conv_outer_cpu, _masked_conv_outer_cuda),
    ("masked_conv_backward", _masked_conv_backward_cpu, _masked_conv_backward_cuda),
):
    library.impl(_name, _on_cpu, "CPU")
    library.impl(_name, _on_cuda, "CUDA")


# ---- shapes, for tracing


def _out_shape(x: Tensor, weight: Tensor, geometry: Sequence[Pair]) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[0], *out_size(x.shape[2:], weight.shape[2:], *geometry))


def _empty_gradients(x: Tensor, weight: Tensor, wanted: list[bool], empty) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; without elements where not wanted."""
    shapes = x.shape, weight.shape, weight.shape[:1]
    return tuple(empty(s if wants else (0,), dtype=x.dtype) for s, wants in zip(shapes, wanted, strict=True))


def _check_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, *geometry: Pair) -> None:
    check_conv(x, weight, mask, None, *geometry)
    _check_bool(mask)
    check_same_device(x=x, grad=grad)
    _check_grad(grad, x.shape[0], weight, x.shape[2:], geometry)


@torch.library.register_fake("pns_fast::masked_conv", lib=library)
def _(x, weight, mask, bias, *geometry):
    check_conv(x, weight, mask, bias, *geometry)
    _check_bool(mask)
    return x.new_empty(_out_shape(x, weight, geometry))


@torch.library.register_fake("pns_fast::masked_conv_input", lib=library)
def _(grad, weight, mask, size, *geometry):
    _check_input(grad, weight, mask, size, *geometry)
    return grad.new_empty((grad.shape[0], weight.shape[1], *size))


@torch.library.register_fake("pns_fast::masked_conv_outer", lib=library)
def _(grad, x, mask, *geometry):
    _check_outer(grad, x, mask, *geometry)
    return x.new_empty(mask.shape)


@torch.library.register_fake("pns_fast::masked_conv_backward", lib=library)
def _(grad, x, weight, mask, stride, padding, dilation, wanted):
    _check_backward(grad, x, weight, mask, stride, padding, dilation)
    return _empty_gradients(x, weight, wanted, x.new_empty)


# ---- vmap: one after another; a convolution is large enough to wait for


def _register_loop(name: str) -> None:
    op = getattr(torch.ops.pns_fast, name).default

    def rule(info, in_dims, *arguments):
        def at(i: int) -> list:
            return [
                a.select(dim, i) if isinstance(a, Tensor) and dim is not None else a
                for a, dim in zip(arguments, in_dims, strict=True)
            ]

        results = [op(*at(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    torch.library.register_vmap(f"pns_fast::{name}", rule, lib=library)


for _name in ("masked_conv", "masked_conv_input", "masked_conv_outer", "masked_conv_backward"):
    _register_loop(_name)
