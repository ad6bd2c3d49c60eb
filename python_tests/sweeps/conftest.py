"""Made-up records, as sweeps.read gives them."""

import pytest


def make_record(**changes):
    cell = dict(mode="singleshot", task="circle", depth=5, width=100, noise=0.01, pruner="snip")
    cell.update(density_label="0.1", density=0.1, seed=0, epochs=10, status="ok", error=None, key="k")
    cell.update(strong_metric=0.25, weak_metric=0.95, strong_loss=1.4, weak_loss=0.1, kept=2091.0)
    cell.update(effective_density=0.1, collapsed=0.0, precision=0.01, recall=0.2, f1=0.02)
    cell.update(layer_density=[0.5, 0.1, 0.05, 0.4], layer_recall=[0.5, 0.2, 0.0, 0.6])
    cell.update(ticket_metric=0.98, ticket_density=108 / 20_600, strong_gap=0.73, weak_gap=0.03)
    return {**cell, **changes}


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def grid():
    """Two tasks, two pruners, three densities, three seeds; weak means 0.8 (circle) and 0.101 (helix)."""
    return [
        make_record(
            task=task,
            pruner=pruner,
            density_label=label,
            density=density,
            seed=seed,
            weak_metric=weak + seed / 10,
        )
        for task, weak in (("helix", 0.001), ("circle", 0.7))
        for pruner in ("synflow", "random")
        for label, density in (("1", 1.0), ("ticket", 0.005), ("0.1", 0.1))
        for seed in range(3)
    ]
