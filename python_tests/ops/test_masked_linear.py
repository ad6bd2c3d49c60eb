"""masked_linear and supermask: values, first and second derivatives, exactness, transforms."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from ops.layers import F32, F64, assert_close, gradients, layer

import pns_fast as pns
from pns_fast import _native, ops, reference
from pns_fast.ops import _memory


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.mark.parametrize("n", [None, 1, 3])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize(
    ("batch", "n_in", "n_out"), [(1, 1, 1), (2, 17, 5), (63, 8, 9), (64, 3, 100), (65, 101, 7), (200, 31, 33)]
)
def test_equals_the_twin(simd_level, batch, n_in, n_out, density, n):
    for dtype, tolerance in ((F64, "float64"), (F32, "float32_forward")):
        x, weight, mask, bias = layer(batch, n_in, n_out, n, dtype, density)
        for b in (bias, None):
            got = ops.masked_linear(x, weight, mask, b)
            assert got.dtype == dtype
            assert_close(got, reference.masked_linear(x, weight, mask, b), tolerance)


# Past every border inside: panels of 128, 256 and 512 columns and blocks of as many of their rows, several tiles of a
# batch, dense blocks of 96 rows and of 256 columns; densities of the narrow and the wide panels and of the dense path.
LARGE = [(300, 350, 110, 0.1), (65, 1100, 30, 0.02), (5, 260, 100, 0.5), (600, 70, 300, 0.6), (17, 280, 300, 0.3)]
LARGE += [(70, 600, 1040, 0.02), (3, 4100, 270, 0.05)]


@pytest.mark.parametrize(("batch", "n_in", "n_out", "density"), LARGE)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_large_layers_equal_the_twin(simd_level, set_threads, batch, n_in, n_out, density, dtype):
    arguments = layer(batch, n_in, n_out, None, dtype, density)
    forward, backward = ("float64",) * 2 if dtype == F64 else ("float32_forward", "float32_gradient")
    assert_close(ops.masked_linear(*arguments), reference.masked_linear(*arguments), forward)
    got = gradients(ops.masked_linear, *arguments)
    # the twin's gradients of a sine of sums of 2,100 float32 terms: both in float64, or rounding in y is compared
    wide = [a if a.dtype == torch.bool else a.double() for a in arguments]
    for a, b in zip(got, gradients(reference.masked_linear, *wide), strict=True):
        assert_close(a, b.to(dtype), backward)
    set_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(ops.masked_linear, *arguments), strict=True))


UNEVEN = {
    "a column": (slice(None), 5),
    "the last entry": (-1, -1),
    "a row": (150, slice(None)),
    "a block": (slice(128, 140), slice(256, 300)),
    "every other column": (slice(None), slice(None, None, 20)),
}


@pytest.mark.parametrize("kept", UNEVEN)
def test_columns_and_blocks_without_a_weight(simd_level, kept):
    x, weight, mask, bias = layer(70, 310, 290, None, F64, 0.0)
    mask[UNEVEN[kept]] = True
    got = gradients(ops.masked_linear, x, weight, mask, bias)
    for a, b in zip(got, gradients(reference.masked_linear, x, weight, mask, bias), strict=True):
        assert_close(a, b, "float64")


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
def test_a_samples_gradient_is_the_same_in_every_batch(simd_level, dtype, density):
    x, weight, mask, bias = layer(150, 140, 170, None, dtype, density)
    of_all = gradients(ops.masked_linear, x, weight, mask, bias)[0]
    for n in (1, 9, 20, 33, 64, 130):
        assert torch.equal(gradients(ops.masked_linear, x[:n], weight, mask, bias)[0], of_all[:n])


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize(("n_in", "density"), [(2048, 0.01), (2048, 0.2), (2051, 0.2)])
def test_gradients_that_are_written_past_the_caches(simd_level, set_threads, dtype, n_in, density):
    set_threads(2)
    x, _, mask, _ = layer(3, n_in, 2060, None, dtype, density)
    grad = layer(3, 2060, 1, None, dtype)[0]
    got = torch.ops.pns_fast.masked_outer(grad, x, mask)
    assert_close(got, mask * (grad.T @ x), "float64" if dtype == F64 else "float32_gradient")
    assert bool((got[~mask] == 0).all())


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.6])
def test_a_gradient_alone_is_the_same(simd_level, wanted, density):
    x, weight, mask, bias = layer(70, 150, 20, 2, F32, density)
    together = dict(zip(("x", "weight", "bias"), gradients(ops.masked_linear, x, weight, mask, bias), strict=True))
    inputs = {"x": x.clone(), "weight": weight.clone(), "bias": bias.clone()}
    inputs[wanted].requires_grad_()
    y = ops.masked_linear(inputs["x"], inputs["weight"], mask, inputs["bias"])
    (y.sin() + 0.1).square().sum().backward()
    assert torch.equal(inputs[wanted].grad, together[wanted])


def change_by_numpy(mask):
    mask.numpy()[0, 0] ^= True


def change_data(mask):
    mask.data[0, 1] = ~mask.data[0, 1]


CHANGES = {
    "in place": lambda mask: mask.logical_not_(),
    "one entry": lambda mask: mask.__setitem__((2, 3), not mask[2, 3]),
    "copy": lambda mask: mask.copy_(torch.rand(mask.shape) < 0.5),
    "data": change_data,
    "numpy": change_by_numpy,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.8])
def test_a_changed_mask_is_noticed(simd_level, change, density):
    x, weight, mask, bias = layer(6, 67, 9, None, F32, density)
    all_results(x, weight, mask, bias)
    CHANGES[change](mask)
    for a, b in zip(all_results(x, weight, mask, bias), all_results(x, weight, mask.clone(), bias), strict=True):
        assert torch.equal(a, b)


def test_masks_that_come_and_go(simd_level):
    """The next mask lies where the last one did."""
    x, weight, _, bias = layer(6, 40, 30, None, F32)
    for i in range(50):
        mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(i)) < 0.05 * (i % 20)
        assert_close(
            ops.masked_linear(x, weight, mask, bias), reference.masked_linear(x, weight, mask, bias), "float32_forward"
        )
        del mask


def test_patterns_kept_are_bounded_and_can_be_dropped():
    _native.cpu.clear_mask_pattern_cache()
    assert _native.cpu.mask_pattern_cache_bytes() == 0
    x, weight, mask, bias = layer(2, 300, 200, None, F32, 0.1)
    ops.masked_linear(x, weight, mask, bias)
    one = _native.cpu.mask_pattern_cache_bytes()
    assert 8 * int(mask.sum()) < one < 100_000  # 8 bytes a kept weight, 1 bit a weight, 4 bytes a row and panel
    ops.masked_linear(x, weight, mask, bias)
    assert _native.cpu.mask_pattern_cache_bytes() == one
    masks = [mask.clone() for _ in range(400)]
    for m in masks:
        ops.masked_linear(x, weight, m, bias)
    assert _native.cpu.mask_pattern_cache_bytes() <= 256 * one
    _native.cpu.clear_mask_pattern_cache()
    assert _native.cpu.mask_pattern_cache_bytes() == 0


def test_large_results_are_kept_for_the_next_of_their_size():
    _memory.release()
    x, weight, mask, bias = layer(600, 600, 500, None, F32, 0.1)  # 1.2 MB of outputs and of weight gradients
    y = ops.masked_linear(x, weight, mask, bias)
    address, other = y.data_ptr(), ops.masked_linear(x, weight, mask, bias)
    assert other.data_ptr() != address
    view = y[3]
    del y
    assert _memory.kept_bytes() == 0  # the view still needs it
    del view
    assert _memory.kept_bytes() == 600 * 500 * 4
    again = ops.masked_linear(x, weight, mask, bias)
    assert again.data_ptr() == address
    assert torch.equal(again, other)
    kept = [ops.masked_linear(x, weight, mask, bias) for _ in range(300)]  # 360 MB
    del kept
    assert 0 < _memory.kept_bytes() <= _memory.MOST_KEPT
    _memory.release()
    assert _memory.kept_bytes() == 0


def test_large_results_are_ordinary_tensors():
    x, weight, mask, bias = layer(600, 600, 500, None, F32, 0.1)
    y = ops.masked_linear(x, weight.requires_grad_(), mask, bias)
    y.sum().backward()
    assert y.is_contiguous()
    assert y.data_ptr() % 64 == 0
    weight.grad.mul_(2.0).add_(weight.detach(), alpha=0.1)
    assert torch.equal(pickle.loads(pickle.dumps(y.detach())), y.detach())
    assert torch.equal(copy.deepcopy(weight.grad), weight.grad)


def test_mask_bytes_other_than_one(simd_level):
    x, weight, mask, bias = layer(6, 70, 9, None, F32, 0.1)
    odd = (mask.to(torch.uint8) * 2).view(torch.bool)
    assert torch.equal(ops.masked_linear(x, weight, odd, bias), ops.masked_linear(x, weight, mask, bias))


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("batch", "n_in", "n_out"), [(1, 5, 1), (65, 33, 17), (130, 9, 40)])
def test_gradients_equal_the_twins(simd_level, batch, n_in, n_out, density, n):
    for dtype, tolerance in ((F64, "float64"), (F32, "float32_gradient")):
        arguments = layer(batch, n_in, n_out, n, dtype, density)
        got, expected = gradients(ops.masked_linear, *arguments), gradients(reference.masked_linear, *arguments)
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b, tolerance)
        assert bool((got[1][~arguments[2]] == 0).all())


@pytest.mark.parametrize("n", [None, 2])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("mask_kind", ["bool", "float", "float with gradient"])
def test_gradcheck_and_gradgradcheck(n, has_bias, mask_kind):
    x, weight, mask, bias = layer(batch=3, n_in=4, n_out=3, n=n)
    x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
    if mask_kind != "bool":
        # not only 0 and 1; an exact 0 would sit on the border where a changed mask brings a pruned weight back
        values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.3
        mask = values if mask_kind == "float with gradient" else values * mask
        mask.requires_grad_(mask_kind == "float with gradient")
    arguments = (x, weight, mask, bias if has_bias else None)
    assert torch.autograd.gradcheck(ops.masked_linear, arguments)
    assert torch.autograd.gradgradcheck(ops.masked_linear, arguments)


def test_a_pruned_entry_of_a_float_mask_has_a_gradient():
    x, weight, mask, bias = layer()
    grads = []
    for function in (ops.masked_linear, reference.masked_linear):
        m = mask.to(F64).requires_grad_()
        function(x, weight, m, bias).square().sum().backward()
        grads.append(m.grad)
    assert_close(grads[0], grads[1], "float64")
    assert bool((grads[0][~mask] != 0).all())


def test_third_derivative():
    x, weight, mask, bias = layer()

    def third(function):
        w = weight.clone().requires_grad_()
        value = function(function(x, w, mask, bias).exp(), w.T, mask.T).square().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, w, create_graph=True)
            value = (g * weight.cos()).sum()
        return g.detach()

    got, expected = third(ops.masked_linear), third(reference.masked_linear)
    torch.testing.assert_close(got * mask, expected * mask, rtol=1e-10, atol=0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_what_is_pruned_is_not_read(simd_level, bad, dtype):
    x, weight, mask, bias = layer(70, 19, 23, 2, dtype)
    poisoned = torch.where(mask, weight, bad)
    for float_mask in (False, True):
        m = mask.to(dtype) if float_mask else mask
        assert torch.equal(ops.masked_linear(x, poisoned, m, bias), ops.masked_linear(x, weight, m, bias))
    clean, dirty = (
        gradients(ops.masked_linear, x, weight, mask, bias),
        gradients(ops.masked_linear, x, poisoned, mask, bias),
    )
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_a_bad_sample_stays_in_its_row(simd_level):
    x, weight, mask, bias = layer(67, 9, 5, dtype=F32, density=1.0)
    clean = ops.masked_linear(x, weight, mask, bias)
    x[3, 4], x[66, 0] = math.nan, math.inf
    dirty = ops.masked_linear(x, weight, mask, bias)
    rows = torch.ones(67, dtype=torch.bool)
    rows[[3, 66]] = False
    assert torch.equal(dirty[rows], clean[rows])
    assert not bool(torch.isfinite(dirty[~rows]).any())


EMPTY = [(0, 4, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)]


@pytest.mark.parametrize("n", [None, 2, 0])
@pytest.mark.parametrize(("batch", "n_in", "n_out"), EMPTY)
def test_empty(simd_level, batch, n_in, n_out, n):
    x, weight, mask, bias = layer(batch, n_in, n_out, n, F32)
    y = ops.masked_linear(x.requires_grad_(), weight.requires_grad_(), mask, bias.requires_grad_())
    assert y.shape == (*(() if n is None else (n,)), batch, n_out)
    if n_in == 0:
        assert torch.equal(y, bias.unsqueeze(-2).expand(y.shape))
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert n_out > 0 or bool((x.grad == 0).all())
    assert bool((weight.grad == 0).all())
    assert torch.equal(bias.grad, torch.full_like(bias, batch))


def test_leading_dimensions():
    _, weight, mask, bias = layer()
    for shape in ((4,), (2, 3, 4), (2, 0, 4), (1, 1, 1, 4)):
        x = torch.randn(shape, dtype=F64)
        assert_close(
            ops.masked_linear(x, weight, mask, bias), reference.masked_linear(x, weight, mask, bias), "float64"
        )


def test_non_contiguous(simd_level):
    x, weight, mask, bias = layer(66, 20, 18, 2)
    views = (x.transpose(1, 2)[:, ::2].transpose(1, 2), weight[:, ::3, ::2], mask[:, ::3, ::2], bias[:, ::3])
    copies = [v.contiguous() for v in views]
    assert torch.equal(ops.masked_linear(*views), ops.masked_linear(*copies))
    for a, b in zip(gradients(ops.masked_linear, *views), gradients(ops.masked_linear, *copies), strict=True):
        assert torch.equal(a, b)
    expanded = x[0, :1].expand(66, 20)
    assert torch.equal(
        ops.masked_linear(expanded, weight[0], mask[0]), ops.masked_linear(expanded.clone(), weight[0], mask[0])
    )
    flipped = torch._neg_view(weight)
    assert torch.equal(ops.masked_linear(x, flipped, mask), ops.masked_linear(x, -weight, mask))


def all_results(x, weight, mask, bias):
    return [ops.masked_linear(x, weight, mask, bias), *gradients(ops.masked_linear, x, weight, mask, bias)]


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("density", [0.02, 1.0])
def test_alone_and_in_a_batch_are_bitwise_equal(simd_level, set_threads, dtype, density):
    arguments = layer(150, 101, 67, 4, dtype, density)  # 4 million multiply-adds: two threads are used
    got = []
    for threads in (1, 2):
        set_threads(threads)
        got.append(all_results(*arguments))
        for i in range(4):
            alone = all_results(*(a[i : i + 1] for a in arguments))
            for a, b in zip(alone, got[0], strict=True):
                assert torch.equal(a[0], b[i])
            for a, b in zip(all_results(*(a[i] for a in arguments)), got[0], strict=True):
                assert torch.equal(a, b[i])
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def test_one_large_network_with_one_and_two_threads(simd_level, set_threads):
    arguments = layer(130, 300, 210, None, F32, 0.3)
    got = []
    for threads in (1, 2, 3):
        set_threads(threads)
        got.append(all_results(*arguments))
    for other in got[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got[0], other, strict=True))


def test_zero_dimensional_and_one_dimensional_input():
    x, weight, mask, bias = layer()
    assert_close(
        ops.masked_linear(x[0], weight, mask, bias), reference.masked_linear(x, weight, mask, bias)[0], "float64"
    )
    with pytest.raises(ValueError, match="x: "):
        ops.masked_linear(torch.tensor(1.0, dtype=F64), weight, mask, bias)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """A batch of 2^31 + 2^20 numbers (8 GB, and 4 GB of results)."""
    batch = 2**26 + 2**15
    x = torch.ones(batch, 32)
    x[-1] = torch.arange(32)
    weight, mask = torch.ones(16, 32), torch.zeros(16, 32, dtype=torch.bool)
    mask[:, ::8] = True
    y = ops.masked_linear(x, weight, mask)
    assert torch.equal(y[-1], torch.full((16,), 48.0))
    assert bool((y[:-1] == 4).all())


def test_the_registered_op_is_differentiable():
    x, weight, mask, bias = layer()
    weight.requires_grad_()
    torch.ops.pns_fast.masked_linear(x, weight, mask, bias).square().sum().backward()
    expected = gradients(lambda *a: reference.masked_linear(*a), x, weight, mask, bias)
    assert weight.grad.shape == expected[1].shape
    assert pns.ops.masked_linear(x, weight, mask, bias).requires_grad


def test_inputs_are_not_changed():
    arguments = layer(70, 8, 9, 2)
    before = [a.clone() for a in arguments]
    all_results(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize("keep", [0, 3, 12, 0.25, 1.0])
def test_supermask_is_the_topk_mask_with_a_straight_through_gradient(keep):
    scores = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    upstream = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(3))
    for function in (ops.supermask, reference.supermask):
        s = scores.clone().requires_grad_()
        mask = function(s, keep)
        assert mask.dtype == F64
        assert torch.equal(mask, ops.topk_mask(scores.abs().flatten(), keep).reshape(3, 4).to(F64))
        (mask * upstream).sum().backward()
        assert torch.equal(s.grad, upstream)


def test_supermask_ties_at_zero_go_to_the_lowest_index():
    assert ops.supermask(torch.zeros(2, 3), 2).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert ops.supermask(torch.tensor([0.0, -1.0, 1.0, -0.0]), 3).tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match=r"scores.*NaN"):
        ops.supermask(torch.tensor([1.0, math.nan]), 1)


X, W, M, B = layer(dtype=F32)
WRONG_CALLS = {
    "x no tensor": (TypeError, "x", ([1.0], W, M)),
    "x integers": (TypeError, "x", (X.long(), W, M)),
    "x half": (TypeError, "x", (X.half(), W.half(), M)),
    "x dtype": (TypeError, "weight", (X.double(), W, M)),
    "x width": (ValueError, "x", (X[:, :3], W, M)),
    "x no dimension": (ValueError, "x", (torch.tensor(1.0), W, M)),
    "x not batched": (ValueError, "x", (X, W[None], M[None])),
    "x another batch": (ValueError, "x", (X[None].expand(2, 5, 4), W[None], M[None])),
    "x four dimensions": (ValueError, "x", (X[None, None], W[None], M[None])),
    "weight one dimension": (ValueError, "weight", (X, W[0], M[0])),
    "weight None": (TypeError, "weight", (X, None, M)),
    "mask shape": (ValueError, "mask", (X, W, M[:2])),
    "mask batch": (ValueError, "mask", (X, W, M[None])),
    "mask integers": (TypeError, "mask", (X, W, M.int())),
    "mask dtype": (TypeError, "mask", (X, W, M.double())),
    "bias shape": (ValueError, "bias", (X, W, M, B[:2])),
    "bias dtype": (TypeError, "bias", (X, W, M, B.double())),
    "bias number": (TypeError, "bias", (X, W, M, 1.0)),
    "weight sparse": (TypeError, "weight", (X, W.to_sparse(), M)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, name, arguments = WRONG_CALLS[call]
    with pytest.raises(error, match=f"{name}: "):
        ops.masked_linear(*arguments)
    with pytest.raises(TypeError, match="scores"):
        ops.supermask([1.0], 1)


def test_the_gradient_of_a_bias_of_many_samples(simd_level):
    """Of 32 x 1,024 tokens, all the same: one added to the other would lose 2.6e-4 of it."""
    x, weight, bias = torch.ones(32_768, 2), torch.ones(3, 2), torch.zeros(3, requires_grad=True)
    y = ops.masked_linear(x, weight, torch.ones(3, 2, dtype=torch.bool), bias)
    y.backward(torch.full_like(y, 0.1))
    assert (bias.grad / 3276.8 - 1).abs().max() < 1e-5
