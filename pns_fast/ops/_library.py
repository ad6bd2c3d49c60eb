"""The torch library all ops are defined in, and the checks they share.

``Library.define`` + ``impl`` costs 2.5 us a call where ``torch.library.custom_op`` costs 8 (ecosystem notes): these
ops run in other people's inner loops.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

library = torch.library.Library("pns_fast", "DEF")

FLOATS = (torch.float32, torch.float64)
INITS = ("uniform", "he_scaled")  # schemes of initial parameters, as init_population's
HALVES = (torch.float16, torch.bfloat16)


def check_tensor(name: str, value, dtypes: Sequence[torch.dtype] = (), ndim: Sequence[int] = ()) -> None:
    """TypeError for what is no tensor or has another dtype, ValueError for another number of dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {value.layout}")
    if dtypes and value.dtype not in dtypes:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: expected dtype {accepted}, got {str(value.dtype).removeprefix('torch.')}")
    if ndim and value.dim() not in ndim:
        accepted = " or ".join(str(d) for d in ndim)
        raise ValueError(f"{name}: expected {accepted} dimensions, got shape {tuple(value.shape)}")


def check_shape(name: str, value: Tensor, expected: Sequence[int], why: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)} ({why}), got {tuple(value.shape)}")


def check_positive(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return float(value)


def check_init(value) -> None:
    if value not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {value!r}")


def check_callback(name: str, value) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a callable or None, got {type(value).__name__}")


def check_same_device(**tensors: Tensor | None) -> None:
    first_name, first = None, None
    for name, t in tensors.items():
        if t is None:
            continue
        if first is None:
            first_name, first = name, t.device
        elif t.device != first:
            raise ValueError(f"{name}: expected device {first} (that of {first_name}), got {t.device}")


def check_same_dtype(**tensors: Tensor | None) -> None:
    present = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(present.items()))
    for name, t in present.items():
        if t.dtype != first.dtype:
            raise TypeError(f"{name}: expected dtype {first.dtype} (that of {first_name}), got {t.dtype}")


def suffix(dtype: torch.dtype) -> str:
    """The native functions' name ending for a dtype."""
    return {torch.float32: "f32", torch.float64: "f64"}[dtype]


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def is_transformed() -> bool:
    """Whether torch.compile traces or a torch.func transform is active: then an autograd.Function needs a separate
    setup_context. Outside of them forward takes the context, since for a setup_context torch binds the arguments by
    inspection, 8 us a call."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def plain_keys(device: str) -> frozenset[int]:
    """The dispatch keys of tensors on a device that are nothing else: ordinary ones, and those of inference mode."""
    with torch.inference_mode(False):
        ordinary = torch.empty(0, device=device)
    with torch.inference_mode():
        inference = torch.empty(0, device=device)
    return frozenset(torch._C._dispatch_keys(t).raw_repr() for t in (ordinary, inference))


def has_tangents() -> bool:
    """Whether forward-mode differentiation is active: an autograd.Function must be applied, to say that it has no jvp,
    where a native call would leave the tangents out."""
    return forward_ad._current_level >= 0
