"""The CUDA kernel of topk_mask: on a device bitwise as the CPU op. The source on the CPU: test_cuda_sources.py."""

from __future__ import annotations

import math

import pytest
import torch
from ops.streams import on_a_busy_stream

from pns_fast import ops

# all kernels and their borders: 2,048 (block size), 16,384 (one block a row or chunks), 2^21 (a sample), and odd tails
SIZES = (1, 2, 3, 31, 129, 2047, 2048, 2049, 16_384, 16_385, 100_003, 1_000_001, 2**21)
LONG = 3_000_001  # a sample brackets the threshold
# n odd: rows start anywhere; 256 rows or more take a block each, whatever their length
SHAPES = ((1, 70_000), (3, 65_537), (100, 20_001), (1000, 513), (300, 70_001), (1_000_000, 8))


def patterns(*shape: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(*shape, generator=g)
    digits = torch.randint(-2, 3, shape, generator=g)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1.0, -1.0, 2.0**-149])
    return {
        "normal": normal,
        "constant": torch.full(shape, 0.25),
        "few_values": digits.float(),
        "signed_zero": torch.where(digits > 0, 0.0, -0.0),
        "mostly_zero": torch.where(normal > 2, normal, 0.0),
        "special": special[torch.randint(0, len(special), shape, generator=g)],
        # the first 22 bits agree: only the last digit tells scores apart
        "one_bin": 1 + torch.randint(0, 1000, shape, generator=g) * torch.finfo(torch.float32).eps,
        "ascending": torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape),
    }


def sample_places(n: int, bits: int) -> torch.Tensor:
    """Where the kernel looks: sample_position, topk_bracket.cuh."""
    i = torch.arange(2**bits)
    return (i * n + (((i * 2654435761) % 2**32 >> 12) * n >> 20)) >> bits


