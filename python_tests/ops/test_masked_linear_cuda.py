"""masked_linear on CUDA, each path against the twin in float64 on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from ops.layers import F32, F64, assert_close, layer
from ops.streams import on_a_busy_stream
from ops.test_masked_linear import WRONG_CALLS

from pns_fast import ops, reference
from pns_fast.ops import _masked_cuda

pytestmark = pytest.mark.gpu

ALL = {"FEWEST_WEIGHTS": 0, "INDEXED_BELOW": 2.0, "most_kept": lambda *sizes: 1 << 40}
NONE = {"most_kept": lambda *sizes: -1}
PATHS = {
    "sparse": ALL | {"PACK_ABOVE": 1 << 40},
    "packed": ALL | {"PACK_ABOVE": -1},
    "dense": NONE,
    "select": NONE
    | {  # else in graphs only
        "FEWEST_WEIGHTS": 0,
        "dense_linear": lambda x, weight, mask, bias: _masked_cuda._linear(x, _masked_cuda.kept_of(weight, mask), bias),
    },
}
two_paths = pytest.mark.parametrize("path", ["sparse", "dense"], indirect=True)
three_paths = pytest.mark.parametrize("path", ["sparse", "packed", "dense"], indirect=True)
dense_paths = pytest.mark.parametrize("path", ["dense", "select"], indirect=True)


def take(monkeypatch, path):
    _masked_cuda.clear_mask_indices()
    for name, value in PATHS[path].items():
        monkeypatch.setattr(_masked_cuda, name, value)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Every path, each forced for one test."""
    take(monkeypatch, request.param)
    yield request.param
    _masked_cuda.clear_mask_indices()


@pytest.fixture(params=["sparse", "packed"])
def sparse_path(request, monkeypatch):
    take(monkeypatch, request.param)
    yield request.param
    _masked_cuda.clear_mask_indices()


def on(device, tensors, dtype=None):
    """On the device, floats in ``dtype``."""
    return [t.to(device, dtype if t.is_floating_point() else None) for t in tensors]


def results(function, x, weight, mask, bias, upstream):
    """The output and the three gradients."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    y = function(x, weight, mask, bias)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), upstream)]


def arguments_of(*sizes, dtype=F32, density=0.5, n=None, seed=0):
    """(x, weight, mask, bias, upstream)"""
    arguments = layer(*sizes, n, dtype, density, seed)
    upstream = layer(sizes[0], sizes[2], 1, n, dtype, seed=seed + 1)[0]
    return *arguments, upstream


def assert_all_close(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert_close(a.cpu().double(), b.cpu().double(), tolerance)


def twin(arguments):
    return results(reference.masked_linear, *on("cpu", arguments, F64))


LAYERS = {  # (batch, n_in, n_out), density, networks: a last panel, tile, segment and chunk that are not full
    "one": ((1, 1, 1), 1.0, None),
    "small": ((33, 193, 70), 0.03, None),
    "networks": ((130, 400, 33), 0.3, 3),
    "empty mask": ((33, 193, 70), 0.0, 3),
    "full mask": ((257, 40, 600), 1.0, None),
    "two panels": ((300, 1700, 130), 0.03, 2),
    "two panels back": ((64, 60, 1600), 0.5, None),
}


@pytest.mark.sanitize
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_twin(cuda, path, name):
    sizes, density, n = LAYERS[name]
    arguments = arguments_of(*sizes, density=density, n=n)
    got = results(ops.masked_linear, *on(cuda, arguments))
    assert all(t.device == cuda for t in got)
    assert_all_close(got, twin(arguments), "float32_gradient")
    assert bool((got[2].cpu()[~arguments[2]] == 0).all())


@dense_paths  # float64 takes no other
def test_float64(cuda, path):
    arguments = arguments_of(33, 193, 70, dtype=F64, density=0.1)
    assert_all_close(results(ops.masked_linear, *on(cuda, arguments)), twin(arguments), "float64")


@two_paths
def test_samples_of_any_shape(cuda, path):
    arguments = arguments_of(60, 70, 40)
    x, weight, mask, bias, upstream = on(cuda, arguments)
    together = results(ops.masked_linear, x, weight, mask, bias, upstream)
    got = results(ops.masked_linear, x.view(3, 20, 70), weight, mask, bias, upstream.view(3, 20, 40))
    for a, b in zip(got, together, strict=True):
        assert_close(a.view(b.shape), b, "float32_gradient")
    assert_close(ops.masked_linear(x[0], weight, mask, bias), together[0][0], "float32_forward")


@pytest.fixture
def products(monkeypatch):
    """How many sparse forward products were launched: a list of as many entries."""
    launched, launch = [], _masked_cuda.sparse_product
    _masked_cuda.clear_mask_indices()
    monkeypatch.setattr(_masked_cuda, "sparse_product", lambda *args: launched.append(1) or launch(*args))
    yield launched
    _masked_cuda.clear_mask_indices()


@pytest.mark.parametrize(
    ("width", "density", "is_sparse"), [(1024, 0.02, False), (4096, 0.02, True), (4096, 0.1, True), (4096, 0.5, False)]
)
def test_paths_as_they_are_chosen(cuda, products, width, density, is_sparse):
    arguments = on(cuda, arguments_of(256, width, width, density=density))
    got = results(ops.masked_linear, *arguments)
    assert bool(products) == is_sparse
    assert_all_close(got, results(reference.masked_linear, *on(cuda, arguments, F64)), "float32_gradient")
    index = _masked_cuda.mask_index(arguments[2])
    assert index.kept == int(arguments[2].sum())
    assert bool(index.tensors) == (density < _masked_cuda.INDEXED_BELOW)


@pytest.mark.parametrize(("density", "is_sparse"), [(0.1, True), (0.5, False)])
def test_a_graph_takes_the_sparse_path_sooner(cuda, products, density, is_sparse):
    """Its mask is indexed in the warm-up, which itself is dense."""
    arguments = on(cuda, arguments_of(256, 1024, 1024, density=density))
    graph, got = captured(ops.masked_linear, arguments)
    assert bool(products) == is_sparse
    graph.replay()
    assert_all_close(got, results(reference.masked_linear, *on(cuda, arguments, F64)), "float32_gradient")


def captured(function, arguments):
    """(graph, results) after a warm-up of three calls, which load kernels and make cuBLAS's workspaces."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(function, *arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = results(function, *arguments)
    return graph, got


