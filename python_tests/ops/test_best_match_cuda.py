"""The CUDA kernel of best_match: on a device bitwise as the CPU op. The source on the CPU: test_cuda_sources.py."""

from __future__ import annotations

import math

import pytest
import torch
from ops.streams import on_a_busy_stream

from pns_fast import ops

# (N, T, C, P, density): every tile size, one panel and several, few and many candidates, T near C
SIZES = (
    (1, 1, 1, 1, 1.0),
    (25, 20, 100, 101, 0.02),
    (25, 100, 100, 101, 0.3),
    (3, 70, 257, 33, 0.5),
    (2, 40, 3_000, 2_600, 0.01),
    (1, 37, 70_001, 9, 0.6),
    (1, 128, 40_000, 64, 0.125),
    (1, 130, 30_000, 101, 1.0),
    (1, 300, 1_000, 5_001, 0.02),
    (1, 500, 600, 6, 1.0),
)
# enough candidates of few parameters for the tensor cores' first stage; supports of less than 5 are left over
DENSE = (
    (1, 128, 131_072, 64, 0.125),
    (1, 150, 140_001, 24, 0.5),
    (3, 20, 50_000, 16, 1.0),
    (1, 9, 131_000, 60, 0.1),
    (1, 16, 131_072, 8, 1.0),
)


def problem(n, t, c, p, density, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(n, t, p, generator=g, dtype=torch.float64).to(dtype)
    support = torch.rand(n, t, p, generator=g) < density
    return target, support, torch.randn(n, c, p, generator=g).to(dtype)


def assert_same(got, expected, what=None):
    assert torch.equal(got[0].cpu(), expected[0]), what
    for a, b in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True, msg=str(what))


def assert_as_on_the_cpu(cuda, *arguments, what=None):
    got = ops.best_match(*(a if a is None else a.to(cuda) for a in arguments))
    assert got.index.device == cuda
    assert_same(got, ops.best_match(*arguments), what)
    return got


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES + DENSE, ids=str)
def test_equals_the_cpu(cuda, size):
    target, support, candidates = problem(*size)
    assert_as_on_the_cpu(cuda, target, support, candidates)
    available = torch.rand(candidates.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.6
    assert_as_on_the_cpu(cuda, target, support, candidates, available)


@pytest.mark.sanitize
@pytest.mark.gpu
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtypes(cuda, dtype, target_dtype):
    for size in (SIZES[1], SIZES[3], (1, 30, 5_000, 18, 0.5), (1, 20, 700, 6_001, 0.02)):
        target, support, candidates = problem(*size, dtype=torch.float64)
        assert_as_on_the_cpu(cuda, target.to(target_dtype), support, candidates.to(dtype), what=size)


@pytest.mark.sanitize
@pytest.mark.gpu
def test_ties_and_clashes(cuda):
    g = torch.Generator().manual_seed(2)
    for t, c, p in ((60, 64, 4), (200, 5_000, 6), (40, 3_000, 1)):
        target = torch.randint(-1, 2, (t, p), generator=g).float()
        candidates = torch.randint(-1, 2, (c, p), generator=g).float()
        assert_as_on_the_cpu(cuda, target, target != 0, candidates, what=("integers", t, c, p))
        clones = torch.randn(1, p, generator=g).expand(t, p)
        on = torch.ones(t, p, dtype=torch.bool)
        assert_as_on_the_cpu(cuda, clones, on, torch.randn(c, p, generator=g), what=("clones", t, c, p))


@pytest.mark.gpu
@pytest.mark.parametrize("run", [2, 4, 7])
def test_neighbours_of_one_support(cuda, run):
    target, support, candidates = problem(1, 61, 40_000, 20, 0.5)
    support = support[:, torch.arange(61) // run * run]
    assert_as_on_the_cpu(cuda, target, support, candidates)


@pytest.mark.sanitize
@pytest.mark.gpu
def test_extremes(cuda):
    g = torch.Generator().manual_seed(3)
    target, support, candidates = problem(1, 12, 2_000, 7, 0.6, torch.float64)
    for magnitude in (1e200, 1e-200, 1e-310, 1e20, 1e-25):
        mixed = candidates * torch.tensor([1.0, magnitude])[torch.randint(0, 2, (1, 2_000, 1), generator=g)]
        assert_as_on_the_cpu(cuda, target * magnitude, support, mixed, what=magnitude)
        assert_as_on_the_cpu(cuda, target, support, mixed.float(), what=magnitude)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    where = torch.rand(candidates.shape, generator=g) < 0.1
    candidates[where] = wild[torch.randint(0, 4, (int(where.sum()),), generator=g)].double()
    assert_as_on_the_cpu(cuda, target, support, candidates, what="not finite")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.sanitize), torch.float64], ids=str)
