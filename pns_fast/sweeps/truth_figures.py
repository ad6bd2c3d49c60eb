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
from .summary import Panel, Point, Spread, panels

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
        handle("Mean of 0", color="#555555", **_CROSS),
        *hollow_handles(found),
    ]
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
    means = [p.precision.mean for points in panel.curves.values() for p in points if p.precision.mean > 0]
    bottom = min([panel.planted.density, *means]) / 4
    _log_axis(ax, bottom, 1.5)
    ax.axhline(panel.planted.density, **RANDOM_LEVEL)
    _draw_curves(ax, panel, looks, lambda p: p.precision)


def _draw_recall(ax: Axes, panel: Panel, looks: dict[str, Style]) -> None:
    ax.set_ylim(-0.04, 1.05)
    levels = [10 ** (e / 20) for e in range(-100, 1)]
    ax.plot(levels, levels, **RANDOM_LEVEL)
    for name, points in panel.curves.items():
        low, high = ([getattr(p.recall, end) for p in points] for end in ("low", "high"))
        ax.fill_between([p.density for p in points], low, high, color=looks[name].colour, alpha=0.11, linewidth=0)
    _draw_curves(ax, panel, looks, lambda p: p.recall)


def _draw_effective(ax: Axes, panel: Panel, looks: dict[str, Style]) -> None:
    means = [p.effective_density.mean for points in panel.curves.values() for p in points]
    bottom = min([*panel.densities.values(), *(m for m in means if m > 0)]) / 10
    _log_axis(ax, bottom, 1.8)
    ax.plot([bottom, 1], [bottom, 1], color="#444444", linewidth=0.8, zorder=1.8)
    _draw_curves(ax, panel, looks, lambda p: p.effective_density)


def _draw_curves(ax: Axes, panel: Panel, looks: dict[str, Style], of: Callable[[Point], Spread]) -> None:
    """Means and markers; on a logarithmic axis a mean of 0 is a cross at its bottom."""
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    n_crossed = 0
    for name, points in panel.curves.items():
        style, x, means = looks[name], [p.density for p in points], [of(p).mean for p in points]
        gone = [ax.get_yscale() == "log" and mean == 0 for mean in means]
        _draw_line(ax, x, means, gone, [p.mostly_collapsed for p in points], style)
        if any(gone):  # one pruner's crosses above the other's
            _draw_crosses(ax, [a for a, g in zip(x, gone, strict=True) if g], 0.045 * (n_crossed + 1), style)
            n_crossed += 1
    density_axis(ax, panel)
    ax.set_xlim(min(panel.densities.values()) / 2, max(panel.densities.values()) * 1.5)
    ax.tick_params(axis="x", labelsize="small")


def _draw_line(
    ax: Axes, x: Sequence[float], y: Sequence[float], gone: Sequence[bool], hollow: Sequence[bool], style: Style
) -> None:
    """A curve with its markers, interrupted where it is ``gone``."""
    y = [math.nan if g else value for value, g in zip(y, gone, strict=True)]
    ax.plot(x, y, color=style.colour, linestyle=style.line, linewidth=1.3, zorder=3)
    markers(ax, x, y, hollow, style)


def _draw_crosses(ax: Axes, x: Sequence[float], height: float, style: Style) -> None:
    """Crosses near the x axis, at a fraction of the y axis."""
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
        handle("Empty in most networks", color="#555555", **_CROSS),
    ]
    n_columns = max(map(len, shown))
    size = (max(7.4, 1.5 * n_columns + 0.9), 2.9 * len(found) + 0.6 + legend_height(len(handles)))
    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(2 * len(found), n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for i, (panel, labels, title) in enumerate(zip(found, shown, row_titles(found), strict=True)):
        bottom = _least_density(panel, labels) / 3
        for label, ax, below in zip(labels, axes[2 * i], axes[2 * i + 1], strict=False):
            _draw_layer_density(ax, panel, label, looks, bottom)
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
    return min(*panel.planted.layer_density, *means)


def _draw_layer_density(ax: Axes, panel: Panel, label: str, looks: dict[str, Style], bottom: float) -> None:
    layers = _layer_axis(ax, panel)
    density, points = panel.densities[label], _points(panel, label)
    ax.set_title(f"ticket ({density:.2g})" if label == "ticket" else f"density {density:g}", fontsize="medium")
    _log_axis(ax, bottom, 1.6)
    ax.axhline(density, **RANDOM_LEVEL)
    ax.plot(layers, panel.planted.layer_density, zorder=2, **TICKET)
    for i, (name, point) in enumerate(points.items()):
        style, empty = looks[name], _is_empty(point)
        _draw_line(ax, layers, [s.mean for s in point.layer_density], empty, [False] * len(layers), style)
        beside = min(0.2, 0.9 / len(points)) * (i - (len(points) - 1) / 2)  # of the other pruners' crosses
        _draw_crosses(ax, [layer + beside for layer, e in zip(layers, empty, strict=True) if e], 0.05, style)


def _draw_layer_recall(ax: Axes, panel: Panel, label: str, looks: dict[str, Style]) -> None:
    layers = _layer_axis(ax, panel)
    ax.set_ylim(-0.04, 1.05)
    ax.axhline(panel.densities[label], **RANDOM_LEVEL)
    for name, point in _points(panel, label).items():
        nowhere = [False] * len(layers)
        _draw_line(ax, layers, [s.mean for s in point.layer_recall], nowhere, nowhere, looks[name])


def _layer_axis(ax: Axes, panel: Panel) -> list[int]:
    """The numbers of the layers, from 1, as ticks."""
    layers = list(range(1, len(panel.planted.layer_density) + 1))
    ax.set_visible(True)
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)
    ax.set_xticks(layers)
    ax.set_xlim(0.45, layers[-1] + 0.55)
    return layers


def _log_axis(ax: Axes, bottom: float, top: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.yaxis.set_minor_locator(NullLocator())
