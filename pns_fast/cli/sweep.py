"""``pns-fast sweep``: a grid of networks into a store."""

from __future__ import annotations

import argparse
import time

from ..sweeps.config import read_options, write_options
from ..sweeps.grid import DEFAULTS, MODES, density_label
from . import stores
from .options import COMMON, UsageError, check_outputs, comma_list, nonempty, seeds, write_outputs
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

_PAPER_SEEDS = {"singleshot": 25, "multishot": 10, "edge-popup": 10}


def add(commands) -> None:
    parser = commands.add_parser("sweep", help="run a grid of networks into a store; resumes by default", **COMMON)
    modes = parser.add_subparsers(metavar="MODE", required=True)
    about = {
        "singleshot": "score once at the initial parameters, prune, train (the paper's Figure 3)",
        "multishot": "rounds of train, prune, rewind; then train (Figure 4)",
        "edge-popup": "train scores, not parameters; then train what they keep (Figure 4)",
    }
    for mode in MODES:
        _add_options(modes.add_parser(mode, help=about[mode], description=about[mode], **COMMON), mode)
    stores.add(modes)


def _add_options(parser: argparse.ArgumentParser, mode: str) -> None:
    grid = parser.add_argument_group("the grid (lists are comma-separated)")
    pruners = "edge-popup, edge-popup-anneal or all"
    if mode != "edge-popup":
        pruners = "all (random, magnitude, snip, grasp, synflow), force, phew, or one of your own, see --plugin"
    grid.add_argument("--task", metavar="LIST", type=comma_list(str), default="all", help="circle, relu, helix or all")
    grid.add_argument("--pruner", metavar="LIST", type=comma_list(str), default="all", help=pruners)
    grid.add_argument(
        "--density",
        metavar="LIST",
        type=comma_list(density_label),
        default="ticket,0.01,0.1,0.5,1",
        help="fractions of parameters to keep; ticket is that of the planted one",
    )
    grid.add_argument("--seeds", metavar="N", type=int, default=_PAPER_SEEDS[mode], help="networks a point")
    grid.add_argument("--first-seed", metavar="N", type=int, default=0, help="seed of the first of them")
    grid.add_argument(
        "--depth",
        metavar="LIST",
        type=comma_list(int),
        default="5",
        help="neuron layers, input and output included",
    )
    grid.add_argument("--width", metavar="LIST", type=comma_list(int), default="100", help="neurons in a hidden layer")
    grid.add_argument("--noise", metavar="LIST", type=comma_list(float), default="0.01", help="of the labels")

    if mode != "edge-popup":
        about = "Python files or modules that register pruners of your own; imported first, noted in the store"
        grid.add_argument("--plugin", metavar="LIST", type=comma_list(str), help=about)

    settings = parser.add_argument_group("settings, the same for all networks")
    for name, value in DEFAULTS[mode].items():
        settings.add_argument(
            f"--{_flag(name)}",
            dest=name,
            metavar=_METAVARS[type(value)],
            type=type(value),
            default=value,
            help=_SETTING_HELP[name],
        )

    outputs = parser.add_argument_group("where to, and how")
    text = f"SQLite; what it holds is skipped; pns-{mode}.db if not given"
    outputs.add_argument("--store", metavar="FILE", type=nonempty, help=text)
    outputs.add_argument("--figure", metavar="FIG", type=nonempty, help=".png, .pdf or .svg")
    outputs.add_argument("--csv", metavar="FILE", type=nonempty, help="one row a network")
    outputs.add_argument("--config", metavar="TOML", type=nonempty, help="take options from a file; flags win over it")
    outputs.add_argument("--print-config", action="store_true", help="print the options as TOML and stop")
    add_run_options(outputs)
    parser.set_defaults(run=run, mode=mode, parser=parser)


_METAVARS = {int: "N", float: "X", str: "NAME"}
_SETTING_HELP = {
    "n_samples": "samples of a data set, a tenth of them held out",
    "epochs": "of the final training",
    "batch_size": "samples a step",
    "lr": "learning rate (Adam)",
    "scheme": "initial parameters: he_scaled or uniform",
    "assignment": "of planted neurons: greedy or optimal",
    "scope": "keep the density of the whole network or of each layer: global, layer, or erk (Erdos-Renyi-Kernel)",
    "rounds": "of scoring and pruning; in multishot of train, prune, rewind",
    "round_epochs": "of the training in a round",
    "rewind": "after a round to init, weights (those after --rewind-epochs of round 1) or learning-rate (it alone)",
    "rewind_epochs": "of round 1 that --rewind=weights keeps",
    "popup_epochs": "of the training of the scores",
    "popup_lr": "first learning rate of the scores (SGD, cosine)",
}


def _flag(name: str) -> str:
    return "samples" if name == "n_samples" else name.replace("_", "-")


def _options(args: argparse.Namespace) -> dict[str, str]:
    """Flag -> attribute of all that a config file may set."""
    names = ("task", "pruner", "density", "seeds", "first_seed", "depth", "width", "noise")
    names += () if args.mode == "edge-popup" else ("plugin",)
    names += (*DEFAULTS[args.mode], "store", "figure", "csv", "device", "threads", "chunk", "workers", "scheduler")
    return {_flag(name): name for name in names}


def apply_config(args: argparse.Namespace) -> None:
    """Make the options in the config file the parser's defaults: flags still win over them."""
    known = _options(args)
    given = read_options(args.config, known)
    try:
        parsed = args.parser.parse_args([f"--{flag}={text}" for flag, text in given.items()])
    except UsageError as error:
        raise UsageError(f"config {args.config}: {error}") from None
    args.parser.set_defaults(**{known[flag]: getattr(parsed, known[flag]) for flag in given})


def run(args: argparse.Namespace) -> int:
    options = {flag: getattr(args, name) for flag, name in _options(args).items()}
    if args.print_config:
        print(f"# pns-fast sweep {args.mode} --config THIS_FILE\n{write_options(options)}", end="")
        return 0
    begin = time.perf_counter()
    check_outputs(args.figure, args.csv)
    if args.shard and (args.figure or args.csv):
        raise UsageError("argument --shard: has a part of the networks only; `sweep merge` the stores, then `plot`")
    store = args.store or f"pns-{args.mode}{shard_suffix(args)}.db"
    import torch  # noqa: F401  (seconds, named apart in the closing table)

    from .. import sweeps

    imported = time.perf_counter()
    if plugins := getattr(args, "plugin", None):
        options["plugin"] = args.plugin = sweeps.load_plugins(plugins)
    grid = (args.task, args.pruner, args.density, seeds(args), args.depth, args.width, args.noise)
    cells = sweeps.expand(args.mode, *grid, **{name: getattr(args, name) for name in DEFAULTS[args.mode]})
    cells = own_shard(cells, args)
    if args.dry_run:
        print(count_cells(cells, store))
        return 0
    asked = {"mode": args.mode, **options, "store": store, "shard": args.shard}
    with open_executor(args) as executor:
        report = run_cells(cells, store, args, args.mode, asked, executor)
    if report.interrupted:
        return 130
    records = sweeps.read(store, [c.key for c in cells])
    swept = time.perf_counter()
    write_outputs(records, args.figure, args.csv)
    now = time.perf_counter()
    if not args.quiet:
        from ..sweeps.table import print_closing, print_results

        print_results(records)
        besides = {"imports": imported - begin, "figure": now - swept}
        places = {"device": place(args.device), "store": store, "figure": args.figure, "csv": args.csv}
        print_closing(report, records, besides, places)
    return report_failures(records)
