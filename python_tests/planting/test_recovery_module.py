"""recovery_module: the numbers of recovery, for masks by name."""

from __future__ import annotations

import pytest
import torch

import pns_fast as pns


def test_agrees_with_recovery_of_a_population():
    population = pns.init_population((3, 20, 20, 4), seed=1)
    kept, planted = (pns.prune(population, "random", density, seed=s) for density, s in ((0.4, 1), (0.1, 2)))
    wanted = pns.recovery(kept, planted)
    found = pns.recovery_module(kept.named(0), planted.named(0))
    for measure in ("precision", "recall", "f1"):
        assert getattr(found.overall, measure) == float(getattr(wanted, measure)[0])
        layers = [getattr(layer, measure) for layer in found.layers.values()]
        assert layers == getattr(wanted, f"layer_{measure}")[0].tolist()
    assert found.overall.n_kept == int(kept.kept()[0])
    assert sum(layer.n_planted for layer in found.layers.values()) == found.overall.n_planted


def test_nothing_kept_is_nothing_found():
    empty, planted = {"a.weight": torch.zeros(2, 2, dtype=torch.bool)}, {"a.weight": torch.eye(2, dtype=torch.bool)}
    found = pns.recovery_module(empty, planted).overall
    assert (found.precision, found.recall, found.f1, found.n_kept, found.n_planted) == (0, 0, 0, 0, 2)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ([], TypeError, "masks: expected a dict"),
        ({}, ValueError, "masks: expected at least one mask, got none"),
        ({"a.weight": torch.ones(1)}, TypeError, r"masks\['a.weight'\]: expected a bool tensor, got torch.float32"),
        ({"b.weight": torch.ones(1, dtype=torch.bool)}, ValueError, r"only one side has \['a.weight', 'b.weight'\]"),
        ({"a.weight": torch.ones(2, dtype=torch.bool)}, ValueError, r"masks\['a.weight'\]: expected shape \[1\]"),
    ],
)
def test_bad_arguments(masks, error, message):
    with pytest.raises(error, match=message):
        pns.recovery_module(masks, {"a.weight": torch.ones(1, dtype=torch.bool)})
