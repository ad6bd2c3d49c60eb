"""GraSP's layers collapse in multi-shot, as the paper reports it, only with the sign of its score turned round."""

from __future__ import annotations

import pytest

import pns_fast as pns
from pns_fast.pruners import registry

TASK = pns.tasks.get("circle")


@pytest.fixture
def reversed_grasp(monkeypatch):
    for name in ("_PRUNERS", "_REVIVING"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    grasp = registry.get("grasp")
    pns.pruners.register("grasp-reversed")(lambda problem: [-s for s in grasp(problem)])


@pytest.mark.parametrize(("pruner", "collapses"), [("grasp", False), ("grasp-reversed", True)])
def test_layers_empty_with_the_sign_turned_round(pruner, collapses, reversed_grasp):
    mothers = pns.init_population(TASK.widths(5, 100), n=3, seed=[0, 1, 2])
    planted = pns.plant(TASK.ticket(5), mothers).population
    data = [TASK.sample(n=10_000, seed=s) for s in range(3)]
    found = pns.multishot(planted, pruner, 0.1, data, rounds=10, round_epochs=5, epochs=0, seed=[0, 1, 2])
    assert found.masks.collapsed().tolist() == [collapses] * 3
