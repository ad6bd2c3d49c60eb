"""Plain tensors on the CPU: past torch's dispatcher and the registered ops, which for small layers take longer than the
products. A microsecond counts here, and so an attribute that is looked up twice."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _native
from . import _memory
from ._library import has_tangents, is_transformed, plain_keys

_dispatch_keys = torch._C._dispatch_keys
_TYPES, _KEYS = frozenset((Tensor, Parameter)), plain_keys("cpu")

# Each is true while a mode sees the ops that run, or changes them.
_MODES = [torch._C._is_torch_function_mode_enabled, torch._C._len_torch_dispatch_stack]


def is_plain(t: Tensor) -> bool:
    """Whether this is a contiguous tensor on the CPU and nothing else: no subclass, no transform's, fake or lazy one.
    Its numbers lie where data_ptr() says, and the dispatcher has nothing to add."""
    return type(t) in _TYPES and _dispatch_keys(t).raw_repr() in _KEYS and t.is_contiguous()


def is_watched() -> bool:
    """Whether anything but autograd is to see the ops that run, or changes them."""
    return (
        is_transformed()  # first: under torch.compile what follows cannot be traced
        or any([asked() for asked in _MODES])
        or has_tangents()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
    )


def _connect() -> None:
    """Gives the native layers what they ask of torch. One before 2.10 cannot be asked: they say None to everything."""
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return
    watchers = torch._C._are_functorch_transforms_active, has_tangents, torch._C._get_tracing_state
    _native.cpu.connect_torch(
        {
            "api": Tensor.__dlpack_c_exchange_api__,
            "tensor": Tensor,
            "parameter": Parameter,
            "float32": torch.float32,
            "float64": torch.float64,
            "empty": torch.empty,
            "empty_large": _memory.empty,
            "smallest_large": _memory.SMALLEST,
            "is_grad_enabled": torch.is_grad_enabled,
            "get_num_threads": torch.get_num_threads,
            "modes": _MODES,
            "watchers": [*_MODES, *watchers, partial(torch.is_autocast_enabled, "cpu")],
        }
    )


_connect()
# (apply, x, layers, is_chain): see csrc/bindings/bind_plain_layers.cpp. Not while torch.compile traces.
plain_layers = _native.cpu.plain_layers


def forward(ctx, run, tensors, x, *trained) -> Tensor:
    """That of the autograd functions whose ``apply`` plain_layers is given."""
    y, saved = run.forward(x, tensors)
    ctx.save_for_backward(*saved)
    ctx.run = run
    return y
