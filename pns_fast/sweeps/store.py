"""Where results live: one SQLite file. One process writes (it holds ``<store>.lock``), any number may read.

meta     schema and package version, date of creation
run      one row a driver: host, versions, what was asked for, where the time went
cell     one row a finished network: its parameters, ok or failed, the traceback
metric   its numbers; history: its curves over the epochs
layer    its numbers by layer, 1 to L: the kept density of the weights (0: the layer is empty, the network collapsed),
         and precision, recall and f1 of the planted parameters
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from .grid import SCHEMA_VERSION, Cell

_APPLICATION_ID = int.from_bytes(b"pnsf", "big")  # in the file's header: `file store.db` shows it

# The tables of what came of a cell, besides cell itself. Their first column is its key.
CELL_TABLES = ("metric", "layer", "history")

_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE run (id INTEGER PRIMARY KEY, started REAL NOT NULL, finished REAL, host TEXT NOT NULL,
    versions TEXT NOT NULL, asked TEXT NOT NULL, seconds TEXT);
CREATE TABLE cell (key TEXT PRIMARY KEY, params TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'failed')), started REAL NOT NULL, finished REAL NOT NULL,
    error TEXT, run INTEGER NOT NULL REFERENCES run (id)) WITHOUT ROWID;
CREATE TABLE metric (key TEXT NOT NULL REFERENCES cell (key), name TEXT NOT NULL, value REAL,
    PRIMARY KEY (key, name)) WITHOUT ROWID;
CREATE TABLE layer (key TEXT NOT NULL REFERENCES cell (key), layer INTEGER NOT NULL, density REAL NOT NULL,
    precision REAL NOT NULL, recall REAL NOT NULL, f1 REAL NOT NULL, PRIMARY KEY (key, layer)) WITHOUT ROWID;
CREATE TABLE history (key TEXT PRIMARY KEY REFERENCES cell (key), curves TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}'), ('pns_fast', '{__version__}'),
    ('created', strftime('%Y-%m-%dT%H:%M:%SZ', 'now'));
COMMIT;
"""


LAYER_COLUMNS = ("density", "precision", "recall", "f1")


class StoreError(ValueError):
    """The file is not a store that this version can use. It was not changed."""


