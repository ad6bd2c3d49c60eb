"""A store as one HTML page that needs nothing else: figures, numbers, failures, and how it was run.

The same store gives the same bytes: nothing here asks for the time or the place.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from string import Template

from .. import __version__
from .figure_style import png
from .figures import figure
from .grid import DEFAULTS, MODES, Cell
from .markup import Markup, escaped, joined, table, tag
from .rerun import command, shell
from .store import read, runs
from .summary import Panel, Point, Spread, diverged, panels, rank
from .table import phases
from .truth_figures import layers_figure, recovery_figure
from .whole_file import whole_file

_TEMPLATE = Path(__file__).with_name("report_template.html")
_DPI = 140
_MODE_TITLES = {"singleshot": "Single-shot", "multishot": "Multi-shot", "edge-popup": "Edge-popup"}
# What cells may differ in within one section; all else tells sections apart.
_WITHIN = ("task", "pruner", "density_label", "density", "seed")
_FIGURES = (
    (
        "Performance",
        figure,
        "Metric on the test split against density, after pruning (left) and after training (right): mean and range "
        "over the seeds. The star and the dashed line are the planted ticket. Hollow: most networks collapsed.",
    ),
    (
        "What was found of the ticket",
        recovery_figure,
        "Precision: planted parameters among the kept ones. Recall: kept ones among the planted. Grey is what a random "
        "mask is expected to have. Effective density counts parameters on a path from input to output; the diagonal "
        "is all of them.",
    ),
    (
        "By layer",
        layers_figure,
        "Kept density of the weights of each layer, and recall of the planted parameters, means over the seeds. Dashed "
        "is the planted ticket. A cross marks a layer that is empty in most networks: no input reaches an output.",
    ),
)
_COLUMNS = (
    *("section", "mode", "task", "depth", "width", "noise", "pruner", "density", "n", "collapsed", "metric", "ticket"),
    *("strong", "strong gap", "weak", "weak gap", "effective density", "precision", "recall", "f1"),
)


@dataclass(frozen=True)
class _Section:
    """Finished cells that can be drawn together."""

    anchor: str
    title: str
    settings: dict[str, object]
    records: list[dict]
    panels: list[Panel]


def save_report(
    store: str | os.PathLike,
    path: str | os.PathLike,
    records: Sequence[dict] | None = None,
    title: str | None = None,
    note: str = "",
) -> None:
    """Write :func:`report` to ``path``.

    Raises:
        StoreError, StoreAccessError: as for :class:`pns_fast.sweeps.Store`.
        ValueError: no cells.
        OSError: ``path`` cannot be written; a file that was there is then still there.
    """
    text = report(store, records, title, note)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")  # a file name may be no UTF-8


def report(
    store: str | os.PathLike, records: Sequence[dict] | None = None, title: str | None = None, note: str = ""
) -> str:
    """A store as one HTML page: figures by mode, architecture and settings; all numbers; failures; commands.

    Args:
        store: path of the store.
        records: its cells to report, out of :func:`pns_fast.sweeps.read`; None for all.
        title: of the page; the store's file name if not given.
        note: a line below the title, for example which cells were chosen.

    Returns:
        HTML that loads nothing from anywhere.

    Raises:
        StoreError, StoreAccessError: as for :class:`pns_fast.sweeps.Store`.
        ValueError: no cells.
    """
    records = read(store) if records is None else records
    if not records:
        raise ValueError("records: expected cells to report, got none")
    found, sections, name = runs(store), _sections(records), Path(store).name
    title = title or name
    failed = [r for r in records if r["status"] == "failed"]
    chapters = [(s.anchor, s.title, _section_body(s)) for s in sections]
    if sections:
        chapters.append(("numbers", "All numbers", _numbers(sections)))
    if failed:
        chapters.append(("failed", f"Failed: {len(failed)}", _failures(failed)))
    chapters += [
        ("runs", "Runs", _runs(found)),
        ("time", "Where the time went", _time(found)),
        ("again", "Run it again", _commands(found)),
    ]
    body = joined(
        [
            tag("h1", title),
            tag("p", note, class_="soft") if note else "",
            _facts(name, records, found),
            tag("nav", tag("ol", *(tag("li", tag("a", text, href=f"#{anchor}")) for anchor, text, _ in chapters))),
            *(tag("section", tag("h2", text, id=anchor), content) for anchor, text, content in chapters),
        ],
        "\n",
    )
    page = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return page.substitute(title=escaped(title), generator=f"pns_fast {__version__}", body=body)


def _sections(records: Iterable[dict]) -> list[_Section]:
    """Finished cells, apart by all that figures do not tell apart, and by architecture."""
    names = [f.name for f in fields(Cell) if f.name not in _WITHIN]
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        if record["status"] == "ok":
            groups.setdefault(tuple(record.get(name) for name in names), []).append(record)
    found = []
    for values in sorted(groups, key=_section_rank):
        settings = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        anchor = f"section-{len(found) + 1}"
        found.append(_Section(anchor, _section_title(settings), settings, groups[values], panels(groups[values])))
    return found


def _section_rank(values: tuple) -> tuple:
    mode, *others = values
    return MODES.index(mode), *((value is not None, value or 0) for value in others)


def _section_title(settings: dict) -> str:
    """Mode and architecture, and the settings that are not the mode's defaults."""
    mode = settings["mode"]
    parts = [f"depth {settings['depth']}", f"width {settings['width']}", f"noise {settings['noise']:g}"]
    parts += [f"{n} {settings[n]}" for n, default in DEFAULTS[mode].items() if settings.get(n) != default]
    return ", ".join([_MODE_TITLES[mode], *parts])


