"""masked_linear of plain tensors on the CPU, past torch's dispatcher and the registered ops: at 100 x 100 those take
longer than the products. A microsecond counts here, and so an attribute that is looked up twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _native
from . import _memory
from ._library import has_tangents, is_transformed, plain_keys, pointer
from ._masked_product import BACKWARD, FORWARD

_FIRST_FORWARD = {
    torch.float32: _native.cpu.masked_linear_first_forward_f32,
    torch.float64: _native.cpu.masked_linear_first_forward_f64,
}
_dispatch_keys = torch._C._dispatch_keys
_TYPES, _KEYS = frozenset((Tensor, Parameter)), plain_keys("cpu")


def is_plain(t: Tensor) -> bool:
    """Whether this is a contiguous tensor on the CPU and nothing else: no subclass, no transform's, fake or lazy one.
    Its numbers lie where data_ptr() says, and the dispatcher has nothing to add."""
    return type(t) in _TYPES and _dispatch_keys(t).raw_repr() in _KEYS and t.is_contiguous()


def has_mode() -> bool:
    """Whether a mode sees the ops that run, or changes them."""
    return torch._C._is_torch_function_mode_enabled() or torch._C._len_torch_dispatch_stack() > 0


def is_watched() -> bool:
    """Whether anything but autograd is to see the ops that run, or changes them."""
    return (
        is_transformed()  # first: under torch.compile what follows cannot be traced
        or has_mode()
        or has_tangents()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
    )


def is_plain_batch(x: Tensor) -> bool:
    """Whether this is one network's, plain, of a dtype there is a native product for, and nobody watches."""
    return not is_watched() and is_plain(x) and x.dim() == 2 and x.dtype in FORWARD


def is_plain_layer(
    n_in: int, dtype: torch.dtype, weight: Tensor, mask: Tensor, bias: Tensor | None, bias_mask: Tensor | None
) -> bool:
    """Whether these are one network's, plain, and fit each other."""
    return (
        is_plain(weight)
        and is_plain(mask)
        and mask.dtype is torch.bool
        and (shape := weight.shape) == mask.shape
        and len(shape) == 2
        and shape[1] == n_in
        and weight.dtype is dtype
        and (bias is None or (is_plain(bias) and bias.shape == shape[:1] and bias.dtype is dtype))
        and (
            bias_mask is None
            or (is_plain(bias_mask) and bias_mask.shape == shape[:1] and bias_mask.dtype is torch.bool)
        )
    )


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, bias_mask: Tensor | None) -> Tensor:
    """``x (W m)^T + b``, of b what ``bias_mask`` keeps."""
    (batch, n_in), n_out, dtype = x.shape, weight.shape[0], x.dtype
    y = _memory.empty((batch, n_out), dtype)
    read = x.data_ptr(), weight.data_ptr(), mask.data_ptr(), pointer(bias), pointer(bias_mask)
    FORWARD[dtype](1, batch, n_in, n_out, *read, False, y.data_ptr(), torch.get_num_threads())
    return y


def first_product(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, bias_mask: Tensor | None
) -> tuple[Tensor, object]:
    """The same, and for ``gradients``, if the weights are many, the mask's pattern and the kept weights of now; else
    None."""
    (batch, n_in), n_out, dtype = x.shape, weight.shape[0], x.dtype
    y = _memory.empty((batch, n_out), dtype)
    read = x.data_ptr(), weight.data_ptr(), mask.data_ptr(), pointer(bias), pointer(bias_mask)
    return y, _FIRST_FORWARD[dtype](batch, n_in, n_out, *read, y.data_ptr(), torch.get_num_threads())


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias_mask: Tensor | None,
    wanted: tuple[bool, bool, bool],
    kept: object,
) -> tuple[Tensor | None, ...]:
    """Of x, weight and bias, None where not wanted. ``kept``: None, or what first_product gave for weight and mask."""
    (batch, n_in), n_out, dtype = x.shape, weight.shape[0], x.dtype
    wants_x, wants_weight, wants_bias = wanted
    grad_x = _memory.empty_like(x) if wants_x else None
    grad_weight = _memory.empty_like(weight) if wants_weight else None
    grad_bias = _memory.empty((n_out,), dtype) if wants_bias else None
    read = grad.data_ptr(), 0, x.data_ptr(), weight.data_ptr(), mask.data_ptr(), pointer(bias_mask)
    written = pointer(grad_x), pointer(grad_weight), pointer(grad_bias)
    BACKWARD[dtype](1, batch, n_in, n_out, *read, *written, torch.get_num_threads(), kept)
    return grad_x, grad_weight, grad_bias
