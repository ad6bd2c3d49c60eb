"""The picture of a run: each case's ratio to its strongest peer, and the trainer's cost curves."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from harness import Row
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator
from report import ratio_text

WON, LOST, GREY = "#1f77b4", "#d62728", "0.45"
STYLES = ("-", "--", ":", "-.")
PEERS = ("#e6862a", "#8c6bb1", "#41a05a", "#c2527b", "#8a7a5c", "0.5")
ROW_INCHES, CURVE_ROWS, TITLE_ROWS = 0.22, 13, 4


def draw(rows: list[Row], path: Path, subtitle: str) -> None:
    """A panel a kernel and one a cost curve, in one or two columns of about the same height."""
    compared = [r for r in rows if r.case.compared]
    panels = [(len(group), _ratios, group) for _, g in groupby(compared, lambda r: r.case.kernel) if (group := list(g))]
    for axis in dict.fromkeys(point.axis for row in rows for point in row.case.points):
        if len({point.x for row in rows for point in row.case.points if point.axis == axis}) > 1:
            panels.append((CURVE_ROWS, partial(_cost, what=axis), rows))
    columns = _columns(panels)
    height = max(sum(n + TITLE_ROWS for n, *_ in column) for column in columns) * ROW_INCHES
    figure = plt.figure(figsize=(8 * len(columns), height + 0.8), layout="constrained")
    for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns, strict=True):
        axes = part.subplots(len(column), 1, squeeze=False, height_ratios=[n + 1 for n, *_ in column])[:, 0]
        for axis, (_, plot, group) in zip(axes, column, strict=True):
            plot(axis, group)
    figure.suptitle(subtitle, fontsize=9, color=GREY)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _columns(panels: list[tuple]) -> list[list[tuple]]:
    """Tallest first into the shorter of two columns; one column where that is short enough."""
    if sum(n for n, *_ in panels) <= 30:
        return [panels]
    columns: list[list[tuple]] = [[], []]
    for panel in sorted(panels, key=lambda p: -p[0]):
        min(columns, key=lambda c: sum(n + TITLE_ROWS for n, *_ in c)).append(panel)
    return [c for c in columns if c]


def _ratios(axis: Axes, rows: list[Row]) -> None:
    ratios = [1.0 if r.strongest is None else r.ratio(r.strongest) for r in rows]
    at = range(len(rows))
    colors = [WON if ratio >= 1 else LOST for ratio in ratios]
    axis.hlines(at, 1, ratios, colors=colors, linewidth=1.2, alpha=0.5)
    axis.scatter(ratios, at, c=colors, s=22, zorder=3)
    axis.axvline(1, color="0.3", linewidth=0.8)
    axis.set_xscale("log")
    for y, row, ratio in zip(at, rows, ratios, strict=True):
        name = "no peer ran" if row.strongest is None else f"{ratio_text(ratio)}  {row.strongest.contender.name}"
        axis.annotate(
            name,
            (max(ratio, 1), y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=GREY,
        )
    low, high = min([0.8, *ratios]) / 1.3, max([2.0, *ratios])
    axis.set_xlim(low, high * (high / low) ** 0.8)  # room for the peers' names
    axis.set_yticks(at, [r.case.label for r in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("time of the strongest peer / ours", fontsize=8)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(rows[0].case.kernel, loc="left", fontsize=10, fontweight="bold")


def _cost(axis: Axes, rows: list[Row], what: str) -> None:
    """Time of a unit against one thing that varies."""
    curves = _curves(rows, what)
    case = next(row.case for row in rows if any(point.axis == what for point in row.case.points))
    ours = next(row.ours.contender.name for row in rows if row.case is case)
    drawn = [r.contender.name for row in rows if row.case.points for r in row.results if r.median is not None]
    names = [name for name in dict.fromkeys(drawn) if name != ours]  # of all panels: a peer keeps its colour
    colors = {ours: WON, **{name: PEERS[i % len(PEERS)] for i, name in enumerate(names)}}
    styles = dict(zip(dict.fromkeys(line for _, line in curves), STYLES, strict=False))
    for (name, line), points in curves.items():
        weight = {"linewidth": 2.2, "zorder": 3} if name == ours else {"linewidth": 1.2, "alpha": 0.8}
        label = f"{name}, {line}" if line else name
        axis.plot(
            *zip(*points, strict=True), color=colors[name], linestyle=styles[line], marker="o", markersize=4,
            label=label, **weight,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log")
    low, high = (f(y for points in curves.values() for _, y in points) for f in (min, max))
    room = max(1.3, (10 * low / high) ** 0.5)  # a decade at least: noise should look like noise
    axis.set_ylim(low / room, high * room)
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    for formatter in (axis.xaxis.set_major_formatter, axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(plain)
    _mark_points(axis, sorted({x for points in curves.values() for x, _ in points}))
    axis.set_xlabel(what, fontsize=8)
    axis.set_ylabel(f"us a {case.unit}", fontsize=8)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_title(f"{case.kernel}: cost against {what}", loc="left", fontsize=10, fontweight="bold")


def _curves(rows: list[Row], what: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(contender, line) -> (x, microseconds), ascending; who ran at one point only has no curve."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for point in (p for p in row.case.points if p.axis == what):
            for result in (r for r in row.results if r.median is not None):
                at = (point.x, result.median * 1e6)
                found.setdefault((result.contender.name, point.line), []).append(at)
    return {key: sorted(points) for key, points in found.items() if len(points) > 1}


def _mark_points(axis: Axes, at: list[float]) -> None:
    """Ticks where something was measured, if they are few whole numbers."""
    if len(at) <= 8 and all(float(x).is_integer() for x in at):
        axis.set_xticks(at, [f"{x:,g}" for x in at])
        axis.set_xticks([], minor=True)
