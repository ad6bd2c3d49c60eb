"""multishot(): the paper's rounds, written out; nested masks; strong and weak; invariance; wrong calls."""

import math

import pytest
import torch

from pns_fast import Adam, Masks, init_population, multishot, prune, tasks, train
from pns_fast.pruners import names, pruning_batch, score, threshold
from pns_fast.training.multishot import round_seeds

WIDTHS = (2, 12, 9, 4)
P = 2 * 12 + 12 + 12 * 9 + 9 + 9 * 4 + 4
N = 3
SHORT = {"rounds": 3, "round_epochs": 1, "epochs": 1, "optimizer": Adam(lr=0.01)}


def small(n=100, seed=0):
    return tasks.get("circle").sample(n=n, seed=seed)


@pytest.mark.parametrize("name", names())
def test_is_train_prune_reset_in_rounds(name):
    population, data = init_population(WIDTHS, n=N), small()
    batch = pruning_batch([data] * N, "cross_entropy", seed=6)
    masks = Masks.full(population)
    for r in (1, 2, 3):
        trained = train(population, masks, data, 1, optimizer=Adam(lr=0.01), seed=round_seeds(6, N, r))
        if name == "force":  # chooses from everything each time
            pruned = threshold(score(trained.population, name, batch, masks=masks), None, WIDTHS, 0.05 ** (r / 3))
        else:
            pruned = prune(trained.population, name, 0.05 ** (r / 3), batch, seed=6, masks=masks)
            assert not (pruned.flatten() & ~masks.flatten()).any()
        assert pruned.kept().tolist() == [math.ceil(0.05 ** (r / 3) * P - 1e-9)] * N
        masks = pruned
    found = multishot(population, name, 0.05, data, seed=6, **SHORT)
    assert torch.equal(found.masks.flatten(), masks.flatten())
    last = train(population, masks, data, 1, optimizer=Adam(lr=0.01), seed=6)
    assert torch.equal(found.result.population.flatten(), last.population.flatten())
    assert torch.equal(found.strong_metric, last.metric[:, 0])
    assert torch.equal(found.strong_loss, last.test_loss[:, 0])


def test_density_1_is_the_last_training_alone():
    population, data, reported = init_population(WIDTHS, n=N), small(), []
    found = multishot(population, "snip", 1.0, data, **SHORT, progress=lambda *counts: reported.append(counts))
    last = train(population, None, data, 1, optimizer=Adam(lr=0.01))
    assert torch.equal(found.result.population.flatten(), last.population.flatten())
    assert found.masks.flatten().all()
    assert reported[-1] == (N, N)  # one epoch each, none in rounds


def test_divergence_in_the_last_training_is_reported():
    population, data = init_population(WIDTHS, n=N), small()
    for w in population.weights:
        w[1] *= 1e18
    found = multishot(population, "random", 0.5, data, rounds=1, round_epochs=0, epochs=2)
    assert found.diverged.tolist() == [False, True, False]


def test_strong_is_the_masked_network_at_initial_parameters():
    population, data = init_population(WIDTHS, n=N), small()
    found = multishot(population, "magnitude", 0.3, data, **SHORT)
    output = population.forward(data.x_test, found.masks)
    accuracy = (output.argmax(2) == data.y_test).double().mean(1)
    assert torch.equal(found.strong_metric, accuracy)
    before = population.flatten()
    kept = found.masks.flatten()
    assert torch.equal(found.result.population.flatten()[~kept], before[~kept])


def test_scores_are_those_of_trained_parameters():
    population, data = init_population(WIDTHS, n=N), small()
    found = multishot(population, "magnitude", 0.3, data, 1, 3, 0, optimizer=Adam(lr=0.05))
    assert not torch.equal(found.masks.flatten(), prune(population, "magnitude", 0.3).flatten())


def test_one_round_without_training_is_single_shot():
    population, data = init_population(WIDTHS, n=N), small()
    batch = pruning_batch(data, "cross_entropy")
    found = multishot(population, "snip", 0.2, data, rounds=1, round_epochs=0, epochs=0, batch=batch)
    assert torch.equal(found.masks.flatten(), prune(population, "snip", 0.2, batch).flatten())


def test_layer_scope_and_linear_schedule():
    population, data = init_population(WIDTHS, n=N), small()
    found = multishot(population, "grasp", 0.1, data, scope="layer", schedule="linear", **SHORT)
    for w, b in zip(found.masks.weights, found.masks.biases, strict=True):
        size = w[0].numel() + b[0].numel()
        assert (w.flatten(1).sum(1) + b.sum(1)).tolist() == [math.ceil(0.1 * size - 1e-9)] * N


