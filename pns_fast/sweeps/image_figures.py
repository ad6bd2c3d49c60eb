"""The image experiment as figures, as CSV and as a closing table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .figure_style import GRID, LABELS, RC, STYLES
from .image_cells import POPUPS, PRUNERS, TICKET_DENSITY, UNPRUNED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_COLUMNS = (
    *("kind", "data", "model", "pruner", "density", "seed", "strong_accuracy", "weak_accuracy", "kept", "collapsed"),
    *("precision", "recall", "f1", "exactness", "ticket_accuracy", "mother_accuracy", "plant_seconds", "seconds"),
    *("rounds", "round_epochs", "epochs", "popup_epochs", "batch_size", "lr", "popup_lr"),
)
_LAYER_COLUMNS = (
    "pruner",
    "density",
    "seed",
    "layer",
    "n_kept",
    "n_planted",
    "planted_share",
    "precision",
    "recall",
    "f1",
)

Write = Callable[[str, bytes], None]


def save_results(records: Sequence[dict], name: str, write: Write) -> list[str]:
    """Write the networks and the recovery by layer as CSV, and both figures where there is something to draw.

    Args:
        records: finished cells, as the store has them.
        name: of the files, without suffix.
        write: takes a file name and its content.

    Returns:
        The names of the files.
    """
    import matplotlib

    files = {
        f"{name}.csv": _csv(_COLUMNS, records),
        f"{name}-layers.csv": _csv(_LAYER_COLUMNS, _layer_rows(records)),
    }
    with matplotlib.rc_context(RC):
        drawn = {name: figure(records), f"{name}-recovery": recovery_figure(records)}
        for stem, found in drawn.items():
            if found is not None:
                files |= {f"{stem}.{kind}": _image(found, kind) for kind in ("png", "pdf")}
    for file, content in files.items():
        write(file, content)
    return list(files)


def figure(records: Sequence[dict]) -> Figure | None:
    """The paper's Figure 5: accuracy against density of weak tickets (left) and of what edge-popup finds in the network
    with a planted ticket (right), whose own accuracy is the black line. Means over seeds, bands from least to largest.

    Returns:
        A matplotlib figure, or None where nothing is finished.
    """
    weak, popup, planted = (_of_kind(records, kind) for kind in ("weak", "popup", "planted"))
    if not weak and not popup:
        return None
    drawn = _new_figure(7.0, 3.1)
    left, right = drawn.subplots(1, 2, sharey=True)
    _accuracy_axes(left, "Weak tickets, after training", weak)
    _accuracy_axes(right, "Strong tickets by edge-popup, ticket planted", popup)
    left.set_ylabel(f"{records[0]['data']}, {records[0]['model']}\ntest accuracy (%)")
    unpruned = [r for r in weak if r["pruner"] == UNPRUNED]
    for pruner in PRUNERS:
        if own := [r for r in weak if r["pruner"] == pruner]:
            _curve(left, own + unpruned, "weak_accuracy", pruner)
    for pruner in POPUPS:
        if own := [r for r in popup if r["pruner"] == pruner]:
            _curve(right, own, "strong_accuracy", pruner)
    if planted:
        accuracy = 100 * _mean([r["strong_accuracy"] for r in planted])
        density = _mean([r["planted_density"] for r in planted])
        right.axhline(accuracy, color="black", linewidth=1.0, dashes=(4, 2.5), zorder=2)
        right.plot(density, accuracy, "*", color="black", markersize=9, zorder=6, label="Planted ticket")
    handles = {label: h for ax in (left, right) for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    return drawn


def recovery_figure(records: Sequence[dict]) -> Figure | None:
    """Precision and recall of the planted parameters in each layer, a curve a density, a row a kind of edge-popup.

    Dotted lines are what a random mask of that density would have: a layer's planted share as precision, the density as
    recall.

    Returns:
        A matplotlib figure, or None where no search is finished.
    """
    popup = _of_kind(records, "popup")
    if not popup:
        return None
    drawn, pruners = _new_figure(7.0, 4.6), [p for p in POPUPS if any(r["pruner"] == p for r in popup)]
    axes = drawn.subplots(len(pruners), 2, squeeze=False, sharex=True, sharey="col")
    densities = sorted({r["density"] for r in popup})
    for row, pruner in zip(axes, pruners, strict=True):
        for ax, measure in zip(row, ("precision", "recall"), strict=True):
            for i, density in enumerate(densities):
                chosen = [r for r in popup if (r["pruner"], r["density"]) == (pruner, density)]
                if chosen:
                    _layer_curve(ax, chosen, measure, _shade(i, len(densities)))
            ax.grid(axis="y", **GRID)
            ax.set_ylabel(f"{measure} (%)")
            ax.set_title(LABELS[pruner])
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(axes[0, 0].lines[1])
    legend = {"loc": "outside lower center", "ncols": 6, "frameon": False, "title": "density"}
    drawn.legend(handles, [*labels, "a random mask"], **legend)
    return drawn


def results_table(records: Sequence[dict]) -> Table:
    """Mean accuracies in percent, pruners by densities; of edge-popup the recall of planted parameters as well."""
    from rich import box
    from rich.table import Table

    densities = sorted({r["density"] for r in records})
    table = Table(title=_planted_title(records), title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.add_column("pruner", no_wrap=True)
    table.add_column("", no_wrap=True)
    for density in densities:
        table.add_column(f"{density:g}", justify="right")
    rows = [(p, "weak", "weak", "weak_accuracy") for p in (*PRUNERS, UNPRUNED)]
    rows += [(p, "strong", "popup", "strong_accuracy") for p in POPUPS]
    rows += [(p, "recall", "popup", "recall") for p in POPUPS]
    for pruner, shown, kind, measure in rows:
        found = [[r for r in _of_kind(records, kind) if (r["pruner"], r["density"]) == (pruner, d)] for d in densities]
        if any(found):
            cells = [f"{100 * _mean([_value(r, measure) for r in some]):.1f}" if some else "" for some in found]
            table.add_row(pruner, shown, *cells)
    return table


def _planted_title(records: Sequence[dict]) -> str:
    title = f"[bold]{records[0]['data']}[/] {records[0]['model']}: accuracy in %" if records else "nothing finished"
    if planted := _of_kind(records, "planted"):
        error = max(r["exactness"] for r in planted)
        accuracy = 100 * _mean([r["strong_accuracy"] for r in planted])
        shown = f"{error:.1e}" if all(r["is_exact"] for r in planted) else f"[red]{error:.1e}, not exact[/]"
        title += f"\nplanted ticket: {accuracy:.1f} at density {TICKET_DENSITY:g}, largest relative error {shown}"
    return title


def _of_kind(records: Sequence[dict], kind: str) -> list[dict]:
    return [r for r in records if r["kind"] == kind and r["status"] == "ok"]


def _value(record: dict, measure: str) -> float:
    """A training that diverged has no accuracy: it counts as 0."""
    return record[measure] or 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # not pyplot: no backend, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _accuracy_axes(ax: Axes, title: str, records: list[dict]) -> None:
    densities = sorted({r["density"] for r in records})
    ax.set_title(title)
    ax.set_xscale("log")
    ax.set_xticks(densities, [f"{d:g}" for d in densities])
    ax.minorticks_off()
    ax.set_xlabel("density (fraction of parameters kept)")
    ax.set_ylim(0, 102)
    ax.set_yticks(range(0, 101, 25))
    ax.grid(axis="y", **GRID)
    ax.set_axisbelow(True)


def _curve(ax: Axes, records: list[dict], measure: str, pruner: str) -> None:
    densities = sorted({r["density"] for r in records})
    values = [[100 * _value(r, measure) for r in records if r["density"] == d] for d in densities]
    colour, marker = STYLES[pruner]
    ax.fill_between(
        densities, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.11, linewidth=0
    )
    look = {"color": colour, "marker": marker, "linewidth": 1.4, "markersize": 4.6}
    ax.plot(densities, [_mean(v) for v in values], label=LABELS[pruner], **look)


def _layer_curve(ax: Axes, records: list[dict], measure: str, colour) -> None:
    layers = list(records[0]["layers"])
    x = range(1, len(layers) + 1)
    found = [100 * _mean([r["layers"][layer][measure] for r in records]) for layer in layers]
    ax.plot(x, found, "o-", color=colour, linewidth=1.2, markersize=3.6, label=f"{records[0]['density']:g}")
    by_chance = [records[0]["density"]] * len(layers)
    if measure == "precision":
        by_chance = [_mean([r["layers"][layer]["planted_share"] for r in records]) for layer in layers]
        colour = "black"  # the same for all densities
    ax.plot(x, [100 * share for share in by_chance], color=colour, linewidth=0.8, linestyle=":")
    ax.set_xticks(list(x))


def _shade(i: int, n: int):
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * i / max(n - 1, 1))


def _image(drawn: Figure, kind: str) -> bytes:
    written = io.BytesIO()
    drawn.savefig(written, dpi=200, format=kind)
    return written.getvalue()


def _csv(columns: Sequence[str], rows: Sequence[dict]) -> bytes:
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(r for r in rows if r.get("status", "ok") == "ok")
    return written.getvalue().encode()


def _layer_rows(records: Sequence[dict]) -> list[dict]:
    return [
        {**{c: r[c] for c in ("pruner", "density", "seed")}, "layer": layer, **found}
        for r in _of_kind(records, "popup")
        for layer, found in r["layers"].items()
    ]
