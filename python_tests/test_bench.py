"""bench/run.py from the outside: quick runs, its JSON and figure, its errors; and the harness's own rules."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

import pns_fast as pns

BENCH = Path(__file__).parents[1] / "bench"
KERNELS = ("topk_mask", "best_match", "existence_search", "masked_linear", "masked_conv2d", "mlp_trainer")
PEERS = {
    "topk_mask": {"torch.kthvalue, compare", "torch.topk, scatter", "numpy.partition, compare", "torch.sort, scatter"},
    "best_match": {"torch, two GEMMs, argmax", "Python loop"},
    "existence_search": {"torch, rand, product", "numpy Philox, product"},
    "masked_linear": {"torch F.linear(x, w * m)", "torch CSR"},
    "masked_conv2d": {"torch F.conv2d(x, w * m)"},
    "mlp_trainer": {
        "torch loop, 1 network",
        "torch baddbmm, 8 networks",
        "JAX jit(vmap(scan))",
        "torch loop, topk",
        "torch loop, public code",
    },
}


def bench(*arguments, env=None):
    command = [sys.executable, BENCH / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=env)


@contextmanager
def loaded(name):
    """A module out of bench/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def harness():
    with loaded("harness") as module:
        yield module


@pytest.fixture(scope="module")
def masks():
    with loaded("masks") as module:
        yield module


@pytest.fixture(scope="module")
def peers():
    with loaded("peers") as module:
        yield module


@pytest.mark.parametrize("kernel", KERNELS)
def test_quick_run_writes_valid_json_and_a_figure(kernel, tmp_path):
    files = {"--json": tmp_path / "run.json", "--figure": tmp_path / "run.png"}
    options = [str(part) for pair in files.items() for part in pair]
    run = bench("--quick", "--seconds", "0.02", "--kernel", kernel, *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 100
    report = json.loads(files["--json"].read_text())
    assert report["command"].endswith(f"--kernel {kernel} --json FILE --figure FILE")
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
    peers = [c for c in timed if not (c["is_ours"] or c["is_ceiling"])]
    if not peers:
        assert not row["compared"]  # a point of a cost curve
        return
    (strongest,) = (c for c in peers if c["is_strongest"])
    assert strongest["median"] == min(c["median"] for c in peers)
    assert all(math.isclose(c["ratio"], c["median"] / ours["median"]) for c in peers)


def test_list_names_every_kernel_and_runs_nothing():
    run = bench("--list")
    assert run.returncode == 0
    assert run.stdout.split("\n  ")[0] == "topk_mask"
    assert all(kernel in run.stdout.splitlines() for kernel in KERNELS)
    labels = [line.strip() for line in run.stdout.splitlines() if line.startswith("  ")]
    assert max(map(len, labels)) <= 43  # the summary's column
    for shown in (
        "16 networks, random mask, density 0.01",
        "20 networks, pruners' masks, density 0.01",
        "1 network, edge-popup, density 0.1",
        "depth 10, density 1",
    ):
        assert shown in labels


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
            # longer than a turn must be, so that a turn is one call
            harness.time.sleep(1.2 * harness.MIN_TURN_SECONDS["cpu"])

        return run

    harness.measure(
        harness.Case(
            "k", "c", lambda: [harness.Contender("a", slow("a"), is_ours=True), harness.Contender("b", slow("b"))]
        ),
        0.2,
        "cpu",
    )
    timed = turns[4:]  # a check and an estimate each
    assert timed[:6] == ["a", "b"] * 3


WIDTHS = (2, 30, 20, 3)


@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.1, 0.01])
def test_connected_masks_keep_the_exact_number_of_weights_and_all_are_live(masks, density):
    flat = masks.make_mask("connected", WIDTHS, 20, density)
    mask = pns.Masks.from_flat(flat, WIDTHS)
    n_weights = 2 * 30 + 30 * 20 + 20 * 3
    assert sum(w.flatten(1).sum(1) for w in mask.weights).tolist() == [math.ceil(density * n_weights - 1e-9)] * 20
    assert (mask.effective_density() * flat.shape[1]).round().tolist() == mask.kept().tolist()
    for w, b in zip(mask.weights[:-1], mask.biases[:-1], strict=True):
        assert torch.equal(w.any(2), b) or density == 1  # a bias where its neuron is on a path
    assert torch.equal(flat[:5], masks.make_mask("connected", WIDTHS, 5, density))
    assert len(flat.unique(dim=0)) == (1 if density == 1 else 20)


