"""What a store holds of its cells, apart from when and by whom they were computed."""

import sqlite3

from pns_fast.sweeps.store import CELL_TABLES


def rows(path):
    """Table -> its rows, sorted; equal stores have equal numbers bit for bit."""
    with sqlite3.connect(path) as db:
        found = {table: sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in CELL_TABLES}
        found["cell"] = sorted(db.execute("SELECT key, params, status FROM cell"))
    db.close()
    return found