class StoreAccessError(OSError):
    """The store cannot be opened, written or locked."""


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: metrics, curves and the ``LAYER_COLUMNS`` [L] by layer, or the traceback in ``error``."""

    cell: Cell
    started: float
    finished: float
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    layers: dict[str, list[float]] = field(default_factory=dict)
    error: str | None = None


class Store:
    """The writer's side of a store; creates the file where there is none. Use it in a ``with`` block.

    Raises:
        StoreError: the file is no SQLite database, no store, or of another schema version.
        StoreAccessError: not writable, or another process writes to it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(folder + "/results.db") as store:
        ...     store.statuses()
        {}
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._lock = _take_lock(self.path)
        try:
            self._db = self._open()
        except BaseException:
            _release_lock(self.path, self._lock)
            raise
        self._run_id: int | None = None

    def _open(self) -> sqlite3.Connection:
        if self.path.exists() and self.path.stat().st_size > 0:
            with _connect(self.path) as db:
                is_new = _check(db, self.path)
        else:
            is_new = True
        with readable_errors(self.path):
            db = sqlite3.connect(self.path, timeout=30)
            try:
                # a network file system may refuse WAL; the rollback journal works everywhere
                if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                    db.execute("PRAGMA journal_mode = DELETE")
                else:
                    db.execute("PRAGMA synchronous = NORMAL")
                if is_new:
                    db.executescript(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")  # a read-only file shows itself here, not after the first chunk
                db.rollback()
            except BaseException:
                db.close()
                raise
        return db

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next writer in."""
        try:
            self._db.close()
        finally:
            _release_lock(self.path, self._lock)

    def begin_run(self, versions: dict, asked: dict) -> None:
        """Note who writes from now on, and what for."""
        with readable_errors(self.path), self._db:
            cursor = self._db.execute(
                "INSERT INTO run (started, host, versions, asked) VALUES (?, ?, ?, ?)",
                (time.time(), socket.gethostname(), json.dumps(versions), json.dumps(asked)),
            )
        self._run_id = cursor.lastrowid

    def end_run(self, seconds: dict[str, float]) -> None:
        """Note when the run ended and where its time went."""
        with readable_errors(self.path), self._db:
            self._db.execute(
                "UPDATE run SET finished = ?, seconds = ? WHERE id = ?",
                (time.time(), json.dumps(seconds), self._run_id),
            )

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Store finished cells in one transaction; a retried cell replaces its failed row."""
        if self._run_id is None:
            raise ValueError("store: begin_run() comes before write()")
        cells, metrics, layers, histories = [], [], [], []
        for o in outcomes:
            key, status = o.cell.key, "ok" if o.error is None else "failed"
            params = json.dumps(o.cell.params())
            cells.append((key, params, status, o.started, o.finished, o.error, self._run_id))
            metrics += [(key, name, float(value)) for name, value in o.metrics.items()]
            if o.layers:
                columns = zip(*(o.layers[name] for name in LAYER_COLUMNS), strict=True)
                layers += [(key, number, *column) for number, column in enumerate(columns, 1)]
            if o.history:
                histories.append((key, json.dumps(o.history)))
        with readable_errors(self.path), self._db:
            self._db.executemany("INSERT OR REPLACE INTO cell VALUES (?, ?, ?, ?, ?, ?, ?)", cells)
            self._db.executemany("INSERT OR REPLACE INTO metric VALUES (?, ?, ?)", metrics)
            self._db.executemany("INSERT OR REPLACE INTO layer VALUES (?, ?, ?, ?, ?, ?)", layers)
            self._db.executemany("INSERT OR REPLACE INTO history VALUES (?, ?)", histories)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database itself; what is done to it in the block is done together or not at all."""
        with readable_errors(self.path), self._db:
            yield self._db

    def statuses(self) -> dict[str, str]:
        """Key of each stored cell -> "ok" or "failed"."""
        with readable_errors(self.path):
            return dict(self._db.execute("SELECT key, status FROM cell"))


def statuses(path: str | os.PathLike) -> dict[str, str]:
    """Key of each cell in the store at ``path`` -> "ok" or "failed"; a running sweep is not disturbed."""
    with reader(path) as db:
        return dict(db.execute("SELECT key, status FROM cell"))


def read(path: str | os.PathLike, keys: Iterable[str] | None = None) -> list[dict]:
    """The stored cells: ``key, status, error``, parameters and metrics of each as one flat dictionary.

    A finished cell also has ``layer_density, layer_precision, layer_recall, layer_f1``: lists [L] by layer.

    Args:
        path: the store; a running sweep is not disturbed.
        keys: only these cells, in this order; None for all, in the order of their parameters.

    Returns:
        One dictionary a cell. A metric that was NaN is NaN again.

    Raises:
        StoreError, StoreAccessError: as for :class:`Store`.
    """
    with reader(path) as db:
        records = {
            key: {"key": key, "status": status, "error": error, **json.loads(params)}
            for key, params, status, error in db.execute("SELECT key, params, status, error FROM cell")
        }
        try:
            for key, name, value in db.execute("SELECT key, name, value FROM metric"):
                records[key][name] = math.nan if value is None else value  # SQLite has no NaN and stores NULL
            for key, *row in db.execute(f"SELECT key, {', '.join(LAYER_COLUMNS)} FROM layer ORDER BY key, layer"):
                for name, value in zip(LAYER_COLUMNS, row, strict=True):
                    records[key].setdefault(f"layer_{name}", []).append(value)
        except KeyError as error:
            raise StoreError(f"store {path}: damaged (results of a cell {error} that it does not have)") from error
    if keys is not None:
        return [records[key] for key in keys if key in records]
    order = ("mode", "task", "depth", "width", "noise", "pruner", "density", "seed")
    return sorted(records.values(), key=lambda record: tuple(record[name] for name in order))


def histories(path: str | os.PathLike) -> dict[str, dict[str, list[float]]]:
    """Key of each cell -> its curves: ``train_loss`` [epochs], ``test_loss`` and ``metric`` [epochs + 1]."""
    with reader(path) as db:
        return {key: json.loads(curves) for key, curves in db.execute("SELECT key, curves FROM history")}


def runs(path: str | os.PathLike) -> list[dict]:
    """The runs that wrote to the store, oldest first.

    Returns:
        ``id, started, finished, host, versions, asked, seconds`` of each (``finished`` and ``seconds`` are None of a
        run that was killed or goes on) and ``n_cells``: how many of the stored cells are its.
    """
    names = ("id", "started", "finished", "host", "versions", "asked", "seconds")
    with reader(path) as db:
        n_cells = dict(db.execute("SELECT run, count(*) FROM cell GROUP BY run"))
        rows = db.execute(f"SELECT {', '.join(names)} FROM run ORDER BY started, id").fetchall()
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for run in found:
        for name in ("versions", "asked", "seconds"):
            run[name] = None if run[name] is None else json.loads(run[name])
        run["n_cells"] = n_cells.get(run["id"], 0)
    return found


@contextmanager
def reader(path: str | os.PathLike) -> Iterator[sqlite3.Connection]:
    """A connection to the store at ``path`` that only reads."""
    path = Path(path)
    if not path.is_file():
        raise StoreAccessError(f"store {path}: no such file")
    with _connect(path) as db:
        if _check(db, path):
            raise StoreError(f"store {path}: an empty file, no pns_fast store")
        with readable_errors(path):
            db.execute("BEGIN")  # one state of the file for all that is read, whatever a running sweep adds meanwhile
            yield db


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads: what is not ours is not touched."""
    # mode=ro would leave empty -wal and -shm files behind, so only where nothing else is possible
    writable = os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)
    mode = "rw" if writable else "ro"
    if not writable and _is_whole(path):
        mode = "ro&immutable=1"  # without, SQLite needs to make these files, which a folder of others does not allow
    with readable_errors(path):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30)
    try:
        db.execute("PRAGMA query_only = ON")
        yield db
    finally:
        db.close()


