"""What the commands share: how arguments are read, errors told and outputs written."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ..sweeps.grid import Cell, density_label

SHOWN = ("performance", "recovery", "layers")  # figures of one store
MOST_SEEDS, MOST_THREADS = 100_000, 4096


class UsageError(ValueError):
    """Arguments that do not parse."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_off = action.default is None or action.default is False or action.default == []
        return action.help if is_off else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Raises a UsageError: one line, like every other error; argparse would print the usage as well."""

    def error(self, message: str):
        raise UsageError(message)


# of every parser
COMMON = {"allow_abbrev": False, "formatter_class": HelpFormatter}


def comma_list(kind: Callable[[str], object]) -> Callable[[str], tuple]:
    """A parser of ``a,b,c`` into a tuple of ``kind``."""

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


def seeds(args: argparse.Namespace) -> range:
    """``--first-seed`` and the ``--seeds`` - 1 that follow."""
    check_seeds(args.seeds)
    return range(args.first_seed, args.first_seed + args.seeds)


def check_seeds(n_seeds: int) -> None:
    """``--seeds``; a sweep holds its cells in memory."""
    if n_seeds < 1:
        raise UsageError(f"argument --seeds: expected at least 1, got {n_seeds}")
    if n_seeds > MOST_SEEDS:
        raise UsageError(f"argument --seeds: expected at most {MOST_SEEDS}, got {n_seeds}")


def nonempty(text: str) -> str:
    """A name; none at all, as of a shell variable that is not set, would pass for an option that is not given."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got ''")
    return text


def device_name(text: str) -> str:
    """``--device``: auto, cpu, cuda or cuda:N. Whether it is there is looked at when torch is imported."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def shard_of(text: str) -> tuple[int, int]:
    """``--shard``: "2/8" is the second of eight."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected K/N with K from 1 to N, such as 2/8, got {text!r}")
    return int(found[1]), int(found[2])


def add_device(group) -> None:
    """The option ``--device``, to a parser or a group of its options."""
    text = "cpu, cuda, cuda:N, or auto: a GPU if there is one"
    group.add_argument("--device", metavar="NAME", type=device_name, default="cpu", help=text)


def set_threads(n_threads: int | None) -> None:
    """``--threads``; None leaves torch's choice."""
    if n_threads is not None:
        if n_threads < 1:
            raise UsageError(f"argument --threads: expected at least 1, got {n_threads}")
        if n_threads > MOST_THREADS:
            raise UsageError(f"argument --threads: expected at most {MOST_THREADS}, got {n_threads}")
        import torch

        torch.set_num_threads(n_threads)


def check_outputs(figure: str | None, csv: str | None) -> None:
    """Refuse before the work what could not be written after it."""
    from ..sweeps.figure_style import check_path

    if figure:
        check_path(figure)
    for name, path in (("figure", figure), ("csv", csv)):
        if not path:
            continue
        folder = Path(path).parent
        if not folder.is_dir():
            raise UsageError(f"{name} {path}: there is no directory {folder}")
        is_file = Path(path).is_file() or not Path(path).exists()
        if is_file and not os.access(folder, os.W_OK):
            raise UsageError(f"{name} {path}: directory {folder} cannot be written to")


def write_outputs(records: list[dict], figure: str | None, csv: str | None, show: str = "performance") -> None:
    """The CSV and the figure of stored cells, where asked for; ``show`` is one of ``SHOWN``."""
    from .. import sweeps

    if csv:
        sweeps.write_csv(records, csv)
    if figure and any(r["status"] == "ok" for r in records):
        save = {
            "performance": sweeps.save_figure,
            "recovery": sweeps.save_recovery_figure,
            "layers": sweeps.save_layers_figure,
        }
        save[show](records, figure)


def add_where(parser: argparse.ArgumentParser) -> None:
    """The option ``--where``, see :func:`stored`."""
    parser.add_argument(
        "--where", metavar="NAME=VALUE", action="append", default=[], help="only these cells, e.g. depth=5"
    )


def stored(store: str, wheres: list[str]) -> list[dict]:
    """The stored cells that match every ``--where``."""
    from .. import sweeps

    return [r for r in sweeps.read(store) if all(_matches(r, where) for where in wheres)]


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
