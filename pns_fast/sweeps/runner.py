"""The driver: skips what the store holds, has an executor run the rest, writes what comes, each in one transaction."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch

from .. import __version__, backends
from .device import check_device, describe
from .executors import Executor, SerialExecutor, results
from .experiment import Clock, mother_groups
from .grid import Cell
from .parts import parts
from .store import Store
from .work import Task

# Networks in one native call: enough to fill the cores, few enough that a kill loses seconds only.
DEFAULT_CHUNK = {"singleshot": 64, "multishot": 16, "edge-popup": 16}
# A GPU is full with some hundred networks, and their calls have a last one to wait for: all of a mother group at once.
DEFAULT_CHUNK_CUDA = 4096


@dataclass
class Report:
    """How far a run got: ``n_skipped`` cells were stored before, ``n_ok`` and ``n_failed`` are new.

    ``n_failed_before`` of the skipped ones had failed.
    """

    n_cells: int
    n_skipped: int
    n_failed_before: int = 0
    n_ok: int = 0
    n_failed: int = 0
    interrupted: bool = False
    # By phase, and "total". The phases of several workers add up: to no more than n_workers * total, "store" aside.
    seconds: dict[str, float] = field(default_factory=dict)
    executor: str = "serial"
    n_workers: int = 1

    @property
    def n_left(self) -> int:
        """Cells that this run had to do and has not done yet."""
        return self.n_cells - self.n_skipped - self.n_ok - self.n_failed


def run(
    cells: Sequence[Cell],
    store: str | os.PathLike,
    *,
    chunk: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[Report], None] | None = None,
    asked: dict | None = None,
    device: str | torch.device = "cpu",
    executor: Executor | None = None,
) -> Report:
    """Run the cells that the store does not hold yet. Kill it at any time and call it again: it goes on.

    A cell that raises is stored as failed with its traceback; the others are not affected. Ctrl-C ends the
    run with everything finished stored and ``interrupted`` set.

    Args:
        cells: see :func:`pns_fast.sweeps.expand`.
        store: path of the SQLite store; made if missing.
        chunk: most networks in one native call; None for the mode's default.
        retry_failed: also run cells that failed before.
        progress: called at the start and after each chunk or task.
        asked: what to note in the store about this run.
        device: "cpu", "cuda", "cuda:N", or "auto": a GPU if there is one. It is no part of a cell: data and planted
            mothers are bitwise the same everywhere, scores and training agree up to rounding. The store notes it
            for each run.
        executor: what computes the cells: None for this process, or a :class:`LocalExecutor` or
            :class:`DaskExecutor`, whose workers compute on the CPU. They write nothing; the store is this process's.

    Returns:
        The final :class:`Report`.

    Raises:
        ValueError: ``chunk`` is no positive integer, there is no such device or the executor's workers do not use it,
            workers cannot work (WorkerError), or the store is not usable (StoreError).
        OSError: the store is not writable, or another run writes to it (StoreAccessError).

    Example:
        >>> import tempfile
        >>> from pns_fast import sweeps
        >>> cells = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], seeds=range(2), depths=[3],
        ...                       widths=[4], n_samples=100, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = [sweeps.run(cells, folder + "/results.db") for _ in range(2)]
        >>> first.n_ok, second.n_ok, second.n_skipped
        (2, 0, 2)
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk: expected a positive integer or None, got {chunk!r}")
    device, executor = check_device(device), executor or SerialExecutor()
    if device.type != "cpu" and executor.name != "serial":
        raise ValueError(f"device: workers compute on the CPU, got {device}; leave out the workers, or use cpu")
    begin, clock = time.perf_counter(), Clock(device)
    with Store(store) as opened:
        done = opened.statuses()
        redo = ("failed",) if retry_failed else ()
        cells = list(dict.fromkeys(cells))
        pending = [c for c in cells if done.get(c.key) in (None, *redo)]
        n_failed_before = 0 if retry_failed else sum(done.get(c.key) == "failed" for c in cells)
        report = Report(len(cells), len(cells) - len(pending), n_failed_before, executor=executor.name)
        noted = {"cells": len(cells), "pending": len(pending), "executor": executor.name, "workers": executor.n_workers}
        opened.begin_run(_versions(device), {**(asked or {}), **noted})
        try:
            if progress:
                progress(report)
            tasks = _tasks(pending, chunk, device, executor.cells_per_task)
            with closing(results(executor, tasks)) as found:
                for result in found:
                    clock.seconds.update(result.seconds)
                    with clock("store"):
                        opened.write(result.outcomes)
                    n_failed = sum(o.error is not None for o in result.outcomes)
                    report.n_failed += n_failed
                    report.n_ok += len(result.outcomes) - n_failed
                    if progress:
                        progress(report)
        except KeyboardInterrupt:
            report.interrupted = True
        report.n_workers = executor.n_workers
        report.seconds = {**clock.seconds, "total": time.perf_counter() - begin}
        opened.end_run(report.seconds)
    return report


def _tasks(cells: Sequence[Cell], chunk: int | None, device: torch.device, size: int | None) -> Iterator[Task]:
    """The cells as tasks of about ``size``; None: as many in one as share mothers."""
    for group in mother_groups(cells, device):
        default = DEFAULT_CHUNK_CUDA if device.type == "cuda" else DEFAULT_CHUNK[group[0].mode]
        for part in parts(group, size) if size else [group]:
            yield Task(tuple(part), chunk or default, device)


def _versions(device: torch.device) -> dict[str, str]:
    import numpy

    return {
        "pns_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "simd": backends()["cpu"],
        "device": describe(device),
    }
