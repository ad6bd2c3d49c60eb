"""masked_conv2d with the ReLU and the pooling behind it: as torch's on the convolution, in every derivative."""

from __future__ import annotations

import math

import pytest
import torch
from ops.convolutions import SMALL, Geometry, random_geometry
from ops.layers import F32, F64, assert_close
from torch.utils.flop_counter import FlopCounterMode

from pns_fast import ops, reference
from pns_fast.ops import _masked_conv

TAILS = [(True, 1), (True, 2), (False, 2)]


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture(params=TAILS, ids=["relu", "relu and pooling", "pooling"])
def tail(request):
    return request.param


@pytest.fixture
def sparse(monkeypatch):
    monkeypatch.setattr(_masked_conv, "path", "sparse")


@pytest.fixture(params=_masked_conv.PATHS)
def path(request, monkeypatch):
    monkeypatch.setattr(_masked_conv, "path", request.param)
    return request.param


def fitting(geometry, tail):
    """The tail, without pooling where the result is too small for it."""
    x, weight, _, bias = geometry.arguments()
    smallest = min(torch.nn.functional.conv2d(x, weight, bias, *geometry.pairs).shape[2:])
    return tail if tail[1] <= smallest else (True, 1)


def all_results(function, geometry, arguments, tail):
    """The result and the gradients of x, weight and bias of a non-linear function of it."""
    x, weight, mask, bias = arguments
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(inputs[0], inputs[1], mask, inputs[2], *geometry.pairs, *tail)
    (y.sin() + 0.1).square().sum().backward()
    return [y.detach(), *(t.grad for t in inputs)]


def assert_equals_the_twin(geometry, dtype, density, seed, tail):
    tail = fitting(geometry, tail)
    arguments = geometry.arguments(dtype, density, seed)
    got = all_results(ops.masked_conv2d, geometry, arguments, tail)
    # of the same numbers: with sums in another order a result near zero may be on the other side of it
    y = ops.masked_conv2d(*arguments, *geometry.pairs)
    expected_y = torch.relu(y) if tail[0] else y
    expected_y = torch.nn.functional.max_pool2d(expected_y, tail[1]) if tail[1] > 1 else expected_y
    assert torch.equal(got[0], expected_y)
    wide = [a if a.dtype == torch.bool else a.double() for a in arguments]
    expected = all_results(reference.masked_conv2d, geometry, wide, tail)
    expected[2] = expected[2] * arguments[2]
    names = ("float64",) * 4 if dtype == F64 else ("float32_forward", *("float32_gradient",) * 3)
    for a, b, name in zip(got, expected, names, strict=True):
        assert a.is_contiguous()
        assert_close(a, b.to(dtype), name)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_twin_for_any_geometry(simd_level, sparse, tail, seed):
    assert_equals_the_twin(random_geometry(seed), F32 if seed % 2 else F64, (0.1, 0.5, 1.0)[seed % 3], seed, tail)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(17, 64, 3, (21, 30)),  # rows in blocks, the last without a square
        Geometry(33, 3, 64, (26, 31), (5, 5), (2, 1), (2, 2)),  # blocks of the gradient that begin within a square
        Geometry(16, 5, 7, (2, 2)),  # several channels in one run
        Geometry(16, 70, 70, (2, 3)),
        Geometry(5, 4, 3, (7, 7), (1, 1), (3, 3), (0, 0)),
    ],
)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_equals_the_twin_where_images_are_cut_and_runs_joined(simd_level, sparse, tail, geometry, dtype):
    assert_equals_the_twin(geometry, dtype, 0.3, 0, tail)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_every_path_equals_the_twin(path, tail, density):
    assert_equals_the_twin(Geometry(20, 5, 6, (9, 8)), F64, density, 1, tail)


