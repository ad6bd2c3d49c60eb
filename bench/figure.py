"""The picture of a run: each case's ratio to its strongest peer, and the trainer's cost curve."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from harness import Row
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from report import ratio_text

WON, LOST, GREY = "#1f77b4", "#d62728", "0.45"
PEERS = ("#e6862a", "#8c6bb1", "#41a05a", "#c2527b", "#8a7a5c", "0.5")
ROW_INCHES, CURVE_ROWS, TITLE_ROWS = 0.22, 16, 4


def draw(rows: list[Row], path: Path, subtitle: str) -> None:
    """A panel a kernel, a second one for cost curves, in one or two columns of about the same height."""
    panels = [(len(group), _ratios, group) for _, g in groupby(rows, lambda r: r.case.kernel) if (group := list(g))]
    if curve := [r for r in rows if r.case.curve]:
        panels.append((CURVE_ROWS, _cost, curve))
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


def _cost(axis: Axes, rows: list[Row]) -> None:
    """Time against what is kept: ours falls with it, a dense method's does not."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for result in row.results:
            if result.median is not None:
                name = result.contender.name
                lines.setdefault(name, []).append((row.case.curve[1], result.median * 1e6))
    ours = rows[0].ours.contender.name
    axis.set_prop_cycle(color=PEERS)
    for name, points in lines.items():
        x, y = zip(*sorted(points), strict=True)
        style = {"color": WON, "linewidth": 2.5, "zorder": 3} if name == ours else {"linewidth": 1.2, "alpha": 0.8}
        axis.plot(x, y, marker="o", markersize=4, label=name, **style)
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel(rows[0].case.curve[0], fontsize=8)
    axis.set_ylabel(f"us a {rows[0].case.unit}", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    axis.set_title(f"{rows[0].case.kernel}: cost", loc="left", fontsize=10, fontweight="bold")
