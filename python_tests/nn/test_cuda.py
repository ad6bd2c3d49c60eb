"""Masked layers, models, mask files, the optimiser hook and prune_module on a GPU."""

import copy

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn
from torch.nn import functional as F

import pns_fast as pns
from pns_fast.nn import (
    MaskedLinear,
    SupermaskLinear,
    finalize,
    get_masks,
    keep_pruned,
    load_masks,
    mask_model,
    save_masks,
    score_module,
    set_masks,
)

pytestmark = pytest.mark.gpu


def close(ours, theirs, tolerance):
    rtol, atol = TOLERANCES[tolerance]
    torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=rtol, atol=atol)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(numbers(*p.shape, seed=i) / 4)
    return model


def convnet():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(numbers(*p.shape, seed=i) / 8)
    return model


def pruned(model, density=0.3):
    return mask_model(model, pns.prune_module(model, "magnitude", density))


def test_masked_layers_compute_and_learn_as_on_the_cpu(cuda):
    x, y = numbers(64, 20), torch.arange(64) % 5
    results = []
    for device in ("cpu", cuda):
        model = pruned(mlp()).to(device)
        output = model(x.to(device))
        F.cross_entropy(output, y.to(device)).backward()
        results.append([output, *(p.grad for p in model.parameters())])
        assert all(mask.device == output.device for mask in get_masks(model).values())
    for theirs, ours in zip(*results, strict=True):
        scale = theirs.detach().abs().max().clamp_min(1e-30)  # a layer may keep no bias
        close(ours.detach().cpu() / scale, theirs / scale, "float32_gradient")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])
def test_masked_convolutions_compute_and_learn_as_on_the_cpu(cuda, memory_format):
    """With a ReLU behind and without one; twice differentiated, as GraSP does."""
    x, y = numbers(16, 1, 8, 8).double(), torch.arange(16) % 5
    results = []
    for device in ("cpu", cuda):
        model = pruned(convnet()).double().to(device, memory_format=memory_format)
        output = model(x.to(device))
        parameters = list(model.parameters())
        loss = F.cross_entropy(output, y.to(device))
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        again = torch.autograd.grad(
            sum((g * p.detach()).sum() for g, p in zip(grads, parameters, strict=True)), parameters
        )
        results.append([output, *grads, *again])
        for (name, mask), grad in zip(get_masks(model).items(), grads, strict=True):
            assert not grad[~mask].any(), name
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs, "float64")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_convolution_reads_nothing_pruned(cuda, dtype):
    layer = pruned(convnet())[0].to(cuda, dtype)
    clean, x = copy.deepcopy(layer), numbers(4, 1, 8, 8).to(cuda, dtype)
    with torch.no_grad():
        if dtype == torch.float32:  # in half precision weights are multiplied by their mask
            layer.weight[~layer.weight_mask] = torch.nan
        layer.bias[~layer.bias_mask] = torch.inf
    assert torch.equal(layer(x), clean(x))
    assert layer(x).dtype == dtype


def test_a_model_moved_first_and_masked_then(cuda):
    model = mlp()
    masks = pns.prune_module(model, "magnitude", 0.3)
    masked = mask_model(model.to(cuda), masks)  # masks from the CPU are copied over
    assert all(torch.equal(m.cpu(), masks[name]) for name, m in get_masks(masked).items())
    set_masks(masked, {name: ~m for name, m in masks.items()})
    assert all(torch.equal(m.cpu(), ~masks[name]) for name, m in get_masks(masked).items())
    assert masked[0].density == MaskedLinear.from_linear(mlp()[0], ~masks["0.weight"], ~masks["0.bias"]).density
    plain = finalize(mlp().to(cuda), masks)
    assert all((p[~masks[name].to(cuda)] == 0).all() for name, p in plain.named_parameters())


