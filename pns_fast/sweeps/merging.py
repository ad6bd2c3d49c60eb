"""Several stores into one: what shards of a sweep end with. Sources are only read."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .store import CELL_TABLES, Store, StoreError, readable_errors, reader


@dataclass(frozen=True)
class Merged:
    """What one source brought: cells that are new, that replaced a failed one, and that were there already."""

    source: Path
    n_new: int
    n_replaced: int
    n_known: int


def merge(sources: Sequence[str | os.PathLike], target: str | os.PathLike) -> list[Merged]:
    """Copy the cells of all sources into one store, each source in one transaction.

    A finished cell wins over a failed one. Runs come along with the cells that they computed.

    Args:
        sources: paths of stores.
        target: path of the store to add to; made if missing.

    Returns:
        What each source brought.

    Raises:
        ValueError: no sources, or the target is one of them.
        StoreError: a file is no store of this schema version, or two results of one cell differ. Sources before that
            one are merged then, it is not.
        StoreAccessError: a source is missing or damaged, or the target cannot be written.

    Example:
        >>> import tempfile
        >>> from pns_fast import sweeps
        >>> cells = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], seeds=range(3), depths=[3],
        ...                       widths=[4], n_samples=100, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stores = [f"{folder}/{k}.db" for k in (1, 2)]
        ...     for k, store in enumerate(stores, 1):
        ...         _ = sweeps.run(sweeps.shard(cells, k, 2), store)
        ...     [m.n_new for m in merge(stores, folder + "/all.db")]
        [2, 1]
    """
    sources, target = [Path(s) for s in sources], Path(target)
    if not sources:
        raise ValueError("sources: expected at least one store, got none")
    for source in sources:
        if source.resolve() == target.resolve():
            raise ValueError(f"target {target}: is one of the sources, which are only read; choose another file")
        with reader(source):  # so that a wrong name shows itself before anything is copied
            pass
    with Store(target) as store:
        return [_merge_one(source, store) for source in sources]


def _merge_one(source: Path, store: Store) -> Merged:
    with reader(source) as theirs, store.transaction() as ours:
        known = dict(ours.execute("SELECT key, status FROM cell"))
        found = dict(_select(source, theirs, "SELECT key, status FROM cell"))
        both_ok = {key for key, status in found.items() if status == known.get(key) == "ok"}
        _refuse_differences(both_ok, source, theirs, store.path, ours)
        replaced = {key for key, status in found.items() if status == "ok" and known.get(key) == "failed"}
        new = found.keys() - known.keys()
        _copy(new | replaced, source, theirs, ours)
    return Merged(source, len(new), len(replaced), len(found) - len(new) - len(replaced))


def _select(path: Path, db: sqlite3.Connection, query: str, *values: object) -> Iterator[tuple]:
    """Rows of one of the two databases that are open in :func:`_merge_one`; damage names this one."""
    with readable_errors(path):
        yield from db.execute(query, values)


def _refuse_differences(
    keys: set[str], source: Path, theirs: sqlite3.Connection, target: Path, ours: sqlite3.Connection
) -> None:
    """An error that names the first of these cells whose numbers are not the same on both sides, bit for bit."""
    for table in CELL_TABLES:
        there, here = _rows(table, keys, source, theirs), _rows(table, keys, target, ours)
        for key in sorted(keys):
            if there.get(key) != here.get(key):
                ((params,),) = _select(source, theirs, "SELECT params FROM cell WHERE key = ?", key)
                names = ("mode", "task", "depth", "width", "noise", "pruner", "density_label", "seed")
                shown = ", ".join(f"{name} {json.loads(params)[name]}" for name in names)
                raise StoreError(
                    f"store {source}: has another {table} than {target} of the cell {key} ({shown}); nothing of it "
                    "was merged"
                )


def _rows(table: str, keys: set[str], path: Path, db: sqlite3.Connection) -> dict[str, set[tuple]]:
    found: dict[str, set[tuple]] = {}
    for row in _select(path, db, f"SELECT * FROM {table}"):
        if row[0] in keys:
            found.setdefault(row[0], set()).add(row)
    return found


def _copy(keys: set[str], source: Path, theirs: sqlite3.Connection, ours: sqlite3.Connection) -> None:
    """These cells with all that belongs to them, and the runs that computed them, which get new numbers here."""
    runs: dict[int, int] = {}
    for *cell, run in _select(source, theirs, "SELECT * FROM cell"):  # run is the last column
        if cell[0] in keys:
            if run not in runs:
                noted = list(_select(source, theirs, "SELECT * FROM run WHERE id = ?", run))
                if not noted:
                    raise StoreError(f"store {source}: damaged (cells of a run {run} that it does not have)")
                runs[run] = _insert("run", (None, *noted[0][1:]), ours)
            _insert("cell", (*cell, runs[run]), ours)
    for table in CELL_TABLES:
        for row in _select(source, theirs, f"SELECT * FROM {table}"):
            if row[0] in keys:
                _insert(table, row, ours)


def _insert(table: str, row: tuple, db: sqlite3.Connection) -> int:
    return db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row).lastrowid
