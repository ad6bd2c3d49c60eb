"""Fixtures of the whole suite: devices, SIMD levels and the number of threads.

PNS_TEST_DEVICE=cpu|cuda runs the tests of one device only; PNS_REQUIRE_GPU=1 makes a missing GPU a failure.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch

import pns_fast as pns
from pns_fast import _native

# A shell without job control starts what runs in its background with Ctrl-C ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

_LEVELS = ("baseline", "avx2", "avx512")
SIMD_LEVELS = _LEVELS[: _LEVELS.index(_native.cpu.best_simd_level()) + 1]

_GPU = ("gpu", True)  # on the reports of GPU tests


def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if pns.backends()["cuda"] is None:
        return "pns_fast was built without CUDA"
    return None


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)  # no test depends on those before it


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        item.user_properties.append(_GPU)


def _is_of_gpu(report) -> bool:
    return _GPU in [tuple(p) for p in getattr(report, "user_properties", ())]  # xdist makes lists of tuples


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """At the very end how many GPU tests ran and how many did not, and why: skipped ones are easy to overlook."""
    result = yield
    counts = {
        outcome: sum(map(_is_of_gpu, terminalreporter.getreports(outcome)))
        for outcome in ("passed", "failed", "skipped", "error")
    }
    if total := sum(counts.values()):
        shown = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
        why = f" ({_why_no_gpu()})" if counts["skipped"] and _why_no_gpu() else ""
        terminalreporter.write_line(f"GPU tests: {total}: {shown}{why}")
    return result


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        wanted = os.environ.get("PNS_TEST_DEVICE", "")
        if wanted not in ("", "cpu", "cuda"):
            raise pytest.UsageError(f"PNS_TEST_DEVICE: expected cpu or cuda, got {wanted!r}")
        devices = [wanted] if wanted else ["cpu", "cuda"]
        params = [pytest.param(d, marks=pytest.mark.gpu) if d == "cuda" else d for d in devices]
        metafunc.parametrize("device", params, indirect=True)


def _require_gpu() -> None:
    """Skips the test where no GPU is usable; fails it where PNS_REQUIRE_GPU=1."""
    if reason := _why_no_gpu():
        if os.environ.get("PNS_REQUIRE_GPU") == "1":
            pytest.fail(f"PNS_REQUIRE_GPU=1, but {reason}")
        pytest.skip(reason)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The devices a test runs on: the CPU, and CUDA where there is one."""
    if request.param == "cuda":
        _require_gpu()
    return torch.device(request.param)


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device of a test marked gpu."""
    _require_gpu()
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=SIMD_LEVELS)
def simd_level(request: pytest.FixtureRequest):
    """Every SIMD level this processor has, each forced for one test."""
    before = _native.cpu.simd_level()
    _native.cpu.set_simd_level(request.param)
    yield request.param
    _native.cpu.set_simd_level(before)


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
