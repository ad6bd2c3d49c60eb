"""best_match against a float64 brute force: index exactly, at every level; ties, extremes, near-parallel candidates."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import TOLERANCES

from pns_fast import ops, reference


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def brute_force(target, support, candidates, available=None):
    """The definition, one candidate at a time in float64: (index, scale, distance), each [T]."""
    target, candidates = target.double().numpy(), candidates.double().numpy()
    free = np.ones(len(candidates), dtype=bool) if available is None else available.numpy().copy()
    index = np.full(len(target), -1)
    scale, distance = np.ones(len(target)), np.full(len(target), np.nan)
    for t, on in enumerate(support.numpy()):
        best = math.inf
        for c in np.flatnonzero(free) if on.any() else ():
            theta, m = target[t, on], candidates[c, on]
            with np.errstate(all="ignore"):
                dot = sum(theta * m)
                lam = dot / sum(m * m)
                q = 0.0 if len(theta) == 1 else math.sqrt(sum((theta - lam * m) ** 2))
            if dot > 0 and math.isfinite(lam) and q < best:
                best, index[t], scale[t], distance[t] = q, c, lam, q
        free[index[t] if index[t] >= 0 else []] = False
    return torch.from_numpy(index), torch.from_numpy(scale), torch.from_numpy(distance)


def assert_match(target, support, candidates, available=None, truth=None):
    got = ops.best_match(target, support, candidates, available)
    index, scale, distance = truth or brute_force(target, support, candidates, available)
    assert torch.equal(got.index, index), (got.index, index)
    is_f64 = got.scale.dtype == torch.float64
    rtol, atol = TOLERANCES["match_float64" if is_f64 else "float32_rounding"]
    length = float(target.double().abs().max()) if target.numel() else 0.0
    torch.testing.assert_close(got.scale.double(), scale, rtol=rtol, atol=0)
    # a distance is a difference of numbers as large as the target
    torch.testing.assert_close(got.distance.double(), distance, rtol=rtol, atol=atol * length, equal_nan=True)
    return got


def problem(t, c, p, dtype=torch.float32, density=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(t, p, generator=g, dtype=torch.float64).to(dtype)
    support = torch.rand(t, p, generator=g) < density
    return target, support, torch.randn(c, p, generator=g, dtype=torch.float64).to(dtype)


@functools.cache
def truth(*case):
    return brute_force(*problem(*case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("p", [1, 2, 3, 8, 101])
@pytest.mark.parametrize(
    ("t", "c"), [(1, 1), (1, 63), (3, 64), (4, 65), (20, 100), (60, 64), (64, 64), (5, 3), (7, 257)]
)
def test_equals_brute_force(simd_level, t, c, p, dtype):
    for density, seed in ((1.0, 1), (0.4, 2), (0.05, 3)):
        case = (t, c, p, dtype, density, seed)
        assert_match(*problem(*case), truth=truth(*case))


def test_a_copy_is_found_with_scale_1_and_distance_0(simd_level):
    # exactly: whatever is done against overflow must not round the target
    g = torch.Generator().manual_seed(15)
    for p in (2, 3, 10):
        target = torch.randn(20, p, generator=g)
        candidates = torch.cat([torch.randn(70, p, generator=g), target.flip(0), 2 * target])
        got = assert_match(target, torch.ones(20, p, dtype=torch.bool), candidates)
        assert got.index.tolist() == list(range(89, 69, -1))
        assert got.scale.tolist() == [1] * 20
        assert got.distance.tolist() == [0] * 20


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_mixed_dtypes(simd_level, dtypes):
    target, support, candidates = problem(6, 70, 9, torch.float64)
    got = assert_match(target.to(dtypes[0]), support, candidates.to(dtypes[1]))
    assert got.scale.dtype == torch.float64


def test_equals_the_twin(simd_level):
    for seed in range(5):
        target, support, candidates = problem(30, 90, 12, torch.float32, 0.4, seed)
        got, twin = ops.best_match(target, support, candidates), reference.best_match(target, support, candidates)
        assert torch.equal(got.index, twin.index)
        rtol, atol = TOLERANCES["float32_rounding"]
        torch.testing.assert_close(got.scale, twin.scale, rtol=rtol, atol=0)
        torch.testing.assert_close(got.distance, twin.distance, rtol=rtol, atol=atol, equal_nan=True)


def test_ties_go_to_the_lowest_index(simd_level):
    g = torch.Generator().manual_seed(4)
    base = torch.randn(5, 6, generator=g)
    # every candidate 40 times, also doubled and halved: scaling by a power of two is exact, so all of them tie
    factor = torch.tensor([1.0, 2.0, 0.5])[torch.randint(0, 3, (200,), generator=g)]
    which = torch.randint(0, 5, (200,), generator=g)
    candidates = base[which] * factor[:, None]
    target = base[[2, 2, 2, 0, 4, 4]] + 0.01
    got = assert_match(target, torch.ones(6, 6, dtype=torch.bool), candidates)
    assert got.index[:3].tolist() == torch.nonzero(which == 2).flatten()[:3].tolist()


def test_one_supported_parameter_takes_the_first_of_its_sign(simd_level):
    candidates = torch.tensor([[-1.0, 5.0], [3e-20, 7.0], [2.0, -1.0], [1e30, 2.0]])
    support = torch.tensor([[True, False]] * 4)
    target = torch.tensor([[0.7, 9.0], [0.7, 9.0], [-2.0, 1.0], [0.1, math.pi]])
    got = assert_match(target, support, candidates)
    assert got.index.tolist() == [1, 2, 0, 3]
    assert got.distance.tolist() == [0, 0, 0, 0]
    # 300 candidates, all of them exact: in target order the lowest free one, across tiles of candidates
    many = assert_match(torch.ones(130, 1), torch.ones(130, 1, dtype=torch.bool), torch.rand(300, 1) + 0.1)
    assert many.index.tolist() == list(range(130))


def test_empty_support_and_no_positive_candidate(simd_level):
    target = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    support = torch.tensor([[False, False], [True, True], [True, True], [True, True]])
    got = assert_match(target, support, torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-3.0, 1.0]]))
    assert got.index.tolist() == [-1, 1, -1, -1]
    assert got.scale[[0, 2, 3]].tolist() == [1, 1, 1]
    assert bool(got.distance[[0, 2, 3]].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_only_candidate_is_nearly_orthogonal(simd_level, dtype):
    # theta.m = 1e-9 > 0 is lost in float32, but it is positive and this is the only candidate
    target = torch.tensor([[1.0, 1.0 - 1e-9]], dtype=torch.float64)
    candidates = torch.tensor([[-1.0, 0.5], [1.0, -1.0]], dtype=dtype)
    assert assert_match(target, torch.ones(1, 2, dtype=torch.bool), candidates).index.item() == 1
    target = torch.tensor([[1.0, 1e-60]], dtype=torch.float64)
    candidates = torch.tensor([[0.0, 1.0]], dtype=dtype)
    assert assert_match(target, torch.ones(1, 2, dtype=torch.bool), candidates).index.item() == 0


def test_available(simd_level):
    target, support, candidates = problem(10, 90, 5)
    available = torch.rand(90, generator=torch.Generator().manual_seed(5)) < 0.3
    got = assert_match(target, support, candidates, available)
    assert bool(available[got.index[got.index >= 0]].all())
    none = assert_match(target, support, candidates, torch.zeros(90, dtype=torch.bool))
    assert bool((none.index == -1).all())


@pytest.mark.parametrize(("t", "c"), [(64, 64), (70, 65), (100, 100), (12, 9)])
def test_more_targets_than_good_candidates(simd_level, t, c):
    # T close to C or above: nearly every target finds its best candidate taken
    g = torch.Generator().manual_seed(6)
    target = torch.randn(1, 4, generator=g) + 0.05 * torch.randn(t, 4, generator=g)
    got = assert_match(target, torch.ones(t, 4, dtype=torch.bool), torch.randn(c, 4, generator=g))
    taken = got.index[got.index >= 0]
    assert len(taken.unique()) == len(taken)


@pytest.mark.parametrize("t", [1, 2, 3, 4, 5, 8, 11])
def test_neighbours_of_one_support_are_searched_together(simd_level, t):
    target, support, candidates = problem(t + 2, 150, 37, torch.float32, 0.5, t)
    support[:t] = support[0]  # then two of their own
    assert_match(target, support, candidates)
    only = torch.zeros_like(support)
    only[:, [3, 30]] = True  # two of 37 parameters: gathered, no blocks
    assert_match(target, only, candidates)


@pytest.mark.parametrize("clones", [True, False], ids=["clones", "all different"])
def test_targets_whose_best_few_are_all_taken_are_searched_again(simd_level, clones):
    # as many targets as candidates and more, and all of them after the same ones
    g = torch.Generator().manual_seed(16)
    target = torch.randn(1 if clones else 150, 6, generator=g).expand(150, 6)
    candidates = torch.randn(130, 6, generator=g)
    got = assert_match(target, torch.ones(150, 6, dtype=torch.bool), candidates)
    assert int((got.index >= 0).sum()) > 60
    assert_match(target.sign(), torch.ones(150, 6, dtype=torch.bool), candidates.sign())  # ties, all over


def test_many_candidates_and_threads(simd_level, set_threads):
    # runs of tiles, floors shared by the threads, and float64 only for the few
    target, support, candidates = problem(40, 20_003, 33, torch.float32, 0.2, 17)
    candidates[15_000:] = candidates[:5_003]  # ties far apart
    expected = reference.best_match(target, support, candidates)
    for threads in (1, 2):
        set_threads(threads)
        assert torch.equal(ops.best_match(target, support, candidates).index, expected.index)


@pytest.mark.parametrize("magnitude", [1e20, 1e-25, 1.0])
@pytest.mark.parametrize("target_magnitude", [1e20, 1e-25, 1.0])
def test_magnitudes(simd_level, magnitude, target_magnitude):
    target, support, candidates = problem(12, 130, 7, torch.float64, 0.6, 7)
    g = torch.Generator().manual_seed(8)
    mixed = candidates * torch.tensor([1.0, magnitude])[torch.randint(0, 2, (130, 1), generator=g)]
    for dtype in (torch.float64, torch.float32):
        for pool in (candidates * magnitude, mixed):
            scaled = (target * target_magnitude).to(dtype)
            index, scale, _ = brute_force(scaled, support, pool.to(dtype))
            got = ops.best_match(scaled, support, pool.to(dtype))
            assert torch.equal(got.index, index)
            # 1e20 / 1e-25 and its inverse are beyond float32
            fits = (scale < torch.finfo(dtype).max) & (scale > torch.finfo(dtype).tiny)
            torch.testing.assert_close(got.scale[fits].double(), scale[fits], rtol=1e-6, atol=0)


def test_targets_beyond_the_square_root_of_the_float64_range(simd_level):
    support, candidates = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[-1.0, 1.0, 0.0], [1.0, 2.0, 2.0]])
    for magnitude in (1e200, 1e-200):
        target = magnitude * torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
        got = ops.best_match(target, support, candidates)
        assert got.index.item() == 1
        torch.testing.assert_close(got.scale.item(), magnitude, rtol=1e-12, atol=0)


def test_candidates_that_are_not_finite_never_win(simd_level):
    target, support, candidates = problem(8, 80, 4, torch.float32, 1.0, 9)
    g = torch.Generator().manual_seed(10)
    bad = torch.randperm(80, generator=g)[:50]
    values = torch.tensor([math.nan, math.inf, -math.inf])
    candidates[bad, torch.randint(0, 4, (50,), generator=g)] = values[torch.randint(0, 3, (50,), generator=g)]
    got = assert_match(target, support, candidates)
    assert not set(got.index.tolist()) & set(bad.tolist())
    many = candidates.repeat(3, 1)[:200]  # beside good ones in other vectors of a tile, and as padding
    for last in bad[bad < 40].tolist():
        assert_match(target, support, torch.cat([many, candidates[last : last + 1]]))
    only_bad = assert_match(target, support, candidates[bad])
    assert bool((only_bad.index == -1).all())


def test_what_lies_outside_the_support_does_not_matter(simd_level):
    target, support, candidates = problem(1, 80, 6, torch.float32, 0.5, 11)
    before = ops.best_match(target, support, candidates)
    candidates[:, ~support[0]] = math.nan
    after = ops.best_match(target, support, candidates)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("p", [2, 5, 50])
def test_near_parallel_candidates_are_told_apart_by_the_residual(simd_level, p, dtype):
    # sines 2^-12 .. 2^-20: cosines equal 1 within 1e-8 to 1e-12, all the same number in float32
    g = torch.Generator().manual_seed(12)
    for best_at in (0, 63, 64, 150, 199):
        target = torch.rand(1, p, generator=g, dtype=torch.float64) + 0.5
        off = torch.randn(200, p, generator=g, dtype=torch.float64)
        off -= (off @ target.T) / (target @ target.T) * target
        off /= off.norm(dim=1, keepdim=True) / target.norm()
        sines = 2.0**-12 * (1 + torch.rand(200, 1, generator=g, dtype=torch.float64))
        sines[best_at] = 2.0**-20
        scale = 0.25 + torch.rand(200, 1, generator=g, dtype=torch.float64)
        candidates = ((target + sines * off) * scale).to(dtype)
        got = assert_match(target, torch.ones(1, p, dtype=torch.bool), candidates)
        assert got.index.item() == best_at


def test_a_cosine_within_float32_rounding_does_not_hide_the_winner(simd_level):
    # long supports: the float32 sums of the filter are off by more than the cosines differ
    g = torch.Generator().manual_seed(13)
    for _ in range(5):
        target = torch.randn(1, 3000, generator=g)
        candidates = target + 2e-4 * torch.randn(150, 3000, generator=g)
        assert_match(target, torch.ones(1, 3000, dtype=torch.bool), candidates)


def test_batched_equals_one_by_one(simd_level):
    targets, supports, pools = zip(*(problem(6, 70, 5, seed=s) for s in range(6)), strict=True)
    target, support, candidates = (torch.stack(a).reshape(2, 3, *a[0].shape) for a in (targets, supports, pools))
    available = torch.rand(2, 3, 70, generator=torch.Generator().manual_seed(14)) < 0.7
    together = ops.best_match(target, support, candidates, available)
    for i in range(2):
        for j in range(3):
            alone = ops.best_match(target[i, j], support[i, j], candidates[i, j], available[i, j])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i, j], b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n_problems", [1, 3])
def test_one_and_two_threads_are_bitwise_equal(simd_level, set_threads, n_problems):
    # 2 million multiply-adds and more: one problem is then shared by tiles of candidates, several by problem
    target, support, candidates = problem(n_problems * 100, n_problems * 4001, 9)
    candidates[1::2] = candidates[::2][: len(candidates[1::2])]  # ties across tiles
    shaped = [t.reshape(n_problems, -1, 9) for t in (target, support, candidates)]
    got = []
    for threads in (1, 2, 3):
        set_threads(threads)
        got.append(ops.best_match(*shaped))
    for other in got[1:]:
        for a, b in zip(got[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("t", "c", "p"), [(0, 5, 3), (4, 0, 3), (0, 0, 0), (4, 5, 0)])
def test_empty(simd_level, t, c, p):
    for find in (ops.best_match, reference.best_match):
        got = find(torch.zeros(t, p), torch.ones(t, p, dtype=torch.bool), torch.zeros(c, p))
        assert got.index.tolist() == [-1] * t
        batched = find(torch.zeros(0, t, p), torch.zeros(0, t, p, dtype=torch.bool), torch.zeros(0, c, p))
        assert batched.scale.shape == (0, t)


MEMORY = """
import resource, torch
from pns_fast import ops
target, candidates = torch.rand(512, 64), torch.rand(2**18, 64)
ops.best_match(target[:2], target[:2] > 0.9, candidates[:100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.best_match(target, target > 0.9, candidates)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_targets_times_candidates():
    # one float32 a pair would be 512 MB
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True)
    assert int(run.stdout) < 64


def test_non_contiguous_and_unchanged(simd_level):
    target, support, candidates = problem(12, 140, 10)
    arguments = (
        target[::2, 1::2],
        support[::2, 1::2],
        candidates.T[:10].T[::2, 1::2],
        torch.ones(140, dtype=torch.bool)[::2],
    )
    before = [a.clone() for a in arguments]
    got = ops.best_match(*arguments)
    expected = ops.best_match(*(a.contiguous() for a in arguments))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_gradients_stop_here():
    target, support, candidates = problem(3, 20, 4)
    got = ops.best_match(target.requires_grad_(), support, candidates.requires_grad_())
    assert not got.scale.requires_grad


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8), st.integers(0, 90), st.integers(1, 6), st.integers(0, 2**20))
def test_small_integers_tie_often(t, c, p, seed):
    # parameters in {-1, 0, 1} of equal norm: exact in float64, ties everywhere, the greedy order decides
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(-1, 2, (t, p), generator=g).float()
    candidates = torch.randint(0, 2, (c, p), generator=g).mul(2).sub(1).float()
    assert_match(target, target != 0, candidates)


