"""masked_conv2d under torch.compile, torch.func, vmap, autocast and torch.export."""

from __future__ import annotations

import pytest
import torch
from ops.convolutions import SMALL, Geometry
from ops.layers import F32, F64, assert_close
from torch.autograd import forward_ad

from pns_fast import ops, reference

PAIRS = SMALL.pairs


def loss_of(function):
    return lambda x, weight, mask, bias: function(x, weight, mask, bias, *PAIRS).square().sum()


@pytest.mark.parametrize("mask_kind", ["bool", "float"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_compile(mask_kind, has_bias):
    x, weight, mask, bias = SMALL.arguments()
    mask = mask.to(F64) if mask_kind == "float" else mask
    torch._dynamo.reset()

    def run(function):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        y = function(inputs[0], inputs[1], mask, inputs[2] if has_bias else None, *PAIRS)
        y.square().sum().backward()
        return [y.detach(), *(t.grad for t in inputs[: 3 if has_bias else 2])]

    compiled = torch.compile(ops.masked_conv2d, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled), run(ops.masked_conv2d), strict=True):
        assert_close(a, b, "float64")


@pytest.mark.parametrize("mask_kind", ["bool", "float"])
def test_torch_func_grad_and_hessian(mask_kind):
    x, weight, mask, bias = SMALL.arguments()
    kept = mask.to(F64) if mask_kind == "float" else mask
    wanted = (0, 1, 3) if mask_kind == "bool" else (0, 1, 2, 3)
    functions = ops.masked_conv2d, reference.masked_conv2d
    got, expected = (torch.func.grad(loss_of(f), wanted)(x, weight, kept, bias) for f in functions)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, "float64")
    hessians = [torch.func.jacrev(torch.func.grad(loss_of(f), 1), 1)(x, weight, kept, bias) for f in functions]
    assert_close(hessians[0], hessians[1], "float64")


def test_torch_func_nested_over_a_float_mask():
    x, weight, mask, _ = SMALL.arguments()
    results = []
    for function in (ops.masked_conv2d, reference.masked_conv2d):
        for inner in (0, 1):  # the gradient to the mask of the norm of a gradient to x, to weight

            def norm(m, function=function, inner=inner):
                g = torch.func.grad(lambda x, w: function(x, w, m, None, *PAIRS).square().sum(), inner)(x, weight)
                return g.square().sum()

            results.append(torch.func.grad(norm)(mask.to(F64)))
    assert_close(results[0], results[2], "float64")
    assert_close(results[1], results[3], "float64")


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (0, None, None, None), (None, 0, None, None), (None, None, 0, 0)])
def test_vmap(in_dims):
    batched = [torch.stack(a) for a in zip(*(SMALL.arguments(seed=i) for i in range(3)), strict=True)]
    arguments = [a if d == 0 else a[0] for a, d in zip(batched, in_dims, strict=True)]
    functions = ops.masked_conv2d, reference.masked_conv2d
    got, expected = (torch.vmap(lambda *a, f=f: f(*a, *PAIRS), in_dims)(*arguments) for f in functions)
    assert_close(got, expected, "float64")
    got, expected = (torch.vmap(torch.func.grad(loss_of(f), 1), in_dims)(*arguments) for f in functions)
    assert_close(got, expected, "float64")


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap_sees_what_needs_a_gradient_outside_of_it():
    """Inside vmap a tensor says requires_grad False."""
    x, weight, mask, _ = SMALL.arguments()
    float_masks = torch.stack([mask, ~mask, mask]).to(F64).requires_grad_()
    batches = torch.stack([x, x + 1, x - 1]).requires_grad_()
    weights = torch.stack([weight, -weight]).requires_grad_()
    for argument, run in (
        (float_masks, lambda m: ops.masked_conv2d(x, weight, m, None, *PAIRS)),
        (batches, lambda b: ops.masked_conv2d(b, weight, mask, None, *PAIRS)),
        (weights, lambda w: ops.masked_conv2d(x, w, mask, None, *PAIRS)),
    ):
        got = torch.autograd.grad(torch.vmap(run)(argument).sin().sum(), argument)[0]
        loop = torch.stack([run(a) for a in argument])
        assert_close(got, torch.autograd.grad(loop.sin().sum(), argument)[0], "float64")


def test_autocast_sums_in_float32_and_returns_its_dtype():
    x, weight, mask, bias = Geometry(3, 4, 5, (6, 7)).arguments(F32)
    conv = torch.nn.Conv2d(4, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        half = conv(x)
        y = ops.masked_conv2d(half, weight, mask, bias)
        assert ops.masked_conv2d(x.double(), weight.double(), mask, bias.double()).dtype == F64
        assert torch.ops.pns_fast.masked_conv2d(half, weight, mask).dtype == torch.bfloat16
    assert half.dtype == y.dtype == torch.bfloat16
    assert torch.equal(y, ops.masked_conv2d(half.float(), weight, mask, bias).bfloat16())
    y.sum().backward()
    assert conv.weight.grad.dtype == F32


@pytest.mark.parametrize("tail", [{}, {"relu": True}], ids=["", "relu"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_forward_mode_is_refused_not_ignored(at, tail):
    inputs = list(SMALL.arguments())
    with forward_ad.dual_level():
        inputs[at] = forward_ad.make_dual(inputs[at], torch.ones_like(inputs[at]))
        with pytest.raises(NotImplementedError, match="jvp"):
            ops.masked_conv2d(*inputs, *PAIRS, **tail)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, weight, mask, bias = SMALL.arguments(F32)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.register_buffer("mask", mask)

    def forward(self, x):
        return ops.masked_conv2d(x, self.weight, self.mask, self.bias, *PAIRS)


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict):
    module, x = Layer(), SMALL.arguments(F32)[0]
    exported = torch.export.export(module, (x,), strict=strict)
    assert torch.equal(exported.module()(x), module(x))
