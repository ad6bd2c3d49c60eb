"""``pns-fast plot``: the figure, the CSV and the tables of a store."""

from __future__ import annotations

import argparse

from .options import COMMON, SHOWN, UsageError, add_where, check_outputs, nonempty, stored, write_outputs


def add(commands) -> None:
    parser = commands.add_parser("plot", help="draw the figure of a store", **COMMON)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("-o", "--figure", metavar="FIG", type=nonempty, required=True, help=".png, .pdf or .svg")
    parser.add_argument(
        "--show",
        choices=SHOWN,
        default=SHOWN[0],
        help="performance, recovery of the planted parameters, or what is kept and recovered by layer",
    )
    parser.add_argument("--csv", metavar="FILE", type=nonempty, help="also write the networks drawn, one a row")
    add_where(parser)
    parser.add_argument("--quiet", action="store_true", help="no tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_outputs(args.figure, args.csv)
    from ..sweeps.table import print_results

    records = stored(args.store, args.where)
    if not any(r["status"] == "ok" for r in records):
        raise UsageError(f"store {args.store}: no finished cells{' that match' if args.where else ''}")
    write_outputs(records, args.figure, args.csv, args.show)
    if not args.quiet:
        print_results(records)
        print(f"figure  {args.figure}")
    return 0
