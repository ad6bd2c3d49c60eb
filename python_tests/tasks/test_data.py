"""The data: splits, determinism, targets and noise."""

import pytest
import torch

import pns_fast as pns

SHAPES = {"circle": (2, torch.int64, ()), "relu": (1, torch.float32, (1,)), "helix": (1, torch.float32, (3,))}


@pytest.mark.parametrize("name", pns.tasks.names())
def test_shapes_dtypes_and_splits(name):
    n_inputs, dtype, output = SHAPES[name]
    data = pns.tasks.get(name).sample()
    assert data.x_train.shape == (9000, n_inputs)
    assert data.x_test.shape == (1000, n_inputs)
    assert data.y_train.shape == (9000, *output)
    assert data.y_test.shape == (1000, *output)
    assert data.x_train.dtype == data.x_test.dtype == torch.float32
    assert data.y_train.dtype == data.y_test.dtype == dtype


@pytest.mark.parametrize("name", pns.tasks.names())
def test_inputs_are_uniform(name):
    x = pns.tasks.get(name).sample(100_000).x_train
    assert x.abs().max() <= 1
    assert x.mean().abs() < 0.01
    assert x.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("name", pns.tasks.names())
def test_seeds(name):
    task = pns.tasks.get(name)
    a, b, other = task.sample(50, seed=3), task.sample(50, seed=3), task.sample(50, seed=4)
    assert torch.equal(a.x_train, b.x_train)
    assert torch.equal(a.y_test, b.y_test)
    assert not torch.equal(a.x_train, other.x_train)


def test_noise_does_not_move_the_inputs():
    for name in pns.tasks.names():
        quiet, loud = (pns.tasks.get(name, noise).sample(100) for noise in (0.0, 0.1))
        assert torch.equal(quiet.x_train, loud.x_train)


def test_circle_labels_and_flips():
    n = 100_000
    clean = pns.tasks.get("circle", noise=0.0).sample(n)
    r2 = clean.x_train.double().square().sum(1)
    rings = torch.bucketize(r2, torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64))
    assert torch.equal(clean.y_train, rings)
    for noise in (0.001, 0.01, 0.1):
        noisy = pns.tasks.get("circle", noise).sample(n)
        flipped = noisy.y_train != clean.y_train
        assert flipped.double().mean().item() == pytest.approx(noise, abs=5 * (noise / n) ** 0.5)
        # the second most likely class is a neighbouring ring
        assert (noisy.y_train - clean.y_train)[flipped].abs().max() == 1


def test_circle_always_flipped_gives_the_runner_up():
    data = pns.tasks.get("circle", noise=1.0).sample(1000)
    logits = data.x_train.double().square().sum(1, keepdim=True) * torch.tensor([5.0, 10, 20, 40])
    logits = logits + torch.tensor([0.0, -1, -6, -20])
    assert torch.equal(data.y_train, logits.argsort(dim=1, descending=True)[:, 1])


@pytest.mark.parametrize("name", ["relu", "helix"])
def test_regression_noise(name):
    clean, noisy = (pns.tasks.get(name, noise).sample(100_000, seed=2) for noise in (0.0, 0.01))
    difference = (noisy.y_train - clean.y_train).double()
    assert difference.std(0).tolist() == pytest.approx([0.01] * difference.shape[1], rel=0.02)
    assert difference.mean(0).abs().max() < 2e-4


def test_clean_regression_targets():
    relu = pns.tasks.get("relu", 0.0).sample(100)
    assert torch.equal(relu.y_train, relu.x_train.clamp(min=0))
    helix = pns.tasks.get("helix", 0.0).sample(100)
    y = 5 * torch.pi + 3 * torch.pi * helix.x_train.double()
    curve = torch.cat([y * y.cos(), y * y.sin(), y], dim=1) / (8 * torch.pi)
    assert torch.equal(helix.y_train, curve.float())


def test_registry_and_attributes():
    assert pns.tasks.names() == ["circle", "relu", "helix"]
    rows = [(t.name, t.loss, t.n_inputs, t.n_outputs, t.metric_name) for t in map(pns.tasks.get, pns.tasks.names())]
    assert rows == [
        ("circle", "cross_entropy", 2, 4, "accuracy"),
        ("relu", "mse", 1, 1, "mse_rescaled"),
        ("helix", "mse", 1, 3, "mse_rescaled"),
    ]
    assert pns.tasks.get("helix").widths(3, 7) == (1, 7, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pns.tasks.get("spiral"), ValueError, "name: expected one of circle, relu, helix"),
        (lambda: pns.tasks.get(None), TypeError, "name: expected a string"),
        (lambda: pns.tasks.get("relu", noise=-0.1), ValueError, "noise"),
        (lambda: pns.tasks.get("relu", noise=float("nan")), ValueError, "noise"),
        (lambda: pns.tasks.get("relu", noise="0.1"), TypeError, "noise"),
        (lambda: pns.tasks.get("circle", noise=1.5), ValueError, r"noise: .*\[0, 1\]"),
        (lambda: pns.tasks.get("relu").sample(1), ValueError, "n: expected at least 2"),
        (lambda: pns.tasks.get("relu").sample(10.0), TypeError, "n: expected an int"),
        (lambda: pns.tasks.get("relu").sample(10, seed=-1), ValueError, "seed"),
        (lambda: pns.tasks.get("relu").sample(10, seed=[1]), TypeError, "seed"),
        (lambda: pns.tasks.get("relu").widths(2, 100), ValueError, "depth"),
        (lambda: pns.tasks.get("relu").widths(5, 0), ValueError, "width"),
        (lambda: pns.tasks.get("relu").widths(5, 10.0), TypeError, "width"),
    ],
)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
