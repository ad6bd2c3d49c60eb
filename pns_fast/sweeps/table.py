"""Results as text: the CSV, one row a network, and the closing tables, one a panel."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figure_style import row_titles
from .summary import Panel, Point, Spread, diverged, panels
from .whole_file import whole_file

if TYPE_CHECKING:
    from rich.table import Table

    from .runner import Report

CSV_COLUMNS = (
    *("mode", "task", "depth", "width", "noise", "pruner", "density_label", "density", "seed"),
    *("strong_metric", "weak_metric", "strong_loss", "weak_loss", "kept", "effective_density", "collapsed"),
    *("precision", "recall"),
)

_PHASES = ("training", "training, scoring", "scoring", "planting", "data", "store")


def write_csv(records: Sequence[dict], path: str | os.PathLike) -> None:
    """Write the finished cells, one row a network, with the columns ``CSV_COLUMNS``.

    Raises:
        OSError: ``path`` cannot be written; a file that was there is then still there.
    """
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for record in records:
            if record["status"] == "ok":
                whole = {name: int(record[name]) for name in ("kept", "collapsed")}
                writer.writerow({**record, **whole})


def tables(records: Sequence[dict], width: int = 80, by: str | None = None) -> list[Table]:
    """A rich table for each panel: mean and range of the strong and weak metric, pruners by densities.

    Args:
        records: out of :func:`pns_fast.sweeps.read`.
        width: characters a line; where mean and range do not fit beside each other, the range goes below.
        by: a setting that tells rows of one pruner apart, see :func:`pns_fast.sweeps.panels`.

    Raises:
        ValueError: no finished cell, or a mixture of settings, see :func:`pns_fast.sweeps.panels`.
    """
    found = []
    for panel in panels(records, by):
        table = _table(panel, " ")
        found.append(table if _width(table) <= width else _table(panel, "\n"))
    return found


def recovery_table(records: Sequence[dict], by: str | None = None) -> Table:
    """A rich table of the planted parameters found: mean recall/precision in percent, pruners by densities.

    Args:
        records: out of :func:`pns_fast.sweeps.read`.
        by: a setting that tells rows of one pruner apart, see :func:`pns_fast.sweeps.panels`.

    Raises:
        ValueError: no finished cell, or a mixture of settings, see :func:`pns_fast.sweeps.panels`.
    """
    from rich import box
    from rich.table import Table

    found = panels(records, by)
    labels = {label: density for panel in found for label, density in panel.densities.items()}
    table = Table(
        title="[bold]planted parameters found[/]: recall/precision in %",
        **{"title_justify": "left", "title_style": "", "box": box.SIMPLE_HEAD, "padding": (0, 0, 0, 1)},
    )
    table.add_column("task", no_wrap=True)
    table.add_column("pruner", no_wrap=True)
    labels = sorted(labels, key=labels.get)
    for label in labels:
        table.add_column(label, justify="right")
    for panel, title in zip(found, row_titles(found), strict=True):
        for i, (name, points) in enumerate(panel.curves.items()):
            by_label = {p.label: p for p in points}
            table.add_row(title if i == 0 else "", name, *(_found(by_label.get(label)) for label in labels))
    return table


def _found(point: Point | None) -> str:
    if point is None:
        return ""
    return "/".join(f"{float(f'{100 * s.mean:.2g}'):g}" for s in (point.recall, point.precision))


def _table(panel: Panel, between: str) -> Table:
    from rich import box
    from rich.table import Table

    unit = "accuracy in %" if panel.is_accuracy else "mean squared error in units of 1e-4"
    title = f"[bold]{panel.task}[/] depth {panel.depth}, width {panel.width}, noise {panel.noise:g}: {unit}"
    mean, _, spread = _spread(panel.ticket, panel, " ").partition(" ")
    ticket = f"planted ticket: {mean} ({spread}) at density {panel.ticket_density:.3g}"
    table = Table(
        title=f"{title}\n{ticket}", title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("pruner", no_wrap=True)
    table.add_column("", no_wrap=True)
    for label, density in panel.densities.items():
        header = f"ticket {density:.2g}" if label == "ticket" else label
        table.add_column(header, justify="right")
    for name, points in panel.curves.items():
        by_label = {p.label: p for p in points}
        found = [by_label.get(label) for label in panel.densities]
        for stage in ("strong", "weak"):
            cells = ["" if p is None else _spread(getattr(p, stage), panel, between) for p in found]
            table.add_row(name if stage == "strong" else "", stage, *cells)
    return table


def _spread(spread: Spread, panel: Panel, between: str) -> str:
    if math.isnan(spread.mean):
        return "-"
    if panel.is_accuracy:
        mean, low, high = f"{100 * spread.mean:.1f}", f"{100 * spread.low:.0f}", f"{100 * spread.high:.0f}"
    else:
        mean, low, high = _rounded(spread.mean, 3), _rounded(spread.low, 2), _rounded(spread.high, 2)
    return f"{mean}{between}[dim]{low}-{high}[/]"


def _rounded(mse: float, n_digits: int) -> str:
    """In units of 1e-4, the noise of the data: there all the paper's errors are short without an exponent."""
    return f"{float(f'{mse / 1e-4:.{n_digits}g}'):g}"


