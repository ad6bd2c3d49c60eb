"""prune_module: a population's networks as modules get the population's masks, and any other module is pruned too."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pns_fast as pns
from pns_fast.nn import finalize, get_masks, mask_model, prune_module, score_module
from pns_fast.pruners.registry import register, unregister

NAMES = ["random", "magnitude", "snip", "grasp", "synflow", "force", "phew"]
ANY_MODULE = [name for name in NAMES if name != "phew"]
WIDTHS = (2, 20, 13, 4)
LOSSES = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


def make_batch(loss="cross_entropy", samples=40):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 2, generator=generator)
    y = torch.randint(4, (samples,), generator=generator) if loss == "cross_entropy" else x.repeat(1, 2).sin()
    return x, y


def flat(masks):
    return torch.cat([mask.flatten() for mask in masks.values()])


OPTIONS = [
    {},
    {"scope": "layer"},
    {"scope": "erk"},
    {"rounds": 3},
    {"rounds": 4, "schedule": "linear", "scope": "layer"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_a_populations_network_gets_the_populations_masks(name, density, loss, options):
    """Bit for bit through mask_model, whose arithmetic is the population's, and here through F.linear too."""
    population, (x, y) = pns.init_population(WIDTHS, seed=4), make_batch(loss)
    expected = pns.prune(population, name, density, (x, y), loss, seed=7, **options).flatten()[0]
    model = population.module(0)
    for module in (mask_model(model), model):
        masks = prune_module(module, name, density, [(x, y)], LOSSES[loss], seed=7, **options)
        assert list(masks) == [name for name, _ in module.named_parameters()]
        assert torch.equal(flat(masks), expected)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_populations(name):
    population, (x, y) = pns.init_population(WIDTHS, seed=4), make_batch()
    earlier = pns.prune(population, "random", 0.5)
    parts = earlier.weights[0][0], earlier.biases[0][0]
    masks = {"0.weight": parts[0], "0.bias": parts[1]}
    earlier.weights[1:] = [torch.ones_like(w) for w in earlier.weights[1:]]
    earlier.biases[1:] = [torch.ones_like(b) for b in earlier.biases[1:]]
    expected = pns.pruners.score(population, name, (x, y), masks=earlier)[0]
    model = population.module(0)
    same = flat(score_module(mask_model(model, masks), name, (x, y), F.cross_entropy))
    close = flat(score_module(model, name, (x, y), F.cross_entropy, masks=masks))
    if name == "synflow":  # the population's are rescaled by a power of two
        kept = expected > 0
        factor = (expected[kept] / same[kept]).double()
        assert (factor == factor[0]).all()
        assert factor[0].log2() == factor[0].log2().round()
        expected = expected / factor[0]
    assert torch.equal(same, expected)
    kept = torch.isfinite(expected)
    scale = expected[kept].abs().max()
    torch.testing.assert_close(close[kept] / scale, expected[kept] / scale, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.isfinite(close), kept)


