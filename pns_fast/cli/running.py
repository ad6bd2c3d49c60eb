"""How the commands that run networks run them: their common options, the run itself, what it says at the end."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .options import UsageError, add_device, nonempty, set_threads, shard_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..sweeps import Cell, Executor, Report


def add_run_options(group) -> None:
    """The options of :func:`run_cells`, to a parser or a group of its options."""
    add_device(group)
    group.add_argument("--threads", metavar="N", type=int, help="CPU threads; torch's choice if not given")
    group.add_argument(
        "--chunk", metavar="N", type=int, help="most networks in one native call; the mode's default if not given"
    )
    group.add_argument("--workers", metavar="N", type=int, help="compute in N processes of one thread each")
    group.add_argument(
        "--scheduler", metavar="ADDRESS", type=nonempty, help="compute on the Dask cluster there, tcp://host:port"
    )
    group.add_argument(
        "--shard", metavar="K/N", type=shard_of, help="only part K of N, from 1/N to N/N; see `sweep merge`"
    )
    group.add_argument("--retry-failed", action="store_true", help="also run cells that failed before")
    group.add_argument("--dry-run", action="store_true", help="count the cells and stop")
    group.add_argument("--quiet", action="store_true", help="no progress, no tables")


@contextmanager
def open_executor(args: argparse.Namespace) -> Iterator[Executor | None]:
    """What ``--workers`` or ``--scheduler`` asks for; None: this process."""
    if args.workers is None and args.scheduler is None:
        yield None
        return
    if args.workers is not None and args.scheduler is not None:
        raise UsageError("argument --workers: those of --scheduler are used; give one of the two")
    if args.threads is not None:
        raise UsageError("argument --threads: a worker has one; leave it out with --workers or --scheduler")
    from .. import sweeps

    plugins = getattr(args, "plugin", None) or ()  # with absolute paths once they are loaded here
    remote = (
        sweeps.DaskExecutor(args.scheduler, plugins) if args.scheduler else sweeps.LocalExecutor(args.workers, plugins)
    )
    with remote as executor:
        yield executor


def own_shard(cells: Sequence[Cell], args: argparse.Namespace) -> Sequence[Cell]:
    """The cells that ``--shard`` leaves."""
    if args.shard is None:
        return cells
    from .. import sweeps

    return sweeps.shard(cells, *args.shard)


def shard_suffix(args: argparse.Namespace) -> str:
    """For the names of stores: shards that run at once must not share one."""
    return "" if args.shard is None else "-{}of{}".format(*args.shard)


def run_cells(
    cells: Sequence[Cell],
    store: str,
    args: argparse.Namespace,
    title: str,
    asked: dict,
    executor: Executor | None = None,
) -> Report:
    """Run what the store does not hold yet, with progress on stderr.

    Args:
        cells: the networks.
        store: path of the store.
        args: with the attributes of :func:`add_run_options`.
        title: of the progress bar.
        asked: what to note in the store about this run.
        executor: out of :func:`open_executor`.
    """
    from .. import sweeps
    from ..sweeps.progress import shown  # imports torch

    set_threads(args.threads)
    with shown(title, args.quiet) as progress:
        report = sweeps.run(
            cells,
            store,
            chunk=args.chunk,
            retry_failed=args.retry_failed,
            progress=progress,
            asked=asked,
            device=args.device,
            executor=executor,
        )
    if report.interrupted:
        done = report.n_cells - report.n_left
        print(
            f"stopped: {done} of {report.n_cells} cells are in {store}; the same command goes on from there",
            file=sys.stderr,
        )
    return report


def place(device: str) -> str | None:
    """The GPU's name for the closing table, None for the CPU."""
    from ..sweeps.device import check_device, describe

    found = check_device(device)
    return None if found.type == "cpu" else describe(found)


def count_cells(cells: Sequence[Cell], store: str) -> str:
    """What ``--dry-run`` prints: how many cells there are and how many the store holds."""
    from .. import sweeps

    known = sweeps.statuses(store) if Path(store).exists() else {}
    found = [known.get(c.key) for c in cells]
    n_ok, n_failed = found.count("ok"), found.count("failed")
    return f"{len(cells)} cells: {n_ok} done, {n_failed} failed, {len(cells) - n_ok - n_failed} to run"


def report_failures(records: list[dict]) -> int:
    """Exit code 1 and what went wrong, if anything did."""
    errors = Counter(r["error"].strip().splitlines()[-1] for r in records if r["status"] == "failed")
    for error, n in errors.most_common(3):
        print(f"{n} failed: {error}", file=sys.stderr)
    if errors:
        print("tracebacks are in the store (table cell); --retry-failed runs these cells again", file=sys.stderr)
    return 1 if errors else 0
