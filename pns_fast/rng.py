"""Where every random number comes from: counter-based Philox keyed by (seed, network, stream).

A network's numbers depend on its own key only, so it is the same network alone or among a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# One stream a purpose: two purposes never share numbers. Append only: an index is part of every result.
_STREAMS = (
    *("init", "data", "random_pruner", "edge_popup_scores", "pruning_batch"),
    *("module_batches", "augmentation", "path_walks"),
)


def network_keys(seed: int | Sequence[int], n: int) -> list[tuple[int, int]]:
    """The (seed, network) pair of each of ``n`` networks.

    An int gives ``(seed, 0) ... (seed, n - 1)``. A sequence of ``n`` ints gives ``(seed[i], 0)``: that is how
    a sweep trains networks of many seeds in one call and gets the numbers each would get alone.
    """
    if isinstance(seed, np.ndarray):
        seed = seed.tolist()
    if _is_int(seed):
        seeds, networks = [seed] * n, list(range(n))
    elif isinstance(seed, Sequence) and not isinstance(seed, str) and all(map(_is_int, seed)):
        seeds, networks = list(seed), [0] * n
        if len(seeds) != n:
            raise ValueError(f"seed: a sequence needs one seed a network, got {len(seeds)} for {n} networks")
    else:
        raise TypeError(f"seed: expected an int or a sequence of ints, got {seed!r}")
    for s in seeds:
        if not 0 <= s < 2**63:
            raise ValueError(f"seed: expected 0 <= seed < 2**63, got {s}")
    return list(zip(map(int, seeds), networks, strict=True))


def _is_int(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def generator(key: tuple[int, int], stream: str) -> np.random.Generator:
    """A NumPy generator (Philox) for one network and one purpose."""
    if stream not in _STREAMS:
        raise ValueError(f"stream: expected one of {', '.join(_STREAMS)}, got {stream!r}")
    seed, network = key
    # Words of fixed width: SeedSequence would cut a large seed into two and so mistake it for (seed, network).
    words = [seed & 0xFFFFFFFF, network, _STREAMS.index(stream), seed >> 32]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
