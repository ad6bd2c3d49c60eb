"""Image networks: shapes, initial parameters, and that they can be planted."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import pns_fast as pns
from pns_fast.networks import image_network, image_network_names, least_side

NAMES = image_network_names()


def conv(n_in, n_out, kernel=3):
    return n_in * n_out * kernel**2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_shapes(name, in_channels):
    model = image_network(name, n_classes=7, in_channels=in_channels, width=0.125)
    side = least_side(name)
    assert model.eval()(torch.zeros(2, in_channels, side, side)).shape == (2, 7)
    assert model(torch.zeros(2, in_channels, 40, 40)).shape == (2, 7)


def test_numbers_of_parameters():
    channels = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    vgg16 = sum(conv(a, b) + b for a, b in itertools.pairwise(channels)) + 512 * 10 + 10
    counts = {n: sum(p.numel() for p in image_network(n).parameters()) for n in ("vgg16", "resnet20")}
    # option B: 1 x 1 convolutions with batch norm where shapes change
    stages = [(16, 16)] * 6 + [(16, 32)] + [(32, 32)] * 5 + [(32, 64)] + [(64, 64)] * 5
    resnet20 = conv(3, 16) + 32 + sum(conv(a, b) + 2 * b for a, b in stages) + 64 * 10 + 10
    resnet20 += conv(16, 32, 1) + 2 * 32 + conv(32, 64, 1) + 2 * 64
    assert counts == {"vgg16": vgg16, "resnet20": resnet20}
    assert vgg16 == 14_719_818


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_network(name):
    first, again, other = (image_network(name, seed=s, width=0.125).state_dict() for s in (4, 4, 5))
    assert all(torch.equal(t, again[k]) for k, t in first.items())
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initial_variances(batch_norm):
    model, product = image_network("vgg-small", seed=1, batch_norm=batch_norm), 1.0
    biases = []
    for layer in (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        wanted = 2 / layer.weight[0].numel()
        product *= wanted
        n = layer.weight.numel()
        # of n normal numbers: five standard deviations of their sample variance
        assert float(layer.weight.detach().var()) == pytest.approx(wanted, rel=5 * math.sqrt(2 / n))
        if layer.bias is not None:
            biases.append(layer.bias.detach() / math.sqrt(product))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == (6 if batch_norm else 0)
    assert all((m.weight == 1).all() and m.bias.std() > 0 for m in norms)
    flat = torch.cat(biases)
    assert len(flat) == (10 if batch_norm else 458)
    assert bool((flat != 0).all())
    assert float(flat.var()) == pytest.approx(1.0, rel=5 * math.sqrt(2 / len(flat)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_norm", [None, True])
def test_a_ticket_is_planted_exactly(name, batch_norm):
    target = image_network(name, in_channels=1, seed=1, width=0.125, batch_norm=batch_norm).eval()
    generator = torch.Generator().manual_seed(0)
    masks = pns.prune_module(target, "random", 0.2, seed=3)
    with torch.no_grad():
        for parameter, mask in ((target.get_parameter(n), m) for n, m in masks.items()):
            parameter.mul_(mask)
    planted = pns.plant_module(target, image_network(name, in_channels=1, seed=2, width=0.25, batch_norm=batch_norm))
    x = torch.randn(8, 1, 32, 32, generator=generator)
    wanted = target(x).detach()
    assert wanted.abs().max() > 0
    assert float((planted.ticket_forward(x) - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "vgg19"}, ValueError, "name: expected one of vgg-small, vgg11"),
        ({"name": 16}, TypeError, "name: expected a string"),
        ({"name": "vgg16", "n_classes": 0}, ValueError, "n_classes: expected at least 1, got 0"),
        ({"name": "vgg16", "in_channels": 1.0}, TypeError, "in_channels: expected an int"),
        ({"name": "resnet20", "batch_norm": False}, ValueError, "batch_norm: resnet20 needs it"),
        ({"name": "vgg16", "batch_norm": 1}, TypeError, "batch_norm: expected a bool or None"),
        ({"name": "vgg16", "width": 0}, ValueError, "width: expected a finite number > 0"),
        ({"name": "vgg-small", "seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        image_network(**arguments)
