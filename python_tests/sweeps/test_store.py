"""The store: nothing lost, nothing foreign touched, one writer."""

import errno
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from pns_fast import sweeps
from pns_fast.sweeps import Cell, Outcome, Store, StoreAccessError, StoreError

CELL = Cell("singleshot", "relu", 3, 10, 0.01, "random", "0.5", 0.5, seed=0, scope="global", rounds=1)
OTHER = Cell("singleshot", "relu", 3, 10, 0.01, "random", "0.5", 0.5, seed=1, scope="global", rounds=1)


def outcome(cell=CELL, **metrics):
    return Outcome(cell, 1.0, 2.0, metrics, {"metric": [0.25, 0.1]})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.db"


@pytest.fixture
def store(path):
    with Store(path) as opened:
        opened.begin_run({"pns_fast": "0"}, {})
        yield opened


def test_what_is_written_is_read(store, path):
    third = 1 / 3
    store.write([outcome(weak_metric=third, weak_loss=math.nan, strong_loss=math.inf)])
    (record,) = sweeps.read(path)
    assert {name: record[name] for name in CELL.params()} == CELL.params()
    assert (record["key"], record["status"], record["error"]) == (CELL.key, "ok", None)
    assert record["weak_metric"] == third
    assert math.isnan(record["weak_loss"])
    assert record["strong_loss"] == math.inf
    assert sweeps.histories(path) == {CELL.key: {"metric": [0.25, 0.1]}}
    assert store.statuses() == sweeps.statuses(path) == {CELL.key: "ok"}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE cell SET params = substr(params, 1, 20)",
        "UPDATE cell SET params = CAST(x'7bff' AS TEXT)",
        "UPDATE metric SET key = 'x' || key",
    ],
)
def test_damage_names_the_store(store, path, change):
    store.write([outcome(weak_metric=0.5)])
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    with pytest.raises((StoreError, StoreAccessError), match=r"^store .*results\.db: (damaged|Could not decode)"):
        sweeps.read(path)


def test_layers_are_a_table_of_their_own(store, path):
    layers = {"density": [0.5, 0.0], "precision": [0.25, 0.0], "recall": [1 / 3, 0.0], "f1": [0.1, 0.0]}
    store.write([Outcome(CELL, 1.0, 2.0, {"kept": 3}, layers=layers), outcome(OTHER)])
    first, other = sweeps.read(path)
    assert {name: first[f"layer_{name}"] for name in layers} == layers
    assert not any(name.startswith("layer_") for name in other)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT layer, density, precision, recall, f1 FROM layer WHERE key = ?", (CELL.key,))
        assert rows.fetchall() == [(1, 0.5, 0.25, 1 / 3, 0.1), (2, 0.0, 0.0, 0.0, 0.0)]
    with pytest.raises(ValueError, match="zip"):
        store.write([Outcome(OTHER, 1.0, 2.0, {}, layers={**layers, "f1": [0.1]})])


def test_a_reader_sees_one_state_of_a_running_sweep(store, path, monkeypatch):
    store.write([outcome()])
    loads = json.loads

    def write_meanwhile(text):
        monkeypatch.setattr(json, "loads", loads)
        store.write([outcome(OTHER, kept=1)])
        return loads(text)

    monkeypatch.setattr(json, "loads", write_meanwhile)  # called between the tables
    assert [r["seed"] for r in sweeps.read(path)] == [0]
    assert [r["seed"] for r in sweeps.read(path)] == [0, 1]


def test_failed_cell_is_replaced_when_it_succeeds(store, path):
    store.write([Outcome(CELL, 1.0, 2.0, error="Traceback: broken")])
    assert sweeps.statuses(path) == {CELL.key: "failed"}
    store.write([outcome(kept=3)])
    (record,) = sweeps.read(path)
    assert (record["status"], record["error"], record["kept"]) == ("ok", None, 3.0)


def test_a_write_is_all_or_nothing(store, path):
    store.write([outcome(kept=3)])
    with pytest.raises(TypeError):
        store.write([outcome(OTHER, kept=4), outcome(OTHER, kept=object())])
    bad = Outcome(OTHER, None, 2.0, {"kept": 4})  # started is NOT NULL: refused by SQLite itself
    with pytest.raises(StoreAccessError, match="NOT NULL"):
        store.write([outcome(CELL, kept=5), bad])
    assert [(r["key"], r["kept"]) for r in sweeps.read(path)] == [(CELL.key, 3.0)]


