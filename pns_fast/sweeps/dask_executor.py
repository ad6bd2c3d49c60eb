"""Tasks on a Dask cluster that runs already: on this machine, under Slurm, anywhere a scheduler can be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import __version__
from .work import Lost, Result, Task, perform_in_worker


class DaskExecutor:
    """The workers of a Dask scheduler; they need the same pns_fast. Start them with ``--nthreads 1``.

    A task whose worker dies is given to another by the scheduler, ``distributed.scheduler.allowed-failures`` times
    (3 by default).

    Args:
        scheduler: its address, ``tcp://host:port``.
        plugins: loaded on each worker first, see :func:`pns_fast.sweeps.load_plugins`; files must be there.

    Raises:
        ValueError: Dask is not installed.
        OSError: no scheduler answers there.
    """

    name, cells_per_task = "dask", 32

    def __init__(self, scheduler: str, plugins: Sequence[str] = ()):
        try:
            import distributed
        except ModuleNotFoundError as error:
            message = f'scheduler: {error.name} is not installed; pip install "pns_fast[dask]"'
            raise ValueError(message) from None
        self._distributed, self._plugins = distributed, tuple(plugins)
        self._client = distributed.Client(scheduler, set_as_default=False)
        self._most_workers = 0
        self._tasks: dict[str, Task] = {}
        self._completed = self._nothing()

    def __enter__(self) -> DaskExecutor:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which goes on without us."""
        if self._client.status == "running":
            self.cancel()
        self._client.close()

    @property
    def n_workers(self) -> int:
        """The most there were, each thread one; 0 where none has come yet."""
        self._most_workers = max(self._most_workers, sum(self._client.nthreads().values()))
        return self._most_workers

    def submit(self, task: Task) -> None:
        # pure=False: a name of its own for each try, or a task that failed would be remembered as failed. retries is
        # for what raises outside of the cells, such as a node without our version; a worker's death is not counted.
        future = self._client.submit(
            perform_in_worker, task, self._plugins, __version__, pure=False, retries=task.retries
        )
        self._tasks[future.key] = task
        self._completed.add(future)

    def as_completed(self) -> Iterator[Result | Lost]:
        for future in self._completed:
            yield self._answer(future, self._tasks.pop(future.key))

    def cancel(self) -> None:
        self._client.cancel(list(self._completed.futures))
        self._tasks.clear()
        self._completed = self._nothing()

    def _nothing(self):
        return self._distributed.as_completed(loop=self._client.loop)

    def _answer(self, future, task: Task) -> Result | Lost:
        try:
            return future.result()
        except self._distributed.KilledWorker as error:
            return Lost(task, f"Dask lost {error.allowed_failures + 1} of its workers with it, see their logs")
        except self._distributed.CancelledError as error:
            raise ConnectionError(f"scheduler {self._client.scheduler.address}: was lost ({error})") from error
