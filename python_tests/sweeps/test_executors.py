"""Executors with real worker processes: whatever computes a cell, and whoever dies of it, the rows are the same."""

import contextlib
import json
import multiprocessing
import signal
import sqlite3
import sys

import pytest
import torch
from sweeps.rows import rows

from pns_fast import sweeps
from pns_fast.sweeps import runner

SMALL = {"depths": [3], "widths": [32], "n_samples": 200, "epochs": 2}
ALL = ("random", "magnitude", "snip", "grasp", "synflow")

# A module for workers to import: it does something to whoever scores with snip for a seed.
TRAP = """
import os, signal
from pns_fast import pruners
score = pruners.score
def set_off(population, name, batch, loss, seeds):
    if name == "snip" and {seed} in seeds:
        {action}
    return score(population, name, batch, loss, seeds)
pruners.score = set_off
"""

# Once: die in the middle of sending the answer, of which the length says 256 bytes.
HALF_AN_ANSWER = """
        from multiprocessing.connection import Connection
        def send(self, answer, marker={marker!r}, send=Connection.send):
            if os.path.exists(marker): return send(self, answer)
            open(marker, "w").close()
            self._send(bytes([0, 0, 1, 0, 0]))
            os._exit(1)
        Connection.send = send
"""


def grid(seeds=range(4)):
    """Three modes, 48 cells a seed."""
    return [
        *sweeps.expand("singleshot", ["relu", "circle"], ALL, ["ticket", 0.1, 0.5, 1], seeds, **SMALL),
        *sweeps.expand("multishot", ["helix"], ["snip"], [0.3, 1], seeds, rounds=2, round_epochs=1, **SMALL),
        *sweeps.expand("edge-popup", ["circle"], densities=[0.1, 0.3, 0.5], seeds=seeds, popup_epochs=2, **SMALL),
    ]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Makes a module of TRAP that workers can import; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(seed, action, name):
        (tmp_path / f"{name}.py").write_text(TRAP.format(seed=seed, action=action))
        return name

    return make


@pytest.fixture
def open_executor():
    """Opens an executor of two workers by its name, and closes it after the test."""
    with contextlib.ExitStack() as stack:

        def enter(kind, plugins=(), **config):
            if kind == "serial":
                return sweeps.SerialExecutor()
            if kind == "local":
                return stack.enter_context(sweeps.LocalExecutor(2, plugins))
            import dask
            from distributed import LocalCluster

            stack.enter_context(dask.config.set(config))
            settings = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
            cluster = stack.enter_context(LocalCluster(**settings))
            return stack.enter_context(sweeps.DaskExecutor(cluster.scheduler_address, plugins))

        yield enter


@pytest.fixture(scope="module")
def serial_rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("serial") / "serial.db"
    sweeps.run(grid(), path)
    return rows(path)


@pytest.mark.parametrize("kind", ["serial", "local", "dask"])
def test_rows_are_those_of_the_serial_run_though_a_worker_is_killed(kind, tmp_path, trap, open_executor, serial_rows):
    marker = tmp_path / "killed"  # whoever makes it dies in the middle of a task, by SIGKILL
    action = f"os.close(os.open({str(marker)!r}, os.O_CREAT | os.O_EXCL)); os.kill(os.getpid(), signal.SIGKILL)"
    action = f"if not os.path.exists({str(marker)!r}): {action}"
    plugins = [trap(2, action, f"dies_once_{kind}")]
    if kind == "local":
        plugins.append(trap(3, HALF_AN_ANSWER.format(marker=str(tmp_path / "half")), "dies_answering"))
    executor = open_executor(kind, plugins)
    report = sweeps.run(grid(), tmp_path / "x.db", executor=executor)
    assert (report.n_ok, report.n_failed, report.interrupted) == (len(grid()), 0, False)
    assert rows(tmp_path / "x.db") == serial_rows
    assert marker.exists() == (kind != "serial")
    assert (tmp_path / "half").exists() == (kind == "local")
    assert (report.executor, report.n_workers) == (kind, 1 if kind == "serial" else 2)
    phases = {name: s for name, s in report.seconds.items() if name not in ("total", "store")}
    assert set(phases) == {"data", "planting", "scoring", "training", "training, scoring"}
    assert sum(phases.values()) <= report.seconds["total"] * report.n_workers
    (run,) = sweeps.runs(tmp_path / "x.db")
    assert (run["asked"]["executor"], run["asked"]["workers"]) == (kind, report.n_workers)


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("local", "os.kill(os.getpid(), signal.SIGSEGV)", "was killed by signal 11 (SIGSEGV)"),
        ("dask", "os._exit(3)", "Dask lost 1 of its workers with it, see their logs"),
    ],
)
def test_a_cell_that_kills_its_worker_or_raises_fails_alone(kind, action, message, tmp_path, trap, open_executor):
    cells = sweeps.expand("singleshot", ["relu"], ALL, [0.1], range(12), **SMALL)
    raising = trap(1, "raise FloatingPointError('scores of seed 1')", f"raises_{kind}")
    plugins = [trap(2, action, f"crashes_{kind}"), raising]
    executor = open_executor(kind, plugins, **{"distributed.scheduler.allowed-failures": 0})  # 3 takes a minute
    report = sweeps.run(cells, tmp_path / "x.db", executor=executor)
    assert (report.n_ok, report.n_failed, report.n_left) == (58, 2, 0)
    errors = {(r["pruner"], r["seed"]): r["error"] for r in sweeps.read(tmp_path / "x.db") if r["status"] == "failed"}
    assert set(errors) == {("snip", 1), ("snip", 2)}
    assert errors["snip", 1].startswith("Traceback")
    assert errors["snip", 1].endswith("FloatingPointError: scores of seed 1\n")
    expected = f"worker died each time this cell was tried, at last with nothing else to do: {message}"
    assert errors["snip", 2] == expected
    good = [c for c in cells if (c.pruner, c.seed) not in errors]
    sweeps.run(good, tmp_path / "good.db")
    for table in ("metric", "history"):
        assert rows(tmp_path / "x.db")[table] == rows(tmp_path / "good.db")[table]


