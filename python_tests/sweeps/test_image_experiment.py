"""The image experiment in miniature: what runs, what is stored, how it goes on, and what is drawn."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace

import pytest
import torch

import pns_fast as pns
from pns_fast.cli import main
from pns_fast.sweeps import image_experiment, image_figures
from pns_fast.sweeps.image_cells import (
    EMBEDDED,
    POPUPS,
    PRUNERS,
    ImageCell,
    ImageStore,
    Settings,
    image_cells,
    ticket_cell,
)
from pns_fast.sweeps.image_experiment import run_images

CPU = torch.device("cpu")
AMOUNTS = {"rounds": 4, "round_epochs": 1, "epochs": 2, "popup_epochs": 2, "batch_size": 32}
GRID = {"pruners": ("synflow", "magnitude"), "weak_densities": (0.01, 0.5, 1.0), "popup_densities": (0.1, 0.5)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Layers this small gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return pns.tasks.images("digits").part(200, 100)


@pytest.fixture(scope="module")
def cells(data):
    return image_cells(Settings("digits", data.digest(), "vgg-small", **AMOUNTS), 1, **GRID)


@pytest.fixture(scope="module")
def finished(data, cells, tmp_path_factory):
    """A store with a finished experiment; its files are not to be changed."""
    store = ImageStore(tmp_path_factory.mktemp("fig5"))
    report = run_images(cells, data, store, CPU)
    assert (report.n_ok, report.n_failed, report.interrupted) == (10, 0, False)
    return store


def test_cells():
    settings = Settings("digits", "", "vgg-small", **EMBEDDED["digits"])
    cells = image_cells(settings, 2)
    assert len(cells) == len({c.key for c in cells}) == len({c.name for c in cells}) == 2 * (26 + 1 + 10)
    for seed in (0, 1):
        kinds = [c.kind for c in cells if c.seed == seed]
        assert kinds == ["weak"] * 26 + ["planted"] + ["popup"] * 10
        assert [c for c in cells if c.seed == seed and c.is_ticket] == [ticket_cell(settings, seed)]
    other = replace(settings, epochs=1)
    assert not {c.key for c in cells} & {c.key for c in image_cells(other, 2)}
    # the ticket is there even where the grid leaves it out
    few = image_cells(settings, 1, pruners=("snip",), weak_densities=(0.5,), popup_densities=())
    assert [(c.kind, c.pruner, c.density) for c in few] == [
        *(("weak", "synflow", 0.01), ("weak", "snip", 0.5), ("planted", "synflow", 0.01))
    ]


def test_numbers_of_weak_tickets(finished, cells):
    n = 287_722
    for cell in (c for c in cells if c.kind == "weak"):
        record = finished.read(cell)
        assert record["kept"] == (None if cell.density == 1 else -(-n * cell.density // 1))
        assert 0 <= record["strong_accuracy"] <= 1
        assert len(record["curve"]) == 3
        assert record["weak_accuracy"] == record["curve"][-1]
    dense = finished.read(next(c for c in cells if c.density == 1))
    assert dense["weak_accuracy"] > 0.3  # after 14 steps; chance is 0.1


def test_the_planted_ticket_is_the_trained_one(finished, cells, data):
    cell = next(c for c in cells if c.kind == "planted")
    record, weak = finished.read(cell), finished.read(ticket_cell(cell.settings, 0))
    assert record["is_exact"]
    assert record["exactness"] < 1e-5
    assert record["ticket_accuracy"] == weak["weak_accuracy"]
    # in the mother, masked: exact but for rounding of logits that are nearly equal
    assert record["strong_accuracy"] == pytest.approx(record["ticket_accuracy"], abs=0.02)
    assert 0.005 < record["planted_density"] <= 0.0101


def test_one_scale_for_all_classes(finished, cells, data):
    """What edge-popup gets: under the ticket's mask its outputs are the target's times one factor."""
    settings = cells[0].settings
    planting = image_experiment._Runner(data, finished, CPU)._planting(settings, 0)
    masked = pns.nn.finalize(planting.mother, planting.planted.masks)
    with torch.no_grad():
        wanted, found = planting.ticket(data.x_test), masked(data.x_test)
    factor = float((wanted * found).sum() / (found * found).sum())
    assert factor > 0
    torch.testing.assert_close(found * factor, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    # another network than the one that the ticket was found in
    own = image_experiment.network(settings, data, 0, CPU)
    assert not torch.equal(own[0].weight, planting.planted.module[0].weight)


def test_numbers_of_edge_popup(finished, cells):
    planted = finished.read(next(c for c in cells if c.kind == "planted"))
    for cell in (c for c in cells if c.kind == "popup"):
        record = finished.read(cell)
        assert cell.density <= record["kept"] / 287_722 < cell.density + 1e-3
        assert record["precision"] == pytest.approx(record["recall"] * planted["kept"] / record["kept"])
        layers = record["layers"].values()
        assert len(layers) == 7
        assert sum(layer["n_planted"] for layer in layers) == planted["kept"]
        assert sum(layer["n_kept"] for layer in layers) == record["kept"]
        assert all(0 <= layer[m] <= 1 for layer in layers for m in ("precision", "recall", "f1", "planted_share"))
    assert planted["collapsed"] is False


def test_a_finished_experiment_is_not_run_again(finished, cells, data):
    before = {f: os.stat(finished.folder / f).st_mtime_ns for f in os.listdir(finished.folder)}
    seen = []
    report = run_images(cells, data, finished, CPU, progress=lambda r: seen.append(r.n_left))
    assert (report.n_skipped, report.n_ok, seen) == (10, 0, [0])
    assert {f: os.stat(finished.folder / f).st_mtime_ns for f in os.listdir(finished.folder)} == before


def test_it_goes_on_where_it_was_stopped(finished, cells, data, tmp_path):
    store = ImageStore(tmp_path)

    def stop(report):
        if report.n_ok == 2:
            raise KeyboardInterrupt

    weak = [c for c in cells if c.kind == "weak"][:3]
    report = run_images(weak, data, store, CPU, progress=stop)
    assert report.interrupted
    assert (report.n_ok, report.n_left) == (2, 1)
    assert [f for f in os.listdir(tmp_path) if f.startswith(".")] == []  # no half of a file
    report = run_images(weak, data, store, CPU)
    assert (report.n_skipped, report.n_ok, report.interrupted) == (2, 1, False)
    for cell in weak:
        found, wanted = store.read(cell), finished.read(cell)
        assert found["weak_accuracy"] == wanted["weak_accuracy"]


def test_failures_are_stored_and_run_again_on_demand(finished, cells, data, tmp_path):
    store, popup = ImageStore(tmp_path), next(c for c in cells if c.kind == "popup")
    report = run_images([popup], data, store, CPU)  # without its ticket
    assert (report.n_ok, report.n_failed) == (0, 1)
    assert "no such file; its network failed, or the file was removed" in store.read(popup)["error"]
    assert run_images([popup], data, store, CPU).n_failed_before == 1
    ticket = finished.ticket_path(ticket_cell(popup.settings, 0))
    store.write_file(ticket.name, ticket.read_bytes())
    assert run_images([popup], data, store, CPU, retry_failed=True).n_ok == 1
    assert store.read(popup)["recall"] == finished.read(popup)["recall"]


def test_a_damaged_record_is_named(cells, tmp_path):
    store = ImageStore(tmp_path)
    store.write_file(f"{cells[0].name}.json", b"{")
    with pytest.raises(ValueError, match=r"store .*json: not JSON .* remove it"):
        store.status(cells[0])


def test_too_small_images(data):
    settings = Settings("digits", "", "vgg16", **AMOUNTS)
    with pytest.raises(ValueError, match="model: vgg16 needs images of at least 32 pixels a side, digits has 8"):
        image_experiment.network(settings, data, 0, CPU)


def test_figure(finished, cells):
    drawn = image_figures.figure([finished.read(c) for c in cells])
    left, right = drawn.axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["0.01", "0.5", "1"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["0.1", "0.5"]
    assert [len(line.get_xdata()) for line in left.lines] == [3, 3]  # magnitude, synflow; density 1 is in both
    planted = finished.read(next(c for c in cells if c.kind == "planted"))
    dashed = next(line for line in right.lines if line.is_dashed())
    assert set(dashed.get_ydata()) == {100 * planted["strong_accuracy"]}
    star = next(line for line in right.lines if line.get_marker() == "*")
    assert list(star.get_xdata()) == [planted["planted_density"]]
    texts = [t.get_text() for t in drawn.legends[0].get_texts()]
    assert texts == ["Magnitude", "SynFlow", "Edge-popup", "Edge-popup, annealed", "Planted ticket"]


def test_recovery_figure(finished, cells):
    drawn = image_figures.recovery_figure([finished.read(c) for c in cells])
    assert [ax.get_ylabel() for ax in drawn.axes] == ["precision (%)", "recall (%)"] * 2
    record = finished.read(next(c for c in cells if (c.kind, c.pruner, c.density) == ("popup", POPUPS[0], 0.1)))
    lines = drawn.axes[1].lines
    assert list(lines[0].get_ydata()) == [100 * layer["recall"] for layer in record["layers"].values()]
    assert set(lines[1].get_ydata()) == {10.0}  # a random mask
    assert image_figures.recovery_figure([]) is None
    assert image_figures.figure([]) is None


def test_csv(finished, cells, tmp_path):
    files = image_figures.save_results([finished.read(c) for c in cells], "f", ImageStore(tmp_path).write_file)
    assert sorted(files) == sorted(os.listdir(tmp_path))
    assert {"f.csv", "f-layers.csv", "f.png", "f.pdf", "f-recovery.png", "f-recovery.pdf"} == set(files)
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["kind"], r["pruner"], float(r["density"])) for r in rows] == [
        (c.kind, c.pruner, c.density) for c in cells
    ]
    with open(tmp_path / "f-layers.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 * 7


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pns_fast.cli.reproduce_images._QUICK_IMAGES", 80)
    assert main(["reproduce", "fig5", "--quick", "--dry-run"]) == 0
    assert capsys.readouterr().out == "16 cells: 0 done, 0 failed, 16 to run\n"
    assert os.listdir(tmp_path) == []
    torch.set_num_threads(2)
    assert main(["reproduce", "fig5", "--quick"]) == 0
    assert torch.get_num_threads() == 1
    out, err = capsys.readouterr()
    for shown in ("planted ticket:", *PRUNERS, *POPUPS, "16: 16 new, 0 stored before, 0 failed"):
        assert shown in out
    assert "fig5: 16 of 16 cells, 0 failed" in err
    for name in ("fig5-digits-vgg-small.png", "fig5-digits-vgg-small-recovery.png", "fig5-digits-vgg-small.csv"):
        assert (tmp_path / "paper-quick" / name).is_file()
    # a failed network is the exit code
    record = next((tmp_path / "paper-quick" / "fig5-networks").glob("weak-snip-0.5-*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "failed", "error": "E: boom"}))
    assert main(["reproduce", "fig5", "--quick", "--quiet"]) == 1
    assert "1 failed: E: boom" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fig5", "fig3"], "fig5: give it alone"),
        (["fig3", "--data=digits"], "argument --data: of fig5 only"),
        (["fig3", "--model=vgg16"], "argument --model: of fig5 only"),
        (["fig5", "--chunk=3"], "argument --chunk: not of fig5"),
        (["fig5", "--workers=2"], "argument --workers: not of fig5"),
        (["fig5", "--seeds=0"], "argument --seeds: expected at least 1, got 0"),
        (["fig5", "--data=dogs"], "name: expected one of digits, mnist5k"),
        (["fig5", "--data=cifar10:nowhere"], "nowhere: no such folder"),
        (["fig5", "--model=vgg19"], "name: expected one of vgg-small"),
        (["fig5", "--model=vgg16"], "model: vgg16 needs images of at least 32 pixels a side"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"pns-fast: error: {message}")
    assert os.listdir(tmp_path) == []


def test_params_are_flat():
    cell = ImageCell("weak", "snip", 0.5, 3, Settings("digits", "d", "vgg-small", **EMBEDDED["digits"]))
    assert cell.params() == {
        **{"kind": "weak", "pruner": "snip", "density": 0.5, "seed": 3, "data": "digits", "digest": "d"},
        **{"model": "vgg-small", "lr": 1e-3, "popup_lr": 0.1, **EMBEDDED["digits"]},
    }
