"""Panels, tables and the CSV, from made-up records with known means."""

import csv
import io
import math

import pytest
from rich.console import Console

from pns_fast import sweeps
from pns_fast.sweeps import Report
from pns_fast.sweeps.summary import Spread
from pns_fast.sweeps.table import CSV_COLUMNS, print_closing, print_results, recovery_table

HEADER = (
    "mode,task,depth,width,noise,pruner,density_label,density,seed,strong_metric,weak_metric,strong_loss,"
    "weak_loss,kept,effective_density,collapsed,precision,recall"
)


def test_panels_are_in_the_papers_order(grid):
    panels = sweeps.panels(grid)
    assert [(p.task, p.is_accuracy, p.n_seeds) for p in panels] == [("circle", True, 3), ("helix", False, 3)]
    assert list(panels[0].curves) == ["random", "synflow"]
    assert list(panels[0].densities) == ["ticket", "0.1", "1"]
    point = panels[0].curves["random"][0]
    assert (point.label, point.n, point.n_collapsed) == ("ticket", 3, 0)
    assert point.weak == Spread(pytest.approx(0.8, rel=1e-15), 0.7, 0.7 + 2 / 10)


def test_a_point_sums_up_what_was_found_of_the_ticket(record):
    records = [
        record(seed=s, recall=0.1 * s, weak_gap=s / 8, layer_density=[0.5, 0.25 * (s > 1), 0.1, 1.0]) for s in range(3)
    ]
    (panel,) = sweeps.panels(records)
    (point,) = panel.curves["snip"]
    assert point.recall == Spread(pytest.approx(0.1), 0.0, pytest.approx(0.2))
    assert point.weak_gap == Spread(0.125, 0.0, 0.25)
    assert point.layer_density[1] == Spread(0.25 / 3, 0.0, 0.25)
    assert point.n_empty == (0, 2, 0, 0)
    # of 20,600 weights and 304 biases the Circle ticket has 108 and 22
    assert panel.planted.density == 130 / 20_904
    assert panel.planted.layer_density == (4 / 200, 4 / 10_000, 20 / 10_000, 80 / 400)


def test_the_table_of_what_was_found(record):
    records = [record(seed=s, recall=0.1 * s, precision=0.0123) for s in range(3)]
    records += [record(density_label="1", density=1.0, recall=1.0, precision=0.0062, pruner="random")]
    console = Console(width=64, file=io.StringIO(), highlight=False)
    console.print(recovery_table(records))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["task", "pruner", "0.1", "1"] in lines
    assert ["Circle", "random", "100/0.62"] in lines
    assert ["snip", "10/1.2"] in lines


def test_spread_leaves_out_what_is_not_finite():
    assert Spread.of([1.0, math.nan, 3.0, math.inf]) == Spread(2.0, 1.0, 3.0)
    assert math.isnan(Spread.of([math.nan]).mean)


def test_failed_cells_are_left_out(record):
    panels = sweeps.panels([record(), {**record(seed=1), "status": "failed"}])
    assert panels[0].curves["snip"][0].n == 1
    with pytest.raises(ValueError, match="expected finished cells, got none"):
        sweeps.panels([{**record(), "status": "failed"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 20}, r"several values of epochs \(10, 20\).*--where epochs=10"),
        ({"mode": "multishot"}, r"several values of mode \(singleshot, multishot\).*--where mode=singleshot"),
    ],
)
def test_mixtures_are_refused(changes, message, record):
    with pytest.raises(ValueError, match=message):
        sweeps.panels([record(), record(**changes)])


def test_csv_has_the_header_of_the_contract_and_one_row_a_network(tmp_path, record):
    assert ",".join(CSV_COLUMNS) == HEADER
    failed = {"key": "f", "status": "failed", "error": "x", "mode": "singleshot"}
    sweeps.write_csv([record(weak_loss=0.1 + 0.2), failed, record(seed=1, collapsed=1.0)], tmp_path / "x.csv")
    text = (tmp_path / "x.csv").read_text()
    assert text.splitlines()[0] == HEADER
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["seed"], r["kept"], r["collapsed"]) for r in rows] == [("0", "2091", "0"), ("1", "2091", "1")]
    assert float(rows[0]["weak_loss"]) == 0.1 + 0.2  # every digit
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("width", [64, 80, 120])
def test_tables_fit_the_terminal_and_break_no_word(width, grid):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for table in sweeps.tables(grid, width):
        console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "80.0 70-90" in text or width < 120
    for shown in (
        "80.0",
        "70-90",
        "1010",
        "10-2000",
        "planted ticket: 98.0 (98-98) at density 0.00524",
    ):
        assert shown in text


def test_a_pipe_gets_whole_numbers(record, capsys):
    densities = [0.01 * i for i in range(1, 15)]
    print_results([record(task="relu", weak_metric=0.2, density_label=f"{d:g}", density=d) for d in densities])
    lines = capsys.readouterr().out.splitlines()
    assert not any("…" in line for line in lines)
    assert sum(line.count("2000-2000") for line in lines) == sum(line.count("20/1") for line in lines) == len(densities)


def test_a_pipe_gets_whole_paths(capsys):
    path = "a folder of that name/" * 8
    print_closing(Report(3, 3, seconds={"total": 1.0}), [], {"imports": 1.0, "figure": 2.0}, {"figure": path})
    assert f"figure    {path}" in capsys.readouterr().out


def test_a_setting_tells_curves_of_a_pruner_apart(record):
    records = [record(rounds=n, seed=s, weak_metric=0.5 + n / 1000) for n in (100, 1) for s in range(2)]
    records += [record(pruner="edge-popup", mode="edge-popup", weak_metric=0.1)]  # knows no rounds
    with pytest.raises(ValueError, match=r"several values of rounds \(100, 1\)"):
        sweeps.panels(records)
    (panel,) = sweeps.panels(records, by="rounds")
    means = {name: points[0].weak.mean for name, points in panel.curves.items()}
    assert means == {"snip, 1 round": 0.501, "snip, 100 rounds": 0.6, "edge-popup": 0.1}
    with pytest.raises(ValueError, match=r"by: expected one of mode, .*, got 'seed'"):
        sweeps.panels(records, by="seed")


def test_rewinds_tell_curves_apart(record):
    kinds = (("init", 0), ("weights", 2), ("learning-rate", 0))
    records = [record(mode="multishot", rewind=rewind, rewind_epochs=k) for rewind, k in kinds]
    (panel,) = sweeps.panels(records, by="rewind")
    assert list(panel.curves) == ["snip, rewind init", "snip, rewind learning-rate", "snip, rewind weights"]
    with pytest.raises(ValueError, match=r"several values of rewind "):
        sweeps.panels(records)


def test_other_settings_for_another_pruner_or_seed_are_a_mixture_too(record):
    for other in ({"pruner": "random"}, {"seed": 1}):
        with pytest.raises(ValueError, match=r"several values of epochs \(10, 20\)"):
            sweeps.panels([record(), record(epochs=20, **other)])
