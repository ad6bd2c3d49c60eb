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


def draw_candidates(seed: int, index: np.ndarray, n_parameters: int) -> np.ndarray:
    """The parameters of candidates ``index`` (int64 [n]): float64 [n, k], uniform on [-1, 1]."""
    index = np.asarray(index, dtype=np.uint64)
    quad = index // np.uint64(64) * np.uint64(16) + index % np.uint64(16)
    which = (index % np.uint64(64) // np.uint64(16)).astype(np.int64)
    m = np.empty((len(index), n_parameters))
    for i in range(n_parameters):
        constant = [np.full_like(quad, i), np.full_like(quad, CANDIDATE_STREAM)]
        words = np.stack(_philox(seed, [quad & _LOW, quad >> np.uint64(32), *constant]))
        word = words[which, np.arange(len(index))].astype(np.uint32).view(np.int32)
        m[:, i] = (word >> 7) | 1
    return m * 2.0**-24


def existence_search(
    theta: Tensor,
    n_candidates: int,
    seed: int,
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
        m = draw_candidates(seed, which, k)
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
    candidate = draw_candidates(seed, np.maximum(index, 0), k)
    candidate[index < 0] = np.nan
    return ExistenceMatch(*(torch.from_numpy(a) for a in (index, scale, distance, candidate, n_matches)))
