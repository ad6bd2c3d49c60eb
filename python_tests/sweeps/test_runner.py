"""The driver: resumes, isolates failures, and gives each cell the numbers it has alone."""

import math
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

import pns_fast as pns
from pns_fast import pruners, sweeps, training
from pns_fast.sweeps import runner

SMALL = {"depths": [3], "widths": [32], "n_samples": 200, "epochs": 2}
METRICS = (
    "strong_metric",
    "weak_metric",
    "strong_loss",
    "weak_loss",
    "kept",
    "effective_density",
    "collapsed",
)
METRICS += ("precision", "recall", "f1", "ticket_metric", "ticket_loss", "density_kept", "strong_gap", "weak_gap")
METRICS += ("layer_density", "layer_precision", "layer_recall", "layer_f1")


def single(tasks=("relu",), pruner=("random",), densities=(0.5,), seeds=range(4), **settings):
    return sweeps.expand("singleshot", tasks, pruner, densities, seeds, **{**SMALL, **settings})


def numbers(path):
    """All that a cell's computation gives, by key: what must not depend on how it was run."""
    curves = sweeps.histories(path)
    ok = [r for r in sweeps.read(path) if r["status"] == "ok"]
    return {r["key"]: ([r[m] for m in METRICS], curves[r["key"]]) for r in ok}


@pytest.fixture
def broken_at_2(monkeypatch):
    """The snip pruner fails where the network of seed 2 is scored, until the list is emptied."""
    broken, score = [2], pruners.score

    def failing_score(population, name, batch, loss, seeds):
        if name == "snip" and set(broken) & set(seeds):
            raise FloatingPointError("scores of seed 2")
        return score(population, name, batch, loss, seeds)

    monkeypatch.setattr(pruners, "score", failing_score)
    return broken


