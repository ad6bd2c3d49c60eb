"""Where every random number comes from: counter-based Philox keyed by (seed, network, stream).

A network's numbers depend on its own key only, so it is the same network alone or among a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# One stream a purpose: two purposes never share numbers. Append only: an index is part of every result.
_STREAMS = ("init", "data", "random_pruner", "edge_popup_scores", "pruning_batch")


def network_keys(seed: int | Sequence[int], n: int) -> list[tuple[int, int]]:
    """The (seed, network) pair of each of ``n`` networks.

    An int gives ``(seed, 0) ... (seed, n - 1)``. A sequence of ``n`` ints gives ``(seed[i], 0)``: that is how
    a sweep trains networks of many seeds in one call and gets the numbers each would get alone.
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds, networks = [int(seed)] * n, list(range(n))
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds, networks = [int(s) for s in seed], [0] * n
        if len(seeds) != n:
            raise ValueError(f"seed: a sequence needs one seed a network, got {len(seeds)} for {n} networks")
    else:
        raise TypeError(f"seed: expected an int or a sequence of ints, got {type(seed).__name__}")
    for s in seeds:
        if not 0 <= s < 2**63:
            raise ValueError(f"seed: expected 0 <= seed < 2**63, got {s}")
    return list(zip(seeds, networks, strict=True))


def generator(key: tuple[int, int], stream: str) -> np.random.Generator:
    """A NumPy generator (Philox) for one network and one purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, _STREAMS.index(stream)])))