T, ON, C = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(4, 3)
WRONG_CALLS = {
    "target no tensor": (TypeError, "target", ([1.0], ON, C)),
    "target integers": (TypeError, "target", (T.long(), ON, C)),
    "target half": (TypeError, "target", (T.half(), ON, C)),
    "target one dimension": (ValueError, "target", (T[0], ON[0], C)),
    "target NaN": (ValueError, "target", (T * math.nan, ON, C)),
    "target inf": (ValueError, "target", (T * math.inf, ON, C)),
    "support float": (TypeError, "support", (T, ON.float(), C)),
    "support shape": (ValueError, "support", (T, ON[:1], C)),
    "candidates integers": (TypeError, "candidates", (T, ON, C.int())),
    "candidates width": (ValueError, "candidates", (T, ON, C[:, :2])),
    "candidates batch": (ValueError, "candidates", (T, ON, C[None])),
    "available shape": (ValueError, "available", (T, ON, C, torch.ones(3, dtype=torch.bool))),
    "available dtype": (TypeError, "available", (T, ON, C, torch.ones(4))),
    "available no tensor": (TypeError, "available", (T, ON, C, [True] * 4)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, name, arguments = WRONG_CALLS[call]
    with pytest.raises(error, match=name):
        ops.best_match(*arguments)
