"""pns.nn.prune within torch.nn.utils.prune."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import pns_fast as pns
from pns_fast.nn import prune_module
from pns_fast.nn.prune import GlobalTopK, importance_scores


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))


def weights(model):
    return [(model[0], "weight"), (model[2], "weight")]


@pytest.mark.parametrize("amount", [0.3, 0.99, 7, 0, 1.0])
def test_it_is_torchs_l1_unstructured(amount):
    ours, theirs = network(), network()
    for _ in range(2 if amount != 1.0 else 1):  # the second time of what is left
        prune.global_unstructured(weights(ours), pruning_method=GlobalTopK, amount=amount)
        prune.global_unstructured(weights(theirs), pruning_method=prune.L1Unstructured, amount=amount)
    for (a, _), (b, _) in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a.weight_mask, b.weight_mask)
        assert torch.equal(a.weight, b.weight)


def test_exact_number_where_scores_tie():
    model = nn.Linear(10, 10)
    GlobalTopK.apply(model, "weight", 37, importance_scores=torch.ones(10, 10))
    expected = (torch.arange(100) < 63).float().reshape(10, 10)
    assert torch.equal(model.weight_mask, expected)
    model(torch.ones(1, 10)).sum().backward()
    prune.remove(model, "weight")
    assert torch.equal(model.weight != 0, expected.bool())


@pytest.mark.parametrize("method", [GlobalTopK, prune.L1Unstructured])
@pytest.mark.parametrize("name", pns.pruners.names())
def test_importance_scores_give_the_masks_of_prune_module(name, method):
    model, batch = network(), (torch.randn(16, 6), torch.arange(16) % 4)
    masks = prune_module(model, name, 0.25, batch, F.cross_entropy, include_bias=False)
    scores = importance_scores(model, name, batch, F.cross_entropy, include_bias=False)
    assert set(scores) == set(weights(model))
    prune.global_unstructured(weights(model), pruning_method=method, importance_scores=scores, amount=150)
    assert torch.equal(model[0].weight_mask.bool(), masks["0.weight"])
    assert torch.equal(model[2].weight_mask.bool(), masks["2.weight"])
    again = importance_scores(model, name, batch, F.cross_entropy, include_bias=False)
    assert set(again) == set(weights(model))  # torch calls them weight_orig now
    prune.global_unstructured(weights(model), pruning_method=method, importance_scores=again, amount=0.5)
    assert model[0].weight_mask.sum() + model[2].weight_mask.sum() == 25
    assert not (model[0].weight_mask.bool() & ~masks["0.weight"]).any()


def test_importance_scores_of_a_wrapped_model():
    model = network()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert set(importance_scores(wrapped, "magnitude", include_bias=False)) == set(weights(model))


MASKED = [lambda: pns.nn.MaskedLinear(6, 4), lambda: pns.nn.MaskedConv2d(6, 4, 3)]
METHODS = [
    lambda layer, name: prune.l1_unstructured(layer, name, amount=0.5),
    lambda layer, name: prune.random_structured(layer, name, amount=1, dim=0),
    lambda layer, name: prune.global_unstructured([(layer, name)], pruning_method=GlobalTopK, amount=0.5),
]


@pytest.mark.parametrize("make", MASKED)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_masked_layer_is_refused_and_stays_as_it_was(make, method, name):
    layer = make()
    layer.set_mask(torch.rand_like(layer.weight) < 0.5, torch.arange(4) < 2)
    parameters, masks = list(layer.parameters()), {n: m.clone() for n, m in layer.masks().items()}
    with pytest.raises(ValueError, match=rf"^{name}: .* would replace {name}_mask, got a Masked.*; use layer.set_mask"):
        method(layer, name)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert list(layer.state_dict()) == ["weight", "bias", "weight_mask", "bias_mask"]
    assert all(torch.equal(m, masks[n]) for n, m in layer.masks().items())
    assert not prune.is_pruned(layer)


def test_other_layers_that_rename_the_weight_keep_a_mask():
    layer = pns.nn.MaskedLinear(6, 4, bias=False)
    layer.set_mask(torch.rand(4, 6) < 0.5)
    layer = nn.utils.spectral_norm(layer).eval()  # weight_orig, too
    x = torch.randn(3, 6)
    assert torch.allclose(layer(x), x @ (layer.weight * layer.weight_mask).T, atol=1e-6)


def test_a_supermask_layer_multiplies_both_masks():
    layer = pns.nn.SupermaskLinear(6, 4, keep=0.5, bias=False)
    x, weight, best = torch.randn(3, 6), layer.weight.clone(), layer.masks()["weight"]
    prune.l1_unstructured(layer, "weight", amount=0.5)
    expected = x @ (weight * layer.weight_mask * best).T
    assert torch.allclose(layer(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match="make that permanent first"):
        pns.nn.finalize(layer)
    prune.remove(layer, "weight")
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert torch.allclose(pns.nn.finalize(layer)(x), expected, atol=1e-6)


def test_models_with_computed_weights_are_copied():
    """torch copies no tensor that autograd made, and prune leaves one on the layer."""
    model, x = network(), torch.randn(4, 6)
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    model.seen = model(x)  # as attention maps are kept
    expected = model.seen.detach()
    for copy in (pns.nn.mask_model(model), pns.nn.finalize(model), pns.nn.supermask_model(model, 1.0)):
        assert torch.allclose(copy(x), expected, atol=1e-6)
        assert torch.equal(copy.seen, expected)
        assert copy.seen is not model.seen
    data = SimpleNamespace(x_train=x, y_train=torch.arange(4) % 2, x_test=x, y_test=torch.arange(4) % 2)
    trained = pns.train_module(model, None, data, epochs=1, optimizer=pns.SGD(lr=1.0)).module
    assert (trained[0].weight_orig != model[0].weight_orig).any()
    assert torch.equal(trained[0].weight_mask, model[0].weight_mask)
    assert torch.allclose(model(x), expected, atol=1e-6)


BAD = [
    (lambda: GlobalTopK("0.5"), TypeError, "amount: expected a fraction"),
    (lambda: GlobalTopK(True), TypeError, "amount"),
    (lambda: GlobalTopK(1.5), ValueError, "amount"),
    (lambda: GlobalTopK(float("nan")), ValueError, "amount"),
    (lambda: GlobalTopK(-1), ValueError, "amount"),
    (lambda: GlobalTopK.apply(nn.Linear(2, 2), "weight", 5), ValueError, "amount: expected at most the 4"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_wrong_amounts(call, error, message):
    with pytest.raises(error, match=message):
        call()
