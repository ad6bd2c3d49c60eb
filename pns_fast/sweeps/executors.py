"""Where a sweep's tasks are computed: in this process, in others of this machine, on a Dask cluster.

An executor only runs tasks and says which it lost; that no cell is blamed for another's crash is decided here, once
for all. Whatever runs a cell, its numbers are the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from .store import Outcome
from .work import Lost, Result, Task, perform


class Executor(Protocol):
    """Computes tasks, in any order. Use it in a ``with`` block, for as many runs as you like.

    ``name`` and ``n_workers`` are what the store notes. ``cells_per_task`` is about how many cells a task should
    have; None: as many as share mothers.
    """

    name: str
    n_workers: int
    cells_per_task: int | None

    def submit(self, task: Task) -> None:
        """Take a task; also while :meth:`as_completed` is read."""

    def as_completed(self) -> Iterator[Result | Lost]:
        """What comes of the tasks, as it comes, until none is left."""

    def cancel(self) -> None:
        """Forget all tasks."""


class SerialExecutor:
    """In this process, a chunk after another, on all threads or the GPU.

    Example:
        >>> import tempfile
        >>> from pns_fast import sweeps
        >>> cells = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], seeds=range(2), depths=[3],
        ...                       widths=[4], n_samples=100, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweeps.run(cells, folder + "/results.db", executor=SerialExecutor()).executor
        'serial'
    """

    name, n_workers, cells_per_task = "serial", 1, None

    def __init__(self):
        self._waiting: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def as_completed(self) -> Iterator[Result]:
        while self._waiting:
            yield from perform(self._waiting.popleft())

    def cancel(self) -> None:
        self._waiting.clear()


def results(executor: Executor, tasks: Iterable[Task]) -> Iterator[Result]:
    """What comes of the tasks. A cell that kills every worker fails; the cells beside it do not.

    The cells of a lost task are tried one by one, not by halves: each halving would cost a few workers more. Those
    lost again are then run with nothing else on the workers, so that whoever dies now died of its own cell.
    """
    suspects: list[Task] = []
    try:
        for task in tasks:
            executor.submit(task)
        for answer in executor.as_completed():
            if isinstance(answer, Result):
                yield answer
            elif len(answer.task.cells) > 1:
                for cell in answer.task.cells:
                    executor.submit(replace(answer.task, cells=(cell,), retries=0))
            else:
                suspects.append(answer.task)
        for suspect in suspects:
            executor.submit(suspect)
            for answer in executor.as_completed():
                yield answer if isinstance(answer, Result) else _failed(answer)
    finally:
        executor.cancel()


def _failed(lost: Lost) -> Result:
    now = time.time()
    error = f"worker died each time this cell was tried, at last with nothing else to do: {lost.why}"
    return Result([Outcome(cell, now, now, error=error) for cell in lost.task.cells], {})
