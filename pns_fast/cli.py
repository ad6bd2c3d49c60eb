"""The command line ``pns-fast``. Torch is imported inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from . import __version__
from .sweeps.config import read_options, write_options
from .sweeps.grid import DEFAULTS, MODES, Cell, density_label

_PAPER_SEEDS = {"singleshot": 25, "multishot": 10, "edge-popup": 10}
_EPILOG = "Set PNS_TRACEBACK=1 to see where an error came from."


class UsageError(ValueError):
    """Arguments that do not parse."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_off = action.default is None or action.default is False or action.default == []
        return action.help if is_off else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(message)  # one line, like every other error; argparse would print the usage as well


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where a cell failed or a planted ticket is not exact; 2 for a user's error, with one line on
        stderr; 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = _parser()
        args = parser.parse_args(argv)
        if getattr(args, "config", None):
            _apply_config(args)
            args = parser.parse_args(argv)
        return args.run(args)
    except (ValueError, OSError) as error:
        if os.environ.get("PNS_TRACEBACK"):
            raise
        print(f"pns-fast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pns-fast: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    common = {"allow_abbrev": False, "formatter_class": _HelpFormatter}
    parser = _Parser(
        prog="pns-fast",
        description="Plant known winning tickets, then prune and train whole populations of networks.",
        epilog=_EPILOG,
        **common,
    )
    parser.add_argument("--version", action="version", version=f"pns-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sweep = commands.add_parser("sweep", help="run a grid of networks into a store; resumes by default", **common)
    modes = sweep.add_subparsers(metavar="MODE", required=True)
    about = {
        "singleshot": "score once at the initial parameters, prune, train (the paper's Figure 3)",
        "multishot": "rounds of train, prune, rewind; then train (Figure 4)",
        "edge-popup": "train scores, not parameters; then train what they keep (Figure 4)",
    }
    for mode in MODES:
        _add_sweep_options(modes.add_parser(mode, help=about[mode], description=about[mode], **common), mode)

    plant = commands.add_parser("plant", help="plant tickets and check that they are exact", **common)
    plant.add_argument("--task", default="circle", help="circle, relu or helix")
    plant.add_argument("--depth", type=int, default=5, help="neuron layers, input and output included")
    plant.add_argument("--width", type=int, default=100, help="neurons in a hidden layer")
    plant.add_argument("--seeds", metavar="N", type=int, default=1, help="number of networks")
    plant.add_argument("--first-seed", metavar="N", type=int, default=0, help="seed of the first network")
    plant.add_argument("--scheme", default="he_scaled", help="initial parameters: he_scaled or uniform")
    plant.add_argument("--assignment", default="greedy", help="greedy or optimal")
    plant.add_argument("--out", metavar="FILE", help="save networks and masks with torch.save")
    plant.set_defaults(run=_plant)

    plot = commands.add_parser("plot", help="draw the figure of a store", **common)
    plot.add_argument("store", metavar="STORE")
    plot.add_argument("-o", "--figure", metavar="FIG", required=True, help=".png, .pdf or .svg")
    plot.add_argument("--csv", metavar="FILE", help="also write the networks drawn, one a row")
    plot.add_argument(
        "--where", metavar="NAME=VALUE", action="append", default=[], help="only these cells, e.g. depth=5"
    )
    plot.add_argument("--quiet", action="store_true", help="no tables")
    plot.set_defaults(run=_plot)

    commands.add_parser("info", help="versions and what the kernels run on", **common).set_defaults(run=_info)
    return parser


def _add_sweep_options(parser: argparse.ArgumentParser, mode: str) -> None:
    grid = parser.add_argument_group("the grid (lists are comma-separated)")
    pruners = "edge-popup, edge-popup-anneal" if mode == "edge-popup" else "random, magnitude, snip, grasp, synflow"
    grid.add_argument("--task", metavar="LIST", type=_list(str), default="all", help="circle, relu, helix or all")
    grid.add_argument("--pruner", metavar="LIST", type=_list(str), default="all", help=f"{pruners} or all")
    grid.add_argument(
        "--density",
        metavar="LIST",
        type=_list(density_label),
        default="ticket,0.01,0.1,0.5,1",
        help="fractions of parameters to keep; ticket is that of the planted one",
    )
    grid.add_argument("--seeds", metavar="N", type=int, default=_PAPER_SEEDS[mode], help="networks a point")
    grid.add_argument("--first-seed", metavar="N", type=int, default=0, help="seed of the first of them")
    grid.add_argument(
        "--depth",
        metavar="LIST",
        type=_list(int),
        default="5",
        help="neuron layers, input and output included",
    )
    grid.add_argument("--width", metavar="LIST", type=_list(int), default="100", help="neurons in a hidden layer")
    grid.add_argument("--noise", metavar="LIST", type=_list(float), default="0.01", help="of the labels")

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
    outputs.add_argument("--store", default=f"pns-{mode}.db", metavar="FILE", help="SQLite; what it holds is skipped")
    outputs.add_argument("--figure", metavar="FIG", help=".png, .pdf or .svg")
    outputs.add_argument("--csv", metavar="FILE", help="one row a network")
    outputs.add_argument("--threads", metavar="N", type=int, help="CPU threads; torch's choice if not given")
    outputs.add_argument(
        "--chunk",
        metavar="N",
        type=int,
        help="most networks in one native call; the mode's default if not given",
    )
    outputs.add_argument("--retry-failed", action="store_true", help="also run cells that failed before")
    outputs.add_argument("--config", metavar="TOML", help="take options from a file; flags win over it")
    outputs.add_argument("--print-config", action="store_true", help="print the options as TOML and stop")
    outputs.add_argument("--dry-run", action="store_true", help="count the cells and stop")
    outputs.add_argument("--quiet", action="store_true", help="no progress, no tables")
    parser.set_defaults(run=_sweep, mode=mode, parser=parser)


_METAVARS = {int: "N", float: "X", str: "NAME"}
_SETTING_HELP = {
    "n_samples": "samples of a data set, a tenth of them held out",
    "epochs": "of the final training",
    "batch_size": "samples a step",
    "lr": "learning rate (Adam)",
    "scheme": "initial parameters: he_scaled or uniform",
    "assignment": "of planted neurons: greedy or optimal",
    "scope": "keep the density of the whole network or of each layer: global or layer",
    "rounds": "of scoring and pruning; in multishot of train, prune, rewind",
    "round_epochs": "of the training in a round",
    "popup_epochs": "of the training of the scores",
    "popup_lr": "first learning rate of the scores (SGD, cosine)",
}


def _list(kind: Callable[[str], object]) -> Callable[[str], tuple]:
    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part.strip()) for part in text.split(","))
        except ValueError as error:
            message = (
                str(error).removeprefix("density: ")
                if kind is density_label
                else f"expected {kind.__name__}s apart by commas, got {text!r}"
            )
            raise argparse.ArgumentTypeError(message) from None

    return parse


