"""Figures that only a planted ticket makes possible: how much of it was found, and in which layers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .figure_style import (
    GRID,
    RANDOM_LEVEL,
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

_CROSS = {"marker": "x", "linestyle": "", "markersize": 4.0, "markeredgewidth": 1.2}


def save_recovery_figure(records: Sequence[dict], path: str | os.PathLike, by: str | None = None) -> None:
    """Draw :func:`recovery_figure` and write it, as :func:`pns_fast.sweeps.save_figure` does."""
    save(lambda: recovery_figure(records, by), path)


def save_layers_figure(records: Sequence[dict], path: str | os.PathLike, by: str | None = None) -> None:
    """Draw :func:`layers_figure` and write it, as :func:`pns_fast.sweeps.save_figure` does."""
    save(lambda: layers_figure(records, by), path)


def recovery_figure(records: Sequence[dict], by: str | None = None) -> Figure:
    """Precision and recall of the planted parameters, and effective density, against density: a row a task.

    Lines are means over the seeds, crosses means of 0; bands are the range of recall from minimum to maximum (that of
    precision is the same, times planted / kept). Grey is a random mask: it finds a ``density`` of the planted
    parameters, and among those that it keeps are as many planted ones as in the whole network. On the diagonal every
    kept parameter lies on a path from input to output.

    Args:
        records: out of :func:`pns_fast.sweeps.read`.
        by: a setting that tells curves of one pruner apart, see :func:`pns_fast.sweeps.panels`.

    Returns:
        A matplotlib figure, three axes a row.

    Raises:
        ValueError: no finished cell, or a mixture of settings.
    """
    from matplotlib.figure import Figure

    found = panels(records, by)
    looks = styles(found)
    handles = [
        *curve_handles(looks),
        handle("Random mask, expected", **RANDOM_LEVEL),
        handle("Density of the ticket", color="black", linewidth=0.8, linestyle=":"),
        *hollow_handles(found),
    ]
    points = [p for panel in found for curve in panel.curves.values() for p in curve]
    if any(0 in (p.precision.mean, p.effective_density.mean) for p in points):
        handles.append(handle("Mean of 0", color="#555555", **_CROSS))
    drawn = Figure(figsize=(7.4, 1.95 * len(found) + 0.6 + legend_height(len(handles))), layout="constrained")
    axes = drawn.subplots(len(found), 3, squeeze=False)
    titles = ("Precision", "Recall", "Effective density")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    for row, panel, title in zip(axes, found, row_titles(found), strict=True):
        _draw_precision(row[0], panel, looks)
        _draw_recall(row[1], panel, looks)
        _draw_effective(row[2], panel, looks)
        row[0].set_ylabel(title, fontsize="large", labelpad=8)
    for ax in axes[-1]:
        ax.set_xlabel("density")
    legend(drawn, handles)
    return drawn


def _draw_precision(ax: Axes, panel: Panel, looks: dict[str, Style]) -> None:
    ax.axhline(panel.planted.density, **RANDOM_LEVEL)
    _draw_log_curves(ax, panel, looks, lambda p: p.precision.mean, panel.planted.density)


def _draw_recall(ax: Axes, panel: Panel, looks: dict[str, Style]) -> None:
    _density_panel(ax, panel)
    ax.set_ylim(-0.04, 1.05)
    levels = [10 ** (e / 20) for e in range(-100, 1)]
    ax.plot(levels, levels, **RANDOM_LEVEL)
    for name, points in panel.curves.items():
        x, spreads, style = [p.density for p in points], [p.recall for p in points], looks[name]
        low, high = [s.low for s in spreads], [s.high for s in spreads]
        ax.fill_between(x, low, high, color=style.colour, alpha=0.11, linewidth=0)
        _draw_line(ax, x, [s.mean for s in spreads], [p.mostly_collapsed for p in points], style)


def _draw_effective(ax: Axes, panel: Panel, looks: dict[str, Style]) -> None:
    least = min(panel.densities.values())
    ax.plot([least / 2, 1], [least / 2, 1], color="#444444", linewidth=0.8, zorder=1.8)
    _draw_log_curves(ax, panel, looks, lambda p: p.effective_density.mean, least)


def _draw_log_curves(
    ax: Axes, panel: Panel, looks: dict[str, Style], of: Callable[[Point], float], least: float
) -> None:
    """Curves on a logarithmic axis; below it a row of crosses for each pruner that has a mean of 0 somewhere."""
    _density_panel(ax, panel)
    means = {name: [of(p) for p in points] for name, points in panel.curves.items()}
    rows = [name for name, values in means.items() if 0 in values]
    heights = _log_axis(ax, min([least, *(v for values in means.values() for v in values if v > 0)]), len(rows))
    for name, points in panel.curves.items():
        x, style = [p.density for p in points], looks[name]
        _draw_line(ax, x, [v or math.nan for v in means[name]], [p.mostly_collapsed for p in points], style)
        if name in rows:
            zeros = [a for a, v in zip(x, means[name], strict=True) if v == 0]
            _draw_crosses(ax, zeros, heights[rows.index(name)], style)


def _density_panel(ax: Axes, panel: Panel) -> None:
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    ax.set_xlim(min(panel.densities.values()) / 2, max(panel.densities.values()) * 1.5)
    density_axis(ax, panel, labelsize="small")


def _log_axis(ax: Axes, least: float, n_rows: int) -> list[float]:
    """A logarithmic axis from ``least`` to 1 and a grey strip below it, marked 0, if it has rows.

    Returns:
        The heights of the rows, as fractions of the axis.
    """
    strip = 0.045 * (n_rows + 1) if n_rows else 0.0
    low, top = least / 1.6, 1.6
    bottom = low * (low / top) ** (strip / (1 - strip))
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    exponents = range(0, math.floor(math.log10(low)), -max(1, math.ceil(-math.log10(low) / 5)))
    ticks = {10.0**e: f"$10^{{{e}}}$" if e else "1" for e in exponents if 10.0**e >= low}
    if n_rows:
        ticks[bottom * (top / bottom) ** (strip / 2)] = "0"
        ax.axhspan(bottom, low, color="#f1f1f1", linewidth=0, zorder=1.9)
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    return [0.045 * (row + 1) for row in range(n_rows)]


def _draw_line(ax: Axes, x: Sequence[float], y: Sequence[float], hollow: Sequence[bool], style: Style) -> None:
    """A curve with its markers, interrupted where it is NaN."""
    ax.plot(x, y, color=style.colour, linestyle=style.line, linewidth=1.3, zorder=3)
    markers(ax, x, y, hollow, style)


def _draw_crosses(ax: Axes, x: Sequence[float], height: float, style: Style) -> None:
    """Crosses at a fraction of the y axis."""
    ax.plot(x, [height] * len(x), color=style.colour, zorder=5, transform=ax.get_xaxis_transform(), **_CROSS)


def layers_figure(records: Sequence[dict], by: str | None = None) -> Figure:
    """Kept density of the weights and recall of the planted parameters by layer: two rows a task, a column a density.

    Lines are means over the seeds. A cross at the bottom marks a layer that is empty in most networks, so that no
    input reaches an output. Dashed is the planted ticket; grey is a random mask. Density 1, where everything is kept,
    is drawn only where there is no other.

    Args:
        records: out of :func:`pns_fast.sweeps.read`.
        by: a setting that tells curves of one pruner apart, see :func:`pns_fast.sweeps.panels`.

    Returns:
        A matplotlib figure, a column a density.

    Raises:
        ValueError: no finished cell, or a mixture of settings.
    """
    from matplotlib.figure import Figure

    found = panels(records, by)
    looks = styles(found)
    shown = [_shown_labels(panel) for panel in found]
    handles = [
        *curve_handles(looks),
        handle("Planted ticket", **TICKET),
        handle("Random mask, expected", **RANDOM_LEVEL),
    ]
    if any(_has_empty(panel, labels) for panel, labels in zip(found, shown, strict=True)):
        handles.append(handle("Empty in most networks", color="#555555", **_CROSS))
    n_columns, n_layers = max(map(len, shown)), max(len(panel.planted.layer_density) for panel in found)
    width = max(7.4, max(1.5, 0.22 * n_layers) * n_columns + 0.9)
    size = (width, 2.9 * len(found) + 0.6 + legend_height(len(handles)))
    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(2 * len(found), n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for i, (panel, labels, title) in enumerate(zip(found, shown, row_titles(found), strict=True)):
        least, has_empty = _least_density(panel, labels), _has_empty(panel, labels)
        for label, ax, below in zip(labels, axes[2 * i], axes[2 * i + 1], strict=False):
            _draw_layer_density(ax, panel, label, looks, _log_axis(ax, least, has_empty))
            _draw_layer_recall(below, panel, label, looks)
        axes[2 * i, 0].set_ylabel(f"{title}\nkept density")
        axes[2 * i + 1, 0].set_ylabel("recall")
        for ax in axes[2 * i : 2 * i + 2, 1:].flat:
            ax.tick_params(labelleft=False)  # as in the first column
        for ax in axes[2 * i]:
            ax.tick_params(labelbottom=False)
        for ax in axes[2 * i + 1]:
            ax.set_xlabel("layer")
    legend(drawn, handles)
    return drawn


def _shown_labels(panel: Panel) -> list[str]:
    labels = list(panel.densities)
    return [label for label in labels if panel.densities[label] < 1] or labels


def _points(panel: Panel, label: str) -> dict[str, Point]:
    """Curve -> its point at a density, where it has one."""
    return {name: p for name, points in panel.curves.items() for p in points if p.label == label}


def _is_empty(point: Point) -> list[bool]:
    """Whether each layer keeps no weight in most networks."""
    return [n > point.n / 2 for n in point.n_empty]


def _least_density(panel: Panel, labels: Sequence[str]) -> float:
    """The least kept density of a layer that is drawn as a point, or the ticket's if that is less."""
    means = [
        layer.mean
        for label in labels
        for point in _points(panel, label).values()
        for layer, is_empty in zip(point.layer_density, _is_empty(point), strict=True)
        if not is_empty
    ]
    return min([*panel.planted.layer_density, *means])


