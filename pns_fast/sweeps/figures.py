"""The paper's Figure 3: metric against density, after pruning and after training, a row a task."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .summary import Panel, Point, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")

# One colour and marker a pruner, in every figure.
_STYLES = {
    "random": ("#7f7f7f", "o"),
    "magnitude": ("#1f6fb4", "s"),
    "snip": ("#2ca02c", "^"),
    "grasp": ("#f28e1c", "D"),
    "synflow": ("#d62728", "v"),
    "force": ("#00796b", "d"),
    "phew": ("#8c564b", "H"),
    "edge-popup": ("#8250c4", "P"),
    "edge-popup-anneal": ("#c44fa5", "X"),
}
_FURTHER_STYLES = (("#17a2b8", "p"), ("#5c6bc0", "h"), ("#9aa61a", "<"), ("#34495e", ">"))
_TITLES = {"circle": "Circle", "relu": "ReLU", "helix": "Helix"}
_LABELS = {
    "random": "Random",
    "magnitude": "Magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "force": "FORCE",
    "phew": "PHEW",
    "edge-popup": "Edge-popup",
    "edge-popup-anneal": "Edge-popup, annealed",
}
_RC = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
_STAGES = {"strong": "After pruning (strong ticket)", "weak": "After training (weak ticket)"}
_LINES = ("-", (0, (4, 1.5)), ":", "-.")  # of the curves of one pruner
_LEAST_MSE = 1e-7  # a noiseless ReLU ticket has an error of round-off: no reason to stretch the axis


Show = Sequence[tuple[str, str]]


class Style(NamedTuple):
    """How a curve is drawn."""

    colour: str
    marker: str
    line: str | tuple


def save_figure(
    records: Sequence[dict], path: str | os.PathLike, by: str | None = None, show: Show | None = None
) -> None:
    """Draw :func:`figure` and write it: PNG at 200 dpi, PDF or SVG, by the suffix of ``path``.

    Raises:
        ValueError: another suffix, or records that :func:`figure` refuses.
        OSError: ``path`` cannot be written.
    """
    save(lambda: figure(records, by, show), path)


def save(draw: Callable[[], Figure], path: str | os.PathLike) -> None:
    """Write what ``draw`` returns, drawn in the style of all figures; see :func:`save_figure`."""
    check_path(path)
    import matplotlib

    with matplotlib.rc_context(_RC):
        drawn = draw()
        part = Path(f"{path}.part")  # a figure that is there stays whole until the new one is
        drawn.savefig(part, dpi=200, format=Path(path).suffix[1:].lower())
    os.replace(part, path)


def check_path(path: str | os.PathLike) -> None:
    """ValueError unless the suffix of ``path`` is one that :func:`save_figure` writes."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"figure: expected a file name ending in {', '.join(FORMATS)}, got {str(path)!r}")