def test_passes_gradcheck_twice(path, tail):
    geometry = Geometry(2, 2, 3, (5, 4))
    x, weight, mask, bias = geometry.arguments(seed=3)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def function(x, weight, bias):
        return ops.masked_conv2d(x, weight, mask, bias, *geometry.pairs, *tail)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_gradient_of_a_gradient_norm_through_a_layer_before(path, tail):
    geometry = Geometry(3, 2, 3, (6, 6))
    x, weight, mask, bias = geometry.arguments()
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        w, scale = weight.clone().requires_grad_(), torch.tensor(1.3, dtype=F64, requires_grad=True)
        loss = function((x * scale).sin(), w, mask, bias, *geometry.pairs, *tail).square().sum()
        gradients = torch.autograd.grad(loss, (w, scale), create_graph=True)
        norm = (gradients[0] * mask).square().sum() + gradients[1].square()
        results.append(torch.autograd.grad(norm, (w, scale)))
    assert_close(results[0][0] * mask, results[1][0] * mask, "float64")
    assert_close(results[0][1], results[1][1], "float64")


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_gradients_of_some_inputs_only(path, tail, wanted):
    geometry = Geometry(3, 2, 3, (6, 6))
    x, weight, mask, bias = geometry.arguments()
    tensors = [t.clone().requires_grad_(wants) for t, wants in zip((x, weight, bias), wanted, strict=True)]
    y = ops.masked_conv2d(tensors[0], tensors[1], mask, tensors[2], *geometry.pairs, *tail)
    assert y.requires_grad == any(wanted)
    full = all_results(ops.masked_conv2d, geometry, (x, weight, mask, bias), tail)
    assert torch.equal(y, full[0])
    if any(wanted):
        (y.sin() + 0.1).square().sum().backward()
    for t, f, wants in zip(tensors, full[1:], wanted, strict=True):
        assert t.grad is None if not wants else torch.allclose(t.grad, f, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_the_first_of_equal_pixels_and_none_at_zero_pass_a_gradient(simd_level, sparse, dtype):
    """As in torch: of integers many are equal."""
    x = torch.randint(-2, 3, (19, 1, 8, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        a, one = x.clone().requires_grad_(), torch.ones(1, 1, 1, 1, dtype=dtype)
        y = function(a, one, torch.ones(1, 1, 1, 1, dtype=torch.bool), None, 1, 0, 1, True, 2)
        results.append((y.detach(), *torch.autograd.grad(y, a, torch.arange(y.numel()).reshape(y.shape).to(dtype))))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


def test_a_nan_is_larger_than_any_number(simd_level, sparse, tail):
    geometry = Geometry(3, 1, 1, (8, 6), (1, 1), padding=(0, 0))
    x, weight, mask, bias = geometry.arguments(F32, density=1.0)
    x[1, 0, 3, 2] = math.nan
    functions = ops.masked_conv2d, reference.masked_conv2d
    y, expected = (f(x, weight, mask, bias, *geometry.pairs, *tail) for f in functions)
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().sum() == 1


def test_any_number_of_threads_gives_the_same_bits(simd_level, sparse, set_threads, tail):
    geometry = Geometry(70, 20, 31, (9, 11))
    arguments = geometry.arguments(F32, 0.1)
    got = []
    for threads in (1, 2, 5):
        set_threads(threads)
        got.append(all_results(ops.masked_conv2d, geometry, arguments, tail))
    for other in got[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got[0], other, strict=True))


def test_an_empty_batch(path, tail):
    geometry = Geometry(3, 2, 3, (6, 7))
    x, *others = geometry.arguments()
    y, grad_x, grad_weight, grad_bias = all_results(ops.masked_conv2d, geometry, (x[:0], *others), tail)
    assert y.shape == (0, 3, 6 // tail[1], 7 // tail[1])
    assert grad_x.shape == x[:0].shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_a_float_mask_learns_where_it_prunes(path, tail):
    geometry = Geometry(3, 2, 3, (6, 6))
    x, weight, mask, bias = geometry.arguments()
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        m = mask.double().requires_grad_()
        function(x, weight, m, bias, *geometry.pairs, *tail).sin().sum().backward()
        results.append(m.grad)
    assert_close(results[0], results[1], "float64")


def test_transforms_and_batched_gradients(path, tail):
    geometry = Geometry(2, 2, 3, (5, 4))
    x, weight, mask, bias = geometry.arguments()

    def run(function):
        return lambda x, w: function(x, w, mask, bias, *geometry.pairs, *tail).square()

    functions = [run(f) for f in (ops.masked_conv2d, reference.masked_conv2d)]
    for a, b in zip(*(torch.func.jacrev(f, 0)(x, weight) for f in functions), strict=True):
        assert_close(a, b, "float64")
    results = [torch.autograd.functional.jacobian(f, (x, weight), vectorize=True) for f in functions]
    assert_close(results[0][0], results[1][0], "float64")
    assert_close(results[0][1] * mask, results[1][1] * mask, "float64")
    torch._dynamo.reset()
    compiled = torch.compile(functions[0], fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, weight), functions[1](x, weight), "float64")
    stacked = torch.vmap(functions[0], (0, None))(torch.stack([x, -x]), weight)
    assert_close(stacked[1], functions[1](-x, weight), "float64")


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_trace_and_a_mode_see_the_ops(path, tail):
    geometry = Geometry(3, 4, 5, (6, 7))
    x, weight, mask, bias = geometry.arguments()

    def run(x):
        return ops.masked_conv2d(x, weight, mask, bias, *geometry.pairs, *tail)

    traced = torch.jit.trace(run, (x,))
    assert torch.equal(traced(-x), run(-x))
    with FlopCounterMode(display=False), torch.device("meta"):
        assert run(x).device.type == "cpu"


@pytest.mark.parametrize("unpack", [torch.clone, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t])
def test_saved_tensors_through_a_hook(path, tail, unpack):
    geometry = Geometry(3, 4, 5, (6, 7))
    arguments = geometry.arguments()
    expected = all_results(ops.masked_conv2d, geometry, arguments, tail)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        got = all_results(ops.masked_conv2d, geometry, arguments, tail)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["x", "weight"])
def test_a_change_between_forward_and_backward_is_refused(sparse, tail, name):
    geometry = Geometry(3, 4, 5, (6, 7))
    x, weight, mask, bias = geometry.arguments()
    inputs = {"x": x.requires_grad_() * 1, "weight": weight.requires_grad_() * 1}
    y = ops.masked_conv2d(inputs["x"], inputs["weight"], mask, bias, *geometry.pairs, *tail)
    with torch.no_grad():
        inputs[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast(tail):
    geometry = Geometry(3, 4, 5, (6, 7))
    x, weight, mask, bias = geometry.arguments(F32)
    expected = ops.masked_conv2d(x, weight, mask, bias, *geometry.pairs, *tail).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.masked_conv2d(x, weight, mask, bias, *geometry.pairs, *tail), expected)


def test_on_every_device(device, tail):
    geometry = Geometry(20, 8, 6, (10, 9), (3, 3), (2, 1))
    arguments = geometry.arguments(F64, 0.2)
    expected = all_results(reference.masked_conv2d, geometry, arguments, tail)
    expected[2] = expected[2] * arguments[2]
    got = all_results(ops.masked_conv2d, geometry, [t.to(device) for t in arguments], tail)
    for a, b in zip(got, expected, strict=True):
        assert_close(a.cpu(), b, "float64")


X, W, M, B = SMALL.arguments(F32)
WRONG_CALLS = {
    "relu number": (TypeError, "relu", (1, 1)),
    "max_pool bool": (TypeError, "max_pool", (True, True)),
    "max_pool float": (TypeError, "max_pool", (True, 2.0)),
    "max_pool three": (ValueError, "max_pool", (True, 3)),
    "max_pool zero": (ValueError, "max_pool", (True, 0)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, name, arguments = WRONG_CALLS[call]
    with pytest.raises(error, match=f"^{name}: "):
        ops.masked_conv2d(X, W, M, B, *SMALL.pairs, *arguments)


def test_a_pooling_larger_than_the_result():
    with pytest.raises(ValueError, match=r"^max_pool: .*\(1, 4\)"):
        ops.masked_conv2d(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1).bool(), max_pool=2)
