"""FusedSequential: the same numbers, names and hooks as nn.Sequential, in fewer calls."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import pns_fast as pns
from pns_fast.nn import FusedSequential, MaskedConv2d, finalize, get_masks, mask_model, masked_conv2d, set_masks


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


@pytest.fixture
def tails(monkeypatch):
    """The (relu, max_pool) of every call of the op."""
    seen = []

    def spy(*arguments):
        seen.append(arguments[8:])
        return original(*arguments)

    original = masked_conv2d.masked_layer
    monkeypatch.setattr(masked_conv2d, "masked_layer", spy)
    return seen


def masked(*modules, density=0.2):
    model = mask_model(nn.Sequential(*modules))
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {k: torch.rand(m.shape, generator=generator) < density for k, m in get_masks(model).items()})
    return model


def conv(n_in, n_out):
    return nn.Conv2d(n_in, n_out, 3, padding=1)


def images():
    return torch.randn(20, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def both(model, x):
    """Outputs and gradients, fused and module by module."""
    results = []
    for each in (model, nn.Sequential(*model)):
        x_ = x.clone().requires_grad_()
        model.zero_grad()
        y = each(x_)
        y.square().sum().backward()
        results.append([y.detach(), x_.grad, *(p.grad.clone() for p in model.parameters())])
    return results


def test_equals_its_modules_one_by_one(tails):
    model = masked(
        *(conv(2, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 9), nn.ReLU(inplace=True), conv(9, 4)),
        *(nn.MaxPool2d((2, 2), stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    )
    assert type(model) is FusedSequential
    for got, expected in zip(*both(model, images()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert tails == [(True, 2), (True, 1), (False, 2), *[(False, 1)] * 3]


OTHERS = {
    "a window of three": nn.MaxPool2d(3),
    "overlapping": nn.MaxPool2d(2, stride=1),
    "padded": nn.MaxPool2d(2, padding=1),
    "dilated": nn.MaxPool2d(2, dilation=2),
    "ceil mode": nn.MaxPool2d(2, ceil_mode=True),
    "averages": nn.AvgPool2d(2),
    "another activation": nn.GELU(),
    "batch norm": nn.BatchNorm2d(6),
}


@pytest.mark.parametrize("other", OTHERS)
def test_leaves_what_is_not_its_own(tails, other):
    model = masked(conv(2, 6), copy.deepcopy(OTHERS[other]))
    assert type(model) is nn.Sequential
    model = masked(conv(2, 6), copy.deepcopy(OTHERS[other]), conv(6, 2), nn.ReLU())
    for got, expected in zip(*both(model, images()[:, :, 1:]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert tails[:2] == [(False, 1), (True, 1)]


def test_a_pooling_that_gives_indices_is_not_fused():
    model = masked(conv(2, 6), nn.MaxPool2d(2, return_indices=True))
    assert len(model(images())) == 2


@pytest.mark.parametrize("at", [0, 1, 2])
def test_hooks_are_called(tails, at):
    model = masked(conv(2, 6), nn.ReLU(), nn.MaxPool2d(2))
    seen = []
    handle = model[at].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(images())
    assert len(seen) == 1
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(module))
    model(images())
    handle.remove()
    assert seen[1:] == [*model, model]
    model(images())
    assert tails == [(False, 1), (False, 1), (True, 2)]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_forward_that_a_module_was_given_is_called(tails, at):
    model = masked(conv(2, 6), nn.ReLU(), nn.MaxPool2d(2))
    forward = model[at].forward
    model[at].forward = lambda x: forward(x) + 1
    assert torch.equal(model(images()), nn.Sequential(*model)(images()))


def test_subclasses_and_nested_models():
    class Mine(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    model = mask_model(nn.ModuleDict({"a": Mine(conv(2, 6), nn.ReLU()), "b": nn.Sequential(conv(2, 6), nn.ReLU())}))
    assert type(model["a"]) is Mine
    assert type(model["b"]) is FusedSequential
    assert type(finalize(model)["b"]) is nn.Sequential
    assert type(model["b"]) is FusedSequential


def test_names_copies_pickle_and_slices():
    plain = nn.Sequential(conv(2, 6), nn.ReLU(), conv(6, 3))
    model = mask_model(plain)
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    assert isinstance(model, nn.Sequential)
    x = images()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model[:]):
        assert type(other) is FusedSequential
        assert torch.equal(other(x), model(x))
    assert torch.equal(finalize(model)(x), plain(x))


def test_a_single_image_half_precision_and_tracing():
    model = masked(conv(2, 6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 3), nn.ReLU())
    x = images()
    torch.testing.assert_close(model(x[0]), model(x)[0])
    expected = nn.Sequential(*model)(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=1e-5, atol=1e-6)
    half = copy.deepcopy(model).bfloat16()
    assert torch.equal(half(x.bfloat16()), nn.Sequential(*half)(x.bfloat16()))


def test_a_layer_that_is_there_twice_and_gradients_that_are_differentiated():
    layer = conv(2, 2)
    model, x = masked(layer, nn.ReLU(), layer, nn.ReLU(), density=0.6), images().requires_grad_()
    results = []
    for each in (model, nn.Sequential(*model)):
        inputs = [x, *model.parameters()]
        first = torch.autograd.grad(each(x).square().sum(), inputs, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * float(expected.detach().abs().max()))


def test_training_a_vgg_gives_the_same_parameters_fused_and_not():
    model = pns.networks.image_network("vgg-small", 10, 1, width=0.25)
    fused = mask_model(model, pns.prune_module(model, "random", 0.1))
    assert isinstance(fused[0], MaskedConv2d)
    plain = copy.deepcopy(fused)
    plain.__class__ = nn.Sequential
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for each in (fused, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(x), torch.arange(64) % 10).backward()
            optimizer.step()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