@dense_paths  # float64 takes no other
@pytest.mark.parametrize(("n", "mask_kind"), [(None, "bool"), (2, "float"), (2, "float with gradient")])
def test_gradcheck_and_gradgradcheck(cuda, path, n, mask_kind):
    x, weight, mask, bias = on(cuda, layer(batch=3, n_in=4, n_out=3, n=n))
    x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
    if mask_kind != "bool":
        values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(cuda) + 0.3
        mask = values if mask_kind == "float with gradient" else values * mask
        mask.requires_grad_(mask_kind == "float with gradient")
    fast = {"fast_mode": n is not None}  # a random direction instead of every entry
    assert torch.autograd.gradcheck(ops.masked_linear, (x, weight, mask, bias), **fast)
    assert torch.autograd.gradgradcheck(ops.masked_linear, (x, weight, mask, bias), **fast)


def test_a_batch_of_upstream_gradients(cuda, path):
    x, weight, mask, bias, upstream = on(cuda, arguments_of(40, 30, 20))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = ops.masked_linear(x, weight, mask, bias)
    batch = torch.stack([upstream, -2 * upstream])
    got = torch.autograd.grad(y, (x, weight), batch, retain_graph=True, is_grads_batched=True)
    for both, one in zip(got, torch.autograd.grad(y, (x, weight), upstream), strict=True):
        assert_close(both, torch.stack([one, -2 * one]), "float32_gradient")


def test_second_derivatives(cuda, path):
    """A Hessian times a vector through two layers, as GraSP takes it."""
    x, weight, mask, bias = layer(40, 50, 50, None, F64, 0.3)

    def product(function, x, weight, mask, bias):
        w = weight.clone().requires_grad_()
        hidden = function(x, w, mask, bias).tanh()
        value = function(hidden, w, mask, bias).square().mean()
        (g,) = torch.autograd.grad(value, w, create_graph=True)
        return torch.autograd.grad((g * weight.cos()).sum(), w)[0]

    got = product(ops.masked_linear, *on(cuda, (x, weight, mask, bias), F32))
    expected = product(reference.masked_linear, x, weight, mask, bias) * mask
    assert_close(got.cpu().double(), expected, "scores_float32")


