"""``pns-fast reproduce``: the paper's figures on the planted tasks, each by its name."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..sweeps.paper import FIGURES
from .options import COMMON, UsageError
from .running import add_run_options, count_cells, place, report_failures, run_cells

_ABOUT = (
    "Run the networks of figures of the paper and draw them. All share one store, so that a figure takes from it "
    "what another has, a run that was stopped goes on, and more --seeds add to what is there."
)


def add(commands) -> None:
    parser = commands.add_parser(
        "reproduce", help="the paper's figures: run, resume, draw", description=_ABOUT, **COMMON
    )
    parser.add_argument("figures", metavar="FIGURE", nargs="+", help=f"{', '.join(FIGURES)} or all")
    parser.add_argument("--out", metavar="DIR", help="for figures, CSV files and the store; paper if not given")
    parser.add_argument("--store", metavar="FILE", help="SQLite; paper.db in --out if not given")
    parser.add_argument("--quick", action="store_true", help="a small version in seconds, by default in paper-quick")
    parser.add_argument("--seeds", metavar="N", type=int, help="networks a point; the paper's number if not given")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    names = _names(args.figures)
    if args.seeds is not None and args.seeds < 1:
        raise UsageError(f"argument --seeds: expected at least 1, got {args.seeds}")
    out = Path(args.out or ("paper-quick" if args.quick else "paper"))
    store = args.store or str(out / "paper.db")
    if args.dry_run:
        for name in names:
            print(f"{name:6} {count_cells(FIGURES[name].cells(args.seeds, args.quick), store)}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    code = 0
    for name in names:
        code = max(code, _reproduce(name, out, store, args))
        if code == 130:
            break
    return code


def _reproduce(name: str, out: Path, store: str, args: argparse.Namespace) -> int:
    from .. import sweeps

    figure = FIGURES[name]
    if not args.quiet:
        print(f"{name}  {figure.title}", flush=True)
    cells = figure.cells(args.seeds, args.quick)
    options = ("quick", "seeds", "out", "store", "device", "threads", "chunk")
    asked = {"reproduce": name} | {option: getattr(args, option) for option in options}
    report = run_cells(cells, store, args, name, asked)
    if report.interrupted:
        return 130
    records = sweeps.read(store, [c.key for c in cells])
    begin = time.perf_counter()
    files = figure.save(records, out / name)
    if not args.quiet:
        from ..sweeps.table import print_closing, print_results

        print_results(records, figure.by)
        places = {"device": place(args.device), "store": store} | {
            f"{file.stem.removeprefix(name).lstrip('-')} {file.suffix[1:]}".strip(): str(file) for file in files
        }
        print_closing(report, records, {"figure": time.perf_counter() - begin}, places)
    return report_failures(records)


def _names(given: list[str]) -> list[str]:
    if "fig5" in given:
        raise UsageError("fig5: needs convolutional networks, which cannot be planted yet")
    for name in given:
        if name not in (*FIGURES, "all"):
            raise UsageError(f"FIGURE: expected one of {', '.join(FIGURES)} or all, got {name!r}")
    return list(FIGURES) if "all" in given else list(dict.fromkeys(given))
