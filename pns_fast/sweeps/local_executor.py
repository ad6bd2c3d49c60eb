"""Tasks in processes of this machine, one thread each. A process that dies costs its task a retry, nothing else.

``concurrent.futures`` gives up all that is left when one process dies; this pool knows which task each one has, and
starts another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from .. import __version__
from .work import Lost, Result, Task, WorkerError, perform_in_worker

_MAX_FAILED_STARTS = 3  # one after another: then it is not chance


class LocalExecutor:
    """A pool of ``n_workers`` processes, started when there is work; each ends when this process does, however.

    A script that uses it needs ``if __name__ == "__main__":``, as for all of Python's :mod:`multiprocessing`.

    Args:
        n_workers: processes.
        plugins: loaded in each of them first, see :func:`pns_fast.sweeps.load_plugins`.

    Raises:
        ValueError: ``n_workers`` is no positive integer.

    Example:
        >>> import tempfile
        >>> from pns_fast import sweeps
        >>> cells = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], seeds=range(2), depths=[3],
        ...                       widths=[4], n_samples=100, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder, sweeps.LocalExecutor(1) as executor:
        ...     sweeps.run(cells, folder + "/results.db", executor=executor).n_ok
        2
    """

    name, cells_per_task = "local", 32

    def __init__(self, n_workers: int, plugins: Sequence[str] = ()):
        if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"workers: expected a positive integer, got {n_workers!r}")
        self.n_workers, self._plugins = n_workers, tuple(plugins)
        self._waiting: deque[Task] = deque()
        self._workers: dict[Connection, _Worker] = {}
        self._failed_starts = 0

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._waiting.clear()
        self._end(list(self._workers.values()))

    def cancel(self) -> None:
        self._waiting.clear()
        self._end([w for w in self._workers.values() if w.task])

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def as_completed(self) -> Iterator[Result | Lost]:
        while self._waiting or any(w.task for w in self._workers.values()):
            self._hand_out()
            for connection in wait(list(self._workers)):
                worker = self._workers[connection]
                try:
                    answer = connection.recv()
                except (EOFError, OSError):  # its end is closed; OSError where it died in the middle of an answer
                    yield from self._bury(worker)
                    continue
                if isinstance(answer, WorkerError):
                    raise answer
                if answer is None:  # it has started
                    worker.is_ready, self._failed_starts = True, 0
                else:
                    worker.task = None
                    yield answer

    def _hand_out(self) -> None:
        """A task to each idle process; more processes while there are more tasks."""
        idle = [w for w in self._workers.values() if not w.task]
        for _ in range(min(len(self._waiting) - len(idle), self.n_workers - len(self._workers))):
            worker = _Worker(self._plugins)
            self._workers[worker.connection] = worker
        for worker in idle:
            if worker.is_ready and self._waiting:
                worker.task = self._waiting.popleft()
                try:
                    worker.connection.send(worker.task)
                except OSError:  # it died idle, and wait() tells
                    self._waiting.appendleft(worker.task)
                    worker.task = None

    def _bury(self, worker: _Worker) -> Iterator[Lost]:
        """Take away a process that died; its task waits again, or is lost."""
        task, why = worker.task, worker.how_it_died()
        self._end([worker])
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise WorkerError(
                    f"workers: {self._failed_starts} processes {why} before their first task; what they say is above "
                    '(a script that uses workers needs `if __name__ == "__main__":`)'
                )
        if task and task.retries:
            self._waiting.appendleft(replace(task, retries=task.retries - 1))
        elif task:
            yield Lost(task, why)

    def _end(self, workers: list[_Worker]) -> None:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
            del self._workers[worker.connection]


class _Worker:
    """A process, the driver's end of its pipe, and the task it has."""

    def __init__(self, plugins: tuple[str, ...]):
        context = multiprocessing.get_context("spawn")  # a fork would copy the state of torch's threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, plugins), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.task: Task | None = None
        self.is_ready = False

    def how_it_died(self) -> str:
        self.process.join()
        code = self.process.exitcode
        if code >= 0:
            return f"exited with code {code}"
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which a terminal sends to all: the driver decides what ends."""
    resource_tracker.ensure_running()  # the first process would start it, and unblock the signal doing so
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, plugins: tuple[str, ...]) -> None:
    """The life of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = perform_in_worker(task, plugins, __version__)
        except WorkerError as error:
            answer = error
        connection.send(answer)


def _end_with_parent() -> None:
    """A driver that was killed can tell nobody, and a task may take minutes more."""
    multiprocessing.parent_process().join()
    os._exit(1)
