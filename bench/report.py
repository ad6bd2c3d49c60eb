"""What a run prints and stores: a table a case, a summary against the strongest peers, JSON."""

from __future__ import annotations

from dataclasses import asdict

from ceilings import Ceilings
from harness import Case, Result, Row
from rich.console import Console
from rich.table import Table

from pns_fast import __version__

WIDTHS = {"contender": 28, "median": 8, "min": 8, "rate": 8, "of": 6, "ratio": 8}
NOISY = 1.5
RATES = {"fma": ("GFLOP/s", "of FMA"), "read": ("GB/s", "of read"), "copy": ("GB/s", "of copy")}


def time_text(seconds: float | None) -> str:
    """Three digits and a unit: 12.3 us."""
    if seconds is None:
        return "-"
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_three_digits(ratio)}x"


def _share(result: Result, row: Row, ceilings: Ceilings) -> float | None:
    """Of the ceiling, in percent: of the row's own, or of the run's."""
    ceiling = row.ceiling or ceilings.of(row.case.ceiling)
    return None if ceiling is None or result.rate is None else 100 * result.rate / ceiling


def _note(result: Result) -> str:
    parts = [] if result.status in ("ok", "cannot run") else [result.status.upper()]
    parts += [result.contender.note] if result.contender.note else []
    parts += ["1 repeat"] if result.repeats == 1 else []
    return ", ".join(parts)


def print_kernel(console: Console, case: Case) -> None:
    rate, share = RATES[case.ceiling]
    console.print(
        f"\n[bold]{case.kernel}[/bold]  (time of a {case.unit}; ratio: peer / ours; * marks the strongest peer)"
    )
    table = _columns(Table(box=None, show_header=False, pad_edge=False, collapse_padding=True))
    table.add_row("", "median", "min", rate, share, "ratio", "", style="dim")
    console.print(table)


def _columns(table: Table) -> Table:
    table.add_column("contender", width=WIDTHS["contender"], no_wrap=True)
    for name in ("median", "min", "rate", "of", "ratio"):
        table.add_column(name, width=WIDTHS[name] + (name == "of"), justify="right", no_wrap=True)
    table.add_column("note", style="dim", overflow="fold")
    return table


def print_row(console: Console, row: Row, ceilings: Ceilings) -> None:
    title = row.case.label if row.agrees else f"{row.case.label}: RESULTS DO NOT AGREE"
    style = {"title_style": "bold cyan" if row.agrees else "bold red", "title_justify": "left"}
    table = _columns(Table(title=title, box=None, show_header=False, pad_edge=False, collapse_padding=True, **style))
    for result in row.results:
        share, mark = _share(result, row, ceilings), "* " if result is row.strongest else "  "
        table.add_row(
            mark + result.contender.name,
            time_text(result.median),
            time_text(result.minimum),
            "-" if result.rate is None else _three_digits(result.rate),
            "-" if share is None else f"{share:.0f}%",
            ratio_text(row.ratio(result)) if result.is_peer else "",
            _note(result),
            style="bold" if result.contender.is_ours else None if result.median is not None else "dim",
        )
    console.print(table)


def print_summary(console: Console, rows: list[Row]) -> None:
    """One line a case: us against the strongest peer, whoever wins."""
    table = Table(title="Against the strongest peer", title_justify="left", box=None, pad_edge=False)
    table.add_column("case", no_wrap=True, width=43)
    table.add_column("ours", justify="right", no_wrap=True, width=7)
    table.add_column("strongest peer", no_wrap=True, width=25)
    table.add_column("its time", justify="right", no_wrap=True, width=8)
    table.add_column("ratio", justify="right", no_wrap=True, width=8)
    every, rows = rows, [row for row in rows if row.case.compared]
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1].case.kernel != row.case.kernel:
            table.add_row(f"[bold]{row.case.kernel}[/bold]")
        peer = row.strongest
        ratio = None if peer is None else row.ratio(peer)
        table.add_row(
            row.case.label,
            time_text(row.ours.median),
            "none ran" if peer is None else peer.contender.name,
            time_text(None if peer is None else peer.median),
            ratio_text(ratio),
            style="red" if ratio is not None and ratio < 1 else None,
        )
    console.print()
    console.print(table)
    won = sum(r.strongest is not None and r.ratio(r.strongest) >= 1 for r in rows)
    console.print(f"faster than the strongest peer in {won} of {len(rows)} cases")
    if len(every) > len(rows):
        console.print(f"and {len(every) - len(rows)} points of cost curves, see above, --json and --figure")
    noisy = [r for row in every for r in row.results if r.median is not None and r.median > NOISY * r.minimum]
    if noisy:
        total = sum(r.median is not None for row in every for r in row.results)
        console.print(f"[yellow]{len(noisy)} of {total} medians exceed {NOISY}x their minimum: a busy machine[/yellow]")
    for row in every:
        if not row.agrees:
            console.print(f"[bold red]results do not agree:[/bold red] {row.case.kernel}, {row.case.label}")


def print_head(console: Console, machine: dict) -> None:
    console.print(
        f"[bold]pns_fast {__version__}[/bold] on {machine['cpu']}, {machine['cores']} cores, SIMD {machine['simd']}"
    )
    if machine["gpu"]:
        console.print(
            f"[bold]{machine['gpu']}[/bold], {machine['gpu_sms']} SMs, {machine['gpu_memory_gib']} GiB, "
            f"{machine['gpu_architecture']}, driver {machine['driver']}, torch's CUDA {machine['cuda']}"
        )
    jax = f"JAX {machine['jax']}" if machine["jax"] else "JAX not installed"
    console.print(
        f"{machine['threads']} threads, torch {machine['torch']}, numpy {machine['numpy']}, {jax}, {machine['date']}"
    )
    if machine["load"] > 0.3 * machine["cores"]:
        console.print(
            f"[yellow]load average {machine['load']:.1f}: the machine is not idle, do not keep these numbers[/yellow]"
        )


def print_ceilings(console: Console, ceilings: Ceilings) -> None:
    def text(value: float | None, unit: str) -> str:
        return "not measured" if value is None else f"{_three_digits(value)} {unit}"

    console.print(
        f"ceilings: read {text(ceilings.read, 'GB/s')}, copy {text(ceilings.copy, 'GB/s')} "
        f"({ceilings.n_bytes >> 20} MiB), FMA {text(ceilings.fma, 'GFLOP/s')}; by {ceilings.how}"
    )


def as_dict(rows: list[Row], machine: dict, ceilings: Ceilings, command: str) -> dict:
    """Everything measured; times in seconds, rates in GB/s or GFLOP/s."""
    return {
        "version": __version__,
        "command": command,
        "machine": machine,
        "ceilings": ceilings.as_dict(),
        "rows": [_row_dict(row, ceilings) for row in rows],
    }


def _row_dict(row: Row, ceilings: Ceilings) -> dict:
    return {
        "kernel": row.case.kernel,
        "case": row.case.label,
        "unit": row.case.unit,
        "rate_unit": RATES[row.case.ceiling][0],
        "agrees": row.agrees,
        "compared": row.case.compared,
        "points": [asdict(point) for point in row.case.points],
        "contenders": [
            {
                "name": r.contender.name,
                "is_ours": r.contender.is_ours,
                "is_ceiling": r.contender.is_ceiling,
                "is_strongest": r is row.strongest,
                "status": r.status,
                "median": r.median,
                "min": r.minimum,
                "repeats": r.repeats,
                "rate": r.rate,
                "percent_of_ceiling": _share(r, row, ceilings),
                "ratio": row.ratio(r),
                "note": r.contender.note,
            }
            for r in row.results
        ],
    }
