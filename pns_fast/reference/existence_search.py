"""Twin of ops.existence_search: every candidate drawn and its residual computed, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CANDIDATE_STREAM = 2  # counter word 3
_LOW = np.uint64(0xFFFFFFFF)
_BLOCK = 1 << 16  # candidates at a time


class ExistenceMatch(NamedTuple):
    """The best of the candidates for each target, and how many lie within eps."""

    index: Tensor  # int64 [T], -1 where no candidate has a positive scale
    scale: Tensor  # float64 [T], > 0 (1 where index is -1)
    distance: Tensor  # float64 [T] (nan where index is -1)
    candidate: Tensor  # float64 [T, k] (nan where index is -1)
    n_matches: Tensor  # int64 [T]


def _philox(seed: int, counter: list[np.ndarray]) -> list[np.ndarray]:
    """Philox4x32-10 over arrays of counters, csrc/core/philox.h: four arrays of 32-bit words in uint64."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c = counter
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k0), p1 & _LOW, (p0 >> shift) ^ c[3] ^ np.uint64(k1), p0 & _LOW]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


# sqrt(2) erfinv after Giles 2010, the logarithm after Cephes: csrc/kernels/existence_search/normal.h
_LOGARITHM = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_CENTRE = (
    2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3, -4.17768164e-3,
    2.46640727e-1, 1.50140941,
)  # fmt: skip
_TAIL = (
    -2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3, 9.43887047e-3,
    1.00167406, 2.83297682,
)  # fmt: skip


def _horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    p = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + np.float32(c)
    return p


def _logarithm(y: np.ndarray) -> np.ndarray:
    bits = y.view(np.int32)
    exponent = ((bits >> 23) - 126).astype(np.float32)
    m = ((bits & 0x7FFFFF) | 0x3F000000).view(np.float32)
    is_low = m < np.float32(0.70710678)
    exponent = np.where(is_low, exponent - np.float32(1), exponent)
    m = np.where(is_low, m + m, m) - np.float32(1)
    square = m * m
    p = _horner(m, _LOGARITHM) * m * square
    p = p + exponent * np.float32(-2.12194440e-4)
    p = p - np.float32(0.5) * square
    return m + p + exponent * np.float32(0.693359375)


def _to_normal(x: np.ndarray) -> np.ndarray:
    """float32 in (-1, 1) to normal numbers, the kernel's bits."""
    size = np.abs(x)
    w = -_logarithm((np.float32(1) - size) * (np.float32(1) + size))
    centre = _horner(w - np.float32(2.5), _CENTRE)
    tail = _horner(np.sqrt(w) - np.float32(3), _TAIL)
    return np.where(w > np.float32(5), tail, centre) * (x * np.float32(1.41421356))


def draw_candidates(seed: int, index: np.ndarray, n_parameters: int, init: str = "uniform") -> np.ndarray:
    """The parameters of candidates ``index`` (int64 [n]): float64 [n, k], on [-1, 1] or of variance 1."""
    index = np.asarray(index, dtype=np.uint64)
    quad = index // np.uint64(64) * np.uint64(16) + index % np.uint64(16)
    which = (index % np.uint64(64) // np.uint64(16)).astype(np.int64)
    m = np.empty((len(index), n_parameters))
    for i in range(n_parameters):
        constant = [np.full_like(quad, i), np.full_like(quad, CANDIDATE_STREAM)]
        words = np.stack(_philox(seed, [quad & _LOW, quad >> np.uint64(32), *constant]))
        word = words[which, np.arange(len(index))].astype(np.uint32).view(np.int32)
        m[:, i] = (word >> 7) | 1
    m *= 2.0**-24
    return m if init == "uniform" else _to_normal(m.astype(np.float32)).astype(np.float64)


def existence_search(
    theta: Tensor,
    n_candidates: int,
    seed: int,
    init: str = "uniform",
    eps: float | None = None,
    first: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> ExistenceMatch:
    """See :func:`pns_fast.ops.existence_search`."""
    targets, k = theta.double().numpy(), theta.shape[1]
    index, n_matches = np.full(len(targets), -1), np.zeros(len(targets), dtype=np.int64)
    scale, distance = np.ones(len(targets)), np.full(len(targets), np.nan)
    for start in range(first, first + n_candidates, _BLOCK):
        which = np.arange(start, min(start + _BLOCK, first + n_candidates))
        m = draw_candidates(seed, which, k, init)
        for t, target in enumerate(targets):
            # one term after the other, so that the sums are the kernel's to the last bit
            dot, norm = (sum(a[:, i] * b for i, b in enumerate(columns)) for a, columns in ((m, target), (m, m.T)))
            lam = dot / norm
            q = np.sqrt(sum((target[i] - lam * m[:, i]) ** 2 for i in range(k))) if k > 1 else np.zeros(len(m))
            q[dot <= 0] = np.inf
            if eps is not None:
                n_matches[t] += int((q <= eps).sum())
            best = int(q.argmin())
            if q[best] < (distance[t] if index[t] >= 0 else np.inf):
                index[t], scale[t], distance[t] = which[best], lam[best], q[best]
        if progress is not None:
            progress(int(which[-1]) + 1 - first, n_candidates)
    candidate = draw_candidates(seed, np.maximum(index, 0), k, init)
    candidate[index < 0] = np.nan
    return ExistenceMatch(*(torch.from_numpy(a) for a in (index, scale, distance, candidate, n_matches)))
