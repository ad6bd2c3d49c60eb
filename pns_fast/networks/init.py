"""Random mother networks with non-zero biases."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
import torch

from .. import rng
from .population import Population
from .stack import check_widths

SCHEMES = ("he_scaled", "uniform")
_BYTES_A_PARAMETER = 20  # float64 twice and float32 at once, where networks are stacked


def init_population(
    widths: Sequence[int], n: int = 1, seed: int | Sequence[int] = 0, scheme: str = "he_scaled"
) -> Population:
    """``n`` random networks; network i depends on ``(seed, i)`` only.

    ``he_scaled``: ``w^l ~ N(0, 2/n_{l-1})``, ``b^l ~ N(0, prod_{k<=l} 2/n_{k-1})`` (variances).
    ``uniform``: ``w^l ~ U[-s_l, s_l]``, ``b^l ~ U[-prod_{k<=l} s_k, prod_{k<=l} s_k]`` with
    ``s_l = sqrt(6/n_{l-1})``, which gives the weights the variance of he_scaled.

    Args:
        widths: ``(n_0, ..., n_L)``.
        n: number of networks.
        seed: an int, or one int a network (network i is then the first network of ``seed[i]``).
        scheme: "he_scaled" or "uniform".

    Returns:
        A float32 Population on the CPU.

    Raises:
        TypeError: widths, n or seed are no ints.
        ValueError: an unknown scheme, widths or n too small, or not one seed a network.
        MemoryError: networks that this machine has no memory for.

    Source: Fischer & Burkholz 2022, Theorem 2 (uniform); He et al. 2015, biases of Fischer et al. 2021.

    >>> init_population((2, 100, 4), n=5, seed=1)
    Population(n=5, widths=(2, 100, 4), torch.float32, cpu)
    """
    widths = check_widths(widths)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n: expected an int, got {n!r}")
    if n < 1:
        raise ValueError(f"n: expected at least 1 network, got {n}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    _check_memory(widths, n)
    networks = [_draw(rng.generator(key, "init"), widths, scheme) for key in rng.network_keys(seed, n)]
    flat = torch.from_numpy(np.stack(networks).astype(np.float32))
    return Population.from_flat(flat, widths)


def _check_memory(widths: tuple[int, ...], n: int) -> None:
    """An error before the first byte, where the system would promise the memory and end the process later."""
    n_parameters = sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))
    needed = _BYTES_A_PARAMETER * n_parameters * n
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise MemoryError(
            f"widths, n: {n} network{'s' * (n > 1)} of {n_parameters:.4g} parameters need {needed / 2**30:.4g} GiB of "
            f"memory to draw, this machine has {there / 2**30:.4g}"
        )


def _draw(generator: np.random.Generator, widths: tuple[int, ...], scheme: str) -> np.ndarray:
    """One network in the flat layout, float64 [P]."""
    parts, bias_scale = [], 1.0
    for n_in, n_out in itertools.pairwise(widths):
        scale = math.sqrt((2 if scheme == "he_scaled" else 6) / n_in)
        bias_scale *= scale
        for size, s in ((n_out * n_in, scale), (n_out, bias_scale)):
            if scheme == "he_scaled":
                parts.append(generator.standard_normal(size) * s)
            else:
                parts.append(generator.uniform(-s, s, size))
    return np.concatenate(parts)