def print_results(records: Sequence[dict], by: str | None = None) -> None:
    """Print the tables of the finished cells, if there are any: performance, then recovery."""
    from rich.console import Console

    if any(r["status"] == "ok" for r in records):
        for table in [*tables(records, Console().width, by), recovery_table(records, by)]:
            print_table(table)


def print_table(table: Table) -> None:
    """Print a table. In a pipe or a file a line is as long as it needs, so that no number is cut
    short and no path broken."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _width(table)))
    console.print(table)


def _width(table: Table) -> int:
    """Characters a line that a table needs."""
    from rich.console import Console

    return Console(width=10_000).measure(table).maximum


def print_closing(
    report: Report, records: Sequence[dict], besides: dict[str, float], places: dict[str, str | None]
) -> None:
    """Print how many cells ran and diverged, where the time went, and where the results are.

    Args:
        report: of the run.
        records: of its cells, those stored before included.
        besides: name -> seconds of what was done around the sweep.
        places: name -> path; None is left out.
    """
    from rich.table import Table
    from rich.text import Text

    n_failed = report.n_failed + report.n_failed_before
    counts = f"{report.n_ok} new, {report.n_skipped} stored before, {n_failed} failed"
    if n_diverged := sum(diverged(r) for r in records):
        counts += f", [bold yellow]{n_diverged} diverged[/] (a loss or metric is not finite)"
    seconds, by = dict(report.seconds), ""
    if report.executor != "serial":
        besides = {**besides, "store": seconds.pop("store", 0.0)}  # the driver's own, beside the workers'
        by = f" by {report.n_workers} {'worker' if report.n_workers == 1 else 'workers'} ({report.executor})"
    table = Table.grid(padding=(0, 2))
    table.add_row("networks", f"{report.n_cells}: {counts}")
    around = ", ".join(f"{name} {s:.1f} s" for name, s in besides.items())
    table.add_row("time", f"[bold]{seconds['total']:.1f} s[/] the sweep{by}; besides {around}")
    for name, path in places.items():
        if path:
            table.add_row(name, Text(path))  # a name may look like markup
    print_table(_split({**seconds, "total": seconds["total"] * report.n_workers}, bool(by)))
    print_table(table)


def phases(seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of a run by phase, in a fixed order, with what is left of "total" as "other"."""
    named = {name: s for name, s in seconds.items() if name != "total"}
    order = sorted(named, key=lambda name: (_PHASES.index(name) if name in _PHASES else len(_PHASES), name))
    return {name: named[name] for name in order} | {"other": seconds["total"] - sum(named.values())}


def _split(seconds: dict[str, float], of_workers: bool) -> Table:
    """Where the sweep's time went: a column a phase, in seconds and percent; those of several workers added up."""
    from rich import box
    from rich.table import Table

    total, split = seconds["total"], phases(seconds)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("sweep", no_wrap=True)
    for name in split:
        table.add_column(name, justify="right")
    table.add_row("worker seconds" if of_workers else "seconds", *(f"{s:.2f}" for s in split.values()))
    table.add_row("percent", *(f"{100 * s / total:.1f}" if total > 0 else "-" for s in split.values()))
    return table
