"""Memory for large results, taken again when they are freed.

Torch asks the system for every large tensor anew, and the system zeroes it page by page as it is first written: at
4,096 x 4,096 that is 64 MB and 6 to 12 ms a gradient, as much as the whole product at density 0.01. A training loop
frees last step's gradients and asks for as much again, so what was freed is kept here, up to ``MOST_KEPT`` bytes.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes; below, the C library keeps freed memory itself
MOST_KEPT = 1 << 28
_ALIGNMENT = 1 << 21  # a huge page

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.bool: np.bool_, torch.int16: np.int16}
_freed: defaultdict[int, list[np.ndarray]] = defaultdict(list)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty`` on the CPU; a large one may lie where one of the same size was freed."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < SMALLEST:
        return torch.empty(*shape, dtype=dtype)  # sizes one by one: torch takes them out of a tuple in 2 us
    waiting = _freed[n_bytes]
    memory = waiting.pop() if waiting else _aligned(n_bytes)
    array = memory.view(_NUMPY[dtype]).reshape(shape)
    # The tensor holds `array`, `array` holds `memory`: when the tensor's storage goes, memory comes back.
    weakref.finalize(array, _take_back, memory).atexit = False
    return torch.from_numpy(array)


def _aligned(n_bytes: int) -> np.ndarray:
    whole = np.empty(n_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -whole.__array_interface__["data"][0] % _ALIGNMENT
    return whole[start : start + n_bytes]


def _take_back(memory: np.ndarray) -> None:
    if kept_bytes() + memory.nbytes <= MOST_KEPT:
        _freed[memory.nbytes].append(memory)


def kept_bytes() -> int:
    """Bytes that wait for a result of their size."""
    return sum(size * len(arrays) for size, arrays in list(_freed.items()))


def release() -> None:
    """Gives all of it back to the system."""
    _freed.clear()
