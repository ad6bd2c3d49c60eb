"""What this machine can do at most: bandwidth of a read and of a copy, and fused multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from harness import seconds_cuda

# Larger than the caches of most machines; a rate above 100% means that a case's data lay in a larger cache.
BYTES, BYTES_QUICK = 1 << 30, 1 << 28
REPEATS = 5
MATMUL = 8192


@dataclass(frozen=True)
class Ceilings:
    """None: not measured."""

    read: float | None  # GB/s
    copy: float | None  # GB/s, bytes read plus bytes written
    fma: float | None  # GFLOP/s, float32, an FMA counts two
    n_bytes: int  # size of the array read and copied
    how: str  # by what each was measured

    def of(self, name: str) -> float | None:
        return {"read": self.read, "copy": self.copy, "fma": self.fma}[name]

    def raised_to(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements: whatever else ran meanwhile can only have lowered one."""
        pairs = ((self.read, other.read), (self.copy, other.copy), (self.fma, other.fma))
        return Ceilings(*(None if None in pair else max(pair) for pair in pairs), self.n_bytes, self.how)

    def as_dict(self) -> dict:
        return asdict(self)


def measure_ceilings(device: str, n_threads: int, quick: bool) -> Ceilings:
    """The best of a few tries each: a ceiling is what can be had, not what is usual."""
    if device == "cuda":
        return _cuda(BYTES)
    return _cpu(BYTES_QUICK if quick else BYTES, n_threads, 0.1 if quick else 0.3)


def _cpu(n_bytes: int, n_threads: int, seconds: float) -> Ceilings:
    from pns_fast import _cpu as native

    source = torch.ones(n_bytes, dtype=torch.uint8)
    target = torch.zeros(n_bytes, dtype=torch.uint8)
    calls = {
        "read_bandwidth": (source.data_ptr(), n_bytes, n_threads),
        "copy_bandwidth": (target.data_ptr(), source.data_ptr(), n_bytes, n_threads),
        "fma_peak": (seconds, n_threads),
    }
    read, copy, fma = (_best(getattr(native, name, None), *arguments) for name, arguments in calls.items())
    return Ceilings(read, copy, fma, n_bytes, "loops of the same threads")


def _best(call: Callable[..., float] | None, *arguments) -> float | None:
    return None if call is None else max(call(*arguments) for _ in range(REPEATS))


def _cuda(n_bytes: int) -> Ceilings:
    """The best that torch gets out of the device, which is less than its data sheet says."""
    source = torch.ones(n_bytes // 4, device="cuda")
    target = torch.empty_like(source)
    square = torch.rand(MATMUL, MATMUL, device="cuda")  # ones would cost less power, and so run faster
    product = torch.empty_like(square)

    def best(run: Callable[[], object], loops: int = 10) -> float:
        run()
        return min(seconds_cuda(run, loops) for _ in range(REPEATS))

    read = n_bytes / min(best(source.amax), best(source.sum)) / 1e9
    copy = 2 * n_bytes / best(lambda: target.copy_(source)) / 1e9
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32: the kernels sum in float32
    fma = 2 * MATMUL**3 / best(lambda: torch.mm(square, square, out=product), 3) / 1e9
    torch.set_float32_matmul_precision(precision)
    how = f"torch amax or sum, copy_, float32 matmul of {MATMUL:,} x {MATMUL:,} without TF32"
    return Ceilings(read, copy, fma, n_bytes, how)
