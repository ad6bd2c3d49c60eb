"""existence_search against its twin, bit for bit, at every level and with 1 and 2 threads; the stream; interruption."""

from __future__ import annotations

import functools
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from pns_fast import ops, reference
from pns_fast.reference.batch_order import philox4x32
from pns_fast.reference.existence_search import _to_normal, draw_candidates


def targets(t, k, seed=0):
    theta = torch.rand(t, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return theta + 0.01 * theta.sign()


@functools.cache
def twin(t, k, n, seed, init, eps, first):
    return reference.existence_search(targets(t, k), n, seed, init, eps, first)


def assert_same(got, expected):
    for name in got._fields:
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True, msg=name
        )


@pytest.mark.parametrize(("t", "k"), [(1, 1), (1, 2), (3, 2), (4, 3), (5, 5), (9, 8), (2, 64)])
@pytest.mark.parametrize(("n", "first"), [(1, 0), (1, 63), (7, 60), (64, 0), (130, 5), (20_000, 77)])
@pytest.mark.parametrize("init", ["uniform", "he_scaled"])
def test_equals_the_twin(simd_level, set_threads, init, t, k, n, first):
    for threads in (1, 2):
        set_threads(threads)
        for eps in (None, 0.3):
            got = ops.existence_search(targets(t, k), n, 11, init, eps, first)
            assert_same(got, twin(t, k, n, 11, init, eps, first))


@pytest.mark.parametrize("at", [2**32, 2**33, 2**34, 2**36, 2**61])
def test_numbers_beyond_32_bits(simd_level, at):
    # the counter's lower word overflows at multiples of 2^34 candidates
    got = ops.existence_search(targets(2, 3), 3000, 2**63 - 1, "uniform", 0.2, at - 1500)
    assert_same(got, twin(2, 3, 3000, 2**63 - 1, "uniform", 0.2, at - 1500))
    assert bool(((got.index >= at - 1500) & (got.index < at + 1500)).all())


def test_many_candidates_and_threads(simd_level, set_threads):
    # enough for several threads and runs of tiles; k = 2 ties in float32 by the thousand
    theta, n = targets(6, 2, seed=3), 1_000_000
    for init in ("uniform", "he_scaled"):
        expected = reference.existence_search(theta, n, 5, init, 1e-3)
        for threads in (1, 2, 3):
            set_threads(threads)
            assert_same(ops.existence_search(theta, n, 5, init, 1e-3), expected)


