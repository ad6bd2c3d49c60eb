"""What the figures of a sweep share: colours and markers, axes over density, legends, and how they are written."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .summary import Panel
from .whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")

# One colour and marker a pruner, in every figure.
STYLES = {
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
LABELS = {
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
RC = {
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
_LINES = ("-", (0, (4, 1.5)), ":", "-.")  # of the curves of one pruner
MARKER_SIZE = 4.6
GRID = {"color": "#e6e6e6", "linewidth": 0.6}
TICKET = {"color": "black", "linewidth": 1.0, "dashes": (4, 2.5)}
RANDOM_LEVEL = {"color": "#9a9a9a", "linewidth": 0.8, "zorder": 1.8}  # what a random mask would have


class Style(NamedTuple):
    """How a curve is drawn."""

    colour: str
    marker: str
    line: str | tuple


def styles(rows: Sequence[Panel]) -> dict[str, Style]:
    """Curve -> how it is drawn; pruners without a fixed style share the further ones in turn."""
    names = dict.fromkeys(name for panel in rows for name in panel.curves)
    pruners = dict.fromkeys(name.partition(", ")[0] for name in names)
    further = itertools.cycle(_FURTHER_STYLES)
    of_pruner = {p: STYLES[p] if p in STYLES else next(further) for p in [*STYLES, *pruners] if p in pruners}
    found = {}
    for pruner in of_pruner:
        curves = [name for name in names if name.partition(", ")[0] == pruner]
        lines = itertools.cycle(_LINES)
        found |= {name: Style(*of_pruner[pruner], next(lines)) for name in curves}
    return found


def row_titles(rows: Sequence[Panel]) -> list[str]:
    """The task of each panel, and what else tells the panels apart."""
    varies = [name for name in ("depth", "width", "noise") if len({getattr(p, name) for p in rows}) > 1]
    return [_TITLES.get(p.task, p.task) + "".join(f", {v} {getattr(p, v):g}" for v in varies) for p in rows]


def density_axis(ax: Axes, panel: Panel, labelsize: str = "medium") -> None:
    """Ticks at the densities of a panel and a dotted line at that of its ticket, along a logarithmic x axis whose
    limits are set."""
    ax.set_xscale("log")
    ax.axvline(panel.ticket_density, color="black", linewidth=0.8, linestyle=":", zorder=1.5)
    labels = _readable(ax, {d: f"{d:g}" for name, d in panel.densities.items() if name != "ticket"}, labelsize)
    if (ticket := panel.densities.get("ticket")) is not None:
        # on a second line, with the marker of the legend: the ticket's density is close to the next one
        labels[ticket] = f"{labels.get(ticket, '')}\n★ {ticket:.2g}"
    ax.set_xticks(sorted(labels), [labels[d] for d in sorted(labels)])
    ax.tick_params(axis="x", labelsize=labelsize)
    ax.minorticks_off()


def _readable(ax: Axes, labels: dict[float, str], labelsize: str) -> dict[float, str]:
    """The labels by their places, without those that would run into another: powers of ten stay, and larger numbers."""
    import matplotlib
    from matplotlib.font_manager import font_scalings

    low, high = ax.get_xlim()
    width = 0.8 * ax.figure.get_figwidth() / ax.get_gridspec().ncols  # the layout comes later
    decade = width / math.log10(high / low)
    letter = 0.6 * matplotlib.rcParams["font.size"] * font_scalings[labelsize] / 72
    shown: dict[float, str] = {}
    for place in sorted(labels, key=lambda p: (math.log10(p) % 1 != 0, -p)):
        gaps = (
            (decade * abs(math.log10(place / p)), letter * (len(labels[place]) + len(text)) / 2)
            for p, text in shown.items()
        )
        if all(gap > needed + 0.02 for gap, needed in gaps):
            shown[place] = labels[place]
    return {place: shown.get(place, "") for place in labels}


def markers(ax: Axes, x: Sequence[float], y: Sequence[float], hollow: Sequence[bool], style: Style) -> None:
    """Markers of a curve, some of them hollow."""
    for chosen in (False, True):
        points = [(a, b) for a, b, h in zip(x, y, hollow, strict=True) if h == chosen]
        ax.plot(
            [a for a, _ in points],
            [b for _, b in points],
            style.marker,
            color=style.colour,
            markerfacecolor="white" if chosen else style.colour,
            markeredgewidth=1.1,
            markersize=MARKER_SIZE,
            zorder=4,
        )


def curve_handles(found: dict[str, Style]) -> list[Artist]:
    """A legend entry a curve."""
    shared = {"markersize": MARKER_SIZE, "linewidth": 1.4}
    return [
        handle(_label(name), color=s.colour, marker=s.marker, linestyle=s.line, **shared) for name, s in found.items()
    ]


def hollow_handles(rows: Sequence[Panel]) -> list[Artist]:
    """The entry that explains hollow markers, if there are any."""
    if not any(p.mostly_collapsed for panel in rows for points in panel.curves.values() for p in points):
        return []
    look = {"markerfacecolor": "white", "markeredgecolor": "#555555", "markeredgewidth": 1.1}
    return [
        handle("hollow: most networks collapsed", linestyle="", marker="o", markersize=MARKER_SIZE, **look),
    ]


def handle(text: str, **look) -> Artist:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=text, **look)


def _label(curve: str) -> str:
    pruner, comma, variant = curve.partition(", ")
    return f"{LABELS.get(pruner, pruner)}{comma}{variant}"


def legend(drawn: Figure, handles: Sequence[Artist]) -> None:
    """A legend below the axes."""
    drawn.legend(handles=list(handles), loc="outside lower center", ncols=4, frameon=False, columnspacing=1.6)


def legend_height(n_entries: int) -> float:
    """Of :func:`legend`, in inches."""
    return 0.2 * math.ceil(n_entries / 4)


def check_path(path: str | os.PathLike) -> None:
    """ValueError unless the suffix of ``path`` is one that :func:`save` writes."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"figure: expected a file name ending in {', '.join(FORMATS)}, got {str(path)!r}")


def save(draw: Callable[[], Figure], *paths: str | os.PathLike) -> None:
    """Draw a figure once and write it to each path: PNG at 200 dpi, PDF or SVG, by the suffix.

    Raises:
        ValueError: another suffix, or what ``draw`` refuses.
        OSError: a path cannot be written; a figure that was there is then still there.
    """
    for path in paths:
        check_path(path)
    import matplotlib

    with matplotlib.rc_context(RC):
        drawn = draw()
        for path in paths:
            with whole_file(path) as part:
                drawn.savefig(part, dpi=200, format=Path(path).suffix[1:].lower())


def png(draw: Callable[[], Figure], dpi: int) -> bytes:
    """Draw a figure as PNG, in memory: the same bytes for the same figure."""
    import matplotlib

    written = io.BytesIO()
    with matplotlib.rc_context(RC):
        draw().savefig(written, dpi=dpi, format="png")
    return written.getvalue()
