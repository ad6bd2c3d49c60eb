"""SupermaskConv2d: edge-popup's forward and straight-through backward pass. What it shares with SupermaskLinear is
tested there."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pns_fast.nn import SupermaskConv2d, SupermaskLinear, finalize, get_masks


def make_layer(keep=0.3, **options):
    torch.manual_seed(0)
    layer = SupermaskConv2d(3, 5, 3, keep, dtype=torch.float64, **options)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias_scores, -1, 1)
    return layer


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"stride": 2, "padding": (1, 0), "dilation": (1, 2)}], ids=str
)
def test_forward_and_the_gradient_straight_through(options):
    layer, x = make_layer(**options), torch.randn(4, 3, 8, 9, dtype=torch.float64)
    masks = layer.masks()
    assert masks["weight"].sum() == 41  # ceil(0.3 * 135)
    assert layer.weight_scores[masks["weight"]].abs().min() >= layer.weight_scores[~masks["weight"]].abs().max()
    w = (layer.weight * masks["weight"]).requires_grad_()
    b = None if layer.bias is None else (layer.bias * masks["bias"]).requires_grad_()
    output = layer(x)
    expected = F.conv2d(x, w, b, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(output, expected)
    output.sin().sum().backward()
    expected.sin().sum().backward()
    sign = torch.where(layer.weight_scores < 0, -1.0, 1.0)
    torch.testing.assert_close(layer.weight_scores.grad, w.grad * layer.weight * sign)
    if b is not None:
        sign = torch.where(layer.bias_scores < 0, -1.0, 1.0)
        torch.testing.assert_close(layer.bias_scores.grad, b.grad * layer.bias * sign)
    assert layer.weight.grad is None


def test_it_starts_as_the_linear_layer_does():
    layer = SupermaskConv2d(16, 64, 5, 0.5)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    assert layer.weight_scores.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=0.01)
    assert not layer.bias_scores.any()
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["weight_scores", "bias_scores"]


def test_training_finds_a_subnet():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 1, 6, 6, generator=generator)
    y = (x[:, 0, :3].sum((1, 2)) > x[:, 0, 3:].sum((1, 2))).long()
    torch.manual_seed(0)
    model = nn.Sequential(SupermaskConv2d(1, 16, 3, 0.3), nn.ReLU(), nn.Flatten(), SupermaskLinear(256, 2, 0.3))
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(model[0].weight, before)
    plain = finalize(model)
    assert type(plain[0]) is nn.Conv2d
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert plain[0].weight.requires_grad
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(plain[0].weight != 0, get_masks(model)["0.weight"])


def test_from_conv2d_copies_and_state_dict():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    layer = SupermaskConv2d.from_conv2d(conv, 0.5)
    assert type(conv) is nn.Conv2d
    assert torch.equal(layer.weight, conv.weight)
    x = torch.randn(2, 3, 6, 6)
    other = SupermaskConv2d(3, 5, 3, 0.5, padding=1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer.keep = 0.0
    assert layer.density == 0.0
    assert not layer(x).any()


BAD = [
    (lambda: SupermaskConv2d(2, 2, 3, 1), TypeError, "keep: expected a float"),
    (lambda: SupermaskConv2d(2, 2, 3, 1.5), ValueError, "keep: expected a fraction"),
    (lambda: SupermaskConv2d(2, 2, 3, 0.5, groups=2), ValueError, "groups: expected 1"),
    (lambda: SupermaskConv2d.from_conv2d(nn.Linear(2, 2), 0.5), TypeError, "layer: expected a plain nn.Conv2d"),
    (lambda: SupermaskConv2d.from_conv2d(nn.Conv2d(2, 2, 1, groups=2), 0.5), ValueError, "layer: groups"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
