"""The native products of masked_linear as torch ops: x (W m)^T + b or x (W m), m (grad^T x), and both gradients in one
call. Not differentiable themselves: see masked_linear.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from . import _masked_cuda, _memory
from ._library import FLOATS, HALVES, check_same_device, check_shape, check_tensor, library, pointer

library.define("masked_product(Tensor x, Tensor weight, Tensor mask, Tensor? bias, bool transposed) -> Tensor")
library.define("masked_outer(Tensor grad, Tensor x, Tensor mask) -> Tensor")
library.define(
    "masked_backward(Tensor grad, Tensor x, Tensor weight, Tensor mask, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)

masked_product = torch.ops.pns_fast.masked_product.default
masked_outer = torch.ops.pns_fast.masked_outer.default
masked_backward = torch.ops.pns_fast.masked_backward.default

_FORWARD = {torch.float32: _native.cpu.masked_linear_forward_f32, torch.float64: _native.cpu.masked_linear_forward_f64}
_BACKWARD = {
    torch.float32: _native.cpu.masked_linear_backward_f32,
    torch.float64: _native.cpu.masked_linear_backward_f64,
}


# ---- the native products


def dtypes_on(device: torch.device) -> tuple[torch.dtype, ...]:
    return (*FLOATS, *HALVES) if device.type == "cuda" else FLOATS


def _sizes(batched: Tensor, mask: Tensor) -> tuple[int, int, int, int]:
    """(networks, batch, inputs, outputs) of [N, B, .] or [B, .] and mask [N, O, I] or [O, I]."""
    shape = mask.shape
    return (shape[0] if len(shape) == 3 else 1), batched.shape[-2], shape[-1], shape[-2]


def fits(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool = False) -> bool:
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
        and (dtype in _FORWARD or dtype in dtypes_on(weight.device))
        and x.dtype == dtype
        and mask.dtype == torch.bool
        and (bias is None or (bias.shape == shape[:-1] and bias.dtype == dtype))
    )


def _check_product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> None:
    """The raw ops are callable too: nothing may reach the kernel with shapes that do not fit."""
    check_tensor("x", x, dtypes_on(x.device))
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
    check_tensor("x", x, dtypes_on(x.device), (2, 3))
    check_tensor("grad", grad, (x.dtype,), (x.dim(),))
    check_tensor("mask", mask, (torch.bool,), (x.dim(),))
    check_shape("grad", grad, (*mask.shape[:-2], x.shape[-2], mask.shape[-2]), "to go with x and mask")
    check_shape("x", x, (*mask.shape[:-2], x.shape[-2], mask.shape[-1]), "to go with mask")


def _run_backward(grad, x, weight, mask, grad_x=None, grad_weight=None, grad_bias=None) -> None:
    grad, mask = grad.contiguous(), mask.contiguous()
    x = None if x is None else x.contiguous()
    weight = None if weight is None else weight.contiguous()
    read = grad.data_ptr(), pointer(x), pointer(weight), mask.data_ptr()
    written = pointer(grad_x), pointer(grad_weight), pointer(grad_bias)
    _BACKWARD[grad.dtype](*_sizes(grad, mask), *read, *written, torch.get_num_threads())


def _product_shape(x: Tensor, weight: Tensor, transposed: bool) -> tuple[int, ...]:
    return (*x.shape[:-1], weight.shape[-1 if transposed else -2])


def check_product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> None:
    if (bias is not None and transposed) or not fits(x, weight, mask, bias, transposed):
        _check_product(x, weight, mask, bias, transposed)


def check_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor) -> None:
    is_like_x = x.shape[:-1] == grad.shape[:-1] and x.shape[-1] == weight.shape[-1] and x.dtype == grad.dtype
    if not (is_like_x and fits(grad, weight, mask, None, True)):
        _check_product(grad, weight, mask, None, True)
        _check_outer(grad, x, mask)


def _masked_product_cpu(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    check_product(x, weight, mask, bias, transposed)
    y = _memory.empty(_product_shape(x, weight, transposed), x.dtype)
    if transposed:
        _run_backward(x, None, weight, mask, grad_x=y)
        return y
    x, weight, mask = x.contiguous(), weight.contiguous(), mask.contiguous()
    bias = None if bias is None else bias.contiguous()
    read = x.data_ptr(), weight.data_ptr(), mask.data_ptr(), pointer(bias)
    _FORWARD[x.dtype](*_sizes(x, mask), *read, y.data_ptr(), torch.get_num_threads())
    return y


def _masked_outer_cpu(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    _check_outer(grad, x, mask)
    y = _memory.empty(mask.shape, x.dtype)
    _run_backward(grad, x, None, mask, grad_weight=y)
    return y


def _empty_gradients(x: Tensor, weight: Tensor, wanted: list[bool], empty) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; without elements where not wanted."""
    wants_x, wants_weight, wants_bias = wanted
    return (
        empty(x.shape if wants_x else (0,), dtype=x.dtype),
        empty(weight.shape if wants_weight else (0,), dtype=x.dtype),
        empty(weight.shape[:-1] if wants_bias else (0,), dtype=x.dtype),
    )


def _masked_backward_cpu(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    check_backward(grad, x, weight, mask)
    grad_x, grad_weight, grad_bias = results = _empty_gradients(x, weight, wanted, _memory.empty)
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


def _masked_product_cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    check_product(x, weight, mask, bias, transposed)
    check_same_device(x=x, weight=weight, mask=mask, bias=bias)
    return _masked_cuda.product(x, weight, mask, bias, transposed)


def _masked_outer_cuda(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    _check_outer(grad, x, mask)
    check_same_device(x=x, grad=grad, mask=mask)
    return _masked_cuda.outer(grad, x, mask)


def _masked_backward_cuda(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    check_backward(grad, x, weight, mask)
    check_same_device(x=x, grad=grad, weight=weight, mask=mask)
    return _masked_cuda.backward(grad, x, weight, mask, wanted)


for _name, _on_cpu, _on_cuda in (
    ("masked_product", _masked_product_cpu, _masked_product_cuda),
    ("masked_outer", _masked_outer_cpu, _masked_outer_cuda),
    ("masked_backward", _masked_backward_cpu, _masked_backward_cuda),
):
    library.impl(_name, _on_cpu, "CPU")
    library.impl(_name, _on_cuda, "CUDA")


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
    return _empty_gradients(x, weight, wanted, x.new_empty)


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
    return _split(masked_product(*merged, transposed), info.batch_size, x), 0


def _vmap_outer(info, in_dims, *tensors):
    networks = _as_networks(info.batch_size, in_dims, tensors)
    merged = masked_outer(*(_merged(t, 2) for t in networks))
    return _split(merged, info.batch_size, networks[0]), 0


def _vmap_backward(info, in_dims, grad, x, weight, mask, wanted):
    networks = _as_networks(info.batch_size, in_dims[:4], (grad, x, weight, mask))
    results = masked_backward(*(_merged(t, 2) for t in networks), wanted)
    split = (
        _split(r, info.batch_size, networks[0]) if wants else r.expand(info.batch_size, 0)
        for r, wants in zip(results, wanted, strict=True)
    )
    return tuple(split), (0, 0, 0)


torch.library.register_vmap("pns_fast::masked_product", _vmap_product, lib=library)
torch.library.register_vmap("pns_fast::masked_outer", _vmap_outer, lib=library)
torch.library.register_vmap("pns_fast::masked_backward", _vmap_backward, lib=library)