@pytest.mark.parametrize("mask_kind", ["bool", "float"])
def test_what_is_pruned_is_not_read(cuda, path, mask_kind):
    x, weight, mask, bias, upstream = on(cuda, arguments_of(70, 190, 23, n=2))
    given = mask if mask_kind == "bool" else mask.to(F32)
    bad = torch.where(torch.arange(190, device=cuda) % 2 == 0, math.inf, math.nan)
    clean, dirty = (
        results(ops.masked_linear, x, w, given, bias, upstream) for w in (weight, torch.where(mask, weight, bad))
    )
    compared = range(4) if mask_kind == "bool" else (0, 1, 3)  # a float mask multiplies the gradient by itself
    assert all(torch.equal(clean[i], dirty[i]) for i in compared)


def test_an_infinite_input_on_a_pruned_column_does_not_spread(cuda, sparse_path):
    x, weight, mask, _ = on(cuda, layer(40, 50, 24, None, F32, 0.2))
    x[:, 0] = x[:, 49] = math.inf
    mask[:, 0] = mask[:, 49] = False
    assert bool(torch.isfinite(ops.masked_linear(x, weight, mask)).all())


CHANGES = {
    "in place": lambda mask: mask.logical_not_(),
    "one entry": lambda mask: mask.__setitem__((2, 3), not bool(mask[2, 3])),
    "copy": lambda mask: mask.copy_(torch.rand(mask.shape, device=mask.device) < 0.5),
    "by a view": lambda mask: mask[1:3].zero_(),
}


@two_paths
def test_a_changed_mask_is_noticed(cuda, path):
    x, weight, mask, bias, upstream = on(cuda, arguments_of(40, 67, 9, density=0.1))
    results(ops.masked_linear, x, weight, mask, bias, upstream)
    for change in CHANGES.values():
        change(mask)
        got = results(ops.masked_linear, x, weight, mask, bias, upstream)
        expected = results(ops.masked_linear, x, weight, mask.clone(), bias, upstream)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("path", ["sparse"], indirect=True)
def test_masks_that_come_and_go(cuda, path):
    """The next mask lies where the last one did, and has the same version."""
    x, weight, _, bias = layer(40, 40, 30, None, F32)
    for i in range(15):
        mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(i)) < 0.05 * (i % 20)
        given = on(cuda, (x, weight, mask, bias))
        assert_all_close(
            [ops.masked_linear(*given)], [reference.masked_linear(x, weight, mask, bias)], "float32_forward"
        )
        del given


@pytest.mark.parametrize("path", ["sparse"], indirect=True)
def test_indices_are_bounded(cuda, path, monkeypatch):
    monkeypatch.setattr(_masked_cuda, "MOST_INDICES", 5)
    x, weight, mask, bias = on(cuda, layer(40, 40, 30, None, F32))
    masks = [mask.clone() for _ in range(12)]
    for m in masks:
        ops.masked_linear(x, weight, m, bias)
    assert len(_masked_cuda._indices) == 5


@pytest.mark.parametrize("path", ["sparse"], indirect=True)
def test_no_index_for_a_mask_of_one_use(cuda, path):
    x, weight, mask, bias = on(cuda, layer(40, 40, 30, None, F32))
    for needs_grad in (False, True):
        learned = mask.to(F32).requires_grad_(needs_grad)
        ops.masked_linear(x, weight.requires_grad_(), learned, bias).sum().backward()
    assert all(not index.tensors for index in _masked_cuda._indices.values())


def test_bitwise_repeatable_and_the_same_alone(cuda, sparse_path):
    arguments = on(cuda, arguments_of(150, 300, 67, density=0.1, n=4))
    together = results(ops.masked_linear, *arguments)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(results(ops.masked_linear, *arguments), together, strict=True))
    for i in range(4):
        alone = results(ops.masked_linear, *(a[i] for a in arguments))
        assert all(torch.equal(a, b[i]) for a, b in zip(alone[:3], together, strict=False))
    few = ops.masked_linear(arguments[0][:, :40], *arguments[1:4])
    assert torch.equal(few, together[0][:, :40])  # a sample's output is the same in every batch