def _section_body(section: _Section) -> Markup:
    mode = section.settings["mode"]
    counted = f"{len(section.records):,} networks. "
    settings = ", ".join(f"{name} {value}" for name, value in section.settings.items() if name in DEFAULTS[mode])
    return joined(
        [
            tag("p", counted, settings, class_="soft"),
            *(_drawn(section, *one) for one in _FIGURES),
        ],
        "\n",
    )


def _drawn(section: _Section, title: str, draw: Callable, caption: str) -> Markup:
    image = base64.b64encode(png(lambda: draw(section.records), _DPI)).decode()
    picture = tag("img", src=f"data:image/png;base64,{image}", alt=f"{title}: {section.title}")
    return joined([tag("h3", title), tag("figure", picture, tag("figcaption", caption))])


def _numbers(sections: Sequence[_Section]) -> Markup:
    rows = [
        [tag("td", tag("a", i, href=f"#{s.anchor}"), data_v=i), s.settings["mode"], *_row(panel, name, point)]
        for i, s in enumerate(sections, 1)
        for panel in s.panels
        for name, points in panel.curves.items()
        for point in points
    ]
    about = (
        "Means over n networks, small their range; accuracy in %, rescaled mean squared errors in units of 1e-4. A gap "
        "is how much worse than the planted ticket on the same test split. Click on a header to sort."
    )
    return joined([tag("p", about, class_="soft"), tag("div", table(_COLUMNS, rows, class_="sortable"), class_="wide")])


def _row(panel: Panel, pruner: str, point: Point) -> list[object]:
    density = f"{point.density:.3g}" + (" (ticket)" if point.label == "ticket" else "")
    metric = _percent if panel.is_accuracy else _error
    return [
        panel.task,
        *(_number(value, f"{value:g}") for value in (panel.depth, panel.width, panel.noise)),
        pruner,
        _number(point.density, density),
        _number(point.n, str(point.n)),
        _number(point.n_collapsed, str(point.n_collapsed)),
        "accuracy, %" if panel.is_accuracy else "MSE, 1e-4",
        _mean(panel.ticket, metric),
        _mean(point.strong, metric, with_range=True),
        _mean(point.strong_gap, metric),
        _mean(point.weak, metric, with_range=True),
        _mean(point.weak_gap, metric),
        *(_mean(s, _short) for s in (point.effective_density, point.precision, point.recall, point.f1)),
    ]


def _number(value: float, text: str, *more: object) -> Markup:
    """A cell that sorts by ``value``; not at all where that is NaN."""
    return tag("td", text, *more, data_v="" if math.isnan(value) else repr(value))


def _mean(spread: Spread, shown: Callable[[float], str], with_range: bool = False) -> Markup:
    if math.isnan(spread.mean):
        return _number(math.nan, "–")
    ends = [tag("small", f"{shown(spread.low)}–{shown(spread.high)}")] if with_range else []
    return _number(spread.mean, shown(spread.mean), *ends)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _error(value: float) -> str:
    return f"{float(f'{value / 1e-4:.3g}'):g}"  # in units of the noise of the data, as in the terminal's tables


def _short(value: float) -> str:
    return f"{value:.2g}"


