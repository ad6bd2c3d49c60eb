"""SupermaskLinear and GetSubnet: edge-popup's forward and straight-through backward pass."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

import pns_fast as pns
from pns_fast.nn import GetSubnet, SupermaskLinear, finalize, get_masks


def make_layer(n_in=13, n_out=7, keep=0.3, **options):
    torch.manual_seed(0)
    layer = SupermaskLinear(n_in, n_out, keep, dtype=torch.float64, **options)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias_scores, -1, 1)
    return layer


def expected_mask(scores, keep):
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.detach().abs().flatten().argsort(descending=True)[: -(-int(keep * 1000) * scores.numel() // 1000)]] = (
        True
    )
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("bias", [True, False])
def test_forward_keeps_the_largest_scores_of_weights_and_of_biases(bias):
    layer, x = make_layer(bias=bias), torch.randn(5, 13, dtype=torch.float64)
    masks = layer.masks()
    assert torch.equal(masks["weight"], expected_mask(layer.weight_scores, 0.3))
    assert masks["weight"].sum() == 28  # ceil(0.3 * 91)
    if bias:
        assert torch.equal(masks["bias"], expected_mask(layer.bias_scores, 0.3))
        assert masks["bias"].sum() == 3
    b = layer.bias * masks["bias"] if bias else None
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight * masks["weight"], b))


def test_the_gradient_goes_straight_through_with_the_sign_of_the_score():
    layer, x = make_layer(), torch.randn(5, 13, dtype=torch.float64)
    with torch.no_grad():
        layer.bias_scores[:3] = 0.0
    layer(x).sin().sum().backward()
    masks = layer.masks()
    w = (layer.weight * masks["weight"]).requires_grad_()
    b = (layer.bias * masks["bias"]).requires_grad_()
    F.linear(x, w, b).sin().sum().backward()
    sign = torch.where(layer.weight_scores < 0, -1.0, 1.0)
    torch.testing.assert_close(layer.weight_scores.grad, w.grad * layer.weight * sign)
    sign = torch.where(layer.bias_scores < 0, -1.0, 1.0)  # 1 at 0: first bias scores are 0 and must move
    torch.testing.assert_close(layer.bias_scores.grad, b.grad * layer.bias * sign)
    assert layer.weight.grad is None
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["weight_scores", "bias_scores"]


def test_a_network_of_them_starts_as_edge_popup_does():
    """The same weights and scores give the mask and the loss of column 0 of pns.edge_popup."""
    from pns_fast.training.edge_popup import first_scores

    population = pns.init_population((2, 20, 4), n=1, seed=3)
    data = pns.tasks.get("circle").sample(n=200, seed=0)
    result = pns.edge_popup(population, data, density=0.3, epochs=0)
    scores = pns.Population.from_flat(first_scores(population, 0), population.widths)
    model = population.module(0)
    for i, l in ((0, 0), (2, 1)):
        model[i] = SupermaskLinear.from_linear(model[i], keep=0.3)
        model[i].weight_scores.data.copy_(scores.weights[l][0])
        model[i].bias_scores.data.copy_(scores.biases[l][0])
    flat = torch.cat([m.flatten() for m in get_masks(model).values()])
    assert torch.equal(flat, result.masks.flatten()[0])
    loss = F.cross_entropy(model(data.x_test), data.y_test)
    torch.testing.assert_close(loss, result.test_loss[0, 0], rtol=1e-5, atol=1e-6, check_dtype=False)


def test_training_finds_a_subnet():
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(SupermaskLinear(8, 64, 0.3), nn.ReLU(), SupermaskLinear(64, 2, 0.3))
    weights = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(model[0].weight, weights)
    plain = finalize(model)
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(plain(x), model(x))
    assert torch.equal(plain[0].weight != 0, model[0].masks()["weight"])
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_keep_can_be_annealed():
    layer = make_layer(keep=1.0)
    assert layer.density == 1.0
    layer.keep = 0.0
    assert layer.density == 0.0
    assert (layer(torch.ones(2, 13, dtype=torch.float64)) == 0).all()


def test_keep_stays_a_density():
    layer = make_layer()
    layer.keep = 1  # which an op takes for one score
    with pytest.raises(TypeError, match="keep: expected a float, the fraction kept, got 1"):
        layer(torch.ones(2, 13, dtype=torch.float64))
    with pytest.raises(TypeError, match="keep: expected a float"):
        layer.masks()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_state_dict(copied):
    layer, x = make_layer(), torch.randn(5, 13, dtype=torch.float64)
    layer(x).sum().backward()
    assert torch.equal(copied(layer)(x), layer(x))
    other = SupermaskLinear(13, 7, 0.3, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    layer, x = make_layer().to(dtype), torch.randn(5, 13).to(dtype)
    layer(x).sum().backward()
    assert layer.weight_scores.grad.dtype == dtype


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    layer, twin = make_layer(), make_layer()
    x = torch.randn(5, 13, dtype=torch.float64)
    output = torch.compile(layer, fullgraph=True, backend=backend)(x)
    torch.testing.assert_close(output, twin(x))
    output.sum().backward()
    twin(x).sum().backward()
    torch.testing.assert_close(layer.weight_scores.grad, twin.weight_scores.grad)


def test_export():
    layer, x = make_layer(), torch.randn(5, 13, dtype=torch.float64)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_functional_call_and_vmap_of_gradients():
    layer, x = make_layer(), torch.randn(5, 13, dtype=torch.float64)
    scores = torch.randn(3, *layer.weight_scores.shape, dtype=torch.float64)

    def loss(s):
        return functional_call(layer, {"weight_scores": s}, x).sin().sum()

    expected = torch.stack([torch.autograd.grad(loss(s), s)[0] for s in scores.clone().requires_grad_()])
    torch.testing.assert_close(vmap(torch.func.grad(loss))(scores), expected)
    assert (expected != 0).all()  # pruned scores too


def test_from_linear_leaves_the_linear_alone():
    linear = nn.Linear(4, 3)
    layer = SupermaskLinear.from_linear(linear, 0.5)
    assert torch.equal(layer.weight, linear.weight)
    assert linear.weight.requires_grad
    assert (layer.bias_scores == 0).all()
    assert layer.weight_scores.abs().max() <= 0.5
    assert repr(layer) == "SupermaskLinear(in_features=4, out_features=3, bias=True, keep=0.5)"


def test_get_subnet_is_a_drop_in():
    scores = torch.randn(30, 20, requires_grad=True)
    mask = GetSubnet.apply(scores.abs(), 0.25)
    j = int((1 - 0.25) * 600)  # hidden-networks' rule
    expected = torch.zeros(600)
    expected[scores.detach().abs().flatten().sort()[1][j:]] = 1
    assert torch.equal(mask, expected.reshape(30, 20))
    upstream = torch.randn(30, 20)
    (gradient,) = torch.autograd.grad(mask, scores, upstream)
    assert torch.equal(gradient, upstream * scores.sign())
    signed = torch.tensor([-3.0, 1.0, 2.0])
    assert torch.equal(GetSubnet.apply(signed, 0.5), torch.tensor([0.0, 1.0, 1.0]))  # ranked as they are


def test_get_subnet_compiles():
    scores = torch.rand(30, 20, requires_grad=True)
    compiled = torch.compile(lambda s: GetSubnet.apply(s, 0.25), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores), GetSubnet.apply(scores, 0.25))
    (gradient,) = torch.autograd.grad(compiled(scores).sum(), scores)
    assert (gradient == 1).all()


BAD = [
    (lambda: SupermaskLinear(2, 2, 3), TypeError, "keep: expected a float, the fraction kept, got 3"),
    (lambda: SupermaskLinear(2, 2, 1.5), ValueError, "keep"),
    (lambda: SupermaskLinear(2, 2, float("nan")), ValueError, "keep"),
    (lambda: SupermaskLinear.from_linear(nn.Linear(2, 2), "0.5"), TypeError, "keep"),
    (lambda: SupermaskLinear.from_linear(nn.Bilinear(2, 2, 2), 0.5), TypeError, "layer"),
    (lambda: GetSubnet.apply(torch.ones(3), 2), TypeError, "k: expected a float"),
    (lambda: GetSubnet.apply(torch.ones(3), -0.1), ValueError, "k: expected a fraction"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