def test_inputs_are_not_changed_and_gradients_alone_are_the_same(cuda, path):
    x, weight, mask, bias, upstream = arguments = on(cuda, arguments_of(70, 150, 20, density=0.1))
    before = [a.clone() for a in arguments]
    together = results(ops.masked_linear, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
    for i in range(3):
        inputs = [x.clone(), weight.clone(), bias.clone()]
        inputs[i].requires_grad_()
        y = ops.masked_linear(inputs[0], inputs[1], mask, inputs[2])
        assert torch.equal(torch.autograd.grad(y, inputs[i], upstream)[0], together[i + 1])


@pytest.mark.sanitize
def test_non_contiguous(cuda, path):
    x, weight, mask, bias = on(cuda, layer(66, 20, 18, 2, F32))
    views = (x.transpose(1, 2)[:, ::2].transpose(1, 2), weight[:, ::3, ::2], mask[:, ::3, ::2], bias[:, ::3])
    upstream = torch.randn(2, 6, 66, generator=torch.Generator().manual_seed(5)).to(cuda).mT
    copies = [v.contiguous() for v in (*views, upstream)]
    for a, b in zip(results(ops.masked_linear, *views, upstream), results(ops.masked_linear, *copies), strict=True):
        assert_close(a, b, "float32_forward")
    odd = (mask.to(torch.uint8) * 2).view(torch.bool)  # bytes other than one
    assert torch.equal(ops.masked_linear(x, weight, odd, bias), ops.masked_linear(x, weight, mask, bias))


@two_paths
@pytest.mark.parametrize("n", [None, 2, 0])
def test_empty(cuda, path, n):
    for batch, n_in, n_out in ((0, 4, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)):
        x, weight, mask, bias = on(cuda, layer(batch, n_in, n_out, n, F32))
        y = ops.masked_linear(x.requires_grad_(), weight.requires_grad_(), mask, bias.requires_grad_())
        assert y.shape == (*(() if n is None else (n,)), batch, n_out)
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert bool((weight.grad == 0).all())
        assert torch.equal(bias.grad, torch.full_like(bias, batch))


@dense_paths  # nor do these
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(cuda, path, dtype):
    arguments = arguments_of(70, 190, 23, density=0.3, n=2)
    halves = on("cpu", arguments, dtype)
    got = results(ops.masked_linear, *on(cuda, halves))
    assert all(t.dtype == dtype for t in got)
    assert_all_close(got, twin(halves), str(dtype).removeprefix("torch."))


@two_paths
def test_autocast_sums_in_float32_and_returns_its_dtype(cuda, path):
    x, weight, mask, bias = on(cuda, layer(40, 67, 9, None, F32))
    weight.requires_grad_()
    with torch.autocast(cuda.type, torch.bfloat16):
        y = ops.masked_linear(x.bfloat16(), weight, mask, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, ops.masked_linear(x.bfloat16().float(), weight, mask, bias).bfloat16())
    y.sum().backward()
    assert weight.grad.dtype == F32


def raw(x, weight, mask, upstream):
    return [
        torch.ops.pns_fast.masked_product(x, weight, mask, None, False),
        torch.ops.pns_fast.masked_product(upstream, weight, mask, None, True),
        torch.ops.pns_fast.masked_outer(upstream, x, mask),
        *torch.ops.pns_fast.masked_backward(upstream, x, weight, mask, [True, True, False])[:2],
    ]


@three_paths
@pytest.mark.parametrize("n", [None, 3])
def test_registered_products(cuda, path, n):
    x, weight, mask, _, upstream = arguments_of(65, 230, 40, density=0.1, n=n)
    got = raw(*on(cuda, (x, weight, mask, upstream)))
    w = (weight * mask).double()
    expected = [x.double() @ w.mT, upstream.double() @ w, mask * (upstream.double().mT @ x.double())]
    assert_all_close(got, [*expected, *expected[1:]], "float32_gradient")


@two_paths
def test_opcheck(cuda, path):
    x, weight, mask, bias, upstream = on(cuda, arguments_of(5, 6, 7))
    torch.library.opcheck(torch.ops.pns_fast.masked_product.default, (x, weight, mask, bias, False))
    torch.library.opcheck(torch.ops.pns_fast.masked_outer.default, (upstream, x, mask))
    torch.library.opcheck(torch.ops.pns_fast.masked_backward.default, (upstream, x, weight, mask, [True, True, False]))
    inputs = (x.requires_grad_(), weight.requires_grad_(), mask, bias.requires_grad_())
    torch.library.opcheck(torch.ops.pns_fast.masked_linear.default, inputs)


@pytest.mark.parametrize(
    ("path", "mask_kind"), [("sparse", "bool"), ("sparse", "float"), ("dense", "bool")], indirect=["path"]
)
def test_torch_compile_and_vmap(cuda, path, mask_kind):
    x, weight, mask, bias, upstream = on(cuda, arguments_of(40, 30, 20, n=3))
    mask = mask.to(F32) if mask_kind == "float" else mask
    torch._dynamo.reset()
    compiled = torch.compile(ops.masked_linear, fullgraph=True, backend="aot_eager")
    expected = results(ops.masked_linear, x, weight, mask, bias, upstream)
    for a, b in zip(results(compiled, x, weight, mask, bias, upstream), expected, strict=True):
        assert_close(a, b, "float32_gradient")
    got = results(torch.vmap(ops.masked_linear), x, weight, mask, bias, upstream)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, "float32_gradient")