def _is_whole(path: Path) -> bool:
    """Whether the file is in WAL mode and nobody has it open, so that nothing of it is in another file."""
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError as error:
        raise StoreAccessError(f"store {path}: cannot be read ({error.strerror})") from error
    path = path.resolve()
    return header[18:20] == b"\2\2" and not path.with_name(f"{path.name}-wal").exists()


def _check(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the database is still empty; an error where it holds something other than our tables."""
    try:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        if path.stat().st_size % page_size:  # SQLite takes what is missing of the last page for zeros
            raise StoreError(f"store {path}: damaged (cut short, its size is no multiple of {page_size} bytes)")
        if not tables:
            return True
        if application_id != _APPLICATION_ID or "meta" not in tables:
            raise StoreError(f"store {path}: an SQLite database, but no pns_fast store")
        row = db.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    except sqlite3.OperationalError as error:
        raise StoreAccessError(f"store {path}: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreError(f"store {path}: not an SQLite database ({error})") from error
    found = row[0] if row else "unknown"
    if found != str(SCHEMA_VERSION):
        raise StoreError(
            f"store {path}: has schema version {found}, this pns_fast {__version__} reads "
            f"version {SCHEMA_VERSION}; nothing was changed, choose another file"
        )
    return False


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Errors of SQLite, and of what is no JSON, name the store."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreAccessError(f"store {path}: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"store {path}: damaged ({error})") from error


def _take_lock(path: Path) -> int:
    """Lock ``<path>.lock``. The kernel drops the lock with its process, so kill -9 leaves none behind."""
    if path.is_dir():
        raise StoreAccessError(f"store {path}: is a directory, expected a file")
    lock = _lock_path(path)
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreAccessError(f"store {path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(lock)):
                break
        except BlockingIOError as error:
            holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
            os.close(fd)
            raise StoreAccessError(f"store {path}: {holder} is writing to it; wait or stop it") from error
        except FileNotFoundError:
            os.close(fd)  # the last holder removed the file between our open and our lock
            continue
        except OSError as error:
            os.close(fd)
            raise StoreAccessError(f"store {path}: cannot be locked ({error.strerror})") from error
        os.close(fd)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError as error:  # a full disk
        _release_lock(path, fd)
        raise StoreAccessError(f"store {path}: cannot be written ({error.strerror})") from error
    return fd


def _release_lock(path: Path, fd: int) -> None:
    _lock_path(path).unlink(missing_ok=True)  # while it is still locked, see the loop above
    os.close(fd)


def _lock_path(path: Path) -> Path:
    path = path.resolve()  # two links to one store share its lock
    return path.with_name(path.name + ".lock")