def test_several_batches_are_one_batch():
    model, (x, y) = pns.init_population(WIDTHS).module(0).double(), make_batch()
    x = x.double()
    for name in ("snip", "grasp"):
        one = score_module(model, name, (x, y), F.cross_entropy)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=13)  # 13, 13, 13, 1
        parts = score_module(model, name, loader, F.cross_entropy)
        for a, b in zip(one.values(), parts.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class Network(nn.Module):
    """Convolutions, norms, dropout, attention, an embedding, two inputs, an unused layer, a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, shift):
        self.calls += 1
        self.seen += len(x)
        h = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        h = self.layer_norm(self.attention(h, h, h, need_weights=False)[0] + h)
        return self.head(self.dropout(h.mean(1))) + shift


def network_batch():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 1, 5, 5, generator=generator), torch.randn(6, 1, generator=generator)
    return inputs, torch.arange(6) % 3


@pytest.mark.parametrize("name", ANY_MODULE)
@pytest.mark.parametrize("rounds", [1, 3])
def test_any_module(name, rounds):
    torch.manual_seed(0)
    model = Network().train()
    model.conv.eval()
    state = copy.deepcopy(model.state_dict())
    masks = prune_module(model, name, 0.3, [network_batch()], F.cross_entropy, rounds=rounds)
    weights = ["attention.in_proj_weight", "attention.in_proj_bias", "conv.weight", "conv.bias"]
    weights += ["attention.out_proj.weight", "attention.out_proj.bias", "head.weight", "head.bias"]
    assert set(masks) == {*weights, "unused.weight", "unused.bias"}  # no norm
    n = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == math.ceil(0.3 * n)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert (model.training, model.conv.training, model.head.training) == (True, False, True)
    assert all(p.grad is None for p in model.parameters())
    again = prune_module(model, name, 0.3, [network_batch()], F.cross_entropy, rounds=rounds)
    assert torch.equal(flat(again), flat(masks))
    plain = finalize(model, masks)
    assert torch.equal(plain.conv.weight != 0, masks["conv.weight"])


def test_snip_of_a_convolution_is_gradient_times_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).double()
    x, y = torch.randn(4, 1, 5, 5, dtype=torch.float64), torch.arange(4) % 3
    scores = score_module(model, "snip", (x, y), F.cross_entropy)
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(scores[name], (parameter.grad * parameter).abs().detach())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_layers():
    torch.manual_seed(0)
    model = Recurrent().double()
    x, y = torch.randn(4, 7, 5, dtype=torch.float64), torch.arange(4) % 3
    scores = score_module(model, "snip", (x, y), F.cross_entropy)
    F.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(scores[name], (parameter.grad * parameter).abs().detach())


def test_parametrized_weights_and_supermask_scores_are_left_alone():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), pns.nn.SupermaskLinear(4, 4, 0.5)
    )
    assert list(prune_module(model, "magnitude", 0.5)) == ["1.weight", "1.bias"]


def test_synflow_takes_absolute_values_of_everything_and_conserves_its_flow():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3, bias=False)
    )
    nn.init.constant_(model[1].weight, -1.0)  # signed, it would leave no flow
    scores = score_module(model, "synflow", (torch.zeros(1, 1, 5, 5), None))
    assert scores["0.weight"].dtype == torch.float64
    # Tanaka et al. 2020, Theorem 2: layers of a network without biases hold the same flow
    torch.testing.assert_close(scores["0.weight"].sum(), scores["4.weight"].sum())
    assert (scores["0.weight"] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_rounds_never_revive_and_masked_models_go_on_from_their_masks(name):
    model, batch = pns.init_population(WIDTHS).module(0), make_batch()
    half = prune_module(model, name, 0.5, batch, F.cross_entropy)
    tenth = prune_module(model, name, 0.1, batch, F.cross_entropy, masks=half)
    assert not (flat(tenth) & ~flat(half)).any()
    assert flat(tenth).sum() == math.ceil(0.1 * flat(half).numel())
    masked = mask_model(model, half)
    assert torch.equal(flat(prune_module(masked, name, 0.1, batch, F.cross_entropy)), flat(tenth))
    assert torch.equal(flat(get_masks(masked)), flat(half))
    assert torch.equal(flat(prune_module(masked, name, 0.9, batch, F.cross_entropy)), flat(half))


def test_biases_and_ignored_names():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    assert list(prune_module(model, "magnitude", 0.5, include_bias=False)) == ["0.weight", "2.weight"]
    assert list(prune_module(model, "magnitude", 0.5, ignore=["2.*", "*.bias"])) == ["0.weight"]
    by_layer = prune_module(model, "magnitude", 0.5, scope="layer")
    kept = [int(by_layer[f"{i}.weight"].sum() + by_layer[f"{i}.bias"].sum()) for i in (0, 2)]
    assert kept == [20, 14]  # ceil(40 / 2), ceil(27 / 2)


def test_tied_parameters_are_pruned_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    masks = prune_module(model, "synflow", 0.5, (torch.zeros(1, 4), None))
    assert list(masks) == ["0.weight", "0.bias", "1.bias"]
    assert flat(masks).sum() == 12


class CalledTwice(nn.Module):
    """A layer and a norm that are called twice; ``names``: registered under so many names."""

    def __init__(self, names):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.norm = nn.Linear(2, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        if names == 2:
            self.layer_again, self.norm_again = self.layer, self.norm
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.layer.weight

    def forward(self, x):
        x = self.norm(self.layer(self.first(x).relu())).relu()
        return self.tied(self.norm(self.layer(x)).relu())[:, :4]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", ANY_MODULE)
def test_a_module_of_two_names_is_scored_as_one_and_left_as_it_was(name, is_masked):
    one, two = CalledTwice(1), CalledTwice(2)
    if is_masked:
        earlier = prune_module(one, "random", 0.7)
        one, two = mask_model(one, earlier), mask_model(two, earlier)
    tensors = {**dict(two.named_parameters()), **dict(two.named_buffers())}
    values = {name: t.clone() for name, t in tensors.items()}
    scores = score_module(two, name, make_batch(), F.cross_entropy)
    expected = score_module(one, name, make_batch(), F.cross_entropy)
    assert {n: s.tolist() for n, s in scores.items()} == {n: s.tolist() for n, s in expected.items()}
    after = {**dict(two.named_parameters()), **dict(two.named_buffers())}
    assert list(after) == list(tensors)
    assert all(t is tensors[name] and torch.equal(t, values[name]) for name, t in after.items())


class TheirMasked(nn.Linear):
    """As in Synaptic-Flow's Layers/layers.py."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.register_buffer("weight_mask", torch.ones(n_out, n_in))

    def forward(self, x):
        return F.linear(x, self.weight * self.weight_mask, self.bias)


def test_a_mask_of_somebody_elses_layer_is_left_alone():
    model = nn.Sequential(TheirMasked(2, 6), nn.ReLU(), nn.Linear(6, 4))
    model[0].weight_mask[0] = 0
    scores = score_module(model, "snip", make_batch(), F.cross_entropy)["0.weight"]
    assert (scores[0] == 0).all()
    assert (scores[1:] > 0).any()


def test_wrapped_models_have_the_names_of_what_they_wrap():
    model, batch = pns.init_population(WIDTHS).module(0), make_batch()
    expected = prune_module(model, "snip", 0.2, batch, F.cross_entropy)
    masks = prune_module(torch.compile(model), "snip", 0.2, batch, F.cross_entropy)
    assert list(masks) == list(expected)
    assert torch.equal(flat(masks), flat(expected))


def test_a_new_pruner_serves_modules_too():
    register("smallest")(lambda problem: [-p.abs() for p in problem.parameters])
    try:
        model = nn.Linear(10, 10, bias=False)
        mask = prune_module(model, "smallest", 0.5)["weight"]
        assert model.weight[mask].abs().max() <= model.weight[~mask].abs().min()
    finally:
        unregister("smallest")


def test_bfloat16():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    batch = torch.randn(5, 8, dtype=torch.bfloat16), torch.arange(5) % 3
    for name in NAMES:
        assert flat(prune_module(model, name, 0.25, batch, F.cross_entropy)).sum() == math.ceil(0.25 * 99)


def test_a_torch_pruned_module_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.utils.prune.l1_unstructured(model[0], "weight", 5)
    before = model[0].weight
    x = torch.randn(3, 4)
    masks = prune_module(model, "synflow", 0.5, (x, None))
    assert "0.weight_orig" in masks
    assert model[0].weight is before
    model(x).sum().backward()


X, Y = make_batch()
MODEL = pns.init_population(WIDTHS).module(0)
NAN_MODEL = copy.deepcopy(MODEL)
NAN_MODEL[2].weight.data[0, 0] = math.nan
TOKENS = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
BAD = [
    ({"model": pns.init_population(WIDTHS)}, TypeError, r"model: expected an nn\.Module, got Population"),
    ({"model": nn.LayerNorm(3)}, ValueError, "model: expected parameters to prune"),
    ({"model": nn.LazyLinear(3)}, ValueError, "model: weight has no shape yet"),
    ({"model": NAN_MODEL}, ValueError, r"snip: scores of .* are not finite"),
    ({"pruner": "magnitud"}, ValueError, "random, magnitude, snip, grasp, synflow, force, phew, got 'magnitud'"),
    ({"density": 0}, ValueError, "density"),
    ({"density": math.nan}, ValueError, "density"),
    ({"batches": None}, ValueError, "batches, loss_fn: expected both"),
    ({"batches": []}, ValueError, "batches, loss_fn: expected both"),
    ({"loss_fn": None}, ValueError, "batches, loss_fn: expected both"),
    ({"loss_fn": lambda output, y: output}, ValueError, "loss_fn: expected one number"),
    ({"masks": pns.Masks.full(pns.init_population(WIDTHS))}, TypeError, r"masks\.named\(i\)\), got Masks"),
    ({"pruner": "synflow", "batches": None}, ValueError, "batches: expected at least one"),
    ({"batches": X}, TypeError, "batches: expected"),
    ({"batches": 3}, TypeError, "batches: expected"),
    ({"batches": [X, Y, X]}, TypeError, r"batches\[0\]: expected \(x, y\), got Tensor"),
    ({"batches": [(X[:0], Y[:0])]}, ValueError, r"batches\[0\]"),
    ({"batches": [("x", Y)]}, ValueError, r"batches\[0\]"),
    ({"model": TOKENS, "pruner": "synflow", "batches": (Y, Y)}, TypeError, "batches: expected floating point"),
    ({"scope": "channel"}, ValueError, "scope: expected one of global, layer, erk, got 'channel'"),
    ({"schedule": "cosine"}, ValueError, "schedule"),
    ({"rounds": 0}, ValueError, "rounds"),
    ({"seed": -1}, ValueError, "seed"),
    ({"seed": [1]}, TypeError, "seed"),
    ({"ignore": "0.*"}, TypeError, "ignore: expected a sequence of patterns"),
    ({"ignore": ["*"]}, ValueError, "model: expected parameters to prune"),
    ({"masks": {"9.weight": X > 0}}, ValueError, "masks: expected names of the model's parameters, got '9.weight'"),
    ({"masks": {"0.bias": X[:20, 0] > 0}, "ignore": ["*.bias"]}, ValueError, "that are pruned, got '0.bias'"),
    ({"masks": {"0.weight": X > 0}}, ValueError, r"masks\['0.weight'\]: expected shape \[20, 2\], got \[40, 2\]"),
    ({"masks": {"0.weight": X}}, TypeError, r"masks\['0.weight'\]: expected a bool tensor"),
    ({"masks": [X > 0]}, TypeError, "masks: expected a dict"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_wrong_calls(change, error, message):
    call = {"model": MODEL, "pruner": "snip", "density": 0.5, "batches": (X, Y), "loss_fn": F.cross_entropy}
    with pytest.raises(error, match=message):
        prune_module(**{**call, **change})
