"""Settings of the optimisers: defaults, and what is refused."""

import dataclasses
import math

import pytest

from pns_fast import SGD, Adam


def test_defaults_are_the_papers():
    assert Adam() == Adam(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, schedule="constant")
    assert SGD() == SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="constant")
    assert Adam(1e-3) == Adam()
    assert (Adam().step_epochs, Adam().gamma) == (SGD().step_epochs, SGD().gamma) == (30, 0.1)


def test_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Adam().lr = 1.0


@pytest.mark.parametrize(
    ("make", "settings", "error"),
    [
        (Adam, {"lr": -1e-3}, ValueError),
        (Adam, {"lr": math.nan}, ValueError),
        (SGD, {"lr": math.inf}, ValueError),
        (SGD, {"lr": "0.1"}, TypeError),
        (Adam, {"beta1": 1.0}, ValueError),
        (Adam, {"beta2": -0.1}, ValueError),
        (Adam, {"eps": -1e-8}, ValueError),
        (SGD, {"momentum": 1.0}, ValueError),
        (SGD, {"momentum": True}, TypeError),
        (SGD, {"weight_decay": -1.0}, ValueError),
        (SGD, {"schedule": "linear"}, ValueError),
        (Adam, {"step_epochs": 0}, ValueError),
        (SGD, {"step_epochs": 2.0}, TypeError),
        (Adam, {"gamma": -0.1}, ValueError),
        (SGD, {"gamma": math.inf}, ValueError),
        (SGD, {"gamma": "0.1"}, TypeError),
    ],
)
def test_wrong_settings_are_named(make, settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        make(**settings)