def test_records_come_in_the_order_asked_for(store, path):
    store.write([outcome(OTHER), outcome(CELL)])
    assert [r["seed"] for r in sweeps.read(path)] == [0, 1]
    keys = [OTHER.key, "absent", CELL.key]
    assert [r["seed"] for r in sweeps.read(path, keys)] == [1, 0]


def test_meta_and_run_are_noted(store, path):
    store.end_run({"training": 1.5})
    with sqlite3.connect(path) as db:
        meta = dict(db.execute("SELECT name, value FROM meta"))
        runs = db.execute("SELECT versions, seconds FROM run").fetchall()
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    assert meta["schema_version"] == "2"
    assert set(meta) == {"schema_version", "pns_fast", "created"}
    assert runs == [('{"pns_fast": "0"}', '{"training": 1.5}')]
    assert mode in ("wal", "delete")


def test_a_closed_store_is_one_file(path, tmp_path):
    with Store(path) as store:
        store.begin_run({}, {})
        store.write([outcome()])
    sweeps.read(path)
    assert os.listdir(tmp_path) == ["results.db"]


def test_a_reader_who_may_not_write_needs_no_files_beside_the_store(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder that is read-only, even for root
    with Store(path) as store:
        store.begin_run({}, {})
        store.write([outcome(kept=1)])
        assert [r["kept"] for r in sweeps.read(path)] == [1]  # while it is written as well
        store.write([outcome(OTHER, kept=2)])
        assert [r["kept"] for r in sweeps.read(path)] == [1, 2]
    assert [r["kept"] for r in sweeps.read(path)] == [1, 2]
    assert os.listdir(path.parent) == ["results.db"]


def test_write_needs_a_run(path):
    with Store(path) as store, pytest.raises(ValueError, match="begin_run"):
        store.write([outcome()])


@pytest.mark.parametrize("use", [Store, sweeps.read, sweeps.statuses])
def test_store_of_another_version_is_refused_and_not_touched(path, use):
    with Store(path) as store:
        store.begin_run({}, {})
        store.write([outcome()])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"schema version 99, this pns_fast .* reads version 2"):
        use(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["results.db"]


@pytest.mark.parametrize("use", [Store, sweeps.read])
def test_no_database_is_refused_and_not_touched(path, use):
    path.write_text("date,result\n" * 100)
    with pytest.raises(StoreError, match="not an SQLite database"):
        use(path)
    assert path.read_text() == "date,result\n" * 100


@pytest.mark.parametrize("use", [Store, sweeps.read])
def test_foreign_database_is_refused_and_not_touched(path, use):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (name TEXT)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no pns_fast store"):
        use(path)
    assert path.read_bytes() == before


def test_empty_file_becomes_a_store_but_is_none_to_read(path):
    path.touch()
    with pytest.raises(StoreError, match="no pns_fast store"):
        sweeps.read(path)
    with Store(path) as store:
        assert store.statuses() == {}


@pytest.mark.parametrize("name", ["absent/results.db", "file/results.db", "folder"])
def test_unwritable_path(tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreAccessError, match=f"store {tmp_path / name}: (cannot be written|is a directory)"):
        Store(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert issubclass(StoreAccessError, OSError)
    assert issubclass(StoreError, ValueError)


def test_reading_a_missing_store_makes_none(path):
    with pytest.raises(StoreAccessError, match="no such file"):
        sweeps.read(path)
    assert not path.exists()


def test_second_writer_is_refused_readers_are_not(store, path):
    with pytest.raises(StoreAccessError, match=rf"process {os.getpid()} on .* is writing to it"):
        Store(path)
    store.write([outcome()])  # the first one is not disturbed
    assert len(sweeps.read(path)) == 1


def test_a_full_disk_names_the_store_and_leaves_no_lock(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        with pytest.raises(StoreAccessError, match=r"results.db: cannot be written \(No space left on device\)$"):
            Store(path)
    with Store(path) as store:
        assert store.statuses() == {}


def test_lock_of_a_killed_writer_does_not_block(path):
    script = (
        "import sys, time; from pns_fast.sweeps import Store\n"
        "store = Store(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "open\n"
    with pytest.raises(StoreAccessError, match=f"process {writer.pid} on"):
        Store(path)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.with_name("results.db.lock").exists()
    with Store(path) as store:
        assert store.statuses() == {}
    assert not path.with_name("results.db.lock").exists()
