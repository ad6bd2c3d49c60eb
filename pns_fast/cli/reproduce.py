"""``pns-fast reproduce``: the paper's figures on the planted tasks, each by its name."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..sweeps.paper import FIGURES
from . import reproduce_images
from .options import COMMON, UsageError, check_seeds, nonempty
from .running import (
    add_run_options,
    count_cells,
    open_executor,
    own_shard,
    place,
    report_failures,
    run_cells,
    shard_suffix,
)

if TYPE_CHECKING:
    from ..sweeps import Executor

_ABOUT = (
    "Run the networks of figures of the paper and draw them. All share one store, so that a figure takes from it "
    "what another has, a run that was stopped goes on, and more --seeds add to what is there."
)


def add(commands) -> None:
    parser = commands.add_parser(
        "reproduce", help="the paper's figures: run, resume, draw", description=_ABOUT, **COMMON
    )
    parser.add_argument("figures", metavar="FIGURE", nargs="+", help=f"{', '.join(FIGURES)} or all; or fig5")
    text = "for figures, CSV files and the store; paper if not given"
    parser.add_argument("--out", metavar="DIR", type=nonempty, help=text)
    parser.add_argument("--store", metavar="FILE", type=nonempty, help="SQLite; paper.db in --out if not given")
    parser.add_argument("--quick", action="store_true", help="a small version in seconds, by default in paper-quick")
    parser.add_argument("--seeds", metavar="N", type=int, help="networks a point; the paper's number if not given")
    add_run_options(parser)
    reproduce_images.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if reproduce_images.is_asked(args):
        return reproduce_images.run(args)
    names = _names(args.figures)
    if args.seeds is not None:
        check_seeds(args.seeds)
    out = Path(args.out or ("paper-quick" if args.quick else "paper"))
    store = args.store or str(out / f"paper{shard_suffix(args)}.db")
    if args.dry_run:
        for name in names:
            cells = own_shard(FIGURES[name].cells(args.seeds, args.quick), args)
            print(f"{name:6} {count_cells(cells, store)}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    code = 0
    with open_executor(args) as executor:
        for name in names:
            code = max(code, _reproduce(name, out, store, args, executor))
            if code == 130:
                return code
    if args.shard is None:  # of a part nothing can be said
        page = _compare(names, out, store, args)
        if not args.quiet:
            print(f"the paper's claims, measured: {page}")
    return code


def _reproduce(name: str, out: Path, store: str, args: argparse.Namespace, executor: Executor | None) -> int:
    from .. import sweeps

    figure = FIGURES[name]
    if not args.quiet:
        print(f"{name}  {figure.title}", flush=True)
    cells = own_shard(figure.cells(args.seeds, args.quick), args)
    options = ("quick", "seeds", "out", "store", "device", "threads", "chunk", "scheduler", "shard")
    asked = {"reproduce": name} | {option: getattr(args, option) for option in options}
    report = run_cells(cells, store, args, name, asked, executor)
    if report.interrupted:
        return 130
    records = sweeps.read(store, [c.key for c in cells])
    begin = time.perf_counter()
    files = [] if args.shard else figure.save(records, out / name)  # a figure of a part would show nothing
    if not args.quiet:
        from ..sweeps.table import print_closing, print_results

        print_results(records, figure.by)
        places = {"device": place(args.device), "store": store} | {
            f"{file.stem.removeprefix(name).lstrip('-')} {file.suffix[1:]}".strip(): str(file) for file in files
        }
        print_closing(report, records, {"figure": time.perf_counter() - begin}, places)
    return report_failures(records)


def _compare(names: list[str], out: Path, store: str, args: argparse.Namespace) -> Path:
    """Print what the paper says of these figures beside what was measured; write that of all figures in the store."""
    from .. import sweeps
    from ..sweeps.results import claims_table, judge, write_page

    stored = {r["key"]: r for r in sweeps.read(store)}
    records = {}
    for name, figure in FIGURES.items():
        keys = [c.key for c in figure.cells(args.seeds, args.quick)]
        if all(key in stored for key in keys):
            records[name] = [stored[key] for key in keys]
    if not args.quiet:
        from rich.console import Console

        console = Console(highlight=False)
        for name, claims in judge(records).items():
            if name in names and claims:
                console.print(f"[bold]{name}[/]  {FIGURES[name].title}", claims_table(claims))
    return write_page(records, out / "results.md", sweeps.runs(store), args.quick)


def _names(given: list[str]) -> list[str]:
    for name in given:
        if name not in (*FIGURES, "all"):
            raise UsageError(f"FIGURE: expected one of {', '.join(FIGURES)} or all, got {name!r}")
    return list(FIGURES) if "all" in given else list(dict.fromkeys(given))
