"""masked_linear under torch.compile, torch.func, vmap, autocast and torch.export."""

from __future__ import annotations

import pytest
import torch
from ops.layers import F32, F64, assert_close, layer
from torch.autograd import forward_ad

from pns_fast import ops, reference


def loss_of(function):
    return lambda x, weight, mask, bias: function(x, weight, mask, bias).square().sum()


@pytest.mark.parametrize("n", [None, 2])
@pytest.mark.parametrize("mask_kind", ["bool", "float"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_compile(n, mask_kind, has_bias):
    x, weight, mask, bias = layer(n=n)
    mask = mask.to(F64) if mask_kind == "float" else mask
    torch._dynamo.reset()

    def run(function):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = function(inputs[0], inputs[1], mask, inputs[2] if has_bias else None)
        y.square().sum().backward()
        return [y.detach(), *(t.grad for t in inputs[: 3 if has_bias else 2])]

    compiled = torch.compile(ops.masked_linear, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled), run(ops.masked_linear), strict=True):
        assert_close(a, b, "float64")


def test_torch_compile_of_edge_popup():
    x, weight, _, bias = layer()
    torch._dynamo.reset()

    def loss(scores):
        return ops.masked_linear(x, weight, ops.supermask(scores, 0.5), bias).square().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        scores = weight.sin().requires_grad_()
        function(scores).backward()
        grads.append(scores.grad)
    assert_close(grads[1], grads[0], "float64")


@pytest.mark.parametrize("mask_kind", ["bool", "float"])
def test_torch_func_grad_and_hessian(mask_kind):
    x, weight, mask, bias = layer()
    mask = mask.to(F64) if mask_kind == "float" else mask
    wanted = (0, 1, 3) if mask_kind == "bool" else (0, 1, 2, 3)
    got, expected = (
        torch.func.grad(loss_of(f), wanted)(x, weight, mask, bias) for f in (ops.masked_linear, reference.masked_linear)
    )
    for a, b, at in zip(got, expected, wanted, strict=True):
        # the twin multiplies: it has no gradient at pruned entries either, but 0 * inf elsewhere
        assert_close(a * mask if at == 1 else a, b * mask if at == 1 else b, "float64")
    hessians = [
        torch.func.jacrev(torch.func.grad(loss_of(f), 1), 1)(x, weight, mask, bias)
        for f in (ops.masked_linear, reference.masked_linear)
    ]
    assert_close(hessians[0], hessians[1], "float64")


def test_torch_func_nested_over_a_float_mask():
    x, weight, mask, _ = layer()
    results = []
    for function in (ops.masked_linear, reference.masked_linear):
        for inner in (0, 1):  # the gradient to the mask of the norm of a gradient to x, to weight

            def norm(m, function=function, inner=inner):
                g = torch.func.grad(lambda x, w: function(x, w, m).square().sum(), inner)(x, weight)
                return g.square().sum()

            results.append(torch.func.grad(norm)(mask.to(F64)))
    assert_close(results[0], results[2], "float64")
    assert_close(results[1], results[3], "float64")


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (0, None, None, None), (None, 0, None, None), (None, None, 0, 0)])
def test_vmap(in_dims, n):
    if n is None:
        batched = layer(n=6)
    else:
        batched = [torch.stack(a) for a in zip(*(layer(n=n, seed=i) for i in range(6)), strict=True)]
    arguments = [a if d == 0 else a[0] for a, d in zip(batched, in_dims, strict=True)]
    got, expected = (torch.vmap(f, in_dims)(*arguments) for f in (ops.masked_linear, reference.masked_linear))
    assert_close(got, expected, "float64")
    got, expected = (
        torch.vmap(torch.func.grad(loss_of(f), 1), in_dims)(*arguments)
        for f in (ops.masked_linear, reference.masked_linear)
    )
    assert_close(got, expected, "float64")


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap_outside_of_autograd():
    x, weight, mask, bias = layer(n=6)
    got = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.vmap(ops.masked_linear)(got[0], got[1], mask, got[2]).square().sum().backward()
    expected = [t.clone().requires_grad_() for t in (x, weight, bias)]
    ops.masked_linear(expected[0], expected[1], mask, expected[2]).square().sum().backward()
    for a, b in zip(got, expected, strict=True):
        assert_close(a.grad, b.grad, "float64")


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("dim", [0, 2])
def test_vmap_of_supermask(dim):
    scores = torch.randn(3, 4, 5, dtype=F64, generator=torch.Generator().manual_seed(4))
    upstream = torch.randn(4 if dim == 0 else 3, 5 if dim == 0 else 4, dtype=F64)

    def value(s):
        return (ops.supermask(s, 0.3) * upstream).sum()

    slices = scores.movedim(dim, 0)
    expected = torch.stack([ops.supermask(s, 0.3) for s in slices])
    assert torch.equal(torch.vmap(lambda s: ops.supermask(s, 0.3), dim)(scores), expected)
    assert torch.equal(
        torch.vmap(torch.vmap(lambda s: ops.supermask(s, 0.5)))(scores)[1, 2], ops.supermask(scores[1, 2], 0.5)
    )
    gradients = torch.vmap(torch.func.grad(value), dim)(scores)
    assert torch.equal(gradients, upstream.expand(gradients.shape))
    outer = scores.clone().requires_grad_()
    torch.vmap(value, dim)(outer).sum().backward()
    assert torch.equal(outer.grad.movedim(dim, 0), upstream.expand(gradients.shape))


def test_vmap_sees_what_needs_a_gradient_outside_of_it():
    """Inside vmap a tensor says requires_grad False."""
    x, weight, mask, _ = layer()
    float_masks = torch.stack([mask, ~mask, mask]).to(F64).requires_grad_()
    batches = torch.stack([x, x + 1, x - 1]).requires_grad_()
    for argument, run in (
        (float_masks, lambda m: ops.masked_linear(x, weight, m)),
        (batches, lambda b: ops.masked_linear(b, weight, mask)),
    ):
        got = torch.autograd.grad(torch.vmap(run)(argument).sin().sum(), argument)[0]
        loop = torch.stack([run(a) for a in argument])
        assert_close(got, torch.autograd.grad(loop.sin().sum(), argument)[0], "float64")


def test_autocast_sums_in_float32_and_returns_its_dtype():
    x, weight, mask, bias = layer(dtype=F32)
    linear = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear(x)
        y = ops.masked_linear(half, weight, mask, bias)
        assert ops.masked_linear(x.double(), weight.double(), mask, bias.double()).dtype == F64
        assert torch.ops.pns_fast.masked_linear(half, weight, mask).dtype == torch.bfloat16
    assert half.dtype == y.dtype == torch.bfloat16
    assert torch.equal(y, ops.masked_linear(half.float(), weight, mask, bias).bfloat16())
    y.sum().backward()
    assert linear.weight.grad.dtype == F32


@pytest.mark.parametrize("at", [0, 1, 3])
def test_forward_mode_is_refused_not_ignored(at):
    inputs = list(layer())
    with forward_ad.dual_level():
        inputs[at] = forward_ad.make_dual(inputs[at], torch.ones_like(inputs[at]))
        with pytest.raises(NotImplementedError, match="jvp"):
            ops.masked_linear(*inputs)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, weight, mask, bias = layer(dtype=F32)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return ops.masked_linear(x, self.weight, self.mask, self.bias)


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict):
    module, x = Layer(), layer(dtype=F32)[0]
    exported = torch.export.export(module, (x,), strict=strict)
    assert torch.equal(exported.module()(x), module(x))
