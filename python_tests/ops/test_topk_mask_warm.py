"""topk_mask with hint, threshold and out: a hint never changes a result; and under compile, export and vmap."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pns_fast import ops, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
N = 30_011  # above 2,048, so that a sample is taken; odd
ABSURD = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan)


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden_from_the_sample(n: int, dtype: torch.dtype) -> torch.Tensor:
    """All the sample sees is zero; between its places lie the scores that count."""
    scores = torch.randn(n, generator=generator(), dtype=torch.float64).abs() + 1
    for bits in range(9, 16):
        i = torch.arange(2**bits)
        at = (i * n + (((i * 2654435761) % 2**32 >> 12) * n >> 20)) >> bits
        if 2**bits < n / 4:
            scores[at] = 0.0
    return scores.to(dtype)


def inputs(n: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    normal = torch.randn(n, generator=generator(), dtype=torch.float64)
    denormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    named = {
        "normal": normal,
        "magnitude": normal.abs(),
        "offset": 1000 + normal,
        "sorted": normal.sort().values,
        "reversed": normal.sort(descending=True).values,
        "constant": torch.full((n,), 0.25),
        "few_values": torch.randint(-2, 3, (n,), generator=generator()),
        "two_values": torch.randint(0, 2, (n,), generator=generator()),
        "mostly_zero": torch.where(normal > 1.3, normal, 0.0),
        "one_large": torch.zeros(n).index_fill_(0, torch.tensor([n - 1]), 7.0),
        "one_bin": 1 + (normal.abs() * 8).floor() * torch.finfo(dtype).eps,
        "denormal": torch.randint(-9, 10, (n,), generator=generator()).double() * denormal,
        "heavy_ends": torch.where(normal > 0.5, math.inf, torch.where(normal < -0.5, -math.inf, normal)),
        "long_tails": normal * 10 ** (normal * 2),
        "periodic": torch.arange(n) % 64,
        "hidden": hidden_from_the_sample(n, torch.float64),
    }
    return {name: scores.to(dtype) for name, scores in named.items()}


def descending(scores: torch.Tensor) -> np.ndarray:
    return np.argsort(-scores.double().numpy(), kind="stable")


def first(order: np.ndarray, k: int) -> torch.Tensor:
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[torch.from_numpy(order[:k].copy())] = True
    return mask


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_warm_equals_cold_equals_sort(simd_level, dtype):
    for name, scores in inputs(N, dtype).items():
        order = descending(scores)
        for k in (1, 7, N // 100, N // 10, N // 2, N - 1, N):
            expected, kth = first(order, k), scores[order[k - 1]]
            near = float(kth)
            for hint in (None, near, near * 1.001 + 1e-4, near * 0.97, near * 1.3, *ABSURD):
                mask, threshold = ops.topk_mask(scores, k, hint=hint, return_threshold=True)
                assert torch.equal(mask, expected), (name, k, hint)
                assert threshold == kth, (name, k, hint)
                assert ops.kth_largest(scores, k, hint=hint) == kth, (name, k, hint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_legacy_with_any_hint(simd_level, dtype):
    for name, scores in inputs(N, dtype).items():
        order = descending(scores)
        for k in (0, N // 10, N - 1, N):
            cut = scores[order[k]] if k < N else torch.tensor(math.nan, dtype=dtype)
            expected = scores > cut if k < N else torch.ones(N, dtype=torch.bool)
            for hint in (None, cut, 0.5, math.inf):
                mask, threshold = ops.topk_mask(scores, k, ties="legacy", hint=hint, return_threshold=True)
                assert torch.equal(mask, expected), (name, k, hint)
                assert same(threshold, cut), (name, k, hint)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("drift", [1e-3, 1e-1])
def test_drifting_scores(simd_level, dtype, drift):
    g = generator(5)
    scores, hint = torch.randn(N, generator=g, dtype=torch.float64).abs(), None
    for _ in range(8):
        scores = scores * (1 + drift * torch.randn(N, generator=g, dtype=torch.float64)) * (1 + drift)
        ranked = scores.to(dtype)
        mask, hint = ops.topk_mask(ranked, N // 10, hint=hint, return_threshold=True)
        assert torch.equal(mask, first(descending(ranked), N // 10))
        assert hint.dtype == dtype
        assert hint.shape == ()


@functools.cache
def large(dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Scores for two threads and several pieces, with the mask of the first tenth."""
    names = ("normal", "few_values", "mostly_zero", "one_bin", "long_tails", "hidden")
    scores = {name: scores for name, scores in inputs(500_003, dtype).items() if name in names}
    return {name: (s, first(descending(s), 50_000)) for name, s in scores.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_level_and_thread_count_gives_the_same_bits(simd_level, set_threads, dtype, threads):
    set_threads(threads)
    for name, (scores, expected) in large(dtype).items():
        kth = scores[expected].min()
        for hint in (None, kth, 0.7):
            mask, threshold = ops.topk_mask(scores, 50_000, hint=hint, return_threshold=True)
            assert torch.equal(mask, expected), (name, hint)
            assert threshold == kth, (name, hint)
        pieces = list(scores.split([3, 0, 200_000, 300_000]))
        assert torch.equal(torch.cat(ops.topk_mask(pieces, 50_000)), expected), name
        cut = scores[~expected].max()
        assert torch.equal(ops.topk_mask(scores, 50_000, ties="legacy"), scores > cut), name


def test_masks_along_a_schedule_are_nested(simd_level):
    for scores in inputs(N, torch.float32).values():
        inner, hint = torch.zeros(N, dtype=torch.bool), None
        for keep in (0, 1, 30, 300, 3001, 15_000, 29_999, N):
            mask, hint = ops.topk_mask(scores, keep, hint=hint, return_threshold=True)
            assert int(mask.sum()) == keep
            assert not bool((inner & ~mask).any())
            inner = mask


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_starts_and_odd_lengths(simd_level, dtype):
    base = torch.randn(N, generator=generator(), dtype=torch.float64).to(dtype)
    for start in (1, 2, 3, 7, 33):
        for stop in (2047 + start, 2048 + start, 2049 + start, 4160 + start, N - 5):
            scores = base[start:stop]
            expected = first(descending(scores), 500)
            assert torch.equal(ops.topk_mask(scores, 500), expected), (start, stop)
            out = torch.ones(N, dtype=torch.bool)
            ops.topk_mask(scores, 500, out=out[start:stop], hint=1.0)
            assert torch.equal(out[start:stop], expected)
            assert bool(out[:start].all())
            assert bool(out[stop:].all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [5, 2048, 2049, N])
def test_one_nan_is_refused_in_every_place_with_every_hint(simd_level, dtype, n):
    for at in {0, n // 2, n - 2, n - 1}:
        for sign in (1.0, -1.0):
            scores = torch.randn(n, generator=generator()).to(dtype)
            scores[at] = math.copysign(math.nan, sign)
            for hint in (None, 0.0, 1.3, -math.inf):
                with pytest.raises(ValueError, match="NaN"):
                    ops.topk_mask(scores, n // 2, hint=hint)
                with pytest.raises(ValueError, match="NaN"):
                    ops.kth_largest(scores, n // 2, hint=hint)


def test_flushed_denormals_are_ranked_as_any_other(simd_level):
    scores = inputs(N, torch.float32)["denormal"]
    expected = first(descending(scores), N // 3)
    assert torch.set_flush_denormal(True)
    try:
        mask = ops.topk_mask(scores, N // 3)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ties", ["index", "legacy"])
def test_rows_with_a_hint_each(simd_level, set_threads, dtype, ties):
    scores = torch.randn(3, 5, 2500, generator=generator()).to(dtype)
    for threads in (1, 2):
        set_threads(threads)
        for keep in (0, 1, 250, 2500):
            expected = reference.topk_mask(scores, keep, ties=ties, return_threshold=True)
            for hint in (None, expected[1], 0.4, torch.randn(3, 5, dtype=torch.float64)):
                mask, threshold = ops.topk_mask(scores, keep, ties=ties, hint=hint, return_threshold=True)
                assert torch.equal(mask, expected[0])
                assert threshold.dtype == dtype
                assert same(threshold, expected[1])
            if keep > 0:
                assert torch.equal(ops.kth_largest(scores, keep, hint=expected[1]), reference.kth_largest(scores, keep))


def test_many_rows_on_two_threads(set_threads):
    set_threads(2)
    scores = torch.randn(400, 1500, generator=generator())
    assert torch.equal(ops.topk_mask(scores, 150), reference.topk_mask(scores, 150))
    scores[399, 1499] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        ops.topk_mask(scores, 150)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lists_with_hint_and_out(simd_level, dtype):
    shapes = [(0,), (3, 5), (), (7, 0), (9001,), (1,), (2, 3, 4)]
    scores = [torch.randn(s, generator=generator(len(s))).to(dtype) for s in shapes]
    for ties in ("index", "legacy"):
        expected, kth = reference.topk_mask(scores, 0.1, ties=ties, return_threshold=True)
        for hint in (None, kth, float(kth), 3.0):
            out = [torch.ones(s, dtype=torch.bool) for s in shapes]
            masks, threshold = ops.topk_mask(scores, 0.1, ties=ties, hint=hint, return_threshold=True, out=out)
            assert masks is out
            assert threshold == kth
            assert threshold.shape == ()
            assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
            fresh = ops.topk_mask(scores, 0.1, ties=ties, hint=hint)
            assert all(torch.equal(a, b) for a, b in zip(fresh, expected, strict=True))
    masks, threshold = ops.topk_mask([], 0, return_threshold=True)
    assert masks == []
    assert math.isnan(threshold)


def test_no_threshold_is_nan_and_nan_is_no_hint():
    scores = torch.randn(6, 4000, generator=generator())
    mask, threshold = ops.topk_mask(scores, 0, return_threshold=True)
    assert not bool(mask.any())
    assert bool(threshold.isnan().all())
    assert torch.equal(ops.topk_mask(scores, 9, hint=threshold), ops.topk_mask(scores, 9))
    assert bool(ops.topk_mask(torch.zeros(3, 0), 0, return_threshold=True)[1].isnan().all())
    assert ops.topk_mask(torch.zeros(0, 5), 2, return_threshold=True)[1].shape == (0,)


def test_out_is_written_and_returned(device):
    scores = torch.randn(3, 4100, generator=generator()).to(device)
    out = torch.ones(3, 4100, dtype=torch.bool, device=device)
    assert ops.topk_mask(scores, 40, out=out) is out
    assert torch.equal(out.cpu(), reference.topk_mask(scores.cpu(), 40))
    mask, threshold = ops.topk_mask(scores, 41, out=out, return_threshold=True)
    assert mask is out
    assert torch.equal(threshold.cpu(), reference.kth_largest(scores.cpu(), 41))
    ops.topk_mask(scores.requires_grad_(), 5, out=out)
    assert int(out.sum()) == 15


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("return_threshold", [False, True])
def test_a_mask_that_is_written_has_a_new_version(device, as_list, return_threshold):
    """By which autograd refuses a backward through what is no longer there, and a CUDA index is built anew."""
    scores, out = torch.randn(40, 30, generator=generator()).to(device), torch.ones(40, 30, dtype=torch.bool).to(device)
    weight = torch.ones(40, 30, device=device, requires_grad=True)
    y = ops.masked_linear(torch.ones(2, 30, device=device), weight, out)
    before = out._version
    ops.topk_mask(*(([scores], 9) if as_list else (scores, 9)), out=[out] if as_list else out,
                  return_threshold=return_threshold)  # fmt: skip
    assert out._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_made_in_inference_mode():
    with torch.inference_mode():
        out = torch.zeros(10, dtype=torch.bool)
        assert int(ops.topk_mask(torch.arange(10.0), 3, out=out).sum()) == 3
    assert int(ops.topk_mask(torch.arange(10.0), 4, out=out).sum()) == 4


S, B = torch.randn(10, generator=generator()), torch.zeros(10, dtype=torch.bool)
WRONG = {
    "out: shape": (ValueError, "out", {"out": torch.zeros(11, dtype=torch.bool)}),
    "out: dtype": (TypeError, "out", {"out": torch.zeros(10)}),
    "out: strided": (ValueError, "out", {"out": torch.zeros(20, dtype=torch.bool)[::2]}),
    "out: no tensor": (TypeError, "out", {"out": [B]}),
    "out: device": (ValueError, "out", {"out": B.to("meta")}),
    "hint: string": (TypeError, "hint", {"hint": "1"}),
    "hint: bool": (TypeError, "hint", {"hint": True}),
    "hint: integers": (TypeError, "hint", {"hint": torch.tensor(1)}),
    "hint: shape": (ValueError, "hint", {"hint": torch.zeros(1)}),
    "hint: device": (ValueError, "hint", {"hint": torch.tensor(1.0, device="meta")}),
}
WRONG_OF_LIST = {
    "out: one tensor": (TypeError, "out", {"out": B}),
    "out: too few": (ValueError, "out", {"out": []}),
    "out: shape": (ValueError, "out", {"out": [torch.zeros(2, 5, dtype=torch.bool)]}),
    "hint: one each": (ValueError, "hint", {"hint": torch.zeros(1)}),
}


@pytest.mark.parametrize("call", WRONG)
def test_wrong_options(call):
    error, name, options = WRONG[call]
    with pytest.raises(error, match=f"^{name}:"):
        ops.topk_mask(S, 3, **options)
    if name == "hint":
        with pytest.raises(error, match=r"^hint:"):
            ops.kth_largest(S, 3, **options)


@pytest.mark.parametrize("call", WRONG_OF_LIST)
def test_wrong_options_of_a_list(call):
    error, name, options = WRONG_OF_LIST[call]
    with pytest.raises(error, match=f"^{name}:"):
        ops.topk_mask([S], 3, **options)


finite = {
    torch.float32: st.floats(width=32, allow_nan=False),
    torch.float16: st.floats(width=16, allow_nan=False),
    torch.float64: st.floats(allow_nan=False),
}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(finite, key=str)), st.data())
def test_any_scores_any_hint(dtype, data):
    values = data.draw(st.lists(finite[dtype], min_size=1, max_size=80))
    # repeated past 2,048, so that the pass and its lists are what is tested
    scores = torch.tensor(values, dtype=dtype).repeat(data.draw(st.sampled_from([1, 60])))
    k = data.draw(st.integers(1, len(scores)))
    hint = data.draw(st.one_of(st.none(), st.sampled_from(values), finite[dtype]))
    order = descending(scores)
    mask, threshold = ops.topk_mask(scores, k, hint=hint, return_threshold=True)
    assert torch.equal(mask, first(order, k))
    assert threshold == scores[order[k - 1]]
    assert ops.kth_largest(scores, k, hint=hint) == threshold


def both(scores: torch.Tensor, hint: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mask, threshold = ops.topk_mask(scores, 0.1, hint=hint, return_threshold=True)
    return ops.topk_mask(scores, 0.1), mask, threshold, ops.kth_largest(scores, 3, hint=hint)


def test_compile_and_export():
    scores, hint = torch.randn(4, 3000, generator=generator()), torch.ones(4)
    expected = both(scores, hint)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(scores, hint), expected, strict=True))

    class Both(torch.nn.Module):
        def forward(self, scores, hint):
            return both(scores, hint)

    exported = torch.export.export(Both(), (scores, hint)).module()
    assert all(torch.equal(a, b) for a, b in zip(exported(scores, hint), expected, strict=True))


def test_compiled_out():
    def into(scores, out):
        return ops.topk_mask(scores, 9, out=out, return_threshold=True)[1]

    scores, out = torch.randn(3000, generator=generator()), torch.zeros(3000, dtype=torch.bool)
    threshold = torch.compile(into, fullgraph=True, backend="aot_eager")(scores, out)
    assert torch.equal(out, reference.topk_mask(scores, 9))
    assert threshold == reference.kth_largest(scores, 9)


def test_vmap():
    scores, hint = torch.randn(4, 3000, generator=generator()), torch.ones(4)
    expected = both(scores, hint)
    assert all(torch.equal(a, b) for a, b in zip(torch.vmap(both)(scores, hint), expected, strict=True))


@pytest.mark.slow
def test_more_than_2_to_the_31_scores(set_threads):
    """8 GB. The scores that are kept, and ties that are cut, lie on both sides of 2^31 and 2^32 bytes."""
    set_threads(2)
    n, keep = 2**31 + 100_003, 1_000_000
    scores = torch.zeros(n, dtype=torch.bfloat16)
    above = torch.cat([torch.arange(0, n, 10_007), torch.arange(2**31, n)])
    scores[above] = 1.0
    n_above = len(set(above.tolist()))
    mask, threshold = ops.topk_mask(scores, keep, return_threshold=True)
    assert threshold == 0.0
    assert int(mask.sum()) == keep
    assert bool(mask[above].all())
    ties = keep - n_above  # the first zeros, in order
    assert int(mask[: ties + 2 * (ties // 10_007) + 10].sum()) >= ties
    del mask
    few, threshold = ops.topk_mask(scores, n_above - 5, hint=threshold, return_threshold=True)
    assert threshold == 1.0
    assert int(few.sum()) == n_above - 5
    assert not bool(few[-5:].any())
    assert bool(few[above[:-5]].all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hint", [1e30, -1e30, 1e300, 10**400, -(10**400), math.inf])
def test_a_number_beyond_the_dtype_is_a_hint_too(dtype, hint):
    scores = torch.tensor([0.5, -1.0, 3.0, 2.0], dtype=dtype)
    mask, threshold = ops.topk_mask(scores, 2, hint=hint, return_threshold=True)
    assert mask.tolist() == [False, False, True, True]
    assert threshold == 2.0
    assert ops.kth_largest(scores, 2, hint=hint) == 2.0
