"""masked_conv2d: values, first and second derivatives, exactness, wrong calls. Its transforms are in a file of their
own."""

from __future__ import annotations

import math

import pytest
import torch
from ops.convolutions import SMALL, Geometry, random_geometry
from ops.layers import F32, F64, assert_close
from torch.nn import functional as F

from pns_fast import _native, ops, reference
from pns_fast.ops import _masked_conv, _masked_cuda


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture
def sparse(monkeypatch):
    """The kernel also where torch's convolution would be faster."""
    monkeypatch.setattr(_masked_conv, "path", "sparse")


@pytest.fixture(params=_masked_conv.PATHS)
def path(request, monkeypatch):
    monkeypatch.setattr(_masked_conv, "path", request.param)
    return request.param


def all_results(function, x, weight, mask, bias, *pairs):
    """The result and the gradients of x, weight and bias of a non-linear function of it."""
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(inputs[0], inputs[1], mask, inputs[2], *pairs)
    (y.sin() + 0.1).square().sum().backward()
    return [y.detach(), *(t.grad for t in inputs)]


def assert_equals_the_twin(geometry, dtype, density, seed=0):
    arguments = geometry.arguments(dtype, density, seed)
    got = all_results(ops.masked_conv2d, *arguments, *geometry.pairs)
    wide = [a if a.dtype == torch.bool else a.double() for a in arguments]
    expected = all_results(reference.masked_conv2d, *wide, *geometry.pairs)
    expected[2] = expected[2] * arguments[2]
    names = ("float64",) * 4 if dtype == F64 else ("float32_forward", *("float32_gradient",) * 3)
    for a, b, name in zip(got, expected, names, strict=True):
        assert a.is_contiguous()
        assert_close(a, b.to(dtype), name)


