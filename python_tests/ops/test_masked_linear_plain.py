"""Plain CPU tensors go past torch's dispatcher: who watches or changes the ops still does, and results are the same."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.layers import F32, F64, gradients, layer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pns_fast import ops
from pns_fast.ops import _masked_plain
from pns_fast.ops._library import plain_keys

registered = torch.ops.pns_fast.masked_linear


def sizes():
    return layer(batch=33, n_in=70, n_out=45, dtype=F32, density=0.2)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_it_is_the_registered_op(dtype, density):
    x, weight, mask, bias = layer(batch=33, n_in=70, n_out=45, dtype=dtype, density=density)
    assert torch.equal(ops.masked_linear(x, weight, mask, bias), registered(x, weight, mask, bias))
    assert torch.equal(ops.masked_linear(x, weight, mask), registered(x, weight, mask))
    for got, expected in zip(
        gradients(ops.masked_linear, x, weight, mask, bias), gradients(registered, x, weight, mask, bias), strict=True
    ):
        assert torch.equal(got, expected)


def is_plain(y):
    return type(y.grad_fn).__name__ == "_PlainProductBackward"


def test_plain_tensors_take_the_short_way_and_others_do_not():
    x, weight, mask, bias = sizes()
    weight.requires_grad_()
    assert is_plain(ops.masked_linear(x, weight, mask, bias))
    assert is_plain(ops.masked_linear(x, torch.nn.Parameter(weight), mask))
    assert is_plain(ops.masked_linear(x, weight * 2, mask))
    for others in (
        (x.expand(2, 33, 70), weight, mask, bias),
        (x.mT.contiguous().mT, weight, mask, bias),
        (x, weight, mask.mT.contiguous().mT, bias),
        (x, weight, mask, torch.ones(90)[::2]),
        (x[:0], weight, mask, bias),
        (x, weight, mask.float(), bias),
    ):
        y = ops.masked_linear(*others)
        assert y.grad_fn is not None
        assert not is_plain(y)
        assert torch.equal(y, registered(*others))
    strange = torch.ones(33, 1).as_strided((33, 1), (1, 5))  # contiguous all the same
    assert is_plain(ops.masked_linear(strange, torch.ones(4, 1, requires_grad=True), torch.ones(4, 1).bool()))


def test_a_torch_that_cannot_be_asked_from_c(monkeypatch):
    x, weight, mask, bias = sizes()
    expected = gradients(ops.masked_linear, x, weight, mask, bias)
    monkeypatch.setattr(_masked_plain, "plain_layers", lambda *_: None)  # before torch 2.10
    got = gradients(ops.masked_linear, x, weight, mask, bias)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not is_plain(ops.masked_linear(x, weight.requires_grad_(), mask))


def test_what_was_saved_goes_with_the_graph():
    x, weight, mask, bias = sizes()
    weight.requires_grad_()
    gc.disable()
    try:
        y = ops.masked_linear(x, weight, mask, bias)
        saved = weakref.ref(x)
        del x
        y.sum().backward()
        assert saved() is None  # a backward lets go of it,
        x = torch.randn(33, 70)
        y, saved = ops.masked_linear(x, weight, mask, bias), weakref.ref(x)
        del x, y
        assert saved() is None  # and so does an output that nobody asks for its gradient
    finally:
        gc.enable()


@pytest.mark.parametrize("batch", [30, 70])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.6])
def test_a_large_backward_takes_what_the_forward_kept(simd_level, batch, density):
    x, weight, mask, _ = layer(batch, n_in=600, n_out=500, dtype=F32, density=density)  # kKeptFrom: 2^18 weights
    leaves, upstream = [t.clone().requires_grad_() for t in (x, weight)], torch.randn(batch, 500)
    expected = torch.autograd.grad(registered(leaves[0], leaves[1], mask), leaves, upstream)
    y = ops.masked_linear(leaves[0], leaves[1], mask)
    for _ in range(2):  # the second finds out again
        got = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_large_backward_in_several_threads_at_once():
    x, weight, mask, _ = layer(70, n_in=600, n_out=500, dtype=F32, density=0.1)
    weight.requires_grad_()
    upstream = torch.randn(70, 500)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(30):
            y = ops.masked_linear(x, weight, mask)

            def run(y=y):
                return torch.autograd.grad(y, weight, upstream, retain_graph=True)[0]

            first, *others = [asked.result() for asked in [pool.submit(run) for _ in range(4)]]
            assert all(torch.equal(first, other) for other in others)


def test_a_large_layer_without_samples(simd_level):
    x, weight, mask, bias = (t.requires_grad_(t.is_floating_point()) for t in layer(0, n_in=600, n_out=500, dtype=F32))
    gradients = torch.autograd.grad(ops.masked_linear(x, weight, mask, bias).sum(), (x, weight, bias))
    assert [g.shape for g in gradients] == [(0, 600), (500, 600), (500,)]
    assert not any(g.any() for g in gradients)


def test_a_large_weight_set_past_autograd_between_forward_and_backward():
    x, weight, mask, _ = layer(70, n_in=600, n_out=500, dtype=F32, density=0.1)
    leaves, upstream = [t.clone().requires_grad_() for t in (x, weight)], torch.randn(70, 500)
    expected = torch.autograd.grad(ops.masked_linear(leaves[0], leaves[1], mask), leaves, upstream)
    y = ops.masked_linear(leaves[0], leaves[1], mask)
    leaves[1].data.zero_()
    mask.data.logical_not_()
    got = torch.autograd.grad(y, leaves, upstream)  # of what the forward read, as that of F.linear(x, w * m) is
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_inference_mode():
    x, weight, mask, bias = sizes()
    with torch.inference_mode():
        y = ops.masked_linear(x.clone(), weight, mask, bias)
    assert y.is_inference()
    assert torch.equal(y, registered(x, weight, mask, bias))


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_keys_asked_for_in_inference_mode_are_those_asked_for_outside():
    with torch.inference_mode():
        inside = plain_keys("cpu")
    assert inside == plain_keys("cpu")
    assert len(inside) == 2


@pytest.mark.parametrize("mode", [Ops, Functions])
def test_modes_see_the_ops(mode):
    x, weight, mask, bias = sizes()
    with mode() as forward:
        y = ops.masked_linear(x.requires_grad_(), weight, mask, bias)
    with Ops() as backward:
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert any("masked_product" in name for name in forward.names)
    assert any("masked_backward" in name for name in backward.names)


def test_a_default_device_is_not_the_results():
    x, weight, mask, bias = sizes()
    with torch.device("meta"):
        results = [ops.masked_linear(x, weight, mask, bias), *gradients(ops.masked_linear, x, weight, mask, bias)]
    assert {r.device.type for r in results} == {"cpu"}


class Named(torch.Tensor):
    pass


def test_a_subclass_stays_one():
    x, weight, mask, bias = sizes()
    y = ops.masked_linear(x.as_subclass(Named), weight, mask, bias)
    assert type(y) is Named
    assert torch.equal(y.as_subclass(torch.Tensor), registered(x, weight, mask, bias))


def test_tensors_that_are_computed_when_read():
    x, weight, mask, bias = sizes()
    grad, zero = torch.randn(33, 45), torch._efficientzerotensor(33, 45)
    assert torch.equal(ops.masked_linear(torch._neg_view(x), weight, mask), registered(-x, weight, mask))
    assert torch.equal(ops.masked_linear(x, torch._neg_view(weight), mask), registered(x, -weight, mask))
    zeros = torch._efficientzerotensor(33, 70)
    assert torch.equal(ops.masked_linear(zeros, weight, mask, bias), bias.expand(33, 45))
    x.requires_grad_()
    y = ops.masked_linear(x, weight, mask, bias)
    (negated,) = torch.autograd.grad(y, x, torch._neg_view(grad), retain_graph=True)
    assert torch.equal(negated, torch.autograd.grad(y, x, -grad, retain_graph=True)[0])
    assert not torch.autograd.grad(y, x, zero)[0].any()


def test_gradients_of_a_batch_of_upstream_gradients():
    x, weight, mask, bias = sizes()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = ops.masked_linear(x, weight, mask, bias)
    upstream = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, leaves, upstream, is_grads_batched=True, retain_graph=True)
    for at in range(3):
        alone = torch.autograd.grad(y, leaves, upstream[at], retain_graph=True)
        assert all(torch.equal(b[at], a) for b, a in zip(batched, alone, strict=True))


@pytest.mark.parametrize(
    "unpack",
    [torch.clone, lambda t: t.mT.contiguous().mT, lambda t: t.double().to(t.dtype)],
    ids=["copy", "columns", "cast"],
)
def test_saved_tensors_through_a_hook(unpack):
    x, weight, mask, bias = sizes()
    expected = gradients(ops.masked_linear, x, weight, mask, bias)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        got = gradients(ops.masked_linear, x, weight, mask, bias)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["x", "weight", "mask"])
def test_a_change_between_forward_and_backward_is_refused(name):
    x, weight, mask, _ = sizes()
    inputs = {"x": x.clone().requires_grad_() * 1, "weight": weight.clone().requires_grad_() * 1, "mask": mask}
    y = ops.masked_linear(**inputs)
    with torch.no_grad():
        inputs[name].logical_not_() if name == "mask" else inputs[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_wrong_upstream_gradient_is_refused():
    x, weight, mask, bias = sizes()
    y = ops.masked_linear(x.requires_grad_(), weight, mask, bias)
    for wrong in (torch.ones(1, 45), torch.ones(33, 45, dtype=F64), torch.ones(33 * 45)):
        with torch.no_grad(), pytest.raises((TypeError, ValueError), match="expected"):
            y.grad_fn.apply(wrong)  # past the engine, which checks shapes


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_a_trace_has_the_op():
    x, weight, mask, bias = sizes()
    traced = torch.jit.trace(lambda t: ops.masked_linear(t, weight, mask, bias), (x,))
    assert torch.equal(traced(-x), registered(-x, weight, mask, bias))
