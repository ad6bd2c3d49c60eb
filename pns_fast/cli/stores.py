"""``pns-fast sweep merge`` and ``sweep status``: what is done with stores, not with networks. Neither needs torch."""

from __future__ import annotations

import argparse
from collections import Counter
from datetime import datetime

from .options import COMMON, nonempty


def add(modes) -> None:
    """Both parsers, beside those of the modes."""
    about = "copy the cells of several stores into one: shards of a sweep, or stores of several machines"
    parser = modes.add_parser(
        "merge", help=about, description=f"{about}. Finished cells win over failed ones.", **COMMON
    )
    parser.add_argument("stores", metavar="STORE", nargs="+", help="only read")
    text = "the store to add to; made if missing"
    parser.add_argument("-o", "--out", metavar="FILE", type=nonempty, required=True, help=text)
    parser.set_defaults(run=run_merge)

    about = "count the cells of a store and list the runs that wrote to it; a running sweep is not disturbed"
    parser = modes.add_parser("status", help=about, description=about, **COMMON)
    parser.add_argument("store", metavar="STORE")
    parser.set_defaults(run=run_status)


def run_merge(args: argparse.Namespace) -> int:
    from ..sweeps.merging import merge

    for m in merge(args.stores, args.out):
        print(f"{m.source}: {m.n_new} new, {m.n_replaced} in the place of failed ones, {m.n_known} known")
    return 0


def run_status(args: argparse.Namespace) -> int:
    from ..sweeps.store import read, runs

    counts = Counter((r["mode"], r["task"], r["status"]) for r in read(args.store))
    print(f"{sum(counts.values())} cells")
    for mode, task in sorted({key[:2] for key in counts}):
        print(f"  {mode} {task}: {counts[mode, task, 'ok']} ok, {counts[mode, task, 'failed']} failed")
    for run in runs(args.store):
        started = datetime.fromtimestamp(run["started"]).strftime("%Y-%m-%d %H:%M:%S")
        by = f"{run['asked'].get('executor', 'serial')}, workers {run['asked'].get('workers', 1)}"
        took = "not ended: killed, or running" if run["seconds"] is None else f"{run['seconds']['total']:.1f} s"
        print(f"run {run['id']}: {started} on {run['host']}, {by}, {run['n_cells']} cells stored, {took}")
    return 0