MODES = {
    "singleshot": lambda seeds: single(("circle", "relu"), ("random", "snip"), ("ticket", 0.3), seeds),
    "singleshot in rounds": lambda seeds: single(pruner=("synflow",), densities=(0.1,), seeds=seeds, rounds=3),
    "force in rounds": lambda seeds: single(pruner=("force", "phew"), densities=(0.1,), seeds=seeds, rounds=3),
    "rewound multishot": lambda seeds: [
        cell
        for rewind, k in (("weights", 1), ("learning-rate", 0))
        for cell in sweeps.expand(
            *("multishot", ["circle"], ["snip", "force"], [0.3, 1], seeds),
            **{"rounds": 2, "round_epochs": 1, "rewind": rewind, "rewind_epochs": k, "scope": "erk", **SMALL},
        )
    ],
    "multishot": lambda seeds: sweeps.expand(
        "multishot", ["helix"], ["magnitude", "grasp"], [0.3], seeds, rounds=2, round_epochs=1, **SMALL
    ),
    "edge-popup": lambda seeds: sweeps.expand(
        "edge-popup", ["circle"], densities=[0.3], seeds=seeds, popup_epochs=2, **SMALL
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_alone_in_a_batch_and_on_two_threads_bitwise(mode, tmp_path):
    cells, threads = MODES[mode](range(3)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = sweeps.run(cells, tmp_path / "batch.db")
        torch.set_num_threads(2)
        sweeps.run(cells, tmp_path / "two.db", chunk=2)
        for cell in reversed(cells):
            sweeps.run([cell], tmp_path / "alone.db")
    finally:
        torch.set_num_threads(threads)
    assert (report.n_ok, report.n_failed, report.n_left) == (len(cells), 0, 0)
    batch = numbers(tmp_path / "batch.db")
    assert set(batch) == {c.key for c in cells}
    assert batch == numbers(tmp_path / "alone.db") == numbers(tmp_path / "two.db")


def test_metrics_are_those_of_the_python_api(tmp_path):
    (cell,) = single(("circle",), ("snip",), (0.2,), seeds=[5])
    sweeps.run([cell], tmp_path / "x.db")
    (record,) = sweeps.read(tmp_path / "x.db")

    task = pns.tasks.get("circle", noise=0.01)
    data, ticket = task.sample(n=200, seed=5), task.ticket(3)
    mother = pns.init_population(task.widths(3, 32), n=1, seed=[5])
    planted = pns.plant(ticket, mother)
    batch = pruners.pruning_batch(data, "cross_entropy", seed=5)
    masks = pns.prune(planted.population, "snip", 0.2, batch, seed=[5])
    result = pns.train(planted.population, masks, data, epochs=2, seed=[5])
    found = pns.recovery(masks, planted.masks)
    n_parameters = 2 * 32 + 32 + 32 * 4 + 4
    output = ticket.forward(data.x_test)
    assert record["strong_metric"] == result.metric[0, 0]
    assert record["weak_metric"] == result.metric[0, -1]
    assert record["strong_loss"] == result.test_loss[0, 0]
    assert record["weak_loss"] == result.test_loss[0, -1]
    assert record["kept"] == math.ceil(0.2 * n_parameters) == masks.kept()[0]
    assert record["density_kept"] == record["kept"] / n_parameters
    assert record["effective_density"] == masks.effective_density()[0] <= record["density_kept"]
    assert record["collapsed"] == 0.0
    assert (record["precision"], record["recall"], record["f1"]) == (found.precision, found.recall, found.f1)
    assert record["layer_density"] == masks.layer_densities()[0].tolist()
    for name in ("layer_precision", "layer_recall", "layer_f1"):
        assert record[name] == getattr(found, name)[0].tolist()
    assert record["ticket_metric"] == (output.argmax(1) == data.y_test).double().mean()
    assert record["ticket_metric"] > 0.9
    assert record["ticket_density"] == ticket.density((2, 32, 4))
    assert sweeps.histories(tmp_path / "x.db")[cell.key]["train_loss"] == result.train_loss[0].tolist()


def test_edge_popup_strong_is_the_searched_mask_weak_its_training(tmp_path):
    cells = sweeps.expand("edge-popup", ["relu"], ["edge-popup"], [0.5], [1], popup_epochs=2, **SMALL)
    sweeps.run(cells, tmp_path / "x.db")
    (record,) = sweeps.read(tmp_path / "x.db")
    task = pns.tasks.get("relu")
    data = task.sample(n=200, seed=1)
    planted = pns.plant(task.ticket(3), pns.init_population((1, 32, 1), n=1, seed=[1]))
    popup = pns.edge_popup(planted.population, data, 0.5, epochs=2, seed=[1])
    result = pns.train(planted.population, popup.masks, data, epochs=2, seed=[1])
    assert record["strong_metric"] == popup.metric[0, -1]
    assert record["strong_loss"] == popup.test_loss[0, -1]
    assert record["weak_metric"] == result.metric[0, -1]


def test_collapse_is_recorded(tmp_path):
    cells = single(("helix",), ("magnitude",), (0.002,), seeds=[0], depths=[6])
    sweeps.run(cells, tmp_path / "x.db")
    (record,) = sweeps.read(tmp_path / "x.db")
    assert (record["collapsed"], record["effective_density"]) == (1.0, 0.0)
    assert len(record["layer_density"]) == 5
    assert 0.0 in record["layer_density"]
    assert record["layer_recall"][record["layer_density"].index(0.0)] == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_a_gap_is_how_much_worse_than_the_ticket(tmp_path, mode):
    sweeps.run(MODES[mode](range(2)), tmp_path / "x.db")
    for record in sweeps.read(tmp_path / "x.db"):
        sign = 1 if record["task"] == "circle" else -1  # accuracy, or an error
        for stage in ("strong", "weak"):
            gap, metric = record[f"{stage}_gap"], record[f"{stage}_metric"]
            assert gap == sign * (record["ticket_metric"] - metric)
            assert gap > 0  # two epochs on 180 samples: nothing comes near the ticket


def test_ticket_performance_at_full_size():
    from pns_fast.sweeps.experiment import ticket_performance

    # accuracy, and raw MSE; the best factor for each output can only lower it
    expected = {"circle": (0.97, 0.99), "relu": (0.9e-4, 1.1e-4), "helix": (3.0e-4, 3.3e-4)}
    for name, (low, high) in expected.items():
        task = pns.tasks.get(name)
        for seed in range(5):
            metric, loss = ticket_performance(task, task.ticket(5), task.sample(seed=seed))
            assert low < (metric if name == "circle" else loss) < high
            assert metric <= loss or name == "circle"


def test_done_cells_are_skipped_and_the_grid_may_grow(tmp_path):
    assert sweeps.run(single(seeds=range(2)), tmp_path / "x.db").n_ok == 2
    first = numbers(tmp_path / "x.db")
    report = sweeps.run(single(seeds=range(3), pruner=("random", "magnitude")), tmp_path / "x.db")
    assert (report.n_skipped, report.n_ok, report.n_cells) == (2, 4, 6)
    assert first.items() <= numbers(tmp_path / "x.db").items()
    assert set(report.seconds) >= {"training", "scoring", "planting", "data", "store", "total"}
    assert sum(s for name, s in report.seconds.items() if name != "total") <= report.seconds["total"]


def test_progress_counts_up(tmp_path):
    seen = []
    sweeps.run(single(), tmp_path / "x.db", chunk=3, progress=lambda r: seen.append((r.n_ok, r.n_left)))
    assert seen == [(0, 4), (3, 1), (4, 0)]


def test_failing_cell_is_stored_with_its_traceback_and_harms_no_other(tmp_path, broken_at_2):
    cells = single(pruner=("random", "snip", "magnitude"), densities=(0.5, 0.1))
    report = sweeps.run(cells, tmp_path / "x.db", chunk=5)
    assert (report.n_ok, report.n_failed, report.n_left) == (22, 2, 0)
    failed = [r for r in sweeps.read(tmp_path / "x.db") if r["status"] == "failed"]
    assert {(r["pruner"], r["seed"]) for r in failed} == {("snip", 2)}
    for record in failed:
        assert record["error"].startswith("Traceback")
        assert record["error"].endswith("FloatingPointError: scores of seed 2\n")
        assert "weak_metric" not in record
    good = [c for c in cells if (c.pruner, c.seed) != ("snip", 2)]
    sweeps.run(good, tmp_path / "good.db")
    assert numbers(tmp_path / "good.db") == numbers(tmp_path / "x.db")


def test_failed_cells_are_retried_only_when_asked(tmp_path, broken_at_2):
    cells = single(pruner=("snip",))
    sweeps.run(cells, tmp_path / "x.db")
    broken_at_2.clear()
    report = sweeps.run(cells, tmp_path / "x.db")
    assert (report.n_ok, report.n_skipped, report.n_failed_before) == (0, 4, 1)
    report = sweeps.run(cells, tmp_path / "x.db", retry_failed=True)
    assert (report.n_ok, report.n_skipped, report.n_failed_before) == (1, 3, 0)
    sweeps.run(cells, tmp_path / "fresh.db")
    assert numbers(tmp_path / "x.db") == numbers(tmp_path / "fresh.db")


def test_error_in_a_chunk_of_training_costs_no_good_cell(tmp_path, monkeypatch):
    from pns_fast import training

    train = training.train

    def train_but_seed_1(population, masks, data, **settings):
        if 1 in settings["seed"]:
            raise MemoryError("no room for seed 1")
        return train(population, masks, data, **settings)

    monkeypatch.setattr(training, "train", train_but_seed_1)
    report = sweeps.run(single(seeds=range(8)), tmp_path / "x.db")
    assert (report.n_ok, report.n_failed) == (7, 1)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    def interrupt(report):
        if report.n_ok == 2:
            signal.raise_signal(signal.SIGINT)

    cells = single(pruner=("random", "magnitude"))
    report = sweeps.run(cells, tmp_path / "x.db", chunk=2, progress=interrupt)
    assert (report.interrupted, report.n_ok, report.n_left) == (True, 2, 6)
    report = sweeps.run(cells, tmp_path / "x.db")
    assert (report.interrupted, report.n_ok, report.n_skipped) == (False, 6, 2)
    sweeps.run(cells, tmp_path / "fresh.db")
    assert numbers(tmp_path / "x.db") == numbers(tmp_path / "fresh.db")


SLOW_SWEEP = """
import sys, time
from pns_fast import sweeps
cells = sweeps.expand("singleshot", ["relu", "circle"], ["random", "snip"], [0.5, 0.1], range(5), depths=[3],
                      widths=[32], n_samples=200, epochs=2)
def progress(report):
    print(report.n_ok, flush=True)
    time.sleep(0.05)
sweeps.run(cells, sys.argv[1], chunk=2, progress=progress)
"""


def test_kill_9_and_resume_equals_a_run_without_interruption(tmp_path):
    path = tmp_path / "killed.db"
    sweep = subprocess.Popen([sys.executable, "-c", SLOW_SWEEP, str(path)], stdout=subprocess.PIPE, text=True)
    while int(sweep.stdout.readline()) < 10:
        pass
    time.sleep(0.02)  # anywhere, not just after a chunk
    sweep.kill()
    assert sweep.wait() == -signal.SIGKILL
    sweep.stdout.close()

    cells = single(("relu", "circle"), ("random", "snip"), (0.5, 0.1), range(5))
    n_before = len(sweeps.statuses(path))
    assert 10 <= n_before < len(cells) == 40
    report = sweeps.run(cells, path)
    assert (report.n_skipped, report.n_ok) == (n_before, 40 - n_before)
    sweeps.run(cells, tmp_path / "whole.db")
    assert numbers(path) == numbers(tmp_path / "whole.db")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*), count(DISTINCT key) FROM cell").fetchone() == (40, 40)


def test_blocks_of_mothers_cover_every_cell_once(monkeypatch):
    monkeypatch.setattr("pns_fast.sweeps.experiment._MAX_BLOCK_BYTES", 6_000)
    cells = single(("relu", "circle"), ("random", "snip"), (0.5, "ticket"), range(7))
    groups = list(runner.mother_groups(cells))
    assert sorted(c.key for group in groups for c in group) == sorted(c.key for c in cells)
    # 97 parameters a ReLU mother, 228 a Circle one; 200 samples of 8 and 16 bytes
    assert [len({c.seed for c in group}) for group in groups] == [3, 3, 1, *[1] * 7]
    assert all(len({c.task for c in group}) == 1 for group in groups)


MEMORY = """
import resource, sys
from pns_fast import sweeps
def peak(seeds):
    cells = sweeps.expand("singleshot", ["circle"], ["snip"], [0.1], seeds, n_samples=2_000, epochs=0)
    assert sweeps.run(cells, sys.argv[1]).n_ok == len(seeds)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
few = peak(range(300))
print(peak(range(300, 1_800)) - few)
"""


def test_memory_does_not_grow_with_the_number_of_seeds(tmp_path):
    # 1,500 mothers and their data are 170 MB, and scoring would hold the mothers ten times
    grown = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.db")], capture_output=True, text=True, check=True
    )
    assert float(grown.stdout) < 100


def test_a_diverged_network_is_stored_told_and_harms_no_other(tmp_path):
    from pns_fast.sweeps.summary import diverged

    calm, wild = single(("circle", "helix"), densities=(1.0,)), single(("circle", "helix"), densities=(1.0,), lr=1e30)
    report = sweeps.run(wild + calm, tmp_path / "x.db", chunk=3)
    assert (report.n_ok, report.n_failed) == (16, 0)
    records = {r["key"]: r for r in sweeps.read(tmp_path / "x.db")}
    assert all(diverged(records[c.key]) for c in wild)
    assert not any(diverged(records[c.key]) for c in calm)
    sweeps.run(calm, tmp_path / "calm.db")
    assert numbers(tmp_path / "calm.db").items() <= numbers(tmp_path / "x.db").items()
    sweeps.save_figure([records[c.key] for c in wild], tmp_path / "x.png")
    sweeps.write_csv(list(records.values()), tmp_path / "x.csv")


def test_a_network_that_diverges_in_a_round_fails_alone(tmp_path):
    cells = sweeps.expand("multishot", ["helix"], ["snip"], [0.5], range(2), rounds=2, round_epochs=2, lr=1e30, **SMALL)
    report = sweeps.run(cells, tmp_path / "x.db")
    assert (report.n_ok, report.n_failed) == (0, 2)
    assert all("scores are not finite" in r["error"] for r in sweeps.read(tmp_path / "x.db"))


def test_every_pruner_sees_the_same_batch_drawn_once(tmp_path, monkeypatch):
    drawn, draw = [], pruners.pruning_batch
    monkeypatch.setattr(pruners, "pruning_batch", lambda data, *a, **k: drawn.append(len(data)) or draw(data, *a, **k))
    sweeps.run(single(pruner=("random", "snip", "grasp"), seeds=range(3)), tmp_path / "x.db")
    assert drawn == [3]


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_chunk_must_be_a_positive_integer(tmp_path, chunk):
    with pytest.raises(ValueError, match=r"chunk: expected a positive integer or None, got"):
        sweeps.run(single(), tmp_path / "x.db", chunk=chunk)
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("mode", ["singleshot", "multishot", "edge-popup"])
def test_at_density_1_one_network_a_seed_is_every_pruners(tmp_path, monkeypatch, mode):
    trained, train = [], training.train
    monkeypatch.setattr(training, "train", lambda p, *a, **k: trained.append(p.n) or train(p, *a, **k))
    short = {"multishot": {"rounds": 2, "round_epochs": 1}, "edge-popup": {"popup_epochs": 1}}.get(mode, {})
    cells = sweeps.expand(mode, ["circle"], ["all"], [0.3, 1], range(2), **SMALL, **short)
    n_pruners = len({c.pruner for c in cells})
    sweeps.run(cells, tmp_path / "all.db")
    if mode != "multishot":  # it trains in its own module
        assert sum(trained) == 2 * (n_pruners + 1)
    sweeps.run([c for c in cells if c.pruner == cells[-1].pruner], tmp_path / "alone.db")
    everyones, alone = numbers(tmp_path / "all.db"), numbers(tmp_path / "alone.db")
    assert len(everyones) == len(cells)
    for key, found in alone.items():
        assert everyones[key] == found
    assert len({str(everyones[c.key]) for c in cells if c.density == 1 and c.seed == 0}) == 1
