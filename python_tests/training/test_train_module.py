"""train_module against a plain torch loop, and what pruned parameters do meanwhile."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn
from torch.nn import functional as F
from training.modules import blobs, network

import pns_fast as pns
from pns_fast import rng


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Layers this small gain nothing from more, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_loop(model, masks, data, epochs, batch_size, optimizer, lr_of_epoch, seed):
    """Weights times masks, everything written out."""
    model = copy.deepcopy(model)
    parameters, masks = dict(model.named_parameters()), masks or {}
    opt = optimizer(model.parameters())
    losses = []
    for epoch in range(epochs):
        for group in opt.param_groups:
            group["lr"] = lr_of_epoch(epoch)
        order = rng.generator((seed, epoch), "module_batches").permutation(len(data.x_train))
        total = 0.0
        for index in torch.from_numpy(order).split(batch_size):
            with torch.no_grad():
                for name, mask in masks.items():
                    parameters[name].mul_(mask)
            opt.zero_grad()
            loss = F.cross_entropy(model.train()(data.x_train[index]), data.y_train[index])
            loss.backward()
            for name, mask in masks.items():
                parameters[name].grad.mul_(mask)
            opt.step()
            total += float(loss.detach()) * len(index)
        losses.append(total / len(data.x_train))
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
    return model, losses


def close(found, wanted, name="train_16_steps"):
    rtol, atol = TOLERANCES[name]
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("density", [None, 0.6, 0.05])
def test_against_a_plain_loop(norm, density):
    model, data = network(norm=norm), blobs()
    masks = None if density is None else pns.prune_module(model, "magnitude", density)
    settings = pns.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3, schedule="step", step_epochs=1, gamma=0.5)
    found = pns.train_module(model, masks, data, 3, 20, settings, seed=4)
    wanted, losses = plain_loop(
        *(model, masks, data, 3, 20),
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=1e-3),
        lambda epoch: 0.05 * 0.5**epoch,
        4,
    )
    for name, t in wanted.state_dict().items():
        close(found.module.state_dict()[name], t)
    close(found.train_loss, torch.tensor(losses, dtype=torch.float64))
    with torch.no_grad():
        right = (wanted.eval()(data.x_test).argmax(1) == data.y_test).double().mean()
    assert float(found.metric[-1]) == pytest.approx(float(right), abs=1e-9)
    assert not found.diverged


def test_adam_and_cosine():
    model, data = network(), blobs()
    found = pns.train_module(model, None, data, 4, 32, pns.Adam(lr=0.01, schedule="cosine"), seed=1)
    lr = (0.01, 0.00853553, 0.005, 0.00146447)  # 0.01 (1 + cos(pi e / 4)) / 2
    wanted, _ = plain_loop(model, None, data, 4, 32, lambda p: torch.optim.Adam(p, lr=1.0), lambda e: lr[e], 1)
    for name, t in wanted.state_dict().items():
        close(found.module.state_dict()[name], t)


def test_pruned_are_zero_and_nothing_else_changes():
    model, data = network(norm=True), blobs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = pns.prune_module(model, "random", 0.3, seed=2)
    optimizer = pns.SGD(lr=0.1, momentum=0.9, weight_decay=0.1)
    result = pns.train_module(model, masks, data, epochs=2, optimizer=optimizer)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {type(m) for m in result.module.modules()} == {type(m) for m in model.modules()}
    for name, mask in masks.items():
        trained = result.module.get_parameter(name)
        assert (trained[~mask] == 0).all()
        assert (trained[mask] != before[name][mask]).float().mean() > 0.8
    again = pns.train_module(model, masks, data, epochs=2, optimizer=optimizer)
    assert torch.equal(again.test_loss, result.test_loss)
    other = pns.train_module(model, masks, data, epochs=2, optimizer=optimizer, seed=1)
    assert not torch.equal(other.test_loss, result.test_loss)


def test_masks_of_layers_without_a_masked_version():
    """A grouped convolution stays a torch layer; its mask holds all the same."""
    model = nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    masks = {name: (torch.arange(p.numel()) % 2 == 0).view_as(p) for name, p in model.named_parameters()}
    result = pns.train_module(model, masks, blobs(), 1, optimizer=pns.Adam(lr=0.01, weight_decay=0.1))
    for name, mask in masks.items():
        trained = result.module.get_parameter(name)
        assert (trained[~mask] == 0).all()
        assert not torch.equal(trained[mask], model.get_parameter(name)[mask])


def test_augmentation_is_used_where_data_asks_for_it():
    seen = []

    class Watching(nn.Sequential):
        def forward(self, x):
            if self.training:
                seen.append(x.clone())
            return super().forward(x)

    model, data = Watching(*network()), blobs(augments=True)
    pns.train_module(model, None, data, 2, batch_size=96, seed=3)
    for epoch, batch in enumerate(seen):
        order = torch.from_numpy(rng.generator((3, epoch), "module_batches").permutation(96))
        assert torch.equal(batch, pns.tasks.augmented(data.x_train, 3, epoch)[order])
    assert len(seen) == 2


def test_regression():
    data = blobs()
    data.y_train, data.y_test = (F.one_hot(y, 3).float() for y in (data.y_train, data.y_test))
    result = pns.train_module(network(), None, data, epochs=3)
    assert torch.equal(result.metric, result.test_loss)
    assert result.test_loss[-1] < result.test_loss[0]


def test_divergence_and_progress():
    calls = []
    result = pns.train_module(
        network(), None, blobs(), 4, optimizer=pns.SGD(lr=1e6), progress=lambda *args: calls.append(args)
    )
    assert result.diverged
    assert torch.isnan(result.train_loss[-1])
    assert result.test_loss.shape == (5,)
    assert len(calls) < 4
    pns.train_module(network(), None, blobs(), 3, progress=lambda *args: calls.append(args))
    assert calls[-3:] == [(1, 3), (2, 3), (3, 3)]


def test_trains_without_gradients_around_it():
    wanted = pns.train_module(network(), None, blobs(), epochs=1)
    with torch.no_grad():
        found = pns.train_module(network(), None, blobs(), epochs=1)
    assert torch.equal(found.test_loss, wanted.test_loss)


def test_zero_epochs_are_the_network_before_training():
    model = network()
    masks = pns.prune_module(model, "magnitude", 0.5)
    result = pns.train_module(model, masks, blobs(), epochs=0)
    assert result.train_loss.shape == (0,)
    wanted = pns.nn.finalize(model, masks)
    assert all(torch.equal(t, wanted.state_dict()[k]) for k, t in result.module.state_dict().items())


def test_multishot_rewinds_and_keeps_masks_nested():
    model, data = network(width=10), blobs()
    options = {"rounds": 3, "round_epochs": 1, "epochs": 2, "seed": 3}
    n = sum(p.numel() for p in model.parameters())
    for pruner in pns.pruners.names()[:5]:
        found = pns.multishot_module(model, pruner, 0.1, data, **options)
        assert sum(int(m.sum()) for m in found.masks.values()) == -(-n // 10)
    alone = pns.train_module(model, found.masks, data, 2, seed=3)
    assert torch.equal(found.result.test_loss, alone.test_loss)
    dense = pns.multishot_module(model, "snip", 1, data, **options)
    assert dense.masks is None
    assert torch.equal(dense.result.test_loss, pns.train_module(model, None, data, 2, seed=3).test_loss)


def test_multishot_by_hand():
    model, data = network(), blobs()
    batch = data.x_train[:30], data.y_train[:30]
    found = pns.multishot_module(model, "magnitude", 0.25, data, 2, 1, 0, batch=batch, seed=7)
    masks = None
    from pns_fast.training.multishot import round_seeds

    for r, density in ((1, 0.5), (2, 0.25)):
        trained = pns.train_module(model, masks, data, 1, seed=round_seeds(7, 1, r)[0]).module
        masks = pns.prune_module(trained, "magnitude", density, masks=masks)
    assert all(torch.equal(m, masks[name]) for name, m in found.masks.items())


def test_multishot_starts_from_what_masked_layers_keep():
    own = pns.prune_module(network(), "random", 0.5, seed=1)
    model, data = pns.nn.mask_model(network(), own), blobs()
    for pruner in ("random", "snip", "grasp"):
        found = pns.multishot_module(model, pruner, 0.3, data, rounds=2, round_epochs=1, epochs=0)
        assert not any((mask & ~own[name]).any() for name, mask in found.masks.items())
    assert all(torch.equal(m, own[name]) for name, m in pns.multishot_module(model, "snip", 1, data).masks.items())


def test_edge_popup_finds_a_subnet_of_fixed_parameters():
    model, data = network(width=40), blobs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = pns.edge_popup_module(model, data, 0.3, epochs=20, optimizer=pns.SGD(lr=1.0), seed=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(result.masks) == {f"{layer}.{p}" for layer in (0, 4, 7) for p in ("weight", "bias")}
    for name, mask in result.masks.items():
        assert int(mask.sum()) == -(-3 * mask.numel() // 10)
        assert torch.equal(result.module.get_parameter(name), before[name] * mask)
    assert float(result.metric[-1]) > max(0.8, float(result.metric[0]))
    with torch.no_grad():
        right = (result.module(data.x_test).argmax(1) == data.y_test).double().mean()
    assert float(right) == pytest.approx(float(result.metric[-1]), abs=1e-9)
    assert all(p.requires_grad for p in result.module.parameters())


def test_edge_popup_by_hand():
    """One layer: the gradient of the scores is that of w * mask, times w and the sign of the score."""
    data = blobs(n_train=24)
    data.x_train, data.x_test = data.x_train.flatten(1), data.x_test.flatten(1)
    model = nn.Sequential(nn.Linear(72, 3))
    w, b = (p.detach() for p in model.parameters())
    bound = 1 / 72**0.5
    drawn = rng.generator((5, 0), "edge_popup_scores").uniform(-bound, bound, (3, 72))
    scores = [torch.from_numpy(drawn).float(), torch.zeros(3)]
    order = torch.from_numpy(rng.generator((5, 0), "module_batches").permutation(24))
    for index in order.split(8):
        chosen = [
            (p * pns.ops.topk_mask(s.abs().flatten(), 0.5).view_as(p)) for p, s in zip((w, b), scores, strict=True)
        ]
        chosen = [c.requires_grad_() for c in chosen]
        F.cross_entropy(F.linear(data.x_train[index], *chosen), data.y_train[index]).backward()
        signs = [torch.where(s < 0, -1.0, 1.0) for s in scores]
        scores = [s - 0.2 * c.grad * p * i for s, c, p, i in zip(scores, chosen, (w, b), signs, strict=True)]
    wanted = [pns.ops.topk_mask(s.abs().flatten(), 0.5).view_as(s) for s in scores]
    found = pns.edge_popup_module(
        *(model, data, 0.5, 1), optimizer=pns.SGD(lr=0.2, momentum=0.0, weight_decay=0.0), seed=5, batch_size=8
    )
    for mask, right in zip(found.masks.values(), wanted, strict=True):
        assert torch.equal(mask, right)


def test_annealing_lowers_the_density_by_epochs(monkeypatch):
    seen = []
    from pns_fast.training import edge_popup_module as module

    fit = importlib.import_module("pns_fast.training.edge_popup_module").fit

    def watching(model, *args):
        *others, before_epoch = args

        def watched(epoch):
            before_epoch(epoch)
            seen.append([layer.keep for _, layer in pns.nn.model.masked_layers(model)])

        return fit(model, *others, watched)

    monkeypatch.setattr(importlib.import_module("pns_fast.training.edge_popup_module"), "fit", watching)
    module(network(), blobs(), 0.04, epochs=2, anneal=True)
    assert seen[-2:] == [[pytest.approx(0.2)] * 3, [0.04] * 3]


def test_on_every_device(device):
    """The same batches, images and first scores; sums in another order, on a GPU in TF32."""
    data = blobs(augments=True)

    def runs(model):
        masks = pns.prune_module(model, "magnitude", 0.3)
        yield pns.train_module(model, masks, data, 2)
        yield pns.multishot_module(model, "synflow", 0.3, data, 2, 1, 1).result
        yield pns.edge_popup_module(model, data, 0.5, 1)

    for found, wanted in zip(runs(network().to(device)), runs(network()), strict=True):
        assert {p.device.type for p in found.module.parameters()} == {device.type}
        torch.testing.assert_close(found.test_loss, wanted.test_loss, rtol=0.02, atol=0.02)


def of_targets(data, y):
    """The data with targets that stand for all of a sample's outputs, or are no floats."""
    data.y_train, data.y_test = y, y[: len(data.y_test)]
    return data


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, d: pns.train_module("m", None, d), TypeError, "model: expected an nn.Module"),
        (lambda m, d: pns.train_module(m, {"9.weight": torch.ones(1)}, d), ValueError, "masks: expected names"),
        (lambda m, d: pns.train_module(m, None, [1]), TypeError, "data: expected one with x_train"),
        (lambda m, d: pns.train_module(m, None, d, loss="mse"), TypeError, "data y_train: loss 'mse' expects floating"),
        (lambda m, d: pns.train_module(m, None, of_targets(d, d.y_train.int())), TypeError, "data y_train: loss 'mse'"),
        (lambda m, d: pns.train_module(m, None, of_targets(d, torch.rand(96))), ValueError, "data y: expected .40, 3."),
        (lambda m, d: pns.train_module(nn.ReLU(), None, d), ValueError, "model: expected parameters"),
        (lambda m, d: pns.train_module(m, None, d, epochs=-1), ValueError, "epochs: expected at least 0"),
        (lambda m, d: pns.train_module(m, None, d, batch_size=0), ValueError, "batch_size: expected at least 1"),
        (lambda m, d: pns.train_module(m, None, d, optimizer="adam"), TypeError, "optimizer: expected an Adam"),
        (lambda m, d: pns.train_module(m, None, d, loss="l1"), ValueError, "loss: expected one of"),
        (lambda m, d: pns.train_module(m, None, d, progress=1), TypeError, "progress: expected a callable"),
        (lambda m, d: pns.edge_popup_module(m, d, 0.0), ValueError, "density"),
        (lambda m, d: pns.edge_popup_module(m, d, 0.5, anneal=1), TypeError, "anneal: expected a bool"),
        (lambda m, d: pns.edge_popup_module(nn.ReLU(), d, 0.5), ValueError, "model: expected linear layers"),
        (lambda m, d: pns.multishot_module(m, "snap", 0.5, d, 1, 0, 0), ValueError, "pruner"),
        (lambda m, d: pns.multishot_module(m, "snip", 0.5, d, rounds=0), ValueError, "rounds: expected at least 1"),
        (lambda m, d: pns.multishot_module("m", "snip", 0.5, d), TypeError, "model: expected an nn.Module"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(network(), blobs())


@pytest.mark.parametrize("wrong", [{"pruner": "snap"}, {"scope": "layers"}, {"epochs": -1}, {"round_epochs": -1}])
def test_multishot_refuses_before_it_trains(wrong):
    def progress(done, total):
        raise AssertionError("trained")

    options = {"pruner": "snip", "density": 0.5, "data": blobs(), "round_epochs": 1, "progress": progress, **wrong}
    with pytest.raises(ValueError, match=r"snap|layers|epochs: expected at least 0"):
        pns.multishot_module(network(), **options)
