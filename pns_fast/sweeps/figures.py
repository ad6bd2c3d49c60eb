"""The paper's Figure 3: metric against density, after pruning and after training, a row a task."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figure_style import (
    GRID,
    TICKET,
    Style,
    curve_handles,
    density_axis,
    handle,
    hollow_handles,
    legend,
    legend_height,
    markers,
    row_titles,
    save,
    styles,
)
from .summary import Panel, Point, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = {"strong": "After pruning (strong ticket)", "weak": "After training (weak ticket)"}
_LEAST_MSE = 1e-7  # a noiseless ReLU ticket has an error of round-off: no reason to stretch the axis


Show = Sequence[tuple[str, str]]


def save_figure(
    records: Sequence[dict], path: str | os.PathLike, by: str | None = None, show: Show | None = None
) -> None:
    """Draw :func:`figure` and write it: PNG at 200 dpi, PDF or SVG, by the suffix of ``path``.

    Raises:
        ValueError: another suffix, or records that :func:`figure` refuses.
        OSError: ``path`` cannot be written.
    """
    save(lambda: figure(records, by, show), path)


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
    titles = row_titles(found)
    chosen = [
        (p, title, stage)
        for p, title in zip(found, titles, strict=True)
        for stage in ("strong", "weak")
        if show is None or (p.task, stage) in show
    ]
    looks = styles(found)
    n_rows = math.ceil(len(chosen) / 2)
    drawn = Figure(figsize=(7.0, 2.05 * n_rows + 0.55 + legend_height(len(looks) + 2)), layout="constrained")
    axes = drawn.subplots(n_rows, 2, squeeze=False, sharey="row" if show is None else False)
    for ax in axes.flat[len(chosen) :]:
        ax.remove()
    for ax, (panel, title, stage) in zip(axes.flat, chosen, strict=False):
        _draw(ax, panel, stage, looks)
        unit = "accuracy (%)" if panel.is_accuracy else "MSE (rescaled)"
        if show is not None:
            ax.set_title(f"{title}, {_STAGES[stage].lower()}")
            ax.set_ylabel(unit)
        elif stage == "strong":
            ax.set_ylabel(f"{title}\n{unit}")
    if show is None:
        for ax, stage in zip(axes[0], ("strong", "weak"), strict=True):
            ax.set_title(_STAGES[stage])
    for ax in axes[-1]:
        ax.set_xlabel("density (fraction of parameters kept)")
    ticket = handle("Planted ticket", marker="*", markersize=8, **TICKET)
    legend(drawn, [*curve_handles(looks), ticket, *hollow_handles(found)])
    return drawn


def _draw(ax: Axes, panel: Panel, stage: str, looks: dict[str, Style]) -> None:
    ax.set_xscale("log")
    if not panel.is_accuracy:
        ax.set_yscale("log", nonpositive="clip")
    scale = 100 if panel.is_accuracy else 1
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    for name, points in panel.curves.items():
        _draw_curve(ax, points, stage, scale, looks[name])
    ax.axhline(scale * panel.ticket.mean, zorder=2, **TICKET)
    ax.plot(panel.ticket_density, scale * panel.ticket.mean, "*", color="black", markersize=9, zorder=6)
    density_axis(ax, panel)
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
    means = [scale * s.mean for s in spreads]
    ax.plot(x, means, color=style.colour, linestyle=style.line, linewidth=1.4, zorder=3)
    markers(ax, x, means, [p.mostly_collapsed for p in points], style)