def test_a_distance_far_below_float32_resolution(set_threads):
    # the best of 10^8 directions is 1e-8 off; parts of the search, put together, agree on it
    set_threads(2)
    theta, n = torch.tensor([[0.6, 0.35]]), 10**8
    whole = ops.existence_search(theta, n, 1)
    parts = [ops.existence_search(theta, n // 4, 1, first=i * n // 4) for i in range(4)]
    best = min(parts, key=lambda part: part.distance.item())
    assert_same(whole, best._replace(n_matches=whole.n_matches))
    assert 0 < whole.distance.item() < 1e-7
    residual = theta.double() - whole.scale[:, None] * whole.candidate
    torch.testing.assert_close(residual.norm(dim=1), whole.distance, rtol=1e-6, atol=0)


def test_the_count_is_exact_at_its_edge(simd_level):
    # eps equal to a candidate's own distance, and one unit in the last place below
    theta, n = targets(1, 4, seed=6), 3000
    m = draw_candidates(2, np.arange(n), 4)
    dot, norm = (sum(a[:, i] * b[i] for i in range(4)) for a, b in ((m, theta[0].numpy()), (m, m.T)))
    q = np.sqrt(sum((theta[0, i].item() - dot / norm * m[:, i]) ** 2 for i in range(4)))
    ranked = np.sort(q[dot > 0])
    for rank in (0, 1, 17, 500):
        eps = float(ranked[rank])
        assert ops.existence_search(theta, n, 2, eps=eps).n_matches.item() == rank + 1
        assert ops.existence_search(theta, n, 2, eps=math.nextafter(eps, 0)).n_matches.item() == rank
    assert ops.existence_search(theta, n, 2, eps=100.0).n_matches.item() == len(ranked)


def test_scaling_by_a_power_of_two_changes_nothing(simd_level):
    theta = targets(3, 5, seed=7)
    got = ops.existence_search(theta, 50_000, 3, eps=0.25)
    for power in (2.0**600, 2.0**-600):
        scaled = ops.existence_search(theta * power, 50_000, 3, eps=0.25 * power)
        assert torch.equal(scaled.index, got.index)
        assert torch.equal(scaled.n_matches, got.n_matches)
        assert torch.equal(scaled.distance, got.distance * power)


def test_the_stream_is_pinned():
    # words of the plain Philox, one parameter of one candidate at a time
    for c, i in ((0, 0), (17, 1), (63, 4), (64 * 5 + 33, 2), (2**40 + 50, 3)):
        quad = c // 64 * 16 + c % 16
        word = philox4x32((9, 0), (quad & 0xFFFFFFFF, quad >> 32, i, 2))[c % 64 // 16]
        odd = ((word - (word >> 31 << 32)) >> 7) | 1
        assert draw_candidates(9, [c], 5)[0, i] == odd / 2**24
    assert (draw_candidates(9, [0, 100, 2**35], 2) * 2**24).tolist() == GOLDEN

    assert draw_candidates(9, [0, 100, 2**35], 1, "he_scaled").ravel().tolist() == GOLDEN_NORMAL


GOLDEN = [[-12607675, 8251471], [14879441, 14578135], [4525721, 8739063]]
GOLDEN_NORMAL = [-1.1539417505264282, 1.5843406915664673, 0.34479832649230957]


def test_candidates_are_uniform():
    m = draw_candidates(4, np.arange(200_000), 3)
    assert np.abs(m).max() < 1
    n = m.size
    assert abs(m.mean()) < 5 / math.sqrt(3 * n)
    assert abs((m**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    assert np.abs(np.corrcoef(m.T) - np.eye(3)).max() < 5 / math.sqrt(len(m))
    counts = np.bincount(((m + 1) * 8).astype(int).ravel(), minlength=16)
    assert ((counts - n / 16) ** 2 / (n / 16)).sum() < 45  # chi-squared of 15 degrees: p = 8e-5


def test_candidates_are_normal():
    index = np.arange(400_000)
    z, u = (draw_candidates(4, index, 3, init) for init in ("he_scaled", "uniform"))
    cdf = np.array([math.erf(x / math.sqrt(2)) for x in z[:20_000, 0]])
    assert np.abs(cdf - u[:20_000, 0]).max() < 3e-7  # each is the inverse of the distribution function
    assert np.array_equal(np.sign(z), np.sign(u))
    n = z.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n)
    ends = np.float32(1 - 2.0 ** -np.arange(1, 25))  # the tail, up to the last number
    expected = torch.special.ndtri((1 + torch.from_numpy(ends).double()) / 2)
    np.testing.assert_allclose(_to_normal(ends), expected, rtol=4e-7)


def test_no_candidate_of_positive_scale():
    theta = torch.from_numpy(-draw_candidates(0, [5], 3))
    got = ops.existence_search(theta, 1, 0, eps=10.0, first=5)
    assert (got.index.item(), got.scale.item(), got.n_matches.item()) == (-1, 1, 0)
    assert bool(got.distance.isnan().all() and got.candidate.isnan().all())


def test_progress(set_threads):
    set_threads(1)
    seen = []
    ops.existence_search(targets(1, 5), 200_000_000, 0, progress=lambda *done: seen.append(done))
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert seen[-1] == (200_000_000, 200_000_000)
    few = []
    ops.existence_search(targets(1, 5), 10, 0, progress=lambda *done: few.append(done))
    assert few == [(10, 10)]


@pytest.mark.parametrize("n", [10, 2**36])
def test_what_progress_raises_comes_through(n):
    def refuse(done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        ops.existence_search(targets(1, 5), n, 0, progress=refuse)


SCRIPT = """
import os, signal, threading, time
import torch
from pns_fast import ops

def interrupt():
    time.sleep(0.4)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

sent = []
threading.Thread(target=interrupt, daemon=True).start()
try:
    ops.existence_search(torch.rand({t}, 5) + 0.1, 2**40, 0, eps=0.5)
    print("finished")
except KeyboardInterrupt:
    print("late", time.perf_counter() - sent[0])
"""


@pytest.mark.parametrize("t", [1, 5000])
def test_keyboard_interrupt_within_a_second(t):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(t=t)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.returncode == 0, run.stderr
    word, seconds = run.stdout.split()
    assert word == "late"
    assert float(seconds) < 1.0


THETA = torch.tensor([[0.5, -0.2]])
WRONG_CALLS = {
    "theta no tensor": (TypeError, "theta", ([[0.5]], 10, 0)),
    "theta integers": (TypeError, "theta", (THETA.long(), 10, 0)),
    "theta one dimension": (ValueError, "theta", (THETA[0], 10, 0)),
    "theta empty": (ValueError, "theta", (THETA[:0], 10, 0)),
    "theta no parameters": (ValueError, "theta", (THETA[:, :0], 10, 0)),
    "theta zero": (ValueError, "theta", (THETA * 0, 10, 0)),
    "theta NaN": (ValueError, "theta", (THETA * math.nan, 10, 0)),
    "theta inf": (ValueError, "theta", (THETA * math.inf, 10, 0)),
    "no candidates": (ValueError, "n_candidates", (THETA, 0, 0)),
    "negative candidates": (ValueError, "n_candidates", (THETA, -1, 0)),
    "too many candidates": (ValueError, "n_candidates", (THETA, 2**40 + 1, 0)),
    "candidates float": (TypeError, "n_candidates", (THETA, 1e9, 0)),
    "seed negative": (ValueError, "seed", (THETA, 10, -1)),
    "seed too large": (ValueError, "seed", (THETA, 10, 2**63)),
    "seed float": (TypeError, "seed", (THETA, 10, 0.5)),
    "init": (ValueError, "init", (THETA, 10, 0, "normal")),
    "init no text": (ValueError, "init", (THETA, 10, 0, None)),
    "eps zero": (ValueError, "eps", (THETA, 10, 0, "uniform", 0.0)),
    "eps negative": (ValueError, "eps", (THETA, 10, 0, "uniform", -1.0)),
    "eps NaN": (ValueError, "eps", (THETA, 10, 0, "uniform", math.nan)),
    "eps text": (TypeError, "eps", (THETA, 10, 0, "uniform", "0.1")),
    "first negative": (ValueError, "first", (THETA, 10, 0, "uniform", None, -1)),
    "first too large": (ValueError, "first", (THETA, 10, 0, "uniform", None, 2**62)),
    "progress no callable": (TypeError, "progress", (THETA, 10, 0, "uniform", None, 0, 3)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, name, arguments = WRONG_CALLS[call]
    with pytest.raises(error, match=name):
        ops.existence_search(*arguments)