@two_paths
def test_wrong_calls(cuda, path):
    moved = {
        name: (error, argument, [t.to(cuda) if isinstance(t, torch.Tensor) else t for t in arguments])
        for name, (error, argument, arguments) in WRONG_CALLS.items()
        if name != "x half"  # which is right here
    }
    x, weight, mask, bias = on(cuda, layer(5, 4, 3, None, F32))
    moved["mask on the CPU"] = (ValueError, "mask", (x, weight, mask.cpu()))
    moved["weight on the CPU"] = (ValueError, "weight", (x, weight.cpu(), mask))
    moved["bias on the CPU"] = (ValueError, "bias", (x, weight, mask, bias.cpu()))
    for error, argument, arguments in moved.values():
        with pytest.raises(error, match=f"{argument}: "):
            ops.masked_linear(*arguments)


@three_paths
def test_runs_on_the_current_stream(cuda, path):
    arguments = on(cuda, arguments_of(64, 300, 70, density=0.1))
    expected = results(ops.masked_linear, *arguments)
    got = on_a_busy_stream(arguments[0], lambda late: results(ops.masked_linear, late, *arguments[1:]))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, "float32_gradient")


@three_paths
def test_a_known_mask_waits_for_nothing(cuda, path):
    arguments = on(cuda, arguments_of(64, 300, 70, density=0.1))
    results(ops.masked_linear, *arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(ops.masked_linear, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_in_a_graph(cuda, path):
    x, weight, mask, bias, upstream = arguments = on(cuda, arguments_of(64, 300, 70, density=0.1))
    graph, got = captured(ops.masked_linear, arguments)
    for seed in range(2):
        new = arguments_of(64, 300, 70, seed=seed + 7)
        for t, value in zip((x, weight, bias, upstream), (new[0], new[1], new[3], new[4]), strict=True):
            t.copy_(value)
        graph.replay()
        assert_all_close(got, twin((new[0], new[1], mask.cpu(), new[3], new[4])), "float32_gradient")


@pytest.mark.parametrize("path", ["sparse"], indirect=True)
def test_an_unknown_mask_is_captured_dense(cuda, path):
    arguments = on(cuda, arguments_of(64, 300, 70, density=0.1))
    mask = arguments[2].clone()

    def with_a_new_mask(x, weight, _, bias):
        return ops.masked_linear(x, weight, mask if torch.cuda.is_current_stream_capturing() else mask.clone(), bias)

    graph, got = captured(with_a_new_mask, arguments)
    graph.replay()
    assert_all_close(got, twin(on("cpu", arguments)), "float32_gradient")


@pytest.mark.parametrize("path", ["sparse"], indirect=True)
def test_a_graph_of_torch_compile_sees_the_mask_change(cuda, path):
    x, weight, mask, bias, _ = on(cuda, arguments_of(64, 300, 70, density=0.1))
    torch._dynamo.reset()
    compiled = torch.compile(ops.masked_linear, fullgraph=True, backend="cudagraphs")
    with torch.no_grad():
        for _ in range(4):  # the first are a warm-up
            compiled(x, weight, mask, bias)
        mask.logical_not_()
        got, expected = compiled(x, weight, mask, bias), ops.masked_linear(x, weight, mask, bias)
    assert_close(got, expected, "float32_gradient")


@two_paths
def test_every_device_and_the_current_one_stays(cuda, path):
    arguments = arguments_of(64, 300, 70, density=0.1)
    expected = twin(arguments)
    for index in range(torch.cuda.device_count()):
        assert_all_close(results(ops.masked_linear, *on(f"cuda:{index}", arguments)), expected, "float32_gradient")
        assert torch.cuda.current_device() == cuda.index
