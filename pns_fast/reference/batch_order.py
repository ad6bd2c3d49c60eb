"""Twin of the trainer's shuffle: a Feistel permutation of [0, n) with Philox round keys, csrc/core/philox.h."""

from __future__ import annotations

import numpy as np

N_ROUNDS = 8


def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words for one counter."""
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def batch_order(n: int, key: tuple[int, int], epoch: int) -> np.ndarray:
    """The order in which network ``key = (seed, network)`` visits ``n`` samples in ``epoch``: int64 [n]."""
    seed, network = key
    words = [w for j in (0, 1) for w in philox4x32((seed & 0xFFFFFFFF, seed >> 32), (j, network, epoch, 1))]
    half = 1
    while 4**half < n:
        half += 1
    low = np.uint32(2**half - 1)
    i = np.arange(n, dtype=np.uint32)
    walking = np.ones(n, dtype=bool)
    while walking.any():  # cycle walking: leave [0, n) and the permutation is applied again
        left, right = i[walking] >> np.uint32(half), i[walking] & low
        for r in range(N_ROUNDS):
            v = (right ^ np.uint32(words[r])) * np.uint32(0x9E3779B1)
            v ^= v >> np.uint32(15)
            v *= np.uint32(0x85EBCA77)
            v ^= v >> np.uint32(13)
            left, right = right, left ^ (v & low)
        i[walking] = (left << np.uint32(half)) | right
        walking = i >= n
    return i.astype(np.int64)
