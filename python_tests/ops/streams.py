"""A stream that shows whether an op runs on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_a_busy_stream(values: Tensor, run: Callable[[Tensor], object]):
    """``run(late)`` on a side stream, where ``late`` becomes ``values`` after tens of milliseconds of other work.

    On another stream it would still see zeros.
    """
    late = torch.zeros_like(values)
    square = torch.randn(4096, 4096, device=values.device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            square = square @ square / 64
        late.copy_(values)
        results = run(late)
    stream.synchronize()
    return results
