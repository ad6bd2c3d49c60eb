"""``pns-fast report``: a store as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import COMMON, UsageError, add_where, nonempty, stored


def add(commands) -> None:
    parser = commands.add_parser(
        "report", help="a store as one HTML page: figures, numbers, failures, commands", **COMMON
    )
    parser.add_argument("store", metavar="STORE")
    text = ".html; needs no other file to be read"
    parser.add_argument("-o", "--output", metavar="FILE", type=nonempty, required=True, help=text)
    add_where(parser)
    parser.add_argument("--title", metavar="TEXT", help="of the page; the store's file name if not given")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output: expected a file name ending in .html or .htm, got {args.output!r}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {args.output}: there is no directory {output.parent}")
    from .. import sweeps

    records = stored(args.store, args.where)
    if not records:
        raise UsageError(f"store {args.store}: no cells{' that match' if args.where else ''}")
    note = f"Only networks with {', '.join(args.where)}." if args.where else ""
    sweeps.save_report(args.store, output, records, args.title, note)
    if not args.quiet:
        print(f"report  {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 0
