"""MaskedConv2d: the maths of F.conv2d with a mask, and what torch does with a layer. What it shares with MaskedLinear
is tested there."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pns_fast.nn import MaskedConv2d, keep_pruned, mask_model

OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (1, 2), "dilation": 2, "bias": False},
    {"padding": "same"},
    {"padding": "valid", "stride": (1, 3)},
]


def random_layer(dtype=torch.float64, density=0.4, **options):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    layer = MaskedConv2d(3, 5, (3, 3), dtype=dtype, **options)
    masks = [torch.rand(p.shape, generator=generator) < density for p in layer.parameters()]
    layer.set_mask(*masks)
    return layer


def dense(layer, x):
    bias = None if layer.bias is None else layer.bias * layer.bias_mask
    return F.conv2d(x, layer.weight * layer.weight_mask, bias, layer.stride, layer.padding, layer.dilation)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 9, 8), (3, 9, 8), (0, 3, 9, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_gradients_are_those_of_a_masked_dense_layer(options, shape, dtype):
    layer, twin = (random_layer(dtype, **options) for _ in range(2))
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    rtol, atol = TOLERANCES["float64" if dtype == torch.float64 else "float32_forward"]
    output, expected = layer(x), dense(twin, other)
    torch.testing.assert_close(output, expected, rtol=rtol, atol=atol)
    output.sin().sum().backward()
    expected.sin().sum().backward()
    for ours, theirs in [(x, other), *zip(layer.parameters(), twin.parameters(), strict=True)]:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=10 * rtol, atol=10 * atol)
    assert (layer.weight.grad[~layer.weight_mask] == 0).all()


def test_what_is_pruned_does_not_spread_even_if_it_is_not_finite():
    layer = random_layer()
    with torch.no_grad():
        layer.weight[~layer.weight_mask] = torch.nan
        layer.bias[~layer.bias_mask] = torch.inf
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.finalize()(x))


def test_from_conv2d_copies_and_finalize_goes_back():
    conv = nn.Conv2d(3, 2, 3, stride=2, padding=1)
    before = conv.weight.detach().clone()
    mask = torch.rand(2, 3, 3, 3) < 0.5
    layer = MaskedConv2d.from_conv2d(conv, mask)
    assert type(conv) is nn.Conv2d
    assert layer.weight is not conv.weight
    plain = layer.finalize()
    assert type(plain) is nn.Conv2d
    assert list(plain.state_dict()) == ["weight", "bias"]
    assert torch.equal(plain.weight, before * mask)
    x = torch.randn(4, 3, 7, 7)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-5, atol=1e-6)
    assert layer.density == pytest.approx((int(mask.sum()) + 2) / 56)
    assert repr(layer).startswith("MaskedConv2d(3, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), density=")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_state_dict(copied):
    layer, x = random_layer(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    layer(x).sum().backward()
    assert torch.equal(copied(layer)(x), layer(x))
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask", "bias_mask"]
    other = MaskedConv2d(3, 5, 3, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_dense_convolution(dtype):
    layer = random_layer().to(dtype)
    assert layer.weight_mask.dtype == torch.bool
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    assert torch.equal(layer(x), dense(layer, x))
    layer(x).sum().backward()
    assert (layer.weight.grad[~layer.weight_mask] == 0).all()


def test_autocast_computes_in_its_dtype():
    layer = random_layer(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = nn.Sequential(nn.Conv2d(3, 3, 1), layer)(torch.randn(2, 3, 6, 6))
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_the_meta_device():
    layer = MaskedConv2d(3, 5, 3, device="meta")
    assert layer(torch.empty(2, 3, 6, 6, device="meta")).shape == (2, 5, 4, 4)
    assert "density" not in repr(layer)


def test_compiles_without_a_graph_break():
    layer, twin = random_layer(torch.float32, padding=1), random_layer(torch.float32, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 6, 6)
    output, expected = compiled(x), twin(x)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    layer.set_mask(torch.zeros_like(layer.weight_mask))  # buffers are read at every call
    assert torch.equal(compiled(x), layer(x))


def test_functional_call_and_vmap():
    layer = random_layer()
    weights = torch.randn(3, *layer.weight.shape, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    output = vmap(lambda w: functional_call(layer, {"weight": w}, x))(weights)
    bias = layer.bias * layer.bias_mask
    expected = torch.stack([F.conv2d(x, w * layer.weight_mask, bias) for w in weights])
    torch.testing.assert_close(output, expected)
    ours, theirs = (torch.autograd.grad(t.sin().sum(), weights)[0] for t in (output, expected))
    torch.testing.assert_close(ours, theirs)


def test_training_keeps_what_is_pruned():
    model = mask_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)))
    model[0].set_mask(torch.rand(4, 1, 3, 3) < 0.5)
    before, mask = model[0].weight.detach().clone(), model[0].weight_mask
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    keep_pruned(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 6, 6)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight[~mask], before[~mask])
    assert not torch.equal(model[0].weight[mask], before[mask])


BAD = [
    (lambda: MaskedConv2d(2, 2, 3, groups=2), ValueError, "groups: expected 1, got 2"),
    (lambda: MaskedConv2d(2, 2, 3, padding_mode="reflect"), ValueError, "padding_mode: expected 'zeros'"),
    (lambda: MaskedConv2d(2, 2, 2, padding="same"), ValueError, "padding: expected numbers, 'same' is uneven"),
    (lambda: MaskedConv2d.from_conv2d(nn.Linear(2, 2)), TypeError, "layer: expected a plain nn.Conv2d, got Linear"),
    (lambda: MaskedConv2d.from_conv2d(random_layer()), TypeError, "layer"),
    (lambda: MaskedConv2d.from_conv2d(nn.Conv2d(2, 2, 3, groups=2)), ValueError, "layer: groups: expected 1"),
    (lambda: random_layer().set_mask(torch.ones(5, 3, dtype=torch.bool)), ValueError, "weight_mask: expected shape"),
    (lambda: random_layer()(torch.zeros(2, 4, 6, 6, dtype=torch.float64)), ValueError, "x: expected shape"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
