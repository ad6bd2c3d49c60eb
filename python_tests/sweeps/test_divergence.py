"""A sweep whose networks diverge stores NaN, counts its cells as done, and has panels, table, figure and CSV."""

from __future__ import annotations

import csv
import io
import math

from rich.console import Console

from pns_fast import sweeps


def test_summary_of_diverged_networks(tmp_path):
    small = {"depths": [3], "widths": [32], "n_samples": 200, "epochs": 2}
    cells = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], range(2), **small, lr=1e30)
    report = sweeps.run(cells, tmp_path / "results.db")
    assert (report.n_ok, report.n_failed) == (2, 0)
    records = sweeps.read(tmp_path / "results.db")
    assert all(math.isnan(r["weak_metric"]) and math.isfinite(r["strong_metric"]) for r in records)
    (panel,) = sweeps.panels(records)
    assert panel.n_seeds == 2
    console = Console(file=io.StringIO())
    for table in sweeps.tables(records):
        console.print(table)
    assert "relu" in console.file.getvalue().lower()
    assert sweeps.figure(records).axes
    sweeps.write_csv(records, tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [math.isnan(float(row["weak_metric"])) for row in rows] == [True, True]
