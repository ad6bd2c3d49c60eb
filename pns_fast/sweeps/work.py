"""A task, the unit that executors hand out: cells that share mothers. And how it is worked on, here or in a worker."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import __version__
from .experiment import Clock, run_cells
from .grid import Cell
from .plugins import load_plugins
from .store import Outcome


class WorkerError(ValueError):
    """A worker can do nothing at all: it has another version, or lacks a plugin."""


@dataclass(frozen=True)
class Task:
    """Cells of one mother group, ``chunk`` networks in a native call.

    ``retries`` is how often it is tried again where a worker died with it; Dask's scheduler has its own number.
    """

    cells: tuple[Cell, ...]
    chunk: int
    device: torch.device
    retries: int = 3


@dataclass(frozen=True)
class Result:
    """Outcomes of a task, all or a part, and the seconds they took by phase."""

    outcomes: list[Outcome]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Lost:
    """A task with which every worker died that tried it; ``why`` is how the last one did."""

    task: Task
    why: str


def perform(task: Task) -> Iterator[Result]:
    """Compute a task in this process, with all threads. A cell that raises fails alone, with its traceback."""
    clock = Clock(task.device)
    for outcomes in _isolating(list(task.cells), task.chunk, clock, task.device):
        yield Result(outcomes, dict(clock.seconds))
        clock.seconds.clear()


def perform_in_worker(task: Task, plugins: Sequence[str], version: str) -> Result:
    """Compute a task with one thread, in a process that another one drives.

    Args:
        task: on the CPU.
        plugins: to load first, see :func:`load_plugins`: they register what the cells name.
        version: of the driver's pns_fast.

    Raises:
        WorkerError: another version is installed here, or a plugin cannot be loaded.
    """
    if version != __version__:
        raise WorkerError(f"worker: has pns_fast {__version__}, the driver {version}")
    try:
        load_plugins(plugins)
    except (ValueError, OSError) as error:
        raise WorkerError(f"worker: {error}") from error
    torch.set_num_threads(1)  # of the calling thread only, so here and not once when a Dask worker starts
    outcomes, seconds = [], Counter()
    for result in perform(task):
        outcomes += result.outcomes
        seconds.update(result.seconds)
    return Result(outcomes, dict(seconds))


def _isolating(cells: list[Cell], chunk: int, clock: Clock, device: torch.device) -> Iterator[list[Outcome]]:
    """The outcomes of ``cells``; what raises is halved until the guilty cells are alone.

    Halves, not single cells: one bad cell costs a few more calls, and the other cells stay in large batches.
    """
    started, left = time.time(), dict.fromkeys(cells)
    try:
        for outcomes in run_cells(cells, chunk, clock, device):
            for outcome in outcomes:
                del left[outcome.cell]
            yield outcomes
        return
    except torch.AcceleratorError:
        raise  # the device is lost: every other cell would fail as well, through no fault of its own
    except Exception:
        if len(cells) == 1:
            yield [Outcome(cells[0], started, time.time(), error=traceback.format_exc())]
            return
    suspects = list(left)
    middle = len(suspects) // 2
    for half in (suspects[:middle], suspects[middle:]):
        if half:
            yield from _isolating(half, chunk, clock, device)
