"""``pns-fast theory``: how likely a ticket is there by chance, and how wide a network that has it must be."""

from __future__ import annotations

import argparse

from .options import COMMON, UsageError, check_outputs, comma_list, nonempty

_ABOUT = (
    "Lemma 1 and Theorem 2 for a task's ticket: how far the parameters of each layer may be off, the lower bound on "
    "the probability that a random network contains the ticket, and the width that takes it to --probability. All "
    "layers but the input have the same width, the last one included, as in the paper."
)


def add(commands) -> None:
    parser = commands.add_parser(
        "theory", help="how wide a network must be to contain a ticket by chance", description=_ABOUT, **COMMON
    )
    parser.add_argument("--task", default="relu", help="circle, relu or helix")
    parser.add_argument("--depth", type=int, default=5, help="neuron layers, input and output included")
    parser.add_argument("--eps", metavar="X", type=float, default=0.1, help="how far the output may be off")
    parser.add_argument("--probability", metavar="P", type=float, default=0.9, help="to reach")
    parser.add_argument("--width", metavar="LIST", type=comma_list(int), default="100", help="bounds at these widths")
    parser.add_argument("--init", default="uniform", help="initial parameters: uniform or normal (also he_scaled)")
    parser.add_argument("--norm", default="max", help="of weights in Lemma 1: max, as printed, or spectral, as proven")
    parser.add_argument("--output", default="matched", help="of the last layer: matched, or trained and not searched")
    parser.add_argument("--simulate", metavar="N", type=int, help="search N random networks of each width")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first of them")
    parser.add_argument("--figure", metavar="FIG", type=nonempty, help="bound against width: .png, .pdf or .svg")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.simulate is not None and args.simulate < 1:
        raise UsageError(f"argument --simulate: expected at least 1, got {args.simulate}")
    check_outputs(args.figure, None)
    from ..sweeps.theory import evaluate, print_evaluated, save_theory_figure

    evaluated = evaluate(
        args.task, args.depth, args.eps, args.probability, args.width, args.init, args.norm, args.output,
        n=args.simulate or 0, seed=args.seed,
    )  # fmt: skip
    print_evaluated(evaluated)
    if args.figure:
        save_theory_figure(evaluated, args.figure)
        print(f"figure  {args.figure}")
    return 0