def hard_for_a_sample(n: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    normal = torch.randn(n, generator=g)
    places = sample_places(n, 14)
    hidden = normal.abs() + 1
    hidden[places] = 0.0
    return {
        **patterns(n),
        "descending": torch.arange(n, 0, -1, dtype=torch.float32),
        "outliers": normal * 10 ** (normal * 3),
        "hidden": hidden,
        "hidden_below": -hidden,
        "many_values": torch.randint(0, 300, (n,), generator=g).float(),  # each in bulk, some inside the bracket
        "scales": normal.abs() * torch.linspace(0, 1, n).mul_(12).floor_().exp2_(),  # layer by layer
        "all_but_one": torch.ones(n).index_fill_(0, torch.tensor([n - 1]), 2.0),
        "infinite": torch.where(normal > 0.5, math.inf, torch.where(normal < -0.5, -math.inf, normal)),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.cpu().nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


def assert_same_all(scores: torch.Tensor, on_device: torch.Tensor, keep: int, ties: str, hint, what: object) -> None:
    """Mask, threshold and k-th largest, cold and with a hint, as on the CPU."""
    expected, threshold = ops.topk_mask(scores, keep, ties=ties, return_threshold=True)
    mask, found = ops.topk_mask(on_device, keep, ties=ties, hint=hint, return_threshold=True)
    assert torch.equal(mask.cpu(), expected), what
    assert found.dtype == scores.dtype, what
    assert same(found, threshold), what
    if ties == "index" and keep > 0:
        assert same(ops.kth_largest(on_device, keep, hint=hint), threshold), what


def counts(n: int) -> list[int]:
    return sorted({0, 1, n // 10, n // 2, n - 1, n})


def assert_same_mask(scores: torch.Tensor, on_device: torch.Tensor, keep: int | float, ties: str, what: object) -> None:
    mask = ops.topk_mask(on_device, keep, ties=ties)
    assert mask.device == on_device.device, what
    assert torch.equal(mask.cpu(), ops.topk_mask(scores, keep, ties=ties)), what


@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["index", "legacy"])
@pytest.mark.parametrize("n", SIZES)
def test_mask_equals_that_of_the_cpu(cuda, n, ties):
    for name, scores in patterns(n).items():
        on_device = scores.to(cuda)
        for k in counts(n):
            assert_same_mask(scores, on_device, k, ties, (name, k))


@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["index", "legacy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_equal_those_of_the_cpu(cuda, shape, ties):
    for name in ("normal", "few_values", "constant"):
        scores = patterns(*shape)[name]
        for k in (1, shape[-1] // 3, shape[-1] - 1):
            assert_same_mask(scores, scores.to(cuda), k, ties, (name, k))


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("n", [5, 1000, 16_384, 300_000])
def test_scores_that_start_between_16_byte_boundaries(cuda, n, offset):
    for name, scores in patterns(n + offset).items():
        view = scores.to(cuda)[offset:]
        assert view.data_ptr() % 16 == 4 * offset
        for k in (1, n // 3, n - 1):
            assert_same_mask(scores[offset:].clone(), view, k, "index", (name, k))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_long_rows_that_are_hard_for_a_sample(cuda, dtype):
    for turn, (name, given) in enumerate(hard_for_a_sample(LONG).items()):
        scores = given.to(dtype)
        on_device = scores.to(cuda)
        for k in (1, 300_000, 1_500_000, LONG - 1):
            turn += 1
            ties = "legacy" if turn % 3 == 0 else "index"
            hint = (None, 0.0, 1.5, -math.inf, math.nan, 1e30)[turn % 6]
            assert_same_all(scores, on_device, k, ties, hint, (name, k, ties, hint))


@pytest.mark.sanitize
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [7, 1001, 100_003])
def test_half_precision(cuda, dtype, n):
    for name, given in patterns(n + 3).items():
        scores = given.to(dtype)[3:].clone()
        view = given.to(dtype).to(cuda)[3:]  # starts between 16-byte boundaries
        for k in (1, n // 3, n - 1, n):
            assert_same_all(scores, view, k, "index", None, (name, k))


@pytest.mark.gpu
def test_all_numbers_of_half_precision(cuda):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        scores = every.view(dtype)
        scores = scores[~scores.isnan()]
        shuffled = scores[torch.randperm(len(scores), generator=torch.Generator().manual_seed(4))]
        for k in (1, 9, 700, 16_000, 31_000, 32_000, 50_000, len(scores)):
            assert_same_all(shuffled, shuffled.to(cuda), k, "index", None, (dtype, k))


@pytest.mark.gpu
@pytest.mark.parametrize("drift", [1e-3, 1e-1])
def test_drifting_scores_with_the_last_threshold(cuda, drift):
    g = torch.Generator().manual_seed(5)
    scores, hint = torch.randn(LONG, generator=g).abs(), None
    for _ in range(4):
        scores = scores * (1 + drift * torch.randn(LONG, generator=g)) * (1 + drift)
        on_device = scores.to(cuda)
        mask, threshold = ops.topk_mask(on_device, 0.1, hint=hint, return_threshold=True)
        assert torch.equal(mask, ops.topk_mask(on_device, 0.1))
        assert torch.equal(mask.cpu(), ops.topk_mask(scores, 0.1))
        hint = threshold


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 70_001), (300, 1001), (2, 16_000), (11, 2_200_001)], ids=str)
def test_thresholds_of_rows(cuda, shape):
    for name in ("normal", "few_values"):
        scores = patterns(*shape)[name]
        hint = scores[:, :9].amax(1).to(cuda)
        for ties in ("index", "legacy"):
            for k in (0, shape[1] // 3, shape[1]):
                assert_same_all(scores, scores.to(cuda), k, ties, hint, (name, k, ties))


def in_waves(name: str, n: int, cuda: torch.device) -> torch.Tensor:
    g = torch.Generator(cuda).manual_seed(7)
    scores = torch.randn(n, generator=g, device=cuda).abs_()
    if name == "zeros":  # spread evenly
        scores[torch.rand(n, generator=g, device=cuda) < 0.9] = 0.0
    elif name == "zeros_first":  # the first guess of where to cut them is far off
        scores[: n - n // 10] = 0.0
    elif name == "values":
        scores = scores.mul_(100).floor_()
    elif name == "hidden":
        scores[sample_places(n, 16).to(cuda)] = 0.0
        scores += 1
    return scores


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["normal", "zeros", "zeros_first", "values", "hidden"])
def test_more_chunks_than_blocks_run_at_once(cuda, name):
    n = 2**26 + 77
    scores = in_waves(name, n, cuda)
    ordered = scores.sort(descending=True, stable=True)
    for k in (n // 10, n // 2):
        expected = torch.zeros(n, dtype=torch.bool, device=cuda)
        expected[ordered.indices[:k]] = True
        mask, threshold = ops.topk_mask(scores, k, return_threshold=True)
        assert torch.equal(mask, expected), k
        assert threshold == ordered.values[k - 1], k
        assert ops.kth_largest(scores, k) == threshold, k
        legacy = ops.topk_mask(scores, k, ties="legacy")
        assert torch.equal(legacy, scores > ordered.values[k]), k


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [pytest.param(1, marks=pytest.mark.sanitize), 2, 3])
def test_long_rows_that_start_between_boundaries(cuda, offset):
    """Scores and mask, together and apart: each has its own loop over the scores."""
    given = patterns(LONG + 4)["normal"].to(cuda)
    out = torch.zeros(LONG + 4, dtype=torch.bool, device=cuda)
    for scores, mask in ((given[offset:LONG], out[: LONG - offset]), (given[:LONG], out[offset : LONG + offset])):
        out.zero_()
        expected = ops.topk_mask(scores.cpu(), 0.1)
        assert ops.topk_mask(scores, 0.1, out=mask) is mask
        assert torch.equal(mask.cpu(), expected)
        assert int(out.sum()) == int(expected.sum())


@pytest.mark.gpu
def test_out(cuda):
    scores = patterns(LONG)["normal"]
    on_device, out = scores.to(cuda), torch.zeros(LONG, dtype=torch.bool, device=cuda)
    assert ops.topk_mask(on_device, 0.2, out=out) is out
    assert torch.equal(out.cpu(), ops.topk_mask(scores, 0.2))


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1000, LONG])
def test_the_op_gives_what_the_function_gives(cuda, n):
    """The function calls the kernel without torch's dispatcher where nothing but the device asks for it."""
    scores, out = patterns(n)["few_values"].to(cuda), torch.zeros(n, dtype=torch.bool, device=cuda)
    op, hint = torch.ops.pns_fast.topk_mask, torch.tensor(0.5, device=cuda)
    mask, threshold = ops.topk_mask(scores, 0.3, ties="legacy", hint=hint, return_threshold=True)
    again, value = op.threshold(scores, 0.3, ties="legacy", hint=hint)
    assert torch.equal(mask, again)
    assert torch.equal(threshold, value)
    assert torch.equal(ops.topk_mask(torch.nn.Parameter(scores), 0.3), op.default(scores, 0.3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert ops.topk_mask(scores, 0.3, out=out, return_threshold=True)[1] == op.into(scores, 0.3, out=out)
    assert "pns_fast::topk_mask" in {event.key for event in profile.key_averages()}
    assert ops.kth_largest(scores, 7) == torch.ops.pns_fast.kth_largest(scores, 7)


@pytest.mark.gpu
def test_memory_of_a_long_row(cuda):
    n = 50_000_000
    scores, out = torch.rand(n, device=cuda), torch.empty(n, dtype=torch.bool, device=cuda)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.topk_mask(scores, 0.1, out=out)
    assert torch.cuda.max_memory_allocated() - before < n / 16 + (16 << 20)
    assert int(out.sum()) == n // 10
    assert float(scores[out].min()) >= float(scores[~out].max())


@pytest.mark.gpu
@pytest.mark.parametrize("n", [7, 1001, 65_537, 200_001])
def test_nan_ranks_lowest(cuda, n):
    scores = patterns(n)["special"]
    scores[::2] = math.nan
    scores[::4] = -scores[::4]
    # the same order in float64: -infinity takes the place of NaN, a finite number that of -infinity
    ranked = scores.double().masked_fill(scores == -math.inf, -1e300).masked_fill(scores.isnan(), -math.inf)
    for ties in ("index", "legacy"):
        for k in counts(n):
            mask = ops.topk_mask(scores.to(cuda), k, ties=ties)
            assert torch.equal(mask.cpu(), ops.topk_mask(ranked, k, ties=ties)), (ties, k)


@pytest.mark.gpu
def test_nan_is_refused_where_asked(cuda):
    scores = torch.tensor([1.0, math.nan, 2.0], device=cuda)
    for given in (scores, [scores]):
        with pytest.raises(ValueError, match=r"scores.*NaN"):
            ops.topk_mask(given, 1, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["index", "legacy"])
def test_float64_equals_the_cpu(cuda, ties):
    for name, scores in patterns(3, 2049).items():
        double = scores.double() * (1 + 2**-40)  # equal in float32
        for k in counts(2049):
            assert_same_mask(double, double.to(cuda), k, ties, (name, k))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_empty(cuda, shape):
    mask = ops.topk_mask(torch.zeros(shape, device=cuda), 0)
    assert mask.shape == shape
    assert mask.dtype == torch.bool


@pytest.mark.sanitize
@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["index", "legacy"])
def test_list(cuda, ties):
    g = torch.Generator().manual_seed(1)
    shapes = [(0,), (3, 5), (), (70_001,), (2, 3, 4)]
    scores = [torch.randint(-3, 4, s, generator=g).float() for s in shapes]
    for k in counts(sum(s.numel() for s in scores)):
        assert_same_list(scores, cuda, k, ties)


def assert_same_list(scores: list[torch.Tensor], cuda: torch.device, keep: int | float, ties: str) -> None:
    masks, found = ops.topk_mask([s.to(cuda) for s in scores], keep, ties=ties, return_threshold=True)
    expected, threshold = ops.topk_mask(scores, keep, ties=ties, return_threshold=True)
    assert all(torch.equal(m.cpu(), e) for m, e in zip(masks, expected, strict=True)), keep
    assert same(found, threshold), keep


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_list_of_hundreds_of_tensors(cuda, dtype):
    g = torch.Generator().manual_seed(6)
    for largest in (30, 1000, 20_000):  # one block, chunks, a sample
        sizes = [1 + (i * 7919) % largest for i in range(300)]
        scores = [torch.randn(s, generator=g).mul_(1 + i % 5).to(dtype) for i, s in enumerate(sizes)]
        for ties in ("index", "legacy"):
            assert_same_list(scores, cuda, 0.1, ties)
    constant = [torch.full((s,), 0.5, dtype=dtype) for s in sizes]
    assert_same_list(constant, cuda, 0.37, "index")


@pytest.mark.gpu
def test_list_in_a_graph(cuda):
    scores = [torch.zeros(s, device=cuda) for s in (70_001, 5, 3_000_000)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.topk_mask(scores, 0.1)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masks, threshold = ops.topk_mask(scores, 0.1, return_threshold=True)
    for seed in range(3):
        values = [torch.randn(s.shape, generator=torch.Generator().manual_seed(seed)) for s in scores]
        for s, v in zip(scores, values, strict=True):
            s.copy_(v)
        graph.replay()
        expected, wanted = ops.topk_mask(values, 0.1, return_threshold=True)
        assert all(torch.equal(m.cpu(), e) for m, e in zip(masks, expected, strict=True))
        assert same(threshold, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1_000_001, LONG])
def test_the_same_mask_every_time(cuda, n):
    for name in ("few_values", "normal"):
        scores = patterns(n)[name].to(cuda)
        first = ops.topk_mask(scores, 333_333)
        assert all(torch.equal(first, ops.topk_mask(scores, 333_333)) for _ in range(20)), name


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1000, 200_001, LONG])
def test_runs_on_the_current_stream(cuda, n):
    scores = patterns(n)["normal"].to(cuda)
    mask = on_a_busy_stream(scores, lambda late: ops.topk_mask(late, n // 7))
    assert torch.equal(mask.cpu(), ops.topk_mask(scores.cpu(), n // 7))


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [0, 12_345, 200_001])
@pytest.mark.parametrize("ties", ["index", "legacy"])
def test_captured_in_a_graph(cuda, keep, ties):
    scores = torch.zeros(200_001, device=cuda)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.topk_mask(scores, keep, ties=ties)  # loads the kernels, which a capture may not
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = ops.topk_mask(scores, keep, ties=ties)
    for name, values in patterns(200_001).items():
        scores.copy_(values)
        graph.replay()
        assert torch.equal(mask.cpu(), ops.topk_mask(values, keep, ties=ties)), name


@pytest.mark.gpu
def test_long_row_and_its_way_back_to_radix_in_one_graph(cuda):
    scores, hint = torch.zeros(LONG, device=cuda), torch.zeros((), device=cuda)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ops.topk_mask(scores, 300_000, hint=hint)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask, threshold = ops.topk_mask(scores, 300_000, hint=hint, return_threshold=True)
        hint.copy_(threshold)
    for name, values in hard_for_a_sample(LONG).items():
        scores.copy_(values)
        graph.replay()
        expected, wanted = ops.topk_mask(values, 300_000, return_threshold=True)
        assert torch.equal(mask.cpu(), expected), name
        assert same(threshold, wanted), name


@pytest.mark.gpu
def test_every_device_and_the_current_one_stays(cuda):
    scores = patterns(100_003)["few_values"]
    for index in range(torch.cuda.device_count()):
        assert_same_mask(scores, scores.to(f"cuda:{index}"), 30_000, "index", index)
        assert torch.cuda.current_device() == cuda.index


@pytest.mark.gpu
@pytest.mark.slow
def test_more_scores_than_32_bits_count(cuda):
    n = 2**31 + 12_345  # 8.6 GB of scores; the expected masks are known, so the CPU sorts nothing
    scores = torch.zeros(n, device=cuda)
    for k in (7, 2**31 + 7):
        mask = ops.topk_mask(scores, k)
        assert bool(mask[:k].all())
        assert not bool(mask[k:].any())
        del mask
    scores[-5:] = torch.arange(1.0, 6.0, device=cuda)
    mask = ops.topk_mask(scores, 7)
    assert int(mask.sum()) == 7
    assert bool(mask[:2].all())
    assert bool(mask[-5:].all())
    mask = ops.topk_mask(scores, 3, ties="legacy")
    assert mask.nonzero().flatten().tolist() == [n - 3, n - 2, n - 1]