def test_every_round_has_an_order_of_its_own():
    seeds = [s for r in range(1, 11) for s in round_seeds(0, N, r)] + round_seeds(1, 1, 1)
    assert len(set(seeds)) == 10 * N + 1
    assert all(0 <= s < 2**63 for s in seeds)
    assert round_seeds([5, 6], 2, 4) == round_seeds(5, 1, 4) + round_seeds(6, 1, 4)


@pytest.mark.parametrize("name", ["snip", "synflow"])
def test_a_network_is_the_same_alone_and_in_a_batch(name):
    population = init_population(WIDTHS, n=N, seed=[7, 8, 9])
    data = [small(seed=s) for s in range(N)]
    found = multishot(population, name, 0.1, data, seed=[7, 8, 9], **SHORT)
    for i in range(N):
        alone = multishot(population.select(i), name, 0.1, data[i], seed=7 + i, **SHORT)
        assert torch.equal(alone.masks.flatten()[0], found.masks.flatten()[i])
        assert torch.equal(alone.result.population.flatten()[0], found.result.population.flatten()[i])
        assert torch.equal(alone.result.metric[0], found.result.metric[i])


def test_several_pruners_and_densities_in_one_call():
    jobs = [("snip", 0.1), ("magnitude", 0.1), ("synflow", 1.0), ("snip", 0.4), ("random", 0.1), ("grasp", 0.4)]
    population, data, reported = init_population(WIDTHS, n=6), small(), []
    pruner, density = map(list, zip(*jobs, strict=True))
    report = {"progress": lambda *counts: reported.append(counts)}
    found = multishot(population, pruner, density, data, seed=[3, 4, 5, 6, 7, 8], **SHORT, **report)
    assert reported[-1] == (5 * 3 + 6, 5 * 3 + 6)
    for i, job in enumerate(jobs):
        alone = multishot(population.select(i), *job, data, seed=3 + i, **SHORT)
        assert torch.equal(alone.masks.flatten()[0], found.masks.flatten()[i])
        assert torch.equal(alone.result.population.flatten()[0], found.result.population.flatten()[i])
        assert torch.equal(alone.strong_loss[0], found.strong_loss[i])
    together = multishot(population, "random", 0.3, data, seed=3, **SHORT)  # keys (3, 0) ... (3, 5)
    mixed = multishot(population, "random", [0.3, 0.3, 0.3, 1.0, 0.3, 0.3], data, seed=3, **SHORT)
    for i in (0, 1, 2, 4, 5):
        assert torch.equal(mixed.masks.flatten()[i], together.masks.flatten()[i])


def test_regression():
    population, data = init_population((1, 8, 3), n=2), tasks.get("helix").sample(n=60)
    found = multishot(population, "snip", 0.5, data, **SHORT)
    assert found.masks.kept().tolist() == [math.ceil(0.5 * 43)] * 2
    assert torch.equal(found.strong_metric, found.result.metric[:, 0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"population": None}, TypeError, "population"),
        ({"pruner": "gem"}, ValueError, "random, magnitude, snip, grasp, synflow, force, phew, got 'gem'"),
        ({"density": 2}, ValueError, "density"),
        ({"density": [0.5, 0.5]}, ValueError, "density: expected one, or a list with one for each of 3 networks"),
        ({"pruner": ["snip", "snip", "gem"]}, ValueError, "got 'gem'"),
        ({"pruner": ["snip", "snip", 3]}, ValueError, "pruner: expected one, or a list"),
        ({"data": None}, TypeError, "data"),
        ({"rounds": 0}, ValueError, "rounds"),
        ({"round_epochs": -1}, ValueError, "round_epochs"),
        ({"epochs": -1}, ValueError, "epochs"),
        ({"scope": "filter"}, ValueError, "scope"),
        ({"schedule": "cubic"}, ValueError, "schedule"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"optimizer": None}, TypeError, "optimizer"),
        ({"loss": "mse"}, TypeError, "y_train"),
        ({"seed": [1]}, ValueError, "seed"),
        ({"batch": (torch.zeros(4, 3), torch.zeros(4).long())}, ValueError, "batch x"),
    ],
)
def test_wrong_calls(change, error, message):
    call = {"population": init_population(WIDTHS, n=N), "pruner": "snip", "density": 0.5, "data": small()}
    with pytest.raises(error, match=message):
        multishot(**{**call, "rounds": 1, "round_epochs": 1, "epochs": 0, **change})