@pytest.mark.parametrize("seed", range(24))
def test_equals_the_twin_for_any_geometry(simd_level, sparse, seed):
    assert_equals_the_twin(random_geometry(seed), F32 if seed % 2 else F64, (0.1, 0.5, 1.0)[seed % 3], seed)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(17, 64, 3, (21, 30)),  # rows in blocks
        Geometry(18, 64, 3, (40, 15), (3, 3), (2, 2), (3, 0), (2, 1)),  # with a stride, and padding beyond the kernel
        Geometry(33, 3, 64, (26, 31), (5, 5), (2, 1), (2, 2)),  # blocks of the gradient
        Geometry(16, 5, 7, (2, 2)),  # several channels in one run
        Geometry(5, 4, 3, (7, 7), (1, 1), (3, 3), (0, 0)),  # pixels that nothing reads
        Geometry(4, 2, 2, (1, 1), (1, 1), (1, 1), (2, 2)),  # pixels that read nothing
        Geometry(2, 3, 2, (9, 1), (5, 1), (1, 1), (2, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_equals_the_twin_where_images_are_cut_and_runs_joined(simd_level, sparse, geometry, dtype):
    assert_equals_the_twin(geometry, dtype, 0.3)


@pytest.mark.parametrize("seed", [100, 101, 102])
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_every_path_equals_the_twin(path, seed, density):
    assert_equals_the_twin(random_geometry(seed), F64, density, seed)


def takes_the_kernel(geometry, density):
    """Whether the forward and the backward pass, as estimated."""
    x, weight, mask, bias = geometry.arguments(F32, density)
    y = F.conv2d(x, weight, bias, *geometry.pairs)
    sizes = _masked_conv._sizes(len(x), x.shape[2:], weight.shape, geometry.pairs)
    x_, weight_, mask_, y_ = (t.data_ptr() for t in (x, weight, mask, y))
    into = torch.empty_like(x), torch.empty_like(weight)
    return (
        _masked_conv._FORWARD[F32](sizes, x_, weight_, mask_, 0, 0, y_, False, 0, 1, False),
        _masked_conv._BACKWARD[F32](sizes, y_, x_, weight_, mask_, 0, 0, *(t.data_ptr() for t in into), 0, 1, False),
    )


@pytest.mark.skipif(_native.cpu.best_simd_level() != "avx512", reason="narrower vectors cross elsewhere")
def test_the_estimate_takes_the_kernel_for_few_weights_of_large_batches():
    batch = Geometry(64, 64, 64, (8, 8))
    assert takes_the_kernel(batch, 0.01) == takes_the_kernel(batch, 0.2) == (True, True)
    assert takes_the_kernel(batch, 0.6) == takes_the_kernel(batch, 1.0) == (False, False)
    assert takes_the_kernel(Geometry(1, 64, 64, (32, 32)), 0.1) == (False, False)  # most of each vector is empty
    assert takes_the_kernel(Geometry(64, 1, 16, (28, 28)), 1.0) == (True, True)  # torch pads channels to 16


@pytest.mark.parametrize("seed", [3, 7])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_bool_masks_pass_gradcheck_twice(path, seed, density):
    pairs = SMALL.pairs if seed == 3 else ((1, 2), (0, 2), (1, 1))
    x, weight, mask, bias = SMALL.arguments(density=density, seed=seed)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def function(x, weight, bias):
        # a numerical derivative also sees that pruned weights do not count
        return ops.masked_conv2d(x, weight, mask, bias, *pairs)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_float_masks_pass_gradcheck_twice(path):
    x, weight, mask, bias = SMALL.arguments(seed=5)
    inputs = [t.requires_grad_() for t in (x, weight, mask * torch.rand_like(weight), bias)]

    def function(x, weight, mask, bias):
        kept = mask + (mask == 0) * 0.5  # gradcheck moves each entry: at 0 it would meet another pattern
        return ops.masked_conv2d(x, weight, kept, bias, *SMALL.pairs)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_float_mask_learns_where_it_prunes(path):
    x, weight, mask, bias = SMALL.arguments()
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        m, w = mask.double().requires_grad_(), weight.clone().requires_grad_()
        function(x, w, m, bias, *SMALL.pairs).sin().sum().backward()
        results.append((m.grad, w.grad))
    assert results[0][0][~mask].abs().min() > 0
    for a, b in zip(*results, strict=True):
        assert_close(a, b, "float64")


def test_a_gradient_of_a_gradient_norm(path):
    """What GraSP takes."""
    x, weight, mask, bias = SMALL.arguments()
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        w = weight.clone().requires_grad_()
        loss = function(x, w, mask, bias, *SMALL.pairs).sin().square().sum()
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        results.append(torch.autograd.grad((gradient * mask).square().sum(), w)[0] * mask)
    assert_close(results[0], results[1], "float64")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_float", [False, True])
def test_a_pruned_nan_does_not_spread(path, value, as_float):
    x, weight, mask, bias = SMALL.arguments()
    spoiled = torch.where(mask, weight, value)
    kept = mask.double() if as_float else mask
    got = all_results(ops.masked_conv2d, x, spoiled, kept, bias, *SMALL.pairs)
    expected = all_results(ops.masked_conv2d, x, torch.where(mask, weight, 0), kept, bias, *SMALL.pairs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not got[2][~mask].any()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_gradients_of_some_inputs_only(path, wanted):
    x, weight, mask, bias = SMALL.arguments()
    tensors = [t.clone().requires_grad_(wants) for t, wants in zip((x, weight, bias), wanted, strict=True)]
    y = ops.masked_conv2d(tensors[0], tensors[1], mask, tensors[2], *SMALL.pairs)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.sin().sum().backward()
    full = [t.clone().requires_grad_() for t in (x, weight, bias)]
    ops.masked_conv2d(full[0], full[1], mask, full[2], *SMALL.pairs).sin().sum().backward()
    for t, f, wants in zip(tensors, full, wanted, strict=True):
        assert t.grad is None if not wants else torch.allclose(t.grad, f.grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("geometry", [Geometry(70, 20, 31, (9, 11)), Geometry(3, 64, 40, (30, 30))])
def test_any_number_of_threads_gives_the_same_bits(simd_level, sparse, set_threads, dtype, geometry):
    arguments = geometry.arguments(dtype, 0.1)
    got = []
    for threads in (1, 2, 5):
        set_threads(threads)
        got.append(all_results(ops.masked_conv2d, *arguments, *geometry.pairs))
    for other in got[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got[0], other, strict=True))


def test_a_sample_is_the_same_in_every_batch(simd_level, sparse):
    geometry = Geometry(37, 20, 9, (9, 11))
    x, weight, mask, bias = geometry.arguments(F32)
    grad = torch.randn(37, 9, 9, 11, generator=torch.Generator().manual_seed(1))

    def both(x, grad):
        x = x.clone().requires_grad_()
        y = ops.masked_conv2d(x, weight, mask, bias, *geometry.pairs)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    whole, part = both(x, grad), both(x[20:23], grad[20:23])
    assert all(torch.equal(a[20:23], b) for a, b in zip(whole, part, strict=True))


def test_an_empty_batch(path):
    x, weight, mask, bias = SMALL.arguments()
    y, grad_x, grad_weight, grad_bias = all_results(ops.masked_conv2d, x[:0], weight, mask, bias, *SMALL.pairs)
    assert y.shape == (0, *F.conv2d(x, weight, bias, *SMALL.pairs).shape[1:])
    assert grad_x.shape == x[:0].shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_a_mask_changed_in_place_is_noticed(sparse):
    x, weight, mask, bias = SMALL.arguments()
    for _ in range(3):
        y = ops.masked_conv2d(x, weight, mask, bias, *SMALL.pairs)
        assert_close(y, reference.masked_conv2d(x, weight, mask, bias, *SMALL.pairs), "float64")
        mask.data[:] = ~mask


def test_one_mask_in_several_layers(sparse):
    """What is remembered of a mask is remembered by layer, too."""
    x, weight, mask, bias = SMALL.arguments()
    for _ in range(2):
        for pairs in (SMALL.pairs, (1, 1, 1), (1, 0, 1), ((2, 2), (1, 0), (1, 2))):
            for images in (x, x[:, :, 1:], x.float()):
                w, b = weight.to(images.dtype), bias.to(images.dtype)
                got, expected = (f(images, w, mask, b, *pairs) for f in (ops.masked_conv2d, reference.masked_conv2d))
                assert_close(got, expected, "float64" if images.dtype == F64 else "float32_forward")


def test_strided_channels_last_expanded_and_negated_inputs(path):
    geometry = Geometry(6, 4, 5, (7, 8))
    x, weight, mask, bias = geometry.arguments()
    expected = all_results(ops.masked_conv2d, x, weight, mask, bias)
    strided = x.repeat_interleave(2, 3)[:, :, :, ::2], weight.transpose(0, 3).contiguous().transpose(0, 3)
    last = [t.to(memory_format=torch.channels_last) for t in (x, weight, mask)]
    for a, w, m in ((*strided, mask), last, (torch._neg_view(-x), weight, mask)):
        assert torch.equal(ops.masked_conv2d(a, w, m, bias), expected[0])
        x_, w_ = a.detach().requires_grad_(), w.detach().requires_grad_()
        y = ops.masked_conv2d(x_, w_, m, bias)
        (y.sin() + 0.1).square().sum().backward()
        assert torch.equal(x_.grad, expected[1])
        assert torch.equal(w_.grad, expected[2])
    expanded = x[:1].expand(6, 4, 7, 8)
    assert torch.equal(ops.masked_conv2d(expanded, weight, mask), ops.masked_conv2d(expanded.clone(), weight, mask))


def test_one_int_is_a_pair():
    x, weight, mask, bias = Geometry(2, 3, 4, (9, 8)).arguments()
    assert torch.equal(
        ops.masked_conv2d(x, weight, mask, bias, 2, 1, 2),
        ops.masked_conv2d(x, weight, mask, bias, stride=[2, 2], padding=(1, 1), dilation=(2, 2)),
    )
    assert torch.equal(
        torch.ops.pns_fast.masked_conv2d(x, weight, mask, bias, 2), ops.masked_conv2d(x, weight, mask, bias, 2)
    )


def test_inputs_are_not_changed(path):
    arguments = SMALL.arguments()
    before = [a.clone() for a in arguments]
    all_results(ops.masked_conv2d, *arguments, *SMALL.pairs)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize("seed", [3, 7])
def test_what_cuda_convolves_with_equals_the_twin_and_reads_nothing_pruned(seed):
    geometry = random_geometry(seed)
    x, weight, mask, bias = geometry.arguments()
    bad = torch.where(mask, weight, math.nan)
    got = all_results(_masked_cuda.dense_conv, x, bad, mask, bias, *geometry.pairs)
    expected = all_results(reference.masked_conv2d, x, weight, mask, bias, *geometry.pairs)
    expected[2] = expected[2] * mask
    for a, b in zip(got, expected, strict=True):
        assert a.is_contiguous()
        assert_close(a, b, "float64")


@pytest.mark.parametrize("as_float", [False, True])
def test_on_every_device(device, as_float):
    geometry = Geometry(20, 8, 6, (10, 9), (3, 3), (2, 1))
    x, weight, mask, bias = geometry.arguments(F64, 0.2)
    mask = mask.double() if as_float else mask
    expected = all_results(reference.masked_conv2d, x, weight, mask, bias, *geometry.pairs)
    expected[2] = expected[2] * mask
    moved = [t.to(device) for t in (x, weight, mask, bias)]
    for a, b in zip(all_results(ops.masked_conv2d, *moved, *geometry.pairs), expected, strict=True):
        assert a.device.type == device.type
        assert_close(a.cpu(), b, "float64")


X, W, M, B = Geometry(2, 3, 4, (6, 5)).arguments(F32)
WRONG_CALLS = {
    "x no tensor": (TypeError, "x", ([1.0], W, M)),
    "x three dimensions": (ValueError, "x", (X[0], W, M)),
    "x integers": (TypeError, "x", (X.long(), W, M)),
    "x half": (TypeError, "x", (X.half(), W.half(), M)),
    "x channels": (ValueError, "x", (X[:, :2], W, M)),
    "x smaller than the kernel": (ValueError, "x", (X[:, :, :2], W, M)),
    "x smaller than the dilated kernel": (ValueError, "x", (X, W, M, B, 1, 0, 3)),
    "x no pixel": (ValueError, "x", (X[:, :, :0], W, M, B, 1, 2)),
    "x sparse": (TypeError, "x", (X.to_sparse(), W, M)),
    "weight None": (TypeError, "weight", (X, None, M)),
    "weight dtype": (TypeError, "weight", (X.double(), W, M)),
    "weight three dimensions": (ValueError, "weight", (X, W[0], M[0])),
    "weight without outputs": (ValueError, "weight", (X, W[:0], M[:0])),
    "mask shape": (ValueError, "mask", (X, W, M[:, :, :2])),
    "mask integers": (TypeError, "mask", (X, W, M.int())),
    "mask dtype": (TypeError, "mask", (X, W, M.double())),
    "bias shape": (ValueError, "bias", (X, W, M, B[:2])),
    "bias dtype": (TypeError, "bias", (X, W, M, B.double())),
    "bias number": (TypeError, "bias", (X, W, M, 1.0)),
    "stride zero": (ValueError, "stride", (X, W, M, B, 0)),
    "stride of three": (ValueError, "stride", (X, W, M, B, (1, 1, 1))),
    "stride float": (TypeError, "stride", (X, W, M, B, 1.5)),
    "padding negative": (ValueError, "padding", (X, W, M, B, 1, (0, -1))),
    "padding word": (TypeError, "padding", (X, W, M, B, 1, "same")),
    "dilation zero": (ValueError, "dilation", (X, W, M, B, 1, 0, 0)),
    "dilation bool": (TypeError, "dilation", (X, W, M, B, 1, 0, (True, 1))),
    "device": (ValueError, "weight", (X, W.to("meta"), M)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, name, arguments = WRONG_CALLS[call]
    with pytest.raises(error, match=f"^{name}: "):
        ops.masked_conv2d(*arguments)