def _flag(name: str) -> str:
    return "samples" if name == "n_samples" else name.replace("_", "-")


def _options(args: argparse.Namespace) -> dict[str, str]:
    """Flag -> attribute of all that a config file may set."""
    names = ("task", "pruner", "density", "seeds", "first_seed", "depth", "width", "noise")
    names = (*names, *DEFAULTS[args.mode], "store", "figure", "csv", "threads", "chunk")
    return {_flag(name): name for name in names}


def _apply_config(args: argparse.Namespace) -> None:
    """Make the options in the config file the parser's defaults: flags still win over them."""
    known = _options(args)
    given = read_options(args.config, known)
    try:
        parsed = args.parser.parse_args([f"--{flag}={text}" for flag, text in given.items()])
    except UsageError as error:
        raise UsageError(f"config {args.config}: {error}") from None
    args.parser.set_defaults(**{known[flag]: getattr(parsed, known[flag]) for flag in given})


def _sweep(args: argparse.Namespace) -> int:
    options = {flag: getattr(args, name) for flag, name in _options(args).items()}
    if args.print_config:
        print(f"# pns-fast sweep {args.mode} --config THIS_FILE\n{write_options(options)}", end="")
        return 0
    begin = time.perf_counter()
    _check_outputs(args.figure, args.csv)
    from . import sweeps
    from .sweeps.progress import shown  # imports torch

    imported = time.perf_counter()
    _set_threads(args.threads)
    grid = (args.task, args.pruner, args.density, _seeds(args), args.depth, args.width, args.noise)
    cells = sweeps.expand(args.mode, *grid, **{name: getattr(args, name) for name in DEFAULTS[args.mode]})
    if args.dry_run:
        return _count(cells, args.store)
    with shown(args.mode, args.quiet) as progress:
        report = sweeps.run(
            cells,
            args.store,
            chunk=args.chunk,
            retry_failed=args.retry_failed,
            progress=progress,
            asked={"mode": args.mode, **options},
        )
    if report.interrupted:
        done = report.n_cells - report.n_left
        print(
            f"stopped: {done} of {report.n_cells} cells are in {args.store}; the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    records = sweeps.read(args.store, [c.key for c in cells])
    swept = time.perf_counter()
    _write_outputs(records, args.figure, args.csv)
    now = time.perf_counter()
    if not args.quiet:
        from .sweeps.table import print_closing, print_results

        print_results(records)
        besides = {"imports": imported - begin, "figure": now - swept}
        print_closing(report, records, besides, {"store": args.store, "figure": args.figure, "csv": args.csv})
    return _report_failures(records)


def _count(cells: list, store: str) -> int:
    from . import sweeps

    known = sweeps.statuses(store) if Path(store).exists() else {}
    found = [known.get(c.key) for c in cells]
    n_ok, n_failed = found.count("ok"), found.count("failed")
    print(f"{len(cells)} cells: {n_ok} done, {n_failed} failed, {len(cells) - n_ok - n_failed} to run")
    return 0


def _report_failures(records: list[dict]) -> int:
    """Exit code 1 and what went wrong, if anything did."""
    errors = Counter(r["error"].strip().splitlines()[-1] for r in records if r["status"] == "failed")
    for error, n in errors.most_common(3):
        print(f"{n} failed: {error}", file=sys.stderr)
    if errors:
        print("tracebacks are in the store (table cell); --retry-failed runs these cells again", file=sys.stderr)
    return 1 if errors else 0


def _plot(args: argparse.Namespace) -> int:
    _check_outputs(args.figure, args.csv)
    from . import sweeps
    from .sweeps.table import print_results

    records = [r for r in sweeps.read(args.store) if all(_matches(r, where) for where in args.where)]
    if not any(r["status"] == "ok" for r in records):
        raise UsageError(f"store {args.store}: no finished cells{' that match' if args.where else ''}")
    _write_outputs(records, args.figure, args.csv)
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


def _check_outputs(figure: str | None, csv: str | None) -> None:
    """Refuse before the work what could not be written after it."""
    from .sweeps.figures import check_path

    if figure:
        check_path(figure)
    for name, path in (("figure", figure), ("csv", csv)):
        if path and not Path(path).parent.is_dir():
            raise UsageError(f"{name} {path}: there is no directory {Path(path).parent}")


def _write_outputs(records: list[dict], figure: str | None, csv: str | None) -> None:
    from . import sweeps

    if csv:
        sweeps.write_csv(records, csv)
    if figure and any(r["status"] == "ok" for r in records):
        sweeps.save_figure(records, figure)


def _seeds(args: argparse.Namespace) -> range:
    if args.seeds < 1:
        raise UsageError(f"argument --seeds: expected at least 1, got {args.seeds}")
    return range(args.first_seed, args.first_seed + args.seeds)


def _set_threads(n_threads: int | None) -> None:
    if n_threads is not None:
        if n_threads < 1:
            raise UsageError(f"argument --threads: expected at least 1, got {n_threads}")
        import torch

        torch.set_num_threads(n_threads)


def _plant(args: argparse.Namespace) -> int:
    if args.out and not Path(args.out).parent.is_dir():
        raise UsageError(f"--out {args.out}: there is no directory {Path(args.out).parent}")
    from .sweeps.planted import check_planted, print_planted, save_planted

    checked = check_planted(args.task, args.depth, args.width, list(_seeds(args)), args.scheme, args.assignment)
    print_planted(checked)
    if args.out:
        save_planted(checked, args.out)
        print(f"saved   {args.out}")
    return 0 if checked.is_exact else 1


def _info(args: argparse.Namespace) -> int:
    import platform

    import torch

    from . import _native

    found = _native.backends()
    without_device = "built, no device found" if _native.has_cuda_kernels() else "not built"
    rows = {
        "pns_fast": __version__,
        "kernels, cpu": found["cpu"],
        "kernels, cuda": found["cuda"] or without_device,
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    for name, value in rows.items():
        print(f"{name:14}{value}")
    return 0