def test_tensor_cores_only_leave_out_what_cannot_win(cuda, dtype):
    g = torch.Generator().manual_seed(5)
    target, support, candidates = problem(1, 24, 131_072, 12, 0.7, torch.float64)
    for spread in (1.0, 8.0, 40.0, 130.0):  # powers of two within a row
        wide = candidates * torch.exp2(-spread * torch.rand(candidates.shape, generator=g, dtype=torch.float64))
        some = wide.to(dtype)[:, : 131_072 if spread < 20 else 131_000]
        assert_as_on_the_cpu(cuda, target, support, some, what=spread)
    near = target[:, :1] * (1 + 1e-4 * candidates)  # half precision cannot tell them apart
    assert_as_on_the_cpu(cuda, target, support, near[:, :131_000].to(dtype), what="near")
    wild = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 3e38, 1e-45])
    where = torch.rand(candidates.shape, generator=g) < 0.02
    candidates[where] = wild[torch.randint(0, 6, (int(where.sum()),), generator=g)].double()
    available = torch.rand(candidates.shape[:2], generator=g) < 0.5
    assert_as_on_the_cpu(cuda, target, support, candidates.to(dtype), available, what="not finite")


@pytest.mark.gpu
def test_near_parallel_candidates_are_told_apart(cuda):
    g = torch.Generator().manual_seed(4)
    target = torch.rand(8, 5, generator=g, dtype=torch.float64) + 0.5
    candidates = target[:1] * (1 + 1e-9 * torch.randn(3_000, 5, generator=g, dtype=torch.float64))
    assert_as_on_the_cpu(cuda, target, torch.ones(8, 5, dtype=torch.bool), candidates)


@pytest.mark.gpu
def test_a_target_that_is_not_finite_finds_nothing(cuda):
    for c in (90, 3_000):
        target, support, candidates = problem(1, 9, c, 6, 1.0)
        empty = support.clone()
        empty[0, [2, 7]] = False
        expected = ops.best_match(target, empty, candidates)
        target[0, 2, 1], target[0, 7, 0] = math.nan, math.inf
        got = ops.best_match(target.to(cuda), support.to(cuda), candidates.to(cuda))
        assert_same(got, expected, c)
        assert got.index[0, 2].item() == -1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (0, 0, 0), (4, 5, 0), (4, 500, 0)])
def test_empty(cuda, shape):
    t, c, p = shape
    assert_as_on_the_cpu(cuda, torch.zeros(t, p), torch.ones(t, p, dtype=torch.bool), torch.zeros(c, p))
    no_problem = torch.zeros(0, t, p), torch.zeros(0, t, p, dtype=torch.bool), torch.zeros(0, c, p)
    got = ops.best_match(*(a.to(cuda) for a in no_problem))
    assert got.scale.shape == (0, t)


@pytest.mark.gpu
def test_non_contiguous_and_misaligned(cuda):
    target, support, candidates = (a[0].to(cuda) for a in problem(1, 12, 1_400, 16, 0.5))
    arguments = target[::2, 1::2], support[::2, 1::2], candidates[::2, 1::2]
    expected = ops.best_match(*(a.cpu() for a in arguments))
    assert_same(ops.best_match(*arguments), expected)
    off = torch.empty(1 + candidates.numel(), device=cuda)[1:].view_as(candidates).copy_(candidates)
    assert off.data_ptr() % 16 == 4
    assert_same(ops.best_match(target, support, off), ops.best_match(target.cpu(), support.cpu(), candidates.cpu()))


@pytest.mark.gpu
def test_the_same_bits_every_time(cuda):
    inputs = [a.to(cuda) for a in problem(1, 200, 20_000, 8, 0.5)]
    first = ops.best_match(*inputs)
    for _ in range(10):
        assert_same(ops.best_match(*inputs), [a.cpu() for a in first])


@pytest.mark.gpu
def test_runs_on_the_current_stream(cuda):
    inputs = [a.to(cuda) for a in problem(1, 30, 20_000, 16, 0.5)]
    got = on_a_busy_stream(inputs[2], lambda late: ops.best_match(inputs[0], inputs[1], late))
    assert_same(got, ops.best_match(*(a.cpu() for a in inputs)))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(25, 20, 100, 101, 0.1), (1, 60, 3_000, 20, 0.4)], ids=str)
def test_captured_in_a_graph(cuda, size):
    inputs = [a.to(cuda) for a in problem(*size)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.best_match(*inputs)  # loads the kernels, which a capture may not
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.best_match(*inputs)
    for seed in range(3):
        fresh = problem(*size, seed=seed)
        for old, new in zip(inputs, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        assert_same(got, ops.best_match(*fresh), seed)


@pytest.mark.gpu
def test_every_device_and_the_current_one_stays(cuda):
    inputs = problem(2, 9, 500, 12, 0.5)
    for index in range(torch.cuda.device_count()):
        assert_as_on_the_cpu(torch.device("cuda", index), *inputs)
        assert torch.cuda.current_device() == cuda.index


@pytest.mark.gpu
def test_wrong_calls(cuda):
    target, support, candidates = (a.to(cuda) for a in problem(1, 3, 9, 4, 1.0))
    with pytest.raises(ValueError, match="candidates"):
        ops.best_match(target, support, candidates.cpu())
    with pytest.raises(TypeError, match="candidates"):
        ops.best_match(target, support, candidates.half())