@pytest.mark.parametrize("kind", ["local", "dask"])
def test_ctrl_c_keeps_what_is_finished_and_the_executor_goes_on(kind, tmp_path, open_executor):
    executor = open_executor(kind)

    def interrupt(report):
        if report.n_ok:
            signal.raise_signal(signal.SIGINT)

    report = sweeps.run(grid(), tmp_path / "x.db", executor=executor, progress=interrupt)
    assert report.interrupted
    assert 0 < report.n_ok == len(sweeps.statuses(tmp_path / "x.db")) < len(grid())
    report = sweeps.run(grid(), tmp_path / "x.db", executor=executor)
    assert (report.interrupted, report.n_left) == (False, 0)
    executor.close()
    if kind == "local":
        assert multiprocessing.active_children() == []


def test_a_module_that_workers_lack_is_told(tmp_path):
    executor = sweeps.LocalExecutor(1, ["no_such_module"])
    with executor, pytest.raises(sweeps.WorkerError, match="worker: plugin no_such_module: ModuleNotFoundError"):
        sweeps.run(grid(range(1)), tmp_path / "x.db", executor=executor)
    assert sweeps.statuses(tmp_path / "x.db") == {}


def test_a_worker_of_another_version_is_refused():
    from pns_fast.sweeps.work import Task, perform_in_worker

    task = Task(tuple(grid(range(1))[:1]), 1, torch.device("cpu"))
    with pytest.raises(sweeps.WorkerError, match=r"worker: has pns_fast .*, the driver 0\.0"):
        perform_in_worker(task, (), "0.0")


def test_processes_that_never_start_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("pns_fast.sweeps.local_executor._serve", exit)  # of the driver; a worker calls it with a pipe
    with sweeps.LocalExecutor(1) as executor, pytest.raises(sweeps.WorkerError, match="3 processes exited with code 1"):
        sweeps.run(grid(range(1)), tmp_path / "x.db", executor=executor)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_workers", [0, -1, 1.5, True])
def test_number_of_workers(n_workers):
    with pytest.raises(ValueError, match="workers: expected a positive integer, got"):
        sweeps.LocalExecutor(n_workers)


def test_workers_compute_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "check_device", torch.device)
    with sweeps.LocalExecutor(1) as executor, pytest.raises(ValueError, match="device: workers compute on the CPU"):
        sweeps.run(grid(), tmp_path / "x.db", device="cuda", executor=executor)
    assert not (tmp_path / "x.db").exists()


def test_dask_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r'pip install "pns_fast\[dask\]"'):
        sweeps.DaskExecutor("tcp://127.0.0.1:1")


def test_a_scheduler_that_does_not_answer():
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(OSError, match=r"127\.0\.0\.1:1"),
    ):
        sweeps.DaskExecutor("tcp://127.0.0.1:1")


def test_the_run_notes_what_was_asked(tmp_path):
    sweeps.run(grid(range(1))[:2], tmp_path / "x.db", asked={"why": "a test"})
    with sqlite3.connect(tmp_path / "x.db") as db:
        asked = json.loads(db.execute("SELECT asked FROM run").fetchone()[0])
    db.close()
    assert asked == {"cells": 2, "pending": 2, "executor": "serial", "workers": 1, "why": "a test"}
