"""The CUDA kernel of topk_mask: on a device bitwise as the CPU op. The source on the CPU: test_cuda_sources.py."""

from __future__ import annotations

import math

import pytest
import torch

from pns_fast import ops

# both kernels and their borders: 2,048 (block size), 16,384 (one block a row or chunks), and odd tails
SIZES = (1, 2, 3, 31, 128, 129, 2047, 2048, 2049, 16_383, 16_384, 16_385, 100_003, 1_000_001, 3_000_000)
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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(cuda, dtype):
    for name, scores in patterns(100_003).items():
        for k in (1, 10_000, 99_999):
            assert_same_mask(scores.to(dtype), scores.to(dtype).to(cuda), k, "index", (name, k))


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


@pytest.mark.gpu
@pytest.mark.parametrize("ties", ["index", "legacy"])
def test_list(cuda, ties):
    g = torch.Generator().manual_seed(1)
    shapes = [(0,), (3, 5), (), (70_001,), (2, 3, 4)]
    scores = [torch.randint(-3, 4, s, generator=g).float() for s in shapes]
    for k in counts(sum(s.numel() for s in scores)):
        masks = ops.topk_mask([s.to(cuda) for s in scores], k, ties=ties)
        expected = ops.topk_mask(scores, k, ties=ties)
        assert all(torch.equal(m.cpu(), e) for m, e in zip(masks, expected, strict=True)), k


@pytest.mark.gpu
def test_the_same_mask_every_time(cuda):
    scores = patterns(1_000_001)["few_values"].to(cuda)
    first = ops.topk_mask(scores, 333_333)
    assert all(torch.equal(first, ops.topk_mask(scores, 333_333)) for _ in range(20))


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1000, 200_001])
def test_runs_on_the_current_stream(cuda, n):
    scores = patterns(n)["normal"].to(cuda)
    late = torch.zeros(n, device=cuda)
    square = torch.randn(4096, 4096, device=cuda)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            square = square @ square / 64  # tens of milliseconds: another stream would still see the zeros
        late.copy_(scores)
        mask = ops.topk_mask(late, n // 7)
    stream.synchronize()
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
