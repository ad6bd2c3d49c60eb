"""Dividing a sweep, among the workers of one run or among runs that know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from .grid import Cell

# Cells that agree in these have the same mother network and data. The seed comes last: sorted, what differs in nothing
# else, and so costs the same, is side by side.
_OTHERS = ("pruner", "density_label", "density", "seed")
_MOTHER = (*(f.name for f in fields(Cell) if f.name not in _OTHERS), "seed")


def parts(cells: Iterable[Cell], size: int) -> Iterator[list[Cell]]:
    """Cells of one mother group in parts of at most ``size``, or of one seed, whose cells share too much to be parted.

    Example:
        >>> from pns_fast.sweeps import expand
        >>> cells = expand("singleshot", ["relu"], ["snip", "random"], [0.1, 0.5], seeds=range(5))
        >>> [[c.seed for c in part] for part in parts(cells[:10] + cells[10:], size=8)][-1]
        [4, 4, 4, 4]
    """
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    part: list[Cell] = []
    for of_seed in by_seed.values():
        if part and len(part) + len(of_seed) > size:
            yield part
            part = []
        part = part + of_seed
    if part:
        yield part


def shard(cells: Sequence[Cell], k: int, n: int) -> list[Cell]:
    """Part ``k`` of ``n`` of a sweep: disjoint, all of it together, and equal to within one mother network.

    Which part a cell is in depends on the set of cells only, not on their order. Cells of one mother network stay
    together, so that each is planted once; more parts than mothers leave some empty.

    Args:
        cells: of the whole sweep.
        k: 1 to n.
        n: how many parts.

    Returns:
        Its cells, in the order of ``cells``.

    Raises:
        ValueError: ``k`` or ``n`` is out of range.

    Example:
        >>> from pns_fast.sweeps import expand
        >>> cells = expand("singleshot", ["relu"], ["snip", "random"], [0.1, 0.5], seeds=range(5))
        >>> [sorted({c.seed for c in shard(cells, k, 2)}) for k in (1, 2)]
        [[0, 2, 4], [1, 3]]
    """
    for name, value in (("k", k), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if k > n:
        raise ValueError(f"k: expected 1 to {n}, got {k}")
    mothers = sorted({_mother(c) for c in cells})
    own = set(mothers[k - 1 :: n])
    return [c for c in cells if _mother(c) in own]


def _mother(cell: Cell) -> tuple:
    """What the cell's mother depends on; None, of a setting that the mode does not know, comes first."""
    values = (getattr(cell, name) for name in _MOTHER)
    return tuple((value is not None, "" if value is None else value) for value in values)