def _has_empty(panel: Panel, labels: Sequence[str]) -> bool:
    return any(any(_is_empty(point)) for label in labels for point in _points(panel, label).values())


def _draw_layer_density(ax: Axes, panel: Panel, label: str, looks: dict[str, Style], heights: Sequence[float]) -> None:
    layers = _layer_axis(ax, panel)
    density, points = panel.densities[label], _points(panel, label)
    ax.set_title(f"ticket ({density:.2g})" if label == "ticket" else f"density {density:g}", fontsize="medium")
    ax.axhline(density, **RANDOM_LEVEL)
    ax.plot(layers, panel.planted.layer_density, zorder=2, **TICKET)
    for i, (name, point) in enumerate(points.items()):
        style, empty = looks[name], _is_empty(point)
        means = [math.nan if e else s.mean for s, e in zip(point.layer_density, empty, strict=True)]
        _draw_line(ax, layers, means, [False] * len(layers), style)
        if any(empty):
            beside = min(0.2, 0.9 / len(points)) * (i - (len(points) - 1) / 2)  # of the other pruners' crosses
            crosses = [layer + beside for layer, e in zip(layers, empty, strict=True) if e]
            _draw_crosses(ax, crosses, heights[0], style)


def _draw_layer_recall(ax: Axes, panel: Panel, label: str, looks: dict[str, Style]) -> None:
    layers = _layer_axis(ax, panel)
    ax.set_ylim(-0.04, 1.05)
    ax.set_yticks([0, 0.5, 1])
    ax.axhline(panel.densities[label], **RANDOM_LEVEL)
    for name, point in _points(panel, label).items():
        _draw_line(ax, layers, [s.mean for s in point.layer_recall], [False] * len(layers), looks[name])


def _layer_axis(ax: Axes, panel: Panel) -> list[int]:
    """The numbers of the layers, from 1, as ticks."""
    layers = list(range(1, len(panel.planted.layer_density) + 1))
    ax.set_visible(True)
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    ax.set_xticks(layers)
    ax.set_xlim(0.45, layers[-1] + 0.55)
    return layers