def _failures(failed: Sequence[dict]) -> Markup:
    """A closed box a traceback, with the cells that ended in it: most often one mistake fails many."""
    by_error: dict[str, list[dict]] = {}
    for record in failed:
        by_error.setdefault(record["error"], []).append(record)
    boxes = []
    for error, records in sorted(by_error.items(), key=lambda item: (-len(item[1]), item[0])):
        last = error.strip().rpartition("\n")[2]
        cells = "\n".join(_described(r) for r in records)
        head = tag("summary", f"{len(records)} networks: " if len(records) > 1 else "1 network: ", tag("code", last))
        boxes.append(tag("details", head, tag("pre", error.rstrip()), tag("pre", cells)))
    about = "The same command with --retry-failed runs these networks again."
    return joined([tag("p", about, class_="soft"), *boxes], "\n")


def _described(record: dict) -> str:
    numbers = ", ".join(f"{name} {record[name]:g}" for name in ("depth", "width", "noise"))
    density = f"density {record['density_label']}, seed {record['seed']}"
    return f"{record['mode']}, {record['task']}, {numbers}, {record['pruner']}, {density}: {record['key']}"


def _facts(name: str, records: Sequence[dict], found: Sequence[dict]) -> Markup:
    """The store in a few lines, before everything else."""
    status = Counter(r["status"] for r in records)
    counts = f"{len(records):,}: {status['ok']:,} finished, {status['failed']:,} failed"
    if n := sum(diverged(r) for r in records):
        counts += f", {n:,} diverged (a loss or metric is not finite)"
    facts = {
        "store": name,
        "networks": counts,
        **{f"{what}s": _distinct(sorted((r[what] for r in records), key=rank)) for what in ("task", "pruner")},
        "densities": _distinct(r["density_label"] for r in sorted(records, key=lambda r: r["density"])),
        "seeds": f"{len({r['seed'] for r in records})}",
        "host": _distinct(run["host"] for run in found),
        "device": _distinct(run["versions"].get("device", "?") for run in found),
        "versions": _distinct(_versions(run) for run in found),
        "first run": _date(min((run["started"] for run in found), default=None)),
    }
    return tag("dl", *(joined([tag("dt", key), tag("dd", value)]) for key, value in facts.items()))


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _versions(run: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "device")


def _runs(found: Sequence[dict]) -> Markup:
    header = ("run", "started", "took", "host", "device", "versions", "asked for", "to do", "in the store")
    rows = [
        [
            _number(run["id"], str(run["id"])),
            _date(run["started"]),
            _took(run),
            run["host"],
            run["versions"].get("device", "?"),
            _versions(run),
            *(_number(n, f"{n:,}") for n in (*(run["asked"].get(n, 0) for n in ("cells", "pending")), run["n_cells"])),
        ]
        for run in found
    ]
    about = "Networks: asked for, of these not stored before, and those in the store that are of this run."
    return joined([tag("p", about, class_="soft"), table(header, rows)])


def _date(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _took(run: dict) -> str:
    return "killed, or still running" if run["finished"] is None else f"{run['finished'] - run['started']:.1f} s"


def _time(found: Sequence[dict]) -> Markup:
    """Seconds by phase of all runs together, with a bar each."""
    seconds: Counter[str] = Counter()
    for run in found:
        seconds.update(run["seconds"] or {})
    n_unknown = sum(not run["seconds"] for run in found)
    about = "All runs together, and all their workers."
    if n_unknown:
        about += f" {n_unknown} that did not end by themselves are not counted."
    wall = seconds.pop("total", 0.0)
    whole = max(wall, sum(seconds.values()))  # several workers have more seconds than the clock
    if whole <= 0:
        return tag("p", about, class_="soft")
    rows = [
        [
            name,
            _number(s, f"{s:.2f}"),
            _number(s, f"{100 * s / whole:.1f}"),
            tag("td", tag("span", class_="bar", style=f"width: {16 * s / whole:.3f}rem")),
        ]
        for name, s in phases({**seconds, "total": whole}).items()
    ]
    rows.append([tag("td", tag("b", "by the clock")), _number(wall, f"{wall:.2f}"), "", ""])
    return joined([tag("p", about, class_="soft"), table(("phase", "seconds", "%", ""), rows)])


def _commands(found: Sequence[dict]) -> Markup:
    """Each command line once, in the order of its first run, and which runs it made."""
    by_command: dict[str | None, list[str]] = {}
    for run in found:
        arguments = command(run["asked"])
        by_command.setdefault(arguments and shell(arguments), []).append(str(run["id"]))
    parts: list[Markup] = []
    for text, numbers in by_command.items():
        ran = f"Run{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        if text is None:
            parts.append(tag("p", f"{ran}: from Python (pns_fast.sweeps.run), no command line.", class_="soft"))
        else:
            parts += [tag("p", f"{ran}:", class_="soft"), tag("pre", text)]
    return joined(parts)
