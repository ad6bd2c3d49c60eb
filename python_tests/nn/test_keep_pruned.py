"""keep_pruned: no optimiser moves a pruned parameter, and kept ones move as without the pruned."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import TOLERANCES
from torch import nn
from torch.nn import functional as F

from pns_fast.nn import finalize, get_masks, keep_pruned, mask_model, set_masks

OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "foreach": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "fused": True}),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1}),
]
X = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = X[:, :2].sin()


def masked_network(density=0.5):
    torch.manual_seed(0)
    model = mask_model(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double())
    set_masks(model, {name: torch.rand(mask.shape) < density for name, mask in get_masks(model).items()})
    return model


def train(model, optimizer, steps=12):
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()


def train_finalized(model, masks, make, options, steps=12):
    """The plain network with zeros, its gradients masked by hand before and its weights after each step."""
    plain = finalize(model)
    optimizer = make(plain.parameters(), **options)
    parameters = dict(plain.named_parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(plain(X), Y).backward()
        for name, mask in masks.items():
            parameters[name].grad *= mask
        optimizer.step()
        for name, mask in masks.items():
            assert (parameters[name][~mask] == 0).all()  # 0 stays 0 under weight decay
    return parameters


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_pruned_parameters_stay_and_kept_ones_move_as_if_alone(make, options):
    model = masked_network()
    before, masks = copy.deepcopy(model.state_dict()), get_masks(model)
    expected = train_finalized(model, masks, make, options)
    optimizer = make(model.parameters(), **options)
    keep_pruned(optimizer, model)
    train(model, optimizer)
    rtol, atol = TOLERANCES["float64"]
    for name, parameter in model.named_parameters():
        mask = masks[name]
        assert torch.equal(parameter[~mask], before[name][~mask])
        torch.testing.assert_close(parameter[mask], expected[name][mask], rtol=rtol, atol=atol)
        assert not torch.equal(parameter[mask], before[name][mask])
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                assert (value[~mask] == 0).all()


def test_without_it_weight_decay_moves_them():
    model = masked_network()
    before, mask = model[0].weight.detach().clone(), model[0].weight_mask
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    assert not torch.equal(model[0].weight[~mask], before[~mask])


def test_a_mask_that_is_pruned_while_training_takes_its_momentum_along():
    model = masked_network(density=1.1)  # nothing is pruned yet
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep_pruned(optimizer, model)
    train(model, optimizer, 3)
    assert (optimizer.state[model[0].weight]["momentum_buffer"] != 0).all()
    mask = torch.rand(8, 6) < 0.5
    model[0].set_mask(mask)
    value = model[0].weight.detach().clone()
    train(model, optimizer, 3)
    assert torch.equal(model[0].weight[~mask], value[~mask])
    assert (optimizer.state[model[0].weight]["momentum_buffer"][~mask] == 0).all()


def test_plain_parameters_of_any_kind_with_masks_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
    masks = {"0.weight": torch.rand(3, 1, 3, 3) < 0.5, "3.weight": torch.rand(2, 48) < 0.1}
    model = finalize(model, masks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    keep_pruned(optimizer, model, masks)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 6, 6)).square().sum().backward()
        optimizer.step()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
        assert (model.get_parameter(name).grad[~mask] == 0).all()


def test_remove_and_the_optimizers_own_state():
    model = masked_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    empty = optimizer.state_dict()
    handle = keep_pruned(optimizer, model)
    assert optimizer.state_dict() == empty
    train(model, optimizer, 2)
    assert optimizer.state_dict()["state"].keys() == {0, 1, 2, 3}
    assert optimizer.state_dict()["state"][0].keys() == {"momentum_buffer"}
    pickle.dumps(optimizer)
    handle.remove()
    before, mask = model[0].weight.detach().clone(), model[0].weight_mask
    train(model, optimizer, 1)
    assert not torch.equal(model[0].weight[~mask], before[~mask])


def test_an_optimizer_of_some_of_the_parameters():
    model = masked_network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, weight_decay=0.1)
    keep_pruned(optimizer, model)
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    assert torch.equal(model[0].weight[~model[0].weight_mask], before[~model[0].weight_mask])


def test_a_step_without_gradients():
    model = masked_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep_pruned(optimizer, model)
    optimizer.step()


def test_wrong_calls():
    model = nn.Sequential(nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer, got Sequential"):
        keep_pruned(model, optimizer)
    with pytest.raises(ValueError, match="optimizer: expected one that holds masked parameters"):
        keep_pruned(optimizer, mask_model(model))  # of the original, not of the copy
    with pytest.raises(ValueError, match="optimizer"):
        keep_pruned(optimizer, model)
    with pytest.raises(ValueError, match="optimizer"):
        keep_pruned(optimizer, mask_model(model), {})
    with pytest.raises(ValueError, match=r"masks: expected names of the model's parameters, got '1\.weight'"):
        keep_pruned(optimizer, model, {"1.weight": torch.ones(2, 6, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"masks\['0.weight'\]: expected shape"):
        keep_pruned(optimizer, model, {"0.weight": torch.ones(2, 5, dtype=torch.bool)})
