"""The CUDA kernel of existence_search: bitwise as the CPU's. The source on the CPU: test_cuda_sources.py."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

from pns_fast import existence, ops


def targets(t, k, seed=0):
    theta = torch.rand(t, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return theta + 0.01 * theta.sign()


def assert_same(got, expected, what=None):
    for name in got._fields:
        mine, other = getattr(got, name).cpu(), getattr(expected, name)
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True, msg=f"{name}, {what}")


def assert_as_on_the_cpu(cuda, theta, *arguments, what=None):
    got = ops.existence_search(theta.to(cuda), *arguments)
    assert all(part.device == cuda for part in got)
    assert_same(got, ops.existence_search(theta, *arguments), what)
    return got


@pytest.mark.gpu
@pytest.mark.parametrize(("t", "k"), [(1, 1), (1, 2), (3, 2), (4, 3), (5, 5), (9, 8), (2, 64), (1, 500), (2100, 4)])
@pytest.mark.parametrize("init", ["uniform", "he_scaled"])
def test_equals_the_cpu(cuda, init, t, k):
    for n, first in ((1, 63), (7, 60), (130, 5), (20_000, 77)):
        for eps in (None, 0.3):
            assert_as_on_the_cpu(cuda, targets(t, k), n, 11, init, eps, first, what=(n, first, eps))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("t", "k", "n", "eps"), [(1, 5, 50_000_000, 0.05), (1, 2, 50_000_000, 1e-3), (130, 8, 2_000_000, 0.5)]
)
@pytest.mark.parametrize("init", ["uniform", "he_scaled"])
def test_many_candidates(cuda, init, t, k, n, eps):
    assert_as_on_the_cpu(cuda, targets(t, k, 3), n, 5, init, eps)


@pytest.mark.gpu
@pytest.mark.parametrize("at", [2**32, 2**34, 2**36, 2**61])
def test_numbers_beyond_32_bits(cuda, at):
    assert_as_on_the_cpu(cuda, targets(2, 3), 3000, 2**63 - 1, "uniform", 0.2, at - 1500)


@pytest.mark.gpu
def test_parts_agree_with_the_whole(cuda):
    theta, n = torch.tensor([[0.6, 0.35, -0.2]], device=cuda), 4_000_000_000  # more than 32 bits hold
    whole = ops.existence_search(theta, n, 1, eps=1e-3)
    parts = [ops.existence_search(theta, n // 4, 1, eps=1e-3, first=i * n // 4) for i in range(4)]
    best = min(parts, key=lambda part: part.distance.item())
    assert_same(whole, type(whole)(*(a.cpu() for a in best[:-1]), sum(p.n_matches.cpu() for p in parts)))
    residual = theta.double() - whole.scale[:, None] * whole.candidate
    torch.testing.assert_close(residual.norm(dim=1), whole.distance, rtol=1e-6, atol=0)


@pytest.mark.sanitize
@pytest.mark.gpu
def test_scaled_targets_and_no_match(cuda):
    for power in (2.0**600, 2.0**-600):
        assert_as_on_the_cpu(cuda, targets(3, 5, 7) * power, 50_000, 3, "uniform", 0.25 * power)
    theta = -ops.existence_search(targets(1, 3), 1, 0, first=5).candidate.nan_to_num(1.0)
    assert_as_on_the_cpu(cuda, theta, 1, 0, "uniform", 10.0, 5)


@pytest.mark.gpu
def test_the_same_bits_every_time_and_on_a_stream(cuda):
    theta = targets(7, 3).to(cuda)
    first = ops.existence_search(theta, 10_000_000, 2, eps=0.01)
    stream = torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(stream):
            again = ops.existence_search(theta, 10_000_000, 2, eps=0.01)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_every_device_and_the_current_one_stays(cuda):
    for index in range(torch.cuda.device_count()):
        assert_as_on_the_cpu(torch.device("cuda", index), targets(2, 4), 10_000, 1)
        assert torch.cuda.current_device() == cuda.index


@pytest.mark.sanitize
@pytest.mark.gpu
def test_existence_search_above_it(cuda):
    theta = targets(6, 3).reshape(2, 3, 3)
    got, expected = existence.search(theta.to(cuda), 100_000, 4, eps=0.1), existence.search(theta, 100_000, 4, eps=0.1)
    assert torch.equal(got.index.cpu(), expected.index)
    assert torch.equal(got.n_matches.cpu(), expected.n_matches)
    torch.testing.assert_close(got.existence_bound.cpu(), expected.existence_bound, rtol=1e-9, atol=0)


@pytest.mark.gpu
def test_progress(cuda):
    seen, n = [], 2 * 10**10
    ops.existence_search(targets(1, 5).to(cuda), n, 0, progress=lambda *done: seen.append(done))
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[-1] == (n, n)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [10, 2**36])
def test_what_progress_raises_comes_through(cuda, n):
    def refuse(done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        ops.existence_search(targets(1, 5).to(cuda), n, 0, progress=refuse)


SCRIPT = """
import os, signal, threading, time
import torch
from pns_fast import ops

def interrupt():
    time.sleep(1.0)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

sent = []
theta = (torch.rand(128, 5) + 0.1).cuda()
ops.existence_search(theta, 1000, 0, eps=0.5)
threading.Thread(target=interrupt, daemon=True).start()
try:
    ops.existence_search(theta, 2**40, 0, eps=0.5)
    print("finished")
except KeyboardInterrupt:
    print("late", time.perf_counter() - sent[0])
"""


@pytest.mark.gpu
def test_keyboard_interrupt(cuda):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.returncode == 0, run.stderr
    word, seconds = run.stdout.split()
    assert word == "late"
    assert float(seconds) < 1.0


@pytest.mark.gpu
def test_wrong_calls(cuda):
    theta = torch.tensor([[0.5, -0.2]], device=cuda)
    for error, arguments in ((ValueError, (theta * 0, 10, 0)), (TypeError, (theta.long(), 10, 0))):
        with pytest.raises(error, match="theta"):
            ops.existence_search(*arguments)
