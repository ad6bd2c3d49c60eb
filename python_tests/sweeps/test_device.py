"""Sweeps on a device: which ones there are, that a cell is the same cell on each, and its numbers on a GPU."""

import json
import math
import sqlite3

import pytest
import torch

from pns_fast import sweeps
from pns_fast.cli import main
from pns_fast.sweeps import device as devices
from pns_fast.sweeps import work

SMALL = {"depths": [4], "widths": [32], "n_samples": 400, "epochs": 2}
MODES = {
    "singleshot": {"pruners": ["all"], "densities": ["ticket", 0.1, 1]},
    "multishot": {"pruners": ["magnitude", "snip"], "densities": [0.3, 1], "rounds": 2, "round_epochs": 1},
    "edge-popup": {"densities": [0.3, 1], "popup_epochs": 1},
}


def cells(mode, tasks=("circle", "helix"), seeds=range(3)):
    return sweeps.expand(mode, tasks, seeds=seeds, **SMALL, **MODES[mode])


def noted(path):
    """The versions of each run in a store."""
    with sqlite3.connect(path) as db:
        return [json.loads(text) for (text,) in db.execute("SELECT versions FROM run ORDER BY id")]


def test_the_cpu_is_noted_and_auto_finds_something(tmp_path):
    found = sweeps.expand("singleshot", ["relu"], ["random"], [0.5], [0], **SMALL)
    assert sweeps.run(found, tmp_path / "x.db", device="auto").n_ok == 1
    assert sweeps.run(found, tmp_path / "x.db", device=torch.device("cpu")).n_skipped == 1
    assert noted(tmp_path / "x.db")[1]["device"] == "cpu"
    assert devices.check_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", 3.5, None, ""])
def test_a_device_that_is_none_is_refused_before_the_store_is_made(tmp_path, name):
    with pytest.raises(ValueError, match=r"device: expected auto, cpu, cuda or cuda:N, got"):
        sweeps.run(cells("singleshot"), tmp_path / "x.db", device=name)
    assert not (tmp_path / "x.db").exists()


def test_without_a_gpu_or_kernels_cuda_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device: cuda needs a GPU and a torch with CUDA"):
        devices.check_device("cuda")
    assert devices.check_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices._native, "has_cuda_kernels", lambda: False)
    with pytest.raises(ValueError, match=r"device: cuda:0 needs the CUDA kernels, and this build .* has none"):
        devices.check_device("cuda:0")
    monkeypatch.setattr(devices._native, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(devices._native, "backends", lambda: {"cpu": "baseline", "cuda": None})
    with pytest.raises(ValueError, match=r"device: cuda: the CUDA kernels of pns_fast see no GPU"):
        devices.check_device("cuda")
    assert devices.check_device("auto") == torch.device("cpu")
    monkeypatch.setattr(devices._native, "backends", lambda: {"cpu": "baseline", "cuda": "sm_90"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"device: expected one of 1 GPUs, cuda:0 on, got cuda:1"):
        devices.check_device("cuda:1")


def test_a_lost_device_ends_the_run_and_blames_no_cell(tmp_path, monkeypatch):
    def lost(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(work, "run_cells", lost)
    with pytest.raises(torch.AcceleratorError):
        sweeps.run(cells("singleshot"), tmp_path / "x.db")
    assert sweeps.statuses(tmp_path / "x.db") == {}


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_sweep_on_the_gpu_finds_what_one_on_the_cpu_does(cuda, tmp_path, mode):
    grid = cells(mode)
    for name, device in (("cpu.db", "cpu"), ("gpu.db", cuda), ("chunks.db", "cuda")):
        report = sweeps.run(grid, tmp_path / name, device=device, chunk=7 if name == "chunks.db" else None)
        assert (report.n_ok, report.n_failed) == (len(grid), 0)
    on_cpu, on_gpu, in_chunks = (sweeps.read(tmp_path / f"{name}.db") for name in ("cpu", "gpu", "chunks"))
    if mode != "multishot":  # which scores a chunk at a time: torch's batched product may round differently then
        assert on_gpu == in_chunks  # bitwise: training depends neither on the other networks nor on the time
    differences = {"weak_loss": [], "strong_loss": [], "recall": []}
    for theirs, ours in zip(on_cpu, on_gpu, strict=True):
        for name in ("key", "kept", "ticket_metric", "ticket_loss", "ticket_density", "density_kept"):
            assert ours[name] == theirs[name], name
        for name, values in differences.items():
            values.append(abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-3))
    # a mask may swap a pair of nearly equal scores, so one network may differ; most must not
    for name, values in differences.items():
        assert sorted(values)[int(0.8 * len(values))] < 1e-2, name
    assert torch.cuda.get_device_name(cuda) in noted(tmp_path / "gpu.db")[0]["device"]


@pytest.mark.gpu
def test_a_sweep_goes_on_on_another_device(cuda, tmp_path):
    first, all_cells = cells("singleshot", seeds=[0]), cells("singleshot", seeds=[0, 1])
    sweeps.run(first, tmp_path / "x.db")
    report = sweeps.run(all_cells, tmp_path / "x.db", device=cuda)
    assert (report.n_skipped, report.n_ok) == (len(first), len(all_cells) - len(first))
    assert all(math.isfinite(r["weak_loss"]) for r in sweeps.read(tmp_path / "x.db"))


@pytest.mark.gpu
def test_the_command_line_on_the_gpu(cuda, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = [
        "--task=circle",
        "--pruner=snip",
        "--density=0.1",
        "--seeds=2",
        "--depth=4",
        "--width=32",
        "--samples=200",
        "--epochs=1",
    ]
    files = ["--samples=200", "--epochs=1", "--store=s.db", "--figure=f.png", "--csv=c.csv"]
    assert main(["sweep", "singleshot", *grid, *files, "--device=cuda"]) == 0
    assert torch.cuda.get_device_name(cuda) in " ".join(capsys.readouterr().out.split())
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 3
    assert main(["plant", "--task=circle", "--device=cuda", "--out=p.pt"]) == 0
    assert all(not w.is_cuda for w in torch.load("p.pt", weights_only=True)["weights"])
    assert main(["info"]) == 0
    assert "missing" not in capsys.readouterr().out