def test_half_precision_and_autocast(cuda):
    layer, x = pruned(mlp())[0].to(cuda), numbers(8, 20).to(cuda)
    with torch.autocast(cuda.type, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    expected = F.linear(
        x.bfloat16(), (layer.weight * layer.weight_mask).bfloat16(), (layer.bias * layer.bias_mask).bfloat16()
    )
    torch.testing.assert_close(layer.bfloat16()(x.bfloat16()), expected)


def test_supermask_layer(cuda):
    torch.manual_seed(0)
    ours = SupermaskLinear(20, 10, keep=0.2)
    theirs = SupermaskLinear(20, 10, keep=0.2)
    theirs.load_state_dict(ours.state_dict())
    ours = ours.to(cuda)
    x = numbers(16, 20)
    for layer, inputs in ((ours, x.to(cuda)), (theirs, x)):
        layer(inputs).square().sum().backward()
    for name, mask in theirs.masks().items():
        assert torch.equal(ours.masks()[name].cpu(), mask)
    for name in ("weight_scores", "bias_scores"):
        theirs_grad, ours_grad = getattr(theirs, name).grad, getattr(ours, name).grad
        scale = theirs_grad.abs().max()
        close(ours_grad.cpu() / scale, theirs_grad / scale, "float32_gradient")
    plain = ours.finalize()
    assert plain.weight.device == cuda
    assert int((plain.weight != 0).sum()) == int(ours.masks()["weight"].sum())
    built_there = SupermaskLinear(20, 10, keep=0.2, device=cuda)
    assert built_there(x.to(cuda)).device == cuda


@pytest.mark.parametrize("fused", [False, True])
def test_keep_pruned(cuda, fused):
    model = pruned(mlp()).to(cuda)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    handle = keep_pruned(optimizer, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in range(3):
        optimizer.zero_grad()
        model(numbers(32, 20, seed=seed).to(cuda)).square().mean().backward()
        optimizer.step()
    masks = get_masks(model)
    for name, p in model.named_parameters():
        assert torch.equal(p[~masks[name]], before[name][~masks[name]])
        assert "bias" in name or (p != before[name]).any()
    handle.remove()


def test_mask_files(cuda, tmp_path):
    model = pruned(mlp()).to(cuda)
    save_masks(model, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert all(mask.device.type == "cpu" for mask in loaded.values())
    again = mask_model(mlp().to(cuda), loaded)
    assert all(torch.equal(m, get_masks(again)[name]) for name, m in get_masks(model).items())


# PHEW walks over linear layers only
@pytest.mark.parametrize(
    ("build", "pruner"), [(b, p) for b in (mlp, convnet) for p in pns.pruners.names() if (b, p) != (convnet, "phew")]
)
def test_prune_module_agrees_with_the_cpu(cuda, build, pruner):
    x = numbers(32, 20) if build is mlp else numbers(32, 1, 8, 8)
    y = torch.arange(32) % 5
    theirs = pns.prune_module(build(), pruner, 0.2, (x, y), F.cross_entropy)
    ours = pns.prune_module(build().to(cuda), pruner, 0.2, (x.to(cuda), y.to(cuda)), F.cross_entropy)
    assert list(ours) == list(theirs)
    assert all(m.device == cuda for m in ours.values())
    assert sum(int(m.sum()) for m in ours.values()) == sum(int(m.sum()) for m in theirs.values())
    equal = torch.cat([(ours[n].cpu() == theirs[n]).flatten() for n in theirs]).double().mean()
    # convolutions may run in TF32, so their scores agree to three digits only
    assert equal == 1 if pruner in ("random", "magnitude", "phew") else equal > (0.99 if build is mlp else 0.95)


def test_rounds_start_from_the_masks_given(cuda):
    model, x = mlp().to(cuda), numbers(16, 20).to(cuda)
    first = pns.prune_module(model, "synflow", 0.5, (x, x), rounds=3)
    second = pns.prune_module(model, "magnitude", 0.1, masks={n: m.cpu() for n, m in first.items()}, scope="layer")
    assert not any((second[n] & ~first[n]).any() for n in first)
    scores = score_module(mask_model(model, first), "magnitude")
    assert all(torch.isinf(scores[n][~first[n]]).all() for n in first)


def test_torch_prune_methods(cuda):
    model = mlp().to(cuda)
    parameters = [(model[0], "weight"), (model[2], "weight")]
    scores = pns.nn.prune.importance_scores(model, "synflow", (numbers(1, 20).to(cuda), numbers(1).to(cuda)))
    torch.nn.utils.prune.global_unstructured(
        parameters,
        pruning_method=pns.nn.prune.GlobalTopK,
        importance_scores={key: scores[key] for key in parameters},
        amount=0.75,
    )
    assert sum(int(layer.weight_mask.sum()) for layer, _ in parameters) == 750 - round(0.75 * 750)