def figure(records: Sequence[dict], by: str | None = None, show: Show | None = None) -> Figure:
    """The figure of stored cells.

    Lines are means over the seeds, bands the range from minimum to maximum, hollow markers densities at which
    most networks have a layer without weights. The star and the lines through it are the planted ticket.

    Args:
        records: out of :func:`pns_fast.sweeps.read`.
        by: a setting that tells curves of one pruner apart, see :func:`pns_fast.sweeps.panels`.
        show: (task, "strong" or "weak") of the axes to draw, two a row; None for both of every panel.

    Returns:
        A matplotlib figure, two axes a row.

    Raises:
        ValueError: no finished cell, or a mixture of settings.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend, no global state

    found = panels(records, by)
    chosen = [(p, stage) for p in found for stage in ("strong", "weak") if show is None or (p.task, stage) in show]
    styles = _styles(found)
    n_rows, n_legend_rows = math.ceil(len(chosen) / 2), math.ceil((len(styles) + 2) / 4)
    drawn = Figure(figsize=(7.0, 2.05 * n_rows + 0.55 + 0.2 * n_legend_rows), layout="constrained")
    axes = drawn.subplots(n_rows, 2, squeeze=False, sharey="row" if show is None else False)
    varies = [name for name in ("depth", "width", "noise") if len({getattr(p, name) for p in found}) > 1]
    for ax in axes.flat[len(chosen) :]:
        ax.remove()
    for ax, (panel, stage) in zip(axes.flat, chosen, strict=False):
        _draw(ax, panel, stage, styles)
        name = _TITLES.get(panel.task, panel.task)
        extra = "".join(f", {v} {getattr(panel, v):g}" for v in varies)
        unit = "accuracy (%)" if panel.is_accuracy else "MSE (rescaled)"
        if show is not None:
            ax.set_title(f"{name}{extra}, {_STAGES[stage].lower()}")
            ax.set_ylabel(unit)
        elif stage == "strong":
            ax.set_ylabel(f"{name}{extra}\n{unit}")
    if show is None:
        for ax, stage in zip(axes[0], ("strong", "weak"), strict=True):
            ax.set_title(_STAGES[stage])
    for ax in axes[-1]:
        ax.set_xlabel("density (fraction of parameters kept)")
    _legend(drawn, found, styles)
    return drawn


def _styles(rows: list[Panel]) -> dict[str, Style]:
    """Curve -> how it is drawn; pruners without a fixed style share the further ones in turn."""
    names = dict.fromkeys(name for panel in rows for name in panel.curves)
    pruners = dict.fromkeys(name.partition(", ")[0] for name in names)
    further = itertools.cycle(_FURTHER_STYLES)
    of_pruner = {p: _STYLES[p] if p in _STYLES else next(further) for p in [*_STYLES, *pruners] if p in pruners}
    styles = {}
    for pruner in of_pruner:
        curves = [name for name in names if name.partition(", ")[0] == pruner]
        lines = itertools.cycle(_LINES)
        styles |= {name: Style(*of_pruner[pruner], next(lines)) for name in curves}
    return styles


def _draw(ax: Axes, panel: Panel, stage: str, styles: dict[str, Style]) -> None:
    ax.set_xscale("log")
    if not panel.is_accuracy:
        ax.set_yscale("log", nonpositive="clip")
    scale = 100 if panel.is_accuracy else 1
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    for name, points in panel.curves.items():
        _draw_curve(ax, points, stage, scale, styles[name])
    ticket = {"color": "black", "linewidth": 1.0, "dashes": (4, 2.5), "zorder": 2}
    ax.axhline(scale * panel.ticket.mean, **ticket)
    ax.axvline(panel.ticket_density, color="black", linewidth=0.8, linestyle=":", zorder=1.5)
    ax.plot(panel.ticket_density, scale * panel.ticket.mean, "*", color="black", markersize=9, zorder=6)
    densities = panel.densities
    ax.set_xticks(list(densities.values()), [_tick(label, d) for label, d in densities.items()])
    ax.minorticks_off()
    if panel.is_accuracy:
        ax.set_ylim(0, 102)
        ax.set_yticks(range(0, 101, 25))
    else:
        ax.set_ylim(bottom=max(ax.get_ylim()[0], _LEAST_MSE))


def _draw_curve(ax: Axes, points: list[Point], stage: str, scale: float, style: Style) -> None:
    x = [p.density for p in points]
    spreads = [getattr(p, stage) for p in points]
    ax.fill_between(
        x,
        [scale * s.low for s in spreads],
        [scale * s.high for s in spreads],
        color=style.colour,
        alpha=0.11,
        linewidth=0,
    )
    ax.plot(x, [scale * s.mean for s in spreads], color=style.colour, linestyle=style.line, linewidth=1.4, zorder=3)
    for hollow in (False, True):
        chosen = [
            (p.density, scale * s.mean) for p, s in zip(points, spreads, strict=True) if p.mostly_collapsed == hollow
        ]
        ax.plot(
            [a for a, _ in chosen],
            [b for _, b in chosen],
            style.marker,
            color=style.colour,
            markerfacecolor="white" if hollow else style.colour,
            markeredgewidth=1.1,
            markersize=4.6,
            zorder=4,
        )


def _tick(label: str, density: float) -> str:
    # on a second line, with the marker of the legend: the ticket's density is close to the next one
    return f"\n★ {density:.2g}" if label == "ticket" else f"{density:g}"


def _label(curve: str) -> str:
    pruner, comma, variant = curve.partition(", ")
    return f"{_LABELS.get(pruner, pruner)}{comma}{variant}"


def _legend(drawn: Figure, rows: list[Panel], styles: dict[str, Style]) -> None:
    from matplotlib.lines import Line2D

    shared = {"markersize": 4.6, "linewidth": 1.4}
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=_label(name), **shared)
        for name, style in styles.items()
    ]
    handles.append(
        Line2D(
            [],
            [],
            color="black",
            marker="*",
            markersize=8,
            linewidth=1,
            dashes=(4, 2.5),
            label="Planted ticket",
        )
    )
    if any(p.mostly_collapsed for panel in rows for points in panel.curves.values() for p in points):
        hollow = {"markerfacecolor": "white", "markeredgecolor": "#555555", "markeredgewidth": 1.1}
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=4.6,
                label="hollow: most networks collapsed",
                **hollow,
            )
        )
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, columnspacing=1.6)
