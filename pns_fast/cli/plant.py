"""``pns-fast plant``: plant tickets and check that they are exact."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import COMMON, UsageError, add_device, nonempty, seeds


def add(commands) -> None:
    parser = commands.add_parser("plant", help="plant tickets and check that they are exact", **COMMON)
    parser.add_argument("--task", default="circle", help="circle, relu or helix")
    parser.add_argument("--depth", type=int, default=5, help="neuron layers, input and output included")
    parser.add_argument("--width", type=int, default=100, help="neurons in a hidden layer")
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="number of networks")
    parser.add_argument("--first-seed", metavar="N", type=int, default=0, help="seed of the first network")
    parser.add_argument("--scheme", default="he_scaled", help="initial parameters: he_scaled or uniform")
    parser.add_argument("--assignment", default="greedy", help="greedy or optimal")
    add_device(parser)
    parser.add_argument("--out", metavar="FILE", type=nonempty, help="save networks and masks with torch.save")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.out and not Path(args.out).parent.is_dir():
        raise UsageError(f"--out {args.out}: there is no directory {Path(args.out).parent}")
    from ..sweeps.planted import check_planted, print_planted, save_planted

    checked = check_planted(
        args.task, args.depth, args.width, list(seeds(args)), args.scheme, args.assignment, args.device
    )
    print_planted(checked)
    if args.out:
        save_planted(checked, args.out)
        print(f"saved   {args.out}")
    return 0 if checked.is_exact else 1