def test_masks_of_pruners_keep_the_exact_number_of_parameters(masks):
    widths = (2, 100, 100, 100, 4)
    flat = masks.make_mask("pruned", widths, 6, 0.1)
    assert flat.sum(1).tolist() == [2091] * 6
    assert torch.equal(flat[:3], masks.make_mask("pruned", widths, 3, 0.1))
    live = [masks.n_kept_and_live(row[None], widths)[1] for row in flat]
    assert live[4] < min(*live[:4], live[5])  # the fifth pruner is the random one


def test_random_masks_are_mostly_dead_when_sparse(masks):
    kept, live = masks.n_kept_and_live(masks.make_mask("random", (2, 100, 100, 100, 4), 8, 0.01), (2, 100, 100, 100, 4))
    assert kept == pytest.approx(209, rel=0.1)
    assert live < kept / 10


def test_a_density_below_one_path_is_refused(masks):
    with pytest.raises(ValueError, match=r"a path of 3 weights needs more than 0\.001 of 720"):
        masks.make_mask("connected", WIDTHS, 1, 0.001)


@pytest.mark.parametrize(("density", "kept"), [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_the_public_codes_subnet(peers, density, kept):
    scores = torch.tensor([0.3, 0.1, 0.9, 0.5, 0.2, 0.8, 0.4, 0.7, 0.6, 1.0], requires_grad=True)
    mask = peers.GetSubnet.apply(scores.abs(), density)
    assert mask.tolist() == [float(s > 1 - kept / 10 + 1e-6) for s in scores.tolist()]
    (mask * torch.arange(10.0)).sum().backward()
    assert scores.grad.tolist() == list(range(10))  # straight through, to kept and pruned ones


def test_both_edge_popup_peers_train_alike(peers):
    data, widths, density = pns.tasks.get("circle").sample(n=400, seed=0), (2, 30, 4), 0.5
    parameters = pns.init_population(widths, n=1).flatten()
    order = pns.ops.batch_order(360, (0, 0), 0)[None]
    mask = torch.ones_like(parameters, dtype=torch.bool)
    job = peers.Training(widths, parameters, mask, data.x_train, data.y_train, order, lr=0.1)
    scores = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0))
    by_topk, by_sort = (f(job, scores.clone(), density) for f in (peers.edge_popup_loop, peers.edge_popup_public))
    torch.testing.assert_close(by_sort, by_topk, rtol=1e-5, atol=0)


class _NoDevice:
    """Stands for torch.cuda's streams and graphs, none of which capture what runs."""

    def wait_stream(self, stream):
        pass

    def replay(self):
        pass


def _without_device(monkeypatch, capture):
    left = []
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, _NoDevice)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "set_stream", left.append)
    return left


def test_a_graph_returns_what_was_captured(harness, monkeypatch):
    left = _without_device(monkeypatch, lambda graph: nullcontext())
    calls = []
    run, why_not = harness.captured_or_why(lambda: calls.append(1) or len(calls))
    assert run is not None
    assert not why_not
    assert run() == run() == len(calls) == harness.GRAPH_WARM_UP + 1
    assert not left


def test_what_cannot_be_captured_says_why_and_the_stream_is_back(harness, monkeypatch):
    @contextmanager
    def capture(graph):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    left = _without_device(monkeypatch, capture)
    run, why_not = harness.captured_or_why(lambda: None)
    assert run is None
    assert why_not == "cannot be captured: operation not permitted when stream is capturing"
    assert len(left) == 1
