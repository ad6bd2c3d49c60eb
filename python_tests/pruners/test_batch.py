"""The pruning batch: balanced classes, real samples, one draw a key."""

from types import SimpleNamespace

import pytest
import torch

from pns_fast import tasks
from pns_fast.pruners import pruning_batch


def rows(x):
    return {tuple(r) for r in x.tolist()}


def test_circle_gives_ten_of_each_class():
    data = tasks.get("circle").sample(n=1000, seed=2)
    x, y = pruning_batch(data, "cross_entropy", seed=3)
    assert x.shape == (40, 2)
    assert y.bincount().tolist() == [10, 10, 10, 10]
    pairs = rows(torch.cat([data.x_train, data.y_train[:, None]], dim=1))
    assert rows(torch.cat([x, y[:, None]], dim=1)) <= pairs
    assert len(rows(x)) == 40


def test_regression_gives_forty_training_samples():
    data = tasks.get("helix").sample(n=1000, seed=2)
    x, y = pruning_batch(data, "mse", seed=3)
    assert (x.shape, y.shape) == ((40, 1), (40, 3))
    assert rows(torch.cat([x, y], 1)) <= rows(torch.cat([data.x_train, data.y_train], 1))
    assert len(rows(x)) == 40


def test_depends_on_the_seed_and_nothing_else():
    data = tasks.get("circle").sample(n=1000)
    torch.manual_seed(1)
    first = pruning_batch(data, "cross_entropy", seed=3)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, pruning_batch(data, "cross_entropy", seed=3)))
    assert not torch.equal(first[0], pruning_batch(data, "cross_entropy", seed=4)[0])


def test_a_list_is_each_alone():
    data = [tasks.get("circle").sample(n=500, seed=s) for s in range(3)]
    x, y = pruning_batch(data, "cross_entropy", seed=[5, 6, 7])
    for i in range(3):
        alone = pruning_batch(data[i], "cross_entropy", seed=5 + i)
        assert torch.equal(x[i], alone[0])
        assert torch.equal(y[i], alone[1])


def test_a_class_that_runs_out_leaves_its_places():
    y = torch.tensor([0] * 3 + [1] * 50 + [2] * 50)
    data = SimpleNamespace(x_train=torch.arange(103.0)[:, None], y_train=y)
    counts = pruning_batch(data, "cross_entropy", n=30)[1].bincount().tolist()
    assert counts[0] == 3
    assert sum(counts) == 30
    assert abs(counts[1] - counts[2]) <= 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "loss"),
        ({"n": 0}, ValueError, "n: "),
        ({"n": 91}, ValueError, "at most the 90 training samples, got 91"),
        ({"n": 4.0}, TypeError, "n: "),
        ({"seed": -1}, ValueError, "seed"),
        ({"data": tasks.get("helix").sample(n=100)}, TypeError, "data y_train: .* expects int64 labels"),
        ({"data": (torch.ones(50, 2), torch.ones(50))}, TypeError, "data: expected a Data"),
        ({"data": "circle"}, TypeError, "data: expected a Data"),
        ({"data": []}, ValueError, "data: expected at least one"),
    ],
)
def test_wrong_calls(change, error, message):
    call = {"data": tasks.get("circle").sample(n=100), "loss": "cross_entropy", "n": 40, "seed": 0}
    with pytest.raises(error, match=message):
        pruning_batch(**{**call, **change})
