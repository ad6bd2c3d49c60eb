"""``pns-fast plot``: the figure, the CSV and the tables of a store."""

from __future__ import annotations

import argparse
from dataclasses import fields

from ..sweeps.grid import Cell
from .options import COMMON, UsageError, check_outputs, write_outputs


def add(commands) -> None:
    parser = commands.add_parser("plot", help="draw the figure of a store", **COMMON)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("-o", "--figure", metavar="FIG", required=True, help=".png, .pdf or .svg")
    parser.add_argument("--csv", metavar="FILE", help="also write the networks drawn, one a row")
    parser.add_argument(
        "--where", metavar="NAME=VALUE", action="append", default=[], help="only these cells, e.g. depth=5"
    )
    parser.add_argument("--quiet", action="store_true", help="no tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_outputs(args.figure, args.csv)
    from .. import sweeps
    from ..sweeps.table import print_results

    records = [r for r in sweeps.read(args.store) if all(_matches(r, where) for where in args.where)]
    if not any(r["status"] == "ok" for r in records):
        raise UsageError(f"store {args.store}: no finished cells{' that match' if args.where else ''}")
    write_outputs(records, args.figure, args.csv)
    if not args.quiet:
        print_results(records)
        print(f"figure  {args.figure}")
    return 0


def _matches(record: dict, where: str) -> bool:
    name, equals, text = where.partition("=")
    known = [f.name for f in fields(Cell)]
    if not equals or name not in known:
        raise UsageError(f"--where: expected NAME=VALUE with a name out of {', '.join(known)}, got {where!r}")
    value = record.get(name)
    try:
        return value == (type(value)(text) if isinstance(value, (int, float)) else text)
    except ValueError:
        raise UsageError(f"--where: {name} is a number, got {where!r}") from None
