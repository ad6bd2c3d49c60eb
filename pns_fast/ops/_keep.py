"""How many of n scores are kept: a count or a density, checked before an op is called with it."""

from __future__ import annotations

import math
import numbers


def check_keep(keep) -> int | float:
    """``keep`` as an int or a float: NumPy's integers are counts, its floating point numbers densities."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
            raise TypeError(f"keep: expected an int (count) or a float (density), got {type(keep).__name__}")
        keep = int(keep) if isinstance(keep, numbers.Integral) else float(keep)
    if isinstance(keep, int) and not -(2**63) <= keep < 2**63:  # what an op can be called with
        raise ValueError(f"keep: a count must lie in [0, n], got {keep}")
    return keep


def keep_count(keep: int | float, n: int) -> int:
    """How many of ``n`` entries to keep: an int is the count, a float in [0, 1] the density, ``ceil(density * n)``.

    Args:
        keep: count (int) or density (float).
        n: number of entries ranked.

    Raises:
        TypeError: ``keep`` is neither an int nor a float.
        ValueError: a count outside [0, n], a density outside [0, 1] or NaN.

    Example:
        >>> keep_count(0.1, 20_904), keep_count(5, 10)
        (2091, 5)
    """
    keep = check_keep(keep)
    if isinstance(keep, int):
        if not 0 <= keep <= n:
            raise ValueError(f"keep: a count must lie in [0, {n}], got {keep}")
        return keep
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep: a density must lie in [0, 1], got {keep}")
    return min(n, max(0, math.ceil(keep * n - 1e-9)))  # 1e-9: 0.1 * 30 is 3.0000000000000004


def check_rank(k) -> int:
    """``k`` of the k-th largest; how many there are is looked at where the scores are."""
    if isinstance(k, bool) or not isinstance(k, (int, numbers.Integral)):  # int first: an abstract class costs more
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if not -(2**63) <= k < 2**63:
        raise ValueError(f"k: expected 1 <= k <= n (the last dimension of scores), got {k}")
    return k if isinstance(k, int) else int(k)
