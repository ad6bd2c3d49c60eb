"""FusedSequential over linear layers: one step of autograd for all of them, the same numbers."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from ops.layers import F32, F64, assert_close
from torch import nn
from torch.autograd import forward_ad

from pns_fast.nn import FusedSequential, get_masks, mask_model, set_masks


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    set_threads(1)


def network(*widths, density=0.2, last=(), dtype=F32):
    """Masked linear layers with ReLUs between them, and ``last`` behind."""
    torch.manual_seed(0)
    modules = []
    for n_in, n_out in pairwise(widths):
        modules += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = mask_model(nn.Sequential(*modules[:-1], *last).to(dtype))
    set_masks(model, {k: torch.rand(m.shape) < density for k, m in get_masks(model).items()})
    return model


def batch(n, n_in, dtype=F32):
    return torch.randn(n, n_in, generator=torch.Generator().manual_seed(1), dtype=dtype)


def one_by_one(model):
    return nn.Sequential(*model)


def is_chain(y):
    return type(y.grad_fn).__name__ == "_ChainBackward"


def all_gradients(model, x):
    """Output, and the gradients of input and parameters that want one, of a non-linear function of the output."""
    y = model(x)
    wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad((y.sin() + 0.1).square().sum(), wanted)]


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("density", [0.1, 0.8])
@pytest.mark.parametrize("last", [(), (nn.ReLU(),)], ids=["", "relu"])
def test_equals_its_modules_one_by_one(simd_level, dtype, density, last):
    model = network(7, 70, 45, 3, density=density, last=last, dtype=dtype)
    assert type(model) is FusedSequential
    x = batch(33, 7, dtype).requires_grad_()
    assert is_chain(model(x))
    for got, expected in zip(all_gradients(model, x), all_gradients(one_by_one(model), x), strict=True):
        assert torch.equal(got, expected)


def test_several_threads(set_threads):
    model, x = network(300, 500, 400), batch(256, 300)
    expected = all_gradients(one_by_one(model), x)
    set_threads(2)
    assert all(torch.equal(got, alone) for got, alone in zip(all_gradients(model, x), expected, strict=True))


@pytest.mark.parametrize("part", [slice(4), slice(2), slice(1, 3), slice(1, 4)])
def test_layers_without_biases_and_relus(part):
    plain = nn.Sequential(nn.Linear(5, 4, False), nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2, False))[part]
    model, x = mask_model(plain), batch(3, plain[0].in_features).requires_grad_()
    assert is_chain(model(x))
    for got, expected in zip(all_gradients(model, x), all_gradients(plain, x), strict=True):
        assert_close(got, expected, "float32_gradient")


def test_pruned_parameters_get_zero():
    model = network(6, 20, 4, density=0.5)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[~layer.weight_mask] = layer.bias[~layer.bias_mask] = torch.nan
    y = model(batch(9, 6))
    y.sum().backward()
    assert y.isfinite().all()
    for name, parameter in model.named_parameters():
        assert not parameter.grad[~get_masks(model)[name]].any()
    assert model[2].bias.grad.any()


def test_nothing_is_hidden_by_a_relu():
    model = network(3, 8, 8, density=1.0, last=(nn.ReLU(),))
    x = batch(4, 3)
    x[2, 1] = torch.nan
    assert torch.equal(model(x).isnan(), one_by_one(model)(x).isnan())
    got, expected = all_gradients(model, x), all_gradients(one_by_one(model), x)
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("frozen", [("0",), ("0", "2"), ("2",), ("4",), ("0.weight", "2.bias"), ("0", "2", "4")])
@pytest.mark.parametrize("wants_x", [False, True])
def test_frozen_parameters(frozen, wants_x):
    model = network(5, 9, 8, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    x = batch(6, 5).requires_grad_(wants_x)
    if not (wants_x or len(frozen) < 3):
        assert model(x).grad_fn is None
        return
    assert is_chain(model(x))
    for got, expected in zip(all_gradients(model, x), all_gradients(one_by_one(model), x), strict=True):
        assert torch.equal(got, expected)


def test_second_derivatives():
    model, x = network(5, 9, 8, 3, dtype=F64, density=0.6), batch(6, 5, F64).requires_grad_()
    results = []
    for each in (model, one_by_one(model)):
        inputs = [x, *each.parameters()]
        first = torch.autograd.grad(each(x).sin().square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.sin().sum() for g in first), inputs))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, "float64")
    torch.autograd.gradgradcheck(model, x)


def test_a_layer_that_is_there_twice():
    layer = nn.Linear(6, 6)
    model = mask_model(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer))
    model[0].set_mask(torch.rand(6, 6) < 0.6)
    x = batch(9, 6).requires_grad_()
    assert is_chain(model(x))
    expected = all_gradients(one_by_one(model), x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, torch.clone):
        through_hooks = all_gradients(model, x)
    twice = torch.autograd.grad((model(x).sin() + 0.1).square().sum(), [x, *model.parameters()], create_graph=True)
    for got in (all_gradients(model, x)[1:], through_hooks[1:], twice):
        for a, b in zip(got, expected[1:], strict=True):
            assert_close(a.detach(), b, "float32_gradient")


def test_a_batch_of_upstream_gradients_and_a_negated_one():
    model, x = network(5, 9, 3), batch(6, 5).requires_grad_()
    y, wanted = model(x), [x, *model.parameters()]
    upstream = torch.randn(4, *y.shape)
    batched = torch.autograd.grad(y, wanted, upstream, is_grads_batched=True, retain_graph=True)
    for at in range(4):
        alone = torch.autograd.grad(y, wanted, upstream[at], retain_graph=True)
        assert all(torch.equal(b[at], a) for b, a in zip(batched, alone, strict=True))
    negated = torch.autograd.grad(y, wanted, torch._neg_view(upstream[0]), retain_graph=True)
    assert all(torch.equal(n, -b[0]) for n, b in zip(negated, batched, strict=True))


@pytest.mark.parametrize(
    "unpack", [torch.clone, lambda t: t.mT.contiguous().mT if t.dim() == 2 else t.clone()], ids=["copy", "columns"]
)
def test_saved_tensors_through_a_hook(unpack):
    model, x = network(5, 9, 8, 3), batch(6, 5).requires_grad_()
    expected = all_gradients(model, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        got = all_gradients(model, x)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, "float32_gradient")


@pytest.mark.parametrize("name", ["0.weight", "0.weight_mask", "2.bias_mask"])
def test_a_change_between_forward_and_backward_is_refused(name):
    model = network(5, 9, 3)
    y = model(batch(6, 5))
    tensor = model.state_dict()[name]
    with torch.no_grad():
        tensor.logical_not_() if tensor.dtype == torch.bool else tensor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_masks_may_change_from_step_to_step():
    model, x = network(5, 9, 8, 3), batch(6, 5)
    for density in (0.2, 0.9, 0.5):
        set_masks(model, {k: torch.rand(m.shape) < density for k, m in get_masks(model).items()})
        for got, expected in zip(all_gradients(model, x), all_gradients(one_by_one(model), x), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_hooks_are_called(at):
    model, x, seen = network(5, 9, 8, 3), batch(6, 5), []
    expected = model(x)
    handle = model[at].register_forward_hook(lambda module, inputs, output: seen.append(module))
    y = model(x)
    assert seen == [model[at]]
    assert torch.equal(y, expected)
    handle.remove()
    assert is_chain(model(x))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_forward_that_a_module_was_given_is_called(at):
    model = network(7, 70, 3)
    x, forward = batch(5, 7), model[at].forward
    model[at].forward = lambda x: forward(x) + 1
    assert torch.equal(model(x), one_by_one(model)(x))
    del model[at].forward
    assert is_chain(model(x))


def test_forward_mode_is_refused_not_ignored():
    model = network(7, 70, 3).requires_grad_(False)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(batch(5, 7), torch.ones(5, 7))
        with pytest.raises(NotImplementedError, match="jvp"):
            model(x)


def test_what_is_no_chain_runs_module_by_module():
    model, x = network(5, 9, 3), batch(6, 5)
    expected = one_by_one(model)
    assert torch.equal(model(x.expand(2, 6, 5)), expected(x.expand(2, 6, 5)))
    assert model(x[:0]).shape == (0, 3)
    half = copy.deepcopy(model).bfloat16()
    assert torch.equal(half(x.bfloat16()), one_by_one(half)(x.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), expected(x))
    with pytest.raises(ValueError, match="x: expected shape"):
        model(x[:, :4])
    with pytest.raises(TypeError, match="expected dtype float64, got float32"):
        model(x.double())
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), expected(x), "float32_forward")
    mapped = torch.func.vmap(model)(x.expand(2, 6, 5))
    assert_close(mapped[1], expected(x), "float32_forward")


def test_weights_that_are_computed_run_layer_by_layer():
    model, x = network(5, 9, 3), batch(6, 5)
    doubled = {name: p * 2 for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, x)
    assert y.grad_fn is not None
    assert not is_chain(y)


def test_training_gives_the_same_parameters_fused_and_not():
    fused = network(2, 100, 100, 4, density=0.1)
    plain = copy.deepcopy(fused)
    plain.__class__ = nn.Sequential
    x = batch(64, 2)
    for each in (fused, plain):
        optimizer = torch.optim.Adam(each.parameters())
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(x), torch.arange(64) % 4).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), plain.parameters(), strict=True))


def test_a_lone_layer_stays_a_sequential():
    assert type(mask_model(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))) is nn.Sequential
