"""Sweeps on the command line that are killed, interrupted and resumed: nothing is lost, nobody is left behind."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps.rows import rows

from pns_fast import sweeps

GRID = ["--task=circle,relu", "--density=ticket,0.1,0.5,1", "--seeds=4", "--depth=3", "--width=64", "--samples=2000"]
GRID += ["--epochs=40"]  # seconds: long enough to be hit in the middle on a busy machine
N_CELLS = 2 * 5 * 4 * 4
PATIENCE = 120  # seconds until a test gives up; nothing waits that long


def start(store, *more):
    """The sweep as a user starts it, as the leader of a process group, as a shell would."""
    command = [sys.executable, "-m", "pns_fast", "sweep", "singleshot", *GRID, f"--store={store}", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True)


def n_stored(store):
    """Cells in the store; 0 where the sweep has not made it yet."""
    try:
        return len(sweeps.statuses(store))
    except (sweeps.StoreAccessError, sweeps.StoreError):
        return 0


def wait_until(condition, process):
    """Poll for what a running process is to bring about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def state_and_parent(pid):
    """One letter, Z of a zombie; and the parent's pid. None for a process that is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return after_name[0], int(after_name[1])


def children(pid):
    found = {int(p.name): state_and_parent(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()}
    return [child for child, stat in found.items() if stat and stat[1] == pid]


def wait_for_end(pids):
    deadline = time.monotonic() + PATIENCE
    while alive := [pid for pid in pids if (stat := state_and_parent(pid)) and stat[0] != "Z"]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)


@contextlib.contextmanager
def running(*arguments):
    with start(*arguments) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    store = tmp_path_factory.mktemp("uninterrupted") / "x.db"
    cells = sweeps.expand(
        "singleshot",
        ["circle", "relu"],
        densities=["ticket", 0.1, 0.5, 1],
        seeds=range(4),
        depths=[3],
        widths=[64],
        n_samples=2000,
        epochs=40,
    )
    assert sweeps.run(cells, store).n_ok == N_CELLS
    return rows(store)


def test_killed_three_times_and_resumed_equals_a_run_without_interruption(tmp_path, uninterrupted):
    store, moments = tmp_path / "x.db", random.Random(6)
    for _ in range(3):
        before = n_stored(store)
        at = before + moments.randint(1, (N_CELLS - before) // 3)
        with running(store, "--chunk=4", "--threads=1") as sweep:
            wait_until(lambda at=at: n_stored(store) >= at, sweep)
            time.sleep(0.02 * moments.random())  # anywhere in a chunk, not just after one
            sweep.kill()
            assert sweep.wait() == -signal.SIGKILL
        assert before < n_stored(store) < N_CELLS
    with running(store) as sweep:
        out, _ = sweep.communicate(timeout=PATIENCE)
        assert sweep.returncode == 0
    assert re.search(rf"networks +{N_CELLS}: \d+ new, \d+ stored before, 0 failed", out)
    assert rows(store) == uninterrupted
    assert [run["finished"] is None for run in sweeps.runs(store)] == [True, True, True, False]


def test_workers_end_with_a_driver_that_is_killed(tmp_path, uninterrupted):
    store = tmp_path / "x.db"
    with running(store, "--workers=2") as sweep:
        wait_until(lambda: n_stored(store) > 0, sweep)
        workers = children(sweep.pid)
        assert len(workers) >= 2
        sweep.kill()
        assert sweep.wait() == -signal.SIGKILL
        wait_for_end(workers)
    assert 0 < n_stored(store) < N_CELLS
    with running(store, "--workers=2") as sweep:
        out, err = sweep.communicate(timeout=PATIENCE)
        assert (sweep.returncode, "Traceback" in err) == (0, False)
    assert "worker seconds" in out
    assert "the sweep by 2 workers (local); besides" in out
    assert rows(store) == uninterrupted


def test_ctrl_c_ends_driver_and_workers_in_order(tmp_path):
    store = tmp_path / "x.db"
    with running(store, "--workers=2") as sweep:
        wait_until(lambda: n_stored(store) > 0, sweep)
        workers = children(sweep.pid)
        os.killpg(sweep.pid, signal.SIGINT)  # to all of them, as a terminal does
        _, err = sweep.communicate(timeout=PATIENCE)
        assert sweep.returncode == 130
        wait_for_end(workers)
    assert "Traceback" not in err
    assert f"stopped: {n_stored(store)} of {N_CELLS} cells are in {store}; the same command goes on from there" in err
