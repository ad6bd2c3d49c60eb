"""Merging: what the stores hold together, or an error and nothing of that source."""

import math
import sqlite3

import pytest
from sweeps.rows import rows

from pns_fast import sweeps
from pns_fast.sweeps import Cell, Outcome, Store, StoreError

CELLS = [
    Cell("singleshot", "relu", 3, 10, 0.01, "snip", "0.5", 0.5, seed=seed, scope="global", rounds=1)
    for seed in range(4)
]


def outcome(seed, loss=0.5, error=None):
    if error:
        return Outcome(CELLS[seed], 1.0, 2.0, error=error)
    metrics = {"weak_metric": seed / 3, "weak_loss": loss, "strong_loss": math.nan}
    return Outcome(CELLS[seed], 1.0, 2.0, metrics, {"metric": [seed / 7, math.inf]})


@pytest.fixture
def make(tmp_path):
    """A store of outcomes by its name, one run each."""

    def make(name, *outcomes):
        with Store(tmp_path / name) as store:
            store.begin_run({"name": name}, {"executor": "local", "workers": 3})
            store.write(outcomes)
            store.end_run({"total": 1.5})
        return tmp_path / name

    return make


def test_all_of_it_is_there_with_its_runs(make, tmp_path):
    a, b = make("a.db", outcome(0), outcome(1)), make("b.db", outcome(2), outcome(3, error="broken"))
    before = a.read_bytes(), b.read_bytes()
    first, second = sweeps.merge([a, b], tmp_path / "all.db")
    assert (first.source, first.n_new, first.n_replaced, first.n_known) == (a, 2, 0, 0)
    assert (second.n_new, second.n_replaced, second.n_known) == (2, 0, 0)
    whole = make("whole.db", outcome(0), outcome(1), outcome(2), outcome(3, error="broken"))
    assert rows(tmp_path / "all.db") == rows(whole)
    assert (a.read_bytes(), b.read_bytes()) == before
    with sqlite3.connect(tmp_path / "all.db") as db:
        wrote = dict(db.execute("SELECT key, versions FROM cell JOIN run ON run.id = cell.run"))
    db.close()
    assert [wrote[c.key] for c in CELLS] == ['{"name": "a.db"}'] * 2 + ['{"name": "b.db"}'] * 2
    assert [run["n_cells"] for run in sweeps.runs(tmp_path / "all.db")] == [2, 2]


def test_a_finished_cell_wins_over_a_failed_one_in_both_directions(make):
    target = make("target.db", outcome(0, error="broken"), outcome(1))
    source = make("source.db", outcome(0), outcome(1, error="broken"), outcome(2, error="broken"))
    (found,) = sweeps.merge([source], target)
    assert (found.n_new, found.n_replaced, found.n_known) == (1, 1, 1)
    assert rows(target) == rows(make("whole.db", outcome(0), outcome(1), outcome(2, error="broken")))
    assert all(r["error"] is None for r in sweeps.read(target) if r["status"] == "ok")


def test_merging_again_changes_nothing(make, tmp_path):
    a = make("a.db", outcome(0), outcome(1, error="broken"))
    sweeps.merge([a], tmp_path / "all.db")
    before = rows(tmp_path / "all.db"), sweeps.runs(tmp_path / "all.db")
    found = sweeps.merge([a, a], tmp_path / "all.db")
    assert [(m.n_new, m.n_replaced, m.n_known) for m in found] == [(0, 0, 2)] * 2
    assert (rows(tmp_path / "all.db"), sweeps.runs(tmp_path / "all.db")) == before


def test_two_results_of_a_cell_are_an_error_and_nothing_of_that_source_is_merged(make, tmp_path):
    a, b = make("a.db", outcome(0)), make("b.db", outcome(1), outcome(0, loss=0.5 + 2**-50))
    message = f"b.db: has another metric than .*all.db of the cell {CELLS[0].key} .*pruner snip.* seed 0"
    with pytest.raises(StoreError, match=message):
        sweeps.merge([a, b], tmp_path / "all.db")
    assert rows(tmp_path / "all.db") == rows(a)


def test_wrong_sources(make, tmp_path):
    a = make("a.db", outcome(0))
    with pytest.raises(ValueError, match=r"target .*a\.db: is one of the sources"):
        sweeps.merge([a], tmp_path / "." / "a.db")
    with pytest.raises(ValueError, match="sources: expected at least one"):
        sweeps.merge([], a)
    with pytest.raises(sweeps.StoreAccessError, match=r"b\.db: no such file"):
        sweeps.merge([a, tmp_path / "b.db"], tmp_path / "all.db")
    with sqlite3.connect(a) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    db.close()
    with pytest.raises(StoreError, match="schema version 99"):
        sweeps.merge([a], tmp_path / "all.db")
    assert not (tmp_path / "all.db").exists()


def damage(path, how):
    content = path.read_bytes()
    if how == "text":
        path.write_text("notes\n" * 1000)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "last byte":
        path.write_bytes(content[:-1])
    else:  # "page": the root of the table that is copied last
        with sqlite3.connect(path) as db:
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'history'").fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
        db.close()
        path.write_bytes(content[: size * (page - 1)] + b"\xff" * size + content[size * page :])


@pytest.mark.parametrize("how", ["text", "empty", "half", "last byte", "page"])
def test_a_damaged_source_is_named_and_nothing_of_it_is_merged(make, tmp_path, how):
    a, b = make("a.db", outcome(0)), make("b.db", outcome(1))
    target = make("all.db", outcome(2))
    damage(b, how)
    with pytest.raises((StoreError, sweeps.StoreAccessError), match=r"^store .*b\.db: ") as caught:
        sweeps.merge([a, b], target)
    assert "all.db" not in str(caught.value)
    seeds = [r["seed"] for r in sweeps.read(target)]
    assert seeds == ([0, 2] if how == "page" else [2])  # the rest is seen before anything is copied


def test_a_target_that_is_damaged_is_named(make):
    a, target = make("a.db", outcome(0)), make("all.db", outcome(0), outcome(1))
    damage(target, "page")
    with pytest.raises(sweeps.StoreAccessError, match=r"^store .*all\.db: "):
        sweeps.merge([a], target)


def test_shards_merged_are_the_whole_sweep(tmp_path):
    small = {"depths": [3], "widths": [32], "n_samples": 200, "epochs": 2}
    cells = sweeps.expand("singleshot", ["relu", "circle"], ["snip", "random"], [0.1, 1], range(5), **small)
    stores = [tmp_path / f"{k}.db" for k in (1, 2, 3)]
    for k, store in enumerate(stores, 1):
        sweeps.run(sweeps.shard(cells, k, 3), store)
    sweeps.merge(stores, tmp_path / "all.db")
    sweeps.run(cells, tmp_path / "whole.db")
    assert rows(tmp_path / "all.db") == rows(tmp_path / "whole.db")
    assert sweeps.run(cells, tmp_path / "all.db").n_skipped == len(cells)
