"""bench/run.py from the outside: quick runs, its JSON and figure, its errors; and the harness's own rules."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
KERNELS = ("topk_mask", "best_match", "masked_linear", "mlp_trainer")
PEERS = {
    "topk_mask": {"torch.kthvalue, compare", "torch.topk, scatter", "numpy.partition, compare", "torch.sort, scatter"},
    "best_match": {"torch, two GEMMs, argmax", "Python loop"},
    "masked_linear": {"torch F.linear(x, w * m)", "torch CSR"},
    "mlp_trainer": {"torch loop, 1 network", "torch baddbmm, 8 networks", "JAX jit(vmap(scan))"},
}


def bench(*arguments, env=None):
    command = [sys.executable, BENCH / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=env)


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("bench_harness", BENCH / "harness.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("kernel", KERNELS)
def test_quick_run_writes_valid_json_and_a_figure(kernel, tmp_path):
    files = {"--json": tmp_path / "run.json", "--figure": tmp_path / "run.png"}
    options = [str(part) for pair in files.items() for part in pair]
    run = bench("--quick", "--seconds", "0.02", "--kernel", kernel, *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 100
    report = json.loads(files["--json"].read_text())
    assert report["machine"]["threads"] >= 1
    assert {"cpu", "cores", "simd", "torch", "date"} <= report["machine"].keys()
    assert {row["kernel"] for row in report["rows"]} == {kernel}
    assert PEERS[kernel] <= {c["name"] for row in report["rows"] for c in row["contenders"]}
    for row in report["rows"]:
        check_row(row)
    assert files["--figure"].read_bytes().startswith(b"\x89PNG")


def check_row(row):
    assert row["agrees"]
    (ours,) = (c for c in row["contenders"] if c["is_ours"])
    timed = [c for c in row["contenders"] if c["median"] is not None]
    assert all(0 < c["min"] <= c["median"] for c in timed)
    assert all(c["note"] for c in row["contenders"] if c["median"] is None)  # why it did not run
    peers = [c for c in timed if not c["is_ours"]]
    (strongest,) = (c for c in peers if c["is_strongest"])
    assert strongest["median"] == min(c["median"] for c in peers)
    assert all(math.isclose(c["ratio"], c["median"] / ours["median"]) for c in peers)


def test_list_names_every_kernel_and_runs_nothing():
    run = bench("--list")
    assert run.returncode == 0
    assert run.stdout.split("\n  ")[0] == "topk_mask"
    assert all(kernel in run.stdout.splitlines() for kernel in KERNELS)


def test_cuda_without_a_gpu_is_one_line_and_exit_2():
    run = bench("--device", "cuda", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "bench/run.py: --device cuda: no CUDA device, or a torch built without CUDA\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "sort"], "invalid choice: 'sort'"),
        (["--json", "/no/such/folder/run.json"], "--json: no folder /no/such/folder"),
        (["--figure", "run.gif"], "--figure: expected a name ending in .png, .pdf, .svg, got run.gif"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
    ],
)
def test_wrong_options_exit_2_and_say_why(arguments, message):
    run = bench(*arguments)
    assert run.returncode == 2
    assert message in run.stderr


def case(harness, *peers):
    ours = harness.Contender("ours", lambda: 1, work=1e9, is_ours=True)
    return harness.Case("kernel", "case", lambda: [ours, *peers])


def test_a_peer_that_disagrees_or_fails_or_is_missing_stays_in_the_row(harness):
    def fail():
        raise RuntimeError("not on this machine")

    row = harness.measure(
        case(
            harness,
            harness.Contender("wrong", lambda: 2, check=lambda result: f"gives {result}"),
            harness.Contender("fails", fail),
            harness.Contender("missing", None, note="not installed"),
        ),
        0.01,
        "cpu",
    )
    assert [r.status for r in row.results] == ["ok", "disagrees: gives 2", "failed: not on this machine", "cannot run"]
    assert not row.agrees
    assert row.strongest.contender.name == "wrong"
    assert row.results[2].median is None


def test_units_scale_times_and_rates(harness):
    row = harness.measure(case(harness, harness.Contender("part", lambda: 1, units=0.001)), 0.01, "cpu")
    ours, part = row.results
    assert 100 < part.median / ours.median < 10_000  # the same call, said to be a thousandth of the task
    assert ours.rate == pytest.approx(1 / ours.median)


def test_turns_are_interleaved(harness):
    turns = []

    def slow(name):
        def run():
            turns.append(name)
            torch.ones(1).sum()
            harness.time.sleep(0.003)  # longer than a turn must be, so that a turn is one call

        return run

    harness.measure(
        harness.Case(
            "k", "c", lambda: [harness.Contender("a", slow("a"), is_ours=True), harness.Contender("b", slow("b"))]
        ),
        0.05,
        "cpu",
    )
    timed = turns[4:]  # a check and an estimate each
    assert timed[:6] == ["a", "b"] * 3
