"""Stored cells summed up as the paper's panels: a curve a pruner, a point a density, spread over seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .grid import Cell

if TYPE_CHECKING:
    from ..tasks import Ticket

# What a panel, a curve and a point on it stand for. All other parameters must agree within a panel.
_PANEL = ("task", "depth", "width", "noise")
_ALONG = ("density_label", "density", "seed")
_ORDER = ("circle", "relu", "helix", "random", "magnitude", "snip", "grasp", "synflow")
_ORDER += ("force", "phew", "edge-popup", "edge-popup-anneal")


@dataclass(frozen=True)
class Spread:
    """Mean and range of a metric over the seeds; NaN where no network has a finite value."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            return cls(math.nan, math.nan, math.nan)
        return cls(math.fsum(finite) / len(finite), min(finite), max(finite))


_UNKNOWN = Spread(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Point:
    """The networks of one pruner and density."""

    label: str
    density: float
    n: int
    n_collapsed: int
    strong: Spread
    weak: Spread
    strong_gap: Spread = _UNKNOWN  # how much worse than the ticket
    weak_gap: Spread = _UNKNOWN
    effective_density: Spread = _UNKNOWN
    precision: Spread = _UNKNOWN  # of the planted parameters among the kept ones
    recall: Spread = _UNKNOWN
    f1: Spread = _UNKNOWN
    layer_density: tuple[Spread, ...] = ()  # of the weights, by layer
    layer_recall: tuple[Spread, ...] = ()
    n_empty: tuple[int, ...] = ()  # by layer: networks that keep none of its weights

    @property
    def mostly_collapsed(self) -> bool:
        return self.n_collapsed > self.n / 2


@dataclass(frozen=True)
class Planted:
    """The ticket's share of the mother network."""

    density: float  # of weights and biases: the precision to expect of a random mask
    layer_density: tuple[float, ...]  # of the weights, by layer


@dataclass(frozen=True)
class Panel:
    """One task and architecture: the points of each pruner by density, and the planted ticket."""

    task: str
    depth: int
    width: int
    noise: float
    is_accuracy: bool  # else a mean squared error, rescaled
    n_seeds: int
    ticket_density: float
    ticket: Spread
    curves: dict[str, list[Point]]
    planted: Planted = Planted(math.nan, ())

    @property
    def densities(self) -> dict[str, float]:
        """Label -> density of all points, ascending."""
        found = {p.label: p.density for points in self.curves.values() for p in points}
        return dict(sorted(found.items(), key=lambda item: item[1]))


def panels(records: Sequence[dict], by: str | None = None) -> list[Panel]:
    """Sum up stored cells.

    Args:
        records: out of :func:`pns_fast.sweeps.read`; failed cells are left out.
        by: a setting, such as "rounds", that tells curves of one pruner apart.

    Returns:
        A panel for each task, depth, width and noise, in the paper's order.

    Raises:
        ValueError: no finished cell, an unknown ``by``, or cells of one curve that differ in a setting that
            nothing shows (a mode, a number of epochs ...): their mean would mean nothing.
    """
    settings = [f.name for f in fields(Cell) if f.name not in (*_PANEL, "pruner", *_ALONG)]
    if by is not None and by not in settings:
        raise ValueError(f"by: expected one of {', '.join(settings)}, got {by!r}")
    records = [r for r in records if r["status"] == "ok"]
    if not records:
        raise ValueError("records: expected finished cells, got none")
    _refuse_mixtures(records, [name for name in settings if name != by], by)
    groups = _grouped(records, *_PANEL)
    keys = sorted(groups, key=lambda key: (rank(key[0]), *key))
    return [_panel(key, groups[key], by) for key in keys]


def diverged(record: dict) -> bool:
    """Whether a finished cell ended with a loss or metric that is not finite."""
    names = ("strong_metric", "weak_metric", "strong_loss", "weak_loss")
    return record["status"] == "ok" and not all(math.isfinite(record[name]) for name in names)


def _panel(key: tuple, records: list[dict], by: str | None) -> Panel:
    from .. import tasks

    name, depth, width, noise = key
    task = tasks.get(name, noise=noise)
    is_accuracy = task.metric_name == "accuracy"
    by_seed = {r["seed"]: r["ticket_metric"] for r in records}  # the ticket's test split depends on the seed only
    curves = {}
    found = _grouped(records, "pruner", *_by(by))
    for curve in sorted(found, key=_curve_rank):
        group = found[curve]
        points = [_point(r) for r in _grouped(group, "density_label").values()]
        curves[_curve_name(curve, by)] = sorted(points, key=lambda p: p.density)
    ticket = Spread.of(by_seed.values())
    planted = _planted(task.ticket(depth), task.widths(depth, width))
    return Panel(*key, is_accuracy, len(by_seed), records[0]["ticket_density"], ticket, curves, planted)


def _planted(ticket: Ticket, widths: Sequence[int]) -> Planted:
    weights = [int(w.count_nonzero()) for w in ticket.weights]
    n_weights = [n_in * n_out for n_in, n_out in itertools.pairwise(widths)]
    n_biases = sum(int(b.count_nonzero()) for b in ticket.biases)
    density = (sum(weights) + n_biases) / (sum(n_weights) + sum(widths[1:]))
    return Planted(density, tuple(kept / n for kept, n in zip(weights, n_weights, strict=True)))


def _point(records: list[dict]) -> Point:
    names = ("strong_gap", "weak_gap", "effective_density", "precision", "recall", "f1")
    by_layer = {name: list(zip(*(r[name] for r in records), strict=True)) for name in ("layer_density", "layer_recall")}
    return Point(
        records[0]["density_label"],
        records[0]["density"],
        len(records),
        sum(int(r["collapsed"]) for r in records),
        Spread.of(r["strong_metric"] for r in records),
        Spread.of(r["weak_metric"] for r in records),
        **{name: Spread.of(r[name] for r in records) for name in names},
        **{name: tuple(Spread.of(layer) for layer in layers) for name, layers in by_layer.items()},
        n_empty=tuple(layer.count(0) for layer in by_layer["layer_density"]),
    )


def _by(by: str | None) -> tuple[str, ...]:
    return () if by is None else (by,)


def _curve_name(curve: tuple, by: str | None) -> str:
    """The pruner, and after a comma what tells its curves apart."""
    if by is None or curve[1] is None:
        return curve[0]
    value = curve[1]
    shown = {"rounds": f"{value} round{'' if value == 1 else 's'}", "scope": f"density by {value}"}
    return f"{curve[0]}, {shown.get(by, f'{by} {value}')}"


def _curve_rank(curve: tuple) -> tuple:
    return rank(curve[0]), curve[0], *((value is not None, value or 0) for value in curve[1:])


def _refuse_mixtures(records: list[dict], settings: list[str], by: str | None) -> None:
    """One mode a curve, and one value of every other setting a panel and mode (modes know different ones)."""
    curves = [(group, ["mode"]) for group in _grouped(records, *_PANEL, "pruner", *_by(by)).values()]
    modes = [(group, settings) for group in _grouped(records, *_PANEL, "mode", *_by(by)).values()]
    for group, names in curves + modes:
        for name in names:
            values = list(dict.fromkeys(r.get(name) for r in group))
            if len(values) > 1:
                shown = ", ".join(str(v) for v in values)
                raise ValueError(
                    f"the store holds results of several values of {name} ({shown}): choose one, "
                    f"for example with --where {name}={values[0]}"
                )


def _grouped(records: Iterable[dict], *names: str) -> dict[tuple, list[dict]]:
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        groups.setdefault(tuple(r.get(name) for name in names), []).append(r)
    return groups


def rank(name: str) -> int:
    """The place of a task or pruner in the paper's order; others come last."""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
